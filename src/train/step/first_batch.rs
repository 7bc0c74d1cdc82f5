//! Step 0 as a free self-test: while the policy still is the reference, retention must be exactly 0.

use super::{Backward, BatchOutcome, StepSettings, batch_totals, evaluate_part, ids};
use crate::config::RetentionKind;
use crate::data::encode::EncodedRow;
use crate::model::decoder::Decoder;
use crate::objective::{BatchTotals, retention};
use crate::reference::Columns;
use anyhow::{Context, Result, bail};

/// The first batch of a run whose policy is still the reference, with a free self-test.
#[derive(Debug, Clone, PartialEq)]
pub struct FirstBatch {
    pub outcome: BatchOutcome,
    /// Ids of the rows whose reference entry failed the test and was scored anew.
    pub rescored: Vec<String>,
}

/// [`evaluate_first_part`] of a whole batch.
pub fn evaluate_first_batch<'a>(
    policy: &Decoder,
    rows: &[&EncodedRow],
    reference: &mut Columns,
    settings: &StepSettings,
    backward: impl Into<Backward<'a>>,
) -> Result<FirstBatch> {
    let whole = batch_totals(policy, rows, reference, settings)?;
    let first = evaluate_first_part(policy, rows, &whole.totals, reference, settings, backward)?;
    Ok(FirstBatch { outcome: first.outcome.with(&whole), ..first })
}

/// [`evaluate_part`] at step 0 with policy == reference, where retention must be 0: exactly on the CPU, below 1e-5 of the state's own
/// square elsewhere. An entry that fails is scored anew with the policy, once; failing again is an error.
pub fn evaluate_first_part<'a>(
    policy: &Decoder,
    rows: &[&EncodedRow],
    totals: &BatchTotals,
    reference: &mut Columns,
    settings: &StepSettings,
    backward: impl Into<Backward<'a>>,
) -> Result<FirstBatch> {
    let backward = backward.into();
    let outcome = evaluate_part(policy, rows, totals, reference, settings, backward)?;
    let failing = rows_with_retention(rows, &outcome, reference, settings)?;
    if failing.is_empty() {
        return Ok(FirstBatch { outcome, rescored: Vec::new() });
    }
    for row in &failing {
        let column = reference.dominant.as_mut().context("the retention term reads a column that is not there")?;
        column.rescore(policy, row.dominant_pair()?)?;
    }
    backward.undo(policy)?;
    let outcome = evaluate_part(policy, rows, totals, reference, settings, backward)?;
    let still = rows_with_retention(rows, &outcome, reference, settings)?;
    if !still.is_empty() {
        bail!(
            "retention is not 0 although the policy is still the reference ({}): the same forward gave two results. \
             Please report this with your processor's name",
            ids(still.into_iter())
        );
    }
    Ok(FirstBatch { outcome, rescored: failing.iter().map(|row| row.id.clone()).collect() })
}

/// The rows whose retention is larger than rounding explains when policy and reference are the same.
fn rows_with_retention<'a>(
    rows: &[&'a EncodedRow],
    outcome: &BatchOutcome,
    reference: &Columns,
    settings: &StepSettings,
) -> Result<Vec<&'a EncodedRow>> {
    if settings.retention.kind == RetentionKind::None {
        return Ok(Vec::new());
    }
    let reference = reference.dominant()?;
    let tolerance = if reference.provenance().device == "cpu" { 0.0 } else { 1e-5 };
    let mut failing = Vec::new();
    for (&row, outcome) in rows.iter().zip(&outcome.rows) {
        let Some(retention) = outcome.retention else { continue };
        let frozen = reference.pair(row.dominant_pair()?)?;
        for (value, frozen) in retention.into_iter().zip(frozen) {
            let scale = match settings.retention.kind {
                RetentionKind::Hidden => retention::distance(&frozen.states, &vec![0.0; frozen.states.len()], settings.retention.reduction),
                RetentionKind::Kl | RetentionKind::None => 1.0,
            };
            if value.is_nan() || value > tolerance * scale {
                failing.push(row);
                break;
            }
        }
    }
    Ok(failing)
}
