//! Packing: f32 values of a matrix, rounded to bf16 and laid out as the micro-kernel reads them.
//!
//! Rounding is to nearest even, and NaN and infinities stay what they are, as with `half::bf16::from_f32`; but a value below 2^-126 becomes
//! zero, which is what the product would make of it anyway.

use super::super::Matrix;
use super::kernel::{LANES, Line, prefetch};
use std::arch::x86_64::*;
use std::ops::Range;

/// Inner indices that become the pairs of one register.
const PIECE: usize = 2 * LANES;
/// How far ahead of the conversion memory is asked for values, in inner indices.
const VALUES_AHEAD: usize = 4 * PIECE;
const ROWS_AHEAD: usize = 16;

/// Packs the inner indices `inner` of some panels of `source`, a matrix of one vector (row of A, column of B) a row: `WIDTH` vectors a
/// panel from vector `first` on, a panel for each `panel_lines` of `out`. A panel holds, for each pair of inner indices, one line for
/// every 16 vectors. Vectors and inner indices that do not exist become zero.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub fn pack<const WIDTH: usize>(source: &Matrix<f32>, first: usize, inner: &Range<usize>, out: &mut [Line], panel_lines: usize) {
    if source.column_stride == 1 {
        for (panel, out) in out.chunks_mut(panel_lines).enumerate() {
            pack_contiguous_vectors::<WIDTH>(source, first + panel * WIDTH, inner, out);
        }
    } else {
        assert_eq!(source.row_stride, 1, "a matrix is contiguous in one direction");
        pack_side_by_side::<WIDTH>(source, first, inner, out, panel_lines);
    }
}

/// One panel of vectors that lie in one piece each: 32 values of a vector become the 16 pairs of one lane, and 16 lanes are transposed.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack_contiguous_vectors<const WIDTH: usize>(source: &Matrix<f32>, first: usize, inner: &Range<usize>, out: &mut [Line]) {
    let lines = WIDTH.div_ceil(LANES);
    for strip in 0..lines {
        let start = (first + strip * LANES).min(source.rows);
        let vectors = start..(start + WIDTH.min(LANES)).min(source.rows);
        for (out, index) in out.chunks_mut(LANES * lines).zip(inner.clone().step_by(PIECE)) {
            let n = PIECE.min(inner.end - index);
            if n == PIECE && vectors.len() == WIDTH.min(LANES) {
                pack_piece::<WIDTH>(&source.data[start * source.row_stride + index..], source.row_stride, &mut out[strip..]);
                continue;
            }
            let mut lanes = [_mm512_setzero_si512(); LANES];
            for (lane, vector) in lanes.iter_mut().zip(vectors.clone()) {
                let (low, high) = source.data[vector * source.row_stride + index..][..n].split_at(n.min(LANES));
                *lane = rounded(load(low), load(high));
            }
            for (line, pairs) in out[strip..].iter_mut().step_by(lines).zip(transposed(lanes)).take(n.div_ceil(2)) {
                *line = line_of(pairs);
            }
        }
    }
}

/// The common case of the above without a detour through memory: whole lanes, all of them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack_piece<const WIDTH: usize>(values: &[f32], stride: usize, out: &mut [Line]) {
    let (lines, n_vectors) = (WIDTH.div_ceil(LANES), WIDTH.min(LANES));
    assert!(values.len() >= (n_vectors - 1) * stride + PIECE && out.len() > (LANES - 1) * lines);
    let mut lanes = [_mm512_setzero_si512(); LANES];
    for (i, lane) in lanes.iter_mut().enumerate().take(n_vectors) {
        // SAFETY: the assertion covers the last vector, and with it those before.
        unsafe {
            let vector = values.as_ptr().add(i * stride);
            prefetch(vector.wrapping_add(VALUES_AHEAD));
            prefetch(vector.wrapping_add(VALUES_AHEAD + LANES));
            *lane = rounded(_mm512_loadu_ps(vector), _mm512_loadu_ps(vector.add(LANES)));
        }
    }
    for (i, pairs) in transposed(lanes).iter().enumerate() {
        out[i * lines] = line_of(*pairs);
    }
}

/// Panels of vectors that lie side by side: 16 values at one inner index are interleaved with the 16 at the next. All panels advance
/// together, so that memory is read in long runs.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack_side_by_side<const WIDTH: usize>(source: &Matrix<f32>, first: usize, inner: &Range<usize>, out: &mut [Line], panel_lines: usize) {
    // Places of 16 bits in a pair of rounded vectors: the i-th of the first beside the i-th of the second.
    let places: [u32; LANES] = std::array::from_fn(|lane| lane as u32 | ((lane + LANES) as u32) << 16);
    let interleave = vector_of(Line(places));
    let lines = WIDTH.div_ceil(LANES);
    let n_vectors = (out.len() / panel_lines * WIDTH).min(source.rows - first);
    for (pair, index) in inner.clone().step_by(2).enumerate() {
        let row = |index: usize| &source.data[index * source.column_stride + first..][..n_vectors];
        let (low, high) = (row(index), if index + 1 < inner.end { row(index + 1) } else { &[] });
        for ahead in [ROWS_AHEAD, ROWS_AHEAD + 1] {
            let row = low.as_ptr().wrapping_add(ahead * source.column_stride);
            (0..n_vectors).step_by(LANES).for_each(|i| prefetch(row.wrapping_add(i)));
        }
        for (panel, out) in out.chunks_mut(panel_lines).enumerate() {
            let vectors = panel * WIDTH..((panel + 1) * WIDTH).min(n_vectors);
            let out = &mut out[pair * lines..][..lines];
            let (low, high) = (&low[vectors.clone()], high.get(vectors).unwrap_or_default());
            let is_whole = low.len() == WIDTH && high.len() == WIDTH;
            for (strip, line) in out.iter_mut().enumerate() {
                let lanes = strip * LANES..((strip + 1) * LANES).min(WIDTH);
                // Where all is there, masks are constants.
                let pair = if is_whole {
                    rounded(load(&low[lanes.clone()]), load(&high[lanes]))
                } else {
                    rounded(load(part(low, lanes.clone())), load(part(high, lanes)))
                };
                *line = line_of(_mm512_permutexvar_epi16(interleave, pair));
            }
        }
    }
}

/// What there is of a range.
#[inline(always)]
fn part(values: &[f32], range: Range<usize>) -> &[f32] {
    &values[range.start.min(values.len())..range.end.min(values.len())]
}

/// Up to 16 values, then zeros.
#[inline]
#[target_feature(enable = "avx512f")]
fn load(values: &[f32]) -> __m512 {
    assert!(values.len() <= LANES);
    let mask = ((1u32 << values.len()) - 1) as __mmask16;
    // SAFETY: the mask covers the slice; lanes that are masked out are not read.
    unsafe { _mm512_maskz_loadu_ps(mask, values.as_ptr()) }
}

/// 32 values in bf16, those of `low` in the lower half.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn rounded(low: __m512, high: __m512) -> __m512i {
    // SAFETY: both are 64 bytes for which every bit pattern is valid.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) }
}

#[inline(always)]
fn line_of(vector: __m512i) -> Line {
    // SAFETY: both are 64 bytes for which every bit pattern is valid.
    unsafe { std::mem::transmute(vector) }
}

#[inline(always)]
fn vector_of(line: Line) -> __m512i {
    // SAFETY: both are 64 bytes for which every bit pattern is valid.
    unsafe { std::mem::transmute(line) }
}

/// Column i of the 16 x 16 matrix whose rows are given becomes row i.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(rows: [__m512i; LANES]) -> [__m512i; LANES] {
    let mut pairs = rows;
    for i in (0..LANES).step_by(2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    // `fours[g + c]` has in its quarter q column 4 q + c of the rows g, g + 1, g + 2, g + 3.
    let mut fours = rows;
    for g in (0..LANES).step_by(4) {
        fours[g] = _mm512_unpacklo_epi64(pairs[g], pairs[g + 2]);
        fours[g + 1] = _mm512_unpackhi_epi64(pairs[g], pairs[g + 2]);
        fours[g + 2] = _mm512_unpacklo_epi64(pairs[g + 1], pairs[g + 3]);
        fours[g + 3] = _mm512_unpackhi_epi64(pairs[g + 1], pairs[g + 3]);
    }
    // 0x88 takes the quarters 0 and 2 of both operands, 0xdd the quarters 1 and 3.
    let mut columns = rows;
    for c in 0..4 {
        let (upper, lower) = ([fours[c], fours[4 + c]], [fours[8 + c], fours[12 + c]]);
        let even = [_mm512_shuffle_i32x4::<0x88>(upper[0], upper[1]), _mm512_shuffle_i32x4::<0x88>(lower[0], lower[1])];
        let odd = [_mm512_shuffle_i32x4::<0xdd>(upper[0], upper[1]), _mm512_shuffle_i32x4::<0xdd>(lower[0], lower[1])];
        columns[c] = _mm512_shuffle_i32x4::<0x88>(even[0], even[1]);
        columns[4 + c] = _mm512_shuffle_i32x4::<0x88>(odd[0], odd[1]);
        columns[8 + c] = _mm512_shuffle_i32x4::<0xdd>(even[0], even[1]);
        columns[12 + c] = _mm512_shuffle_i32x4::<0xdd>(odd[0], odd[1]);
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::super::super::super::check::{to_f32, values};
    use super::super::{Avx512Bf16, Side};
    use super::*;
    use half::bf16;

    fn packed(vectors: Matrix<f32>, width: usize, inner: Range<usize>) -> Option<Vec<Line>> {
        let side = Side { vectors, width };
        // What is there beforehand must not shine through.
        let mut lines = vec![Line([u32::MAX; LANES]); side.panels() * side.panel_lines(&inner)];
        side.pack(Avx512Bf16::detect()?, &(0..side.panels()), &inner, &mut lines);
        Some(lines)
    }

    /// The same by one value at a time.
    fn expected(values: &[f32], k: usize, width: usize, inner: Range<usize>) -> Vec<Line> {
        let rounded = |vector: usize, index: usize| {
            let exists = (vector + 1) * k <= values.len() && index < inner.end;
            let value = if exists { values[vector * k + index] } else { 0.0 };
            u32::from(bf16::from_f32(if value.is_subnormal() { 0.0f32.copysign(value) } else { value }).to_bits())
        };
        let (n_panels, strips) = ((values.len() / k).div_ceil(width), width.div_ceil(LANES));
        let mut lines = Vec::new();
        for panel in 0..n_panels {
            for index in inner.clone().step_by(2) {
                for strip in 0..strips {
                    lines.push(Line(std::array::from_fn(|lane| {
                        let vector = panel * width + strip * LANES + lane;
                        let is_padding = strip * LANES + lane >= width;
                        if is_padding { 0 } else { rounded(vector, index) | rounded(vector, index + 1) << 16 }
                    })));
                }
            }
        }
        lines
    }

    #[test]
    fn every_shape_is_laid_out_and_padded_with_zeros() {
        for n_vectors in [1, 13, 14, 15, 16, 31, 32, 33, 70] {
            for (k, inner) in [(1, 0..1), (2, 0..2), (31, 0..31), (32, 0..32), (70, 0..70), (70, 32..69), (130, 64..130)] {
                let vectors = to_f32(&values(7, n_vectors * k));
                let side_by_side: Vec<f32> = (0..k).flat_map(|i| (0..n_vectors).map(move |v| v * k + i)).map(|at| vectors[at]).collect();
                for width in [14, 32] {
                    let Some(lines) = packed(Matrix::new(&vectors, k), width, inner.clone()) else { return };
                    let expected = expected(&vectors, k, width, inner.clone());
                    assert!(lines == expected, "{n_vectors} vectors, {inner:?} of {k}, panels of {width}");
                    let lines = packed(Matrix::new(&side_by_side, n_vectors).transposed(), width, inner.clone());
                    assert!(lines == Some(expected), "{n_vectors} vectors side by side, {inner:?} of {k}, panels of {width}");
                }
            }
        }
    }

    /// All exponents and signs, with mantissas around every tie; NaN and infinities among them.
    #[test]
    fn rounding_is_that_of_half() {
        let mantissas = [0, 1, 0x7fff, 0x8000, 0x8001, 0x1_7fff, 0x1_8000, 0x1_8001, 0x3f_ffff, 0x40_0000, 0x7f_7fff, 0x7f_8000, 0x7f_ffff];
        let bits = (0..=0x1ff).flat_map(|sign_exponent: u32| mantissas.map(|mantissa| sign_exponent << 23 | mantissa));
        let values: Vec<f32> = bits.map(f32::from_bits).collect();
        let k = values.len();
        let Some(lines) = packed(Matrix::new(&values, k), 14, 0..k) else { return };
        assert!(lines == expected(&values, k, 14, 0..k));
    }
}
