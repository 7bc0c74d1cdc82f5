//! One optimizer batch: forward and backward of both sides, cut into micro-batches.
//!
//! The dominant side runs first, for the retention term and, where the objective asks for them, the policy's dominant scores; then the
//! target side, for the objective. Only one micro-batch of one side has its activations in memory at a time. Every share of the loss is
//! divided by the totals of the whole batch, so gradients of micro-batches simply add up in the engine's buffers.

mod dominant;
mod first_batch;
mod kl;
mod target;

pub use first_batch::{FirstBatch, evaluate_first_batch};

use crate::config::{Gap, RetentionConfig, RetentionKind, RunConfig};
use crate::data::batch::{PairSpans, PromptSharing};
use crate::data::encode::{EncodedPreference, EncodedRow};
use crate::model::decoder::{Decoder, Keep};
use crate::model::description::DecoderDescription;
use crate::objective::{BatchTotals, Objective, PairScores, retention};
pub use crate::plan::StepMemory;
use crate::plan::work::{Gradient, Pass};
use crate::reference::FrozenScores;
use anyhow::Result;

/// What [`evaluate_batch`] needs of a run's configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct StepSettings {
    pub objective: Objective,
    /// How the reported reward gaps are computed.
    pub gap: Gap,
    pub retention: RetentionConfig,
    /// Pairs whose activations are in memory together.
    pub micro_batch_size: usize,
    /// Whether rows of the batch that share a dominant pair run its pass once, or once each.
    pub dominant_passes: DominantPasses,
    /// Whether the two answers of a target pair share one pass over their prompt.
    pub target_sharing: PromptSharing,
    /// What `mean_padded` fills up with.
    pub pad_token: u32,
    /// What stays in memory from a forward to its backward.
    pub memory: StepMemory,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DominantPasses {
    OncePerRow,
    OncePerPair,
}

/// Which terms' gradients [`evaluate_batch`] adds to the gradient buffers. All values are computed in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gradients {
    /// Evaluation.
    None,
    /// The whole loss: training.
    Both,
    ObjectiveOnly,
    /// `weight * retention`.
    RetentionOnly,
}

/// One row's values, before the update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowOutcome {
    /// The row's share of the objective: shares sum to [`BatchOutcome::objective`].
    pub objective_share: f64,
    /// The policy's log-probabilities of the target pair.
    pub target: PairScores,
    /// RG(policy, target pair), without beta, where it has both responses.
    pub reward_gap_target: Option<f64>,
    /// RG(reference, dominant pair), where there are both.
    pub reward_gap_reference: Option<f64>,
    /// RG(policy, dominant pair), where the objective reads it.
    pub reward_gap_dominant: Option<f64>,
    /// Retention of the dominant chosen and rejected sequence, unweighted.
    pub retention: Option<[f64; 2]>,
}

/// What one optimizer batch gave, over all of its rows and before the update.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchOutcome {
    /// `objective + weight * retention`
    pub loss: f64,
    pub objective: f64,
    /// Unweighted; `None` when the run has no retention term.
    pub retention: Option<f64>,
    /// In the order of the batch's rows.
    pub rows: Vec<RowOutcome>,
    /// Tokens of the policy's passes as if nothing were shared or padded.
    pub n_tokens: usize,
    /// Tokens that the policy's forward passes computed.
    pub n_tokens_computed: usize,
}

impl StepSettings {
    /// `pad_token`: the tokenizer's pad token, its end-of-turn token where there is none.
    pub fn new(config: &RunConfig, pad_token: u32) -> Self {
        let grouped = config.train.group_by_dominant;
        Self {
            objective: Objective::new(&config.objective),
            gap: config.objective.gap,
            retention: config.retention.clone(),
            micro_batch_size: config.train.micro_batch_size,
            dominant_passes: if grouped { DominantPasses::OncePerPair } else { DominantPasses::OncePerRow },
            target_sharing: PromptSharing::Shared,
            pad_token,
            memory: StepMemory::default(),
        }
    }

    /// What a pass keeps.
    fn memory(&self, gradient: Gradient) -> StepMemory {
        if gradient == Gradient::None { StepMemory { keep: Keep::Nothing, kept_logits: 0 } } else { self.memory }
    }

    fn has_retention(&self) -> bool {
        self.retention.kind != RetentionKind::None
    }

    /// Whether anything is asked of the dominant side.
    fn needs_dominant(&self) -> bool {
        self.has_retention() || self.objective.passes().policy_dominant
    }
}

impl Gradients {
    fn of_objective(self) -> bool {
        matches!(self, Self::Both | Self::ObjectiveOnly)
    }

    fn of_retention(self) -> bool {
        matches!(self, Self::Both | Self::RetentionOnly)
    }
}

impl RowOutcome {
    pub fn is_finite(&self) -> bool {
        let retention = self.retention.unwrap_or_default();
        [self.objective_share, retention[0], retention[1]].iter().all(|value| value.is_finite())
    }
}

/// Runs the policy over `rows` and adds the wanted gradients to its buffers, which the caller has zeroed.
///
/// `reference` must hold every dominant pair of the rows; where retention or the objective reads them, every row must have one.
pub fn evaluate_batch(
    policy: &Decoder,
    rows: &[&EncodedRow],
    reference: Option<&FrozenScores>,
    settings: &StepSettings,
    gradients: Gradients,
) -> Result<BatchOutcome> {
    let step = Step { policy, reference, settings, gradients, totals: batch_totals(rows) };
    let dominant = step.dominant_side(rows)?;
    let target = step.target_side(rows, &dominant.outcomes)?;
    let rows = target.outcomes;
    let objective = rows.iter().map(|row| row.objective_share).sum();
    let retention = settings.has_retention().then(|| mean_retention(&rows));
    Ok(BatchOutcome {
        loss: objective + settings.retention.weight * retention.unwrap_or(0.0),
        objective,
        retention,
        rows,
        n_tokens: dominant.n_tokens + target.n_tokens,
        n_tokens_computed: dominant.n_tokens_computed + target.n_tokens_computed,
    })
}

/// The passes that [`evaluate_batch`] makes of `rows`, in their order, without making them.
pub fn passes(rows: &[&EncodedRow], settings: &StepSettings, gradients: Gradients, description: &DecoderDescription) -> Vec<Pass> {
    let [dominant, target] = [dominant::passes, target::passes].map(|of_side| of_side(rows, settings, gradients, description));
    [dominant, target].concat()
}

/// What one side found, a row at a time, and the tokens that it took.
struct Side<Outcome> {
    /// In the order of the batch's rows.
    outcomes: Vec<Outcome>,
    n_tokens: usize,
    n_tokens_computed: usize,
}

/// What all micro-batches of a batch have in common.
struct Step<'a> {
    policy: &'a Decoder,
    reference: Option<&'a FrozenScores>,
    settings: &'a StepSettings,
    gradients: Gradients,
    totals: BatchTotals,
}

/// L2: the mean over the 2B dominant sequences of B rows.
fn mean_retention(rows: &[RowOutcome]) -> f64 {
    let weight = retention::sequence_weight(1, rows.len());
    rows.iter().filter_map(|row| row.retention).map(|[chosen, rejected]| weight * (chosen + rejected)).sum()
}

fn batch_totals(rows: &[&EncodedRow]) -> BatchTotals {
    BatchTotals {
        n_rows: rows.len(),
        n_chosen_tokens: rows.iter().map(|row| row.target.chosen.tokens.len()).sum(),
        n_rejected_tokens: rows.iter().map(|row| row.target.rejected.tokens.len()).sum(),
    }
}

/// Tokens of a pair's sequences, each with its own prompt.
fn n_tokens_unshared(pair: &EncodedPreference) -> usize {
    let present = [&pair.chosen, &pair.rejected].into_iter().filter(|response| !response.is_absent());
    present.map(|response| pair.prompt.len() + response.tokens.len()).sum()
}

/// Both answers of each pair: the tokens that the head or `kl` looks at.
fn n_answer_tokens(spans: &[PairSpans]) -> usize {
    spans.iter().flat_map(PairSpans::both).map(|span| span.response.len()).sum()
}

fn ids<'a>(rows: impl Iterator<Item = &'a EncodedRow>) -> String {
    let ids: Vec<String> = rows.map(|row| format!("`{}`", row.id)).collect();
    format!("row {}", ids.join(", "))
}
