//! What a run would hold on a GPU, counted from shapes: nothing of it was measured.
//!
//! Weights and activations are stored in the type of the products, gradients in f32; what an update keeps beside a bf16 weight follows
//! `optimizer.master`. The reference's scores, the data and the program stay with the CPU.

use super::ledger::Kind;
use super::memory::{Setup, fullest, moments_bytes};
use crate::config::{ComputeDtype, MasterWeights, MomentType, OptimizerConfig};
use crate::ops::log_prob::{GPU_LOGITS_PER_CHUNK, rows_per_chunk};
use serde::Serialize;

/// Bytes of an f32.
const FLOAT: u64 = 4;
/// What the driver, cuBLAS and our kernels take before a model is there.
const CONTEXT: u64 = 640 << 20;

/// Bytes by kind.
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
    pub context: u64,
}

impl GpuMemory {
    /// Of the run of `setup`, whose products are computed in `compute`.
    pub fn of(setup: &Setup, compute: ComputeDtype, optimizer: &OptimizerConfig) -> Self {
        let value = if compute == ComputeDtype::Bf16 { 2 } else { FLOAT };
        let beside = match (compute, optimizer.master) {
            (ComputeDtype::F32, _) | (_, MasterWeights::Stochastic) => 0,
            (ComputeDtype::Bf16, MasterWeights::F32) => FLOAT,
            (ComputeDtype::Bf16, MasterWeights::Kahan) => 2,
        };
        let d = setup.description;
        let (mut most_scored, mut most_kept) = (0, 0);
        for pass in fullest(setup.passes.iter().copied().flatten()) {
            most_scored = most_scored.max(pass.n_scored);
            most_kept = most_kept.max(setup.step.kept_logits.min(pass.n_scored * d.vocab_size));
        }
        let lent = setup.most_lent();
        let chunk = (rows_per_chunk(most_scored, d.vocab_size, GPU_LOGITS_PER_CHUNK).min(most_scored) * d.vocab_size) as u64;
        let n_trained = setup.n_trained() as u64;
        let frozen = if setup.low_rank.is_some() { value * setup.n_parameters as u64 } else { 0 };
        Self {
            weights: frozen + (value + beside) * n_trained,
            gradients: FLOAT * setup.n_gradients() as u64,
            moments: moments_bytes(n_trained, optimizer.moments == MomentType::EightBit),
            activations: value * lent.of(Kind::Activation) as u64,
            logits: FLOAT * most_kept as u64 + (FLOAT + value) * chunk,
            scratch: value * lent.of(Kind::Scratch) as u64,
            context: CONTEXT,
        }
    }

    pub fn total(&self) -> u64 {
        let Self { weights, gradients, moments, activations, logits, scratch, context } = *self;
        weights + gradients + moments + activations + logits + scratch + context
    }
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
