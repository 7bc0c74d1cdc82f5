//! Dropout whose mask is a function of counters: nothing is stored, nothing is drawn in order.
//!
//! A value stays with probability `1 - p`, divided by it, else it is 0. Whether it stays is a hash of its row's key, of the place in the model
//! that asks, and of its channel. A row's key is a hash of the run's seed, of the step and of the tokens up to that row, so that a mask is the same
//! for a backward as for its forward, for a recomputed forward as for the first, after a resume as before it, at any number of threads, and
//! however sequences are packed, cut into micro-batches, or share a prompt.

use super::Scratch;
use super::gpu::{self, OnDevice};
use crate::data::batch::Segment;
use anyhow::Result;
use candle_core::Tensor;
use rayon::prelude::*;
use std::ops::Deref;

/// The finaliser of splitmix64: every bit of the result depends on every bit of `x`.
pub fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A hash of `key` and `value`, in this order.
pub fn mix_in(key: u64, value: u64) -> u64 {
    mix(key.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ mix(value.wrapping_add(0x9e37_79b9_7f4a_7c15)))
}

/// The hash of a name.
pub fn mix_text(key: u64, text: &str) -> u64 {
    text.bytes().fold(key, |key, byte| mix_in(key, u64::from(byte)))
}

/// A key for each row of a packed batch.
#[derive(Debug, Clone)]
pub struct RowKeys {
    keys: Vec<u64>,
    on_gpu: OnDevice,
}

impl RowKeys {
    /// The keys on the device of `like`.
    pub(super) fn on_gpu(&self, like: &Tensor) -> Result<&Tensor> {
        self.on_gpu.or_upload(|| gpu::hashes(&self.keys, like))
    }
}

impl From<Vec<u64>> for RowKeys {
    fn from(keys: Vec<u64>) -> Self {
        Self { keys, on_gpu: OnDevice::default() }
    }
}

impl Deref for RowKeys {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        &self.keys
    }
}

/// Keys of `start` and of the tokens that a row's own sequence has up to it.
pub fn row_keys(start: u64, tokens: &[u32], segments: &[Segment]) -> RowKeys {
    let mut keys = vec![0; tokens.len()];
    for segment in segments {
        // A parent stands before its children.
        let parent = segment.parent.and_then(|parent| segments[parent].rows.clone().next_back());
        let mut key = parent.map_or(start, |row| keys[row]);
        for row in segment.rows.clone() {
            key = mix_in(key, u64::from(tokens[row]));
            keys[row] = key;
        }
    }
    keys.into()
}

/// The mask of one place in the model.
#[derive(Debug, Clone, Copy)]
pub struct Dropout<'a> {
    /// Share of values that become 0, at least 0 and below 1.
    pub probability: f64,
    /// Which place asks.
    pub place: u64,
    pub row_keys: &'a RowKeys,
}

impl Dropout<'_> {
    /// The masked rows of `x`, `width` values each.
    pub fn masked(&self, x: &[f32], width: usize) -> Scratch {
        let mut out = Scratch::copy_of(x);
        self.apply(&mut out, width);
        out
    }

    /// The hash of a value below which it becomes 0, and what the others are multiplied by. A hash gives two values of 32 bits each.
    pub(super) fn threshold_and_factor(&self) -> (u32, f32) {
        ((self.probability * 2f64.powi(32)) as u32, (1.0 / (1.0 - self.probability)) as f32)
    }

    /// Masks rows in place. The mask is its own adjoint.
    pub fn apply(&self, rows: &mut [f32], width: usize) {
        let (threshold, factor) = self.threshold_and_factor();
        rows.par_chunks_mut(width).zip(&**self.row_keys).for_each(|(row, &key)| {
            let key = mix_in(self.place, key);
            for (i, pair) in row.chunks_mut(2).enumerate() {
                let hash = mix(key.wrapping_add((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
                for (value, bits) in pair.iter_mut().zip([hash as u32, (hash >> 32) as u32]) {
                    *value *= if bits < threshold { 0.0 } else { factor };
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::batch::{PackedBatch, PromptSharing};

    fn kept(dropout: &Dropout, width: usize) -> Vec<f32> {
        dropout.masked(&vec![1.0; dropout.row_keys.len() * width], width).to_vec()
    }

    #[test]
    fn the_share_that_stays_is_right_and_the_mean_is_kept() {
        let keys = RowKeys::from((0..500).collect::<Vec<_>>());
        for probability in [0.05, 0.5] {
            let values = kept(&Dropout { probability, place: 3, row_keys: &keys }, 301);
            let n_dropped = values.iter().filter(|value| **value == 0.0).count() as f64;
            let share = n_dropped / values.len() as f64;
            // Four standard deviations of a share over 150,500 values.
            assert!((share - probability).abs() < 4.0 * (probability * (1.0 - probability) / values.len() as f64).sqrt(), "{share}");
            let stays = (1.0 / (1.0 - probability)) as f32;
            assert!(values.iter().all(|&value| value == 0.0 || value == stays));
        }
    }

    #[test]
    fn rows_places_and_steps_have_masks_of_their_own() {
        let mask = |start: u64, place: u64| {
            let keys = row_keys(start, &[7, 7], &[Segment { parent: None, rows: 0..2, sees_itself: true }]);
            kept(&Dropout { probability: 0.5, place, row_keys: &keys }, 64)
        };
        let base = mask(1, 1);
        assert_eq!(base, mask(1, 1));
        assert_ne!(base[..64], base[64..], "one token after the other");
        assert_ne!(base, mask(2, 1));
        assert_ne!(base, mask(1, 2));
    }

    #[test]
    fn a_key_depends_on_the_sequence_and_not_on_its_packing() {
        let keys = |pairs: &[(&[u32], [&[u32]; 2])], sharing| {
            let mut batch = PackedBatch::default();
            pairs.iter().for_each(|(prompt, answers)| drop(batch.push_responses(prompt, answers, sharing)));
            row_keys(9, &batch.tokens, &batch.segments)
        };
        let pair: (&[u32], [&[u32]; 2]) = (&[1, 2, 3], [&[4, 5], &[6]]);
        let alone = keys(&[pair], PromptSharing::Shared);
        assert_eq!(keys(&[(&[8], [&[9], &[9, 9]]), pair], PromptSharing::Shared)[4..], alone[..]);
        let separate = keys(&[pair], PromptSharing::Separate);
        assert_eq!((&separate[..5], &separate[5..8], separate[8]), (&alone[..5], &alone[..3], alone[5]));
    }
}
