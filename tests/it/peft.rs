//! Adapters that PEFT made, against what PyTorch says under them: log-probabilities and the gradient of every A and B (`tests/oracle/peft_lora.py`).

use crate::golden::{Comparison, Fixture, Tolerance, fixtures, read_json};
use mpo::adapter::peft;
use mpo::config::{ComputeDtype, ObjectiveConfig, RetentionConfig};
use mpo::model::decoder::Purpose;
use mpo::ops;
use mpo::scoring::{KeptStates, ScoredPair, score};
use mpo::train::step::{Gradients, evaluate_batch};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Deserialize)]
struct Expected {
    scores: Vec<Row>,
    loss: f64,
    gradient_norms: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct Row {
    dominant: Pair,
    target: Pair,
}

#[derive(Deserialize)]
struct Pair {
    chosen: f64,
    rejected: f64,
}

/// As `make_fixtures.py` has it.
fn trained() -> (ObjectiveConfig, RetentionConfig) {
    let read = |text: &str| toml::from_str(text).unwrap();
    (toml::from_str("beta = 1.5").unwrap(), read("kind = \"hidden\"\nweight = 0.7\npooling = \"last\"\nreduction = \"sum\""))
}

#[test]
fn adapters_made_by_peft_say_what_pytorch_says() {
    for family in ["llama", "gemma2", "qwen2"] {
        let (folder, fixture) = (fixtures().join("peft").join(family), Fixture::load(family));
        let expected: Expected = read_json(&folder.join("expected.json"));
        let adapter = peft::open(&folder, fixture.policy.description()).unwrap();
        let policy = adapter.load(&fixtures().join(family), ComputeDtype::F32, Purpose::Train).unwrap();

        let mut comparison = Comparison::new();
        for (row, expected) in fixture.rows.iter().zip(&expected.scores) {
            let pairs = [row.dominant.as_ref().unwrap(), &row.target];
            let scored = score(&policy, &pairs, KeptStates::Nothing, 0).unwrap();
            for (ScoredPair { chosen, rejected }, expected) in scored.iter().zip([&expected.dominant, &expected.target]) {
                let mut close = |actual, expected| {
                    comparison.close(|| format!("row {}, an answer", row.id), actual, expected, Tolerance::Absolute(3e-4));
                };
                close(chosen.score.log_prob, expected.chosen);
                close(rejected.score.log_prob, expected.rejected);
            }
        }

        let (objective, retention) = trained();
        let (settings, reference) = (fixture.settings(&objective, &retention), fixture.frozen_scores(&retention));
        policy.zero_gradients().unwrap();
        let rows: Vec<_> = fixture.rows.iter().collect();
        let outcome = evaluate_batch(&policy, &rows, &reference, &settings, Gradients::Both).unwrap();
        comparison.close(|| "the loss".into(), outcome.loss, expected.loss, Tolerance::Relative(5e-5));
        assert_eq!(policy.trained_parameters().len(), expected.gradient_norms.len(), "{family}");
        for parameter in policy.trained_parameters() {
            let gradient = ops::read(parameter.gradient.as_ref().unwrap()).unwrap();
            let norm = gradient.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
            comparison.close(|| parameter.name.clone(), norm, expected.gradient_norms[&parameter.name], Tolerance::Relative(2e-4));
        }
        comparison.finish(family);
    }
}
