//! What low-rank terms beside frozen weights change of the counts: a term is two thin products, a frozen weight has no gradient, and the backward ends at
//! the lowest block with a term.
//!
//! ```text
//! forward    2 N (in R + rank columns) a term
//! backward   three times that: u again, dA, dx; dB, du, and du again. Without dx, which the lowest block's query|key|value need not make: twice
//! ```

use super::StepMemory;
use super::work::{Flops, Gradient, Pass, kept_rows, projections, weights_of_a_block};
use crate::model::decoder::Keep;
use crate::model::description::DecoderDescription;
use crate::model::low_rank::Adaptation;

/// Within a block, in the order of [`projections`]: the projections that are fused there.
const FUSED: [&[&str]; 4] = [
    &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    &["self_attn.o_proj"],
    &["mlp.gate_proj", "mlp.up_proj"],
    &["mlp.down_proj"],
];

/// The terms of one fused projection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Term {
    /// Rows of the fused A: rank times the number of projections with a term.
    pub n_inner: usize,
    /// Columns that the terms add to.
    pub n_columns: usize,
}

/// The low-rank terms of a decoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LowRankTerms {
    rank: usize,
    pub has_dropout: bool,
    /// Of each block, in the order of [`projections`].
    blocks: Vec<[Term; 4]>,
}

impl LowRankTerms {
    pub fn new(adaptation: &Adaptation, d: &DecoderDescription) -> Self {
        let (query, key) = (d.n_heads * d.head_dim, d.n_kv_heads * d.head_dim);
        let widths: [&[usize]; 4] = [&[query, key, key], &[d.hidden_size], &[d.intermediate_size; 2], &[d.hidden_size]];
        let term = |layer: usize, fused: usize| {
            let mut term = Term::default();
            for (name, n_columns) in FUSED[fused].iter().zip(widths[fused]) {
                if adaptation.projections.contains(&format!("model.layers.{layer}.{name}")) {
                    term.n_inner += adaptation.rank;
                    term.n_columns += n_columns;
                }
            }
            term
        };
        let blocks = (0..d.layers.len()).map(|layer| [0, 1, 2, 3].map(|fused| term(layer, fused))).collect();
        Self { rank: adaptation.rank, has_dropout: adaptation.dropout > 0.0, blocks }
    }

    /// Values in all A and B.
    pub fn n_parameters(&self, d: &DecoderDescription) -> usize {
        self.blocks.iter().map(|block| self.values(block, d)).sum()
    }

    /// The lowest block with a term.
    pub fn lowest(&self) -> usize {
        self.blocks.iter().position(|block| block.iter().any(|term| term.n_inner > 0)).unwrap_or(self.blocks.len())
    }

    /// Of one block.
    pub fn terms(&self, layer: usize) -> [Term; 4] {
        self.blocks[layer]
    }

    fn values(&self, block: &[Term; 4], d: &DecoderDescription) -> usize {
        let of_term = |(term, (_, n_in)): (&Term, (usize, usize))| term.n_inner * n_in + self.rank * term.n_columns;
        block.iter().zip(projections(d)).map(of_term).sum()
    }

    /// The operations of a pass, from those that it would take if every weight were trained.
    pub fn flops(&self, full: Flops, pass: &Pass, d: &DecoderDescription, memory: StepMemory) -> Flops {
        let n_tokens = pass.n_tokens as f64;
        let of_terms = |block: &[Term; 4]| 2.0 * n_tokens * self.values(block, d) as f64;
        let body_forward = full.body_forward + self.blocks.iter().map(of_terms).sum::<f64>();
        if pass.gradient == Gradient::None {
            return Flops { body_forward, ..full };
        }
        let lowest = self.lowest();
        let n_layers = self.blocks.len() as f64;
        let trained = &self.blocks[lowest..];
        // The gradients of inputs, but for what is below the lowest term.
        let unmade = trained.first().map_or(0.0, |block| 2.0 * n_tokens * self.unmade_below(block, d) as f64);
        let of_weights = 2.0 * n_tokens * (trained.len() * weights_of_a_block(d)) as f64;
        let body_backward = of_weights + trained.iter().map(|block| 3.0 * of_terms(block)).sum::<f64>() - unmade;
        let per_row = 2.0 * (d.hidden_size * d.vocab_size) as f64;
        // Logits and gradients of states, both again where they were not kept; of compared logits all but the weight's gradient.
        let n_scored = match pass.gradient {
            Gradient::OfScores => 4 * pass.n_scored - 2 * kept_rows(pass.n_scored, d.vocab_size, Some(d.hidden_size), memory.kept_logits),
            Gradient::OfStates | Gradient::None => pass.n_scored,
        };
        let head = per_row * (n_scored + 3 * pass.n_compared) as f64;
        let without_attention = trained.first().is_some_and(|[qkv, output, ..]| qkv.n_inner + output.n_inner == 0);
        let attention_share = (trained.len() - usize::from(without_attention)) as f64 / n_layers;
        // Five of seven products are the backward's.
        let attention = full.attention * (2.0 + 5.0 * attention_share) / 7.0;
        let again = self.first_recomputed(memory);
        let recomputed = match memory.keep {
            Keep::BlockInputs { .. } => {
                full.recomputed * (n_layers - again as f64) / n_layers + self.blocks[again..].iter().map(of_terms).sum::<f64>()
            }
            Keep::Nothing | Keep::ForBackward => 0.0,
        };
        Flops { body_forward, body_backward, recomputed, attention, head }
    }

    /// Multiplications a token that the lowest block's backward leaves out.
    fn unmade_below(&self, block: &[Term; 4], d: &DecoderDescription) -> usize {
        let [(qkv_out, qkv_in), (output_out, output_in), ..] = projections(d);
        let [qkv, output, ..] = block;
        let of_qkv = qkv_out * qkv_in + qkv.n_inner * qkv_in + self.rank * qkv.n_columns;
        if qkv.n_inner + output.n_inner == 0 { of_qkv + output_out * output_in } else { of_qkv }
    }

    /// The first block of the first group that is computed again.
    fn first_recomputed(&self, memory: StepMemory) -> usize {
        match memory.keep {
            Keep::BlockInputs { every } => self.lowest() / every.get() * every.get(),
            Keep::Nothing | Keep::ForBackward => self.blocks.len(),
        }
        .min(self.blocks.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::family::describe;
    use serde_json::json;

    /// Of two layers, D 8, 4 query heads and 2 key heads of 2, I 16, V 32.
    fn description() -> DecoderDescription {
        let config = json!({
            "model_type": "llama", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": false,
        });
        describe(&config).unwrap()
    }

    fn terms(projections: &[&str]) -> LowRankTerms {
        let projections = projections.iter().map(|name| format!("model.layers.{name}")).collect();
        LowRankTerms::new(&Adaptation { rank: 2, scale: 1.0, dropout: 0.0, seed: 0, projections }, &description())
    }

    #[test]
    fn parameters_and_operations_by_hand() {
        let d = description();
        let terms = terms(&["1.self_attn.q_proj", "1.self_attn.v_proj", "1.mlp.down_proj"]);
        // A: 2 x 8 twice, 2 x 16; B: 8 x 2, 4 x 2, 8 x 2
        let (q_v, down) = (2 * 8 + 2 * 8 + 8 * 2 + 4 * 2, 2 * 16 + 8 * 2);
        assert_eq!((terms.n_parameters(&d), terms.lowest()), (q_v + down, 1));
        let pass = Pass { n_tokens: 10, n_visible: 40, n_largest_tree: 10, n_scored: 3, n_compared: 0, gradient: Gradient::OfScores };
        let memory = StepMemory { keep: Keep::ForBackward, kept_logits: 0 };
        let full = Flops::of(&pass, &d, memory);
        let flops = terms.flops(full, &pass, &d, memory);
        assert_eq!(flops.body_forward - full.body_forward, (2 * 10 * (q_v + down)) as f64);
        // Of the upper block: inputs of all but query|key|value (128 of 576); the terms three times, of which q and v need no input's.
        assert_eq!(flops.body_backward, (2 * 10 * (576 - 128 + 3 * (q_v + down) - q_v)) as f64);
        assert_eq!(flops.attention, full.attention * 4.5 / 7.0, "the upper of two blocks");
        // With logits alone kept there would be 3 for each of 3 rows; of a frozen head, 8 values a row would have been kept.
        assert_eq!((full.head, flops.head), ((2 * 8 * 32 * 3 * 4) as f64, (2 * 8 * 32 * 3 * 4) as f64));
        let keeping = StepMemory { kept_logits: 3 * 8, ..memory };
        assert_eq!(terms.flops(Flops::of(&pass, &d, keeping), &pass, &d, keeping).head, (2 * 8 * 32 * 3 * 2) as f64);
        let looks = Pass { gradient: Gradient::None, ..pass };
        let full = Flops::of(&looks, &d, memory);
        assert_eq!(terms.flops(full, &looks, &d, memory).total() - full.total(), (2 * 10 * (q_v + down)) as f64);
    }

    #[test]
    fn only_groups_that_hold_a_term_are_computed_again() {
        let d = description();
        let pass = Pass { n_tokens: 10, n_visible: 0, n_largest_tree: 10, n_scored: 0, n_compared: 0, gradient: Gradient::OfStates };
        let terms = terms(&["1.mlp.down_proj"]);
        let again = |every: usize| {
            let memory = StepMemory { keep: Keep::BlockInputs { every: every.try_into().unwrap() }, kept_logits: 0 };
            let full = Flops::of(&pass, &d, memory);
            (terms.flops(full, &pass, &d, memory).recomputed - (2 * 10 * 48) as f64) / full.recomputed
        };
        assert_eq!([again(1), again(2)], [0.5, 1.0]);
    }
}
