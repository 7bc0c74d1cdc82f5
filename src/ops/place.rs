//! Where a model's values lie, and in which type.

use super::gpu;
use crate::config::ComputeDtype;
use candle_core::{DType, Device};

/// A device, and the type that products are computed in.
#[derive(Debug, Clone)]
pub struct Place {
    pub device: Device,
    pub compute: ComputeDtype,
}

impl Place {
    /// The type that weights and activations are stored in. On the CPU it is f32 in any case: there a product rounds its inputs as it packs them, and
    /// the weights need no copy to be updated exactly. A GPU reads what it computes with, so that bf16 halves the bytes.
    pub fn storage(&self) -> DType {
        match self.compute {
            ComputeDtype::Bf16 if self.device.is_cuda() || gpu::emulated() => DType::BF16,
            _ => DType::F32,
        }
    }
}

/// On the CPU.
impl From<ComputeDtype> for Place {
    fn from(compute: ComputeDtype) -> Self {
        Self { device: Device::Cpu, compute }
    }
}
