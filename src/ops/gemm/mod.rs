//! Matrix products on the CPU: the `gemm` crate behind a safe, bounds-checked front.
//!
//! `gemm` splits rows and columns over threads, never the inner dimension, so a result does not depend on the number of threads. The order
//! in which it sums depends on the inner dimension alone, except for very small products, which [`stable_rows`] avoids.

use super::Real;
use crate::config::ComputeDtype;
use rayon::prelude::*;

/// A matrix in a slice: element (i, j) is `data[i * row_stride + j * column_stride]`.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// Rows of `columns` values, `stride` values apart.
    pub fn strided(data: &'a [T], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(
            columns <= stride && (rows == 0 || (rows - 1) * stride + columns <= data.len()),
            "a {rows} x {columns} matrix of stride {stride} does not fit {} values",
            data.len()
        );
        Self { data, rows, columns, row_stride: stride, column_stride: 1 }
    }

    /// Rows of `columns` values, one behind the other.
    pub fn new(data: &'a [T], columns: usize) -> Self {
        Self::strided(data, data.len() / columns, columns, columns)
    }

    pub fn transposed(self) -> Self {
        Self { rows: self.columns, columns: self.rows, row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }
}

/// What happens to the values that the destination already has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    Overwrite,
    Add,
}

/// Threads of the surrounding rayon pool, or this thread only (inside a parallel loop).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    Pool,
    One,
}

/// `out (+)= factor * a · b`, with `out` in rows `stride` values apart.
pub fn multiply<T: Real>(out: &mut [T], stride: usize, write: Write, factor: T, a: Matrix<T>, b: Matrix<T>, threads: Threads) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    assert_eq!(k, b.rows, "inner dimensions of {m} x {k} and {} x {n}", b.rows);
    if m == 0 || n == 0 {
        return;
    }
    assert!(n <= stride && (m - 1) * stride + n <= out.len(), "a {m} x {n} result of stride {stride} does not fit {} values", out.len());
    let parallelism = match threads {
        Threads::Pool if rayon::current_num_threads() > 1 => gemm::Parallelism::Rayon(0),
        _ => gemm::Parallelism::None,
    };
    // SAFETY: both matrices were checked against their slices when they were made, `out` just above; `out` is borrowed mutably, so it
    // overlaps neither. `T` is f32 or f64, which `gemm` supports.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride as isize,
            write == Write::Add,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            T::ONE,
            factor,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// `out (+)= factor * a · b` on the surrounding pool, computed in `compute`: with bf16 both inputs are rounded to bf16 (to nearest even) and
/// products are accumulated in f32, as tensor cores and autocast do. The values in memory stay f32.
pub fn multiply_in(compute: ComputeDtype, out: &mut [f32], stride: usize, write: Write, factor: f32, a: Matrix<f32>, b: Matrix<f32>) {
    match compute {
        ComputeDtype::F32 => multiply(out, stride, write, factor, a, b, Threads::Pool),
        ComputeDtype::Bf16 => multiply_rounded(out, stride, write, factor, a, b),
    }
}

/// A bf16 product in f32 arithmetic, of rounded copies.
fn multiply_rounded(out: &mut [f32], stride: usize, write: Write, factor: f32, a: Matrix<f32>, b: Matrix<f32>) {
    let rounded = |values: &[f32]| -> Vec<f32> { values.par_iter().map(|&v| half::bf16::from_f32(v).to_f32()).collect() };
    let (a_data, b_data) = (rounded(a.data), rounded(b.data));
    multiply(out, stride, write, factor, Matrix { data: &a_data, ..a }, Matrix { data: &b_data, ..b }, Threads::Pool);
}

/// The least number of rows for which a row's result of [`multiply_in`] does not depend on how many rows are computed beside it.
///
/// `gemm` treats one row, products of at most 256 values, and (64 x 64 at most) long inner dimensions in ways of their own.
pub fn stable_rows(_compute: ComputeDtype, columns: usize, inner: usize) -> usize {
    if columns <= 64 && inner > 512 { 65 } else { 256 / columns.max(1) + 2 }
}

#[cfg(test)]
mod tests {
    use super::super::check::values;
    use super::*;

    fn slow(a: Matrix<f64>, b: Matrix<f64>) -> Vec<f64> {
        let at = |m: &Matrix<f64>, i: usize, j: usize| m.data[i * m.row_stride + j * m.column_stride];
        let dot = |i, j| (0..a.columns).map(|l| at(&a, i, l) * at(&b, l, j)).sum();
        (0..a.rows).flat_map(|i| (0..b.columns).map(move |j| (i, j))).map(|(i, j)| dot(i, j)).collect()
    }

    #[test]
    fn odd_shapes_strides_and_transposes() {
        for (m, n, k) in [(1, 1, 1), (3, 5, 7), (17, 33, 65), (64, 2, 130), (5, 129, 3)] {
            let (a, b) = (values(1, m * (k + 2)), values(2, n * k));
            let (a, b) = (Matrix::strided(&a, m, k, k + 2), Matrix::new(&b, k).transposed());
            let expected = slow(a, b);
            let mut out = vec![1.0; m * (n + 3)];
            multiply(&mut out, n + 3, Write::Add, 2.0, a, b, Threads::Pool);
            for i in 0..m {
                for j in 0..n + 3 {
                    let want = if j < n { 1.0 + 2.0 * expected[i * n + j] } else { 1.0 };
                    assert!((out[i * (n + 3) + j] - want).abs() < 1e-12);
                }
            }
            multiply(&mut out, n + 3, Write::Overwrite, 1.0, a, b, Threads::One);
            assert!((out[0] - expected[0]).abs() < 1e-12);
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours() {
        for (n, k) in [(4, 33), (48, 600), (64, 2048), (65, 100), (300, 1030), (1000, 64)] {
            let at_least = stable_rows(ComputeDtype::F32, n, k);
            let x: Vec<f32> = values(3, (at_least + 200) * k).iter().map(|&v| v as f32).collect();
            let w: Vec<f32> = values(4, n * k).iter().map(|&v| v as f32).collect();
            let run = |rows: usize| {
                let mut out = vec![0.0; rows * n];
                multiply(
                    &mut out,
                    n,
                    Write::Overwrite,
                    1.0,
                    Matrix::new(&x[..rows * k], k),
                    Matrix::new(&w, k).transposed(),
                    Threads::Pool,
                );
                out
            };
            let all = run(at_least + 200);
            for rows in [at_least, at_least + 1, at_least + 63, at_least + 130] {
                assert!(run(rows) == all[..rows * n], "{rows} rows of {n} columns, inner {k}");
            }
        }
    }
}
