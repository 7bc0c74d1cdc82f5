//! Every op on the GPU against its twin on the CPU: on the emulated GPU, and on a real one where there is one (feature `cuda`).

// The module is compiled for tests only; so is this line, which says so to readers of the file.
#[cfg(test)]
use crate::ops::{check, read};
use anyhow::Result;
use candle_core::{DType, Device, Tensor};

/// Largest difference that f32 may show, relative to the largest value of a result.
const F32: f64 = 2e-5;
/// The same for bf16, which has 8 bits: results are rounded, and so is what they are made of.
const BF16: f64 = 1.5e-2;

/// Where an op computes, and in which type its values are.
#[derive(Debug, Clone)]
pub struct Place {
    device: Device,
    dtype: DType,
}

impl Place {
    /// Reproducible values in [-1, 1) that bf16 can hold, so that every place starts from the same.
    pub fn values(&self, seed: u64, shape: &[usize]) -> Tensor {
        let values: Vec<f32> = check::to_f32(&check::values(seed, shape.iter().product()));
        let rounded = Tensor::from_vec(values, shape, &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap();
        rounded.to_dtype(self.dtype).unwrap().to_device(&self.device).unwrap()
    }

    /// f32 at every place: gradients of parameters, r of a norm.
    pub fn floats(&self, values: Vec<f32>, shape: &[usize]) -> Tensor {
        Tensor::from_vec(values, shape, &self.device).unwrap()
    }

    pub fn zeros(&self, shape: &[usize]) -> Tensor {
        Tensor::zeros(shape, self.dtype, &self.device).unwrap()
    }
}

/// Asserts that what `run` computes is the same at every place. Its results are compared one by one.
pub fn agree(what: &str, run: impl Fn(&Place) -> Result<Vec<Tensor>>) {
    agree_to(what, [F32, BF16], run);
}

/// [`agree`] to other tolerances, of f32 and of bf16.
pub fn agree_to(what: &str, tolerances: [f64; 2], run: impl Fn(&Place) -> Result<Vec<Tensor>>) {
    let results = |place: &Place| -> Vec<Vec<f32>> {
        let results = run(place).unwrap_or_else(|error| panic!("{what}, {place:?}: {error:#}"));
        results.iter().map(|tensor| read(tensor).unwrap().to_vec()).collect()
    };
    let expected = results(&Place { device: Device::Cpu, dtype: DType::F32 });
    for (dtype, tolerance) in [DType::F32, DType::BF16].into_iter().zip(tolerances) {
        let place = Place { device: Device::Cpu, dtype };
        if let [Some(once), Some(again)] = [0, 1].map(|_| super::on_emulated_gpu(|| results(&place)).unwrap()) {
            assert!(same_bits(&once, &again), "{what}, {dtype:?}: the order of threads changes the result");
            compare(&format!("{what}, emulated, {dtype:?}"), &once, &expected, tolerance);
        }
        #[cfg(feature = "cuda")]
        if let Ok(device) = super::at(0) {
            let place = Place { device, dtype };
            let [once, again] = [0, 1].map(|_| results(&place));
            assert!(same_bits(&once, &again), "{what}, {dtype:?}: two runs differ");
            compare(&format!("{what}, GPU, {dtype:?}"), &once, &expected, tolerance);
        }
    }
}

fn same_bits(a: &[Vec<f32>], b: &[Vec<f32>]) -> bool {
    let bits = |results: &[Vec<f32>]| results.iter().flatten().map(|value| value.to_bits()).collect::<Vec<_>>();
    bits(a) == bits(b)
}

fn compare(what: &str, results: &[Vec<f32>], expected: &[Vec<f32>], tolerance: f64) {
    assert_eq!(results.len(), expected.len(), "{what}");
    for (index, (result, expected)) in results.iter().zip(expected).enumerate() {
        let expected: Vec<f64> = expected.iter().map(|&value| value.into()).collect();
        let difference = check::relative_difference(result, &expected);
        assert!(expected.iter().any(|&value| value != 0.0), "{what}, result {index}: all zeros, so this shows nothing");
        assert!(difference <= tolerance, "{what}, result {index}: differs by {difference:.2e} of the largest value");
    }
}
