//! Where a model's values lie, and in which type.

use super::gpu;
use crate::config::ComputeDtype;
use candle_core::{DType, Device};

/// A device, and the type that products are computed in.
#[derive(Debug, Clone)]
pub struct Place {
    pub device: Device,
    pub compute: ComputeDtype,
    /// The type that weights are stored in, and on a GPU activations.
    pub storage: DType,
}

impl Place {
    /// On the CPU weights are stored in f32 in any case: there a product rounds its inputs as it packs them, and the weights need no copy to be
    /// updated exactly. A GPU reads what it computes with, so that bf16 halves the bytes.
    pub fn new(device: Device, compute: ComputeDtype) -> Self {
        let storage = match compute {
            ComputeDtype::Bf16 if is_gpu(&device) => DType::BF16,
            _ => DType::F32,
        };
        Self { device, compute, storage }
    }

    /// Whether a GPU, or who plays one on this thread, computes there.
    pub fn is_on_gpu(&self) -> bool {
        is_gpu(&self.device)
    }

    /// With weights in bf16 also on the CPU, which widens them whenever it reads them.
    pub fn with_bf16_weights(self) -> Self {
        Self { storage: DType::BF16, ..self }
    }
}

fn is_gpu(device: &Device) -> bool {
    device.is_cuda() || gpu::emulated()
}

/// On the CPU.
impl From<ComputeDtype> for Place {
    fn from(compute: ComputeDtype) -> Self {
        Self::new(Device::Cpu, compute)
    }
}
