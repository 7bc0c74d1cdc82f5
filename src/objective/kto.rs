//! KTO: Kahneman-Tversky optimisation (Ethayarajh et al., arXiv 2402.01306, eq. 7 and 8): each answer is desirable or undesirable by itself.
//!
//! ```text
//! L = mean over the batch's answers of
//!       w_D (1 - sigmoid(beta (r - z)))     of a desirable answer (chosen)
//!       w_U (1 - sigmoid(beta (z - r)))     of an undesirable one (rejected)
//! r = log pi(y|x) - log pi_ref(y|x)
//! z = max(0, mean of log pi(y'|x) - log pi_ref(y'|x) over the batch's mismatched answers y')      no gradient through z
//! ```
//!
//! A mismatched answer is one to another prompt ([`data::mismatch`](crate::data::mismatch)): `z` estimates how far the policy as a whole
//! has moved. It is over the optimizer batch and known before its first gradient. A pair is one answer of either kind; a row of a label file
//! has only one.

use super::{Answers, BatchTotals, Loss, Passes, Reported, RowLoss, RowScores, sigmoid};
use crate::config::Gap;
use anyhow::Result;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Kto {
    pub beta: f64,
    /// `w_D`
    pub desirable_weight: f64,
    /// `w_U`
    pub undesirable_weight: f64,
}

impl Loss for Kto {
    fn passes(&self) -> Passes {
        Passes { policy_target: Answers::Any, mismatched: true, ..Passes::LOG_RATIOS }
    }

    fn row(&self, scores: &RowScores, totals: &BatchTotals) -> Result<RowLoss> {
        let ratios = scores.log_ratios()?;
        let z = totals.mismatched_log_ratio.max(0.0);
        let n_answers = (totals.n_chosen + totals.n_rejected) as f64;
        // The value of an answer by its advantage over z, and its slope; an absent answer has neither.
        let of = |is_absent: bool, weight: f64, advantage: f64| {
            let weight = if is_absent { 0.0 } else { weight / n_answers };
            let (lost, won) = (sigmoid(-self.beta * advantage), sigmoid(self.beta * advantage));
            (weight * lost, -weight * self.beta * lost * won)
        };
        let pair = &scores.policy_target;
        let (chosen, d_chosen) = of(pair.chosen.is_absent(), self.desirable_weight, ratios.chosen - z);
        let (rejected, d_rejected) = of(pair.rejected.is_absent(), self.undesirable_weight, z - ratios.rejected);
        Ok(RowLoss { share: chosen + rejected, d_chosen, d_rejected: -d_rejected })
    }

    fn reported(&self) -> Reported {
        Reported { log_prob: Gap::Sum, beta: Some(self.beta) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::testing::*;

    const KTO: Kto = Kto { beta: 0.5, desirable_weight: 1.0, undesirable_weight: 1.5 };

    fn with_z(mismatched_log_ratio: f64) -> BatchTotals {
        BatchTotals { mismatched_log_ratio, ..ONE_ROW }
    }

    #[test]
    fn by_hand() {
        // r_w = 1 and r_l = -2. With z = 0: sigmoid(-0.5) = 0.3775406687981454 and sigmoid(-1) = 0.2689414213699951, halved for two answers.
        let found = loss(&KTO, &row());
        assert_close(found.share, 0.5 * (0.3775406687981454 + 1.5 * 0.2689414213699951));
        assert_close(found.d_chosen, -0.5 * 0.5 * 0.3775406687981454 * (1.0 - 0.3775406687981454));
        assert_close(found.d_rejected, 0.5 * 1.5 * 0.5 * 0.2689414213699951 * (1.0 - 0.2689414213699951));
        // z = 1 makes the chosen answer worth nothing special: sigmoid(0) = 1/2; the other has beta (1 + 2) = 1.5.
        let found = KTO.row(&row(), &with_z(1.0)).unwrap();
        assert_close(found.share, 0.5 * (0.5 + 1.5 * 0.18242552380635635));
    }

    #[test]
    fn z_is_never_negative() {
        assert_eq!(KTO.row(&row(), &with_z(-3.0)).unwrap(), loss(&KTO, &row()));
    }

    #[test]
    fn an_absent_answer_has_no_share_and_no_gradient() {
        let totals = BatchTotals { n_rejected: 0, ..ONE_ROW };
        let mut desirable = row();
        desirable.policy_target.rejected = pair((0.0, 0), (0.0, 0)).rejected;
        desirable.reference_target = Some(pair((-5.0, 2), (0.0, 0)));
        let found = KTO.row(&desirable, &totals).unwrap();
        assert_close(found.share, 0.3775406687981454);
        assert_eq!(found.d_rejected, 0.0);
    }

    #[test]
    fn derivatives_agree_with_finite_differences() {
        check_derivatives(&KTO);
    }

    #[test]
    fn a_better_chosen_answer_lowers_the_loss() {
        check_direction(&KTO);
    }

    #[test]
    fn constants_cancel() {
        check_ratios_cancel(&KTO);
    }

    #[test]
    fn the_reference_is_needed() {
        check_needs_reference(&KTO);
        assert!(KTO.passes().mismatched);
    }
}
