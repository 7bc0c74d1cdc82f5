//! Mistral: Llama without biases, and one sliding window for all layers (null in later releases).

use super::config::{Config, Defaults};
use super::uniform_layers;
use crate::model::description::DecoderDescription;
use anyhow::Result;

const DEFAULTS: Defaults = Defaults {
    vocab_size: 32_000,
    hidden_size: 4096,
    intermediate_size: 14_336,
    n_layers: 32,
    n_heads: 32,
    n_kv_heads: Some(8),
    head_dim: None,
    max_positions: 4096 * 32,
    tied_embeddings: false,
    pad_token_id: None,
    activation: ("hidden_act", "silu"),
};

pub(super) fn describe(config: &Config<'_>) -> Result<DecoderDescription> {
    config.refuse("layer_types", "Mistral's layers are all alike; a model with different ones (Ministral) is not supported")?;
    let window = config.optional_size("sliding_window", Some(4096))?;
    let plain = config.plain_decoder(&DEFAULTS)?;
    Ok(DecoderDescription { layers: uniform_layers(plain.layers.len(), window), ..plain })
}
