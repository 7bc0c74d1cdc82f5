//! `model.dtype = "bf16"`: products of rounded inputs, as PyTorch has them, and what they do to a whole model's gradients.

use crate::golden::fixtures;
use crate::support::*;
use candle_core::{DType, Device, Tensor};
use mpo::config::{ComputeDtype, RunConfig};
use mpo::model::decoder::{Decoder, Purpose};
use mpo::ops::{linear, tensor};
use mpo::train::step::{Gradients, StepSettings};
use serde_json::Value;
use std::collections::HashMap;

/// Of f32 sums of up to 70 products near 1.
const SUMS: f64 = 1e-5;
/// Half a unit in the last place of bf16, relative; a hair more, for a sum that falls on the other side of a tie.
const BF16: f64 = 1.01 / 256.0;

/// Of a whole model's gradient: its direction against f32, and its length.
const LEAST_COSINE: f64 = 0.9995;
const LENGTH: f64 = 0.01;

fn fixture() -> HashMap<String, Tensor> {
    candle_core::safetensors::load(fixtures().join("bf16.safetensors"), &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn linear_layers_match_pytorch() {
    let fixture = fixture();
    let [x, weight, dy] = ["x", "weight", "dy"].map(|name| &fixture[name]);
    let d_weight = tensor(vec![1.0; weight.elem_count()], weight.dims()).unwrap();
    linear::backward_weight(dy, x, &d_weight, ComputeDtype::Bf16).unwrap();
    let y = linear::forward(x, weight, None, ComputeDtype::Bf16).unwrap();
    let dx = linear::backward_input(dy, weight, ComputeDtype::Bf16).unwrap();
    let d_weight = (d_weight - 1.0).unwrap();
    for (name, actual) in [("y", &*y), ("dx", &*dx), ("dweight", &d_weight)] {
        let (actual, exact, autocast) = (values(actual), values(&fixture[name]), values(&fixture[&format!("autocast.{name}")]));
        for (i, ((actual, exact), autocast)) in actual.iter().zip(&exact).zip(&autocast).enumerate() {
            assert!((actual - exact).abs() <= SUMS, "{name}[{i}]: {actual} is not {exact}");
            assert!((actual - autocast).abs() <= BF16 * actual.abs() + SUMS, "{name}[{i}]: {actual} does not round to {autocast}");
        }
    }
}

/// A GPU's activations are bf16: the exact sums, rounded once. A weight's gradient is f32.
#[test]
fn linear_layers_on_a_gpu_match_pytorch() {
    let fixture = fixture();
    crate::gpu::on_every_gpu(|gpu, device| {
        let [x, weight, dy] = ["x", "weight", "dy"].map(|name| fixture[name].to_dtype(DType::BF16).unwrap().to_device(device).unwrap());
        let d_weight = Tensor::zeros(weight.dims(), DType::F32, device).unwrap();
        linear::backward_weight(&dy, &x, &d_weight, ComputeDtype::Bf16).unwrap();
        let y = linear::forward(&x, &weight, None, ComputeDtype::Bf16).unwrap();
        let dx = linear::backward_input(&dy, &weight, ComputeDtype::Bf16).unwrap();
        for (name, actual, relative) in [("y", &*y, BF16), ("dx", &*dx, BF16), ("dweight", &d_weight, 0.0)] {
            for (i, (actual, exact)) in values(actual).iter().zip(values(&fixture[name])).enumerate() {
                assert!((actual - exact).abs() <= relative * exact.abs() + SUMS, "{gpu}, {name}[{i}]: {actual} is not {exact}");
            }
        }
    });
}

fn gradients_of(model: &Value, compute: ComputeDtype) -> (f64, Vec<Vec<f32>>) {
    let rows = rows(3, 60, 300, 3);
    let config = RunConfig::default();
    let dir = tempfile::tempdir().unwrap();
    write_model(&dir.path().join("policy"), model, 1);
    write_model(&dir.path().join("reference"), model, 2);
    // Both are compared with the same reference.
    let reference = scores(&load(&dir.path().join("reference")), &rows, &config);
    let policy = Decoder::load(&dir.path().join("policy"), compute, Purpose::Train).unwrap();
    let outcome = evaluate(&policy, &borrowed(&rows), &reference, &StepSettings::new(&config, PAD), Gradients::Both);
    (outcome.loss, gradients(&policy))
}

#[test]
fn gradients_are_near_those_of_f32() {
    for model in [llama(128, 300), gemma2(128, 300)] {
        let name = &model["model_type"];
        let (loss, exact) = gradients_of(&model, ComputeDtype::F32);
        let (rounded_loss, rounded) = gradients_of(&model, ComputeDtype::Bf16);
        let dot: f64 = exact.iter().flatten().zip(rounded.iter().flatten()).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        let cosine = dot / (norm(&exact) * norm(&rounded));
        assert!(cosine > LEAST_COSINE, "{name}: cosine {cosine}");
        assert_near(norm(&rounded), norm(&exact), LENGTH);
        assert_near(rounded_loss, loss, LENGTH);
        assert!(relative_difference(&rounded, &exact) > 1e-4, "{name}: nothing was rounded");
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let model = llama(256, 600);
    let on = |n_threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
        pool.install(|| gradients_of(&model, ComputeDtype::Bf16))
    };
    let one = on(1);
    for n_threads in [2, 3] {
        assert!(on(n_threads) == one, "{n_threads} threads");
    }
}
