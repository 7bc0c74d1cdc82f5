//! Functions of the host in the stream (`cuLaunchHostFunc`), between a copy off the device and a copy back.

use super::super::host_calls::Work;
use super::{address, driver};
use anyhow::{Context, Result, bail};
use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::result;
use candle_core::{Storage, Tensor};
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

/// Pages of the host that the device copies to and from by itself. They are asked for once and lent again and again.
struct Pinned {
    address: *mut f32,
    n_values: usize,
}

// SAFETY: whoever has it has the memory behind the address.
unsafe impl Send for Pinned {}

/// Those that no stream uses.
static FREE: Mutex<Vec<Pinned>> = Mutex::new(Vec::new());

impl Pinned {
    /// At least one value, since an empty piece has no address.
    fn lend(n_values: usize) -> Result<Self> {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(i) = free.iter().position(|piece| piece.n_values >= n_values) {
            return Ok(free.swap_remove(i));
        }
        let n_values = n_values.next_power_of_two().max(1024);
        // SAFETY: the stream's context is this thread's. The memory is written before it is read: by the copy, or by the function's owner.
        let address = unsafe { result::malloc_host(n_values * size_of::<f32>(), driver::CU_MEMHOSTALLOC_PORTABLE) };
        Ok(Self { address: address.context("memory for copies between the host and the GPU")?.cast(), n_values })
    }
}

/// What the driver is given to call.
struct Call {
    input: (*const f32, usize),
    output: (*mut f32, usize),
    work: Work,
}

unsafe extern "C" fn call(boxed: *mut c_void) {
    // SAFETY: `put` made the box for this one call.
    let Call { input, output, work } = *unsafe { Box::from_raw(boxed.cast::<Call>()) };
    // SAFETY: both are pinned memory of so many values, which is lent until the stream is done. The copy before has written the input, and the copy
    // behind reads the output.
    work(unsafe { std::slice::from_raw_parts(input.0, input.1) }, unsafe { std::slice::from_raw_parts_mut(output.0, output.1) });
}

/// The calls of one stream, and the memory that they are lent.
#[derive(Default)]
pub struct HostCalls {
    device: Option<CudaDevice>,
    lent: Vec<Pinned>,
}

impl HostCalls {
    pub fn put(&mut self, device: &CudaDevice, input: &Tensor, output: &Tensor, work: Work) -> Result<()> {
        let stream = device.cuda_stream();
        stream.context().bind_to_thread()?;
        self.device = Some(device.clone());
        let [n_in, n_out] = [input, output].map(Tensor::elem_count);
        let [from, to] = [Pinned::lend(n_in)?, Pinned::lend(n_out)?];
        let [from_address, to_address] = [&from, &to].map(|piece| piece.address);
        // From now on the stream may use them.
        self.lent.extend([from, to]);
        if n_in > 0 {
            // SAFETY: so many values lie on either side, and both sides stay until the stream is done.
            unsafe { result::memcpy_dtoh_async(std::slice::from_raw_parts_mut(from_address, n_in), start(input)?, stream.cu_stream()) }
                .context("a copy to the host")?;
        }
        let boxed = Box::into_raw(Box::new(Call { input: (from_address, n_in), output: (to_address, n_out), work }));
        // SAFETY: `call` takes such a box, and calls nothing of the driver.
        if let Err(error) = unsafe { result::stream::launch_host_function(stream.cu_stream(), call, boxed.cast()) } {
            // SAFETY: the driver did not take it.
            drop(unsafe { Box::from_raw(boxed) });
            return Err(error).context("a call of the host");
        }
        if n_out > 0 {
            // SAFETY: as above; the function writes the values before they are copied.
            unsafe { result::memcpy_htod_async(start(output)?, std::slice::from_raw_parts(to_address, n_out), stream.cu_stream()) }
                .context("a copy to the GPU")?;
        }
        Ok(())
    }

    pub fn wait(mut self) -> Result<()> {
        self.take_back()
    }

    /// Memory whose stream failed is not lent again.
    fn take_back(&mut self) -> Result<()> {
        let Some(device) = self.device.take() else { return Ok(()) };
        let lent = std::mem::take(&mut self.lent);
        device.cuda_stream().synchronize()?;
        FREE.lock().unwrap_or_else(PoisonError::into_inner).extend(lent);
        Ok(())
    }
}

impl Drop for HostCalls {
    fn drop(&mut self) {
        // Whoever drops them without waiting has an error already.
        let _ = self.take_back();
    }
}

/// Where a tensor's values begin on the device.
fn start(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cuda(values) => address(values, layout.start_offset()),
        _ => bail!("a copy between the host and a tensor that is there"),
    }
}
