//! Rows that are gathered, and rows that are added where they came from.

use super::{CHUNK, Kernel, empty_like, indices, threads_for};
use crate::ops::Buffer;
use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};

/// The rows `index` of `source [N, W]`, times `scale`: `[M, W]`.
pub(crate) fn gather(source: &Tensor, index: Vec<u32>, scale: f32) -> Result<Buffer> {
    gather_scaled(source, None, index, scale)
}

/// [`gather`] of rows times `factors [M]`.
pub(crate) fn gather_scaled(source: &Tensor, factors: Option<&Tensor>, index: Vec<u32>, scale: f32) -> Result<Buffer> {
    let (n_source, width) = source.dims2()?;
    let n_rows = index.len();
    ensure!(index.iter().all(|&row| (row as usize) < n_source), "a row outside {n_source} rows");
    let out = empty_like(&[n_rows, width], source)?;
    let index = indices(index, source)?;
    let kernel = Kernel::new("gather_rows", source)?.values(source)?.maybe_floats(factors)?.indices(&index)?.values(&out)?;
    kernel.integer(width)?.float(scale.into()).run([n_rows, 1, 1], threads_for(width, 512))?;
    Ok(out)
}

/// `sums[into[i]] += scale * rows[i]` for those of `rows [M, W]` that go anywhere, in the order of the rows. Sums are of the type of `rows`, or f32.
pub(crate) fn scatter_add(rows: &Tensor, into: &[Option<u32>], sums: &Tensor, scale: f32) -> Result<()> {
    scatter_add_scaled(rows, None, into, sums, scale)
}

/// [`scatter_add`] of rows times `factors [M]`.
pub(crate) fn scatter_add_scaled(rows: &Tensor, factors: Option<&Tensor>, into: &[Option<u32>], sums: &Tensor, scale: f32) -> Result<()> {
    let ((n_rows, width), (n_sums, sum_width)) = (rows.dims2()?, sums.dims2()?);
    ensure!(n_rows == into.len() && width == sum_width, "{n_rows} rows of {width} values to {} places of {sum_width}", into.len());
    ensure!(into.iter().flatten().all(|&row| (row as usize) < n_sums), "a row outside {n_sums} rows");
    let mut order: Vec<(u32, u32)> = into.iter().zip(0..).filter_map(|(into, row)| into.map(|into| (into, row))).collect();
    order.sort_unstable();
    let (mut places, mut starts) = (Vec::new(), Vec::new());
    for (i, &(into, _)) in order.iter().enumerate() {
        if places.last() != Some(&into) {
            places.push(into);
            starts.push(i as u32);
        }
    }
    starts.push(order.len() as u32);
    let n_places = places.len();
    let name = if sums.dtype() == rows.dtype() { "scatter_add_rows" } else { "scatter_add_rows_into_floats" };
    let [places, starts, order] = [places, starts, order.into_iter().map(|(_, row)| row).collect()].map(|values| indices(values, rows));
    let (places, starts, order) = (places?, starts?, order?);
    let kernel = Kernel::new(name, rows)?.values(rows)?.maybe_floats(factors)?.indices(&places)?.indices(&starts)?.indices(&order)?;
    let kernel = if sums.dtype() == rows.dtype() { kernel.values(sums)? } else { kernel.floats(sums)? };
    kernel.integer(width)?.float(scale.into()).run([n_places, 1, 1], threads_for(width, 512))
}

/// Adds the sums of the columns of `rows [N, W]` to `sums [W]`, f32.
pub(crate) fn add_column_sums(rows: &Tensor, sums: &Tensor) -> Result<()> {
    const ROWS_PER_BLOCK: usize = 64;
    let (n_rows, width) = rows.dims2()?;
    let n_partial = n_rows.div_ceil(ROWS_PER_BLOCK);
    let partial = super::empty(&[n_partial, width], DType::F32, rows.device())?;
    let kernel = Kernel::new("sum_columns", rows)?.values(rows)?.floats(&partial)?;
    let threads = threads_for(width, 128);
    kernel.integer(n_rows)?.integer(width)?.integer(ROWS_PER_BLOCK)?.run([width.div_ceil(CHUNK * threads), n_partial, 1], threads)?;
    super::add_partial_sums(sums, &partial)
}
