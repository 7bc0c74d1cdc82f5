//! The target side: the objective of some rows, and its gradient.

use super::{Found, Gradients, RowOutcome, Side, Step, StepSettings, ids, n_answer_tokens, n_tokens_unshared, note};
use crate::config::Gap;
use crate::data::batch::{Layout, PackedBatch, PairSpans};
use crate::data::encode::{EncodedPreference, EncodedRow, Response};
use crate::model::description::DecoderDescription;
use crate::objective::{Answers, BatchTotals, Objective, PairScores, RowLoss, RowScores};
use crate::ops;
use crate::plan::work::{Gradient, Pass};
use crate::scoring::{pair_scores, response_targets};
use anyhow::{Context, Result};
use std::borrow::Cow;
use std::sync::Arc;
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
    pub(super) fn target_side(&mut self, rows: &[&EncodedRow]) -> Result<Side> {
        let _span = info_span!("target side").entered();
        let answers = self.settings.objective.passes().policy_target;
        let n_tokens = rows.iter().map(|row| n_tokens_unshared(&read(&row.target, answers))).sum();
        let mut side = Side { n_tokens, n_tokens_computed: 0 };
        let micro_batch_size = self.settings.micro_batch_size;
        for (i, rows) in rows.chunks(micro_batch_size).enumerate() {
            let named = || format!("target side of {}", ids(rows.iter().copied()));
            let pass = self.target_pass(i * micro_batch_size, rows, named).with_context(named)?;
            side.n_tokens_computed += pass.n_tokens;
        }
        Ok(side)
    }

    /// One micro-batch, from row `first` of the batch on.
    fn target_pass(&mut self, first: usize, rows: &[&EncodedRow], named: impl Fn() -> String) -> Result<Pass> {
        let (batch, spans) = pack(rows, self.settings);
        let pass = pass(&batch, &spans, self.backward.gradients, self.policy.description());
        let targets = response_targets(&batch, &spans);
        let memory = self.settings.memory(pass.gradient);
        let forward = info_span!("forward").in_scope(|| self.policy.forward(&batch, memory.keep))?;
        let scored = info_span!("head").in_scope(|| self.policy.score(&forward.hidden_ND, &targets, memory.kept_logits))?;

        let micro_batch = self.micro_batch(first, rows, spans)?;
        if pass.gradient == Gradient::None {
            self.calls.call(named, &scored.log_probs, 0, move |log_probs| micro_batch.losses(log_probs).map(|_| Vec::new()))?;
            return Ok(pass);
        }
        let d_log_probs = self.calls.call(named, &scored.log_probs, targets.len(), move |log_probs| {
            let losses = micro_batch.losses(log_probs)?;
            Ok(d_log_probs(&losses, &micro_batch.spans))
        })?;
        let d_hidden_ND = ops::zeros_like(&forward.hidden_ND)?;
        let scored = (&targets[..], scored);
        info_span!("head").in_scope(|| self.policy.score_backward(&forward.hidden_ND, scored, &d_log_probs, &d_hidden_ND))?;
        self.backward.of(self.policy, forward, d_hidden_ND)?;
        Ok(pass)
    }

    fn micro_batch(&self, first: usize, rows: &[&EncodedRow], spans: Vec<PairSpans>) -> Result<MicroBatch> {
        let _span = info_span!("reference").entered();
        let frozen = |row: &&EncodedRow| {
            // Where there is a column of dominant pairs, its gap is reported whether the objective reads it or not.
            let dominant = match (&self.reference.dominant, &row.dominant) {
                (Some(column), Some(pair)) => Some(column.pair_scores(pair)?),
                _ => None,
            };
            let reads_target = self.settings.objective.passes().reference_target;
            let target = reads_target.then(|| self.reference.target()?.pair_scores(&row.target)).transpose()?;
            Ok(Frozen { dominant, target })
        };
        Ok(MicroBatch {
            first,
            spans,
            frozen: rows.iter().map(frozen).collect::<Result<_>>()?,
            objective: self.settings.objective.clone(),
            gap: self.settings.gap,
            totals: self.totals,
            found: Arc::clone(&self.found),
        })
    }
}

/// The reference's scores of a row's pairs, as far as they are read.
struct Frozen {
    dominant: Option<PairScores>,
    target: Option<PairScores>,
}

/// What losses are made of, but for the log-probabilities.
struct MicroBatch {
    /// Its first row's place in the batch.
    first: usize,
    spans: Vec<PairSpans>,
    frozen: Vec<Frozen>,
    objective: Objective,
    gap: Gap,
    totals: BatchTotals,
    found: Arc<Found>,
}

impl MicroBatch {
    /// Each row's loss; notes what was found of it.
    fn losses(&self, log_probs: &[f32]) -> Result<Vec<RowLoss>> {
        let rows = pair_scores(log_probs, &self.spans)?.into_iter().zip(&self.frozen).zip(self.first..);
        let loss = |((policy_target, frozen), row): ((PairScores, &Frozen), usize)| {
            let policy_dominant = self.found.dominant[row].policy.get().copied();
            let scores = RowScores { policy_target, policy_dominant, reference_dominant: frozen.dominant, reference_target: frozen.target };
            let loss = self.objective.row(&scores, &self.totals)?;
            note(&self.found.rows[row], self.outcome(&scores, &loss, row))?;
            Ok(loss)
        };
        rows.map(loss).collect()
    }

    fn outcome(&self, scores: &RowScores, loss: &RowLoss, row: usize) -> RowOutcome {
        RowOutcome {
            objective_share: loss.share,
            target: scores.policy_target,
            reward_gap_target: scores.policy_target.known_gap(self.gap),
            log_probs: self.objective.log_probs(scores),
            rewards: self.objective.rewards(scores),
            reward_gap_reference: scores.reference_dominant.map(|pair| pair.reward_gap(self.gap)),
            goal: self.objective.goal(scores),
            retention: self.found.dominant[row].retention.get().copied(),
        }
    }
}

/// d loss / d log-probability of each target token: a token counts as its response does, since the score is their sum. Of a loss that is not finite no
/// update may come, so that its gradient is not either.
fn d_log_probs(losses: &[RowLoss], spans: &[PairSpans]) -> Vec<f32> {
    let repeated = losses.iter().zip(spans).flat_map(|(loss, spans)| {
        let of = |d: f64| if loss.share.is_finite() { d as f32 } else { f32::NAN };
        let chosen = std::iter::repeat_n(of(loss.d_chosen), spans.chosen.response.len());
        chosen.chain(std::iter::repeat_n(of(loss.d_rejected), spans.rejected.response.len()))
    });
    repeated.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::batch::PromptSharing;

    #[test]
    fn a_token_counts_as_its_response_does() {
        let mut batch = PackedBatch::default();
        let response = |tokens: &[u32]| Response { tokens: tokens.to_vec(), n_end_tokens: 0 };
        let pair = EncodedPreference { lang: "sw".into(), prompt: vec![1], chosen: response(&[2, 3]), rejected: response(&[4]) };
        let layout = Layout { sharing: PromptSharing::Shared, pad_token: None };
        let spans = [(); 2].map(|()| batch.push_pair(&pair, &layout));
        let loss = |share| RowLoss { share, d_chosen: -0.5, d_rejected: 0.25 };
        assert_eq!(d_log_probs(&[loss(1.0), loss(2.0)], &spans), [-0.5, -0.5, 0.25, -0.5, -0.5, 0.25]);
        let bad = d_log_probs(&[loss(f64::INFINITY), loss(2.0)], &spans);
        assert!(
            bad[..3].iter().all(|d| d.is_nan()) && bad[3..] == [-0.5, -0.5, 0.25],
            "no update comes of a loss that is not finite: {bad:?}"
        );
    }
}
