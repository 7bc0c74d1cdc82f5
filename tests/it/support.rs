//! A tiny random model, written as a checkpoint and loaded as any other, and random rows to train it on.

use mpo::config::{ComputeDtype, RunConfig};
use mpo::data::encode::{EncodedPreference, EncodedRow, Response};
use mpo::model::decoder::{Decoder, Purpose};
use mpo::model::family::{describe, expected_tensors};
use mpo::model::weights::{self, SavedDtype, TensorToSave};
use mpo::ops;
use mpo::reference::{Columns, Folders, FrozenScores, Provenance, ScoringReport};
use mpo::scoring::KeptStates;
use mpo::train::columns::{Reads, Wanted};
use mpo::train::step::{BatchOutcome, Gradients, StepSettings, evaluate_batch};
use serde_json::{Value, json};
use std::path::Path;

pub const PAD: u32 = 0;

/// Reproducible uniform values.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 11
    }

    /// In [-1, 1).
    pub fn signed(&mut self) -> f32 {
        (self.next() as f64 / (1u64 << 52) as f64 - 1.0) as f32
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

pub fn llama(hidden_size: usize, vocab_size: usize) -> Value {
    json!({
        "model_type": "llama", "vocab_size": vocab_size, "hidden_size": hidden_size, "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "tie_word_embeddings": false, "rope_theta": 10000.0,
    })
}

/// Tied embeddings, soft caps and a window that is shorter than the sequences.
pub fn gemma2(hidden_size: usize, vocab_size: usize) -> Value {
    json!({
        "model_type": "gemma2", "vocab_size": vocab_size, "hidden_size": hidden_size, "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": hidden_size / 4,
        "query_pre_attn_scalar": hidden_size / 4, "sliding_window": 8, "max_position_embeddings": 512,
        "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0, "tie_word_embeddings": true, "rope_theta": 10000.0,
    })
}

/// A config with some keys set anew.
pub fn changed(mut config: Value, changes: Value) -> Value {
    config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    config
}

pub fn write_model(dir: &Path, config: &Value, seed: u64) {
    let description = describe(config).unwrap();
    let mut random = Random::new(seed);
    let tensors: Vec<(String, Vec<usize>, Vec<f32>)> = expected_tensors(&description)
        .into_iter()
        .map(|(name, shape)| {
            let n = shape.iter().product();
            let values = match shape.len() {
                1 => (0..n).map(|_| 0.5 + 0.3 * random.signed()).collect(),
                _ => (0..n).map(|_| random.signed() * 2.0 / (shape[1] as f32).sqrt()).collect(),
            };
            (name, shape, values)
        })
        .collect();
    let tensors: Vec<TensorToSave> =
        tensors.iter().map(|(name, shape, values)| TensorToSave { name, shape, values, dtype: SavedDtype::F32 }).collect();
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    weights::save(dir, &tensors, u64::MAX).unwrap();
}

/// Writes and loads a model.
pub fn model(config: &Value, seed: u64) -> Decoder {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), config, seed);
    load(dir.path())
}

/// A model to train, in f32.
pub fn load(dir: &Path) -> Decoder {
    Decoder::load(dir, ComputeDtype::F32, Purpose::Train).unwrap_or_else(|error| panic!("{}: {error:#}", dir.display()))
}

/// `n` rows with sequences of about `length` tokens; rows 0, 1 and 4 share their dominant pair.
pub fn rows(n: usize, length: usize, vocab_size: usize, seed: u64) -> Vec<EncodedRow> {
    let mut random = Random::new(seed);
    let mut tokens = |about: usize| -> Vec<u32> {
        let n = about / 2 + 1 + random.below(about);
        (0..n).map(|_| 1 + random.below(vocab_size - 1) as u32).collect()
    };
    let mut preference = |lang: &str| EncodedPreference {
        lang: lang.into(),
        prompt: tokens(length / 2),
        chosen: Response { tokens: tokens(length / 2), n_end_tokens: 1 },
        rejected: Response { tokens: tokens(length / 2), n_end_tokens: 1 },
    };
    let mut rows: Vec<EncodedRow> = (0..n)
        .map(|id| EncodedRow {
            id: id.to_string(),
            dominant: Some(preference("en")),
            target: preference(if id % 2 == 0 { "sw" } else { "bn" }),
            mismatched: None,
        })
        .collect();
    for sharing in [1, 4] {
        if sharing < n {
            rows[sharing].dominant = rows[0].dominant.clone();
        }
    }
    rows
}

pub fn borrowed(rows: &[EncodedRow]) -> Vec<&EncodedRow> {
    rows.iter().collect()
}

pub fn provenance(model: &Decoder, config: &RunConfig) -> Provenance {
    Provenance::of(model, config.model.dtype, KeptStates::of(&config.retention), PAD).unwrap()
}

/// Scores the rows' dominant pairs, cached in `folders`.
pub fn scores_in(folders: Folders, reference: &Decoder, rows: &[EncodedRow], config: &RunConfig) -> (FrozenScores, ScoringReport) {
    let pairs: Vec<_> = rows.iter().filter_map(|row| row.dominant.as_ref()).collect();
    FrozenScores::score(reference, &pairs, provenance(reference, config), folders).unwrap()
}

/// Scores what a run of `config` reads of the rows.
pub fn scores(reference: &Decoder, rows: &[EncodedRow], config: &RunConfig) -> Columns {
    let wanted = Wanted::of(&borrowed(rows), Reads::of(config));
    let provenance = provenance(reference, config);
    let column = |pairs: &[&EncodedPreference], provenance| {
        (!pairs.is_empty()).then(|| FrozenScores::score(reference, pairs, provenance, Folders::default()).unwrap().0)
    };
    Columns { dominant: column(&wanted.dominant, provenance.clone()), target: column(&wanted.target, provenance.of_scores()) }
}

/// Zeroes the gradients and evaluates the rows as one batch.
pub fn evaluate(
    policy: &Decoder,
    rows: &[&EncodedRow],
    reference: &Columns,
    settings: &StepSettings,
    gradients: Gradients,
) -> BatchOutcome {
    policy.zero_gradients().unwrap();
    evaluate_batch(policy, rows, reference, settings, gradients).unwrap()
}

/// All gradient buffers, in the order of the parameters.
pub fn gradients(model: &Decoder) -> Vec<Vec<f32>> {
    model.parameters().iter().map(|parameter| ops::read(parameter.gradient.as_ref().unwrap()).unwrap().to_vec()).collect()
}

pub fn norm(values: &[Vec<f32>]) -> f64 {
    values.iter().flatten().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt()
}

/// Norm of the difference, relative to the norm of `b`.
pub fn relative_difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    let difference: Vec<Vec<f32>> = a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a - b).collect()).collect();
    norm(&difference) / norm(b)
}

#[track_caller]
pub fn assert_near(a: f64, b: f64, relative: f64) {
    assert!((a - b).abs() <= relative * b.abs(), "{a} and {b} differ by {:.1e} relative", (a - b).abs() / b.abs());
}
