//! Updates within the backward pass: the same steps, to the bit, without the gradients of the whole model.

use crate::support::*;
use mpo::config::{ComputeDtype, MasterWeights, MomentType, ObjectiveKind, Pooling, RetentionKind, RunConfig};
use mpo::model::decoder::{Decoder, Keep, Purpose};
use mpo::ops::{self, Place};
use mpo::train::evaluate::{PolicyIs, term_norms};
use mpo::train::optimizer::AdamW;
use mpo::train::step::{Gradients, StepSettings, evaluate_batch};
use mpo::train::update::update;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::num::NonZeroUsize;

const HIDDEN: usize = 32;
const VOCABULARY: usize = 200;

fn run_config(kind: RetentionKind, micro_batch_size: usize) -> RunConfig {
    let mut config = RunConfig::default();
    config.optimizer.clip_norm = 0.0;
    config.optimizer.lr = 1e-2;
    config.optimizer.weight_decay = 0.1;
    config.retention.kind = kind;
    config.retention.pooling = Pooling::Mean;
    (config.train.batch_size, config.train.micro_batch_size) = (4, micro_batch_size);
    config
}

/// Losses and norms of three steps, the norms of both terms after them, and all weights at the end, as bits.
fn trained(model: &Value, place: &Place, purpose: Purpose, config: &RunConfig, keep: Keep) -> (Vec<u64>, Vec<Vec<f32>>) {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), model, 1);
    let policy = Decoder::load(dir.path(), place.clone(), purpose).unwrap();
    assert_eq!(policy.shares_gradients(), purpose == Purpose::TrainInBackward);
    let reference = self::model(model, 2);
    let rows = rows(4, 24, VOCABULARY, 3);
    let scores = scores(&reference, &rows, config);
    let mut settings = StepSettings::new(config, PAD);
    settings.memory.keep = keep;
    let mut optimizer = AdamW::new(&config.optimizer, 5, policy.trained_parameters()).unwrap();
    let mut numbers = Vec::new();
    for _ in 0..3 {
        let is = PolicyIs::Trained(&scores);
        let (outcome, norm) = update(&policy, &borrowed(&rows), is, &settings, &mut optimizer, config.optimizer.lr).unwrap();
        numbers.extend([outcome.loss.to_bits(), norm.to_bits()]);
    }
    assert_eq!(optimizer.n_updates, 3);
    if config.retention.kind != RetentionKind::None {
        numbers.extend(term_norms(&policy, &borrowed(&rows), &scores, &settings).unwrap().map(f64::to_bits));
    }
    (numbers, policy.parameters().iter().map(|parameter| ops::read(&parameter.value).unwrap().to_vec()).collect())
}

#[test]
fn steps_are_those_of_updates_at_the_end() {
    let three_blocks = |config: Value| changed(config, json!({"num_hidden_layers": 3}));
    let every = |n| Keep::BlockInputs { every: NonZeroUsize::new(n).unwrap() };
    let cases = [
        (llama(HIDDEN, VOCABULARY), RetentionKind::Hidden, 2, Keep::ForBackward),
        (llama(HIDDEN, VOCABULARY), RetentionKind::None, 4, every(2)),
        (gemma2(HIDDEN, VOCABULARY), RetentionKind::Kl, 3, every(1)),
    ];
    for (model, kind, micro_batch_size, keep) in cases {
        let (model, config) = (three_blocks(model), run_config(kind, micro_batch_size));
        let run = |purpose| trained(&model, &ComputeDtype::F32.into(), purpose, &config, keep);
        let ((numbers, weights), (in_backward, weights_in_backward)) = (run(Purpose::Train), run(Purpose::TrainInBackward));
        if model["tie_word_embeddings"] == json!(false) {
            assert_eq!((numbers, weights), (in_backward, weights_in_backward), "{kind:?}");
            continue;
        }
        // A matrix that is head and embeddings has its gradient summed in another order: all of the head first.
        numbers.into_iter().zip(in_backward).for_each(|(a, b)| assert_near(f64::from_bits(a), f64::from_bits(b), 1e-5));
        let difference = relative_difference(&weights_in_backward, &weights);
        assert!(difference < 1e-4, "weights differ by {difference:.1e}");
    }
}

#[test]
fn so_are_those_of_lossy_weights_and_of_objectives_that_look_ahead() {
    let mut config = run_config(RetentionKind::Hidden, 2);
    config.model.dtype = ComputeDtype::Bf16;
    (config.optimizer.master, config.optimizer.moments) = (MasterWeights::Stochastic, MomentType::EightBit);
    config.objective.kind = ObjectiveKind::Orpo;
    let place = Place::from(ComputeDtype::Bf16).with_bf16_weights();
    let run = |purpose| trained(&llama(HIDDEN, VOCABULARY), &place, purpose, &config, Keep::ForBackward);
    assert_eq!(run(Purpose::Train), run(Purpose::TrainInBackward));
}

#[test]
fn so_are_those_of_the_gpu() {
    mpo::ops::gpu::on_emulated_gpu(|| {
        let config = run_config(RetentionKind::Hidden, 2);
        let place = Place::from(ComputeDtype::Bf16);
        let run = |purpose| trained(&llama(HIDDEN, VOCABULARY), &place, purpose, &config, Keep::ForBackward);
        let ((_, weights), (_, in_backward)) = (run(Purpose::Train), run(Purpose::TrainInBackward));
        assert_eq!(weights, in_backward);
    })
    .unwrap();
}

#[test]
fn one_blocks_gradients_are_all_that_there_are() {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), &changed(llama(HIDDEN, VOCABULARY), json!({"num_hidden_layers": 5})), 1);
    let n_values = |purpose| {
        let policy = Decoder::load(dir.path(), ComputeDtype::F32, purpose).unwrap();
        let of_parameter = |gradient: &candle_core::Tensor| (ops::read(gradient).unwrap().as_ptr() as usize, gradient.elem_count());
        let distinct: HashSet<_> = policy.parameters().iter().filter_map(|p| p.gradient.as_ref()).map(of_parameter).collect();
        distinct.iter().map(|(_, n)| n).sum::<usize>()
    };
    let block = HIDDEN * (HIDDEN + HIDDEN / 2 * 2 + HIDDEN + 3 * 2 * HIDDEN) + 2 * HIDDEN;
    assert_eq!(n_values(Purpose::Train), 5 * block + 2 * VOCABULARY * HIDDEN + HIDDEN);
    assert_eq!(n_values(Purpose::TrainInBackward), block + VOCABULARY * HIDDEN + HIDDEN);
}

#[test]
fn shared_gradients_have_no_other_way_back() {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), &llama(HIDDEN, VOCABULARY), 1);
    let policy = Decoder::load(dir.path(), ComputeDtype::F32, Purpose::TrainInBackward).unwrap();
    let (rows, config) = (rows(2, 24, VOCABULARY, 3), run_config(RetentionKind::Hidden, 2));
    let scores = scores(&policy, &rows, &config);
    let error = evaluate_batch(&policy, &borrowed(&rows), &scores, &StepSettings::new(&config, PAD), Gradients::Both).unwrap_err();
    assert!(format!("{error:#}").contains("must be taken as soon as they are whole"), "{error:#}");
}
