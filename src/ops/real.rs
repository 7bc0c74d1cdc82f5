//! The number types that kernels are written for: f32 for training, f64 for checking the same code.
//!
//! Besides arithmetic it gives what the standard library has no vector form of: an exponential that the compiler can vectorise, and
//! reductions over a fixed number of lanes (so that their order does not depend on the instruction set's width).

use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub};

/// f32 or f64.
pub trait Real:
    Copy
    + Send
    + Sync
    + PartialOrd
    + Default
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + MulAssign
    + Sum
    + 'static
{
    const ZERO: Self;
    const ONE: Self;
    const NEG_INFINITY: Self;
    fn of(value: f64) -> Self;
    fn exp(self) -> Self;
    fn sqrt(self) -> Self;
    fn ln(self) -> Self;
    fn erf(self) -> Self;

    /// tanh by the exponential, exact to rounding for the caps and activations that use it.
    #[inline(always)]
    fn tanh(self) -> Self {
        // exp(-2|x|) cannot overflow; (1 - e) / (1 + e) is |tanh x|.
        let negative = self < Self::ZERO;
        let magnitude = if negative { -self } else { self };
        let e = Real::exp(-(magnitude + magnitude));
        let t = (Self::ONE - e) / (Self::ONE + e);
        if negative { -t } else { t }
    }

    #[inline(always)]
    fn maximum(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
}

impl Real for f64 {
    const ZERO: f64 = 0.0;
    const ONE: f64 = 1.0;
    const NEG_INFINITY: f64 = f64::NEG_INFINITY;

    fn of(value: f64) -> f64 {
        value
    }
    fn exp(self) -> f64 {
        f64::exp(self)
    }
    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }
    fn ln(self) -> f64 {
        f64::ln(self)
    }
    fn tanh(self) -> f64 {
        f64::tanh(self)
    }
    fn erf(self) -> f64 {
        libm::erf(self)
    }
}

impl Real for f32 {
    const ZERO: f32 = 0.0;
    const ONE: f32 = 1.0;
    const NEG_INFINITY: f32 = f32::NEG_INFINITY;

    #[inline(always)]
    fn of(value: f64) -> f32 {
        value as f32
    }

    /// `2^n * p(r)` with `x = n ln 2 + r`: within 2 units in the last place on [-87, 88], 0 below, infinity above, NaN kept.
    #[inline(always)]
    fn exp(self) -> f32 {
        // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
        const MAGIC: f32 = 12_582_912.0;
        const LN2_HIGH: f32 = 0.693_359_4;
        const LN2_LOW: f32 = -2.121_944_4e-4;
        let shifted = self * std::f32::consts::LOG2_E + MAGIC;
        let n = shifted - MAGIC;
        let r = (self - n * LN2_HIGH) - n * LN2_LOW;
        let p = 1.987_569_1e-4;
        let p = p * r + 1.398_199_9e-3;
        let p = p * r + 8.333_452e-3;
        let p = p * r + 4.166_579_6e-2;
        let p = p * r + 1.666_666_5e-1;
        let p = p * r + 5e-1;
        let p = p * r * r + r + 1.0;
        let power = shifted.to_bits().wrapping_sub(MAGIC.to_bits()) << 23;
        let value = f32::from_bits(p.to_bits().wrapping_add(power));
        let value = if self > 88.0 { f32::INFINITY } else { value };
        let value = if self < -87.0 { 0.0 } else { value };
        if self.is_nan() { self } else { value }
    }
    #[inline(always)]
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }
    fn ln(self) -> f32 {
        f32::ln(self)
    }
    fn erf(self) -> f32 {
        libm::erff(self)
    }
}

const LANES: usize = 32;

/// Folds `values` into fixed lanes, then the lanes into one: vectorises, and its order depends on the length alone.
#[inline(always)]
fn reduce<T: Real>(length: usize, start: T, at: impl Fn(usize) -> T, join: impl Fn(T, T) -> T) -> T {
    let mut lanes = [start; LANES];
    let whole = length / LANES * LANES;
    let mut base = 0;
    while base < whole {
        for (lane, total) in lanes.iter_mut().enumerate() {
            *total = join(*total, at(base + lane));
        }
        base += LANES;
    }
    for (lane, i) in (whole..length).enumerate() {
        lanes[lane] = join(lanes[lane], at(i));
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] = join(lanes[lane], lanes[lane + width]);
        }
    }
    lanes[0]
}

#[inline(always)]
pub fn sum<T: Real>(values: &[T]) -> T {
    reduce(values.len(), T::ZERO, |i| values[i], |a, b| a + b)
}

/// `Σ exp(value - offset)`
#[inline(always)]
pub fn sum_exp<T: Real>(values: &[T], offset: T) -> T {
    reduce(values.len(), T::ZERO, |i| Real::exp(values[i] - offset), |a, b| a + b)
}

#[inline(always)]
pub fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    reduce(n, T::ZERO, |i| a[i] * b[i], |a, b| a + b)
}

#[inline(always)]
pub fn max<T: Real>(values: &[T]) -> T {
    reduce(values.len(), T::NEG_INFINITY, |i| values[i], |a, b| if b > a { b } else { a })
}

/// Runs an expression compiled for the widest vectors that this processor has.
///
/// It must be inlined where those vectors are enabled, or it is a function of its own, compiled for any processor. Hence a macro: its closure
/// is marked, and consumes a [`Once`], because the compiler calls a closure that could be called again by way of a function that is not. What
/// the expression calls must be `#[inline(always)]` too.
macro_rules! vectorized {
    ($body:expr) => {{
        let once = $crate::ops::Once;
        pulp::Arch::new().dispatch(
            #[inline(always)]
            || {
                let _consumed = once;
                $body
            },
        )
    }};
}
pub(crate) use vectorized;

/// Not to be used twice.
pub(crate) struct Once;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponential_is_close_to_the_exact_one() {
        let mut worst = 0.0f64;
        for i in -86_999..87_999 {
            let x = i as f32 * 1e-3;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(Real::exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2.4e-7, "relative error {worst}");
        assert_eq!(Real::exp(-1e4f32), 0.0);
        assert_eq!(Real::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(Real::exp(1e4f32), f32::INFINITY);
        assert!(Real::exp(f32::NAN).is_nan());
        assert_eq!(Real::exp(0.0f32), 1.0);
    }

    #[test]
    fn tanh_matches_the_standard_library() {
        for i in -2000..2000 {
            let x = i as f32 * 0.01;
            assert!((Real::tanh(x) - x.tanh()).abs() < 3e-7, "{x}");
        }
    }

    #[test]
    fn reductions_take_every_value_once() {
        for n in [0, 1, 31, 32, 33, 100, 257] {
            let values: Vec<f64> = (0..n).map(|i| i as f64).collect();
            assert_eq!(sum(&values), (0..n).sum::<usize>() as f64);
            assert_eq!(dot(&values, &values), (0..n).map(|i| i * i).sum::<usize>() as f64);
            assert_eq!(max(&values), if n == 0 { f64::NEG_INFINITY } else { (n - 1) as f64 });
        }
    }
}
