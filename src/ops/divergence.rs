//! How far one model's next token is from another's: `KL(reference || policy)` of each position, nats, and its backward.
//!
//! Both models' logits are made from their final-norm states a chunk of positions at a time. What a position counts in the loss is known beforehand, so
//! that value and gradient come out of the same pass.

use super::gpu::{self, Kernel};
use super::log_prob::{self, Head, rows_per_chunk};
use super::{Scratch, linear, read, tensor};
use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};
use rayon::prelude::*;

/// Logits of one model that are made at a time (16 MiB of f32).
pub const LOGITS_PER_CHUNK: usize = 4 * 1024 * 1024;
/// The same on a GPU (512 MiB).
pub const GPU_LOGITS_PER_CHUNK: usize = log_prob::GPU_LOGITS_PER_CHUNK / 2;

/// A model from its final-norm states on.
#[derive(Debug, Clone, Copy)]
pub struct Predicting<'a> {
    pub head: Head,
    /// `[V, D]`
    pub weight: &'a Tensor,
    /// `[M, D]`, f32.
    pub states: &'a Tensor,
}

/// A model that is frozen, likewise.
#[derive(Debug, Clone, Copy)]
pub struct Frozen<'a> {
    pub head: Head,
    /// `[V, D]`
    pub weight: &'a Tensor,
    /// `[M, D]`, with the host.
    pub states: &'a [f32],
}

/// What a backward needs.
#[derive(Debug, Clone, Copy)]
pub struct Backward<'a> {
    /// d loss / d divergence of each position.
    pub factors: &'a [f64],
    /// Of the policy's head, `[V, D]`, to be added to; `None` where it is frozen.
    pub weight_gradient: Option<&'a Tensor>,
}

/// The divergence of each of M positions, `[M]`, f32, where the policy is; and d loss / d policy states, `[M, D]`, f32, where a backward is wanted: not a number
/// where a divergence is none.
pub fn divergence(reference: Frozen, policy: Predicting, backward: Option<Backward>) -> Result<(Tensor, Option<Tensor>)> {
    let most = if gpu::has(policy.weight) { GPU_LOGITS_PER_CHUNK } else { LOGITS_PER_CHUNK };
    in_chunks(reference, policy, backward, most)
}

fn in_chunks(reference: Frozen, policy: Predicting, backward: Option<Backward>, most: usize) -> Result<(Tensor, Option<Tensor>)> {
    let ((n_positions, width), (n_vocab, n_reference)) = (policy.states.dims2()?, (policy.weight.dim(0)?, reference.weight.dim(0)?));
    ensure!(
        n_reference == n_vocab,
        "`kl` retention compares distributions over one vocabulary: the policy has {n_vocab} tokens, the reference {n_reference}"
    );
    let (n_states, n_factors) = (reference.states.len() / width, backward.map_or(n_positions, |backward| backward.factors.len()));
    ensure!(
        n_positions > 0 && n_states == n_positions && n_factors == n_positions,
        "{n_positions} positions of the policy, {n_states} of the reference, {n_factors} factors"
    );
    let rows = rows_per_chunk(n_positions, n_vocab, most);
    let (mut divergences, mut d_states) = (Vec::new(), Vec::new());
    for first in (0..n_positions).step_by(rows) {
        let rows = rows.min(n_positions - first);
        let states = policy.states.narrow(0, first, rows)?;
        let policy = Predicting { states: &states, ..policy };
        let reference = Frozen { states: &reference.states[first * width..][..rows * width], ..reference };
        let backward = backward.map(|backward| Backward { factors: &backward.factors[first..][..rows], ..backward });
        let (divergence, d) =
            if gpu::has(policy.weight) { on_gpu(reference, policy, backward)? } else { on_cpu(reference, policy, backward)? };
        divergences.push(divergence);
        d_states.extend(d);
    }
    let d_states = backward.map(|_| Tensor::cat(&d_states, 0)).transpose()?;
    Ok((Tensor::cat(&divergences, 0)?, d_states))
}

fn on_cpu(reference: Frozen, policy: Predicting, backward: Option<Backward>) -> Result<(Tensor, Option<Tensor>)> {
    let ((n_positions, width), n_vocab) = (policy.states.dims2()?, policy.weight.dim(0)?);
    let states = read(policy.states)?;
    let reference_logits = reference.head.logits(reference.states, reference.weight)?;
    let logits = policy.head.logits(&states, policy.weight)?;
    let rows = reference_logits.par_chunks(n_vocab).zip(logits.par_chunks(n_vocab));
    let divergences: Vec<f32> = rows.clone().map(|(reference_V, policy_V)| kl_divergence(reference_V, policy_V) as f32).collect();
    let backward_of = |Backward { factors, weight_gradient }| {
        let mut d_logits = Scratch::zeros(logits.len());
        let factors =
            divergences.par_iter().zip(factors).map(|(divergence, &factor)| if divergence.is_finite() { factor } else { f64::NAN });
        let rows = rows.zip(factors).zip(d_logits.par_chunks_mut(n_vocab));
        rows.for_each(|(((reference_V, policy_V), factor), d_V)| kl_divergence_backward(reference_V, policy_V, factor, d_V));
        let d_states = policy.head.logits_backward(&states, policy.weight, &logits, d_logits, weight_gradient)?;
        tensor(d_states.to_vec(), &[n_positions, width])
    };
    let d_states = backward.map(backward_of).transpose()?;
    Ok((tensor(divergences, &[n_positions])?, d_states))
}

fn on_gpu(reference: Frozen, policy: Predicting, backward: Option<Backward>) -> Result<(Tensor, Option<Tensor>)> {
    let ((n_positions, width), n_vocab, weight) = (policy.states.dims2()?, policy.weight.dim(0)?, policy.weight);
    let x = policy.states.to_dtype(weight.dtype())?;
    let logits = policy.head.raw_logits(&x, weight)?;
    let reference_x = gpu::floats(reference.states, weight)?.reshape((n_positions, width))?.to_dtype(reference.weight.dtype())?;
    let reference_logits = reference.head.raw_logits(&reference_x, reference.weight)?;
    let divergences = Tensor::zeros(n_positions, DType::F32, weight.device())?;
    let factors = |backward: Backward| gpu::floats(&backward.factors.iter().map(|&factor| factor as f32).collect::<Vec<_>>(), weight);
    let factors = backward.map(factors).transpose()?;
    let d_logits = backward.map(|_| gpu::empty_like(&[n_positions, n_vocab], weight)).transpose()?;
    let kernel = Kernel::new("divergence", weight)?.floats(&divergences)?.maybe_values(d_logits.as_deref())?;
    let kernel = kernel.floats(&reference_logits)?.floats(&logits)?.maybe_floats(factors.as_ref())?.integer(n_vocab)?;
    kernel.float(reference.head.cap_or_0()).float(policy.head.cap_or_0()).run([n_positions, 1, 1], log_prob::THREADS)?;
    drop((reference_logits, logits));
    let (Some(d_logits), Some(backward)) = (d_logits, backward) else { return Ok((divergences, None)) };
    if let Some(gradient) = backward.weight_gradient {
        linear::backward_weight(&d_logits, &x, gradient, policy.head.compute)?;
    }
    // A buffer takes its values along.
    let d_states = linear::backward_input(&d_logits, weight, policy.head.compute)?.copy()?.to_dtype(DType::F32)?;
    Ok((divergences, Some(d_states)))
}

/// `KL(reference || policy)` of one position's next-token distributions, nats, from logits of equal length.
pub fn kl_divergence(reference_V: &[f32], policy_V: &[f32]) -> f64 {
    let (reference_norm, policy_norm) = (log_sum_exp(reference_V), log_sum_exp(policy_V));
    let terms = reference_V.iter().zip(policy_V).map(|(&r, &p)| {
        let (log_reference, log_policy) = (f64::from(r) - reference_norm, f64::from(p) - policy_norm);
        log_reference.exp() * (log_reference - log_policy)
    });
    terms.sum()
}

/// d [`kl_divergence`] / d policy logits, times `scale`: `scale * (softmax(policy) - softmax(reference))`.
pub fn kl_divergence_backward(reference_V: &[f32], policy_V: &[f32], scale: f64, d_policy_V: &mut [f32]) {
    let (reference_norm, policy_norm) = (log_sum_exp(reference_V), log_sum_exp(policy_V));
    for ((&r, &p), d) in reference_V.iter().zip(policy_V).zip(d_policy_V) {
        *d = (scale * ((f64::from(p) - policy_norm).exp() - (f64::from(r) - reference_norm).exp())) as f32;
    }
}

fn log_sum_exp(logits_V: &[f32]) -> f64 {
    let max = logits_V.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let max = f64::from(max);
    max + logits_V.iter().map(|&logit| (f64::from(logit) - max).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;
    use crate::config::ComputeDtype;

    #[test]
    fn kl_by_hand() {
        // Reference (1/2, 1/2), policy (1/4, 3/4): KL = ln 2 - (ln 3) / 2.
        let (reference, policy) = ([0.0, 0.0], [0.0, 3f32.ln()]);
        let expected = 2f64.ln() - 3f64.ln() / 2.0;
        assert!((kl_divergence(&reference, &policy) - expected).abs() < 1e-7);
        // A shift of all logits changes nothing; KL is positive, zero between equals, and not symmetric.
        assert!((kl_divergence(&[7.0, 7.0], &policy) - expected).abs() < 1e-7);
        assert!(kl_divergence(&policy, &reference) > 0.0);
        assert_ne!(kl_divergence(&policy, &reference), kl_divergence(&reference, &policy));
        let logits = [0.3, -70.0, 1e4, 9999.5];
        assert_eq!(kl_divergence(&logits, &logits), 0.0);
        let mut gradient = [1.0; 4];
        kl_divergence_backward(&logits, &logits, 1.0, &mut gradient);
        assert_eq!(gradient, [0.0; 4]);
    }

    #[test]
    fn kl_derivative_agrees_with_finite_differences() {
        let (reference, policy) = ([0.5f32, -1.0, 2.0, 0.25], [1.5f32, 0.5, -0.5, 0.125]);
        let mut gradient = [0.0; 4];
        kl_divergence_backward(&reference, &policy, 3.0, &mut gradient);
        let step = 1.0 / 1024.0;
        for i in 0..4 {
            let shifted = |by: f32| {
                let mut logits = policy;
                logits[i] += by;
                kl_divergence(&reference, &logits)
            };
            let numeric = 3.0 * (shifted(step) - shifted(-step)) / (2.0 * f64::from(step));
            assert!((f64::from(gradient[i]) - numeric).abs() < 1e-6, "{i}: {} {numeric}", gradient[i]);
        }
    }

    #[test]
    fn the_backward_is_the_derivative() {
        let (m, d, v) = (3, 8, 41);
        let [states, weight, reference_states, reference_weight] =
            [(1, m), (2, v), (3, m), (4, v)].map(|(seed, n)| check::values(seed, n * d));
        for soft_cap in [None, Some(0.9)] {
            let loss = |states: &[f64], weight: &[f64]| -> f64 {
                let log_softmax = |x: &[f64], weight: &[f64]| -> Vec<f64> {
                    let cap = |logit: f64| soft_cap.map_or(logit, |cap: f64| cap * (logit / cap).tanh());
                    let logits: Vec<f64> = weight.chunks(d).map(|w| cap(check::dot(x, w))).collect();
                    let norm = logits.iter().map(|logit| logit.exp()).sum::<f64>().ln();
                    logits.into_iter().map(|logit| logit - norm).collect()
                };
                let of_position = |(x, r): (&[f64], &[f64])| -> f64 {
                    let (p, r) = (log_softmax(x, weight), log_softmax(r, &reference_weight));
                    r.iter().zip(p).map(|(r, p)| r.exp() * (r - p)).sum()
                };
                states
                    .chunks(d)
                    .zip(reference_states.chunks(d))
                    .map(of_position)
                    .zip([0.3, -0.7, 0.3])
                    .map(|(value, factor)| factor * value)
                    .sum()
            };
            let head = Head { soft_cap, compute: ComputeDtype::F32 };
            let (x, r) = (tensor(check::to_f32(&states), &[m, d]).unwrap(), check::to_f32(&reference_states));
            let [w, rw] = [&weight, &reference_weight].map(|values| tensor(check::to_f32(values), &[v, d]).unwrap());
            let reference = Frozen { head, weight: &rw, states: &r };
            let policy = Predicting { head, weight: &w, states: &x };
            for rows in [1, 2, 3] {
                let dw = tensor(vec![0.0; v * d], &[v, d]).unwrap();
                let backward = Backward { factors: &[0.3, -0.7, 0.3], weight_gradient: Some(&dw) };
                let (divergences, dx) = in_chunks(reference, policy, Some(backward), rows * v).unwrap();
                let sum: f64 =
                    read(&divergences).unwrap().iter().zip(backward.factors).map(|(&value, factor)| factor * f64::from(value)).sum();
                assert!((sum - loss(&states, &weight)).abs() < 1e-6);
                check::gradient_of_f32("states", &states, &read(&dx.unwrap()).unwrap(), |states| loss(states, &weight));
                check::gradient_of_f32("weight", &weight, &read(&dw).unwrap(), |weight| loss(&states, weight));
            }
        }
    }

    #[test]
    fn no_update_comes_of_a_divergence_that_is_none() {
        let head = Head { soft_cap: None, compute: ComputeDtype::F32 };
        let (states, weight) = (tensor(vec![1.0; 4], &[1, 4]).unwrap(), tensor(vec![1.0; 12], &[3, 4]).unwrap());
        let bad = tensor([vec![1.0; 8], vec![f32::NAN; 4]].concat(), &[3, 4]).unwrap();
        let (reference, policy) = (Frozen { head, weight: &weight, states: &[1.0; 4] }, Predicting { head, weight: &bad, states: &states });
        let backward = Backward { factors: &[1.0], weight_gradient: None };
        let (divergences, d) = divergence(reference, policy, Some(backward)).unwrap();
        assert!(read(&divergences).unwrap()[0].is_nan() && read(&d.unwrap()).unwrap().iter().all(|d| d.is_nan()));
        let error = divergence(reference, Predicting { weight: &states, ..policy }, None).unwrap_err();
        assert!(error.to_string().contains("1 tokens, the reference 3"), "{error}");
    }
}

#[cfg(test)]
mod gpu_tests {
    use super::*;
    use crate::config::ComputeDtype;
    use crate::ops::gpu::twin::agree;

    #[test]
    fn agrees_with_the_cpu() {
        let (m, d) = (45, 24);
        for (v, caps) in [(515, [None, None]), (520, [Some(4.0), Some(3.0)]), (4200, [None, Some(2.0)])] {
            agree(&format!("{v} tokens, caps {caps:?}"), |place| {
                let [states, frozen] = [1, 2].map(|seed| place.values(seed, &[m, d]).to_dtype(DType::F32));
                let (states, frozen, [w, frozen_w]) = (states?, frozen?, [3, 4].map(|seed| place.values(seed, &[v, d])));
                let frozen = read(&frozen)?.to_vec();
                let [head, frozen_head] = caps.map(|soft_cap| Head { soft_cap, compute: ComputeDtype::F32 });
                let reference = Frozen { head: frozen_head, weight: &frozen_w, states: &frozen };
                let policy = Predicting { head, weight: &w, states: &states };
                let (factors, dw): (Vec<f64>, _) =
                    ((0..m).map(|i| 0.1 * i as f64 - 2.0).collect(), place.floats(vec![0.5; v * d], &[v, d]));
                let (divergences, dx) =
                    in_chunks(reference, policy, Some(Backward { factors: &factors, weight_gradient: Some(&dw) }), 20 * v)?;
                let (alone, none) = in_chunks(reference, policy, None, 20 * v)?;
                assert!(none.is_none());
                Ok(vec![divergences, alone, dx.unwrap(), dw])
            });
        }
    }

    /// Where both models are one, nothing diverges, to the bit: the self-test of a run's first step.
    #[test]
    fn nothing_diverges_from_itself() {
        let check = |device: &candle_core::Device| {
            let values = |seed, n: usize| {
                let values = crate::ops::check::to_f32(&crate::ops::check::values(seed, n * 16));
                Tensor::from_vec(values, (n, 16), device).unwrap()
            };
            let (states, weight) = (values(1, 5), values(2, 300));
            let (head, frozen) = (Head { soft_cap: Some(3.0), compute: ComputeDtype::F32 }, read(&states).unwrap().to_vec());
            let (reference, policy) =
                (Frozen { head, weight: &weight, states: &frozen }, Predicting { head, weight: &weight, states: &states });
            let (divergences, d) = divergence(reference, policy, Some(Backward { factors: &[1.0; 5], weight_gradient: None })).unwrap();
            assert!(read(&divergences).unwrap().iter().chain(&*read(&d.unwrap()).unwrap()).all(|&value| value == 0.0));
        };
        gpu::on_emulated_gpu(|| check(&candle_core::Device::Cpu)).unwrap();
        #[cfg(feature = "cuda")]
        if let Ok(device) = gpu::at(0) {
            check(&device);
        }
    }
}
