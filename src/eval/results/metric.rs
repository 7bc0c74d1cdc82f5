//! What a metric is: its name in words, its scale, which way is better.
//!
//! A key is `METRIC` or `METRIC,FILTER`, as in lm-evaluation-harness: a filter is a way of reading the answer out of a text (`strict-match`).
//! The filter of a key that names none is `none`.

use serde::{Deserialize, Serialize};

/// Which way is better, if either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    Lower,
    Higher,
    Neither,
}

impl Better {
    /// As lm-evaluation-harness says it.
    pub fn higher_is_better(self) -> Option<bool> {
        match self {
            Self::Higher => Some(true),
            Self::Lower => Some(false),
            Self::Neither => None,
        }
    }
}

/// What values mean, hence how they are printed and how sure one is of their mean.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// Yes or no: printed in percent, with Wilson's interval.
    Share,
    /// A score between 0 and 1: printed in percent, with a bootstrap interval.
    Score,
    /// A rating between two ends.
    Rating { low: f64, high: f64 },
    /// Any number.
    Number,
}

/// A metric in words.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    pub title: String,
    pub scale: Scale,
    pub better: Better,
    /// Whether a benchmark is about it: it is compared with the baseline, and tested.
    pub main: bool,
    /// Whether "it was kept" is a claim about it, so that non-inferiority is shown.
    pub to_keep: bool,
}

impl Metric {
    /// By key. An unknown metric is a number that has no better side.
    pub fn known(key: &str) -> Self {
        let (name, _) = split_key(key);
        let (base, samples) = name.split_once('@').map_or((name, None), |(base, k)| (base, Some(k)));
        let (title, scale, better, main, to_keep) = match base {
            "asr" => ("attack success rate", Scale::Share, Better::Lower, true, false),
            "unsafe_compliance" => ("compliance with unsafe prompts", Scale::Share, Better::Lower, true, false),
            "over_refusal" => ("refusal of benign prompts", Scale::Share, Better::Lower, true, true),
            "refusal_rate" => ("refusals by keywords, heuristic", Scale::Share, Better::Neither, true, false),
            "unclear_rate" => ("openings that do not decide whether they refuse", Scale::Share, Better::Neither, false, false),
            "strongreject" => ("StrongREJECT score", Scale::Score, Better::Lower, true, false),
            "acc" => ("accuracy", Scale::Share, Better::Higher, true, true),
            "exact_match" => ("exact match", Scale::Share, Better::Higher, true, true),
            "rating" => ("rating, 1 to 10", Scale::Rating { low: 1.0, high: 10.0 }, Better::Higher, true, true),
            "reward_gap" => ("reward gap, nats a token", Scale::Number, Better::Higher, false, false),
            "reference_gap" => ("reward gap under the reference, nats a token", Scale::Number, Better::Higher, false, false),
            "gap_difference" => ("reward gap above the reference's, nats a token", Scale::Number, Better::Higher, false, false),
            "comprehension" => ("comprehension", Scale::Score, Better::Higher, false, false),
            // CSRT's own: 0 means refused.
            "refusal" => ("not refused", Scale::Score, Better::Neither, false, false),
            "refused" => ("refused", Scale::Share, Better::Neither, false, false),
            "partial_refusal" => ("partial refusal", Scale::Share, Better::Neither, false, false),
            "rating_turn_1" => ("rating of the first turn", Scale::Rating { low: 1.0, high: 10.0 }, Better::Higher, false, false),
            "rating_turn_2" => ("rating of the second turn", Scale::Rating { low: 1.0, high: 10.0 }, Better::Higher, false, false),
            "invalid_rate" => ("invalid responses", Scale::Share, Better::Lower, false, false),
            "no_answer" => ("answers that could not be read", Scale::Share, Better::Lower, false, false),
            "language_match" => ("answers in the prompt's language", Scale::Share, Better::Higher, false, false),
            other => (other, Scale::Number, Better::Neither, false, false),
        };
        let title = samples.map_or_else(|| title.to_owned(), |k| format!("{title}, any of {k} answers"));
        Self { title, scale, better, main, to_keep }
    }

    /// A mean's factor in tables: shares and scores are printed in percent.
    pub fn percent(&self) -> f64 {
        if matches!(self.scale, Scale::Share | Scale::Score) { 100.0 } else { 1.0 }
    }

    /// A margin that was stated as a share of the scale, in the metric's own unit.
    pub fn margin(&self, share: f64) -> f64 {
        match self.scale {
            Scale::Rating { low, high } => share * (high - low),
            Scale::Share | Scale::Score | Scale::Number => share,
        }
    }
}

/// Metric and filter.
pub fn split_key(key: &str) -> (&str, &str) {
    key.split_once(',').unwrap_or((key, "none"))
}

/// `METRIC,FILTER`.
pub fn full_key(key: &str) -> String {
    let (metric, filter) = split_key(key);
    format!("{metric},{filter}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        assert_eq!(split_key("asr"), ("asr", "none"));
        assert_eq!(full_key("exact_match,strict-match"), "exact_match,strict-match");
        assert_eq!(Metric::known("exact_match,strict-match"), Metric::known("exact_match"));
        assert_eq!(Metric::known("asr@5").title, "attack success rate, any of 5 answers");
        assert_eq!((Metric::known("latency").better, Metric::known("latency").main), (Better::Neither, false));
    }

    #[test]
    fn two_points_of_a_rating_are_two_hundredths_of_its_scale() {
        assert!((Metric::known("rating").margin(0.02) - 0.18).abs() < 1e-12);
        assert_eq!(Metric::known("acc").margin(0.02), 0.02);
    }
}
