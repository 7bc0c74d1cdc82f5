//! RMS norm (arXiv 1910.07467): `y = x / sqrt(mean(x²) + eps) * g`, where `g` is the weight, or 1 + the weight in Gemma.
//!
//! Backward, with r = 1 / sqrt(mean(x²) + eps) and x̂ = x r: `dx = r (g dy - x̂ mean(g dy x̂))`, `dg = Σ_rows dy x̂`.
//! A row may be any run of `width` values: a token's hidden state, or one head of a token's queries.

use super::real::{dot, vectorized};
use super::{Real, read, rows_per_task, tensor, update};
use crate::model::description::NormStyle;
use anyhow::Result;
use candle_core::Tensor;
use rayon::prelude::*;

/// Rows whose part of `dg` is summed as one: fixed, so that the order of the sum is.
const ROWS_PER_PARTIAL_SUM: usize = 64;

/// `x [N, W]`, `weight [W]` to the normed rows `[N, W]` and r `[N]`.
pub fn forward(x: &Tensor, weight: &Tensor, eps: f64, style: NormStyle) -> Result<(Tensor, Tensor)> {
    let (n_rows, width) = x.dims2()?;
    let (x, weight) = (read(x)?, read(weight)?);
    let (mut y, mut r) = (vec![0.0; x.len()], vec![0.0; n_rows]);
    forward_rows(&x, &gain(&weight, style), eps, &mut y, &mut r);
    Ok((tensor(y, &[n_rows, width])?, tensor(r, &[n_rows])?))
}

/// The normed rows again, from the input and the saved r.
pub fn recompute(x: &Tensor, weight: &Tensor, r: &Tensor, style: NormStyle) -> Result<Tensor> {
    let (n_rows, width) = x.dims2()?;
    let (x, gain, r) = (read(x)?, gain(&read(weight)?, style), read(r)?);
    let mut y = vec![0.0f32; x.len()];
    y.par_chunks_mut(width).zip(x.par_chunks(width)).zip(r.par_iter()).for_each(|((y, x), &r)| vectorized(|| scale_row(x, &gain, r, y)));
    tensor(y, &[n_rows, width])
}

/// `dy [N, W]` to `dx [N, W]`; adds to `weight_gradient [W]` unless frozen.
pub fn backward(
    x: &Tensor,
    weight: &Tensor,
    r: &Tensor,
    dy: &Tensor,
    weight_gradient: Option<&Tensor>,
    style: NormStyle,
) -> Result<Tensor> {
    let (n_rows, width) = x.dims2()?;
    let (x, gain, r, dy) = (read(x)?, gain(&read(weight)?, style), read(r)?, read(dy)?);
    let mut dx = vec![0.0; x.len()];
    backward_rows(&x, &gain, &r, &dy, &mut dx);
    if let Some(weight_gradient) = weight_gradient {
        update(weight_gradient, |out: &mut [f32]| add_gain_gradient(&x, &r, &dy, out))?;
    }
    tensor(dx, &[n_rows, width])
}

fn gain<T: Real>(weight: &[T], style: NormStyle) -> Vec<T> {
    match style {
        NormStyle::Plain => weight.to_vec(),
        NormStyle::OnePlus => weight.iter().map(|&w| T::ONE + w).collect(),
    }
}

pub(crate) fn forward_rows<T: Real>(x: &[T], gain: &[T], eps: f64, y: &mut [T], r: &mut [T]) {
    let width = gain.len();
    let rows = rows_per_task(width);
    let tasks = y.par_chunks_mut(rows * width).zip(x.par_chunks(rows * width)).zip(r.par_chunks_mut(rows));
    tasks.for_each(|((y, x), r)| {
        vectorized(|| {
            for ((y, x), r) in y.chunks_mut(width).zip(x.chunks(width)).zip(r) {
                *r = T::ONE / Real::sqrt(dot(x, x) / T::of(width as f64) + T::of(eps));
                scale_row(x, gain, *r, y);
            }
        })
    });
}

#[inline(always)]
fn scale_row<T: Real>(x: &[T], gain: &[T], r: T, y: &mut [T]) {
    for ((y, &x), &g) in y.iter_mut().zip(x).zip(gain) {
        *y = x * r * g;
    }
}

pub(crate) fn backward_rows<T: Real>(x: &[T], gain: &[T], r: &[T], dy: &[T], dx: &mut [T]) {
    let width = gain.len();
    let rows = rows_per_task(width);
    let tasks = dx.par_chunks_mut(rows * width).zip(x.par_chunks(rows * width)).zip(dy.par_chunks(rows * width)).zip(r.par_chunks(rows));
    tasks.for_each(|(((dx, x), dy), r)| {
        vectorized(|| {
            for (((dx, x), dy), &r) in dx.chunks_mut(width).zip(x.chunks(width)).zip(dy.chunks(width)).zip(r) {
                for ((dx, &dy), &g) in dx.iter_mut().zip(dy).zip(gain) {
                    *dx = dy * g;
                }
                let mean = dot(dx, x) * r / T::of(width as f64);
                for (dx, &x) in dx.iter_mut().zip(x) {
                    *dx = r * (*dx - x * r * mean);
                }
            }
        })
    });
}

fn add_gain_gradient<T: Real>(x: &[T], r: &[T], dy: &[T], out: &mut [T]) {
    let width = out.len();
    let part = ROWS_PER_PARTIAL_SUM;
    let parts: Vec<Vec<T>> = x
        .par_chunks(part * width)
        .zip(dy.par_chunks(part * width))
        .zip(r.par_chunks(part))
        .map(|((x, dy), r)| {
            let mut sum = vec![T::ZERO; width];
            vectorized(|| {
                for ((x, dy), &r) in x.chunks(width).zip(dy.chunks(width)).zip(r) {
                    for ((sum, &x), &dy) in sum.iter_mut().zip(x).zip(dy) {
                        *sum += dy * x * r;
                    }
                }
            });
            sum
        })
        .collect();
    for part in parts {
        out.iter_mut().zip(part).for_each(|(out, part)| *out += part);
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;

    const EPS: f64 = 1e-5;

    fn forward_f64(x: &[f64], weight: &[f64], style: NormStyle) -> (Vec<f64>, Vec<f64>) {
        let (mut y, mut r) = (vec![0.0; x.len()], vec![0.0; x.len() / weight.len()]);
        forward_rows(x, &gain(weight, style), EPS, &mut y, &mut r);
        (y, r)
    }

    #[test]
    fn gradients_match_finite_differences() {
        for style in [NormStyle::Plain, NormStyle::OnePlus] {
            let (width, n) = (37, 5);
            let (x, weight, dy) = (check::values(1, n * width), check::values(2, width), check::values(3, n * width));
            let (_, r) = forward_f64(&x, &weight, style);
            let (mut dx, mut dw) = (vec![0.0; n * width], vec![0.0; width]);
            backward_rows(&x, &gain(&weight, style), &r, &dy, &mut dx);
            add_gain_gradient(&x, &r, &dy, &mut dw);
            check::gradient("dx", &x, &dx, |x| check::dot(&forward_f64(x, &weight, style).0, &dy));
            check::gradient("dw", &weight, &dw, |w| check::dot(&forward_f64(&x, w, style).0, &dy));
        }
    }

    #[test]
    fn tensors_agree_with_f64_above_the_parallel_threshold() {
        let (width, n) = (576, 300);
        let (x, weight, dy) = (check::values(1, n * width), check::values(2, width), check::values(3, n * width));
        let (y64, r64) = forward_f64(&x, &weight, NormStyle::Plain);
        let (mut dx64, mut dw64) = (vec![0.0; n * width], vec![0.0; width]);
        backward_rows(&x, &weight, &r64, &dy, &mut dx64);
        add_gain_gradient(&x, &r64, &dy, &mut dw64);
        let as_tensor = |values: &[f64], shape: &[usize]| tensor(check::to_f32(values), shape).unwrap();
        let (x, weight, dy) = (as_tensor(&x, &[n, width]), as_tensor(&weight, &[width]), as_tensor(&dy, &[n, width]));
        let (y, r) = forward(&x, &weight, EPS, NormStyle::Plain).unwrap();
        let dw = tensor(vec![0f32; width], &[width]).unwrap();
        let dx = backward(&x, &weight, &r, &dy, Some(&dw), NormStyle::Plain).unwrap();
        assert!(check::relative_difference(&read(&y).unwrap(), &y64) < 1e-6);
        assert!(check::relative_difference(&read(&dx).unwrap(), &dx64) < 1e-6);
        assert!(check::relative_difference(&read(&dw).unwrap(), &dw64) < 1e-5);
        assert_eq!(recompute(&x, &weight, &r, NormStyle::Plain).unwrap().to_vec2::<f32>().unwrap(), y.to_vec2::<f32>().unwrap());
    }
}
