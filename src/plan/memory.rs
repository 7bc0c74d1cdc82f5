//! What a run holds at its fullest, in bytes by kind.
//!
//! Weights are f32, and so are gradients and both moments of every parameter that is trained (`model::layers`, `train::optimizer`; with bf16,
//! products round their inputs as they read them), unless `optimizer.master`, `optimizer.moments` and `optimizer.in_backward` say otherwise ([`ParameterBytes`]). What passes need comes from replaying the run's own passes, from the scoring of the reference to the last step
//! (`replay`), and from the pool's rule how much more it may hold. What the process holds before a model is loaded is measured, not guessed.

use super::StepMemory;
use super::ledger::{Kind, Lent};
use super::low_rank::LowRankTerms;
use super::replay::Replay;
use super::work::{Gradient, Pass};
use crate::config::{MasterWeights, MomentType, OptimizerConfig};
use crate::model::description::DecoderDescription;
use crate::model::family::expected_tensors;
use crate::model::gradients::shared_name;
use crate::ops::adamw::eight_bit::BLOCK;
use crate::ops::buffer::HEADROOM;
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Bytes of an f32.
const VALUE: u64 = size_of::<f32>() as u64;

/// What no term below names: code, stacks and libraries that training touches for the first time, and what the heap keeps of small pieces. Runs of the
/// tiny model showed 9 to 11 MiB.
pub(super) const OVERHEAD: u64 = 10 << 20;

/// What the bytes depend on.
#[derive(Debug, Clone, Copy)]
pub struct Setup<'a> {
    pub description: &'a DecoderDescription,
    /// Of the model itself.
    pub n_parameters: usize,
    /// What is trained in its place.
    pub low_rank: Option<&'a LowRankTerms>,
    pub bytes: ParameterBytes,
    pub step: StepMemory,
    pub threads: usize,
    /// Passes in the order of the run.
    pub passes: &'a [&'a [Pass]],
    /// Values of the reference's states, of all sequences, and of its head where `kl` keeps one.
    pub n_reference: usize,
    /// Bytes that canaries hold.
    pub canaries: u64,
    /// Token ids and names of all rows.
    pub data: u64,
    /// What the process holds now, with `data` and without a model.
    pub process: u64,
}

impl Setup<'_> {
    /// Bytes that an update moves.
    pub fn update_bytes(&self) -> f64 {
        (self.bytes.moved_by_update() * self.n_trained() as u64) as f64
    }

    /// Parameters with a gradient.
    pub fn n_trained(&self) -> usize {
        self.low_rank.map_or(self.n_parameters, |terms| terms.n_parameters(self.description))
    }

    /// Values of gradient buffers (`model::gradients`).
    pub fn n_gradients(&self) -> usize {
        if !self.bytes.shares_gradients {
            return self.n_trained();
        }
        let tensors = expected_tensors(self.description);
        let shared: BTreeMap<&str, usize> = tensors.iter().map(|(name, shape)| (shared_name(name), shape.iter().product())).collect();
        shared.values().sum()
    }

    /// What the passes have on loan at the fullest moment, where `replay` makes them.
    pub fn most_lent(&self, mut replay: Replay) -> Lent {
        fullest(self.passes.iter().copied().flatten()).into_iter().for_each(|pass| replay.pass(pass, self.step));
        if self.bytes.shares_gradients {
            let has_gradient = |pass: &&Pass| pass.gradient != Gradient::None;
            let n_tokens = |step: &&&[Pass]| step.iter().filter(has_gradient).map(|pass| pass.n_tokens).sum::<usize>();
            self.passes.iter().max_by_key(n_tokens).into_iter().for_each(|step| replay.together(step, self.step));
        }
        replay.ledger.peak()
    }
}

/// What a parameter takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParameterBytes {
    /// Of a weight.
    pub weight: u64,
    /// What an update keeps beside a trained weight.
    pub beside: u64,
    /// Whether one block's gradients are all that there are.
    pub shares_gradients: bool,
    pub has_8_bit_moments: bool,
}

impl ParameterBytes {
    /// On the CPU.
    pub fn of(optimizer: &OptimizerConfig) -> Self {
        let (weight, beside) = match optimizer.master {
            MasterWeights::F32 => (VALUE, 0),
            MasterWeights::Stochastic => (2, 0),
            MasterWeights::Kahan => (2, 2),
        };
        Self { weight, beside, shares_gradients: optimizer.in_backward, has_8_bit_moments: optimizer.moments == MomentType::EightBit }
    }

    /// What an update moves of a parameter: its gradient, which is cleared, read for the norm and read again; weight, what is beside it, and both moments,
    /// which are read and written.
    fn moved_by_update(self) -> u64 {
        let moments = if self.has_8_bit_moments { 2 } else { 2 * VALUE };
        3 * VALUE + 2 * (self.weight + self.beside + moments)
    }

    /// Bytes of the largest weight that a product widens whole before it reads it.
    fn widened(self, description: &DecoderDescription) -> u64 {
        if self.weight == VALUE { 0 } else { VALUE * (description.vocab_size * description.hidden_size) as u64 }
    }
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
    pub logits: u64,
    /// Within an op or from one to the next, and what waits in the pool for a pass of another length.
    pub scratch: u64,
    /// The frozen reference's scores, and its head for `kl`.
    pub reference: u64,
    /// Caches of the canaries' answers, and what is known of step 0.
    pub canaries: u64,
    /// Encoded rows.
    pub data: u64,
    /// Program, tokenizer, templates, allocator.
    pub process: u64,
}

impl Memory {
    pub fn of(setup: &Setup) -> Self {
        let replay = Replay::new(setup.description, setup.low_rank);
        let passes = setup.passes.iter().copied().flatten();
        let n_unpooled = fullest(passes).into_iter().map(|pass| replay.n_unpooled(pass, setup.threads)).max().unwrap_or(0);
        let lent = setup.most_lent(replay);
        let n_idle = (HEADROOM * lent.total() as f64) as usize;
        let n_trained = setup.n_trained() as u64;
        let frozen = if setup.low_rank.is_some() { setup.bytes.weight * setup.n_parameters as u64 } else { 0 };
        let bytes = |n_values: usize| VALUE * n_values as u64;
        Self {
            weights: frozen + (setup.bytes.weight + setup.bytes.beside) * n_trained,
            gradients: bytes(setup.n_gradients()),
            moments: moments_bytes(n_trained, setup.bytes.has_8_bit_moments),
            activations: bytes(lent.of(Kind::Activation)),
            logits: bytes(lent.of(Kind::Logits)),
            scratch: bytes(lent.of(Kind::Scratch) + n_idle + n_unpooled) + setup.bytes.widened(setup.description),
            reference: bytes(setup.n_reference),
            canaries: setup.canaries,
            data: setup.data,
            process: setup.process.saturating_sub(setup.data) + OVERHEAD,
        }
    }

    /// The peak of the resident set.
    pub fn total(&self) -> u64 {
        self.parts().iter().map(|(_, bytes)| bytes).sum()
    }

    /// Every kind with its name, the largest of a usual run first.
    pub fn parts(&self) -> [(&'static str, u64); 10] {
        [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("optimizer moments", self.moments),
            ("activations", self.activations),
            ("logits", self.logits),
            ("scratch", self.scratch),
            ("reference scores", self.reference),
            ("canaries", self.canaries),
            ("encoded rows", self.data),
            ("program and tokenizer", self.process),
        ]
    }
}

/// Of both moments of so many parameters. Small parameters, which keep exact ones, do not count.
pub(super) fn moments_bytes(n_parameters: u64, in_8_bits: bool) -> u64 {
    if in_8_bits { 2 * (n_parameters + VALUE * n_parameters.div_ceil(BLOCK as u64)) } else { 2 * VALUE * n_parameters }
}

/// The passes that no other one contains: whatever a run holds at most, it holds in one of these.
pub(super) fn fullest<'a>(passes: impl Iterator<Item = &'a Pass>) -> Vec<&'a Pass> {
    let mut longest_first: Vec<&Pass> = passes.collect();
    longest_first.sort_by_key(|pass| Reverse((pass.n_tokens, pass.n_scored, pass.n_compared)));
    let mut fullest: Vec<&Pass> = Vec::new();
    for pass in longest_first {
        let is_contained = |other: &&Pass| {
            (other.gradient, other.n_tokens >= pass.n_tokens) == (pass.gradient, true)
                && other.n_scored >= pass.n_scored
                && other.n_compared >= pass.n_compared
        };
        if !fullest.iter().any(is_contained) {
            fullest.push(pass);
        }
    }
    fullest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::family::describe;
    use serde_json::json;

    fn pass(n_tokens: usize, n_scored: usize, gradient: Gradient) -> Pass {
        Pass { n_tokens, n_visible: 0, n_largest_tree: n_tokens, n_scored, n_compared: 0, gradient }
    }

    #[test]
    fn only_passes_that_no_other_contains_are_looked_at() {
        let passes = [
            pass(9, 4, Gradient::OfScores),
            pass(10, 3, Gradient::OfScores),
            pass(8, 3, Gradient::OfScores),
            pass(8, 0, Gradient::OfStates),
            pass(10, 3, Gradient::OfScores),
        ];
        assert_eq!(fullest(passes.iter()), [&passes[1], &passes[0], &passes[3]]);
    }

    #[test]
    fn parameters_by_hand_and_parts_add_up() {
        let config = json!({
            "model_type": "llama", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": true,
        });
        let description = describe(&config).unwrap();
        let passes = [pass(1 << 14, 0, Gradient::OfStates)];
        let setup = Setup {
            description: &description,
            n_parameters: 1000,
            low_rank: None,
            bytes: ParameterBytes::of(&OptimizerConfig::default()),
            step: StepMemory::default(),
            threads: 1,
            passes: &[&passes],
            n_reference: 16,
            canaries: 30,
            data: 700,
            process: 5000,
        };
        let memory = Memory::of(&setup);
        assert_eq!([memory.weights, memory.gradients, memory.moments, memory.reference], [4000, 4000, 8000, 64]);
        let settings = OptimizerConfig { master: MasterWeights::Kahan, moments: MomentType::EightBit, ..OptimizerConfig::default() };
        let small = Memory::of(&Setup { bytes: ParameterBytes::of(&settings), ..setup });
        assert_eq!([small.weights, small.gradients, small.moments], [4000, 4000, 2 * (1000 + 16)]);
        assert_eq!(small.scratch - memory.scratch, 4 * 32 * 8, "the head's weight, widened");
        assert_eq!(memory.canaries, 30);
        assert_eq!((memory.data, memory.process), (700, 4300 + OVERHEAD));
        // x and r; query, key and value; attended and its log-sum-exp; middle and r; gate and up.
        let n_bytes = 4 * (1u64 << 14);
        assert_eq!(memory.activations, n_bytes * (8 + 1 + 16 + 8 + 4 + 8 + 1 + 32));
        assert_eq!(memory.total(), memory.parts().iter().map(|(_, bytes)| bytes).sum::<u64>());
    }
}
