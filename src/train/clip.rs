//! The global gradient norm, and clipping as `torch.nn.utils.clip_grad_norm_` does it.
//!
//! The norm does not depend on the number of threads (`ops::squares`).

use crate::model::parameter::Parameter;
use crate::ops::squares::sum_of_squares;
use anyhow::Result;
use candle_core::Tensor;

/// The l2 norm over the gradients of all trainable parameters; not finite if any element is not.
pub fn gradient_norm(parameters: &[Parameter]) -> Result<f64> {
    let gradients: Vec<&Tensor> = parameters.iter().filter_map(|parameter| parameter.gradient.as_ref()).collect();
    Ok(sum_of_squares(&gradients)?.sqrt())
}

/// What gradients are multiplied by so that their norm is at most `max_norm`; 1 when `max_norm` is 0 (clipping off).
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if max_norm == 0.0 { 1.0 } else { (max_norm / (norm + 1e-6)).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::squares::CHUNK;
    use candle_core::Device;

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
