//! The way back through the blocks: of one forward, or of several together, block by block.
//!
//! Together, a block's gradients are whole as soon as every forward's backward has left it, and may be used up before the next block is entered. Sums are
//! formed in the order of the forwards either way: the gradients are the same, bit for bit, but for a head that is the embeddings.

use super::super::block::{Layout, SavedBlock};
use super::{Decoder, Forward, Input, Saved, SavedGroup};
use crate::ops::{self, Buffer, embedding};
use anyhow::{Context, Result, ensure};
use std::ops::Range;
use tracing::debug_span;

/// A forward whose backward has reached some block.
pub struct Returning {
    input: Input,
    groups: Vec<SavedGroup>,
    /// Of the blocks below, as far as they are there.
    activations: Vec<SavedBlock>,
    /// The gradient of the output of the next block down, `[N, D]`.
    dx: Buffer,
}

impl Decoder {
    /// Adds to all gradient buffers, from the gradient of the final-norm hidden states `[N, D]`. Takes the saved activations and frees
    /// each block's as soon as it is used.
    pub fn backward(&self, forward: Forward, d_hidden_ND: Buffer) -> Result<()> {
        self.finish_backward(self.begin_backward(forward, d_hidden_ND)?)
    }

    /// The first step of a backward: through the final norm.
    pub fn begin_backward(&self, forward: Forward, d_hidden_ND: Buffer) -> Result<Returning> {
        let Saved { input, groups, last, last_r } = forward.saved.context("this forward kept nothing for a backward")?;
        drop(forward.hidden_ND);
        let dx = self.final_norm.backward(&last, &last_r, &d_hidden_ND)?;
        Ok(Returning { input, groups, activations: Vec::new(), dx })
    }

    /// The rest of one.
    pub fn finish_backward(&self, begun: Returning) -> Result<()> {
        ensure!(!self.gradients.are_shared(), "gradients of blocks that share a buffer must be taken as soon as they are whole");
        self.backward_blocks(vec![begun], |_| Ok(()))
    }

    /// The rest of several, block by block. `take` is told which of [`Decoder::parameters`] have their whole gradient, once for each part: final norm
    /// and head; each block, from the last on; the embeddings. After that the part's gradients are zero again, since the next part's may come to lie in
    /// the same buffers.
    pub fn backward_together(&self, begun: Vec<Returning>, mut take: impl FnMut(Range<usize>) -> Result<()>) -> Result<()> {
        ensure!(self.adaptation.is_none(), "an adapter's gradients are not taken in parts");
        self.backward_blocks(begun, |part| {
            take(part.clone())?;
            self.parameters[part].iter().filter_map(|parameter| parameter.gradient.as_ref()).try_for_each(ops::clear)
        })
    }

    fn backward_blocks(&self, mut returns: Vec<Returning>, mut take: impl FnMut(Range<usize>) -> Result<()>) -> Result<()> {
        let (lowest, above) = (self.lowest_trained(), self.block_parameters.last().map_or(1, |block| block.end));
        take(above..self.parameters.len())?;
        for layer in (lowest..self.blocks.len()).rev() {
            let _span = debug_span!("block backward", layer).entered();
            if layer == lowest && self.embeddings.gradient.is_none() {
                return returns.into_iter().try_for_each(|back| back.end_in(self, layer));
            }
            returns = returns.into_iter().map(|back| back.through(self, layer)).collect::<Result<_>>()?;
            take(self.block_parameters[layer].clone())?;
        }
        let Some(gradient) = &self.embeddings.gradient else { return Ok(()) };
        for Returning { input, dx, .. } in returns {
            embedding::backward(&dx, &input.tokens, self.embedding_scale(), self.description.padding_token, gradient)?;
        }
        take(0..1)
    }

    /// The activations of a group of blocks, made again from the group's input.
    fn activations_again(&self, blocks: Range<usize>, mut x_ND: Buffer, layout: &Layout) -> Result<Vec<SavedBlock>> {
        let mut saved = Vec::with_capacity(blocks.len());
        for layer in blocks.clone() {
            let _span = debug_span!("block forward again", layer).entered();
            if layer + 1 == blocks.end {
                saved.push(self.blocks[layer].saved_again(x_ND, layout)?);
                break;
            }
            let (y_ND, saved_block) = self.blocks[layer].forward(x_ND, layout)?;
            saved.push(saved_block);
            x_ND = y_ND;
        }
        Ok(saved)
    }
}

impl Returning {
    fn through(mut self, decoder: &Decoder, layer: usize) -> Result<Self> {
        let saved = self.next_block(decoder, layer)?;
        let dx = decoder.blocks[layer].backward(saved, self.dx, &self.input.layout())?;
        Ok(Self { dx, ..self })
    }

    /// [`Returning::through`] the lowest block that is trained, where nothing below it is.
    fn end_in(mut self, decoder: &Decoder, layer: usize) -> Result<()> {
        let saved = self.next_block(decoder, layer)?;
        decoder.blocks[layer].backward_lowest(saved, self.dx, &self.input.layout())
    }

    fn next_block(&mut self, decoder: &Decoder, layer: usize) -> Result<SavedBlock> {
        if self.activations.is_empty() {
            self.activations = match self.groups.pop().context("a backward through more blocks than its forward")? {
                SavedGroup::Activations(blocks) => blocks,
                SavedGroup::Input { x_ND, n_blocks } => {
                    let above = layer + 1;
                    decoder.activations_again(above - n_blocks..above, x_ND, &self.input.layout())?
                }
            };
        }
        self.activations.pop().context("a block without activations")
    }
}
