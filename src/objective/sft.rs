//! SFT: supervised fine-tuning on the chosen answers. The rejected answer is not run.
//!
//! ```text
//! L = - sum over rows of log pi(y_w|x) / sum over rows of |y_w|
//! ```
//!
//! The mean is over the tokens of the optimizer batch, not over rows or micro-batches, as TRL's `SFTTrainer` has it: a token counts the same
//! in a short answer and in a long one.

use super::{Answers, BatchTotals, Loss, Passes, Reported, RowLoss, RowScores};
use crate::config::Gap;
use anyhow::Result;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sft;

impl Loss for Sft {
    fn passes(&self) -> Passes {
        Passes { policy_target: Answers::Chosen, ..Passes::POLICY_PAIR }
    }

    fn row(&self, scores: &RowScores, totals: &BatchTotals) -> Result<RowLoss> {
        let slope = -1.0 / totals.n_chosen_tokens as f64;
        Ok(RowLoss { share: slope * scores.policy_target.chosen.log_prob, d_chosen: slope, d_rejected: 0.0 })
    }

    fn reported(&self) -> Reported {
        Reported { log_prob: Gap::LengthNormalized, beta: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::testing::*;

    #[test]
    fn by_hand() {
        assert_eq!(loss(&Sft, &row()), RowLoss { share: 2.0, d_chosen: -0.5, d_rejected: 0.0 });
        // Two rows of 2 and 8 tokens: -( -4 - 6 ) / 10, whatever the rejected answers are.
        let totals = BatchTotals { n_rows: 2, n_chosen_tokens: 10, ..ONE_ROW };
        let shares = [-4.0, -6.0].map(|chosen| Sft.row(&at(&row(), chosen, f64::NAN), &totals).unwrap().share);
        assert_eq!(shares[0] + shares[1], 1.0);
    }

    #[test]
    fn derivatives_agree_with_finite_differences() {
        check_derivatives(&Sft);
    }

    #[test]
    fn neither_the_rejected_answer_nor_a_reference_is_asked_for() {
        assert_eq!(Sft.passes().policy_target, Answers::Chosen);
        assert!(!Sft.passes().reference());
    }
}
