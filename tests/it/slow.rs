//! The engine against a slow model on candle's autograd: log-probabilities, losses, and every entry of every gradient.
//!
//! PyTorch's numbers (`golden`) fix the norms of the gradients of short sequences; this oracle, which is checked against them first, compares all
//! entries, and can be asked about any model and any length. Facts of candle that bind it: some fused ops drop the gradient without a word
//! (`.clippy.toml` bans them), so its own gradient is also checked by finite differences.

#![allow(non_snake_case)] // N packed tokens, T tokens of a sequence, D hidden size

mod decoder;
mod loss;

use crate::golden::{Comparison, FAMILIES, Fixture, Tolerance, fixtures};
use crate::support::*;
use candle_core::Tensor;
use decoder::SlowDecoder;
use loss::{SlowLoss, mpo_loss};
use mpo::config::{ObjectiveConfig, Pooling, Reduction, RetentionConfig, RetentionKind, RunConfig};
use mpo::data::batch::{Layout, PackedBatch, PairSpans, PromptSharing};
use mpo::data::encode::EncodedRow;
use mpo::model::decoder::{Decoder, Keep};
use mpo::reference::Columns;
use mpo::scoring::response_targets;
use mpo::train::step::{Gradients, StepSettings};
use serde_json::{Value, json};
use std::collections::BTreeMap;

const BETA: f64 = 1.5;

/// Of the oracle against PyTorch, both f64; transformers turns rotary angles in f32.
const ORACLE_LOG_PROB: Tolerance = Tolerance::Absolute(1e-6);
const ORACLE_LOSS: Tolerance = Tolerance::Relative(1e-6);
const ORACLE_GRADIENT_NORM: f64 = 1e-6;

/// Of the engine in f32 against the oracle.
const LOG_PROB: Tolerance = Tolerance::Absolute(5e-5);
const LOSS: Tolerance = Tolerance::Relative(2e-5);
/// Of a gradient's entry, relative to the largest of its parameter.
const GRADIENT: f64 = 5e-5;

fn retentions() -> [RetentionConfig; 2] {
    [(Pooling::Last, Reduction::Sum), (Pooling::Mean, Reduction::Mean)].map(|(pooling, reduction)| RetentionConfig {
        kind: RetentionKind::Hidden,
        weight: 0.7,
        pooling,
        reduction,
    })
}

struct Oracle {
    policy: SlowDecoder,
    reference: SlowDecoder,
}

impl Oracle {
    fn of_family(family: &str, fixture: &Fixture) -> Self {
        let load = |file| SlowDecoder::load(fixture.policy.description(), &fixtures().join(family).join(file)).unwrap();
        Self { policy: load("model.safetensors"), reference: load("reference.safetensors") }
    }

    fn loss(&self, rows: &[EncodedRow], retention: &RetentionConfig) -> SlowLoss {
        mpo_loss(&self.policy, &self.reference, rows, BETA, retention).unwrap()
    }

    /// By parameter name, row-major.
    fn gradients(&self, loss: &SlowLoss) -> BTreeMap<&str, Vec<f64>> {
        let gradients = loss.loss.backward().unwrap();
        let of = |weight| gradients.get(weight).expect("every weight enters the loss").flatten_all().unwrap().to_vec1().unwrap();
        self.policy.weights.iter().map(|(name, weight)| (name.as_str(), of(weight))).collect()
    }
}

fn scalar(tensor: &Tensor) -> f64 {
    tensor.to_scalar().unwrap()
}

#[test]
fn the_oracle_agrees_with_pytorch() {
    for family in FAMILIES {
        let fixture = Fixture::load(family);
        let oracle = Oracle::of_family(family, &fixture);
        let mut comparison = Comparison::new();
        for (index, (row, scores)) in fixture.rows.iter().zip(&fixture.expected.scores).enumerate() {
            for (pair, expected) in row.pairs().zip([&scores.policy.dominant, &scores.policy.target]) {
                for (response, expected) in [(&pair.chosen, &expected.chosen), (&pair.rejected, &expected.rejected)] {
                    let log_probs: Vec<f64> = oracle.policy.log_probs(&pair.prompt, &response.tokens).unwrap().to_vec1().unwrap();
                    assert_eq!(log_probs.len(), expected.token_log_probs.len());
                    for (i, (&actual, &expected)) in log_probs.iter().zip(&expected.token_log_probs).enumerate() {
                        comparison.close(|| format!("row {index}, {}, token {i}", pair.lang), actual, expected, ORACLE_LOG_PROB);
                    }
                }
            }
        }

        let case = fixture.expected.cases.iter().find(|case| case.name == "mpo, beta 1.5, and 0.7 last, sum").unwrap();
        let loss = oracle.loss(&fixture.rows, &case.retention);
        comparison.close(|| "mpo".into(), scalar(&loss.objective), case.values.mpo, ORACLE_LOSS);
        comparison.close(|| "retention".into(), scalar(&loss.retention), case.values.retention, ORACLE_LOSS);
        comparison.close(|| "loss".into(), scalar(&loss.loss), case.values.loss, ORACLE_LOSS);
        let gradients = oracle.gradients(&loss);
        assert_eq!(gradients.len(), fixture.expected.parameters.len());
        for (name, &expected) in fixture.expected.parameters.iter().zip(&case.parameter_grad_norms) {
            let norm = gradients[name.as_str()].iter().map(|g| g * g).sum::<f64>().sqrt();
            let allowed = Tolerance::Absolute(ORACLE_GRADIENT_NORM * (expected + 1e-3 * case.values.grad_norm));
            comparison.close(|| format!("gradient norm of {name}"), norm, expected, allowed);
        }
        comparison.finish(family);
    }
}

#[test]
fn every_gradient_entry_of_every_family() {
    for family in FAMILIES {
        let fixture = Fixture::load(family);
        let oracle = Oracle::of_family(family, &fixture);
        let mut comparison = Comparison::new();
        compare_log_probs(&mut comparison, &fixture.policy, &oracle.policy, &fixture.rows);
        for retention in retentions() {
            let settings = fixture.settings(&ObjectiveConfig { beta: BETA, ..Default::default() }, &retention);
            compare_batch(&mut comparison, &fixture.policy, &fixture.frozen_scores(&retention), &oracle, &fixture.rows, &settings);
        }
        comparison.finish(family);
    }
}

/// All pairs of all rows packed into one batch, against one sequence at a time.
fn compare_log_probs(comparison: &mut Comparison, engine: &Decoder, oracle: &SlowDecoder, rows: &[EncodedRow]) {
    let mut batch = PackedBatch::default();
    let layout = Layout { sharing: PromptSharing::Shared, pad_token: None };
    let pairs = || rows.iter().flat_map(EncodedRow::pairs);
    let spans: Vec<PairSpans> = pairs().map(|pair| batch.push_pair(pair, &layout)).collect();
    let hidden_ND = engine.forward(&batch, Keep::Nothing).unwrap().hidden_ND;
    let actual = engine.log_probs(&hidden_ND, &response_targets(&batch, &spans)).unwrap();

    let responses = pairs().flat_map(|pair| [(&pair.prompt, &pair.chosen.tokens), (&pair.prompt, &pair.rejected.tokens)]);
    let expected: Vec<f64> =
        responses.flat_map(|(prompt, response)| oracle.log_probs(prompt, response).unwrap().to_vec1::<f64>().unwrap()).collect();
    assert_eq!(actual.len(), expected.len());
    for (i, (&actual, &expected)) in actual.iter().zip(&expected).enumerate() {
        comparison.close(|| format!("response token {i} of the batch"), actual.into(), expected, LOG_PROB);
    }
}

/// The whole loss and all of its gradients.
fn compare_batch(
    comparison: &mut Comparison,
    engine: &Decoder,
    reference: &Columns,
    oracle: &Oracle,
    rows: &[EncodedRow],
    settings: &StepSettings,
) {
    let pooling = settings.retention.pooling;
    let outcome = evaluate(engine, &borrowed(rows), reference, settings, Gradients::Both);
    let loss = oracle.loss(rows, &settings.retention);
    comparison.close(|| format!("{pooling:?}: mpo"), outcome.objective, scalar(&loss.objective), LOSS);
    comparison.close(|| format!("{pooling:?}: retention"), outcome.retention.unwrap(), scalar(&loss.retention), LOSS);
    comparison.close(|| format!("{pooling:?}: loss"), outcome.loss, scalar(&loss.loss), LOSS);

    let expected = oracle.gradients(&loss);
    let largest = |gradient: &[f64]| gradient.iter().fold(0.0f64, |max, g| max.max(g.abs()));
    let largest_of_all = expected.values().map(|gradient| largest(gradient)).fold(0.0, f64::max);
    assert_eq!(engine.parameters().len(), expected.len());
    for (parameter, actual) in engine.parameters().iter().zip(gradients(engine)) {
        let expected = &expected[parameter.name.as_str()];
        assert_eq!(actual.len(), expected.len(), "{}", parameter.name);
        // A key's bias hardly matters to a softmax: what is tiny beside all gradients is judged by them.
        let allowed = Tolerance::Absolute(GRADIENT * (largest(expected) + 1e-3 * largest_of_all));
        for (i, (&actual, &expected)) in actual.iter().zip(expected).enumerate() {
            comparison.close(|| format!("{pooling:?}: gradient of {}[{i}]", parameter.name), actual.into(), expected, allowed);
        }
    }
}

/// Large enough that every op and every matrix product uses all its threads, and sequences that span several of attention's blocks.
const HIDDEN_SIZE: usize = 128;
const VOCABULARY: usize = 1000;
const LENGTH: usize = 320;
/// Tokens of the shortest sequence: prompt and response each have at least a quarter of `LENGTH`.
const SHORTEST: usize = LENGTH / 2;

fn long_models() -> [(&'static str, Value); 2] {
    let biased = json!({ "attention_bias": true, "mlp_bias": true, "hidden_act": "gelu" });
    // The window ends within a block of attention, neither at its start nor its end.
    let windowed = json!({ "sliding_window": 77 });
    [
        ("llama with biases and gelu", changed(llama(HIDDEN_SIZE, VOCABULARY), biased)),
        ("gemma2 with a window", changed(gemma2(HIDDEN_SIZE, VOCABULARY), windowed)),
    ]
}

/// The engine's policy, the frozen scores of another model, and the oracle of both.
fn setting(model: &Value, rows: &[EncodedRow], config: &RunConfig) -> (Decoder, Columns, Oracle) {
    let dir = tempfile::tempdir().unwrap();
    let [policy, reference] = [("policy", 1), ("reference", 2)].map(|(name, seed)| {
        write_model(&dir.path().join(name), model, seed);
        let engine = load(&dir.path().join(name));
        let slow = SlowDecoder::load(engine.description(), &dir.path().join(name).join("model.safetensors")).unwrap();
        (engine, slow)
    });
    let frozen = scores(&reference.0, rows, config);
    (policy.0, frozen, Oracle { policy: policy.1, reference: reference.1 })
}

#[test]
fn long_sequences_and_every_thread() {
    let rows = rows(1, LENGTH, VOCABULARY, 3);
    for pair in rows.iter().flat_map(EncodedRow::pairs) {
        assert!(pair.prompt.len() + pair.chosen.tokens.len().min(pair.rejected.tokens.len()) >= SHORTEST);
    }
    let [retention, _] = retentions();
    let mut config = RunConfig { retention, ..Default::default() };
    config.objective.beta = BETA;
    config.train.micro_batch_size = rows.len();
    for (name, model) in long_models() {
        let (engine, reference, oracle) = setting(&model, &rows, &config);
        let mut comparison = Comparison::new();
        compare_log_probs(&mut comparison, &engine, &oracle.policy, &rows);
        compare_batch(&mut comparison, &engine, &reference, &oracle, &rows, &StepSettings::new(&config, PAD));
        comparison.finish(name);
    }
}

/// Along one random direction through all weights: an op that dropped its gradient would show in the sum.
#[test]
fn the_oracles_gradient_is_the_slope_of_its_loss() {
    let rows = rows(1, 24, 50, 3);
    for (name, model) in long_models() {
        let model = changed(model, json!({ "hidden_size": 16, "intermediate_size": 32, "vocab_size": 50, "head_dim": 4 }));
        for retention in retentions() {
            let config = RunConfig { retention, ..Default::default() };
            let (_, _, oracle) = setting(&model, &rows, &config);
            let mut random = Random::new(7);
            let direction: BTreeMap<&str, Vec<f64>> = (oracle.policy.weights.iter())
                .map(|(name, weight)| (name.as_str(), (0..weight.elem_count()).map(|_| f64::from(random.signed())).collect()))
                .collect();
            let gradients = oracle.gradients(&oracle.loss(&rows, &config.retention));
            let slope: f64 =
                direction.iter().map(|(name, along)| along.iter().zip(&gradients[name]).map(|(a, g)| a * g).sum::<f64>()).sum();

            let start: BTreeMap<&str, Tensor> =
                oracle.policy.weights.iter().map(|(name, weight)| (name.as_str(), weight.copy().unwrap())).collect();
            let loss_at = |step: f64| {
                for (name, weight) in &oracle.policy.weights {
                    let along = Tensor::new(&direction[name.as_str()][..], weight.device()).unwrap();
                    let moved = &start[name.as_str()] + along.reshape(weight.shape()).unwrap() * step;
                    weight.set(&moved.unwrap()).unwrap();
                }
                scalar(&oracle.loss(&rows, &config.retention).loss)
            };
            let step = 1e-6;
            let numeric = (loss_at(step) - loss_at(-step)) / (2.0 * step);
            assert!((numeric - slope).abs() <= 1e-6 * slope.abs(), "{name}: the gradient says {slope}, the loss {numeric}");
        }
    }
}
