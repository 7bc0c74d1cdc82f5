//! What one process measures on the GPU, and what it answers: JSON on its standard input and output, the same for ours and for the Python peers.

pub use crate::rows::{Row, median};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Who does the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// This package.
    Mpo,
    /// The same with an adapter of rank 16 on every projection.
    MpoLora,
    /// Large products alone: the card's own matrix rate.
    Products,
    /// Our head alone, and its products alone.
    Head,
    /// PyTorch as the released training code does the step.
    ReleasedSdpa,
    /// PyTorch with logits at response positions only and the reference precomputed.
    Lean,
    /// The same with activation checkpointing.
    LeanCheckpointing,
}

impl Engine {
    pub fn is_peer(self) -> bool {
        matches!(self, Self::ReleasedSdpa | Self::Lean | Self::LeanCheckpointing)
    }

    pub fn label(self) -> &'static str {
        match self {
            Self::Mpo => "mpo",
            Self::MpoLora => "mpo, LoRA rank 16",
            Self::Products => "large products",
            Self::Head => "mpo, head",
            Self::ReleasedSdpa => "PyTorch, released way",
            Self::Lean => "PyTorch lean",
            Self::LeanCheckpointing => "PyTorch lean, checkpointing",
        }
    }
}

/// One measurement. Rows hold lengths; both sides make random tokens of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    pub engine: Engine,
    /// `hardware.device`, which torch calls the same.
    pub device: String,
    /// `config.json` as transformers has it.
    pub config: Value,
    /// Of the products: `bf16`.
    pub dtype: mpo::config::ComputeDtype,
    /// Of a peer's weights: `bf16`, with f32 copies that are updated.
    pub weights: String,
    pub rows: Vec<Row>,
    /// All of them: the batch is one micro-batch.
    pub rows_per_step: usize,
    /// Of ours: whether rows of one pair share its pass.
    pub grouped: bool,
    /// Of ours: activation checkpointing on every block.
    pub checkpointing: bool,
    /// Of ours: stochastic rounding in the place of f32 masters, and 8-bit moments.
    pub small_state: bool,
    /// Of ours: each block updated within the backward, without clipping.
    pub in_backward: bool,
    /// Steps that are not counted.
    pub warm_up: usize,
    /// Counted steps.
    pub passes: usize,
}

/// All launches of one kernel, or of one product's shape, in a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    pub name: String,
    pub n_launches: usize,
    pub seconds: f64,
}

/// What a process measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Wall time of every counted step.
    #[serde(default)]
    pub step_seconds: Vec<f64>,
    /// The most that tensors held of the card's memory at once; `None` off a GPU.
    #[serde(default)]
    pub peak_bytes: Option<u64>,
    /// The error of a step that did not fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_of_memory: Option<String>,
    /// Operations of a step, what is computed again left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flops: Option<f64>,
    /// All kernels and products of a step together, by the card's own clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub busy_seconds: Option<f64>,
    /// Of the head: its products alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor_seconds: Option<f64>,
    /// What the card did in a step, the longest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<Kernel>,
    /// Whatever else an engine says of itself.
    #[serde(flatten)]
    pub notes: Map<String, Value>,
}

impl Measured {
    /// `None` where it did not fit.
    pub fn seconds(&self) -> Option<f64> {
        (!self.step_seconds.is_empty()).then(|| median(&self.step_seconds))
    }

    /// FLOP/s of its work.
    pub fn rate(&self) -> Option<f64> {
        Some(self.flops? / self.seconds()?)
    }

    /// The share of a step in which the card waits for the host.
    pub fn gaps(&self) -> Option<f64> {
        Some(1.0 - self.busy_seconds? / self.seconds()?)
    }
}
