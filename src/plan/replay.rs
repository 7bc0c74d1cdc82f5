//! What a pass takes from the pool, request by request: `model::decoder`, `model::block` and `ops` with sizes in the place of values.
//!
//! On a GPU a piece is counted in values as they are stored there, of which an f32 may take the room of two. This file changes with those; its test runs
//! both, on the CPU and on the emulated GPU, and compares.

mod head;
mod unpooled;

use super::StepMemory;
use super::ledger::{Kind, Ledger, Piece};
use super::low_rank::LowRankTerms;
use super::work::{Gradient, Pass, projections};
use crate::model::decoder::Keep;
use crate::model::description::DecoderDescription;
use crate::ops::rms_norm::MAX_PARTIAL_SUMS;
use std::ops::Range;

/// Places in [`projections`]. The output projection's term is never the fullest moment.
const QKV: usize = 0;
const GATE_UP: usize = 2;
const DOWN: usize = 3;

/// A model at work on a ledger.
pub struct Replay<'a> {
    pub ledger: Ledger,
    d: &'a DecoderDescription,
    low_rank: Option<&'a LowRankTerms>,
    /// The lowest block that a backward reaches.
    lowest: usize,
    /// Of query|key|value, `(H + 2K) hd`.
    n_qkv: usize,
    /// On a GPU.
    gpu: Option<OnGpu>,
}

/// What a GPU's ops take that the CPU's do not.
#[derive(Debug, Clone, Copy)]
struct OnGpu {
    /// Stored values that an f32 takes the room of.
    float: usize,
}

/// What a block's forward leaves for its backward; the input first.
struct Saved {
    x: Piece,
    rest: Vec<Piece>,
}

impl Saved {
    fn into_pieces(self) -> impl Iterator<Item = Piece> {
        self.rest.into_iter().chain([self.x])
    }
}

/// What consecutive blocks leave, as `model::decoder` groups them.
enum Group {
    Activations(Vec<Saved>),
    Input { x: Piece, n_blocks: usize },
}

impl Group {
    fn into_pieces(self) -> Vec<Piece> {
        match self {
            Group::Activations(blocks) => blocks.into_iter().flat_map(Saved::into_pieces).collect(),
            Group::Input { x, .. } => vec![x],
        }
    }
}

/// A pass whose backward has reached some block.
struct Returning {
    pass: Pass,
    groups: Vec<Group>,
    activations: Vec<Saved>,
    /// The angles' cosines and sines on a GPU.
    ropes: Piece,
    dx: Piece,
}

impl<'a> Replay<'a> {
    pub fn new(description: &'a DecoderDescription, low_rank: Option<&'a LowRankTerms>) -> Self {
        let [(n_qkv, _), ..] = projections(description);
        let lowest = low_rank.map_or(0, LowRankTerms::lowest);
        Self { ledger: Ledger::default(), d: description, low_rank, lowest, n_qkv, gpu: None }
    }

    /// On a GPU that stores values of `n_bytes`. The ledger counts them.
    pub fn on_gpu(description: &'a DecoderDescription, low_rank: Option<&'a LowRankTerms>, n_bytes: usize) -> Self {
        let float = size_of::<f32>() / n_bytes;
        Self { gpu: Some(OnGpu { float }), ..Self::new(description, low_rank) }
    }

    /// The room of `n` numbers that are f32 in any case.
    fn floats(&self, n: usize) -> usize {
        n * self.gpu.map_or(1, |gpu| gpu.float)
    }

    /// What lasts for the time of one call on a GPU: `n` f32 values.
    fn for_a_moment_on_gpu(&mut self, n: usize) {
        if self.gpu.is_some() {
            let piece = self.ledger.take(Kind::Scratch, self.floats(n));
            self.ledger.give_back(piece);
        }
    }

    /// The norm's backward on a GPU: what blocks of rows add to the weight's gradient.
    fn partial_sums(&mut self, n_rows: usize) {
        if self.low_rank.is_none() {
            self.for_a_moment_on_gpu(n_rows.min(MAX_PARTIAL_SUMS) * self.d.hidden_size);
        }
    }

    /// One pass of the step, of an evaluation, or of scoring.
    pub fn pass(&mut self, pass: &Pass, memory: StepMemory) {
        let begun = self.begin(pass, memory);
        self.backward_blocks(begun.into_iter().collect());
    }

    /// The passes of a step whose backwards are made together.
    pub fn together(&mut self, passes: &[Pass], memory: StepMemory) {
        let begun = passes.iter().filter_map(|pass| self.begin(pass, memory)).collect();
        self.backward_blocks(begun);
    }

    /// The forward, the head, and of the backward what lies above the blocks.
    fn begin(&mut self, pass: &Pass, memory: StepMemory) -> Option<Returning> {
        let n = pass.n_tokens;
        let has_backward = pass.gradient != Gradient::None;
        let keep = if has_backward { memory.keep } else { Keep::Nothing };
        // Cosine and sine of every token's angles.
        let n_angles = if self.gpu.is_some() { self.floats(n * self.d.head_dim * self.d.ropes.len()) } else { 0 };
        let ropes = self.ledger.take(Kind::Activation, n_angles);
        let (groups, x) = self.forward(pass, keep);
        let hidden = self.ledger.take(Kind::Activation, n * self.d.hidden_size);
        let r = self.ledger.take(Kind::Activation, self.floats(n));
        // Input and r of the final norm are for its backward.
        let mut last = vec![x, r];
        if !has_backward {
            self.ledger.give_back_all(last.drain(..));
        }
        let kept_logits = if pass.gradient == Gradient::OfScores { memory.kept_logits } else { 0 };
        let kept = self.score(pass.n_scored, kept_logits);
        let d_hidden = (has_backward || pass.n_compared > 0).then(|| self.ledger.take(Kind::Scratch, n * self.d.hidden_size));
        match pass.gradient {
            Gradient::OfScores => self.score_backward(pass.n_scored, kept),
            _ => self.ledger.give_back_all(kept),
        }
        self.compare(pass.n_compared, has_backward);
        self.ledger.give_back(hidden);
        let begun = has_backward.then(|| {
            let dx = self.ledger.take(Kind::Scratch, n * self.d.hidden_size);
            self.partial_sums(n);
            dx
        });
        self.ledger.give_back_all(last.into_iter().chain(d_hidden));
        let Some(dx) = begun else {
            self.ledger.give_back(ropes);
            return None;
        };
        Some(Returning { pass: *pass, groups, activations: Vec::new(), ropes, dx })
    }

    /// The blocks: what they keep, and the last one's output.
    fn forward(&mut self, pass: &Pass, keep: Keep) -> (Vec<Group>, Piece) {
        let n_blocks = self.d.layers.len();
        let group_size = if let Keep::BlockInputs { every } = keep { every.get() } else { n_blocks.max(1) };
        let mut x = self.ledger.take(Kind::Activation, pass.n_tokens * self.d.hidden_size);
        let mut groups = Vec::new();
        for first in (0..n_blocks).step_by(group_size) {
            let in_group = group_size.min(n_blocks - first);
            let mut kept = Vec::new();
            for block in 0..in_group {
                let (y, saved) = self.block_forward(pass, first + block, x);
                match keep {
                    Keep::ForBackward if first + block >= self.lowest => kept.push(saved),
                    Keep::BlockInputs { .. } if block == 0 && first + in_group > self.lowest => {
                        self.ledger.give_back_all(saved.rest);
                        groups.push(Group::Input { x: saved.x, n_blocks: in_group });
                    }
                    _ => {
                        self.ledger.give_back(saved.x);
                        self.ledger.give_back_all(saved.rest);
                    }
                }
                x = y;
            }
            if keep == Keep::ForBackward {
                groups.push(Group::Activations(kept));
            }
        }
        (groups, x)
    }

    /// `Block::forward`.
    fn block_forward(&mut self, pass: &Pass, layer: usize, x: Piece) -> (Piece, Saved) {
        let mut saved = self.block_forward_to_gate(pass, layer, x);
        let (n, d) = (pass.n_tokens, self.d);
        let activated = self.ledger.take(Kind::Scratch, n * d.intermediate_size);
        let mut y = self.ledger.take(Kind::Activation, n * d.hidden_size);
        self.low_rank(pass, layer, DOWN, 1);
        if d.norms.after_mlp.is_some() {
            saved.rest.push(y);
            y = self.ledger.take(Kind::Activation, n * d.hidden_size);
            saved.rest.push(self.ledger.take(Kind::Activation, self.floats(n)));
        }
        self.ledger.give_back(activated);
        (y, saved)
    }

    /// `Block::forward_to_gate`.
    fn block_forward_to_gate(&mut self, pass: &Pass, layer: usize, x: Piece) -> Saved {
        let (n, d) = (pass.n_tokens, self.d);
        let [r, r_queries, r_keys] = [1, d.n_heads, d.n_kv_heads].map(|heads| self.floats(n * heads));
        let normed = self.ledger.take(Kind::Scratch, n * d.hidden_size);
        let mut rest = vec![self.ledger.take(Kind::Activation, r), self.ledger.take(Kind::Activation, n * self.n_qkv)];
        self.low_rank(pass, layer, QKV, 1);
        self.ledger.give_back(normed);
        let mut keep = |ledger: &mut Ledger, length: usize| rest.push(ledger.take(Kind::Activation, length));
        if d.query_key_norm {
            for length in [n * self.n_qkv, r_queries, r_keys] {
                keep(&mut self.ledger, length);
            }
        }
        // attention::forward: the output and the log-sum-exp.
        keep(&mut self.ledger, n * d.n_heads * d.head_dim);
        keep(&mut self.ledger, r_queries);
        keep(&mut self.ledger, n * d.hidden_size);
        if d.norms.after_attention.is_some() {
            keep(&mut self.ledger, n * d.hidden_size);
            keep(&mut self.ledger, r);
        }
        let normed = self.ledger.take(Kind::Scratch, n * d.hidden_size);
        keep(&mut self.ledger, r);
        keep(&mut self.ledger, n * 2 * d.intermediate_size);
        self.low_rank(pass, layer, GATE_UP, 1);
        self.ledger.give_back(normed);
        Saved { x, rest }
    }

    /// `Decoder::backward_blocks`.
    fn backward_blocks(&mut self, mut returns: Vec<Returning>) {
        for layer in (self.lowest..self.d.layers.len()).rev() {
            returns = returns.into_iter().map(|back| self.through(back, layer)).collect();
        }
        for Returning { dx, ropes, activations, groups, .. } in returns {
            let below = groups.into_iter().flat_map(Group::into_pieces).chain(activations.into_iter().flat_map(Saved::into_pieces));
            self.ledger.give_back_all(below.chain([dx, ropes]));
        }
    }

    /// `Returning::through`.
    fn through(&mut self, mut back: Returning, layer: usize) -> Returning {
        if back.activations.is_empty() {
            back.activations = match back.groups.pop() {
                Some(Group::Activations(blocks)) => blocks,
                Some(Group::Input { x, n_blocks }) => self.activations_again(&back.pass, layer + 1 - n_blocks..layer + 1, x),
                None => Vec::new(),
            };
        }
        match back.activations.pop() {
            Some(saved) => Returning { dx: self.block_backward(&back.pass, layer, saved, back.dx), ..back },
            None => back,
        }
    }

    fn activations_again(&mut self, pass: &Pass, layers: Range<usize>, mut x: Piece) -> Vec<Saved> {
        let mut blocks = Vec::new();
        let last = layers.end - 1;
        for layer in layers.start..last {
            let (y, saved) = self.block_forward(pass, layer, x);
            blocks.push(saved);
            x = y;
        }
        if self.d.norms.after_mlp.is_some() {
            let (y, saved) = self.block_forward(pass, last, x);
            self.ledger.give_back(y);
            blocks.push(saved);
        } else {
            blocks.push(self.block_forward_to_gate(pass, last, x));
        }
        blocks
    }

    /// `Block::backward`.
    fn block_backward(&mut self, pass: &Pass, layer: usize, saved: Saved, dy: Piece) -> Piece {
        let (n, d) = (pass.n_tokens, self.d);
        let rows = n * d.hidden_size;
        // mlp_backward
        let d_down = d.norms.after_mlp.map(|_| self.ledger.take(Kind::Scratch, rows));
        let [d_activated, activated] = [(); 2].map(|()| self.ledger.take(Kind::Scratch, n * d.intermediate_size));
        let d_gate_up = self.ledger.take(Kind::Scratch, n * 2 * d.intermediate_size);
        self.ledger.give_back(d_activated);
        self.low_rank(pass, layer, DOWN, 2);
        self.ledger.give_back(activated);
        let [normed, d_normed] = [(); 2].map(|()| self.ledger.take(Kind::Scratch, rows));
        self.low_rank(pass, layer, GATE_UP, 2);
        let d_middle = self.ledger.take(Kind::Scratch, rows);
        self.partial_sums(n);
        self.ledger.give_back_all([d_normed, normed, d_gate_up].into_iter().chain(d_down).chain([dy]));
        // attention_backward
        let d_output = d.norms.after_attention.map(|_| self.ledger.take(Kind::Scratch, rows));
        let d_attended = self.ledger.take(Kind::Scratch, n * d.n_heads * d.head_dim);
        let d_qkv = self.ledger.take(Kind::Scratch, n * self.n_qkv);
        // Two numbers a row and head, for the scores' gradients.
        self.for_a_moment_on_gpu(2 * n * d.n_heads);
        self.ledger.give_back(d_attended);
        let [normed, d_normed] = [(); 2].map(|()| self.ledger.take(Kind::Scratch, rows));
        self.low_rank(pass, layer, QKV, 2);
        let dx = self.ledger.take(Kind::Scratch, rows);
        self.partial_sums(n);
        self.ledger.give_back_all([d_normed, normed, d_qkv].into_iter().chain(d_output));
        self.ledger.give_back_all([d_middle, saved.x].into_iter().chain(saved.rest));
        dx
    }

    /// A term in passing: `n_inner` arrays as wide as its inner dimension, and with dropout its input or that input's gradient; on a GPU the
    /// latter twice, before and after the mask.
    fn low_rank(&mut self, pass: &Pass, layer: usize, fused: usize, n_inner: usize) {
        let Some(terms) = self.low_rank else { return };
        let (term, (_, n_in)) = (terms.terms(layer)[fused], projections(self.d)[fused]);
        if term.n_inner > 0 {
            let drops = terms.has_dropout && pass.gradient != Gradient::None;
            // Where the activations' gradient is made there is less beside it.
            let is_both = self.gpu.is_some() && fused != DOWN;
            let n_masked = match drops {
                true if is_both => n_inner,
                drops => usize::from(drops),
            };
            let masked: Vec<_> = (0..n_masked).map(|_| self.ledger.take(Kind::Scratch, pass.n_tokens * n_in)).collect();
            let inner: Vec<_> = (0..n_inner).map(|_| self.ledger.take(Kind::Scratch, pass.n_tokens * term.n_inner)).collect();
            self.ledger.give_back_all(inner.into_iter().chain(masked));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ComputeDtype;
    use crate::data::batch::{PackedBatch, PromptSharing};
    use crate::model::decoder::{self, Decoder, Purpose, TokenTarget};
    use crate::model::family;
    use crate::model::low_rank::Adaptation;
    use crate::model::weights::{SavedDtype, TensorToSave, save};
    use crate::ops::buffer::{Buffer, most_lent};
    use serde_json::{Value, json};
    use std::num::NonZeroUsize;
    use std::process::Command;

    fn llama() -> Value {
        json!({
            "model_type": "llama", "vocab_size": 300, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048, "tie_word_embeddings": true,
        })
    }

    /// Norms behind attention and MLP, and on queries and keys.
    fn gemma3() -> Value {
        let mut config = llama();
        let more = json!({
            "model_type": "gemma3_text", "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 512,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "rope_local_base_freq": 10000.0,
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    }

    fn load(config: &Value, adaptation: Option<&Adaptation>) -> Decoder {
        let dir = tempfile::tempdir().unwrap();
        let tensors: Vec<_> = family::expected_tensors(&family::describe(config).unwrap())
            .into_iter()
            .map(|(name, shape)| {
                let n = shape.iter().product();
                (name, shape, vec![0.01f32; n])
            })
            .collect();
        let to_save: Vec<_> =
            tensors.iter().map(|(name, shape, values)| TensorToSave { name, shape, values, dtype: SavedDtype::F32 }).collect();
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        save(dir.path(), &to_save, u64::MAX).unwrap();
        match adaptation {
            Some(adaptation) => Decoder::load_adapted(dir.path(), adaptation, ComputeDtype::F32, Purpose::Train).unwrap(),
            None => Decoder::load(dir.path(), ComputeDtype::F32, Purpose::Train).unwrap(),
        }
    }

    /// A pass as the step makes it, but for the blocks' backward.
    fn begin(model: &Decoder, batch: &PackedBatch, gradient: Gradient, memory: StepMemory) -> (Pass, Option<decoder::Returning>) {
        let targets: Vec<_> = (1..batch.n_tokens() as u32).map(|row| TokenTarget { row, token: row % 300 }).collect();
        let targets = if gradient == Gradient::OfStates { &[] } else { &targets[..] };
        let has_backward = gradient != Gradient::None;
        let forward = model.forward(batch, if has_backward { memory.keep } else { Keep::Nothing }).unwrap();
        let scored = model.score(&forward.hidden_ND, targets, if has_backward { memory.kept_logits } else { 0 }).unwrap();
        let begun = has_backward.then(|| {
            let d_hidden = Buffer::zeros(forward.hidden_ND.dims()).unwrap();
            let d_log_probs = crate::ops::tensor(vec![1.0; targets.len()], &[targets.len()]).unwrap();
            model.score_backward(&forward.hidden_ND, (targets, scored), &d_log_probs, &d_hidden).unwrap();
            model.begin_backward(forward, d_hidden).unwrap()
        });
        (Pass::new(batch, model.description(), targets.len(), gradient), begun)
    }

    fn batch(n: usize) -> PackedBatch {
        let mut batch = PackedBatch::default();
        batch.push_responses(&vec![1; n / 4], &[&vec![2; n / 4], &vec![3; n / 2]], PromptSharing::Shared);
        batch
    }

    /// Alone in its process: the pool is the process's own. Each pass needs more than the one before, and so sets the pool's mark.
    #[test]
    #[ignore = "run by the test below, in a process of its own"]
    fn alone() {
        let model = std::env::var("MPO_TEST_MODEL").unwrap();
        match model.strip_prefix("GPU ") {
            Some(model) => drop(crate::ops::gpu::on_emulated_gpu(|| passes_are_as_their_replay(model, true)).unwrap()),
            None => passes_are_as_their_replay(&model, false),
        }
    }

    fn passes_are_as_their_replay(model: &str, on_gpu: bool) {
        let every = |n: usize| Keep::BlockInputs { every: NonZeroUsize::new(n).unwrap() };
        let config = if model == "gemma3" { gemma3() } else { llama() };
        let adapted = ["1.self_attn.q_proj", "1.mlp.down_proj", "2.mlp.up_proj"].map(|name| format!("model.layers.{name}"));
        let adaptation = Adaptation { rank: 24, scale: 1.0, dropout: 0.1, seed: 0, projections: adapted.into() };
        let decoder = load(&config, (model == "adapter").then_some(&adaptation));
        let terms = decoder.adaptation().map(|adaptation| LowRankTerms::new(adaptation, decoder.description()));
        // The emulated GPU takes its time.
        let shorter = if on_gpu { 2 } else { 1 };
        let everything = StepMemory { keep: Keep::ForBackward, kept_logits: 0 };
        for (n, gradient, memory) in [
            (300, Gradient::None, everything),
            (300, Gradient::OfStates, StepMemory { keep: every(1), ..everything }),
            (400, Gradient::OfScores, StepMemory { keep: every(2), ..everything }),
            (700, Gradient::OfScores, everything),
            (900, Gradient::OfScores, StepMemory { kept_logits: 1 << 20, ..everything }),
        ] {
            let (pass, begun) = begin(&decoder, &batch(n / shorter), gradient, memory);
            begun.into_iter().for_each(|begun| decoder.finish_backward(begun).unwrap());
            let (d, terms) = (decoder.description(), terms.as_ref());
            let mut replay = if on_gpu { Replay::on_gpu(d, terms, size_of::<f32>()) } else { Replay::new(d, terms) };
            replay.pass(&pass, memory);
            // A piece may be somewhat larger than what was asked for.
            let (predicted, seen) = (replay.ledger.peak().total() as f64, most_lent() as f64);
            // Angles are copied to a GPU, and not from the pool of the emulated one.
            let most = if on_gpu { 1.02 } else { 1.0 };
            assert!((0.93..=most).contains(&(predicted / seen)), "{n} tokens, {gradient:?}, {memory:?}: {predicted}, and it was {seen}");
        }
        if terms.is_some() || on_gpu {
            return;
        }
        for (n, keep) in [(1600, every(1)), (2200, every(2)), (2400, Keep::ForBackward)] {
            let memory = StepMemory { keep, ..everything };
            let two = [(n, Gradient::OfStates), (n + 100, Gradient::OfScores)];
            let (passes, begun): (Vec<_>, Vec<_>) =
                two.map(|(n, gradient)| begin(&decoder, &batch(n), gradient, memory)).into_iter().unzip();
            decoder.backward_together(begun.into_iter().flatten().collect(), |_| Ok(())).unwrap();
            let mut replay = Replay::new(decoder.description(), None);
            replay.together(&passes, memory);
            let (predicted, seen) = (replay.ledger.peak().total() as f64, most_lent() as f64);
            assert!((0.93..=1.0).contains(&(predicted / seen)), "together, {memory:?}: {predicted}, and it was {seen}");
        }
    }

    #[test]
    fn a_pass_takes_from_the_pool_what_its_replay_says() {
        // Copies made by candle, as of what a norm of queries and keys changes, do not come from the pool on the emulated GPU.
        for model in ["llama", "gemma3", "adapter", "GPU llama", "GPU adapter"] {
            let mut test = Command::new(std::env::current_exe().unwrap());
            test.args(["--exact", "plan::replay::tests::alone", "--ignored", "--test-threads=1"]).env("MPO_TEST_MODEL", model);
            let output = test.output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("1 passed"), "{model}: {said}{}", String::from_utf8_lossy(&output.stderr));
        }
    }

    /// One block and no head, by hand, in values a token. The fullest moment is when the gradient of gate and up is made.
    #[test]
    fn a_small_model_by_hand() {
        let mut description = load(&llama(), None).description().clone();
        description.layers.truncate(1);
        let (n, d, qkv, i) = (1 << 15, 64, 128, 160);
        let pass = Pass { n_tokens: n, n_visible: 0, n_largest_tree: n, n_scored: 0, n_compared: 0, gradient: Gradient::OfStates };
        let mut replay = Replay::new(&description, None);
        replay.pass(&pass, StepMemory { keep: Keep::ForBackward, kept_logits: 0 });
        let r = 1;
        let saved = d + r + qkv + d + 4 + d + r + 2 * i;
        let held = replay.ledger.peak();
        assert_eq!(held.of(Kind::Activation), n * saved);
        assert_eq!(held.of(Kind::Scratch), n * (d + 2 * i + 2 * i), "dy; d_activated, activated; d_gate_up");
        assert_eq!(held.of(Kind::Logits), 0);
    }
}
