//! What a run holds on a GPU, counted from shapes, and what stays with the host then.
//!
//! Weights and activations are stored in the type of the products, gradients in f32; what an update keeps beside a bf16 weight follows
//! `optimizer.master`. Passes are replayed as a GPU's ops make them (`replay`). The reference's scores, the data and the program stay with the host,
//! through which every tensor goes when it is read from a checkpoint or written to one.

use super::ledger::Kind;
use super::memory::{Memory, OVERHEAD, Setup, moments_bytes};
use super::replay::Replay;
use super::work::projections;
use crate::config::{ComputeDtype, MasterWeights, MomentType, OptimizerConfig};
use crate::model::description::DecoderDescription;
use serde::Serialize;

/// Bytes of an f32.
const FLOAT: u64 = 4;

/// What the driver, cuBLAS with its workspace and our kernels take before a model is there. An estimate: the driver does not say.
pub const CONTEXT: u64 = 640 << 20;

/// Bytes by kind at the moment when they are most.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct GpuMemory {
    /// With what an update keeps beside them.
    pub weights: u64,
    pub gradients: u64,
    pub moments: u64,
    pub activations: u64,
    /// Of the head: those kept, and a chunk of them with its gradient.
    pub logits: u64,
    pub scratch: u64,
    /// The frozen reference's head, for `kl`.
    pub reference: u64,
    /// Caches of the canaries' answers.
    pub canaries: u64,
    pub context: u64,
}

impl GpuMemory {
    /// Of the run of `setup`, whose products are computed in `compute`; without a reference's head and canaries.
    pub fn of(setup: &Setup, compute: ComputeDtype, optimizer: &OptimizerConfig) -> Self {
        let value = bytes_of_value(compute);
        let beside = match (compute, optimizer.master) {
            (ComputeDtype::F32, _) | (_, MasterWeights::Stochastic) => 0,
            (ComputeDtype::Bf16, MasterWeights::F32) => FLOAT,
            (ComputeDtype::Bf16, MasterWeights::Kahan) => 2,
        };
        let lent = setup.most_lent(Replay::on_gpu(setup.description, setup.low_rank, value as usize));
        let [activations, logits, scratch] = [Kind::Activation, Kind::Logits, Kind::Scratch].map(|kind| value * lent.of(kind) as u64);
        let n_trained = setup.n_trained() as u64;
        let frozen = if setup.low_rank.is_some() { value * setup.n_parameters as u64 } else { 0 };
        // A tensor that is saved is widened where it lies, when no pass is under way.
        let widened = if value == FLOAT { 0 } else { FLOAT * largest_tensor(setup.description) };
        Self {
            weights: frozen + (value + beside) * n_trained,
            gradients: FLOAT * setup.n_gradients() as u64,
            moments: moments_bytes(n_trained, optimizer.moments == MomentType::EightBit),
            activations,
            logits,
            scratch: scratch.max(widened.saturating_sub(activations + logits)),
            reference: 0,
            canaries: 0,
            context: CONTEXT,
        }
    }

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
            ("logits", self.logits),
            ("scratch", self.scratch),
            ("reference's head", self.reference),
            ("canaries", self.canaries),
            ("driver and kernels", self.context),
        ]
    }
}

/// What the host holds of a run that computes on a GPU. `setup` counts of reference and canaries what lies there.
pub fn host_beside(setup: &Setup, compute: ComputeDtype) -> Memory {
    // A tensor on its way: as it was read, candle's own copy of it, and that in the type of the weights.
    let narrowed = if compute == ComputeDtype::Bf16 { bytes_of_value(compute) } else { 0 };
    let in_passing = (2 * FLOAT + narrowed) * largest_tensor(setup.description);
    Memory {
        scratch: in_passing,
        reference: FLOAT * setup.n_reference as u64,
        canaries: setup.canaries,
        data: setup.data,
        process: setup.process.saturating_sub(setup.data) + OVERHEAD,
        ..Memory::default()
    }
}

/// Of a weight or an activation.
pub fn bytes_of_value(compute: ComputeDtype) -> u64 {
    if compute == ComputeDtype::Bf16 { 2 } else { FLOAT }
}

/// Values of the largest tensor that is read at once: the embeddings, or a block's fused projections.
fn largest_tensor(d: &DecoderDescription) -> u64 {
    let of_blocks = projections(d).map(|(n_out, n_in)| n_out * n_in);
    of_blocks.into_iter().fold(d.vocab_size * d.hidden_size, usize::max) as u64
}

#[cfg(test)]
mod tests {
    use super::super::memory::ParameterBytes;
    use super::super::work::{Gradient, Pass};
    use super::super::{StepMemory, low_rank::LowRankTerms};
    use super::*;
    use crate::model::decoder::Keep;
    use crate::model::family::{describe, expected_tensors};
    use crate::model::low_rank::Adaptation;
    use serde_json::json;
    use std::num::NonZeroUsize;

    const GIB: f64 = (1u64 << 30) as f64;

    /// Llama 3.1 8B, a row of 4 sequences of `length` tokens whose second half is scored.
    fn llama_8b(length: usize, rank: Option<usize>, optimizer: &OptimizerConfig) -> GpuMemory {
        let config = json!({
            "model_type": "llama", "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131_072, "tie_word_embeddings": false,
        });
        let description = describe(&config).unwrap();
        let tensors = expected_tensors(&description);
        let n_parameters = tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        assert_eq!(n_parameters, 8_030_261_248);
        let projections = tensors.iter().filter_map(|(name, _)| name.strip_suffix("_proj.weight").map(|name| format!("{name}_proj")));
        let low_rank = rank.map(|rank| {
            let adaptation = Adaptation { rank, scale: 2.0, dropout: 0.0, seed: 1, projections: projections.collect() };
            LowRankTerms::new(&adaptation, &description)
        });
        // The target side, and the dominant side without a head: two sequences each.
        let pass = |n_scored, gradient| Pass {
            n_tokens: 2 * length,
            n_visible: (length * length) as u64,
            n_largest_tree: length,
            n_scored,
            n_compared: 0,
            gradient,
        };
        let passes = [pass(length, Gradient::OfScores), pass(0, Gradient::OfStates)];
        let setup = Setup {
            description: &description,
            n_parameters,
            low_rank: low_rank.as_ref(),
            bytes: ParameterBytes::of(optimizer),
            step: StepMemory { keep: Keep::BlockInputs { every: NonZeroUsize::MIN }, kept_logits: 0 },
            threads: 1,
            passes: &[&passes],
            n_reference: 0,
            canaries: 0,
            data: 0,
            process: 0,
        };
        GpuMemory::of(&setup, ComputeDtype::Bf16, optimizer)
    }

    #[test]
    fn all_of_an_8b_model_trains_on_a_card_of_80_gb() {
        for (master, bytes_of_weights) in [(MasterWeights::Stochastic, 2.0), (MasterWeights::Kahan, 4.0)] {
            let small = OptimizerConfig { master, moments: MomentType::EightBit, ..OptimizerConfig::default() };
            let total = llama_8b(1024, None, &small).total() as f64;
            assert!(total < 0.98 * 80.0 * GIB && total > 8.03e9 * (bytes_of_weights + 4.0 + 2.0), "{master:?}: {:.1} GiB", total / GIB);
        }
        let exact = llama_8b(1024, None, &OptimizerConfig::default());
        assert_eq!((exact.weights, exact.gradients, exact.moments), (6 * 8_030_261_248, 4 * 8_030_261_248, 8 * 8_030_261_248));
        let in_backward = OptimizerConfig { moments: MomentType::EightBit, in_backward: true, ..OptimizerConfig::default() };
        let memory = llama_8b(1024, None, &in_backward);
        // The head or the embeddings, one block, the last norm.
        assert_eq!(memory.gradients, 4 * (128_256 * 4096 + 218_112_000 + 4096));
        assert!(memory.total() as f64 <= 0.98 * 80.0 * GIB, "with exact weights: {:.1} GiB", memory.total() as f64 / GIB);
    }

    #[test]
    fn an_adapter_of_an_8b_model_trains_on_a_card_of_24_gb() {
        let total = llama_8b(512, Some(16), &OptimizerConfig::default()).total() as f64;
        assert!(total < 0.98 * 24.0 * GIB && total > 16.06e9, "{:.1} GiB", total / GIB);
    }
}
