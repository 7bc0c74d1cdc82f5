//! What a run will need, before it runs: arithmetic on shapes and token counts, and a few measured rates.
//!
//! `work` reduces a pass to what it costs and counts its operations, `low_rank` what an adapter changes of them; `ledger` and `replay` say what it takes from memory, `memory` what the
//! whole run holds at its fullest, `gpu` what it would hold on one, `held` compares that with what is free; `rates` measures the device, `seconds` divides the one by the other; `estimate` is all of it for a run.
//! `mpo plan` prints it, `mpo train` decides by it, and the log compares every step with it: there is one count of everything.

pub mod estimate;
pub mod gpu;
pub mod held;
pub mod ledger;
pub mod low_rank;
pub mod memory;
pub mod rates;
pub mod replay;
pub mod seconds;
pub mod units;
pub mod work;

use crate::model::decoder::Keep;
use std::num::NonZeroUsize;

/// What stays in memory from a forward to its backward, and what is made again. Results are the same, bit for bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepMemory {
    /// Of the blocks, in a pass with gradients.
    pub keep: Keep,
    /// At most so many of a micro-batch's logits, or of what the head keeps in their place ([`ops::log_prob`](crate::ops::log_prob)).
    pub kept_logits: usize,
}

impl StepMemory {
    /// How many blocks share a kept input, where not everything is kept.
    pub fn checkpoint_every(&self) -> Option<NonZeroUsize> {
        match self.keep {
            Keep::BlockInputs { every } => Some(every),
            Keep::Nothing | Keep::ForBackward => None,
        }
    }
}

impl Default for StepMemory {
    fn default() -> Self {
        // 256 MiB of logits in f32: whole micro-batches of small models, and little beside what training a large one takes.
        Self { keep: Keep::ForBackward, kept_logits: 64 * 1024 * 1024 }
    }
}
