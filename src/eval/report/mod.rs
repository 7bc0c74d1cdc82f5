//! The report: a paper's table as text, one page as HTML. No model and no tensor: runs are read back from their files.
//!
//! ```text
//! LoadedRuns   compare -> tables with intervals, tests against a baseline
//!              kept    -> non-inferiority, reward gap against attack success
//!              reference -> reward gaps beside the reference's
//!              notes   -> what a reader must know to believe a number
//! Report       text    -> for a terminal
//!              plots   -> SVG
//!              html    -> one self-contained page
//! ```
//!
//! A row has one judge. Averages are over the languages that every row of a table has. A number without its conditions is not printed: the notes
//! name judge, rubric, prompt, template, number of prompts, unread verdicts.

pub mod compare;
mod grid;
mod html;
pub mod kept;
pub mod notes;
mod plots;
pub mod reference;
mod text;

use self::compare::{Source, Table};
use self::kept::{GapAgainstAttack, Kept};
use self::reference::AgainstReference;
use super::results::facts::TrainingFacts;
use super::results::harness::{Judged, judged};
use super::results::measure::Settings;
use super::results::run::{LoadedBench, LoadedRun};
use super::stats::non_inferiority::MARGIN;
use anyhow::{Result, bail, ensure};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// What a user chooses of a report.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The run that the others are compared with, by name.
    pub baseline: Option<String>,
    /// One judge for all runs; none shows every judge in rows of its own.
    pub judge: Option<String>,
    /// A loss that would not matter, as a share of a metric's scale.
    pub margin: f64,
    pub settings: Settings,
}

impl Default for Options {
    fn default() -> Self {
        Self { baseline: None, judge: None, margin: MARGIN, settings: Settings::default() }
    }
}

/// All numbers of a report.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// In the order given, each once.
    pub runs: Vec<String>,
    pub baseline: Option<String>,
    pub tables: Vec<Table>,
    pub kept: Vec<Kept>,
    pub references: Vec<AgainstReference>,
    pub gaps: Vec<GapAgainstAttack>,
    pub breakdowns: Vec<Breakdown>,
    pub curves: Vec<Curve>,
    pub notes: Vec<String>,
}

/// How many responses of each kind, by language.
#[derive(Debug, Clone, Serialize)]
pub struct Breakdown {
    pub run: String,
    pub bench: String,
    /// Whose verdicts it is by, where it is by any: the NAME of `verdicts-NAME.jsonl`.
    pub verdicts: Option<String>,
    pub by_language: Vec<(String, BTreeMap<String, usize>)>,
}

/// The training of one run, as its `metrics.jsonl` has it.
#[derive(Debug, Clone, Serialize)]
pub struct Curve {
    pub run: String,
    pub lines: Vec<BTreeMap<String, f64>>,
}

impl Report {
    /// Compares `runs`.
    ///
    /// # Errors
    /// No run; a baseline that is none of them, or a judge of which no run has a verdict: the error names those there are.
    pub fn new(runs: &[LoadedRun], options: &Options) -> Result<Self> {
        ensure!(!runs.is_empty(), "there is no run to report: name the folder of one, `mpo eval report RUN`");
        let sources = sources(runs, options.judge.as_deref())?;
        let names: Vec<String> = sources.iter().map(|source| source.name.clone()).collect();
        if let Some(baseline) = &options.baseline {
            ensure!(names.contains(baseline), "the baseline `{baseline}` is none of the runs: {}", names.join(", "));
        }
        let baseline = options.baseline.as_deref();
        let training = training(runs);
        let (tables, n_tests) = compare::tables(&sources, baseline, training.as_ref(), &options.settings);
        let kept = baseline.map(|baseline| kept::kept(&sources, &tables, baseline, options.margin, &options.settings)).unwrap_or_default();
        let gaps = kept::gaps_against_attacks(&tables, &options.settings);
        let reference = |(run, name): (&LoadedRun, &String)| Some((name.clone(), run.facts.reference.as_ref()?.name.clone()));
        let references = reference::against_references(&tables, &runs.iter().zip(&names).filter_map(reference).collect());
        let conditions = notes::Conditions { options, training: training.as_ref(), n_tests };
        let notes = notes::notes(runs, &sources, &tables, &gaps, &conditions);
        let with_name = || runs.iter().zip(&names);
        let curve = |(run, name): (&LoadedRun, &String)| Curve { run: name.clone(), lines: run.training_curve.clone() };
        let is_first = |index: usize| !names[..index].contains(&names[index]);
        let once = || with_name().enumerate().filter(|(index, _)| is_first(*index)).map(|(_, pair)| pair);
        let curves = once().filter(|(run, _)| !run.training_curve.is_empty()).map(curve).collect();
        let breakdowns = with_name().flat_map(|(run, name)| breakdowns(run, name)).collect();
        let runs = once().map(|(_, name)| name.clone()).collect();
        Ok(Self { baseline: options.baseline.clone(), runs, tables, kept, references, gaps, breakdowns, curves, notes })
    }

    /// Tables of numbers that explain the main ones, but for those that another part shows.
    fn beside(&self) -> impl Iterator<Item = &Table> {
        self.tables.iter().filter(|table| !table.is_main && !reference::is_shown(table))
    }

    /// For a terminal: tables, claims, notes. Names that come from files are escaped.
    pub fn text(&self) -> String {
        text::text(self)
    }

    /// One page that needs nothing beside it: no script, no font, no file.
    pub fn html(&self) -> Result<String> {
        html::html(self)
    }
}

/// Each run with its name and its benchmarks. Runs of one checkpoint on other benchmarks share a name, and so a row; any others get one of their own.
fn sources<'a>(runs: &'a [LoadedRun], judge: Option<&str>) -> Result<Vec<Source<'a>>> {
    let mut sources: Vec<Source> = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let wished = if run.facts.name.is_empty() { run.facts.model.name.clone() } else { run.facts.name.clone() };
        let before = &runs[..index];
        let is_free = |name: &str| sources.iter().zip(before).all(|(source, other)| source.name != name || belong_together(run, other));
        let numbered = (2..).map(|n| format!("{wished} ({n})"));
        let name = std::iter::once(wished.clone()).chain(numbered).find(|name| is_free(name)).unwrap_or_default();
        let judged = match judge {
            Some(judge) => judged(run, Some(judge))?,
            None => all_judges(run),
        };
        sources.push(Source { name, judged: judged.into_iter().filter(|judged| judged.judge.is_some()).collect() });
    }
    if let Some(judge) = judge
        && !sources.iter().flat_map(|source| &source.judged).any(|judged| judged.is_by(judge))
    {
        let benches = runs.iter().flat_map(|run| run.benches.values());
        let known: BTreeSet<&str> = benches.flat_map(|bench| bench.verdicts.keys()).map(String::as_str).collect();
        let known = if known.is_empty() { "nobody" } else { &known.into_iter().collect::<Vec<_>>().join(", ") };
        bail!("no run was judged by `{judge}`; there are verdicts of {known}");
    }
    Ok(sources)
}

/// Whether two runs are of the same weights, on different benchmarks.
fn belong_together(a: &LoadedRun, b: &LoadedRun) -> bool {
    let checkpoint = |run: &LoadedRun| run.facts.model.sha256.clone().map(|sha256| (sha256, run.facts.model.adapter.clone()));
    checkpoint(a).is_some() && checkpoint(a) == checkpoint(b) && a.benches.keys().all(|bench| !b.benches.contains_key(bench))
}

fn all_judges(run: &LoadedRun) -> Vec<Judged<'_>> {
    let mut all = Vec::new();
    for (name, bench) in &run.benches {
        all.extend(bench.verdicts.keys().map(|judge| Judged::new(run, name, bench, Some(judge))));
    }
    all
}

/// What the runs say of training, where those that say something agree.
fn training(runs: &[LoadedRun]) -> Option<TrainingFacts> {
    let mut known = runs.iter().filter_map(|run| run.facts.training.as_ref()).filter(|training| training.dominant.is_some());
    let first = known.next()?;
    known.all(|other| (&other.dominant, &other.targets) == (&first.dominant, &first.targets)).then(|| first.clone())
}

fn breakdowns(run: &LoadedRun, name: &str) -> Vec<Breakdown> {
    let of_bench = |(bench, loaded): (&String, &LoadedBench)| {
        let counts = |lang: String| loaded.breakdown.get(&lang).cloned().map(|counts| (lang, counts));
        let by_language: Vec<_> = loaded.languages().into_iter().filter_map(counts).collect();
        (!by_language.is_empty()).then(|| {
            let (run, bench, verdicts) = (name.to_owned(), bench.clone(), loaded.breakdown_by.clone());
            Breakdown { run, bench, verdicts, by_language }
        })
    };
    run.benches.iter().filter_map(of_bench).collect()
}
