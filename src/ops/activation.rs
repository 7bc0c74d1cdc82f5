//! The gated MLP's middle: `y = act(gate) * up`, where gate and up are the two halves of one projection's rows.

use super::gpu::{self, Kernel};
use super::real::vectorized;
use super::{Buffer, Real, Scratch, read, rows_per_task};
use anyhow::Result;
use candle_core::Tensor;
use rayon::prelude::*;

/// What the gate goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    Silu,
    GeluTanh,
    Gelu,
}

/// `gate_up [N, 2F]` to `[N, F]`.
pub fn forward(gate_up: &Tensor, activation: Activation) -> Result<Buffer> {
    let (n_rows, width) = gate_up.dims2()?;
    if gpu::has(gate_up) {
        let y = gpu::empty_like(&[n_rows, width / 2], gate_up)?;
        run(Kernel::new("activation_forward", gate_up)?.values(gate_up)?.values(&y)?, gate_up, activation)?;
        return Ok(y);
    }
    let gate_up = read(gate_up)?;
    let mut y = Scratch::new(gate_up.len() / 2);
    forward_rows(&gate_up, width / 2, activation, &mut y);
    Buffer::new(y, &[n_rows, width / 2])
}

/// What [`forward`] gave, again, and from `dy [N, F]` the gradient of `gate_up [N, 2F]`.
pub fn backward(gate_up: &Tensor, dy: &Tensor, activation: Activation) -> Result<(Buffer, Buffer)> {
    let (n_rows, width) = gate_up.dims2()?;
    if gpu::has(gate_up) {
        let (y, dx) = (gpu::empty_like(&[n_rows, width / 2], gate_up)?, gpu::empty_like(&[n_rows, width], gate_up)?);
        let kernel = Kernel::new("activation_backward", gate_up)?.values(gate_up)?.values(dy)?.values(&y)?.values(&dx)?;
        run(kernel, gate_up, activation)?;
        return Ok((y, dx));
    }
    let (gate_up, dy) = (read(gate_up)?, read(dy)?);
    let (mut y, mut dx) = (Scratch::new(gate_up.len() / 2), Scratch::new(gate_up.len()));
    backward_rows(&gate_up, &dy, width / 2, activation, &mut y, &mut dx);
    Ok((Buffer::new(y, &[n_rows, width / 2])?, Buffer::new(dx, &[n_rows, width])?))
}

/// Starts a kernel of this op, which takes rows, width and kind last.
fn run(kernel: Kernel, gate_up: &Tensor, activation: Activation) -> Result<()> {
    let (n_rows, width) = (gate_up.dim(0)?, gate_up.dim(1)? / 2);
    let kind = match activation {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
        Activation::Gelu => 2,
    };
    let threads = gpu::threads_for(width, 128);
    // A grid has at most 65,535 blocks along y and z.
    let (y, z) = (n_rows.min(32_768), n_rows.div_ceil(32_768));
    kernel.integer(n_rows)?.integer(width)?.integer(kind)?.run([width.div_ceil(threads * gpu::CHUNK), y, z], threads)
}

fn forward_rows<T: Real>(gate_up: &[T], width: usize, activation: Activation, y: &mut [T]) {
    let rows = rows_per_task(2 * width);
    y.par_chunks_mut(rows * width).zip(gate_up.par_chunks(rows * 2 * width)).for_each(|(y, gate_up)| {
        vectorized!(match activation {
            Activation::Silu => gate_rows(gate_up, width, y, silu),
            Activation::GeluTanh => gate_rows(gate_up, width, y, gelu_tanh),
            Activation::Gelu => gate_rows(gate_up, width, y, gelu),
        })
    });
}

#[inline(always)]
fn gate_rows<T: Real>(gate_up: &[T], width: usize, y: &mut [T], act: impl Fn(T) -> (T, T)) {
    for (y, row) in y.chunks_mut(width).zip(gate_up.chunks(2 * width)) {
        let (gate, up) = row.split_at(width);
        for ((y, &gate), &up) in y.iter_mut().zip(gate).zip(up) {
            *y = act(gate).0 * up;
        }
    }
}

fn backward_rows<T: Real>(gate_up: &[T], dy: &[T], width: usize, activation: Activation, y: &mut [T], dx: &mut [T]) {
    let rows = rows_per_task(2 * width);
    let tasks = dx.par_chunks_mut(rows * 2 * width).zip(gate_up.par_chunks(rows * 2 * width)).zip(dy.par_chunks(rows * width));
    tasks.zip(y.par_chunks_mut(rows * width)).for_each(|(((dx, gate_up), dy), y)| {
        vectorized!(match activation {
            Activation::Silu => gate_rows_backward(gate_up, dy, width, (y, dx), silu),
            Activation::GeluTanh => gate_rows_backward(gate_up, dy, width, (y, dx), gelu_tanh),
            Activation::Gelu => gate_rows_backward(gate_up, dy, width, (y, dx), gelu),
        })
    });
}

#[inline(always)]
fn gate_rows_backward<T: Real>(gate_up: &[T], dy: &[T], width: usize, (y, dx): (&mut [T], &mut [T]), act: impl Fn(T) -> (T, T)) {
    let rows = dx.chunks_mut(2 * width).zip(gate_up.chunks(2 * width)).zip(dy.chunks(width)).zip(y.chunks_mut(width));
    for (((dx, row), dy), y) in rows {
        let (gate, up) = row.split_at(width);
        let (d_gate, d_up) = dx.split_at_mut(width);
        for (((((d_gate, d_up), &gate), &up), &dy), y) in d_gate.iter_mut().zip(d_up).zip(gate).zip(up).zip(dy).zip(y) {
            let (value, slope) = act(gate);
            *y = value * up;
            *d_gate = dy * up * slope;
            *d_up = dy * value;
        }
    }
}

/// x sigmoid(x), and its derivative.
#[inline(always)]
fn silu<T: Real>(x: T) -> (T, T) {
    let s = T::ONE / (T::ONE + Real::exp(-x));
    (x * s, s * (T::ONE + x * (T::ONE - s)))
}

/// x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))), and its derivative.
#[inline(always)]
fn gelu_tanh<T: Real>(x: T) -> (T, T) {
    let (c, k, half) = (T::of((2.0 / std::f64::consts::PI).sqrt()), T::of(0.044715), T::of(0.5));
    let t = Real::tanh(c * (x + k * x * x * x));
    let slope = c * (T::ONE + T::of(3.0) * k * x * x);
    (half * x * (T::ONE + t), half * (T::ONE + t) + half * x * (T::ONE - t * t) * slope)
}

/// x Φ(x), and its derivative.
#[inline(always)]
fn gelu<T: Real>(x: T) -> (T, T) {
    let half = T::of(0.5);
    let phi = half * (T::ONE + Real::erf(x * T::of(std::f64::consts::FRAC_1_SQRT_2)));
    let density = Real::exp(-half * x * x) * T::of(1.0 / (2.0 * std::f64::consts::PI).sqrt());
    (x * phi, phi + x * density)
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::super::tensor;
    use super::*;

    #[test]
    fn gradients_match_finite_differences() {
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
            let (width, n) = (21, 3);
            let x: Vec<f64> = check::values(1, n * 2 * width).iter().map(|x| 4.0 * x).collect();
            let dy = check::values(2, n * width);
            let mut dx = vec![0.0; x.len()];
            let mut again = vec![0.0; n * width];
            backward_rows(&x, &dy, width, activation, &mut again, &mut dx);
            let forward = |x: &[f64]| {
                let mut y = vec![0.0; n * width];
                forward_rows(x, width, activation, &mut y);
                y
            };
            assert_eq!(again, forward(&x));
            check::gradient(&format!("{activation:?}"), &x, &dx, |x| check::dot(&forward(x), &dy));
        }
    }

    #[test]
    fn tensors_agree_with_f64_above_the_parallel_threshold() {
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
            let (width, n) = (300, 120);
            let x: Vec<f64> = check::values(1, n * 2 * width).iter().map(|x| f64::from(6.0 * *x as f32)).collect();
            let dy: Vec<f64> = check::values(2, n * width).iter().map(|x| f64::from(*x as f32)).collect();
            let (mut y64, mut dx64) = (vec![0.0; n * width], vec![0.0; x.len()]);
            forward_rows(&x, width, activation, &mut y64);
            backward_rows(&x, &dy, width, activation, &mut y64.clone(), &mut dx64);
            let (x, dy) = (tensor(check::to_f32(&x), &[n, 2 * width]).unwrap(), tensor(check::to_f32(&dy), &[n, width]).unwrap());
            let (y, (again, dx)) = (forward(&x, activation).unwrap(), backward(&x, &dy, activation).unwrap());
            assert!(read(&y).unwrap()[..] == read(&again).unwrap()[..]);
            assert!(check::relative_difference(&read(&y).unwrap(), &y64) < 1e-6);
            assert!(check::relative_difference(&read(&dx).unwrap(), &dx64) < 1e-6);
        }
    }
}

#[cfg(test)]
mod gpu_tests {
    use super::*;
    use crate::ops::gpu::twin::agree;

    #[test]
    fn agrees_with_the_cpu() {
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
            for (n, width) in [(1, 1), (3, 21), (5, 64), (2, 515), (2, 1304)] {
                agree(&format!("{activation:?}, {n} rows of {width}"), |place| {
                    let (gate_up, dy) = (place.values(1, &[n, 2 * width]).affine(4.0, 0.0)?, place.values(2, &[n, width]));
                    let (y, (again, dx)) = (forward(&gate_up, activation)?, backward(&gate_up, &dy, activation)?);
                    [&y, &again, &dx].iter().map(|buffer| Ok(buffer.copy()?)).collect()
                });
            }
        }
    }
}
