//! The global gradient norm, and clipping as `torch.nn.utils.clip_grad_norm_` does it.
//!
//! Squares are summed in f64 over fixed chunks, and the chunks in order: the norm does not depend on the number of threads.

use crate::model::parameter::Parameter;
use crate::ops::{self, vectorized};
use anyhow::{Context, Result};
use rayon::prelude::*;

const CHUNK: usize = 1 << 15;
/// Independent sums within a chunk, so that the additions need not wait for each other.
const LANES: usize = 8;

/// The l2 norm over the gradients of all trainable parameters; not finite if any element is not.
pub fn gradient_norm(parameters: &[Parameter]) -> Result<f64> {
    let mut squares = 0.0;
    for parameter in parameters {
        let Some(gradient) = &parameter.gradient else { continue };
        let gradient = ops::read(gradient).with_context(|| format!("reading the gradient of `{}`", parameter.name))?;
        squares += sum_of_squares(&gradient);
    }
    Ok(squares.sqrt())
}

/// What gradients are multiplied by so that their norm is at most `max_norm`; 1 when `max_norm` is 0 (clipping off).
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if max_norm == 0.0 { 1.0 } else { (max_norm / (norm + 1e-6)).min(1.0) }
}

fn sum_of_squares(values: &[f32]) -> f64 {
    let chunks: Vec<f64> = values.par_chunks(CHUNK).map(|chunk| vectorized!(sum_of_squares_of_chunk(chunk))).collect();
    chunks.iter().sum()
}

#[inline(always)]
fn sum_of_squares_of_chunk(values: &[f32]) -> f64 {
    let mut sums = [0.0f64; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    let square = |value: f32| f64::from(value) * f64::from(value);
    for values in whole {
        (0..LANES).for_each(|lane| sums[lane] += square(values[lane]));
    }
    sums.iter_mut().zip(rest).for_each(|(sum, &value)| *sum += square(value));
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    fn parameter(gradient: Option<Vec<f32>>) -> Parameter {
        let n = gradient.as_ref().map_or(1, Vec::len);
        let tensor = |values: Vec<f32>| Tensor::from_vec(values, n, &Device::Cpu).unwrap();
        Parameter { name: "w".into(), value: tensor(vec![0.0; n]), gradient: gradient.map(tensor) }
    }

    #[test]
    fn norm_spans_parameters_and_skips_frozen_ones() {
        let parameters = [parameter(Some(vec![3.0])), parameter(None), parameter(Some(vec![0.0, -4.0]))];
        assert_eq!(gradient_norm(&parameters).unwrap(), 5.0);
    }

    #[test]
    fn norm_does_not_depend_on_the_number_of_threads() {
        let values: Vec<f32> = (0..3 * CHUNK + 17).map(|i| ((i * 2_654_435_761) % 1013) as f32 / 977.0 - 0.5).collect();
        let expected: f64 = values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let parameters = [parameter(Some(values))];
        let norms = [1, 2, 3].map(|n| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
            pool.install(|| gradient_norm(&parameters).unwrap())
        });
        assert!((norms[0] / expected - 1.0).abs() < 1e-12);
        assert_eq!(norms.map(f64::to_bits), [norms[0].to_bits(); 3]);
    }

    #[test]
    fn one_bad_element_makes_the_norm_not_finite() {
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(!gradient_norm(&[parameter(Some(vec![1.0, bad]))]).unwrap().is_finite());
        }
        let large = parameter(Some(vec![f32::MAX; 4]));
        assert!(gradient_norm(&[large]).unwrap().is_finite(), "squares beyond f32 are no overflow");
    }

    #[test]
    fn clips_as_torch_does() {
        // torch.nn.utils.clip_grad_norm_: clamp(max_norm / (norm + 1e-6), max=1)
        assert_eq!(clip_factor(5.0, 1.0), 1.0 / 5.000001);
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert_eq!(clip_factor(0.0, 1.0), 1.0);
        assert_eq!(clip_factor(1e9, 0.0), 1.0);
    }
}
