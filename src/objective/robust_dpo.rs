//! Robust DPO (rDPO): DPO without bias where a known share of the labels is flipped (Chowdhury et al., arXiv 2403.00409, eq. 12).
//!
//! ```text
//! L = mean over rows of [ (1 - e) l(beta D) - e l(-beta D) ] / (1 - 2e)      e < 1/2
//! ```
//!
//! The expectation over flips is DPO's loss on clean labels; a single row's value may be negative, and so may a batch's.

use super::{BatchTotals, Loss, Passes, Reported, RowLoss, RowScores, logistic_loss, sigmoid};
use crate::config::Gap;
use anyhow::Result;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RobustDpo {
    pub beta: f64,
    /// `e`: the share of flipped labels, below one half.
    pub label_smoothing: f64,
}

impl Loss for RobustDpo {
    fn passes(&self) -> Passes {
        Passes::LOG_RATIOS
    }

    fn row(&self, scores: &RowScores, totals: &BatchTotals) -> Result<RowLoss> {
        let e = self.label_smoothing;
        let z = self.beta * scores.log_ratios()?.margin();
        let scale = 1.0 / ((1.0 - 2.0 * e) * totals.n_rows as f64);
        let loss = (1.0 - e) * logistic_loss(z) - e * logistic_loss(-z);
        let slope = -self.beta * ((1.0 - e) * sigmoid(-z) + e * sigmoid(z)) * scale;
        Ok(RowLoss { share: loss * scale, d_chosen: slope, d_rejected: -slope })
    }

    fn reported(&self) -> Reported {
        Reported { log_prob: Gap::Sum, beta: Some(self.beta) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::dpo::Dpo;
    use crate::objective::testing::*;

    fn robust(label_smoothing: f64) -> RobustDpo {
        RobustDpo { beta: 0.5, label_smoothing }
    }

    #[test]
    fn by_hand() {
        // z = 1.5 as for DPO.
        assert_close(loss(&robust(0.1), &row()).share, (0.9 * 0.20141327798275246 - 0.1 * 1.7014132779827524) / 0.8);
        assert!(loss(&robust(0.25), &at(&row(), -1.0, -20.0)).share < 0.0, "it may be negative");
        assert_eq!(loss(&robust(0.0), &row()), loss(&Dpo { beta: 0.5, label_smoothing: 0.0 }, &row()));
    }

    #[test]
    fn the_mean_over_flipped_labels_is_the_clean_loss() {
        let e = 0.2;
        let ratio = |d: f64| at(&row(), -5.0 + d, -6.0);
        let mean = (1.0 - e) * loss(&robust(e), &ratio(3.0)).share + e * loss(&robust(e), &ratio(-3.0)).share;
        assert_close(mean, loss(&robust(0.0), &ratio(3.0)).share);
    }

    #[test]
    fn derivatives_agree_with_finite_differences() {
        check_derivatives(&robust(0.1));
    }

    #[test]
    fn a_better_chosen_answer_lowers_the_loss() {
        check_direction(&robust(0.1));
    }

    #[test]
    fn constants_cancel() {
        check_ratios_cancel(&robust(0.1));
    }

    #[test]
    fn the_reference_is_needed() {
        check_needs_reference(&robust(0.1));
    }
}
