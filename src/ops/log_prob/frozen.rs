//! The head where its weight is frozen: a log-probability's gradient by its hidden state is known, but for the loss's factor, as soon as the token is
//! scored. It is made then and the logits are gone, D values a token in the place of V: 4 FLOPs per weight and token, and never a second time.

use super::{
    FROZEN_LOGITS_PER_CHUNK, GPU_LOGITS_PER_CHUNK, Head, Kept, ScoredTargets, TokenTarget, check, log_prob_backward, rows_per_chunk, values,
};
use crate::ops::real::vectorized;
use crate::ops::{Scratch, gpu, read, update};
use anyhow::{Result, bail};
use candle_core::Tensor;
use rayon::prelude::*;

impl Head {
    /// [`Head::score`], to be followed by [`Head::backward_frozen`]. Keeps at most `n_kept` values for it.
    pub fn score_frozen(&self, hidden: &Tensor, weight: &Tensor, targets: &[TokenTarget], n_kept: usize) -> Result<ScoredTargets> {
        if gpu::has(hidden) {
            return self.score_in_chunks_on_gpu(hidden, weight, targets, n_kept, true, GPU_LOGITS_PER_CHUNK);
        }
        self.score_frozen_in_chunks(hidden, weight, targets, n_kept, FROZEN_LOGITS_PER_CHUNK)
    }

    fn score_frozen_in_chunks(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        targets: &[TokenTarget],
        n_kept: usize,
        chunk: usize,
    ) -> Result<ScoredTargets> {
        let (n_vocab, width) = (weight.dim(0)?, weight.dim(1)?);
        check(targets, hidden.dim(0)?, n_vocab)?;
        let hidden = read(hidden)?;
        let rows_per_chunk = rows_per_chunk(targets.len(), n_vocab, chunk);
        let (mut log_probs, mut log_sum_exp, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for (index, targets) in targets.chunks(rows_per_chunk).enumerate() {
            let (scores, mut logits) = self.chunk_scores(&hidden, weight, targets)?;
            if index == kept.len() && (index + 1) * rows_per_chunk * width <= n_kept {
                kept.push(self.state_gradients(weight, targets, &scores, &mut logits)?);
            }
            log_probs.extend(scores.iter().map(|(log_prob, _)| log_prob));
            log_sum_exp.extend(scores.iter().map(|(_, log_sum_exp)| log_sum_exp));
        }
        Ok(ScoredTargets { log_probs: values(&log_probs)?, log_sum_exp, kept: Kept::StateGradients(kept), rows_per_chunk })
    }

    /// Adds to `d_hidden [N, D]`, from the gradients of the log-probabilities, `[M]`, f32. What was not kept is made again.
    pub fn backward_frozen(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        (targets, scored): (&[TokenTarget], ScoredTargets),
        gradients: &Tensor,
        d_hidden: &Tensor,
    ) -> Result<()> {
        if gpu::has(hidden) {
            return self.backward_on_gpu(hidden, weight, (targets, scored), gradients, d_hidden, None);
        }
        scored.check(targets, gradients)?;
        let Kept::StateGradients(kept) = scored.kept else { bail!("these targets were scored for a head that is trained") };
        let (hidden, gradients, width) = (read(hidden)?, read(gradients)?, weight.dim(1)?);
        let mut kept = kept.into_iter();
        for (targets, gradients) in targets.chunks(scored.rows_per_chunk).zip(gradients.chunks(scored.rows_per_chunk)) {
            let state_gradients = match kept.next() {
                Some(kept) => kept,
                None => {
                    let (scores, mut logits) = self.chunk_scores(&hidden, weight, targets)?;
                    self.state_gradients(weight, targets, &scores, &mut logits)?
                }
            };
            update(d_hidden, |d_hidden| {
                for ((dx, target), g) in state_gradients.chunks(width).zip(targets).zip(gradients) {
                    d_hidden[target.row as usize * width..][..width].iter_mut().zip(dx).for_each(|(a, b)| *a += g * b);
                }
            })?;
        }
        Ok(())
    }

    /// d log-probability / d hidden state of each target, `[M, D]`; overwrites the logits.
    fn state_gradients(&self, weight: &Tensor, targets: &[TokenTarget], scores: &[(f32, f32)], logits: &mut [f32]) -> Result<Scratch> {
        let rows = logits.par_chunks_mut(weight.dim(0)?).zip(targets).zip(scores);
        rows.for_each(|((row, target), &(_, log_sum_exp))| {
            vectorized!(log_prob_backward(row, target.token, log_sum_exp, 1.0, self.soft_cap));
        });
        self.chunk_input_gradient(targets.len(), weight, logits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ComputeDtype;
    use crate::ops::check::{self, to_f32};
    use crate::ops::tensor;

    /// Against the head that is trained, whose own gradients are checked by finite differences.
    #[test]
    fn agrees_with_the_trained_head_however_much_is_kept() {
        let (n, d, v) = (90, 64, 515);
        let (h, w) =
            (tensor(to_f32(&check::values(1, n * d)), &[n, d]).unwrap(), tensor(to_f32(&check::values(2, v * d)), &[v, d]).unwrap());
        // A row twice, as where two answers begin behind one prompt.
        let targets: Vec<_> = (0..n as u32).map(|i| TokenTarget { row: i / 2, token: (7 * i) % v as u32 }).collect();
        let gradients = tensor(to_f32(&check::values(3, n)), &[n]).unwrap();
        for soft_cap in [None, Some(4.0)] {
            let head = Head { soft_cap, compute: ComputeDtype::F32 };
            let zeros = || tensor(vec![0.0; n * d], &[n, d]).unwrap();
            let expected = head.score(&h, &w, &targets, 0).unwrap();
            let (dh, log_probs) = (zeros(), read(&expected.log_probs).unwrap().to_vec());
            head.backward(&h, &w, (&targets, expected), &gradients, &dh, None).unwrap();
            let expected = read(&dh).unwrap().to_vec();
            let scale = expected.iter().fold(0f32, |max, g| max.max(g.abs()));
            let run = |n_kept: usize| {
                let scored = head.score_frozen_in_chunks(&h, &w, &targets, n_kept, 20 * v).unwrap();
                assert_eq!(*read(&scored.log_probs).unwrap(), log_probs);
                let Kept::StateGradients(kept) = &scored.kept else { panic!("of a frozen head") };
                assert_eq!(kept.len(), n_kept / (18 * d), "whole chunks of 18 rows");
                let dh = zeros();
                head.backward_frozen(&h, &w, (&targets, scored), &gradients, &dh).unwrap();
                read(&dh).unwrap().to_vec()
            };
            let none = run(0);
            assert!(none.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 1e-6 * scale));
            assert!(none == run(36 * d + 1) && none == run(90 * d));
        }
    }
}
