//! AdamW as in PyTorch (Loshchilov & Hutter, arXiv 1711.05101), for values in f32, or in bf16 with what bf16 cannot hold kept beside them.
//!
//! ```text
//! w   <- w (1 - lr * weight_decay)            matrices only, as in transformers
//! m   <- m + (1 - beta1) (g - m)
//! v   <- beta2 v + (1 - beta2) g^2
//! w   <- w - lr / (1 - beta1^t) * m / ( sqrt(v) / sqrt(1 - beta2^t) + eps )
//! ```
//!
//! An update is computed in f32; the scalars are formed in f64 and rounded once. The clip factor scales `g` as it is read, so that gradients
//! are walked once less; it is formed where the gradients' norm is, so that nothing waits for a GPU. Elements are independent, blocks of 8-bit moments too: the result is the same bit for bit at any number of threads.

pub mod eight_bit;
mod on_gpu;

use super::dropout::mix_in;
use super::squares::{SumOfSquares, clip_factor, norm};
use super::{gpu, read, update};
use anyhow::{Result, ensure};
use candle_core::{DType, Tensor};
use eight_bit::{BLOCK, Codes};
use half::bf16;
use rayon::prelude::*;

/// Elements per parallel task: large enough to amortise the task, small enough to balance two threads on a small matrix. Whole blocks of moments.
pub(crate) const CHUNK: usize = 1 << 15;

/// What an update leaves of a value that its type cannot hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// Everything, in f32: the value itself, or a copy beside a bf16 value.
    Master,
    /// The value is rounded up or down at random, so that it is right on average.
    Stochastic,
    /// What rounding took away is kept in bf16 and added to the next update (Kahan summation).
    Kahan,
}

/// A running mean, of the parameter's shape.
#[derive(Debug, Clone)]
pub enum Moment {
    /// f32
    Exact(Tensor),
    /// A code for each value and the largest magnitude of each block (Dettmers et al., arXiv 2110.02861).
    EightBit { codes: Tensor, scales: Tensor },
}

/// What AdamW keeps of one parameter.
#[derive(Debug, Clone)]
pub struct State {
    pub first: Moment,
    pub second: Moment,
    /// The exact value in f32 (`Master`) or what rounding took away in bf16 (`Kahan`), beside a bf16 value.
    pub beside: Option<Tensor>,
    pub rounding: Rounding,
}

impl State {
    /// Zero moments for a parameter of this value.
    pub fn new(value: &Tensor, rounding: Rounding, eight_bit: bool) -> Result<Self> {
        let (shape, device) = (value.dims(), value.device());
        let eight_bit = eight_bit && value.elem_count() >= eight_bit::LEAST;
        let moment = || -> Result<Moment> {
            Ok(match eight_bit {
                false => Moment::Exact(Tensor::zeros(shape, DType::F32, device)?),
                true => Moment::EightBit {
                    codes: Tensor::zeros(shape, DType::U8, device)?,
                    scales: Tensor::zeros(value.elem_count().div_ceil(BLOCK), DType::F32, device)?,
                },
            })
        };
        let beside = match (value.dtype(), rounding) {
            (DType::BF16, Rounding::Master) => Some(value.to_dtype(DType::F32)?),
            (DType::BF16, Rounding::Kahan) => Some(value.zeros_like()?),
            _ => None,
        };
        Ok(Self { first: moment()?, second: moment()?, beside, rounding })
    }
}

/// One parameter to update.
#[derive(Debug)]
pub struct Item<'a> {
    /// Among all parameters of a run: sets its random rounding apart.
    pub number: usize,
    pub value: &'a Tensor,
    /// f32
    pub gradient: &'a Tensor,
    pub state: &'a State,
    pub decays: bool,
}

/// The scalars of one update, rounded to f32 where PyTorch rounds them.
#[derive(Debug, Clone, Copy)]
pub struct Scalars {
    /// 1 - lr * weight decay
    pub keep: f32,
    pub one_minus_beta1: f32,
    pub beta2: f32,
    pub one_minus_beta2: f32,
    pub step_size: f32,
    pub sqrt_correction2: f32,
    pub eps: f32,
    /// Of stochastic rounding: another one for every update.
    pub seed: u64,
}

/// What gradients are clipped by.
#[derive(Debug, Clone, Copy)]
pub struct Clip<'a> {
    /// Of all gradients of the update.
    pub squares: &'a SumOfSquares,
    /// 0: never.
    pub max_norm: f64,
}

/// One update of every item, in place; none where the norm of the gradients is not finite.
pub fn step(items: &[Item], scalars: &Scalars, clip: Clip) -> Result<()> {
    match items.first() {
        Some(item) if gpu::has(item.value) => on_gpu::step(items, scalars, clip),
        _ => {
            let norm = norm([clip.squares])?;
            let scale = clip_factor(norm, clip.max_norm) as f32;
            let items = if norm.is_finite() { items } else { &[] };
            items.iter().try_for_each(|item| step_one(item, scalars, scale, mix_in(scalars.seed, item.number as u64)))
        }
    }
}

/// What rounding has beside a value.
enum Beside<'a> {
    Nothing,
    Master(&'a mut [f32]),
    Compensation(&'a mut [f32]),
    Random(u64),
}

fn step_one(item: &Item, scalars: &Scalars, gradient_scale: f32, seed: u64) -> Result<()> {
    let scalars = Scalars { keep: if item.decays { scalars.keep } else { 1.0 }, ..*scalars };
    let gradient = read(item.gradient)?;
    let state = item.state;
    let mut beside = state.beside.as_ref().map(|tensor| Ok::<_, anyhow::Error>(read(tensor)?.to_vec())).transpose()?;
    let kind = match (item.value.dtype(), state.rounding, &mut beside) {
        (DType::F32, Rounding::Master, None) => Beside::Nothing,
        (DType::BF16, Rounding::Master, Some(master)) => Beside::Master(master),
        (DType::BF16, Rounding::Kahan, Some(lost)) => Beside::Compensation(lost),
        (DType::BF16, Rounding::Stochastic, None) => Beside::Random(seed),
        (dtype, rounding, _) => anyhow::bail!("AdamW cannot update {dtype:?} values by {rounding:?}"),
    };
    with_moments(state, |first, second| update(item.value, |w| scalars.apply(w, (&gradient, gradient_scale), (first, second), kind)))???;
    if let Some((tensor, values)) = state.beside.as_ref().zip(beside) {
        update(tensor, |target| target.copy_from_slice(&values))?;
    }
    Ok(())
}

/// Runs `work` on both moments as f32, and keeps what it makes of them.
fn with_moments<R>(state: &State, work: impl FnOnce(&mut [f32], &mut [f32]) -> R) -> Result<R> {
    match (&state.first, &state.second) {
        (Moment::Exact(first), Moment::Exact(second)) => update(first, |first| update(second, |second| work(first, second)))?,
        (Moment::EightBit { codes: one, scales: one_scales }, Moment::EightBit { codes: two, scales: two_scales }) => {
            let (mut first, mut second) = (Codes::Signed.decoded(one, one_scales)?, Codes::Unsigned.decoded(two, two_scales)?);
            let result = work(&mut first, &mut second);
            Codes::Signed.encode(&first, one, one_scales)?;
            Codes::Unsigned.encode(&second, two, two_scales)?;
            Ok(result)
        }
        _ => anyhow::bail!("one moment of a parameter is in 8 bits, the other is not"),
    }
}

impl Scalars {
    /// One update of one parameter's elements, by its gradient times `scale`; all slices have its length.
    fn apply(&self, w: &mut [f32], (gradient, scale): (&[f32], f32), (m, v): (&mut [f32], &mut [f32]), beside: Beside) -> Result<()> {
        let n = w.len();
        ensure!(gradient.len() == n && m.len() == n && v.len() == n, "a gradient or a moment of another length than its parameter's");
        let chunks =
            (w.par_chunks_mut(CHUNK), gradient.par_chunks(CHUNK), m.par_chunks_mut(CHUNK), v.par_chunks_mut(CHUNK)).into_par_iter();
        match beside {
            Beside::Nothing => chunks.for_each(|(w, gradient, m, v)| {
                for (((w, g), m), v) in w.iter_mut().zip(gradient).zip(m).zip(v) {
                    *w = self.updated(*w, *g * scale, m, v);
                }
            }),
            Beside::Master(master) => chunks.zip(master.par_chunks_mut(CHUNK)).for_each(|((w, gradient, m, v), master)| {
                for ((((w, g), m), v), master) in w.iter_mut().zip(gradient).zip(m).zip(v).zip(master) {
                    *master = self.updated(*master, *g * scale, m, v);
                    *w = *master;
                }
            }),
            Beside::Compensation(lost) => chunks.zip(lost.par_chunks_mut(CHUNK)).for_each(|((w, gradient, m, v), lost)| {
                for ((((w, g), m), v), lost) in w.iter_mut().zip(gradient).zip(m).zip(v).zip(lost) {
                    let exact = self.updated(*w + *lost, *g * scale, m, v);
                    *w = bf16::from_f32(exact).to_f32();
                    *lost = bf16::from_f32(exact - *w).to_f32();
                }
            }),
            Beside::Random(seed) => chunks.enumerate().for_each(|(chunk, (w, gradient, m, v))| {
                for (i, (((w, g), m), v)) in w.iter_mut().zip(gradient).zip(m).zip(v).enumerate() {
                    *w = round_at_random(self.updated(*w, *g * scale, m, v), mix_in(seed, (chunk * CHUNK + i) as u64));
                }
            }),
        }
        Ok(())
    }

    /// The new value; moves the moments.
    #[inline(always)]
    fn updated(&self, w: f32, g: f32, m: &mut f32, v: &mut f32) -> f32 {
        *m += self.one_minus_beta1 * (g - *m);
        *v = *v * self.beta2 + self.one_minus_beta2 * g * g;
        let denominator = v.sqrt() / self.sqrt_correction2 + self.eps;
        w * self.keep - self.step_size * (*m / denominator)
    }
}

/// One of the two bf16 values around `value`, the nearer one the more probable: 16 random bits are added below what bf16 keeps.
fn round_at_random(value: f32, random: u64) -> f32 {
    if !value.is_finite() {
        return value;
    }
    f32::from_bits(value.to_bits().wrapping_add(random as u32 & 0xffff) & 0xffff_0000)
}

#[cfg(test)]
mod tests {
    use super::super::{check, tensor};
    use super::*;
    use candle_core::Device;

    const SCALARS: Scalars = Scalars {
        keep: 0.999,
        one_minus_beta1: 0.1,
        beta2: 0.999,
        one_minus_beta2: 0.001,
        step_size: 1e-4,
        sqrt_correction2: 0.3,
        eps: 1e-8,
        seed: 3,
    };

    /// Sixty updates of values near 1, each far below what bf16 can hold of them; the mean of what they came to.
    fn mean_after(dtype: DType, rounding: Rounding, eight_bit: bool) -> f64 {
        let n = 8192;
        let value = Tensor::full(1.0f32, n, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let gradient = tensor(check::to_f32(&check::values(1, n)).iter().map(|g| g.abs() + 0.1).collect(), &[n]).unwrap();
        let state = State::new(&value, rounding, eight_bit).unwrap();
        for update in 0..60 {
            let item = Item { number: 0, value: &value, gradient: &gradient, state: &state, decays: false };
            let squares = SumOfSquares::of(&[&gradient]).unwrap();
            step(&[item], &Scalars { seed: update, ..SCALARS }, Clip { squares: &squares, max_norm: 30.0 }).unwrap();
        }
        let sum = |tensor: &Tensor| read(tensor).unwrap().iter().map(|&v| f64::from(v)).sum::<f64>();
        let exact = match (&state.beside, rounding) {
            (Some(master), Rounding::Master) => sum(master),
            (Some(lost), _) => sum(&value) + sum(lost),
            (None, _) => sum(&value),
        };
        exact / n as f64
    }

    #[test]
    fn small_updates_are_not_lost() {
        let exact = 1.0 - mean_after(DType::F32, Rounding::Master, false);
        assert!(exact > 1e-3, "{exact}");
        for (rounding, eight_bit, tolerance) in [
            (Rounding::Master, false, 2e-3),
            (Rounding::Kahan, false, 0.02),
            // The standard deviation of a mean over 8,192 values that were rounded 60 times is below 2 % of the distance.
            (Rounding::Stochastic, false, 0.06),
            (Rounding::Kahan, true, 0.05),
        ] {
            let moved = 1.0 - mean_after(DType::BF16, rounding, eight_bit);
            assert!((moved / exact - 1.0).abs() < tolerance, "{rounding:?}, 8 bits {eight_bit}: {moved} is not {exact}");
        }
    }

    #[test]
    fn rounding_at_random_is_right_on_average_and_leaves_bf16_alone() {
        let value = 1.0 + 0.3 / 128.0;
        let up = (0..4096u64).filter(|&i| round_at_random(value, mix_in(5, i)) > 1.0).count();
        assert!((up as f64 / 4096.0 - 0.3).abs() < 0.03, "{up}");
        assert_eq!(round_at_random(1.5, u64::MAX), 1.5);
        assert_eq!(round_at_random(-f32::INFINITY, 77), -f32::INFINITY);
    }
}

#[cfg(test)]
mod gpu_tests {
    use super::*;
    use crate::ops::gpu::twin::agree_to;

    const SCALARS: Scalars = Scalars {
        keep: 0.99,
        one_minus_beta1: 0.1,
        beta2: 0.999,
        one_minus_beta2: 0.001,
        step_size: 0.03,
        sqrt_correction2: 0.3,
        eps: 1e-8,
        seed: 3,
    };

    fn parts(state: &State) -> Vec<Tensor> {
        let moment = |moment: &Moment| match moment {
            Moment::Exact(values) => vec![values.clone()],
            Moment::EightBit { codes, scales } => vec![codes.clone(), scales.clone()],
        };
        [moment(&state.first), moment(&state.second), state.beside.clone().into_iter().collect()].concat()
    }

    #[test]
    fn updates_agree_with_the_cpu() {
        for (rounding, eight_bit) in
            [(Rounding::Master, false), (Rounding::Master, true), (Rounding::Kahan, false), (Rounding::Stochastic, true)]
        {
            // A value that is rounded at random may be two steps of bf16 away after three updates.
            agree_to(&format!("{rounding:?}, 8 bits {eight_bit}"), [1e-2, 2e-2], |place| {
                let sizes = [(3, 50), (5000, 1), (97, 101)];
                let parameters = sizes.map(|(n, width)| {
                    let value = place.values(1, &[n, width]);
                    // f32 on the CPU stands for bf16 with a master copy.
                    let rounding = if value.dtype() == DType::F32 { Rounding::Master } else { rounding };
                    let state = State::new(&value, rounding, eight_bit).unwrap();
                    (value, place.values(2, &[n, width]).to_dtype(DType::F32).unwrap(), state)
                });
                for update in 0..3 {
                    let items: Vec<Item> = parameters
                        .iter()
                        .zip([true, false, true])
                        .enumerate()
                        .map(|(number, ((value, gradient, state), decays))| Item { number, value, gradient, state, decays })
                        .collect();
                    let squares = SumOfSquares::of(&items.iter().map(|item| item.gradient).collect::<Vec<_>>())?;
                    step(&items, &Scalars { seed: update, ..SCALARS }, Clip { squares: &squares, max_norm: 20.0 })?;
                }
                Ok(parameters.into_iter().map(|(value, ..)| value).collect())
            });
        }
    }

    /// On the same bf16 values and with the same seed not even a bit differs.
    #[test]
    fn updates_of_bf16_are_those_of_the_cpu_to_the_bit() {
        use candle_core::Device;
        for (rounding, eight_bit) in [(Rounding::Master, true), (Rounding::Kahan, true), (Rounding::Stochastic, false)] {
            let run = || {
                let values = crate::ops::check::to_f32(&crate::ops::check::values(1, 9000));
                let value = Tensor::from_vec(values.clone(), 9000, &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap();
                let gradient = Tensor::from_vec(values.iter().map(|v| v * v - 0.3).collect::<Vec<_>>(), 9000, &Device::Cpu).unwrap();
                let state = State::new(&value, rounding, eight_bit).unwrap();
                for update in 0..3 {
                    let item = Item { number: 5, value: &value, gradient: &gradient, state: &state, decays: true };
                    let squares = SumOfSquares::of(&[&gradient]).unwrap();
                    step(&[item], &Scalars { seed: update, ..SCALARS }, Clip { squares: &squares, max_norm: 1.0 }).unwrap();
                }
                let tensors = [vec![value], parts(&state)].concat();
                tensors.iter().flat_map(|tensor| read(tensor).unwrap().to_vec()).collect::<Vec<f32>>()
            };
            let (on_cpu, Some(on_gpu)) = (run(), gpu::on_emulated_gpu(run).unwrap()) else { return };
            let n_different = on_cpu.iter().zip(&on_gpu).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
            assert!(n_different == 0, "{rounding:?}, 8 bits {eight_bit}: {n_different} of {} values", on_cpu.len());
        }
    }

    #[test]
    fn squares_agree_with_the_cpu() {
        agree_to("squares", [1e-6, 1e-6], |place| {
            let tensors = [3, 40_000, 70_001].map(|n| place.values(1, &[n]).to_dtype(DType::F32).unwrap());
            let norm = norm(&[SumOfSquares::of(&tensors.each_ref())?])? as f32;
            Ok(vec![place.floats(vec![norm], &[1])])
        });
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        agree_to("not finite", [0.0, 0.0], |place| {
            let (value, mut gradient) = (place.values(1, &[700]), vec![1.0; 700]);
            gradient[600] = f32::NAN;
            let gradient = place.floats(gradient, &[700]).to_dtype(DType::F32)?;
            let rounding = if value.dtype() == DType::F32 { Rounding::Master } else { Rounding::Stochastic };
            let state = State::new(&value, rounding, false)?;
            let squares = SumOfSquares::of(&[&gradient])?;
            let item = Item { number: 0, value: &value, gradient: &gradient, state: &state, decays: true };
            step(&[item], &SCALARS, Clip { squares: &squares, max_norm: 0.0 })?;
            Ok(vec![value])
        });
    }
}
