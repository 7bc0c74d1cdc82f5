//! The dominant side: the retention term and, where the objective reads them, the policy's dominant scores.

use super::{DominantPasses, Gradients, Side, Step, StepSettings, ids, kl, n_answer_tokens, n_tokens_unshared};
use crate::config::RetentionKind;
use crate::data::batch::{PackedBatch, PairSpans, SequenceSpan};
use crate::data::encode::{EncodedPreference, EncodedRow};
use crate::model::decoder::Forward;
use crate::model::description::DecoderDescription;
use crate::objective::{PairScores, retention};
use crate::ops::{self, Buffer};
use crate::plan::work::{Gradient, Pass};
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
            if pass.gradient != Gradient::None {
                self.backward.of(self.policy, forward, d_hidden_ND)?;
            }
        }
        Ok((outcomes, pass))
    }

    /// Unweighted retention of both sequences of each group, and d loss / d hidden states. For `kl` this also adds to the head's gradient.
    fn retention(&self, groups: &[DominantGroup], spans: &[PairSpans], forward: &Forward) -> Result<(Vec<[f64; 2]>, Buffer)> {
        let reference = self.reference.dominant().context("the retention term")?;
        let (hidden_size, frozen_size) = (self.policy.description().hidden_size, reference.hidden_size());
        ensure!(
            hidden_size == frozen_size,
            "retention compares hidden states, and the policy's have {hidden_size} values, the reference's {frozen_size}"
        );
        let rows_of = |group: &DominantGroup, spans: &PairSpans| {
            let n_end_tokens = [group.pair.chosen.n_end_tokens, group.pair.rejected.n_end_tokens];
            std::array::from_fn(|sequence| self.retained_rows(spans.both()[sequence], n_end_tokens[sequence]))
        };
        let rows: Vec<[Vec<usize>; 2]> = groups.iter().zip(spans).map(|(group, spans)| rows_of(group, spans)).collect();
        let all_rows: Vec<usize> = rows.iter().flatten().flatten().copied().collect();
        let states = ops::read_rows(&forward.hidden_ND, &all_rows)?;
        let mut rest = states.as_slice();
        let mut d_states = Vec::with_capacity(states.len());
        let mut values = Vec::with_capacity(groups.len());
        for (group, rows) in groups.iter().zip(&rows) {
            let scale = self.settings.retention.weight * retention::sequence_weight(group.rows.len(), self.totals.n_rows);
            let mut value = [0.0; 2];
            let frozen = info_span!("reference").in_scope(|| reference.pair(group.pair))?;
            for (sequence, frozen) in frozen.into_iter().enumerate() {
                let states_MD = rest.split_off(..rows[sequence].len() * hidden_size).context("states of every sequence were read")?;
                let d_states_MD;
                (value[sequence], d_states_MD) = match self.settings.retention.kind {
                    RetentionKind::None => (0.0, vec![0.0; states_MD.len()]),
                    RetentionKind::Hidden => self.hidden_retention(states_MD, frozen, scale),
                    RetentionKind::Kl => {
                        let _span = info_span!("head").entered();
                        let scale = self.backward.gradients.of_retention().then_some(scale);
                        kl::mean_divergence(self.policy, reference.head()?, states_MD, &frozen.states, scale)?
                    }
                };
                d_states.extend(d_states_MD);
            }
            values.push(value);
        }
        let d_hidden_ND = ops::zeros_like(&forward.hidden_ND)?;
        // An evaluation of `kl` has no gradient.
        if !d_states.is_empty() {
            ops::add_to_rows(&d_hidden_ND, &all_rows, &d_states)?;
        }
        Ok((values, d_hidden_ND))
    }

    /// The rows whose states the retention of one sequence looks at.
    fn retained_rows(&self, span: &SequenceSpan, n_end_tokens: usize) -> Vec<usize> {
        match self.settings.retention.kind {
            RetentionKind::None => Vec::new(),
            RetentionKind::Hidden => span.pooled_rows(self.settings.retention.pooling, n_end_tokens),
            RetentionKind::Kl => span.predicting_rows().collect(),
        }
    }

    /// Of one sequence: the distance, and its gradient by the states `[M, D]` that are pooled, times `scale`.
    fn hidden_retention(&self, states_MD: &[f32], frozen: &ScoredSequence, scale: f64) -> (f64, Vec<f32>) {
        let (reduction, hidden_size) = (self.settings.retention.reduction, self.policy.description().hidden_size);
        let rows: Vec<usize> = (0..states_MD.len() / hidden_size).collect();
        let state_D = retention::pool(states_MD, hidden_size, &rows);
        let d_state_D = retention::distance_backward(&state_D, &frozen.states, reduction, scale);
        let mut d_states_MD = vec![0.0; states_MD.len()];
        retention::pool_backward(&d_state_D, &rows, &mut d_states_MD);
        (retention::distance(&state_D, &frozen.states, reduction), d_states_MD)
    }
}
