//! AdamW on the GPU: one launch for all parameters, by a table of where their parts lie.

use super::eight_bit::Codes;
use super::{Clip, Item, Moment, Rounding, Scalars, mix_in};
use crate::ops::gpu::{Kernel, address, floats, hashes, indices};
use crate::ops::squares::SumOfSquares;
use anyhow::{Result, bail, ensure};
use candle_core::{DType, Tensor};

/// Values that a block updates: whole blocks of 8-bit moments.
const VALUES_PER_BLOCK: usize = 4096;

/// As the kernel has them.
const DECAYS: u64 = 1;
const EIGHT_BIT: u64 = 2;
const MASTER: u64 = 4;
const KAHAN: u64 = 8;
const STOCHASTIC: u64 = 16;

pub(super) fn step(items: &[Item], scalars: &Scalars, clip: Clip) -> Result<()> {
    let SumOfSquares::OnGpu(squares) = clip.squares else { bail!("gradients on the GPU whose norm was formed elsewhere") };
    let like = items[0].value;
    let mut table = Vec::with_capacity(items.len() * 10);
    let mut first_blocks = Vec::with_capacity(items.len());
    let mut n_blocks = 0;
    for item in items {
        first_blocks.push(n_blocks as u32);
        n_blocks += item.value.elem_count().div_ceil(VALUES_PER_BLOCK);
        table.extend(row(item, like, scalars.seed)?);
    }
    let codes: Vec<f32> = [Codes::Signed, Codes::Unsigned].iter().flat_map(|codes| codes.table()).copied().collect();
    let (table, first_blocks, codes) = (hashes(&table, like)?, indices(first_blocks, like)?, floats(&codes, like)?);
    let kernel = Kernel::new("adamw", like)?.hashes(&table)?.indices(&first_blocks)?.integer(items.len())?.floats(&codes)?;
    let kernel = kernel.integer(VALUES_PER_BLOCK)?.doubles(squares)?.long(clip.max_norm.to_bits());
    let Scalars { keep, one_minus_beta1, beta2, one_minus_beta2, step_size, sqrt_correction2, eps, seed: _ } = *scalars;
    let numbers = [keep, one_minus_beta1, beta2, one_minus_beta2, step_size, sqrt_correction2, eps];
    numbers.into_iter().fold(kernel, |kernel, number| kernel.float(number.into())).run([n_blocks, 1, 1], 256)
}

/// A parameter's row of the table.
fn row(item: &Item, like: &Tensor, seed: u64) -> Result<[u64; 10]> {
    let Item { number, value, gradient, state, decays } = item;
    let n_values = value.elem_count();
    let of = |tensor: &Tensor, dtype: DType, n: usize| -> Result<u64> {
        ensure!(tensor.dtype() == dtype && tensor.elem_count() == n, "AdamW takes {n} values of {dtype:?}, not {tensor:?}");
        ensure!(tensor.device().same_device(like.device()), "AdamW over tensors on several devices");
        address(tensor)
    };
    let moment = |moment: &Moment| -> Result<[u64; 2]> {
        match moment {
            Moment::Exact(values) => Ok([of(values, DType::F32, n_values)?, 0]),
            Moment::EightBit { codes, scales } => {
                Ok([of(codes, DType::U8, n_values)?, of(scales, DType::F32, n_values.div_ceil(super::BLOCK))?])
            }
        }
    };
    let ([first, first_scales], [second, second_scales]) = (moment(&state.first)?, moment(&state.second)?);
    let eight_bit = matches!(state.first, Moment::EightBit { .. });
    ensure!(eight_bit == matches!(state.second, Moment::EightBit { .. }), "one moment of a parameter is in 8 bits, the other is not");
    let (rounding, beside) = match (value.dtype(), state.rounding, &state.beside) {
        (DType::F32, Rounding::Master, None) => (0, 0),
        (DType::BF16, Rounding::Master, Some(master)) => (MASTER, of(master, DType::F32, n_values)?),
        (DType::BF16, Rounding::Kahan, Some(lost)) => (KAHAN, of(lost, DType::BF16, n_values)?),
        (DType::BF16, Rounding::Stochastic, None) => (STOCHASTIC, 0),
        (dtype, rounding, _) => anyhow::bail!("AdamW cannot update {dtype:?} values by {rounding:?}"),
    };
    let flags = rounding | if *decays { DECAYS } else { 0 } | if eight_bit { EIGHT_BIT } else { 0 };
    let (value, gradient) = (of(value, like.dtype(), n_values)?, of(gradient, DType::F32, n_values)?);
    Ok([value, gradient, first, second, first_scales, second_scales, beside, n_values as u64, flags, mix_in(seed, *number as u64)])
}
