//! Attention of the next token of each of several sequences, over keys and values that were kept from earlier forwards (a KV cache).
//!
//! A query and what it sees are one task for each key head, whoever else is in the batch: a sequence's result does not depend on the others.

mod on_gpu;

use super::Attention;
use crate::ops::gemm::{Lanes, multiply_rows};
use crate::ops::real::{max, sum, vectorized};
use crate::ops::{Buffer, Real, Scratch, gpu, read};
use anyhow::{Result, ensure};
use candle_core::Tensor;
use rayon::prelude::*;
use std::ops::Range;

/// Keys, normed and turned, and values of one sequence in one layer.
#[derive(Debug, Clone, Default)]
pub struct KeyValues<T = f32> {
    /// `[positions, hd]` for each key head.
    heads: Vec<Head<T>>,
    /// Instead of `heads` where the rows are on a GPU.
    on_gpu: Option<on_gpu::Rows>,
}

#[derive(Debug, Clone, Default)]
struct Head<T> {
    keys: Vec<T>,
    values: Vec<T>,
}

impl<T: Real> KeyValues<T> {
    /// Of no token yet.
    pub fn new(attention: &Attention) -> Self {
        Self { heads: (0..attention.n_kv_heads).map(|_| Head { keys: Vec::new(), values: Vec::new() }).collect(), on_gpu: None }
    }

    /// Appends those of one sequence's next tokens: some rows of `qkv`.
    fn extend(&mut self, qkv: &[T], rows: Range<usize>, attention: &Attention) {
        let (hd, n_kv_heads) = (attention.head_dim, attention.n_kv_heads);
        for row in qkv[rows.start * attention.width()..rows.end * attention.width()].chunks(attention.width()) {
            let (keys, values) = row[attention.n_heads * hd..].split_at(n_kv_heads * hd);
            for ((head, key), value) in self.heads.iter_mut().zip(keys.chunks(hd)).zip(values.chunks(hd)) {
                head.keys.extend_from_slice(key);
                head.values.extend_from_slice(value);
            }
        }
    }
}

/// Keeps keys and values of some rows of a forward's `qkv [N, (H + 2K) hd]`: one sequence's tokens, which follow those that `kept` has.
pub fn keep(qkv: &Tensor, rows: Range<usize>, attention: &Attention, kept: &mut KeyValues) -> Result<()> {
    if gpu::has(qkv) {
        return on_gpu::keep(qkv, rows, attention, &mut kept.on_gpu);
    }
    kept.extend(&read(qkv)?, rows, attention);
    Ok(())
}

/// `qkv [M, (H + 2K) hd]`, a row for the next token of each of M sequences, to the output `[M, H hd]`. Their keys and values join those kept.
pub fn forward_next(qkv: &Tensor, mut kept: Vec<&mut KeyValues>, attention: &Attention) -> Result<Buffer> {
    let (n_rows, width) = (qkv.dim(0)?, attention.n_heads * attention.head_dim);
    ensure!(kept.len() == n_rows, "{n_rows} tokens for {} sequences", kept.len());
    if gpu::has(qkv) {
        return on_gpu::forward_next(qkv, kept.into_iter().map(|kept| &mut kept.on_gpu).collect(), attention);
    }
    let qkv = read(qkv)?;
    kept.iter_mut().enumerate().for_each(|(row, kept)| kept.extend(&qkv, row..row + 1, attention));
    let mut out = Scratch::new(n_rows * width);
    attention.forward_next(&qkv, &kept, &mut out);
    Buffer::new(out, &[n_rows, width])
}

impl Attention {
    /// Writes the output `[M, H hd]`.
    fn forward_next<T: Lanes>(&self, qkv: &[T], kept: &[&mut KeyValues<T>], out: &mut [T]) {
        // The heads of a key head lie side by side.
        let size = self.group() * self.head_dim;
        out.par_chunks_mut(size).enumerate().for_each(|(unit, out)| {
            let (row, kv_head) = (unit / self.n_kv_heads, unit % self.n_kv_heads);
            let queries = &qkv[row * self.width() + kv_head * size..][..size];
            self.attend(queries, &kept[row].heads[kv_head], out);
        });
    }

    /// `queries [G, hd]` over the newest keys that the window reaches.
    fn attend<T: Lanes>(&self, queries: &[T], head: &Head<T>, out: &mut [T]) {
        let hd = self.head_dim;
        let n_positions = head.keys.len() / hd;
        let first = n_positions.saturating_sub(self.window.unwrap_or(n_positions)) * hd;
        let (keys, values) = (&head.keys[first..], &head.values[first..]);
        let n_keys = keys.len() / hd;
        let mut scores = vec![T::ZERO; self.group() * n_keys];
        multiply_rows(queries, keys, hd, &mut scores);
        vectorized!(for (scores, out) in scores.chunks_mut(n_keys).zip(out.chunks_mut(hd)) {
            self.attend_by_scores(scores, values, out);
        });
    }

    /// One head: products of query and keys to the weighted mean of the values.
    #[inline(always)]
    fn attend_by_scores<T: Real>(&self, scores: &mut [T], values: &[T], out: &mut [T]) {
        let scale = T::of(self.scale);
        scores.iter_mut().for_each(|s| *s *= scale);
        if let Some(cap) = self.soft_cap {
            let (cap, inverse) = (T::of(cap), T::of(1.0 / cap));
            scores.iter_mut().for_each(|s| *s = cap * Real::tanh(*s * inverse));
        }
        let largest = max(scores);
        scores.iter_mut().for_each(|s| *s = Real::exp(*s - largest));
        let norm = T::ONE / sum(scores);
        out.fill(T::ZERO);
        for (&probability, value) in scores.iter().zip(values.chunks(out.len())) {
            out.iter_mut().zip(value).for_each(|(o, &v)| *o += probability * v);
        }
        out.iter_mut().for_each(|o| *o *= norm);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::check;
    use super::*;
    use crate::data::batch::PackedBatch;

    fn attention(window: Option<usize>, soft_cap: Option<f64>) -> Attention {
        Attention { n_heads: 6, n_kv_heads: 2, head_dim: 10, scale: 0.4, window, soft_cap }
    }

    /// What the packed forward of the whole sequence gives for every token.
    fn packed(a: &Attention, qkv: &[f64]) -> Vec<f64> {
        let n = qkv.len() / a.width();
        let mut batch = PackedBatch::default();
        batch.push_segment(&vec![0; n], None, true);
        let (mut out, mut lse) = (vec![0.0; n * a.n_heads * a.head_dim], vec![0.0; n * a.n_heads]);
        a.forward(qkv, &batch.segments, &mut out, &mut lse);
        out
    }

    #[test]
    fn token_by_token_equals_the_whole_sequence() {
        let settings = [(None, None), (Some(9), None), (Some(1), None), (Some(40), Some(1.5)), (None, Some(0.7))];
        for (window, cap) in settings {
            let a = attention(window, cap);
            let (n, width) = (70, a.n_heads * a.head_dim);
            let sequences = [1, 2].map(|seed| check::values(seed, n * a.width()));
            let expected = sequences.each_ref().map(|qkv| packed(&a, qkv));
            // The first has 5 tokens before, the second 30.
            let starts = [5, 30];
            let mut kept = [0, 1].map(|i| {
                let mut kept = KeyValues::new(&a);
                kept.extend(&sequences[i], 0..starts[i], &a);
                kept
            });
            for step in 0..n - 30 {
                let rows: Vec<f64> = (0..2).flat_map(|i| sequences[i][(starts[i] + step) * a.width()..][..a.width()].to_vec()).collect();
                let mut kept: Vec<&mut KeyValues<f64>> = kept.iter_mut().collect();
                kept.iter_mut().enumerate().for_each(|(row, kept)| kept.extend(&rows, row..row + 1, &a));
                let mut out = vec![f64::NAN; 2 * width];
                a.forward_next(&rows, &kept, &mut out);
                for (i, out) in out.chunks(width).enumerate() {
                    let expected = &expected[i][(starts[i] + step) * width..][..width];
                    let worst = out.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                    assert!(worst < 1e-12, "window {window:?}, cap {cap:?}, sequence {i}, step {step}: {worst}");
                }
            }
        }
    }

    #[test]
    fn a_sequence_has_the_same_bits_alone_and_among_others() {
        let a = attention(None, None);
        let rows = check::to_f32(&check::values(3, 3 * a.width()));
        let earlier = [(4, 20), (5, 1), (6, 200)].map(|(seed, n)| {
            let mut kept = KeyValues::new(&a);
            kept.extend(&check::to_f32(&check::values(seed, n * a.width())), 0..n, &a);
            kept
        });
        let tensor = |rows: &[f32]| crate::ops::tensor(rows.to_vec(), &[rows.len() / a.width(), a.width()]).unwrap();
        let mut together = earlier.clone();
        let all = forward_next(&tensor(&rows), together.iter_mut().collect(), &a).unwrap().to_vec2::<f32>().unwrap();
        for (i, row) in rows.chunks(a.width()).enumerate() {
            let mut alone = earlier[i].clone();
            let out = forward_next(&tensor(row), vec![&mut alone], &a).unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(out[0], all[i]);
        }
    }
}

#[cfg(test)]
mod gpu_tests {
    use super::*;
    use crate::data::batch::PackedBatch;
    use crate::ops::gpu::twin::agree_to;

    #[test]
    fn next_tokens_agree_with_the_cpu() {
        for (heads, head_dim, window, soft_cap) in
            [((4, 2), 64, None, None), ((9, 1), 10, Some(40), Some(1.5)), ((1, 1), 128, Some(1), None), ((2, 2), 160, Some(150), None)]
        {
            let a = Attention { n_heads: heads.0, n_kv_heads: heads.1, head_dim, scale: 3.0 / (head_dim as f64).sqrt(), window, soft_cap };
            // The second sequence outgrows the room that its first tokens took.
            let (starts, n_next) = ([5, 61], 6);
            agree_to(&format!("{a:?}"), [1e-5, 1e-2], |place| {
                let sequences = [1, 2].map(|seed| place.values(seed, &[starts[1] + n_next + 70, a.width()]));
                let mut kept = [KeyValues::new(&a), KeyValues::new(&a)];
                for ((kept, start), sequence) in kept.iter_mut().zip(starts).zip(&sequences) {
                    keep(sequence, 0..start, &a, kept)?;
                }
                // A clone goes its own way.
                let mut clones = kept.clone();
                let mut results = Vec::new();
                for (kept, offset) in [(&mut kept, 0), (&mut clones, 70)] {
                    for step in 0..n_next {
                        let rows = [0, 1].map(|i| sequences[i].narrow(0, starts[i] + step + offset, 1).unwrap());
                        let rows = Tensor::cat(&rows, 0)?;
                        results.push(forward_next(&rows, kept.iter_mut().collect(), &a)?.copy()?);
                    }
                }
                Ok(results)
            });
        }
    }

    #[test]
    fn token_by_token_agrees_with_the_whole_sequence_of_the_cpu() {
        let a = Attention { n_heads: 4, n_kv_heads: 1, head_dim: 16, scale: 0.5, window: Some(140), soft_cap: None };
        let n = 200;
        let mut batch = PackedBatch::default();
        batch.push_segment(&vec![0; n], None, true);
        agree_to("a long sequence", [1e-5, 1e-2], |place| {
            let qkv = place.values(1, &[n, a.width()]);
            if !gpu::has(&qkv) {
                return Ok(vec![crate::ops::attention::forward(&qkv, &batch.segments, &a)?.0.narrow(0, n - 30, 30)?.copy()?]);
            }
            let mut kept = KeyValues::new(&a);
            keep(&qkv, 0..n - 30, &a, &mut kept)?;
            let next = (n - 30..n).map(|row| Ok(forward_next(&qkv.narrow(0, row, 1)?, vec![&mut kept], &a)?.copy()?));
            Ok(vec![Tensor::cat(&next.collect::<Result<Vec<_>>>()?, 0)?])
        });
    }
}
