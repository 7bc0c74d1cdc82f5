//! The whole typed configuration of a run: what a TOML recipe may say, with every default in one place.
//!
//! Reading order: the tree (here), its choices (`variants`), and the sections with rules of their own (`objective`, `adapter`); `load` turns text
//! and `--set a.b=c` into a [`RunConfig`] in the steps
//! `document` (assignments and where each stands) -> `keys` (unknown keys, wrong types) -> `rules` (what spans keys) and collects every
//! problem on the way; `recipes` are the files inside the binary; `resume` says what may change between two starts of one run.
//!
//! A key is written down once, as a field of a section below: its name, its type, its default and its documentation.

mod adapter;
mod document;
mod keys;
mod load;
mod objective;
mod paths;
mod problems;
pub mod recipes;
mod resume;
mod rules;
mod variants;

pub use adapter::{AdapterConfig, AdapterKind, LayerRange, TargetModule, Targets};
pub use load::{Argument, load, load_for_scoring, parse};
pub use objective::{ObjectiveConfig, ObjectiveKind};
pub use paths::is_hub_id;
pub(crate) use paths::{BUILTIN_TEMPLATES, CHECKPOINT_TEMPLATE};
pub use problems::{ConfigError, Problem};
pub use resume::{Change, check_resume, diff, may_change_on_resume};
pub use variants::*;

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A run, one field per TOML section. Unknown keys are refused.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// What is trained.
    pub model: ModelConfig,
    /// What of it is trained: everything, or low-rank terms beside it.
    pub adapter: AdapterConfig,
    /// What it is compared with.
    pub reference: ReferenceConfig,
    /// What it is trained on.
    pub data: DataConfig,
    /// The loss.
    pub objective: ObjectiveConfig,
    /// The regulariser beside the loss.
    pub retention: RetentionConfig,
    /// How long, in which batches and order.
    pub train: TrainConfig,
    /// How a gradient becomes an update.
    pub optimizer: OptimizerConfig,
    /// How the learning rate moves.
    pub schedule: ScheduleConfig,
    /// Held-out rows.
    pub eval: EvalConfig,
    /// Benign prompts that the policy answers now and then.
    pub canary: CanaryConfig,
    /// When a failure sign is reported.
    pub signs: SignsConfig,
    /// What is saved on the way.
    pub checkpoint: CheckpointConfig,
    /// What computes.
    pub hardware: HardwareConfig,
    /// Where results go.
    pub output: OutputConfig,
}

/// `[model]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// A folder, `org/name` on the hub, or `builtin:tiny`. Required.
    pub path: String,
    /// Branch, tag or commit on the hub; the hub's `main` when absent.
    pub revision: Option<String>,
    /// The type of matrix inputs.
    pub dtype: ComputeDtype,
}

/// `[reference]`
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReferenceConfig {
    /// The frozen reference; the model itself when absent.
    pub path: Option<String>,
    /// Branch, tag or commit on the hub.
    pub revision: Option<String>,
}

/// `[data]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// A file, `org/name` on the hub, `https://…`, or `builtin:tiny`. Required.
    pub path: String,
    /// Branch, tag or commit on the hub.
    pub revision: Option<String>,
    /// What the file's bytes must hash to: 64 hexadecimal digits.
    pub sha256: Option<String>,
    /// Which part of a hub data set.
    pub split: String,
    /// How a row is written.
    pub format: DataFormat,
    /// Which pairs of parallel data the objective scores; `mpo` takes `target` only.
    pub sides: Sides,
    /// `checkpoint`, the name of a built-in template, or a file.
    pub template: String,
    /// What is appended to a response and counted with it.
    pub end_of_response: EndOfResponse,
    /// Longest prompt plus response, in tokens.
    pub max_tokens: usize,
    /// What becomes of a row longer than that.
    pub on_overlong: OnOverlong,
    /// Target languages to keep (ISO 639-1); all when absent.
    pub languages: Option<Vec<String>>,
    /// Only the first rows, this many.
    pub limit: Option<usize>,
    /// Drop rows whose dominant pair has a smaller reference gap than this.
    pub min_dominant_gap: Option<f64>,
    /// What a special token (`<|im_end|>`) that a row's text spells is read as.
    pub special_tokens: SpecialTokens,
    /// Split a text such as `\n\nHuman: … \n\nAssistant: …` into its turns (`preference` and `label`).
    pub transcript: bool,
}

/// `[retention]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionConfig {
    /// Which term; where it is not set, [`ObjectiveKind::default_retention`] decides.
    pub kind: RetentionKind,
    /// Lambda in `L = L1 + lambda L2`.
    pub weight: f64,
    /// Which hidden state stands for a sequence (`hidden` only).
    pub pooling: Pooling,
    /// From difference to number (`hidden` only).
    pub reduction: Reduction,
}

/// `[train]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Passes over the data. Exactly one of `epochs` and `max_steps` is set.
    pub epochs: Option<f64>,
    /// Optimizer steps.
    pub max_steps: Option<usize>,
    /// Rows per optimizer step.
    pub batch_size: usize,
    /// Rows computed at once; gradients accumulate up to `batch_size`.
    pub micro_batch_size: usize,
    /// Of everything random.
    pub seed: u64,
    /// A new order each epoch.
    pub shuffle: bool,
    /// Batches of whole groups that share a dominant pair, whose policy pass is then computed once.
    pub group_by_dominant: bool,
    /// What is kept for the backward pass, and what computed again: `"auto"`, `"on"`, `"off"`, or N to keep the input of every Nth block.
    /// Results do not depend on it.
    pub activation_checkpointing: ActivationCheckpointing,
    /// Non-finite steps in a row before the run stops.
    pub max_skipped_steps: usize,
}

/// `[optimizer]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Which optimizer.
    pub kind: OptimizerKind,
    /// Peak learning rate.
    pub lr: f64,
    /// Decay of the first and second moment.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled, on matrices only.
    pub weight_decay: f64,
    /// Global gradient norm above which gradients are scaled down; 0 turns clipping off.
    pub clip_norm: f64,
    /// Whether each block is updated within the backward pass, as soon as its gradients are whole: those of the whole model then never exist.
    /// Needs `clip_norm` = 0: that norm is known only at the end. Results are the same; to rounding where the head is the embeddings.
    pub in_backward: bool,
    /// Where an update keeps what bf16 weights cannot hold.
    pub master: MasterWeights,
    /// The type of both moments.
    pub moments: MomentType,
}

/// `[schedule]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    /// The curve after the warm-up.
    pub kind: ScheduleKind,
    /// Warm-up as a share of all steps. At most one of this and `warmup_steps`; no warm-up without either.
    pub warmup_ratio: Option<f64>,
    /// Warm-up in steps.
    pub warmup_steps: Option<usize>,
    /// The last step's learning rate as a share of `optimizer.lr` (`linear` and `cosine`).
    pub min_lr_ratio: f64,
}

/// `[eval]`: the same losses and per-language gaps on held-out rows, without gradients.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// A data set of its own, in any form that `data.path` takes. At most one of `path` and `fraction`.
    pub path: Option<String>,
    /// Share of the dominant pairs (never split between training and evaluation) held out.
    pub fraction: Option<f64>,
    /// Also every so many steps; only before the first and after the last when absent.
    pub every_steps: Option<usize>,
}

/// `[canary]`: benign prompts that show on the way what the loss does not: refusals, a lost language, loops, forgetting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CanaryConfig {
    /// The prompts, as `mpo eval --bench prompts` reads them: a file, `https://…`, or `builtin:tiny/canary`. No canaries when absent.
    pub path: Option<String>,
    /// Also every so many steps; only before the first and after the last when absent.
    pub every_steps: Option<usize>,
    /// The first benign prompts of each language, this many.
    pub limit: usize,
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
}

/// `[signs]`: thresholds of the failure signs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SignsConfig {
    /// Share of rows with `beta RG_t > RG_d` above which overshoot is reported.
    pub overshoot_share: f64,
    /// Fall of the chosen answer's mean log-probability since step 0, nats a token, above which displacement is reported.
    pub displacement_nats: f64,
    /// Share of the gap that must have closed after `stagnation_after` of the steps.
    pub stagnation_closed: f64,
    /// Share of the steps after which stagnation is looked at.
    pub stagnation_after: f64,
    /// Share of dominant pairs on which the reference prefers the rejected answer.
    pub bad_supervision_share: f64,
    /// Ratio of the two terms' gradient norms above which one drowns the other.
    pub gradient_ratio: f64,
    /// Growth since step 0 of the share of a language's canaries that are refused, answered in another language, or with a loop.
    pub canary_share: f64,
    /// Rise since step 0 of the canaries' negative log-likelihood, nats a token.
    pub canary_nll_nats: f64,
    /// Divergence of the dominant language's canaries from the model of step 0, nats a token.
    pub canary_kl_nats: f64,
}

/// `[checkpoint]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Steps between two checkpoints; only the last step's when absent.
    pub every_steps: Option<usize>,
    /// How many stay; older ones are removed.
    pub keep: usize,
    /// Also keep the checkpoint that did best by this held-out number, a key of `metrics.jsonl` such as `eval_loss`. Asked for every
    /// `eval.every_steps`.
    pub best: Option<String>,
    /// What makes it better, where its name does not say.
    pub best_is: Option<BestIs>,
}

impl CheckpointConfig {
    /// What makes the number of `best` better; `None` where that is in doubt.
    pub fn best_is(&self) -> Option<BestIs> {
        self.best_is.or_else(|| BestIs::of_metric(self.best.as_deref()?))
    }
}

/// `[hardware]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HardwareConfig {
    /// `auto`, `cpu` or `cuda:N`.
    pub device: String,
    /// All cores when absent. Results do not depend on it.
    pub threads: Option<usize>,
}

/// `[output]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutputConfig {
    /// The run's folder.
    pub dir: PathBuf,
    /// The type of the weights that are written.
    pub dtype: OutputDtype,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self { path: String::new(), revision: None, dtype: ComputeDtype::F32 }
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            path: String::new(),
            revision: None,
            sha256: None,
            split: "train".into(),
            format: DataFormat::Auto,
            sides: Sides::Target,
            template: paths::CHECKPOINT_TEMPLATE.into(),
            end_of_response: EndOfResponse::Template,
            max_tokens: 1024,
            on_overlong: OnOverlong::Truncate,
            languages: None,
            limit: None,
            min_dominant_gap: None,
            special_tokens: SpecialTokens::Text,
            transcript: false,
        }
    }
}

impl Default for RetentionConfig {
    fn default() -> Self {
        let kind = ObjectiveConfig::default().kind.default_retention();
        Self { kind, weight: 1.0, pooling: Pooling::Last, reduction: Reduction::Mean }
    }
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: None,
            max_steps: None,
            batch_size: 1,
            micro_batch_size: 1,
            seed: 0,
            shuffle: true,
            group_by_dominant: false,
            activation_checkpointing: ActivationCheckpointing::Auto,
            max_skipped_steps: 3,
        }
    }
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            kind: OptimizerKind::Adamw,
            lr: 6e-7,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.0,
            clip_norm: 1.0,
            in_backward: false,
            master: MasterWeights::F32,
            moments: MomentType::F32,
        }
    }
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self { kind: ScheduleKind::Cosine, warmup_ratio: None, warmup_steps: None, min_lr_ratio: 0.0 }
    }
}

impl Default for CanaryConfig {
    fn default() -> Self {
        Self { path: None, every_steps: None, limit: 8, max_new_tokens: 128 }
    }
}

impl Default for SignsConfig {
    fn default() -> Self {
        Self {
            overshoot_share: 0.25,
            displacement_nats: 0.3,
            stagnation_closed: 0.05,
            stagnation_after: 0.25,
            bad_supervision_share: 0.1,
            gradient_ratio: 30.0,
            canary_share: 0.25,
            canary_nll_nats: 0.3,
            canary_kl_nats: 0.1,
        }
    }
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every_steps: None, keep: 2, best: None, best_is: None }
    }
}

impl Default for HardwareConfig {
    fn default() -> Self {
        Self { device: "auto".into(), threads: None }
    }
}

impl Default for OutputConfig {
    fn default() -> Self {
        Self { dir: "runs/mpo".into(), dtype: OutputDtype::Checkpoint }
    }
}
