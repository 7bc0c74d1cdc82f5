//! What the tests of every loss ask: derivatives, direction, and constants that must cancel.

// The module is compiled for tests only; so is this line, which says so to readers of the file.
#[cfg(test)]
use super::{BatchTotals, Loss, PairScores, ResponseScore, RowLoss, RowScores};

pub fn pair(chosen: (f64, usize), rejected: (f64, usize)) -> PairScores {
    let score = |(log_prob, n_tokens)| ResponseScore { log_prob, n_tokens };
    PairScores { chosen: score(chosen), rejected: score(rejected) }
}

/// A row with simple numbers: D = 3, avg_w = avg_l = -2.
pub fn row() -> RowScores {
    RowScores {
        policy_target: pair((-4.0, 2), (-8.0, 4)),
        policy_dominant: None,
        reference_dominant: None,
        reference_target: Some(pair((-5.0, 2), (-6.0, 4))),
    }
}

pub const ONE_ROW: BatchTotals =
    BatchTotals { n_rows: 1, n_chosen: 1, n_rejected: 1, n_chosen_tokens: 2, n_rejected_tokens: 4, mismatched_log_ratio: 0.0 };

/// `row` with other log-probabilities of the policy's target answers.
pub fn at(row: &RowScores, chosen: f64, rejected: f64) -> RowScores {
    let mut row = *row;
    (row.policy_target.chosen.log_prob, row.policy_target.rejected.log_prob) = (chosen, rejected);
    row
}

pub fn loss(loss: &dyn Loss, row: &RowScores) -> RowLoss {
    loss.row(row, &ONE_ROW).unwrap()
}

pub fn assert_close(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-12 * expected.abs().max(1.0), "{found} is not {expected}");
}

/// Derivatives against central differences, on rows from far below to far above the loss's centre and in a batch of several rows.
pub fn check_derivatives(loss: &dyn Loss) {
    let totals = BatchTotals { n_rows: 3, n_chosen: 3, n_rejected: 2, n_chosen_tokens: 11, mismatched_log_ratio: 0.7, ..ONE_ROW };
    let base = row();
    for (chosen, rejected) in [(-4.0, -8.0), (-11.0, -5.0), (-0.5, -9.0), (-30.0, -2.0), (-2.0, -40.0)] {
        let share = |chosen, rejected| loss.row(&at(&base, chosen, rejected), &totals).unwrap().share;
        let RowLoss { d_chosen, d_rejected, .. } = loss.row(&at(&base, chosen, rejected), &totals).unwrap();
        let step = 1e-5;
        let numeric_chosen = (share(chosen + step, rejected) - share(chosen - step, rejected)) / (2.0 * step);
        let numeric_rejected = (share(chosen, rejected + step) - share(chosen, rejected - step)) / (2.0 * step);
        for (name, found, numeric) in [("chosen", d_chosen, numeric_chosen), ("rejected", d_rejected, numeric_rejected)] {
            assert!(
                (found - numeric).abs() < 1e-7 * numeric.abs().max(1e-2),
                "{loss:?} {name} at {chosen}, {rejected}: {found}, {numeric}"
            );
        }
    }
}

/// A better chosen answer lowers the loss; a better rejected one raises it.
pub fn check_direction(loss: &dyn Loss) {
    let row = row();
    let here = self::loss(loss, &row);
    assert!(here.d_chosen < 0.0 && here.d_rejected > 0.0, "{here:?}");
    assert!(self::loss(loss, &at(&row, -3.9, -8.0)).share < here.share);
    assert!(self::loss(loss, &at(&row, -4.0, -7.9)).share > here.share);
}

/// The same constant in policy and reference, another one for each answer, changes nothing.
pub fn check_ratios_cancel(loss: &dyn Loss) {
    let here = self::loss(loss, &row());
    let mut moved = at(&row(), -4.0 + 1.5, -8.0 - 0.25);
    let reference = moved.reference_target.as_mut().unwrap();
    reference.chosen.log_prob += 1.5;
    reference.rejected.log_prob -= 0.25;
    assert_eq!(self::loss(loss, &moved), here);
}

/// A missing reference is an error that names it.
pub fn check_needs_reference(loss: &dyn Loss) {
    assert!(loss.passes().reference_target);
    let error = loss.row(&RowScores { reference_target: None, ..row() }, &ONE_ROW).unwrap_err().to_string();
    assert!(error.contains("the reference's scores of the target pair"), "{error}");
}
