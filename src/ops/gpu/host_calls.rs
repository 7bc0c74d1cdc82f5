//! Functions of the host between kernels.

use crate::ops::{change_values, values_of};
use anyhow::Result;
use candle_core::Tensor;

#[cfg(feature = "cuda")]
use super::cuda;

/// Reads one tensor's values and writes all of another's.
pub(crate) type Work = Box<dyn FnOnce(&[f32], &mut [f32]) + Send>;

/// Those of one device that it may not have come to.
#[derive(Default)]
pub(crate) struct HostCalls {
    #[cfg(feature = "cuda")]
    cuda: cuda::HostCalls,
}

impl HostCalls {
    /// Calls `work` between what was started before and what will be started from now on. Both tensors are f32, and `output` may be empty.
    pub fn put(&mut self, input: &Tensor, output: &Tensor, work: Work) -> Result<()> {
        match input.device() {
            #[cfg(feature = "cuda")]
            candle_core::Device::Cuda(device) => self.cuda.put(device, input, output, work),
            // The emulator has done what was started.
            _ => {
                let input = values_of(input)?;
                change_values(output, |output| work(&input, output))
            }
        }
    }

    /// Waits until all were called.
    pub fn wait(self) -> Result<()> {
        #[cfg(feature = "cuda")]
        self.cuda.wait()?;
        Ok(())
    }
}
