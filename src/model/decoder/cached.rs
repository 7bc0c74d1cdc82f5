//! Reading texts bit by bit: prompts as a whole, then one token of each of several sequences at a time, over what caches keep of the others.
//!
//! Prompts go through the packed forward. A next token's products are made by a kernel for few rows, so its hidden state equals that of a
//! forward of the whole text to rounding; it does not depend on what else is in the batch, bit for bit.

use super::Decoder;
use crate::data::batch::PackedBatch;
use crate::model::block::Layout;
use crate::model::cache::Cache;
use crate::ops::rope::RopeTable;
use crate::ops::{self, Buffer, Scratch, embedding, read};
use anyhow::{Result, ensure};

impl Decoder {
    /// Reads M texts: the final-norm hidden state of the last token of each `[M, D]`, and their caches. None may be empty.
    pub fn read_texts(&self, texts: &[&[u32]]) -> Result<(Buffer, Vec<Cache>)> {
        ensure!(!texts.is_empty() && texts.iter().all(|text| !text.is_empty()), "a text without tokens");
        let mut batch = PackedBatch::default();
        for text in texts {
            batch.push_segment(text, None, true);
        }
        let ropes = self.rope_tables(&batch.positions);
        let layout = Layout { segments: &batch.segments, ropes: &ropes, row_keys: None };
        let mut caches: Vec<Cache> =
            texts.iter().map(|text| Cache { layers: Vec::with_capacity(self.blocks.len()), n_tokens: text.len() }).collect();
        let mut x = embedding::forward(&self.embeddings.value, &batch.tokens, self.embedding_scale())?;
        for block in &self.blocks {
            let (y, saved) = block.forward(x, &layout)?;
            for (cache, segment) in caches.iter_mut().zip(&batch.segments) {
                cache.layers.push(block.keys_values(&saved, segment.rows.clone())?);
            }
            x = y;
        }
        let ends: Vec<usize> = batch.segments.iter().map(|segment| segment.rows.end - 1).collect();
        let last = ops::gather_rows(&x, &ends)?;
        Ok((self.final_norm.forward(&last)?.0, caches))
    }

    /// Reads the next token of each of M sequences, whose caches grow by it: its final-norm hidden states `[M, D]`.
    pub fn read_next(&self, tokens: &[u32], caches: &mut [&mut Cache]) -> Result<Buffer> {
        ensure!(!tokens.is_empty() && tokens.len() == caches.len(), "{} tokens for {} sequences", tokens.len(), caches.len());
        let positions: Vec<u32> = caches.iter().map(|cache| cache.n_tokens as u32).collect();
        let ropes = self.rope_tables(&positions);
        let mut x = embedding::forward(&self.embeddings.value, tokens, self.embedding_scale())?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.forward_next(x, &ropes, caches.iter_mut().map(|cache| &mut cache.layers[layer]).collect())?;
        }
        caches.iter_mut().for_each(|cache| cache.n_tokens += 1);
        Ok(self.final_norm.forward(&x)?.0)
    }

    /// Logits `[M, V]` of what [`Decoder::read_texts`] or [`Decoder::read_next`] gave.
    pub fn next_logits(&self, hidden_MD: &Buffer) -> Result<Scratch> {
        self.head().logits_few(&read(hidden_MD)?, self.head_weight())
    }

    pub(super) fn rope_tables(&self, positions: &[u32]) -> Vec<RopeTable> {
        self.description.ropes.iter().map(|rope| RopeTable::new(&rope.inverse_frequencies, positions)).collect()
    }
}
