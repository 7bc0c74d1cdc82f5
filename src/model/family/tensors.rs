//! The checkpoint's key tree: which tensors a decoder has, under the names that transformers gives them, and in which shapes.

use crate::model::description::DecoderDescription;
use crate::model::weights::Checkpoint;
use anyhow::{Result, ensure};

const EMBEDDINGS: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Names and shapes of all parameters, in the order of the forward pass. Matrices are `[out, in]`. A tied decoder has no `lm_head.weight`.
pub fn expected_tensors(description: &DecoderDescription) -> Vec<(String, Vec<usize>)> {
    let d = description;
    let mut tensors = vec![(EMBEDDINGS.to_owned(), vec![d.vocab_size, d.hidden_size])];
    for layer in 0..d.layers.len() {
        let mut add = |name: &str, shape: &[usize]| tensors.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        let norm = |name: &str| format!("{name}.weight");
        add(&norm(d.norms.before_attention), &[d.hidden_size]);
        let (query_size, kv_size) = (d.n_heads * d.head_dim, d.n_kv_heads * d.head_dim);
        for (projection, out, input, has_bias) in [
            ("self_attn.q_proj", query_size, d.hidden_size, d.query_key_value_bias),
            ("self_attn.k_proj", kv_size, d.hidden_size, d.query_key_value_bias),
            ("self_attn.v_proj", kv_size, d.hidden_size, d.query_key_value_bias),
            ("self_attn.o_proj", d.hidden_size, query_size, d.output_bias),
        ] {
            add(&format!("{projection}.weight"), &[out, input]);
            if has_bias {
                add(&format!("{projection}.bias"), &[out]);
            }
        }
        if d.query_key_norm {
            add("self_attn.q_norm.weight", &[d.head_dim]);
            add("self_attn.k_norm.weight", &[d.head_dim]);
        }
        for name in [d.norms.after_attention, Some(d.norms.before_mlp), d.norms.after_mlp].into_iter().flatten() {
            add(&norm(name), &[d.hidden_size]);
        }
        for (projection, out, input) in [
            ("mlp.gate_proj", d.intermediate_size, d.hidden_size),
            ("mlp.up_proj", d.intermediate_size, d.hidden_size),
            ("mlp.down_proj", d.hidden_size, d.intermediate_size),
        ] {
            add(&format!("{projection}.weight"), &[out, input]);
            if d.mlp_bias {
                add(&format!("{projection}.bias"), &[out]);
            }
        }
    }
    tensors.push(("model.norm.weight".to_owned(), vec![d.hidden_size]));
    if !d.tied_embeddings {
        tensors.push((HEAD.to_owned(), vec![d.vocab_size, d.hidden_size]));
    }
    tensors
}

/// Checks that a checkpoint holds exactly the decoder's tensors.
///
/// Two extras are harmless: `rotary_emb.inv_freq` of old Llama files, which we compute ourselves, and in a tied decoder an `lm_head.weight` that
/// repeats the embeddings.
pub fn check_weights(description: &DecoderDescription, checkpoint: &Checkpoint) -> Result<()> {
    let may_repeat_head = description.tied_embeddings;
    checkpoint
        .check(&expected_tensors(description), &|name| name.ends_with(".rotary_emb.inv_freq") || (may_repeat_head && name == HEAD))?;
    if may_repeat_head && checkpoint.contains(HEAD) {
        ensure!(
            checkpoint.is_same(HEAD, EMBEDDINGS)?,
            "config.json ties the embeddings (`tie_word_embeddings`), but `{HEAD}` differs from `{EMBEDDINGS}`; set it to false if the head is its own"
        );
    }
    Ok(())
}
