//! Llama 2, 3, 3.1, 3.2, and models of the same architecture (SmolLM2): the plain decoder, biases where the configuration asks for them.

use super::config::{Config, Defaults};
use crate::model::description::DecoderDescription;
use anyhow::Result;

const DEFAULTS: Defaults = Defaults {
    vocab_size: 32_000,
    hidden_size: 4096,
    intermediate_size: 11_008,
    n_layers: 32,
    n_heads: 32,
    n_kv_heads: None,
    head_dim: None,
    max_positions: 2048,
    tied_embeddings: false,
    pad_token_id: None,
    activation: ("hidden_act", "silu"),
};

pub(super) fn describe(config: &Config<'_>) -> Result<DecoderDescription> {
    let attention_bias = config.flag("attention_bias", false)?;
    Ok(DecoderDescription {
        query_key_value_bias: attention_bias,
        output_bias: attention_bias,
        mlp_bias: config.flag("mlp_bias", false)?,
        ..config.plain_decoder(&DEFAULTS)?
    })
}
