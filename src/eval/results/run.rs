//! A run's folder, read back.
//!
//! ```text
//! run.json                        RunFacts
//! contamination.json              what the training data shares with the benchmarks, if it was looked for
//! BENCH/items.jsonl               Items
//! BENCH/responses.jsonl           Responses
//! BENCH/reference.jsonl           Responses of the reference, where reward gaps are measured under one too
//! BENCH/verdicts-JUDGE.jsonl      Verdicts
//! ```

use super::facts::{BenchFacts, RunFacts};
use super::ranges;
use crate::eval::contamination::Contamination;
use crate::eval::item::Item;
use crate::eval::lines;
use crate::eval::record::{Key, Response, Verdict};
use crate::files::{read_json_as, write_atomically};
use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

pub const FACTS: &str = "run.json";
pub const CONTAMINATION: &str = "contamination.json";
pub const ITEMS: &str = "items.jsonl";
pub const RESPONSES: &str = "responses.jsonl";
pub const REFERENCE: &str = "reference.jsonl";
/// The judge of a benchmark that scores itself.
pub const RULE: &str = "rule";

/// `verdicts-JUDGE.jsonl`
pub fn verdicts_file(judge: &str) -> String {
    format!("verdicts-{judge}.jsonl")
}

/// What a run's folder holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoadedRun {
    pub folder: PathBuf,
    pub facts: RunFacts,
    /// By name.
    pub benches: BTreeMap<String, LoadedBench>,
    /// By benchmark; without entries where nothing was found or looked for.
    pub contamination: BTreeMap<String, Contamination>,
    /// Lines of the training run's `metrics.jsonl`: numbers by key.
    pub training_curve: Vec<BTreeMap<String, f64>>,
    /// What a reader should know: torn lines, lines of prompts that are gone.
    pub notes: Vec<String>,
}

/// One benchmark of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoadedBench {
    /// In file order.
    pub items: Vec<Item>,
    pub responses: BTreeMap<Key, Response>,
    /// Of the reference, where reward gaps are measured under one too.
    pub reference: BTreeMap<Key, Response>,
    /// By judge.
    pub verdicts: BTreeMap<String, BTreeMap<Key, Verdict>>,
    /// How many responses of each kind, by language: empty until they are counted, after reading.
    pub breakdown: BTreeMap<String, BTreeMap<String, usize>>,
    /// Whose verdicts the breakdown is by, where it is by any.
    pub breakdown_by: Option<String>,
}

impl LoadedRun {
    /// Reads a run's folder. A line that was torn when its writer was killed is left out, with a note.
    ///
    /// # Errors
    /// `run.json` is missing or damaged; a line is damaged, or has a number that its metric cannot have; two items are the same prompt in the same language; a line belongs to another
    /// benchmark's folder, or to a prompt that is not among the items.
    pub fn read(folder: &Path) -> Result<Self> {
        let facts: RunFacts = read_json_as(&folder.join(FACTS))
            .with_context(|| format!("`{}` is no folder of `mpo eval`, which has a `{FACTS}`", folder.display()))?;
        ranges::facts(&facts).with_context(|| format!("`{}`", folder.join(FACTS).display()))?;
        let no_facts = BenchFacts::default();
        let mut run = Self { folder: folder.to_owned(), facts, ..Self::default() };
        for name in bench_folders(folder)? {
            let facts = run.facts.benches.get(&name).unwrap_or(&no_facts);
            let bench = LoadedBench::read(&folder.join(&name), &name, facts, &mut run.notes)?;
            run.benches.insert(name, bench);
        }
        let contamination = folder.join(CONTAMINATION);
        if contamination.exists() {
            run.contamination = read_json_as(&contamination)?;
            ranges::contamination(&run.contamination).with_context(|| format!("`{}`", contamination.display()))?;
        }
        if let Some(training) = run.facts.training.as_ref().and_then(|training| training.folder.as_ref()) {
            let metrics = training.join("metrics.jsonl");
            if metrics.exists() {
                let lines = lines::read::<BTreeMap<String, Value>>(&metrics)?.values;
                run.training_curve = lines.into_iter().map(numbers).collect();
            }
        }
        Ok(run)
    }

    /// Writes `run.json` of `folder`.
    pub fn write_facts(folder: &Path, facts: &RunFacts) -> Result<()> {
        write_atomically(&folder.join(FACTS), serde_json::to_string_pretty(facts)?.as_bytes())
    }
}

impl LoadedBench {
    fn read(folder: &Path, name: &str, facts: &BenchFacts, notes: &mut Vec<String>) -> Result<Self> {
        let items: Vec<Item> = read_lines(&folder.join(ITEMS), notes, |_| Ok(()))?;
        let mut known = BTreeSet::new();
        for item in &items {
            let is_new = known.insert((item.lang.as_str(), item.id.as_str()));
            ensure!(is_new, "`{}`: prompt `{}` stands twice in `{}`", folder.join(ITEMS).display(), item.id, item.lang);
        }
        let check = |path: &Path, key: &Key| {
            ensure!(key.bench == name, "`{}` has a line of benchmark `{}`: it belongs to another folder", path.display(), key.bench);
            let is_known = known.contains(&(key.lang.as_str(), key.id.as_str()));
            ensure!(is_known, "`{}`: prompt `{}` in `{}` is not in `{ITEMS}`", path.display(), key.id, key.lang);
            Ok(())
        };
        let mut bench = Self::default();
        for (file, into) in [(RESPONSES, &mut bench.responses), (REFERENCE, &mut bench.reference)] {
            let path = folder.join(file);
            if !path.exists() {
                continue;
            }
            for response in read_lines::<Response>(&path, notes, ranges::response)? {
                check(&path, &response.key)?;
                into.insert(response.key.clone(), response);
            }
        }
        for judge in judges(folder)? {
            let path = folder.join(verdicts_file(&judge));
            let mut verdicts = BTreeMap::new();
            for verdict in read_lines::<Verdict>(&path, notes, |verdict| ranges::verdict(verdict, facts))? {
                check(&path, &verdict.key)?;
                verdicts.insert(verdict.key.clone(), verdict);
            }
            bench.verdicts.insert(judge, verdicts);
        }
        bench.items = items;
        Ok(bench)
    }

    /// Languages, in order of first appearance.
    pub fn languages(&self) -> Vec<String> {
        let mut languages: Vec<String> = Vec::new();
        for item in &self.items {
            if !languages.contains(&item.lang) {
                languages.push(item.lang.clone());
            }
        }
        languages
    }

    /// Samples of a prompt.
    pub fn responses_to<'a>(&'a self, item: &'a Item) -> impl Iterator<Item = &'a Response> {
        let bench = self.responses.keys().next().map(|key| key.bench.clone()).unwrap_or_default();
        let key = |sample| Key { bench: bench.clone(), lang: item.lang.clone(), id: item.id.clone(), sample };
        self.responses.range(key(0)..=key(u32::MAX)).map(|(_, response)| response)
    }
}

/// The folders with items, sorted.
fn bench_folders(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read `{}`", folder.display()))? {
        let entry = entry.with_context(|| format!("cannot read `{}`", folder.display()))?;
        if entry.path().join(ITEMS).exists() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// The judges whose verdicts a benchmark's folder has, sorted.
fn judges(folder: &Path) -> Result<Vec<String>> {
    let mut judges = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read `{}`", folder.display()))? {
        let name = entry.with_context(|| format!("cannot read `{}`", folder.display()))?.file_name().to_string_lossy().into_owned();
        judges.extend(name.strip_prefix("verdicts-").and_then(|name| name.strip_suffix(".jsonl")).map(ToOwned::to_owned));
    }
    judges.sort();
    Ok(judges)
}

fn read_lines<T: DeserializeOwned>(path: &Path, notes: &mut Vec<String>, check: impl Fn(&T) -> Result<()>) -> Result<Vec<T>> {
    let lines = lines::read_checked(path, check)?;
    if lines.torn {
        notes.push(format!("the last line of `{}` was cut short and is left out", path.display()));
    }
    Ok(lines.values)
}

fn numbers(line: BTreeMap<String, Value>) -> BTreeMap<String, f64> {
    line.into_iter().filter_map(|(key, value)| Some((key, value.as_f64()?))).collect()
}
