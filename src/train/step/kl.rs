//! `kl` retention of one sequence: `KL(reference || policy)` averaged over its response tokens.
//!
//! Both models' logits are made from their final-norm states a few positions at a time, and value and gradient come out of the same pass:
//! a sequence's weight in the loss is known beforehand.

use crate::model::decoder::Decoder;
use crate::objective::retention::{kl_divergence, kl_divergence_backward};
use crate::ops::Scratch;
use crate::plan::COMPARED_LOGITS_PER_CHUNK;
use crate::reference::FrozenHead;
use anyhow::{Result, ensure};
use rayon::prelude::*;

/// The mean divergence over M positions, nats, from the policy's and the reference's final-norm states `[M, D]` there.
///
/// With a `scale` (d loss / d mean) it also adds to the gradient of the policy's head and returns that of the policy's states `[M, D]`.
pub fn mean_divergence(
    policy: &Decoder,
    reference: &FrozenHead,
    policy_MD: &[f32],
    reference_MD: &[f32],
    scale: Option<f64>,
) -> Result<(f64, Vec<f32>)> {
    let (vocab_size, hidden_size) = (policy.description().vocab_size, policy.description().hidden_size);
    ensure!(
        reference.vocab_size()? == vocab_size && policy_MD.len() == reference_MD.len(),
        "`kl` retention compares distributions over one vocabulary: the policy has {vocab_size} tokens, the reference {}",
        reference.vocab_size()?
    );
    let n_positions = policy_MD.len() / hidden_size;
    let states_per_chunk = (COMPARED_LOGITS_PER_CHUNK / vocab_size).max(1) * hidden_size;
    let mut sum = 0.0;
    let mut d_policy_MD = Vec::new();
    for (policy_states, reference_states) in policy_MD.chunks(states_per_chunk).zip(reference_MD.chunks(states_per_chunk)) {
        let (policy_logits, reference_logits) = (policy.logits(policy_states)?, reference.logits(reference_states)?);
        let rows = reference_logits.par_chunks(vocab_size).zip(policy_logits.par_chunks(vocab_size));
        let divergences: Vec<f64> = rows.clone().map(|(reference_V, policy_V)| kl_divergence(reference_V, policy_V)).collect();
        sum += divergences.iter().sum::<f64>();
        if let Some(scale) = scale {
            let scale = scale / n_positions as f64;
            let mut d_logits = Scratch::zeros(policy_logits.len());
            let rows = rows.zip(d_logits.par_chunks_mut(vocab_size));
            rows.for_each(|((reference_V, policy_V), d_V)| kl_divergence_backward(reference_V, policy_V, scale, d_V));
            d_policy_MD.extend_from_slice(&policy.logits_backward(policy_states, &policy_logits, d_logits)?);
        }
    }
    Ok((sum / n_positions as f64, d_policy_MD))
}
