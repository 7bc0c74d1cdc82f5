//! The head alone at Gemma's vocabulary: log-probabilities of response tokens and their gradients, to hidden states and weight.

use crate::job::{Job, Measured};
use crate::measure::{Clock, rss_bytes};
use crate::random::{random_tokens, random_values};
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use mpo::ops::Buffer;
use mpo::ops::log_prob::{Head, TokenTarget};
use mpo::train::step::StepMemory;

/// Seconds, and the peak beyond the weight, its gradient and the hidden states.
pub fn measure(job: &Job) -> Result<Measured> {
    let size = |key: &str| job.config[key].as_u64().map(|n| n as usize).with_context(|| format!("the shape has no `{key}`"));
    let (n_vocab, width) = (size("vocab_size")?, size("hidden_size")?);
    let n_tokens = job.rows.iter().map(|row| row.target.n_response_tokens()).sum::<usize>();
    let random = |seed, rows| Ok::<_, anyhow::Error>(Tensor::from_vec(random_values(seed, rows * width), (rows, width), &Device::Cpu)?);
    let (hidden, weight, gradient) = (random(1, n_tokens)?, random(2, n_vocab)?, random(3, n_vocab)?);
    let tokens = random_tokens(4, n_tokens, n_vocab);
    let targets: Vec<TokenTarget> = tokens.iter().enumerate().map(|(row, &token)| TokenTarget { row: row as u32, token }).collect();
    let head = Head { soft_cap: None, compute: job.dtype };
    let before = rss_bytes()?;
    let mut measured = Clock::measure(job, |_| {
        let scored = head.score(&hidden, &weight, &targets, StepMemory::default().kept_logits)?;
        let d_log_probs = (&*scored.log_probs * 1e-3)?;
        let d_hidden = Buffer::zeros(hidden.dims())?;
        head.backward(&hidden, &weight, (&targets, scored), &d_log_probs, &d_hidden, Some(&gradient))
    })?;
    measured.extra_bytes = Some(measured.peak_rss_bytes.saturating_sub(before));
    Ok(measured)
}
