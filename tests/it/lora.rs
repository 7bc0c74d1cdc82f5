//! Low-rank adapters in the engine: they begin without effect, have the gradients that they should, leave all else alone, and merge to what they were.

use crate::support::*;
use mpo::adapter::{Adapter, merge};
use mpo::config::{AdapterConfig, AdapterKind, ComputeDtype, LayerRange, Pooling, RetentionKind, RunConfig, TargetModule, Targets};
use mpo::data::encode::EncodedRow;
use mpo::model::decoder::{Decoder, Keep, Purpose};
use mpo::model::low_rank::Adaptation;
use mpo::model::parameter::Parameter;
use mpo::ops;
use mpo::reference::{Columns, base_digest, weights_digest};
use mpo::train::step::{Gradients, StepMemory, StepSettings, evaluate_batch};
use serde_json::{Value, json};
use std::num::NonZeroUsize;
use std::path::Path;

const VOCABULARY: usize = 60;

fn lora(change: impl FnOnce(&mut AdapterConfig)) -> AdapterConfig {
    let mut config = AdapterConfig { kind: AdapterKind::Lora, rank: 3, alpha: Some(6.0), ..AdapterConfig::default() };
    change(&mut config);
    config
}

/// A model folder and what is adapted of it.
struct Setting {
    dir: tempfile::TempDir,
    rows: Vec<EncodedRow>,
    config: RunConfig,
}

impl Setting {
    fn new(model: &Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_model(dir.path(), model, 1);
        let mut config = RunConfig::default();
        config.retention.pooling = Pooling::Mean;
        config.train.micro_batch_size = 3;
        Self { dir, rows: rows(3, 20, VOCABULARY, 3), config }
    }

    /// The model with an adapter that has an effect, or with a new one.
    fn adapted(&self, config: &AdapterConfig, has_effect: bool) -> Decoder {
        let adapter = Adapter::new(config, 5, load(self.dir.path()).description()).unwrap();
        let model = adapter.load(self.dir.path(), ComputeDtype::F32, Purpose::Train).unwrap();
        let mut random = Random::new(9);
        for parameter in model.low_rank_parameters().iter().filter(|p| has_effect && p.name.contains("lora_B")) {
            ops::update(&parameter.value, |values| values.iter_mut().for_each(|v| *v = 0.3 * random.signed())).unwrap();
        }
        model
    }

    /// Scores of another model, so that every term has a gradient.
    fn reference(&self) -> Columns {
        let dir = tempfile::tempdir().unwrap();
        let config = std::fs::read_to_string(self.dir.path().join("config.json")).unwrap();
        write_model(dir.path(), &serde_json::from_str(&config).unwrap(), 2);
        scores(&load(dir.path()), &self.rows, &self.config)
    }

    fn loss_and_gradients(&self, model: &Decoder, settings: &StepSettings, reference: &Columns) -> (f64, Vec<Vec<f32>>) {
        let outcome = evaluate(model, &borrowed(&self.rows), reference, settings, Gradients::Both);
        (outcome.loss, values(model.trained_parameters(), |p| p.gradient.as_ref().unwrap().clone()))
    }
}

fn values(parameters: &[Parameter], of: impl Fn(&Parameter) -> candle_core::Tensor) -> Vec<Vec<f32>> {
    parameters.iter().map(|p| ops::read(&of(p)).unwrap().to_vec()).collect()
}

fn qwen3() -> Value {
    changed(llama(16, VOCABULARY), json!({ "model_type": "qwen3", "head_dim": 4, "tie_word_embeddings": true }))
}

#[test]
fn a_new_adapter_changes_no_bit() {
    for model in [llama(16, VOCABULARY), gemma2(16, VOCABULARY), qwen3()] {
        let setting = Setting::new(&model);
        let (plain, adapted) = (load(setting.dir.path()), setting.adapted(&lora(|_| ()), false));
        let settings = StepSettings::new(&setting.config, PAD);
        let reference = setting.reference();
        let of = |model: &Decoder| evaluate_batch(model, &borrowed(&setting.rows), &reference, &settings, Gradients::None).unwrap();
        assert_eq!(of(&plain), of(&adapted));
        assert_eq!(weights_digest(&adapted).unwrap(), weights_digest(&plain).unwrap(), "so that both share reference scores");

        let trained = setting.adapted(&lora(|_| ()), true);
        assert_ne!(of(&plain), of(&trained));
        assert_ne!(weights_digest(&trained).unwrap(), weights_digest(&plain).unwrap());
        assert_eq!(base_digest(&trained).unwrap(), base_digest(&plain).unwrap());
    }
}

#[test]
fn an_adapter_computes_what_its_merged_weights_compute() {
    for model in [llama(16, VOCABULARY), gemma2(16, VOCABULARY), qwen3()] {
        let setting = Setting::new(&model);
        for config in [lora(|_| ()), lora(|c| c.rslora = true), lora(|c| c.targets = Targets::Modules([TargetModule::VProj].into()))] {
            let adapted = setting.adapted(&config, true);
            let settings = StepSettings::new(&setting.config, PAD);
            let reference = setting.reference();
            let of = |model: &Decoder| evaluate_batch(model, &borrowed(&setting.rows), &reference, &settings, Gradients::None).unwrap();
            let with_adapter = of(&adapted);
            let weights = merge::merged(adapted).unwrap();
            let merged = load(setting.dir.path());
            let before = of(&merged).loss;
            for (into, from) in merged.parameters().iter().zip(&weights) {
                assert_eq!(into.name, from.name);
                let from = ops::read(&from.value).unwrap();
                ops::update(&into.value, |values| values.copy_from_slice(&from)).unwrap();
            }
            let merged = of(&merged);
            assert!((before / merged.loss - 1.0).abs() > 1e-3, "the adapter has an effect");
            assert_near(with_adapter.loss, merged.loss, 1e-5);
            for (one, other) in with_adapter.rows.iter().zip(&merged.rows) {
                assert_near(one.target.chosen.log_prob, other.target.chosen.log_prob, 1e-5);
            }
        }
    }
}

/// Along a random direction in all A and B together, and in each alone, by central differences of the whole loss; with dropout too.
#[test]
fn gradients_through_the_whole_loss_by_finite_differences() {
    for (model, dropout) in [(llama(16, VOCABULARY), 0.0), (llama(16, VOCABULARY), 0.3), (gemma2(16, VOCABULARY), 0.0), (qwen3(), 0.3)] {
        let setting = Setting::new(&model);
        let policy = setting.adapted(&lora(|c| c.dropout = dropout), true);
        let (settings, reference) = (StepSettings::new(&setting.config, PAD), setting.reference());
        policy.begin_step(4);
        let (_, gradients) = setting.loss_and_gradients(&policy, &settings, &reference);
        let saved = values(policy.trained_parameters(), |p| p.value.clone());
        let mut random = Random::new(8);
        let direction: Vec<Vec<f32>> = saved.iter().map(|values| values.iter().map(|_| random.signed()).collect()).collect();
        let loss_at = |step: f32| {
            for ((parameter, saved), direction) in policy.trained_parameters().iter().zip(&saved).zip(&direction) {
                ops::update(&parameter.value, |values| {
                    values.iter_mut().zip(saved).zip(direction).for_each(|((value, saved), d)| *value = saved + step * d);
                })
                .unwrap();
            }
            // With gradients, or there would be no dropout.
            setting.loss_and_gradients(&policy, &settings, &reference).0
        };
        let step = 1e-3;
        let numeric = (loss_at(step) - loss_at(-step)) / (2.0 * f64::from(step));
        let analytic: f64 = gradients.iter().flatten().zip(direction.iter().flatten()).map(|(g, d)| f64::from(g * d)).sum();
        assert_near(analytic, numeric, 5e-3);
        assert!(policy.parameters().iter().all(|p| p.gradient.is_none()), "what is frozen has no buffer");
        assert!(gradients.iter().all(|g| g.iter().any(|v| *v != 0.0)), "everything that is trained has a gradient");
    }
}

#[test]
fn a_backward_that_ends_early_gives_the_same_gradients() {
    let setting = Setting::new(&changed(llama(16, VOCABULARY), json!({ "num_hidden_layers": 4 })));
    let (settings, reference) = (StepSettings::new(&setting.config, PAD), setting.reference());
    let everywhere = setting.adapted(&lora(|_| ()), true);
    let all = setting.loss_and_gradients(&everywhere, &settings, &reference);
    for targets in [
        TargetModule::ALL.to_vec(),
        vec![TargetModule::DownProj],
        vec![TargetModule::OProj],
        vec![TargetModule::KProj, TargetModule::UpProj],
    ] {
        let upper = lora(|c| (c.layers, c.targets) = (LayerRange::FromTo(2, 3), Targets::Modules(targets.into_iter().collect())));
        let upper = setting.adapted(&upper, false);
        // The same function: what has no term there is in the weights here.
        let all_but_upper = setting.adapted(&lora(|_| ()), true);
        for parameter in all_but_upper.low_rank_parameters() {
            match upper.low_rank_parameters().iter().find(|p| p.name == parameter.name) {
                Some(same) => {
                    let values = ops::read(&parameter.value).unwrap();
                    ops::update(&same.value, |same| same.copy_from_slice(&values)).unwrap();
                }
                None if parameter.name.contains("lora_B") => ops::update(&parameter.value, |values| values.fill(0.0)).unwrap(),
                None => {}
            }
        }
        let whole = setting.loss_and_gradients(&all_but_upper, &settings, &reference);
        let of_upper: Vec<Vec<f32>> = all_but_upper
            .low_rank_parameters()
            .iter()
            .zip(&whole.1)
            .filter(|(p, _)| upper.low_rank_parameters().iter().any(|other| other.name == p.name))
            .map(|(_, gradient)| gradient.clone())
            .collect();
        let every = |n: usize| StepMemory { keep: Keep::BlockInputs { every: NonZeroUsize::new(n).unwrap() }, kept_logits: 0 };
        let expected = setting.loss_and_gradients(&upper, &settings, &reference);
        assert_eq!(expected.0, whole.0);
        let difference = relative_difference(&expected.1, &of_upper);
        assert!(difference < 1e-6, "{difference:.1e}");
        for n in 1..=4 {
            let checkpointed = StepSettings { memory: every(n), ..settings.clone() };
            assert_eq!(setting.loss_and_gradients(&upper, &checkpointed, &reference), expected, "every {n}");
        }
    }
    assert!(all.0.is_finite());
}

#[test]
fn dropout_is_the_same_again_and_another_in_another_step() {
    let setting = Setting::new(&llama(16, VOCABULARY));
    let (settings, reference) = (StepSettings::new(&setting.config, PAD), setting.reference());
    let policy = setting.adapted(&lora(|c| c.dropout = 0.5), true);
    let plain = setting.adapted(&lora(|_| ()), true);
    let of = |step: u64, settings: &StepSettings| {
        policy.begin_step(step);
        setting.loss_and_gradients(&policy, settings, &reference)
    };
    let first = of(1, &settings);
    assert_eq!(first, of(1, &settings));
    assert_ne!(first.0, of(2, &settings).0);
    assert_ne!(first.0, setting.loss_and_gradients(&plain, &settings, &reference).0);
    let checkpointed = StepMemory { keep: Keep::BlockInputs { every: NonZeroUsize::MIN }, kept_logits: 0 };
    assert_eq!(first, of(1, &StepSettings { memory: checkpointed, ..settings.clone() }), "computed again, the same is dropped");
    let single = of(1, &StepSettings { micro_batch_size: 1, ..settings.clone() });
    assert_eq!(single.0, first.0, "and however the batch is cut");
    assert!(relative_difference(&single.1, &first.1) < 1e-6);

    let of = |model: &Decoder| evaluate_batch(model, &borrowed(&setting.rows), &reference, &settings, Gradients::None).unwrap();
    assert_eq!(of(&policy), of(&plain), "an evaluation drops nothing");
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let setting = Setting::new(&llama(128, 1000));
    let setting = Setting { rows: rows(3, 120, 1000, 3), ..setting };
    let (settings, reference) = (StepSettings::new(&setting.config, PAD), setting.reference());
    let policy = setting.adapted(&lora(|c| (c.rank, c.dropout) = (16, 0.1)), true);
    let results = [1, 2, 3].map(|n| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        pool.install(|| setting.loss_and_gradients(&policy, &settings, &reference))
    });
    assert!(results[0] == results[1] && results[0] == results[2]);
}

#[test]
fn frozen_weights_stay_with_every_retention() {
    let mut setting = Setting::new(&gemma2(16, VOCABULARY));
    for kind in [RetentionKind::Hidden, RetentionKind::Kl, RetentionKind::None] {
        setting.config.retention.kind = kind;
        let policy = setting.adapted(&lora(|_| ()), false);
        let (_, gradients) = setting.loss_and_gradients(&policy, &StepSettings::new(&setting.config, PAD), &setting.reference());
        // While B is zero, A has no gradient; B has one.
        for (parameter, gradient) in policy.trained_parameters().iter().zip(gradients) {
            assert_eq!(gradient.iter().any(|v| *v != 0.0), parameter.name.contains("lora_B"), "{}", parameter.name);
        }
    }
}

#[test]
fn an_inference_has_no_gradients() {
    let setting = Setting::new(&llama(16, VOCABULARY));
    let adaptation =
        Adaptation { rank: 2, scale: 1.0, dropout: 0.0, seed: 0, projections: ["model.layers.0.self_attn.q_proj".to_owned()].into() };
    let model = Decoder::load_adapted(Path::new(setting.dir.path()), &adaptation, ComputeDtype::F32, Purpose::Inference).unwrap();
    assert_eq!(model.low_rank_parameters().len(), 2);
    assert!(model.low_rank_parameters().iter().all(|p| p.gradient.is_none()), "nothing is trained in an inference");
}
