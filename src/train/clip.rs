//! The global gradient norm (`ops::squares`), of gradients that are there together, or that come a part at a time.

use crate::model::parameter::Parameter;
use crate::ops::squares::{SumOfSquares, norm};
use anyhow::Result;
use candle_core::Tensor;

/// The l2 norm over the gradients of all trainable parameters; not finite if any element is not.
pub fn gradient_norm(parameters: &[Parameter]) -> Result<f64> {
    norm([&squares(parameters)?])
}

/// Of the gradients of trainable parameters; nothing waits for the GPU.
pub fn squares(parameters: &[Parameter]) -> Result<SumOfSquares> {
    let gradients: Vec<&Tensor> = parameters.iter().filter_map(|parameter| parameter.gradient.as_ref()).collect();
    SumOfSquares::of(&gradients)
}

/// The norm over parts of a model's gradients, in the order of the parameters whatever the order of the parts.
#[derive(Debug, Default)]
pub struct NormOfParts(Vec<(usize, SumOfSquares)>);

impl NormOfParts {
    /// The gradients of `parameters[first..]`.
    pub fn add(&mut self, first: usize, squares: SumOfSquares) {
        self.0.push((first, squares));
    }

    /// Waits for the GPU.
    pub fn value(mut self) -> Result<f64> {
        self.0.sort_by_key(|(first, _)| *first);
        norm(self.0.iter().map(|(_, squares)| squares))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn norm_spans_parameters_and_skips_frozen_ones() {
        let tensor = |values: &[f32]| Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap();
        let parameter = |gradient: Option<&[f32]>| Parameter { name: "w".into(), value: tensor(&[0.0]), gradient: gradient.map(tensor) };
        let parameters = [parameter(Some(&[3.0])), parameter(None), parameter(Some(&[0.0, -4.0]))];
        assert_eq!(gradient_norm(&parameters).unwrap(), 5.0);
    }
}
