//! Qwen 3: query and key normed per head, no biases unless asked for, a head size of its own; windows as in Qwen 2.

use super::config::{Config, Defaults};
use super::qwen2;
use crate::model::description::DecoderDescription;
use anyhow::Result;

const DEFAULTS: Defaults = Defaults {
    vocab_size: 151_936,
    hidden_size: 4096,
    intermediate_size: 22_016,
    n_layers: 32,
    n_heads: 32,
    n_kv_heads: Some(32),
    head_dim: Some(128),
    max_positions: 32_768,
    tied_embeddings: false,
    pad_token_id: None,
    activation: ("hidden_act", "silu"),
};

pub(super) fn describe(config: &Config<'_>) -> Result<DecoderDescription> {
    let attention_bias = config.flag("attention_bias", false)?;
    let plain = config.plain_decoder(&DEFAULTS)?;
    Ok(DecoderDescription {
        query_key_norm: true,
        query_key_value_bias: attention_bias,
        output_bias: attention_bias,
        layers: qwen2::layers(config, plain.layers.len())?,
        ..plain
    })
}
