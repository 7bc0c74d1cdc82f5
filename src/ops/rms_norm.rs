//! RMS norm (arXiv 1910.07467): `y = x / sqrt(mean(x²) + eps) * g`, where `g` is the weight, or 1 + the weight in Gemma.
//!
//! Backward, with r = 1 / sqrt(mean(x²) + eps) and x̂ = x r: `dx = r (g dy - x̂ mean(g dy x̂))`, `dg = Σ_rows dy x̂`.
//! A row may be any run of `width` values: a token's hidden state, or one head of a token's queries.

mod on_gpu;

pub(crate) use on_gpu::MAX_PARTIAL_SUMS;

use super::gpu;
use super::real::{dot, vectorized};
use super::{Buffer, Real, Scratch, read, rows_per_task, update};
use anyhow::Result;
use candle_core::Tensor;
use rayon::prelude::*;

/// Rows whose part of `dg` is summed as one: fixed, so that the order of the sum is.
const ROWS_PER_PARTIAL_SUM: usize = 32;

/// How the weight of a norm acts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum NormStyle {
    /// `x / rms(x) * w`
    Plain,
    /// `x / rms(x) * (1 + w)` (Gemma)
    OnePlus,
}

/// Which columns of a row are normed: `n_heads` runs of `head_dim` values each, from column `first` on. A whole row is one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    pub row_width: usize,
    pub first: usize,
    pub n_heads: usize,
    pub head_dim: usize,
}

/// Weight, epsilon and style of one norm.
#[derive(Debug, Clone, Copy)]
pub struct RmsNorm<'a> {
    /// `[W]`
    pub weight: &'a Tensor,
    pub eps: f64,
    pub style: NormStyle,
}

impl RmsNorm<'_> {
    /// `x [N, W]` to the normed rows `[N, W]` and r `[N]`.
    pub fn forward(&self, x: &Tensor) -> Result<(Buffer, Buffer)> {
        let (n_rows, width) = x.dims2()?;
        if gpu::has(x) {
            return self.forward_on_gpu(x, None);
        }
        let (gain, x) = (self.gain()?, read(x)?);
        let (mut y, mut r) = (Scratch::new(n_rows * width), Scratch::new(n_rows));
        norm_rows(&x, &gain, self.eps, &mut y, &mut r);
        Ok((Buffer::new(y, &[n_rows, width])?, Buffer::new(r, &[n_rows, 1])?))
    }

    /// `sum += x`, and then what [`RmsNorm::forward`] makes of the sum: a residual connection and the norm behind it in one pass.
    pub fn forward_sum(&self, sum: &Tensor, x: &Tensor) -> Result<(Buffer, Buffer)> {
        let (n_rows, width) = x.dims2()?;
        if gpu::has(x) {
            return self.forward_on_gpu(sum, Some(x));
        }
        let (gain, x) = (self.gain()?, read(x)?);
        let (mut y, mut r) = (Scratch::new(n_rows * width), Scratch::new(n_rows));
        update(sum, |sum| add_and_norm_rows(sum, &x, &gain, self.eps, &mut y, &mut r))?;
        Ok((Buffer::new(y, &[n_rows, width])?, Buffer::new(r, &[n_rows, 1])?))
    }

    /// Norms some columns of `x [N, ..]` in place; r is `[N, n_heads]`.
    pub fn forward_heads(&self, x: &Tensor, heads: Heads) -> Result<Buffer> {
        let n_rows = x.dim(0)?;
        if gpu::has(x) {
            return self.forward_heads_on_gpu(x, heads);
        }
        let gain = self.gain()?;
        let mut r = Scratch::new(n_rows * heads.n_heads);
        update(x, |x| heads.forward(x, &gain, self.eps, &mut r))?;
        Buffer::new(r, &[n_rows, heads.n_heads])
    }

    /// The normed rows again, from the input and the saved r.
    pub fn recompute(&self, x: &Tensor, r: &Tensor) -> Result<Buffer> {
        let (n_rows, width) = x.dims2()?;
        if gpu::has(x) {
            return self.recompute_on_gpu(x, r);
        }
        let (gain, x, r, mut y) = (self.gain()?, read(x)?, read(r)?, Scratch::new(n_rows * width));
        scale_rows(&x, &gain, &r, &mut y);
        Buffer::new(y, &[n_rows, width])
    }

    /// `dy [N, W]` to `dx [N, W]`; adds to `weight_gradient [W]` unless frozen.
    pub fn backward(&self, x: &Tensor, r: &Tensor, dy: &Tensor, weight_gradient: Option<&Tensor>) -> Result<Buffer> {
        self.backward_sum(x, r, dy, None, weight_gradient)
    }

    /// [`RmsNorm::backward`] plus the gradient that goes `past` the norm, on the residual connection.
    pub fn backward_sum(
        &self,
        x: &Tensor,
        r: &Tensor,
        dy: &Tensor,
        past: Option<&Tensor>,
        weight_gradient: Option<&Tensor>,
    ) -> Result<Buffer> {
        let (n_rows, width) = x.dims2()?;
        if gpu::has(x) {
            return self.backward_on_gpu(x, r, (dy, past), weight_gradient);
        }
        let (gain, x, r, dy, past) = (self.gain()?, read(x)?, read(r)?, read(dy)?, past.map(read).transpose()?);
        let mut dx = Scratch::new(n_rows * width);
        let gain_gradient = backward_rows(&x, &gain, &r, &dy, past.as_deref(), &mut dx);
        if let Some(weight_gradient) = weight_gradient {
            update(weight_gradient, |out: &mut [f32]| out.iter_mut().zip(gain_gradient).for_each(|(out, g)| *out += g))?;
        }
        Buffer::new(dx, &[n_rows, width])
    }

    /// Turns the gradient of some columns' normed values into that of their inputs, in place.
    pub fn backward_heads(&self, x: &Tensor, r: &Tensor, d: &Tensor, weight_gradient: Option<&Tensor>, heads: Heads) -> Result<()> {
        if gpu::has(x) {
            return self.backward_heads_on_gpu(x, r, d, weight_gradient, heads);
        }
        let (gain, x, r) = (self.gain()?, read(x)?, read(r)?);
        if let Some(weight_gradient) = weight_gradient {
            let dy = read(d)?;
            update(weight_gradient, |out| heads.add_gain_gradient(&x, &r, &dy, out))?;
        }
        update(d, |d| heads.backward(&x, &gain, &r, d))
    }

    fn gain(&self) -> Result<Vec<f32>> {
        Ok(gain(&read(self.weight)?, self.style))
    }
}

fn gain<T: Real>(weight: &[T], style: NormStyle) -> Vec<T> {
    match style {
        NormStyle::Plain => weight.to_vec(),
        NormStyle::OnePlus => weight.iter().map(|&w| T::ONE + w).collect(),
    }
}

fn norm_rows<T: Real>(x: &[T], gain: &[T], eps: f64, y: &mut [T], r: &mut [T]) {
    let (width, per_task) = (gain.len(), rows_per_task(gain.len()));
    let tasks = x.par_chunks(per_task * width).zip(y.par_chunks_mut(per_task * width)).zip(r.par_chunks_mut(per_task));
    tasks.for_each(|((x, y), r)| {
        vectorized!(for ((x, y), r) in x.chunks(width).zip(y.chunks_mut(width)).zip(r) {
            *r = norm_row(x, gain, eps, y);
        })
    });
}

fn add_and_norm_rows<T: Real>(sum: &mut [T], x: &[T], gain: &[T], eps: f64, y: &mut [T], r: &mut [T]) {
    let (width, per_task) = (gain.len(), rows_per_task(gain.len()));
    let tasks = sum.par_chunks_mut(per_task * width).zip(x.par_chunks(per_task * width));
    tasks.zip(y.par_chunks_mut(per_task * width)).zip(r.par_chunks_mut(per_task)).for_each(|(((sum, x), y), r)| {
        vectorized!({
            for (((sum, x), y), r) in sum.chunks_mut(width).zip(x.chunks(width)).zip(y.chunks_mut(width)).zip(r) {
                sum.iter_mut().zip(x).for_each(|(sum, &x)| *sum += x);
                *r = norm_row(sum, gain, eps, y);
            }
        })
    });
}

fn scale_rows<T: Real>(x: &[T], gain: &[T], r: &[T], y: &mut [T]) {
    let (width, per_task) = (gain.len(), rows_per_task(gain.len()));
    let tasks = x.par_chunks(per_task * width).zip(y.par_chunks_mut(per_task * width)).zip(r.par_chunks(per_task));
    tasks.for_each(|((x, y), r)| {
        vectorized!(for ((x, y), &r) in x.chunks(width).zip(y.chunks_mut(width)).zip(r) {
            scale_row(x, gain, r, y);
        })
    });
}

/// Writes `dx` and returns `dg`.
fn backward_rows<T: Real>(x: &[T], gain: &[T], r: &[T], dy: &[T], past: Option<&[T]>, dx: &mut [T]) -> Vec<T> {
    let width = gain.len();
    let part = ROWS_PER_PARTIAL_SUM;
    let tasks = dx.par_chunks_mut(part * width).zip(x.par_chunks(part * width)).zip(dy.par_chunks(part * width)).zip(r.par_chunks(part));
    let parts = tasks.enumerate().map(|(task, (((dx, x), dy), r))| {
        let mut gain_gradient = vec![T::ZERO; width];
        vectorized!({
            for (i, (((dx, x), dy), &r)) in dx.chunks_mut(width).zip(x.chunks(width)).zip(dy.chunks(width)).zip(r).enumerate() {
                gain_gradient.iter_mut().zip(x).zip(dy).for_each(|((sum, &x), &dy)| *sum += dy * x * r);
                dx.copy_from_slice(dy);
                backward_row(x, gain, r, dx);
                if let Some(past) = past {
                    dx.iter_mut().zip(&past[(task * part + i) * width..]).for_each(|(dx, &past)| *dx += past);
                }
            }
        });
        gain_gradient
    });
    let mut sum = vec![T::ZERO; width];
    for part in parts.collect::<Vec<_>>() {
        sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
    sum
}

/// Writes y and returns r.
#[inline(always)]
fn norm_row<T: Real>(x: &[T], gain: &[T], eps: f64, y: &mut [T]) -> T {
    let r = reciprocal_rms(x, eps);
    scale_row(x, gain, r, y);
    r
}

#[inline(always)]
fn reciprocal_rms<T: Real>(x: &[T], eps: f64) -> T {
    T::ONE / Real::sqrt(dot(x, x) / T::of(x.len() as f64) + T::of(eps))
}

#[inline(always)]
fn scale_row<T: Real>(x: &[T], gain: &[T], r: T, y: &mut [T]) {
    y.iter_mut().zip(x).zip(gain).for_each(|((y, &x), &g)| *y = x * r * g);
}

/// `d` comes in as dy and leaves as dx.
#[inline(always)]
fn backward_row<T: Real>(x: &[T], gain: &[T], r: T, d: &mut [T]) {
    d.iter_mut().zip(gain).for_each(|(d, &g)| *d *= g);
    let mean = dot(d, x) * r / T::of(x.len() as f64);
    d.iter_mut().zip(x).for_each(|(d, &x)| *d = r * (*d - x * r * mean));
}

impl Heads {
    #[inline(always)]
    fn columns(&self) -> std::ops::Range<usize> {
        self.first..self.first + self.n_heads * self.head_dim
    }

    fn forward<T: Real>(&self, x: &mut [T], gain: &[T], eps: f64, r: &mut [T]) {
        let per_task = rows_per_task(self.row_width);
        x.par_chunks_mut(per_task * self.row_width).zip(r.par_chunks_mut(per_task * self.n_heads)).for_each(|(x, r)| {
            vectorized!({
                for (row, r) in x.chunks_mut(self.row_width).zip(r.chunks_mut(self.n_heads)) {
                    for (head, r) in row[self.columns()].chunks_mut(self.head_dim).zip(r) {
                        *r = reciprocal_rms(head, eps);
                        head.iter_mut().zip(gain).for_each(|(x, &g)| *x = *x * *r * g);
                    }
                }
            })
        });
    }

    /// `d` comes in as dy and leaves as dx.
    fn backward<T: Real>(&self, x: &[T], gain: &[T], r: &[T], d: &mut [T]) {
        let per_task = rows_per_task(self.row_width);
        let tasks = d
            .par_chunks_mut(per_task * self.row_width)
            .zip(x.par_chunks(per_task * self.row_width))
            .zip(r.par_chunks(per_task * self.n_heads));
        tasks.for_each(|((d, x), r)| {
            vectorized!({
                for ((d, x), r) in d.chunks_mut(self.row_width).zip(x.chunks(self.row_width)).zip(r.chunks(self.n_heads)) {
                    let heads = d[self.columns()].chunks_mut(self.head_dim).zip(x[self.columns()].chunks(self.head_dim));
                    for ((d, x), &r) in heads.zip(r) {
                        backward_row(x, gain, r, d);
                    }
                }
            })
        });
    }

    fn add_gain_gradient<T: Real>(&self, x: &[T], r: &[T], dy: &[T], out: &mut [T]) {
        let part = ROWS_PER_PARTIAL_SUM;
        let tasks = x.par_chunks(part * self.row_width).zip(dy.par_chunks(part * self.row_width)).zip(r.par_chunks(part * self.n_heads));
        let parts = tasks.map(|((x, dy), r)| {
            let mut sum = vec![T::ZERO; self.head_dim];
            vectorized!({
                for ((x, dy), r) in x.chunks(self.row_width).zip(dy.chunks(self.row_width)).zip(r.chunks(self.n_heads)) {
                    let heads = x[self.columns()].chunks(self.head_dim).zip(dy[self.columns()].chunks(self.head_dim));
                    for ((x, dy), &r) in heads.zip(r) {
                        sum.iter_mut().zip(x).zip(dy).for_each(|((sum, &x), &dy)| *sum += dy * x * r);
                    }
                }
            });
            sum
        });
        for part in parts.collect::<Vec<_>>() {
            out.iter_mut().zip(part).for_each(|(out, part)| *out += part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::super::tensor;
    use super::*;

    const EPS: f64 = 1e-5;

    fn forward_f64(x: &[f64], weight: &[f64], style: NormStyle, heads: Heads) -> (Vec<f64>, Vec<f64>) {
        let (mut y, mut r) = (x.to_vec(), vec![0.0; x.len() / heads.row_width * heads.n_heads]);
        heads.forward(&mut y, &gain(weight, style), EPS, &mut r);
        (y, r)
    }

    #[test]
    fn gradients_of_rows_match_finite_differences() {
        let (n, width) = (35, 19);
        for style in [NormStyle::Plain, NormStyle::OnePlus] {
            let forward = |x: &[f64], weight: &[f64]| {
                let (mut y, mut r) = (vec![0.0; x.len()], vec![0.0; n]);
                norm_rows(x, &gain(weight, style), EPS, &mut y, &mut r);
                (y, r)
            };
            let (x, weight, dy, past) =
                (check::values(1, n * width), check::values(2, width), check::values(3, n * width), check::values(4, n * width));
            let (y, r) = forward(&x, &weight);
            for past in [None, Some(past.as_slice())] {
                let mut dx = vec![0.0; x.len()];
                let dw = backward_rows(&x, &gain(&weight, style), &r, &dy, past, &mut dx);
                let loss = |x: &[f64], w: &[f64]| check::dot(&forward(x, w).0, &dy) + past.map_or(0.0, |past| check::dot(x, past));
                check::gradient("dx", &x, &dx, |x| loss(x, &weight));
                check::gradient("dw", &weight, &dw, |w| loss(&x, w));
            }
            let (mut sum, mut y_of_sum, mut r_of_sum) = (past.clone(), vec![0.0; x.len()], vec![0.0; n]);
            add_and_norm_rows(&mut sum, &x, &gain(&weight, style), EPS, &mut y_of_sum, &mut r_of_sum);
            assert!(sum.iter().zip(&x).zip(&past).all(|((sum, x), past)| *sum == x + past));
            assert_eq!((y_of_sum, r_of_sum), forward(&sum, &weight));
            let mut again = vec![0.0; x.len()];
            scale_rows(&x, &gain(&weight, style), &r, &mut again);
            assert_eq!(again, y);
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        let whole = Heads { row_width: 37, first: 0, n_heads: 1, head_dim: 37 };
        let some = Heads { row_width: 40, first: 8, n_heads: 3, head_dim: 8 };
        for (style, heads) in [(NormStyle::Plain, whole), (NormStyle::OnePlus, whole), (NormStyle::Plain, some), (NormStyle::OnePlus, some)]
        {
            let n = 5;
            let (x, weight, dy) =
                (check::values(1, n * heads.row_width), check::values(2, heads.head_dim), check::values(3, n * heads.row_width));
            let (y, r) = forward_f64(&x, &weight, style, heads);
            let (mut dx, mut dw) = (dy.clone(), vec![0.0; heads.head_dim]);
            heads.backward(&x, &gain(&weight, style), &r, &mut dx);
            heads.add_gain_gradient(&x, &r, &dy, &mut dw);
            check::gradient("dx", &x, &dx, |x| check::dot(&forward_f64(x, &weight, style, heads).0, &dy));
            check::gradient("dw", &weight, &dw, |w| check::dot(&forward_f64(&x, w, style, heads).0, &dy));
            let normed = &y[heads.columns()][..heads.head_dim];
            let unscaled: f64 = normed.iter().zip(gain(&weight, style)).map(|(y, g)| (y / g).powi(2)).sum();
            assert!((unscaled / heads.head_dim as f64 - 1.0).abs() < 1e-3, "the mean square of a normed head is 1");
            assert!(y[..heads.first] == x[..heads.first], "other columns stay");
        }
    }

    #[test]
    fn tensors_agree_with_f64_above_the_parallel_threshold() {
        let (width, n) = (576, 300);
        let heads = Heads { row_width: width, first: 0, n_heads: 1, head_dim: width };
        let (x, weight, dy) = (check::values(1, n * width), check::values(2, width), check::values(3, n * width));
        let (y64, r64) = forward_f64(&x, &weight, NormStyle::Plain, heads);
        let (mut dx64, mut dw64) = (dy.clone(), vec![0.0; width]);
        heads.backward(&x, &weight, &r64, &mut dx64);
        heads.add_gain_gradient(&x, &r64, &dy, &mut dw64);
        let as_tensor = |values: &[f64], shape: &[usize]| tensor(check::to_f32(values), shape).unwrap();
        let (x, weight, dy) = (as_tensor(&x, &[n, width]), as_tensor(&weight, &[width]), as_tensor(&dy, &[n, width]));
        let norm = RmsNorm { weight: &weight, eps: EPS, style: NormStyle::Plain };
        let (y, r) = norm.forward(&x).unwrap();
        let dw = tensor(vec![0f32; width], &[width]).unwrap();
        let dx = norm.backward(&x, &r, &dy, Some(&dw)).unwrap();
        assert!(check::relative_difference(&read(&y).unwrap(), &y64) < 1e-6);
        assert!(check::relative_difference(&read(&dx).unwrap(), &dx64) < 1e-6);
        assert!(check::relative_difference(&read(&dw).unwrap(), &dw64) < 1e-5);
        assert_eq!(norm.recompute(&x, &r).unwrap().to_vec2::<f32>().unwrap(), y.to_vec2::<f32>().unwrap());
    }
}

#[cfg(test)]
mod gpu_tests {
    use super::*;
    use crate::ops::gpu::twin::{Place, agree};

    fn norm<'a>(weight: &'a Tensor, style: NormStyle) -> RmsNorm<'a> {
        RmsNorm { weight, eps: 1e-5, style }
    }

    #[test]
    fn rows_agree_with_the_cpu() {
        // Wider than the 8,192 values that a block's threads keep, in chunks; and than the 1,024, one by one.
        let (plain, one_plus) = (NormStyle::Plain, NormStyle::OnePlus);
        for (n, width, style) in [
            (1, 7, plain),
            (5, 64, one_plus),
            (700, 24, plain),
            (2, 515, one_plus),
            (3, 1032, plain),
            (3, 4100, one_plus),
            (1, 8208, plain),
        ] {
            agree(&format!("{n} rows of {width}"), |place: &Place| {
                let [x, residual, dy] = [1, 2, 3].map(|seed| place.values(seed, &[n, width]));
                let weight = place.values(4, &[width]);
                let norm = norm(&weight, style);
                let (y, r) = norm.forward(&x)?;
                let gradient = place.floats(vec![1.0; width], &[width]);
                let again = norm.recompute(&x, &r)?;
                let dx = norm.backward(&x, &r, &dy, Some(&gradient))?;
                let past = norm.backward_sum(&x, &r, &dy, Some(&residual), None)?;
                let (y_of_sum, r_of_sum) = norm.forward_sum(&residual, &x)?;
                let results = [&y, &r, &again, &dx, &past, &y_of_sum, &r_of_sum].map(|buffer| buffer.copy().unwrap());
                Ok(results.into_iter().chain([gradient, residual]).collect())
            });
        }
    }

    #[test]
    fn heads_agree_with_the_cpu() {
        for (n, first, n_heads, head_dim) in [(1, 0, 1, 8), (9, 32, 3, 16), (700, 16, 2, 40), (5, 3, 2, 10), (3, 8, 2, 136)] {
            let heads = Heads { row_width: first + n_heads * head_dim + 24, first, n_heads, head_dim };
            agree(&format!("{heads:?} of {n} rows"), |place: &Place| {
                let [x, d] = [1, 2].map(|seed| place.values(seed, &[n, heads.row_width]));
                let unnormed = x.copy()?;
                let weight = place.values(4, &[head_dim]);
                let norm = norm(&weight, NormStyle::OnePlus);
                let r = norm.forward_heads(&x, heads)?.copy()?;
                let gradient = place.floats(vec![1.0; head_dim], &[head_dim]);
                norm.backward_heads(&unnormed, &r, &d, Some(&gradient), heads)?;
                Ok(vec![x, r, d, gradient])
            });
        }
    }
}
