//! Values and gradients beside those of TRL and of the authors' formulas (`tests/oracle/objectives.py`).

use mpo::config::{ObjectiveConfig, ObjectiveKind};
use mpo::objective::{BatchTotals, Objective, PairScores, ResponseScore, RowScores};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// Both sides are f64; the tokens of an answer are summed in another order.
const TOLERANCE: f64 = 1e-11;

#[derive(Deserialize)]
struct Fixture {
    rows: Vec<Row>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Row {
    policy: Answers<Vec<f64>>,
    reference: Answers<Vec<f64>>,
}

#[derive(Deserialize)]
struct Answers<T> {
    chosen: T,
    rejected: T,
}

#[derive(Deserialize)]
struct Case {
    /// What the case sets; the rest has the defaults of its kind.
    objective: serde_json::Map<String, serde_json::Value>,
    loss: f64,
    /// Means over rows under TRL's names.
    metrics: BTreeMap<String, f64>,
    #[serde(default)]
    mismatched: Vec<Mismatched>,
    /// Of a token of each answer.
    d_log_prob: Vec<Answers<f64>>,
}

#[derive(Deserialize)]
struct Mismatched {
    policy: f64,
    reference: f64,
}

fn fixture() -> Fixture {
    serde_json::from_str(include_str!("../../fixtures/objectives.json")).unwrap()
}

fn config(case: &Case) -> ObjectiveConfig {
    let kind: ObjectiveKind = serde_json::from_value(case.objective["kind"].clone()).unwrap();
    let mut whole = serde_json::to_value(ObjectiveConfig::of(kind)).unwrap();
    whole.as_object_mut().unwrap().extend(case.objective.clone());
    serde_json::from_value(whole).unwrap()
}

fn pair(answers: &Answers<Vec<f64>>) -> PairScores {
    let score = |tokens: &[f64]| ResponseScore { log_prob: tokens.iter().sum(), n_tokens: tokens.len() };
    PairScores { chosen: score(&answers.chosen), rejected: score(&answers.rejected) }
}

fn scores(row: &Row) -> RowScores {
    RowScores {
        policy_target: pair(&row.policy),
        policy_dominant: None,
        reference_dominant: None,
        reference_target: Some(pair(&row.reference)),
    }
}

fn totals(rows: &[RowScores], mismatched: &[Mismatched]) -> BatchTotals {
    let tokens = |of: &dyn Fn(&PairScores) -> usize| rows.iter().map(|row| of(&row.policy_target)).sum();
    BatchTotals {
        n_rows: rows.len(),
        n_chosen: rows.len(),
        n_rejected: rows.len(),
        n_chosen_tokens: tokens(&|pair| pair.chosen.n_tokens),
        n_rejected_tokens: tokens(&|pair| pair.rejected.n_tokens),
        mismatched_log_ratio: mismatched.iter().map(|pair| pair.policy - pair.reference).sum::<f64>() / mismatched.len().max(1) as f64,
    }
}

fn assert_close(found: f64, expected: f64, what: &str) {
    assert!((found - expected).abs() <= TOLERANCE * expected.abs().max(1.0), "{what}: {found} is not {expected}");
}

#[test]
fn losses_and_gradients_are_those_of_trl() {
    let fixture = fixture();
    let rows: Vec<RowScores> = fixture.rows.iter().map(scores).collect();
    for case in &fixture.cases {
        let name = serde_json::to_string(&case.objective).unwrap();
        let objective = Objective::new(&config(case));
        let totals = totals(&rows, &case.mismatched);
        let found: Vec<_> = rows.iter().map(|row| objective.row(row, &totals).unwrap()).collect();
        assert_close(found.iter().map(|row| row.share).sum(), case.loss, &name);
        for (found, expected) in found.iter().zip(&case.d_log_prob) {
            assert_close(found.d_chosen, expected.chosen, &format!("{name}, chosen"));
            assert_close(found.d_rejected, expected.rejected, &format!("{name}, rejected"));
        }
    }
    let kinds: BTreeSet<&str> = fixture.cases.iter().map(|case| case.objective["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds.len(), ObjectiveKind::ALL.len() - 1, "all but mpo, which `golden` checks");
}

#[test]
fn reported_rewards_and_log_probabilities_are_those_of_trl() {
    let fixture = fixture();
    let rows: Vec<RowScores> = fixture.rows.iter().map(scores).collect();
    let mean = |of: &dyn Fn(&RowScores) -> f64| rows.iter().map(of).sum::<f64>() / rows.len() as f64;
    let mut n_compared = 0;
    for case in &fixture.cases {
        let name = serde_json::to_string(&case.objective).unwrap();
        let objective = Objective::new(&config(case));
        for (key, &expected) in &case.metrics {
            let reward = |row: &RowScores| objective.rewards(row).unwrap();
            let unit = objective.reported().log_prob;
            let found = match key.as_str() {
                "rewards/chosen" => mean(&|row| reward(row).chosen.unwrap()),
                "rewards/rejected" => mean(&|row| reward(row).rejected.unwrap()),
                "rewards/margins" => mean(&|row| reward(row).margin().unwrap()),
                "rewards/accuracies" => mean(&|row| f64::from(reward(row).margin().unwrap() > 0.0)),
                "logps/chosen" => mean(&|row| row.policy_target.chosen.value(unit)),
                "logps/rejected" => mean(&|row| row.policy_target.rejected.value(unit)),
                other => panic!("{other}"),
            };
            // TRL logs what went through f32.
            assert!((found - expected).abs() < 1e-6 * expected.abs().max(1.0), "{name}, {key}: {found} is not {expected}");
            n_compared += 1;
        }
    }
    assert!(n_compared > 50, "{n_compared}");
}
