//! Rows of a batch as token counts, and random tokens for them: what `step` and `gpu` have in common.

use crate::random::random_tokens;
use mpo::data::encode::{EncodedPreference, EncodedRow, Response};
use serde::{Deserialize, Serialize};

/// Token counts of one parallel pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Rows with the same number share their dominant pair.
    pub pair: usize,
    pub language: String,
    pub dominant: Lengths,
    pub target: Lengths,
}

/// Token counts of a preference pair. Responses include what ends the turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lengths {
    pub prompt: usize,
    pub chosen: usize,
    pub rejected: usize,
}

impl Lengths {
    /// Tokens of both sequences, the prompt counted twice.
    pub fn n_tokens(&self) -> usize {
        2 * self.prompt + self.n_response_tokens()
    }

    pub fn n_response_tokens(&self) -> usize {
        self.chosen + self.rejected
    }
}

impl Row {
    /// Four sequences of `n_tokens` each, a quarter of them prompt.
    pub fn of_length(n_tokens: usize) -> Self {
        let prompt = n_tokens / 4;
        let lengths = Lengths { prompt, chosen: n_tokens - prompt, rejected: n_tokens - prompt };
        Self { pair: 0, language: "sw".into(), dominant: lengths, target: lengths }
    }

    /// Tokens of its four sequences.
    pub fn n_tokens(&self) -> usize {
        self.dominant.n_tokens() + self.target.n_tokens()
    }
}

/// Random tokens of these lengths; rows of one pair have the same dominant side.
pub fn random_row(index: usize, row: &Row, n_vocab: usize) -> EncodedRow {
    let pair = |lang: &str, seed: usize, lengths: &Lengths| {
        let tokens = |n: usize, part: usize| random_tokens((3 * seed + part) as u64, n, n_vocab);
        let response = |n, part| Response { tokens: tokens(n, part), n_end_tokens: 1 };
        EncodedPreference {
            lang: lang.into(),
            prompt: tokens(lengths.prompt, 0),
            chosen: response(lengths.chosen, 1),
            rejected: response(lengths.rejected, 2),
        }
    };
    EncodedRow {
        id: index.to_string(),
        dominant: Some(pair("en", row.pair, &row.dominant)),
        target: pair(&row.language, 1_000_000 + index, &row.target),
        mismatched: None,
    }
}

/// The middle value, or the mean of the two in the middle; NaN of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n => 0.5 * (sorted[(n - 1) / 2] + sorted[n / 2]),
    }
}
