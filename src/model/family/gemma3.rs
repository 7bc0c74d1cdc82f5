//! Gemma 3, text only: Gemma 2 with query-key norm instead of soft caps, five sliding layers to one global, and a rope for each kind.

use super::config::{Config, Defaults};
use super::gemma2::{gemma_decoder, sliding_window};
use super::rope::{RopeSettings, Scaling, refuse_partial, scaling_object};
use crate::model::description::{DecoderDescription, LayerDescription, Rope};
use anyhow::{Context, Result, bail, ensure};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 262_208,
    hidden_size: 2304,
    intermediate_size: 9216,
    n_layers: 26,
    n_heads: 8,
    n_kv_heads: Some(4),
    head_dim: Some(256),
    max_positions: 131_072,
    tied_embeddings: true,
    pad_token_id: Some(0),
    activation: ("hidden_activation", "gelu_pytorch_tanh"),
};

const GLOBAL_ROPE: usize = 0;
const LOCAL_ROPE: usize = 1;

pub(super) fn describe(config: &Config<'_>) -> Result<DecoderDescription> {
    // transformers reads this key and ignores it: what the weights were trained with is unknown.
    config.refuse("attn_logit_softcapping", "Gemma 3 has no soft cap on attention scores")?;
    let gemma = gemma_decoder(config, &DEFAULTS)?;
    let window = config.optional_size("sliding_window", Some(4096))?;
    let pattern = config.size("sliding_window_pattern")?.unwrap_or(6);
    ensure!(pattern > 0, "`sliding_window_pattern` is 0");
    let sliding = config.sliding_layers(gemma.layers.len(), |layer| !(layer + 1).is_multiple_of(pattern))?;
    let layers = sliding.into_iter().map(|slides| {
        Ok(LayerDescription { window: sliding_window(slides, window)?, rope: if slides { LOCAL_ROPE } else { GLOBAL_ROPE } })
    });
    Ok(DecoderDescription {
        query_key_norm: true,
        logit_soft_cap: config.optional_number("final_logit_softcapping", None)?,
        ropes: ropes(config, gemma.head_dim, gemma.max_positions)?,
        layers: layers.collect::<Result<_>>()?,
        ..gemma
    })
}

/// transformers 4 has `rope_theta`, `rope_scaling` (for global layers) and `rope_local_base_freq`; 5 has an object per layer type.
fn ropes(config: &Config<'_>, head_dim: usize, max_positions: usize) -> Result<Vec<Rope>> {
    refuse_partial(config)?;
    let mut global = RopeSettings { theta: config.number("rope_theta")?.unwrap_or(1_000_000.0), scaling: Scaling::None };
    let mut local = RopeSettings { theta: config.number("rope_local_base_freq")?.unwrap_or(10_000.0), scaling: Scaling::None };
    if let Some(by_layer_type) = scaling_object(config, "rope_parameters")? {
        for (layer_type, settings) in [("full_attention", &mut global), ("sliding_attention", &mut local)] {
            let parameters = by_layer_type
                .get(layer_type)
                .and_then(|value| value.as_object())
                .with_context(|| format!("`rope_parameters` of gemma3_text should have an object `{layer_type}`"))?;
            *settings = RopeSettings::read(config, parameters, settings.theta, max_positions)?;
        }
    }
    if let Some(parameters) = scaling_object(config, "rope_scaling")? {
        global = RopeSettings::read(config, parameters, global.theta, max_positions)?;
    }
    Ok(vec![global.rope(head_dim)?, local.rope(head_dim)?])
}

/// The recipe was tried: `Gemma3ForCausalLM.from_pretrained` alone finds none of the weights under their multimodal names and makes up new ones.
pub(super) fn refuse_multimodal() -> Result<DecoderDescription> {
    bail!(
        "`model_type` is `gemma3`, a model of images and text; only its text part, `gemma3_text`, can be trained. Use a text-only checkpoint \
         (google/gemma-3-1b-it), or save the text part once in Python, then copy the tokenizer files:\n  \
         from transformers import AutoModelForImageTextToText, Gemma3ForCausalLM\n  \
         whole = AutoModelForImageTextToText.from_pretrained(\"MODEL\", dtype=\"auto\")\n  \
         text = Gemma3ForCausalLM(whole.config.text_config)\n  \
         text.model = whole.model.language_model\n  \
         text.tie_weights()\n  \
         text.save_pretrained(\"FOLDER\")"
    )
}
