//! Packed causal attention over a forest of segments: `softmax(scale * q kᵀ) v`, with grouped heads, sliding windows and soft caps.
//!
//! Queries are taken in blocks; the scores of one block against the keys that it sees are all that exists of the score matrix. The backward
//! recomputes them from the saved log-sum-exp (FlashAttention, arXiv 2205.14135): with P the probabilities and D = rowsum(dO ∘ O),
//!
//! ```text
//! dV += Pᵀ dO      dS = P ∘ (dO Vᵀ - D)      dQ = scale dS K      dK += scale dSᵀ Q
//! ```
//!
//! A chain of segments covers consecutive positions, so the keys that a block sees are a few runs of rows with consecutive positions.

use super::gemm::{Matrix, Threads, Write, multiply};
use super::real::{dot, max, sum, vectorized};
use super::{Buffer, Real, Scratch, read};
use crate::data::batch::Segment;
use anyhow::Result;
use candle_core::Tensor;
use rayon::prelude::*;
use std::ops::Range;

/// Query rows whose scores exist at a time.
pub(crate) const BLOCK: usize = 64;

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
    let (n_rows, n_heads, width) = (qkv.dim(0)?, attention.n_heads, attention.n_heads * attention.head_dim);
    let (mut out, mut lse) = (Scratch::new(n_rows * width), Scratch::new(n_rows * n_heads));
    attention.forward(&read(qkv)?, segments, &mut out, &mut lse);
    Ok((Buffer::new(out, &[n_rows, width])?, Buffer::new(lse, &[n_rows, n_heads])?))
}

/// The gradient of `qkv` from that of the output.
pub fn backward(qkv: &Tensor, out: &Tensor, lse: &Tensor, d_out: &Tensor, segments: &[Segment], attention: &Attention) -> Result<Buffer> {
    let mut d_qkv = Scratch::zeros(qkv.elem_count());
    attention.backward(&read(qkv)?, &read(out)?, &read(lse)?, &read(d_out)?, segments, &mut d_qkv);
    Buffer::new(d_qkv, &[qkv.dim(0)?, attention.width()])
}

/// Consecutive queries of one segment, and the runs of rows that hold the keys they see.
struct Block {
    rows: Range<usize>,
    /// Packed rows of the keys; together they lie at consecutive positions.
    keys: Vec<Range<usize>>,
    n_keys: usize,
    /// Index among the keys of the first query's own position (it need not exist: padding does not see itself).
    first_query: usize,
    sees_itself: bool,
    window: usize,
}

impl Block {
    /// Keys that query `i` of the block sees.
    fn visible(&self, i: usize) -> Range<usize> {
        let end = if self.sees_itself { self.first_query + i + 1 } else { self.n_keys };
        let start = (self.first_query + i + 1).saturating_sub(self.window).min(end);
        start..end
    }
}

/// The blocks of a segment, in order.
fn blocks(segments: &[Segment], index: usize, window: Option<usize>) -> Vec<Block> {
    let segment = &segments[index];
    let mut chain = Vec::new();
    let mut ancestor = segment.parent;
    while let Some(i) = ancestor {
        chain.push(segments[i].rows.clone());
        ancestor = segments[i].parent;
    }
    chain.reverse();
    let position: usize = chain.iter().map(ExactSizeIterator::len).sum();
    let window = window.unwrap_or(usize::MAX);
    segment
        .rows
        .clone()
        .step_by(BLOCK)
        .map(|start| {
            let rows = start..(start + BLOCK).min(segment.rows.end);
            let query_position = position + start - segment.rows.start;
            let mut keys = chain.clone();
            if segment.sees_itself {
                keys.push(segment.rows.start..rows.end);
            }
            let hidden = (query_position + 1).saturating_sub(window);
            drop_first(&mut keys, hidden);
            let n_keys = keys.iter().map(ExactSizeIterator::len).sum();
            Block { rows, keys, n_keys, first_query: query_position - hidden, sees_itself: segment.sees_itself, window }
        })
        .collect()
}

/// Takes the first `n` rows off a list of runs.
fn drop_first(runs: &mut Vec<Range<usize>>, mut n: usize) {
    runs.retain_mut(|run| {
        let taken = n.min(run.len());
        n -= taken;
        run.start += taken;
        run.start < run.end
    });
}

/// Index ranges of `segments` that form one tree each.
fn trees(segments: &[Segment]) -> Vec<Range<usize>> {
    let roots: Vec<usize> = (0..segments.len()).filter(|&i| segments[i].parent.is_none()).collect();
    let ends = roots.iter().skip(1).copied().chain([segments.len()]);
    roots.iter().copied().zip(ends).map(|(start, end)| start..end).collect()
}

/// What one query head contributes to the gradients of a tree's rows, `[rows, hd]` each.
struct HeadGradients<T> {
    dq: Vec<T>,
    dk: Vec<T>,
    dv: Vec<T>,
}

impl Attention {
    fn width(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
    }

    fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    fn columns<'a, T: Real>(&self, qkv: &'a [T], first_column: usize, rows: &Range<usize>) -> Matrix<'a, T> {
        Matrix::strided(&qkv[rows.start * self.width() + first_column..], rows.len(), self.head_dim, self.width())
    }

    fn query<'a, T: Real>(&self, qkv: &'a [T], head: usize, rows: &Range<usize>) -> Matrix<'a, T> {
        self.columns(qkv, head * self.head_dim, rows)
    }

    /// The key that query head `head` sees.
    fn key<'a, T: Real>(&self, qkv: &'a [T], head: usize, rows: &Range<usize>) -> Matrix<'a, T> {
        self.columns(qkv, (self.n_heads + head / self.group()) * self.head_dim, rows)
    }

    fn value<'a, T: Real>(&self, qkv: &'a [T], head: usize, rows: &Range<usize>) -> Matrix<'a, T> {
        self.columns(qkv, (self.n_heads + self.n_kv_heads + head / self.group()) * self.head_dim, rows)
    }

    /// Writes the output `[N, H hd]` and the log-sum-exp `[N, H]`.
    fn forward<T: Real>(&self, qkv: &[T], segments: &[Segment], out: &mut [T], lse: &mut [T]) {
        let (heads, width) = (self.n_heads, self.n_heads * self.head_dim);
        let (mut out, mut lse) = (out, lse);
        let mut tasks = Vec::new();
        for block in (0..segments.len()).flat_map(|i| blocks(segments, i, self.window)) {
            // Blocks cover the packed rows in order.
            let block_out = out.split_off_mut(..block.rows.len() * width).unwrap_or_default();
            let block_lse = lse.split_off_mut(..block.rows.len() * heads).unwrap_or_default();
            tasks.push((block, block_out, block_lse));
        }
        tasks.into_par_iter().for_each(|(block, out, lse)| {
            let of_heads: Vec<_> = (0..heads).into_par_iter().map(|head| self.forward_block(qkv, &block, head)).collect();
            for (head, (head_out, head_lse)) in of_heads.iter().enumerate() {
                let rows = out.chunks_mut(width).zip(lse.chunks_mut(heads)).zip(head_out.chunks(self.head_dim)).zip(head_lse);
                for (((out, lse), head_out), &head_lse) in rows {
                    out[head * self.head_dim..][..self.head_dim].copy_from_slice(head_out);
                    lse[head] = head_lse;
                }
            }
        });
    }

    /// Output `[rows, hd]` and log-sum-exp of one head of one block.
    fn forward_block<T: Real>(&self, qkv: &[T], block: &Block, head: usize) -> (Vec<T>, Vec<T>) {
        let n_rows = block.rows.len();
        let mut scores = vec![T::ZERO; n_rows * block.n_keys];
        self.scores(qkv, block, head, &mut scores);
        let mut lse = vec![T::NEG_INFINITY; n_rows];
        let mut norm = vec![T::ZERO; n_rows];
        vectorized(|| {
            for (i, row) in scores.chunks_mut(block.n_keys.max(1)).enumerate() {
                let visible = block.visible(i);
                if visible.is_empty() {
                    row.fill(T::ZERO);
                    continue;
                }
                row[..visible.start].fill(T::ZERO);
                row[visible.end..].fill(T::ZERO);
                let row = &mut row[visible];
                let largest = max(row);
                row.iter_mut().for_each(|s| *s = Real::exp(*s - largest));
                let total = sum(row);
                norm[i] = T::ONE / total;
                lse[i] = largest + Real::ln(total);
            }
        });
        let mut out = vec![T::ZERO; n_rows * self.head_dim];
        let mut first = 0;
        for keys in &block.keys {
            let probabilities = Matrix::strided(&scores[first..], n_rows, keys.len(), block.n_keys);
            multiply(&mut out, self.head_dim, Write::Add, T::ONE, probabilities, self.value(qkv, head, keys), Threads::One);
            first += keys.len();
        }
        out.chunks_mut(self.head_dim).zip(norm).for_each(|(row, norm)| row.iter_mut().for_each(|o| *o *= norm));
        (out, lse)
    }

    /// Capped scores of a block against all its keys, `[rows, keys]`; what a query does not see is there too, to be masked by the caller.
    fn scores<T: Real>(&self, qkv: &[T], block: &Block, head: usize, scores: &mut [T]) {
        let queries = self.query(qkv, head, &block.rows);
        let mut first = 0;
        for keys in &block.keys {
            let keys_t = self.key(qkv, head, keys).transposed();
            multiply(&mut scores[first..], block.n_keys, Write::Overwrite, T::of(self.scale), queries, keys_t, Threads::One);
            first += keys.len();
        }
        if let Some(cap) = self.soft_cap {
            let (cap, inverse) = (T::of(cap), T::of(1.0 / cap));
            vectorized(|| scores.iter_mut().for_each(|s| *s = cap * Real::tanh(*s * inverse)));
        }
    }

    /// Adds to `d_qkv [N, (H + 2K) hd]`.
    fn backward<T: Real>(&self, qkv: &[T], out: &[T], lse: &[T], d_out: &[T], segments: &[Segment], d_qkv: &mut [T]) {
        let trees = trees(segments);
        let units = (0..trees.len() * self.n_heads).into_par_iter();
        let gradients: Vec<HeadGradients<T>> = units
            .map(|unit| self.backward_head(qkv, out, lse, d_out, segments, &trees[unit / self.n_heads], unit % self.n_heads))
            .collect();
        let (width, hd) = (self.width(), self.head_dim);
        for (tree, heads) in trees.iter().zip(gradients.chunks(self.n_heads)) {
            let rows = segments[tree.start].rows.start..segments[tree.end - 1].rows.end;
            d_qkv[rows.start * width..rows.end * width].par_chunks_mut(width).enumerate().for_each(|(i, row)| {
                let (dq, d_kv) = row.split_at_mut(self.n_heads * hd);
                let (dk, dv) = d_kv.split_at_mut(self.n_kv_heads * hd);
                for (head, gradients) in heads.iter().enumerate() {
                    let group = head / self.group() * hd..head / self.group() * hd + hd;
                    dq[head * hd..][..hd].copy_from_slice(&gradients.dq[i * hd..][..hd]);
                    dk[group.clone()].iter_mut().zip(&gradients.dk[i * hd..]).for_each(|(a, &b)| *a += b);
                    dv[group].iter_mut().zip(&gradients.dv[i * hd..]).for_each(|(a, &b)| *a += b);
                }
            });
        }
    }

    #[allow(clippy::too_many_arguments)] // five tensors, and which tree and head
    fn backward_head<T: Real>(
        &self,
        qkv: &[T],
        out: &[T],
        lse: &[T],
        d_out: &[T],
        segments: &[Segment],
        tree: &Range<usize>,
        head: usize,
    ) -> HeadGradients<T> {
        let (hd, width) = (self.head_dim, self.n_heads * self.head_dim);
        let base = segments[tree.start].rows.start;
        let size = (segments[tree.end - 1].rows.end - base) * hd;
        let mut gradients = HeadGradients { dq: vec![T::ZERO; size], dk: vec![T::ZERO; size], dv: vec![T::ZERO; size] };
        for block in tree.clone().flat_map(|i| blocks(segments, i, self.window)) {
            let n_rows = block.rows.len();
            let d_out_block = Matrix::strided(&d_out[block.rows.start * width + head * hd..], n_rows, hd, width);
            let mut probabilities = vec![T::ZERO; n_rows * block.n_keys];
            self.scores(qkv, &block, head, &mut probabilities);
            let mut d_scores = vec![T::ZERO; n_rows * block.n_keys];
            let mut first = 0;
            for keys in &block.keys {
                let values_t = self.value(qkv, head, keys).transposed();
                multiply(&mut d_scores[first..], block.n_keys, Write::Overwrite, T::ONE, d_out_block, values_t, Threads::One);
                first += keys.len();
            }
            let columns = |row: usize| row * width + head * hd..row * width + head * hd + hd;
            vectorized(|| {
                for (i, row) in block.rows.clone().enumerate() {
                    let delta = dot(&d_out[columns(row)], &out[columns(row)]);
                    let keys = i * block.n_keys..(i + 1) * block.n_keys;
                    self.softmax_backward_row(
                        &mut probabilities[keys.clone()],
                        &mut d_scores[keys],
                        block.visible(i),
                        lse[row * self.n_heads + head],
                        delta,
                    );
                }
            });
            let queries = self.query(qkv, head, &block.rows);
            let mut first = 0;
            for keys in &block.keys {
                let ds = Matrix::strided(&d_scores[first..], n_rows, keys.len(), block.n_keys);
                let p = Matrix::strided(&probabilities[first..], n_rows, keys.len(), block.n_keys);
                let scale = T::of(self.scale);
                multiply(
                    &mut gradients.dq[(block.rows.start - base) * hd..],
                    hd,
                    Write::Add,
                    scale,
                    ds,
                    self.key(qkv, head, keys),
                    Threads::One,
                );
                multiply(&mut gradients.dk[(keys.start - base) * hd..], hd, Write::Add, scale, ds.transposed(), queries, Threads::One);
                multiply(&mut gradients.dv[(keys.start - base) * hd..], hd, Write::Add, T::ONE, p.transposed(), d_out_block, Threads::One);
                first += keys.len();
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
        let mut d_qkv = vec![0.0; qkv.len()];
        a.backward(qkv, &out, &lse, d_out, &batch.segments, &mut d_qkv);
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
        // 70 and 130 cross the block size.
        let batch = forest([70, 5, 3, 66, 130]);
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
