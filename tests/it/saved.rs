//! What an older version saved is read by this one: runs are resumed, an evaluation is reported and judged again, a judge's cache counts.

use crate::train::{Sandbox, stderr};
use std::fs;
use std::path::Path;

/// A copy of the fixture, to be written into.
fn sandbox() -> Sandbox {
    let work = Sandbox::new();
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/saved"), &work.path("."));
    work
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn resume(work: &Sandbox, run: &str) {
    let output = work.mpo(&["train", "--resume", run, "--set", "model.path=model", "--set", "data.path=rows.jsonl"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("step 4"), "it begins behind the checkpoint: {}", stderr(&output));
}

#[test]
fn a_run_of_an_older_version_ends_as_it_would_have_ended() {
    let work = sandbox();
    resume(&work, "full");
    let load = |path: &str| candle_core::safetensors::load(work.path(path), &candle_core::Device::Cpu).unwrap();
    let (ended, whole) = (load("full/final/model.safetensors"), load("whole.safetensors"));
    assert_eq!(ended.len(), whole.len());
    for (name, expected) in whole {
        let values = |tensor: &candle_core::Tensor| {
            tensor.flatten_all().unwrap().to_dtype(candle_core::DType::F32).unwrap().to_vec1::<f32>().unwrap()
        };
        let differs = values(&expected).iter().zip(values(&ended[&name])).any(|(a, b)| (a - b).abs() > 1e-2 * a.abs().max(1e-2));
        assert!(!differs, "{name}: bf16 weights within a rounding, since other processors sum in another order");
    }
    let lines = fs::read_to_string(work.path("full/metrics.jsonl")).unwrap();
    assert_eq!(lines.lines().filter(|line| line.contains("\"step\":") && line.contains("\"loss\":")).count(), 6, "{lines}");
}

#[test]
fn so_does_an_adapters() {
    let work = sandbox();
    resume(&work, "adapter");
    let output = work.mpo(&["merge", "--model", "model", "--adapter", "adapter/final", "--out", "merged"]);
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn an_evaluation_of_an_older_version_is_reported_and_judged_again() {
    let work = sandbox();
    for arguments in [&["eval", "report", "evaluated"][..], &["eval", "judge", "evaluated", "--judge", "keyword"]] {
        let output = work.mpo(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    }
}

/// Nobody listens at the address: all verdicts are those of the cache.
#[test]
fn a_judges_cache_of_an_older_version_counts() {
    let work = sandbox();
    let verdicts = "evaluated/prompts/verdicts-openai-m-http---127.0.0.1-19777-v1-multijail.jsonl";
    let before = fs::read_to_string(work.path(verdicts)).unwrap();
    fs::remove_file(work.path(verdicts)).unwrap();
    let judge = ["eval", "judge", "evaluated", "--judge", "openai:m", "--judge-url", "http://127.0.0.1:19777/v1"];
    let output = work.mpo(&judge);
    assert!(output.status.success(), "{}", stderr(&output));
    let after = fs::read_to_string(work.path(verdicts)).unwrap();
    let labels = |text: &str| {
        let value = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
        text.lines().map(|line| (value(line)["id"].clone(), value(line)["label"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(labels(&after), labels(&before));
}
