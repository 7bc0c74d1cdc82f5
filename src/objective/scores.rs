//! What a loss reads: scores of answers, pairs and rows, and the totals of the batch that they stand in.

use crate::config::Gap;
use anyhow::{Context, Result};

/// `log pi(y | x)` of one answer and the number of tokens it sums over, end-of-turn tokens included. An answer that the row does not have, or
/// that the loss does not read, has no tokens.
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

    pub fn is_absent(&self) -> bool {
        self.n_tokens == 0
    }

    /// Mean log-probability of a token, nats.
    pub fn per_token(&self) -> f64 {
        self.log_prob / self.n_tokens as f64
    }

    /// The mean over tokens, or the sum: what a reward gap is the difference of.
    pub fn value(&self, gap: Gap) -> f64 {
        match gap {
            Gap::LengthNormalized => self.per_token(),
            Gap::Sum => self.log_prob,
        }
    }

    /// d [`Self::value`] / d log_prob.
    pub fn slope(&self, gap: Gap) -> f64 {
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
    /// `RG = log pi(y_w|x) / |y_w| - log pi(y_l|x) / |y_l|`, or without the lengths for [`Gap::Sum`].
    pub fn reward_gap(&self, gap: Gap) -> f64 {
        self.chosen.value(gap) - self.rejected.value(gap)
    }

    /// Whether there are two answers to compare.
    pub fn has_both(&self) -> bool {
        !self.chosen.is_absent() && !self.rejected.is_absent()
    }

    /// [`Self::reward_gap`], where there are two answers.
    pub fn known_gap(&self, gap: Gap) -> Option<f64> {
        self.has_both().then(|| self.reward_gap(gap))
    }
}

/// Everything that is known of one row. A score that [`Passes`](super::Passes) does not ask for may be absent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowScores {
    pub policy_target: PairScores,
    pub policy_dominant: Option<PairScores>,
    pub reference_dominant: Option<PairScores>,
    pub reference_target: Option<PairScores>,
}

/// `log pi - log pi_ref` of both answers, sums over tokens; 0 for an absent one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogRatios {
    pub chosen: f64,
    pub rejected: f64,
}

impl LogRatios {
    /// `D`
    pub fn margin(&self) -> f64 {
        self.chosen - self.rejected
    }
}

impl RowScores {
    /// The policy against the reference, on the target pair.
    pub fn log_ratios(&self) -> Result<LogRatios> {
        let reference = self.reference_target.context("this loss needs the reference's scores of the target pair")?;
        let ratio = |policy: ResponseScore, reference: ResponseScore| policy.log_prob - reference.log_prob;
        Ok(LogRatios {
            chosen: ratio(self.policy_target.chosen, reference.chosen),
            rejected: ratio(self.policy_target.rejected, reference.rejected),
        })
    }
}

/// Totals over the whole optimizer batch, known before its first gradient is computed.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct BatchTotals {
    pub n_rows: usize,
    /// Target answers that are there.
    pub n_chosen: usize,
    pub n_rejected: usize,
    /// Their tokens.
    pub n_chosen_tokens: usize,
    pub n_rejected_tokens: usize,
    /// Mean of `log pi - log pi_ref` over the batch's mismatched answers, nats; 0 for a loss that does not read them.
    pub mismatched_log_ratio: f64,
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
        assert!(ResponseScore::from_tokens(&[]).is_absent());
    }
}
