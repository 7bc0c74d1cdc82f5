//! What one process measures, and what it answers: JSON on its standard input and output, the same for ours and for the Python peers.

use crate::floor::ProductList;
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

/// Token counts of one parallel pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Rows with the same number share their dominant pair.
    pub pair: usize,
    pub language: String,
    pub dominant: Lengths,
    pub target: Lengths,
}

/// Token counts of a preference pair. Responses include what ends the turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lengths {
    pub prompt: usize,
    pub chosen: usize,
    pub rejected: usize,
}

impl Lengths {
    /// Tokens of both sequences, the prompt counted twice.
    pub fn n_tokens(&self) -> usize {
        2 * self.prompt + self.n_response_tokens()
    }

    pub fn n_response_tokens(&self) -> usize {
        self.chosen + self.rejected
    }
}

impl Row {
    /// Four sequences of `n_tokens` each, a quarter of them prompt.
    pub fn of_length(n_tokens: usize) -> Self {
        let prompt = n_tokens / 4;
        let lengths = Lengths { prompt, chosen: n_tokens - prompt, rejected: n_tokens - prompt };
        Self { pair: 0, language: "sw".into(), dominant: lengths, target: lengths }
    }

    /// Tokens of its four sequences.
    pub fn n_tokens(&self) -> usize {
        self.dominant.n_tokens() + self.target.n_tokens()
    }
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

/// The middle value, or the mean of the two in the middle; NaN of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n => 0.5 * (sorted[(n - 1) / 2] + sorted[n / 2]),
    }
}
