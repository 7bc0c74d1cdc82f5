//! DPO: direct preference optimisation (Rafailov et al., arXiv 2305.18290, eq. 7), with the label smoothing of its authors' code.
//!
//! ```text
//! L = mean over rows of (1 - e) l(beta D) + e l(-beta D)
//! ```
//!
//! `e` is the share of pairs whose labels are believed to be the wrong way round (conservative DPO); 0 is the paper. Sums over tokens.
//! TRL 1.16 reads no `label_smoothing` under its `sigmoid` loss.

use super::{BatchTotals, Loss, Passes, Reported, RowLoss, RowScores, logistic_loss, sigmoid};
use crate::config::Gap;
use anyhow::Result;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dpo {
    pub beta: f64,
    /// `e`
    pub label_smoothing: f64,
}

impl Loss for Dpo {
    fn passes(&self) -> Passes {
        Passes::LOG_RATIOS
    }

    fn row(&self, scores: &RowScores, totals: &BatchTotals) -> Result<RowLoss> {
        let (n_rows, e) = (totals.n_rows as f64, self.label_smoothing);
        let z = self.beta * scores.log_ratios()?.margin();
        let loss = (1.0 - e) * logistic_loss(z) + e * logistic_loss(-z);
        let slope = self.beta * (e * sigmoid(z) - (1.0 - e) * sigmoid(-z)) / n_rows;
        Ok(RowLoss { share: loss / n_rows, d_chosen: slope, d_rejected: -slope })
    }

    fn reported(&self) -> Reported {
        Reported { log_prob: Gap::Sum, beta: Some(self.beta) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::testing::*;

    fn dpo(label_smoothing: f64) -> Dpo {
        Dpo { beta: 0.5, label_smoothing }
    }

    #[test]
    fn by_hand() {
        // D = (-4 + 5) - (-8 + 6) = 3, so z = 1.5: l(1.5) = 0.20141327798275246, l(-1.5) = 1.7014132779827524.
        let plain = loss(&dpo(0.0), &row());
        assert_close(plain.share, 0.20141327798275246);
        assert_close(plain.d_chosen, -0.5 * 0.18242552380635635);
        assert_eq!(plain.d_rejected, -plain.d_chosen);
        assert_close(loss(&dpo(0.1), &row()).share, 0.9 * 0.20141327798275246 + 0.1 * 1.7014132779827524);
        // A policy that is the reference has l(0) = ln 2.
        assert_eq!(loss(&dpo(0.0), &at(&row(), -5.0, -6.0)).share, 2f64.ln());
    }

    #[test]
    fn derivatives_agree_with_finite_differences() {
        check_derivatives(&dpo(0.0));
        check_derivatives(&dpo(0.2));
    }

    #[test]
    fn a_better_chosen_answer_lowers_the_loss() {
        check_direction(&dpo(0.0));
        check_direction(&dpo(0.1));
    }

    #[test]
    fn constants_cancel() {
        check_ratios_cancel(&dpo(0.1));
        // D alone counts: raising both answers by the same amount changes nothing either.
        assert_eq!(loss(&dpo(0.1), &at(&row(), -3.0, -7.0)), loss(&dpo(0.1), &row()));
    }

    #[test]
    fn the_reference_is_needed() {
        check_needs_reference(&dpo(0.0));
    }
}
