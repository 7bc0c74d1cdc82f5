//! The models that are measured, as `config.json`, and their random weights under `target/bench`.

use crate::random::random_values;
use anyhow::{Context, Result};
use mpo::model::family;
use mpo::model::weights::{SavedDtype, TensorToSave, save_file};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

fn config(shape: &str) -> Value {
    let llama = |vocab: usize, hidden: usize, intermediate: usize, layers: usize, heads: usize, kv_heads: usize, tied: bool| {
        json!({
            "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
            "max_position_embeddings": 8192, "tie_word_embeddings": tied,
        })
    };
    match shape {
        "135m" => llama(49_152, 576, 1536, 30, 9, 3, true),
        "1.1b" => llama(32_000, 2048, 5632, 22, 32, 4, false),
        "8b" => llama(128_256, 4096, 14_336, 32, 32, 8, false),
        _ => llama(512, 64, 160, 2, 4, 2, true),
    }
}

/// Writes random bf16 weights of `shape` unless they are there, a file for each tensor so that one at a time is in memory; the folder.
pub fn write_model(shape: &str) -> Result<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench").join(format!("gpu-{shape}"));
    if dir.join("complete").is_file() {
        return Ok(dir);
    }
    if dir.is_dir() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove `{}`", dir.display()))?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("cannot make `{}`", dir.display()))?;
    let config = config(shape);
    let mut index = serde_json::Map::new();
    for (i, (name, shape)) in family::expected_tensors(&family::describe(&config)?).into_iter().enumerate() {
        let n = shape.iter().product();
        let is_norm = shape.len() == 1 && name.ends_with("norm.weight");
        let values = if is_norm { vec![1.0; n] } else { random_values(i as u64, n) };
        let file = format!("model-{i:05}.safetensors");
        save_file(&dir, &file, &[TensorToSave { name: &name, shape: &shape, values: &values, dtype: SavedDtype::Bf16 }])?;
        index.insert(name, file.into());
    }
    fs::write(dir.join("model.safetensors.index.json"), json!({"metadata": {}, "weight_map": index}).to_string())?;
    fs::write(dir.join("config.json"), config.to_string())?;
    fs::write(dir.join("complete"), "")?;
    Ok(dir)
}
