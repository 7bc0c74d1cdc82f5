//! What one process measures, and what it answers: JSON on its standard input and output, the same for ours and for the Python peers.

use crate::floor::ProductList;
pub use crate::rows::{Lengths, Row, median};
use mpo::config::ComputeDtype;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Who does the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// This package.
    Mpo,
    /// The same with activation checkpointing on every block.
    MpoCheckpointing,
    /// This package, training an adapter of rank 16 on every projection.
    MpoLora,
    /// The step's list of matrix products alone, by the `gemm` crate.
    GemmList,
    /// The same list by this package's linear op.
    OpList,
    /// The same list by PyTorch.
    TorchList,
    /// PyTorch as the released training code does the step.
    ReleasedSdpa,
    ReleasedEager,
    /// PyTorch with logits at response positions only and the reference precomputed.
    Lean,
    /// TRL's DPO trainer on the same four sequences.
    TrlDpo,
    /// PyTorch's head: logits of all tokens at once.
    FullLogits,
}

/// One measurement. Rows hold lengths; both sides make random tokens of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    pub engine: Engine,
    /// Name of the shape, and its `config.json` as transformers has it.
    pub shape: String,
    pub config: Value,
    pub dtype: ComputeDtype,
    pub threads: usize,
    pub rows: Vec<Row>,
    /// Rows per optimizer step of ours; the peers take one, as the released runs did.
    pub batch_size: usize,
    /// Steps that are not counted, all on the first batch.
    pub warm_up: usize,
    /// Counted passes over the rows.
    pub passes: usize,
    /// Whether computing the reference scores is measured too, as `reference_seconds`.
    pub counts_reference: bool,
    /// For the engines that run a list of products.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub list: Option<ProductList>,
}

/// What a process measured. Lists have one value per counted step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Wall time.
    pub step_seconds: Vec<f64>,
    /// User and system time of all threads.
    pub step_cpu_seconds: Vec<f64>,
    pub peak_rss_bytes: u64,
    /// Computing the reference scores of all rows; 0 where that was not asked for.
    #[serde(default)]
    pub reference_seconds: f64,
    /// Of the head's measurement: its peak beyond weights and their gradient.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra_bytes: Option<u64>,
    /// Whatever else an engine says of itself.
    #[serde(flatten)]
    pub notes: Map<String, Value>,
}

impl Measured {
    pub fn median_seconds(&self) -> f64 {
        median(&self.step_seconds)
    }

    pub fn median_cpu_seconds(&self) -> f64 {
        median(&self.step_cpu_seconds)
    }

    /// Everything that was counted: what an epoch takes.
    pub fn total_seconds(&self) -> f64 {
        self.reference_seconds + self.step_seconds.iter().sum::<f64>()
    }
}
