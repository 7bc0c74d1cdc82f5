//! Rotary position embedding (arXiv 2104.09864) in the half-split layout of transformers: channels i and i + hd/2 of a head form a pair
//! that turns by `position * inverse_frequency[i]`. Turning is orthogonal, so the backward turns the other way.

use super::gpu::{self, Kernel, OnDevice};
use super::real::vectorized;
use super::{Real, rows_per_task, update};
use anyhow::Result;
use candle_core::Tensor;
use rayon::prelude::*;

/// cos and sin of every packed token's angles, `[N, hd/2]` each.
#[derive(Debug, Clone)]
pub struct RopeTable<T = f32> {
    cos: Vec<T>,
    sin: Vec<T>,
    half: usize,
    cos_on_gpu: OnDevice,
    sin_on_gpu: OnDevice,
}

/// Which way to turn: with the positions in the forward, against them in the backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    Forward,
    Backward,
}

impl<T: Real> RopeTable<T> {
    /// Angles are rounded to f32 as transformers has them; their cosine and sine are exact.
    pub fn new(inverse_frequencies: &[f32], positions: &[u32]) -> Self {
        let angles = positions.iter().flat_map(|&p| inverse_frequencies.iter().map(move |&f| f64::from(p as f32 * f)));
        let (cos, sin) = angles.map(|angle| (T::of(angle.cos()), T::of(angle.sin()))).unzip();
        Self { cos, sin, half: inverse_frequencies.len(), cos_on_gpu: OnDevice::default(), sin_on_gpu: OnDevice::default() }
    }

    /// Turns `n_heads` heads, from column `first` on, of rows `width` wide, in place.
    pub fn turn(&self, rows: &mut [T], width: usize, first: usize, n_heads: usize, turn: Turn) {
        let (half, per_task) = (self.half, rows_per_task(width));
        let tasks =
            rows.par_chunks_mut(per_task * width).zip(self.cos.par_chunks(per_task * half)).zip(self.sin.par_chunks(per_task * half));
        tasks.for_each(|((rows, cos), sin)| {
            vectorized!({
                for ((row, cos), sin) in rows.chunks_mut(width).zip(cos.chunks(half)).zip(sin.chunks(half)) {
                    for head in row[first..first + n_heads * 2 * half].chunks_mut(2 * half) {
                        turn_head(head, cos, sin, turn);
                    }
                }
            })
        });
    }
}

impl RopeTable {
    /// Turns the first `n_heads` heads of `rows [N, W]` in place.
    pub fn turn_tensor(&self, rows: &Tensor, n_heads: usize, turn: Turn) -> Result<()> {
        let (n_rows, width) = rows.dims2()?;
        if !gpu::has(rows) {
            return update(rows, |rows| self.turn(rows, width, 0, n_heads, turn));
        }
        let cos = self.cos_on_gpu.or_upload(|| gpu::floats(&self.cos, rows))?;
        let sin = self.sin_on_gpu.or_upload(|| gpu::floats(&self.sin, rows))?;
        let direction = if turn == Turn::Forward { 1.0 } else { -1.0 };
        let kernel = Kernel::new("rope", rows)?.values(rows)?.floats(cos)?.floats(sin)?.integer(width)?.integer(0)?;
        let kernel = kernel.integer(n_heads)?.integer(self.half)?.float(direction);
        kernel.run([n_rows, 1, 1], gpu::threads_for(n_heads * self.half, 512))
    }
}

#[inline(always)]
fn turn_head<T: Real>(head: &mut [T], cos: &[T], sin: &[T], turn: Turn) {
    let (low, high) = head.split_at_mut(cos.len());
    for (((a, b), &cos), &sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
        let sin = if turn == Turn::Forward { sin } else { -sin };
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;

    const FREQUENCIES: [f32; 3] = [1.0, 0.1, 0.013];

    #[test]
    fn gradient_matches_finite_differences() {
        let positions = [0, 1, 2, 3, 17];
        let table = RopeTable::<f64>::new(&FREQUENCIES, &positions);
        let (width, n) = (2 * 6 + 5, positions.len());
        let (x, dy) = (check::values(1, n * width), check::values(2, n * width));
        let forward = |x: &[f64]| {
            let mut y = x.to_vec();
            table.turn(&mut y, width, 0, 2, Turn::Forward);
            y
        };
        let mut dx = dy.clone();
        table.turn(&mut dx, width, 0, 2, Turn::Backward);
        check::gradient("dx", &x, &dx, |x| check::dot(&forward(x), &dy));
        assert_eq!(forward(&x)[12..17], x[12..17], "other columns stay");
    }

    #[test]
    fn scores_depend_on_the_distance_only() {
        let score = |p: u32, q: u32| {
            let (mut a, mut b) = (check::values(1, 6), check::values(2, 6));
            RopeTable::new(&FREQUENCIES, &[p]).turn(&mut a, 6, 0, 1, Turn::Forward);
            RopeTable::new(&FREQUENCIES, &[q]).turn(&mut b, 6, 0, 1, Turn::Forward);
            check::dot(&a, &b)
        };
        assert!((score(3, 5) - score(20, 22)).abs() < 1e-5);
        assert!((score(3, 5) - score(3, 6)).abs() > 1e-3);
    }
}

#[cfg(test)]
mod gpu_tests {
    use super::*;
    use crate::ops::gpu::twin::agree;

    #[test]
    fn turns_as_the_cpu_does() {
        for (half, n_beside) in [(1, 5), (3, 5), (12, 8), (64, 5), (64, 8)] {
            agree(&format!("half {half}, {n_beside} columns beside"), |place| {
                let frequencies: Vec<f32> = (0..half).map(|i| 0.3 / (1 + i) as f32).collect();
                let (table, shape) = (RopeTable::new(&frequencies, &[0, 5, 2, 900]), [4, 6 * half + n_beside]);
                let (rows, back) = (place.values(1, &shape), place.values(2, &shape));
                table.turn_tensor(&rows, 3, Turn::Forward)?;
                table.turn_tensor(&back, 2, Turn::Backward)?;
                Ok(vec![rows, back])
            });
        }
    }
}
