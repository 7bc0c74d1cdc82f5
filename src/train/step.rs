//! One optimizer batch: forward and backward of both sides, cut into micro-batches.
//!
//! The dominant side runs first, for the retention term and, where the objective asks for them, the policy's dominant scores; then the
//! target side, for the objective. Only one micro-batch of one side has its activations in memory at a time. Every share of the loss is
//! divided by the totals of the whole batch, so gradients of micro-batches simply add up in the engine's buffers.

use crate::config::{Gap, RetentionConfig, RetentionKind, RunConfig};
use crate::data::batch::{Layout, PackedBatch, PairSpans, PromptSharing};
use crate::data::encode::{EncodedPair, EncodedPreference};
use crate::model::decoder::{Decoder, Forward, Keep};
use crate::objective::{BatchTotals, Objective, PairScores, RowLoss, RowScores, retention};
use crate::ops;
use crate::reference::{FrozenHead, FrozenScores};
use crate::scoring::{KeptStates, ScoredSequence, pair_scores, response_targets};
use crate::train::kl;
use anyhow::{Context, Result, bail, ensure};
use candle_core::Tensor;
use std::collections::HashMap;

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
    /// RG(policy, target pair), without beta.
    pub reward_gap_target: f64,
    /// RG(reference, dominant pair), where there is a reference.
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
        }
    }

    fn has_retention(&self) -> bool {
        self.retention.kind != RetentionKind::None
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
/// `reference` must hold every row's dominant pair where retention or the objective reads it.
pub fn evaluate_batch(
    policy: &Decoder,
    rows: &[&EncodedPair],
    reference: Option<&FrozenScores>,
    settings: &StepSettings,
    gradients: Gradients,
) -> Result<BatchOutcome> {
    let step = Step { policy, reference, settings, gradients, totals: batch_totals(rows) };
    let mut n_tokens_computed = 0;
    let mut n_tokens: usize = rows.iter().map(|row| n_tokens_unshared(&row.target)).sum();

    let mut dominant = vec![DominantOutcome::default(); rows.len()];
    if settings.has_retention() || settings.objective.passes().policy_dominant {
        n_tokens += rows.iter().map(|row| n_tokens_unshared(&row.dominant)).sum::<usize>();
        for groups in dominant_groups(rows, settings.dominant_passes).chunks(settings.micro_batch_size) {
            let named = || format!("dominant side of {}", ids(groups.iter().flat_map(|group| &group.rows).map(|&row| rows[row])));
            let pass = step.dominant_pass(groups).with_context(named)?;
            n_tokens_computed += pass.n_tokens_computed;
            for (group, outcome) in groups.iter().zip(pass.outcomes) {
                group.rows.iter().for_each(|&row| dominant[row] = outcome);
            }
        }
    }

    let mut outcomes = Vec::with_capacity(rows.len());
    for (rows, dominant) in rows.chunks(settings.micro_batch_size).zip(dominant.chunks(settings.micro_batch_size)) {
        let named = || format!("target side of {}", ids(rows.iter().copied()));
        let pass = step.target_pass(rows, dominant).with_context(named)?;
        n_tokens_computed += pass.n_tokens_computed;
        outcomes.extend(pass.outcomes);
    }
    Ok(batch_outcome(outcomes, settings, n_tokens, n_tokens_computed))
}

/// The first batch of a run whose policy is still the reference, with a free self-test.
#[derive(Debug, Clone, PartialEq)]
pub struct FirstBatch {
    pub outcome: BatchOutcome,
    /// Ids of the rows whose reference entry failed the test and was scored anew.
    pub rescored: Vec<String>,
}

/// [`evaluate_batch`] at step 0 with policy == reference, where retention must be 0: exactly on the CPU, below 1e-5 of the state's own
/// square elsewhere. An entry that fails is scored anew with the policy, once; failing again is an error.
pub fn evaluate_first_batch(
    policy: &Decoder,
    rows: &[&EncodedPair],
    reference: &mut FrozenScores,
    settings: &StepSettings,
    gradients: Gradients,
) -> Result<FirstBatch> {
    let outcome = evaluate_batch(policy, rows, Some(reference), settings, gradients)?;
    let failing = rows_with_retention(rows, &outcome, reference, settings)?;
    if failing.is_empty() {
        return Ok(FirstBatch { outcome, rescored: Vec::new() });
    }
    for row in &failing {
        reference.rescore(policy, &row.dominant)?;
    }
    policy.zero_gradients()?;
    let outcome = evaluate_batch(policy, rows, Some(reference), settings, gradients)?;
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
    rows: &[&'a EncodedPair],
    outcome: &BatchOutcome,
    reference: &FrozenScores,
    settings: &StepSettings,
) -> Result<Vec<&'a EncodedPair>> {
    let tolerance = if reference.provenance().device == "cpu" { 0.0 } else { 1e-5 };
    let mut failing = Vec::new();
    for (&row, outcome) in rows.iter().zip(&outcome.rows) {
        let frozen = reference.pair(&row.dominant)?;
        for (value, frozen) in outcome.retention.into_iter().flatten().zip(frozen) {
            let scale = match settings.retention.kind {
                RetentionKind::Hidden => retention::distance(&frozen.states, &vec![0.0; frozen.states.len()], settings.retention.reduction),
                RetentionKind::Kl | RetentionKind::None => 1.0,
            };
            // Not `value > …`: a value that is not a number fails too.
            if !(value <= tolerance * scale) {
                failing.push(row);
                break;
            }
        }
    }
    Ok(failing)
}

/// Rows of a batch that share a dominant pair: their retention is computed once and counts once for each.
struct DominantGroup<'a> {
    pair: &'a EncodedPreference,
    /// Indices into the batch.
    rows: Vec<usize>,
}

fn dominant_groups<'a>(rows: &[&'a EncodedPair], passes: DominantPasses) -> Vec<DominantGroup<'a>> {
    let mut groups: Vec<DominantGroup> = Vec::new();
    let mut group_of_pair: HashMap<_, usize> = HashMap::new();
    for (index, row) in rows.iter().enumerate() {
        let pair = &row.dominant;
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

/// What the dominant side found for a row.
#[derive(Debug, Clone, Copy, Default)]
struct DominantOutcome {
    policy: Option<PairScores>,
    retention: Option<[f64; 2]>,
}

/// The outcomes of one micro-batch of one side.
struct Pass<Outcome> {
    outcomes: Vec<Outcome>,
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

impl Step<'_> {
    /// Retention of some dominant pairs, and its gradient. The output head runs only for an objective that asks for dominant scores.
    fn dominant_pass(&self, groups: &[DominantGroup]) -> Result<Pass<DominantOutcome>> {
        let kept = KeptStates::of(&self.settings.retention);
        let with_gradients = self.gradients.of_retention() && self.settings.has_retention();
        let mut batch = PackedBatch::default();
        let layout = kept.layout(self.settings.pad_token);
        let spans: Vec<PairSpans> = groups.iter().map(|group| batch.push_pair(group.pair, &layout)).collect();
        let forward = self.policy.forward(&batch, keep(with_gradients))?;

        let mut outcomes = vec![DominantOutcome::default(); groups.len()];
        if self.settings.objective.passes().policy_dominant {
            let log_probs = self.policy.log_probs(&forward.hidden_ND, &response_targets(&batch, &spans))?;
            let scores = pair_scores(&log_probs, &spans)?;
            outcomes.iter_mut().zip(scores).for_each(|(outcome, scores)| outcome.policy = Some(scores));
        }
        if self.settings.has_retention() {
            let (values, d_hidden_ND) = self.retention(groups, &spans, &forward)?;
            outcomes.iter_mut().zip(values).for_each(|(outcome, value)| outcome.retention = Some(value));
            if with_gradients {
                self.policy.backward(forward, &d_hidden_ND)?;
            }
        }
        Ok(Pass { outcomes, n_tokens_computed: batch.n_tokens() })
    }

    /// Unweighted retention of both sequences of each group, and d loss / d hidden states. For `kl` this also adds to the head's gradient.
    fn retention(&self, groups: &[DominantGroup], spans: &[PairSpans], forward: &Forward) -> Result<(Vec<[f64; 2]>, Tensor)> {
        let reference = self.reference.context("the retention term needs reference scores")?;
        let (hidden_size, frozen_size) = (self.policy.description().hidden_size, reference.hidden_size());
        ensure!(
            hidden_size == frozen_size,
            "retention compares hidden states, and the policy's have {hidden_size} values, the reference's {frozen_size}"
        );
        let hidden_ND = ops::read(&forward.hidden_ND)?;
        let mut d_hidden_ND = vec![0.0f32; hidden_ND.len()];
        let mut values = Vec::with_capacity(groups.len());
        for (group, spans) in groups.iter().zip(spans) {
            let scale = self.settings.retention.weight * retention::sequence_weight(group.rows.len(), self.totals.n_rows);
            let n_end_tokens = [group.pair.chosen.n_end_tokens, group.pair.rejected.n_end_tokens];
            let mut value = [0.0; 2];
            for (sequence, frozen) in reference.pair(group.pair)?.into_iter().enumerate() {
                let span = spans.both()[sequence];
                value[sequence] = match self.settings.retention.kind {
                    RetentionKind::None => 0.0,
                    RetentionKind::Hidden => {
                        let rows = retention::pooled_rows(self.settings.retention.pooling, span, n_end_tokens[sequence]);
                        self.hidden_retention(&hidden_ND, &rows, frozen, scale, &mut d_hidden_ND)
                    }
                    RetentionKind::Kl => {
                        let rows: Vec<usize> = span.predicting_rows().collect();
                        self.kl_retention(&hidden_ND, &rows, (frozen, reference.head()?), scale, &mut d_hidden_ND)?
                    }
                };
            }
            values.push(value);
        }
        Ok((values, ops::tensor(d_hidden_ND, forward.hidden_ND.dims())?))
    }

    fn hidden_retention(&self, hidden_ND: &[f32], rows: &[usize], frozen: &ScoredSequence, scale: f64, d_hidden_ND: &mut [f32]) -> f64 {
        let reduction = self.settings.retention.reduction;
        let state_D = retention::pool(hidden_ND, self.policy.description().hidden_size, rows);
        let d_state_D = retention::distance_backward(&state_D, &frozen.states, reduction, scale);
        retention::pool_backward(&d_state_D, rows, d_hidden_ND);
        retention::distance(&state_D, &frozen.states, reduction)
    }

    fn kl_retention(
        &self,
        hidden_ND: &[f32],
        rows: &[usize],
        (frozen, head): (&ScoredSequence, &FrozenHead),
        scale: f64,
        d_hidden_ND: &mut [f32],
    ) -> Result<f64> {
        let hidden_size = self.policy.description().hidden_size;
        let states_MD: Vec<f32> = rows.iter().flat_map(|row| &hidden_ND[row * hidden_size..][..hidden_size]).copied().collect();
        let scale = self.gradients.of_retention().then_some(scale);
        let (value, d_states_MD) = kl::mean_divergence(self.policy, head, &states_MD, &frozen.states, scale)?;
        for (row, d_state_D) in rows.iter().zip(d_states_MD.chunks(hidden_size)) {
            d_hidden_ND[row * hidden_size..][..hidden_size].iter_mut().zip(d_state_D).for_each(|(sum, d)| *sum += d);
        }
        Ok(value)
    }

    /// The objective of some rows, and its gradient.
    fn target_pass(&self, rows: &[&EncodedPair], dominant: &[DominantOutcome]) -> Result<Pass<RowOutcome>> {
        let with_gradients = self.gradients.of_objective();
        let mut batch = PackedBatch::default();
        let layout = Layout { sharing: self.settings.target_sharing, pad_token: None };
        let spans: Vec<PairSpans> = rows.iter().map(|row| batch.push_pair(&row.target, &layout)).collect();
        let targets = response_targets(&batch, &spans);
        let forward = self.policy.forward(&batch, keep(with_gradients))?;
        let log_probs = self.policy.log_probs(&forward.hidden_ND, &targets)?;

        let mut outcomes = Vec::with_capacity(rows.len());
        let mut losses = Vec::with_capacity(rows.len());
        for ((row, dominant), scores) in rows.iter().zip(dominant).zip(pair_scores(&log_probs, &spans)?) {
            let scores = self.row_scores(row, dominant, scores)?;
            let loss = self.settings.objective.row(&scores, &self.totals)?;
            outcomes.push(self.row_outcome(&scores, &loss, dominant));
            losses.push(loss);
        }
        if with_gradients {
            let d_hidden_ND = forward.hidden_ND.zeros_like()?;
            self.policy.log_probs_backward(&forward.hidden_ND, &targets, &d_log_probs(&losses, &spans), &d_hidden_ND)?;
            self.policy.backward(forward, &d_hidden_ND)?;
        }
        Ok(Pass { outcomes, n_tokens_computed: batch.n_tokens() })
    }

    fn row_scores(&self, row: &EncodedPair, dominant: &DominantOutcome, policy_target: PairScores) -> Result<RowScores> {
        let passes = self.settings.objective.passes();
        let of_reference = |wanted: bool, pair| match self.reference {
            Some(reference) if wanted => reference.pair_scores(pair).map(Some),
            _ => Ok(None),
        };
        Ok(RowScores {
            policy_target,
            policy_dominant: dominant.policy,
            // The column holds every dominant pair, and its gap is reported whether the objective reads it or not.
            reference_dominant: of_reference(true, &row.dominant)?,
            reference_target: of_reference(passes.reference_target, &row.target)?,
        })
    }

    fn row_outcome(&self, scores: &RowScores, loss: &RowLoss, dominant: &DominantOutcome) -> RowOutcome {
        let gap = self.settings.gap;
        RowOutcome {
            objective_share: loss.share,
            target: scores.policy_target,
            reward_gap_target: scores.policy_target.reward_gap(gap),
            reward_gap_reference: scores.reference_dominant.map(|pair| pair.reward_gap(gap)),
            reward_gap_dominant: scores.policy_dominant.map(|pair| pair.reward_gap(gap)),
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

fn batch_outcome(rows: Vec<RowOutcome>, settings: &StepSettings, n_tokens: usize, n_tokens_computed: usize) -> BatchOutcome {
    let objective = rows.iter().map(|row| row.objective_share).sum();
    let sequence_weight = retention::sequence_weight(1, rows.len());
    let retention = settings
        .has_retention()
        .then(|| rows.iter().filter_map(|row| row.retention).map(|[chosen, rejected]| sequence_weight * (chosen + rejected)).sum());
    let loss = objective + retention.map_or(0.0, |retention: f64| settings.retention.weight * retention);
    BatchOutcome { loss, objective, retention, rows, n_tokens, n_tokens_computed }
}

fn batch_totals(rows: &[&EncodedPair]) -> BatchTotals {
    BatchTotals {
        n_rows: rows.len(),
        n_chosen_tokens: rows.iter().map(|row| row.target.chosen.tokens.len()).sum(),
        n_rejected_tokens: rows.iter().map(|row| row.target.rejected.tokens.len()).sum(),
    }
}

/// Tokens of both sequences of a pair, each with its own prompt.
fn n_tokens_unshared(pair: &EncodedPreference) -> usize {
    2 * pair.prompt.len() + pair.chosen.tokens.len() + pair.rejected.tokens.len()
}

fn keep(with_gradients: bool) -> Keep {
    if with_gradients { Keep::ForBackward } else { Keep::Nothing }
}

fn ids<'a>(rows: impl Iterator<Item = &'a EncodedPair>) -> String {
    let ids: Vec<String> = rows.map(|row| format!("`{}`", row.id)).collect();
    format!("row {}", ids.join(", "))
}
