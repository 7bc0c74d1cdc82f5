//! Sizes in `config.json` against the weights on disk, before anything is as large as they say.
//!
//! Whether names and shapes are exactly right is a later question ([`super::check_weights`]); here a size is wrong by so much that a description
//! would not even fit into memory.

use crate::model::weights::Checkpoint;
use anyhow::{Result, ensure};
use serde_json::Value;

const EMBEDDINGS: &str = "model.embed_tokens.weight";

/// Sizes that no tensor can have more of than there are values.
const SIZES: [&str; 6] = ["vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"];

/// # Errors
/// Names the key, its value, and what the weights have.
pub(super) fn check(config: &Value, weights: &Checkpoint) -> Result<()> {
    let size = |key: &str| config.get(key).and_then(Value::as_u64);
    let (n_values, n_tensors) = (weights.n_parameters(), weights.names().count());
    let embeddings = match weights.shape(EMBEDDINGS) {
        Ok(shape) => format!("; `{EMBEDDINGS}` is {shape:?}"),
        Err(_) => String::new(),
    };
    for key in SIZES {
        let value = size(key).unwrap_or(0);
        ensure!(value <= n_values as u64, "`{key}` is {value}, but all weights together have {n_values} values{embeddings}");
    }
    let n_layers = size("num_hidden_layers").unwrap_or(0);
    let n_found = weights.names().filter_map(layer_of).max().map_or(0, |last| last + 1);
    ensure!(
        n_layers <= n_tensors as u64,
        "`num_hidden_layers` is {n_layers}, but the weights have {n_tensors} tensors, of {n_found} layers"
    );
    Ok(())
}

fn layer_of(name: &str) -> Option<u64> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}
