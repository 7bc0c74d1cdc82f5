//! `mpo eval report`, and the result files of a run.

use super::{facts, print};
use crate::eval::bench::find;
use crate::eval::judging::count_kinds;
use crate::eval::report::{Options, Report};
use crate::eval::results;
use crate::eval::results::measure::Settings;
use crate::eval::results::run::LoadedRun;
use crate::eval::results::{Answered, Writing};
use crate::files::write_atomically;
use crate::progress::say;
use anyhow::Result;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Prints the table, and writes the page where one is asked for.
pub fn run(runs: &[PathBuf], baseline: Option<&Path>, html: Option<&Path>, judge: Option<&str>) -> Result<ExitCode> {
    // The baseline is a row too, the first, whether it is named among the runs or not.
    let is_baseline = |run: &&PathBuf| baseline.is_some_and(|baseline| same_folder(run, baseline));
    let others = runs.iter().filter(|run| !is_baseline(run)).map(PathBuf::as_path);
    let loaded = baseline.into_iter().chain(others).map(|run| read(run, judge)).collect::<Result<Vec<_>>>()?;
    let baseline = baseline.and(loaded.first()).map(|run| run.facts.name.clone());
    let report = Report::new(&loaded, &Options { baseline, judge: judge.map(str::to_owned), ..Options::default() })?;
    print(&report.text())?;
    if let Some(path) = html {
        write_atomically(path, report.html()?.as_bytes())?;
        say(&format!("wrote `{}`", path.display()));
    }
    Ok(ExitCode::SUCCESS)
}

fn same_folder(a: &Path, b: &Path) -> bool {
    a.canonicalize().ok().zip(b.canonicalize().ok()).is_some_and(|(a, b)| a == b)
}

/// A run with what its responses are, as its only judge, or the named one, has it.
fn read(folder: &Path, judge: Option<&str>) -> Result<LoadedRun> {
    let mut run = LoadedRun::read(folder)?;
    count(&mut run, judge);
    Ok(run)
}

/// Counts what responses are by the verdicts of `judge`; of the first judge that is no heuristic where none is named.
fn count(run: &mut LoadedRun, judge: Option<&str>) {
    for bench in run.benches.values_mut() {
        let names: Vec<String> = bench.verdicts.keys().cloned().collect();
        let of_a_model = names.iter().find(|name| name.as_str() != "keyword");
        let judge = judge.map(str::to_owned).or_else(|| of_a_model.or(names.first()).cloned());
        count_kinds(bench, judge.as_deref());
    }
}

/// Writes the files that other programs read, one set for each judge, and prints the table of a run.
pub fn conclude(folder: &Path) -> Result<()> {
    let mut run = read(folder, None)?;
    let written = write_results(folder, &mut run)?;
    count(&mut run, None);
    print(&Report::new(&[run], &Options::default())?.text())?;
    written.iter().for_each(|path| say(&format!("wrote `{}`", path.display())));
    Ok(())
}

fn write_results(folder: &Path, run: &mut LoadedRun) -> Result<Vec<PathBuf>> {
    let names = run.benches.values().flat_map(|bench| bench.verdicts.keys());
    let judges: BTreeSet<String> = names.filter(|name| name.as_str() != results::run::RULE).cloned().collect();
    let filtered = |answered: &Answered| {
        let bench = find(answered.bench).ok().filter(|bench| bench.filters().contains(&answered.filter))?;
        Some(bench.filtered(answered.item, answered.response, answered.filter))
    };
    let mut written = Vec::new();
    // A second more for each, since the time is in the files' names.
    let judges: Vec<Option<String>> = if judges.is_empty() { vec![None] } else { judges.into_iter().map(Some).collect() };
    for (more, judge) in judges.into_iter().enumerate() {
        let now = facts::now() + more as f64;
        let judge = judge.as_deref();
        count(run, judge);
        let writing = Writing { judge, out: folder, now, settings: Settings::default(), filtered: &filtered };
        written.push(results::write(run, &writing)?.results);
    }
    Ok(written)
}
