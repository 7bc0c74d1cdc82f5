//! RMS norm on the GPU.

use super::{Heads, NormStyle, RmsNorm};
use crate::ops::Buffer;
use crate::ops::gpu::{self, Kernel, add_partial_sums, empty, empty_like, threads_for};
use anyhow::Result;
use candle_core::{DType, Tensor};

/// Blocks that a backward's rows are cut into, at most: what they add to the weight's gradient is summed afterwards.
const MAX_PARTIAL_SUMS: usize = 512;
/// Warps of a block that norms heads.
const WARPS: usize = 4;

impl RmsNorm<'_> {
    fn is_one_plus(&self) -> bool {
        self.style == NormStyle::OnePlus
    }

    pub(super) fn forward_on_gpu(&self, sum: &Tensor, x: Option<&Tensor>) -> Result<(Buffer, Buffer)> {
        let (n_rows, width) = sum.dims2()?;
        let (y, r) = (empty_like(&[n_rows, width], sum)?, empty(&[n_rows, 1], DType::F32, sum.device())?);
        let kernel = Kernel::new("rms_norm_forward", sum)?.values(sum)?.maybe_values(x)?.values(self.weight)?.values(&y)?.floats(&r)?;
        kernel.integer(width)?.float(self.eps).flag(self.is_one_plus()).run([n_rows, 1, 1], threads_for(width, 1024))?;
        Ok((y, r))
    }

    pub(super) fn recompute_on_gpu(&self, x: &Tensor, r: &Tensor) -> Result<Buffer> {
        let (n_rows, width) = x.dims2()?;
        let y = empty_like(&[n_rows, width], x)?;
        let kernel = Kernel::new("rms_norm_recompute", x)?.values(x)?.values(self.weight)?.floats(r)?.values(&y)?;
        kernel.integer(width)?.flag(self.is_one_plus()).run([n_rows, 1, 1], threads_for(width, 1024))?;
        Ok(y)
    }

    /// `dy` and the gradient `past` the norm.
    pub(super) fn backward_on_gpu(
        &self,
        x: &Tensor,
        r: &Tensor,
        (dy, past): (&Tensor, Option<&Tensor>),
        weight_gradient: Option<&Tensor>,
    ) -> Result<Buffer> {
        let (n_rows, width) = x.dims2()?;
        let rows_per_block = n_rows.div_ceil(MAX_PARTIAL_SUMS);
        let n_blocks = n_rows.div_ceil(rows_per_block.max(1));
        let dx = empty_like(&[n_rows, width], x)?;
        let partial = weight_gradient.map(|_| empty(&[n_blocks, width], DType::F32, x.device())).transpose()?;
        let kernel = Kernel::new("rms_norm_backward", x)?.values(x)?.values(self.weight)?.floats(r)?.values(dy)?.maybe_values(past)?;
        let kernel = kernel.values(&dx)?.maybe_floats(partial.as_deref())?.integer(n_rows)?.integer(width)?.integer(rows_per_block)?;
        let shared = if partial.is_some() { width * size_of::<f32>() } else { 0 };
        kernel.flag(self.is_one_plus()).shared(shared).run([n_blocks, 1, 1], threads_for(width, 512))?;
        if let Some((gradient, partial)) = weight_gradient.zip(partial) {
            add_partial_sums(gradient, &partial)?;
        }
        Ok(dx)
    }

    pub(super) fn forward_heads_on_gpu(&self, x: &Tensor, heads: Heads) -> Result<Buffer> {
        let n_rows = x.dim(0)?;
        let n_units = n_rows * heads.n_heads;
        let r = empty(&[n_rows, heads.n_heads], DType::F32, x.device())?;
        let kernel = Kernel::new("rms_norm_heads_forward", x)?.values(x)?.values(self.weight)?.floats(&r)?.integer(n_units)?;
        let kernel = kernel.integer(heads.row_width)?.integer(heads.first)?.integer(heads.n_heads)?.integer(heads.head_dim)?;
        kernel.float(self.eps).flag(self.is_one_plus()).run([n_units.div_ceil(WARPS), 1, 1], 32 * WARPS)?;
        Ok(r)
    }

    pub(super) fn backward_heads_on_gpu(
        &self,
        x: &Tensor,
        r: &Tensor,
        d: &Tensor,
        weight_gradient: Option<&Tensor>,
        heads: Heads,
    ) -> Result<()> {
        let n_units = x.dim(0)? * heads.n_heads;
        let units_per_block = n_units.div_ceil(MAX_PARTIAL_SUMS).next_multiple_of(WARPS);
        let n_blocks = n_units.div_ceil(units_per_block);
        let partial = weight_gradient.map(|_| empty(&[n_blocks, heads.head_dim], DType::F32, x.device())).transpose()?;
        let kernel = Kernel::new("rms_norm_heads_backward", x)?.values(x)?.values(self.weight)?.floats(r)?.values(d)?;
        let kernel = kernel.maybe_floats(partial.as_deref())?.integer(n_units)?.integer(units_per_block)?.integer(heads.row_width)?;
        let kernel = kernel.integer(heads.first)?.integer(heads.n_heads)?.integer(heads.head_dim)?.flag(self.is_one_plus());
        kernel.shared(WARPS * heads.head_dim * size_of::<f32>()).run([n_blocks, 1, 1], 32 * WARPS)?;
        match weight_gradient.zip(partial) {
            Some((gradient, partial)) => gpu::add_partial_sums(gradient, &partial),
            None => Ok(()),
        }
    }
}
