//! A low-rank term beside a linear map (LoRA, Hu et al., arXiv 2106.09685), and its gradients.
//!
//! ```text
//! u = d(x) Aᵀ                     [N, R]: projections that read the same input are one product, R = their number x rank
//! y_j += s u_j B_jᵀ               y_j: the columns of projection j
//! du_j = s dy_j B_j               dA += duᵀ d(x)      dB_j += s dy_jᵀ u_j      dx += d(du A)
//! ```
//!
//! `d` is dropout, the identity without it. `u` is made again in the backward: it costs 1 part in `out / rank` of the map, and keeps nothing.

mod on_gpu;

use super::dropout::Dropout;
use super::gemm::{Matrix, Write, multiply_in, multiply_rows_in, stable_rows};
use super::gpu;
use super::linear::product;
use super::{Scratch, Values, read, update};
use crate::config::ComputeDtype;
use anyhow::Result;
use candle_core::Tensor;
use rayon::prelude::*;
use std::ops::{Deref, Range};

/// One projection's part: the columns of y that it adds to, `B [columns, rank]`, and B's gradient.
#[derive(Debug)]
pub struct Band {
    pub columns: Range<usize>,
    pub b: Tensor,
    pub b_gradient: Option<Tensor>,
}

/// The term of one fused linear map.
#[derive(Debug, Clone, Copy)]
pub struct LowRank<'a> {
    /// `[R, in]`, the projections' A one below the other.
    pub a: &'a Tensor,
    /// In the order of A's rows.
    pub bands: &'a [Band],
    pub scale: f32,
    pub compute: ComputeDtype,
}

impl LowRank<'_> {
    /// Adds the term of `x [N, in]` to `y [N, out]`. A row's result does not depend on the other rows.
    pub fn forward(&self, x: &Tensor, y: &Tensor, dropout: Option<Dropout>) -> Result<()> {
        if gpu::has(x) {
            return self.forward_on_gpu(x, y, dropout);
        }
        let (n_in, n_out) = (x.dim(1)?, y.dim(1)?);
        let u = self.inner(&Input::new(x, dropout)?, n_in)?;
        update(y, |y: &mut [f32]| self.bands.iter().enumerate().try_for_each(|(j, band)| self.add_band(&u, j, band, y, n_out)))?
    }

    /// As [`LowRank::forward`] without dropout, for the few rows of decoding.
    pub fn forward_few(&self, x: &Tensor, y: &Tensor) -> Result<()> {
        if gpu::has(x) {
            return self.forward_on_gpu(x, y, None);
        }
        let ((n_rows, n_in), n_out, n_inner) = (x.dims2()?, y.dim(1)?, self.a.dim(0)?);
        let mut u = Scratch::new(n_rows * n_inner);
        multiply_rows_in(self.compute, &read(x)?, &read(self.a)?, n_in, &mut u);
        u.iter_mut().for_each(|u| *u *= self.scale);
        let mut first = 0;
        for band in self.bands {
            let (n_columns, rank) = band.b.dims2()?;
            let u_j: Vec<f32> = u.chunks(n_inner).flat_map(|u| &u[first..first + rank]).copied().collect();
            let mut y_j = Scratch::new(n_rows * n_columns);
            multiply_rows_in(self.compute, &u_j, &read(&band.b)?, rank, &mut y_j);
            update(y, |y: &mut [f32]| {
                for (y, y_j) in y.chunks_mut(n_out).zip(y_j.chunks(n_columns)) {
                    y[band.columns.clone()].iter_mut().zip(y_j).for_each(|(y, term)| *y += term);
                }
            })?;
            first += rank;
        }
        Ok(())
    }

    /// `y_j += s u_j B_jᵀ`
    fn add_band(&self, u: &[f32], j: usize, band: &Band, y: &mut [f32], n_out: usize) -> Result<()> {
        let (n_columns, rank) = band.b.dims2()?;
        let b = read(&band.b)?;
        let b = Matrix::new(&b, rank).transposed();
        let (n_rows, n_stable) = (y.len() / n_out, stable_rows(self.compute, n_columns, rank));
        if n_rows >= n_stable {
            let u_j = self.columns_of(u, j, rank);
            multiply_in(self.compute, &mut y[band.columns.start..], n_out, Write::Add, 1.0, u_j, b);
            return Ok(());
        }
        // Few rows are made up to enough.
        let width = u.len() / n_rows;
        let (mut u_j, mut y_j) = (vec![0.0; n_stable * rank], vec![0.0; n_stable * n_columns]);
        u_j.chunks_mut(rank).zip(u.chunks(width)).for_each(|(padded, u)| padded.copy_from_slice(&u[j * rank..][..rank]));
        y_j.chunks_mut(n_columns).zip(y.chunks(n_out)).for_each(|(padded, y)| padded.copy_from_slice(&y[band.columns.clone()]));
        multiply_in(self.compute, &mut y_j, n_columns, Write::Add, 1.0, Matrix::new(&u_j, rank), b);
        y.chunks_mut(n_out).zip(y_j.chunks(n_columns)).for_each(|(y, sum)| y[band.columns.clone()].copy_from_slice(sum));
        Ok(())
    }

    /// Adds the term's part of `dx [N, in]`, from `dy [N, out]`.
    pub fn backward_input(&self, dy: &Tensor, dx: &Tensor, dropout: Option<Dropout>) -> Result<()> {
        if gpu::has(dy) {
            return self.backward_input_on_gpu(dy, dx, dropout);
        }
        let (dy_values, n_in) = (read(dy)?, dx.dim(1)?);
        let du = self.inner_gradient(&dy_values, dy.dim(1)?)?;
        let a = read(self.a)?;
        let (du, a) = (Matrix::new(&du, self.a.dim(0)?), Matrix::new(&a, n_in));
        let Some(dropout) = dropout else {
            return update(dx, |dx| multiply_in(self.compute, dx, n_in, Write::Add, 1.0, du, a));
        };
        let mut term = Scratch::new(dx.elem_count());
        multiply_in(self.compute, &mut term, n_in, Write::Overwrite, 1.0, du, a);
        dropout.apply(&mut term, n_in);
        update(dx, |dx: &mut [f32]| {
            dx.par_chunks_mut(n_in).zip(term.par_chunks(n_in)).for_each(|(dx, term)| dx.iter_mut().zip(term).for_each(|(a, b)| *a += b));
        })
    }

    /// Adds to the gradients of A and of every B; `x` is what the forward saw.
    pub fn backward_weight(&self, x: &Tensor, dy: &Tensor, a_gradient: &Tensor, dropout: Option<Dropout>) -> Result<()> {
        if gpu::has(dy) {
            return self.backward_weight_on_gpu(x, dy, a_gradient, dropout);
        }
        let (n_in, n_out, n_inner) = (x.dim(1)?, dy.dim(1)?, self.a.dim(0)?);
        let x = Input::new(x, dropout)?;
        let dy = read(dy)?;
        let u = self.inner(&x, n_in)?;
        for (j, band) in self.bands.iter().enumerate() {
            let Some(gradient) = &band.b_gradient else { continue };
            let rank = band.b.dim(1)?;
            let dy_j = Matrix::strided(&dy[band.columns.start..], dy.len() / n_out, band.columns.len(), n_out);
            // `u` holds s already.
            let u_j = self.columns_of(&u, j, rank);
            update(gradient, |out| multiply_in(self.compute, out, rank, Write::Add, 1.0, dy_j.transposed(), u_j))?;
        }
        let du = self.inner_gradient(&dy, n_out)?;
        update(a_gradient, |out| {
            multiply_in(self.compute, out, n_in, Write::Add, 1.0, Matrix::new(&du, n_inner).transposed(), Matrix::new(&x, n_in));
        })
    }

    /// `s u`
    fn inner(&self, x: &[f32], n_in: usize) -> Result<Scratch> {
        let mut u = product(x, &read(self.a)?, n_in, self.compute);
        u.iter_mut().for_each(|u| *u *= self.scale);
        Ok(u)
    }

    /// `du [N, R]`
    fn inner_gradient(&self, dy: &[f32], n_out: usize) -> Result<Scratch> {
        let (n_rows, n_inner) = (dy.len() / n_out, self.a.dim(0)?);
        let mut du = Scratch::new(n_rows * n_inner);
        for (j, band) in self.bands.iter().enumerate() {
            let (rank, b) = (band.b.dim(1)?, read(&band.b)?);
            let dy_j = Matrix::strided(&dy[band.columns.start..], n_rows, band.columns.len(), n_out);
            multiply_in(self.compute, &mut du[j * rank..], n_inner, Write::Overwrite, self.scale, dy_j, Matrix::new(&b, rank));
        }
        Ok(du)
    }

    fn columns_of<'u>(&self, u: &'u [f32], j: usize, rank: usize) -> Matrix<'u, f32> {
        let width = self.bands.len() * rank;
        Matrix::strided(&u[j * rank..], u.len() / width, rank, width)
    }
}

/// `weight [out, in] += scale · b [out, rank] · a [rank, in]`, in f32: what an adapter's projection comes to when it is merged.
pub fn merge(weight: &Tensor, a: &Tensor, b: &Tensor, scale: f32) -> Result<()> {
    let (rank, n_in) = a.dims2()?;
    let (a, b) = (read(a)?, read(b)?);
    update(weight, |out| multiply_in(ComputeDtype::F32, out, n_in, Write::Add, scale, Matrix::new(&b, rank), Matrix::new(&a, n_in)))
}

/// `d(x)`
enum Input<'a> {
    Whole(Values<'a>),
    Masked(Scratch),
}

impl<'a> Input<'a> {
    fn new(x: &'a Tensor, dropout: Option<Dropout>) -> Result<Self> {
        let (values, width) = (read(x)?, x.dim(1)?);
        Ok(match dropout {
            None => Self::Whole(values),
            Some(dropout) => Self::Masked(dropout.masked(&values, width)),
        })
    }
}

impl Deref for Input<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Whole(values) => values,
            Self::Masked(values) => values,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::{gradient_of_f32, to_f32, values};
    use super::super::dropout::RowKeys;
    use super::super::{Buffer, tensor};
    use super::*;

    /// Two projections of 5 and 3 columns, of which a third, of 2 columns between them, has no term.
    const COLUMNS: [Range<usize>; 2] = [0..5, 7..10];
    const OUT: usize = 10;
    const IN: usize = 6;
    const RANK: usize = 2;
    const SCALE: f64 = 1.5;

    struct Case {
        n_rows: usize,
        a: Vec<f64>,
        b: [Vec<f64>; 2],
        x: Vec<f64>,
        dy: Vec<f64>,
        keys: RowKeys,
        probability: f64,
    }

    impl Case {
        fn new(n_rows: usize, probability: f64) -> Self {
            let b = [values(2, 5 * RANK), values(3, 3 * RANK)];
            let (a, x, dy) = (values(1, 2 * RANK * IN), values(4, n_rows * IN), values(5, n_rows * OUT));
            Self { n_rows, a, b, x, dy, keys: (0..n_rows as u64).collect::<Vec<_>>().into(), probability }
        }

        fn dropout(&self) -> Option<Dropout<'_>> {
            (self.probability > 0.0).then_some(Dropout { probability: self.probability, place: 8, row_keys: &self.keys })
        }

        /// <dy, term of x>, from the equation in f64.
        fn loss(&self, a: &[f64], b: [&[f64]; 2], x: &[f64]) -> f64 {
            let mut mask = vec![1.0f32; x.len()];
            if let Some(dropout) = self.dropout() {
                dropout.apply(&mut mask, IN);
            }
            let mut sum = 0.0;
            for row in 0..self.n_rows {
                for (j, columns) in COLUMNS.iter().enumerate() {
                    for (o, column) in columns.clone().enumerate() {
                        for k in 0..RANK {
                            let u: f64 =
                                (0..IN).map(|i| f64::from(mask[row * IN + i]) * x[row * IN + i] * a[(j * RANK + k) * IN + i]).sum();
                            sum += self.dy[row * OUT + column] * SCALE * u * b[j][o * RANK + k];
                        }
                    }
                }
            }
            sum
        }
    }

    fn f32_tensor(values: &[f64], shape: &[usize]) -> Tensor {
        tensor(to_f32(values), shape).unwrap()
    }

    fn bands(case: &Case) -> Vec<Band> {
        let band = |j: usize| Band {
            columns: COLUMNS[j].clone(),
            b: f32_tensor(&case.b[j], &[COLUMNS[j].len(), RANK]),
            b_gradient: Some(tensor(vec![0.0; COLUMNS[j].len() * RANK], &[COLUMNS[j].len(), RANK]).unwrap()),
        };
        vec![band(0), band(1)]
    }

    #[test]
    fn gradients_with_and_without_dropout_by_finite_differences() {
        for (n_rows, probability) in [(3, 0.0), (60, 0.0), (3, 0.4), (60, 0.4)] {
            let case = Case::new(n_rows, probability);
            let (bands, a) = (bands(&case), f32_tensor(&case.a, &[2 * RANK, IN]));
            let (x, dy) = (f32_tensor(&case.x, &[n_rows, IN]), f32_tensor(&case.dy, &[n_rows, OUT]));
            let term = LowRank { a: &a, bands: &bands, scale: SCALE as f32, compute: ComputeDtype::F32 };

            let y = Buffer::zeros(&[n_rows, OUT]).unwrap();
            term.forward(&x, &y, case.dropout()).unwrap();
            let loss: f64 = read(&y).unwrap().iter().zip(&case.dy).map(|(&y, dy)| f64::from(y) * dy).sum();
            let exact = case.loss(&case.a, [&case.b[0], &case.b[1]], &case.x);
            assert!((loss - exact).abs() < 1e-5 * n_rows as f64, "{loss} {exact}");

            let (dx, da) = (Buffer::zeros(&[n_rows, IN]).unwrap(), Buffer::zeros(&[2 * RANK, IN]).unwrap());
            term.backward_input(&dy, &dx, case.dropout()).unwrap();
            term.backward_weight(&x, &dy, &da, case.dropout()).unwrap();
            let [b0, b1] = &case.b;
            // Sums over 60 rows are larger, and so is what f32 leaves of them.
            let shrink = |values: Vec<f32>| values.into_iter().map(|v| v / n_rows as f32).collect::<Vec<_>>();
            let n = n_rows as f64;
            gradient_of_f32("dx", &case.x, &read(&dx).unwrap(), |x| case.loss(&case.a, [b0, b1], x));
            gradient_of_f32("dA", &case.a, &shrink(read(&da).unwrap().to_vec()), |a| case.loss(a, [b0, b1], &case.x) / n);
            let db = |j: usize| shrink(read(bands[j].b_gradient.as_ref().unwrap()).unwrap().to_vec());
            gradient_of_f32("dB_0", b0, &db(0), |b| case.loss(&case.a, [b, b1], &case.x) / n);
            gradient_of_f32("dB_1", b1, &db(1), |b| case.loss(&case.a, [b0, b], &case.x) / n);
        }
    }

    #[test]
    fn a_row_alone_equals_the_same_row_among_many_and_other_columns_stay() {
        let case = Case::new(90, 0.0);
        let (bands, a) = (bands(&case), f32_tensor(&case.a, &[2 * RANK, IN]));
        let x = f32_tensor(&case.x, &[90, IN]);
        for compute in [ComputeDtype::F32, ComputeDtype::Bf16] {
            let term = LowRank { a: &a, bands: &bands, scale: SCALE as f32, compute };
            let of = |x: &Tensor| {
                let y = tensor(vec![0.3; x.dim(0).unwrap() * OUT], &[x.dim(0).unwrap(), OUT]).unwrap();
                term.forward(x, &y, None).unwrap();
                y.to_vec2::<f32>().unwrap()
            };
            let all = of(&x);
            for row in [0, 41, 89] {
                assert_eq!(of(&x.narrow(0, row, 1).unwrap())[0], all[row], "{compute:?}");
            }
            assert!(all.iter().all(|row| row[5..7] == [0.3, 0.3] && row[0] != 0.3));
        }
    }

    #[test]
    fn merging_gives_the_map_of_both() {
        let case = Case::new(4, 0.0);
        let (bands, a) = (bands(&case), f32_tensor(&case.a, &[2 * RANK, IN]));
        let x = f32_tensor(&case.x, &[4, IN]);
        let y = tensor(vec![0.0; 4 * OUT], &[4, OUT]).unwrap();
        LowRank { a: &a, bands: &bands, scale: SCALE as f32, compute: ComputeDtype::F32 }.forward(&x, &y, None).unwrap();
        let weight = tensor(vec![0.0; OUT * IN], &[OUT, IN]).unwrap();
        for (j, band) in bands.iter().enumerate() {
            let rows = weight.narrow(0, band.columns.start, band.columns.len()).unwrap();
            merge(&rows, &a.narrow(0, j * RANK, RANK).unwrap(), &band.b, SCALE as f32).unwrap();
        }
        let merged = product(&read(&x).unwrap(), &read(&weight).unwrap(), IN, ComputeDtype::F32);
        assert!(merged.iter().zip(read(&y).unwrap().iter()).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}
