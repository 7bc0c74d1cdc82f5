//! `mpo train` through its real command line: what a run writes, what it refuses, and that the number of threads changes nothing.

use mpo::train::metrics::is_timing;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Every step counts, something is saved and measured often, and a step takes milliseconds: the demonstration on a small scale.
const CONFIG: &str = r#"
[model]
path = "builtin:tiny"
[data]
path = "builtin:tiny"
[objective]
kind = "mpo"
[train]
max_steps = 12
batch_size = 2
micro_batch_size = 2
seed = 5
[optimizer]
lr = 5e-4
weight_decay = 0.01
[schedule]
kind = "cosine"
warmup_steps = 2
[eval]
fraction = 0.25
every_steps = 5
[checkpoint]
every_steps = 2
keep = 2
[hardware]
device = "cpu"
threads = 2
"#;

/// A folder for one test: configuration, cache and runs.
pub(crate) struct Sandbox {
    dir: tempfile::TempDir,
}

impl Sandbox {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("run.toml"), CONFIG).unwrap();
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `mpo` with these arguments, in this folder, cut off from the user's own caches and from the network.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mpo"));
        command.args(arguments).current_dir(self.dir.path());
        command.env("MPO_CACHE", self.path("cache")).env("HF_HOME", self.path("hf")).env("HF_HUB_OFFLINE", "1").env_remove("HF_TOKEN");
        command
    }

    pub fn mpo(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Trains into `out` with overrides; panics unless it succeeds.
    pub fn train(&self, out: &str, overrides: &[&str]) -> Output {
        let out = format!("output.dir={out}");
        let overrides: Vec<&str> = overrides.iter().flat_map(|set| ["--set", set]).collect();
        let output = self.mpo(&[&["train", "--config", "run.toml", "--set", &out][..], &overrides].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        output
    }

    /// The error of a command that must fail.
    pub fn fails(&self, arguments: &[&str]) -> String {
        let output = self.mpo(arguments);
        assert!(!output.status.success(), "should have failed: {arguments:?}\n{}", stderr(&output));
        stderr(&output)
    }
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The lines of `metrics.jsonl`.
pub(crate) fn metrics(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The lines without what depends on the clock, as text: numbers are compared to the last digit.
pub(crate) fn timeless_metrics(run: &Path) -> Vec<String> {
    let timeless = |mut line: Value| {
        let timed = line.as_object().unwrap().keys().filter(|key| is_timing(key)).cloned().collect::<Vec<_>>();
        // A line that is no step's has its seconds only.
        assert!(timed.len() > 8 || line["kind"].is_string(), "{timed:?}");
        timed.iter().for_each(|key| drop(line.as_object_mut().unwrap().remove(key).unwrap()));
        line.to_string()
    };
    metrics(run).into_iter().map(timeless).collect()
}

/// Every file under `dir` by its relative path, but for those that name the run's folder or its threads.
pub(crate) fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                folders.push(path);
            } else if !["trainer/config.toml", "trainer/manifest.json"].contains(&name.as_str()) {
                files.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

/// Panics unless two runs left the same weights, moments, state and metrics, byte for byte.
pub(crate) fn assert_same_run(one: &Path, other: &Path) {
    assert_eq!(timeless_metrics(one), timeless_metrics(other));
    for folder in ["final", "checkpoint-000012"] {
        let (one, other) = (contents(&one.join(folder)), contents(&other.join(folder)));
        assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
        for (name, bytes) in &one {
            assert!(bytes == &other[name], "{folder}/{name} differs");
        }
    }
}

fn number(line: &Value, key: &str) -> f64 {
    line[key].as_f64().unwrap_or_else(|| panic!("`{key}` of {line}"))
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_run_writes_what_it_promises() {
    let work = Sandbox::new();
    let output = work.train("out", &[]);
    let run = work.path("out");
    assert_eq!(
        names(&run),
        ["checkpoint-000010", "checkpoint-000012", "config.toml", "final", "metrics.jsonl", "reference", "summary.json"]
    );

    let lines = metrics(&run);
    assert_eq!(lines.iter().map(|line| number(line, "step")).collect::<Vec<_>>(), (1..=12).map(f64::from).collect::<Vec<_>>());
    let keys = "step epoch loss objective retention grad_norm lr reward_gap_target reward_gap_reference rewards/accuracies tokens tokens_computed \
                seconds tokens_per_second peak_rss_bytes";
    for line in &lines {
        keys.split_whitespace().for_each(|key| assert!(number(line, key).is_finite()));
        assert!((number(line, "loss") - number(line, "objective") - number(line, "retention")).abs() < 1e-12);
        assert!(number(line, "tokens_computed") <= number(line, "tokens"));
        assert!(line.as_object().unwrap().keys().any(|key| key.starts_with("reward_gap_target/")));
    }
    // The policy is the reference until the first update, which has a learning rate of 0 here.
    assert_eq!((number(&lines[0], "retention"), number(&lines[1], "retention")), (0.0, 0.0));
    assert!(number(&lines[2], "retention") > 0.0);
    assert_eq!([0, 1, 2].map(|i| number(&lines[i], "lr")), [0.0, 2.5e-4, 5e-4]);
    let evaluated: Vec<usize> = (0..12).filter(|&i| lines[i].get("eval_loss").is_some()).collect();
    assert_eq!(evaluated, [0, 5, 10]);

    let summary: Value = serde_json::from_slice(&std::fs::read(run.join("summary.json")).unwrap()).unwrap();
    assert_eq!(summary["steps"], 12);
    assert!(number(&summary["after"]["train"], "loss") < number(&summary["before"]["train"], "loss"), "{summary:#}");
    assert!(number(&summary["after"]["held_out"], "loss").is_finite());
    let said = stderr(&output);
    for word in [
        "before",
        "after",
        "held-out rows",
        "reward gap sw",
        "reward gap en (dominant)",
        "tokens/s",
        "mpo gaps --config",
        "nothing about safety",
    ] {
        assert!(said.contains(word), "`{word}` in:\n{said}");
    }
}

#[test]
fn one_two_and_three_threads_agree_bit_for_bit() {
    let work = Sandbox::new();
    for threads in ["1", "2", "3"] {
        work.train(threads, &[&format!("hardware.threads={threads}")]);
    }
    assert_same_run(&work.path("1"), &work.path("2"));
    assert_same_run(&work.path("1"), &work.path("3"));
}

#[test]
fn the_resolved_configuration_runs_again_with_the_same_result() {
    let work = Sandbox::new();
    work.train("one", &[]);
    let output = work.mpo(&["train", "--config", "one/config.toml", "--set", "output.dir=two"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_same_run(&work.path("one"), &work.path("two"));
}

#[test]
fn a_dry_run_shows_the_first_row_and_writes_nothing() {
    let work = Sandbox::new();
    let output = work.mpo(&["train", "--config", "run.toml", "--set", "output.dir=out", "--dry-run"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.contains("⟦") && shown.contains("of them end the turn") && shown.contains("Steps      12"), "{shown}");
    assert!(!work.path("out").exists());
}

#[test]
fn a_folder_that_holds_something_is_refused() {
    let work = Sandbox::new();
    std::fs::create_dir(work.path("out")).unwrap();
    std::fs::write(work.path("out/mine.txt"), "precious").unwrap();
    let error = work.fails(&["train", "--config", "run.toml", "--set", "output.dir=out"]);
    assert!(error.contains("exists and is not empty"), "{error}");
    assert_eq!(names(&work.path("out")), ["mine.txt"]);
    let error = work.fails(&["train", "--config", "run.toml", "--set", "output.dir=out/mine.txt"]);
    assert!(error.contains("is a file, and a run needs a folder"), "{error}");
    let error = work.fails(&["train", "--resume", "nowhere"]);
    assert!(error.contains("nowhere` does not exist"), "{error}");
}

/// The built-in training rows.
pub(crate) fn rows(work: &Sandbox) -> Vec<Value> {
    work.mpo(&["train", "--config", "run.toml", "--set", "output.dir=dry", "--dry-run"]);
    let cached = std::fs::read_dir(work.path("cache/builtin")).unwrap().next().unwrap().unwrap().path();
    let text = std::fs::read_to_string(cached.join("train.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub(crate) fn write_rows(path: &Path, rows: &[Value]) {
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    std::fs::write(path, lines.join("\n")).unwrap();
}

/// Exchanges the answers of the dominant pair: supervision that prefers what it should not.
fn swap_dominant(row: &mut Value) {
    let dominant = row["dominant"].as_object_mut().unwrap();
    let (chosen, rejected) = (dominant["chosen"].take(), dominant["rejected"].take());
    dominant.insert("chosen".into(), rejected);
    dominant.insert("rejected".into(), chosen);
}

#[test]
fn failure_signs_are_said_once_and_stand_in_the_summary() {
    let work = Sandbox::new();
    let mut rows = rows(&work);
    rows.iter_mut().for_each(swap_dominant);
    write_rows(&work.path("swapped.jsonl"), &rows);
    let output = work.train("swapped", &["data.path=swapped.jsonl"]);
    let said = stderr(&output);
    assert!(said.contains("10 of 10 dominant pairs: the reference prefers the unsafe answer"), "{said}");
    let signs = |run: &str| -> Vec<String> {
        let summary: Value = serde_json::from_slice(&std::fs::read(work.path(run).join("summary.json")).unwrap()).unwrap();
        summary["failure_signs"].as_array().unwrap().iter().map(|sign| sign["kind"].as_str().unwrap().to_owned()).collect()
    };
    assert!(signs("swapped").contains(&"bad_supervision".into()) && signs("swapped").contains(&"overshoot".into()));
    assert_eq!(number(&metrics(&work.path("swapped"))[0], "bad_supervision"), 1.0);

    // A learning rate at which nothing happens: every language stagnates, each is named once, and retention has nothing to hold back.
    let output = work.train("still", &["optimizer.lr=1e-9", "train.max_steps=24"]);
    assert_eq!(stderr(&output).matches("sign: sw: 0 % of the gap closed after 25 % of the steps").count(), 1, "{}", stderr(&output));
    assert_eq!(signs("still"), [&["gradient_imbalance"], &["stagnation"; 6][..]].concat());
    assert!(metrics(&work.path("still"))[6].get("gap_closed/sw").is_some());
}

#[test]
fn rows_with_a_small_dominant_gap_are_dropped_and_named() {
    let work = Sandbox::new();
    let mut rows = rows(&work);
    let (ids, half) = (rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>(), rows.len() / 2);
    rows[..half].iter_mut().for_each(swap_dominant);
    write_rows(&work.path("half.jsonl"), &rows);
    let overrides = ["data.path=half.jsonl", "data.min_dominant_gap=0", "eval.path=builtin:tiny/heldout", "train.epochs=1"];
    let output = work.train("run", &overrides);
    let said = stderr(&output);
    assert!(said.contains(&format!("drops {half} of {} rows", rows.len())) && ids[..half].iter().all(|id| said.contains(id)), "{said}");
    let lines = metrics(&work.path("run"));
    assert_eq!(
        (lines.len(), number(&lines[0], "bad_supervision")),
        ((rows.len() - half) / 2, 0.5),
        "the supervision is judged before rows are dropped"
    );
    let error = work.fails(&["train", "--config", "run.toml", "--set", "output.dir=none", "--set", "data.min_dominant_gap=1000"]);
    assert!(error.contains("drops all"), "{error}");
    assert!(!work.path("none").exists(), "what comes to nothing leaves nothing");
    work.train("none", &overrides);
}

#[test]
fn groups_of_a_dominant_pair_are_computed_once() {
    let work = Sandbox::new();
    let sizes = ["train.batch_size=6", "train.max_steps=6"];
    work.train("one", &[&sizes[..], &["train.group_by_dominant=true"]].concat());
    let grouped = metrics(&work.path("one"));
    work.train("two", &sizes);
    let single = metrics(&work.path("two"));
    let computed = |lines: &[Value]| lines.iter().map(|line| number(line, "tokens_computed") / number(line, "tokens")).sum::<f64>() / 6.0;
    assert!(computed(&grouped) < 0.75 * computed(&single), "{} and {}", computed(&grouped), computed(&single));

    let error = work.fails(&[
        "train",
        "--config",
        "run.toml",
        "--set",
        "output.dir=three",
        "--set",
        "train.group_by_dominant=true",
        "--set",
        "train.batch_size=4",
    ]);
    assert!(error.contains("6 rows share one"), "{error}");
    assert!(!work.path("three").exists());
}
