//! What the head takes: `ops::log_prob`, and the comparison of `kl` retention.

use super::Replay;
use crate::ops::log_prob::rows_per_chunk;
use crate::plan::COMPARED_LOGITS_PER_CHUNK;
use crate::plan::ledger::{Kind, Piece};
use crate::plan::work::logits_per_chunk;

impl Replay<'_> {
    /// `Head::score`; the logits that it keeps.
    pub(super) fn score(&mut self, n_scored: usize, n_kept: usize) -> Vec<Piece> {
        let d = self.d;
        let rows = rows_per_chunk(n_scored, d.vocab_size, logits_per_chunk(self.low_rank.is_some()));
        let mut kept: Vec<Piece> = Vec::new();
        for first in (0..n_scored).step_by(rows) {
            let (index, n_rows) = (first / rows, rows.min(n_scored - first));
            let x = self.ledger.take(Kind::Scratch, n_rows * d.hidden_size);
            let logits = self.ledger.take(Kind::Logits, n_rows * d.vocab_size);
            self.ledger.give_back(x);
            // Logits; of a frozen head the gradients of states in their place.
            let width = if self.low_rank.is_some() { d.hidden_size } else { d.vocab_size };
            let is_kept = index == kept.len() && (index + 1) * rows * width <= n_kept;
            if is_kept && self.low_rank.is_none() {
                kept.push(logits);
                continue;
            }
            kept.extend(is_kept.then(|| self.ledger.take(Kind::Logits, n_rows * d.hidden_size)));
            self.ledger.give_back(logits);
        }
        kept
    }

    /// `Head::backward`.
    pub(super) fn score_backward(&mut self, n_scored: usize, kept: Vec<Piece>) {
        let d = self.d;
        let rows = rows_per_chunk(n_scored, d.vocab_size, logits_per_chunk(self.low_rank.is_some()));
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
            let logits = kept.unwrap_or_else(|| self.ledger.take(Kind::Logits, n_rows * d.vocab_size));
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
        let both = [(); 2].map(|()| self.ledger.take(Kind::Logits, n_rows * d.vocab_size));
        if has_backward {
            let d_logits = self.ledger.take(Kind::Logits, n_rows * d.vocab_size);
            let dx = self.ledger.take(Kind::Scratch, n_rows * d.hidden_size);
            self.ledger.give_back_all([d_logits, dx]);
        }
        self.ledger.give_back_all(both);
    }
}
