//! One optimizer step: a batch's loss, its gradients, and the update that they make, at the end or a block at a time within the backward.

use super::clip::gradient_norm;
use super::evaluate::{PolicyIs, evaluate};
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
    let outcome = evaluate(policy, rows, is, settings, Gradients::Both)?;
    let _span = info_span!("optimizer").entered();
    let parameters = policy.trained_parameters();
    let norm = if outcome.loss.is_finite() { optimizer.step(parameters, lr)? } else { gradient_norm(parameters)? };
    Ok((outcome, norm))
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
    let outcome = evaluate(policy, rows, is, settings, waiting.of(Gradients::Both))?;
    if !outcome.loss.is_finite() {
        return Ok((outcome, f64::NAN));
    }
    let mut update = optimizer.begin(lr);
    waiting.make(policy, |part| update.apply(policy.parameters(), part))?;
    let norm = info_span!("optimizer").in_scope(|| update.norm())?;
    optimizer.n_updates += 1;
    Ok((outcome, norm))
}
