//! What a frozen model says of preference pairs: the response log-probabilities, and the states that retention compares.
//!
//! Pairs are packed as training packs them, and a sequence's forward does not depend on what it is packed with, so on the CPU these scores
//! equal the policy's own at the first step bit for bit.

use crate::config::{Pooling, RetentionConfig, RetentionKind};
use crate::data::batch::{Layout, PackedBatch, PairSpans, PromptSharing, SequenceSpan};
use crate::data::encode::EncodedPreference;
use crate::model::decoder::{Decoder, Keep, TokenTarget};
use crate::objective::{PairScores, ResponseScore};
use crate::ops::{self, pool};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tracing::info_span;

/// Which final-norm states of a sequence are kept beside its score.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeptStates {
    /// None: the score alone is wanted.
    Nothing,
    /// One vector, the mean over the pooling's positions.
    Pooled(Pooling),
    /// One vector for each response token: the state that predicts it (`kl`).
    Predicting,
}

impl KeptStates {
    /// What the retention term compares.
    pub fn of(retention: &RetentionConfig) -> Self {
        match retention.kind {
            RetentionKind::Hidden => Self::Pooled(retention.pooling),
            RetentionKind::Kl => Self::Predicting,
            RetentionKind::None => Self::Nothing,
        }
    }

    /// How a dominant pair must be packed for these states: `mean_padded` also looks at padding.
    pub fn layout(self, pad_token: u32) -> Layout {
        let padded = self == Self::Pooled(Pooling::MeanPadded);
        Layout { sharing: PromptSharing::Shared, pad_token: padded.then_some(pad_token) }
    }

    /// The rows of a batch's states whose means are the kept vectors of one sequence.
    pub fn rows(self, span: &SequenceSpan, n_end_tokens: usize) -> Vec<Vec<usize>> {
        match self {
            _ if span.is_absent() => Vec::new(),
            Self::Nothing => Vec::new(),
            Self::Pooled(pooling) => vec![span.pooled_rows(pooling, n_end_tokens)],
            Self::Predicting => span.predicting_rows().map(|row| vec![row]).collect(),
        }
    }
}

/// One sequence under the frozen model. An absent response has a score of 0 over 0 tokens, and no states.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredSequence {
    pub score: ResponseScore,
    /// Final-norm states, `[1, D]` or `[response tokens, D]` as [`KeptStates`] says, f32.
    pub states: Vec<f32>,
}

impl ScoredSequence {
    /// Whether a loss can be made of it.
    pub fn is_finite(&self) -> bool {
        self.score.log_prob.is_finite() && self.states.iter().all(|value| value.is_finite())
    }
}

/// Both sequences of a preference pair under the frozen model.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredPair {
    pub chosen: ScoredSequence,
    pub rejected: ScoredSequence,
}

/// `pairs` as one packed forward takes them.
pub fn pack(pairs: &[&EncodedPreference], kept: KeptStates, pad_token: u32) -> (PackedBatch, Vec<PairSpans>) {
    let layout = kept.layout(pad_token);
    let mut batch = PackedBatch::default();
    let spans = pairs.iter().map(|pair| batch.push_pair(pair, &layout)).collect();
    (batch, spans)
}

/// Scores `pairs` in one packed forward.
pub fn score(model: &Decoder, pairs: &[&EncodedPreference], kept: KeptStates, pad_token: u32) -> Result<Vec<ScoredPair>> {
    let (batch, spans) = pack(pairs, kept, pad_token);
    let hidden_ND = info_span!("forward").in_scope(|| model.forward(&batch, Keep::Nothing))?.hidden_ND;
    let targets = response_targets(&batch, &spans);
    let log_probs = info_span!("head").in_scope(|| model.log_probs(&hidden_ND, &targets))?;
    let scores = pair_scores(&log_probs, &spans)?;
    let rows_of = |(pair, spans): (&&EncodedPreference, &PairSpans)| {
        [kept.rows(&spans.chosen, pair.chosen.n_end_tokens), kept.rows(&spans.rejected, pair.rejected.n_end_tokens)]
    };
    let rows: Vec<[Vec<Vec<usize>>; 2]> = pairs.iter().zip(&spans).map(rows_of).collect();
    let (states_SD, hidden_size) = (pool::forward(&hidden_ND, &rows.as_flattened().concat())?, hidden_ND.dim(1)?);
    let states = ops::read(&states_SD)?;
    let mut rest = &*states;
    let mut scored = |rows: &[Vec<usize>], score| -> Result<ScoredSequence> {
        let states = rest.split_off(..rows.len() * hidden_size).context("states of every sequence were pooled")?;
        Ok(ScoredSequence { score, states: states.to_vec() })
    };
    let sequences = rows.iter().zip(scores);
    sequences
        .map(|([chosen, rejected], scores)| {
            Ok(ScoredPair { chosen: scored(chosen, scores.chosen)?, rejected: scored(rejected, scores.rejected)? })
        })
        .collect()
}

/// The token that each response position must predict: chosen then rejected of each pair, in order.
pub fn response_targets(batch: &PackedBatch, spans: &[PairSpans]) -> Vec<TokenTarget> {
    let sequences = spans.iter().flat_map(PairSpans::both);
    sequences
        .flat_map(|span| span.predicting_rows().zip(&batch.tokens[span.response.clone()]))
        .map(|(row, &token)| TokenTarget { row: row as u32, token })
        .collect()
}

/// Sums the log-probabilities of [`response_targets`] per response.
pub fn pair_scores(log_probs: &[f32], spans: &[PairSpans]) -> Result<Vec<PairScores>> {
    let n_targets: usize = spans.iter().flat_map(PairSpans::both).map(|span| span.response.len()).sum();
    ensure!(log_probs.len() == n_targets, "{} log-probabilities for {n_targets} response tokens", log_probs.len());
    let mut rest = log_probs;
    let mut next = |span: &SequenceSpan| {
        let (tokens, behind) = rest.split_at(span.response.len());
        rest = behind;
        ResponseScore::from_tokens(tokens)
    };
    Ok(spans.iter().map(|spans| PairScores { chosen: next(&spans.chosen), rejected: next(&spans.rejected) }).collect())
}
