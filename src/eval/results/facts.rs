//! `run.json`: what a run's lines were made with. Its writer is whoever generates and judges; readers take what is there.

use super::metric::Metric;
use crate::eval::asked::Asked;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The facts of one run: one checkpoint, any number of benchmarks and judges.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunFacts {
    /// What tables call the checkpoint.
    pub name: String,
    /// Of `mpo`.
    pub version: String,
    /// Commit of the working folder, where it is a repository.
    pub git_hash: Option<String>,
    pub model: ModelFacts,
    /// The checkpoint under which reward gaps were measured too.
    pub reference: Option<ModelFacts>,
    /// The checkpoint's own, as Jinja.
    pub chat_template: String,
    pub seed: u64,
    pub batch_size: usize,
    /// Prompts a language, where not all were taken.
    pub limit: Option<usize>,
    /// What the user asked for.
    pub asked: Asked,
    /// Start, in seconds since 1970.
    pub date: f64,
    /// Wall time of all starts, generation and judging.
    pub seconds: f64,
    /// How the checkpoint was trained, where that is known.
    pub training: Option<TrainingFacts>,
    pub benches: BTreeMap<String, BenchFacts>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelFacts {
    /// `org/name`, or the folder.
    pub name: String,
    pub revision: Option<String>,
    /// Of the weights.
    pub sha256: Option<String>,
    pub adapter: Option<String>,
    pub dtype: String,
    pub device: String,
    pub n_parameters: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainingFacts {
    /// The folder of `mpo train`, with its `metrics.jsonl`.
    pub folder: Option<PathBuf>,
    /// The language that supervised; none in plain preference data.
    pub dominant: Option<String>,
    /// The languages that were trained on, without the dominant one.
    pub targets: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BenchFacts {
    /// Of the prompts and the scoring, not of the data.
    pub version: String,
    /// Where the data came from, with its revision.
    pub source: String,
    /// Of the data.
    pub sha256: Option<String>,
    /// `max_gen_toks`, `temperature`, `do_sample`, `until`, as lm-evaluation-harness calls them.
    pub generation: Map<String, Value>,
    /// Prompts of each language before a limit.
    pub n_original: BTreeMap<String, usize>,
    /// By language, where a task has not the name `BENCH_LANG`: lm-evaluation-harness' own, if prompt, shots and stops are equal to its.
    pub task_names: BTreeMap<String, String>,
    /// By key, where a metric is not what [`Metric::known`] says.
    pub metrics: BTreeMap<String, Metric>,
    /// The metrics that this benchmark is about; those that are compared and tested. Empty: as [`Metric::known`] says.
    pub main: Vec<String>,
    /// By the NAME of `verdicts-NAME.jsonl`.
    pub judges: BTreeMap<String, JudgeFacts>,
}

/// A judge with the rubric that it had for one benchmark.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct JudgeFacts {
    /// `openai:gpt-4o`, `guard:…`, `keyword`; `rule` where a benchmark scores itself.
    pub name: String,
    pub rubric: String,
    /// Of the rubric's prompt.
    pub prompt_sha256: Option<String>,
    /// Those that the judge is made for; none where it names none.
    pub languages: Option<Vec<String>>,
    /// A rule of thumb, not a verdict: the report says so beside every number.
    pub heuristic: bool,
    /// The judge that translated responses first.
    pub translated_by: Option<String>,
    /// What an endpoint was asked for beside the question (`temperature`, `max_tokens`), or that it refuses that.
    pub parameters: BTreeMap<String, Value>,
    /// What a reader must know before comparing.
    pub caveats: Vec<String>,
}

impl JudgeFacts {
    /// Whether the judge is made for the language.
    pub fn covers(&self, lang: &str) -> bool {
        self.languages.as_ref().is_none_or(|languages| languages.iter().any(|covered| covered == lang))
    }
}

impl BenchFacts {
    /// The task of one language: `multijail_sw`.
    pub fn task(&self, bench: &str, lang: &str) -> String {
        self.task_names.get(lang).cloned().unwrap_or_else(|| format!("{}_{lang}", bench.replace('-', "_")))
    }

    pub fn metric(&self, key: &str) -> Metric {
        self.metrics.get(key).cloned().unwrap_or_else(|| Metric::known(key))
    }
}
