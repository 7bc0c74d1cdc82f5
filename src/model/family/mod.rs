//! One small file per family: `config.json` to a decoder description, in the styles of transformers 4 and 5.
//!
//! A file states what its family always has and the defaults that transformers takes where `config.json` is silent (it omits defaults in some
//! versions). What the engine cannot compute exactly is refused by name: a model that is nearly right trains to something that is wrong.

mod bounds;
mod config;
mod gemma2;
mod gemma3;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;
mod rope;
mod tensors;

pub use tensors::{check_weights, expected_tensors};

use super::description::{BlockNorms, DecoderDescription, LayerDescription};
use super::weights::Checkpoint;
use crate::files::read_json;
use anyhow::{Context, Result, bail, ensure};
use config::Config;
use serde_json::Value;
use std::path::Path;

/// The `model_type`s that [`describe`] understands.
const SUPPORTED: [&str; 6] = ["llama", "mistral", "gemma2", "gemma3_text", "qwen2", "qwen3"];

/// Llama, Mistral and Qwen: one norm before attention, one before the MLP.
const TWO_NORMS: BlockNorms =
    BlockNorms { before_attention: "input_layernorm", after_attention: None, before_mlp: "post_attention_layernorm", after_mlp: None };

/// Gemma 2 and 3: also one after each, and `post_attention_layernorm` changes its meaning.
const FOUR_NORMS: BlockNorms = BlockNorms {
    before_attention: "input_layernorm",
    after_attention: Some("post_attention_layernorm"),
    before_mlp: "pre_feedforward_layernorm",
    after_mlp: Some("post_feedforward_layernorm"),
};

/// Describes the decoder of the model folder `dir`.
///
/// # Errors
/// As [`describe`], and a `config.json` that cannot be read.
pub fn describe_folder(dir: &Path) -> Result<DecoderDescription> {
    let path = dir.join("config.json");
    let config = read_json(&path)?;
    // Weights that cannot be opened are another error, of whoever reads them.
    if let Ok(weights) = Checkpoint::open(dir) {
        bounds::check(&config, &weights).with_context(|| format!("in `{}`", path.display()))?;
    }
    describe(&config).with_context(|| format!("in `{}`", path.display()))
}

/// Describes the decoder of a parsed `config.json`.
///
/// # Errors
/// Names the key, its value and what is supported: an unknown `model_type`, a feature the engine does not compute, sizes that do not fit together.
pub fn describe(config: &Value) -> Result<DecoderDescription> {
    let config = Config::new(config)?;
    let model_type = config.text("model_type")?.context("config.json has no `model_type`; is it a transformers model?")?;
    let family: fn(&Config<'_>) -> Result<DecoderDescription> = match model_type {
        "llama" => llama::describe,
        "mistral" => mistral::describe,
        "gemma2" => gemma2::describe,
        "gemma3_text" => gemma3::describe,
        "gemma3" => return gemma3::refuse_multimodal(),
        "qwen2" => qwen2::describe,
        "qwen3" => qwen3::describe,
        other => bail!("`model_type` is `{other}`, which is not supported; supported are {}", SUPPORTED.join(", ")),
    };
    let describe_and_check = || -> Result<DecoderDescription> {
        refuse_what_no_family_supports(&config)?;
        let description = family(&config)?;
        check_sizes(&description)?;
        Ok(description)
    };
    describe_and_check().with_context(|| format!("cannot use this `{model_type}` model"))
}

fn refuse_what_no_family_supports(config: &Config<'_>) -> Result<()> {
    config.refuse("quantization_config", "save the model dequantised (f32, bf16 or f16) and use that")?;
    config.refuse("dual_chunk_attention_config", "dual chunk attention is not implemented; remove the key to use ordinary attention")?;
    for key in ["num_experts", "num_local_experts"] {
        config.refuse(key, "mixtures of experts are not supported")?;
    }
    ensure!(
        !config.flag("use_bidirectional_attention", false)?,
        "`use_bidirectional_attention` is true; only causal attention is supported"
    );
    Ok(())
}

fn check_sizes(description: &DecoderDescription) -> Result<()> {
    let d = description;
    for (name, size) in [
        ("vocab_size", d.vocab_size),
        ("hidden_size", d.hidden_size),
        ("intermediate_size", d.intermediate_size),
        ("num_hidden_layers", d.layers.len()),
        ("num_attention_heads", d.n_heads),
        ("num_key_value_heads", d.n_kv_heads),
        ("head_dim", d.head_dim),
    ] {
        ensure!(size > 0, "`{name}` is 0");
    }
    ensure!(
        d.n_heads.is_multiple_of(d.n_kv_heads),
        "`num_attention_heads` ({}) is not a multiple of `num_key_value_heads` ({})",
        d.n_heads,
        d.n_kv_heads
    );
    ensure!(d.head_dim.is_multiple_of(2), "`head_dim` is {}; rotary embeddings need an even one", d.head_dim);
    ensure!(d.norm_eps > 0.0, "`rms_norm_eps` is {}; it must be positive", d.norm_eps);
    ensure!(d.layers.iter().all(|layer| layer.window != Some(0)), "`sliding_window` is 0; a query must see its own key");
    Ok(())
}

/// `n` layers of the same window and rope 0.
fn uniform_layers(n: usize, window: Option<usize>) -> Vec<LayerDescription> {
    vec![LayerDescription { window, rope: 0 }; n]
}
