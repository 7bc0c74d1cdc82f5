//! The arithmetic floor of a step: its own matrix products, with their sizes, transposes and weights, and nothing else.
//!
//! What the list holds: both sides in turn, each with a shared prompt; per block the four fused projections forward, and for each the two
//! gradient products, of which that of the weight adds to its gradient; on the target side the head in chunks as the engine takes them, with
//! one product for the logits and two for the gradients (6 units). Every block has weights and gradients of its own, so that the list walks
//! through as much memory as the step does; all other buffers are reused and warm. Attention's products are not in the list: their FLOPs
//! are counted at the list's rate.

use crate::job::{Job, Lengths, Measured};
use crate::measure::Clock;
use crate::random::random_values;
use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use mpo::config::ComputeDtype;
use mpo::model::description::DecoderDescription;
use mpo::ops::linear;
use mpo::ops::log_prob::LOGITS_PER_CHUNK;
use serde::{Deserialize, Serialize};

/// Products of attention on every pair of query and key: scores and output, then dV, dP, dQ and dK. Making the scores again in the backward
/// is not counted.
const ATTENTION_PRODUCTS: f64 = 6.0;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `y = x Wᵀ`
    Forward,
    /// `dx = dy W`
    BackwardInput,
    /// `dW += dyᵀ x`
    BackwardWeight,
}

/// `rows` rows of activations meet one weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Product {
    pub kind: Kind,
    /// Index into [`ProductList::weights`].
    pub weight: usize,
    pub rows: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProductList {
    /// `[out, in]` of every weight: four a block, then the head.
    pub weights: Vec<[usize; 2]>,
    /// In the order of the step.
    pub products: Vec<Product>,
}

impl ProductList {
    /// Of the one row of `job`.
    pub fn of_step(job: &Job, model: &DecoderDescription) -> Result<Self> {
        let row = job.rows.first().context("a step needs a row")?;
        let mut list = Self::default();
        let query_size = model.n_heads * model.head_dim;
        let fused = query_size + 2 * model.n_kv_heads * model.head_dim;
        for _ in &model.layers {
            let (hidden, middle) = (model.hidden_size, model.intermediate_size);
            list.weights.extend([[fused, hidden], [hidden, query_size], [2 * middle, hidden], [hidden, middle]]);
        }
        let head = list.weights.len();
        list.weights.push([model.vocab_size, model.hidden_size]);
        list.push_side(head, &row.dominant, None);
        list.push_side(head, &row.target, Some((head, LOGITS_PER_CHUNK / model.vocab_size)));
        Ok(list)
    }

    fn push_side(&mut self, n_block_weights: usize, lengths: &Lengths, head: Option<(usize, usize)>) {
        let rows = lengths.prompt + lengths.n_response_tokens();
        self.products.extend((0..n_block_weights).map(|weight| Product { kind: Kind::Forward, weight, rows }));
        if let Some((weight, chunk)) = head {
            let n_tokens = lengths.n_response_tokens();
            for start in (0..n_tokens).step_by(chunk) {
                let rows = chunk.min(n_tokens - start);
                let kinds = [Kind::Forward, Kind::BackwardInput, Kind::BackwardWeight];
                self.products.extend(kinds.map(|kind| Product { kind, weight, rows }));
            }
        }
        for weight in (0..n_block_weights).rev() {
            self.products.extend([Kind::BackwardWeight, Kind::BackwardInput].map(|kind| Product { kind, weight, rows }));
        }
    }

    pub fn flops(&self) -> f64 {
        self.products.iter().map(|p| 2.0 * p.rows as f64 * self.weights[p.weight].iter().map(|&n| n as f64).product::<f64>()).sum()
    }

    fn largest(&self, size: impl Fn(&Product, [usize; 2]) -> usize) -> usize {
        self.products.iter().map(|p| size(p, self.weights[p.weight])).max().unwrap_or(0)
    }
}

/// FLOPs of causal attention over both sides of the job's row: a query counts the keys that it sees.
pub fn attention_flops(job: &Job, model: &DecoderDescription) -> f64 {
    let causal = |n: usize| (n * (n + 1) / 2) as f64;
    let pairs = |l: &Lengths| causal(l.prompt) + (l.n_response_tokens() * l.prompt) as f64 + causal(l.chosen) + causal(l.rejected);
    let n_pairs: f64 = job.rows.iter().map(|row| pairs(&row.dominant) + pairs(&row.target)).sum();
    n_pairs * ATTENTION_PRODUCTS * 2.0 * (model.n_heads * model.head_dim * model.layers.len()) as f64
}

/// The list by this package's linear op, which makes its results' buffers itself, as in the step.
pub fn measure_ops(job: &Job) -> Result<Measured> {
    let list = job.list.as_ref().context("no list of products was given")?;
    let weights = tensors(list)?;
    let gradients = list.weights.iter().map(|&[out, width]| Ok(Tensor::from_vec(vec![0f32; out * width], (out, width), &Device::Cpu)?));
    let gradients = gradients.collect::<Result<Vec<_>>>()?;
    let activations = Activations::new(list);
    Clock::measure(job, |_| {
        for p in &list.products {
            let [out, width] = list.weights[p.weight];
            let x = || activations.tensor(p.rows, width);
            match p.kind {
                Kind::Forward => drop(linear::forward(&x()?, &weights[p.weight], None, job.dtype)?),
                Kind::BackwardInput => drop(linear::backward_input(&activations.tensor(p.rows, out)?, &weights[p.weight], job.dtype)?),
                Kind::BackwardWeight => linear::backward_weight(&activations.tensor(p.rows, out)?, &x()?, &gradients[p.weight], job.dtype)?,
            }
        }
        Ok(())
    })
}

fn tensors(list: &ProductList) -> Result<Vec<Tensor>> {
    let tensor =
        |(i, &[out, width]): (usize, &[usize; 2])| Ok(Tensor::from_vec(random_values(i as u64, out * width), (out, width), &Device::Cpu)?);
    list.weights.iter().enumerate().map(tensor).collect()
}

/// Tensors of every shape that enters a product, made once.
struct Activations(Vec<(usize, usize, Tensor)>);

impl Activations {
    fn new(list: &ProductList) -> Self {
        let mut shapes: Vec<(usize, usize)> =
            list.products.iter().flat_map(|p| list.weights[p.weight].map(|width| (p.rows, width))).collect();
        shapes.sort_unstable();
        shapes.dedup();
        let tensor = |(rows, width): (usize, usize)| {
            let values = random_values(1, rows * width);
            Tensor::from_vec(values, (rows, width), &Device::Cpu).ok().map(|tensor| (rows, width, tensor))
        };
        Self(shapes.into_iter().filter_map(tensor).collect())
    }

    fn tensor(&self, rows: usize, width: usize) -> Result<Tensor> {
        let found = self.0.iter().find(|(r, w, _)| (*r, *w) == (rows, width));
        Ok(found.with_context(|| format!("no activations of {rows} x {width}"))?.2.clone())
    }
}

/// The list by the `gemm` crate, f32, on buffers that are all made before.
pub fn measure_gemm(job: &Job) -> Result<Measured> {
    let list = job.list.as_ref().context("no list of products was given")?;
    anyhow::ensure!(job.dtype == ComputeDtype::F32, "the `gemm` crate's list is f32");
    let weights: Vec<Vec<f32>> = list.weights.iter().enumerate().map(|(i, [out, width])| random_values(i as u64, out * width)).collect();
    let mut gradients: Vec<Vec<f32>> = list.weights.iter().map(|[out, width]| vec![0.0; out * width]).collect();
    let size = list.largest(|p, [out, width]| p.rows * out.max(width));
    let (x, dy, mut result) = (random_values(1, size), random_values(2, size), vec![0f32; size]);
    Clock::measure(job, |_| {
        for p in &list.products {
            let [out, width] = list.weights[p.weight];
            let rows = p.rows;
            match p.kind {
                Kind::Forward => multiply([rows, out, width], &mut result, false, (&x, [width, 1]), (&weights[p.weight], [1, width])),
                Kind::BackwardInput => multiply([rows, width, out], &mut result, false, (&dy, [out, 1]), (&weights[p.weight], [width, 1])),
                Kind::BackwardWeight => multiply([out, width, rows], &mut gradients[p.weight], true, (&dy, [1, out]), (&x, [width, 1])),
            }
        }
        Ok(())
    })
}

/// `result (+)= a b` for `[m, n, k]`; the operands come with the strides of their rows and columns.
fn multiply(
    [m, n, k]: [usize; 3],
    result: &mut [f32],
    adds: bool,
    (a, [a_row, a_column]): (&[f32], [usize; 2]),
    (b, [b_row, b_column]): (&[f32], [usize; 2]),
) {
    assert!(result.len() >= m * n && a.len() >= m * k && b.len() >= k * n);
    let parallelism = if rayon::current_num_threads() > 1 { gemm::Parallelism::Rayon(0) } else { gemm::Parallelism::None };
    let [a_row, a_column, b_row, b_column] = [a_row, a_column, b_row, b_column].map(|stride| stride as isize);
    // SAFETY: the slices hold their m x n, m x k and k x n values, as was just checked; the strides are those of dense matrices, plain or
    // transposed; `result` is borrowed mutably and overlaps neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            result.as_mut_ptr(),
            1,
            n as isize,
            adds,
            a.as_ptr(),
            a_column,
            a_row,
            b.as_ptr(),
            b_column,
            b_row,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}
