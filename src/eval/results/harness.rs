//! `results_TIME.json` in the layout of lm-evaluation-harness 0.4: what its `result_schema.py` describes, and under the one further key `mpo`
//! what that layout has no place for: intervals, judges, counts, averages.
//!
//! Values are fractions with all their digits. The harness' own version fields are left out: it did not run.

use super::facts::{BenchFacts, JudgeFacts, TrainingFacts};
use super::languages::{Over, averages};
use super::measure::{Measured, Settings, average, measure};
use super::metric::{Better, full_key, split_key};
use super::run::{LoadedBench, LoadedRun, RULE};
use super::scores::Scores;
use crate::digest::hex;
use crate::eval::stats::ALPHA;
use anyhow::{Result, bail};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// One benchmark of a run as one judge sees it.
#[derive(Debug, Clone)]
pub struct Judged<'a> {
    pub name: &'a str,
    pub bench: &'a LoadedBench,
    pub facts: BenchFacts,
    /// None where nothing has been judged.
    pub judge: Option<String>,
    pub judge_facts: JudgeFacts,
    pub scores: Scores,
    /// Without the prompts that were trained on; none where there are no such prompts.
    pub without_trained: Option<Scores>,
}

impl<'a> Judged<'a> {
    pub fn new(run: &LoadedRun, name: &'a str, bench: &'a LoadedBench, judge: Option<&str>) -> Self {
        let facts = run.facts.benches.get(name).cloned().unwrap_or_default();
        let judge_facts = judge
            .and_then(|judge| facts.judges.get(judge).cloned())
            .unwrap_or_else(|| JudgeFacts { name: judge.unwrap_or("none").to_owned(), ..JudgeFacts::default() });
        let trained = run.contamination.get(name).map(|found| found.ids()).filter(|ids| !ids.is_empty());
        Self {
            name,
            bench,
            facts,
            judge: judge.map(ToOwned::to_owned),
            judge_facts,
            scores: Scores::of(bench, judge, &BTreeSet::new()),
            without_trained: trained.map(|ids| Scores::of(bench, judge, &ids)),
        }
    }

    pub fn task(&self, lang: &str) -> String {
        self.facts.task(self.name, lang)
    }

    /// Whether the verdicts are those of the judge that a user means: the NAME of `verdicts-NAME.jsonl`, or the judge's own, with or without what
    /// stands behind its `@` (where an endpoint is, what a guard's weights are).
    pub fn is_by(&self, judge: &str) -> bool {
        let own = self.judge_facts.name.as_str();
        let is_own = own == judge || own.split_once('@').is_some_and(|(bare, _)| bare == judge);
        self.judge.as_deref() == Some(judge) || self.judge.is_some() && is_own
    }

    /// The metrics that the benchmark is about: of several filters of one metric the first, unless its facts name them.
    pub fn main_metrics(&self) -> Vec<String> {
        if !self.facts.main.is_empty() {
            return self.scores.metrics().filter(|key| self.facts.main.iter().any(|main| main == key)).map(ToOwned::to_owned).collect();
        }
        let mut metrics: Vec<String> = Vec::new();
        for key in self.scores.metrics().filter(|key| self.facts.metric(key).main) {
            if !metrics.iter().any(|other| split_key(other).0 == split_key(key).0) {
                metrics.push(key.to_owned());
            }
        }
        metrics
    }

    /// The languages that averages may be over: those that the judge is made for.
    pub fn covered(&self, metric: &str) -> Vec<String> {
        self.scores.measured(metric).into_iter().filter(|lang| self.judge_facts.covers(lang)).collect()
    }
}

/// Each benchmark of a run with the judge that counts for it: `judge` (see [`Judged::is_by`]) where it gave verdicts, else the benchmark's own rule.
/// Benchmarks without either are there without scores.
///
/// # Errors
/// Several judges gave verdicts on a benchmark, and none was named, or the name fits several.
pub fn judged<'a>(run: &'a LoadedRun, judge: Option<&str>) -> Result<Vec<Judged<'a>>> {
    let choose = |(name, bench): (&'a String, &'a LoadedBench)| {
        let all = || bench.verdicts.keys().map(|judge| Judged::new(run, name, bench, Some(judge)));
        let mut found: Vec<Judged> = match judge {
            Some(judge) => all().filter(|judged| judged.is_by(judge)).collect(),
            None => Vec::new(),
        };
        if found.is_empty() {
            found = all().filter(|judged| judged.judge.as_deref() == Some(RULE)).collect();
        }
        if found.is_empty() && judge.is_none() {
            found = all().collect();
        }
        if found.len() > 1 {
            let names: Vec<&str> = found.iter().filter_map(|judged| judged.judge.as_deref()).collect();
            bail!("`{name}` has verdicts of {}: name one of them with `--judge`", names.join(", "));
        }
        Ok(found.pop().unwrap_or_else(|| Judged::new(run, name, bench, None)))
    };
    run.benches.iter().map(choose).collect()
}

/// The whole document.
pub fn document(run: &LoadedRun, judged: &[Judged], task_hashes: Map<String, Value>, settings: &Settings) -> Value {
    let mut parts = Parts::default();
    for bench in judged {
        parts.add(bench, run.facts.training.as_ref(), run.facts.limit, settings);
    }
    let facts = &run.facts;
    let system: Option<String> = None;
    json!({
        "results": parts.results,
        "groups": parts.groups,
        "group_subtasks": parts.group_subtasks,
        "configs": parts.configs,
        "versions": parts.versions,
        "n-shot": parts.n_shot,
        "higher_is_better": parts.higher_is_better,
        "n-samples": parts.n_samples,
        "config": config(run, settings),
        "git_hash": facts.git_hash,
        "date": facts.date,
        "task_hashes": task_hashes,
        "model_source": "mpo",
        "model_name": facts.model.name,
        "model_name_sanitized": sanitized(&facts.model.name),
        "system_instruction": system,
        "system_instruction_sha": system,
        "fewshot_as_multiturn": Value::Null,
        "chat_template": facts.chat_template,
        "chat_template_sha": sha256(facts.chat_template.as_bytes()),
        "total_evaluation_time_seconds": facts.seconds.to_string(),
        "mpo": {
            "version": facts.version,
            "name": facts.name,
            "adapter": facts.model.adapter,
            "training": facts.training,
            "level": 1.0 - ALPHA,
            "resampling": settings.resampling,
            "benches": parts.benches,
            "tasks": parts.tasks,
            "contamination": run.contamination,
            "notes": run.notes,
        },
    })
}

fn config(run: &LoadedRun, settings: &Settings) -> Value {
    let model = &run.facts.model;
    let generation: Map<String, Value> =
        run.facts.benches.iter().map(|(name, bench)| (name.clone(), bench.generation.clone().into())).collect();
    json!({
        "model": "mpo",
        "model_args": format!("pretrained={},dtype={}", model.name, model.dtype),
        "model_num_parameters": model.n_parameters,
        "model_dtype": model.dtype,
        "model_revision": model.revision,
        "model_sha": model.sha256,
        "batch_size": run.facts.batch_size.to_string(),
        "batch_sizes": [],
        "device": model.device,
        "use_cache": Value::Null,
        "limit": run.facts.limit,
        "bootstrap_iters": settings.resampling.resamples,
        "gen_kwargs": generation,
        "random_seed": run.facts.seed,
    })
}

/// The parts of a document that have an entry for each task.
#[derive(Default)]
struct Parts {
    results: Map<String, Value>,
    groups: Map<String, Value>,
    group_subtasks: Map<String, Value>,
    configs: Map<String, Value>,
    versions: Map<String, Value>,
    n_shot: Map<String, Value>,
    higher_is_better: Map<String, Value>,
    n_samples: Map<String, Value>,
    tasks: Map<String, Value>,
    benches: Map<String, Value>,
}

impl Parts {
    fn add(&mut self, bench: &Judged, training: Option<&TrainingFacts>, limit: Option<usize>, settings: &Settings) {
        for lang in &bench.scores.languages {
            self.add_task(bench, lang, settings);
        }
        self.add_averages(bench, training, settings);
        let any_language: BTreeMap<String, Measured> = bench
            .main_metrics()
            .into_iter()
            .filter(|key| bench.facts.metric(key).better == Better::Lower)
            .filter_map(|key| {
                let languages = bench.covered(&key);
                let values = bench.scores.in_any_language(&key, &languages);
                let measured = measure(&values, bench.facts.metric(&key).scale, settings.resampling)?;
                (languages.len() > 1).then_some((key, measured))
            })
            .collect();
        self.benches.insert(
            bench.name.to_owned(),
            json!({
                "judge": bench.judge_facts,
                "source": bench.facts.source,
                "sha256": bench.facts.sha256,
                "main_metrics": bench.main_metrics(),
                "is_subset": limit.is_some(),
                "in_any_language": any_language,
            }),
        );
    }

    fn add_task(&mut self, bench: &Judged, lang: &str, settings: &Settings) {
        let task = bench.task(lang);
        let counts = bench.scores.counts.get(lang).copied().unwrap_or_default();
        let mut entry = Map::from_iter([
            ("name".to_owned(), json!(task)),
            ("alias".to_owned(), json!(task)),
            ("sample_len".to_owned(), json!(counts.prompts)),
        ]);
        let (mut metrics, mut clean, mut directions, mut list) = (Map::new(), Map::new(), Map::new(), Vec::new());
        for key in bench.scores.metrics() {
            let metric = bench.facts.metric(key);
            let measured = |scores: &Scores| measure(scores.values(key, lang)?, metric.scale, settings.resampling);
            let Some(found) = measured(&bench.scores) else { continue };
            insert_value(&mut entry, key, found.value, found.stderr);
            metrics.insert(key.to_owned(), json!(found));
            clean.extend(bench.without_trained.as_ref().and_then(measured).map(|found| (key.to_owned(), json!(found))));
            let higher_is_better = metric.better.higher_is_better();
            let name = split_key(key).0;
            if directions.insert(name.to_owned(), json!(higher_is_better)).is_none() {
                list.push(json!({"metric": name, "aggregation": "mean", "higher_is_better": higher_is_better}));
            }
        }
        self.results.insert(task.clone(), entry.into());
        self.higher_is_better.insert(task.clone(), directions.into());
        self.configs.insert(task.clone(), task_config(bench, &task, list));
        self.versions.insert(task.clone(), json!(bench.facts.version));
        self.n_shot.insert(task.clone(), json!(0));
        let original = bench.facts.n_original.get(lang).copied().unwrap_or(counts.prompts);
        self.n_samples.insert(task.clone(), json!({"original": original, "effective": counts.prompts}));
        let breakdown = bench.bench.breakdown.get(lang);
        self.tasks.insert(
            task,
            json!({
                "bench": bench.name, "lang": lang, "judge_covers": bench.judge_facts.covers(lang), "counts": counts, "metrics": metrics,
                "metrics_without_trained_prompts": bench.without_trained.is_some().then_some(clean), "breakdown": breakdown,
            }),
        );
    }

    /// A group `BENCH` over all languages, as the harness would have it, and one for each average of the report.
    fn add_averages(&mut self, bench: &Judged, training: Option<&TrainingFacts>, settings: &Settings) {
        let group = bench.name.replace('-', "_");
        let tasks = |languages: &[String]| languages.iter().map(|lang| bench.task(lang)).collect::<Vec<_>>();
        let mut wanted = vec![(Over::All, bench.scores.languages.clone())];
        wanted.extend(averages(&bench.scores.languages, training).into_iter().filter(|(over, _)| *over != Over::All));
        for (over, languages) in wanted {
            let name = match over {
                Over::All => group.clone(),
                Over::Targets => format!("{group}_targets"),
                Over::Trained => format!("{group}_trained"),
                Over::Untrained => format!("{group}_untrained"),
            };
            let mut entry = Map::from_iter([("name".to_owned(), json!(name)), ("alias".to_owned(), json!(name))]);
            let (mut counts, mut intervals, mut directions) = (Map::new(), Map::new(), Map::new());
            for key in bench.scores.metrics() {
                let covered = bench.covered(key);
                if languages.iter().all(|lang| covered.contains(lang))
                    && let Some(found) = average(&bench.scores, key, &languages, settings.resampling)
                {
                    insert_value(&mut entry, key, found.value, Some(found.stderr));
                    counts.insert(full_key(key), json!(found.n));
                    directions.insert(split_key(key).0.to_owned(), json!(bench.facts.metric(key).better.higher_is_better()));
                    intervals.insert(key.to_owned(), json!(found));
                }
            }
            if intervals.is_empty() || languages.len() < 2 {
                continue;
            }
            entry.insert("sample_count".to_owned(), counts.into());
            self.groups.insert(name.clone(), entry.clone().into());
            self.results.insert(name.clone(), entry.into());
            self.versions.insert(name.clone(), json!(bench.facts.version));
            self.n_shot.insert(name.clone(), json!(0));
            self.higher_is_better.insert(name.clone(), directions.into());
            self.tasks.insert(name.clone(), json!({"bench": bench.name, "over": over, "metrics": intervals}));
            self.group_subtasks.insert(name, json!(tasks(&languages)));
        }
    }
}

fn insert_value(entry: &mut Map<String, Value>, key: &str, value: f64, stderr: Option<f64>) {
    let (metric, filter) = split_key(key);
    entry.insert(full_key(key), json!(value));
    // What the harness writes where there is no standard error.
    entry.insert(format!("{metric}_stderr,{filter}"), stderr.map_or_else(|| json!("N/A"), |stderr| json!(stderr)));
}

fn task_config(bench: &Judged, task: &str, metrics: Vec<Value>) -> Value {
    let scores_choices = bench.bench.items.iter().any(|item| !item.choices.is_empty());
    let filters: BTreeSet<&str> = bench.scores.metrics().map(|key| split_key(key).1).collect();
    let filters: Vec<Value> = filters.iter().filter(|filter| **filter != "none").map(|name| json!({"name": name})).collect();
    let mut config = json!({
        "task": task,
        "tag": bench.name,
        "dataset_path": bench.facts.source,
        "output_type": if scores_choices { "multiple_choice" } else { "generate_until" },
        "generation_kwargs": bench.facts.generation,
        "num_fewshot": 0,
        "metric_list": metrics,
        "metadata": {"version": bench.facts.version},
    });
    if let (Some(config), false) = (config.as_object_mut(), filters.is_empty()) {
        config.insert("filter_list".to_owned(), filters.into());
    }
    config
}

/// A model's name as a folder's, by the harness' rule; never a folder above.
pub fn sanitized(name: &str) -> String {
    let mut sanitized = String::new();
    let mut in_run = false;
    for c in name.chars() {
        let is_special = "\"<>:/|\\?*[]".contains(c);
        if !is_special {
            sanitized.push(c);
        } else if !in_run {
            sanitized.push_str("__");
        }
        in_run = is_special;
    }
    if sanitized.chars().all(|c| c == '.') { format!("model{sanitized}") } else { sanitized }
}

/// Lower-case hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `lm_eval.utils.sanitize_model_name`, but for names that would leave the folder.
    #[test]
    fn names_of_folders() {
        for (name, expected) in [
            ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB__SmolLM2-135M"),
            ("/runs/a b", "__runs__a b"),
            ("a://b", "a__b"),
            ("..", "model.."),
            ("", "model"),
            ("../x", "..__x"),
        ] {
            assert_eq!(sanitized(name), expected);
        }
    }
}
