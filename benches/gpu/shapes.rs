//! The models that are measured, as `config.json`.

use serde_json::{Value, json};

/// Any CPU trains it.
pub const TINY: &str = "tiny";
/// SmolLM2-135M.
pub const M135: &str = "135m";
/// TinyLlama 1.1B.
pub const B1: &str = "1.1b";
/// Llama 3.1 8B.
pub const B8: &str = "8b";

pub fn config(shape: &str) -> Value {
    let llama = |vocab: usize, hidden: usize, intermediate: usize, layers: usize, [heads, kv_heads]: [usize; 2], tied: bool| {
        json!({
            "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": kv_heads, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
            "max_position_embeddings": 8192, "tie_word_embeddings": tied,
        })
    };
    match shape {
        M135 => llama(49_152, 576, 1536, 30, [9, 3], true),
        B1 => llama(32_000, 2048, 5632, 22, [32, 4], false),
        B8 => llama(128_256, 4096, 14_336, 32, [32, 8], false),
        _ => llama(512, 64, 160, 2, [4, 2], true),
    }
}
