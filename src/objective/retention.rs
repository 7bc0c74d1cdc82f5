//! L2, the retention term: hold the policy's dominant-language representation where the reference has it (arXiv 2505.16869).
//!
//! ```text
//! L2 = mean over the 2B dominant sequences (chosen and rejected) of B rows of || h(policy) - h(reference) ||^2
//! ```
//!
//! h is the final-norm hidden state, pooled over some positions of the sequence; every [`Pooling`](crate::config::Pooling) is a mean over a
//! set of rows, and only the set differs ([`pooled_rows`](crate::data::batch::SequenceSpan::pooled_rows), `ops::pool`). [`Reduction::Sum`] is the formula as printed, [`Reduction::Mean`] divides by the hidden size, as the released code does.
//! The `kl` kind compares next-token distributions instead (`ops::divergence`): of a sequence, the mean over its response tokens.

use crate::config::Reduction;

/// `|| h(policy) - h(reference) ||^2`, divided by the hidden size for [`Reduction::Mean`]. One sequence's part of L2, before the mean over sequences.
pub fn distance(policy_D: &[f32], reference_D: &[f32], reduction: Reduction) -> f64 {
    let squares = policy_D.iter().zip(reference_D).map(|(&p, &r)| (f64::from(p) - f64::from(r)).powi(2));
    squares.sum::<f64>() / divisor(policy_D.len(), reduction)
}

/// d [`distance`] / d policy, times `scale` (the weight of the sequence in the loss).
pub fn distance_backward(policy_D: &[f32], reference_D: &[f32], reduction: Reduction, scale: f64) -> Vec<f64> {
    let factor = 2.0 * scale / divisor(policy_D.len(), reduction);
    policy_D.iter().zip(reference_D).map(|(&p, &r)| factor * (f64::from(p) - f64::from(r))).collect()
}

fn divisor(hidden_size: usize, reduction: Reduction) -> f64 {
    match reduction {
        Reduction::Sum => 1.0,
        Reduction::Mean => hidden_size as f64,
    }
}

/// Weight of one dominant sequence in L2 that `n_sharing` of the batch's `n_rows` rows share: it counts once for each of them.
pub fn sequence_weight(n_sharing: usize, n_rows: usize) -> f64 {
    n_sharing as f64 / (2 * n_rows) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_by_hand() {
        let (policy, reference) = ([1.0, -2.0, 0.0, 3.0], [0.0, 2.0, 0.0, 3.0]);
        assert_eq!(distance(&policy, &reference, Reduction::Sum), 17.0);
        assert_eq!(distance(&policy, &reference, Reduction::Mean), 4.25);
        assert_eq!(distance_backward(&policy, &reference, Reduction::Sum, 1.0), [2.0, -8.0, 0.0, 0.0]);
        assert_eq!(distance_backward(&policy, &reference, Reduction::Mean, 2.0), [1.0, -4.0, 0.0, 0.0]);
        assert_eq!(distance(&policy, &policy, Reduction::Sum), 0.0);
        assert!(distance_backward(&policy, &policy, Reduction::Sum, 1.0).iter().all(|&d| d == 0.0));
    }

    #[test]
    fn a_shared_sequence_counts_once_for_each_row() {
        // Three rows, two of which share their pair: 2 * (2/6) + 2 * (1/6) = 1.
        assert_eq!(2.0 * sequence_weight(2, 3) + 2.0 * sequence_weight(1, 3), 1.0);
    }

    #[test]
    fn distance_derivative_agrees_with_finite_differences() {
        let (policy, reference) = ([0.5f32, -1.0, 2.0], [1.5f32, 0.5, -0.5]);
        for reduction in [Reduction::Sum, Reduction::Mean] {
            let gradient = distance_backward(&policy, &reference, reduction, 0.25);
            for i in 0..3 {
                let shifted = |by: f32| {
                    let mut state = policy;
                    state[i] += by;
                    0.25 * distance(&state, &reference, reduction)
                };
                let step = 1.0 / 1024.0;
                let numeric = (shifted(step) - shifted(-step)) / (2.0 * f64::from(step));
                assert!((gradient[i] - numeric).abs() < 1e-9, "{reduction:?} {i}: {} {numeric}", gradient[i]);
            }
        }
    }
}
