//! Linear maps and norms: a weight from the checkpoint, its gradient buffer, and the op that they enter; beside a frozen linear map its
//! low-rank term, where an adapter has one.
//!
//! Projections with the same input are one fused matrix, so that one product computes them all; the checkpoint's tensors are bands of its rows.

use super::description::{DecoderDescription, NormStyle};
use super::gradients::Gradients;
use super::low_rank::{Adaptation, LowRankTerm};
use super::parameter::Parameter;
use super::weights::Checkpoint;
use crate::config::ComputeDtype;
use crate::ops::dropout::RowKeys;
use crate::ops::rms_norm::{Heads, RmsNorm};
use crate::ops::{Buffer, Place, linear, on_device};
use anyhow::{Context, Result};
use candle_core::{DType, Tensor};

/// Whether gradient buffers are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Train,
    /// As `Train`, with one set of gradient buffers for all blocks, for a backward whose gradients are used up as soon as they are whole.
    TrainInBackward,
    Inference,
}

/// Where a decoder's values come from.
#[derive(Clone, Copy)]
pub(super) enum Source<'a> {
    Checkpoint(&'a Checkpoint),
    /// Of which every value must be a number: nothing would name those that are none, as training does by its rows.
    Finite(&'a Checkpoint),
    /// Matrices uniform with a deviation of 0.02, as training from nothing would begin; vectors 1.
    Random,
}

impl Source<'_> {
    /// The named bands of rows, one behind the other, as one tensor.
    fn tensor(self, bands: &[(String, usize)], shape: &[usize], place: &Place) -> Result<Tensor> {
        let (Self::Checkpoint(checkpoint) | Self::Finite(checkpoint)) = self else {
            let bound = 0.02 * 3f32.sqrt();
            let is_matrix = shape.len() > 1;
            let values =
                if is_matrix { Tensor::rand(-bound, bound, shape, &place.device) } else { Tensor::ones(shape, DType::F32, &place.device) };
            return Ok(values?.to_dtype(place.storage)?);
        };
        let row_size: usize = shape.iter().skip(1).product();
        let mut values = vec![0.0; shape.iter().product()];
        let mut rest = values.as_mut_slice();
        for (name, rows) in bands {
            let (band, after) = rest.split_at_mut(rows * row_size);
            match self {
                Self::Finite(_) => checkpoint.read_finite(name, band)?,
                _ => checkpoint.read_into(name, band)?,
            }
            rest = after;
        }
        on_device(values, shape, place)
    }
}

/// Makes the parameters of one decoder, in order.
pub(super) struct Builder<'a> {
    pub source: Source<'a>,
    pub description: &'a DecoderDescription,
    pub place: &'a Place,
    /// Where there is one, it alone is trained: the checkpoint's parameters are frozen.
    pub adaptation: Option<&'a Adaptation>,
    /// What was read so far.
    pub parameters: Vec<Parameter>,
    /// The low-rank terms so far.
    pub low_rank_parameters: Vec<Parameter>,
    pub gradients: Gradients,
}

impl Builder<'_> {
    /// One tensor of shape `[Σ rows, ..row_shape]` whose bands are the named parameters.
    fn fused(&mut self, bands: &[(String, usize)], row_shape: &[usize]) -> Result<(Tensor, Option<Tensor>)> {
        let n_rows: usize = bands.iter().map(|(_, rows)| rows).sum();
        let shape: Vec<usize> = [n_rows].into_iter().chain(row_shape.iter().copied()).collect();
        let value = self.source.tensor(bands, &shape, self.place)?;
        let (first, _) = bands.first().context("a tensor without a name")?;
        let gradient = match self.adaptation {
            None => self.gradients.make(first, &shape, &self.place.device)?,
            Some(_) => None,
        };
        let mut start = 0;
        for (name, rows) in bands {
            let band = |t: &Tensor| t.narrow(0, start, *rows);
            let parameter = Parameter { name: name.clone(), value: band(&value)?, gradient: gradient.as_ref().map(band).transpose()? };
            self.parameters.push(parameter);
            start += rows;
        }
        Ok((value, gradient))
    }

    /// A single matrix `[rows, columns]` that enters more than one op (the embeddings).
    pub fn matrix(&mut self, name: &str, rows: usize, columns: usize) -> Result<Parameter> {
        self.fused(&[(name.to_owned(), rows)], &[columns])?;
        self.parameters.last().cloned().context("no parameter was read")
    }

    /// Projections `prefix.name` with a common input of size `n_in`, fused in the order given.
    pub fn linear(&mut self, prefix: &str, projections: &[(&str, usize)], n_in: usize, has_bias: bool) -> Result<Linear> {
        let named = |suffix: &str| projections.iter().map(|(name, rows)| (format!("{prefix}.{name}.{suffix}"), *rows)).collect::<Vec<_>>();
        let (weight, weight_gradient) = self.fused(&named("weight"), &[n_in])?;
        let bias = has_bias.then(|| self.fused(&named("bias"), &[])).transpose()?;
        let (bias, bias_gradient) = bias.map_or((None, None), |(bias, gradient)| (Some(bias), gradient));
        let low_rank = self.low_rank(prefix, projections, n_in)?;
        Ok(Linear { weight, weight_gradient, bias, bias_gradient, low_rank, compute: self.place.compute })
    }

    fn low_rank(&mut self, prefix: &str, projections: &[(&str, usize)], n_in: usize) -> Result<Option<LowRankTerm>> {
        let Some(adaptation) = self.adaptation else { return Ok(None) };
        let named: Vec<_> = projections.iter().map(|(name, rows)| (format!("{prefix}.{name}"), *rows)).collect();
        let Some((term, parameters)) = LowRankTerm::build(adaptation, &named, n_in, self.place, &mut self.gradients)? else {
            return Ok(None);
        };
        self.low_rank_parameters.extend(parameters);
        Ok(Some(term))
    }

    pub fn norm(&mut self, name: &str, width: usize) -> Result<Norm> {
        let (weight, gradient) = self.fused(&[(format!("{name}.weight"), width)], &[])?;
        Ok(Norm { weight, gradient, eps: self.description.norm_eps, style: self.description.norm_style })
    }
}

/// `y = x Wᵀ + b`, and where an adapter has a term here, `+ s (d(x) Aᵀ) Bᵀ`. Row keys are those of dropout, where a forward has it.
#[derive(Debug)]
pub(super) struct Linear {
    weight: Tensor,
    weight_gradient: Option<Tensor>,
    bias: Option<Tensor>,
    bias_gradient: Option<Tensor>,
    low_rank: Option<LowRankTerm>,
    compute: ComputeDtype,
}

impl Linear {
    /// `[N, in]` to `[N, out]`.
    pub fn forward(&self, x: &Tensor, row_keys: Option<&RowKeys>) -> Result<Buffer> {
        let y = linear::forward(x, &self.weight, self.bias.as_ref(), self.compute)?;
        self.low_rank.as_ref().map_or(Ok(()), |term| term.forward(x, &y, row_keys))?;
        Ok(y)
    }

    /// As [`Linear::forward`], for the few rows of decoding.
    pub fn forward_few(&self, x: &Tensor) -> Result<Buffer> {
        let y = linear::forward_few(x, &self.weight, self.bias.as_ref(), self.compute)?;
        self.low_rank.as_ref().map_or(Ok(()), |term| term.forward_few(x, &y))?;
        Ok(y)
    }

    /// Adds to the gradients and returns `dx`; `x` is what the forward saw.
    pub fn backward(&self, x: &Tensor, dy: &Tensor, row_keys: Option<&RowKeys>) -> Result<Buffer> {
        self.backward_weight(x, dy, row_keys)?;
        self.backward_input(dy, row_keys)
    }

    pub fn backward_input(&self, dy: &Tensor, row_keys: Option<&RowKeys>) -> Result<Buffer> {
        let dx = linear::backward_input(dy, &self.weight, self.compute)?;
        self.low_rank.as_ref().map_or(Ok(()), |term| term.backward_input(dy, &dx, row_keys))?;
        Ok(dx)
    }

    /// Adds to the gradients of weight and bias, or of the low-rank term.
    pub fn backward_weight(&self, x: &Tensor, dy: &Tensor, row_keys: Option<&RowKeys>) -> Result<()> {
        if let Some(gradient) = &self.weight_gradient {
            linear::backward_weight(dy, x, gradient, self.compute)?;
        }
        if let Some(gradient) = &self.bias_gradient {
            linear::backward_bias(dy, gradient)?;
        }
        self.low_rank.as_ref().map_or(Ok(()), |term| term.backward_weight(x, dy, row_keys))
    }

    /// Whether anything of it has a gradient.
    pub fn is_trained(&self) -> bool {
        self.weight_gradient.is_some() || self.low_rank.as_ref().is_some_and(LowRankTerm::is_trained)
    }
}

/// RMS norm over rows or over the heads of a row.
#[derive(Debug)]
pub(super) struct Norm {
    weight: Tensor,
    gradient: Option<Tensor>,
    eps: f64,
    style: NormStyle,
}

impl Norm {
    fn op(&self) -> RmsNorm<'_> {
        RmsNorm { weight: &self.weight, eps: self.eps, style: self.style }
    }

    /// The normed rows and r, the reciprocal root mean squares.
    pub fn forward(&self, x: &Tensor) -> Result<(Buffer, Buffer)> {
        self.op().forward(x)
    }

    /// `sum += x`, then the norm of the sum.
    pub fn forward_sum(&self, sum: &Tensor, x: &Tensor) -> Result<(Buffer, Buffer)> {
        self.op().forward_sum(sum, x)
    }

    pub fn recompute(&self, x: &Tensor, r: &Tensor) -> Result<Buffer> {
        self.op().recompute(x, r)
    }

    pub fn backward(&self, x: &Tensor, r: &Tensor, dy: &Tensor) -> Result<Buffer> {
        self.op().backward(x, r, dy, self.gradient.as_ref())
    }

    /// The gradient of the norm's input where the input also goes `past` it.
    pub fn backward_sum(&self, x: &Tensor, r: &Tensor, dy: &Tensor, past: &Tensor) -> Result<Buffer> {
        self.op().backward_sum(x, r, dy, Some(past), self.gradient.as_ref())
    }

    /// In place; returns r.
    pub fn forward_heads(&self, x: &Tensor, heads: Heads) -> Result<Buffer> {
        self.op().forward_heads(x, heads)
    }

    /// In place on `d`.
    pub fn backward_heads(&self, x: &Tensor, r: &Tensor, d: &Tensor, heads: Heads) -> Result<()> {
        self.op().backward_heads(x, r, d, self.gradient.as_ref(), heads)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::read;

    #[test]
    fn random_matrices_have_a_deviation_of_a_fiftieth_and_vectors_are_ones() {
        let place = Place::from(ComputeDtype::F32);
        let of = |shape: &[usize]| Source::Random.tensor(&[("w".into(), shape[0])], shape, &place).unwrap();
        let matrix = of(&[300, 200]);
        let values = read(&matrix).unwrap();
        let mean_square = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / values.len() as f64;
        assert!((mean_square.sqrt() / 0.02 - 1.0).abs() < 0.02, "{mean_square}");
        assert_eq!(*read(&of(&[7])).unwrap(), [1.0; 7]);
    }
}
