//! Matrix products in bf16 on processors with AVX512-BF16: inputs are rounded to bf16 while they are packed, sums are f32.
//!
//! The side with fewer vectors (rows of A, columns of B) is *held*: packed whole into a buffer that stays in the cache. The other one is
//! *streamed*: a few panels at a time are packed, multiplied with everything held, and dropped; meanwhile memory is asked for the next.
//! So each value is read and converted once a product, unless more than [`MAX_HELD`] vectors are held. Of the time that a product with a
//! weight takes, converting it is about 7 % at 448 rows and 40 % at 32 (SmolLM2's shapes on Zen 5): the price of keeping an f32 weight
//! alone, without a bf16 copy beside it.
//!
//! Threads meet once a product. They share out what is to be packed for all, then what is streamed, both by taking the next part, so that
//! a thread that wakes up late does less. An element is computed by one thread, as sums over blocks of inner indices whose size depends on
//! the inner dimension alone: its bits depend on its row of A, its column of B and that dimension, not on other rows or on threads.
//!
//! The instructions take every value below 2^-126 for zero: inputs, sums and results before the factor. They ignore the rounding mode.

mod kernel;
mod pack;

use super::{Matrix, Write};
use kernel::{COLUMNS, LANES, Line, ROWS, Tile};
use std::cell::Cell;
use std::ops::Range;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Inner indices in a block, at most. A panel of 32 columns of B takes 24 KiB, half of a first-level cache.
const MAX_BLOCK: usize = 384;
/// Lines for each pair of inner indices in panels that are packed together: 192 KiB a block, a part of a second-level cache.
const GROUP_LINES: usize = 16;
/// Vectors that are held at a time.
const MAX_HELD: usize = 2048;
/// Lines that are held at a time (8 MiB), unless a single block takes more.
const MAX_HELD_LINES: usize = 128 * 1024;
/// Multiplications below which waking another thread costs more than it saves.
const MIN_PARALLEL: usize = 8 << 20;

thread_local! {
    /// Packing buffers, kept: fresh pages cost more than what is written to them.
    static HELD: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
    static STREAMED: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// At least `n` lines of any content.
fn lines_of(mut buffer: Vec<Line>, n: usize) -> Vec<Line> {
    if buffer.len() < n {
        buffer.clear();
        buffer.resize(n, Line::ZERO);
    }
    buffer
}

/// The proof that this processor has the instructions.
#[derive(Debug, Clone, Copy)]
pub struct Avx512Bf16(());

impl Avx512Bf16 {
    pub fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512bf16");
        found.then_some(Self(()))
    }

    /// `out (+)= factor * a · b`, with `out` in rows `stride` values apart, on the surrounding pool.
    pub fn multiply(self, out: &mut [f32], stride: usize, write: Write, factor: f32, a: Matrix<f32>, b: Matrix<f32>) {
        let (m, n, k) = (a.rows, b.columns, a.columns);
        super::check(out.len(), stride, &a, &b);
        if m == 0 || n == 0 {
            return;
        }
        if k == 0 {
            if write == Write::Overwrite {
                out.chunks_mut(stride).take(m).for_each(|row| row[..n].fill(0.0));
            }
            return;
        }
        let (a, b) = (Side { vectors: a, width: ROWS }, Side { vectors: b.transposed(), width: COLUMNS });
        Product { processor: self, out: out.as_mut_ptr(), stride, write, factor, a, b, block: block_of(k) }.run();
    }
}

/// Inner indices in a block: as few and as equal blocks as [`MAX_BLOCK`] allows, in whole pieces of the packing.
fn block_of(k: usize) -> usize {
    k.div_ceil(k.div_ceil(MAX_BLOCK)).next_multiple_of(2 * LANES)
}

/// Cuts `panels` into groups of `most` at most, as many for each thread, larger ones first.
fn groups(panels: Range<usize>, most: usize, n_threads: usize) -> Vec<Range<usize>> {
    let n_groups = (panels.len().div_ceil(most * n_threads) * n_threads).min(panels.len());
    let (each, larger) = (panels.len() / n_groups, panels.len() % n_groups);
    let start = |i: usize| panels.start + i * each + i.min(larger);
    (0..n_groups).map(|i| start(i)..start(i + 1)).collect()
}

/// One side of a product, as a matrix of one vector of inner indices a row.
#[derive(Clone, Copy)]
struct Side<'a> {
    vectors: Matrix<'a, f32>,
    /// Vectors in a panel.
    width: usize,
}

impl Side<'_> {
    fn panels(&self) -> usize {
        self.vectors.rows.div_ceil(self.width)
    }

    fn vectors_of(&self, panels: Range<usize>) -> Range<usize> {
        panels.start * self.width..(panels.end * self.width).min(self.vectors.rows)
    }

    /// Lines that a pair of inner indices takes in a panel.
    fn lines(&self) -> usize {
        self.width.div_ceil(LANES)
    }

    /// Lines that a panel takes over `block`.
    fn panel_lines(&self, block: &Range<usize>) -> usize {
        self.lines() * block.len().div_ceil(2)
    }

    /// Packs `panels` over `block` into `out`, which has just the room.
    fn pack<'p>(&self, _: Avx512Bf16, panels: &Range<usize>, block: &Range<usize>, out: &'p mut [Line]) -> Packed<'p> {
        let panel_lines = self.panel_lines(block);
        let first = panels.start * self.width;
        // SAFETY: the proof says that the processor has the instructions.
        unsafe {
            match self.width {
                ROWS => pack::pack::<ROWS>(&self.vectors, first, block, out, panel_lines),
                _ => pack::pack::<COLUMNS>(&self.vectors, first, block, out, panel_lines),
            }
        }
        Packed { first_panel: panels.start, panel_lines, lines: out }
    }

    /// Where the values of `panels` over `block` lie.
    fn place(&self, panels: &Range<usize>, block: &Range<usize>) -> Place {
        let Matrix { data, row_stride, column_stride, .. } = self.vectors;
        let vectors = self.vectors_of(panels.clone());
        let at = |vector: usize, index: usize| data.as_ptr().wrapping_add(vector * row_stride + index * column_stride);
        let first = at(vectors.start, block.start);
        if column_stride == 1 {
            Place { first, stride: row_stride, n_runs: vectors.len(), run: block.len() }
        } else {
            Place { first, stride: column_stride, n_runs: block.len(), run: vectors.len() }
        }
    }
}

/// Memory that will be read soon: runs of values, `stride` values apart.
struct Place {
    first: *const f32,
    stride: usize,
    n_runs: usize,
    run: usize,
}

impl Place {
    /// Asks for the next `n` runs.
    fn prefetch(&mut self, n: usize) {
        for _ in 0..n.min(self.n_runs) {
            (0..self.run).step_by(LANES).for_each(|i| kernel::prefetch(self.first.wrapping_add(i)));
            self.first = self.first.wrapping_add(self.stride);
            self.n_runs -= 1;
        }
    }
}

/// Panels over one block of inner indices, packed one behind the other.
#[derive(Clone, Copy)]
struct Packed<'a> {
    first_panel: usize,
    panel_lines: usize,
    lines: &'a [Line],
}

impl<'a> Packed<'a> {
    fn panels(self) -> impl ExactSizeIterator<Item = (usize, &'a [Line])> {
        self.lines.chunks(self.panel_lines).enumerate().map(move |(i, lines)| (self.first_panel + i, lines))
    }
}

#[derive(Clone, Copy)]
struct Product<'a> {
    processor: Avx512Bf16,
    out: *mut f32,
    stride: usize,
    write: Write,
    factor: f32,
    a: Side<'a>,
    b: Side<'a>,
    /// Inner indices that are summed in registers before they are added to the result.
    block: usize,
}

// SAFETY: the pointer is the only field that is not `Sync` by itself. It comes from a slice that `multiply` borrows mutably until all is
// done, and threads write disjoint tiles of it.
unsafe impl Sync for Product<'_> {}

impl<'a> Product<'a> {
    fn holds_a(&self) -> bool {
        self.a.vectors.rows <= self.b.vectors.rows
    }

    /// What is held and what is streamed.
    fn roles(&self) -> (Side<'a>, Side<'a>) {
        if self.holds_a() { (self.a, self.b) } else { (self.b, self.a) }
    }

    /// Takes as much at a time as the buffer holds.
    fn run(&self) {
        let (held, _) = self.roles();
        let k = held.vectors.columns;
        let panels_at_once = held.panels().min(MAX_HELD / held.width);
        let blocks_at_once = (MAX_HELD_LINES / (panels_at_once * held.panel_lines(&(0..self.block)))).max(1);
        for first in (0..held.panels()).step_by(panels_at_once) {
            for start in (0..k).step_by(blocks_at_once * self.block) {
                self.run_held(first..(first + panels_at_once).min(held.panels()), start..(start + blocks_at_once * self.block).min(k));
            }
        }
    }

    /// Everything that the held `panels` take part in, over the inner indices `inner`.
    fn run_held(&self, panels: Range<usize>, inner: Range<usize>) {
        let (held, streamed) = self.roles();
        let n_multiplications = panels.len() * held.width * streamed.vectors.rows * inner.len();
        let n_threads = if n_multiplications < MIN_PARALLEL { 1 } else { rayon::current_num_threads() };
        let blocks: Vec<_> = inner.clone().step_by(self.block).map(|start| start..(start + self.block).min(inner.end)).collect();
        let held_groups = groups(panels.clone(), GROUP_LINES / held.lines(), n_threads);
        let streamed_groups = groups(0..streamed.panels(), GROUP_LINES / streamed.lines(), n_threads);

        let n_lines = blocks.iter().map(|block| panels.len() * held.panel_lines(block)).sum();
        let mut buffer = lines_of(HELD.take(), n_lines);
        let mut rest = &mut buffer[..];
        // Each is packed once, by whoever comes first; whoever comes while it is being packed sleeps until it is done.
        let pieces: Vec<LazyLock<Packed, _>> = blocks
            .iter()
            .flat_map(|block| held_groups.iter().map(move |panels| (block, panels)))
            .map(|(block, panels)| {
                let (piece, others) = std::mem::take(&mut rest).split_at_mut(panels.len() * held.panel_lines(block));
                rest = others;
                LazyLock::new(move || held.pack(self.processor, panels, block, piece))
            })
            .collect();

        let (next_piece, next_group) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let take = |next: &AtomicUsize| next.fetch_add(1, Ordering::Relaxed);
        let work = || {
            while let Some(piece) = pieces.get(take(&next_piece)) {
                LazyLock::force(piece);
            }
            loop {
                let i = take(&next_group);
                let Some(group) = streamed_groups.get(i) else { break };
                // If threads keep step, this is what the thread takes next.
                let following = streamed_groups.get(i + n_threads);
                self.multiply_group(group, following, blocks.iter().zip(pieces.chunks(held_groups.len())));
            }
        };
        if n_threads == 1 {
            work();
        } else {
            rayon::scope(|scope| {
                (1..n_threads).for_each(|_| scope.spawn(|_| work()));
                work();
            });
        }
        drop(pieces);
        HELD.set(buffer);
    }

    /// All tiles of a group of streamed panels: for each block of inner indices what is held there.
    fn multiply_group<'h, 'p: 'h, F: FnOnce() -> Packed<'p> + 'h>(
        &self,
        group: &Range<usize>,
        following: Option<&Range<usize>>,
        held: impl Iterator<Item = (&'h Range<usize>, &'h [LazyLock<Packed<'p>, F>])> + Clone,
    ) {
        let (held_side, streamed) = self.roles();
        let mut buffer = STREAMED.take();
        // What is converted next: this group over the next block; after the last, the next group over the first.
        let blocks = held.clone().map(|(block, _)| block);
        let next = blocks.clone().skip(1).map(|block| Some((group, block))).chain([following.zip(blocks.clone().next())]);
        for ((block, held), next) in held.zip(next) {
            let n_lines = group.len() * streamed.panel_lines(block);
            buffer = lines_of(buffer, n_lines);
            let packed = streamed.pack(self.processor, group, block, &mut buffer[..n_lines]);
            let mut next = next.map(|(panels, block)| streamed.place(panels, block));
            let n_tiles = group.len() * held_side.panels();
            let runs_a_tile = next.as_ref().map_or(0, |next| next.n_runs.div_ceil(n_tiles));
            for piece in held {
                let (a, b) = if self.holds_a() { (**piece, packed) } else { (packed, **piece) };
                for b in b.panels() {
                    for a in a.panels() {
                        if let Some(next) = &mut next {
                            next.prefetch(runs_a_tile);
                        }
                        self.multiply_tile(a, b, block);
                    }
                }
            }
        }
        STREAMED.set(buffer);
    }

    fn multiply_tile(&self, (a_panel, a): (usize, &[Line]), (b_panel, b): (usize, &[Line]), block: &Range<usize>) {
        let (rows, columns) = (self.a.vectors_of(a_panel..a_panel + 1), self.b.vectors_of(b_panel..b_panel + 1));
        let tile = Tile {
            out: self.out.wrapping_add(rows.start * self.stride + columns.start),
            stride: self.stride,
            rows: rows.len(),
            columns: columns.len(),
            add: self.write == Write::Add || block.start > 0,
            factor: self.factor,
        };
        // SAFETY: the proof says that the processor has the instructions. `multiply` checked that the rows and columns of the operands lie
        // in `out`. No other thread writes this tile: its streamed panel is in one group, and one thread takes a group.
        unsafe { kernel::multiply_tile(a, b, &tile) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::check::{to_f32, values};
    use super::*;

    /// `a [m, k] · b [n, k]ᵀ` on `n_threads` threads.
    fn product(processor: Avx512Bf16, a: &[f32], b: &[f32], k: usize, n_threads: usize) -> Vec<f32> {
        let (m, n) = (a.len() / k, b.len() / k);
        let mut out = vec![f32::NAN; m * n];
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        let (a, b) = (Matrix::new(a, k), Matrix::new(b, k).transposed());
        pool.install(|| processor.multiply(&mut out, n, Write::Overwrite, 1.0, a, b));
        out
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let Some(processor) = Avx512Bf16::detect() else { return };
        for (m, n, k) in [(448, 100, 600), (100, 448, 600), (250, 250, 1000), (3, 3000, 1000)] {
            let (a, b) = (to_f32(&values(1, m * k)), to_f32(&values(2, n * k)));
            assert!(m * n * k > MIN_PARALLEL, "threads take part");
            let one = product(processor, &a, &b, k, 1);
            for n_threads in [2, 3, 8] {
                assert!(product(processor, &a, &b, k, n_threads) == one, "{m} x {n} x {k} on {n_threads} threads");
            }
        }
    }

    #[test]
    fn an_element_depends_on_its_row_its_column_and_the_inner_dimension_alone() {
        let Some(processor) = Avx512Bf16::detect() else { return };
        let (m, n) = (100, 150);
        for k in [1, 33, 384, 385, 1000] {
            let (a, b) = (to_f32(&values(1, m * k)), to_f32(&values(2, n * k)));
            let all = product(processor, &a, &b, k, 2);
            for (i, rows) in [(0, 1), (13, 2), (50, 17), (99, 1), (0, 99)] {
                let some = product(processor, &a[i * k..(i + rows) * k], &b, k, 1);
                assert!(some == all[i * n..(i + rows) * n], "rows {i} to {} of inner dimension {k}", i + rows);
            }
            let column = product(processor, &a, &b[77 * k..78 * k], k, 1);
            assert!(all.chunks(n).map(|row| row[77]).eq(column), "inner dimension {k}");
        }
    }

    #[test]
    fn what_does_not_fit_the_buffer_is_taken_in_parts() {
        let Some(processor) = Avx512Bf16::detect() else { return };
        for (m, n, k) in [(2100, 2200, 3), (1100, 1150, 3400)] {
            let fits = m.min(n) <= MAX_HELD && m.div_ceil(ROWS) * k / 2 <= MAX_HELD_LINES;
            assert!(!fits, "{m} x {n} x {k} needs parts");
            let (a, b) = (to_f32(&values(1, m * k)), to_f32(&values(2, n * k)));
            let all = product(processor, &a, &b, k, 2);
            for (i, j) in [(0, 0), (m - 1, n - 1), (m / 2, 31), (13, n / 3), (m - 60, n - 60)] {
                // Of one row and one column everything fits.
                let alone = product(processor, &a[i * k..(i + 1) * k], &b[j * k..(j + 1) * k], k, 1);
                assert_eq!(all[i * n + j], alone[0], "({i}, {j})");
            }
        }
    }

    #[test]
    fn groups_cover_all_panels_evenly() {
        for (n_panels, most, n_threads) in [(1, 8, 2), (18, 8, 2), (30, 8, 2), (96, 8, 1), (69, 16, 3), (7, 16, 8)] {
            let groups = groups(3..3 + n_panels, most, n_threads);
            assert!(groups.iter().cloned().flatten().eq(3..3 + n_panels));
            let (first, last) = (groups[0].len(), groups[groups.len() - 1].len());
            assert!(first <= most && (last == first || last + 1 == first), "{groups:?}");
        }
    }
}
