//! One line of `metrics.jsonl`. (Lines with `"kind": "canary"` are of another kind: [`super::canary::line`].)
//!
//! Values are those before the update, over the whole batch; gaps are without beta. Beside the fixed keys stand those that the loss has
//! numbers for: `rewards/chosen`, `rewards/rejected`, `rewards/margins`, `rewards/accuracies`, `logps/chosen` and `logps/rejected` mean what
//! they do in TRL, in the units of the loss ([`Reported`](crate::objective::Reported)), `kl` is KTO's z; `reward_gap_target` and
//! `reward_gap_reference` are the paper's. Then the batch's languages (`reward_gap_target/sw`), and on some lines what was measured on other
//! rows with the same weights: `eval_…` on held-out rows, `probe_…` on fixed training rows (see [`super::evaluate`]), `grad_norm_objective` and
//! `grad_norm_retention` on the first steps; and what failure signs are judged by: `overshoot`, `bad_supervision`, `displacement/sw`,
//! `gap_closed/sw`. How well the machine was used stands in
//! `flops_per_second` (what the batch takes by `plan::work`, over the step's wall time), `gemm_share` (that over the rate of matrix products
//! measured at the start) and `share/forward`, … (a phase's share of the step; on a GPU of the host's time, which starts the work of all phases
//! there and waits for it at the end, in `share/optimizer`).

use super::measure::{Means, Measurement};
use super::phases::PHASES;
use super::signs::Trend;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Numbers that are not finite are written as null.
#[derive(Debug, Clone, Serialize)]
pub struct StepLine {
    /// Counted from 1.
    pub step: usize,
    /// Passes over the data when the step is done.
    pub epoch: f64,
    pub loss: f64,
    /// The loss without retention.
    pub objective: f64,
    /// Unweighted.
    pub retention: f64,
    /// Before clipping.
    pub grad_norm: f64,
    pub lr: f64,
    /// Of the policy, as if nothing were shared.
    pub tokens: usize,
    pub tokens_computed: usize,
    /// Wall time of the step: forward, backward, update.
    pub seconds: f64,
    pub tokens_per_second: f64,
    pub peak_rss_bytes: u64,
    /// The most of the GPU's memory that was in use since the line before, without what the driver keeps for itself; only where one computes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_gpu_bytes: Option<u64>,
    #[serde(flatten)]
    pub more: Map<String, Value>,
    /// For the console; `more` holds what there is of them.
    #[serde(skip)]
    pub means: Means,
}

/// Whether a key of `metrics.jsonl` depends on the clock or on the machine: all others are equal in equal runs.
pub fn is_timing(key: &str) -> bool {
    ["seconds", "tokens_per_second", "flops_per_second", "gemm_share", "peak_rss_bytes", "peak_gpu_bytes"].contains(&key)
        || key.starts_with(SHARE)
}

/// What the keys of phases begin with.
pub const SHARE: &str = "share/";

/// What a step made of the machine.
#[derive(Debug, Clone, Copy)]
pub struct Use {
    /// Floating-point operations that the batch takes.
    pub flops: f64,
    /// Wall time.
    pub seconds: f64,
    /// Of it, by phase.
    pub phase_seconds: [f64; PHASES.len()],
    /// Operations a second of matrix products alone.
    pub peak: f64,
}

/// Adds how well the machine was used.
pub fn add_use(line: &mut Map<String, Value>, used: &Use) {
    let flops_per_second = used.flops / used.seconds;
    line.insert("flops_per_second".into(), flops_per_second.into());
    line.insert("gemm_share".into(), (flops_per_second / used.peak).into());
    for (phase, seconds) in PHASES.iter().zip(used.phase_seconds) {
        line.insert(format!("{SHARE}{phase}"), (seconds / used.seconds).into());
    }
}

/// Adds each target language's gap: `reward_gap_target/sw`.
pub fn add_languages(line: &mut Map<String, Value>, prefix: &str, measured: &Measurement) {
    for (lang, means) in &measured.languages {
        add_known(line, format!("{prefix}reward_gap_target/{lang}"), means.reward_gap_target);
    }
}

/// Adds means over rows, those that there are.
pub fn add_means(line: &mut Map<String, Value>, prefix: &str, means: &Means) {
    for (key, value) in [
        ("reward_gap_target", means.reward_gap_target),
        ("reward_gap_reference", means.reward_gap_reference),
        ("overshoot", means.overshoot),
        ("rewards/chosen", means.chosen_reward),
        ("rewards/rejected", means.rejected_reward),
        ("rewards/margins", means.margin),
        ("rewards/accuracies", means.accuracy),
        ("logps/chosen", means.chosen_log_prob),
        ("logps/rejected", means.rejected_log_prob),
    ] {
        add_known(line, format!("{prefix}{key}"), value);
    }
}

/// A mean that is not a number is one over no rows.
fn add_known(line: &mut Map<String, Value>, key: String, value: f64) {
    if !value.is_nan() {
        line.insert(key, value.into());
    }
}

/// Adds what the signs of displacement and stagnation are judged by, for each language.
pub fn add_trends(line: &mut Map<String, Value>, trends: &BTreeMap<String, Trend>) {
    for (lang, trend) in trends {
        line.insert(format!("displacement/{lang}"), trend.fell.into());
        line.extend(trend.closed.map(|closed| (format!("gap_closed/{lang}"), closed.into())));
    }
}

/// Adds a measurement under a prefix: losses, gaps, rewards, and the answers' mean log-probabilities by language.
pub fn add_measurement(line: &mut Map<String, Value>, prefix: &str, measured: &Measurement) {
    let Measurement { losses, all, languages } = measured;
    for (key, value) in [("loss", losses.loss), ("objective", losses.objective), ("retention", losses.retention)] {
        line.insert(format!("{prefix}{key}"), value.into());
    }
    add_means(line, prefix, all);
    for (lang, means) in languages {
        add_known(line, format!("{prefix}chosen_per_token/{lang}"), means.chosen_per_token);
        add_known(line, format!("{prefix}rejected_per_token/{lang}"), means.rejected_per_token);
    }
    add_languages(line, prefix, measured);
}
