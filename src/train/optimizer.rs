//! AdamW over a run's parameters (`ops::adamw` has the update), with a state that a checkpoint can hold.

use super::clip::{NormOfParts, squares};
use crate::config::{MasterWeights, MomentType, OptimizerConfig};
use crate::model::parameter::Parameter;
use crate::ops::adamw::{self, Clip, Item, Moment, Rounding, Scalars, State};
use crate::ops::dropout::mix_in;
use anyhow::{Result, ensure};
use candle_core::Tensor;
use std::ops::Range;

/// The optimizer's whole state: how many updates were made, and what it keeps of each trainable parameter.
#[derive(Debug)]
pub struct AdamW {
    settings: OptimizerConfig,
    /// Of stochastic rounding.
    seed: u64,
    /// Updates made so far (t of the bias correction); a skipped step does not count.
    pub n_updates: u64,
    /// In the order of the parameters given to `new`; `None` where a parameter is frozen.
    states: Vec<Option<State>>,
}

impl AdamW {
    /// Zero moments for every parameter that has a gradient buffer.
    pub fn new(settings: &OptimizerConfig, seed: u64, parameters: &[Parameter]) -> Result<Self> {
        let rounding = match settings.master {
            MasterWeights::F32 => Rounding::Master,
            MasterWeights::Stochastic => Rounding::Stochastic,
            MasterWeights::Kahan => Rounding::Kahan,
        };
        let eight_bit = settings.moments == MomentType::EightBit;
        let state = |p: &Parameter| p.gradient.as_ref().map(|_| State::new(&p.value, rounding, eight_bit)).transpose();
        Ok(Self { settings: settings.clone(), seed, n_updates: 0, states: parameters.iter().map(state).collect::<Result<_>>()? })
    }

    /// One update of every trainable parameter, in place, by gradients that are clipped as the settings say. Returns their norm before that: where it
    /// is not finite nothing is changed, and no update counted.
    ///
    /// `lr` is the schedule's value for this step. On a GPU the update is on its way before the norm is waited for.
    pub fn step(&mut self, parameters: &[Parameter], lr: f64) -> Result<f64> {
        let mut update = self.begin(lr);
        update.apply(parameters, 0..parameters.len())?;
        let norm = update.norm()?;
        self.n_updates += u64::from(norm.is_finite());
        Ok(norm)
    }

    /// An update whose parameters come a part at a time, to be counted by whoever makes it.
    pub fn begin(&self, lr: f64) -> Update<'_> {
        Update { scalars: self.scalars(lr), optimizer: self, norm: NormOfParts::default() }
    }

    /// Of the next update.
    fn scalars(&self, lr: f64) -> Scalars {
        let t = self.n_updates + 1;
        let ([beta1, beta2], power) = (self.settings.betas, t as f64);
        Scalars {
            keep: (1.0 - lr * self.settings.weight_decay) as f32,
            one_minus_beta1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            one_minus_beta2: (1.0 - beta2) as f32,
            step_size: (lr / (1.0 - beta1.powf(power))) as f32,
            sqrt_correction2: (1.0 - beta2.powf(power)).sqrt() as f32,
            eps: self.settings.eps as f32,
            seed: mix_in(self.seed, t),
        }
    }

    /// The values that updates are made to, with more bits than the parameter's own where they are kept beside it: what a run goes on from.
    pub fn exact_values<'a>(&'a self, parameters: &'a [Parameter]) -> impl Iterator<Item = (String, &'a Tensor)> {
        parameters.iter().zip(&self.states).map(|(p, state)| {
            let master = state.as_ref().and_then(|state| state.beside.as_ref().filter(|_| state.rounding == Rounding::Master));
            (p.name.clone(), master.unwrap_or(&p.value))
        })
    }

    /// Everything else that it keeps, under the names that a checkpoint has for it.
    pub fn tensors<'a>(&'a self, parameters: &'a [Parameter]) -> impl Iterator<Item = (String, &'a Tensor)> {
        let of_parameter = |(p, state): (&'a Parameter, &'a Option<State>)| {
            let moments = state.iter().flat_map(|state| [("first", &state.first), ("second", &state.second)]);
            let parts = moments.flat_map(|(name, moment)| match moment {
                Moment::Exact(values) => vec![(name.to_owned(), values)],
                Moment::EightBit { codes, scales } => vec![(name.to_owned(), codes), (format!("{name}_scale"), scales)],
            });
            let lost = state.iter().filter(|state| state.rounding == Rounding::Kahan).filter_map(|state| state.beside.as_ref());
            parts
                .chain(lost.map(|lost| ("lost".to_owned(), lost)))
                .map(|(part, tensor)| (format!("{part}.{}", p.name), tensor))
                .collect::<Vec<_>>()
        };
        parameters.iter().zip(&self.states).flat_map(of_parameter)
    }
}

/// One update under way.
#[derive(Debug)]
pub struct Update<'a> {
    optimizer: &'a AdamW,
    scalars: Scalars,
    norm: NormOfParts,
}

impl Update<'_> {
    /// Updates some of `parameters`, those that the optimizer was made for, by their gradients, which are clipped by the norm of this part: only what is
    /// all of them should be clipped. A part with a gradient that is not finite stays as it was.
    pub fn apply(&mut self, parameters: &[Parameter], part: Range<usize>) -> Result<()> {
        let states = &self.optimizer.states;
        ensure!(parameters.len() == states.len(), "the optimizer was made for {} parameters, not {}", states.len(), parameters.len());
        let squares = squares(&parameters[part.clone()])?;
        let item = |number: usize| {
            let (p, state) = (&parameters[number], states[number].as_ref()?);
            Some(Item { number, value: &p.value, gradient: p.gradient.as_ref()?, state, decays: p.is_matrix() })
        };
        let items: Vec<Item> = part.clone().filter_map(item).collect();
        adamw::step(&items, &self.scalars, Clip { squares: &squares, max_norm: self.optimizer.settings.clip_norm })?;
        self.norm.add(part.start, squares);
        Ok(())
    }

    /// The norm of all gradients so far. Waits for the GPU.
    pub fn norm(self) -> Result<f64> {
        self.norm.value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops;
    use crate::ops::adamw::CHUNK;
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
        let settings = OptimizerConfig { weight_decay: 0.01, clip_norm: 0.0, ..Default::default() };
        let w = parameter(&[1, 1], vec![1.0], vec![2.0]);
        let mut adamw = AdamW::new(&settings, 7, std::slice::from_ref(&w)).unwrap();
        assert_eq!(adamw.step(std::slice::from_ref(&w), 0.1).unwrap(), 2.0);
        assert!((values(&w.value)[0] - 0.899).abs() < 1e-6);
        ops::update(w.gradient.as_ref().unwrap(), |g| g[0] = -1.0).unwrap();
        assert_eq!(adamw.step(std::slice::from_ref(&w), 0.1).unwrap(), 1.0);
        assert!((values(&w.value)[0] - 0.871_467_3).abs() < 1e-6, "{:?}", values(&w.value));
        let state: Vec<(String, f32)> = adamw.tensors(std::slice::from_ref(&w)).map(|(name, tensor)| (name, values(tensor)[0])).collect();
        assert!(state[0].0 == "first.w" && (state[0].1 - 0.08).abs() < 1e-7);
        assert!(state[1].0 == "second.w" && (state[1].1 - 0.004_996).abs() < 1e-8);
    }

    #[test]
    fn agrees_with_the_plain_reference_over_several_chunks() {
        let settings = OptimizerConfig { weight_decay: 0.1, clip_norm: 30.0, ..Default::default() };
        let n = 2 * CHUNK + 5;
        let start = noise(n, 1);
        let w = parameter(&[1, n], start.clone(), vec![0.0; n]);
        let mut adamw = AdamW::new(&settings, 7, std::slice::from_ref(&w)).unwrap();
        let gradients: Vec<Vec<f32>> = (2..7).map(|seed| noise(n, seed * 7919)).collect();
        let mut scales = Vec::new();
        for gradient in &gradients {
            ops::update(w.gradient.as_ref().unwrap(), |g| g.copy_from_slice(gradient)).unwrap();
            let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            assert!((adamw.step(std::slice::from_ref(&w), 1e-3).unwrap() / norm - 1.0).abs() < 1e-12);
            scales.push(30.0 / norm);
        }
        assert!(scales.iter().all(|scale| *scale < 0.5), "{scales:?}");
        for (i, actual) in values(&w.value).iter().enumerate() {
            let mut expected = f64::from(start[i]);
            let scaled: Vec<f64> = gradients.iter().zip(&scales).map(|(g, scale)| f64::from(g[i]) * scale).collect();
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
        let mut adamw = AdamW::new(&settings, 7, &parameters).unwrap();
        adamw.step(&parameters, 0.1).unwrap();
        let after = parameters.each_ref().map(|p| values(&p.value));
        assert_eq!(after, [vec![0.95, -1.9], vec![1.0, -2.0], vec![1.0, -2.0]]);
        assert_eq!(adamw.tensors(&parameters).count(), 4);
    }

    #[test]
    fn one_two_and_three_threads_agree_bit_for_bit() {
        let n = 3 * CHUNK + 11;
        let results = [1, 2, 3].map(|n_threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            let w = parameter(&[1, n], noise(n, 3), noise(n, 5));
            let mut adamw = AdamW::new(&OptimizerConfig::default(), 7, std::slice::from_ref(&w)).unwrap();
            pool.install(|| {
                (0..3).for_each(|_| {
                    adamw.step(std::slice::from_ref(&w), 1e-3).unwrap();
                })
            });
            values(&w.value).into_iter().map(f32::to_bits).collect::<Vec<_>>()
        });
        assert_eq!(results[0], results[1]);
        assert_eq!(results[0], results[2]);
    }

    #[test]
    fn parts_make_the_update_that_all_make_together_and_bad_ones_none() {
        let settings =
            OptimizerConfig { clip_norm: 0.0, master: MasterWeights::Stochastic, moments: MomentType::EightBit, ..Default::default() };
        let run = |parts: &[Range<usize>], bad: Option<usize>| {
            let parameter = |seed: u32| {
                let mut gradient = noise(5000, seed);
                gradient[7] = if bad == Some(seed as usize) { f32::NAN } else { gradient[7] };
                let Parameter { name, value, gradient } = parameter(&[50, 100], noise(5000, seed + 9), gradient);
                Parameter { name, value: value.to_dtype(candle_core::DType::BF16).unwrap(), gradient }
            };
            let parameters = [0, 1, 2].map(parameter);
            let adamw = AdamW::new(&settings, 7, &parameters).unwrap();
            let before = parameters.each_ref().map(|p| ops::read(&p.value).unwrap().to_vec());
            let mut update = adamw.begin(1e-2);
            parts.iter().for_each(|part| update.apply(&parameters, part.clone()).unwrap());
            let after = parameters.each_ref().map(|p| ops::read(&p.value).unwrap().to_vec());
            (update.norm().unwrap(), before, after)
        };
        let (norm, before, after) = run(std::slice::from_ref(&(0..3)), None);
        assert!(before.iter().zip(&after).all(|(before, after)| before != after));
        let in_parts = run(&[2..3, 1..2, 0..1], None);
        assert_eq!((norm.to_bits(), &after), (in_parts.0.to_bits(), &in_parts.2));
        let (norm, before, bad) = run(&[2..3, 1..2, 0..1], Some(1));
        assert!(!norm.is_finite() && bad[1] == before[1] && bad[0] == after[0] && bad[2] == after[2]);
        let (norm, before, bad) = run(std::slice::from_ref(&(0..3)), Some(1));
        assert!(!norm.is_finite() && bad == before, "of a whole step nothing is updated");
    }
}
