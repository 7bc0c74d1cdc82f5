//! `run.json` of a new run, and whether a run that goes on is still the same.

use super::tested::Tested;
use crate::cli::{EvalArgs, JudgeArgs};
use crate::data::template::Thinking;
use crate::eval::asked::{Asked, AskedJudge};
use crate::eval::bench::{self, Benchmark, Loaded, Scoring};
use crate::eval::item::Item;
use crate::eval::results::facts::{BenchFacts, ModelFacts, RunFacts};
use crate::generate::thought;
use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Raised when prompts or scoring of a benchmark change, so that numbers before and after are not compared unawares.
const BENCH_VERSION: &str = "1";

/// What the command line asks for.
///
/// # Errors
/// No benchmark; a combination that means nothing.
pub fn asked(args: &EvalArgs, tested: &Tested) -> Result<Asked> {
    let n_samples = args.samples.get() as u32;
    let is_sampled = args.temperature.is_some_and(|temperature| temperature > 0.0);
    ensure!(n_samples == 1 || is_sampled, "--samples {n_samples} would give the same answer {n_samples} times: set --temperature above 0");
    let benches = chosen(&args.bench)?;
    let measures_gaps = benches.iter().any(|bench| bench.card().scoring == Scoring::RewardGap);
    ensure!(
        args.reference.is_none() || measures_gaps,
        "--reference is the checkpoint whose reward gaps stand beside the model's: it goes with `--bench reward-gap`"
    );
    Ok(Asked {
        benches: benches.iter().map(|bench| bench.card().name.to_owned()).collect(),
        model: tested.model.clone(),
        adapter: tested.adapter.clone(),
        reference: args.reference.clone(),
        langs: args.langs.clone(),
        limit: args.limit.map(usize::from),
        seed: args.seed,
        data: args.data.clone(),
        jailbreak: args.jailbreak.clone(),
        max_new_tokens: args.max_new_tokens.map(usize::from),
        temperature: args.temperature,
        top_p: args.top_p,
        thinking: args.thinking.as_deref().map(Thinking::by_name).transpose()?,
        n_samples,
        config: args.settings.config.clone(),
        set: args.settings.set.clone(),
        judge: asked_judge(&args.judge),
    })
}

/// The benchmarks that are named, each once.
fn chosen(names: &[String]) -> Result<Vec<&'static dyn Benchmark>> {
    let mut benches: Vec<&dyn Benchmark> = Vec::new();
    for name in names {
        let bench = bench::find(name)?;
        if benches.iter().all(|known| known.card().name != bench.card().name) {
            benches.push(bench);
        }
    }
    Ok(benches)
}

/// Of the judge's options those that its verdicts follow from.
pub fn asked_judge(args: &JudgeArgs) -> AskedJudge {
    AskedJudge {
        judge: args.judge.clone(),
        url: args.judge_url.clone(),
        translator: args.judge_translate.clone(),
        guard_format: args.guard_format.clone(),
        rubric: args.rubric.clone(),
        max_tokens: args.judge_max_tokens.map(usize::from),
        allow_uncovered: args.allow_uncovered,
        allow_own: args.allow_own_judge,
    }
}

/// The facts of a run that begins.
pub fn new_run(asked: &Asked, tested: &Tested, batch_size: usize) -> RunFacts {
    RunFacts {
        name: tested.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        seed: asked.seed,
        batch_size,
        limit: asked.limit,
        date: now(),
        asked: asked.clone(),
        ..RunFacts::default()
    }
}

/// Seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// What is known of a benchmark once it is loaded.
pub fn of_bench(bench: &dyn Benchmark, loaded: &Loaded, asked: &Asked) -> BenchFacts {
    let mut n_original: BTreeMap<String, usize> = BTreeMap::new();
    for item in &loaded.items {
        *n_original.entry(item.lang.clone()).or_default() += 1;
    }
    let from = loaded.files.iter().map(|file| match (&file.repo, &file.commit) {
        (Some(repo), Some(commit)) => format!("{repo}@{commit} {}", file.name),
        _ => file.name.clone(),
    });
    let sha256: Vec<&str> = loaded.files.iter().map(|file| file.sha256.as_str()).collect();
    BenchFacts {
        version: BENCH_VERSION.to_owned(),
        source: from.collect::<Vec<_>>().join(", "),
        sha256: (!sha256.is_empty()).then(|| sha256.join("+")),
        generation: generation(bench, asked, loaded),
        task_names: n_original.keys().map(|lang| (lang.clone(), bench.task(lang))).collect(),
        n_original,
        main: main_metrics(bench),
        ..BenchFacts::default()
    }
}

/// Of several ways to read an answer the first is what the benchmark is about. Empty where a judge's rubric decides.
fn main_metrics(bench: &dyn Benchmark) -> Vec<String> {
    match bench.card().scoring {
        Scoring::Rule => bench.card().metrics.iter().take(1).map(|metric| metric.name.to_owned()).collect(),
        Scoring::Judge(_) | Scoring::RewardGap => Vec::new(),
    }
}

/// As lm-evaluation-harness calls it.
fn generation(bench: &dyn Benchmark, asked: &Asked, loaded: &Loaded) -> Map<String, Value> {
    let card = bench.card();
    if card.max_new_tokens == 0 {
        return Map::new();
    }
    let mut until: Vec<String> = loaded.items.iter().flat_map(|item| bench.stops(&item.lang)).collect();
    until.sort();
    until.dedup();
    let of = |item: &Item| asked.temperature.or(item.temperature).unwrap_or(0.0);
    let mut temperatures: Vec<f64> = loaded.items.iter().map(of).collect();
    temperatures.sort_by(f64::total_cmp);
    temperatures.dedup();
    let mut generation = Map::new();
    generation.insert(MAX_NEW_TOKENS.into(), asked.max_new_tokens.unwrap_or(card.max_new_tokens).into());
    generation.insert("do_sample".into(), temperatures.iter().any(|&temperature| temperature > 0.0).into());
    // MT-Bench has one for each category.
    generation.insert("temperature".into(), if let [one] = temperatures[..] { one.into() } else { json!(temperatures) });
    generation.extend(asked.top_p.map(|top_p| ("top_p".to_owned(), top_p.into())));
    generation.insert("until".into(), json!(until));
    generation
}

/// Longest turn of an answer: key of a benchmark's generation facts.
const MAX_NEW_TOKENS: &str = "max_gen_toks";

/// Adds to the facts of a new run what is known once the model's chat template is: whether the model `thinks` before it answers, for which it gets
/// room where the user set no limit. Says so.
pub fn settle_thinking(facts: &mut RunFacts, thinks: Option<bool>) -> Option<String> {
    let asked = facts.asked.thinking.map(Thinking::name);
    let (is_on, is_free) = (thinks == Some(true), facts.asked.max_new_tokens.is_none());
    let mut longest = 0;
    for generation in facts.benches.values_mut().map(|bench| &mut bench.generation) {
        generation.extend(asked.map(|asked| ("thinking".to_owned(), asked.into())));
        let Some(own) = generation.get(MAX_NEW_TOKENS).and_then(Value::as_u64).filter(|_| is_on && is_free) else { continue };
        longest = longest.max(own + thought::ROOM as u64);
        generation.insert(MAX_NEW_TOKENS.to_owned(), (own + thought::ROOM as u64).into());
    }
    (longest > 0).then(|| {
        format!(
            "the chat template lets the model think before it answers: at most {longest} tokens each, {} of them more than for answers alone\n\
             hint: `--thinking off` does without where the template knows it; `--max-new-tokens` sets another limit",
            thought::ROOM
        )
    })
}

/// The longest turn of an answer to a benchmark, in tokens.
pub fn max_new_tokens(facts: &RunFacts, bench: &dyn Benchmark) -> usize {
    let card = bench.card();
    let settled = facts.benches.get(card.name).and_then(|facts| facts.generation.get(MAX_NEW_TOKENS)).and_then(Value::as_u64);
    facts.asked.max_new_tokens.or(settled.map(|tokens| tokens as usize)).unwrap_or(card.max_new_tokens)
}

/// # Errors
/// The run's responses are those of another model, or were asked with another template.
pub fn ensure_same_model(folder: &Path, before: &RunFacts, now: &ModelFacts, template: &str) -> Result<()> {
    ensure_same_weights(folder, &before.model, now)?;
    ensure!(
        before.model.sha256.is_none() || before.chat_template == template,
        "`{}` was answered with another chat template; evaluate into another folder with `--out`",
        folder.display()
    );
    Ok(())
}

/// # Errors
/// What the run has of a checkpoint is of another one.
pub fn ensure_same_weights(folder: &Path, before: &ModelFacts, now: &ModelFacts) -> Result<()> {
    let short = |hash: &Option<String>| hash.as_deref().map_or("unknown", |hash| &hash[..hash.len().min(12)]).to_owned();
    let folder = folder.display();
    if before.sha256.is_none() {
        return Ok(());
    }
    ensure!(
        before.sha256 == now.sha256,
        "`{folder}` holds responses of another model: `{}` with weights {} then, `{}` with weights {} now\n\
         hint: evaluate into another folder with `--out`",
        before.name,
        short(&before.sha256),
        now.name,
        short(&now.sha256)
    );
    ensure!(before.dtype == now.dtype, "`{folder}` was answered with another compute type; evaluate into another folder with `--out`");
    Ok(())
}
