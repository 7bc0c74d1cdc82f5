//! The dominant side: the retention term and, where the objective reads them, the policy's dominant scores.

use super::{DominantPasses, Gradients, Side, Step, StepSettings, ids, kl, n_answer_tokens, n_tokens_unshared};
use crate::config::RetentionKind;
use crate::data::batch::{PackedBatch, PairSpans};
use crate::data::encode::{EncodedPreference, EncodedRow};
use crate::model::decoder::Forward;
use crate::model::description::DecoderDescription;
use crate::objective::{PairScores, retention};
use crate::ops::{self, Buffer, pool};
use crate::plan::work::{Gradient, Pass};
use crate::reference::FrozenScores;
use crate::scoring::{KeptStates, ScoredSequence, pair_scores, response_targets};
use anyhow::{Context, Result, ensure};
use std::collections::HashMap;
use tracing::info_span;

/// Rows of a batch that share a dominant pair: their retention is computed once and counts once for each.
struct DominantGroup<'a> {
    pair: &'a EncodedPreference,
    /// Indices into the batch.
    rows: Vec<usize>,
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

/// What the dominant side found for a row.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct DominantOutcome {
    pub policy: Option<PairScores>,
    /// Of the chosen and the rejected sequence, unweighted.
    pub retention: Option<[f64; 2]>,
}

impl Step<'_> {
    /// What each row's dominant pair gives; nothing is computed when nothing is asked for.
    pub(super) fn dominant_side(&self, rows: &[&EncodedRow]) -> Result<Side<DominantOutcome>> {
        let mut side = Side { outcomes: vec![DominantOutcome::default(); rows.len()], n_tokens: 0, n_tokens_computed: 0 };
        if !self.settings.needs_dominant() {
            return Ok(side);
        }
        let _span = info_span!("dominant side").entered();
        for row in rows {
            side.n_tokens += n_tokens_unshared(row.dominant_pair()?);
        }
        for groups in dominant_groups(rows, self.settings.dominant_passes).chunks(self.settings.micro_batch_size) {
            let named = || format!("dominant side of {}", ids(groups.iter().flat_map(|group| &group.rows).map(|&row| rows[row])));
            let (outcomes, pass) = self.dominant_pass(groups).with_context(named)?;
            side.n_tokens_computed += pass.n_tokens;
            for (group, outcome) in groups.iter().zip(outcomes) {
                group.rows.iter().for_each(|&row| side.outcomes[row] = outcome);
            }
        }
        Ok(side)
    }

    /// One micro-batch: an outcome for each group.
    fn dominant_pass(&self, groups: &[DominantGroup]) -> Result<(Vec<DominantOutcome>, Pass)> {
        let (batch, spans) = pack(groups, self.settings);
        let pass = pass(&batch, &spans, self.settings, self.backward.gradients, self.policy.description());
        let forward = info_span!("forward").in_scope(|| self.policy.forward(&batch, self.settings.memory(pass.gradient).keep))?;

        let mut outcomes = vec![DominantOutcome::default(); groups.len()];
        if pass.n_scored > 0 {
            let targets = response_targets(&batch, &spans);
            let log_probs = info_span!("head").in_scope(|| self.policy.log_probs(&forward.hidden_ND, &targets))?;
            let scores = pair_scores(&log_probs, &spans)?;
            outcomes.iter_mut().zip(scores).for_each(|(outcome, scores)| outcome.policy = Some(scores));
        }
        if self.settings.has_retention() {
            let (values, d_hidden_ND) = self.retention(groups, &spans, &forward)?;
            outcomes.iter_mut().zip(values).for_each(|(outcome, value)| outcome.retention = Some(value));
            if let Some(d_hidden_ND) = d_hidden_ND {
                self.backward.of(self.policy, forward, d_hidden_ND)?;
            }
        }
        Ok((outcomes, pass))
    }

    /// Unweighted retention of both sequences of each group, and d loss / d hidden states where it is wanted. For `kl` this also adds to the head's
    /// gradient.
    fn retention(&self, groups: &[DominantGroup], spans: &[PairSpans], forward: &Forward) -> Result<(Vec<[f64; 2]>, Option<Buffer>)> {
        let reference = self.reference.dominant().context("the retention term")?;
        let (hidden_size, frozen_size) = (self.policy.description().hidden_size, reference.hidden_size());
        ensure!(
            hidden_size == frozen_size,
            "retention compares hidden states, and the policy's have {hidden_size} values, the reference's {frozen_size}"
        );
        let kept = KeptStates::of(&self.settings.retention);
        let rows_of = |group: &DominantGroup, spans: &PairSpans| {
            let n_end_tokens = [group.pair.chosen.n_end_tokens, group.pair.rejected.n_end_tokens];
            std::array::from_fn(|sequence| kept.rows(spans.both()[sequence], n_end_tokens[sequence]))
        };
        let rows: Vec<[Vec<Vec<usize>>; 2]> = groups.iter().zip(spans).map(|(group, spans)| rows_of(group, spans)).collect();
        let all_rows = rows.as_flattened().concat();
        let states = pool::forward(&forward.hidden_ND, &all_rows)?;
        let mut rest = states.as_slice();
        let mut d_states = Vec::with_capacity(states.len());
        let mut values = Vec::with_capacity(groups.len());
        for (group, rows) in groups.iter().zip(&rows) {
            let scale = self.settings.retention.weight * retention::sequence_weight(group.rows.len(), self.totals.n_rows);
            let scale = self.backward.gradients.of_retention().then_some(scale);
            let mut value = [0.0; 2];
            let frozen = info_span!("reference").in_scope(|| reference.pair(group.pair))?;
            for (sequence, frozen) in frozen.into_iter().enumerate() {
                let states = rest.split_off(..rows[sequence].len() * hidden_size).context("states of every sequence were pooled")?;
                let d_states_of;
                (value[sequence], d_states_of) = self.sequence_retention(states, frozen, reference, scale)?;
                d_states.extend(d_states_of);
            }
            values.push(value);
        }
        if !self.backward.gradients.of_retention() {
            return Ok((values, None));
        }
        let d_hidden_ND = ops::zeros_like(&forward.hidden_ND)?;
        pool::backward(&d_states, &all_rows, &d_hidden_ND)?;
        Ok((values, Some(d_hidden_ND)))
    }

    /// Of one sequence: the divergence of its kept states from the frozen ones and, with a `scale`, d loss / d states.
    fn sequence_retention(
        &self,
        states: &[f32],
        frozen: &ScoredSequence,
        reference: &FrozenScores,
        scale: Option<f64>,
    ) -> Result<(f64, Vec<f64>)> {
        let reduction = self.settings.retention.reduction;
        Ok(match self.settings.retention.kind {
            RetentionKind::None => (0.0, Vec::new()),
            RetentionKind::Hidden => {
                let d_states = scale.map(|scale| retention::distance_backward(states, &frozen.states, reduction, scale));
                (retention::distance(states, &frozen.states, reduction), d_states.unwrap_or_default())
            }
            RetentionKind::Kl => {
                let _span = info_span!("head").entered();
                let (value, d_states) = kl::mean_divergence(self.policy, reference.head()?, states, &frozen.states, scale)?;
                (value, d_states.into_iter().map(f64::from).collect())
            }
        })
    }
}
