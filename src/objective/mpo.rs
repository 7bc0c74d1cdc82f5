//! L1, the reward-gap term of MPO (arXiv 2505.16869): bring the policy's target-language gap to the dominant language's.
//!
//! ```text
//! L1 = mean over rows of ( beta * RG(policy, target pair) - RG(reference, dominant pair) )^2
//! ```
//!
//! With `gap_target = "policy"` (the ablation of the paper's Appendix H.3) the subtrahend is the policy's own dominant gap, held constant.
//! The loss is two-sided: a row whose beta * RG_t exceeds RG_d is pushed towards the rejected answer.

use super::{BatchTotals, Loss, PairScores, Passes, Reported, RowLoss, RowScores};
use crate::config::{Gap, GapTarget};
use anyhow::{Context, Result};

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mpo {
    pub beta: f64,
    pub gap: Gap,
    pub gap_target: GapTarget,
}

impl Loss for Mpo {
    fn passes(&self) -> Passes {
        let policy_dominant = self.gap_target == GapTarget::Policy;
        Passes { policy_dominant, reference_dominant: !policy_dominant, ..Passes::POLICY_PAIR }
    }

    fn row(&self, scores: &RowScores, totals: &BatchTotals) -> Result<RowLoss> {
        let dominant = self.dominant(scores).with_context(|| match self.gap_target {
            GapTarget::Reference => "MPO needs the reference's scores of the dominant pair",
            GapTarget::Policy => "MPO with `gap_target = \"policy\"` needs the policy's dominant pair",
        })?;
        let target = &scores.policy_target;
        let n_rows = totals.n_rows as f64;

        // (beta RG_t - RG_d)^2, and by the chain rule 2 (beta RG_t - RG_d) beta, times d RG_t / d log pi.
        let difference = self.beta * target.reward_gap(self.gap) - dominant.reward_gap(self.gap);
        let d_gap = 2.0 * difference * self.beta / n_rows;
        Ok(RowLoss {
            share: difference * difference / n_rows,
            d_chosen: d_gap * target.chosen.slope(self.gap),
            d_rejected: -d_gap * target.rejected.slope(self.gap),
        })
    }

    fn reported(&self) -> Reported {
        Reported { log_prob: self.gap, beta: Some(self.beta) }
    }

    /// `RG_d / beta`
    fn goal(&self, scores: &RowScores) -> Option<f64> {
        Some(self.dominant(scores)?.reward_gap(self.gap) / self.beta)
    }
}

impl Mpo {
    /// The pair whose gap is aimed at.
    fn dominant(&self, scores: &RowScores) -> Option<PairScores> {
        match self.gap_target {
            GapTarget::Reference => scores.reference_dominant,
            GapTarget::Policy => scores.policy_dominant,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::testing::{self, ONE_ROW};

    fn pair(chosen: f64, n_chosen: usize, rejected: f64, n_rejected: usize) -> PairScores {
        testing::pair((chosen, n_chosen), (rejected, n_rejected))
    }

    fn scores(target: PairScores) -> RowScores {
        RowScores {
            policy_target: target,
            policy_dominant: Some(pair(-3.0, 3, -9.0, 3)),
            reference_dominant: Some(pair(-2.0, 4, -6.0, 3)),
            reference_target: None,
        }
    }

    fn mpo(beta: f64, gap: Gap, gap_target: GapTarget) -> Mpo {
        Mpo { beta, gap, gap_target }
    }

    #[test]
    fn by_hand() {
        // RG_t = -4/2 + 8/4 = 0; RG_d = -2/4 + 6/3 = 1.5 under the reference, -3/3 + 9/3 = 2 under the policy.
        let row = scores(pair(-4.0, 2, -8.0, 4));
        let loss = mpo(1.0, Gap::LengthNormalized, GapTarget::Reference).row(&row, &ONE_ROW).unwrap();
        assert_eq!(loss, RowLoss { share: 2.25, d_chosen: -1.5, d_rejected: 0.75 });
        let loss = mpo(1.0, Gap::LengthNormalized, GapTarget::Policy).row(&row, &ONE_ROW).unwrap();
        assert_eq!(loss, RowLoss { share: 4.0, d_chosen: -2.0, d_rejected: 1.0 });
        // Sums: RG_t = 4, RG_d = 4; beta 1.5 gives (6 - 4)^2, and the batch has two rows.
        let loss = mpo(1.5, Gap::Sum, GapTarget::Reference).row(&row, &BatchTotals { n_rows: 2, ..ONE_ROW }).unwrap();
        assert_eq!(loss, RowLoss { share: 2.0, d_chosen: 3.0, d_rejected: -3.0 });
    }

    #[test]
    fn the_goal_has_no_loss() {
        let row = scores(pair(-4.0, 2, -8.0, 4));
        let objective = mpo(1.5, Gap::LengthNormalized, GapTarget::Reference);
        // RG_d / beta = 1, and RG_t = -2/2 + 8/4 = 1.
        assert_eq!(objective.goal(&row), Some(1.0));
        assert_eq!(objective.row(&scores(pair(-2.0, 2, -8.0, 4)), &ONE_ROW).unwrap().share, 0.0);
        assert_eq!(mpo(0.5, Gap::LengthNormalized, GapTarget::Policy).goal(&row), Some(4.0));
    }

    #[test]
    fn a_small_gap_raises_the_chosen_answer_and_a_large_one_lowers_it() {
        let objective = mpo(1.0, Gap::LengthNormalized, GapTarget::Reference);
        let small = objective.row(&scores(pair(-8.0, 4, -8.0, 4)), &ONE_ROW).unwrap();
        assert!(small.d_chosen < 0.0 && small.d_rejected > 0.0, "{small:?}");
        let large = objective.row(&scores(pair(-1.0, 4, -16.0, 4)), &ONE_ROW).unwrap();
        assert!(large.d_chosen > 0.0 && large.d_rejected < 0.0, "{large:?}");
        // A better chosen answer lowers the loss of a row that has not overshot.
        let better = objective.row(&scores(pair(-7.0, 4, -8.0, 4)), &ONE_ROW).unwrap();
        assert!(better.share < small.share);
    }

    #[test]
    fn swapping_chosen_and_rejected_everywhere_changes_nothing_but_the_signs() {
        let swap = |p: PairScores| PairScores { chosen: p.rejected, rejected: p.chosen };
        let row = scores(pair(-4.0, 3, -10.0, 5));
        let swapped = RowScores { policy_target: swap(row.policy_target), reference_dominant: row.reference_dominant.map(swap), ..row };
        let objective = mpo(1.5, Gap::LengthNormalized, GapTarget::Reference);
        let (a, b) = (objective.row(&row, &ONE_ROW).unwrap(), objective.row(&swapped, &ONE_ROW).unwrap());
        assert_eq!(a.share, b.share);
        assert_eq!((a.d_chosen, a.d_rejected), (b.d_rejected, b.d_chosen));
    }

    #[test]
    fn derivatives_agree_with_finite_differences() {
        let step = 1e-6;
        for gap in [Gap::LengthNormalized, Gap::Sum] {
            for gap_target in [GapTarget::Reference, GapTarget::Policy] {
                let objective = mpo(1.5, gap, gap_target);
                let share = |chosen, rejected| objective.row(&scores(pair(chosen, 7, rejected, 3)), &ONE_ROW).unwrap().share;
                let loss = objective.row(&scores(pair(-11.0, 7, -5.0, 3)), &ONE_ROW).unwrap();
                let d_chosen = (share(-11.0 + step, -5.0) - share(-11.0 - step, -5.0)) / (2.0 * step);
                let d_rejected = (share(-11.0, -5.0 + step) - share(-11.0, -5.0 - step)) / (2.0 * step);
                assert!((loss.d_chosen - d_chosen).abs() < 1e-6 * d_chosen.abs(), "{gap:?} {} {d_chosen}", loss.d_chosen);
                assert!((loss.d_rejected - d_rejected).abs() < 1e-6 * d_rejected.abs(), "{gap:?} {} {d_rejected}", loss.d_rejected);
            }
        }
    }

    #[test]
    fn a_missing_score_is_an_error_that_names_it() {
        let row = RowScores { reference_dominant: None, policy_dominant: None, ..scores(pair(-1.0, 1, -1.0, 1)) };
        let error = mpo(1.0, Gap::Sum, GapTarget::Reference).row(&row, &ONE_ROW).unwrap_err();
        assert!(error.to_string().contains("reference"), "{error}");
        let error = mpo(1.0, Gap::Sum, GapTarget::Policy).row(&row, &ONE_ROW).unwrap_err();
        assert!(error.to_string().contains("policy"), "{error}");
    }

    #[test]
    fn passes_name_what_row_reads() {
        let reads = |gap_target| mpo(1.0, Gap::Sum, gap_target).passes();
        assert!(reads(GapTarget::Reference).reference_dominant && !reads(GapTarget::Reference).policy_dominant);
        assert!(reads(GapTarget::Policy).policy_dominant && !reads(GapTarget::Policy).reference_dominant);
    }
}
