//! The engine against PyTorch, for every family: log-probabilities, losses, every gradient norm, five AdamW steps, learning rates.
//!
//! The numbers are float64 results of transformers and `torch.optim.AdamW` (`tests/oracle` made them, its README states the conventions), so what
//! differs is this engine's f32 rounding. The script shows that transformers in f32 stays within a third of these tolerances, and that every feature
//! of a family, when it is left out, goes beyond ten times the one of a response's log-probability.

#![allow(non_snake_case)] // N packed tokens, D hidden size

mod expected;

use expected::{Choice, Expected, ExpectedSchedule, FinalParameter, Hidden, Pair, PairScores, Row, Scores, Side, SideScores, Training};
use mpo::config::{ComputeDtype, ObjectiveConfig, Pooling, RetentionConfig, ScheduleConfig};
use mpo::data::batch::{Layout, PackedBatch, PairSpans, PromptSharing};
use mpo::data::encode::{EncodedPreference, EncodedRow, Response};
use mpo::model::decoder::{Decoder, Keep, Purpose};
use mpo::model::family::describe;
use mpo::model::parameter::Parameter;
use mpo::objective::Objective;
use mpo::ops;
use mpo::reference::{Columns, Folders, FrozenScores, Provenance};
use mpo::scoring::{KeptStates, response_targets};
use mpo::train::clip::gradient_norm;
use mpo::train::optimizer::AdamW;
use mpo::train::schedule::Schedule;
use mpo::train::step::{BatchOutcome, DominantPasses, Gradients, StepMemory, StepSettings, evaluate_batch};
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

pub const FAMILIES: [&str; 7] = ["llama", "llama_linear", "mistral", "gemma2", "gemma3_text", "qwen2", "qwen3"];

/// Nats, of one token and of a whole response.
const TOKEN_LOG_PROB: Tolerance = Tolerance::Absolute(1e-4);
const LOG_PROB: Tolerance = Tolerance::Absolute(3e-4);
const REWARD_GAP: Tolerance = Tolerance::Absolute(2e-5);
const HIDDEN: Tolerance = Tolerance::Absolute(5e-5);
const LOSS: Tolerance = Tolerance::Relative(5e-5);
const GRADIENT_NORM: Tolerance = Tolerance::Relative(5e-5);
const PARAMETER_GRADIENT_NORM: f64 = 2e-4;
const LOSS_IN_TRAINING: Tolerance = Tolerance::Relative(2e-4);
const FINAL_WEIGHT: Tolerance = Tolerance::Absolute(1e-5);
const FINAL_NORM: Tolerance = Tolerance::Relative(1e-6);
const NORM_OF_CHANGE: Tolerance = Tolerance::Relative(1e-4);

#[derive(Clone, Copy)]
pub enum Tolerance {
    Absolute(f64),
    Relative(f64),
}

/// Everything that disagreed for one family, so that a failure shows its pattern.
pub struct Comparison {
    n_compared: usize,
    problems: Vec<String>,
}

impl Comparison {
    pub fn new() -> Self {
        Self { n_compared: 0, problems: Vec::new() }
    }

    pub fn close(&mut self, what: impl FnOnce() -> String, actual: f64, expected: f64, tolerance: Tolerance) {
        let allowed = match tolerance {
            Tolerance::Absolute(allowed) => allowed,
            Tolerance::Relative(share) => share * expected.abs(),
        };
        self.n_compared += 1;
        let difference = (actual - expected).abs();
        let agrees = difference <= allowed; // false for what is not a number
        if !agrees {
            self.problems.push(format!("{}: {actual} is not {expected} (off by {difference:.1e}, allowed {allowed:.1e})", what()));
        }
    }

    pub fn finish(self, family: &str) {
        assert!(self.n_compared > 0, "{family}: nothing was compared");
        let shown = self.problems.iter().take(20).map(String::as_str).collect::<Vec<_>>().join("\n  ");
        let Comparison { n_compared, problems } = &self;
        assert!(problems.is_empty(), "{family}: {} of {n_compared} numbers differ from the expected ones\n  {shown}", problems.len());
    }
}

/// A family's fixture, loaded.
pub struct Fixture {
    pub expected: Expected,
    pub rows: Vec<EncodedRow>,
    pub policy: Decoder,
    reference: Decoder,
}

impl Fixture {
    pub fn load(family: &str) -> Self {
        let folder = fixtures().join(family);
        let expected: Expected = read_json(&folder.join("expected.json"));
        let rows = expected.rows.iter().enumerate().map(|(index, row)| encoded(index, row)).collect();

        let reference = tempfile::tempdir().unwrap();
        fs::copy(folder.join("config.v4.json"), reference.path().join("config.json")).unwrap();
        fs::copy(folder.join("reference.safetensors"), reference.path().join("model.safetensors")).unwrap();
        let load =
            |folder, purpose| Decoder::load(folder, ComputeDtype::F32, purpose).unwrap_or_else(|error| panic!("{family}: {error:#}"));
        Self { policy: load(&folder, Purpose::Train), reference: load(reference.path(), Purpose::Inference), expected, rows }
    }

    fn row_refs(&self) -> Vec<&EncodedRow> {
        self.rows.iter().collect()
    }

    pub fn frozen_scores(&self, retention: &RetentionConfig) -> Columns {
        let pad_id = self.expected.pad_id;
        let provenance = Provenance::of(&self.reference, ComputeDtype::F32, KeptStates::of(retention), pad_id).unwrap();
        let dominant: Vec<_> = self.rows.iter().filter_map(|row| row.dominant.as_ref()).collect();
        Columns::of_dominant(FrozenScores::score(&self.reference, &dominant, provenance, Folders::default()).unwrap().0)
    }

    /// Gradients of the whole batch in the policy's buffers, which are zeroed first.
    fn gradients(&self, reference: &Columns, settings: &StepSettings, gradients: Gradients) -> BatchOutcome {
        self.policy.zero_gradients().unwrap();
        evaluate_batch(&self.policy, &self.row_refs(), reference, settings, gradients).unwrap()
    }

    pub fn settings(&self, objective: &ObjectiveConfig, retention: &RetentionConfig) -> StepSettings {
        StepSettings {
            objective: Objective::new(objective),
            gap: objective.gap,
            retention: retention.clone(),
            micro_batch_size: if retention.pooling == Pooling::MeanPadded { 1 } else { self.rows.len() },
            dominant_passes: DominantPasses::OncePerRow,
            target_sharing: PromptSharing::Shared,
            pad_token: self.expected.pad_id,
            memory: StepMemory::default(),
        }
    }
}

pub fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

pub fn read_json<T: DeserializeOwned>(path: &Path) -> T {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn encoded(index: usize, row: &Row) -> EncodedRow {
    let response = |tokens: &[u32]| Response { tokens: tokens.to_vec(), n_end_tokens: 1 };
    let preference = |lang: &str, pair: &Pair| EncodedPreference {
        lang: lang.into(),
        prompt: pair.prompt.clone(),
        chosen: response(&pair.chosen),
        rejected: response(&pair.rejected),
    };
    EncodedRow {
        id: index.to_string(),
        dominant: Some(preference("en", &row.dominant)),
        target: preference("sw", &row.target),
        mismatched: None,
    }
}

#[test]
fn both_config_styles_are_one_description() {
    for family in FAMILIES {
        let described = |name| describe(&read_json(&fixtures().join(family).join(name))).unwrap();
        assert_eq!(described("config.json"), described("config.v4.json"), "{family}");
    }
}

#[test]
fn log_probabilities_and_hidden_states() {
    for family in FAMILIES {
        let fixture = Fixture::load(family);
        let mut comparison = Comparison::new();
        for (name, model, of) in [
            ("policy", &fixture.policy, (|scores| &scores.policy) as fn(&Scores) -> &SideScores),
            ("reference", &fixture.reference, |scores| &scores.reference),
        ] {
            let expected: Vec<&PairScores> =
                fixture.expected.scores.iter().map(of).flat_map(|side| [&side.dominant, &side.target]).collect();
            compare_scores(&mut comparison, name, model, &fixture, &expected);
        }
        comparison.finish(family);
    }
}

/// Everything packed into one batch: dominant and target pair of each row, in turn.
fn compare_scores(comparison: &mut Comparison, name: &str, model: &Decoder, fixture: &Fixture, expected: &[&PairScores]) {
    let mut batch = PackedBatch::default();
    let layout = Layout { sharing: PromptSharing::Shared, pad_token: None };
    let pairs = fixture.rows.iter().flat_map(EncodedRow::pairs);
    let spans: Vec<PairSpans> = pairs.map(|pair| batch.push_pair(pair, &layout)).collect();
    let hidden_ND = model.forward(&batch, Keep::Nothing).unwrap().hidden_ND;
    let log_probs = model.log_probs(&hidden_ND, &response_targets(&batch, &spans)).unwrap();

    let mut rest = log_probs.as_slice();
    for (index, pair) in expected.iter().enumerate() {
        let side = if index % 2 == 0 { "dominant" } else { "target" };
        let per_token = [("chosen", &pair.chosen), ("rejected", &pair.rejected)].map(|(response, expected)| {
            let (tokens, behind) = rest.split_at(expected.token_log_probs.len());
            rest = behind;
            let what = || format!("{name}, row {}, {side}, {response}", index / 2);
            for (i, (&actual, &expected)) in tokens.iter().zip(&expected.token_log_probs).enumerate() {
                comparison.close(|| format!("{}, token {i}", what()), actual.into(), expected, TOKEN_LOG_PROB);
            }
            let sum: f64 = tokens.iter().map(|&log_prob| f64::from(log_prob)).sum();
            comparison.close(|| format!("{}, sum", what()), sum, expected.log_prob, LOG_PROB);
            sum / tokens.len() as f64
        });
        let gap = per_token[0] - per_token[1];
        comparison.close(|| format!("{name}, row {}, {side}, reward gap", index / 2), gap, pair.reward_gap, REWARD_GAP);
    }
    assert!(rest.is_empty());

    if name == "policy" {
        let (values, width) = (ops::read(&hidden_ND).unwrap(), model.description().hidden_size);
        for Hidden { row, side, response, last } in &fixture.expected.hidden {
            let spans = &spans[2 * row + usize::from(matches!(side, Side::Target))];
            let span = if matches!(response, Choice::Chosen) { &spans.chosen } else { &spans.rejected };
            let state = &values[(span.response.end - 1) * width..][..width];
            assert_eq!(last.len(), width);
            for (i, (&actual, &expected)) in state.iter().zip(last).enumerate() {
                comparison.close(|| format!("row {row}, last hidden state, element {i}"), actual.into(), expected, HIDDEN);
            }
        }
    }
}

#[test]
fn losses_and_every_gradient_norm() {
    for family in FAMILIES {
        let fixture = Fixture::load(family);
        let mut comparison = Comparison::new();
        for case in &fixture.expected.cases {
            let which = if case.objective.is_some() { Gradients::Both } else { Gradients::RetentionOnly };
            let settings = fixture.settings(&case.objective.clone().unwrap_or_default(), &case.retention);
            let outcome = fixture.gradients(&fixture.frozen_scores(&case.retention), &settings, which);

            let mut close = |what: &str, actual, expected, tolerance| {
                comparison.close(|| format!("{}: {what}", case.name), actual, expected, tolerance);
            };
            if case.objective.is_some() {
                close("mpo", outcome.objective, case.values.mpo, LOSS);
                close("loss", outcome.loss, case.values.loss, LOSS);
            }
            close("retention", outcome.retention.unwrap_or(0.0), case.values.retention, LOSS);
            close("gradient norm", gradient_norm(fixture.policy.parameters()).unwrap(), case.values.grad_norm, GRADIENT_NORM);

            let actual = by_name(&fixture.policy, |parameter| gradient_norm(std::slice::from_ref(parameter)).unwrap());
            assert_eq!(actual.len(), fixture.expected.parameters.len(), "{family}");
            for (name, &expected) in fixture.expected.parameters.iter().zip(&case.parameter_grad_norms) {
                // A key's bias hardly matters to a softmax: what is tiny beside the whole gradient is judged by the whole.
                let allowed = Tolerance::Absolute(PARAMETER_GRADIENT_NORM * (expected + 1e-3 * case.values.grad_norm));
                close(&format!("gradient norm of {name}"), actual[name.as_str()], expected, allowed);
            }
        }
        comparison.finish(family);
    }
}

/// In micro-batches of two, with the pass over a shared dominant pair run once: neither may change a number.
#[test]
fn five_adamw_steps() {
    for family in FAMILIES {
        let fixture = Fixture::load(family);
        let Training { objective, retention, optimizer, steps, r#final } = &fixture.expected.training;
        let settings =
            StepSettings { micro_batch_size: 2, dominant_passes: DominantPasses::OncePerPair, ..fixture.settings(objective, retention) };
        let reference = fixture.frozen_scores(retention);
        let parameters = fixture.policy.parameters();
        let start = by_name(&fixture.policy, |parameter| ops::read(&parameter.value).unwrap().to_vec());
        let mut adamw = AdamW::new(optimizer, 0, parameters).unwrap();
        let mut comparison = Comparison::new();
        let mut n_clipped = 0;
        for (step, expected) in steps.iter().enumerate() {
            let outcome = fixture.gradients(&reference, &settings, Gradients::Both);
            let norm = adamw.step(parameters, optimizer.lr).unwrap();
            n_clipped += usize::from(norm > optimizer.clip_norm);
            let retention = outcome.retention.unwrap();
            for (what, actual, expected) in [
                ("mpo", outcome.objective, expected.mpo),
                ("retention", retention, expected.retention),
                ("loss", outcome.loss, expected.loss),
                ("gradient norm", norm, expected.grad_norm),
            ] {
                comparison.close(|| format!("step {step}: {what}"), actual, expected, LOSS_IN_TRAINING);
            }
        }
        assert!(0 < n_clipped && n_clipped < steps.len(), "{family}: clipping acted on {n_clipped} steps");
        compare_weights(&mut comparison, &fixture, &start, r#final);
        comparison.finish(family);
    }
}

fn compare_weights(comparison: &mut Comparison, fixture: &Fixture, start: &HashMap<&str, Vec<f32>>, expected: &[FinalParameter]) {
    let trained = by_name(&fixture.policy, |parameter| ops::read(&parameter.value).unwrap().to_vec());
    for (name, expected) in fixture.expected.parameters.iter().zip(expected) {
        let (value, start) = (&trained[name.as_str()], &start[name.as_str()]);
        let l2 = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
        let norm = l2(&mut value.iter().map(|&v| f64::from(v)));
        let change = l2(&mut value.iter().zip(start).map(|(&v, &s)| f64::from(v) - f64::from(s)));
        comparison.close(|| format!("{name} after training: l2"), norm, expected.l2, FINAL_NORM);
        comparison.close(|| format!("{name} after training: l2 of its change"), change, expected.l2_of_change, NORM_OF_CHANGE);
        let n = expected.elements.len();
        for (i, &expected) in expected.elements.iter().enumerate() {
            let at = i * value.len() / n;
            comparison.close(|| format!("{name}[{at}] after training"), value[at].into(), expected, FINAL_WEIGHT);
        }
    }
}

fn by_name<T>(model: &Decoder, of: impl Fn(&Parameter) -> T) -> HashMap<&str, T> {
    model.parameters().iter().map(|parameter| (parameter.name.as_str(), of(parameter))).collect()
}

#[test]
fn learning_rates() {
    let schedules: Vec<ExpectedSchedule> = read_json(&fixtures().join("schedules.json"));
    let mut comparison = Comparison::new();
    for expected in schedules {
        let ExpectedSchedule { kind, total_steps, warmup_steps, min_lr_ratio, factors } = expected;
        let config = ScheduleConfig { kind, warmup_ratio: None, warmup_steps: Some(warmup_steps), min_lr_ratio };
        let schedule = Schedule::new(&config, 1.0, total_steps);
        assert_eq!(factors.len(), total_steps);
        for (step, factor) in factors.into_iter().enumerate() {
            let what = || format!("{kind:?}, {warmup_steps} of {total_steps} steps warm-up, at least {min_lr_ratio}: step {step}");
            comparison.close(what, schedule.lr(step), factor, Tolerance::Absolute(1e-11));
        }
    }
    comparison.finish("schedules");
}
