//! The sum of squares of several tensors, in f64 and in a fixed order.

use super::gpu::{self, Kernel, address, hashes, indices};
use super::{read, vectorized};
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor};
use rayon::prelude::*;

pub(crate) const CHUNK: usize = 1 << 15;
/// Independent sums within a chunk, so that the additions need not wait for each other.
const LANES: usize = 8;

/// The sum over all values of all `tensors`, f32. Chunks are summed in order: the result does not depend on the number of threads.
pub fn sum_of_squares(tensors: &[&Tensor]) -> Result<f64> {
    match tensors.first() {
        Some(tensor) if gpu::has(tensor) => on_gpu(tensors),
        _ => tensors.iter().map(|tensor| Ok(of_values(&read(tensor)?))).sum(),
    }
}

fn of_values(values: &[f32]) -> f64 {
    let chunks: Vec<f64> = values.par_chunks(CHUNK).map(|chunk| vectorized!(of_chunk(chunk))).collect();
    chunks.iter().sum()
}

#[inline(always)]
fn of_chunk(values: &[f32]) -> f64 {
    let mut sums = [0.0f64; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    let square = |value: f32| f64::from(value) * f64::from(value);
    for values in whole {
        (0..LANES).for_each(|lane| sums[lane] += square(values[lane]));
    }
    sums.iter_mut().zip(rest).for_each(|(sum, &value)| *sum += square(value));
    sums.iter().sum()
}

fn on_gpu(tensors: &[&Tensor]) -> Result<f64> {
    let like = tensors[0];
    let (mut table, mut first_blocks, mut n_blocks) = (Vec::new(), Vec::new(), 0);
    for tensor in tensors {
        ensure!(tensor.dtype() == DType::F32 && tensor.device().same_device(like.device()), "squares of {tensor:?}");
        first_blocks.push(n_blocks as u32);
        n_blocks += tensor.elem_count().div_ceil(CHUNK);
        table.extend([address(tensor)?, tensor.elem_count() as u64]);
    }
    let (table, first_blocks) = (hashes(&table, like)?, indices(first_blocks, like)?);
    let sums = Tensor::zeros(n_blocks, DType::F64, like.device())?;
    let total = Tensor::zeros(1, DType::F64, like.device())?;
    let kernel = Kernel::new("sum_of_squares", like)?.hashes(&table)?.indices(&first_blocks)?.integer(tensors.len())?.integer(CHUNK)?;
    kernel.doubles(&sums)?.run([n_blocks, 1, 1], 256)?;
    Kernel::new("sum_of_sums", like)?.doubles(&sums)?.integer(n_blocks)?.doubles(&total)?.run([1, 1, 1], 256)?;
    total.to_vec1::<f64>()?.first().copied().context("a sum of squares")
}
