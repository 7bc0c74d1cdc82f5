//! From lines to numbers: a run's folder read back, what it measured, and the result files.
//!
//! ```text
//! folder                     run      -> LoadedRun: facts, items, responses, verdicts by judge
//! one benchmark, one judge   scores   -> Scores: values by metric, language and prompt
//! Scores                     measure  -> a value with its interval, an average over languages
//! everything                 harness  -> results_TIME.json
//!                            samples  -> samples_TASK_TIME.jsonl
//! ```
//!
//! The files have the layout of lm-evaluation-harness 0.4, so that its readers and viewers take them. `tests/oracle/lm_eval_reader.py` shows that they do.

pub mod facts;
pub mod harness;
pub mod languages;
pub mod measure;
pub mod metric;
mod ranges;
pub mod run;
pub mod samples;
pub mod scores;
pub mod time;

use self::harness::Judged;
use self::measure::Settings;
use self::run::LoadedRun;
use crate::eval::item::Item;
use crate::eval::lines;
use crate::eval::record::Response;
use crate::files::write_atomically;
use anyhow::{Context, Result};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// How [`write()`] writes.
pub struct Writing<'a> {
    /// Where the model's folder goes.
    pub out: &'a Path,
    /// Whose verdicts count: the judge's name, or the NAME of `verdicts-NAME.jsonl`. Benchmarks that score themselves need none.
    pub judge: Option<&'a str>,
    /// In seconds since 1970, UTC. It names the files and is in none of their numbers.
    pub now: f64,
    pub settings: Settings,
    /// What a benchmark's filter reads off a response, if the benchmark has the filter.
    pub filtered: &'a dyn Fn(&Answered) -> Option<String>,
}

/// A response and the filter to read it by.
#[derive(Debug, Clone, Copy)]
pub struct Answered<'a> {
    pub bench: &'a str,
    pub item: &'a Item,
    pub response: &'a Response,
    pub filter: &'a str,
}

/// What [`write()`] wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    pub results: PathBuf,
    pub samples: Vec<PathBuf>,
}

/// Writes a run's result files into `out/MODEL`, each of them whole or not at all, the samples first: where the results are, all is. Files that say
/// the same already stay, and none are added, so that a run which goes on after its end leaves what it found.
///
/// # Errors
/// A benchmark has verdicts of several judges and none was named; a file cannot be written.
pub fn write(run: &LoadedRun, writing: &Writing) -> Result<Written> {
    let judged = harness::judged(run, writing.judge)?;
    let folder = writing.out.join(harness::sanitized(&run.facts.model.name));
    let tasks: Vec<(String, &Judged, &String)> =
        judged.iter().flat_map(|bench| bench.scores.languages.iter().map(move |lang| (bench.task(lang), bench, lang))).collect();
    let rows = |bench: &Judged, lang: &str| samples::rows(bench, lang, writing.filtered);
    let hashes = tasks.iter().map(|(task, bench, lang)| (task.clone(), samples::task_hash(&rows(bench, lang)).into()));
    let document = serde_json::to_string_pretty(&harness::document(run, &judged, hashes.collect(), &writing.settings))?;

    let before = written_before(&folder)?;
    // Read back as the others were, so that equal digits are equal numbers.
    let own = without_duration(serde_json::from_str(&document)?);
    let same = before.iter().find(|(_, known)| without_duration(known.clone()) == own);
    let stamp = same.map_or_else(|| time::stamp(writing.now), |(stamp, _)| stamp.clone());
    remove_unfinished(&folder, &before)?;
    let samples = tasks.iter().map(|(task, ..)| folder.join(format!("samples_{task}_{stamp}.jsonl"))).collect();
    let written = Written { results: folder.join(format!("results_{stamp}.json")), samples };
    if same.is_none() {
        for ((_, bench, lang), path) in tasks.iter().zip(&written.samples) {
            lines::write(path, &rows(bench, lang))?;
        }
        write_atomically(&written.results, document.as_bytes())?;
    }
    Ok(written)
}

/// The time in a file's name, and what the file says, of all results in a folder.
fn written_before(folder: &Path) -> Result<Vec<(String, Value)>> {
    let mut found = Vec::new();
    for name in names(folder)? {
        let Some(stamp) = name.strip_prefix("results_").and_then(|name| name.strip_suffix(".json")) else { continue };
        // What is no JSON is not ours, and nothing to compare with.
        let text = fs::read(folder.join(&name)).with_context(|| format!("cannot read `{}`", folder.join(&name).display()))?;
        found.push((stamp.to_owned(), serde_json::from_slice(&text).unwrap_or_default()));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// Removes samples whose results were never written: what a process left that was killed before its end.
fn remove_unfinished(folder: &Path, finished: &[(String, Value)]) -> Result<()> {
    for name in names(folder)? {
        let Some((_, stamp)) = name.strip_prefix("samples_").and_then(|name| name.strip_suffix(".jsonl")?.rsplit_once('_')) else {
            continue;
        };
        if finished.iter().all(|(known, _)| known != stamp) {
            let path = folder.join(&name);
            fs::remove_file(&path).with_context(|| format!("cannot remove `{}`", path.display()))?;
        }
    }
    Ok(())
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let context = || format!("cannot read `{}`", folder.display());
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(folder).with_context(context)?;
    entries.map(|entry| Ok(entry.with_context(context)?.file_name().to_string_lossy().into_owned())).collect()
}

/// The one thing that two runs over the same files do not share.
fn without_duration(mut document: Value) -> Value {
    document.as_object_mut().map(|document| document.remove("total_evaluation_time_seconds"));
    document
}
