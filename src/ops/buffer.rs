//! Memory of activations, used again from step to step.
//!
//! A step needs the same few hundred megabytes as the step before. Given back to the system, they would be cleared and mapped in again page by
//! page, at a tenth of a step's CPU time and more. So what an op returns is a [`Buffer`], whose memory goes into a pool when it is dropped and
//! serves the next request that fits. Requests differ in size with the lengths of the rows; so that pieces of old sizes do not pile up, the
//! pool and what it lent out never exceed the most that was lent out at once by more than a twentieth.

use super::tensor;
use anyhow::Result;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Tensor};
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Share of the most that was on loan at once by which pool and loans together may exceed it: pieces that wait for their turn.
pub(crate) const HEADROOM: f64 = 0.05;

/// A piece may be larger than the request by this share of it.
const SLACK: f64 = 0.25;

/// Pieces below this many values stay with the system's allocator, which keeps such by itself.
pub(crate) const LEAST: usize = 8 * 1024;

static POOL: Mutex<Pool> = Mutex::new(Pool { free: Vec::new(), n_lent: 0, most_lent: 0, n_returns: 0 });

/// Values on loan from the pool.
#[derive(Debug, Default)]
pub struct Scratch(Vec<f32>);

impl Scratch {
    /// `length` values of any content, for an op that writes them all.
    pub fn new(length: usize) -> Self {
        let mut values = pool().take(length);
        values.resize(length, 0.0);
        if cfg!(debug_assertions) {
            // An op that reads what it should have written shows in every test.
            values.fill(f32::NAN);
        }
        Self(values)
    }

    pub fn zeros(length: usize) -> Self {
        let mut values = pool().take(length);
        values.clear();
        values.resize(length, 0.0);
        Self(values)
    }

    pub fn copy_of(source: &[f32]) -> Self {
        let mut values = pool().take(source.len());
        values.clear();
        values.extend_from_slice(source);
        Self(values)
    }

    pub fn truncate(&mut self, length: usize) {
        self.0.truncate(length);
    }
}

impl Deref for Scratch {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        pool().give_back(std::mem::take(&mut self.0));
    }
}

/// An activation: a tensor on loan from the pool. Clones of the tensor must not outlive it, since dropping it takes their values away.
#[derive(Debug)]
pub struct Buffer(Tensor);

impl Buffer {
    pub fn new(mut values: Scratch, shape: &[usize]) -> Result<Self> {
        Ok(Self(tensor(std::mem::take(&mut values.0), shape)?))
    }

    pub fn zeros(shape: &[usize]) -> Result<Self> {
        Self::new(Scratch::zeros(shape.iter().product()), shape)
    }

    /// A tensor that nothing else holds: where it is on a GPU, its memory goes back to that GPU's pool when it is dropped.
    pub(super) fn of(tensor: Tensor) -> Self {
        Self(tensor)
    }
}

impl Deref for Buffer {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        &self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // What is on a GPU goes back to the driver's pool, bf16 values to the system's allocator.
        if self.0.device().is_cpu() && self.0.dtype() == DType::F32 {
            let _ = self.0.inplace_op1(&TakeOut);
        }
    }
}

/// Moves a tensor's values into the pool.
struct TakeOut;

impl InplaceOp1 for TakeOut {
    fn name(&self) -> &'static str {
        "take-out"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        match storage {
            CpuStorage::F32(values) => pool().give_back(std::mem::take(values)),
            other => candle_core::bail!("no pool for {:?}", other.dtype()),
        }
        Ok(())
    }
}

fn pool() -> MutexGuard<'static, Pool> {
    // The list of free memory is whole whatever a thread that held it was doing.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The most values that were lent out at once, for the tests of whoever predicts it.
#[cfg(test)]
pub(crate) fn most_lent() -> usize {
    pool().most_lent
}

/// All sizes are capacities, in values.
struct Pool {
    /// By capacity.
    free: Vec<Piece>,
    n_lent: usize,
    most_lent: usize,
    n_returns: u64,
}

struct Piece {
    values: Vec<f32>,
    /// Which return to the pool, counted from the start, brought it.
    returned: u64,
}

impl Piece {
    fn capacity(&self) -> usize {
        self.values.capacity()
    }
}

impl Pool {
    /// The smallest free piece that holds `length` values, or a new one, for which the longest unused pieces make room.
    fn take(&mut self, length: usize) -> Vec<f32> {
        if length < LEAST {
            return Vec::with_capacity(length);
        }
        let fitting = self.free.partition_point(|piece| piece.capacity() < length);
        let fits = self.free.get(fitting).is_some_and(|piece| piece.capacity() as f64 <= (1.0 + SLACK) * length as f64);
        let values = if fits { self.free.remove(fitting).values } else { Vec::with_capacity(length) };
        self.n_lent += values.capacity();
        self.most_lent = self.most_lent.max(self.n_lent);
        if !fits {
            self.trim();
        }
        values
    }

    fn trim(&mut self) {
        let most = (1.0 + HEADROOM) * self.most_lent as f64;
        let mut n_free: usize = self.free.iter().map(Piece::capacity).sum();
        while (self.n_lent + n_free) as f64 > most {
            let Some(oldest) = (0..self.free.len()).min_by_key(|&i| self.free[i].returned) else { return };
            n_free -= self.free.remove(oldest).capacity();
        }
    }

    fn give_back(&mut self, values: Vec<f32>) {
        if values.capacity() >= LEAST {
            self.n_lent = self.n_lent.saturating_sub(values.capacity());
            self.n_returns += 1;
            let at = self.free.partition_point(|piece| piece.capacity() < values.capacity());
            self.free.insert(at, Piece { values, returned: self.n_returns });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Pool {
        Pool { free: Vec::new(), n_lent: 0, most_lent: 0, n_returns: 0 }
    }

    fn capacities(pool: &Pool) -> Vec<usize> {
        pool.free.iter().map(Piece::capacity).collect()
    }

    #[test]
    fn the_smallest_piece_that_fits_is_used_again() {
        let mut pool = empty();
        let pieces = [10, 11, 20].map(|k| pool.take(k * LEAST));
        pieces.into_iter().for_each(|piece| pool.give_back(piece));
        assert_eq!(capacities(&pool), [10 * LEAST, 11 * LEAST, 20 * LEAST]);
        assert_eq!(pool.take(10 * LEAST + 1).capacity(), 11 * LEAST);
        assert_eq!(pool.take(13 * LEAST).capacity(), 13 * LEAST, "20 is too large, 10 too small");
        assert_eq!(pool.take(7).capacity(), 7, "small pieces are the system's");
        assert_eq!(pool.n_lent, 24 * LEAST);
    }

    #[test]
    fn pieces_of_old_sizes_make_room() {
        let mut pool = empty();
        for k in [10, 20, 40] {
            // Two at once: the most that is ever lent is twice the largest.
            let pieces = [pool.take(k * LEAST), pool.take(k * LEAST)];
            pieces.into_iter().for_each(|piece| pool.give_back(piece));
            let n_free: usize = capacities(&pool).iter().sum();
            assert!(n_free as f64 <= (1.0 + HEADROOM) * (2 * k * LEAST) as f64, "{:?}", capacities(&pool));
        }
        assert_eq!(capacities(&pool), [40 * LEAST; 2], "those returned first went first");
        for _ in 0..3 {
            let pieces = [pool.take(40 * LEAST), pool.take(39 * LEAST)];
            assert_eq!(capacities(&pool), [0; 0]);
            pieces.into_iter().for_each(|piece| pool.give_back(piece));
        }
    }

    #[test]
    fn values_go_back_when_a_buffer_is_dropped() {
        // A size that no other test asks for: the pool is shared.
        let length = 1_234_567;
        let buffer = Buffer::zeros(&[length]).unwrap();
        let clone = Tensor::clone(&buffer);
        drop(buffer);
        assert!(crate::ops::read(&clone).is_err(), "an emptied tensor is not read");
        let mut again = Scratch::copy_of(&vec![3.0; length]);
        assert_eq!(again[length - 1], 3.0);
        again.truncate(length - 1);
        drop(again);
        assert_eq!(Scratch::zeros(length - 1).iter().sum::<f32>(), 0.0);
    }
}
