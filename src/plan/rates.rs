//! How fast the device of a run is at what a step is made of: measured, in under a second, on the shapes of the model at hand.
//!
//! Products are measured at the sizes of the model's own (wide ones on a band of their columns), forward and backward, and weighed by how
//! often a step needs them: a step whose products all run at this rate, and which does nothing else, is the floor. Attention has a rate of
//! its own, being made of small products; the optimizer is bound by memory. Each number is the best of several, so that another process on
//! the machine disturbs it little. A GPU is given more at a time, and work until neither starting it nor waiting for it counts.

use super::StepMemory;
use super::work::{Flops, Gradient, Pass, projections};
use crate::config::ComputeDtype;
use crate::data::batch::{PackedBatch, PromptSharing};
use crate::model::description::{DecoderDescription, LayerDescription};
use crate::ops::adamw::{self, Clip, Item, Rounding, Scalars, State};
use crate::ops::attention::{self, Attention};
use crate::ops::squares::SumOfSquares;
use crate::ops::{self, Place, gpu, linear};
use anyhow::Result;
use candle_core::{DType, Tensor};
use rayon::prelude::*;
use serde::Serialize;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

/// What was measured, and on what.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rates {
    /// FLOP a second of the model's matrix products.
    pub products: f64,
    /// FLOP a second of causal attention, forward and backward.
    pub attention: f64,
    /// Bytes a second of a loop that reads four arrays and writes three.
    pub bytes: f64,
    /// Bytes of a value as it goes from one op to the next there.
    pub bytes_of_value: usize,
    #[serde(flatten)]
    pub of: Measured,
}

/// What has the rates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measured {
    /// So many of the CPU's, those of the surrounding pool.
    Threads(usize),
    /// As it calls itself.
    Gpu(String),
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Threads(n) => write!(f, "{n} threads"),
            Self::Gpu(name) => write!(f, "{name}"),
        }
    }
}

/// What is enough to run at full speed.
struct Sizes {
    /// Rows of a product, and the least that are measured.
    rows: RangeInclusive<usize>,
    /// Columns likewise.
    columns: usize,
    /// Tokens of the trees that attention sees.
    tree: usize,
    /// Most values of each of the four arrays that the optimizer's traffic is measured on; a model with fewer is measured at its own size.
    streamed: usize,
}

const ON_CPU: Sizes = Sizes { rows: 16..=512, columns: 8192, tree: 512, streamed: 8 << 20 };
/// The arrays are far larger than the caches of any GPU.
const ON_GPU: Sizes = Sizes { rows: 16..=8192, columns: 16_384, tree: 2048, streamed: 64 << 20 };

/// Of a round, whatever they take.
const MOST_RUNS: i32 = 1 << 16;

/// At `place`, for passes of about `n_tokens`, `n_scored` of which are scored. All measurements together take about `budget`, more where a
/// single product takes longer.
pub fn measure(
    description: &DecoderDescription,
    place: &Place,
    (n_tokens, n_scored): (usize, usize),
    n_parameters: usize,
    budget: Duration,
) -> Result<Rates> {
    let d = description;
    let bench = Bench::new(place)?;
    let sizes = &bench.sizes;
    let n_rows = n_tokens.clamp(*sizes.rows.start(), *sizes.rows.end());
    let mut flops = 0.0;
    let mut seconds = 0.0;
    let n_shapes = projections(d).len() + 1;
    let head_rows = n_scored.clamp(*sizes.rows.start(), n_rows);
    let of_blocks = projections(d).map(|shape| (shape, n_rows, d.layers.len() as f64));
    // Scores are made of as many rows as there are tokens to score; `n_rows` stands for `n_tokens`.
    let head_share = (n_scored as f64 / head_rows as f64) * (n_rows as f64 / n_tokens.max(1) as f64);
    for ((n_out, n_in), n_rows, weight) in of_blocks.into_iter().chain([((d.vocab_size, d.hidden_size), head_rows, head_share)]) {
        let columns = n_out.min(sizes.columns);
        let product = Product::new(&bench, [n_rows, columns, n_in])?;
        let best = bench.best_of(budget.mul_f64(0.6) / n_shapes as u32, || product.run())?;
        let whole = weight * n_out as f64 / columns as f64;
        flops += whole * product.flops();
        seconds += whole * best;
    }
    let (rest, n_streamed) = (budget.mul_f64(0.2), n_parameters.min(sizes.streamed));
    Ok(Rates {
        products: flops / seconds,
        attention: bench.attention_rate(d, n_rows, rest)?,
        bytes: if place.is_on_gpu() { bench.update_rate(n_streamed, rest)? } else { bench.stream_rate(n_streamed, rest)? },
        bytes_of_value: bench.values.size_in_bytes(),
        of: match place.device.is_cuda() {
            true => Measured::Gpu(gpu::name(&place.device)?),
            false => Measured::Threads(rayon::current_num_threads()),
        },
    })
}

/// Where it is measured, and how.
struct Bench<'a> {
    place: &'a Place,
    /// The type of what goes from one op to the next.
    values: DType,
    sizes: Sizes,
    /// Whoever reads it has waited for all work before.
    last: Tensor,
}

impl<'a> Bench<'a> {
    fn new(place: &'a Place) -> Result<Self> {
        let (values, sizes) = if place.is_on_gpu() { (place.storage, ON_GPU) } else { (DType::F32, ON_CPU) };
        Ok(Self { place, values, sizes, last: Tensor::zeros(1, DType::F32, &place.device)? })
    }

    /// Values of no pattern that a device could take advantage of, the same in every run: some rows of them, again and again.
    fn matrix(&self, n_rows: usize, width: usize, dtype: DType) -> Result<Tensor> {
        const ROWS: usize = 64;
        let n_other = ROWS.min(n_rows);
        let value = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 16) as f32 / 65_536.0 - 0.5;
        let rows = ops::tensor((0..n_other * width).map(value).collect(), &[1, n_other, width])?.to_dtype(dtype)?;
        let n_times = n_rows.div_ceil(n_other);
        let all = rows.to_device(&self.place.device)?.broadcast_as((n_times, n_other, width))?.contiguous()?;
        Ok(all.reshape((n_times * n_other, width))?.narrow(0, 0, n_rows)?)
    }

    /// Seconds of a run, in the fastest of the rounds that fit into `budget`; one that warms up, and at least one more. A round is one run on
    /// the CPU, and on a GPU as many as take an eighth of the budget.
    fn best_of(&self, budget: Duration, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
        let least = if self.place.is_on_gpu() { budget / 8 } else { Duration::ZERO };
        let started = Instant::now();
        run()?;
        ops::read(&self.last)?;
        let (mut best, mut n_runs) = (f64::INFINITY, 1);
        while best.is_infinite() || started.elapsed() < budget {
            let begun = Instant::now();
            (0..n_runs).try_for_each(|_| run())?;
            ops::read(&self.last)?;
            let round = begun.elapsed();
            if round < least && n_runs < MOST_RUNS {
                n_runs *= 2;
                continue;
            }
            best = best.min(round.as_secs_f64() / f64::from(n_runs));
        }
        Ok(best)
    }

    fn attention_rate(&self, d: &DecoderDescription, n_rows: usize, budget: Duration) -> Result<f64> {
        let attention = Attention {
            n_heads: d.n_heads,
            n_kv_heads: d.n_kv_heads,
            head_dim: d.head_dim,
            scale: d.query_scale,
            window: None,
            soft_cap: d.attention_soft_cap,
        };
        let mut batch = PackedBatch::default();
        let tree = n_rows.min(self.sizes.tree);
        for _ in 0..n_rows / tree {
            batch.push_responses(&vec![0; tree / 4], &[&vec![0; tree / 2], &vec![0; tree / 4]], PromptSharing::Shared);
        }
        let mut one_layer = d.clone();
        one_layer.layers = vec![LayerDescription { window: None, rope: 0 }];
        let flops = Flops::of(&Pass::new(&batch, &one_layer, 0, Gradient::OfStates), &one_layer, StepMemory::default()).attention;
        let qkv = self.matrix(batch.n_tokens(), projections(d)[0].0, self.values)?;
        let best = self.best_of(budget, || {
            let (out, log_sum_exp) = attention::forward(&qkv, &batch.segments, &attention)?;
            attention::backward(&qkv, &out, &log_sum_exp, &out, &batch.segments, &attention)?;
            Ok(())
        })?;
        Ok(flops / best)
    }

    /// The traffic of AdamW on the CPU: read weight, gradient and two moments, write weight and moments.
    fn stream_rate(&self, n_values: usize, budget: Duration) -> Result<f64> {
        const CHUNK: usize = 1 << 15;
        let [mut w, g, mut m, mut v] = [0.5f32, 0.25, 0.125, 0.0625].map(|value| vec![value; n_values]);
        let best = self.best_of(budget, || {
            let chunks = (w.par_chunks_mut(CHUNK), g.par_chunks(CHUNK), m.par_chunks_mut(CHUNK), v.par_chunks_mut(CHUNK));
            chunks.into_par_iter().for_each(|(w, g, m, v)| {
                for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
                    *m += 0.1 * (g - *m);
                    *v = 0.9 * *v + 0.1 * g * g;
                    *w -= 1e-3 * *m;
                }
            });
            Ok(())
        })?;
        Ok(UPDATE_BYTES * n_values as f64 / best)
    }

    /// The same on a GPU, by AdamW itself.
    fn update_rate(&self, n_values: usize, budget: Duration) -> Result<f64> {
        const WIDTH: usize = 1024;
        let n_rows = n_values.div_ceil(WIDTH);
        let [value, gradient] = [(); 2].map(|()| self.matrix(n_rows, WIDTH, DType::F32));
        let (value, gradient) = (value?, gradient?);
        let state = State::new(&value, Rounding::Master, false)?;
        let squares = SumOfSquares::of(&[&gradient])?;
        let best = self.best_of(budget, || {
            let item = Item { number: 0, value: &value, gradient: &gradient, state: &state, decays: false };
            adamw::step(&[item], &SCALARS, Clip { squares: &squares, max_norm: 0.0 })
        })?;
        Ok(UPDATE_BYTES * (n_rows * WIDTH) as f64 / best)
    }
}

/// Bytes that an update of an f32 value with two f32 moments moves.
const UPDATE_BYTES: f64 = 28.0;

/// Of an update that moves values hardly and keeps them finite.
const SCALARS: Scalars = Scalars {
    keep: 1.0,
    one_minus_beta1: 0.1,
    beta2: 0.999,
    one_minus_beta2: 0.001,
    step_size: 1e-6,
    sqrt_correction2: 1.0,
    eps: 1e-8,
    seed: 0,
};

/// `y = x Wᵀ` with both of its gradients.
struct Product {
    x: Tensor,
    weight: Tensor,
    gradient: Tensor,
    compute: ComputeDtype,
    shape: [usize; 3],
}

impl Product {
    fn new(bench: &Bench, shape: [usize; 3]) -> Result<Self> {
        let [n_rows, n_out, n_in] = shape;
        let (x, weight) = (bench.matrix(n_rows, n_in, bench.values)?, bench.matrix(n_out, n_in, bench.place.storage)?);
        let gradient = Tensor::zeros((n_out, n_in), DType::F32, &bench.place.device)?;
        Ok(Self { x, weight, gradient, compute: bench.place.compute, shape })
    }

    fn flops(&self) -> f64 {
        6.0 * self.shape.iter().map(|&n| n as f64).product::<f64>()
    }

    fn run(&self) -> Result<()> {
        let y = linear::forward(&self.x, &self.weight, None, self.compute)?;
        linear::backward_weight(&y, &self.x, &self.gradient, self.compute)?;
        linear::backward_input(&y, &self.weight, self.compute)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::family::describe;
    use serde_json::json;

    fn description() -> DecoderDescription {
        let config = json!({
            "model_type": "llama", "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "tie_word_embeddings": true,
        });
        describe(&config).unwrap()
    }

    fn rates(place: &Place) -> Rates {
        measure(&description(), place, (24, 8), 5000, Duration::from_millis(5)).unwrap()
    }

    fn assert_are_rates(rates: &Rates) {
        for rate in [rates.products, rates.attention, rates.bytes] {
            assert!(rate.is_finite() && rate > 0.0, "{rates:?}");
        }
    }

    #[test]
    fn a_cpu_has_rates_with_its_threads() {
        let rates = rates(&ComputeDtype::F32.into());
        assert_are_rates(&rates);
        let n = rayon::current_num_threads();
        assert_eq!((rates.bytes_of_value, rates.of.to_string()), (4, format!("{n} threads")));
        assert_eq!(serde_json::to_value(&rates).unwrap()["threads"], n);
        let gpu = Rates { of: Measured::Gpu("H100".into()), ..rates };
        assert_eq!(serde_json::to_value(&gpu).unwrap()["gpu"], "H100");
    }

    #[test]
    fn a_gpu_is_measured_by_its_own_ops() {
        for (compute, n_bytes) in [(ComputeDtype::F32, 4), (ComputeDtype::Bf16, 2)] {
            let Some(rates) = gpu::on_emulated_gpu(|| rates(&Place::new(candle_core::Device::Cpu, compute))).unwrap() else { return };
            assert_are_rates(&rates);
            assert_eq!(rates.bytes_of_value, n_bytes);
        }
    }

    #[test]
    fn a_gpu_is_given_runs_until_one_does_not_count() {
        let place = ComputeDtype::F32.into();
        let mut n_runs = 0;
        let mut run = || {
            n_runs = std::hint::black_box(n_runs + 1);
            Ok(())
        };
        let budget = Duration::from_millis(8);
        Bench::new(&place).unwrap().best_of(budget, &mut run).unwrap();
        let Some(seconds) = gpu::on_emulated_gpu(|| Bench::new(&place).unwrap().best_of(budget, &mut run).unwrap()).unwrap() else {
            return;
        };
        assert!(n_runs > 1000 && seconds < 1e-5, "{n_runs} runs of nothing, {seconds} s each");
    }

    #[test]
    fn rows_repeat_and_differ_from_each_other() {
        let place = ComputeDtype::F32.into();
        let matrix = Bench::new(&place).unwrap().matrix(130, 3, DType::F32).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!((matrix.len(), &matrix[1], &matrix[129]), (130, &matrix[65], &matrix[1]));
        assert!(matrix[0] != matrix[1] && matrix.iter().flatten().all(|value| (-0.5..0.5).contains(value)));
    }
}
