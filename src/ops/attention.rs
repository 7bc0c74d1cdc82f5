//! Packed causal attention over a forest of segments: `softmax(scale * q kᵀ) v`, with grouped heads, sliding windows and soft caps.
//!
//! Queries are taken in blocks, those of all heads that share a key head together: the scores of one block against the keys that it sees are
//! all that exists of the score matrix, and keys are packed for a product once for many queries. The backward recomputes scores, a tile of
//! keys at a time, from the saved log-sum-exp (FlashAttention, arXiv 2205.14135): with P the probabilities and D = rowsum(dO ∘ O),
//!
//! ```text
//! dV += Pᵀ dO      dS = P ∘ (dO Vᵀ - D)      dQ = scale dS K      dK += scale dSᵀ Q
//! ```
//!
//! A chain of segments covers consecutive positions, so the keys that a block sees are a few runs of rows with consecutive positions.

mod blocks;
pub mod cached;
mod on_gpu;

use super::gemm::{Matrix, Threads, Write, multiply};
use super::real::{dot, max, sum, vectorized};
use super::{Buffer, Real, Scratch, gpu, read};
use crate::data::batch::Segment;
use anyhow::Result;
use blocks::{Block, ancestors, blocks, first_position};
use candle_core::Tensor;
use rayon::prelude::*;
use std::ops::Range;

/// Queries of a block, over all heads that share a key head.
pub(crate) const QUERIES: usize = 192;
/// Keys whose scores the backward looks at together: two tiles of scores lie in a core's own cache.
pub(crate) const KEYS: usize = 512;

/// Everything about an attention layer but its values. Rows of `qkv` hold H query heads, then K key heads, then K value heads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    /// Scores are `scale * q·k`.
    pub scale: f64,
    /// A query at position p sees keys at positions above p - window.
    pub window: Option<usize>,
    /// Scores become `cap * tanh(score / cap)`.
    pub soft_cap: Option<f64>,
}

/// `qkv [N, (H + 2K) hd]` to the output `[N, H hd]` and the log-sum-exp of every query's scores `[N, H]`.
pub fn forward(qkv: &Tensor, segments: &[Segment], attention: &Attention) -> Result<(Buffer, Buffer)> {
    if gpu::has(qkv) {
        return on_gpu::forward(qkv, segments, attention);
    }
    let (n_rows, n_heads, width) = (qkv.dim(0)?, attention.n_heads, attention.n_heads * attention.head_dim);
    let (mut out, mut lse) = (Scratch::new(n_rows * width), Scratch::new(n_rows * n_heads));
    attention.forward(&read(qkv)?, segments, &mut out, &mut lse);
    Ok((Buffer::new(out, &[n_rows, width])?, Buffer::new(lse, &[n_rows, n_heads])?))
}

/// The gradient of `qkv` from that of the output.
pub fn backward(qkv: &Tensor, out: &Tensor, lse: &Tensor, d_out: &Tensor, segments: &[Segment], attention: &Attention) -> Result<Buffer> {
    if gpu::has(qkv) {
        return on_gpu::backward(qkv, out, lse, d_out, segments, attention);
    }
    let mut d_qkv = Scratch::new(qkv.elem_count());
    let known = Known { qkv: &read(qkv)?, out: &read(out)?, lse: &read(lse)?, d_out: &read(d_out)? };
    attention.backward(&known, segments, &mut d_qkv);
    Buffer::new(d_qkv, &[qkv.dim(0)?, attention.width()])
}

/// What the backward starts from.
struct Known<'a, T> {
    /// `[N, (H + 2K) hd]`
    qkv: &'a [T],
    /// `[N, H hd]`
    out: &'a [T],
    /// `[N, H]`
    lse: &'a [T],
    /// `[N, H hd]`
    d_out: &'a [T],
}

/// What the G heads of one key head contribute with the queries of one segment.
struct Gradients<T> {
    /// `[rows of the segment, G hd]`
    dq: Vec<T>,
    /// By position, `[positions, hd]`.
    dk: Vec<T>,
    dv: Vec<T>,
}

impl Attention {
    fn width(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
    }

    /// Heads that share a key head (G).
    fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// Rows of a block.
    fn block_rows(&self) -> usize {
        (QUERIES / self.group()).clamp(32, 128)
    }

    fn blocks(&self, segments: &[Segment], index: usize) -> Vec<Block> {
        blocks(segments, index, self.block_rows(), self.window)
    }

    fn columns<'a, T: Real>(&self, qkv: &'a [T], head: usize, rows: &Range<usize>) -> Matrix<'a, T> {
        Matrix::strided(&qkv[rows.start * self.width() + head * self.head_dim..], rows.len(), self.head_dim, self.width())
    }

    fn key<'a, T: Real>(&self, qkv: &'a [T], kv_head: usize, rows: &Range<usize>) -> Matrix<'a, T> {
        self.columns(qkv, self.n_heads + kv_head, rows)
    }

    fn value<'a, T: Real>(&self, qkv: &'a [T], kv_head: usize, rows: &Range<usize>) -> Matrix<'a, T> {
        self.columns(qkv, self.n_heads + self.n_kv_heads + kv_head, rows)
    }

    /// The heads of a key head, in some rows of `values`, which hold `width` values for each head: one head behind the other.
    fn stacked<T: Real>(&self, values: &[T], row_width: usize, width: usize, rows: &Range<usize>, kv_head: usize) -> Vec<T> {
        let heads = kv_head * self.group()..(kv_head + 1) * self.group();
        let mut stacked = Vec::with_capacity(heads.len() * rows.len() * width);
        for head in heads {
            rows.clone().for_each(|row| stacked.extend_from_slice(&values[row * row_width + head * width..][..width]));
        }
        stacked
    }

    /// Writes the output `[N, H hd]` and the log-sum-exp `[N, H]`.
    fn forward<T: Real>(&self, qkv: &[T], segments: &[Segment], mut out: &mut [T], mut lse: &mut [T]) {
        let (group, hd, heads, width) = (self.group(), self.head_dim, self.n_heads, self.n_heads * self.head_dim);
        let blocks: Vec<Block> = (0..segments.len()).flat_map(|i| self.blocks(segments, i)).collect();
        let units = (0..blocks.len() * self.n_kv_heads).into_par_iter();
        let of_units: Vec<_> = units
            .map_init(Vec::new, |scores, unit| self.forward_block(qkv, &blocks[unit / self.n_kv_heads], unit % self.n_kv_heads, scores))
            .collect();
        let mut tasks = Vec::with_capacity(blocks.len());
        for (block, of_units) in blocks.iter().zip(of_units.chunks(self.n_kv_heads)) {
            // Blocks cover the packed rows in order.
            let block_out = out.split_off_mut(..block.rows.len() * width).unwrap_or_default();
            let block_lse = lse.split_off_mut(..block.rows.len() * heads).unwrap_or_default();
            tasks.push((of_units, block_out, block_lse));
        }
        tasks.into_par_iter().for_each(|(of_units, out, lse)| {
            let n_rows = lse.len() / heads;
            for (i, (out, lse)) in out.chunks_mut(width).zip(lse.chunks_mut(heads)).enumerate() {
                for head in 0..heads {
                    let (of_unit, row) = (&of_units[head / group], head % group * n_rows + i);
                    out[head * hd..][..hd].copy_from_slice(&of_unit.0[row * hd..][..hd]);
                    lse[head] = of_unit.1[row];
                }
            }
        });
    }

    /// Output `[queries, hd]` and log-sum-exp of the heads of one key head, one behind the other. `scores` is room to work in.
    fn forward_block<T: Real>(&self, qkv: &[T], block: &Block, kv_head: usize, scores: &mut Vec<T>) -> (Vec<T>, Vec<T>) {
        let (hd, n_rows) = (self.head_dim, block.rows.len());
        let n_queries = self.group() * n_rows;
        let queries = self.stacked(qkv, self.width(), hd, &block.rows, kv_head);
        scores.resize(n_queries * block.n_keys, T::ZERO);
        let mut first = 0;
        for keys in &block.keys {
            self.scores(&queries, self.key(qkv, kv_head, keys), &mut scores[first..], block.n_keys);
            first += keys.len();
        }
        let mut lse = vec![T::NEG_INFINITY; n_queries];
        let mut norm = vec![T::ZERO; n_queries];
        vectorized!({
            for (query, row) in scores.chunks_mut(block.n_keys.max(1)).enumerate() {
                let visible = block.visible(query % n_rows);
                row[..visible.start].fill(T::ZERO);
                row[visible.end..].fill(T::ZERO);
                if visible.is_empty() {
                    continue;
                }
                let row = &mut row[visible];
                let largest = max(row);
                row.iter_mut().for_each(|s| *s = Real::exp(*s - largest));
                let total = sum(row);
                norm[query] = T::ONE / total;
                lse[query] = largest + Real::ln(total);
            }
        });
        let mut out = vec![T::ZERO; n_queries * hd];
        let mut first = 0;
        for keys in &block.keys {
            let probabilities = Matrix::strided(&scores[first..], n_queries, keys.len(), block.n_keys);
            multiply(&mut out, hd, Write::Add, T::ONE, probabilities, self.value(qkv, kv_head, keys), Threads::One);
            first += keys.len();
        }
        out.chunks_mut(hd).zip(norm).for_each(|(row, norm)| row.iter_mut().for_each(|o| *o *= norm));
        (out, lse)
    }

    /// Capped scores of stacked queries against some keys, in rows `stride` values apart; what a query does not see is there too, to be masked
    /// by the caller.
    fn scores<T: Real>(&self, queries: &[T], keys: Matrix<T>, scores: &mut [T], stride: usize) {
        let n_keys = keys.n_rows();
        multiply(scores, stride, Write::Overwrite, T::of(self.scale), Matrix::new(queries, self.head_dim), keys.transposed(), Threads::One);
        if let Some(cap) = self.soft_cap {
            let (cap, inverse) = (T::of(cap), T::of(1.0 / cap));
            vectorized!(for row in scores.chunks_mut(stride) {
                row[..n_keys].iter_mut().for_each(|s| *s = cap * Real::tanh(*s * inverse));
            });
        }
    }

    /// Writes `d_qkv [N, (H + 2K) hd]`.
    fn backward<T: Real>(&self, known: &Known<T>, segments: &[Segment], mut d_qkv: &mut [T]) {
        let (n_kv_heads, hd) = (self.n_kv_heads, self.head_dim);
        let units = (0..segments.len() * n_kv_heads).into_par_iter();
        let of_units: Vec<_> = units.map(|unit| self.backward_segment(known, segments, unit / n_kv_heads, unit % n_kv_heads)).collect();
        let of_segment = |index: usize| &of_units[index * n_kv_heads..][..n_kv_heads];
        let mut tasks = Vec::with_capacity(segments.len());
        for (index, segment) in segments.iter().enumerate() {
            // The segment's keys are seen by itself and by its descendants.
            let seen_by: Vec<_> = (index..segments.len()).filter(|&i| i == index || ancestors(segments, i).contains(&index)).collect();
            let rows = d_qkv.split_off_mut(..segment.rows.len() * self.width()).unwrap_or_default();
            tasks.push((of_segment(index), seen_by, first_position(segments, index), rows));
        }
        tasks.into_par_iter().for_each(|(own, seen_by, position, rows)| {
            rows.par_chunks_mut(self.width()).with_min_len(16).enumerate().for_each(|(i, row)| {
                let (dq, d_kv) = row.split_at_mut(self.n_heads * hd);
                let size = self.group() * hd;
                dq.chunks_mut(size).zip(own).for_each(|(dq, unit)| dq.copy_from_slice(&unit.dq[i * size..][..size]));
                d_kv.fill(T::ZERO);
                let (dk, dv) = d_kv.split_at_mut(n_kv_heads * hd);
                let at = (position + i) * hd;
                for (kv_head, unit) in seen_by.iter().flat_map(|&index| of_segment(index).iter().enumerate()) {
                    // Padding does not see itself.
                    let (Some(unit_dk), Some(unit_dv)) = (unit.dk.get(at..at + hd), unit.dv.get(at..at + hd)) else { continue };
                    dk[kv_head * hd..][..hd].iter_mut().zip(unit_dk).for_each(|(a, &b)| *a += b);
                    dv[kv_head * hd..][..hd].iter_mut().zip(unit_dv).for_each(|(a, &b)| *a += b);
                }
            });
        });
    }

    /// What the queries of one segment contribute, in the heads of one key head.
    fn backward_segment<T: Real>(&self, known: &Known<T>, segments: &[Segment], index: usize, kv_head: usize) -> Gradients<T> {
        let (hd, width, size) = (self.head_dim, self.n_heads * self.head_dim, self.group() * self.head_dim);
        let blocks = self.blocks(segments, index);
        let n_positions = blocks.last().map_or(0, |block| block.first_key + block.n_keys);
        let zeros = |n: usize| vec![T::ZERO; n];
        let mut gradients =
            Gradients { dq: zeros(segments[index].rows.len() * size), dk: zeros(n_positions * hd), dv: zeros(n_positions * hd) };
        let (mut probabilities, mut d_scores) = (Vec::new(), Vec::new());
        for (block, dq_rows) in blocks.iter().zip(gradients.dq.chunks_mut(self.block_rows() * size)) {
            let n_rows = block.rows.len();
            let queries = self.stacked(known.qkv, self.width(), hd, &block.rows, kv_head);
            let [out, d_out] = [known.out, known.d_out].map(|values| self.stacked(values, width, hd, &block.rows, kv_head));
            let lse = self.stacked(known.lse, self.n_heads, 1, &block.rows, kv_head);
            let mut delta = zeros(lse.len());
            vectorized!(for ((delta, out), d_out) in delta.iter_mut().zip(out.chunks(hd)).zip(d_out.chunks(hd)) {
                *delta = dot(out, d_out);
            });
            let mut dq = zeros(queries.len());
            for (keys, first) in block.tiles() {
                let n_keys = keys.len();
                let (key, value) = (self.key(known.qkv, kv_head, &keys), self.value(known.qkv, kv_head, &keys));
                probabilities.resize(lse.len() * n_keys, T::ZERO);
                d_scores.resize(lse.len() * n_keys, T::ZERO);
                self.scores(&queries, key, &mut probabilities, n_keys);
                multiply(&mut d_scores, n_keys, Write::Overwrite, T::ONE, Matrix::new(&d_out, hd), value.transposed(), Threads::One);
                vectorized!({
                    let rows = probabilities.chunks_mut(n_keys).zip(d_scores.chunks_mut(n_keys));
                    for (query, (p, ds)) in rows.enumerate() {
                        let visible = block.visible(query % n_rows);
                        let in_tile = |key: usize| key.saturating_sub(first).min(n_keys);
                        self.softmax_backward_row(p, ds, in_tile(visible.start)..in_tile(visible.end), lse[query], delta[query]);
                    }
                });
                let (p, ds, scale) = (Matrix::new(&probabilities, n_keys), Matrix::new(&d_scores, n_keys), T::of(self.scale));
                multiply(&mut dq, hd, Write::Add, scale, ds, key, Threads::One);
                let at = (block.first_key + first) * hd;
                multiply(&mut gradients.dk[at..], hd, Write::Add, scale, ds.transposed(), Matrix::new(&queries, hd), Threads::One);
                multiply(&mut gradients.dv[at..], hd, Write::Add, T::ONE, p.transposed(), Matrix::new(&d_out, hd), Threads::One);
            }
            for (query, dq) in dq.chunks(hd).enumerate() {
                dq_rows[query % n_rows * size + query / n_rows * hd..][..hd].copy_from_slice(dq);
            }
        }
        gradients
    }

    /// One query's row: capped scores become probabilities, `dO Vᵀ` becomes the gradient of the uncapped scores.
    #[inline(always)]
    fn softmax_backward_row<T: Real>(&self, scores: &mut [T], d_scores: &mut [T], visible: Range<usize>, lse: T, delta: T) {
        for hidden in [0..visible.start, visible.end..scores.len()] {
            scores[hidden.clone()].fill(T::ZERO);
            d_scores[hidden].fill(T::ZERO);
        }
        let inverse_cap = self.soft_cap.map_or(T::ZERO, |cap| T::of(1.0 / cap));
        for (s, d) in scores[visible.clone()].iter_mut().zip(&mut d_scores[visible]) {
            let capped = *s * inverse_cap;
            let p = Real::exp(*s - lse);
            *d = p * (*d - delta) * (T::ONE - capped * capped);
            *s = p;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;
    use crate::data::batch::{PackedBatch, PromptSharing};

    fn attention(window: Option<usize>, soft_cap: Option<f64>) -> Attention {
        Attention { n_heads: 4, n_kv_heads: 2, head_dim: 6, scale: 0.4, window, soft_cap }
    }

    /// Two trees: a prompt with two responses, one of which has padding behind it, and a lone sequence.
    fn forest(lengths: [usize; 5]) -> PackedBatch {
        let mut batch = PackedBatch::default();
        let tokens = |n: usize| vec![0; n];
        let prompt = batch.push_segment(&tokens(lengths[0]), None, true);
        let chosen = batch.push_segment(&tokens(lengths[1]), Some(prompt), true);
        batch.push_segment(&tokens(lengths[2]), Some(chosen), false);
        batch.push_segment(&tokens(lengths[3]), Some(prompt), true);
        batch.push_segment(&tokens(lengths[4]), None, true);
        batch
    }

    fn forward<T: Real>(a: &Attention, qkv: &[T], batch: &PackedBatch) -> (Vec<T>, Vec<T>) {
        let n = batch.n_tokens() * a.n_heads;
        let (mut out, mut lse) = (vec![T::ZERO; n * a.head_dim], vec![T::ZERO; n]);
        a.forward(qkv, &batch.segments, &mut out, &mut lse);
        (out, lse)
    }

    fn backward(a: &Attention, qkv: &[f64], d_out: &[f64], batch: &PackedBatch) -> Vec<f64> {
        let (out, lse) = forward(a, qkv, batch);
        let mut d_qkv = vec![f64::NAN; qkv.len()];
        a.backward(&Known { qkv, out: &out, lse: &lse, d_out }, &batch.segments, &mut d_qkv);
        d_qkv
    }

    /// Query by query, key by key, over explicit ancestors: what `forward` must equal.
    fn slow(a: &Attention, qkv: &[f64], batch: &PackedBatch) -> Vec<f64> {
        let (width, hd) = (a.width(), a.head_dim);
        let mut out = vec![0.0; batch.n_tokens() * a.n_heads * hd];
        for segment in &batch.segments {
            for row in segment.rows.clone() {
                let mut keys: Vec<usize> = if segment.sees_itself { (segment.rows.start..=row).collect() } else { vec![] };
                let mut parent = segment.parent;
                while let Some(p) = parent {
                    keys.extend(batch.segments[p].rows.clone());
                    parent = batch.segments[p].parent;
                }
                keys.retain(|&k| a.window.is_none_or(|w| batch.positions[row] - batch.positions[k] < w as u32));
                for head in 0..a.n_heads {
                    let at = |row: usize, head: usize| &qkv[row * width + head * hd..][..hd];
                    let kv = head / (a.n_heads / a.n_kv_heads);
                    let score = |k: usize| {
                        let s = a.scale * check::dot(at(row, head), at(k, a.n_heads + kv));
                        a.soft_cap.map_or(s, |cap| cap * (s / cap).tanh())
                    };
                    let total: f64 = keys.iter().map(|&k| score(k).exp()).sum();
                    for &k in &keys {
                        for c in 0..hd {
                            out[(row * a.n_heads + head) * hd + c] += score(k).exp() / total * at(k, a.n_heads + a.n_kv_heads + kv)[c];
                        }
                    }
                }
            }
        }
        out
    }

    #[test]
    fn forward_equals_the_slow_one() {
        // 100 and 230 cross the block size.
        let batch = forest([100, 5, 3, 106, 230]);
        for (window, cap) in [(None, None), (Some(9), None), (Some(64), Some(1.5)), (Some(1), None), (None, Some(0.7))] {
            let a = attention(window, cap);
            let qkv = check::values(1, batch.n_tokens() * a.width());
            let (out, _) = forward(&a, &qkv, &batch);
            let expected = slow(&a, &qkv, &batch);
            let worst = out.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-12, "window {window:?}, cap {cap:?}: {worst}");
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        let batch = forest([5, 4, 2, 3, 7]);
        for (window, cap) in [(None, None), (Some(3), None), (Some(4), Some(0.8))] {
            let a = attention(window, cap);
            let qkv = check::values(1, batch.n_tokens() * a.width());
            let d_out = check::values(2, batch.n_tokens() * a.n_heads * a.head_dim);
            let d_qkv = backward(&a, &qkv, &d_out, &batch);
            check::gradient(&format!("window {window:?}, cap {cap:?}"), &qkv, &d_qkv, |qkv| {
                check::dot(&forward(&a, qkv, &batch).0, &d_out)
            });
        }
    }

    #[test]
    fn gradients_of_long_sequences_match_a_directional_difference() {
        let batch = forest([70, 90, 3, 66, 130]);
        let a = attention(Some(80), Some(2.0));
        let n = batch.n_tokens();
        let (qkv, direction) = (check::values(1, n * a.width()), check::values(3, n * a.width()));
        let d_out = check::values(2, n * a.n_heads * a.head_dim);
        let d_qkv = backward(&a, &qkv, &d_out, &batch);
        let loss = |step: f64| {
            let moved: Vec<f64> = qkv.iter().zip(&direction).map(|(q, d)| q + step * d).collect();
            check::dot(&forward(&a, &moved, &batch).0, &d_out)
        };
        let numeric = (loss(1e-5) - loss(-1e-5)) / 2e-5;
        let analytic = check::dot(&d_qkv, &direction);
        assert!((numeric - analytic).abs() < 1e-6 * analytic.abs().max(1.0), "{numeric} {analytic}");
    }

    #[test]
    fn a_sequence_does_not_depend_on_what_it_is_packed_with() {
        let a = attention(Some(40), None);
        let mut alone = PackedBatch::default();
        alone.push_responses(&[0; 30], &[&[0; 50], &[0; 20]], PromptSharing::Shared);
        let n = alone.n_tokens();
        let row: Vec<f32> = check::to_f32(&check::values(1, n * a.width()));
        let mut packed = PackedBatch::default();
        packed.push_segment(&[0; 77], None, true);
        packed.push_responses(&[0; 30], &[&[0; 50], &[0; 20]], PromptSharing::Shared);
        let mut rows = check::to_f32(&check::values(2, 77 * a.width()));
        rows.extend(&row);
        let (out, _) = forward(&a, &row, &alone);
        let (all, _) = forward(&a, &rows, &packed);
        assert!(out == all[all.len() - out.len()..]);
    }
}
