//! ORPO: odds ratio preference optimisation (Hong et al., arXiv 2403.07691, eq. 6 and 7): fine-tuning and preference in one term each.
//!
//! ```text
//! L = mean over rows of  - avg_w + lambda l( log odds(y_w|x) - log odds(y_l|x) )
//! log odds = avg - log(1 - exp(avg))
//! ```
//!
//! `lambda` is `objective.beta`, as in TRL. Averages over the answer's tokens; TRL takes the first term over the prompt as well.

use super::{BatchTotals, Loss, Passes, Reported, RowLoss, RowScores, logistic_loss};
use crate::config::Gap;
use anyhow::Result;

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Orpo {
    /// `lambda`
    pub beta: f64,
}

impl Loss for Orpo {
    fn passes(&self) -> Passes {
        Passes::POLICY_PAIR
    }

    fn row(&self, scores: &RowScores, totals: &BatchTotals) -> Result<RowLoss> {
        let (pair, n_rows) = (&scores.policy_target, totals.n_rows as f64);
        let (chosen, rejected) = (pair.chosen.per_token(), pair.rejected.per_token());
        let log_odds = chosen - rejected - (log_complement(chosen) - log_complement(rejected));
        let loss = self.beta * logistic_loss(log_odds) - chosen;

        // With p = exp(avg_w) and q = exp(avg_l): sigmoid(-log_odds) = q (1 - p) / (p (1 - q) + q (1 - p)), and d log_odds / d avg_w is
        // 1 / (1 - p). Their product keeps its value where p comes near 1 and the two factors go to 0 and to infinity.
        let (rest_p, rest_q) = (-chosen.exp_m1(), -rejected.exp_m1());
        let d_chosen = 1.0 / ((chosen - rejected).exp() * rest_q + rest_p);
        let d_rejected = d_chosen * rest_p / rest_q;
        let per_row = 1.0 / n_rows;
        Ok(RowLoss {
            share: loss * per_row,
            d_chosen: per_row * (-1.0 - self.beta * d_chosen) * pair.chosen.slope(Gap::LengthNormalized),
            d_rejected: per_row * self.beta * d_rejected * pair.rejected.slope(Gap::LengthNormalized),
        })
    }

    fn reported(&self) -> Reported {
        Reported { log_prob: Gap::LengthNormalized, beta: Some(self.beta) }
    }
}

/// `log(1 - exp(x))` for `x < 0`, exact at both ends.
fn log_complement(x: f64) -> f64 {
    if x > -std::f64::consts::LN_2 { (-x.exp_m1()).ln() } else { (-x.exp()).ln_1p() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::testing::*;

    const ORPO: Orpo = Orpo { beta: 0.5 };

    #[test]
    fn by_hand() {
        // p = 1/2 and q = 1/4: odds 1 and 1/3, so l(ln 3) = ln(4/3), and -avg_w = ln 2.
        let row = at(&row(), 2.0 * 0.5f64.ln(), 4.0 * 0.25f64.ln());
        let found = loss(&ORPO, &row);
        assert_close(found.share, 2f64.ln() + 0.5 * (4f64 / 3.0).ln());
        // sigmoid(-ln 3) = 1/4; d log-odds is 1/(1-p) = 2 and 1/(1-q) = 4/3 a nat of the average.
        assert_close(found.d_chosen, (-1.0 - 0.5 * 0.25 * 2.0) / 2.0);
        assert_close(found.d_rejected, 0.5 * 0.25 * (4.0 / 3.0) / 4.0);
    }

    #[test]
    fn derivatives_agree_with_finite_differences() {
        check_derivatives(&ORPO);
    }

    #[test]
    fn a_better_chosen_answer_lowers_the_loss() {
        check_direction(&ORPO);
    }

    #[test]
    fn equal_answers_have_even_odds() {
        let found = loss(&ORPO, &at(&row(), -2.0, -4.0));
        assert_close(found.share, 1.0 + 0.5 * 2f64.ln());
    }

    #[test]
    fn an_answer_that_is_certain_or_hopeless_keeps_a_finite_gradient() {
        for chosen in [-1e-14, -1e-9, -1200.0] {
            let found = loss(&ORPO, &at(&row(), chosen, -1300.0));
            assert!([found.share, found.d_chosen, found.d_rejected].iter().all(|value| value.is_finite()), "{chosen}: {found:?}");
        }
        assert_close(log_complement(-1e-20), (1e-20f64).ln());
        assert_close(log_complement(-800.0), 0.0);
    }

    #[test]
    fn no_reference_is_asked_for() {
        assert!(!ORPO.passes().reference());
    }
}
