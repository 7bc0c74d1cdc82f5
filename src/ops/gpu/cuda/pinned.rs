//! Memory of the host that a device copies to and from by itself. A copy from any other memory may make the host wait until the device has come that far.

use super::super::address;
use super::driver;
use anyhow::{Context, Result};
use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, result};
use candle_core::{Device, Tensor, WithDType};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A piece of it. Pieces are asked of the driver once and lent again and again; one that is dropped is lost.
pub struct Pinned {
    address: *mut u8,
    n_bytes: usize,
}

// SAFETY: whoever has it has the memory behind the address.
unsafe impl Send for Pinned {}

/// Pieces that nobody has, and such as some device may still be using, until it has come to the event.
static FREE: Mutex<Vec<Pinned>> = Mutex::new(Vec::new());
static IN_USE: Mutex<Vec<(CudaEvent, Pinned)>> = Mutex::new(Vec::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pinned {
    /// The smallest piece that is large enough. The device's context must be this thread's.
    pub fn lend(n_bytes: usize) -> Result<Self> {
        let mut free = lock(&FREE);
        free.extend(lock(&IN_USE).extract_if(.., |(event, _)| event.is_complete()).map(|(_, piece)| piece));
        let large_enough = free.iter().enumerate().filter(|(_, piece)| piece.n_bytes >= n_bytes);
        if let Some((i, _)) = large_enough.min_by_key(|(_, piece)| piece.n_bytes) {
            return Ok(free.swap_remove(i));
        }
        let n_bytes = n_bytes.next_power_of_two().max(4096);
        // SAFETY: the memory is written before it is read: by the host or by the device's copy.
        let address = unsafe { result::malloc_host(n_bytes, driver::CU_MEMHOSTALLOC_PORTABLE) };
        Ok(Self { address: address.context("memory for copies between the host and the GPU")?.cast(), n_bytes })
    }

    pub fn address<T>(&self) -> *mut T {
        self.address.cast()
    }

    /// To be lent again when the device has done what was started so far.
    pub fn give_back(self, device: &CudaDevice) -> Result<()> {
        lock(&IN_USE).push((super::mark(device)?, self));
        Ok(())
    }
}

/// A new tensor of `values`, which the device copies when it comes to it.
pub fn upload<T: WithDType>(device: &CudaDevice, values: &[T]) -> Result<Tensor> {
    let (stream, n_bytes) = (device.cuda_stream(), size_of_val(values));
    stream.context().bind_to_thread()?;
    // At least one value, since nothing has no address.
    // SAFETY: all values that the tensor has are copied below.
    let tensor = unsafe { Tensor::empty(values.len().max(1), T::DTYPE, &Device::Cuda(device.clone()))? };
    let piece = Pinned::lend(n_bytes)?;
    // SAFETY: the piece is of so many bytes at least, and nobody else has it; the tensor is of as many, and both stay until the copy is made: the piece by its
    // event, the tensor because its memory is freed in the order of the stream.
    unsafe {
        std::ptr::copy_nonoverlapping(values.as_ptr().cast(), piece.address::<u8>(), n_bytes);
        let from = std::slice::from_raw_parts(piece.address::<u8>(), n_bytes);
        result::memcpy_htod_async(address(&tensor)?, from, stream.cu_stream()).context("a copy to the GPU")?;
    }
    piece.give_back(device)?;
    Ok(tensor.narrow(0, 0, values.len())?)
}
