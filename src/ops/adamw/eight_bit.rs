//! Moments in 8 bits: each block of 256 values is stored as codes of a table between -1 and 1, times the largest magnitude in the block
//! (dynamic quantisation, Dettmers et al., arXiv 2110.02861). The table is dense near zero over seven powers of ten; that of the second moment has no
//! negative half.

use crate::ops::{read, update};
use anyhow::Result;
use candle_core::Tensor;
use rayon::prelude::*;
use std::sync::LazyLock;

/// Values that share a scale.
pub const BLOCK: usize = 256;
/// A parameter of fewer values keeps exact moments: norms and biases, whose updates are sensitive and whose bytes do not count.
pub const LEAST: usize = 4096;

/// Powers of ten that the table covers.
const EXPONENTS: i32 = 7;

/// Whose codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codes {
    /// The first moment's.
    Signed,
    /// The second moment's, which is never negative.
    Unsigned,
}

static TABLES: LazyLock<[Vec<f32>; 2]> = LazyLock::new(|| [table(true), table(false)]);

/// Values in ascending order: within a power of ten evenly spaced, more of them the larger it is.
fn table(is_signed: bool) -> Vec<f32> {
    let mut values = vec![0.0, 1.0];
    for exponent in 0..EXPONENTS {
        let n = 1 << if is_signed { exponent } else { exponent + 1 };
        let scale = 10f64.powi(exponent + 1 - EXPONENTS);
        for i in 0..n {
            let value = (0.1 + 0.9 * (f64::from(i) + 0.5) / f64::from(n)) * scale;
            values.push(value as f32);
            if is_signed {
                values.push(-value as f32);
            }
        }
    }
    values.sort_by(f32::total_cmp);
    values
}

impl Codes {
    /// 256 values in ascending order.
    pub fn table(self) -> &'static [f32] {
        &TABLES[usize::from(self == Codes::Unsigned)]
    }

    /// The code that stands for zero: what all codes of a new moment must be.
    pub fn zero(self) -> u8 {
        self.nearest(0.0)
    }

    /// The code of the value in the table that is nearest, the lower one of two.
    fn nearest(self, value: f32) -> u8 {
        let table = self.table();
        let above = table.partition_point(|&entry| entry < value).clamp(1, table.len() - 1);
        let nearer_below = value - table[above - 1] <= table[above] - value;
        (above - usize::from(nearer_below)) as u8
    }

    pub fn decoded(self, codes: &Tensor, scales: &Tensor) -> Result<Vec<f32>> {
        let (codes, scales, table) = (read(codes)?, read(scales)?, self.table());
        let mut values = vec![0.0; codes.len()];
        values.par_chunks_mut(BLOCK).zip(codes.par_chunks(BLOCK)).zip(scales.par_iter()).for_each(|((values, codes), scale)| {
            values.iter_mut().zip(codes).for_each(|(value, &code)| *value = table[code as usize] * scale);
        });
        Ok(values)
    }

    pub fn encode(self, values: &[f32], codes: &Tensor, scales: &Tensor) -> Result<()> {
        let mut new_scales = vec![0.0f32; values.len().div_ceil(BLOCK)];
        let mut new_codes = vec![0u8; values.len()];
        let blocks = new_codes.par_chunks_mut(BLOCK).zip(values.par_chunks(BLOCK)).zip(new_scales.par_iter_mut());
        blocks.for_each(|((codes, values), scale)| {
            *scale = values.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
            let inverse = if *scale > 0.0 { 1.0 / *scale } else { 0.0 };
            codes.iter_mut().zip(values).for_each(|(code, value)| *code = self.nearest(value * inverse));
        });
        update(scales, |scales| scales.copy_from_slice(&new_scales))?;
        update(codes, |codes| codes.iter_mut().zip(&new_codes).for_each(|(code, &new)| *code = new.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn tables_have_a_value_for_every_code() {
        for codes in [Codes::Signed, Codes::Unsigned] {
            let table = codes.table();
            assert_eq!(table.len(), 256);
            assert!(table.windows(2).all(|pair| pair[0] < pair[1]), "{codes:?}");
            assert_eq!((table[255], table[usize::from(codes.zero())]), (1.0, 0.0));
            assert!((0..=255).all(|code: u8| codes.nearest(table[usize::from(code)]) == code));
        }
    }

    #[test]
    fn what_comes_back_is_near_what_went_in() {
        let values: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.77).sin() * 10f32.powi(-(i % 5))).collect();
        let tensor = |dtype, n: usize| Tensor::zeros(n, dtype, &Device::Cpu).unwrap();
        let (bytes, scales) = (tensor(DType::U8, 1000), tensor(DType::F32, 4));
        Codes::Signed.encode(&values, &bytes, &scales).unwrap();
        let back = Codes::Signed.decoded(&bytes, &scales).unwrap();
        for (block, (values, back)) in values.chunks(BLOCK).zip(back.chunks(BLOCK)).enumerate() {
            let scale = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            for (value, back) in values.iter().zip(back) {
                // Steps are 0.9 / 64 in the largest power of ten, larger parts of a value in the others, and near zero what is left.
                let step = (0.9 / 64.0 * scale).min(0.5 * value.abs()).max(1.4e-6 * scale);
                assert!((value - back).abs() <= step, "block {block}: {value} came back as {back}");
            }
        }
    }
}
