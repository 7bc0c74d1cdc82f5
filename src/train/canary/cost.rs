//! What asking the canaries once takes at most, for `mpo plan`: every answer may be as long as `canary.max_new_tokens` allows.

use super::likelihood::{N_TOP, groups};
use super::prompts::Prompts;
use crate::data::batch::{PackedBatch, PromptSharing};
use crate::generate::DEFAULT_BATCH_SIZE;
use crate::model::description::DecoderDescription;
use crate::plan::estimate::Generation;
use crate::plan::work::{Gradient, Pass};

impl Prompts {
    /// The packed forwards: prompts that are read to be answered, and texts whose likelihood is measured.
    pub fn passes(&self, description: &DecoderDescription) -> Vec<Pass> {
        let pass = |n_answer_tokens: &dyn Fn(usize) -> usize| -> Vec<Pass> {
            let pass = |group: std::ops::Range<usize>| {
                let (mut batch, mut n_scored) = (PackedBatch::default(), 0);
                for number in group {
                    let n = n_answer_tokens(number);
                    batch.push_responses(&self.all[number].tokens, &[&vec![0; n.max(1)]], PromptSharing::Shared);
                    n_scored += n.max(1);
                }
                Pass::new(&batch, description, n_scored, Gradient::None)
            };
            groups(self, n_answer_tokens).into_iter().map(pass).collect()
        };
        // The head makes the first token of an answer from what was read.
        [pass(&|_| 1), pass(&|number| self.longest_text(number))].concat()
    }

    /// The forwards of one token of each answer under way.
    pub fn generation(&self) -> Generation {
        let n_sequences = self.all.len().min(DEFAULT_BATCH_SIZE);
        Generation { n_forwards: self.all.len().div_ceil(DEFAULT_BATCH_SIZE) * self.max_new_tokens, n_sequences }
    }

    /// Bytes of keys and values of the answers under way, where values take `n_bytes`. They lie where the model does: a GPU has room for them in powers
    /// of two.
    pub fn cache_bytes(&self, description: &DecoderDescription, n_bytes: usize, on_gpu: bool) -> u64 {
        let longest = self.all.iter().map(|prompt| prompt.tokens.len() + self.max_new_tokens).max().unwrap_or(0);
        let n_rows = if on_gpu { longest.next_power_of_two() } else { longest };
        let n_keys_values = 2 * description.layers.len() * description.n_kv_heads * description.head_dim;
        (self.generation().n_sequences * n_rows * n_keys_values * n_bytes) as u64
    }

    /// Bytes of the distributions of step 0, on the host.
    pub fn start_bytes(&self, description: &DecoderDescription) -> u64 {
        let n_positions: usize = (0..self.all.len()).map(|number| self.longest_text(number)).sum();
        let position = N_TOP.min(description.vocab_size) * (size_of::<u32>() + size_of::<f32>());
        (n_positions * position) as u64
    }

    /// Tokens of the answer whose likelihood is measured; of one that is still to be given, at most.
    fn longest_text(&self, number: usize) -> usize {
        self.all[number].answer.as_ref().map_or(self.max_new_tokens, Vec::len)
    }
}
