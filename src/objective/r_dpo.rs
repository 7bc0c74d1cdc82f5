//! R-DPO: length-regularised DPO (Park et al., arXiv 2403.19159, eq. 9).
//!
//! ```text
//! L = mean over rows of l( beta D + alpha (|y_w| - |y_l|) )
//! ```
//!
//! A chosen answer that is longer already has a part of its margin, so the pair teaches less: what it would teach is length. `alpha` is
//! `objective.length_weight`, in nats a token; lengths count the tokens that are scored. TRL has no such loss (its `ld_alpha` is another).

use super::{BatchTotals, Loss, Passes, Reported, RowLoss, RowScores, logistic_loss, sigmoid};
use crate::config::Gap;
use anyhow::Result;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RDpo {
    pub beta: f64,
    /// `alpha`
    pub length_weight: f64,
}

impl Loss for RDpo {
    fn passes(&self) -> Passes {
        Passes::LOG_RATIOS
    }

    fn row(&self, scores: &RowScores, totals: &BatchTotals) -> Result<RowLoss> {
        let (pair, n_rows) = (&scores.policy_target, totals.n_rows as f64);
        let longer = pair.chosen.n_tokens as f64 - pair.rejected.n_tokens as f64;
        let z = self.beta * scores.log_ratios()?.margin() + self.length_weight * longer;
        let slope = -self.beta * sigmoid(-z) / n_rows;
        Ok(RowLoss { share: logistic_loss(z) / n_rows, d_chosen: slope, d_rejected: -slope })
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

    const R_DPO: RDpo = RDpo { beta: 0.5, length_weight: 0.25 };

    #[test]
    fn by_hand() {
        // 0.5 * 3 + 0.25 * (2 - 4) = 1: l(1) = 0.3132616875182228, sigmoid(-1) = 0.2689414213699951.
        let found = loss(&R_DPO, &row());
        assert_close(found.share, 0.3132616875182228);
        assert_close(found.d_chosen, -0.5 * 0.2689414213699951);
    }

    #[test]
    fn a_longer_chosen_answer_has_a_lower_loss_than_under_dpo() {
        let dpo = Dpo { beta: 0.5, label_smoothing: 0.0 };
        let mut longer = row();
        longer.policy_target.chosen.n_tokens = 9;
        assert!(loss(&R_DPO, &longer).share < loss(&dpo, &longer).share);
        assert!(loss(&R_DPO, &row()).share > loss(&dpo, &row()).share, "a shorter one has a higher loss");
        assert_eq!(loss(&RDpo { length_weight: 0.0, ..R_DPO }, &longer), loss(&dpo, &longer));
    }

    #[test]
    fn derivatives_agree_with_finite_differences() {
        check_derivatives(&R_DPO);
    }

    #[test]
    fn a_better_chosen_answer_lowers_the_loss() {
        check_direction(&R_DPO);
    }

    #[test]
    fn constants_cancel() {
        check_ratios_cancel(&R_DPO);
    }

    #[test]
    fn the_reference_is_needed() {
        check_needs_reference(&R_DPO);
    }
}
