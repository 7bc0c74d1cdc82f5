//! What a run will need is what it then takes: operations to the last one, memory within a tenth; and the trace of where its time went.

use crate::faults;
use crate::support::{borrowed, llama, model, rows, scores};
use crate::train::{Sandbox, assert_same_run, metrics, stderr};
use mpo::config::{self, ActivationCheckpointing, RunConfig};
use mpo::model::decoder::Keep;
use mpo::plan::StepMemory;
use mpo::plan::held::Available;
use mpo::train::forecast::Forecast;
use mpo::train::prepare::Prepared;
use mpo::train::step::{Gradients, StepSettings, evaluate_batch, passes};
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

fn plan(work: &Sandbox, arguments: &[&str]) -> Value {
    let output = work.mpo(&[&["plan", "--json"][..], arguments].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("`{key}` of {value}"))
}

#[test]
fn the_table_and_the_json_say_the_same() {
    let work = Sandbox::new();
    let output = work.mpo(&["plan", "--config", "run.toml"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let table = String::from_utf8(output.stdout).unwrap();
    for words in ["935040 parameters", "all activations kept", "it fits", "mean batch", "The run: 12 steps", "as configured"] {
        assert!(table.contains(words), "`{words}` in:\n{table}");
    }
    let json = plan(&work, &["--config", "run.toml"]);
    assert_eq!((&json["n_parameters"], &json["fits"], &json["activation_checkpointing"]), (&935_040.into(), &true.into(), &"off".into()));
    let parts: u64 = json["memory"].as_object().unwrap().values().map(|bytes| bytes.as_u64().unwrap()).sum();
    assert_eq!(json["peak_bytes"].as_u64(), Some(parts));
    assert_eq!((number(&json["memory"], "weights"), number(&json["memory"], "moments")), (4.0 * 935_040.0, 8.0 * 935_040.0));

    let switches = json["switches"].as_array().unwrap();
    let switched = |set: &str| switches.iter().find(|switch| switch["set"][0] == set).unwrap_or_else(|| panic!("{set} in {switches:#?}"));
    let checkpointed = switched("train.activation_checkpointing=on");
    // Of batches as small as these, another moment of the run is the fullest.
    let larger = plan(&work, &["--config", "run.toml", "--set", "train.batch_size=8", "--set", "train.micro_batch_size=8"]);
    let of_larger = |set: &str| larger["switches"].as_array().unwrap().iter().find(|switch| switch["set"][0] == set).unwrap().clone();
    assert!(number(&of_larger("train.activation_checkpointing=on"), "peak_bytes") < number(&larger, "peak_bytes"));
    let by_row = of_larger("train.micro_batch_size=1");
    assert!(number(&by_row["memory"], "activations") < number(&larger["memory"], "activations"));
    assert!(number(&checkpointed["mean_step"]["flops"], "recomputed") > 0.0);
    // Six rows share a dominant pair, and a batch holds two: the plan says what batch would hold them.
    assert_eq!(switched("train.group_by_dominant=true")["set"][1], "train.batch_size=6");
    assert!(number(&json["rates"], "products") > 1e8);
}

#[test]
fn a_wrong_configuration_is_wrong_usage() {
    let work = Sandbox::new();
    let output = work.mpo(&["plan", "--config", "run.toml", "--set", "train.activation_checkpointing=0"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("or a number of blocks, 1 or more"), "{}", stderr(&output));
    assert_eq!(work.mpo(&["plan"]).status.code(), Some(2));
    let output = work.mpo(&["plan", "--config", "run.toml", "--set", "train.activation_checkpointing=9"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("with this model: `train.activation_checkpointing` is 9, and the model has"), "{}", stderr(&output));
}

#[test]
fn the_log_counts_the_operations_that_the_plan_promised() {
    let work = Sandbox::new();
    let promised = plan(&work, &["--config", "run.toml"]);
    let promised: f64 = promised["mean_step"]["flops"].as_object().unwrap().values().map(|flops| flops.as_f64().unwrap()).sum();
    let output = work.train("out", &[]);
    let lines = metrics(&work.path("out"));
    let counted: f64 = lines.iter().map(|line| number(line, "flops_per_second") * number(line, "seconds")).sum();
    assert!((counted / (12.0 * promised) - 1.0).abs() < 1e-9, "{counted} and {}", 12.0 * promised);

    for line in &lines {
        let shares = line.as_object().unwrap().iter().filter(|(key, _)| key.starts_with("share/"));
        let known: f64 = shares.map(|(_, share)| share.as_f64().unwrap()).sum();
        assert!((0.5..1.001).contains(&known), "{line}");
        assert!(number(line, "gemm_share") > 0.0);
        ["forward", "head", "backward", "optimizer"].iter().for_each(|phase| assert!(number(line, &format!("share/{phase}")) > 0.0));
    }
    let summary: Value = serde_json::from_slice(&std::fs::read(work.path("out/summary.json")).unwrap()).unwrap();
    assert!(number(&summary, "gemm_flops_per_second") > 0.0 && number(&summary["shares"], "backward") > 0.0);
    let said = stderr(&output);
    for words in ["memory   about", "work     ", "matrix products reach", "of what matrix products alone reach here; data"] {
        assert!(said.contains(words), "`{words}` in:\n{said}");
    }
}

#[test]
fn passes_are_known_before_they_are_made() {
    let (rows, config) = (rows(5, 24, 60, 3), RunConfig::default());
    let policy = model(&llama(16, 60), 1);
    let variants: [&dyn Fn(&mut RunConfig); 5] = [
        &|_| (),
        &|config| config.train.micro_batch_size = 2,
        &|config| (config.train.group_by_dominant, config.train.micro_batch_size) = (true, 5),
        &|config| config.retention.pooling = config::Pooling::MeanPadded,
        &|config| (config.retention.kind, config.objective.gap_target) = (config::RetentionKind::Kl, config::GapTarget::Policy),
    ];
    for change in variants {
        let mut config = config.clone();
        change(&mut config);
        let (settings, reference) = (StepSettings::new(&config, 0), scores(&policy, &rows, &config));
        for gradients in [Gradients::None, Gradients::Both, Gradients::RetentionOnly] {
            let outcome = evaluate_batch(&policy, &borrowed(&rows), &reference, &settings, gradients).unwrap();
            let passes = passes(&borrowed(&rows), &settings, gradients, policy.description());
            assert_eq!(passes.iter().map(|pass| pass.n_tokens).sum::<usize>(), outcome.n_tokens_computed, "{settings:?} {gradients:?}");
            assert!(passes.iter().any(|pass| pass.n_scored > 0) && passes.iter().all(|pass| pass.n_tokens > 0));
        }
    }
}

/// The most memory that a process had, in bytes: its high-water mark, asked for until it ends. What `wait4` reports would begin with the
/// memory of this test, from which the process was forked.
#[cfg(target_os = "linux")]
fn peak_of(mut child: Child) -> f64 {
    let mut peak = 0.0;
    while child.try_wait().unwrap().is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let mark = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok());
        peak = mark.map_or(peak, |kib| 1024.0 * kib);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(child.wait().unwrap().success());
    peak
}

#[cfg(target_os = "linux")]
#[test]
fn the_peak_of_memory_is_within_a_tenth_of_the_plan() {
    let work = Sandbox::new();
    // The forward passes over many canaries are not in the plan.
    let smoke = ["--config", "smoke.toml", "--set", "train.max_steps=12", "--set", "canary.limit=1"];
    let sets = [("off", "train.activation_checkpointing=off"), ("on", "train.activation_checkpointing=on"), ("lora", "adapter.kind=lora")];
    for (out, set) in sets {
        let arguments = [&smoke[..], &["--set", set]].concat();
        let planned = number(&plan(&work, &arguments), "peak_bytes");
        let out = format!("output.dir={out}");
        let mut train = work.command(&[&["train"][..], &arguments, &["--set", &out]].concat());
        // The reference has to be scored, as the plan supposes.
        train.env("MPO_CACHE", work.path(set));
        let seen = peak_of(train.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        assert!((planned / seen - 1.0).abs() < 0.1, "{set}: {planned} bytes planned, {seen} seen");
    }
}

#[test]
fn what_is_computed_again_changes_no_bit() {
    let work = Sandbox::new();
    for setting in ["off", "on", "2"] {
        work.train(setting, &[&format!("train.activation_checkpointing={setting}")]);
    }
    assert_same_run(&work.path("off"), &work.path("on"));
    assert_same_run(&work.path("off"), &work.path("2"));
}

/// A run of a tiny model with some more settings: three steps of eight rows.
fn prepared(work: &Sandbox, settings: &str) -> Prepared {
    let model = work.path("model");
    if !model.exists() {
        faults::model(work, "model");
    }
    let (path, data) = (model.display(), model.join("train.jsonl"));
    let text = format!(
        "[model]\npath = \"{path}\"\n[data]\npath = \"{}\"\n[train]\nmax_steps = 3\nbatch_size = 8\nmicro_batch_size = 8\n\
         [output]\ndir = \"{}\"\n",
        data.display(),
        work.path("out").display()
    );
    let overrides: Vec<String> = settings.split_whitespace().map(str::to_owned).collect();
    Prepared::new(config::parse(&text, "my.toml", &overrides).unwrap(), None).unwrap()
}

fn host(bytes: u64) -> Available {
    Available { host: Some(bytes), gpu: None }
}

#[test]
fn auto_keeps_what_fits_and_refuses_what_cannot() {
    let work = Sandbox::new();
    let (auto, off) = (prepared(&work, ""), prepared(&work, "train.activation_checkpointing=off"));
    let forecast = Forecast::new(&auto, &auto.config, None, 20 << 20).unwrap();
    let everything = forecast.settled(ActivationCheckpointing::Off);
    assert_eq!(everything, StepMemory::default());
    let [most, least] = [everything, forecast.settled(ActivationCheckpointing::ON)].map(|step| forecast.held(step).host.total());
    assert!(least < most && forecast.held(everything).gpu.is_none());
    assert_eq!(forecast.choose(&Available::default()).unwrap(), everything, "nothing is known of the memory");
    assert_eq!(forecast.choose(&host(2 * most)).unwrap(), everything);
    assert!(matches!(forecast.choose(&host(most)).unwrap().keep, Keep::BlockInputs { .. }), "it would fit, and leave nothing to others");
    let error = forecast.choose(&host(least - 1)).unwrap_err().to_string();
    assert!(error.contains("MiB for weights, gradients and optimizer moments") && error.contains("are free"), "{error}");
    assert!(error.contains("`train.micro_batch_size`") && !error.contains("activation_checkpointing"), "{error}");

    let forecast = Forecast::new(&off, &off.config, None, 20 << 20).unwrap();
    assert_eq!(forecast.choose(&host(most)).unwrap(), everything, "what was asked for is done where it fits at all");
    let error = forecast.choose(&host(most - 1)).unwrap_err().to_string();
    assert!(error.contains("with `train.activation_checkpointing = \"on\"` it needs"), "{error}");
}

#[test]
fn a_gpu_is_chosen_for_by_its_own_memory_and_the_hosts_part_by_the_hosts() {
    let work = Sandbox::new();
    let (auto, bf16) = (prepared(&work, ""), prepared(&work, "model.dtype=bf16 canary.path=builtin:tiny retention.kind=kl"));
    let cpu = Forecast::new(&auto, &auto.config, None, 20 << 20).unwrap();
    let on_cpu = cpu.held(cpu.settled(ActivationCheckpointing::Off)).host;
    mpo::ops::gpu::on_emulated_gpu(|| {
        let forecast = Forecast::new(&auto, &auto.config, None, 20 << 20).unwrap();
        let everything = forecast.settled(ActivationCheckpointing::Off);
        let held = forecast.held(everything);
        let gpu = held.gpu.unwrap();
        assert_eq!((gpu.weights, gpu.gradients, gpu.moments), (on_cpu.weights, on_cpu.gradients, on_cpu.moments));
        assert_eq!((held.host.weights, held.host.moments, held.host.activations), (0, 0, 0), "they are not with the host");
        assert_eq!((held.host.data, held.host.reference, held.host.process), (on_cpu.data, on_cpu.reference, on_cpu.process));
        assert!(held.host.scratch > 0 && held.host.total() < on_cpu.total());

        let available = |host, gpu| Available { host: Some(host), gpu: Some(gpu) };
        let (enough, most) = (held.host.total(), gpu.total());
        let roomy = forecast.choose(&available(enough, 2 * most)).unwrap();
        assert_eq!(roomy, StepMemory { kept_logits: usize::MAX, ..everything }, "logits stay where there is room");
        assert!(matches!(forecast.choose(&available(enough, most)).unwrap().keep, Keep::BlockInputs { .. }));
        let error = forecast.choose(&available(1 << 40, 1 << 20)).unwrap_err().to_string();
        assert!(error.contains("of the GPU's memory") && error.contains("1 MiB are free") && error.contains("a larger GPU"), "{error}");
        let error = forecast.choose(&available(enough - 1, 2 * most)).unwrap_err().to_string();
        assert!(error.contains("of the host's memory") && error.contains("on their way to and from it"), "{error}");
        assert_eq!(forecast.choose(&Available { host: Some(enough), gpu: None }).unwrap(), everything, "nothing is known of the card");

        let half = Forecast::new(&bf16, &bf16.config, None, 20 << 20).unwrap();
        let held = half.held(half.settled(ActivationCheckpointing::Off));
        let half = held.gpu.unwrap();
        assert_eq!(2 * half.weights, 3 * gpu.weights, "with a master copy of f32 beside each of two bytes");
        let n_head = bf16.description.vocab_size * bf16.description.hidden_size;
        assert_eq!(half.reference, 2 * n_head as u64, "the head that `kl` compares with lies where the policy does");
        assert!(half.canaries > 0 && held.host.canaries > 0, "caches there, what is known of step 0 here");
    })
    .unwrap();
}

/// Begin and end in microseconds of every span of a trace, by name.
fn spans(trace: &Path) -> Vec<(String, f64, f64)> {
    let events: Vec<Value> = serde_json::from_slice(&std::fs::read(trace).unwrap()).unwrap();
    let (mut open, mut spans) = (Vec::new(), Vec::new());
    for event in events.iter().filter(|event| event["ph"] != "M") {
        let (name, at) = (event["name"].as_str().unwrap().to_owned(), event["ts"].as_f64().unwrap());
        match event["ph"].as_str().unwrap() {
            "B" => open.push((name, at)),
            "E" => {
                let (begun, since) = open.pop().unwrap();
                assert_eq!(begun, name, "a span ends before those within it");
                spans.push((name, since, at));
            }
            other => panic!("{other}"),
        }
    }
    assert!(open.is_empty(), "{open:?} never end");
    spans
}

#[test]
fn a_profile_is_a_trace_of_nested_spans() {
    let work = Sandbox::new();
    let output = work.mpo(&["train", "--config", "run.toml", "--set", "output.dir=out", "--set", "train.max_steps=2", "--profile"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("out/trace.json`: open it at ui.perfetto.dev"), "{}", stderr(&output));
    let spans = spans(&work.path("out/trace.json"));
    let within = |inner: &str, outer: &str| {
        let is_within = |(_, begin, end): &&(String, f64, f64)| {
            spans.iter().any(|(name, outer_begin, outer_end)| name == outer && outer_begin <= begin && end <= outer_end)
        };
        spans.iter().filter(|(name, ..)| name == inner).filter(is_within).count()
    };
    assert_eq!((within("step", "run"), within("checkpoint", "run")), (2, 1));
    assert!(within("reference", "start") > 0);
    for side in ["dominant side", "target side"] {
        assert_eq!(within(side, "step"), 2);
        assert!(within("forward", side) >= 2 && within("backward", side) == 2 && within("data", side) >= 2, "{side}");
    }
    assert!(within("head", "target side") >= 4 && within("optimizer", "step") == 4);
    assert!(within("block forward", "forward") > 0 && within("block backward", "backward") > 0);
}

#[test]
fn a_run_that_is_interrupted_or_fails_has_its_trace_too() {
    let work = Sandbox::new();
    let long = ["train", "--config", "run.toml", "--set", "output.dir=out", "--set", "train.max_steps=100000", "--profile", "mine.json"];
    let mut child = work.command(&long).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while !work.path("out/metrics.jsonl").exists() || metrics(&work.path("out")).is_empty() {
        assert!(started.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(20));
    }
    // SAFETY: the child is ours and not yet waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGINT) };
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(spans(&work.path("mine.json")).iter().any(|(name, ..)| name == "checkpoint"));

    // One that fails before it begins leaves nothing, and says what was wrong.
    let error =
        work.fails(&["train", "--config", "run.toml", "--set", "output.dir=none", "--set", "data.min_dominant_gap=1000", "--profile"]);
    assert!(error.contains("drops all"), "{error}");
    assert!(!work.path("none").exists());
}
