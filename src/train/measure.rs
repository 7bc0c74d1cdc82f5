//! What a pass over some rows says of the policy: the losses, and how far each language has come.
//!
//! Gaps are without beta, in nats a token (in nats for `gap = "sum"`).

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One row under the policy.
#[derive(Debug, Clone, PartialEq)]
pub struct RowMeasure {
    /// Of the target pair.
    pub lang: String,
    /// `RG(policy, target pair)`.
    pub reward_gap_target: f64,
    /// What the row's target gap is pulled to, times beta: the dominant pair's gap.
    pub reward_gap_reference: f64,
    /// Mean log-probability of a token of the chosen and of the rejected target answer, nats.
    pub chosen_per_token: f64,
    pub rejected_per_token: f64,
}

/// Means over rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Means {
    pub n_rows: usize,
    pub reward_gap_target: f64,
    pub reward_gap_reference: f64,
    /// Share of rows with a positive target gap.
    pub accuracy: f64,
    /// Share of rows whose target gap exceeds what the loss asks for (beta RG_t > RG_d): it is pushed down.
    pub overshoot: f64,
    pub chosen_per_token: f64,
    pub rejected_per_token: f64,
}

impl Means {
    /// Sums in the order of `rows`.
    pub fn of<'a>(rows: impl Iterator<Item = &'a RowMeasure> + Clone, beta: f64) -> Self {
        let n_rows = rows.clone().count();
        let mean = |value: &dyn Fn(&RowMeasure) -> f64| rows.clone().map(value).sum::<f64>() / n_rows as f64;
        let share = |holds: &dyn Fn(&RowMeasure) -> bool| rows.clone().filter(|row| holds(row)).count() as f64 / n_rows as f64;
        Self {
            n_rows,
            reward_gap_target: mean(&|row| row.reward_gap_target),
            reward_gap_reference: mean(&|row| row.reward_gap_reference),
            accuracy: share(&|row| row.reward_gap_target > 0.0),
            overshoot: share(&|row| beta * row.reward_gap_target > row.reward_gap_reference),
            chosen_per_token: mean(&|row| row.chosen_per_token),
            rejected_per_token: mean(&|row| row.rejected_per_token),
        }
    }
}

/// A pass over some rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// `mpo + weight * retention`.
    pub loss: f64,
    pub mpo: f64,
    /// Unweighted.
    pub retention: f64,
    pub all: Means,
    /// By target language.
    pub languages: BTreeMap<String, Means>,
}

impl Measurement {
    /// `loss`, `mpo` and `retention` are means over the same rows.
    pub fn new(loss: f64, mpo: f64, retention: f64, rows: &[RowMeasure], beta: f64) -> Self {
        let of_language = |lang: &String| Means::of(rows.iter().filter(|row| row.lang == *lang), beta);
        let languages = rows.iter().map(|row| (row.lang.clone(), of_language(&row.lang))).collect();
        Self { loss, mpo, retention, all: Means::of(rows.iter(), beta), languages }
    }

    pub fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.all.reward_gap_target.is_finite()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_by_language() {
        let row = |lang: &str, gap: f64| RowMeasure {
            lang: lang.into(),
            reward_gap_target: gap,
            reward_gap_reference: 1.0,
            chosen_per_token: -1.0,
            rejected_per_token: -1.0 - gap,
        };
        let measurement = Measurement::new(3.0, 2.0, 1.0, &[row("sw", -0.5), row("bn", 0.25), row("sw", 1.5)], 2.0);
        assert_eq!(measurement.languages.keys().collect::<Vec<_>>(), ["bn", "sw"]);
        let sw = &measurement.languages["sw"];
        assert_eq!((sw.n_rows, sw.reward_gap_target, sw.accuracy, sw.overshoot), (2, 0.5, 0.5, 0.5));
        assert_eq!(measurement.languages["bn"].overshoot, 0.0, "2 * 0.25 is below 1");
        assert_eq!(measurement.all.n_rows, 3);
        assert_eq!(measurement.all.rejected_per_token, -(0.5 + 1.25 + 2.5) / 3.0);
    }
}
