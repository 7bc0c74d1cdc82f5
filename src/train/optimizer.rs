//! AdamW as in PyTorch (Loshchilov & Hutter, arXiv 1711.05101), with moments that a checkpoint can hold.
//!
//! ```text
//! w   <- w (1 - lr * weight_decay)            matrices only, as in transformers
//! m   <- m + (1 - beta1) (g - m)
//! v   <- beta2 v + (1 - beta2) g^2
//! w   <- w - lr / (1 - beta1^t) * m / ( sqrt(v) / sqrt(1 - beta2^t) + eps )
//! ```
//!
//! Everything is f32; the scalars are formed in f64 and rounded once. The clip factor scales `g` as it is read, so that gradients
//! are walked once less. Elements are independent: the result is the same bit for bit at any number of threads.

use crate::config::OptimizerConfig;
use crate::model::parameter::Parameter;
use crate::ops;
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor};
use rayon::prelude::*;

/// Elements per parallel task: large enough to amortise the task, small enough to balance two threads on a small matrix.
const CHUNK: usize = 1 << 15;

/// The running means of one parameter's gradient and squared gradient; f32, the parameter's shape.
#[derive(Debug, Clone)]
pub struct Moments {
    pub first: Tensor,
    pub second: Tensor,
}

/// The optimizer's whole state: how many updates were made, and two moments per trainable parameter.
#[derive(Debug)]
pub struct AdamW {
    settings: OptimizerConfig,
    /// Updates made so far (t of the bias correction); a skipped step does not count.
    pub n_updates: u64,
    /// In the order of the parameters given to `new`; `None` where a parameter is frozen.
    pub moments: Vec<Option<Moments>>,
}

impl AdamW {
    /// Zero moments for every parameter that has a gradient buffer.
    pub fn new(settings: &OptimizerConfig, parameters: &[Parameter]) -> Result<Self> {
        let zeros = |p: &Parameter| Tensor::zeros(p.value.shape(), DType::F32, p.value.device());
        let moments = parameters
            .iter()
            .map(|p| match p.gradient {
                Some(_) => Ok(Some(Moments { first: zeros(p)?, second: zeros(p)? })),
                None => Ok(None),
            })
            .collect::<Result<_>>()?;
        Ok(Self { settings: settings.clone(), n_updates: 0, moments })
    }

    /// One update of every trainable parameter, in place.
    ///
    /// `lr` is the schedule's value for this step; `gradient_scale` multiplies every gradient as it is read (the clip factor).
    pub fn step(&mut self, parameters: &[Parameter], lr: f64, gradient_scale: f64) -> Result<()> {
        ensure!(
            parameters.len() == self.moments.len(),
            "the optimizer was made for {} parameters, not {}",
            self.moments.len(),
            parameters.len()
        );
        self.n_updates += 1;
        for (parameter, moments) in parameters.iter().zip(&self.moments) {
            let (Some(gradient), Some(moments)) = (&parameter.gradient, moments) else { continue };
            let decay = if parameter.is_matrix() { self.settings.weight_decay } else { 0.0 };
            let update = Update::new(&self.settings, self.n_updates, lr, decay, gradient_scale);
            update.apply_to_tensors(&parameter.value, gradient, moments).with_context(|| format!("updating `{}`", parameter.name))?;
        }
        Ok(())
    }
}

/// The scalars of one update, rounded to f32 where PyTorch rounds them.
#[derive(Debug, Clone, Copy)]
struct Update {
    keep: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    step_size: f32,
    sqrt_correction2: f32,
    eps: f32,
    gradient_scale: f32,
}

impl Update {
    fn new(settings: &OptimizerConfig, t: u64, lr: f64, weight_decay: f64, gradient_scale: f64) -> Self {
        let [beta1, beta2] = settings.betas;
        Self {
            keep: (1.0 - lr * weight_decay) as f32,
            one_minus_beta1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            step_size: (lr / (1.0 - beta1.powf(t as f64))) as f32,
            sqrt_correction2: (1.0 - beta2.powf(t as f64)).sqrt() as f32,
            eps: settings.eps as f32,
            gradient_scale: gradient_scale as f32,
        }
    }

    fn apply_to_tensors(&self, value: &Tensor, gradient: &Tensor, moments: &Moments) -> Result<()> {
        let gradient = ops::read(gradient)?;
        ops::update(value, |w| ops::update(&moments.first, |m| ops::update(&moments.second, |v| self.apply(w, &gradient, m, v))))??
    }

    /// One update of one parameter's elements; all four slices have its length.
    fn apply(&self, w: &mut [f32], gradient: &[f32], m: &mut [f32], v: &mut [f32]) {
        (w.par_chunks_mut(CHUNK), gradient.par_chunks(CHUNK), m.par_chunks_mut(CHUNK), v.par_chunks_mut(CHUNK))
            .into_par_iter()
            .for_each(|(w, gradient, m, v)| self.apply_to_chunk(w, gradient, m, v));
    }

    fn apply_to_chunk(&self, w: &mut [f32], gradient: &[f32], m: &mut [f32], v: &mut [f32]) {
        for (((w, g), m), v) in w.iter_mut().zip(gradient).zip(m).zip(v) {
            let g = g * self.gradient_scale;
            *m += self.one_minus_beta1 * (g - *m);
            *v = *v * self.beta2 + self.one_minus_beta2 * g * g;
            let denominator = v.sqrt() / self.sqrt_correction2 + self.eps;
            *w = *w * self.keep - self.step_size * (*m / denominator);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn parameter(shape: &[usize], value: Vec<f32>, gradient: Vec<f32>) -> Parameter {
        let tensor = |values: Vec<f32>| Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        Parameter { name: "w".into(), value: tensor(value), gradient: Some(tensor(gradient)) }
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// A spread of magnitudes and signs, the same in every run.
    fn noise(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    /// The textbook form of the update, in f64: bias-corrected means formed explicitly.
    fn plain_reference(settings: &OptimizerConfig, w: &mut f64, gradients: &[f64], lr: f64, weight_decay: f64) {
        let [beta1, beta2] = settings.betas;
        let (mut m, mut v) = (0.0, 0.0);
        for (i, g) in gradients.iter().enumerate() {
            m = beta1 * m + (1.0 - beta1) * g;
            v = beta2 * v + (1.0 - beta2) * g * g;
            let t = i as i32 + 1;
            let (m_hat, v_hat) = (m / (1.0 - beta1.powi(t)), v / (1.0 - beta2.powi(t)));
            *w -= lr * weight_decay * *w;
            *w -= lr * m_hat / (v_hat.sqrt() + settings.eps);
        }
    }

    /// By hand, lr 0.1, decay 0.01, w = 1, g = 2 then -1:
    /// step 1: w = 1 * 0.999 - 0.1 * 2 / 2 = 0.899
    /// step 2: m = 0.1 * 2 * 0.9 - 0.1 = 0.08, v = 0.004 * 0.999 + 0.001 = 0.004996; m^ = 0.08 / 0.19 = 0.4210526,
    ///         v^ = 0.004996 / 0.001999 = 2.4992496, sqrt = 1.5809015; w = 0.899 * 0.999 - 0.1 * 0.2663370 = 0.8714673
    #[test]
    fn two_steps_by_hand() {
        let settings = OptimizerConfig { weight_decay: 0.01, ..Default::default() };
        let w = parameter(&[1, 1], vec![1.0], vec![2.0]);
        let mut adamw = AdamW::new(&settings, std::slice::from_ref(&w)).unwrap();
        adamw.step(std::slice::from_ref(&w), 0.1, 1.0).unwrap();
        assert!((values(&w.value)[0] - 0.899).abs() < 1e-6);
        ops::update(w.gradient.as_ref().unwrap(), |g| g[0] = -1.0).unwrap();
        adamw.step(std::slice::from_ref(&w), 0.1, 1.0).unwrap();
        assert!((values(&w.value)[0] - 0.871_467_3).abs() < 1e-6, "{:?}", values(&w.value));
        let moments = adamw.moments[0].as_ref().unwrap();
        assert!((values(&moments.first)[0] - 0.08).abs() < 1e-7);
        assert!((values(&moments.second)[0] - 0.004_996).abs() < 1e-8);
    }

    #[test]
    fn agrees_with_the_plain_reference_over_several_chunks() {
        let settings = OptimizerConfig { weight_decay: 0.1, ..Default::default() };
        let n = 2 * CHUNK + 5;
        let start = noise(n, 1);
        let w = parameter(&[1, n], start.clone(), vec![0.0; n]);
        let mut adamw = AdamW::new(&settings, std::slice::from_ref(&w)).unwrap();
        let gradients: Vec<Vec<f32>> = (2..7).map(|seed| noise(n, seed * 7919)).collect();
        for gradient in &gradients {
            ops::update(w.gradient.as_ref().unwrap(), |g| g.copy_from_slice(gradient)).unwrap();
            adamw.step(std::slice::from_ref(&w), 1e-3, 0.5).unwrap();
        }
        for (i, actual) in values(&w.value).iter().enumerate() {
            let mut expected = f64::from(start[i]);
            let scaled: Vec<f64> = gradients.iter().map(|g| f64::from(g[i]) * 0.5).collect();
            plain_reference(&settings, &mut expected, &scaled, 1e-3, 0.1);
            assert!((f64::from(*actual) - expected).abs() < 1e-6, "element {i}: {actual} is not {expected}");
        }
    }

    #[test]
    fn decays_matrices_only_and_leaves_frozen_parameters_alone() {
        let settings = OptimizerConfig { weight_decay: 0.5, ..Default::default() };
        let matrix = parameter(&[1, 2], vec![1.0, -2.0], vec![0.0, 0.0]);
        let vector = parameter(&[2], vec![1.0, -2.0], vec![0.0, 0.0]);
        let frozen = Parameter { gradient: None, ..parameter(&[1, 2], vec![1.0, -2.0], vec![9.0, 9.0]) };
        let parameters = [matrix, vector, frozen];
        let mut adamw = AdamW::new(&settings, &parameters).unwrap();
        adamw.step(&parameters, 0.1, 1.0).unwrap();
        let after = parameters.each_ref().map(|p| values(&p.value));
        assert_eq!(after, [vec![0.95, -1.9], vec![1.0, -2.0], vec![1.0, -2.0]]);
        assert!(adamw.moments[2].is_none());
    }

    #[test]
    fn one_two_and_three_threads_agree_bit_for_bit() {
        let n = 3 * CHUNK + 11;
        let results = [1, 2, 3].map(|n_threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            let w = parameter(&[1, n], noise(n, 3), noise(n, 5));
            let mut adamw = AdamW::new(&OptimizerConfig::default(), std::slice::from_ref(&w)).unwrap();
            pool.install(|| (0..3).for_each(|_| adamw.step(std::slice::from_ref(&w), 1e-3, 0.3).unwrap()));
            values(&w.value).into_iter().map(f32::to_bits).collect::<Vec<_>>()
        });
        assert_eq!(results[0], results[1]);
        assert_eq!(results[0], results[2]);
    }
}
