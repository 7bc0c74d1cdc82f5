//! The GPU's side of the ops: kernels of our own, started by name, and products by cuBLAS.
//!
//! An op asks `has` whether its tensors lie on a GPU and hands over to the `gpu` part of its folder, which starts kernels through `Kernel`
//! and products through `multiply`. This side is plain Rust and always compiled; what differs is who runs a kernel:
//!
//! - the CUDA driver (feature `cuda`), from PTX that the build made of `kernels/`;
//! - the emulator, which is the same sources compiled for the CPU by the first test that asks for it: it runs a block's threads in turns, so that every kernel and
//!   every line that starts one is tested on machines without a GPU.
//!
//! Values are f32 or bf16, sums are formed in f32 and in an order that depends on shapes alone. Nothing waits for the GPU but [`super::read`] and what
//! is built on it ([`reads`] counts), and the end of [`super::host`]'s calls.
//! [`record`] says how long each launch takes.

#[cfg(feature = "cuda")]
mod cuda;
mod emulated;
mod host_calls;
mod multiply;
mod record;
pub(crate) mod rows;
#[cfg(test)]
pub(crate) mod twin;

pub(crate) use host_calls::HostCalls;
pub(crate) use multiply::{Operand, multiply};
pub use record::{Recorded, record};

use super::{Buffer, Scratch};
use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::{CpuStorage, DType, Device, Storage, Tensor, WithDType};
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::{Mutex, OnceLock, PoisonError};

/// Whether a GPU, or who plays one, computes on this tensor.
pub(crate) fn has(tensor: &Tensor) -> bool {
    tensor.device().is_cuda() || emulated()
}

/// Whether this thread's CPU tensors are taken for those of a GPU.
pub(super) fn emulated() -> bool {
    emulated::is_on()
}

/// How often this thread has read values of a GPU, and has waited until it had come that far.
pub fn reads() -> usize {
    READS.get()
}

/// Somebody is about to read this tensor's values.
pub(super) fn note_read(tensor: &Tensor) {
    if has(tensor) {
        READS.set(READS.get() + 1);
    }
}

thread_local! {
    static READS: Cell<usize> = const { Cell::new(0) };
}

pub use emulated::on_emulated_gpu;

/// The GPU with this number, the same whenever it is asked for: its tensors belong together.
pub fn at(index: usize) -> Result<Device> {
    static GPUS: Mutex<Vec<(usize, Device)>> = Mutex::new(Vec::new());
    let mut gpus = GPUS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, device)) = gpus.iter().find(|(known, _)| *known == index) {
        return Ok(device.clone());
    }
    // One stream for all threads: candle's usual device has one for each, and work of different streams is in no order.
    let device = Device::new_cuda_with_stream(index).map_err(|error| {
        // Behind the first line candle has a backtrace, where the environment asks for one.
        anyhow!(error.to_string().lines().next().unwrap_or_default().to_owned())
    })?;
    prepare(&device)?;
    gpus.push((index, device.clone()));
    Ok(device)
}

/// What a GPU needs to know once: memory that was given back stays with this process, and one stream needs no events.
fn prepare(device: &Device) -> Result<()> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => cuda::prepare(device),
        _ => Ok(()),
    }
}

/// The most bytes that were in use at once of the driver's pool since this was last asked; `None` where there is none.
pub fn peak_bytes(device: &Device) -> Option<u64> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => cuda::peak_bytes(device),
        _ => None,
    }
}

/// Bytes of a GPU's memory that this process can still get: what nobody has, and what its own pool holds and has not lent out. `None` where that is
/// not known, and on other devices.
pub fn free_bytes(device: &Device) -> Option<u64> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => cuda::free_bytes(device),
        _ => None,
    }
}

/// What the GPU calls itself.
pub fn name(device: &Device) -> Result<String> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => cuda::name(device),
        device => bail!("{:?} is no GPU", device.location()),
    }
}

/// A kernel's argument, as it is copied to the GPU.
#[derive(Debug, Clone, Copy)]
enum Argument {
    Address(u64),
    Integer(i32),
    Long(u64),
    Float(f32),
}

/// A kernel about to start: its name, its values' type, and its arguments in order.
///
/// It borrows its tensors until it has started: later work of the same stream may then use their memory again.
pub(crate) struct Kernel<'a> {
    name: String,
    dtype: DType,
    device: Device,
    arguments: Vec<Argument>,
    shared_bytes: usize,
    tensors: PhantomData<&'a Tensor>,
}

impl<'a> Kernel<'a> {
    /// The kernel `name` for values of the type, and on the device, of `values`.
    pub fn new(name: &str, values: &Tensor) -> Result<Self> {
        let suffix = match values.dtype() {
            DType::F32 => "f32",
            DType::BF16 => "bf16",
            other => bail!("no kernel `{name}` for values of type {other:?}"),
        };
        let (dtype, device) = (values.dtype(), values.device().clone());
        Ok(Self {
            name: format!("{name}_{suffix}"),
            dtype,
            device,
            arguments: Vec::with_capacity(16),
            shared_bytes: 0,
            tensors: PhantomData,
        })
    }

    /// A tensor of the kernel's type.
    pub fn values(self, tensor: &'a Tensor) -> Result<Self> {
        let dtype = self.dtype;
        self.tensor(tensor, dtype)
    }

    pub fn floats(self, tensor: &'a Tensor) -> Result<Self> {
        self.tensor(tensor, DType::F32)
    }

    pub fn indices(self, tensor: &'a Tensor) -> Result<Self> {
        self.tensor(tensor, DType::U32)
    }

    /// A tensor of the kernel's type, or none.
    pub fn maybe_values(self, tensor: Option<&'a Tensor>) -> Result<Self> {
        match tensor {
            Some(tensor) => self.values(tensor),
            None => Ok(self.argument(Argument::Address(0))),
        }
    }

    /// What [`hashes`] gave.
    pub fn hashes(self, tensor: &'a Tensor) -> Result<Self> {
        self.tensor(tensor, DType::I64)
    }

    /// f64
    pub fn doubles(self, tensor: &'a Tensor) -> Result<Self> {
        self.tensor(tensor, DType::F64)
    }

    pub fn maybe_floats(self, tensor: Option<&'a Tensor>) -> Result<Self> {
        match tensor {
            Some(tensor) => self.floats(tensor),
            None => Ok(self.argument(Argument::Address(0))),
        }
    }

    pub fn integer(self, value: usize) -> Result<Self> {
        let value = i32::try_from(value).with_context(|| format!("`{}`: {value} is too large for a kernel", self.name))?;
        Ok(self.argument(Argument::Integer(value)))
    }

    pub fn long(self, value: u64) -> Self {
        self.argument(Argument::Long(value))
    }

    pub fn float(self, value: f64) -> Self {
        self.argument(Argument::Float(value as f32))
    }

    pub fn flag(self, value: bool) -> Self {
        self.argument(Argument::Integer(i32::from(value)))
    }

    /// Bytes of shared memory beside what the kernel declares.
    pub fn shared(mut self, bytes: usize) -> Self {
        self.shared_bytes = bytes;
        self
    }

    fn tensor(self, tensor: &'a Tensor, dtype: DType) -> Result<Self> {
        ensure!(tensor.dtype() == dtype, "`{}` takes {dtype:?}, not {:?}", self.name, tensor.dtype());
        ensure!(tensor.device().same_device(&self.device), "`{}`: tensors on several devices", self.name);
        let address = address(tensor).with_context(|| format!("`{}`", self.name))?;
        Ok(self.argument(Argument::Address(address)))
    }

    fn argument(mut self, argument: Argument) -> Self {
        self.arguments.push(argument);
        self
    }

    /// Starts it on `blocks` (x, y, z) blocks of `threads` threads, a multiple of 32.
    pub fn run(self, blocks: [usize; 3], threads: usize) -> Result<()> {
        if blocks.contains(&0) {
            return Ok(());
        }
        ensure!(threads.is_multiple_of(32) && (32..=1024).contains(&threads), "`{}`: blocks of {threads} threads", self.name);
        ensure!(blocks[1].max(blocks[2]) <= 65_535, "`{}`: {blocks:?} blocks", self.name);
        let start = || match &self.device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => cuda::launch(device, &self, blocks, threads),
            Device::Cpu => emulated::launch(&self, blocks, threads),
            device => bail!("`{}` cannot run on {:?}", self.name, device.location()),
        };
        record::launch(&self.device, || self.name.clone(), start)
    }
}

/// Values that a thread takes of a row at a time: CHUNK of `gpu.cuh`.
pub(crate) const CHUNK: usize = 8;

/// Threads for a block that walks rows of `width` values, a chunk a thread at a time: whole warps, `most` at most.
pub(crate) fn threads_for(width: usize, most: usize) -> usize {
    width.div_ceil(CHUNK).next_multiple_of(32).clamp(32, most)
}

/// Where the values of a contiguous tensor, or band of one, begin on its device.
pub(super) fn address(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let start = super::contiguous(layout)?.start;
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => Ok(values.as_ptr().wrapping_add(start) as u64),
        Storage::Cpu(CpuStorage::BF16(values)) => Ok(values.as_ptr().wrapping_add(start) as u64),
        Storage::Cpu(CpuStorage::U32(values)) => Ok(values.as_ptr().wrapping_add(start) as u64),
        Storage::Cpu(CpuStorage::I64(values)) => Ok(values.as_ptr().wrapping_add(start) as u64),
        Storage::Cpu(CpuStorage::F64(values)) => Ok(values.as_ptr().wrapping_add(start) as u64),
        Storage::Cpu(CpuStorage::U8(values)) => Ok(values.as_ptr().wrapping_add(start) as u64),
        #[cfg(feature = "cuda")]
        Storage::Cuda(values) => cuda::address(values, start),
        _ => bail!("no kernel takes {:?} on {:?}", tensor.dtype(), tensor.device().location()),
    }
}

/// Values of any content on `device`, for a kernel that writes them all.
pub(crate) fn empty(shape: &[usize], dtype: DType, device: &Device) -> Result<Buffer> {
    let n_values = shape.iter().product();
    match (device, dtype) {
        (Device::Cpu, DType::F32) => Buffer::new(Scratch::new(n_values), shape),
        // What is read before it is written is not a number.
        (Device::Cpu, _) => Ok(Buffer::of(Tensor::full(f32::NAN, shape, device)?.to_dtype(dtype)?)),
        // SAFETY: every value is written by the kernel that this is made for, before anything reads it.
        _ => Ok(Buffer::of(unsafe { Tensor::empty(shape, dtype, device)? })),
    }
}

/// [`empty`] of the type and on the device of `like`.
pub(crate) fn empty_like(shape: &[usize], like: &Tensor) -> Result<Buffer> {
    empty(shape, like.dtype(), like.device())
}

/// Indices on the device of `like`.
pub(crate) fn indices(values: Vec<u32>, like: &Tensor) -> Result<Tensor> {
    upload(&values, like)
}

/// Hashes of 64 bits on the device of `like`, as the signed integers of the same bits.
pub(crate) fn hashes(values: &[u64], like: &Tensor) -> Result<Tensor> {
    let values: Vec<i64> = values.iter().map(|value| value.cast_signed()).collect();
    upload(&values, like)
}

/// f32 values on the device of `like`.
pub(crate) fn floats(values: &[f32], like: &Tensor) -> Result<Tensor> {
    upload(values, like)
}

/// Values on the device of `like`. Nothing waits.
fn upload<T: WithDType>(values: &[T], like: &Tensor) -> Result<Tensor> {
    match like.device() {
        #[cfg(feature = "cuda")]
        Device::Cuda(device) => cuda::upload(device, values),
        device => Ok(Tensor::from_slice(values, values.len(), device)?),
    }
}

/// What a table on the host is on the device, once it was needed there: all layers of a batch read the same copy.
#[derive(Debug, Clone, Default)]
pub(crate) struct OnDevice(OnceLock<Tensor>);

impl OnDevice {
    /// The copy that is there, or the one that `upload` makes. It lies on the device of whoever came first.
    pub fn or_upload(&self, upload: impl FnOnce() -> Result<Tensor>) -> Result<&Tensor> {
        match self.0.get() {
            Some(copy) => Ok(copy),
            None => {
                let copy = upload()?;
                Ok(self.0.get_or_init(|| copy))
            }
        }
    }
}

/// Sets all values to zero.
pub(crate) fn clear(tensor: &Tensor) -> Result<()> {
    let n_values = tensor.elem_count();
    Kernel::new("clear", tensor)?.values(tensor)?.long(n_values as u64).run(packs(n_values, tensor), 256)
}

/// `sum += other`, of one type and shape.
pub(crate) fn accumulate(sum: &Tensor, other: &Tensor) -> Result<()> {
    let n_values = sum.elem_count();
    Kernel::new("accumulate", sum)?.values(sum)?.values(other)?.long(n_values as u64).run(packs(n_values, sum), 256)
}

/// Blocks of 256 threads of which each takes 16 bytes of `n_values` values.
fn packs(n_values: usize, like: &Tensor) -> [usize; 3] {
    [n_values.div_ceil(256 * per_pack(like)), 1, 1]
}

/// Values in 16 bytes.
fn per_pack(like: &Tensor) -> usize {
    16 / like.dtype().size_in_bytes()
}

/// Adds the rows of `partial [P, W]`, in order, to `sum [W]`, both f32.
pub(crate) fn add_partial_sums(sum: &Tensor, partial: &Tensor) -> Result<()> {
    let (n_partial, width) = partial.dims2()?;
    let kernel = Kernel::new("add_partial_sums", sum)?.floats(sum)?.floats(partial)?.integer(n_partial)?.integer(width)?;
    kernel.run([width.div_ceil(32), 1, 1], 32 * n_partial.clamp(1, 32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gpu::twin::agree;
    use crate::ops::{clear, linear};

    /// A band need not begin, nor end, where a pack of 16 bytes does.
    #[test]
    fn fills_and_sums_of_bands_agree_with_the_cpu() {
        for (start, n_values) in [(0, 2048), (0, 5), (3, 1001), (8, 2049)] {
            agree(&format!("{n_values} values from {start}"), |place| {
                let [cleared, sum] = [1, 2].map(|seed| place.values(seed, &[3000]));
                clear(&cleared.narrow(0, start, n_values)?)?;
                linear::accumulate(&sum.narrow(0, start, n_values)?, &place.values(3, &[n_values]))?;
                Ok(vec![cleared, sum])
            });
        }
    }

    #[test]
    fn uploads_arrive() -> Result<()> {
        let check = |device: &Device| -> Result<()> {
            let like = Tensor::zeros(1, DType::F32, device)?;
            // Many at once: each has memory of its own until its copy is made.
            let numbers = [1, 70_000, 3, 70_000, 1 << 20].map(|n| (0..n).map(|i| i * 31 + n).collect::<Vec<u32>>());
            let copies = numbers.iter().map(|numbers| indices(numbers.clone(), &like)).collect::<Result<Vec<_>>>()?;
            for (numbers, copy) in numbers.iter().zip(copies) {
                assert!(copy.to_vec1::<u32>()? == *numbers);
            }
            assert_eq!(floats(&[0.5, -2.0], &like)?.to_vec1::<f32>()?, [0.5, -2.0]);
            assert_eq!(hashes(&[u64::MAX, 7], &like)?.to_vec1::<i64>()?, [-1, 7]);
            assert_eq!(floats(&[], &like)?.elem_count(), 0);
            Ok(())
        };
        check(&Device::Cpu)?;
        #[cfg(feature = "cuda")]
        if let Ok(device) = at(0) {
            check(&device)?;
        }
        Ok(())
    }

    #[test]
    fn a_table_is_uploaded_once() -> Result<()> {
        let (table, like) = (OnDevice::default(), Tensor::zeros(1, DType::F32, &Device::Cpu)?);
        assert!(table.or_upload(|| bail!("no memory")).is_err());
        let first = table.or_upload(|| indices(vec![7], &like))?.to_vec1::<u32>()?;
        let again = table.or_upload(|| bail!("uploaded twice"))?.to_vec1::<u32>()?;
        assert_eq!((first, again), (vec![7], vec![7]));
        Ok(())
    }
}
