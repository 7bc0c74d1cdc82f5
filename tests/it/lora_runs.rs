//! Runs that train an adapter, through the real command line: what they write, that they resume exactly, what is made of them afterwards, and what is refused.

use crate::train::{Sandbox, assert_same_run, contents, metrics, stderr};
use mpo::model::weights::Checkpoint;
use serde_json::Value;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

const LORA: [&str; 3] = ["adapter.kind=lora", "adapter.rank=4", "optimizer.lr=5e-3"];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&LORA, more].concat()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))).unwrap()
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("`{key}` of {value}"))
}

#[test]
fn both_adapter_states_run_the_smoke_recipe() {
    let work = Sandbox::new();
    for (out, more) in [("full", &[][..]), ("lora", &["--set", "adapter.kind=lora", "--set", "optimizer.lr=5e-3"])] {
        let out = format!("output.dir={out}");
        let output = work.mpo(&[&["train", "--config", "smoke.toml", "--set", &out][..], more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
    }
    for run in ["full", "lora"] {
        let summary = json(&work.path(run).join("summary.json"));
        let loss = |when: &str| number(&summary[when]["train"], "loss");
        assert!(loss("after") < 0.8 * loss("before"), "{run}: {} -> {}", loss("before"), loss("after"));
    }
    assert_eq!(metrics(&work.path("full"))[0]["loss"], metrics(&work.path("lora"))[0]["loss"], "a new adapter begins as its base");
}

#[test]
fn a_run_leaves_an_adapter_in_pefts_format() {
    let work = Sandbox::new();
    let output = work.train("run", &with(&["adapter.targets=[\"q_proj\", \"down_proj\"]"]));
    let run = work.path("run");
    assert!(stderr(&output).contains("(frozen) and") && stderr(&output).contains("Adapter  "), "{}", stderr(&output));
    let names: Vec<_> = contents(&run.join("final")).into_keys().collect();
    assert!(names.contains(&"tokenizer.json".into()) && names.contains(&"tokenizer_config.json".into()), "{names:?}");
    assert!(!names.contains(&"config.json".into()) && !names.contains(&"model.safetensors".into()), "{names:?}");
    let config = json(&run.join("final/adapter_config.json"));
    assert_eq!((&config["peft_type"], &config["r"], &config["lora_alpha"]), (&"LORA".into(), &4.into(), &8.into()));
    assert_eq!(config["base_model_name_or_path"], "builtin:tiny");
    assert_eq!(json(&run.join("final/mpo.json"))["base_weights_sha256"].as_str().unwrap().len(), 64);
    let tensors = Checkpoint::open_file(&run.join("final"), "adapter_model.safetensors").unwrap();
    assert!(tensors.contains("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"));

    let checkpoint = run.join("checkpoint-000012");
    let sizes = |dir: &Path| contents(dir).values().map(Vec::len).sum::<usize>();
    let trained = tensors.n_parameters();
    let state = sizes(&checkpoint.join("trainer/master")) + sizes(&checkpoint.join("trainer/moments"));
    assert!((12 * trained..12 * trained + 20_000).contains(&state), "adapter and moments only: {state} bytes for {trained} parameters");
    assert_eq!(contents(&checkpoint)["adapter_model.safetensors"], contents(&run.join("final"))["adapter_model.safetensors"]);
}

#[test]
fn killed_at_any_moment_an_adapters_run_ends_as_if_never_stopped() {
    let work = Sandbox::new();
    let sets = with(&["adapter.dropout=0.2"]);
    work.train("whole", &sets);
    let run = work.path("killed");
    let overrides: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    for (attempt, n_lines) in [0, 3, 5, 9].into_iter().enumerate() {
        let threads = format!("hardware.threads={}", 1 + attempt % 3);
        let first = [&["train", "--config", "run.toml", "--set", "output.dir=killed", "--set", &threads][..], &overrides].concat();
        let again = ["train", "--resume", "killed", "--set", &threads];
        let arguments = if run.join("config.toml").exists() { &again[..] } else { &first[..] };
        let mut child = work.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let (started, path) = (Instant::now(), run.join("metrics.jsonl"));
        let lines = || std::fs::read_to_string(&path).map_or(0, |text| text.matches('\n').count());
        while lines() <= n_lines && child.try_wait().unwrap().is_none() {
            assert!(started.elapsed() < Duration::from_secs(120));
            std::thread::sleep(Duration::from_micros(200));
        }
        // Already gone where it was faster than we looked.
        let _ = child.kill();
        child.wait().unwrap();
    }
    let output = work.mpo(&["train", "--resume", "killed"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_same_run(&work.path("whole"), &run);
}

#[test]
fn activation_checkpointing_changes_no_bit_of_an_adapter() {
    let work = Sandbox::new();
    for setting in ["off", "on", "2"] {
        work.train(setting, &with(&["adapter.dropout=0.1", &format!("train.activation_checkpointing={setting}")]));
    }
    assert_same_run(&work.path("off"), &work.path("on"));
    assert_same_run(&work.path("off"), &work.path("2"));
}

#[test]
fn a_run_starts_from_an_adapter_and_goes_on_without_it() {
    let work = Sandbox::new();
    work.train("first", &with(&["train.max_steps=6"]));
    let from = ["adapter.kind=lora", "adapter.path=first/final", "optimizer.lr=5e-3"];
    work.train("whole", &from);
    let config = json(&work.path("whole/final/adapter_config.json"));
    assert_eq!((&config["r"], &config["lora_alpha"]), (&4.into(), &8.into()), "its shape is the first adapter's");
    let first = |run: &str, key: &str| number(&metrics(&work.path(run))[0], key);
    assert_eq!(first("whole", "retention"), 0.0, "the reference is the base with that adapter");
    assert_ne!(first("whole", "reward_gap_reference"), first("first", "reward_gap_reference"), "and not the base alone");

    work.train("short", &[&from[..], &["train.max_steps=4"]].concat());
    std::fs::rename(work.path("first"), work.path("moved")).unwrap();
    std::fs::remove_dir_all(work.path("cache/reference")).unwrap();
    let output = work.mpo(&["train", "--resume", "short", "--set", "train.max_steps=12"]);
    assert!(output.status.success(), "{}", stderr(&output));
    // Scores that are lost are made again with the adapter, wherever it is now.
    std::fs::remove_dir_all(work.path("short/reference")).unwrap();
    let output = work.mpo(&["train", "--resume", "short", "--set", "train.max_steps=13", "--set", "adapter.path=moved/final"]);
    assert!(output.status.success() && stderr(&output).contains("scoring the reference again"), "{}", stderr(&output));
    assert!(number(&metrics(&work.path("short"))[12], "reward_gap_reference").is_finite());
}

#[test]
fn gaps_and_merge_agree_on_what_an_adapter_says() {
    let work = Sandbox::new();
    work.train("run", &with(&[]));
    let run = |arguments: &[&str]| {
        let output = work.mpo(arguments);
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let said = run(&[
        "merge",
        "--model",
        "builtin:tiny",
        "--adapter",
        "run/final",
        "--out",
        "merged",
        "--dtype",
        "f32",
        "--verify",
        "builtin:tiny",
    ]);
    let drift: f64 = said.split("answers: ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(drift > 0.0 && drift < 1e-3, "{said}");
    let names: Vec<_> = contents(&work.path("merged")).into_keys().collect();
    assert!(names.contains(&"config.json".into()) && names.contains(&"model.safetensors".into()), "{names:?}");

    let data = ["--data", "builtin:tiny"];
    let adapted = run(&[&["gaps", "--model", "builtin:tiny", "--adapter", "run/final"][..], &data].concat());
    let merged = run(&[&["gaps", "--model", "merged"][..], &data].concat());
    let base = run(&[&["gaps", "--model", "builtin:tiny"][..], &data].concat());
    assert_ne!(adapted, base);
    let cells = |table: &str| table.split_whitespace().filter_map(|cell| cell.parse::<f64>().ok()).collect::<Vec<_>>();
    let (adapted, merged) = (cells(&adapted), cells(&merged));
    assert!(adapted.len() > 20 && adapted.iter().zip(&merged).all(|(a, b)| (a - b).abs() < 2e-3), "{adapted:?} {merged:?}");
    // The command that the summary proposes.
    let next = json(&work.path("run/summary.json"))["next"].as_str().unwrap().to_owned();
    assert!(next.contains("--adapter") && !next.contains("--model"), "{next}");
    run(&next.split(' ').skip(1).collect::<Vec<_>>());

    let error = work.fails(&["merge", "--model", "builtin:tiny", "--adapter", "run/final", "--out", "merged"]);
    assert!(error.contains("exists already"), "{error}");
}

#[test]
fn a_plan_counts_an_adapter_and_the_log_what_the_plan_promised() {
    let work = Sandbox::new();
    let sets: Vec<String> = with(&["adapter.dropout=0.1"]).iter().flat_map(|set| ["--set".to_owned(), (*set).to_owned()]).collect();
    let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
    let plan = |sets: &[&str]| -> Value {
        let output = work.mpo(&[&["plan", "--json", "--config", "run.toml"][..], sets].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let (full, lora) = (plan(&[]), plan(&sets));
    let n = number(&lora, "n_trained");
    assert!(n < 0.1 * number(&full, "n_trained"));
    let memory = |plan: &Value, kind: &str| number(&plan["memory"], kind);
    assert_eq!((memory(&lora, "gradients"), memory(&lora, "moments")), (4.0 * n, 8.0 * n));
    assert_eq!(memory(&lora, "weights"), memory(&full, "weights") + 4.0 * n);
    let flops = |plan: &Value| plan["mean_step"]["flops"].as_object().unwrap().values().map(|v| v.as_f64().unwrap()).sum::<f64>();
    assert!(flops(&lora) < 0.85 * flops(&full));

    work.train("out", &with(&["adapter.dropout=0.1"]));
    let counted: f64 = metrics(&work.path("out")).iter().map(|line| number(line, "flops_per_second") * number(line, "seconds")).sum();
    assert!((counted / (12.0 * flops(&lora)) - 1.0).abs() < 1e-9, "{counted} and {}", 12.0 * flops(&lora));
    let trained = Checkpoint::open_file(&work.path("out/final"), "adapter_model.safetensors").unwrap().n_parameters();
    assert_eq!(trained as f64, n);
}

#[test]
fn what_is_wrong_with_an_adapter_is_said_before_anything_is_trained() {
    let work = Sandbox::new();
    let refused = |sets: &[&str]| {
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        work.fails(&[&["train", "--config", "run.toml", "--set", "output.dir=none"][..], &sets].concat())
    };
    let error = refused(&["adapter.kind=lora", "adapter.targets=[\"q_proj\", \"c_attn\"]"]);
    assert!(error.contains("`c_attn`") && ["q_proj", "o_proj", "down_proj"].iter().all(|name| error.contains(name)), "{error}");
    let error = refused(&["adapter.kind=lora", "adapter.rank=0"]);
    assert!(error.contains("`adapter.rank` is 0: it must be at least 1") && !error.contains("alpha"), "{error}");
    assert!(refused(&["adapter.rank=4"]).contains("`adapter.rank` has no effect: `adapter.kind` is \"none\""));
    assert!(refused(&["adapter.kind=lora", "adapter.layers=0-99"]).contains("`adapter.layers` ends at 99, and the model's layers at"));
    assert!(refused(&["adapter.kind=lora", "adapter.dropout=1.0"]).contains("below 1"));
    assert!(refused(&["adapter.kind=lora", "adapter.path=nowhere"]).contains("not the folder of an adapter"));

    // Another base: a full run's model, whose weights moved.
    work.train("full", &["train.max_steps=3"]);
    work.train("lora", &with(&["train.max_steps=3"]));
    let error = refused(&["model.path=full/final", "adapter.kind=lora", "adapter.path=lora/final"]);
    assert!(error.contains("trained beside other weights") && error.contains("its base is `builtin:tiny`"), "{error}");
    let error = work.fails(&["train", "--resume", "lora", "--set", "train.max_steps=5", "--set", "model.path=full/final"]);
    assert!(error.contains("trained beside other weights"), "{error}");
    let error = work.fails(&["gaps", "--model", "full/final", "--adapter", "lora/final", "--data", "builtin:tiny"]);
    assert!(error.contains("trained beside other weights"), "{error}");
    let error = work.fails(&["merge", "--model", "full/final", "--adapter", "lora/final", "--out", "none"]);
    assert!(error.contains("trained beside other weights") && !work.path("none").exists(), "{error}");
    let error = refused(&["model.path=lora/final"]);
    assert!(error.contains("holds a LoRA adapter, not a model: name its base model"), "{error}");
}
