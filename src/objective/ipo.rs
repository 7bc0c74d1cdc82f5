//! IPO: identity preference optimisation (Azar et al., arXiv 2310.12036, eq. 17).
//!
//! ```text
//! L = mean over rows of ( avg D - 1 / (2 beta) )^2      avg D: each answer's log-ratio divided by its own length
//! ```
//!
//! `beta` is the paper's tau. The printed formula has sums where TRL has means over tokens, which its authors confirmed to the TRL project
//! as what their results were made with: `length_normalized = true`, the default.

use super::{BatchTotals, Loss, Passes, Reported, RowLoss, RowScores};
use crate::config::Gap;
use anyhow::Result;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ipo {
    pub beta: f64,
    pub length_normalized: bool,
}

impl Loss for Ipo {
    fn passes(&self) -> Passes {
        Passes::LOG_RATIOS
    }

    fn row(&self, scores: &RowScores, totals: &BatchTotals) -> Result<RowLoss> {
        let (ratios, n_rows) = (scores.log_ratios()?, totals.n_rows as f64);
        let gap = if self.length_normalized { Gap::LengthNormalized } else { Gap::Sum };
        let (chosen, rejected) = (scores.policy_target.chosen.slope(gap), scores.policy_target.rejected.slope(gap));
        let difference = ratios.chosen * chosen - ratios.rejected * rejected - 1.0 / (2.0 * self.beta);
        let slope = 2.0 * difference / n_rows;
        Ok(RowLoss { share: difference * difference / n_rows, d_chosen: slope * chosen, d_rejected: -slope * rejected })
    }

    fn reported(&self) -> Reported {
        Reported { log_prob: Gap::Sum, beta: Some(self.beta) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::testing::*;

    fn ipo(length_normalized: bool) -> Ipo {
        Ipo { beta: 0.125, length_normalized }
    }

    #[test]
    fn by_hand() {
        // The ratios are 1 (2 tokens) and -2 (4 tokens); the margin aimed at is 4.
        assert_eq!(loss(&ipo(true), &row()), RowLoss { share: 9.0, d_chosen: -3.0, d_rejected: 1.5 });
        assert_eq!(loss(&ipo(false), &row()), RowLoss { share: 1.0, d_chosen: -2.0, d_rejected: 2.0 });
    }

    #[test]
    fn a_margin_beyond_the_one_aimed_at_is_pulled_back() {
        check_direction(&ipo(true));
        check_direction(&ipo(false));
        let beyond = loss(&ipo(false), &at(&row(), -4.0, -20.0));
        assert!(beyond.d_chosen > 0.0 && beyond.d_rejected < 0.0, "{beyond:?}");
    }

    #[test]
    fn derivatives_agree_with_finite_differences() {
        check_derivatives(&ipo(true));
        check_derivatives(&ipo(false));
    }

    #[test]
    fn constants_cancel() {
        check_ratios_cancel(&ipo(true));
        check_ratios_cancel(&ipo(false));
    }

    #[test]
    fn the_reference_is_needed() {
        check_needs_reference(&ipo(true));
    }
}
