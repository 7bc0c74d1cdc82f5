//! What is computed: the passes of a batch, and their floating-point operations by part. A multiplication with its addition counts as two.
//!
//! ```text
//! body       2 N × the weights of all projections; twice that in the backward (inputs, weights)
//! attention  4 hd for each head and pair of a query and a key that it sees; 10 hd in the backward, which makes the scores again
//! head       2 D V a scored token; twice that more in the backward, three times where the logits were not kept
//! ```
//!
//! Only what the mathematics asks for is counted: not the masked half of a block of scores, no norm, no activation function.

use super::StepMemory;
use crate::data::batch::{PackedBatch, Segment};
use crate::model::decoder::Keep;
use crate::model::description::DecoderDescription;
use crate::ops::log_prob::{FROZEN_LOGITS_PER_CHUNK, LOGITS_PER_CHUNK, rows_per_chunk};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::AddAssign;

/// Which gradients a pass makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gradient {
    /// Scores or states are wanted, and nothing else.
    None,
    /// From the final-norm states back (retention).
    OfStates,
    /// From the log-probabilities back, through the head.
    OfScores,
}

/// One packed forward and the backward behind it, reduced to what they cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    /// Packed tokens (N).
    pub n_tokens: usize,
    /// Pairs of a query and a key that it sees, summed over the layers.
    pub n_visible: u64,
    /// Rows of the largest tree of segments: a preference pair with its prompt.
    pub n_largest_tree: usize,
    /// Tokens whose log-probability the head makes.
    pub n_scored: usize,
    /// Positions at which `kl` compares the logits of two models.
    pub n_compared: usize,
    pub gradient: Gradient,
}

impl Pass {
    /// Of a packed batch, `n_scored` of whose tokens are scored.
    pub fn new(batch: &PackedBatch, description: &DecoderDescription, n_scored: usize, gradient: Gradient) -> Self {
        let mut n_layers: BTreeMap<Option<usize>, u64> = BTreeMap::new();
        description.layers.iter().for_each(|layer| *n_layers.entry(layer.window).or_default() += 1);
        let n_visible = n_layers.iter().map(|(&window, n)| n * n_visible_pairs(&batch.segments, window)).sum();
        let n_largest_tree = largest_tree(&batch.segments);
        Self { n_tokens: batch.n_tokens(), n_visible, n_largest_tree, n_scored, n_compared: 0, gradient }
    }
}

/// Pairs of a query and a key that it sees, in one layer.
fn n_visible_pairs(segments: &[Segment], window: Option<usize>) -> u64 {
    let window = window.unwrap_or(usize::MAX);
    // Positions before a segment: a parent stands before its children.
    let mut before: Vec<usize> = Vec::with_capacity(segments.len());
    let mut n_pairs = 0;
    for segment in segments {
        let first = segment.parent.map_or(0, |parent| before[parent] + segments[parent].rows.len());
        before.push(first);
        for position in first..first + segment.rows.len() {
            let end = if segment.sees_itself { position + 1 } else { first };
            n_pairs += end.saturating_sub((position + 1).saturating_sub(window)) as u64;
        }
    }
    n_pairs
}

fn largest_tree(segments: &[Segment]) -> usize {
    let (mut largest, mut current) = (0, 0);
    for segment in segments {
        current = if segment.parent.is_none() { 0 } else { current } + segment.rows.len();
        largest = largest.max(current);
    }
    largest
}

/// Floating-point operations by part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Flops {
    /// Projections of the blocks, forward.
    pub body_forward: f64,
    /// Their backward.
    pub body_backward: f64,
    /// Projections and attention that activation checkpointing runs again.
    pub recomputed: f64,
    /// Attention, forward and backward.
    pub attention: f64,
    /// Logits, forward and backward.
    pub head: f64,
}

impl Flops {
    /// Of one pass.
    pub fn of(pass: &Pass, d: &DecoderDescription, memory: StepMemory) -> Self {
        let n_tokens = pass.n_tokens as f64;
        let body_forward = 2.0 * n_tokens * (d.layers.len() * weights_of_a_block(d)) as f64;
        let per_pair = 2.0 * (d.n_heads * d.head_dim) as f64 * pass.n_visible as f64;
        let attention_forward = 2.0 * per_pair;
        let has_backward = pass.gradient != Gradient::None;
        let recomputed = match memory.keep {
            Keep::BlockInputs { every } if has_backward => {
                // The last block of a group is run again as far as its gate, unless a norm behind the MLP needs what comes then.
                let n_groups = if d.norms.after_mlp.is_some() { 0 } else { d.layers.len().div_ceil(every.get()) };
                let down = 2.0 * n_tokens * (d.hidden_size * d.intermediate_size) as f64;
                body_forward + attention_forward - n_groups as f64 * down
            }
            _ => 0.0,
        };
        // Logits; then those that were not kept again, and the gradients of states and weight.
        let n_scored = match pass.gradient {
            Gradient::OfScores => 4 * pass.n_scored - kept_rows(pass.n_scored, d.vocab_size, None, memory.kept_logits),
            Gradient::OfStates | Gradient::None => pass.n_scored,
        };
        // Both models' logits, then the gradients of the policy's states and weight.
        let n_compared = pass.n_compared * if has_backward { 4 } else { 2 };
        let per_row = 2.0 * (d.hidden_size * d.vocab_size) as f64;
        Self {
            body_forward,
            body_backward: if has_backward { 2.0 * body_forward } else { 0.0 },
            recomputed,
            attention: attention_forward + if has_backward { 5.0 * per_pair } else { 0.0 },
            head: per_row * (n_scored + n_compared) as f64,
        }
    }

    pub fn total(&self) -> f64 {
        self.body_forward + self.body_backward + self.recomputed + self.attention + self.head
    }

    /// What matrix products with the weights take, all but attention.
    pub fn of_products(&self) -> f64 {
        self.total() - self.attention
    }

    pub fn scaled(&self, factor: f64) -> Self {
        Self {
            body_forward: factor * self.body_forward,
            body_backward: factor * self.body_backward,
            recomputed: factor * self.recomputed,
            attention: factor * self.attention,
            head: factor * self.head,
        }
    }
}

impl AddAssign for Flops {
    fn add_assign(&mut self, other: Self) {
        self.body_forward += other.body_forward;
        self.body_backward += other.body_backward;
        self.recomputed += other.recomputed;
        self.attention += other.attention;
        self.head += other.head;
    }
}

/// Rows of whole chunks that fit `n_kept` values: logits, or the `frozen_width` values a row that a frozen head keeps (`ops::log_prob`).
pub(super) fn kept_rows(n_scored: usize, n_vocab: usize, frozen_width: Option<usize>, n_kept: usize) -> usize {
    let rows = rows_per_chunk(n_scored, n_vocab, logits_per_chunk(frozen_width.is_some()));
    (n_kept / (rows * frozen_width.unwrap_or(n_vocab)) * rows).min(n_scored)
}

/// Logits that the head makes at a time.
pub(super) fn logits_per_chunk(is_frozen: bool) -> usize {
    if is_frozen { FROZEN_LOGITS_PER_CHUNK } else { LOGITS_PER_CHUNK }
}

/// Values in the four projections of a block.
pub fn weights_of_a_block(d: &DecoderDescription) -> usize {
    projections(d).iter().map(|(n_out, n_in)| n_out * n_in).sum()
}

/// The block's matrix products as `(out, in)`: query|key|value, output, gate|up, down.
pub fn projections(d: &DecoderDescription) -> [(usize, usize); 4] {
    let attended = d.n_heads * d.head_dim;
    let qkv = attended + 2 * d.n_kv_heads * d.head_dim;
    [(qkv, d.hidden_size), (d.hidden_size, attended), (2 * d.intermediate_size, d.hidden_size), (d.hidden_size, d.intermediate_size)]
}

/// Bytes that a pass moves between its products, in norms, rotations, gates and residual sums, and over logits: about what it reads and
/// writes there, counted in values a token.
pub fn elementwise_bytes(pass: &Pass, d: &DecoderDescription) -> f64 {
    let (attended, turned) = (d.n_heads * d.head_dim, (d.n_heads + d.n_kv_heads) * d.head_dim);
    let forward = 9 * d.hidden_size + 3 * d.intermediate_size + 2 * turned;
    let backward = 18 * d.hidden_size + 6 * d.intermediate_size + 2 * turned + 6 * attended;
    let (of_block, of_logits) = if pass.gradient == Gradient::None { (forward, 2) } else { (forward + backward, 4) };
    let values = d.layers.len() * of_block * pass.n_tokens + of_logits * d.vocab_size * (pass.n_scored + pass.n_compared);
    (size_of::<f32>() * values) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::batch::PromptSharing;
    use crate::model::family::describe;
    use serde_json::{Value, json};
    use std::num::NonZeroUsize;

    /// Of two layers, D 8, 4 query heads and 2 key heads of 2, I 16, V 32.
    fn llama() -> Value {
        json!({
            "model_type": "llama", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": false,
        })
    }

    /// A prompt of 3 and answers of 2 and 4 tokens.
    fn batch() -> PackedBatch {
        let mut batch = PackedBatch::default();
        batch.push_responses(&[1; 3], &[&[2; 2], &[3; 4]], PromptSharing::Shared);
        batch
    }

    const KEPT: StepMemory = StepMemory { keep: Keep::ForBackward, kept_logits: 0 };

    #[test]
    fn a_pass_by_hand() {
        let d = describe(&llama()).unwrap();
        // qkv (8 + 4 + 4) x 8, output 8 x 8, gate and up 32 x 8, down 8 x 16
        assert_eq!(weights_of_a_block(&d), 128 + 64 + 256 + 128);
        let pass = Pass::new(&batch(), &d, 6, Gradient::OfScores);
        // The prompt's queries see 1, 2, 3 keys, the first answer's 4, 5, the second's 4, 5, 6, 7.
        assert_eq!((pass.n_tokens, pass.n_largest_tree, pass.n_visible), (9, 9, 2 * (6 + 9 + 22)));
        let flops = Flops::of(&pass, &d, KEPT);
        assert_eq!(flops.body_forward, (2 * 9 * 2 * 576) as f64);
        assert_eq!((flops.body_backward, flops.recomputed), (2.0 * flops.body_forward, 0.0));
        // 4 heads of 2: q·k and p·v, 4 each a pair; five such products in the backward.
        assert_eq!(flops.attention, (4 * 2 * 2 * (2 + 5) * 74) as f64);
        assert_eq!(flops.head, (2 * 8 * 32 * 6 * 4) as f64, "logits twice, and two gradients");
        assert_eq!(flops.total(), flops.of_products() + flops.attention);
        assert_eq!(Flops::of(&pass, &d, StepMemory { kept_logits: 6 * 32, ..KEPT }).head, (2 * 8 * 32 * 6 * 3) as f64, "logits once");
    }

    #[test]
    fn a_pass_that_only_looks_does_less() {
        let d = describe(&llama()).unwrap();
        let with = |gradient, n_compared| Flops::of(&Pass { n_compared, ..Pass::new(&batch(), &d, 6, gradient) }, &d, KEPT);
        let none = with(Gradient::None, 0);
        assert_eq!((none.body_backward, none.attention, none.head), (0.0, (4 * 2 * 2 * 2 * 74) as f64, (2 * 8 * 32 * 6) as f64));
        assert_eq!(with(Gradient::OfStates, 0).head, none.head, "scores without a gradient");
        assert_eq!(with(Gradient::OfStates, 5).head - none.head, (2 * 8 * 32 * 5 * 4) as f64);
        assert_eq!(with(Gradient::None, 5).head - none.head, (2 * 8 * 32 * 5 * 2) as f64);
    }

    #[test]
    fn checkpointing_runs_the_blocks_again_but_for_each_groups_last_product() {
        let d = describe(&llama()).unwrap();
        let pass = Pass::new(&batch(), &d, 0, Gradient::OfStates);
        let every = |n: usize| StepMemory { keep: Keep::BlockInputs { every: NonZeroUsize::new(n).unwrap() }, ..KEPT };
        let again = |n| Flops::of(&pass, &d, every(n)).recomputed;
        let (forward, down) = ((2 * 9 * 2 * 576 + 4 * 2 * 2 * 2 * 74) as f64, (2 * 9 * 8 * 16) as f64);
        assert_eq!((again(1), again(2)), (forward - 2.0 * down, forward - down));
    }

    #[test]
    fn a_window_and_padding_see_less() {
        let mut config = llama();
        config["model_type"] = "mistral".into();
        config["sliding_window"] = 3.into();
        let d = describe(&config).unwrap();
        // 1, 2, 3 | 3, 3 | 3, 3, 3, 3
        assert_eq!(Pass::new(&batch(), &d, 0, Gradient::None).n_visible, 2 * (6 + 6 + 12));
        let mut padded = PackedBatch::default();
        let sequence = padded.push_segment(&[1; 4], None, true);
        padded.push_segment(&[0; 2], Some(sequence), false);
        padded.push_segment(&[1; 2], None, true);
        let d = describe(&llama()).unwrap();
        let pass = Pass::new(&padded, &d, 0, Gradient::None);
        assert_eq!((pass.n_visible, pass.n_largest_tree), (2 * (10 + 2 * 4 + 3), 6), "padding sees the sequence and not itself");
    }
}
