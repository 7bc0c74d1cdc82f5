//! The head: log-probabilities of given tokens, `log softmax(x Wᵀ)[token]`, a chunk of rows at a time.
//!
//! A `[rows, V]` tensor of a whole batch never exists: a chunk's logits are made, reduced to one number a row and dropped. What the loss makes
//! of a row is known only when both of its answers are scored, so the backward, `dlogits = g (onehot - softmax)`, needs the logits a second
//! time: those of the first chunks are kept, as far as the caller grants memory (6 FLOPs per weight and token), the others made again (8).
//! Gemma caps logits: `cap * tanh(logit / cap)`. A frozen head needs no logits twice (`frozen`). On a GPU not logits are kept but `onehot - softmax` in the
//! type of the activations, half of the bytes; g then multiplies the rows of both products.

mod frozen;
mod on_gpu;

use super::gemm::{Matrix, Write, multiply_in, multiply_rows_in};
use super::gpu;
use super::linear::product;
use super::real::{max, sum_exp, vectorized};
use super::{Buffer, Real, Scratch, read, update};
use crate::config::ComputeDtype;
use anyhow::{Result, bail, ensure};
use candle_core::Tensor;
pub(super) use on_gpu::THREADS;
use rayon::prelude::*;

/// Logits that are made at a time (96 MiB of f32).
pub const LOGITS_PER_CHUNK: usize = 24 * 1024 * 1024;
/// The same where the head is frozen: nothing is added up over a chunk then, so that fewer rows cost no more.
pub const FROZEN_LOGITS_PER_CHUNK: usize = LOGITS_PER_CHUNK / 2;

/// The same on a GPU (1 GiB of f32): enough rows that a product runs at its full rate, and that the head's gradient is not read and written too often.
pub const GPU_LOGITS_PER_CHUNK: usize = 256 << 20;

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

/// Log-probabilities, and what their backward reads.
#[derive(Debug)]
pub struct ScoredTargets {
    /// One for each target, `[M]`, f32, where the hidden states are.
    pub log_probs: Buffer,
    log_sum_exp: Vec<f32>,
    kept: Kept,
    rows_per_chunk: usize,
}

/// Of the first chunks.
#[derive(Debug)]
enum Kept {
    /// Capped.
    Logits(Vec<Scratch>),
    /// d log-probability / d hidden state, where the head is frozen.
    StateGradients(Vec<Scratch>),
    OnGpu(on_gpu::KeptOnGpu),
}

impl ScoredTargets {
    fn check(&self, targets: &[TokenTarget], gradients: &Tensor) -> Result<()> {
        let (n_targets, n_scored, n_gradients) = (targets.len(), self.log_probs.elem_count(), gradients.elem_count());
        ensure!(n_targets == n_scored && n_targets == n_gradients, "{n_targets} targets, {n_scored} scores, {n_gradients} gradients");
        Ok(())
    }
}

impl Head {
    /// `hidden [N, D]`, `weight [V, D]`, M targets to M log-probabilities. Keeps at most `n_kept` logits for the backward.
    pub fn score(&self, hidden: &Tensor, weight: &Tensor, targets: &[TokenTarget], n_kept: usize) -> Result<ScoredTargets> {
        if gpu::has(hidden) {
            return self.score_in_chunks_on_gpu(hidden, weight, targets, n_kept, false, GPU_LOGITS_PER_CHUNK);
        }
        self.score_in_chunks(hidden, weight, targets, n_kept, LOGITS_PER_CHUNK)
    }

    fn score_in_chunks(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        targets: &[TokenTarget],
        n_kept: usize,
        chunk: usize,
    ) -> Result<ScoredTargets> {
        let n_vocab = weight.dim(0)?;
        check(targets, hidden.dim(0)?, n_vocab)?;
        let hidden = read(hidden)?;
        let rows_per_chunk = rows_per_chunk(targets.len(), n_vocab, chunk);
        let (mut log_probs, mut log_sum_exp, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for (index, targets) in targets.chunks(rows_per_chunk).enumerate() {
            let (scores, logits) = self.chunk_scores(&hidden, weight, targets)?;
            log_probs.extend(scores.iter().map(|(log_prob, _)| log_prob));
            log_sum_exp.extend(scores.iter().map(|(_, log_sum_exp)| log_sum_exp));
            if index == kept.len() && (index + 1) * rows_per_chunk * n_vocab <= n_kept {
                kept.push(logits);
            }
        }
        Ok(ScoredTargets { log_probs: values(&log_probs)?, log_sum_exp, kept: Kept::Logits(kept), rows_per_chunk })
    }

    /// Log-probability and log-sum-exp of each target, and the capped logits of its row.
    fn chunk_scores(&self, hidden: &[f32], weight: &Tensor, targets: &[TokenTarget]) -> Result<(Vec<(f32, f32)>, Scratch)> {
        let (n_vocab, width) = (weight.dim(0)?, weight.dim(1)?);
        let mut logits = product(&gather(hidden, width, targets), &read(weight)?, width, self.compute);
        let rows = logits.par_chunks_mut(n_vocab).zip(targets);
        let scores = rows.map(|(row, target)| vectorized!(log_prob(row, target.token, self.soft_cap))).collect();
        Ok((scores, logits))
    }

    /// Adds to `d_hidden [N, D]` and, unless frozen, to `weight_gradient [V, D]`, from the gradients of the log-probabilities, `[M]`, f32.
    pub fn backward(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        (targets, scored): (&[TokenTarget], ScoredTargets),
        gradients: &Tensor,
        d_hidden: &Tensor,
        weight_gradient: Option<&Tensor>,
    ) -> Result<()> {
        let (n_vocab, width) = (weight.dim(0)?, weight.dim(1)?);
        check(targets, hidden.dim(0)?, n_vocab)?;
        if gpu::has(hidden) {
            return self.backward_on_gpu(hidden, weight, (targets, scored), gradients, d_hidden, weight_gradient);
        }
        scored.check(targets, gradients)?;
        let (hidden, gradients) = (read(hidden)?, read(gradients)?);
        let rows = scored.rows_per_chunk;
        let Kept::Logits(kept) = scored.kept else { bail!("these targets were scored for a frozen head") };
        let mut kept = kept.into_iter();
        for ((targets, gradients), log_sum_exp) in targets.chunks(rows).zip(gradients.chunks(rows)).zip(scored.log_sum_exp.chunks(rows)) {
            let x = gather(&hidden, width, targets);
            let mut logits = match kept.next() {
                Some(capped) => capped,
                None => {
                    let mut logits = product(&x, &read(weight)?, width, self.compute);
                    logits.par_chunks_mut(n_vocab).for_each(|row| vectorized!(cap_logits(row, self.soft_cap)));
                    logits
                }
            };
            let rows = logits.par_chunks_mut(n_vocab).zip(targets).zip(gradients).zip(log_sum_exp);
            rows.for_each(|(((row, target), &g), &log_sum_exp)| {
                vectorized!(log_prob_backward(row, target.token, log_sum_exp, g, self.soft_cap));
            });
            let dx = self.chunk_backward(&x, weight, &logits, weight_gradient)?;
            update(d_hidden, |d_hidden| {
                for (dx, target) in dx.chunks(width).zip(targets) {
                    d_hidden[target.row as usize * width..][..width].iter_mut().zip(dx).for_each(|(a, b)| *a += b);
                }
            })?;
        }
        Ok(())
    }

    /// The gradient of `x [R, D]` from that of its logits before the cap, `[R, V]`; adds to `weight_gradient [V, D]`.
    fn chunk_backward(&self, x: &[f32], weight: &Tensor, d_logits: &[f32], weight_gradient: Option<&Tensor>) -> Result<Scratch> {
        let (n_vocab, width) = (weight.dim(0)?, weight.dim(1)?);
        let dx = self.chunk_input_gradient(x.len() / width, weight, d_logits)?;
        let d_logits = Matrix::new(d_logits, n_vocab);
        if let Some(weight_gradient) = weight_gradient {
            update(weight_gradient, |out| {
                multiply_in(self.compute, out, width, Write::Add, 1.0, d_logits.transposed(), Matrix::new(x, width));
            })?;
        }
        Ok(dx)
    }

    fn chunk_input_gradient(&self, n_rows: usize, weight: &Tensor, d_logits: &[f32]) -> Result<Scratch> {
        let (n_vocab, width) = (weight.dim(0)?, weight.dim(1)?);
        let mut dx = Scratch::new(n_rows * width);
        let (d_logits, weight) = (Matrix::new(d_logits, n_vocab), read(weight)?);
        multiply_in(self.compute, &mut dx, width, Write::Overwrite, 1.0, d_logits, Matrix::new(&weight, width));
        Ok(dx)
    }

    /// Logits (capped) of every row of `hidden [M, D]`, `[M, V]`: for few rows.
    pub fn logits(&self, hidden: &[f32], weight: &Tensor) -> Result<Scratch> {
        let width = weight.dim(1)?;
        if gpu::has(weight) {
            return self.logits_on_gpu(hidden, weight);
        }
        let mut logits = product(hidden, &read(weight)?, width, self.compute);
        self.cap(&mut logits);
        Ok(logits)
    }

    /// As [`Head::logits`], by the kernel of decoding: the weight is read once and not packed.
    pub fn logits_few(&self, hidden: &[f32], weight: &Tensor) -> Result<Scratch> {
        let (n_vocab, width) = weight.dims2()?;
        if gpu::has(weight) {
            return self.logits_on_gpu(hidden, weight);
        }
        let mut logits = Scratch::new(hidden.len() / width * n_vocab);
        multiply_rows_in(self.compute, hidden, &read(weight)?, width, &mut logits);
        self.cap(&mut logits);
        Ok(logits)
    }

    fn cap(&self, logits: &mut [f32]) {
        if self.soft_cap.is_some() {
            logits.par_chunks_mut(16 * 1024).for_each(|logits| vectorized!(cap_logits(logits, self.soft_cap)));
        }
    }

    /// The backward of [`Head::logits`] on the CPU: from what it returned, `logits [M, V]`, and its gradient to `d_hidden [M, D]`. Adds to
    /// `weight_gradient [V, D]` unless the head is frozen.
    pub(super) fn logits_backward(
        &self,
        hidden: &[f32],
        weight: &Tensor,
        logits: &[f32],
        mut d_logits: Scratch,
        weight_gradient: Option<&Tensor>,
    ) -> Result<Scratch> {
        if let Some(cap) = self.soft_cap {
            let inverse = (1.0 / cap) as f32;
            d_logits.par_iter_mut().zip(logits).with_min_len(16 * 1024).for_each(|(d, &logit)| {
                let capped = logit * inverse;
                *d *= 1.0 - capped * capped;
            });
        }
        self.chunk_backward(hidden, weight, &d_logits, weight_gradient)
    }
}

/// A tensor of its own.
fn values(values: &[f32]) -> Result<Buffer> {
    Buffer::new(Scratch::copy_of(values), &[values.len()])
}

/// Rows of a chunk, such that all chunks but the last are equal and the last is not much smaller.
pub(crate) fn rows_per_chunk(n_rows: usize, n_vocab: usize, chunk: usize) -> usize {
    let most = (chunk / n_vocab).max(1);
    n_rows.div_ceil(n_rows.div_ceil(most).max(1)).max(1)
}

fn check(targets: &[TokenTarget], n_rows: usize, n_vocab: usize) -> Result<()> {
    match targets.iter().find(|t| t.row as usize >= n_rows || t.token as usize >= n_vocab) {
        Some(t) => bail!("token {} at row {} is outside {n_rows} rows and a vocabulary of {n_vocab}", t.token, t.row),
        None => Ok(()),
    }
}

fn gather(hidden: &[f32], width: usize, targets: &[TokenTarget]) -> Scratch {
    let mut rows = Scratch::new(targets.len() * width);
    rows.chunks_mut(width).zip(targets).for_each(|(row, t)| row.copy_from_slice(&hidden[t.row as usize * width..][..width]));
    rows
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

/// Caps the logits; the token's log-probability, and the logarithm of the sum of exponentials.
#[inline(always)]
fn log_prob<T: Real>(logits: &mut [T], token: u32, soft_cap: Option<f64>) -> (T, T) {
    cap_logits(logits, soft_cap);
    let log_total = log_sum_exp(logits);
    (logits[token as usize] - log_total, log_total)
}

/// Turns capped logits into `g (onehot - softmax)`, times the cap's slope `1 - (capped / cap)²`: the gradient of the uncapped logits.
#[inline(always)]
fn log_prob_backward<T: Real>(logits: &mut [T], token: u32, log_total: T, g: T, soft_cap: Option<f64>) {
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
            let (_, log_total) = log_prob(&mut d_logits, 7, cap);
            log_prob_backward(&mut d_logits, 7, log_total, 1.3, cap);
            check::gradient(&format!("cap {cap:?}"), &logits, &d_logits, |l| 1.3 * log_prob(&mut l.to_vec(), 7, cap).0);
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
                f64::from(g) * log_prob(&mut logits, t.token, cap).0
            });
            total.sum()
        };
        for soft_cap in [None, Some(0.9)] {
            let head = Head { soft_cap, compute: ComputeDtype::F32 };
            let (h, w) = (tensor(check::to_f32(&hidden), &[n, d]).unwrap(), tensor(check::to_f32(&weight), &[v, d]).unwrap());
            for (chunk, n_kept) in [(v, 0), (2 * v, 2 * v), (2 * v, 1000 * v), (1000 * v, 0), (1000 * v, 5 * v)] {
                let scored = head.score_in_chunks(&h, &w, &targets(), n_kept, chunk).unwrap();
                let fast: f64 = read(&scored.log_probs).unwrap().iter().zip(gradients).map(|(l, g)| f64::from(*l) * f64::from(g)).sum();
                assert!((fast - loss(&hidden, &weight, soft_cap)).abs() < 1e-5);
                let (dh, dw) = (tensor(vec![0.0; n * d], &[n, d]).unwrap(), tensor(vec![0.0; v * d], &[v, d]).unwrap());
                head.backward(&h, &w, (&targets(), scored), &tensor(gradients.to_vec(), &[5]).unwrap(), &dh, Some(&dw)).unwrap();
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
            let dh = head.logits_backward(&h, &w, &logits, Scratch::copy_of(&check::to_f32(&gradient)), Some(&dw)).unwrap();
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
        let log_probs = |scored: ScoredTargets| read(&scored.log_probs).unwrap().to_vec();
        let whole = log_probs(head.score(&h, &w, &targets, 0).unwrap());
        for rows in [1, 7, 64, 199] {
            assert_eq!(log_probs(head.score_in_chunks(&h, &w, &targets, 0, rows * v).unwrap()), whole);
        }
    }

    #[test]
    fn kept_logits_are_those_made_again() {
        let (n, d, v) = (90, 64, 515);
        let (h, w) = (
            tensor(check::to_f32(&check::values(1, n * d)), &[n, d]).unwrap(),
            tensor(check::to_f32(&check::values(2, v * d)), &[v, d]).unwrap(),
        );
        let targets: Vec<_> = (0..n as u32).map(|row| TokenTarget { row, token: row % v as u32 }).collect();
        let gradients = tensor(check::to_f32(&check::values(3, n)), &[n]).unwrap();
        for soft_cap in [None, Some(4.0)] {
            let head = Head { soft_cap, compute: ComputeDtype::F32 };
            let run = |n_kept: usize, n_chunks_kept: usize| {
                let scored = head.score_in_chunks(&h, &w, &targets, n_kept, 20 * v).unwrap();
                let Kept::Logits(kept) = &scored.kept else { panic!("of a head that is trained") };
                assert_eq!((kept.len(), scored.rows_per_chunk), (n_chunks_kept, 18));
                let (dh, dw) = (tensor(vec![0.0; n * d], &[n, d]).unwrap(), tensor(vec![0.0; v * d], &[v, d]).unwrap());
                head.backward(&h, &w, (&targets, scored), &gradients, &dh, Some(&dw)).unwrap();
                (read(&dh).unwrap().to_vec(), read(&dw).unwrap().to_vec())
            };
            let none = run(0, 0);
            assert!(none == run(36 * v + 1, 2) && none == run(90 * v, 5));
        }
    }
}
