//! What the head takes: `ops::log_prob`, and the comparison of `kl` retention.

use super::Replay;
use crate::ops::divergence;
use crate::ops::log_prob::{GPU_LOGITS_PER_CHUNK, rows_per_chunk};
use crate::plan::ledger::{Kind, Piece};
use crate::plan::work::logits_per_chunk;

impl Replay<'_> {
    /// Rows whose logits are made at a time.
    fn rows_per_chunk(&self, n_scored: usize) -> usize {
        let most = if self.gpu.is_some() { GPU_LOGITS_PER_CHUNK } else { logits_per_chunk(self.low_rank.is_some()) };
        rows_per_chunk(n_scored, self.d.vocab_size, most)
    }

    /// `Head::score`; what it keeps.
    pub(super) fn score(&mut self, n_scored: usize, n_kept: usize) -> Vec<Piece> {
        let d = self.d;
        let rows = self.rows_per_chunk(n_scored);
        let mut kept: Vec<Piece> = Vec::new();
        for first in (0..n_scored).step_by(rows) {
            let (index, n_rows) = (first / rows, rows.min(n_scored - first));
            let logits = self.logits_of(n_rows);
            let width = if self.low_rank.is_some() { d.hidden_size } else { d.vocab_size };
            if index == kept.len() && (index + 1) * rows * width <= n_kept {
                let gradients = self.gradients_of(n_rows, logits);
                kept.push(gradients);
            } else {
                self.ledger.give_back(logits);
            }
        }
        kept
    }

    /// Logits of some rows.
    fn logits_of(&mut self, n_rows: usize) -> Piece {
        let x = self.ledger.take(Kind::Scratch, n_rows * self.d.hidden_size);
        let logits = self.ledger.take(Kind::Logits, self.floats(n_rows * self.d.vocab_size));
        self.ledger.give_back(x);
        logits
    }

    /// What is kept of logits for the backward: on the CPU themselves, in whose place it makes their gradients; a GPU makes these at once, in the type of
    /// the activations. Of a frozen head the gradients of states.
    fn gradients_of(&mut self, n_rows: usize, logits: Piece) -> Piece {
        let (vocab_size, width) = (self.d.vocab_size, self.d.hidden_size);
        let mut d_logits = logits;
        if self.gpu.is_some() {
            let narrow = self.ledger.take(Kind::Logits, n_rows * vocab_size);
            self.ledger.give_back(std::mem::replace(&mut d_logits, narrow));
        }
        if self.low_rank.is_none() {
            return d_logits;
        }
        let dx = self.ledger.take(Kind::Logits, n_rows * width);
        self.ledger.give_back(d_logits);
        dx
    }

    /// `Head::backward`.
    pub(super) fn score_backward(&mut self, n_scored: usize, kept: Vec<Piece>) {
        let rows = self.rows_per_chunk(n_scored);
        let mut kept = kept.into_iter();
        for first in (0..n_scored).step_by(rows) {
            let n_rows = rows.min(n_scored - first);
            let gradients = match kept.next() {
                Some(kept) => kept,
                None => {
                    let logits = self.logits_of(n_rows);
                    self.gradients_of(n_rows, logits)
                }
            };
            let n_states = if self.low_rank.is_some() { 0 } else { n_rows * self.d.hidden_size };
            let both = [(); 2].map(|()| self.ledger.take(Kind::Scratch, n_states));
            self.ledger.give_back(gradients);
            self.ledger.give_back_all(both);
        }
    }

    /// `divergence::divergence`: logits of both models and their gradient, a chunk at a time.
    pub(super) fn compare(&mut self, n_compared: usize, has_backward: bool) {
        if n_compared == 0 {
            return;
        }
        let d = self.d;
        // States, those of the reference, and the gradient of the former.
        let states = [(); 3].map(|()| self.ledger.take(Kind::Scratch, self.floats(n_compared * d.hidden_size)));
        let most = if self.gpu.is_some() { divergence::GPU_LOGITS_PER_CHUNK } else { divergence::LOGITS_PER_CHUNK };
        let n_rows = rows_per_chunk(n_compared, d.vocab_size, most);
        let both = [(); 2].map(|()| self.ledger.take(Kind::Logits, self.floats(n_rows * d.vocab_size)));
        if has_backward {
            let d_logits = self.ledger.take(Kind::Logits, n_rows * d.vocab_size);
            let dx = self.ledger.take(Kind::Scratch, n_rows * d.hidden_size);
            self.ledger.give_back_all([d_logits, dx]);
        }
        self.ledger.give_back_all(both);
        self.ledger.give_back_all(states);
    }
}
