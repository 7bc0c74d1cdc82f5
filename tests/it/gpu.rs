//! Whole passes on the GPU against the same on the CPU, and against PyTorch's numbers: on the emulated GPU, and on a real one where there is one (feature `cuda`).

use crate::golden::{self, FAMILIES, Fixture};
use crate::support::*;
use candle_core::Device;
use mpo::config::{ComputeDtype, Pooling, RetentionKind, RunConfig};
use mpo::model::decoder::{Decoder, Purpose};
use mpo::model::low_rank::Adaptation;
use mpo::ops::{self, Place, gpu};
use mpo::train::evaluate::PolicyIs;
use mpo::train::optimizer::AdamW;
use mpo::train::step::{BatchOutcome, Gradients, StepMemory, StepSettings};
use mpo::train::update::update;
use serde_json::{Value, json};

const HIDDEN: usize = 64;
const VOCABULARY: usize = 200;

/// Runs `work` on every GPU that can be had.
pub fn on_every_gpu(work: impl Fn(&str, &Device)) {
    mpo::ops::gpu::on_emulated_gpu(|| work("emulated", &Device::Cpu)).unwrap();
    #[cfg(feature = "cuda")]
    if let Ok(device) = mpo::ops::gpu::at(0) {
        work("GPU", &device);
    }
}

/// Loss and gradients of one batch.
fn step(config: &Value, adaptation: Option<&Adaptation>, place: impl Into<Place>, run: &RunConfig) -> (BatchOutcome, Vec<Vec<f32>>) {
    let (dir, place) = (tempfile::tempdir().unwrap(), place.into());
    write_model(dir.path(), config, 1);
    let policy = match adaptation {
        Some(adaptation) => Decoder::load_adapted(dir.path(), adaptation, place, Purpose::Train),
        None => Decoder::load(dir.path(), place, Purpose::Train),
    };
    let policy = policy.unwrap();
    let mut random = Random::new(7);
    for parameter in policy.low_rank_parameters() {
        ops::update(&parameter.value, |values| values.iter_mut().for_each(|value| *value = 0.2 * random.signed())).unwrap();
    }
    let rows = rows(4, 40, VOCABULARY, 3);
    // What is compared is the policy's pass; the reference is the same everywhere, from the CPU.
    let reference = scores(&model(config, 2), &rows, run);
    policy.zero_gradients().unwrap();
    let settings = StepSettings { memory: StepMemory::default(), ..StepSettings::new(run, PAD) };
    let outcome = mpo::train::step::evaluate_batch(&policy, &borrowed(&rows), &reference, &settings, Gradients::Both).unwrap();
    let gradient = |parameter: &mpo::model::parameter::Parameter| ops::read(parameter.gradient.as_ref().unwrap()).unwrap().to_vec();
    (outcome, policy.trained_parameters().iter().map(gradient).collect())
}

fn check(name: &str, config: &Value, adaptation: Option<&Adaptation>, kind: RetentionKind) {
    let mut run = RunConfig::default();
    run.retention.kind = kind;
    run.retention.pooling = Pooling::Last;
    let (outcome, gradients) = step(config, adaptation, ComputeDtype::F32, &run);
    on_every_gpu(|gpu, device| {
        for (compute, value_tolerance, gradient_tolerance) in [(ComputeDtype::F32, 1e-4, 1e-4), (ComputeDtype::Bf16, 5e-2, 6e-2)] {
            let place = Place::new(device.clone(), compute);
            let (on_gpu, gradients_on_gpu) = step(config, adaptation, place, &run);
            let what = format!("{name}, {kind:?}, {gpu}, {compute:?}");
            assert!(
                (on_gpu.loss - outcome.loss).abs() <= value_tolerance * outcome.loss.abs(),
                "{what}: {} and {}",
                on_gpu.loss,
                outcome.loss
            );
            let difference = relative_difference(&gradients_on_gpu, &gradients);
            assert!(difference <= gradient_tolerance, "{what}: gradients differ by {difference:.1e}");
        }
    });
}

#[test]
fn reading_token_by_token_is_that_of_the_cpu() {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), &gemma2(HIDDEN, VOCABULARY), 1);
    let logits = |place: Place| {
        let model = Decoder::load(dir.path(), place, Purpose::Inference).unwrap();
        let (hidden, mut caches) = model.read_texts(&[&[1, 2, 3, 4, 5], &[9, 8]]).unwrap();
        let mut logits = model.next_logits(&hidden).unwrap().to_vec();
        for tokens in [[7, 11], [100, 3]] {
            let hidden = model.read_next(&tokens, &mut caches.iter_mut().collect::<Vec<_>>()).unwrap();
            logits.extend_from_slice(&model.next_logits(&hidden).unwrap());
        }
        vec![logits]
    };
    let expected = logits(ComputeDtype::F32.into());
    on_every_gpu(|gpu, device| {
        for (compute, tolerance) in [(ComputeDtype::F32, 1e-5), (ComputeDtype::Bf16, 5e-2)] {
            let difference = relative_difference(&logits(Place::new(device.clone(), compute)), &expected);
            assert!(difference <= tolerance, "{gpu}, {compute:?}: logits differ by {difference:.1e}");
        }
    });
}

#[test]
fn a_step_is_that_of_the_cpu() {
    check("llama", &llama(HIDDEN, VOCABULARY), None, RetentionKind::Hidden);
    check("gemma2", &gemma2(HIDDEN, VOCABULARY), None, RetentionKind::Hidden);
}

/// Reads of a whole step: forward, backward, clipping, update.
fn reads_of_a_step(place: Place, purpose: Purpose, kind: RetentionKind, micro_batch_size: usize) -> usize {
    let (dir, mut run) = (tempfile::tempdir().unwrap(), RunConfig::default());
    run.retention.kind = kind;
    run.train.micro_batch_size = micro_batch_size;
    if purpose == Purpose::TrainInBackward {
        run.optimizer.clip_norm = 0.0;
    }
    let config = llama(HIDDEN, VOCABULARY);
    write_model(dir.path(), &config, 1);
    let policy = Decoder::load(dir.path(), place, purpose).unwrap();
    let rows = rows(4, 40, VOCABULARY, 3);
    let reference = scores(&model(&config, 2), &rows, &run);
    let mut optimizer = AdamW::new(&run.optimizer, 0, policy.trained_parameters()).unwrap();
    let (settings, before) = (StepSettings::new(&run, PAD), gpu::reads());
    let (outcome, norm) = update(&policy, &borrowed(&rows), PolicyIs::Trained(&reference), &settings, &mut optimizer, 1e-3).unwrap();
    assert!(outcome.loss.is_finite() && norm > 0.0);
    gpu::reads() - before
}

#[test]
fn a_step_waits_once() {
    on_every_gpu(|gpu, device| {
        for (kind, purpose, micro_batch_size) in [
            (RetentionKind::Hidden, Purpose::Train, 1),
            (RetentionKind::Hidden, Purpose::TrainInBackward, 4),
            (RetentionKind::Kl, Purpose::Train, 2),
        ] {
            let n_reads = reads_of_a_step(Place::new(device.clone(), ComputeDtype::Bf16), purpose, kind, micro_batch_size);
            assert_eq!(n_reads, 1, "{gpu}, {kind:?}, {purpose:?}, {micro_batch_size} rows at a time: of the norm alone");
        }
    });
}

#[test]
fn kl_retention_is_that_of_the_cpu() {
    check("llama", &llama(HIDDEN, VOCABULARY), None, RetentionKind::Kl);
}

#[test]
fn biases_and_norms_of_queries_and_keys_are_those_of_the_cpu() {
    let qwen3 = changed(llama(HIDDEN, VOCABULARY), json!({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}));
    check("qwen3", &qwen3, None, RetentionKind::Hidden);
    let biased = changed(llama(HIDDEN, VOCABULARY), json!({"attention_bias": true, "mlp_bias": true}));
    check("llama with biases", &biased, None, RetentionKind::Hidden);
}

#[test]
fn an_adapter_is_that_of_the_cpu() {
    let projections = ["q_proj", "v_proj"].map(|name| format!("model.layers.0.self_attn.{name}"));
    let projections = projections.into_iter().chain(["model.layers.1.mlp.down_proj".to_owned()]).collect();
    let adaptation = Adaptation { rank: 4, scale: 2.0, dropout: 0.1, seed: 5, projections };
    check("llama with an adapter", &llama(HIDDEN, VOCABULARY), Some(&adaptation), RetentionKind::Hidden);
}

/// The PyTorch numbers of `golden.rs`, in f32 and by the CPU's tolerances: a GPU adds up in another order, not with fewer bits. A card takes every
/// family, its emulator, which is slow, those that it is told: together they have every feature.
fn check_golden(emulated: &[&str], check: impl Fn(&Fixture, &Device)) {
    on_every_gpu(|_, device| {
        let families = if device.is_cuda() { &FAMILIES[..] } else { emulated };
        for family in families {
            check(&Fixture::load_at(family, &Place::new(device.clone(), ComputeDtype::F32)), device);
        }
    });
}

/// Heads of 6 values, scaled ropes; norms of queries and keys, windows, two ropes.
#[test]
fn golden_log_probabilities_and_hidden_states() {
    check_golden(&["llama_linear", "gemma3_text"], |fixture, _| golden::check_scores(fixture));
}

/// Biases; the paper's loss, padded rows, and the term that goes through the reference's head.
#[test]
fn golden_losses_and_every_gradient_norm() {
    const EMULATED: [&str; 2] = ["mean_padded, mean", "mpo and 0.7 kl"];
    check_golden(&["qwen2"], |fixture, device| golden::check_losses(fixture, |name| device.is_cuda() || EMULATED.contains(&name)));
}

/// Soft caps, windows, norms behind each part of a block, tied embeddings.
#[test]
fn golden_adamw_steps() {
    check_golden(&["gemma2"], |fixture, _| golden::check_training(fixture));
}
