//! What the head takes: `ops::log_prob`, and the comparison of `kl` retention.

use super::Replay;
use crate::ops::log_prob::{GPU_LOGITS_PER_CHUNK, rows_per_chunk};
use crate::plan::COMPARED_LOGITS_PER_CHUNK;
use crate::plan::ledger::{Kind, Piece};
use crate::plan::work::logits_per_chunk;

impl Replay<'_> {
    /// Rows whose logits are made at a time.
    fn rows_per_chunk(&self, n_scored: usize) -> usize {
        let most = if self.gpu.is_some() { GPU_LOGITS_PER_CHUNK } else { logits_per_chunk(self.low_rank.is_some()) };
        rows_per_chunk(n_scored, self.d.vocab_size, most)
    }

    /// `Head::score`; the logits that it keeps.
    pub(super) fn score(&mut self, n_scored: usize, n_kept: usize) -> Vec<Piece> {
        let d = self.d;
        let rows = self.rows_per_chunk(n_scored);
        let mut kept: Vec<Piece> = Vec::new();
        for first in (0..n_scored).step_by(rows) {
            let (index, n_rows) = (first / rows, rows.min(n_scored - first));
            let x = self.ledger.take(Kind::Scratch, n_rows * d.hidden_size);
            let logits = self.ledger.take(Kind::Logits, self.floats(n_rows * d.vocab_size));
            self.ledger.give_back(x);
            // Logits; of a frozen head the gradients of states in their place.
            let width = if self.low_rank.is_some() { d.hidden_size } else { d.vocab_size };
            let is_kept = index == kept.len() && (index + 1) * rows * width <= n_kept;
            if is_kept && self.low_rank.is_none() {
                kept.push(logits);
                continue;
            }
            if is_kept {
                kept.push(self.state_gradients(n_rows));
            }
            self.ledger.give_back(logits);
        }
        kept
    }

    /// Of a frozen head, from the logits, in whose place the CPU makes theirs.
    fn state_gradients(&mut self, n_rows: usize) -> Piece {
        let d_logits = self.ledger.take(Kind::Logits, if self.gpu.is_some() { n_rows * self.d.vocab_size } else { 0 });
        let dx = self.ledger.take(Kind::Logits, n_rows * self.d.hidden_size);
        self.ledger.give_back(d_logits);
        dx
    }

    /// `Head::backward`.
    pub(super) fn score_backward(&mut self, n_scored: usize, kept: Vec<Piece>) {
        let d = self.d;
        let rows = self.rows_per_chunk(n_scored);
        let mut kept = kept.into_iter();
        for first in (0..n_scored).step_by(rows) {
            let n_rows = rows.min(n_scored - first);
            let kept = match (kept.next(), self.low_rank) {
                (Some(state_gradients), Some(_)) => {
                    self.ledger.give_back(state_gradients);
                    continue;
                }
                (kept, _) => kept,
            };
            let x = self.ledger.take(Kind::Scratch, n_rows * d.hidden_size);
            let mut logits = kept.unwrap_or_else(|| self.ledger.take(Kind::Logits, self.floats(n_rows * d.vocab_size)));
            if self.gpu.is_some() {
                // Their gradient has the type of the activations, and so is not made in place.
                let d_logits = self.ledger.take(Kind::Logits, n_rows * d.vocab_size);
                self.ledger.give_back(std::mem::replace(&mut logits, d_logits));
            }
            let dx = self.ledger.take(Kind::Scratch, n_rows * d.hidden_size);
            self.ledger.give_back_all([dx, logits, x]);
        }
    }

    /// `kl::mean_divergence`: logits of both models and their gradient, a chunk at a time.
    pub(super) fn compare(&mut self, n_compared: usize, has_backward: bool) {
        if n_compared == 0 {
            return;
        }
        let d = self.d;
        let n_rows = (COMPARED_LOGITS_PER_CHUNK / d.vocab_size).clamp(1, n_compared);
        if self.gpu.is_some() {
            // One model's at a time: the host compares them.
            self.for_a_moment_on_gpu(n_rows * (d.vocab_size + d.hidden_size));
            return;
        }
        let both = [(); 2].map(|()| self.ledger.take(Kind::Logits, n_rows * d.vocab_size));
        if has_backward {
            let d_logits = self.ledger.take(Kind::Logits, n_rows * d.vocab_size);
            let dx = self.ledger.take(Kind::Scratch, n_rows * d.hidden_size);
            self.ledger.give_back_all([d_logits, dx]);
        }
        self.ledger.give_back_all(both);
    }
}
