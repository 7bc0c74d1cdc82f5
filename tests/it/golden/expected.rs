//! What `tests/oracle/make_fixtures.py` writes; its README states the conventions.

use mpo::config::{ObjectiveConfig, OptimizerConfig, RetentionConfig, ScheduleKind};
use serde::Deserialize;

/// `expected.json`.
#[derive(Deserialize)]
pub struct Expected {
    pub pad_id: u32,
    /// The order of every list that has one entry a parameter.
    pub parameters: Vec<String>,
    pub rows: Vec<Row>,
    /// One for each row.
    pub scores: Vec<Scores>,
    pub hidden: Vec<Hidden>,
    pub cases: Vec<Case>,
    pub training: Training,
}

#[derive(Deserialize)]
pub struct Row {
    pub dominant: Pair,
    pub target: Pair,
}

#[derive(Deserialize)]
pub struct Pair {
    pub prompt: Vec<u32>,
    pub chosen: Vec<u32>,
    pub rejected: Vec<u32>,
}

#[derive(Deserialize)]
pub struct Scores {
    pub policy: SideScores,
    pub reference: SideScores,
}

#[derive(Deserialize)]
pub struct SideScores {
    pub dominant: PairScores,
    pub target: PairScores,
}

#[derive(Deserialize)]
pub struct PairScores {
    pub chosen: ResponseScore,
    pub rejected: ResponseScore,
    pub reward_gap: f64,
}

#[derive(Deserialize)]
pub struct ResponseScore {
    pub log_prob: f64,
    pub token_log_probs: Vec<f64>,
}

/// The policy's final-norm state of one sequence's last token.
#[derive(Deserialize)]
pub struct Hidden {
    pub row: usize,
    pub side: Side,
    pub response: Choice,
    pub last: Vec<f64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    Dominant,
    Target,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    Chosen,
    Rejected,
}

/// One loss over all rows. Without an `objective` it is the retention term alone.
#[derive(Deserialize)]
pub struct Case {
    pub name: String,
    pub objective: Option<ObjectiveConfig>,
    pub retention: RetentionConfig,
    pub values: Values,
    pub parameter_grad_norms: Vec<f64>,
}

#[derive(Deserialize)]
pub struct Values {
    pub mpo: f64,
    pub retention: f64,
    pub loss: f64,
    pub grad_norm: f64,
}

#[derive(Deserialize)]
pub struct Training {
    pub objective: ObjectiveConfig,
    pub retention: RetentionConfig,
    pub optimizer: OptimizerConfig,
    /// Before each update.
    pub steps: Vec<Values>,
    /// After the last one, in the order of `parameters`.
    pub r#final: Vec<FinalParameter>,
}

#[derive(Deserialize)]
pub struct FinalParameter {
    pub l2: f64,
    pub l2_of_change: f64,
    /// Evenly spread over the tensor.
    pub elements: Vec<f64>,
}

#[derive(Deserialize)]
pub struct ExpectedSchedule {
    pub kind: ScheduleKind,
    pub total_steps: usize,
    pub warmup_steps: usize,
    pub min_lr_ratio: f64,
    pub factors: Vec<f64>,
}
