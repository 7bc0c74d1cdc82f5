//! SimPO: simple preference optimisation with a reference-free reward (Meng et al., arXiv 2405.14734, eq. 6).
//!
//! ```text
//! L = mean over rows of l( beta (avg_w - avg_l) - gamma )
//! ```
//!
//! The margin is `gamma = gamma_beta_ratio * beta`, set as a ratio because that is how its authors tune it.

use super::{BatchTotals, Loss, Passes, Reported, RowLoss, RowScores, logistic_loss, sigmoid};
use crate::config::Gap;
use anyhow::Result;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Simpo {
    pub beta: f64,
    /// `gamma / beta`, nats a token.
    pub gamma_beta_ratio: f64,
}

impl Loss for Simpo {
    fn passes(&self) -> Passes {
        Passes::POLICY_PAIR
    }

    fn row(&self, scores: &RowScores, totals: &BatchTotals) -> Result<RowLoss> {
        let (pair, n_rows, gap) = (&scores.policy_target, totals.n_rows as f64, Gap::LengthNormalized);
        let z = self.beta * (pair.reward_gap(gap) - self.gamma_beta_ratio);
        let slope = -self.beta * sigmoid(-z) / n_rows;
        Ok(RowLoss {
            share: logistic_loss(z) / n_rows,
            d_chosen: slope * pair.chosen.slope(gap),
            d_rejected: -slope * pair.rejected.slope(gap),
        })
    }

    fn reported(&self) -> Reported {
        Reported { log_prob: Gap::LengthNormalized, beta: Some(self.beta) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::testing::*;

    const SIMPO: Simpo = Simpo { beta: 2.0, gamma_beta_ratio: 0.5 };

    #[test]
    fn by_hand() {
        // avg_w = avg_l = -2, so z = -gamma = -1: l(-1) = 1.3132616875182228, sigmoid(1) = 0.7310585786300049.
        let found = loss(&SIMPO, &row());
        assert_close(found.share, 1.3132616875182228);
        assert_close(found.d_chosen, -2.0 * 0.7310585786300049 / 2.0);
        assert_close(found.d_rejected, 2.0 * 0.7310585786300049 / 4.0);
    }

    #[test]
    fn derivatives_agree_with_finite_differences() {
        check_derivatives(&SIMPO);
    }

    #[test]
    fn a_better_chosen_answer_lowers_the_loss() {
        check_direction(&SIMPO);
    }

    #[test]
    fn what_both_answers_gain_a_token_cancels() {
        assert_eq!(loss(&SIMPO, &at(&row(), -4.0 + 2.0 * 0.5, -8.0 + 4.0 * 0.5)), loss(&SIMPO, &row()));
    }

    #[test]
    fn no_reference_is_asked_for() {
        assert!(!SIMPO.passes().reference());
    }
}
