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

/// What a backward needs.
#[derive(Debug, Clone, Copy)]
pub struct Backward<'a> {
    /// d loss / d divergence of each position.
    pub factor: f64,
    /// Of the policy's head, `[V, D]`, to be added to; `None` where it is frozen.
    pub weight_gradient: Option<&'a Tensor>,
}

/// The divergence of each of M positions, `[M]`, f32, where the policy is; and d loss / d policy states, `[M, D]`, f32, where a backward is wanted: not a number
/// where a divergence is none.
pub fn divergence(reference: Predicting, policy: Predicting, backward: Option<Backward>) -> Result<(Tensor, Option<Tensor>)> {
    let (n_vocab, n_positions) = (policy.weight.dim(0)?, policy.states.dim(0)?);
    let n_reference = reference.weight.dim(0)?;
    ensure!(
        n_reference == n_vocab,
        "`kl` retention compares distributions over one vocabulary: the policy has {n_vocab} tokens, the reference {n_reference}"
    );
    ensure!(n_positions > 0, "a divergence of no positions");
    ensure!(reference.states.dim(0)? == n_positions, "{n_positions} positions and {} of the reference", reference.states.dim(0)?);
    let most = if gpu::has(policy.weight) { GPU_LOGITS_PER_CHUNK } else { LOGITS_PER_CHUNK };
    in_chunks(reference, policy, backward, most)
}

fn in_chunks(reference: Predicting, policy: Predicting, backward: Option<Backward>, most: usize) -> Result<(Tensor, Option<Tensor>)> {
    let n_positions = policy.states.dim(0)?;
    let n_rows = rows_per_chunk(n_positions, policy.weight.dim(0)?, most);
    let (mut divergences, mut d_states) = (Vec::new(), Vec::new());
    for first in (0..n_positions).step_by(n_rows) {
        let chunk = |of: Predicting<'_>| of.states.narrow(0, first, n_rows.min(n_positions - first));
        let (reference_states, policy_states) = (chunk(reference)?, chunk(policy)?);
        let (reference, policy) = (Predicting { states: &reference_states, ..reference }, Predicting { states: &policy_states, ..policy });
        let (divergence, d) =
            if gpu::has(policy.weight) { on_gpu(reference, policy, backward)? } else { on_cpu(reference, policy, backward)? };
        divergences.push(divergence);
        d_states.extend(d);
    }
    let d_states = backward.map(|_| Tensor::cat(&d_states, 0)).transpose()?;
    Ok((Tensor::cat(&divergences, 0)?, d_states))
}

fn on_cpu(reference: Predicting, policy: Predicting, backward: Option<Backward>) -> Result<(Tensor, Option<Tensor>)> {
    let (n_positions, width) = policy.states.dims2()?;
    let n_vocab = policy.weight.dim(0)?;
    let [reference_logits, policy_logits] = [reference, policy].map(|of| of.head.logits(&read(of.states)?, of.weight));
    let (reference_logits, policy_logits) = (reference_logits?, policy_logits?);
    let rows = reference_logits.par_chunks(n_vocab).zip(policy_logits.par_chunks(n_vocab));
    let divergences: Vec<f32> = rows.clone().map(|(reference_V, policy_V)| kl_divergence(reference_V, policy_V) as f32).collect();
    let backward_of = |Backward { factor, weight_gradient }| {
        let mut d_logits = Scratch::zeros(policy_logits.len());
        let rows = rows.zip(&divergences).zip(d_logits.par_chunks_mut(n_vocab));
        rows.for_each(|(((reference_V, policy_V), divergence), d_V)| {
            let factor = if divergence.is_finite() { factor } else { f64::NAN };
            kl_divergence_backward(reference_V, policy_V, factor, d_V);
        });
        let d_states = policy.head.logits_backward(&read(policy.states)?, policy.weight, &policy_logits, d_logits, weight_gradient)?;
        tensor(d_states.to_vec(), &[n_positions, width])
    };
    let d_states = backward.map(backward_of).transpose()?;
    Ok((tensor(divergences, &[n_positions])?, d_states))
}

fn on_gpu(reference: Predicting, policy: Predicting, backward: Option<Backward>) -> Result<(Tensor, Option<Tensor>)> {
    let (n_positions, n_vocab, weight) = (policy.states.dim(0)?, policy.weight.dim(0)?, policy.weight);
    let narrowed = |of: Predicting| of.states.to_dtype(of.weight.dtype());
    let (reference_x, x) = (narrowed(reference)?, narrowed(policy)?);
    let [reference_logits, logits] = [(reference, &reference_x), (policy, &x)].map(|(of, x)| of.head.raw_logits(x, of.weight));
    let (reference_logits, logits) = (reference_logits?, logits?);
    let divergences = Tensor::zeros(n_positions, DType::F32, weight.device())?;
    let factors = backward.map(|backward| gpu::floats(&vec![backward.factor as f32; n_positions], weight)).transpose()?;
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
                0.3 * states.chunks(d).zip(reference_states.chunks(d)).map(of_position).sum::<f64>()
            };
            let head = Head { soft_cap, compute: ComputeDtype::F32 };
            let [x, r] = [&states, &reference_states].map(|values| tensor(check::to_f32(values), &[m, d]).unwrap());
            let [w, rw] = [&weight, &reference_weight].map(|values| tensor(check::to_f32(values), &[v, d]).unwrap());
            let reference = Predicting { head, weight: &rw, states: &r };
            let policy = Predicting { head, weight: &w, states: &x };
            for rows in [1, 2, 3] {
                let dw = tensor(vec![0.0; v * d], &[v, d]).unwrap();
                let backward = Backward { factor: 0.3, weight_gradient: Some(&dw) };
                let (divergences, dx) = in_chunks(reference, policy, Some(backward), rows * v).unwrap();
                let sum: f64 = read(&divergences).unwrap().iter().map(|&value| f64::from(value)).sum();
                assert!((0.3 * sum - loss(&states, &weight)).abs() < 1e-6);
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
        let reference = Predicting { head, weight: &weight, states: &states };
        let backward = Backward { factor: 1.0, weight_gradient: None };
        let (divergences, d) = divergence(reference, Predicting { weight: &bad, ..reference }, Some(backward)).unwrap();
        assert!(read(&divergences).unwrap()[0].is_nan() && read(&d.unwrap()).unwrap().iter().all(|d| d.is_nan()));
        let error = divergence(reference, Predicting { weight: &states, ..reference }, None).unwrap_err();
        assert!(error.to_string().contains("1 tokens, the reference 3"), "{error}");
    }
}

#[cfg(all(test, any(feature = "cuda", feature = "emulator")))]
mod gpu_tests {
    use super::*;
    use crate::config::ComputeDtype;
    use crate::ops::gpu::twin::agree;

    #[test]
    fn agrees_with_the_cpu() {
        let (m, d) = (45, 24);
        for (v, caps) in [(515, [None, None]), (520, [Some(4.0), Some(3.0)]), (4200, [None, Some(2.0)])] {
            agree(&format!("{v} tokens, caps {caps:?}"), |place| {
                let f32_values = |seed| place.values(seed, &[m, d]).to_dtype(DType::F32);
                let (states, weights) = ([f32_values(1)?, f32_values(2)?], [3, 4].map(|seed| place.values(seed, &[v, d])));
                let [reference, policy] = [0, 1].map(|i| {
                    let head = Head { soft_cap: caps[i], compute: ComputeDtype::F32 };
                    Predicting { head, weight: &weights[i], states: &states[i] }
                });
                let dw = place.floats(vec![0.5; v * d], &[v, d]);
                let (divergences, dx) = in_chunks(reference, policy, Some(Backward { factor: 0.7, weight_gradient: Some(&dw) }), 20 * v)?;
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
            let of = Predicting { head: Head { soft_cap: Some(3.0), compute: ComputeDtype::F32 }, weight: &weight, states: &states };
            let (divergences, d) = divergence(of, of, Some(Backward { factor: 1.0, weight_gradient: None })).unwrap();
            assert!(read(&divergences).unwrap().iter().chain(&*read(&d.unwrap()).unwrap()).all(|&value| value == 0.0));
        };
        #[cfg(feature = "emulator")]
        gpu::on_emulated_gpu(|| check(&candle_core::Device::Cpu));
        #[cfg(feature = "cuda")]
        if let Ok(device) = gpu::at(0) {
            check(&device);
        }
    }
}
