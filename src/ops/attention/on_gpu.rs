//! Packed attention on the GPU: which kernel takes which tensors, and the tables that tell its blocks who sees whom.
//!
//! bf16 values go to the tensor cores, in kernels for heads of up to 64, 128 and 256 values; f32 values, and heads of other widths, to a plain
//! kernel. Scores exist in registers and shared memory alone. What a row's result is made of, and in which order, follows from its own tree.

use super::Attention;
use super::blocks::{ancestors, blocks, first_position};
use crate::data::batch::Segment;
use crate::ops::Buffer;
use crate::ops::gpu::{Kernel, empty, empty_like, indices};
use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

const THREADS: usize = 128;

/// A family of kernels, and the sizes that they are written with: `kernels/attention*.cuh` says what shared memory holds.
#[derive(Debug, Clone, Copy)]
enum Family {
    /// Tensor cores, for heads of at most so many values.
    TensorCores(usize),
    Any,
}

impl Family {
    fn of(values: &Tensor, head_dim: usize) -> Self {
        match [64, 128, 256].into_iter().find(|&size| head_dim <= size) {
            Some(size) if values.dtype() == DType::BF16 && head_dim.is_multiple_of(16) => Self::TensorCores(size),
            _ => Self::Any,
        }
    }

    fn kernel(self, name: &str, values: &Tensor) -> Result<Kernel<'static>> {
        match self {
            Self::TensorCores(size) => Kernel::new(&format!("attention_{name}_{size}"), values),
            Self::Any => Kernel::new(&format!("attention_{name}_any"), values),
        }
    }

    /// Rows of a block.
    fn tile_rows(self) -> usize {
        match self {
            Self::TensorCores(_) => 64,
            Self::Any => 16,
        }
    }

    /// Bytes of `n_rows` rows of a head in shared memory.
    fn bytes(self, n_rows: usize, head_dim: usize) -> usize {
        match self {
            Self::TensorCores(size) => n_rows * (size + 8) * 2,
            Self::Any => n_rows * (head_dim + 1) * 4,
        }
    }

    /// Two stages of keys and values, and room for queries where registers have none.
    fn forward_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::TensorCores(size) => self.bytes(if size > 128 { 4 * 32 + 64 } else { 4 * 64 }, head_dim),
            Self::Any => self.bytes(4 * 16, head_dim) + SMALL_SCORES,
        }
    }

    /// The tiles of two matrices, and two stages of two others.
    fn queries_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::TensorCores(size) => self.bytes(2 * 64 + 4 * if size > 128 { 16 } else { 32 }, head_dim),
            Self::Any => self.bytes(5 * 16, head_dim) + SMALL_SCORES,
        }
    }

    fn keys_bytes(self, head_dim: usize) -> usize {
        match self {
            Self::TensorCores(_) => self.queries_bytes(head_dim),
            Self::Any => self.bytes(6 * 16, head_dim) + 2 * SMALL_SCORES,
        }
    }
}

/// Bytes of the plain kernel's scores: 16 rows of 16, and one to keep rows in different banks.
const SMALL_SCORES: usize = 16 * 17 * 4;

/// [`super::forward`]; the output is of the type of `qkv`.
pub(super) fn forward(qkv: &Tensor, segments: &[Segment], attention: &Attention) -> Result<(Buffer, Buffer)> {
    let (n_rows, family) = (qkv.dim(0)?, Family::of(qkv, attention.head_dim));
    ensure!(qkv.dim(1)? == attention.width(), "attention over rows of {} values takes not {:?}", attention.width(), qkv.dims());
    let out = empty_like(&[n_rows, attention.n_heads * attention.head_dim], qkv)?;
    let lse = empty(&[n_rows, attention.n_heads], DType::F32, qkv.device())?;
    let tiles = &Tiles::of(segments, attention.window, family.tile_rows(), qkv)?.queries;
    let kernel = family.kernel("forward", qkv)?.values(qkv)?.values(&out)?.floats(&lse)?;
    tiles.run(kernel, attention, attention.n_heads, family.forward_bytes(attention.head_dim))?;
    Ok((out, lse))
}

/// [`super::backward`]; the gradient is of the type of `qkv`.
pub(super) fn backward(
    qkv: &Tensor,
    out: &Tensor,
    lse: &Tensor,
    d_out: &Tensor,
    segments: &[Segment],
    attention: &Attention,
) -> Result<Buffer> {
    let (n_heads, head_dim, n_rows) = (attention.n_heads, attention.head_dim, qkv.dim(0)?);
    let family = Family::of(qkv, head_dim);
    let facts = empty(&[n_rows, n_heads, 2], DType::F32, qkv.device())?;
    let kernel = Kernel::new("attention_facts", qkv)?.values(out)?.values(d_out)?.floats(lse)?.floats(&facts)?;
    let n_units = n_rows * n_heads;
    kernel.integer(n_units)?.integer(head_dim)?.run([n_units.div_ceil(THREADS / 32), 1, 1], THREADS)?;

    let d_qkv = empty_like(qkv.dims(), qkv)?;
    let tiles = Tiles::of(segments, attention.window, family.tile_rows(), qkv)?;
    let start = |name: &str| family.kernel(name, qkv)?.values(qkv)?.values(d_out)?.floats(&facts)?.values(&d_qkv);
    tiles.queries.run(start("backward_queries")?, attention, n_heads, family.queries_bytes(head_dim))?;
    let keys_bytes = family.keys_bytes(head_dim);
    tiles.keys.run(start("backward_keys")?, attention, attention.n_kv_heads, keys_bytes)?;
    if matches!(family, Family::TensorCores(256)) {
        tiles.keys.run(start("backward_values")?, attention, attention.n_kv_heads, keys_bytes)?;
    }
    Ok(d_qkv)
}

/// Consecutive rows of one segment, and the runs of rows on the other side that they meet.
#[derive(Debug, Clone, PartialEq)]
struct Tile {
    rows: Range<usize>,
    /// Of the first row in its sequence.
    position: usize,
    runs: Vec<Run>,
}

/// Rows at consecutive positions of a sequence.
#[derive(Debug, Clone, PartialEq)]
struct Run {
    rows: Range<usize>,
    position: usize,
}

/// The queries of a segment, with the keys that some of them see.
fn query_tiles(segments: &[Segment], index: usize, tile_rows: usize, window: Option<usize>) -> Vec<Tile> {
    let segment_position = first_position(segments, index);
    let tile = |block: super::Block| {
        let mut position = block.first_key;
        let run = |rows: Range<usize>| {
            position += rows.len();
            Run { position: position - rows.len(), rows }
        };
        let runs = block.keys.into_iter().map(run).collect();
        Tile { position: segment_position + block.rows.start - segments[index].rows.start, rows: block.rows, runs }
    };
    blocks(segments, index, tile_rows, window).into_iter().map(tile).collect()
}

/// The keys of a segment, with the queries that see some of them: those of the segments `seen_by`.
fn key_tiles(segments: &[Segment], index: usize, seen_by: &[usize], tile_rows: usize, window: Option<usize>) -> Vec<Tile> {
    let (rows, segment_position) = (&segments[index].rows, first_position(segments, index));
    let tile = |start: usize| {
        let tile = start..(start + tile_rows).min(rows.end);
        let position = segment_position + start - rows.start;
        let end_position = window.map_or(usize::MAX, |window| (position + tile.len() - 1).saturating_add(window));
        let runs = seen_by.iter().filter_map(|&other| {
            let (queries, first) = (&segments[other].rows, first_position(segments, other));
            let skipped = position.saturating_sub(first);
            let end = end_position.saturating_sub(first).min(queries.len());
            (skipped < end).then(|| Run { rows: queries.start + skipped..queries.start + end, position: first + skipped })
        });
        Tile { position, runs: runs.collect(), rows: tile }
    };
    rows.clone().step_by(tile_rows).map(tile).collect()
}

/// Tables of tiles on the device.
#[derive(Debug)]
struct Table {
    n_tiles: usize,
    /// For each tile its first row, rows, position, first run, and end of runs.
    tiles: Tensor,
    /// For each run its first row, rows, and position.
    runs: Tensor,
}

impl Table {
    /// The tiles that meet most rows come first, so that none of them is left to the end, when little runs beside it.
    fn new(mut tiles: Vec<Tile>, like: &Tensor) -> Result<Self> {
        tiles.sort_by_key(|tile| std::cmp::Reverse(tile.runs.iter().map(|run| run.rows.len()).sum::<usize>()));
        let (mut of_tiles, mut of_runs) = (Vec::with_capacity(5 * tiles.len()), Vec::new());
        for tile in &tiles {
            let first = of_runs.len() / 3;
            of_runs.extend(tile.runs.iter().flat_map(|run| [run.rows.start, run.rows.len(), run.position]));
            of_tiles.extend([tile.rows.start, tile.rows.len(), tile.position, first, of_runs.len() / 3]);
        }
        let table = |mut values: Vec<usize>| {
            // A device has no tensors of nothing.
            values.resize(values.len().max(1), 0);
            indices(values.into_iter().map(u32::try_from).collect::<Result<_, _>>()?, like)
        };
        Ok(Self { n_tiles: tiles.len(), tiles: table(of_tiles)?, runs: table(of_runs)? })
    }

    /// Starts a kernel on a block for each head and tile.
    fn run(&self, kernel: Kernel, attention: &Attention, n_heads: usize, shared_bytes: usize) -> Result<()> {
        let kernel = kernel.indices(&self.tiles)?.indices(&self.runs)?;
        layer_arguments(kernel, attention)?.shared(shared_bytes).run([n_heads, self.n_tiles, 1], THREADS)
    }
}

/// What every kernel of a layer ends its arguments with.
pub(super) fn layer_arguments<'a>(kernel: Kernel<'a>, attention: &Attention) -> Result<Kernel<'a>> {
    let no_window = i32::MAX as usize;
    let kernel = kernel.integer(attention.n_heads)?.integer(attention.n_kv_heads)?.integer(attention.head_dim)?;
    let kernel = kernel.float(attention.scale).integer(attention.window.map_or(no_window, |window| window.min(no_window)))?;
    Ok(kernel.float(attention.soft_cap.unwrap_or(0.0)))
}

/// Both sides' tables of one batch.
#[derive(Debug)]
struct Tiles {
    queries: Table,
    keys: Table,
}

/// What tables were made of.
#[derive(Debug, PartialEq)]
struct Source {
    segments: Vec<Segment>,
    window: Option<usize>,
    tile_rows: usize,
}

/// Tables kept for the next layer, and for the backward: as many as a model has kinds of windows, twice.
const N_KEPT: usize = 4;

/// The newest last.
static KEPT: Mutex<Vec<(Source, Arc<Tiles>)>> = Mutex::new(Vec::new());

impl Tiles {
    /// The tables on the device of `like`. All layers of a batch ask for the same, so the last few are kept.
    fn of(segments: &[Segment], window: Option<usize>, tile_rows: usize, like: &Tensor) -> Result<Arc<Self>> {
        // Nothing in there can be half done when a thread that holds it ends.
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |(source, tiles): &(Source, Arc<Self>)| {
            source.segments == segments
                && (source.window, source.tile_rows) == (window, tile_rows)
                && tiles.keys.tiles.device().same_device(like.device())
        };
        let entry = match kept.iter().position(same) {
            Some(index) => kept.remove(index),
            None => {
                let source = Source { segments: segments.to_vec(), window, tile_rows };
                (source, Arc::new(Self::new(segments, window, tile_rows, like)?))
            }
        };
        let tiles = entry.1.clone();
        kept.push(entry);
        if kept.len() > N_KEPT {
            kept.remove(0);
        }
        Ok(tiles)
    }

    fn new(segments: &[Segment], window: Option<usize>, tile_rows: usize, like: &Tensor) -> Result<Self> {
        let mut seen_by: Vec<Vec<usize>> = vec![Vec::new(); segments.len()];
        for (index, segment) in segments.iter().enumerate() {
            if segment.sees_itself {
                seen_by[index].push(index);
            }
            ancestors(segments, index).into_iter().for_each(|ancestor| seen_by[ancestor].push(index));
        }
        let all = 0..segments.len();
        let queries = all.clone().flat_map(|index| query_tiles(segments, index, tile_rows, window)).collect();
        let keys = all.flat_map(|index| key_tiles(segments, index, &seen_by[index], tile_rows, window)).collect();
        Ok(Self { queries: Table::new(queries, like)?, keys: Table::new(keys, like)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::batch::PackedBatch;
    use std::collections::BTreeMap;

    /// Trees: a prompt with two answers, one with padding behind it; a lone sequence; padding with nothing before it; a chain.
    pub(super) fn forest(lengths: [usize; 9]) -> PackedBatch {
        let mut batch = PackedBatch::default();
        let tokens = |n: usize| vec![0; n];
        let prompt = batch.push_segment(&tokens(lengths[0]), None, true);
        let chosen = batch.push_segment(&tokens(lengths[1]), Some(prompt), true);
        batch.push_segment(&tokens(lengths[2]), Some(chosen), false);
        batch.push_segment(&tokens(lengths[3]), Some(prompt), true);
        batch.push_segment(&tokens(lengths[4]), None, true);
        batch.push_segment(&tokens(lengths[5]), None, false);
        let first = batch.push_segment(&tokens(lengths[6]), None, true);
        let second = batch.push_segment(&tokens(lengths[7]), Some(first), true);
        batch.push_segment(&tokens(lengths[8]), Some(second), true);
        batch
    }

    /// Which (query, key) pairs of rows are visible, by the definition.
    fn visible(batch: &PackedBatch, window: Option<usize>) -> Vec<(usize, usize)> {
        let mut pairs = Vec::new();
        for (index, segment) in batch.segments.iter().enumerate() {
            for query in segment.rows.clone() {
                let own = if segment.sees_itself { segment.rows.start..query + 1 } else { 0..0 };
                let before = ancestors(&batch.segments, index).into_iter().flat_map(|i| batch.segments[i].rows.clone());
                let near = |key: &usize| window.is_none_or(|window| ((batch.positions[query] - batch.positions[*key]) as usize) < window);
                pairs.extend(before.chain(own).filter(near).map(|key| (query, key)));
            }
        }
        pairs.sort_unstable();
        pairs
    }

    /// The pairs of a tile's rows and those of its runs.
    fn pairs(tiles: &[Tile], batch: &PackedBatch) -> Vec<(usize, usize)> {
        let mut pairs = Vec::new();
        for tile in tiles {
            assert_eq!(batch.positions[tile.rows.start] as usize, tile.position);
            for run in &tile.runs {
                assert!(!run.rows.is_empty() && batch.positions[run.rows.start] as usize == run.position);
                pairs.extend(tile.rows.clone().flat_map(|row| run.rows.clone().map(move |other| (row, other))));
            }
        }
        pairs
    }

    #[test]
    fn tiles_meet_what_is_visible_once_from_either_side() {
        let batch = forest([40, 9, 7, 33, 70, 5, 3, 20, 18]);
        for (window, tile_rows) in [(None, 16), (None, 64), (Some(1), 16), (Some(13), 16), (Some(30), 64), (Some(1000), 16)] {
            let all = 0..batch.segments.len();
            let seen_by = |index: usize| -> Vec<usize> {
                let sees = |&i: &usize| ancestors(&batch.segments, i).contains(&index) || i == index && batch.segments[i].sees_itself;
                all.clone().filter(sees).collect()
            };
            let queries: Vec<Tile> = all.clone().flat_map(|i| query_tiles(&batch.segments, i, tile_rows, window)).collect();
            let keys: Vec<Tile> = all.clone().flat_map(|i| key_tiles(&batch.segments, i, &seen_by(i), tile_rows, window)).collect();
            for (side, mut met) in [("queries", pairs(&queries, &batch)), ("keys", pairs(&keys, &batch))] {
                if side == "keys" {
                    met.iter_mut().for_each(|pair| *pair = (pair.1, pair.0));
                }
                let mut times = BTreeMap::new();
                met.iter().for_each(|pair| *times.entry(*pair).or_insert(0) += 1);
                assert!(times.values().all(|&n| n == 1), "{side}, window {window:?}");
                // Kernels mask by positions within these pairs.
                let near = |&(query, key): &(usize, usize)| {
                    let (query, key) = (batch.positions[query] as usize, batch.positions[key] as usize);
                    key <= query && window.is_none_or(|window| query - key < window)
                };
                let masked: Vec<_> = times.into_keys().filter(near).collect();
                assert_eq!(masked, visible(&batch, window), "{side}, window {window:?}");
            }
        }
    }
}

#[cfg(test)]
mod gpu_tests {
    use super::tests::forest;
    use super::*;
    use crate::ops::attention;
    use crate::ops::gpu::twin::{Place, agree_to};
    use crate::ops::read;

    fn attention(heads: (usize, usize), head_dim: usize, window: Option<usize>, soft_cap: Option<f64>) -> Attention {
        let scale = 3.0 / (head_dim as f64).sqrt();
        Attention { n_heads: heads.0, n_kv_heads: heads.1, head_dim, scale, window, soft_cap }
    }

    /// Output, log-sum-exp (10 for minus infinity), dQ, dK and dV.
    fn results(a: &Attention, segments: &[Segment], qkv: &Tensor, d_out: &Tensor) -> Result<Vec<Tensor>> {
        let (out, lse) = attention::forward(qkv, segments, a)?;
        let d_qkv = attention::backward(qkv, &out, &lse, d_out, segments, a)?;
        let finite: Vec<f32> = read(&lse)?.iter().map(|&sum| if sum == f32::NEG_INFINITY { 10.0 } else { sum }).collect();
        let mut results = vec![out.copy()?, Tensor::from_vec(finite, lse.dims(), qkv.device())?];
        for (first, n) in [(0, a.n_heads), (a.n_heads, a.n_kv_heads), (a.n_heads + a.n_kv_heads, a.n_kv_heads)] {
            results.push(d_qkv.narrow(1, first * a.head_dim, n * a.head_dim)?.copy()?.contiguous()?);
        }
        Ok(results)
    }

    fn given(place: &Place, a: &Attention, n_rows: usize) -> [Tensor; 2] {
        [place.values(1, &[n_rows, a.width()]), place.values(2, &[n_rows, a.n_heads * a.head_dim])]
    }

    /// In f32, and in bf16, where probabilities and gradients of scores are rounded before they are multiplied, like what is stored.
    fn check(a: &Attention, lengths: [usize; 9]) {
        let batch = forest(lengths);
        agree_to(&format!("{a:?} over {lengths:?}"), [1e-5, 1e-2], |place| {
            let [qkv, d_out] = given(place, a, batch.n_tokens());
            results(a, &batch.segments, &qkv, &d_out)
        });
    }

    #[test]
    fn narrow_heads_agree_with_the_cpu() {
        let lengths = [65, 16, 5, 17, 130, 3, 1, 15, 40];
        check(&attention((4, 4), 16, None, None), lengths);
        check(&attention((4, 1), 64, Some(9), None), lengths);
        check(&attention((7, 1), 32, Some(70), Some(3.0)), lengths);
    }

    #[test]
    fn heads_of_128_agree_with_the_cpu() {
        check(&attention((4, 2), 128, None, None), [70, 16, 5, 65, 67, 3, 1, 15, 17]);
        check(&attention((1, 1), 128, Some(100), None), [65, 64, 9, 17, 140, 3, 1, 1, 15]);
    }

    #[test]
    fn wide_heads_agree_with_the_cpu() {
        check(&attention((2, 1), 80, Some(20), Some(5.0)), [33, 16, 9, 17, 65, 3, 1, 1, 15]);
        check(&attention((2, 1), 256, None, Some(20.0)), [33, 16, 9, 17, 65, 3, 1, 1, 15]);
        check(&attention((1, 1), 256, Some(16), None), [17, 16, 9, 17, 100, 3, 1, 1, 15]);
    }

    #[test]
    fn heads_of_widths_that_tensor_cores_do_not_take_agree_with_the_cpu() {
        check(&attention((2, 1), 6, None, None), [17, 16, 5, 15, 65, 1, 1, 1, 30]);
        check(&attention((4, 2), 24, Some(30), Some(1.5)), [33, 16, 9, 17, 65, 3, 1, 1, 15]);
        check(&attention((1, 1), 272, None, None), [9, 16, 2, 1, 3, 1, 1, 1, 2]);
    }

    #[test]
    fn a_sequence_has_the_same_bits_whatever_is_packed_beside_it() {
        use crate::data::batch::PackedBatch;
        use crate::ops::check;
        use crate::ops::gpu::on_emulated_gpu;
        use candle_core::Device;
        let a = attention((4, 2), 64, Some(50), None);
        let tree = |batch: &mut PackedBatch| {
            let prompt = batch.push_segment(&[0; 33], None, true);
            batch.push_segment(&[0; 40], Some(prompt), true);
            batch.push_segment(&[0; 17], Some(prompt), true);
        };
        let (mut alone, mut packed) = (PackedBatch::default(), PackedBatch::default());
        packed.push_segment(&[0; 21], None, true);
        tree(&mut alone);
        tree(&mut packed);
        let bits = |results: Vec<Tensor>, skipped: usize| -> Vec<Vec<u32>> {
            let own = results.iter().map(|result| result.narrow(0, skipped, result.dim(0).unwrap() - skipped).unwrap());
            own.map(|result| read(&result).unwrap().iter().map(|value| value.to_bits()).collect()).collect()
        };
        for dtype in [DType::F32, DType::BF16] {
            let values = |seed, width| {
                let values = check::values(seed, packed.n_tokens() * width);
                Tensor::from_vec(values, (packed.n_tokens(), width), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
            };
            let all = [values(1, a.width()), values(2, a.n_heads * a.head_dim)];
            let own = all.each_ref().map(|values| values.narrow(0, 21, 90).unwrap());
            let both = on_emulated_gpu(|| {
                let together = results(&a, &packed.segments, &all[0], &all[1]).unwrap();
                (together, results(&a, &alone.segments, &own[0], &own[1]).unwrap())
            });
            let Some((together, alone)) = both.unwrap() else { return };
            assert!(bits(together, 21) == bits(alone, 0), "{dtype:?}");
        }
    }
}
