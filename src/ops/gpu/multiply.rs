//! Products on the GPU: cuBLAS, which adds into the destination where asked; on the emulated GPU the CPU's products.

use super::super::gemm::{self, Matrix, Threads, Write};
use super::super::{change_values, values_of};
use super::record;
use anyhow::{Result, ensure};
use candle_core::Tensor;

/// A matrix of f32 or bf16 values: a tensor of two dimensions whose rows are contiguous, maybe a band of columns of a wider one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operand<'a> {
    pub tensor: &'a Tensor,
    pub transposed: bool,
}

impl<'a> Operand<'a> {
    pub fn new(tensor: &'a Tensor) -> Self {
        Self { tensor, transposed: false }
    }

    pub fn transposed(tensor: &'a Tensor) -> Self {
        Self { tensor, transposed: true }
    }

    /// Rows and columns of what it stands for in a product.
    pub(super) fn dims(&self) -> Result<(usize, usize)> {
        let (rows, columns) = self.tensor.dims2()?;
        Ok(if self.transposed { (columns, rows) } else { (rows, columns) })
    }
}

/// Values from the start of one row to that of the next.
#[cfg(feature = "cuda")]
pub(super) fn row_stride(tensor: &Tensor) -> Result<usize> {
    let (_, columns) = tensor.dims2()?;
    let stride = tensor.stride();
    ensure!(stride[1] == 1 || columns == 1, "a matrix whose rows are not contiguous: stride {stride:?}");
    Ok(if tensor.dim(0)? == 1 { columns.max(stride[0]) } else { stride[0] })
}

/// `out (+)= factor * a b`; a and b of one type, out of theirs or f32. Sums are formed in f32.
pub(crate) fn multiply(out: &Tensor, write: Write, factor: f32, a: Operand, b: Operand) -> Result<()> {
    let ((m, inner), (inner_b, n)) = (a.dims()?, b.dims()?);
    ensure!(inner == inner_b && out.dims2()? == (m, n), "a product of {m} x {inner} and {inner_b} x {n} into {:?}", out.dims());
    ensure!(a.tensor.dtype() == b.tensor.dtype(), "a product of {:?} and {:?}", a.tensor.dtype(), b.tensor.dtype());
    if m == 0 || n == 0 {
        return Ok(());
    }
    let name = || {
        let [from, to] = [a.tensor, out].map(|tensor| tensor.dtype().as_str());
        format!("product {m} x {inner} x {n}, {from} {} {to}", if write == Write::Add { "added to" } else { "to" })
    };
    let start = || match out.device() {
        #[cfg(feature = "cuda")]
        candle_core::Device::Cuda(device) => super::cuda::multiply(device, out, write, factor, a, b),
        _ => on_the_cpu(out, write, factor, a, b),
    };
    record::launch(out.device(), name, start)
}

/// For the emulated GPU: values as they are stored, sums in f32.
fn on_the_cpu(out: &Tensor, write: Write, factor: f32, a: Operand, b: Operand) -> Result<()> {
    let (m, n) = out.dims2()?;
    let [a_values, b_values] =
        [&a, &b].map(|operand| operand.tensor.contiguous().map(|tensor| values_of(&tensor).map(|values| values.to_vec())));
    let (a_values, b_values) = (a_values??, b_values??);
    let matrix = |operand: &Operand, values| -> Result<Matrix<'_, f32>> {
        let matrix = Matrix::new(values, operand.tensor.dim(1)?);
        Ok(if operand.transposed { matrix.transposed() } else { matrix })
    };
    let mut product = match write {
        Write::Overwrite => vec![0.0; m * n],
        Write::Add => values_of(&out.contiguous()?)?.to_vec(),
    };
    gemm::multiply(&mut product, n, write, factor, matrix(&a, &a_values)?, matrix(&b, &b_values)?, Threads::One);
    for (i, row) in product.chunks(n).enumerate() {
        change_values(&out.narrow(0, i, 1)?, |values| values.copy_from_slice(row))?;
    }
    Ok(())
}
