//! Losses as pure functions of per-sequence scores: numbers in, numbers out.
//!
//! An objective is asked for one row at a time and told the totals of the optimizer batch, so the rows' shares add up to the batch's
//! loss however the batch is cut into micro-batches. It answers with the row's share and its derivative with respect to the summed
//! log-probability of each target response; the engine does the rest. Retention, a regulariser beside any objective, has its own file.
//!
//! A new loss is a file here, a variant of [`Objective`] and a line in each of its matches. Arithmetic is f64 throughout.

pub mod mpo;
pub mod retention;

use crate::config::{Gap, ObjectiveConfig, ObjectiveKind};
use anyhow::Result;
use mpo::Mpo;

/// `log pi(y | x)` of one response and the number of tokens it sums over, end-of-turn tokens included. 0 of 0 tokens where the data has no
/// such response.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ResponseScore {
    /// Sum over the response tokens, nats.
    pub log_prob: f64,
    pub n_tokens: usize,
}

impl ResponseScore {
    /// Adds up the log-probabilities of a response's tokens, in order.
    pub fn from_tokens(log_probs: &[f32]) -> Self {
        Self { log_prob: log_probs.iter().map(|&log_prob| f64::from(log_prob)).sum(), n_tokens: log_probs.len() }
    }

    /// Whether the data has no such response.
    pub fn is_absent(&self) -> bool {
        self.n_tokens == 0
    }

    /// Mean log-probability of a token, nats; not a number for an absent response.
    pub fn per_token(&self) -> f64 {
        self.log_prob / self.n_tokens as f64
    }

    /// What a reward gap is the difference of.
    fn reward(&self, gap: Gap) -> f64 {
        match gap {
            Gap::LengthNormalized => self.per_token(),
            Gap::Sum => self.log_prob,
        }
    }

    /// d reward / d log_prob.
    fn reward_slope(&self, gap: Gap) -> f64 {
        match gap {
            Gap::LengthNormalized => 1.0 / self.n_tokens as f64,
            Gap::Sum => 1.0,
        }
    }
}

/// Scores of the two answers to one prompt, under one model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PairScores {
    pub chosen: ResponseScore,
    pub rejected: ResponseScore,
}

impl PairScores {
    /// Whether there are two responses to compare.
    pub fn has_both(&self) -> bool {
        !self.chosen.is_absent() && !self.rejected.is_absent()
    }

    /// [`Self::reward_gap`], where there are two responses.
    pub fn known_gap(&self, gap: Gap) -> Option<f64> {
        self.has_both().then(|| self.reward_gap(gap))
    }

    /// `RG = log pi(y_w|x) / |y_w| - log pi(y_l|x) / |y_l|`, or without the lengths for [`Gap::Sum`]. Of no meaning where a response is absent.
    pub fn reward_gap(&self, gap: Gap) -> f64 {
        self.chosen.reward(gap) - self.rejected.reward(gap)
    }
}

/// Which scores an objective reads. The policy always scores the target pair: that is what training changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passes {
    pub policy_dominant: bool,
    pub reference_dominant: bool,
    pub reference_target: bool,
}

/// Everything that is known of one row. A score that [`Passes`] does not ask for may be absent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowScores {
    pub policy_target: PairScores,
    pub policy_dominant: Option<PairScores>,
    pub reference_dominant: Option<PairScores>,
    pub reference_target: Option<PairScores>,
}

/// Totals over the whole optimizer batch, known before its first micro-batch is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BatchTotals {
    pub n_rows: usize,
    /// Response tokens of the target pairs.
    pub n_chosen_tokens: usize,
    pub n_rejected_tokens: usize,
}

/// One row's part in the loss of its batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowLoss {
    /// The row's share: the shares of a batch's rows sum to its loss.
    pub share: f64,
    /// d loss / d `log_prob` of the policy's chosen target response.
    pub d_chosen: f64,
    /// d loss / d `log_prob` of the policy's rejected target response.
    pub d_rejected: f64,
}

/// A training objective with its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Objective {
    Mpo(Mpo),
}

impl Objective {
    pub fn new(config: &ObjectiveConfig) -> Self {
        match config.kind {
            ObjectiveKind::Mpo => Self::Mpo(Mpo { beta: config.beta, gap: config.gap, gap_target: config.gap_target }),
        }
    }

    pub fn passes(&self) -> Passes {
        match self {
            Self::Mpo(mpo) => mpo.passes(),
        }
    }

    /// Fails when a score that [`Objective::passes`] asks for is missing.
    pub fn row(&self, scores: &RowScores, totals: &BatchTotals) -> Result<RowLoss> {
        match self {
            Self::Mpo(mpo) => mpo.row(scores, totals),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reward_gap_by_hand() {
        let pair =
            PairScores { chosen: ResponseScore { log_prob: -6.0, n_tokens: 4 }, rejected: ResponseScore { log_prob: -5.0, n_tokens: 2 } };
        assert_eq!(pair.reward_gap(Gap::LengthNormalized), -1.5 + 2.5);
        assert_eq!(pair.reward_gap(Gap::Sum), -1.0);
        let swapped = PairScores { chosen: pair.rejected, rejected: pair.chosen };
        assert_eq!(swapped.reward_gap(Gap::LengthNormalized), -pair.reward_gap(Gap::LengthNormalized));
    }

    #[test]
    fn a_response_is_the_sum_of_its_tokens() {
        let score = ResponseScore::from_tokens(&[-0.5, -1.25, -0.25]);
        assert_eq!(score, ResponseScore { log_prob: -2.0, n_tokens: 3 });
        assert_eq!(score.per_token(), -2.0 / 3.0);
    }
}
