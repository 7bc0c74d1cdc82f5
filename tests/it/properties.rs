//! What must not change a result: how a batch is packed, cut, ordered and shared, and how many threads compute it.

use crate::support::*;
use mpo::config::{Pooling, RetentionKind, RunConfig};
use mpo::data::batch::{Layout, PackedBatch, PromptSharing};
use mpo::data::encode::EncodedRow;
use mpo::model::decoder::{Decoder, Keep};
use mpo::ops;
use mpo::reference::Columns;
use mpo::train::step::{BatchOutcome, Gradients, StepMemory, StepSettings, evaluate_batch};
use serde_json::json;
use std::num::NonZeroUsize;

/// Large enough that every op and every matrix product uses all its threads.
const HIDDEN: usize = 128;
const VOCABULARY: usize = 1000;
const LENGTH: usize = 120;

struct Setting {
    policy: Decoder,
    reference: Columns,
    rows: Vec<EncodedRow>,
    config: RunConfig,
}

/// Six rows, a policy and another model's scores.
fn setting() -> Setting {
    let (policy, reference) = (model(&llama(HIDDEN, VOCABULARY), 1), model(&llama(HIDDEN, VOCABULARY), 2));
    let rows = rows(6, LENGTH, VOCABULARY, 3);
    let mut config = RunConfig::default();
    config.retention.pooling = Pooling::Mean;
    config.train.micro_batch_size = 6;
    Setting { reference: scores(&reference, &rows, &config), policy, rows, config }
}

impl Setting {
    fn run(&self, rows: &[&EncodedRow], settings: &StepSettings) -> (BatchOutcome, Vec<Vec<f32>>) {
        let outcome = evaluate(&self.policy, rows, &self.reference, settings, Gradients::Both);
        (outcome, gradients(&self.policy))
    }

    fn settings(&self) -> StepSettings {
        StepSettings::new(&self.config, PAD)
    }
}

#[track_caller]
fn assert_same_batch((a, a_gradients): (BatchOutcome, Vec<Vec<f32>>), (b, b_gradients): (BatchOutcome, Vec<Vec<f32>>)) {
    assert_near(a.loss, b.loss, 1e-6);
    assert_near(a.objective, b.objective, 1e-6);
    assert_near(a.retention.unwrap(), b.retention.unwrap(), 1e-6);
    let difference = relative_difference(&a_gradients, &b_gradients);
    assert!(difference < 1e-6, "gradients differ by {difference:.1e}");
}

#[test]
fn a_sequence_does_not_see_what_it_is_packed_with() {
    for config in [llama(HIDDEN, VOCABULARY), gemma2(HIDDEN, VOCABULARY)] {
        let policy = model(&config, 1);
        let rows = rows(6, LENGTH, VOCABULARY, 3);
        let layout = Layout { sharing: PromptSharing::Shared, pad_token: None };
        let hidden = |pairs: &[&EncodedRow]| {
            let mut batch = PackedBatch::default();
            let spans: Vec<_> = pairs.iter().map(|row| batch.push_pair(&row.target, &layout)).collect();
            let hidden = policy.forward(&batch, Keep::Nothing).unwrap().hidden_ND;
            (spans, ops::read(&hidden).unwrap().to_vec())
        };
        let (spans, packed) = hidden(&borrowed(&rows));
        for (row, span) in rows.iter().zip(spans) {
            let (_, alone) = hidden(&[row]);
            let band = &packed[span.chosen.prompt.start * HIDDEN..span.rejected.response.end * HIDDEN];
            assert!(band.iter().zip(&alone).all(|(a, b)| a.to_bits() == b.to_bits()), "row {}", row.id);
        }
    }
}

#[test]
fn a_batch_is_the_sum_of_its_micro_batches() {
    let mut setting = setting();
    let rows = borrowed(&setting.rows);
    let whole = setting.run(&rows, &setting.settings());
    for micro_batch_size in [1, 4] {
        let settings = StepSettings { micro_batch_size, ..setting.settings() };
        let parts = setting.run(&rows, &settings);
        assert_eq!(parts.0, whole.0, "the values do not even differ in a bit");
        assert_same_batch(parts, setting.run(&rows, &setting.settings()));
    }

    // Six batches of one row, each divided by its own single row, are six times the batch's mean.
    setting.config.train.micro_batch_size = 1;
    setting.policy.zero_gradients().unwrap();
    let losses: Vec<f64> = rows_of(&setting)
        .iter()
        .map(|row| evaluate_batch(&setting.policy, &[row], &setting.reference, &setting.settings(), Gradients::Both).unwrap().loss)
        .collect();
    assert_near(losses.iter().sum::<f64>() / 6.0, whole.0.loss, 1e-12);
    let mean: Vec<Vec<f32>> = gradients(&setting.policy).iter().map(|values| values.iter().map(|value| value / 6.0).collect()).collect();
    assert!(relative_difference(&mean, &whole.1) < 1e-6);
}

fn rows_of(setting: &Setting) -> Vec<&EncodedRow> {
    borrowed(&setting.rows)
}

#[test]
fn the_order_of_rows_does_not_matter() {
    let setting = setting();
    let rows = borrowed(&setting.rows);
    let whole = setting.run(&rows, &setting.settings());
    let mixed: Vec<&EncodedRow> = [3, 5, 0, 1, 4, 2].iter().map(|&index| rows[index]).collect();
    let outcome = setting.run(&mixed, &setting.settings());
    assert_eq!(outcome.0.rows[0], whole.0.rows[3]);
    assert_same_batch(outcome, whole);
}

#[test]
fn sharing_the_prompt_changes_nothing() {
    let setting = setting();
    let rows = borrowed(&setting.rows);
    let separate = StepSettings { target_sharing: PromptSharing::Separate, ..setting.settings() };
    let (shared, separate) = (setting.run(&rows, &setting.settings()), setting.run(&rows, &separate));
    assert!(separate.0.n_tokens_computed > shared.0.n_tokens_computed);
    assert_eq!(shared.0.rows, separate.0.rows, "the values do not even differ in a bit");
    assert_same_batch(shared, separate);
}

#[test]
fn computing_a_shared_dominant_pair_once_changes_nothing() {
    let mut setting = setting();
    for kind in [RetentionKind::Hidden, RetentionKind::Kl] {
        setting.config.retention.kind = kind;
        setting.reference = scores(&model(&llama(HIDDEN, VOCABULARY), 2), &setting.rows, &setting.config);
        let ungrouped = setting.run(&borrowed(&setting.rows), &setting.settings());
        setting.config.train.group_by_dominant = true;
        for micro_batch_size in [1, 2, 6] {
            setting.config.train.micro_batch_size = micro_batch_size;
            let grouped = setting.run(&borrowed(&setting.rows), &setting.settings());
            assert!(grouped.0.n_tokens_computed < ungrouped.0.n_tokens_computed);
            assert_eq!(grouped.0.rows, ungrouped.0.rows);
            assert_same_batch(grouped, ungrouped.clone());
        }
        setting.config.train.group_by_dominant = false;
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    for kind in [RetentionKind::Hidden, RetentionKind::Kl] {
        let mut config = RunConfig::default();
        config.retention.kind = kind;
        config.train.micro_batch_size = 6;
        let rows = rows(6, LENGTH, VOCABULARY, 3);
        let with_threads = |n_threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            pool.install(|| {
                let (policy, reference) = (model(&llama(HIDDEN, VOCABULARY), 1), model(&llama(HIDDEN, VOCABULARY), 2));
                let reference = scores(&reference, &rows, &config);
                let outcome = evaluate(&policy, &borrowed(&rows), &reference, &StepSettings::new(&config, PAD), Gradients::Both);
                let bits: Vec<u32> = gradients(&policy).iter().flatten().map(|value| value.to_bits()).collect();
                (outcome, bits)
            })
        };
        let one = with_threads(1);
        for n_threads in [2, 3] {
            let many = with_threads(n_threads);
            assert_eq!(one.0, many.0, "{kind:?}, {n_threads} threads");
            assert!(one.1 == many.1, "{kind:?}: gradients differ between 1 and {n_threads} threads");
        }
    }
}

#[test]
fn what_is_kept_for_the_backward_does_not_change_a_bit() {
    let five_layers = |config, more| changed(changed(config, json!({"num_hidden_layers": 5})), more);
    let layer_types = json!(["sliding_attention", "full_attention", "sliding_attention", "full_attention", "sliding_attention"]);
    for family in [
        five_layers(llama(HIDDEN, VOCABULARY), json!({})),
        five_layers(llama(HIDDEN, VOCABULARY), json!({"model_type": "qwen3", "head_dim": HIDDEN / 4})),
        five_layers(gemma2(HIDDEN, VOCABULARY), json!({"layer_types": layer_types})),
    ] {
        let (policy, reference) = (model(&family, 1), model(&family, 2));
        let rows = rows(2, LENGTH, VOCABULARY, 3);
        let config = RunConfig::default();
        let reference = scores(&reference, &rows, &config);
        let run = |memory: StepMemory| {
            let settings = StepSettings { memory, ..StepSettings::new(&config, PAD) };
            let outcome = evaluate(&policy, &borrowed(&rows), &reference, &settings, Gradients::Both);
            let bits: Vec<u32> = gradients(&policy).iter().flatten().map(|value| value.to_bits()).collect();
            (outcome, bits)
        };
        let everything = run(StepMemory::default());
        for every in [1, 2, 3, 5, 9] {
            let keep = Keep::BlockInputs { every: NonZeroUsize::new(every).unwrap() };
            for kept_logits in [0, usize::MAX] {
                let again = run(StepMemory { keep, kept_logits });
                assert_eq!(everything.0, again.0);
                assert!(everything.1 == again.1, "{}: every {every} blocks, {kept_logits} logits", family["model_type"]);
            }
        }
    }
}
