//! Keys and values that stay on the GPU, and the next token's attention over them.

use crate::ops::Buffer;
use crate::ops::attention::Attention;
use crate::ops::attention::on_gpu::layer_arguments;
use crate::ops::gpu::{Kernel, address, empty_like, indices, threads_for};
use anyhow::{Result, ensure};
use candle_core::Tensor;
use std::ops::Range;
use std::sync::Arc;

/// Rows that the first keys and values find room for.
const LEAST_ROWS: usize = 64;
/// Query heads that a block takes: HEADS_PER_BLOCK of the kernel.
const HEADS_PER_BLOCK: usize = 8;

/// Keys and values of one sequence, in the type of the rows that they came from.
#[derive(Debug, Clone)]
pub(super) struct Rows {
    /// `[room, 2K hd]`. Written to by its only owner: a clone shares it until one of both grows.
    values: Arc<Tensor>,
    n_rows: usize,
}

/// Appends some rows of `qkv` to those kept.
pub(super) fn keep(qkv: &Tensor, rows: Range<usize>, attention: &Attention, kept: &mut Option<Rows>) -> Result<()> {
    let Rows { values, n_rows } = with_room(qkv, rows.len(), attention, kept)?;
    let (from, to) = (qkv.narrow(0, rows.start, rows.len())?, values.narrow(0, *n_rows, rows.len())?);
    copy(&from, attention.n_heads * attention.head_dim, &to)?;
    *n_rows += rows.len();
    Ok(())
}

/// [`super::forward_next`], of the type of `qkv`.
pub(super) fn forward_next(qkv: &Tensor, kept: Vec<&mut Option<Rows>>, attention: &Attention) -> Result<Buffer> {
    let (n_sequences, n_heads) = (kept.len(), attention.n_heads);
    let mut table = Vec::with_capacity(3 * n_sequences);
    for kept in kept {
        let Rows { values, n_rows } = with_room(qkv, 1, attention, kept)?;
        let address = address(values)?;
        table.extend([address as u32, (address >> 32) as u32, *n_rows as u32]);
        *n_rows += 1;
    }
    let out = empty_like(&[n_sequences, n_heads * attention.head_dim], qkv)?;
    let table = indices(table, qkv)?;
    // A thread for each column.
    let threads = attention.head_dim.next_multiple_of(32).clamp(128, 1024);
    ensure!(attention.head_dim <= threads, "no kernel for heads of {} values", attention.head_dim);
    let kernel = Kernel::new("attention_next", qkv)?.values(qkv)?.values(&out)?.indices(&table)?;
    let shared = (HEADS_PER_BLOCK * (attention.head_dim + threads) + 32) * size_of::<f32>();
    let blocks = attention.n_kv_heads * attention.group().div_ceil(HEADS_PER_BLOCK);
    layer_arguments(kernel, attention)?.shared(shared).run([blocks, n_sequences, 1], threads)?;
    Ok(out)
}

/// What is kept, with room for `n_more` rows that nobody else holds.
fn with_room<'a>(like: &Tensor, n_more: usize, attention: &Attention, kept: &'a mut Option<Rows>) -> Result<&'a mut Rows> {
    let width = 2 * attention.n_kv_heads * attention.head_dim;
    let rows = match kept.take() {
        Some(rows) if Arc::strong_count(&rows.values) == 1 && rows.n_rows + n_more <= rows.values.dim(0)? => rows,
        old => {
            let n_rows = old.as_ref().map_or(0, |old| old.n_rows);
            let room = (n_rows + n_more).next_power_of_two().max(LEAST_ROWS);
            let values = Tensor::zeros((room, width), like.dtype(), like.device())?;
            if let Some(old) = old {
                copy(&old.values.narrow(0, 0, n_rows)?, 0, &values.narrow(0, 0, n_rows)?)?;
            }
            Rows { values: Arc::new(values), n_rows }
        }
    };
    Ok(kept.insert(rows))
}

/// Copies the columns from `first` on, as many as `to` has.
fn copy(from: &Tensor, first: usize, to: &Tensor) -> Result<()> {
    let ((n_rows, from_width), width) = (from.dims2()?, to.dim(1)?);
    let kernel = Kernel::new("copy_columns", to)?.values(from)?.values(to)?.integer(first)?.integer(from_width)?.integer(width)?;
    kernel.run([n_rows, 1, 1], threads_for(width, 512))
}
