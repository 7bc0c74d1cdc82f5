//! Gemma 2: four `1 + w` norms, scaled embeddings, soft caps on attention scores and logits, every other layer with a sliding window.

use super::config::{Config, Defaults};
use super::{FOUR_NORMS, rope};
use crate::model::description::{DecoderDescription, LayerDescription, NormStyle};
use anyhow::{Context, Result};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 256_000,
    hidden_size: 2304,
    intermediate_size: 9216,
    n_layers: 26,
    n_heads: 8,
    n_kv_heads: Some(4),
    head_dim: Some(256),
    max_positions: 8192,
    tied_embeddings: true,
    pad_token_id: Some(0),
    activation: ("hidden_activation", "gelu_pytorch_tanh"),
};

pub(super) fn describe(config: &Config<'_>) -> Result<DecoderDescription> {
    let gemma = gemma_decoder(config, &DEFAULTS)?;
    let window = config.optional_size("sliding_window", Some(4096))?;
    // Even layers, counted from 0, slide.
    let sliding = config.sliding_layers(gemma.layers.len(), |layer| layer.is_multiple_of(2))?;
    let layers = sliding.into_iter().map(|slides| Ok(LayerDescription { window: sliding_window(slides, window)?, rope: 0 }));
    Ok(DecoderDescription {
        attention_soft_cap: config.optional_number("attn_logit_softcapping", Some(50.0))?,
        logit_soft_cap: config.optional_number("final_logit_softcapping", Some(30.0))?,
        ropes: rope::shared(config, gemma.head_dim, gemma.max_positions)?,
        layers: layers.collect::<Result<_>>()?,
        ..gemma
    })
}

/// What Gemma 2 and 3 share; without ropes.
pub(super) fn gemma_decoder(config: &Config<'_>, defaults: &Defaults) -> Result<DecoderDescription> {
    let attention_bias = config.flag("attention_bias", false)?;
    let plain = config.decoder_without_rope(defaults)?;
    Ok(DecoderDescription {
        norm_style: NormStyle::OnePlus,
        norms: FOUR_NORMS,
        query_key_value_bias: attention_bias,
        output_bias: attention_bias,
        query_scale: config.number("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5),
        embedding_scale: Some((plain.hidden_size as f64).sqrt()),
        ..plain
    })
}

/// The window of one layer.
pub(super) fn sliding_window(slides: bool, window: Option<usize>) -> Result<Option<usize>> {
    if !slides {
        return Ok(None);
    }
    window.map(Some).context("some layers slide, but `sliding_window` is null")
}
