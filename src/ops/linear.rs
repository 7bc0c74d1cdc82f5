//! `y = x Wᵀ + b`, and its three gradients: `dx = dy W`, `dW += dyᵀ x`, `db += Σ dy`.
//!
//! With bf16 as the compute type the inputs of every product are rounded to bf16 and accumulated in f32 (`gemm::multiply_in`).

use super::gemm::{Matrix, Write, multiply_in, multiply_rows_in, stable_rows};
use super::gpu::{self, Operand};
use super::{Buffer, Scratch, read, update};
use crate::config::ComputeDtype;
use anyhow::Result;
use candle_core::Tensor;
use rayon::prelude::*;
use std::borrow::Cow;

/// `x [N, in]`, `weight [out, in]`, `bias [out]` to `[N, out]`. A row's result does not depend on the other rows.
pub fn forward(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, compute: ComputeDtype) -> Result<Buffer> {
    let (n_rows, n_in) = x.dims2()?;
    let n_out = weight.dim(0)?;
    if gpu::has(x) {
        return forward_on_gpu(x, weight, bias);
    }
    let (x, weight) = (read(x)?, read(weight)?);
    let mut y = product(&x, &weight, n_in, compute);
    add_bias(&mut y, bias)?;
    Buffer::new(y, &[n_rows, n_out])
}

/// As [`forward`], for the few rows of decoding: the weight is read once and not packed. A row's result still does not depend on the other rows;
/// it is not that of [`forward`] to the last bit.
pub fn forward_few(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, compute: ComputeDtype) -> Result<Buffer> {
    let (n_rows, n_in) = x.dims2()?;
    let n_out = weight.dim(0)?;
    if gpu::has(x) {
        return forward_on_gpu(x, weight, bias);
    }
    let mut y = Scratch::new(n_rows * n_out);
    multiply_rows_in(compute, &read(x)?, &read(weight)?, n_in, &mut y);
    add_bias(&mut y, bias)?;
    Buffer::new(y, &[n_rows, n_out])
}

/// cuBLAS makes no promise about a row's bits when other rows change.
fn forward_on_gpu(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Buffer> {
    let y = gpu::empty_like(&[x.dim(0)?, weight.dim(0)?], x)?;
    gpu::multiply(&y, Write::Overwrite, 1.0, Operand::new(x), Operand::transposed(weight))?;
    if let Some(bias) = bias {
        let (n_rows, width) = y.dims2()?;
        let kernel = gpu::Kernel::new("add_bias", &y)?.values(&y)?.values(bias)?.integer(width)?;
        kernel.run([n_rows, 1, 1], gpu::threads_for(width, 512))?;
    }
    Ok(y)
}

fn add_bias(y: &mut [f32], bias: Option<&Tensor>) -> Result<()> {
    if let Some(bias) = bias {
        let bias = read(bias)?;
        y.par_chunks_mut(bias.len()).for_each(|row| add(row, &bias));
    }
    Ok(())
}

/// `x · weightᵀ`, computed in a buffer with enough rows that each row's bits depend on that row alone.
pub(crate) fn product(x: &[f32], weight: &[f32], n_in: usize, compute: ComputeDtype) -> Scratch {
    let (n_rows, n_out) = (x.len() / n_in, weight.len() / n_in);
    let n_padded = n_rows.max(stable_rows(compute, n_out, n_in));
    let mut x = Cow::Borrowed(x);
    if n_padded > n_rows {
        x.to_mut().resize(n_padded * n_in, 0.0);
    }
    let mut y = Scratch::new(n_padded * n_out);
    multiply_in(compute, &mut y, n_out, Write::Overwrite, 1.0, Matrix::new(&x, n_in), Matrix::new(weight, n_in).transposed());
    y.truncate(n_rows * n_out);
    y
}

/// `dy [N, out]` to `dx [N, in]`.
pub fn backward_input(dy: &Tensor, weight: &Tensor, compute: ComputeDtype) -> Result<Buffer> {
    let (n_rows, n_out) = dy.dims2()?;
    let n_in = weight.dim(1)?;
    if gpu::has(dy) {
        let dx = gpu::empty_like(&[n_rows, n_in], dy)?;
        gpu::multiply(&dx, Write::Overwrite, 1.0, Operand::new(dy), Operand::new(weight))?;
        return Ok(dx);
    }
    let (dy, weight) = (read(dy)?, read(weight)?);
    let mut dx = Scratch::new(n_rows * n_in);
    multiply_in(compute, &mut dx, n_in, Write::Overwrite, 1.0, Matrix::new(&dy, n_out), Matrix::new(&weight, n_in));
    Buffer::new(dx, &[n_rows, n_in])
}

/// Adds `dyᵀ x` to `weight_gradient [out, in]`.
pub fn backward_weight(dy: &Tensor, x: &Tensor, weight_gradient: &Tensor, compute: ComputeDtype) -> Result<()> {
    if gpu::has(dy) {
        return gpu::multiply(weight_gradient, Write::Add, 1.0, Operand::transposed(dy), Operand::new(x));
    }
    let (n_out, n_in) = (dy.dim(1)?, x.dim(1)?);
    let (dy, x) = (read(dy)?, read(x)?);
    update(weight_gradient, |out| {
        multiply_in(compute, out, n_in, Write::Add, 1.0, Matrix::new(&dy, n_out).transposed(), Matrix::new(&x, n_in));
    })
}

/// Adds the sum of `dy`'s rows to `bias_gradient [out]`.
pub fn backward_bias(dy: &Tensor, bias_gradient: &Tensor) -> Result<()> {
    if gpu::has(dy) {
        return gpu::rows::add_column_sums(dy, bias_gradient);
    }
    let n_out = dy.dim(1)?;
    let dy = read(dy)?;
    update(bias_gradient, |out: &mut [f32]| dy.chunks(n_out).for_each(|row| add(out, row)))
}

fn add(row: &mut [f32], other: &[f32]) {
    row.iter_mut().zip(other).for_each(|(a, b)| *a += b);
}

/// Adds `other` to `sum` in place; both of one shape.
pub fn accumulate(sum: &Tensor, other: &Tensor) -> Result<()> {
    if gpu::has(sum) {
        return gpu::accumulate(sum, other);
    }
    let other = read(other)?;
    update(sum, |sum: &mut [f32]| sum.par_chunks_mut(16 * 1024).zip(other.par_chunks(16 * 1024)).for_each(|(sum, other)| add(sum, other)))
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::super::tensor;
    use super::*;

    fn random(seed: u64, shape: &[usize]) -> Tensor {
        tensor(check::to_f32(&check::values(seed, shape.iter().product())), shape).unwrap()
    }

    /// The three gradients are linear in their inputs, so exact identities take the place of finite differences:
    /// <dy, x Wᵀ> = <dy W, x> = <dyᵀ x, W>.
    #[test]
    fn gradients_are_the_adjoints_of_the_forward() {
        for (n, d_in, d_out) in [(1, 8, 8), (7, 40, 24), (130, 64, 300)] {
            let (x, w, dy) = (random(1, &[n, d_in]), random(2, &[d_out, d_in]), random(3, &[n, d_out]));
            let inner = |a: &Tensor, b: &Tensor| -> f64 {
                let (a, b) = (read(a).unwrap(), read(b).unwrap());
                a.iter().zip(b.iter()).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            };
            let y = forward(&x, &w, None, ComputeDtype::F32).unwrap();
            let dx = backward_input(&dy, &w, ComputeDtype::F32).unwrap();
            let dw = tensor(vec![0f32; d_out * d_in], &[d_out, d_in]).unwrap();
            backward_weight(&dy, &x, &dw, ComputeDtype::F32).unwrap();
            let direct = inner(&dy, &y);
            assert!((inner(&dx, &x) - direct).abs() < 1e-5 * (n * d_in * d_out) as f64);
            assert!((inner(&dw, &w) - direct).abs() < 1e-5 * (n * d_in * d_out) as f64);
            backward_weight(&dy, &x, &dw, ComputeDtype::F32).unwrap();
            assert!((inner(&dw, &w) - 2.0 * direct).abs() < 1e-5 * (n * d_in * d_out) as f64, "gradients accumulate");
        }
    }

    #[test]
    fn bias_is_added_and_its_gradient_is_the_column_sum() {
        let (x, w, b) = (random(1, &[3, 4]), random(2, &[5, 4]), random(3, &[5]));
        let plain = forward(&x, &w, None, ComputeDtype::F32).unwrap().to_vec2::<f32>().unwrap();
        let with = forward(&x, &w, Some(&b), ComputeDtype::F32).unwrap().to_vec2::<f32>().unwrap();
        let b = b.to_vec1::<f32>().unwrap();
        assert!((0..3).all(|i| (0..5).all(|j| (with[i][j] - plain[i][j] - b[j]).abs() < 1e-6)));
        let dy = random(4, &[3, 5]);
        let db = tensor(vec![1f32; 5], &[5]).unwrap();
        backward_bias(&dy, &db).unwrap();
        let rows = dy.to_vec2::<f32>().unwrap();
        let db = db.to_vec1::<f32>().unwrap();
        assert!((0..5).all(|j| (db[j] - 1.0 - rows[0][j] - rows[1][j] - rows[2][j]).abs() < 1e-6));
    }

    #[test]
    fn one_row_alone_equals_the_same_row_among_many() {
        for (d_in, d_out) in [(8, 4), (600, 48), (64, 300)] {
            let (x, w) = (random(1, &[70, d_in]), random(2, &[d_out, d_in]));
            for compute in [ComputeDtype::F32, ComputeDtype::Bf16] {
                let all = forward(&x, &w, None, compute).unwrap().to_vec2::<f32>().unwrap();
                for i in [0, 33, 69] {
                    let alone = forward(&x.narrow(0, i, 1).unwrap(), &w, None, compute).unwrap().to_vec2::<f32>().unwrap();
                    assert_eq!(alone[0], all[i], "{compute:?}");
                }
            }
        }
    }

    #[test]
    fn bf16_rounds_the_inputs_and_nothing_else() {
        let x = tensor(vec![1.0f32 + 1e-3, 2.0], &[1, 2]).unwrap();
        let w = tensor(vec![1.0f32, 3.0 + 1e-4], &[1, 2]).unwrap();
        let y = forward(&x, &w, None, ComputeDtype::Bf16).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(y[0][0], 7.0);
    }
}

#[cfg(test)]
mod gpu_tests {
    use super::*;
    use crate::ops::gpu::twin::agree;

    #[test]
    fn agrees_with_the_cpu() {
        for (n, n_in, n_out) in [(1, 3, 5), (70, 40, 24), (130, 64, 300), (3, 8, 4200)] {
            agree(&format!("{n} rows of {n_in} to {n_out}"), |place| {
                let (x, dy) = (place.values(1, &[n, n_in]), place.values(2, &[n, n_out]));
                let (weight, bias) = (place.values(3, &[n_out, n_in]), place.values(4, &[n_out]));
                let y = forward(&x, &weight, Some(&bias), ComputeDtype::F32)?.copy()?;
                let dx = backward_input(&dy, &weight, ComputeDtype::F32)?.copy()?;
                let d_weight = place.floats(vec![1.0; n_out * n_in], &[n_out, n_in]);
                let d_bias = place.floats(vec![1.0; n_out], &[n_out]);
                backward_weight(&dy, &x, &d_weight, ComputeDtype::F32)?;
                backward_bias(&dy, &d_bias)?;
                let sum = place.values(5, &[n, n_out]);
                accumulate(&sum, &dy)?;
                Ok(vec![y, dx, d_weight, d_bias, sum])
            });
        }
    }
}
