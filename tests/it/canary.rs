//! Canaries: what they measure, against slow computations of the same; that they change nothing; that a run with them resumes exactly.

use crate::train::{Sandbox, assert_same_run, contents, metrics, stderr, timeless_metrics};
use mpo::config::{ComputeDtype, DataConfig};
use mpo::data::batch::{PackedBatch, PromptSharing};
use mpo::data::encode::{EncodedPreference, Encoder, Response};
use mpo::data::pair::{Message, Role};
use mpo::model::decoder::{Decoder, Keep, Purpose};
use mpo::ops;
use mpo::ops::divergence::kl_divergence;
use mpo::scoring::{self, KeptStates};
use mpo::train::canary::{KIND, N_TOP, Position};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

/// Two prompts of each language, one of them with a given answer, asked at 0, 5, 10 and 12.
const CANARIES: [&str; 4] = ["canary.path=builtin:tiny", "canary.every_steps=5", "canary.limit=2", "canary.max_new_tokens=24"];

fn with<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&CANARIES, more].concat()
}

fn is_canary(line: &Value) -> bool {
    line["kind"] == KIND
}

/// The lines about canaries.
fn lines(run: &Path) -> Vec<Value> {
    metrics(run).into_iter().filter(is_canary).collect()
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("`{key}` of {value}"))
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))).unwrap()
}

fn json_lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_run_writes_what_its_canaries_say() {
    let work = Sandbox::new();
    let output = work.train("run", &with(&[]));
    let (run, said) = (work.path("run"), stderr(&output));
    let steps: Vec<Option<u64>> = lines(&run).iter().map(|line| line["step"].as_u64()).collect();
    assert_eq!(steps, [0, 5, 10, 12].map(Some));
    let names: Vec<String> = contents(&run.join("canary")).into_keys().filter(|name| !name.contains('/')).collect();
    assert_eq!(names, ["step-000000.jsonl", "step-000005.jsonl", "step-000010.jsonl", "step-000012.jsonl"]);
    // A line stands where the weights that it is about were: before the line of the next step.
    let order: Vec<(bool, u64)> = metrics(&run).iter().map(|line| (is_canary(line), line["step"].as_u64().unwrap())).collect();
    assert_eq!(order[..2], [(true, 0), (false, 1)]);
    assert_eq!(order[6..8], [(true, 5), (false, 6)]);
    assert_eq!(order.last(), Some(&(true, 12)));

    for line in lines(&run) {
        let step = line["step"].as_u64().unwrap();
        let answers = json_lines(&run.join(format!("canary/step-{step:06}.jsonl")));
        assert_eq!(answers.len(), 14);
        for lang in ["en", "zh", "ja", "ko", "ar", "bn", "sw"] {
            let of_language: Vec<&Value> = answers.iter().filter(|answer| answer["lang"] == lang).collect();
            let mean = |key: &str| {
                let value = |answer: &Value| answer[key].as_bool().map(f64::from).or(answer[key].as_f64()).unwrap();
                of_language.iter().map(|answer| value(answer)).sum::<f64>() / of_language.len() as f64
            };
            assert_eq!(number(&line, &format!("canary_length/{lang}")), mean("n_tokens"));
            assert_eq!(number(&line, &format!("canary_refusal_rate/{lang}")), mean("is_refusal"));
            assert_eq!(number(&line, &format!("canary_repetitive_rate/{lang}")), mean("is_repetitive_or_empty"));
            let kl = number(&line, &format!("canary_kl/{lang}"));
            assert!(if step == 0 { kl == 0.0 } else { kl > 0.0 }, "step {step} {lang}: {kl}");
        }
    }
    let summary = json(&run.join("summary.json"));
    assert_eq!(summary["canaries"]["before"], json(&run.join("canary/start/measurement.json")));
    let last = &summary["canaries"]["after"];
    assert_eq!((&last["step"], &last["languages"]["sw"]["kl"]), (&json!(12), &lines(&run)[3]["canary_kl/sw"]));
    assert!(said.contains("Canaries, benign prompts") && said.contains("\n  sw (2) "), "{said}");
    assert_eq!(summary["steps"], 12, "lines about canaries are no steps");

    let output =
        work.mpo(&["train", "--config", "smoke.toml", "--dry-run", "--set", "canary.path=builtin:tiny", "--set", "canary.limit=3"]);
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.contains("Canaries   21 benign prompts (ar 3, bn 3, en 3, ja 3, ko 3, sw 3, zh 3), before and after\n"), "{shown}");
}

/// The hidden states that predict the response, and the whole distributions there, one text at a time.
fn logits(model: &Decoder, prompt: &[u32], response: &[u32]) -> Vec<Vec<f32>> {
    let mut batch = PackedBatch::default();
    let spans = batch.push_responses(prompt, &[response], PromptSharing::Separate);
    let hidden = model.forward(&batch, Keep::Nothing).unwrap().hidden_ND;
    let (hidden, d) = (ops::read(&hidden).unwrap(), model.description());
    let row = |row: usize| model.logits(&hidden[row * d.hidden_size..][..d.hidden_size]).unwrap().to_vec();
    spans[0].predicting_rows().map(row).collect()
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f64> = logits.iter().map(|&logit| (f64::from(logit) - f64::from(largest)).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|value| value / sum).collect()
}

/// KL over the most likely tokens of `p` and the rest, by sorting.
fn coarse_divergence(p: &[f64], q: &[f64]) -> f64 {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[b].total_cmp(&p[a]).then(a.cmp(&b)));
    let (top, rest) = order.split_at(N_TOP.min(p.len()));
    let mass = |of: &[f64]| rest.iter().map(|&token| of[token]).sum::<f64>();
    let term = |p: f64, q: f64| if p > 0.0 { p * (p / q).ln() } else { 0.0 };
    top.iter().map(|&token| term(p[token], q[token])).sum::<f64>() + term(mass(p), mass(q))
}

#[test]
fn the_numbers_are_those_of_scoring_and_of_whole_distributions() {
    let work = Sandbox::new();
    work.train("run", &with(&["output.dtype=f32"]));
    let run = work.path("run");
    let tiny = tiny(&work);
    let load = |folder: &Path| Decoder::load(folder, ComputeDtype::F32, Purpose::Inference).unwrap();
    let (before, after) = (load(&tiny), load(&run.join("final")));
    let encoder = Encoder::new(&tiny, &DataConfig::default()).unwrap();
    let prompts = json_lines(&run.join("canary/step-000000.jsonl"));
    let texts = json_lines(&run.join("canary/start/texts.jsonl"));

    /// Tokens, and sums over them: of the NLL by scoring, of the divergence over some outcomes, and over all.
    type Sums = (f64, [f64; 3]);
    let mut sums: BTreeMap<&str, Sums> = BTreeMap::new();
    let mut n_given = 0;
    for (prompt, text) in prompts.iter().zip(&texts) {
        let lang = text["lang"].as_str().unwrap();
        let message = Message { role: Role::User, content: prompt["prompt"].as_str().unwrap().into() };
        let tokens: Vec<u32> = text["tokens"].as_array().unwrap().iter().map(|token| token.as_u64().unwrap() as u32).collect();
        n_given += usize::from(encoder.tokenizer().decode(&tokens, true).unwrap().trim() != prompt["answer"].as_str().unwrap().trim());
        let pair = EncodedPreference {
            lang: lang.into(),
            prompt: encoder.chat_tokens(&[message]).unwrap(),
            chosen: Response { tokens, n_end_tokens: 1 },
            rejected: Response::default(),
        };
        let nll = -scoring::score(&after, &[&pair], KeptStates::Nothing, 0).unwrap()[0].chosen.score.log_prob;
        let [first, last] = [&before, &after].map(|model| logits(model, &pair.prompt, &pair.chosen.tokens));
        let both = || first.iter().zip(&last);
        let coarse: f64 = both().map(|(p, q)| coarse_divergence(&softmax(p), &softmax(q))).sum();
        let whole: f64 = both().map(|(p, q)| kl_divergence(p, q)).sum();
        let (n, sums) = sums.entry(lang).or_default();
        *n += pair.chosen.tokens.len() as f64;
        sums.iter_mut().zip([nll, coarse, whole]).for_each(|(sum, value)| *sum += value);
    }
    assert!(n_given > 0 && n_given < 14, "some answers are given and some are the model's own: {n_given}");
    let line = lines(&run).pop().unwrap();
    for (lang, (n, sums)) in sums {
        let [nll, coarse, whole] = sums.map(|sum| sum / n);
        let measured = |key: &str| number(&line, &format!("canary_{key}/{lang}"));
        assert!((measured("nll") - nll).abs() < 1e-5 * nll, "{lang}: {} and {nll}", measured("nll"));
        assert!((measured("kl") - coarse).abs() < 1e-4 * coarse + 1e-7, "{lang}: {} and {coarse}", measured("kl"));
        assert!(measured("kl") <= whole + 1e-7 && measured("kl") > 0.9 * whole, "{lang}: {} of {whole}", measured("kl"));
    }
}

/// The folder of the built-in model.
fn tiny(work: &Sandbox) -> PathBuf {
    std::fs::read_dir(work.path("cache/builtin")).unwrap().next().unwrap().unwrap().path()
}

#[test]
fn few_tokens_are_compared_exactly() {
    let reference = [0.3f32, -1.0, 2.0, 0.25, -7.0];
    let policy = [1.5f32, 0.5, -0.5, 0.125, 3.0];
    let divergence = Position::of(&mut reference.clone()).divergence(&mut policy.clone());
    assert!((divergence - kl_divergence(&reference, &policy)).abs() < 1e-6);
    assert_eq!(Position::of(&mut reference.clone()).divergence(&mut reference.clone()), 0.0);
}

/// Everything that training leaves, canaries aside.
fn trained(run: &Path) -> (Vec<Value>, BTreeMap<String, Vec<u8>>) {
    let steps = timeless_metrics(run).iter().map(|line| serde_json::from_str(line).unwrap()).filter(|line| !is_canary(line)).collect();
    let mut files = contents(&run.join("final"));
    let state = contents(&run.join("checkpoint-000012/trainer"));
    files.extend(state.into_iter().filter(|(name, _)| name.starts_with("master/") || name.starts_with("moments/")));
    assert!(files.contains_key("master/model.safetensors") && files.contains_key("moments/model.safetensors"));
    (steps, files)
}

#[test]
fn canaries_change_no_bit_of_what_is_trained() {
    let work = Sandbox::new();
    let dropout = ["adapter.kind=lora", "adapter.rank=4", "adapter.dropout=0.2", "optimizer.lr=5e-3"];
    let checkpointed = ["train.activation_checkpointing=on", "retention.kind=kl"];
    for (name, more) in [("full", &[][..]), ("checkpointed", &checkpointed), ("adapter", &dropout)] {
        let (plain, watched) = (format!("{name}-plain"), format!("{name}-watched"));
        work.train(&plain, more);
        work.train(&watched, &with(more));
        let (plain, watched) = (trained(&work.path(&plain)), trained(&work.path(&watched)));
        assert_eq!(plain.0, watched.0, "{name}");
        assert!(plain.1 == watched.1, "{name}");
    }
}

/// What two runs say of their canaries is the same, byte for byte.
fn assert_same_canaries(one: &Path, other: &Path) {
    let timeless = |run: &Path| -> Vec<String> { timeless_metrics(run).into_iter().filter(|line| line.contains("\"canary\"")).collect() };
    assert_eq!(timeless(one), timeless(other));
    let (files, others) = (contents(&one.join("canary")), contents(&other.join("canary")));
    assert_eq!(files.keys().collect::<Vec<_>>(), others.keys().collect::<Vec<_>>());
    files.iter().for_each(|(name, bytes)| assert!(bytes == &others[name], "canary/{name} differs"));
    let canaries = |run: &Path| json(&run.join("summary.json"))["canaries"].clone();
    assert_eq!(canaries(one), canaries(other));
}

#[test]
fn killed_and_interrupted_a_watched_run_ends_as_if_never_stopped() {
    let work = Sandbox::new();
    let often = with(&["canary.every_steps=1", "canary.limit=1"]);
    let begun = std::time::Instant::now();
    work.train("whole", &often);
    let whole_ms = begun.elapsed().as_millis() as u64;
    let (whole, run) = (work.path("whole"), work.path("killed"));
    let sets: Vec<&str> = often.iter().flat_map(|set| ["--set", set]).collect();
    let first = [&["train", "--config", "run.toml", "--set", "output.dir=killed"][..], &sets].concat();

    let mut n_stopped = 0;
    for attempt in 0..200u64 {
        let arguments = if run.join("config.toml").exists() { vec!["train", "--resume", "killed"] } else { first.clone() };
        let mut child = work.command(&arguments).stderr(Stdio::null()).spawn().unwrap();
        // Most of a run's time is its canaries here, so most of the moments are within them.
        let moment = (attempt + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
        std::thread::sleep(Duration::from_millis(whole_ms / 8 + moment % (whole_ms / 2)));
        if child.try_wait().unwrap().is_none() {
            n_stopped += 1;
            if attempt % 2 == 0 {
                child.kill().unwrap();
            } else {
                // SAFETY: no memory is involved; the process is our own child and has not been waited for.
                assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) }, 0);
            }
        }
        child.wait().unwrap();
        if run.join("summary.json").exists() {
            break;
        }
    }
    assert!(n_stopped >= 2, "it was hardly ever stopped");
    assert_same_run(&whole, &run);
    assert_same_canaries(&whole, &run);
}

#[test]
fn a_longer_run_forgets_the_measurement_at_its_former_end() {
    let work = Sandbox::new();
    let constant = with(&["schedule.kind=constant"]);
    work.train("whole", &constant);
    work.train("run", &[&constant[..], &["train.max_steps=7"]].concat());
    assert!(work.path("run/canary/step-000007.jsonl").exists());
    // What is kept of step 0 was lost on the way: it is made again, from the model of step 0.
    std::fs::write(work.path("run/canary/start/top.safetensors"), "cut").unwrap();
    let output = work.mpo(&["train", "--resume", "run", "--set", "train.max_steps=12"]);
    assert!(output.status.success() && stderr(&output).contains("asking the canaries of step 0 again"), "{}", stderr(&output));
    assert_same_canaries(&work.path("whole"), &work.path("run"));
    assert!(contents(&work.path("whole/final")) == contents(&work.path("run/final")));
}

#[test]
fn other_canaries_are_refused_on_resume() {
    let work = Sandbox::new();
    work.train("first", &["train.max_steps=3"]);
    let file = work.path("mine.jsonl");
    std::fs::copy(tiny(&work).join("canary.jsonl"), &file).unwrap();
    work.train("run", &with(&["canary.path=mine.jsonl", "train.max_steps=3"]));
    let longer = ["train", "--resume", "run", "--set", "train.max_steps=4"];

    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("colleague", "neighbour", 1)).unwrap();
    let error = work.fails(&longer);
    assert!(error.contains("the canaries are not those that") && error.contains("mine.jsonl` change?"), "{error}");
    std::fs::write(work.path("moved.jsonl"), text).unwrap();
    let moved = work.mpo(&[&longer[..], &["--set", "canary.path=moved.jsonl", "--set", "canary.every_steps=1"]].concat());
    assert!(moved.status.success(), "{}", stderr(&moved));

    for (changed, key) in [("canary.limit=1", "canary.limit"), ("canary.max_new_tokens=9", "canary.max_new_tokens")] {
        let error = work.fails(&["train", "--resume", "run", "--set", changed]);
        assert!(error.contains(&format!("`{key}`: ")), "{error}");
    }
    let error = work.fails(&["train", "--resume", "first", "--set", "canary.path=moved.jsonl"]);
    assert!(error.contains("`canary.path`: absent -> "), "{error}");
}

#[test]
fn a_model_that_learns_to_refuse_is_said_to() {
    let work = Sandbox::new();
    let refusal = "Samahani, siwezi kukusaidia na hilo.";
    work.train("first", &["train.max_steps=3"]);
    let prompts = json_lines(&tiny(&work).join("canary.jsonl"));
    let rows: Vec<String> = (prompts.iter().filter(|prompt| prompt["lang"] == "sw"))
        .map(|prompt| json!({"prompt": prompt["prompt"], "chosen": refusal, "rejected": "Ndiyo.", "lang": "sw"}).to_string() + "\n")
        .collect();
    std::fs::write(work.path("rows.jsonl"), rows.concat()).unwrap();
    let sft = ["data.path=rows.jsonl", "objective.kind=sft", "eval.fraction=0.2", "optimizer.lr=3e-3", "train.max_steps=40"];
    let said = stderr(&work.train("run", &[&sft[..], &["canary.path=builtin:tiny", "canary.every_steps=20"]].concat()));
    assert!(said.contains("sign: sw: benign refusals 0 to 8 of 8: likely over-refusal"), "{said}");
    assert!(said.contains("canaries after step 40: sw: of 8 answers 8 refuse"), "{said}");
    let run = work.path("run");
    let rates: Vec<f64> = lines(&run).iter().map(|line| number(line, "canary_refusal_rate/sw")).collect();
    assert_eq!((rates[0], rates[2]), (0.0, 1.0));
    let signs = json(&run.join("summary.json"))["failure_signs"].clone();
    // The words are the same in every language by then: that counts as refusal there too.
    let is_it = |sign: &&Value| sign["kind"] == "over_refusal" && sign["lang"] == "sw";
    let sign = signs.as_array().unwrap().iter().find(is_it).unwrap_or_else(|| panic!("{signs}"));
    assert_eq!((number(sign, "value"), number(sign, "threshold")), (1.0, 0.25));
    let answers = json_lines(&run.join("canary/step-000040.jsonl"));
    assert!(answers.iter().any(|answer| answer["lang"] == "sw" && answer["answer"] == refusal && answer["is_refusal"] == true));
}

#[test]
fn what_is_wrong_with_a_file_is_said_at_once() {
    let work = Sandbox::new();
    let fails = |text: &str, more: &[&str]| {
        std::fs::write(work.path("bad.jsonl"), text).unwrap();
        let sets = [&["canary.path=bad.jsonl", "output.dir=out"][..], more].concat();
        let error =
            work.fails(&[&["train", "--config", "run.toml"][..], &sets.iter().flat_map(|set| ["--set", set]).collect::<Vec<_>>()].concat());
        assert!(!work.path("out").exists());
        error
    };
    let error = fails(
        "{\"id\": 1, \"lang\": \"bm\", \"prompt\": \"q\", \"kind\": \"benign\"}\n\
         {\"id\": 2, \"lang\": \"bn\", \"prompt\": \"\", \"kind\": \"kind\"}\n\
         {\"id\": 3, \"lang\": \"sw\", \"prompt\": \"q\", \"kind\": \"benign\", \"answer\": \"\", \"anser\": \"a\"}\n",
        &[],
    );
    for problem in [
        "canary.path",
        "bad.jsonl:1: `lang` is `bm`, a language that neither mpo nor the training data knows",
        "bad.jsonl:2: `prompt` is empty",
        "bad.jsonl:2: `kind` is `kind`; it is `harmful` or `benign`",
        "bad.jsonl:3: `answer` is empty",
        "bad.jsonl:3: unknown key `anser`",
    ] {
        assert!(error.contains(problem), "`{problem}` in {error}");
    }
    let harmful = "{\"id\": 1, \"lang\": \"sw\", \"prompt\": \"q\", \"kind\": \"harmful\"}\n";
    let error = fails(harmful, &[]);
    assert!(error.contains("none of its 1 prompts is benign"), "{error}");
    let benign = harmful.replace("harmful", "benign");
    let error = fails(&benign, &["canary.max_new_tokens=600"]);
    assert!(
        error.contains("`1` (sw) takes 6") && error.contains("the model has 512") && error.contains("`canary.max_new_tokens` = 600"),
        "{error}"
    );
    let error = fails(&benign, &["canary.path=nowhere.jsonl"]);
    assert!(error.contains("nowhere.jsonl` does not exist") && error.contains("canary.path"), "{error}");

    let output = work.mpo(&["train", "--config", "run.toml", "--set", "canary.every_steps=0", "--set", "canary.limit=0"]);
    assert_eq!(output.status.code(), Some(2));
    let said = stderr(&output);
    assert!(said.contains("`canary.every_steps` has no effect") && said.contains("`canary.limit` is 0: it must be at least 1"), "{said}");

    std::fs::write(work.path("bad.jsonl"), benign + &harmful.replace('1', "2")).unwrap();
    let said = stderr(&work.train("run", &["canary.path=bad.jsonl", "canary.max_new_tokens=4"]));
    assert!(said.contains("over-refusal is not measured in ar bn en ja ko zh"), "{said}");
    assert!(said.contains("1 harmful prompts of the file are not asked"), "{said}");
}

#[test]
fn the_plan_counts_them() {
    let work = Sandbox::new();
    let plan = |more: &[&str]| {
        let output = work.mpo(&[&["plan", "--config", "run.toml", "--json"][..], more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let (plain, watched) = (plan(&[]), plan(&["--set", "canary.path=builtin:tiny"]));
    assert_eq!((number(&plain, "generating_seconds"), number(&plain["memory"], "canaries")), (0.0, 0.0));
    assert!(number(&watched, "generating_seconds") > 0.0);
    // Keys and values of 16 answers under way, in 4 layers of 2 heads of 32: at least their longest answers.
    assert!(number(&watched["memory"], "canaries") > (16 * 128 * 4 * 2 * 2 * 32 * 4) as f64, "{}", watched["memory"]);
    let output = work.mpo(&["plan", "--config", "run.toml", "--set", "canary.path=builtin:tiny"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("canaries' answers") && text.contains("\n  canaries  "), "{text}");
}
