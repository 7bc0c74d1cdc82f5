//! The head: log-probabilities of given tokens, `log softmax(x Wᵀ)[token]`, a chunk of rows at a time.
//!
//! A `[rows, V]` tensor of a whole batch never exists: a chunk's logits are made, reduced to one number a row and dropped, and made again
//! in the backward, `dlogits = g (onehot - softmax)`. Gemma caps logits: `cap * tanh(logit / cap)`.

use super::gemm::{Matrix, Write, multiply_in};
use super::linear::product;
use super::real::{max, sum_exp, vectorized};
use super::{Real, read, update};
use crate::config::ComputeDtype;
use anyhow::{Result, ensure};
use candle_core::Tensor;
use rayon::prelude::*;

/// Logits that exist at a time (64 MiB of f32).
const LOGITS_PER_CHUNK: usize = 16 * 1024 * 1024;

/// A token whose log-probability is wanted, and the row of the hidden states that predicts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenTarget {
    pub row: u32,
    pub token: u32,
}

/// How logits are made from hidden states.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Head {
    pub soft_cap: Option<f64>,
    pub compute: ComputeDtype,
}

impl Head {
    /// `hidden [N, D]`, `weight [V, D]`, M targets to M log-probabilities.
    pub fn log_probs(&self, hidden: &Tensor, weight: &Tensor, targets: &[TokenTarget]) -> Result<Vec<f32>> {
        self.log_probs_in_chunks(hidden, weight, targets, LOGITS_PER_CHUNK)
    }

    fn log_probs_in_chunks(&self, hidden: &Tensor, weight: &Tensor, targets: &[TokenTarget], chunk: usize) -> Result<Vec<f32>> {
        let (n_vocab, width) = (weight.dim(0)?, weight.dim(1)?);
        check(targets, hidden.dim(0)?, n_vocab)?;
        let (hidden, weight) = (read(hidden)?, read(weight)?);
        let mut log_probs = Vec::with_capacity(targets.len());
        for chunk in targets.chunks((chunk / n_vocab).max(1)) {
            let x = gather(&hidden, width, chunk);
            let mut logits = product(&x, &weight, width, self.compute);
            let rows = logits.par_chunks_mut(n_vocab).zip(chunk);
            log_probs.par_extend(rows.map(|(row, target)| vectorized(|| log_prob(row, target.token, self.soft_cap))));
        }
        Ok(log_probs)
    }

    /// Adds to `d_hidden [N, D]` and, unless frozen, to `weight_gradient [V, D]`, from the gradients of the M log-probabilities.
    pub fn backward(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        targets: &[TokenTarget],
        gradients: &[f32],
        d_hidden: &Tensor,
        weight_gradient: Option<&Tensor>,
    ) -> Result<()> {
        self.backward_in_chunks(hidden, weight, targets, gradients, d_hidden, weight_gradient, LOGITS_PER_CHUNK)
    }

    #[allow(clippy::too_many_arguments)] // four tensors, the targets with their gradients, and the chunk
    fn backward_in_chunks(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        targets: &[TokenTarget],
        gradients: &[f32],
        d_hidden: &Tensor,
        weight_gradient: Option<&Tensor>,
        chunk: usize,
    ) -> Result<()> {
        let (n_vocab, width) = (weight.dim(0)?, weight.dim(1)?);
        check(targets, hidden.dim(0)?, n_vocab)?;
        ensure!(targets.len() == gradients.len(), "{} targets but {} gradients", targets.len(), gradients.len());
        let (hidden, weight) = (read(hidden)?, read(weight)?);
        let rows_per_chunk = (chunk / n_vocab).max(1);
        for (targets, gradients) in targets.chunks(rows_per_chunk).zip(gradients.chunks(rows_per_chunk)) {
            let x = gather(&hidden, width, targets);
            let mut logits = product(&x, &weight, width, self.compute);
            let rows = logits.par_chunks_mut(n_vocab).zip(targets).zip(gradients);
            rows.for_each(|((row, target), &g)| vectorized(|| log_prob_backward(row, target.token, g, self.soft_cap)));
            let d_logits = Matrix::new(&logits, n_vocab);
            let mut dx = vec![0.0; x.len()];
            multiply_in(self.compute, &mut dx, width, Write::Overwrite, 1.0, d_logits, Matrix::new(&weight, width));
            update(d_hidden, |d_hidden| {
                for (dx, target) in dx.chunks(width).zip(targets) {
                    d_hidden[target.row as usize * width..][..width].iter_mut().zip(dx).for_each(|(a, b)| *a += b);
                }
            })?;
            if let Some(weight_gradient) = weight_gradient {
                update(weight_gradient, |out| {
                    multiply_in(self.compute, out, width, Write::Add, 1.0, d_logits.transposed(), Matrix::new(&x, width))
                })?;
            }
        }
        Ok(())
    }

    /// Raw logits (capped) of every row of `hidden [M, D]`, `[M, V]`: for the few rows that generation and a KL term look at.
    pub fn logits(&self, hidden: &[f32], weight: &Tensor) -> Result<Vec<f32>> {
        let width = weight.dim(1)?;
        let weight = read(weight)?;
        let mut logits = product(hidden, &weight, width, self.compute);
        logits.par_chunks_mut(16 * 1024).for_each(|logits| vectorized(|| cap_logits(logits, self.soft_cap)));
        Ok(logits)
    }

    /// The backward of [`Head::logits`]: from what it returned, `logits [M, V]`, and its gradient to `d_hidden [M, D]`. Adds to
    /// `weight_gradient [V, D]` unless the head is frozen.
    pub fn logits_backward(
        &self,
        hidden: &[f32],
        weight: &Tensor,
        logits: &[f32],
        mut d_logits: Vec<f32>,
        weight_gradient: Option<&Tensor>,
    ) -> Result<Vec<f32>> {
        let (n_vocab, width) = (weight.dim(0)?, weight.dim(1)?);
        if let Some(cap) = self.soft_cap {
            let inverse = (1.0 / cap) as f32;
            d_logits.par_iter_mut().zip(logits).with_min_len(16 * 1024).for_each(|(d, &logit)| {
                let capped = logit * inverse;
                *d *= 1.0 - capped * capped;
            });
        }
        let weight = read(weight)?;
        let d_logits = Matrix::new(&d_logits, n_vocab);
        let mut dx = vec![0.0; hidden.len()];
        multiply_in(self.compute, &mut dx, width, Write::Overwrite, 1.0, d_logits, Matrix::new(&weight, width));
        if let Some(weight_gradient) = weight_gradient {
            update(weight_gradient, |out| {
                multiply_in(self.compute, out, width, Write::Add, 1.0, d_logits.transposed(), Matrix::new(hidden, width))
            })?;
        }
        Ok(dx)
    }
}

fn check(targets: &[TokenTarget], n_rows: usize, n_vocab: usize) -> Result<()> {
    match targets.iter().find(|t| t.row as usize >= n_rows || t.token as usize >= n_vocab) {
        Some(t) => anyhow::bail!("token {} at row {} is outside {n_rows} rows and a vocabulary of {n_vocab}", t.token, t.row),
        None => Ok(()),
    }
}

fn gather(hidden: &[f32], width: usize, targets: &[TokenTarget]) -> Vec<f32> {
    targets.iter().flat_map(|t| &hidden[t.row as usize * width..][..width]).copied().collect()
}

#[inline(always)]
fn cap_logits<T: Real>(logits: &mut [T], soft_cap: Option<f64>) {
    if let Some(cap) = soft_cap {
        let (cap, inverse) = (T::of(cap), T::of(1.0 / cap));
        logits.iter_mut().for_each(|l| *l = cap * Real::tanh(*l * inverse));
    }
}

/// The logarithm of the sum of exponentials.
#[inline(always)]
fn log_sum_exp<T: Real>(logits: &[T]) -> T {
    let largest = max(logits);
    largest + Real::ln(sum_exp(logits, largest))
}

#[inline(always)]
fn log_prob<T: Real>(logits: &mut [T], token: u32, soft_cap: Option<f64>) -> T {
    cap_logits(logits, soft_cap);
    logits[token as usize] - log_sum_exp(logits)
}

/// Turns `logits` into `g (onehot - softmax)`, times the cap's slope `1 - (capped / cap)²`: the gradient of the uncapped logits.
#[inline(always)]
fn log_prob_backward<T: Real>(logits: &mut [T], token: u32, g: T, soft_cap: Option<f64>) {
    cap_logits(logits, soft_cap);
    let log_total = log_sum_exp(logits);
    let inverse_cap = soft_cap.map_or(T::ZERO, |cap| T::of(1.0 / cap));
    let capped = logits[token as usize] * inverse_cap;
    for l in logits.iter_mut() {
        let capped = *l * inverse_cap;
        *l = -g * Real::exp(*l - log_total) * (T::ONE - capped * capped);
    }
    logits[token as usize] += g * (T::ONE - capped * capped);
}

#[cfg(test)]
mod tests {
    use super::super::{check, tensor};
    use super::*;

    #[test]
    fn gradient_of_a_row_matches_finite_differences() {
        for cap in [None, Some(1.5)] {
            let logits: Vec<f64> = check::values(1, 41).iter().map(|l| 3.0 * l).collect();
            let mut d_logits = logits.clone();
            log_prob_backward(&mut d_logits, 7, 1.3, cap);
            check::gradient(&format!("cap {cap:?}"), &logits, &d_logits, |l| 1.3 * log_prob(&mut l.to_vec(), 7, cap));
        }
    }

    fn targets() -> Vec<TokenTarget> {
        [(0, 3), (2, 0), (2, 40), (1, 7), (4, 7)].map(|(row, token)| TokenTarget { row, token }).to_vec()
    }

    #[test]
    fn tensors_match_a_dense_softmax_and_its_gradient() {
        let (n, d, v) = (5, 8, 41);
        let (hidden, weight) = (check::values(1, n * d), check::values(2, v * d));
        let gradients = [0.5f32, -1.0, 2.0, 0.25, -0.125];
        let loss = |hidden: &[f64], weight: &[f64], cap: Option<f64>| -> f64 {
            let total = targets().into_iter().zip(gradients).map(|(t, g)| {
                let x = &hidden[t.row as usize * d..][..d];
                let mut logits: Vec<f64> = (0..v).map(|i| check::dot(x, &weight[i * d..][..d])).collect();
                f64::from(g) * log_prob(&mut logits, t.token, cap)
            });
            total.sum()
        };
        for soft_cap in [None, Some(0.9)] {
            let head = Head { soft_cap, compute: ComputeDtype::F32 };
            let (h, w) = (tensor(check::to_f32(&hidden), &[n, d]).unwrap(), tensor(check::to_f32(&weight), &[v, d]).unwrap());
            for chunk in [v, 2 * v, 1000 * v] {
                let log_probs = head.log_probs_in_chunks(&h, &w, &targets(), chunk).unwrap();
                let fast: f64 = log_probs.iter().zip(gradients).map(|(l, g)| f64::from(*l) * f64::from(g)).sum();
                assert!((fast - loss(&hidden, &weight, soft_cap)).abs() < 1e-5);
                let (dh, dw) = (tensor(vec![0.0; n * d], &[n, d]).unwrap(), tensor(vec![0.0; v * d], &[v, d]).unwrap());
                head.backward_in_chunks(&h, &w, &targets(), &gradients, &dh, Some(&dw), chunk).unwrap();
                check::gradient_of_f32("hidden", &hidden, &read(&dh).unwrap(), |h| loss(h, &weight, soft_cap));
                check::gradient_of_f32("weight", &weight, &read(&dw).unwrap(), |w| loss(&hidden, w, soft_cap));
            }
        }
    }

    #[test]
    fn gradient_of_logits_matches_finite_differences() {
        let (n, d, v) = (3, 8, 41);
        let (hidden, weight, gradient) = (check::values(1, n * d), check::values(2, v * d), check::values(3, n * v));
        for soft_cap in [None, Some(0.9)] {
            let loss = |hidden: &[f64], weight: &[f64]| -> f64 {
                let mut logits: Vec<f64> =
                    hidden.chunks(d).flat_map(|x| weight.chunks(d).map(|w| check::dot(x, w)).collect::<Vec<_>>()).collect();
                cap_logits(&mut logits, soft_cap);
                check::dot(&logits, &gradient)
            };
            let head = Head { soft_cap, compute: ComputeDtype::F32 };
            let (h, w) = (check::to_f32(&hidden), tensor(check::to_f32(&weight), &[v, d]).unwrap());
            let logits = head.logits(&h, &w).unwrap();
            let dw = tensor(vec![0.0; v * d], &[v, d]).unwrap();
            let dh = head.logits_backward(&h, &w, &logits, check::to_f32(&gradient), Some(&dw)).unwrap();
            check::gradient_of_f32("hidden", &hidden, &dh, |h| loss(h, &weight));
            check::gradient_of_f32("weight", &weight, &read(&dw).unwrap(), |w| loss(&hidden, w));
        }
    }

    #[test]
    fn chunk_size_does_not_change_a_bit() {
        let (n, d, v) = (200, 64, 515);
        let (h, w) = (
            tensor(check::to_f32(&check::values(1, n * d)), &[n, d]).unwrap(),
            tensor(check::to_f32(&check::values(2, v * d)), &[v, d]).unwrap(),
        );
        let targets: Vec<_> = (0..n as u32).map(|row| TokenTarget { row, token: row % v as u32 }).collect();
        let head = Head { soft_cap: None, compute: ComputeDtype::F32 };
        let whole = head.log_probs(&h, &w, &targets).unwrap();
        for rows in [1, 7, 64, 199] {
            assert_eq!(head.log_probs_in_chunks(&h, &w, &targets, rows * v).unwrap(), whole);
        }
    }
}
