//! Random weights and tokens whose values do not matter, but repeat.

use rayon::prelude::*;

/// Ids from 3 on: the first ones tend to be special.
pub fn random_tokens(seed: u64, n: usize, n_vocab: usize) -> Vec<u32> {
    let mut random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
    (0..n).map(|_| 3 + (random.uniform() * (n_vocab - 3) as f64) as u32).collect()
}

/// Uniform values with a standard deviation of 0.02, as weights are initialised.
pub fn random_values(seed: u64, n: usize) -> Vec<f32> {
    const CHUNK: usize = 1 << 16;
    let mut values = vec![0.0; n];
    values.par_chunks_mut(CHUNK).enumerate().for_each(|(i, chunk)| {
        let mut random = Random((seed << 32) + i as u64);
        chunk.iter_mut().for_each(|value| *value = 0.0346 * (2.0 * random.uniform() as f32 - 1.0));
    });
    values
}

/// SplitMix64: enough for values that do not matter.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
