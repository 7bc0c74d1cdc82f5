//! Building blocks: one file per op, its forward and its backward together, checked against each other by finite differences.
//!
//! An op is a pair of plain functions on slices, generic over [`Real`], so that the very code that trains in f32 is checked in f64, where
//! finite differences mean something. Around it stands a thin layer on candle tensors that picks the device.
//!
//! The seam to candle is two functions: [`read`] lends the contiguous values of a tensor, [`update`] hands out its values to be changed
//! in place. A closure inside candle's `InplaceOp1` is all that this takes. It beats one `InplaceOp` type per op because an op may
//! have any number of sources and of destinations (nested `update`s), a destination may be a band of a larger tensor, and the kernels stay
//! ordinary functions. The price: a destination must not share its storage with a source that is being read (the lock is per storage).
//!
//! Results repeat bit for bit at any number of threads: work is split into chunks whose size depends on shapes alone, and sums over chunks
//! are taken in order.

pub mod activation;
pub mod adamw;
pub mod attention;
pub mod buffer;
pub mod divergence;
pub mod dropout;
pub mod embedding;
mod gemm;
// Where neither runs kernels, what starts them is compiled all the same, for its lints.
pub mod gpu;
pub mod host;
pub mod linear;
pub mod log_prob;
pub mod logits;
pub mod low_rank;
mod place;
pub mod pool;
mod real;
pub mod rms_norm;
pub mod rope;
pub mod squares;

pub use buffer::{Buffer, Scratch};
pub use gemm::has_bf16_instructions;
pub use place::Place;
pub use real::Real;
pub(crate) use real::{Once, vectorized};

use anyhow::{Context, Result, bail, ensure};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Storage, StorageRef, Tensor};
use half::bf16;
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::{Deref, Range};

/// The values of a contiguous tensor as f32: lent where they are f32 on the CPU, copied where they are bf16 or on a GPU.
pub enum Values<'a> {
    Lent { storage: StorageRef<'a>, range: Range<usize> },
    Copied(Vec<f32>),
}

impl Deref for Values<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Values::Copied(values) => values,
            Values::Lent { storage, range } => match &**storage {
                Storage::Cpu(CpuStorage::F32(values)) => &values[range.clone()],
                _ => unreachable!("`read` lends f32 values on the CPU only"),
            },
        }
    }
}

/// The values of a contiguous tensor of f32, bf16 or bytes, or band of one. Of a tensor on a GPU it waits until they are there, and copies them.
pub fn read(tensor: &Tensor) -> Result<Values<'_>> {
    gpu::note_read(tensor);
    values_of(tensor)
}

fn values_of(tensor: &Tensor) -> Result<Values<'_>> {
    let (storage, layout) = tensor.storage_and_layout();
    let range = contiguous(layout)?;
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => {
            ensure!(range.end <= values.len(), "the values of this activation went back to the pool");
            Ok(Values::Lent { storage, range })
        }
        Storage::Cpu(CpuStorage::BF16(values)) => {
            Ok(Values::Copied(values[range].par_iter().with_min_len(1 << 16).map(|value| value.to_f32()).collect()))
        }
        Storage::Cpu(CpuStorage::U8(values)) => Ok(Values::Copied(values[range].iter().map(|&value| value.into()).collect())),
        Storage::Cpu(_) => bail!("expected f32 or bf16 values, found {:?}", tensor.dtype()),
        _ => {
            drop(storage);
            Ok(Values::Copied(tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?))
        }
    }
}

/// Changes the values of a contiguous tensor of f32, bf16 or bytes, or band of one, in place; bf16 is rounded to nearest. Those of a GPU go to the CPU and back.
pub fn update<R>(tensor: &Tensor, change: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
    gpu::note_read(tensor);
    change_values(tensor, change)
}

fn change_values<R>(tensor: &Tensor, change: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
    if !tensor.device().is_cpu() {
        let mut values = values_of(tensor)?.to_vec();
        let result = change(&mut values);
        tensor.slice_set(&on_device_of(tensor, &values, tensor.dims())?, 0, 0)?;
        return Ok(result);
    }
    let update = Update { change: Cell::new(Some(change)), result: Cell::new(None) };
    tensor.inplace_op1(&update)?;
    update.result.into_inner().context("candle did not run an update")
}

struct Update<F, R> {
    change: Cell<Option<F>>,
    result: Cell<Option<R>>,
}

impl<R, F: FnOnce(&mut [f32]) -> R> InplaceOp1 for Update<F, R> {
    fn name(&self) -> &'static str {
        "update"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let range = contiguous(layout).map_err(candle_core::Error::msg)?;
        let change = self.change.take();
        match storage {
            CpuStorage::F32(values) => self.result.set(change.map(|change| change(&mut values[range]))),
            CpuStorage::BF16(values) => {
                let mut wide: Vec<f32> = values[range.clone()].iter().map(|value| value.to_f32()).collect();
                self.result.set(change.map(|change| change(&mut wide)));
                values[range].iter_mut().zip(wide).for_each(|(value, wide)| *value = bf16::from_f32(wide));
            }
            CpuStorage::U8(values) => {
                let mut wide: Vec<f32> = values[range.clone()].iter().map(|&value| value.into()).collect();
                self.result.set(change.map(|change| change(&mut wide)));
                values[range].iter_mut().zip(wide).for_each(|(value, wide)| *value = wide as u8);
            }
            _ => candle_core::bail!("expected f32 or bf16 values, found {:?}", storage.dtype()),
        }
        Ok(())
    }
}

fn contiguous(layout: &Layout) -> Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => bail!("a tensor of shape {:?} and stride {:?} is not contiguous", layout.shape(), layout.stride()),
    }
}

/// A new CPU tensor that takes over `values`.
pub fn tensor(values: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// A new tensor at `place`, in the type of its weights.
pub fn on_device(values: Vec<f32>, shape: &[usize], place: &Place) -> Result<Tensor> {
    Ok(tensor(values, shape)?.to_dtype(place.storage)?.to_device(&place.device)?)
}

/// The values of a contiguous tensor once more.
pub fn copy(tensor: &Tensor) -> Result<Buffer> {
    if gpu::has(tensor) {
        return Ok(Buffer::of(tensor.copy()?));
    }
    Buffer::new(Scratch::copy_of(&read(tensor)?), tensor.dims())
}

/// Zeros of the shape and type, and on the device, of `like`.
pub fn zeros_like(like: &Tensor) -> Result<Buffer> {
    if gpu::has(like) {
        return Ok(Buffer::of(like.zeros_like()?));
    }
    Buffer::zeros(like.dims())
}

/// Some rows of `source [N, W]`, where it is: `[M, W]`.
pub fn gather_rows(source: &Tensor, rows: &[usize]) -> Result<Buffer> {
    if gpu::has(source) {
        return gpu::rows::gather(source, rows.iter().map(|&row| row as u32).collect(), 1.0);
    }
    let (width, source) = (source.dim(1)?, read(source)?);
    let mut gathered = Scratch::new(rows.len() * width);
    gathered.chunks_mut(width).zip(rows).for_each(|(to, row)| to.copy_from_slice(&source[row * width..][..width]));
    Buffer::new(gathered, &[rows.len(), width])
}

/// `values` in the type and on the device of `like`.
fn on_device_of(like: &Tensor, values: &[f32], shape: &[usize]) -> Result<Tensor> {
    Ok(Tensor::from_slice(values, shape, &Device::Cpu)?.to_dtype(like.dtype())?.to_device(like.device())?)
}

/// Sets all values of a contiguous tensor, or band of one, to zero. One thread alone does not reach the memory's rate.
pub fn clear(tensor: &Tensor) -> Result<()> {
    if gpu::has(tensor) {
        return gpu::clear(tensor);
    }
    update(tensor, |values| values.par_chunks_mut(1 << 16).for_each(|values| values.fill(0.0)))
}

/// Rows that one task of a row-wise op takes: about 16 Ki values, whatever the number of threads.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (16 * 1024 / width.max(1)).max(1)
}

/// Finite-difference checks, for the tests of every op.
#[cfg(test)]
pub(crate) mod check {
    /// Asserts that `gradient` is the derivative of `loss` at `at`: central differences in f64, relative to the gradient's largest entry.
    pub fn gradient(what: &str, at: &[f64], gradient: &[f64], loss: impl Fn(&[f64]) -> f64) {
        assert_eq!(at.len(), gradient.len(), "{what}");
        let scale = gradient.iter().fold(0.0f64, |max, g| max.max(g.abs()));
        assert!(scale > 1e-8, "{what}: the gradient vanishes, so this check shows nothing");
        let mut moved = at.to_vec();
        for i in 0..at.len() {
            let step = 1e-5 * at[i].abs().max(1.0);
            moved[i] = at[i] + step;
            let above = loss(&moved);
            moved[i] = at[i] - step;
            let below = loss(&moved);
            moved[i] = at[i];
            let numeric = (above - below) / (2.0 * step);
            assert!(
                (numeric - gradient[i]).abs() <= 1e-6 * scale,
                "{what}[{i}]: analytic {}, numeric {numeric}, scale {scale}",
                gradient[i]
            );
        }
    }

    /// Asserts that an f32 gradient is the derivative of the f64 `loss`: to 1e-5, what f32 leaves of values near 1.
    pub fn gradient_of_f32(what: &str, at: &[f64], gradient: &[f32], loss: impl Fn(&[f64]) -> f64) {
        assert_eq!(at.len(), gradient.len(), "{what}");
        let mut moved = at.to_vec();
        for (i, &gradient) in gradient.iter().enumerate() {
            let mut loss_at = |value: f64| {
                moved[i] = value;
                loss(&moved)
            };
            let numeric = (loss_at(at[i] + 1e-6) - loss_at(at[i] - 1e-6)) / 2e-6;
            moved[i] = at[i];
            assert!((numeric - f64::from(gradient)).abs() < 1e-5, "{what}[{i}]: analytic {gradient}, numeric {numeric}");
        }
    }

    /// Reproducible values in [-1, 1).
    pub fn values(seed: u64, n: usize) -> Vec<f64> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        };
        std::iter::repeat_with(next).take(n).collect()
    }

    pub fn dot(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    pub fn to_f32(values: &[f64]) -> Vec<f32> {
        values.iter().map(|&v| v as f32).collect()
    }

    /// Largest difference between an f32 result and its f64 twin, relative to the largest value.
    pub fn relative_difference(fast: &[f32], exact: &[f64]) -> f64 {
        assert_eq!(fast.len(), exact.len());
        if fast.iter().any(|value| !value.is_finite()) {
            return f64::INFINITY;
        }
        let scale = exact.iter().fold(1e-30f64, |max, v| max.max(v.abs()));
        fast.iter().zip(exact).map(|(&f, &e)| (f64::from(f) - e).abs()).fold(0.0, f64::max) / scale
    }
}
