//! A run that is stopped, however rudely, and resumed ends as if it had never been stopped, byte for byte.

use crate::train::{Sandbox, assert_same_run, contents, metrics, stderr, timeless_metrics};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const N_STEPS: usize = 12;
const LONG: Duration = Duration::from_secs(120);

/// When to kill.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// A seeded delay after the start.
    After(Duration),
    /// As soon as a checkpoint is being written.
    InSave,
    /// As soon as a step more was logged.
    AfterLine,
}

/// Numbers that look random and are the same in every run of the tests.
fn scatter(i: u64) -> u64 {
    (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 33
}

fn start(work: &Sandbox, is_first: bool, threads: usize) -> Child {
    let threads = format!("hardware.threads={threads}");
    let arguments = match is_first {
        true => vec!["train", "--config", "run.toml", "--set", "output.dir=killed", "--set", &threads],
        false => vec!["train", "--resume", "killed", "--set", &threads],
    };
    work.command(&arguments).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()
}

fn is_saving(run: &Path) -> bool {
    let Ok(entries) = run.read_dir() else { return false };
    entries.flatten().any(|entry| {
        let name = entry.file_name().into_string().unwrap_or_default();
        name.starts_with(".checkpoint-") && name.ends_with(".partial") && entry.path().join("trainer").is_dir()
    })
}

fn n_lines(run: &Path) -> usize {
    std::fs::read_to_string(run.join("metrics.jsonl")).map_or(0, |text| text.matches('\n').count())
}

/// Waits for the moment and kills; whether the process was still alive.
fn kill_at(child: &mut Child, run: &Path, moment: Moment) -> bool {
    let started = Instant::now();
    let lines_before = n_lines(run);
    loop {
        let is_due = match moment {
            Moment::After(delay) => started.elapsed() >= delay,
            Moment::InSave => is_saving(run),
            Moment::AfterLine => n_lines(run) > lines_before,
        };
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        if is_due {
            // SIGKILL on Unix: nothing of the process gets to run any more.
            child.kill().unwrap();
            child.wait().unwrap();
            return true;
        }
        assert!(started.elapsed() < LONG, "{moment:?} never came");
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn killed_at_random_moments_a_run_ends_as_if_never_stopped() {
    let work = Sandbox::new();
    let begun = Instant::now();
    work.train("whole", &["hardware.threads=1"]);
    let whole_ms = begun.elapsed().as_millis() as u64;
    let (whole, run) = (work.path("whole"), work.path("killed"));

    let (mut n_kills, mut n_in_save, mut attempt) = (0, 0, 0);
    // The last kill may come before a run has its folder: then there is nothing to resume.
    while n_kills < 12 || !run.join("config.toml").exists() {
        let moment = match attempt % 3 {
            0 => Moment::After(Duration::from_millis(scatter(attempt) % (whole_ms / 2))),
            1 => Moment::InSave,
            _ => Moment::AfterLine,
        };
        let mut child = start(&work, !run.join("config.toml").exists(), 1 + attempt as usize % 3);
        attempt += 1;
        if !kill_at(&mut child, &run, moment) {
            // It was done before its time: that one counts for nothing, but must be right.
            assert_same_run(&whole, &run);
            std::fs::remove_dir_all(&run).unwrap();
            continue;
        }
        n_kills += 1;
        n_in_save += usize::from(is_saving(&run));
        // What the killed run has written is whole, and says what the uninterrupted one said.
        if run.join("metrics.jsonl").exists() {
            let written = timeless_metrics(&run);
            assert_eq!(written, timeless_metrics(&whole)[..written.len()]);
        }
    }
    assert!(n_in_save >= 1, "no kill met a checkpoint being written");

    let newest = std::fs::read_dir(&run)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_prefix("checkpoint-")?.parse::<usize>().ok());
    let n_safe = newest.max().unwrap_or(0);
    let before = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let output = work.mpo(&["train", "--resume", "killed"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_same_run(&whole, &run);
    let after = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let kept = |text: &str| text.lines().take(n_safe).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(kept(&before), kept(&after), "the lines up to the checkpoint survive with their timings");
    assert!(!is_saving(&run), "leftovers are cleared away");

    let again = work.mpo(&["train", "--resume", "killed"]);
    assert!(again.status.success() && stderr(&again).contains("is finished"), "{}", stderr(&again));
}

/// The best by an upside-down measure, the highest loss: it is met early in the run, and must outlive what comes later.
#[test]
fn the_best_checkpoint_outlives_later_ones_and_kills() {
    let work = Sandbox::new();
    let config = std::fs::read_to_string(work.path("run.toml")).unwrap();
    let keep_best = "[checkpoint]\nbest = \"eval_loss\"\nbest_is = \"higher\"\n";
    std::fs::write(work.path("run.toml"), config.replace("[checkpoint]\n", keep_best)).unwrap();
    let said = stderr(&work.train("whole", &[]));
    let (whole, run) = (work.path("whole"), work.path("killed"));
    assert_eq!(checkpoints(&whole), ["checkpoint-000005", "checkpoint-000010", "checkpoint-000012"]);
    let losses: Vec<f64> = metrics(&whole).iter().filter_map(|line| line["eval_loss"].as_f64()).collect();
    let summary: Value = serde_json::from_slice(&std::fs::read(whole.join("summary.json")).unwrap()).unwrap();
    assert!(losses[0] > losses[1] && losses[1] > losses[2], "step 0 does not compete: {losses:?}");
    assert_eq!(summary["best"], json!({"metric": "eval_loss", "step": 5, "value": losses[1]}));
    assert_eq!(summary["written"]["best"], whole.join("best").to_str().unwrap());
    assert!(said.contains(&format!("(step 5 of 12, eval_loss {:.4})", losses[1])), "{said}");
    let mut model = contents(&whole.join("checkpoint-000005"));
    model.retain(|name, _| !name.starts_with("trainer/"));
    assert!(model == contents(&whole.join("best")) && model != contents(&whole.join("final")), "it is the model of that step");
    let gaps = work.mpo(&["gaps", "--model", "whole/best", "--data", "builtin:tiny/heldout"]);
    assert!(gaps.status.success(), "{}", stderr(&gaps));

    let mut attempt = 0;
    while !run.join("summary.json").exists() {
        attempt += 1;
        let moment = if attempt % 2 == 0 { Moment::InSave } else { Moment::AfterLine };
        kill_at(&mut start(&work, !run.join("config.toml").exists(), 2), &run, moment);
        assert!(attempt < 200, "the run does not come to its end");
    }
    assert!(attempt > 3, "it was never killed");
    assert_same_run(&whole, &run);
    assert_eq!(checkpoints(&run), checkpoints(&whole));
    for folder in ["best", "checkpoint-000005"] {
        assert!(contents(&whole.join(folder)) == contents(&run.join(folder)), "{folder}");
    }

    // The last step may be the best: then nothing older stays beside the newest.
    let flipped = std::fs::read_to_string(work.path("run.toml")).unwrap().replace("\"higher\"", "\"lower\"");
    std::fs::write(work.path("run.toml"), flipped).unwrap();
    work.train("falling", &[]);
    assert_eq!(checkpoints(&work.path("falling")), ["checkpoint-000010", "checkpoint-000012"]);
    assert!(contents(&work.path("falling/best")) == contents(&work.path("falling/final")));
}

#[test]
fn a_number_that_is_not_measured_is_refused_before_the_first_step() {
    let work = Sandbox::new();
    let overrides = ["--set", "checkpoint.best=eval_rewards/accuracy", "--set", "checkpoint.best_is=higher", "--set", "output.dir=out"];
    let output = work.mpo(&[&["train", "--config", "run.toml"][..], &overrides].concat());
    assert_eq!(output.status.code(), Some(2));
    let said = stderr(&output);
    assert!(said.contains("\"eval_rewards/accuracy\", which is not measured") && said.contains("`eval_rewards/accuracies`"), "{said}");
    assert!(!work.path("out").exists());
}

fn checkpoints(run: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(run).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.filter(|name| name.starts_with("checkpoint-")).collect();
    names.sort();
    names
}

#[test]
fn a_damaged_checkpoint_is_named_and_an_older_one_used() {
    let work = Sandbox::new();
    work.train("whole", &[]);
    work.train("run", &["train.max_steps=12"]);
    let run = work.path("run");
    std::fs::remove_dir_all(run.join("final")).unwrap();
    std::fs::remove_file(run.join("summary.json")).unwrap();
    let moments = run.join("checkpoint-000012/trainer/moments/model.safetensors");
    let mut bytes = std::fs::read(&moments).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&moments, &bytes).unwrap();

    let output = work.mpo(&["train", "--resume", "run"]);
    let said = stderr(&output);
    assert!(
        output.status.success() && said.contains("skipping a damaged checkpoint") && said.contains("moments/model.safetensors"),
        "{said}"
    );
    assert!(said.contains("Going on after step 10"), "{said}");
    assert_same_run(&work.path("whole"), &run);

    std::fs::remove_file(run.join("summary.json")).unwrap();
    for checkpoint in ["checkpoint-000010", "checkpoint-000012"] {
        std::fs::remove_file(run.join(checkpoint).join("trainer/manifest.json")).unwrap();
    }
    let error = work.fails(&["train", "--resume", "run"]);
    assert!(error.contains("no checkpoint") && error.contains("checkpoint-000010") && error.contains("checkpoint-000012"), "{error}");
}

#[test]
fn a_resume_needs_neither_the_model_nor_the_cache() {
    let work = Sandbox::new();
    work.train("whole", &[]);
    work.train("run", &["train.max_steps=4"]);
    let cache = std::fs::read_dir(work.path("cache/builtin")).unwrap().next().unwrap().unwrap().path();
    std::fs::rename(cache.join("train.jsonl"), work.path("train.jsonl")).unwrap();
    std::fs::remove_dir_all(work.path("cache")).unwrap();
    let output = work.mpo(&[
        "train",
        "--resume",
        "run",
        "--set",
        "data.path=train.jsonl",
        "--set",
        "train.max_steps=12",
        "--set",
        "model.path=/nowhere/at-all",
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(metrics(&work.path("run")).len(), N_STEPS);
}

#[test]
fn scores_of_another_reference_are_kept_with_the_run() {
    let work = Sandbox::new();
    // The reference is the trained model of an earlier run.
    work.train("other", &["train.max_steps=4"]);
    work.train("whole", &["reference.path=./other/final"]);
    let retention = |run: &str| metrics(&work.path(run))[0]["retention"].as_f64().unwrap();
    assert!(retention("whole") > 0.0, "policy and reference differ from the start");

    let mut child = work
        .command(&["train", "--config", "run.toml", "--set", "output.dir=killed", "--set", "reference.path=./other/final"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let run = work.path("killed");
    let begun = Instant::now();
    while !run.join("checkpoint-000004").exists() && child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < LONG);
        std::thread::sleep(Duration::from_micros(200));
    }
    // Already gone where it was faster than we looked; then there is nothing to kill, and nothing to go on with.
    let _ = child.kill();
    child.wait().unwrap();
    std::fs::remove_dir_all(work.path("other")).unwrap();
    std::fs::remove_dir_all(work.path("cache/reference")).unwrap();
    let output = work.mpo(&["train", "--resume", "killed"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_same_run(&work.path("whole"), &run);
}

#[test]
fn a_changed_configuration_is_refused_with_the_difference() {
    let work = Sandbox::new();
    work.train("run", &["train.max_steps=3"]);
    let error = work.fails(&["train", "--resume", "run", "--set", "optimizer.lr=1e-3"]);
    assert!(error.contains("`optimizer.lr`") && error.contains("0.0005") && error.contains("0.001"), "{error}");

    let config = work.path("run/config.toml");
    let edited = std::fs::read_to_string(&config).unwrap().replace("weight_decay = 0.01", "weight_decay = 0.5");
    std::fs::write(&config, edited).unwrap();
    let error = work.fails(&["train", "--resume", "run"]);
    assert!(error.contains("`optimizer.weight_decay`"), "an edit of the run's own config.toml is a change too: {error}");

    let error = work.fails(&["train", "--resume", "nowhere"]);
    assert!(error.contains("no run to go on with") && error.contains("nowhere` does not exist"), "{error}");
    std::fs::create_dir(work.path("empty")).unwrap();
    let error = work.fails(&["train", "--resume", "empty"]);
    assert!(error.contains("no `config.toml`"), "{error}");
}

#[test]
fn other_data_under_the_same_name_is_refused() {
    let work = Sandbox::new();
    work.train("first", &["train.max_steps=3"]);
    let cache = std::fs::read_dir(work.path("cache/builtin")).unwrap().next().unwrap().unwrap().path();
    let rows = std::fs::read_to_string(cache.join("train.jsonl")).unwrap();
    std::fs::write(work.path("rows.jsonl"), &rows).unwrap();
    work.train("run", &["data.path=rows.jsonl", "train.max_steps=3"]);
    std::fs::write(work.path("rows.jsonl"), rows.replacen("umbrella", "parasol", 1)).unwrap();
    let error = work.fails(&["train", "--resume", "run", "--set", "train.max_steps=4"]);
    assert!(error.contains("did `") && error.contains("rows.jsonl` change?"), "{error}");
}

/// Sends the signal that Ctrl-C sends.
fn interrupt(child: &Child) {
    // SAFETY: no memory is involved; the process is our own child and has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) }, 0);
}

fn wait_for_line(child: &mut Child, run: &Path) {
    let started = Instant::now();
    while n_lines(run) == 0 {
        assert!(child.try_wait().unwrap().is_none() && started.elapsed() < LONG, "no step was taken");
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn ctrl_c_saves_and_says_how_to_go_on() {
    let work = Sandbox::new();
    work.train("whole", &[]);
    // No checkpoint is due before the last step: the one that appears is Ctrl-C's.
    let arguments = ["train", "--config", "run.toml", "--set", "output.dir=run", "--set", "checkpoint.every_steps=12"];
    let mut child = work.command(&arguments).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_line(&mut child, &work.path("run"));
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("mpo train --resume") && said.contains("checkpoint-0000"), "{said}");
    let n_taken = n_lines(&work.path("run"));
    assert!((1..N_STEPS).contains(&n_taken) && work.path(&format!("run/checkpoint-{n_taken:06}")).is_dir());

    let output = work.mpo(&["train", "--resume", "run"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_same_run(&work.path("whole"), &work.path("run"));
}

#[test]
fn ctrl_c_before_the_first_step_keeps_the_run() {
    let work = Sandbox::new();
    work.train("whole", &[]);
    let mut child = start(&work, true, 2);
    let (run, started) = (work.path("killed"), Instant::now());
    while !run.join("config.toml").exists() {
        assert!(child.try_wait().unwrap().is_none() && started.elapsed() < LONG, "the run never began");
        std::thread::sleep(Duration::from_micros(200));
    }
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("Stopping when what was begun is done") && said.contains("Go on with: mpo train --resume"), "{said}");

    let output = work.mpo(&["train", "--resume", "killed"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_same_run(&work.path("whole"), &run);
}

#[test]
fn a_second_ctrl_c_stops_at_once_and_loses_nothing() {
    let work = Sandbox::new();
    work.train("whole", &[]);
    let mut child = start(&work, true, 2);
    let run = work.path("killed");
    wait_for_line(&mut child, &run);
    interrupt(&child);
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let written = timeless_metrics(&run);
    assert_eq!(written, timeless_metrics(&work.path("whole"))[..written.len()]);
    let output = work.mpo(&["train", "--resume", "killed"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_same_run(&work.path("whole"), &run);
}

#[test]
fn two_processes_do_not_write_into_one_run() {
    let work = Sandbox::new();
    work.train("run", &["train.max_steps=3"]);
    let folder = std::fs::File::open(work.path("run")).unwrap();
    folder.lock().unwrap();
    let error = work.fails(&["train", "--resume", "run", "--set", "train.max_steps=12"]);
    assert!(error.contains("another `mpo` is at work"), "{error}");
    drop(folder);
    let output = work.mpo(&["train", "--resume", "run", "--set", "train.max_steps=12"]);
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn bf16_weights_8_bit_moments_and_updates_in_the_backward_resume_to_the_bit() {
    let in_backward = ["optimizer.clip_norm=0", "optimizer.in_backward=true"];
    for (master, moments, more) in [("kahan", "8bit", &[][..]), ("stochastic", "f32", &in_backward)] {
        let work = Sandbox::new();
        let [master, moments] = [("master", master), ("moments", moments)].map(|(key, value)| format!("optimizer.{key}={value}"));
        let settings = [&["model.dtype=bf16", &master, &moments], more].concat();
        work.train("whole", &settings);
        work.train("cut", &settings);
        // As if it had been killed on its way from step 10 to step 12.
        let cut = work.path("cut");
        ["final", "checkpoint-000012"].iter().for_each(|folder| std::fs::remove_dir_all(cut.join(folder)).unwrap());
        std::fs::remove_file(cut.join("summary.json")).unwrap();
        let output = work.mpo(&["train", "--resume", "cut"]);
        assert!(output.status.success(), "{}", stderr(&output));
        assert_same_run(&work.path("whole"), &cut);
        // And it is nearly the run with exact weights.
        work.train("exact", &[&["model.dtype=bf16"], &more[..more.len() / 2]].concat());
        let last = |run: &str| metrics(&work.path(run)).last().unwrap()["loss"].as_f64().unwrap();
        let (lossy, exact) = (last("cut"), last("exact"));
        assert!((lossy / exact - 1.0).abs() < 0.02, "{master}: a loss of {lossy} instead of {exact}");
    }
}
