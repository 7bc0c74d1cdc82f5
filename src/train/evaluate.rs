//! Passes over rows without gradients: held-out rows now and then, and fixed training rows before, within and after the run.

use super::clip::{NormOfParts, gradient_norm, squares};
use super::measure::{DominantGap, Losses, Measurement, RowMeasure};
use super::step::{
    Backward, BatchOutcome, DominantPasses, Gradients, StepSettings, Waiting, batch_totals, begin_batch, evaluate_batch,
    evaluate_first_batch, evaluate_first_part, evaluate_part,
};
use crate::config::{Pooling, RetentionKind};
use crate::data::encode::{EncodedPreference, EncodedRow};
use crate::data::loader::dominant_numbers;
use crate::interrupt::Stopped;
use crate::model::decoder::Decoder;
use crate::objective::PairScores;
use crate::ops::host::Later;
use crate::progress::Progress;
use crate::reference::Columns;
use crate::scoring::{self, KeptStates, ScoredPair};
use anyhow::Result;
use std::collections::{BTreeMap, HashSet};

/// Training rows that the run is measured on, in all; see [`probe_rows`].
const N_PROBE_ROWS: usize = 48;

/// The first rows of each target language, as many of each, at most `N_PROBE_ROWS` together (at least one of each). Measuring them three
/// times costs a few percent of a run; measuring every training row would cost an epoch's forward passes each time.
pub fn probe_rows(rows: &[EncodedRow]) -> Vec<usize> {
    let mut n_of_language: BTreeMap<&str, usize> = rows.iter().map(|row| (row.target.lang.as_str(), 0)).collect();
    let n_each = (N_PROBE_ROWS / n_of_language.len().max(1)).max(1);
    let is_wanted = |index: &usize| {
        let n = n_of_language.entry(rows[*index].target.lang.as_str()).or_default();
        *n += 1;
        *n <= n_each
    };
    (0..rows.len()).filter(is_wanted).collect()
}

/// Whether the policy still is the reference, so that retention must be 0: a self-test that costs nothing.
pub enum PolicyIs<'a> {
    Trained(&'a Columns),
    /// Reference entries that fail the test are scored anew.
    TheReference(&'a mut Columns),
}

impl PolicyIs<'_> {
    fn reference(&self) -> &Columns {
        match self {
            PolicyIs::Trained(reference) => reference,
            PolicyIs::TheReference(reference) => reference,
        }
    }

    fn again(&mut self) -> PolicyIs<'_> {
        match self {
            PolicyIs::Trained(reference) => PolicyIs::Trained(reference),
            PolicyIs::TheReference(reference) => PolicyIs::TheReference(reference),
        }
    }
}

/// Puts one batch on its way, with the self-test, which waits, where the policy still is the reference.
pub fn begin<'a>(
    policy: &Decoder,
    rows: &[&EncodedRow],
    is: PolicyIs<'_>,
    settings: &StepSettings,
    backward: impl Into<Backward<'a>>,
) -> Result<Later<BatchOutcome>> {
    match is {
        PolicyIs::Trained(reference) => begin_batch(policy, rows, reference, settings, backward),
        PolicyIs::TheReference(reference) => Ok(Later::known(evaluate_first_batch(policy, rows, reference, settings, backward)?.outcome)),
    }
}

/// Gradient norms of the objective and of the weighted retention, each alone. Leaves the gradients of the latter in the buffers.
pub fn term_norms(policy: &Decoder, rows: &[&EncodedRow], reference: &Columns, settings: &StepSettings) -> Result<[f64; 2]> {
    let norm = |gradients| {
        policy.zero_gradients()?;
        if policy.shares_gradients() {
            let (waiting, mut norm) = (Waiting::default(), NormOfParts::default());
            evaluate_batch(policy, rows, reference, settings, waiting.of(gradients))?;
            waiting.make(policy, |part| squares(&policy.parameters()[part.clone()]).map(|squares| norm.add(part.start, squares)))?;
            return norm.value();
        }
        evaluate_batch(policy, rows, reference, settings, gradients)?;
        gradient_norm(policy.trained_parameters())
    };
    Ok([norm(Gradients::ObjectiveOnly)?, norm(Gradients::RetentionOnly)?])
}

/// Asked between two parts of a measurement.
pub type ShouldStop<'a> = &'a dyn Fn() -> bool;

/// Measures the policy on `rows`, as one batch: losses do not depend on how it is cut.
///
/// # Errors
/// [`Stopped`] as soon as `should_stop` says so.
pub fn measure(
    policy: &Decoder,
    rows: &[&EncodedRow],
    mut is: PolicyIs<'_>,
    settings: &StepSettings,
    should_stop: ShouldStop<'_>,
) -> Result<Measurement> {
    let settings = measuring(settings);
    let mut measures = Vec::with_capacity(rows.len());
    let mut losses = Losses { loss: 0.0, objective: 0.0, retention: 0.0 };
    let progress = Progress::new("measuring", rows.len());
    let totals = batch_totals(policy, rows, is.reference(), &settings)?.totals;
    for rows in rows.chunks(settings.micro_batch_size) {
        go_on(should_stop)?;
        let part = match is.again() {
            PolicyIs::Trained(reference) => evaluate_part(policy, rows, &totals, reference, &settings, Gradients::None)?,
            PolicyIs::TheReference(reference) => evaluate_first_part(policy, rows, &totals, reference, &settings, Gradients::None)?.outcome,
        };
        let of_part = Losses::of(&part);
        losses.loss += of_part.loss;
        losses.objective += of_part.objective;
        losses.retention += of_part.retention;
        measures.extend(rows.iter().zip(&part.rows).map(|(row, outcome)| RowMeasure::new(row, outcome)));
        progress.advance(rows.len());
    }
    Ok(Measurement::new(losses, &measures))
}

fn go_on(should_stop: ShouldStop<'_>) -> Result<()> {
    if should_stop() { Err(Stopped.into()) } else { Ok(()) }
}

/// The settings of [`measure`]: rows that share a dominant pair need its pass once, unless the value depends on what is padded together.
pub fn measuring(settings: &StepSettings) -> StepSettings {
    let padded = settings.retention.kind == RetentionKind::Hidden && settings.retention.pooling == Pooling::MeanPadded;
    let dominant_passes = if padded { settings.dominant_passes } else { DominantPasses::OncePerPair };
    StepSettings { dominant_passes, ..settings.clone() }
}

/// The policy's own reward gaps on the distinct dominant pairs of `rows`, by dominant language: what retention is there to keep.
///
/// # Errors
/// As of [`measure`].
pub fn dominant_gaps(
    policy: &Decoder,
    rows: &[&EncodedRow],
    settings: &StepSettings,
    should_stop: ShouldStop<'_>,
) -> Result<BTreeMap<String, DominantGap>> {
    let mut by_language: BTreeMap<String, DominantGap> = BTreeMap::new();
    for pair in distinct_dominant(rows) {
        go_on(should_stop)?;
        for ScoredPair { chosen, rejected } in scoring::score(policy, &[pair], KeptStates::Nothing, settings.pad_token)? {
            let reward_gap = PairScores { chosen: chosen.score, rejected: rejected.score }.reward_gap(settings.gap);
            let mean = by_language.entry(pair.lang.clone()).or_insert(DominantGap { n_pairs: 0, reward_gap: 0.0 });
            mean.n_pairs += 1;
            mean.reward_gap += (reward_gap - mean.reward_gap) / mean.n_pairs as f64;
        }
    }
    Ok(by_language)
}

/// One of each dominant pair of `rows`, in order of first appearance; none where the rows have none.
pub fn distinct_dominant<'a>(rows: &[&'a EncodedRow]) -> Vec<&'a EncodedPreference> {
    let numbers = dominant_numbers(rows.iter().copied());
    let mut distinct = Vec::new();
    let mut seen = HashSet::new();
    for (row, number) in rows.iter().zip(numbers) {
        distinct.extend(row.dominant.as_ref().filter(|_| seen.insert(number)));
    }
    distinct
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::encode::Response;

    fn row(lang: &str, dominant: u32) -> EncodedRow {
        let response = |token| Response { tokens: vec![token], n_end_tokens: 0 };
        let side =
            |lang: &str, token| EncodedPreference { lang: lang.into(), prompt: vec![token], chosen: response(1), rejected: response(2) };
        EncodedRow { id: format!("{dominant}/{lang}"), dominant: Some(side("en", dominant)), target: side(lang, 9), mismatched: None }
    }

    #[test]
    fn the_probe_has_as_many_rows_of_each_language() {
        let rows: Vec<EncodedRow> = (0..100).flat_map(|i| [row("sw", i), row("bn", i), row("zh", i)]).chain([row("yo", 0)]).collect();
        let probe = probe_rows(&rows);
        let n_of = |lang: &str| probe.iter().filter(|&&index| rows[index].target.lang == lang).count();
        assert_eq!([n_of("sw"), n_of("bn"), n_of("zh"), n_of("yo")], [12, 12, 12, 1]);
        assert!(probe.iter().all(|&index| index < 36 || index == 300), "the first rows: the same dominant pairs for every language");
        assert_eq!(probe_rows(&[]), [0; 0]);
    }

    #[test]
    fn a_dominant_pair_counts_once() {
        let plain = EncodedRow { dominant: None, ..row("sw", 3) };
        let rows = [row("sw", 3), plain, row("bn", 3), row("sw", 1), row("bn", 1), row("zh", 3)];
        let distinct = distinct_dominant(&rows.iter().collect::<Vec<_>>());
        assert_eq!(distinct.iter().map(|pair| pair.prompt[0]).collect::<Vec<_>>(), [3, 1]);
    }
}
