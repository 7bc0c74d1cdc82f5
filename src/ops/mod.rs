//! Building blocks: one file per op, forward and backward together.

use anyhow::{Result, anyhow};
use candle_core::{CpuStorage, InplaceOp1, Layout, Storage, Tensor};
use std::cell::RefCell;

/// Read access to a contiguous f32 CPU tensor.
pub struct ReadGuard<G> {
    storage: G,
    range: std::ops::Range<usize>,
}

impl<G: std::ops::Deref<Target = Storage>> std::ops::Deref for ReadGuard<G> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(v)) => &v[self.range.clone()],
            _ => &[],
        }
    }
}

pub fn read(tensor: &Tensor) -> Result<impl std::ops::Deref<Target = [f32]> + '_> {
    let (storage, layout) = tensor.storage_and_layout();
    let (start, end) = layout.contiguous_offsets().ok_or_else(|| anyhow!("not contiguous"))?;
    Ok(ReadGuard { storage, range: start..end })
}

struct Update<F>(RefCell<F>);

impl<F: FnMut(&mut [f32])> InplaceOp1 for Update<F> {
    fn name(&self) -> &'static str {
        "update"
    }
    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (start, end) = layout.contiguous_offsets().ok_or_else(|| candle_core::Error::Msg("not contiguous".into()))?;
        match storage {
            CpuStorage::F32(v) => (self.0.borrow_mut())(&mut v[start..end]),
            _ => candle_core::bail!("not f32"),
        }
        Ok(())
    }
}

pub fn update(tensor: &Tensor, f: impl FnMut(&mut [f32])) -> Result<()> {
    Ok(tensor.inplace_op1(&Update(RefCell::new(f)))?)
}
