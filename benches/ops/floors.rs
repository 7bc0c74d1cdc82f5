//! What an op must at least take on this machine: its bytes at the rate at which memory moves as many, its FLOPs at the rate of large products.
//!
//! Both are measured in the same run and on the same threads. A few megabytes stay in the caches from one op to the next, and so they do here:
//! the byte floor of an op is a loop that reads, changes and writes exactly as many bytes, again and again.

use crate::random::random_values;
use anyhow::Result;
use candle_core::{Device, Tensor};
use mpo::config::ComputeDtype;
use mpo::ops::linear;
use rayon::prelude::*;
use serde::Serialize;
use std::hint::black_box;
use std::time::Instant;

/// Bytes that an op cannot avoid moving.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    pub read: usize,
    /// Read and written in place.
    pub updated: usize,
    pub written: usize,
}

/// The best rates of large matrix products seen in a run, FLOP/s.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct ProductRates {
    pub f32: f64,
    pub bf16: f64,
}

/// Repetitions of which the fastest counts.
const TRIES: usize = 5;
/// `[m, n, k]` of products that are large enough to run at the hardware's rate.
const LARGE: [[usize; 3]; 2] = [[1024, 1024, 1024], [1024, 3072, 2048]];
/// Values that one task moves.
const CHUNK: usize = 16 * 1024;

impl ProductRates {
    /// Looks once more: the best of a run counts.
    pub fn measure(&mut self) -> Result<()> {
        self.f32 = self.f32.max(product_rate(ComputeDtype::F32)?);
        self.bf16 = self.bf16.max(product_rate(ComputeDtype::Bf16)?);
        Ok(())
    }

    pub fn seconds(&self, flops: f64, dtype: ComputeDtype) -> f64 {
        match dtype {
            ComputeDtype::F32 => flops / self.f32,
            ComputeDtype::Bf16 => flops / self.bf16,
        }
    }
}

/// Seconds that a loop takes to move the same bytes.
pub fn traffic_seconds(traffic: &Traffic) -> f64 {
    let values = |bytes: usize| vec![1u32; bytes / 4];
    let (read, mut updated, mut written) = (values(traffic.read), values(traffic.updated), values(traffic.written));
    let mut once = || {
        let start = Instant::now();
        stream(&read, &mut updated, &mut written);
        start.elapsed().as_secs_f64()
    };
    once();
    (0..TRIES).map(|_| once()).fold(f64::INFINITY, f64::min)
}

fn product_rate(dtype: ComputeDtype) -> Result<f64> {
    let mut best = 0.0f64;
    for [m, n, k] in LARGE {
        let tensor = |seed, rows| Tensor::from_vec(random_values(seed, rows * k), (rows, k), &Device::Cpu);
        let (x, weight) = (tensor(1, m)?, tensor(2, n)?);
        for _ in 0..TRIES {
            let start = Instant::now();
            black_box(linear::forward(&x, &weight, None, dtype)?);
            best = best.max(2.0 * (m * n * k) as f64 / start.elapsed().as_secs_f64());
        }
    }
    Ok(best)
}

/// Reads, changes and writes every value once, on all threads. What is read is copied to what is written, as far as it goes.
fn stream(read: &[u32], updated: &mut [u32], written: &mut [u32]) {
    let n_tasks = [read.len(), updated.len(), written.len()].map(|n| n.div_ceil(CHUNK)).into_iter().max().unwrap_or(0);
    let (mut read, mut updated, mut written) = (read, updated, written);
    let tasks: Vec<_> = (0..n_tasks)
        .map(|task| {
            let share = |n: usize| n / (n_tasks - task);
            let of_read = read.split_off(..share(read.len())).unwrap_or_default();
            let of_updated = updated.split_off_mut(..share(updated.len())).unwrap_or_default();
            let of_written = written.split_off_mut(..share(written.len())).unwrap_or_default();
            (of_read, of_updated, of_written)
        })
        .collect();
    tasks.into_par_iter().for_each(|(read, updated, written)| {
        let n_copied = read.len().min(written.len());
        written[..n_copied].copy_from_slice(&read[..n_copied]);
        written[n_copied..].fill(2);
        black_box(read[n_copied..].iter().fold(0u32, |sum, value| sum.wrapping_add(*value)));
        updated.iter_mut().for_each(|value| *value = value.wrapping_add(1));
    });
}
