//! Functions of the host in the stream (`cuLaunchHostFunc`), between a copy off the device and a copy back.

use super::super::address;
use super::super::host_calls::Work;
use super::pinned::Pinned;
use anyhow::{Context, Result};
use candle_core::Tensor;
use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::result;
use std::ffi::c_void;

/// What the driver is given to call.
struct Call {
    input: (*const f32, usize),
    output: (*mut f32, usize),
    work: Work,
}

unsafe extern "C" fn call(boxed: *mut c_void) {
    // SAFETY: `put` made the box for this one call.
    let Call { input, output, work } = *unsafe { Box::from_raw(boxed.cast::<Call>()) };
    // SAFETY: both are pinned memory of so many values, which nobody else has until the stream has come to what is behind this call. The copy before has
    // written the input, and the copy behind reads the output.
    work(unsafe { std::slice::from_raw_parts(input.0, input.1) }, unsafe { std::slice::from_raw_parts_mut(output.0, output.1) });
}

/// The calls of one stream.
#[derive(Default)]
pub struct HostCalls {
    /// Where there are any.
    device: Option<CudaDevice>,
}

impl HostCalls {
    pub fn put(&mut self, device: &CudaDevice, input: &Tensor, output: &Tensor, work: Work) -> Result<()> {
        let stream = device.cuda_stream();
        stream.context().bind_to_thread()?;
        self.device = Some(device.clone());
        let [n_in, n_out] = [input, output].map(Tensor::elem_count);
        let (from, to) = (Pinned::lend(n_in * size_of::<f32>())?, Pinned::lend(n_out * size_of::<f32>())?);
        if n_in > 0 {
            // SAFETY: so many values lie on either side. The piece stays until its event, the tensor's memory is freed in the order of the stream.
            unsafe {
                result::memcpy_dtoh_async(std::slice::from_raw_parts_mut(from.address::<f32>(), n_in), address(input)?, stream.cu_stream())
            }
            .context("a copy to the host")?;
        }
        let boxed = Box::into_raw(Box::new(Call { input: (from.address(), n_in), output: (to.address(), n_out), work }));
        // SAFETY: `call` takes such a box, and calls nothing of the driver.
        if let Err(error) = unsafe { result::stream::launch_host_function(stream.cu_stream(), call, boxed.cast()) } {
            // SAFETY: the driver did not take it.
            drop(unsafe { Box::from_raw(boxed) });
            return Err(error).context("a call of the host");
        }
        if n_out > 0 {
            // SAFETY: as above; the function writes the values before they are copied.
            unsafe {
                result::memcpy_htod_async(address(output)?, std::slice::from_raw_parts(to.address::<f32>(), n_out), stream.cu_stream())
            }
            .context("a copy to the GPU")?;
        }
        from.give_back(device)?;
        to.give_back(device)
    }

    pub fn wait(self) -> Result<()> {
        Ok(self.device.map_or(Ok(()), |device| device.cuda_stream().synchronize())?)
    }
}
