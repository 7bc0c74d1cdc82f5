//! The decoder: packed tokens to final-norm hidden states and response log-probabilities, and back.
//!
//! Nothing here is taped: `forward` returns what `backward` needs, `backward` adds to gradient buffers that the parameters own. A sequence's
//! hidden states do not depend on what it is packed with, bit for bit on the CPU.

mod backward;
mod cached;

use super::block::{Block, Layout, SavedBlock};
use super::description::DecoderDescription;
use super::family;
use super::gradients::Gradients;
pub use super::layers::Purpose;
use super::layers::{Builder, Norm, Source};
use super::low_rank::Adaptation;
use super::parameter::Parameter;
use super::weights::Checkpoint;
use crate::config::ComputeDtype;
use crate::data::batch::{PackedBatch, Segment};
use crate::ops::dropout::{RowKeys, mix_in, row_keys};
use crate::ops::log_prob::Head;
pub use crate::ops::log_prob::{ScoredTargets, TokenTarget};
use crate::ops::rope::RopeTable;
use crate::ops::{self, Buffer, Place, Scratch, embedding};
use anyhow::{Context, Result, ensure};
pub use backward::Returning;
use candle_core::Tensor;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use tracing::debug_span;

/// A Llama-, Gemma- or Qwen-like decoder with its head, in f32 on the CPU.
#[derive(Debug)]
pub struct Decoder {
    description: DecoderDescription,
    compute: ComputeDtype,
    embeddings: Parameter,
    blocks: Vec<Block>,
    final_norm: Norm,
    /// `None` when the head is the embeddings.
    head: Option<Parameter>,
    parameters: Vec<Parameter>,
    /// Of these, each block's.
    block_parameters: Vec<Range<usize>>,
    low_rank_parameters: Vec<Parameter>,
    /// Those that parameters have bands of, each once.
    gradients: Gradients,
    adaptation: Option<Adaptation>,
    /// Counts where dropout masks change; see [`Decoder::begin_step`].
    step: AtomicU64,
}

/// What a forward keeps for a backward. Results are the same, bit for bit; memory and time are not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// There will be no backward.
    Nothing,
    /// Everything that the backward reads.
    ForBackward,
    /// The input of every n-th block; the backward runs the blocks from there again (activation checkpointing, arXiv 1604.06174).
    BlockInputs { every: NonZeroUsize },
}

/// The result of a forward pass.
pub struct Forward {
    /// Final-norm hidden states, `[N, D]`: what the head and retention look at.
    pub hidden_ND: Buffer,
    saved: Option<Saved>,
}

struct Saved {
    input: Input,
    /// In the order of the blocks, from the lowest that is trained.
    groups: Vec<SavedGroup>,
    /// Input and r of the final norm.
    last: Buffer,
    last_r: Buffer,
}

/// What is run, as the blocks need it.
struct Input {
    tokens: Vec<u32>,
    segments: Vec<Segment>,
    /// One per rotary embedding of the description.
    ropes: Vec<RopeTable>,
    row_keys: Option<RowKeys>,
}

impl Input {
    fn layout(&self) -> Layout<'_> {
        Layout { segments: &self.segments, ropes: &self.ropes, row_keys: self.row_keys.as_ref() }
    }
}

/// What consecutive blocks leave for their backward.
enum SavedGroup {
    Activations(Vec<SavedBlock>),
    /// Of the first of them.
    Input {
        x_ND: Buffer,
        n_blocks: usize,
    },
}

impl Decoder {
    /// Loads a Hugging Face folder: `config.json` and safetensors, whose names and shapes are checked before anything is read.
    pub fn load(dir: &Path, place: impl Into<Place>, purpose: Purpose) -> Result<Self> {
        Self::load_with(dir, None, place.into(), purpose)
    }

    /// As [`Decoder::load`], with low-rank terms that are all zeros beside frozen weights. Whoever loads it fills the terms' parameters.
    pub fn load_adapted(dir: &Path, adaptation: &Adaptation, place: impl Into<Place>, purpose: Purpose) -> Result<Self> {
        Self::load_with(dir, Some(adaptation), place.into(), purpose)
    }

    fn load_with(dir: &Path, adaptation: Option<&Adaptation>, place: Place, purpose: Purpose) -> Result<Self> {
        let description = family::describe_folder(dir)?;
        let checkpoint = Checkpoint::open(dir)?;
        family::check_weights(&description, &checkpoint)
            .with_context(|| format!("the weights in `{}` do not fit its config.json", dir.display()))?;
        let source = if purpose == Purpose::Inference { Source::Finite(&checkpoint) } else { Source::Checkpoint(&checkpoint) };
        Self::build(description, source, adaptation, place, purpose)
    }

    /// Random values, made where they will lie: for measuring models whose values do not matter. They do not repeat; low-rank terms are all zeros.
    pub fn random(
        description: DecoderDescription,
        adaptation: Option<&Adaptation>,
        place: impl Into<Place>,
        purpose: Purpose,
    ) -> Result<Self> {
        Self::build(description, Source::Random, adaptation, place.into(), purpose)
    }

    fn build(
        description: DecoderDescription,
        source: Source,
        adaptation: Option<&Adaptation>,
        place: Place,
        purpose: Purpose,
    ) -> Result<Self> {
        let d = &description;
        let mut builder = Builder {
            source,
            description: d,
            place: &place,
            adaptation,
            parameters: Vec::new(),
            low_rank_parameters: Vec::new(),
            gradients: Gradients::new(purpose),
        };
        let embeddings = builder.matrix("model.embed_tokens.weight", d.vocab_size, d.hidden_size)?;
        let mut block = |layer| {
            let first = builder.parameters.len();
            let block = Block::build(&mut builder, layer)?;
            Ok((block, first..builder.parameters.len()))
        };
        let (blocks, block_parameters) = (0..d.layers.len()).map(&mut block).collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let final_norm = builder.norm("model.norm", d.hidden_size)?;
        let head = match d.tied_embeddings {
            true => None,
            false => Some(builder.matrix("lm_head.weight", d.vocab_size, d.hidden_size)?),
        };
        let compute = place.compute;
        let Builder { parameters, low_rank_parameters, gradients, .. } = builder;
        let (adaptation, step) = (adaptation.cloned(), AtomicU64::new(0));
        Ok(Self {
            description,
            compute,
            embeddings,
            blocks,
            final_norm,
            head,
            parameters,
            block_parameters,
            low_rank_parameters,
            gradients,
            adaptation,
            step,
        })
    }

    pub fn description(&self) -> &DecoderDescription {
        &self.description
    }

    /// What low-rank terms it has.
    pub fn adaptation(&self) -> Option<&Adaptation> {
        self.adaptation.as_ref()
    }

    /// Whether forwards for a backward drop values: then they are not the forwards of an evaluation.
    pub fn has_dropout(&self) -> bool {
        self.adaptation.as_ref().is_some_and(|adaptation| adaptation.dropout > 0.0)
    }

    /// Gives the forwards that follow dropout masks of their own. Those of one step are the same however often its passes are made.
    pub fn begin_step(&self, step: u64) {
        self.step.store(step, Ordering::Relaxed);
    }

    /// A and B of the low-rank terms, in the order of the forward pass: `model.layers.0.self_attn.q_proj.lora_A.weight`.
    pub fn low_rank_parameters(&self) -> &[Parameter] {
        &self.low_rank_parameters
    }

    /// What a training run changes: the low-rank terms where there are any, else every parameter.
    pub fn trained_parameters(&self) -> &[Parameter] {
        if self.adaptation.is_some() { &self.low_rank_parameters } else { &self.parameters }
    }

    /// Every parameter of the checkpoint under its name there, in the order of the forward pass; tied embeddings stand once.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Whether blocks share gradient buffers: then [`Decoder::backward_together`] is the only way back.
    pub fn shares_gradients(&self) -> bool {
        self.gradients.are_shared()
    }

    /// Sets all gradient buffers to zero.
    pub fn zero_gradients(&self) -> Result<()> {
        self.gradients.buffers().try_for_each(ops::clear)
    }

    /// The head's matrix, `[V, D]`.
    pub fn head_weight(&self) -> &Tensor {
        &self.head.as_ref().unwrap_or(&self.embeddings).value
    }

    /// How logits are made from hidden states and the head's matrix.
    pub fn head(&self) -> Head {
        Head { soft_cap: self.description.logit_soft_cap, compute: self.compute }
    }

    /// N packed tokens to final-norm hidden states `[N, D]`.
    pub fn forward(&self, batch: &PackedBatch, keep: Keep) -> Result<Forward> {
        ensure!(batch.n_tokens() > 0, "a batch without tokens");
        self.check_padding(batch)?;
        let input = Input {
            tokens: batch.tokens.clone(),
            segments: batch.segments.clone(),
            ropes: self.rope_tables(&batch.positions),
            row_keys: self.row_keys(batch, keep),
        };
        let layout = input.layout();
        let lowest = self.lowest_trained();
        let mut x = embedding::forward(&self.embeddings.value, &batch.tokens, self.embedding_scale())?;
        let mut groups = Vec::new();
        let group_size = if let Keep::BlockInputs { every } = keep { every.get() } else { self.blocks.len().max(1) };
        for first in (0..self.blocks.len()).step_by(group_size) {
            let blocks = first..(first + group_size).min(self.blocks.len());
            let mut saved = Vec::new();
            for layer in blocks.clone() {
                let _span = debug_span!("block forward", layer).entered();
                let (y, saved_block) = self.blocks[layer].forward(x, &layout)?;
                match keep {
                    Keep::Nothing => {}
                    // No backward comes here.
                    _ if blocks.end <= lowest => {}
                    Keep::ForBackward if layer < lowest => {}
                    Keep::ForBackward => saved.push(saved_block),
                    Keep::BlockInputs { .. } if layer > first => {}
                    Keep::BlockInputs { .. } => groups.push(SavedGroup::Input { x_ND: saved_block.into_input(), n_blocks: blocks.len() }),
                }
                x = y;
            }
            if keep == Keep::ForBackward {
                groups.push(SavedGroup::Activations(saved));
            }
        }
        let (hidden_ND, last_r) = self.final_norm.forward(&x)?;
        let saved = (keep != Keep::Nothing).then(|| Saved { input, groups, last: x, last_r });
        Ok(Forward { hidden_ND, saved })
    }

    /// The lowest block that a backward has to reach: the first where the embeddings are trained.
    fn lowest_trained(&self) -> usize {
        match self.embeddings.gradient {
            Some(_) => 0,
            None => self.blocks.iter().position(Block::is_trained).unwrap_or(self.blocks.len()),
        }
    }

    /// Only a forward for a backward drops anything.
    fn row_keys(&self, batch: &PackedBatch, keep: Keep) -> Option<RowKeys> {
        let adaptation = self.adaptation.as_ref().filter(|adaptation| adaptation.dropout > 0.0 && keep != Keep::Nothing)?;
        let start = mix_in(adaptation.seed, self.step.load(Ordering::Relaxed));
        Some(row_keys(start, &batch.tokens, &batch.segments))
    }

    /// Attention over no key at all has no value: frameworks return zeros, NaN or a mean over everything, depending on the kernel.
    fn check_padding(&self, batch: &PackedBatch) -> Result<()> {
        let Some(window) = self.description.layers.iter().filter_map(|layer| layer.window).min() else { return Ok(()) };
        for segment in batch.segments.iter().filter(|segment| !segment.sees_itself) {
            // The last of n padding rows sees the positions above its own minus the window; the first n of these are padding.
            ensure!(
                segment.rows.len() < window,
                "`retention.pooling` = \"mean_padded\" is not defined here: {} positions of padding follow a sequence, and this model's sliding \
                 window of {window} reaches no token from the last of them; choose another pooling, or drop rows with answers of such unequal length",
                segment.rows.len()
            );
        }
        Ok(())
    }

    /// Log-probabilities of M target tokens, from the hidden states of the rows that predict them. Waits for a GPU.
    pub fn log_probs(&self, hidden_ND: &Tensor, targets: &[TokenTarget]) -> Result<Vec<f32>> {
        Ok(ops::read(&self.score(hidden_ND, targets, 0)?.log_probs)?.to_vec())
    }

    /// [`Decoder::log_probs`], to be followed by a backward. Of the logits, or of what a frozen head makes of them, at most `n_kept` values stay
    /// for [`Decoder::score_backward`]; the others it makes again.
    pub fn score(&self, hidden_ND: &Tensor, targets: &[TokenTarget], n_kept: usize) -> Result<ScoredTargets> {
        match self.head_gradient() {
            Some(_) => self.head().score(hidden_ND, self.head_weight(), targets, n_kept),
            None => self.head().score_frozen(hidden_ND, self.head_weight(), targets, n_kept),
        }
    }

    /// Adds to the head's gradient and to that of the hidden states, `d_hidden_ND [N, D]`, from those of the log-probabilities, `[M]`, f32.
    pub fn score_backward(
        &self,
        hidden_ND: &Tensor,
        (targets, scored): (&[TokenTarget], ScoredTargets),
        d_log_probs: &Tensor,
        d_hidden_ND: &Tensor,
    ) -> Result<()> {
        let (head, weight, gradient) = (self.head(), self.head_weight(), self.head_gradient());
        match gradient {
            Some(_) => head.backward(hidden_ND, weight, (targets, scored), d_log_probs, d_hidden_ND, gradient),
            None => head.backward_frozen(hidden_ND, weight, (targets, scored), d_log_probs, d_hidden_ND),
        }
    }

    /// Logits `[M, V]` of M hidden states: all of them, so only for a few rows at a time.
    pub fn logits(&self, hidden_MD: &[f32]) -> Result<Scratch> {
        self.head().logits(hidden_MD, self.head_weight())
    }

    /// Of the head's matrix, where it is trained.
    pub fn head_gradient(&self) -> Option<&Tensor> {
        self.head.as_ref().unwrap_or(&self.embeddings).gradient.as_ref()
    }

    fn embedding_scale(&self) -> f32 {
        self.description.embedding_scale.unwrap_or(1.0) as f32
    }
}
