//! The engine against the models of candle-transformers: another code base's logits from the same weights.
//!
//! That crate leaves out some of what a config can say. Where it ignores a key, both sides read the value that it computes with, so that the rest of
//! the family is still compared; PyTorch (`golden`) covers the keys themselves. `llama_linear` is not here: the crate's Llama has neither biases nor
//! linear rope scaling.

use crate::golden::{Comparison, Fixture, Tolerance, fixtures, read_json};
use crate::support::{changed, load};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{gemma2, gemma3, llama, mistral, qwen2, qwen3};
use mpo::data::batch::{PackedBatch, PromptSharing};
use mpo::model::decoder::{Decoder, Keep};
use mpo::ops;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fs;

/// f32 on both sides; logits of the fixtures are of order one.
const LOGIT: Tolerance = Tolerance::Absolute(5e-5);

/// Logits `[V]` of the last of the tokens.
type LastLogits = Box<dyn FnMut(&Tensor) -> candle_core::Result<Tensor>>;

/// Compares the last token's logits of every sequence of the family's fixture.
///
/// `changes` are made to the config that both sides read; what is left to say to candle-transformers alone is said in `model`.
fn compare(family: &str, changes: Value, model: fn(&Value, VarBuilder) -> LastLogits) {
    let folder = fixtures().join(family);
    let config = changed(read_json(&folder.join("config.v4.json")), changes);
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let weights = fs::read(folder.join("model.safetensors")).unwrap();
    fs::write(dir.path().join("model.safetensors"), &weights).unwrap();
    let engine = load(dir.path());
    let mut other = model(&config, VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu).unwrap());

    let mut comparison = Comparison::new();
    for row in &Fixture::load(family).rows {
        for pair in row.pairs() {
            for response in [&pair.chosen.tokens, &pair.rejected.tokens] {
                let tokens = [&pair.prompt[..], response].concat();
                let expected = other(&Tensor::new(&tokens[..], &Device::Cpu).unwrap().unsqueeze(0).unwrap()).unwrap();
                let expected: Vec<f32> = expected.flatten_all().unwrap().to_vec1().unwrap();
                let actual = last_logits(&engine, &pair.prompt, response);
                assert_eq!(actual.len(), expected.len());
                for (token, (&actual, &expected)) in actual.iter().zip(&expected).enumerate() {
                    let what = || format!("row {}, {}: logit of token {token} behind {} tokens", row.id, pair.lang, tokens.len());
                    comparison.close(what, actual.into(), expected.into(), LOGIT);
                }
            }
        }
    }
    comparison.finish(family);
}

fn last_logits(engine: &Decoder, prompt: &[u32], response: &[u32]) -> Vec<f32> {
    let mut batch = PackedBatch::default();
    batch.push_responses(prompt, &[response], PromptSharing::Shared);
    let hidden = engine.forward(&batch, Keep::Nothing).unwrap().hidden_ND;
    let hidden = ops::read(&hidden).unwrap();
    engine.logits(&hidden[hidden.len() - engine.description().hidden_size..]).unwrap().to_vec()
}

fn parsed<T: DeserializeOwned>(config: &Value) -> T {
    serde_json::from_value(config.clone()).unwrap()
}

/// The crate masks a key that is more than `sliding_window` behind, transformers one that is `sliding_window` behind.
fn one_less(window: usize) -> usize {
    window - 1
}

#[test]
fn llama_with_llama3_rope_scaling() {
    compare("llama", json!({}), |config, weights| {
        let config = parsed::<llama::LlamaConfig>(config).into_config(false);
        let model = llama::Llama::load(weights, &config).unwrap();
        Box::new(move |tokens| model.forward(tokens, 0, &mut llama::Cache::new(false, DType::F32, &config, &Device::Cpu)?))
    });
}

#[test]
fn mistral_with_a_window() {
    compare("mistral", json!({}), |config, weights| {
        let mut config: mistral::Config = parsed(config);
        config.sliding_window = config.sliding_window.map(one_less);
        let mut model = mistral::Model::new(&config, weights).unwrap();
        Box::new(move |tokens| {
            model.clear_kv_cache();
            model.forward(tokens, 0)
        })
    });
}

/// The crate slides on every layer and scales queries by the head size.
#[test]
fn gemma2_with_a_window_on_every_layer() {
    let changes = json!({ "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention"], "query_pre_attn_scalar": 12 });
    compare("gemma2", changes, |config, weights| {
        let mut config: gemma2::Config = parsed(config);
        config.sliding_window = config.sliding_window.map(one_less);
        let mut model = gemma2::Model::new(false, &config, weights).unwrap();
        Box::new(move |tokens| {
            model.clear_kv_cache();
            model.forward(tokens, 0)
        })
    });
}

/// The crate scales queries by the head size and has no scaling of the global rope.
#[test]
fn gemma3_with_two_ropes() {
    compare("gemma3_text", json!({ "query_pre_attn_scalar": 12, "rope_scaling": null }), |config, weights| {
        let mut config: gemma3::Config = parsed(config);
        config.sliding_window = one_less(config.sliding_window);
        let mut model = gemma3::Model::new(false, &config, weights).unwrap();
        Box::new(move |tokens| {
            model.clear_kv_cache();
            model.forward(tokens, 0)
        })
    });
}

/// The crate slides whatever `use_sliding_window` says.
#[test]
fn qwen2_with_biases() {
    compare("qwen2", json!({}), |config, weights| {
        let mut config: qwen2::Config = parsed(config);
        config.sliding_window = config.max_position_embeddings;
        let mut model = qwen2::ModelForCausalLM::new(&config, weights).unwrap();
        Box::new(move |tokens| {
            model.clear_kv_cache();
            model.forward(tokens, 0)
        })
    });
}

#[test]
fn qwen3_with_query_key_norms() {
    compare("qwen3", json!({}), |config, weights| {
        let mut model = qwen3::ModelForCausalLM::new(&parsed(config), weights).unwrap();
        Box::new(move |tokens| {
            model.clear_kv_cache();
            model.forward(tokens, 0)
        })
    });
}
