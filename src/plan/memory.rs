//! What a run holds at its fullest, in bytes by kind.
//!
//! Weights, gradients and both moments are f32 for every parameter (`model::layers`, `train::optimizer`; with bf16, products round their
//! inputs as they read them). What passes need comes from replaying the run's own passes, from the scoring of the reference to the last step
//! (`replay`), and from the pool's rule how much more it may hold. What the process holds before a model is loaded is measured, not guessed.

use super::StepMemory;
use super::ledger::Kind;
use super::replay::{self, Replay};
use super::work::Pass;
use crate::model::description::DecoderDescription;
use crate::ops::buffer::HEADROOM;
use serde::Serialize;

/// Bytes of an f32.
const VALUE: u64 = size_of::<f32>() as u64;

/// What the system's allocator keeps of small pieces between passes (its trim threshold, glibc's default once a large block was freed), and
/// the code and stacks that training touches for the first time.
const OVERHEAD: u64 = 0;

/// What the bytes depend on.
#[derive(Debug, Clone, Copy)]
pub struct Setup<'a> {
    pub description: &'a DecoderDescription,
    pub n_parameters: usize,
    pub step: StepMemory,
    pub threads: usize,
    /// Passes in the order of the run.
    pub passes: &'a [&'a [Pass]],
    /// Values of the reference's states, of all sequences, and of its head where `kl` keeps one.
    pub n_reference: usize,
    /// Token ids and names of all rows.
    pub data: u64,
    /// What the process holds now, with `data` and without a model.
    pub process: u64,
}

/// Bytes by kind at the moment when they are most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    pub weights: u64,
    pub gradients: u64,
    pub moments: u64,
    /// Kept from forward to backward by the fullest pass.
    pub activations: u64,
    /// Logits that exist at once.
    pub head: u64,
    /// Within an op or from one to the next, and what waits in the pool for a pass of another length.
    pub scratch: u64,
    /// The frozen reference's scores, and its head for `kl`.
    pub reference: u64,
    /// Encoded rows.
    pub data: u64,
    /// Program, tokenizer, templates, allocator.
    pub process: u64,
}

impl Memory {
    pub fn of(setup: &Setup) -> Self {
        let mut replay = Replay::new(setup.description);
        let mut n_unpooled = 0;
        for pass in setup.passes.iter().copied().flatten() {
            replay.pass(pass, setup.step);
            n_unpooled = n_unpooled.max(replay::n_unpooled(pass, setup.description, setup.threads));
        }
        let lent = replay.ledger.peak();
        let n_idle = (HEADROOM * lent.total() as f64) as usize;
        let parameters = VALUE * setup.n_parameters as u64;
        let bytes = |n_values: usize| VALUE * n_values as u64;
        Self {
            weights: parameters,
            gradients: parameters,
            moments: 2 * parameters,
            activations: bytes(lent.of(Kind::Activation)),
            head: bytes(lent.of(Kind::Logits)),
            scratch: bytes(lent.of(Kind::Scratch) + n_idle + n_unpooled),
            reference: bytes(setup.n_reference),
            data: setup.data,
            process: setup.process.saturating_sub(setup.data) + OVERHEAD,
        }
    }

    /// The peak of the resident set.
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    /// Every kind with its name, the largest of a usual run first.
    pub fn parts(&self) -> [(&'static str, u64); 9] {
        [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("optimizer moments", self.moments),
            ("activations", self.activations),
            ("logits", self.head),
            ("scratch", self.scratch),
            ("reference scores", self.reference),
            ("encoded rows", self.data),
            ("program and tokenizer", self.process),
        ]
    }
}
