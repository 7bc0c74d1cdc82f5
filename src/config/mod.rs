//! The whole typed configuration of a run: what a TOML recipe may say, with every default in one place.
//!
//! Unknown keys are refused. `problems` holds the rules that span keys; `overrides` implements `--set a.b=c`.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    pub model: ModelConfig,
    pub reference: ReferenceConfig,
    pub data: DataConfig,
    pub objective: ObjectiveConfig,
    pub retention: RetentionConfig,
    pub train: TrainConfig,
    pub optimizer: OptimizerConfig,
    pub schedule: ScheduleConfig,
    pub eval: EvalConfig,
    pub signs: SignsConfig,
    pub checkpoint: CheckpointConfig,
    pub hardware: HardwareConfig,
    pub output: OutputConfig,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelConfig {
    /// A folder, `org/name` on the hub, or `builtin:tiny`.
    pub path: String,
    pub revision: Option<String>,
    pub dtype: ComputeDtype,
}

/// The type of matrix inputs; accumulation and master weights are f32 either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComputeDtype {
    F32,
    Bf16,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReferenceConfig {
    /// The frozen reference; the model itself when absent.
    pub path: Option<String>,
    pub revision: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// A file, `org/name` on the hub, `https://…`, or `builtin:tiny`.
    pub path: String,
    pub revision: Option<String>,
    pub sha256: Option<String>,
    pub split: String,
    pub format: DataFormat,
    /// `checkpoint`, the name of a built-in template, or a file.
    pub template: String,
    pub end_of_response: EndOfResponse,
    pub max_tokens: usize,
    pub on_overlong: OnOverlong,
    /// Target languages to keep; all when absent.
    pub languages: Option<Vec<String>>,
    pub limit: Option<usize>,
    /// Drop rows whose dominant pair has a smaller reference gap than this.
    pub min_dominant_gap: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataFormat {
    Auto,
    Parallel,
    Llamafactory,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndOfResponse {
    Template,
    EosToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnOverlong {
    Truncate,
    Released,
    Drop,
    Error,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ObjectiveConfig {
    pub kind: ObjectiveKind,
    pub beta: f64,
    pub gap: Gap,
    pub gap_target: GapTarget,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectiveKind {
    Mpo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gap {
    LengthNormalized,
    Sum,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapTarget {
    Reference,
    Policy,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionConfig {
    pub kind: RetentionKind,
    /// lambda of METHOD.
    pub weight: f64,
    pub pooling: Pooling,
    pub reduction: Reduction,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetentionKind {
    Hidden,
    Kl,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    Last,
    LastContent,
    LastPrompt,
    Mean,
    MeanPadded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    Sum,
    Mean,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Exactly one of `epochs` and `max_steps` after resolution.
    pub epochs: Option<f64>,
    pub max_steps: Option<usize>,
    /// Rows per optimizer step.
    pub batch_size: usize,
    pub micro_batch_size: usize,
    pub seed: u64,
    pub shuffle: bool,
    pub group_by_dominant: bool,
    /// Non-finite steps in a row before the run stops.
    pub max_skipped_steps: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerConfig {
    pub kind: OptimizerKind,
    pub lr: f64,
    pub betas: [f64; 2],
    pub eps: f64,
    pub weight_decay: f64,
    /// Global gradient norm above which gradients are scaled down; 0 turns clipping off.
    pub clip_norm: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    Adamw,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ScheduleConfig {
    pub kind: ScheduleKind,
    pub warmup_ratio: Option<f64>,
    pub warmup_steps: Option<usize>,
    pub min_lr_ratio: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    Constant,
    Linear,
    Cosine,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    pub path: Option<String>,
    /// Share of the dominant pairs (never split between training and evaluation) held out.
    pub fraction: Option<f64>,
    pub every_steps: Option<usize>,
}

/// Thresholds of the failure signs (see `train::signs`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SignsConfig {
    /// Share of rows with beta RG_t > RG_d above which overshoot is reported.
    pub overshoot_share: f64,
    /// Fall of the chosen answer's mean log-probability since step 0, nats a token, above which displacement is reported.
    pub displacement_nats: f64,
    /// Share of the gap that must have closed after `stagnation_after` of the steps.
    pub stagnation_closed: f64,
    pub stagnation_after: f64,
    /// Share of dominant pairs on which the reference prefers the rejected answer.
    pub bad_supervision_share: f64,
    /// Ratio of the two terms' gradient norms above which one drowns the other.
    pub gradient_ratio: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    pub every_steps: Option<usize>,
    pub keep: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HardwareConfig {
    /// `auto`, `cpu` or `cuda:N`.
    pub device: String,
    /// All cores when absent.
    pub threads: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutputConfig {
    pub dir: PathBuf,
    pub dtype: OutputDtype,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputDtype {
    Checkpoint,
    F32,
    Bf16,
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
            template: "checkpoint".into(),
            end_of_response: EndOfResponse::Template,
            max_tokens: 1024,
            on_overlong: OnOverlong::Truncate,
            languages: None,
            limit: None,
            min_dominant_gap: None,
        }
    }
}
impl Default for ObjectiveConfig {
    fn default() -> Self {
        Self { kind: ObjectiveKind::Mpo, beta: 1.0, gap: Gap::LengthNormalized, gap_target: GapTarget::Reference }
    }
}
impl Default for RetentionConfig {
    fn default() -> Self {
        Self { kind: RetentionKind::Hidden, weight: 1.0, pooling: Pooling::Last, reduction: Reduction::Mean }
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
            max_skipped_steps: 3,
        }
    }
}
impl Default for OptimizerConfig {
    fn default() -> Self {
        Self { kind: OptimizerKind::Adamw, lr: 6e-7, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.0, clip_norm: 1.0 }
    }
}
impl Default for ScheduleConfig {
    fn default() -> Self {
        Self { kind: ScheduleKind::Cosine, warmup_ratio: None, warmup_steps: None, min_lr_ratio: 0.0 }
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
        }
    }
}
impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every_steps: None, keep: 2 }
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
