//! Every loss through the command line: it runs the demonstration and improves, goes on exactly, and refuses what it cannot use.

use crate::train::{Sandbox, assert_same_run, metrics, stderr, timeless_metrics};
use mpo::config::ObjectiveKind;
use serde_json::{Value, json};
use std::path::Path;

fn summary(run: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(run.join("summary.json")).unwrap()).unwrap()
}

/// The recipe of the demonstration, shorter.
fn smoke(work: &Sandbox, out: &str, overrides: &[&str]) -> String {
    let out = format!("output.dir={out}");
    // Canaries are not what is looked at here.
    let few = ["canary.limit=1", "canary.max_new_tokens=1"];
    let sets = ["train.max_steps=8", "eval.every_steps=8", "hardware.threads=2", "optimizer.lr=3e-4", &out, few[0], few[1]];
    let sets = sets.iter().chain(overrides).flat_map(|set| ["--set", set]);
    let output = work.mpo(&["train", "--config", "smoke.toml"].into_iter().chain(sets).collect::<Vec<_>>());
    assert!(output.status.success(), "{}", stderr(&output));
    stderr(&output)
}

/// The lines of steps.
fn steps(run: &Path) -> Vec<Value> {
    metrics(run).into_iter().filter(|line| line.get("kind").is_none()).collect()
}

#[test]
fn every_loss_runs_the_demonstration_and_improves() {
    let work = Sandbox::new();
    for kind in ObjectiveKind::ALL {
        let name = kind.name();
        let said = smoke(&work, name, &[&format!("objective.kind={name}")]);
        let summary = summary(&work.path(name));
        let loss = |when: &str| summary[when]["train"]["loss"].as_f64().unwrap();
        assert!(loss("after") < loss("before"), "{name}: {} -> {}", loss("before"), loss("after"));
        assert!(said.contains(&format!("Trained 8 steps of {name} ")), "{said}");
        let lines = steps(&work.path(name));
        let has = |key: &str| lines[3].get(key).is_some_and(Value::is_number);
        assert!(has("logps/chosen") && has("objective") && lines[0].get("eval_loss").is_some(), "{name}: {}", lines[3]);
        assert_eq!(has("rewards/margins") && has("rewards/accuracies") && has("rewards/chosen"), kind != ObjectiveKind::Sft, "{name}");
        assert_eq!(has("logps/rejected") && has("reward_gap_target"), kind != ObjectiveKind::Sft, "{name}");
        assert_eq!(has("kl"), kind == ObjectiveKind::Kto, "{name}");
        assert_eq!(has("overshoot"), kind == ObjectiveKind::Mpo, "{name}");
        assert_eq!(has("reward_gap_reference"), kind == ObjectiveKind::Mpo, "no other loss has the dominant pairs scored: {name}");
        assert_eq!(said.contains("goal"), kind == ObjectiveKind::Mpo, "{said}");
        // Without retention and reference scores there is nothing of the reference in the folder.
        let reads_reference = !["sft", "cpo", "orpo", "simpo"].contains(&name);
        assert_eq!(work.path(name).join("reference").exists(), reads_reference, "{name}");
    }
}

#[test]
fn retention_combines_with_every_loss() {
    let work = Sandbox::new();
    for kind in ObjectiveKind::ALL {
        let name = kind.name();
        smoke(&work, name, &[&format!("objective.kind={name}"), "retention.kind=hidden", "train.max_steps=4"]);
        let lines = steps(&work.path(name));
        let retention = |step: usize| lines[step]["retention"].as_f64().unwrap();
        assert_eq!(retention(0), 0.0, "{name}");
        assert!(retention(3) > 0.0, "{name}");
    }
}

#[test]
fn every_loss_trains_an_adapter() {
    let work = Sandbox::new();
    for kind in ObjectiveKind::ALL {
        let name = kind.name();
        smoke(&work, name, &[&format!("objective.kind={name}"), "adapter.kind=lora", "adapter.rank=8", "optimizer.lr=3e-3"]);
        let summary = summary(&work.path(name));
        let loss = |when: &str| summary[when]["train"]["loss"].as_f64().unwrap();
        assert!(loss("after") < loss("before"), "{name}: {} -> {}", loss("before"), loss("after"));
        assert!(work.path(name).join("final/adapter_model.safetensors").is_file(), "{name}");
    }
}

#[test]
fn other_pairs_than_the_target_ones_train() {
    let work = Sandbox::new();
    let rows: Vec<String> = crate::train::rows(&work).iter().map(|row| row["target"].to_string()).collect();
    std::fs::write(work.path("plain.jsonl"), rows.join("\n")).unwrap();
    // 84 target pairs, which share 14 dominant ones.
    for (name, set, n_rows) in
        [("dominant", "data.sides=dominant", 14), ("both", "data.sides=both", 98), ("plain", "data.path=plain.jsonl", rows.len())]
    {
        smoke(&work, name, &["objective.kind=dpo", set]);
        let summary = summary(&work.path(name));
        assert_eq!(summary["rows"]["train"], n_rows, "{name}");
        let loss = |when: &str| summary[when]["train"]["loss"].as_f64().unwrap();
        assert!(loss("after") < loss("before"), "{name}: {} -> {}", loss("before"), loss("after"));
    }
}

#[test]
fn a_run_that_was_stopped_goes_on_exactly() {
    for kind in ["kto", "dpo"] {
        let work = Sandbox::new();
        let set = format!("objective.kind={kind}");
        work.train("whole", &[&set, "checkpoint.keep=9"]);
        work.train("run", &[&set, "checkpoint.keep=9"]);
        let run = work.path("run");
        for folder in ["final", "checkpoint-000012", "checkpoint-000010", "checkpoint-000008"] {
            std::fs::remove_dir_all(run.join(folder)).unwrap();
        }
        std::fs::remove_file(run.join("summary.json")).unwrap();
        let output = work.mpo(&["train", "--resume", "run"]);
        assert!(output.status.success() && stderr(&output).contains("Going on after step 6"), "{}", stderr(&output));
        assert!(!stderr(&output).contains("scoring the reference again"), "the run kept its scores: {}", stderr(&output));
        assert_same_run(&work.path("whole"), &run);
    }
}

#[test]
fn accumulation_through_the_command_line_changes_nothing_but_the_last_digits() {
    let work = Sandbox::new();
    for kind in ["sft", "cpo", "kto"] {
        let set = format!("objective.kind={kind}");
        let sizes = ["train.batch_size=6", "train.max_steps=4"];
        let losses = |name: &str, size: &str| -> Vec<f64> {
            work.train(name, &[&sizes[..], &[&set, size]].concat());
            metrics(&work.path(name)).iter().map(|line| line["loss"].as_f64().unwrap()).collect()
        };
        let (whole, cut) =
            (losses(&format!("{kind}-6"), "train.micro_batch_size=6"), losses(&format!("{kind}-4"), "train.micro_batch_size=4"));
        for (whole, cut) in whole.iter().zip(&cut) {
            assert!((whole - cut).abs() < 1e-5 * whole.abs(), "{kind}: {whole}, {cut}");
        }
    }
}

/// `prompt`, `completion` and `label` of the demonstration's target pairs.
fn write_labels(work: &Sandbox, path: &Path) {
    let rows = crate::train::rows(work);
    let lines = rows.iter().flat_map(|row| {
        let target = &row["target"];
        [("chosen", true), ("rejected", false)]
            .map(|(answer, label)| json!({"prompt": target["prompt"], "completion": target[answer], "label": label}).to_string())
    });
    std::fs::write(path, lines.collect::<Vec<_>>().join("\n")).unwrap();
}

#[test]
fn a_label_file_is_for_kto() {
    let work = Sandbox::new();
    write_labels(&work, &work.path("labels.jsonl"));
    let sets = ["objective.kind=kto", "data.path=labels.jsonl", "train.batch_size=8", "train.micro_batch_size=3", "optimizer.lr=1e-3"];
    work.train("kto", &sets);
    let lines = metrics(&work.path("kto"));
    assert!(lines.iter().all(|line| line["loss"].as_f64().unwrap().is_finite()));
    let summary = summary(&work.path("kto"));
    let loss = |when: &str| summary[when]["train"]["loss"].as_f64().unwrap();
    assert!(loss("after") < loss("before"));
    for (kind, missing) in [("dpo", "no rejected response"), ("simpo", "no rejected response"), ("sft", "no chosen response")] {
        let sets = ["--set".to_owned(), format!("objective.kind={kind}"), "--set".into(), "data.path=labels.jsonl".into()];
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        let error = work.fails(&[&["train", "--config", "run.toml", "--set", "output.dir=none"][..], &sets].concat());
        assert!(error.contains(missing) && error.contains("is for `kto`") && error.contains(kind), "{error}");
        assert!(!work.path("none").exists());
    }
}

#[test]
fn a_reference_that_nothing_reads_is_refused() {
    let work = Sandbox::new();
    let sets = ["--set", "objective.kind=simpo", "--set", "reference.path=builtin:tiny", "--set", "output.dir=none"];
    let error = work.fails(&[&["train", "--config", "run.toml"][..], &sets].concat());
    assert!(error.contains("`reference.path` has no effect") && error.contains("simpo"), "{error}");
    let sets = [&sets[..], &["--set", "retention.kind=hidden", "--dry-run"]].concat();
    assert!(work.mpo(&[&["train", "--config", "run.toml"][..], &sets].concat()).status.success(), "retention reads it");
}

#[test]
fn another_reference_is_scored_and_kept() {
    let work = Sandbox::new();
    work.train("other", &["train.max_steps=4"]);
    work.train("dpo", &["objective.kind=dpo", "reference.path=./other/final"]);
    let first = &metrics(&work.path("dpo"))[0];
    assert!((first["loss"].as_f64().unwrap() - 2f64.ln()).abs() > 1e-6, "policy and reference differ from the start");
    work.train("again", &["objective.kind=dpo", "reference.path=./other/final"]);
    assert_eq!(timeless_metrics(&work.path("dpo")), timeless_metrics(&work.path("again")), "from the cache");
}

#[test]
fn an_ablation_is_one_table_and_goes_on_where_it_was_stopped() {
    let work = Sandbox::new();
    let arguments = ["ablate", "--config", "smoke.toml", "--out", "three", "--set", "train.max_steps=4", "--set", "eval.every_steps=4"];
    let two = [&arguments[..], &["--objectives", "dpo", "--retention", "none,hidden"]].concat();
    let output = work.mpo(&two);
    assert!(output.status.success(), "{}", stderr(&output));
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.contains("the model as it came") && table.contains("dpo         hidden"), "{table}");
    let lengths: Vec<usize> = table.lines().map(str::len).collect();
    assert!(lengths.iter().all(|length| *length == lengths[0]), "{table}");

    let untouched = std::fs::metadata(work.path("three/dpo-none/summary.json")).unwrap().modified().unwrap();
    let output = work.mpo(&[&arguments[..], &["--objectives", "dpo,sft", "--retention", "none"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("dpo-none`, done before"), "{}", stderr(&output));
    assert_eq!(std::fs::metadata(work.path("three/dpo-none/summary.json")).unwrap().modified().unwrap(), untouched);
    let cells: Value = serde_json::from_slice(&std::fs::read(work.path("three/ablation.json")).unwrap()).unwrap();
    let cells = cells.as_array().unwrap();
    assert_eq!((cells.len(), cells[2]["run"]["objective"].as_str()), (3, Some("sft")));
    for key in ["reward_gap", "positive", "chosen", "dominant_reward_gap", "dominant_chosen"] {
        assert!(cells.iter().all(|cell| cell[key].is_number()), "{key}: {cells:?}");
    }
    let error = work.fails(&[&arguments[..], &["--objectives", "dpo,dbo"]].concat());
    assert!(error.contains("`objective.kind` is `dbo`; expected one of `mpo`, `sft`, `dpo`"), "{error}");
}
