//! RMS norm (arXiv 1910.07467): `y = x / sqrt(mean(x²) + eps) * g`, where `g` is the weight, or 1 + the weight in Gemma.
//!
//! Backward, with r = 1 / sqrt(mean(x²) + eps) and x̂ = x r: `dx = r (g dy - x̂ mean(g dy x̂))`, `dg = Σ_rows dy x̂`.
//! A row may be any run of `width` values: a token's hidden state, or one head of a token's queries.

use super::real::{dot, vectorized};
use super::{Buffer, Real, Scratch, read, rows_per_task, update};
use anyhow::Result;
use candle_core::Tensor;
use rayon::prelude::*;

/// Rows whose part of `dg` is summed as one: fixed, so that the order of the sum is.
const ROWS_PER_PARTIAL_SUM: usize = 64;

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
        let y = Buffer::new(Scratch::copy_of(&read(x)?), x.dims())?;
        let r = self.forward_heads(&y, Heads::whole_rows(x)?)?;
        Ok((y, r))
    }

    /// Norms some columns of `x [N, ..]` in place; r is `[N, n_heads]`.
    pub fn forward_heads(&self, x: &Tensor, heads: Heads) -> Result<Buffer> {
        let n_rows = x.dim(0)?;
        let gain = self.gain()?;
        let mut r = Scratch::new(n_rows * heads.n_heads);
        update(x, |x| heads.forward(x, &gain, self.eps, &mut r))?;
        Buffer::new(r, &[n_rows, heads.n_heads])
    }

    /// The normed rows again, from the input and the saved r.
    pub fn recompute(&self, x: &Tensor, r: &Tensor) -> Result<Buffer> {
        let heads = Heads::whole_rows(x)?;
        let (gain, r, mut y) = (self.gain()?, read(r)?, Scratch::copy_of(&read(x)?));
        heads.scale(&mut y, &gain, &r);
        Buffer::new(y, x.dims())
    }

    /// `dy [N, W]` to `dx [N, W]`; adds to `weight_gradient [W]` unless frozen.
    pub fn backward(&self, x: &Tensor, r: &Tensor, dy: &Tensor, weight_gradient: Option<&Tensor>) -> Result<Buffer> {
        let dx = Buffer::new(Scratch::copy_of(&read(dy)?), dy.dims())?;
        self.backward_heads(x, r, &dx, weight_gradient, Heads::whole_rows(x)?)?;
        Ok(dx)
    }

    /// Turns the gradient of some columns' normed values into that of their inputs, in place.
    pub fn backward_heads(&self, x: &Tensor, r: &Tensor, d: &Tensor, weight_gradient: Option<&Tensor>, heads: Heads) -> Result<()> {
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

impl Heads {
    fn whole_rows(x: &Tensor) -> Result<Self> {
        let width = x.dim(1)?;
        Ok(Self { row_width: width, first: 0, n_heads: 1, head_dim: width })
    }

    #[inline(always)]
    fn columns(&self) -> std::ops::Range<usize> {
        self.first..self.first + self.n_heads * self.head_dim
    }

    fn forward<T: Real>(&self, x: &mut [T], gain: &[T], eps: f64, r: &mut [T]) {
        let per_task = rows_per_task(self.row_width);
        x.par_chunks_mut(per_task * self.row_width).zip(r.par_chunks_mut(per_task * self.n_heads)).for_each(|(x, r)| {
            vectorized(|| {
                for (row, r) in x.chunks_mut(self.row_width).zip(r.chunks_mut(self.n_heads)) {
                    for (head, r) in row[self.columns()].chunks_mut(self.head_dim).zip(r) {
                        *r = T::ONE / Real::sqrt(dot(head, head) / T::of(self.head_dim as f64) + T::of(eps));
                        scale_head(head, gain, *r);
                    }
                }
            })
        });
    }

    fn scale<T: Real>(&self, x: &mut [T], gain: &[T], r: &[T]) {
        let per_task = rows_per_task(self.row_width);
        x.par_chunks_mut(per_task * self.row_width).zip(r.par_chunks(per_task * self.n_heads)).for_each(|(x, r)| {
            vectorized(|| {
                for (row, r) in x.chunks_mut(self.row_width).zip(r.chunks(self.n_heads)) {
                    for (head, &r) in row[self.columns()].chunks_mut(self.head_dim).zip(r) {
                        scale_head(head, gain, r);
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
            vectorized(|| {
                for ((d, x), r) in d.chunks_mut(self.row_width).zip(x.chunks(self.row_width)).zip(r.chunks(self.n_heads)) {
                    let heads = d[self.columns()].chunks_mut(self.head_dim).zip(x[self.columns()].chunks(self.head_dim));
                    for ((d, x), &r) in heads.zip(r) {
                        d.iter_mut().zip(gain).for_each(|(d, &g)| *d *= g);
                        let mean = dot(d, x) * r / T::of(self.head_dim as f64);
                        d.iter_mut().zip(x).for_each(|(d, &x)| *d = r * (*d - x * r * mean));
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
            vectorized(|| {
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

#[inline(always)]
fn scale_head<T: Real>(head: &mut [T], gain: &[T], r: T) {
    head.iter_mut().zip(gain).for_each(|(x, &g)| *x = *x * r * g);
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
