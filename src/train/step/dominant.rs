//! The dominant side: the retention term and, where the objective reads them, the policy's dominant scores.

use super::{DominantPasses, Gradients, Side, Step, StepSettings, ids, n_answer_tokens, n_tokens_unshared, note};
use crate::config::RetentionKind;
use crate::data::batch::{PackedBatch, PairSpans};
use crate::data::encode::{EncodedPreference, EncodedRow};
use crate::model::description::DecoderDescription;
use crate::objective::PairScores;
use crate::plan::work::{Gradient, Pass};
use crate::scoring::{KeptStates, pair_scores, response_targets};
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use tracing::info_span;

/// Rows of a batch that share a dominant pair: their retention is computed once and counts once for each.
pub(super) struct DominantGroup<'a> {
    pub pair: &'a EncodedPreference,
    /// Indices into the batch.
    pub rows: Vec<usize>,
}

fn dominant_groups<'a>(rows: &[&'a EncodedRow], passes: DominantPasses) -> Vec<DominantGroup<'a>> {
    let mut groups: Vec<DominantGroup> = Vec::new();
    let mut group_of_pair: HashMap<_, usize> = HashMap::new();
    for (index, row) in rows.iter().enumerate() {
        let Some(pair) = &row.dominant else { continue };
        let tokens = (&pair.prompt, &pair.chosen.tokens, &pair.rejected.tokens);
        match (passes, group_of_pair.get(&tokens)) {
            (DominantPasses::OncePerPair, Some(&group)) => groups[group].rows.push(index),
            _ => {
                group_of_pair.insert(tokens, groups.len());
                groups.push(DominantGroup { pair, rows: vec![index] });
            }
        }
    }
    groups
}

/// The pairs of one micro-batch, one behind the other.
fn pack(groups: &[DominantGroup], settings: &StepSettings) -> (PackedBatch, Vec<PairSpans>) {
    let _span = info_span!("data").entered();
    let mut batch = PackedBatch::default();
    let layout = KeptStates::of(&settings.retention).layout(settings.pad_token);
    let spans = groups.iter().map(|group| batch.push_pair(group.pair, &layout)).collect();
    (batch, spans)
}

/// The head runs only for an objective that reads dominant scores; these have no gradient.
fn pass(batch: &PackedBatch, spans: &[PairSpans], settings: &StepSettings, gradients: Gradients, description: &DecoderDescription) -> Pass {
    let n_scored = if settings.objective.passes().policy_dominant { n_answer_tokens(spans) } else { 0 };
    let n_compared = if settings.retention.kind == RetentionKind::Kl { n_answer_tokens(spans) } else { 0 };
    let gradient = if gradients.of_retention() && settings.has_retention() { Gradient::OfStates } else { Gradient::None };
    Pass { n_compared, ..Pass::new(batch, description, n_scored, gradient) }
}

/// The passes of this side, without making them.
pub(super) fn passes(rows: &[&EncodedRow], settings: &StepSettings, gradients: Gradients, description: &DecoderDescription) -> Vec<Pass> {
    if !settings.needs_dominant() {
        return Vec::new();
    }
    let pass_of = |groups: &[DominantGroup]| {
        let (batch, spans) = pack(groups, settings);
        pass(&batch, &spans, settings, gradients, description)
    };
    dominant_groups(rows, settings.dominant_passes).chunks(settings.micro_batch_size).map(pass_of).collect()
}

/// What the dominant side finds of a row, where it is asked for.
#[derive(Debug, Default)]
pub(super) struct DominantOutcome {
    pub policy: OnceLock<PairScores>,
    /// Of the chosen and the rejected sequence, unweighted.
    pub retention: OnceLock<[f64; 2]>,
}

impl Step<'_> {
    /// What each row's dominant pair gives; nothing is computed when nothing is asked for.
    pub(super) fn dominant_side(&mut self, rows: &[&EncodedRow]) -> Result<Side> {
        let mut side = Side::default();
        if !self.settings.needs_dominant() {
            return Ok(side);
        }
        let _span = info_span!("dominant side").entered();
        for row in rows {
            side.n_tokens += n_tokens_unshared(row.dominant_pair()?);
        }
        for groups in dominant_groups(rows, self.settings.dominant_passes).chunks(self.settings.micro_batch_size) {
            let named = || format!("dominant side of {}", ids(groups.iter().flat_map(|group| &group.rows).map(|&row| rows[row])));
            side.n_tokens_computed += self.dominant_pass(groups, named).with_context(named)?.n_tokens;
        }
        Ok(side)
    }

    /// One micro-batch.
    fn dominant_pass(&mut self, groups: &[DominantGroup], named: impl Fn() -> String) -> Result<Pass> {
        let (batch, spans) = pack(groups, self.settings);
        let pass = pass(&batch, &spans, self.settings, self.backward.gradients, self.policy.description());
        let forward = info_span!("forward").in_scope(|| self.policy.forward(&batch, self.settings.memory(pass.gradient).keep))?;
        if pass.n_scored > 0 {
            let targets = response_targets(&batch, &spans);
            let scored = info_span!("head").in_scope(|| self.policy.score(&forward.hidden_ND, &targets, 0))?;
            let (found, spans, rows_of) = (Arc::clone(&self.found), spans.clone(), rows_of(groups));
            self.calls.call(&named, &scored.log_probs, 0, move |log_probs| {
                for (scores, rows) in pair_scores(log_probs, &spans)?.into_iter().zip(rows_of) {
                    rows.into_iter().try_for_each(|row| note(&found.dominant[row].policy, scores))?;
                }
                Ok(Vec::new())
            })?;
        }
        if self.settings.has_retention()
            && let Some(d_hidden_ND) = self.retention(groups, &spans, &forward, named)?
        {
            self.backward.of(self.policy, forward, d_hidden_ND)?;
        }
        Ok(pass)
    }
}

/// Of each group.
pub(super) fn rows_of(groups: &[DominantGroup]) -> Vec<Vec<usize>> {
    groups.iter().map(|group| group.rows.clone()).collect()
}
