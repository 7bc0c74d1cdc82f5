//! Memory of activations, used again from step to step.
//!
//! A step needs the same few hundred megabytes as the step before. Given back to the system, they would be cleared and mapped in again page by
//! page, which took a third of a step's CPU time. So what an op returns is a [`Buffer`], whose memory goes into a pool when it is dropped and
//! serves the next request that fits. Requests differ in size with the lengths of the rows; the pool therefore hands out the smallest piece
//! that is large enough and at most [`SLACK`] times too large, and a piece that was outgrown makes room for the larger one that replaces it.

use super::tensor;
use anyhow::Result;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How much larger than the request a piece may be.
pub(crate) const SLACK: usize = 2;

/// Pieces below this many values stay with the system's allocator, which keeps such by itself.
pub(crate) const LEAST: usize = 8 * 1024;

/// Free pieces, by capacity.
static POOL: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

/// Values on loan from the pool.
#[derive(Debug, Default)]
pub struct Scratch(Vec<f32>);

impl Scratch {
    /// `length` values of any content, for an op that writes them all.
    pub fn new(length: usize) -> Self {
        let mut values = take(&mut pool(), length).unwrap_or_else(|| Vec::with_capacity(length));
        values.resize(length, 0.0);
        if cfg!(debug_assertions) {
            // An op that reads what it should have written shows in every test.
            values.fill(f32::NAN);
        }
        Self(values)
    }

    pub fn zeros(length: usize) -> Self {
        let mut values = take(&mut pool(), length).unwrap_or_default();
        if values.capacity() == 0 {
            // Fresh pages are zero already.
            return Self(vec![0.0; length]);
        }
        values.clear();
        values.resize(length, 0.0);
        Self(values)
    }

    pub fn copy_of(source: &[f32]) -> Self {
        let mut values = take(&mut pool(), source.len()).unwrap_or_else(|| Vec::with_capacity(source.len()));
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
        give_back(std::mem::take(&mut self.0));
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
}

impl Deref for Buffer {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        &self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // Where the values cannot be taken out (they are on another device), that device's allocator has them.
        let _ = self.0.inplace_op1(&TakeOut);
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
            CpuStorage::F32(values) => give_back(std::mem::take(values)),
            other => candle_core::bail!("no pool for {:?}", other.dtype()),
        }
        Ok(())
    }
}

fn pool() -> MutexGuard<'static, Vec<Vec<f32>>> {
    // A list of free memory is whole whatever a thread that held it was doing.
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Values in the pool, for the plan's tests.
#[cfg(test)]
pub(crate) fn n_pooled() -> usize {
    pool().iter().map(Vec::capacity).sum()
}

/// The smallest free piece that holds `length` values. Where there is none, the largest smaller one is freed: the new one takes its place.
fn take(free: &mut Vec<Vec<f32>>, length: usize) -> Option<Vec<f32>> {
    if length < LEAST {
        return None;
    }
    let fitting = free.partition_point(|piece| piece.capacity() < length);
    match free.get(fitting) {
        Some(piece) if piece.capacity() <= SLACK * length => Some(free.remove(fitting)),
        _ => {
            if fitting > 0 && free[fitting - 1].capacity() * SLACK >= length {
                free.remove(fitting - 1);
            }
            None
        }
    }
}

fn give_back(values: Vec<f32>) {
    if values.capacity() >= LEAST {
        let mut free = pool();
        let at = free.partition_point(|piece| piece.capacity() < values.capacity());
        free.insert(at, values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacities(free: &[Vec<f32>]) -> Vec<usize> {
        free.iter().map(Vec::capacity).collect()
    }

    #[test]
    fn the_smallest_piece_that_fits_is_taken_and_an_outgrown_one_replaced() {
        let piece = |k: usize| Vec::with_capacity(k * LEAST);
        let mut free = vec![piece(1), piece(2), piece(3), piece(9)];
        assert_eq!(take(&mut free, LEAST + 1).map(|p| p.capacity()), Some(2 * LEAST));
        assert_eq!(take(&mut free, 2 * LEAST).map(|p| p.capacity()), Some(3 * LEAST));
        assert_eq!(take(&mut free, 4 * LEAST).map(|p| p.capacity()), None, "9 is more than twice as large");
        assert_eq!(capacities(&free), [LEAST, 9 * LEAST], "1 is too small to be its forerunner");
        assert_eq!(take(&mut free, 10 * LEAST).map(|p| p.capacity()), None);
        assert_eq!(capacities(&free), [LEAST], "9 was outgrown");
        assert_eq!(take(&mut free, 7).map(|p| p.capacity()), None, "small pieces are the system's");
    }

    #[test]
    fn values_go_back_when_a_buffer_is_dropped() {
        // A size that no other test asks for: the pool is shared.
        let length = 1_234_567;
        let buffer = Buffer::zeros(&[length]).unwrap();
        let clone = Tensor::clone(&buffer);
        drop(buffer);
        assert!(crate::ops::read(&clone).is_err(), "an emptied tensor is not read");
        assert!(pool().iter().any(|piece| piece.capacity() == length));
        let mut again = Scratch::copy_of(&vec![3.0; length]);
        assert_eq!(again[length - 1], 3.0);
        again.truncate(length - 1);
        drop(again);
        assert_eq!(Scratch::zeros(length - 1).iter().sum::<f32>(), 0.0);
    }
}
