//! How fast this machine is at what a step is made of: measured, in under a second, on the shapes of the model at hand.
//!
//! Products are measured at the sizes of the model's own (wide ones on a band of their columns), forward and backward, and weighed by how
//! often a step needs them: a step whose products all run at this rate, and which does nothing else, is the floor. Attention has a rate of
//! its own, being made of small products; the optimizer is bound by memory. Each number is the best of several, so that another process on
//! the machine disturbs it little.

use super::StepMemory;
use super::work::{Flops, Gradient, Pass, projections};
use crate::config::ComputeDtype;
use crate::data::batch::{PackedBatch, PromptSharing};
use crate::model::description::DecoderDescription;
use crate::ops::attention::{self, Attention};
use crate::ops::{linear, tensor};
use anyhow::Result;
use candle_core::Tensor;
use rayon::prelude::*;
use serde::Serialize;
use std::time::{Duration, Instant};

/// Columns of a product that are enough to run at its full speed.
const MOST_COLUMNS: usize = 8192;
/// Rows likewise, and the least that are measured.
const ROWS: std::ops::RangeInclusive<usize> = 16..=512;
/// Most values of each of the four arrays that the optimizer's traffic is measured on; a model with fewer is measured at its own size.
const STREAMED: usize = 8 << 20;

/// What was measured, with `threads` of the surrounding pool.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rates {
    /// FLOP a second of the model's matrix products.
    pub products: f64,
    /// FLOP a second of causal attention, forward and backward.
    pub attention: f64,
    /// Bytes a second of a loop that reads four arrays and writes three.
    pub bytes: f64,
    pub threads: usize,
}

/// For passes of about `n_tokens`, `n_scored` of which are scored. All measurements together take about `budget`, more where a single
/// product takes longer.
pub fn measure(
    description: &DecoderDescription,
    dtype: ComputeDtype,
    (n_tokens, n_scored): (usize, usize),
    n_parameters: usize,
    budget: Duration,
) -> Result<Rates> {
    let n_rows = n_tokens.clamp(*ROWS.start(), *ROWS.end());
    let d = description;
    let mut flops = 0.0;
    let mut seconds = 0.0;
    let n_shapes = projections(d).len() + 1;
    let head_rows = n_scored.clamp(*ROWS.start(), n_rows);
    let of_blocks = projections(d).map(|shape| (shape, n_rows, d.layers.len() as f64));
    // Scores are made of as many rows as there are tokens to score; `n_rows` stands for `n_tokens`.
    let head_share = (n_scored as f64 / head_rows as f64) * (n_rows as f64 / n_tokens.max(1) as f64);
    for ((n_out, n_in), n_rows, weight) in of_blocks.into_iter().chain([((d.vocab_size, d.hidden_size), head_rows, head_share)]) {
        let columns = n_out.min(MOST_COLUMNS);
        let product = Product::new(n_rows, columns, n_in, dtype)?;
        let best = best_of(budget.mul_f64(0.6) / n_shapes as u32, || product.run())?;
        let whole = weight * n_out as f64 / columns as f64;
        flops += whole * product.flops();
        seconds += whole * best;
    }
    let rest = budget.mul_f64(0.2);
    Ok(Rates {
        products: flops / seconds,
        attention: attention_rate(d, n_rows, rest)?,
        bytes: stream_rate(n_parameters.min(STREAMED), rest)?,
        threads: rayon::current_num_threads(),
    })
}

/// `y = x Wᵀ` with both of its gradients.
struct Product {
    x: Tensor,
    weight: Tensor,
    gradient: Tensor,
    dtype: ComputeDtype,
    shape: [usize; 3],
}

impl Product {
    fn new(n_rows: usize, n_out: usize, n_in: usize, dtype: ComputeDtype) -> Result<Self> {
        let filled = |shape: [usize; 2], value: f32| tensor(vec![value; shape[0] * shape[1]], &shape);
        let (x, weight, gradient) = (filled([n_rows, n_in], 0.5)?, filled([n_out, n_in], 0.25)?, filled([n_out, n_in], 0.0)?);
        Ok(Self { x, weight, gradient, dtype, shape: [n_rows, n_out, n_in] })
    }

    fn flops(&self) -> f64 {
        6.0 * self.shape.iter().map(|&n| n as f64).product::<f64>()
    }

    fn run(&self) -> Result<()> {
        let y = linear::forward(&self.x, &self.weight, None, self.dtype)?;
        linear::backward_weight(&y, &self.x, &self.gradient, self.dtype)?;
        linear::backward_input(&y, &self.weight, self.dtype)?;
        Ok(())
    }
}

fn attention_rate(d: &DecoderDescription, n_rows: usize, budget: Duration) -> Result<f64> {
    let attention = Attention {
        n_heads: d.n_heads,
        n_kv_heads: d.n_kv_heads,
        head_dim: d.head_dim,
        scale: d.query_scale,
        window: None,
        soft_cap: d.attention_soft_cap,
    };
    let mut batch = PackedBatch::default();
    batch.push_responses(&vec![0; n_rows / 4], &[&vec![0; n_rows / 2], &vec![0; n_rows / 4]], PromptSharing::Shared);
    let mut one_layer = d.clone();
    one_layer.layers = vec![crate::model::description::LayerDescription { window: None, rope: 0 }];
    let flops = Flops::of(&Pass::new(&batch, &one_layer, 0, Gradient::OfStates), &one_layer, StepMemory::default()).attention;
    let n = batch.n_tokens();
    let (n_qkv, _) = projections(d)[0];
    let qkv = tensor((0..n * n_qkv).map(|i| (i % 17) as f32 * 0.01).collect(), &[n, n_qkv])?;
    let best = best_of(budget, || {
        let (out, log_sum_exp) = attention::forward(&qkv, &batch.segments, &attention)?;
        attention::backward(&qkv, &out, &log_sum_exp, &out, &batch.segments, &attention)?;
        Ok(())
    })?;
    Ok(flops / best)
}

/// The traffic of AdamW: read weight, gradient and two moments, write weight and moments.
fn stream_rate(n_values: usize, budget: Duration) -> Result<f64> {
    const CHUNK: usize = 1 << 15;
    let [mut w, g, mut m, mut v] = [0.5f32, 0.25, 0.125, 0.0625].map(|value| vec![value; n_values]);
    let best = best_of(budget, || {
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
    Ok(28.0 * n_values as f64 / best)
}

/// Seconds of the fastest of the runs that fit into `budget`; one that warms up, and at least one more.
fn best_of(budget: Duration, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    run()?;
    let mut best = f64::INFINITY;
    while best.is_infinite() || started.elapsed() < budget {
        let begun = Instant::now();
        run()?;
        best = best.min(begun.elapsed().as_secs_f64());
    }
    Ok(best)
}
