//! `mpo gaps` on the built-in model and data: the table, the lines, and what is said beside them.

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const ARGUMENTS: [&str; 4] = ["--model", "builtin:tiny", "--data", "builtin:tiny"];

fn gaps(cache: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mpo"));
    command.env("MPO_CACHE", cache).arg("gaps").args(arguments);
    command.output().unwrap()
}

#[track_caller]
fn succeed(cache: &Path, arguments: &[&str]) -> (String, String) {
    let output = gaps(cache, arguments);
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{stderr}");
    (stdout, stderr)
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn reward_gap(pair: &Value) -> f64 {
    let per_token = |answer: &Value| answer["logp"].as_f64().unwrap() / answer["tokens"].as_f64().unwrap();
    per_token(&pair["chosen"]) - per_token(&pair["rejected"])
}

#[test]
fn every_row_has_its_line_and_every_language_its_place_in_the_table() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("gaps.jsonl");
    let (table, _) = succeed(folder.path(), &[&ARGUMENTS[..], &["--out", out.to_str().unwrap()]].concat());
    let rows = lines(&out);
    assert_eq!(rows.len(), 84);
    for row in &rows {
        assert_eq!(
            row["reference"],
            serde_json::json!({"dominant": row["dominant"], "target": row["target"]}),
            "the model is its reference"
        );
        for pair in [&row["dominant"], &row["target"]] {
            assert!((reward_gap(pair) - pair["reward_gap"].as_f64().unwrap()).abs() < 1e-12, "{row}");
        }
    }
    let mut languages: Vec<&str> = table.lines().skip(1).map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(languages.remove(0), "en");
    languages.sort_unstable();
    assert_eq!(languages, ["ar", "bn", "ja", "ko", "sw", "zh"]);
    // A table cell is the mean of its lines.
    let of_swahili: Vec<f64> =
        rows.iter().filter(|row| row["target"]["lang"] == "sw").map(|row| row["target"]["reward_gap"].as_f64().unwrap()).collect();
    let mean = of_swahili.iter().sum::<f64>() / of_swahili.len() as f64;
    let line = table.lines().find(|line| line.starts_with("sw")).unwrap();
    assert_eq!(line.split_whitespace().nth(2).unwrap(), format!("{mean:.4}"), "{table}");

    // The scores are cached; the result is the same to the last byte.
    let again = folder.path().join("again.jsonl");
    let second = succeed(folder.path(), &[&ARGUMENTS[..], &["--out", again.to_str().unwrap()]].concat());
    assert_eq!(second.0, table);
    assert_eq!(fs::read(out).unwrap(), fs::read(again).unwrap());
}

#[test]
fn rows_that_training_would_drop_are_measured_whole() {
    let folder = tempfile::tempdir().unwrap();
    let measured = |name: &str, settings: &[&str]| {
        let out = folder.path().join(name);
        let (_, said) = succeed(folder.path(), &[&ARGUMENTS[..], &["--out", out.to_str().unwrap()], settings].concat());
        (lines(&out), said)
    };
    let (whole, _) = measured("whole", &[]);
    let (dropped, said) = measured("dropped", &["--set", "data.max_tokens=8", "--set", "data.on_overlong=drop"]);
    assert_eq!(dropped, whole);
    assert!(said.contains("84 rows do not fit into 8 tokens"), "{said}");
    let (cut, said) = measured("cut", &["--set", "data.max_tokens=40"]);
    assert_eq!(cut.len(), 84);
    assert!(said.contains("84 cut to 40 tokens"), "truncation is never silent: {said}");
}

#[test]
fn another_reference_has_its_own_table() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other");
    fs::create_dir(&other).unwrap();
    for file in fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/data/tiny")).unwrap() {
        let file = file.unwrap().path();
        fs::copy(&file, other.join(file.file_name().unwrap())).unwrap();
    }
    // The last bytes of a weight: another model, and still a sound checkpoint.
    let weights = other.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let n = bytes.len();
    bytes[n - 4000..].fill(0);
    fs::write(&weights, bytes).unwrap();

    let out = folder.path().join("gaps.jsonl");
    let reference = ["--reference", other.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let (tables, _) = succeed(folder.path(), &[&ARGUMENTS[..], &reference].concat());
    let (policy, reference) = tables.split_once("\nreference\n").unwrap();
    assert!(policy.starts_with("policy\n"));
    assert_eq!(policy.lines().count(), 9);
    assert_ne!(policy.lines().nth(2), reference.lines().nth(1));
    let row = &lines(&out)[0];
    assert_ne!(row["reference"]["target"], row["target"]);
    assert_eq!(row["reference"]["target"]["chosen"]["tokens"], row["target"]["chosen"]["tokens"]);
}

#[test]
fn a_failure_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("gaps.jsonl");
    let output = gaps(folder.path(), &["--model", "builtin:tiny", "--data", "nowhere.jsonl", "--out", out.to_str().unwrap()]);
    assert_ne!(output.status.code(), Some(0));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("nowhere.jsonl"), "{said}");
    assert!(output.stdout.is_empty() && !out.exists());
}
