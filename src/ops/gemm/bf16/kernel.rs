//! The micro-kernel: one tile of the result, 14 x 32 values in 28 of the 32 vector registers, from two packed panels.
//!
//! `vdpbf16ps` adds the products of 16 pairs of bf16 to 16 f32 sums. A turn of the inner loop takes one pair of inner indices: two vectors
//! of B's columns, and A's 14 pairs one after the other, each broadcast to a vector. A sum is one chain in the order of the inner index,
//! whatever the tile's size, so an element's bits depend on its row, its column and the inner dimension alone.

use std::arch::x86_64::*;

/// Rows of A in a panel.
pub const ROWS: usize = 14;
/// Columns of B in a panel: two vectors of 16 f32 sums.
pub const COLUMNS: usize = 32;
/// Rows of A or columns of B that one line holds.
pub const LANES: usize = 16;

/// One cache line, one register: for each of 16 rows of A or columns of B its bf16 values at two neighbouring inner indices, the first in
/// the low half.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line(pub [u32; LANES]);

impl Line {
    pub const ZERO: Line = Line([0; LANES]);

    #[inline(always)]
    fn load(self) -> __m512bh {
        // SAFETY: both are 64 bytes for which every bit pattern is valid.
        unsafe { std::mem::transmute(self) }
    }
}

/// Asks the second-level cache for a line of f32 values that will be read soon. The address may be any.
#[inline(always)]
pub fn prefetch(address: *const f32) {
    // SAFETY: a prefetch reads nothing that a program could see, at whatever address; every x86-64 processor has it.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
}

/// Where a tile goes, and how.
#[derive(Clone, Copy)]
pub struct Tile {
    /// Element (0, 0); rows are `stride` values apart.
    pub out: *mut f32,
    pub stride: usize,
    pub rows: usize,
    pub columns: usize,
    /// Adds to what is there instead of overwriting it.
    pub add: bool,
    pub factor: f32,
}

/// `out (+)= factor * a · b` for one tile; `a` has one line and `b` two for each pair of inner indices.
///
/// # Safety
///
/// The processor has AVX-512 F, BW and BF16. `tile` has 1 to [`ROWS`] rows and 1 to [`COLUMNS`] columns; `out` is valid for reading and
/// writing all of them, and nobody else reads or writes them meanwhile.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub unsafe fn multiply_tile(a: &[Line], b: &[Line], tile: &Tile) {
    // Lower tiles at the edge have kernels of their own: no arithmetic on rows that do not exist.
    type Kernel = unsafe fn(&[Line], &[Line], &Tile);
    const KERNELS: [Kernel; ROWS] = [
        multiply_rows::<1>,
        multiply_rows::<2>,
        multiply_rows::<3>,
        multiply_rows::<4>,
        multiply_rows::<5>,
        multiply_rows::<6>,
        multiply_rows::<7>,
        multiply_rows::<8>,
        multiply_rows::<9>,
        multiply_rows::<10>,
        multiply_rows::<11>,
        multiply_rows::<12>,
        multiply_rows::<13>,
        multiply_rows::<14>,
    ];
    // SAFETY: the kernel is the one for the tile's rows; the rest is this function's own contract.
    unsafe { KERNELS[tile.rows - 1](a, b, tile) }
}

/// # Safety
///
/// As [`multiply_tile`]; the tile has `R` rows.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn multiply_rows<const R: usize>(a: &[Line], b: &[Line], tile: &Tile) {
    let row = |r: usize| tile.out.wrapping_add(r * tile.stride);
    for r in 0..R {
        // The result arrives while the sums are made.
        prefetch_now(row(r).cast());
        prefetch_now(row(r).wrapping_add(LANES).cast());
    }
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    for (a, [b_0, b_1]) in a.iter().zip(b.as_chunks::<2>().0) {
        // Panels of A pass by, one behind the other in memory; that of B stays for a while.
        prefetch_now(std::ptr::from_ref(a).wrapping_add(LINES_AHEAD).cast());
        let (b_0, b_1) = (b_0.load(), b_1.load());
        for (r, sums) in sums.iter_mut().enumerate() {
            let a = Line([a.0[r]; LANES]).load();
            sums[0] = _mm512_dpbf16_ps(sums[0], a, b_0);
            sums[1] = _mm512_dpbf16_ps(sums[1], a, b_1);
        }
    }
    let factor = _mm512_set1_ps(tile.factor);
    let columns = u32::MAX >> (COLUMNS - tile.columns);
    let masks = [columns as __mmask16, (columns >> LANES) as __mmask16];
    for (r, sums) in sums.into_iter().enumerate() {
        for (half, sum) in sums.into_iter().enumerate() {
            let out = row(r).wrapping_add(half * LANES);
            // SAFETY: the masks cover the tile's columns, which the caller lends; lanes that are masked out are not touched.
            unsafe {
                let value = if tile.add {
                    _mm512_fmadd_ps(factor, sum, _mm512_maskz_loadu_ps(masks[half], out))
                } else {
                    _mm512_mul_ps(factor, sum)
                };
                _mm512_mask_storeu_ps(out, masks[half], value);
            }
        }
    }
}

/// Turns of the inner loop, 14 cycles each, that a line of A is asked for beforehand.
const LINES_AHEAD: usize = 16;

/// Asks the first-level cache for a line.
#[inline(always)]
fn prefetch_now(address: *const i8) {
    // SAFETY: as in `prefetch`.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address) }
}
