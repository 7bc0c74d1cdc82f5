//! What goes wrong around a run: bad input that must be found before anything is written, a disk that is full or read-only, numbers that
//! are not finite.

use crate::train::{Sandbox, metrics, stderr};
use mpo::model::weights::{self, SavedDtype, TensorToSave};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

/// A copy of the built-in model as a folder of its own, to damage.
pub(crate) fn model(work: &Sandbox, name: &str) -> PathBuf {
    let output = work.mpo(&["train", "--config", "run.toml", "--set", "output.dir=dry", "--dry-run"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let cached = std::fs::read_dir(work.path("cache/builtin")).unwrap().next().unwrap().unwrap().path();
    let folder = work.path(name);
    std::fs::create_dir(&folder).unwrap();
    for entry in std::fs::read_dir(cached).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    folder
}

/// The error of a run with these overrides, which must leave no output.
fn refused(work: &Sandbox, overrides: &[&str]) -> String {
    let overrides: Vec<&str> = overrides.iter().flat_map(|set| ["--set", set]).collect();
    let error = work.fails(&[&["train", "--config", "run.toml", "--set", "output.dir=refused"][..], &overrides].concat());
    assert!(!work.path("refused").exists(), "something was written before this was found: {error}");
    error
}

fn assert_says(error: &str, words: &[&str]) {
    words.iter().for_each(|word| assert!(error.contains(word), "`{word}` in:\n{error}"));
}

#[test]
fn bad_input_is_named_and_nothing_is_written() {
    let work = Sandbox::new();
    let rows = std::fs::read_to_string(model(&work, "whole").join("train.jsonl")).unwrap();
    let data = |name: &str, text: &str| {
        std::fs::write(work.path(name), text).unwrap();
        format!("data.path={name}")
    };

    assert_says(&refused(&work, &["data.path=missing.jsonl"]), &["missing.jsonl"]);
    assert_says(&refused(&work, &["model.path=./missing"]), &["missing"]);
    assert_says(&refused(&work, &[&data("empty.jsonl", "")]), &["empty.jsonl"]);
    let third_cut: Vec<&str> = rows.lines().enumerate().map(|(i, line)| if i == 2 { &line[..40] } else { line }).collect();
    assert_says(&refused(&work, &[&data("broken.jsonl", &third_cut.join("\n"))]), &["broken.jsonl:3"]);
    assert_says(&refused(&work, &["optimizer.lr=-1"]), &["optimizer.lr"]);
    assert_says(&refused(&work, &["optimizer.lrr=1"]), &["optimizer.lrr", "optimizer.lr"]);
    assert_says(&refused(&work, &["hardware.device=cuda:0"]), &["CUDA"]);

    std::fs::write(work.path("raising.jinja"), "{{ raise_exception('no system turns here') }}").unwrap();
    assert_says(&refused(&work, &["data.template=raising.jinja"]), &["no system turns here"]);
}

#[test]
fn damaged_models_are_named_and_nothing_is_written() {
    let work = Sandbox::new();
    let cut = model(&work, "cut");
    let weights = std::fs::read(cut.join("model.safetensors")).unwrap();
    std::fs::write(cut.join("model.safetensors"), &weights[..weights.len() / 2]).unwrap();
    assert_says(&refused(&work, &["model.path=./cut"]), &["model.safetensors", "cut short"]);

    let wide = model(&work, "wide");
    let config = std::fs::read_to_string(wide.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["intermediate_size"] = 999.into();
    std::fs::write(wide.join("config.json"), config.to_string()).unwrap();
    assert_says(&refused(&work, &["model.path=./wide"]), &["mlp", "999"]);

    let integers = model(&work, "integers");
    let header_bytes = u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(weights[8..8 + header_bytes].to_vec()).unwrap();
    let renamed = ["\"F32\"", "\"BF16\"", "\"F16\""].iter().fold(header, |header, dtype| match *dtype {
        "\"F32\"" => header.replace(dtype, "\"I32\""),
        _ => header.replace(dtype, "\"I16\""),
    });
    let renamed = format!("{renamed:<header_bytes$}");
    let damaged = [&(renamed.len() as u64).to_le_bytes()[..], renamed.as_bytes(), &weights[8 + header_bytes..]].concat();
    std::fs::write(integers.join("model.safetensors"), damaged).unwrap();
    assert_says(&refused(&work, &["model.path=./integers"]), &["model.safetensors", "f32, bf16 and f16"]);
}

#[test]
fn a_read_only_place_is_a_clear_error() {
    let work = Sandbox::new();
    std::fs::create_dir(work.path("locked")).unwrap();
    std::fs::set_permissions(work.path("locked"), std::fs::Permissions::from_mode(0o555)).unwrap();
    // Permissions do not bind root: a file in the way stands for a place where nothing can be made.
    std::fs::write(work.path("file"), "").unwrap();
    // SAFETY: reads the user id; no memory is involved.
    let is_root = unsafe { libc::geteuid() } == 0;
    let out = if is_root { "file/out" } else { "locked/out" };
    let error = work.fails(&["train", "--config", "run.toml", "--set", &format!("output.dir={out}")]);
    assert_says(&error, &["cannot make the folder", out]);
}

/// No file may grow beyond this in the child: writing more fails as on a full disk, root or not.
pub(crate) fn with_file_limit(command: &mut std::process::Command, n_bytes: u64) {
    let limit = libc::rlimit { rlim_cur: n_bytes, rlim_max: n_bytes };
    let set = move || {
        // SAFETY: called between fork and exec; both calls are async-signal-safe and touch no shared memory. SIGXFSZ would kill the
        // process before the write could fail.
        let failed =
            unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) == libc::SIG_ERR || libc::setrlimit(libc::RLIMIT_FSIZE, &limit) != 0 };
        if failed { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: see `set`.
    unsafe { command.pre_exec(set) };
}

#[test]
fn a_full_disk_leaves_the_last_checkpoint_and_the_run_goes_on_later() {
    let work = Sandbox::new();
    work.train("whole", &[]);
    work.train("run", &["train.max_steps=4"]);
    let arguments = ["train", "--resume", "run", "--set", "train.max_steps=12"];
    let mut command = work.command(&arguments);
    with_file_limit(&mut command, 1_000_000);
    let output = command.output().unwrap();
    let said = stderr(&output);
    assert!(!output.status.success() && said.contains("cannot write") && said.contains(".checkpoint-000006.partial"), "{said}");
    assert!(work.path("run/checkpoint-000004").is_dir() && !work.path("run/checkpoint-000006").exists());
    assert!(!work.path("run/.checkpoint-000006.partial").exists(), "what could not be finished is taken away");

    let output = work.mpo(&arguments);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(metrics(&work.path("run")).len(), 12);
}

#[test]
fn steps_that_are_not_finite_make_no_update_and_stop_the_run() {
    let work = Sandbox::new();
    // The first step ruins the weights; all later losses are not finite.
    let overrides =
        ["optimizer.lr=1e30", "optimizer.clip_norm=0", "schedule.kind=constant", "train.max_skipped_steps=3", "checkpoint.every_steps=1"];
    let overrides: Vec<&str> = overrides.iter().flat_map(|set| ["--set", set]).chain(["--set", "schedule.warmup_steps=3"]).collect();
    let error = work.fails(&[&["train", "--config", "run.toml", "--set", "output.dir=run"][..], &overrides].concat());
    assert_says(&error, &["3 steps in a row", "skipped_rows", "no update", "en-"]);

    let lines = metrics(&work.path("run"));
    let skipped: Vec<bool> = lines.iter().map(|line| line.get("skipped_rows").is_some()).collect();
    assert!(skipped.ends_with(&[false, true, true, true]), "{skipped:?}");
    let n_good = skipped.iter().filter(|skipped| !**skipped).count();
    assert!(work.path(&format!("run/checkpoint-{n_good:06}")).is_dir(), "the last good checkpoint is there");
    assert!(!work.path(&format!("run/checkpoint-{:06}", n_good + 1)).exists(), "and none of a skipped step");
    let last = lines.last().unwrap();
    assert!(last["grad_norm"].is_null() && last["skipped_rows"].as_array().is_some_and(|rows| rows.len() == 2), "{last}");
    // Loader and schedule advanced.
    let epochs: Vec<f64> = lines.iter().map(|line| line["epoch"].as_f64().unwrap()).collect();
    assert!(epochs.windows(2).all(|pair| pair[0] < pair[1]), "{epochs:?}");
}

/// The model with weights that are not numbers in the embeddings of `tokens`, untied so that other tokens do not feel it.
fn poison(folder: &Path, tokens: &[u32]) {
    let config = std::fs::read_to_string(folder.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["tie_word_embeddings"] = false.into();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let source = weights::Checkpoint::open(folder).unwrap();
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = source
        .names()
        .map(|name| {
            let shape = source.shape(name).unwrap().to_vec();
            let mut values = vec![0.0; shape.iter().product()];
            source.read_into(name, &mut values).unwrap();
            (name.to_owned(), shape, values)
        })
        .collect();
    let embeddings = tensors.iter().position(|(name, ..)| name == "model.embed_tokens.weight").unwrap();
    let (_, shape, values) = tensors[embeddings].clone();
    tensors.push(("lm_head.weight".into(), shape.clone(), values));
    for &token in tokens {
        tensors[embeddings].2[token as usize * shape[1]..][..shape[1]].fill(f32::NAN);
    }
    drop(source);
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    let to_save: Vec<_> =
        tensors.iter().map(|(name, shape, values)| TensorToSave { name, shape, values, dtype: SavedDtype::F32 }).collect();
    weights::save(folder, &to_save, u64::MAX).unwrap();
}

#[test]
fn one_bad_row_is_named_skipped_and_survived() {
    let work = Sandbox::new();
    let folder = model(&work, "poisoned");
    // A token of the Bengali row that occurs in no other row, as whole lines, so that every context is covered.
    poison(&folder, &own_tokens(&folder, |id| id == "en-umbrella/bn", "target"));

    work.train(
        "run",
        &[
            "model.path=./poisoned",
            "eval.path=./poisoned/heldout.jsonl",
            "eval.every_steps=50",
            "train.epochs=1",
            "train.batch_size=1",
            "train.micro_batch_size=1",
        ],
    );
    let lines = metrics(&work.path("run"));
    let skipped: Vec<_> = lines.iter().filter_map(|line| line.get("skipped_rows")).collect();
    assert_eq!(skipped, [&serde_json::json!(["en-umbrella/bn"])]);
    assert!(lines.last().unwrap()["loss"].as_f64().unwrap().is_finite());
}

/// Tokens of the chosen answer on `side` of the first row that `is_bad`, which stand in no row that is not.
fn own_tokens(folder: &Path, is_bad: impl Fn(&str) -> bool, side: &str) -> Vec<u32> {
    let tokenizer = tokenizers::Tokenizer::from_file(folder.join("tokenizer.json")).unwrap();
    let tokens_of = |text: &str| tokenizer.encode(text, false).unwrap().get_ids().to_vec();
    let text = std::fs::read_to_string(folder.join("train.jsonl")).unwrap();
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (bad, good): (Vec<&Value>, Vec<&Value>) = rows.iter().partition(|row| is_bad(row["id"].as_str().unwrap()));
    let others: Vec<u32> = good.iter().flat_map(|row| all_tokens(row, &tokens_of)).collect();
    let own: Vec<u32> = tokens_of(bad[0][side]["chosen"].as_str().unwrap()).into_iter().filter(|token| !others.contains(token)).collect();
    assert!(!own.is_empty(), "the row has a token of its own");
    own
}

/// Tokens of every text of a row.
fn all_tokens(row: &Value, tokens_of: &dyn Fn(&str) -> Vec<u32>) -> Vec<u32> {
    let sides = ["dominant", "target"].map(|side| row[side].clone());
    let texts = sides.iter().flat_map(|side| [&side["prompt"][0]["content"], &side["chosen"], &side["rejected"]]);
    texts.flat_map(|text| tokens_of(text.as_str().unwrap())).collect()
}

#[test]
fn rows_that_the_reference_has_no_score_for_are_left_out_and_named() {
    let work = Sandbox::new();
    let folder = model(&work, "poisoned");
    poison(&folder, &own_tokens(&folder, |id| id.starts_with("en-umbrella/"), "dominant"));
    let output = work.train("run", &["model.path=./poisoned", "eval.path=builtin:tiny/heldout", "train.epochs=1"]);
    let said = stderr(&output);
    assert_says(&said, &["6 of 84 rows", "reference scores are not finite", "en-umbrella/bn", "en-umbrella/zh"]);
    let lines = metrics(&work.path("run"));
    assert_eq!(lines.len(), 39);
    assert!(lines.iter().all(|line| line.get("skipped_rows").is_none() && line["loss"].as_f64().unwrap().is_finite()));
    assert_eq!(
        work.mpo(&["train", "--resume", "run", "--set", "train.epochs=2"]).status.code(),
        Some(0),
        "the same rows are left out again"
    );

    // The special tokens, which every prompt has.
    let folder = model(&work, "ruined");
    poison(&folder, &(0..8).collect::<Vec<_>>());
    assert_says(&refused(&work, &["model.path=./ruined"]), &["not finite", "hint: the reference's weights may be damaged"]);
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let work = Sandbox::new();
    assert_says(&refused(&work, &["eval.path=org/name"]), &["eval.path", "org/name", "resolve/main/FILE"]);

    // A tokenizer without a token to pad with is in nobody's way but that of `mean_padded`.
    let folder = model(&work, "padless");
    let path = folder.join("tokenizer_config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    ["pad_token", "eos_token"].iter().for_each(|key| drop(config.as_object_mut().unwrap().remove(*key)));
    std::fs::write(&path, config.to_string()).unwrap();
    let _ = std::fs::remove_file(folder.join("special_tokens_map.json"));
    let padless = ["model.path=./padless", "train.max_steps=3"];
    let padded = ["retention.kind=hidden", "retention.pooling=mean_padded", "train.micro_batch_size=1"];
    assert_says(&refused(&work, &[&padless[..], &padded].concat()), &["mean_padded", "neither a `pad_token` nor an `eos_token`"]);
    work.train("run", &padless);
}
