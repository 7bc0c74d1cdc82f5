//! Qwen 2 and 2.5: biases on query, key and value; windows on the later layers if `use_sliding_window` says so.

use super::config::{Config, Defaults};
use crate::model::description::{DecoderDescription, LayerDescription};
use anyhow::{Context, Result, ensure};

const DEFAULTS: Defaults = Defaults {
    vocab_size: 151_936,
    hidden_size: 4096,
    intermediate_size: 22_016,
    n_layers: 32,
    n_heads: 32,
    n_kv_heads: Some(32),
    head_dim: None,
    max_positions: 32_768,
    tied_embeddings: false,
    pad_token_id: None,
    activation: ("hidden_act", "silu"),
};

pub(super) fn describe(config: &Config<'_>) -> Result<DecoderDescription> {
    let plain = config.plain_decoder(&DEFAULTS)?;
    Ok(DecoderDescription { query_key_value_bias: true, layers: layers(config, plain.layers.len())?, ..plain })
}

/// `sliding_window` counts only with `use_sliding_window`, and only from layer `max_window_layers` on, unless `layer_types` names the layers.
pub(super) fn layers(config: &Config<'_>, n_layers: usize) -> Result<Vec<LayerDescription>> {
    let uses_window = config.flag("use_sliding_window", false)?;
    let window = if uses_window { config.optional_size("sliding_window", Some(4096))? } else { None };
    let first_sliding = config.size("max_window_layers")?.unwrap_or(28);
    let sliding = config.sliding_layers(n_layers, |layer| window.is_some() && layer >= first_sliding)?;
    ensure!(uses_window || !sliding.contains(&true), "`layer_types` has sliding_attention, but `use_sliding_window` is false");
    sliding
        .into_iter()
        .map(|slides| {
            let window =
                if slides { Some(window.context("`layer_types` has sliding_attention, but `sliding_window` is null")?) } else { None };
            Ok(LayerDescription { window, rope: 0 })
        })
        .collect()
}
