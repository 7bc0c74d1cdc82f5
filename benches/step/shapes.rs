//! The models that are measured, as `config.json`, and their random weights under `target/bench`.

use crate::random::random_values;
use anyhow::{Context, Result};
use mpo::model::family;
use mpo::model::weights::{SavedDtype, TensorToSave, save};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// SmolLM2-135M.
pub const SMOLLM2: &str = "135m";
/// Qwen2.5-0.5B.
pub const QWEN: &str = "0.5b";
/// The head of Gemma 3 270M alone.
pub const HEAD: &str = "head";

/// `config.json` of a shape.
pub fn config(shape: &str) -> Value {
    match shape {
        QWEN => json!({
            "model_type": "qwen2", "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
            "num_attention_heads": 14, "num_key_value_heads": 2, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0,
            "max_position_embeddings": 32_768, "tie_word_embeddings": true,
        }),
        HEAD => json!({ "vocab_size": 262_144, "hidden_size": 640 }),
        _ => json!({
            "model_type": "llama", "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
            "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 100_000.0,
            "max_position_embeddings": 8192, "tie_word_embeddings": true,
        }),
    }
}

pub fn folder(shape: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench").join(shape)
}

/// Writes random bf16 weights of `shape`, unless they are there; the head has none.
pub fn write_model(shape: &str) -> Result<()> {
    let dir = folder(shape);
    if shape == HEAD || dir.join("complete").is_file() {
        return Ok(());
    }
    remove_model(shape)?;
    fs::create_dir_all(&dir).with_context(|| format!("cannot make `{}`", dir.display()))?;
    let config = config(shape);
    let tensors: Vec<(String, Vec<usize>, Vec<f32>)> = family::expected_tensors(&family::describe(&config)?)
        .into_iter()
        .enumerate()
        .map(|(i, (name, shape))| {
            let n = shape.iter().product();
            let is_norm = shape.len() == 1 && name.ends_with("norm.weight");
            let values = if is_norm { vec![1.0; n] } else { random_values(i as u64, n) };
            (name, shape, values)
        })
        .collect();
    let to_save: Vec<_> =
        tensors.iter().map(|(name, shape, values)| TensorToSave { name, shape, values, dtype: SavedDtype::Bf16 }).collect();
    save(&dir, &to_save, u64::MAX)?;
    fs::write(dir.join("config.json"), config.to_string())?;
    Ok(fs::write(dir.join("complete"), "")?)
}

pub fn remove_model(shape: &str) -> Result<()> {
    let dir = folder(shape);
    if dir.is_dir() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove `{}`", dir.display()))?;
    }
    Ok(())
}
