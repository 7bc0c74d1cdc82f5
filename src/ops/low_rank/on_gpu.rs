//! The low-rank term on the GPU: products with bands of columns of `u`, `y` and `dy`, which cuBLAS takes by their stride.

use super::{Band, LowRank};
use crate::ops::dropout::Dropout;
use crate::ops::gemm::Write;
use crate::ops::gpu::{self, Operand, empty_like, multiply};
use crate::ops::{Buffer, linear};
use anyhow::Result;
use candle_core::Tensor;
use std::ops::Deref;

/// `d(x)`
enum Input<'a> {
    Whole(&'a Tensor),
    Masked(Buffer),
}

impl<'a> Input<'a> {
    fn new(x: &'a Tensor, dropout: Option<Dropout>) -> Result<Self> {
        Ok(match dropout {
            None => Self::Whole(x),
            Some(dropout) => Self::Masked(dropout.masked_on_gpu(x)?),
        })
    }
}

impl Deref for Input<'_> {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        match self {
            Self::Whole(x) => x,
            Self::Masked(x) => x,
        }
    }
}

impl LowRank<'_> {
    pub(super) fn forward_on_gpu(&self, x: &Tensor, y: &Tensor, dropout: Option<Dropout>) -> Result<()> {
        let u = self.inner_on_gpu(&*Input::new(x, dropout)?)?;
        for (j, band) in self.bands.iter().enumerate() {
            let (u_j, y_j) = (self.columns_on_gpu(&u, j, band)?, columns_of(y, band)?);
            multiply(&y_j, Write::Add, self.scale, Operand::new(&u_j), Operand::transposed(&band.b))?;
        }
        Ok(())
    }

    pub(super) fn backward_input_on_gpu(&self, dy: &Tensor, dx: &Tensor, dropout: Option<Dropout>) -> Result<()> {
        let du = self.inner_gradient_on_gpu(dy)?;
        let Some(dropout) = dropout else { return multiply(dx, Write::Add, 1.0, Operand::new(&du), Operand::new(self.a)) };
        let term = empty_like(dx.dims(), dx)?;
        multiply(&term, Write::Overwrite, 1.0, Operand::new(&du), Operand::new(self.a))?;
        linear::accumulate(dx, &*dropout.masked_on_gpu(&term)?)
    }

    pub(super) fn backward_weight_on_gpu(&self, x: &Tensor, dy: &Tensor, a_gradient: &Tensor, dropout: Option<Dropout>) -> Result<()> {
        let x = Input::new(x, dropout)?;
        let u = self.inner_on_gpu(&x)?;
        for (j, band) in self.bands.iter().enumerate() {
            let Some(gradient) = &band.b_gradient else { continue };
            let (u_j, dy_j) = (self.columns_on_gpu(&u, j, band)?, columns_of(dy, band)?);
            multiply(gradient, Write::Add, self.scale, Operand::transposed(&dy_j), Operand::new(&u_j))?;
        }
        let du = self.inner_gradient_on_gpu(dy)?;
        multiply(a_gradient, Write::Add, 1.0, Operand::transposed(&du), Operand::new(&x))
    }

    /// `u [N, R]`, without the scale.
    fn inner_on_gpu(&self, x: &Tensor) -> Result<Buffer> {
        let u = empty_like(&[x.dim(0)?, self.a.dim(0)?], x)?;
        multiply(&u, Write::Overwrite, 1.0, Operand::new(x), Operand::transposed(self.a))?;
        Ok(u)
    }

    /// `du [N, R]`
    fn inner_gradient_on_gpu(&self, dy: &Tensor) -> Result<Buffer> {
        let du = empty_like(&[dy.dim(0)?, self.a.dim(0)?], dy)?;
        for (j, band) in self.bands.iter().enumerate() {
            let (du_j, dy_j) = (self.columns_on_gpu(&du, j, band)?, columns_of(dy, band)?);
            multiply(&du_j, Write::Overwrite, self.scale, Operand::new(&dy_j), Operand::new(&band.b))?;
        }
        Ok(du)
    }

    /// The columns of `u` that belong to the j-th projection.
    fn columns_on_gpu(&self, u: &Tensor, j: usize, band: &Band) -> Result<Tensor> {
        let rank = band.b.dim(1)?;
        Ok(u.narrow(1, j * rank, rank)?)
    }
}

fn columns_of(y: &Tensor, band: &Band) -> Result<Tensor> {
    Ok(y.narrow(1, band.columns.start, band.columns.len())?)
}

impl Dropout<'_> {
    /// [`Dropout::masked`] of `x [N, W]` on the GPU.
    fn masked_on_gpu(&self, x: &Tensor) -> Result<Buffer> {
        let (n_rows, width) = x.dims2()?;
        let out = empty_like(&[n_rows, width], x)?;
        let (threshold, factor) = self.threshold_and_factor();
        let kernel = gpu::Kernel::new("dropout", x)?.values(x)?.values(&out)?.hashes(self.row_keys.on_gpu(x)?)?.long(self.place);
        let kernel = kernel.integer(width)?.long(threshold.into()).float(factor.into());
        kernel.run([n_rows, 1, 1], gpu::threads_for(width, 512))?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ComputeDtype;
    use crate::ops::dropout::RowKeys;
    use crate::ops::gpu::twin::agree;

    #[test]
    fn agrees_with_the_cpu() {
        let (n, n_out, rank) = (70, 90, 8);
        let keys: Vec<u64> = (0..n as u64).map(|key| key.wrapping_mul(0x1234_5678_9abc_def1)).collect();
        let keys = RowKeys::from(keys);
        for (n_in, probability) in [(40, 0.0), (40, 0.3), (13, 0.3)] {
            agree(&format!("{n_in} columns, dropout {probability}"), |place| {
                let a = place.values(1, &[2 * rank, n_in]);
                let gradient = |rows: usize| place.floats(vec![0.5; rows * rank], &[rows, rank]);
                let band = |seed, columns: std::ops::Range<usize>| Band {
                    b: place.values(seed, &[columns.len(), rank]),
                    b_gradient: Some(gradient(columns.len())),
                    columns,
                };
                let bands = [band(2, 0..50), band(3, 60..85)];
                let term = LowRank { a: &a, bands: &bands, scale: 0.75, compute: ComputeDtype::F32 };
                let dropout = (probability > 0.0).then_some(Dropout { probability, place: 77, row_keys: &keys });
                let (x, y) = (place.values(4, &[n, n_in]), place.values(5, &[n, n_out]));
                let (dy, dx) = (place.values(6, &[n, n_out]), place.values(7, &[n, n_in]));
                let a_gradient = place.floats(vec![0.5; 2 * rank * n_in], &[2 * rank, n_in]);
                term.forward(&x, &y, dropout)?;
                term.backward_input(&dy, &dx, dropout)?;
                term.backward_weight(&x, &dy, &a_gradient, dropout)?;
                let [one, two] = bands.map(|band| band.b_gradient.unwrap());
                Ok(vec![y, dx, a_gradient, one, two])
            });
        }
    }
}
