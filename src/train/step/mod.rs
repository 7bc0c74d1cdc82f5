//! One optimizer batch: forward and backward of both sides, cut into micro-batches.
//!
//! What the objective must know of the whole batch comes first ([`batch_totals`]); then the dominant side, for the retention term and, where
//! the objective asks for them, the policy's dominant scores; then the target side, for the objective. No pass is made that nothing reads.
//! Only one micro-batch of one side has its activations in memory at a time, unless their backward passes are made together ([`Waiting`]). Every share of
//! the loss is divided by the totals of the whole batch, so gradients of micro-batches simply add up in the engine's buffers.
//!
//! On a GPU all of this is only put on its way: what the host computes of log-probabilities and states stands between kernels ([`ops::host`](crate::ops::host)),
//! and notes what it finds of each row.

mod dominant;
mod first_batch;
mod mismatched;
mod retention;
mod target;
mod waiting;

pub use first_batch::{FirstBatch, evaluate_first_batch, evaluate_first_part};
pub use waiting::{Backward, Waiting};

use crate::config::{Gap, RetentionConfig, RetentionKind, RunConfig};
use crate::data::batch::{PairSpans, PromptSharing};
use crate::data::encode::{EncodedPreference, EncodedRow};
use crate::model::decoder::{Decoder, Keep};
use crate::model::description::DecoderDescription;
use crate::objective::retention::sequence_weight;
use crate::objective::{BatchTotals, Objective, PairScores, PerAnswer};
use crate::ops::host::{Calls, Later};
pub use crate::plan::StepMemory;
use crate::plan::work::{Gradient, Pass};
use crate::reference::Columns;
use anyhow::{Context, Result, anyhow};
use dominant::DominantOutcome;
use std::iter::repeat_with;
use std::sync::{Arc, OnceLock};

/// What [`evaluate_batch`] needs of a run's configuration.
#[derive(Debug, Clone)]
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
    /// The policy's log-probabilities in the units of the objective, and the rewards where it compares answers.
    pub log_probs: PerAnswer,
    pub rewards: Option<PerAnswer>,
    /// RG(reference, dominant pair), where there are both.
    pub reward_gap_reference: Option<f64>,
    /// The reward gap at which the row's objective is least, where it has such a goal.
    pub goal: Option<f64>,
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
    /// The batch's totals, as the objective was told them.
    pub totals: BatchTotals,
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

impl BatchOutcome {
    /// With the tokens that finding the batch's totals took.
    fn with(mut self, whole: &Whole) -> Self {
        self.n_tokens += whole.n_tokens;
        self.n_tokens_computed += whole.n_tokens_computed;
        self
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
/// `reference` must hold what retention and the objective read of the rows; where they read dominant pairs, every row must have one.
pub fn evaluate_batch<'a>(
    policy: &Decoder,
    rows: &[&EncodedRow],
    reference: &Columns,
    settings: &StepSettings,
    backward: impl Into<Backward<'a>>,
) -> Result<BatchOutcome> {
    begin_batch(policy, rows, reference, settings, backward)?.wait()
}

/// [`evaluate_batch`] that does not wait for a GPU.
pub fn begin_batch<'a>(
    policy: &Decoder,
    rows: &[&EncodedRow],
    reference: &Columns,
    settings: &StepSettings,
    backward: impl Into<Backward<'a>>,
) -> Result<Later<BatchOutcome>> {
    let whole = batch_totals(policy, rows, reference, settings)?;
    Ok(begin_part(policy, rows, &whole.totals, reference, settings, backward)?.map(move |outcome| outcome.with(&whole)))
}

/// As [`evaluate_batch`], of some rows of a batch whose `totals` are known: the outcomes of its parts add up to the batch's.
pub fn evaluate_part<'a>(
    policy: &Decoder,
    rows: &[&EncodedRow],
    totals: &BatchTotals,
    reference: &Columns,
    settings: &StepSettings,
    backward: impl Into<Backward<'a>>,
) -> Result<BatchOutcome> {
    begin_part(policy, rows, totals, reference, settings, backward)?.wait()
}

fn begin_part<'a>(
    policy: &Decoder,
    rows: &[&EncodedRow],
    totals: &BatchTotals,
    reference: &Columns,
    settings: &StepSettings,
    backward: impl Into<Backward<'a>>,
) -> Result<Later<BatchOutcome>> {
    let found = Arc::new(Found::nothing(rows.len()));
    let mut step = Step {
        policy,
        reference,
        settings,
        backward: backward.into(),
        totals: *totals,
        calls: Calls::default(),
        found: Arc::clone(&found),
    };
    let (dominant, target) = (step.dominant_side(rows)?, step.target_side(rows)?);
    let (totals, weight) = (*totals, settings.has_retention().then_some(settings.retention.weight));
    Ok(step.calls.then(move || {
        let row = |row: &OnceLock<RowOutcome>| row.get().copied().context("a row was not looked at");
        let rows = found.rows.iter().map(row).collect::<Result<Vec<_>>>()?;
        let objective = rows.iter().map(|row| row.objective_share).sum();
        let retention = weight.map(|_| mean_retention(&rows, totals.n_rows));
        Ok(BatchOutcome {
            loss: objective + weight.unwrap_or(0.0) * retention.unwrap_or(0.0),
            objective,
            retention,
            totals,
            rows,
            n_tokens: dominant.n_tokens + target.n_tokens,
            n_tokens_computed: dominant.n_tokens_computed + target.n_tokens_computed,
        })
    }))
}

/// The totals of a batch, and the tokens of the passes that they took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Whole {
    pub totals: BatchTotals,
    pub n_tokens: usize,
    pub n_tokens_computed: usize,
}

/// What the objective is told of the whole batch before any gradient; for KTO that takes passes over the mismatched answers.
pub fn batch_totals(policy: &Decoder, rows: &[&EncodedRow], reference: &Columns, settings: &StepSettings) -> Result<Whole> {
    let mismatched = mismatched::mean_log_ratio(policy, rows, reference, settings)?;
    let count = |of: &dyn Fn(&EncodedPreference) -> usize| rows.iter().map(|row| of(&row.target)).sum();
    let totals = BatchTotals {
        n_rows: rows.len(),
        n_chosen: count(&|pair| usize::from(!pair.chosen.is_absent())),
        n_rejected: count(&|pair| usize::from(!pair.rejected.is_absent())),
        n_chosen_tokens: count(&|pair| pair.chosen.tokens.len()),
        n_rejected_tokens: count(&|pair| pair.rejected.tokens.len()),
        mismatched_log_ratio: mismatched.mean_log_ratio,
    };
    Ok(Whole { totals, n_tokens: mismatched.n_tokens, n_tokens_computed: mismatched.n_tokens_computed })
}

/// The passes that [`evaluate_batch`] makes of `rows`, in their order, without making them.
pub fn passes(rows: &[&EncodedRow], settings: &StepSettings, gradients: Gradients, description: &DecoderDescription) -> Vec<Pass> {
    let [dominant, target] = [dominant::passes, target::passes].map(|of_side| of_side(rows, settings, gradients, description));
    [mismatched::passes(rows, settings, description), dominant, target].concat()
}

/// The tokens that one side took.
#[derive(Default)]
struct Side {
    n_tokens: usize,
    n_tokens_computed: usize,
}

/// What was found of each row, in the order of the rows: filled by the host between a GPU's kernels.
struct Found {
    dominant: Vec<DominantOutcome>,
    rows: Vec<OnceLock<RowOutcome>>,
}

impl Found {
    fn nothing(n_rows: usize) -> Self {
        let dominant = repeat_with(DominantOutcome::default).take(n_rows).collect();
        Self { dominant, rows: repeat_with(OnceLock::new).take(n_rows).collect() }
    }
}

fn note<T>(place: &OnceLock<T>, value: T) -> Result<()> {
    place.set(value).map_err(|_| anyhow!("a row was looked at twice"))
}

/// What all micro-batches of a batch have in common.
struct Step<'a> {
    policy: &'a Decoder,
    reference: &'a Columns,
    settings: &'a StepSettings,
    backward: Backward<'a>,
    totals: BatchTotals,
    calls: Calls,
    found: Arc<Found>,
}

/// L2: the mean over the 2B dominant sequences of B rows, `rows`' part of it.
fn mean_retention(rows: &[RowOutcome], n_rows: usize) -> f64 {
    let weight = sequence_weight(1, n_rows);
    rows.iter().filter_map(|row| row.retention).map(|[chosen, rejected]| weight * (chosen + rejected)).sum()
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
