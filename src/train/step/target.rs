//! The target side: the objective of some rows, and its gradient.

use super::dominant::DominantOutcome;
use super::{Gradients, RowOutcome, Side, Step, StepSettings, ids, n_answer_tokens, n_tokens_unshared};
use crate::data::batch::{Layout, PackedBatch, PairSpans};
use crate::data::encode::{EncodedPreference, EncodedRow, Response};
use crate::model::description::DecoderDescription;
use crate::objective::{Answers, PairScores, RowLoss, RowScores};
use crate::ops;
use crate::plan::work::{Gradient, Pass};
use crate::scoring::{pair_scores, response_targets};
use anyhow::{Context, Result};
use std::borrow::Cow;
use tracing::info_span;

/// The rows of one micro-batch, one behind the other.
fn pack(rows: &[&EncodedRow], settings: &StepSettings) -> (PackedBatch, Vec<PairSpans>) {
    let _span = info_span!("data").entered();
    let mut batch = PackedBatch::default();
    let layout = Layout { sharing: settings.target_sharing, pad_token: None };
    let answers = settings.objective.passes().policy_target;
    let spans = rows.iter().map(|row| batch.push_pair(&read(&row.target, answers), &layout)).collect();
    (batch, spans)
}

/// The pair as far as the objective reads it.
fn read(pair: &EncodedPreference, answers: Answers) -> Cow<'_, EncodedPreference> {
    match answers {
        Answers::Both | Answers::Any => Cow::Borrowed(pair),
        Answers::Chosen => Cow::Owned(EncodedPreference { rejected: Response::default(), ..pair.clone() }),
    }
}

fn pass(batch: &PackedBatch, spans: &[PairSpans], gradients: Gradients, description: &DecoderDescription) -> Pass {
    let gradient = if gradients.of_objective() { Gradient::OfScores } else { Gradient::None };
    Pass::new(batch, description, n_answer_tokens(spans), gradient)
}

/// The passes of this side, without making them.
pub(super) fn passes(rows: &[&EncodedRow], settings: &StepSettings, gradients: Gradients, description: &DecoderDescription) -> Vec<Pass> {
    let pass_of = |rows: &[&EncodedRow]| {
        let (batch, spans) = pack(rows, settings);
        pass(&batch, &spans, gradients, description)
    };
    rows.chunks(settings.micro_batch_size).map(pass_of).collect()
}

impl Step<'_> {
    /// The objective of every row.
    pub(super) fn target_side(&self, rows: &[&EncodedRow], dominant: &[DominantOutcome]) -> Result<Side<RowOutcome>> {
        let _span = info_span!("target side").entered();
        let answers = self.settings.objective.passes().policy_target;
        let n_tokens = rows.iter().map(|row| n_tokens_unshared(&read(&row.target, answers))).sum();
        let mut side = Side { outcomes: Vec::with_capacity(rows.len()), n_tokens, n_tokens_computed: 0 };
        let micro_batch_size = self.settings.micro_batch_size;
        for (rows, dominant) in rows.chunks(micro_batch_size).zip(dominant.chunks(micro_batch_size)) {
            let named = || format!("target side of {}", ids(rows.iter().copied()));
            let (outcomes, pass) = self.target_pass(rows, dominant).with_context(named)?;
            side.n_tokens_computed += pass.n_tokens;
            side.outcomes.extend(outcomes);
        }
        Ok(side)
    }

    /// One micro-batch: an outcome for each row.
    fn target_pass(&self, rows: &[&EncodedRow], dominant: &[DominantOutcome]) -> Result<(Vec<RowOutcome>, Pass)> {
        let (batch, spans) = pack(rows, self.settings);
        let pass = pass(&batch, &spans, self.backward.gradients, self.policy.description());
        let targets = response_targets(&batch, &spans);
        let memory = self.settings.memory(pass.gradient);
        let forward = info_span!("forward").in_scope(|| self.policy.forward(&batch, memory.keep))?;
        let scored = info_span!("head").in_scope(|| self.policy.score(&forward.hidden_ND, &targets, memory.kept_logits))?;

        let mut outcomes = Vec::with_capacity(rows.len());
        let mut losses = Vec::with_capacity(rows.len());
        for ((row, dominant), scores) in rows.iter().zip(dominant).zip(pair_scores(&scored.log_probs, &spans)?) {
            let scores = self.row_scores(row, dominant, scores)?;
            let loss = self.settings.objective.row(&scores, &self.totals)?;
            outcomes.push(self.row_outcome(&scores, &loss, dominant));
            losses.push(loss);
        }
        if pass.gradient != Gradient::None {
            let d_hidden_ND = ops::zeros_like(&forward.hidden_ND)?;
            let (scored, d_log_probs) = ((&targets[..], scored), d_log_probs(&losses, &spans));
            info_span!("head").in_scope(|| self.policy.score_backward(&forward.hidden_ND, scored, &d_log_probs, &d_hidden_ND))?;
            self.backward.of(self.policy, forward, d_hidden_ND)?;
        }
        Ok((outcomes, pass))
    }

    fn row_scores(&self, row: &EncodedRow, dominant: &DominantOutcome, policy_target: PairScores) -> Result<RowScores> {
        let _span = info_span!("reference").entered();
        // Where there is a column of dominant pairs, its gap is reported whether the objective reads it or not.
        let reference_dominant = match (&self.reference.dominant, &row.dominant) {
            (Some(column), Some(pair)) => Some(column.pair_scores(pair)?),
            _ => None,
        };
        let reads_target = self.settings.objective.passes().reference_target;
        let reference_target = reads_target.then(|| self.reference.target()?.pair_scores(&row.target)).transpose()?;
        Ok(RowScores { policy_target, policy_dominant: dominant.policy, reference_dominant, reference_target })
    }

    fn row_outcome(&self, scores: &RowScores, loss: &RowLoss, dominant: &DominantOutcome) -> RowOutcome {
        let gap = self.settings.gap;
        RowOutcome {
            objective_share: loss.share,
            target: scores.policy_target,
            reward_gap_target: scores.policy_target.known_gap(gap),
            log_probs: self.settings.objective.log_probs(scores),
            rewards: self.settings.objective.rewards(scores),
            reward_gap_reference: scores.reference_dominant.map(|pair| pair.reward_gap(gap)),
            goal: self.settings.objective.goal(scores),
            retention: dominant.retention,
        }
    }
}

/// d loss / d log-probability of each target token: a token counts as its response does, since the score is their sum.
fn d_log_probs(losses: &[RowLoss], spans: &[PairSpans]) -> Vec<f32> {
    let repeated = losses.iter().zip(spans).flat_map(|(loss, spans)| {
        let chosen = std::iter::repeat_n(loss.d_chosen as f32, spans.chosen.response.len());
        chosen.chain(std::iter::repeat_n(loss.d_rejected as f32, spans.rejected.response.len()))
    });
    repeated.collect()
}
