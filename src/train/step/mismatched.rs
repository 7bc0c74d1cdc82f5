//! Before a batch's gradients: how far the policy has moved on answers to other prompts. For a loss that reads it (KTO's z).

use super::{StepSettings, ids, n_answer_tokens, n_tokens_unshared};
use crate::data::encode::{EncodedPreference, EncodedRow};
use crate::model::decoder::Decoder;
use crate::model::description::DecoderDescription;
use crate::plan::work::{Gradient, Pass};
use crate::reference::Columns;
use crate::scoring::{self, KeptStates, ScoredPair};
use anyhow::{Context, Result};
use tracing::info_span;

/// What the passes found.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Mismatched {
    /// Mean over the answers of `log pi - log pi_ref`, nats.
    pub mean_log_ratio: f64,
    pub n_tokens: usize,
    pub n_tokens_computed: usize,
}

/// The passes of [`mean_log_ratio`], without making them.
pub(super) fn passes(rows: &[&EncodedRow], settings: &StepSettings, description: &DecoderDescription) -> Vec<Pass> {
    if !settings.objective.passes().mismatched {
        return Vec::new();
    }
    let pass_of = |rows: &[&EncodedRow]| {
        let pairs: Vec<&EncodedPreference> = rows.iter().filter_map(|row| row.mismatched.as_ref()).collect();
        let (batch, spans) = scoring::pack(&pairs, KeptStates::Nothing, settings.pad_token);
        Pass::new(&batch, description, n_answer_tokens(&spans), Gradient::None)
    };
    rows.chunks(settings.micro_batch_size).map(pass_of).collect()
}

/// Scores the mismatched answers of `rows` under the policy, without gradients; nothing is computed for a loss that does not read them.
pub(super) fn mean_log_ratio(policy: &Decoder, rows: &[&EncodedRow], reference: &Columns, settings: &StepSettings) -> Result<Mismatched> {
    let mut found = Mismatched::default();
    if !settings.objective.passes().mismatched {
        return Ok(found);
    }
    let _span = info_span!("mismatched side").entered();
    let (mut sum, mut n_answers) = (0.0, 0usize);
    for rows in rows.chunks(settings.micro_batch_size) {
        let mut pairs = Vec::with_capacity(rows.len());
        for row in rows {
            pairs.push(row.mismatched.as_ref().with_context(|| format!("row `{}` has no mismatched answers", row.id))?);
        }
        let named = || format!("mismatched answers of {}", ids(rows.iter().copied()));
        let scored = scoring::score(policy, &pairs, KeptStates::Nothing, settings.pad_token).with_context(named)?;
        for (pair, ScoredPair { chosen, rejected }) in pairs.iter().zip(scored) {
            let frozen = reference.target()?.pair_scores(pair)?;
            for (policy, frozen) in [(chosen.score, frozen.chosen), (rejected.score, frozen.rejected)] {
                sum += policy.log_prob - frozen.log_prob;
                n_answers += usize::from(!policy.is_absent());
            }
            found.n_tokens += n_tokens_unshared(pair);
            found.n_tokens_computed += pair.n_packed();
        }
    }
    found.mean_log_ratio = sum / n_answers.max(1) as f64;
    Ok(found)
}
