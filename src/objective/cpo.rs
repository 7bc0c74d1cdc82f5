//! CPO: contrastive preference optimisation (Xu et al., arXiv 2401.08417): DPO without a reference, held to the chosen answers.
//!
//! ```text
//! L = mean over rows of l( beta (log pi(y_w|x) - log pi(y_l|x)) )  +  alpha NLL
//! NLL = - sum over rows of log pi(y_w|x) / sum over rows of |y_w|
//! ```
//!
//! Sums over tokens in the first term, the mean over the batch's chosen tokens in the second, as in TRL. `alpha` is `objective.nll_weight`.

use super::{BatchTotals, Loss, Passes, Reported, RowLoss, RowScores, logistic_loss, sigmoid};
use crate::config::Gap;
use anyhow::Result;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cpo {
    pub beta: f64,
    /// `alpha`
    pub nll_weight: f64,
}

impl Loss for Cpo {
    fn passes(&self) -> Passes {
        Passes::POLICY_PAIR
    }

    fn row(&self, scores: &RowScores, totals: &BatchTotals) -> Result<RowLoss> {
        let (pair, n_rows) = (&scores.policy_target, totals.n_rows as f64);
        let z = self.beta * pair.reward_gap(Gap::Sum);
        let slope = -self.beta * sigmoid(-z) / n_rows;
        let nll_slope = -self.nll_weight / totals.n_chosen_tokens as f64;
        Ok(RowLoss { share: logistic_loss(z) / n_rows + nll_slope * pair.chosen.log_prob, d_chosen: slope + nll_slope, d_rejected: -slope })
    }

    fn reported(&self) -> Reported {
        Reported { log_prob: Gap::Sum, beta: Some(self.beta) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::testing::*;

    const CPO: Cpo = Cpo { beta: 0.25, nll_weight: 1.0 };

    #[test]
    fn by_hand() {
        // 0.25 (-4 + 8) = 1: l(1) = 0.3132616875182228, and 4 nats over 2 tokens.
        let found = loss(&CPO, &row());
        assert_close(found.share, 0.3132616875182228 + 2.0);
        assert_close(found.d_chosen, -0.25 * 0.2689414213699951 - 0.5);
        assert_close(found.d_rejected, 0.25 * 0.2689414213699951);
        // In a batch of two rows and 10 chosen tokens.
        let totals = BatchTotals { n_rows: 2, n_chosen_tokens: 10, ..ONE_ROW };
        assert_close(CPO.row(&row(), &totals).unwrap().share, 0.5 * 0.3132616875182228 + 0.4);
    }

    #[test]
    fn derivatives_agree_with_finite_differences() {
        check_derivatives(&CPO);
    }

    #[test]
    fn a_better_chosen_answer_lowers_the_loss() {
        check_direction(&CPO);
    }

    #[test]
    fn without_the_second_term_what_both_answers_gain_cancels() {
        let contrast = Cpo { nll_weight: 0.0, ..CPO };
        assert_eq!(loss(&contrast, &at(&row(), -3.0, -7.0)), loss(&contrast, &row()));
        assert!(loss(&CPO, &at(&row(), -3.0, -7.0)).share < loss(&CPO, &row()).share);
    }

    #[test]
    fn no_reference_is_asked_for() {
        assert!(!CPO.passes().reference());
        let without = RowScores { reference_target: None, ..row() };
        assert_eq!(loss(&CPO, &without), loss(&CPO, &row()));
    }
}
