//! Frozen scores: equal to the policy's at step 0 to the last bit, kept on disk, repaired when damaged.

use crate::support::*;
use mpo::config::{ComputeDtype, Pooling, Reduction, RetentionKind, RunConfig};
use mpo::data::encode::EncodedRow;
use mpo::reference::{Columns, Folders, FrozenScores, weights_digest};
use mpo::scoring::KeptStates;
use mpo::train::step::{Gradients, StepSettings, evaluate_batch, evaluate_first_batch};
use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};

const VOCABULARY: usize = 300;

fn config(kind: RetentionKind, pooling: Pooling) -> RunConfig {
    let mut config = RunConfig::default();
    (config.retention.kind, config.retention.pooling, config.retention.reduction) = (kind, pooling, Reduction::Sum);
    config
}

fn folders(run: &Path, shared: &Path) -> Folders {
    Folders { run: Some(run.to_owned()), shared: Some(shared.to_owned()) }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .collect();
    entries.sort();
    entries
}

fn states(scores: &FrozenScores, row: &EncodedRow) -> Vec<f32> {
    scores.pair(row.dominant_pair().unwrap()).unwrap().iter().flat_map(|sequence| sequence.states.clone()).collect()
}

#[test]
fn retention_and_its_gradient_are_exactly_zero_at_step_0() {
    let rows = rows(6, 60, VOCABULARY, 3);
    for model_config in [llama(64, VOCABULARY), gemma2(64, VOCABULARY)] {
        let policy = model(&model_config, 1);
        let poolings = [Pooling::Last, Pooling::LastContent, Pooling::LastPrompt, Pooling::Mean, Pooling::MeanPadded];
        let is_windowed = model_config["model_type"] == "gemma2";
        let hidden = poolings.into_iter().filter(|&pooling| !(is_windowed && pooling == Pooling::MeanPadded));
        let mut kinds: Vec<RunConfig> = hidden.map(|pooling| config(RetentionKind::Hidden, pooling)).collect();
        kinds.push(config(RetentionKind::Kl, Pooling::Last));
        for mut config in kinds {
            let scores = scores(&policy, &rows, &config);
            // Scoring packs by tokens and training by rows: the bits must not show it.
            for micro_batch_size in [1, 4] {
                config.train.micro_batch_size = micro_batch_size;
                let settings = StepSettings::new(&config, PAD);
                let outcome = evaluate(&policy, &borrowed(&rows), &scores, &settings, Gradients::RetentionOnly);
                assert_eq!(outcome.retention, Some(0.0), "{:?}", config.retention);
                assert!(outcome.objective > 0.0);
                assert_eq!(norm(&gradients(&policy)), 0.0, "{:?}", config.retention);
            }
        }
    }
}

#[test]
fn scores_are_reused_and_the_run_has_a_copy() {
    let (run, shared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (model, rows) = (model(&llama(64, VOCABULARY), 1), rows(6, 60, VOCABULARY, 3));
    let config = config(RetentionKind::Hidden, Pooling::Last);
    let (first, report) = scores_in(folders(run.path(), shared.path()), &model, &rows, &config);
    // Rows 0, 1 and 4 share a pair; every pair has two sequences.
    assert_eq!((report.n_pairs, report.n_scored), (4, 4));
    assert_eq!((entries(run.path()).len(), entries(shared.path()).len()), (8, 8));

    let second_run = tempfile::tempdir().unwrap();
    let (second, report) = scores_in(folders(second_run.path(), shared.path()), &model, &rows, &config);
    assert_eq!((report.n_pairs, report.n_scored), (4, 0));
    for (a, b) in entries(run.path()).iter().zip(entries(second_run.path())) {
        assert_eq!(fs::read(a).unwrap(), fs::read(b).unwrap());
    }
    // Without the shared cache and without the frozen model.
    let pairs: Vec<_> = rows.iter().filter_map(|row| row.dominant.as_ref()).collect();
    let resumed = FrozenScores::open(second_run.path(), &pairs, KeptStates::of(&config.retention), &ComputeDtype::F32.into()).unwrap();
    for row in &rows {
        for scores in [&second, &resumed] {
            assert_eq!(scores.pair(row.dominant_pair().unwrap()).unwrap(), first.pair(row.dominant_pair().unwrap()).unwrap());
        }
    }
    // Other weights and another pooling share nothing with these.
    let other = scores_in(folders(second_run.path(), shared.path()), &crate::support::model(&llama(64, VOCABULARY), 2), &rows, &config);
    assert_eq!(other.1.n_scored, 4);
    let config = self::config(RetentionKind::Hidden, Pooling::Mean);
    assert_eq!(scores_in(folders(second_run.path(), shared.path()), &model, &rows, &config).1.n_scored, 4);
}

#[test]
fn damaged_entries_are_scored_anew() {
    let (run, shared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (model, rows) = (model(&llama(64, VOCABULARY), 1), rows(6, 60, VOCABULARY, 3));
    let config = config(RetentionKind::Hidden, Pooling::Last);
    let (sound, _) = scores_in(folders(run.path(), shared.path()), &model, &rows, &config);
    let whole: Vec<Vec<u8>> = entries(shared.path()).iter().map(|path| fs::read(path).unwrap()).collect();
    fs::write(&entries(shared.path())[0], &whole[0][..50]).unwrap();
    let mut flipped = whole[3].clone();
    *flipped.last_mut().unwrap() ^= 1;
    fs::write(&entries(shared.path())[3], flipped).unwrap();

    let shared_only = Folders { run: None, shared: Some(shared.path().to_owned()) };
    let (repaired, report) = scores_in(shared_only, &model, &rows, &config);
    assert_eq!(report.damaged.len(), 2, "{report:?}");
    assert!((1..=2).contains(&report.n_scored), "{report:?}");
    for row in &rows {
        assert_eq!(repaired.pair(row.dominant_pair().unwrap()).unwrap(), sound.pair(row.dominant_pair().unwrap()).unwrap());
    }
    for (path, whole) in entries(shared.path()).iter().zip(&whole) {
        assert_eq!(&fs::read(path).unwrap(), whole);
    }

    // A resume without the model names what it lacks.
    let pairs: Vec<_> = rows.iter().filter_map(|row| row.dominant.as_ref()).collect();
    let victim = entries(run.path())[2].clone();
    fs::remove_file(&victim).unwrap();
    let error = FrozenScores::open(run.path(), &pairs, KeptStates::of(&config.retention), &ComputeDtype::F32.into()).unwrap_err();
    assert!(format!("{error:#}").contains(victim.file_name().unwrap().to_str().unwrap()), "{error:#}");
    let error = FrozenScores::open(run.path(), &pairs, KeptStates::Predicting, &ComputeDtype::F32.into()).unwrap_err();
    assert!(format!("{error:#}").contains("another retention"), "{error:#}");
}

#[test]
fn an_unwritable_cache_does_not_stop_a_run() {
    let (run, shared) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // A file where the folder should be: not even root can write into it.
    let not_a_folder = shared.path().join("file");
    fs::write(&not_a_folder, "").unwrap();
    let (model, rows) = (model(&llama(64, VOCABULARY), 1), rows(2, 60, VOCABULARY, 3));
    let config = config(RetentionKind::Hidden, Pooling::Last);
    let (scores, report) = scores_in(folders(run.path(), &not_a_folder), &model, &rows, &config);
    assert!(report.cache_error.unwrap().contains("cannot write"));
    assert!(scores.pair(rows[1].dominant_pair().unwrap()).is_ok());
    assert_eq!(entries(run.path()).len(), 2);
}

#[test]
fn a_wrong_entry_is_caught_at_step_0_and_scored_anew() {
    let run = tempfile::tempdir().unwrap();
    let folders = || Folders { run: Some(run.path().to_owned()), shared: None };
    let (policy, rows) = (model(&llama(64, VOCABULARY), 1), rows(4, 60, VOCABULARY, 3));
    let config = config(RetentionKind::Hidden, Pooling::Last);
    let settings = StepSettings::new(&config, PAD);
    let mut columns = Columns::of_dominant(scores_in(folders(), &policy, &rows, &config).0);
    let sound = evaluate(&policy, &borrowed(&rows), &columns, &settings, Gradients::Both);
    let sound_gradients = gradients(&policy);
    let right = states(columns.dominant().unwrap(), &rows[2]);

    // Sound by its checksum, and yet another model's: row 2's pair is replaced by what a different model makes of it.
    let column = columns.dominant.as_mut().unwrap();
    column.rescore(&model(&llama(64, VOCABULARY), 2), rows[2].dominant_pair().unwrap()).unwrap();
    assert_ne!(states(column, &rows[2]), right);
    policy.zero_gradients().unwrap();
    let first = evaluate_first_batch(&policy, &borrowed(&rows), &mut columns, &settings, Gradients::Both).unwrap();
    assert_eq!(first.rescored, ["2"]);
    assert_eq!(first.outcome, sound);
    assert_eq!(gradients(&policy), sound_gradients, "the failed attempt leaves nothing in the buffers");
    assert_eq!(states(columns.dominant().unwrap(), &rows[2]), right);
    let (again, report) = scores_in(folders(), &policy, &rows, &config);
    assert_eq!((report.n_scored, states(&again, &rows[2])), (0, right), "the repaired entry is on disk");

    policy.zero_gradients().unwrap();
    let first = evaluate_first_batch(&policy, &borrowed(&rows), &mut columns, &settings, Gradients::Both).unwrap();
    assert!(first.rescored.is_empty());
}

#[test]
fn kl_resumes_with_the_frozen_head() {
    let run = tempfile::tempdir().unwrap();
    let config = config(RetentionKind::Kl, Pooling::Last);
    for model_config in [llama(64, VOCABULARY), gemma2(64, VOCABULARY)] {
        let (policy, reference) = (model(&model_config, 1), model(&model_config, 2));
        let rows = rows(3, 60, VOCABULARY, 3);
        let folders = Folders { run: Some(run.path().to_owned()), shared: None };
        let scores = Columns::of_dominant(scores_in(folders, &reference, &rows, &config).0);
        drop(reference);
        let settings = StepSettings::new(&config, PAD);
        let before = evaluate(&policy, &borrowed(&rows), &scores, &settings, Gradients::Both);
        assert!(before.retention.unwrap() > 0.0);
        let pairs: Vec<_> = rows.iter().filter_map(|row| row.dominant.as_ref()).collect();
        let resumed =
            Columns::of_dominant(FrozenScores::open(run.path(), &pairs, KeptStates::Predicting, &ComputeDtype::F32.into()).unwrap());
        assert_eq!(evaluate(&policy, &borrowed(&rows), &resumed, &settings, Gradients::Both), before);
    }
}

#[test]
fn a_reference_of_another_size_is_refused() {
    let (policy, reference) = (model(&llama(64, VOCABULARY), 1), model(&llama(32, VOCABULARY), 1));
    let rows = rows(2, 60, VOCABULARY, 3);
    let config = config(RetentionKind::Hidden, Pooling::Last);
    let settings = StepSettings::new(&config, PAD);
    let scores = scores(&reference, &rows, &config);
    let error = evaluate_batch(&policy, &borrowed(&rows), &scores, &settings, Gradients::None).unwrap_err();
    assert!(format!("{error:#}").contains("64") && format!("{error:#}").contains("32"), "{error:#}");
}

#[test]
fn the_digest_of_weights_sees_every_weight_and_not_the_threads() {
    let (a, b) = (model(&llama(64, VOCABULARY), 1), model(&llama(64, VOCABULARY), 1));
    let digest = weights_digest(&a).unwrap();
    let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert_eq!(one_thread.install(|| weights_digest(&b)).unwrap(), digest);
    for parameter in b.parameters() {
        let last_bit = |values: &mut [f32]| values[0] = f32::from_bits(values[0].to_bits() ^ 1);
        mpo::ops::update(&parameter.value, last_bit).unwrap();
        assert_ne!(weights_digest(&b).unwrap(), digest, "{}", parameter.name);
        mpo::ops::update(&parameter.value, last_bit).unwrap();
    }
    assert_eq!(weights_digest(&b).unwrap(), digest);
    let mut other_rope = llama(64, VOCABULARY);
    other_rope["rope_theta"] = serde_json::json!(500000.0);
    assert_ne!(weights_digest(&model(&other_rope, 1)).unwrap(), digest);
}

#[test]
fn padding_beyond_a_sliding_window_is_refused() {
    let policy = model(&gemma2(64, VOCABULARY), 1);
    let config = config(RetentionKind::Hidden, Pooling::MeanPadded);
    let mut row = rows(1, 60, VOCABULARY, 3).remove(0);
    // Windows of 8 tokens: after 9 + 16 tokens, filled up to 32, the last row of padding still sees one.
    row.dominant.as_mut().unwrap().prompt.truncate(9);
    row.dominant.as_mut().unwrap().chosen.tokens = vec![7; 16];
    row.dominant.as_mut().unwrap().rejected.tokens = vec![8; 16];
    let provenance = provenance(&policy, &config);
    FrozenScores::score(&policy, &[row.dominant_pair().unwrap()], provenance.clone(), Folders::default()).unwrap();
    row.dominant.as_mut().unwrap().rejected.tokens.pop();
    let error = FrozenScores::score(&policy, &[row.dominant_pair().unwrap()], provenance, Folders::default()).unwrap_err().to_string();
    assert!(error.contains("mean_padded") && error.contains("8 positions of padding") && error.contains("window of 8"), "{error}");
}

#[test]
fn a_head_that_was_being_written_when_the_run_was_killed_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let policy = model(&llama(64, VOCABULARY), 1);
    let (rows, config) = (rows(2, 40, VOCABULARY, 3), config(RetentionKind::Kl, Pooling::Last));
    let leftover = dir.path().join(format!(".head.{}.tmp", std::process::id()));
    fs::create_dir(&leftover).unwrap();
    fs::write(leftover.join("model.safetensors"), "half").unwrap();
    scores_in(Folders { run: Some(dir.path().to_owned()), shared: None }, &policy, &rows, &config);
    assert!(!leftover.exists());
    let pairs: Vec<_> = rows.iter().filter_map(|row| row.dominant.as_ref()).collect();
    FrozenScores::open(dir.path(), &pairs, KeptStates::of(&config.retention), &ComputeDtype::F32.into()).unwrap().head().unwrap();
}

#[test]
fn scoring_stops_between_batches_and_goes_on_where_it_stopped() {
    let model = model(&llama(32, 48), 3);
    let rows = rows(40, 60, 48, 4);
    let pairs: Vec<_> = rows.iter().filter_map(|row| row.dominant.as_ref()).collect();
    let config = RunConfig::default();
    let run = tempfile::tempdir().unwrap();
    let folders = || Folders { run: Some(run.path().to_owned()), shared: None };
    let is_asked_again = Cell::new(false);
    let stop = || is_asked_again.replace(true);
    let (_, first) = FrozenScores::score_until(&stop, &model, &pairs, provenance(&model, &config), folders()).unwrap();
    assert!(first.was_stopped && first.n_scored > 0 && first.n_scored < first.n_pairs, "{first:?}");
    let (_, second) = FrozenScores::score(&model, &pairs, provenance(&model, &config), folders()).unwrap();
    assert!(!second.was_stopped);
    assert_eq!((first.n_scored + second.n_scored, first.n_pairs), (second.n_pairs, second.n_pairs));
}
