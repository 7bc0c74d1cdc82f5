//! What a pass over some rows says of the policy: the losses, and how far each language has come.
//!
//! Gaps are without beta, in nats a token (in nats for `gap = "sum"`).

use super::step::{BatchOutcome, RowOutcome};
use crate::data::encode::EncodedRow;
use crate::objective::{PerAnswer, ResponseScore};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

/// One row under the policy. A number is absent where the row lacks what it is about: a dominant pair, one of its two answers.
#[derive(Debug, Clone, PartialEq)]
pub struct RowMeasure {
    /// Of the target pair.
    pub lang: String,
    /// `RG(policy, target pair)`.
    pub reward_gap_target: Option<f64>,
    /// `RG(reference, dominant pair)`.
    pub reward_gap_reference: Option<f64>,
    /// The target gap at which the row's loss is least, where the loss has such a goal.
    pub goal: Option<f64>,
    /// In the units of the loss: see [`Reported`](crate::objective::Reported).
    pub log_probs: PerAnswer,
    pub rewards: Option<PerAnswer>,
    /// Mean log-probability of a token of the chosen and of the rejected target answer, nats.
    pub chosen_per_token: Option<f64>,
    pub rejected_per_token: Option<f64>,
}

impl RowMeasure {
    pub fn new(row: &EncodedRow, outcome: &RowOutcome) -> Self {
        let per_token = |score: ResponseScore| (!score.is_absent()).then(|| score.per_token());
        Self {
            lang: row.target.lang.clone(),
            reward_gap_target: outcome.reward_gap_target,
            reward_gap_reference: outcome.reward_gap_reference,
            goal: outcome.goal,
            log_probs: outcome.log_probs,
            rewards: outcome.rewards,
            chosen_per_token: per_token(outcome.target.chosen),
            rejected_per_token: per_token(outcome.target.rejected),
        }
    }
}

#[cfg(test)]
impl RowMeasure {
    /// A row of MPO with beta 1: its chosen answer has -1 nat a token.
    pub fn with_gap(lang: &str, gap: f64, goal: f64) -> Self {
        let answers = PerAnswer { chosen: Some(-1.0), rejected: Some(-1.0 - gap) };
        Self {
            lang: lang.into(),
            reward_gap_target: Some(gap),
            reward_gap_reference: Some(goal),
            goal: Some(goal),
            log_probs: answers,
            rewards: Some(answers),
            chosen_per_token: answers.chosen,
            rejected_per_token: answers.rejected,
        }
    }
}

/// JSON has no NaN: it is written as null, and read back here.
pub(super) fn null_is_nan<'de, D: Deserializer<'de>>(source: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(source)?.unwrap_or(f64::NAN))
}

/// Means over the rows that have the number; not a number where none has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Means {
    pub n_rows: usize,
    #[serde(deserialize_with = "null_is_nan")]
    pub reward_gap_target: f64,
    #[serde(deserialize_with = "null_is_nan")]
    pub reward_gap_reference: f64,
    /// The target gap at which the loss is least.
    #[serde(deserialize_with = "null_is_nan")]
    pub goal: f64,
    /// Share of rows whose target gap exceeds that (for MPO beta RG_t > RG_d): it is pushed down.
    #[serde(deserialize_with = "null_is_nan")]
    pub overshoot: f64,
    /// In the units of the loss.
    #[serde(deserialize_with = "null_is_nan")]
    pub chosen_log_prob: f64,
    #[serde(deserialize_with = "null_is_nan")]
    pub rejected_log_prob: f64,
    #[serde(deserialize_with = "null_is_nan")]
    pub chosen_reward: f64,
    #[serde(deserialize_with = "null_is_nan")]
    pub rejected_reward: f64,
    #[serde(deserialize_with = "null_is_nan")]
    pub margin: f64,
    /// Share of rows with a positive margin.
    #[serde(deserialize_with = "null_is_nan")]
    pub accuracy: f64,
    #[serde(deserialize_with = "null_is_nan")]
    pub chosen_per_token: f64,
    #[serde(deserialize_with = "null_is_nan")]
    pub rejected_per_token: f64,
}

impl Means {
    /// Sums in the order of `rows`.
    pub fn of<'a>(rows: impl Iterator<Item = &'a RowMeasure> + Clone) -> Self {
        let n_rows = rows.clone().count();
        let mean = |value: &dyn Fn(&RowMeasure) -> Option<f64>| {
            let (sum, n) = rows.clone().filter_map(value).fold((0.0, 0usize), |(sum, n), value| (sum + value, n + 1));
            sum / n as f64
        };
        let share = |holds: &dyn Fn(&RowMeasure) -> Option<bool>| mean(&|row| holds(row).map(|holds| f64::from(u8::from(holds))));
        Self {
            n_rows,
            reward_gap_target: mean(&|row| row.reward_gap_target),
            reward_gap_reference: mean(&|row| row.reward_gap_reference),
            goal: mean(&|row| row.goal),
            overshoot: share(&|row| Some(row.reward_gap_target? > row.goal?)),
            chosen_log_prob: mean(&|row| row.log_probs.chosen),
            rejected_log_prob: mean(&|row| row.log_probs.rejected),
            chosen_reward: mean(&|row| row.rewards?.chosen),
            rejected_reward: mean(&|row| row.rewards?.rejected),
            margin: mean(&|row| row.rewards?.margin()),
            accuracy: share(&|row| Some(row.rewards?.margin()? > 0.0)),
            chosen_per_token: mean(&|row| row.chosen_per_token),
            rejected_per_token: mean(&|row| row.rejected_per_token),
        }
    }
}

/// The loss and its terms, over some rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Losses {
    /// `objective + weight * retention`.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    #[serde(deserialize_with = "null_is_nan")]
    pub objective: f64,
    /// Unweighted; 0 in a run without the term.
    #[serde(deserialize_with = "null_is_nan")]
    pub retention: f64,
}

impl Losses {
    pub fn of(outcome: &BatchOutcome) -> Self {
        Self { loss: outcome.loss, objective: outcome.objective, retention: outcome.retention.unwrap_or(0.0) }
    }
}

/// A pass over some rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    #[serde(flatten)]
    pub losses: Losses,
    pub all: Means,
    /// By target language.
    pub languages: BTreeMap<String, Means>,
}

impl Measurement {
    /// `losses` are means over the same rows.
    pub fn new(losses: Losses, rows: &[RowMeasure]) -> Self {
        let of_language = |lang: &String| Means::of(rows.iter().filter(|row| row.lang == *lang));
        let languages = rows.iter().map(|row| (row.lang.clone(), of_language(&row.lang))).collect();
        Self { losses, all: Means::of(rows.iter()), languages }
    }

    /// What one batch says.
    pub fn of_batch(rows: &[&EncodedRow], outcome: &BatchOutcome) -> Self {
        let measures: Vec<RowMeasure> = rows.iter().zip(&outcome.rows).map(|(row, outcome)| RowMeasure::new(row, outcome)).collect();
        Self::new(Losses::of(outcome), &measures)
    }
}

/// The policy's own reward gap on dominant pairs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DominantGap {
    /// Distinct pairs.
    pub n_pairs: usize,
    #[serde(deserialize_with = "null_is_nan")]
    pub reward_gap: f64,
}

/// What is measured before the first step and after the last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// On [`probe_rows`](super::evaluate::probe_rows) of the training rows.
    pub train: Measurement,
    pub held_out: Option<Measurement>,
    /// On the dominant pairs of the same training rows, by language.
    pub dominant: BTreeMap<String, DominantGap>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(lang: &str, gap: f64) -> RowMeasure {
        RowMeasure::with_gap(lang, gap, 1.0)
    }

    #[test]
    fn what_is_not_a_number_survives_a_checkpoint() {
        let losses = Losses { loss: f64::NAN, objective: f64::NAN, retention: 0.5 };
        let json = serde_json::to_string(&Measurement::new(losses, &[row("sw", f64::NAN)])).unwrap();
        let read: Measurement = serde_json::from_str(&json).unwrap();
        assert!(read.losses.loss.is_nan() && read.all.reward_gap_target.is_nan() && read.languages["sw"].rejected_per_token.is_nan());
        assert_eq!((read.losses.retention, read.all.chosen_per_token), (0.5, -1.0));
    }

    #[test]
    fn what_a_row_does_not_have_is_left_out_of_the_means() {
        let mut no_answer = RowMeasure { reward_gap_target: None, rejected_per_token: None, ..row("sw", 0.5) };
        no_answer.rewards.as_mut().unwrap().rejected = None;
        let plain = |row| RowMeasure { reward_gap_reference: None, goal: None, ..row };
        let losses = Losses { loss: 1.0, objective: 1.0, retention: 0.0 };
        let measurement = Measurement::new(losses, &[plain(row("sw", 0.5)), plain(no_answer.clone()), plain(row("sw", -1.5))]);
        let all = &measurement.all;
        assert_eq!((all.n_rows, all.reward_gap_target, all.accuracy, all.chosen_per_token), (3, -0.5, 0.5, -1.0));
        assert_eq!(all.rejected_per_token, (-1.5 + 0.5) / 2.0);
        assert!(all.goal.is_nan() && all.overshoot.is_nan());
        let nothing = Measurement::new(losses, &[plain(no_answer)]);
        let read: Measurement = serde_json::from_str(&serde_json::to_string(&nothing).unwrap()).unwrap();
        assert!(read.all.accuracy.is_nan() && read.all.overshoot.is_nan(), "they survive a checkpoint");
    }

    #[test]
    fn means_by_language() {
        let measurement =
            Measurement::new(Losses { loss: 3.0, objective: 2.0, retention: 1.0 }, &[row("sw", -0.5), row("bn", 0.25), row("sw", 1.5)]);
        assert_eq!(measurement.languages.keys().collect::<Vec<_>>(), ["bn", "sw"]);
        let sw = &measurement.languages["sw"];
        assert_eq!((sw.n_rows, sw.reward_gap_target, sw.accuracy, sw.overshoot), (2, 0.5, 0.5, 0.5));
        assert_eq!(measurement.languages["bn"].overshoot, 0.0, "0.25 is below 1");
        assert_eq!(measurement.all.n_rows, 3);
        assert_eq!(measurement.all.rejected_per_token, -(0.5 + 1.25 + 2.5) / 3.0);
    }
}
