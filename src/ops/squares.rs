//! The norm of gradients: sums of squares in f64 and in a fixed order, which stay on the GPU where they were formed there, and clipping by them.

use super::gpu::{self, Kernel, address, hashes, indices};
use super::{read, vectorized};
use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};
use rayon::prelude::*;

pub(crate) const CHUNK: usize = 1 << 15;
/// Independent sums within a chunk, so that the additions need not wait for each other.
const LANES: usize = 8;

/// Where it was formed.
#[derive(Debug)]
pub enum SumOfSquares {
    /// Of each tensor.
    Known(Vec<f64>),
    /// Of all of them, `[1]`, f64.
    OnGpu(Tensor),
}

impl SumOfSquares {
    /// Of all values of all `tensors`, f32. Chunks are summed in order: the result does not depend on the number of threads. Nothing waits for the GPU.
    pub fn of(tensors: &[&Tensor]) -> Result<Self> {
        match tensors.first() {
            Some(tensor) if gpu::has(tensor) => on_gpu(tensors).map(Self::OnGpu),
            _ => Ok(Self::Known(tensors.iter().map(|tensor| Ok(of_values(&read(tensor)?))).collect::<Result<_>>()?)),
        }
    }
}

/// The l2 norm over the tensors of all `parts`, in their order; not finite if any value is not. Waits for the GPU, once.
pub fn norm<'a>(parts: impl IntoIterator<Item = &'a SumOfSquares>) -> Result<f64> {
    let (mut sum, mut on_gpu) = (0.0, Vec::new());
    for part in parts {
        match part {
            SumOfSquares::Known(squares) => squares.iter().for_each(|squares| sum += squares),
            SumOfSquares::OnGpu(squares) => on_gpu.push(squares),
        }
    }
    if let Some(first) = on_gpu.first() {
        gpu::note_read(first);
        sum += Tensor::cat(&on_gpu, 0)?.to_vec1::<f64>()?.iter().sum::<f64>();
    }
    Ok(sum.sqrt())
}

/// What gradients are multiplied by so that their norm is at most `max_norm`, as `torch.nn.utils.clip_grad_norm_` does it; 1 when `max_norm` is 0
/// (clipping off).
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if max_norm == 0.0 { 1.0 } else { (max_norm / (norm + 1e-6)).min(1.0) }
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

fn on_gpu(tensors: &[&Tensor]) -> Result<Tensor> {
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
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::super::tensor;
    use super::*;

    #[test]
    fn norm_does_not_depend_on_the_number_of_threads() {
        let values: Vec<f32> = (0..3 * CHUNK + 17).map(|i| ((i * 2_654_435_761) % 1013) as f32 / 977.0 - 0.5).collect();
        let expected: f64 = values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let n = values.len();
        let values = tensor(values, &[n]).unwrap();
        let norms = [1, 2, 3].map(|n| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
            pool.install(|| norm(&[SumOfSquares::of(&[&values]).unwrap()]).unwrap())
        });
        assert!((norms[0] / expected - 1.0).abs() < 1e-12);
        assert_eq!(norms.map(f64::to_bits), [norms[0].to_bits(); 3]);
    }

    #[test]
    fn one_bad_element_makes_the_norm_not_finite() {
        let of = |values: Vec<f32>| norm(&[SumOfSquares::of(&[&tensor(values, &[2]).unwrap()]).unwrap()]).unwrap();
        assert_eq!(of(vec![3.0, -4.0]), 5.0);
        assert!(!of(vec![1.0, f32::NAN]).is_finite() && !of(vec![f32::INFINITY, 1.0]).is_finite());
        assert!(of(vec![f32::MAX; 2]).is_finite(), "squares beyond f32 are no overflow");
    }

    #[test]
    fn clips_as_torch_does() {
        // torch.nn.utils.clip_grad_norm_: clamp(max_norm / (norm + 1e-6), max=1)
        assert_eq!(clip_factor(5.0, 1.0), 1.0 / 5.000001);
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert_eq!(clip_factor(0.0, 1.0), 1.0);
        assert_eq!(clip_factor(1e9, 0.0), 1.0);
    }
}
