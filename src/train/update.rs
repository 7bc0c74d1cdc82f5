//! One optimizer step: a batch's loss, its gradients, and the update that they make, at the end or a block at a time within the backward.
//!
//! On a GPU everything is on its way, the update too, before the host waits, which it does once: for what it reports. So nobody can look first whether the
//! loss is finite. The gradients say it: of a loss that is not they are not either, and then nothing is updated.

use super::evaluate::{PolicyIs, begin};
use super::optimizer::AdamW;
use super::step::{BatchOutcome, Gradients, StepSettings, Waiting};
use crate::data::encode::EncodedRow;
use crate::model::decoder::Decoder;
use anyhow::Result;
use tracing::info_span;

/// Updates the policy by one batch. Returns what the batch gave before that, and the norm of its gradients.
///
/// Where the loss is not finite nothing is updated. Nor is it where a gradient is not; within the backward that holds for each block alone.
pub fn update(
    policy: &Decoder,
    rows: &[&EncodedRow],
    is: PolicyIs<'_>,
    settings: &StepSettings,
    optimizer: &mut AdamW,
    lr: f64,
) -> Result<(BatchOutcome, f64)> {
    info_span!("optimizer").in_scope(|| policy.zero_gradients())?;
    if policy.shares_gradients() {
        return update_in_backward(policy, rows, is, settings, optimizer, lr);
    }
    let outcome = begin(policy, rows, is, settings, Gradients::Both)?;
    let norm = info_span!("optimizer").in_scope(|| optimizer.step(policy.trained_parameters(), lr))?;
    Ok((outcome.wait()?, norm))
}

/// Each block is updated as soon as the backwards of all passes have left it. No block below reads its weights, so that the gradients are those of
/// [`update`].
fn update_in_backward(
    policy: &Decoder,
    rows: &[&EncodedRow],
    is: PolicyIs<'_>,
    settings: &StepSettings,
    optimizer: &mut AdamW,
    lr: f64,
) -> Result<(BatchOutcome, f64)> {
    let waiting = Waiting::default();
    let outcome = begin(policy, rows, is, settings, waiting.of(Gradients::Both))?;
    let mut update = optimizer.begin(lr);
    waiting.make(policy, |part| update.apply(policy.parameters(), part))?;
    let norm = info_span!("optimizer").in_scope(|| update.norm())?;
    let outcome = outcome.wait()?;
    optimizer.n_updates += u64::from(outcome.loss.is_finite());
    Ok((outcome, norm))
}
