//! What ops and products take beside the pool, on the CPU.

use super::Replay;
use crate::ops::attention::{KEYS, QUERIES};
use crate::ops::log_prob::{LOGITS_PER_CHUNK, rows_per_chunk};
use crate::plan::work::{Gradient, Pass};

/// Length of the inner dimension that a product packs at a time.
const ROWS_PER_PACK: usize = 512;

impl Replay<'_> {
    /// Values beside the pool at the fullest moment of a pass: what ops and products take from the system for the time of one call.
    pub fn n_unpooled(&self, pass: &Pass, n_threads: usize) -> usize {
        let d = self.d;
        if pass.gradient == Gradient::None {
            return 0;
        }
        // attention::backward: dq of every query head, dk and dv of every key head for each sequence, and two tiles of scores a thread.
        let attention =
            pass.n_tokens * (d.n_heads + 4 * d.n_kv_heads) * d.head_dim + n_threads * 2 * QUERIES * KEYS.min(pass.n_largest_tree);
        // A product packs at most the wider input of a weight gradient: a chunk's logits, or the gradient of gate and up; of a low-rank term,
        // that of one of them. In f32 it is less: 3 MiB a thread.
        let chunk = rows_per_chunk(pass.n_scored, d.vocab_size, LOGITS_PER_CHUNK);
        let has_head_gradient = pass.gradient == Gradient::OfScores && self.low_rank.is_none();
        let head = if has_head_gradient { chunk.min(ROWS_PER_PACK) * d.vocab_size } else { 0 };
        let n_wide = if self.low_rank.is_some() { 1 } else { 2 };
        attention.max(head).max(pass.n_tokens.min(ROWS_PER_PACK) * n_wide * d.intermediate_size)
    }
}
