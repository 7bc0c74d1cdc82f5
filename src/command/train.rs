//! `mpo train`: a configuration, or a run to go on with, to a trained model.

use super::plan::{first_lines, memory_in_words};
use super::print;
use crate::cli::{DEFAULT_TRACE, TrainArgs};
use crate::config::{self, RunConfig};
use crate::data::check::Severity;
use crate::data::encode::EncodedRow;
use crate::data::loader::{Loader, dominant_numbers};
use crate::device::{self, gib};
use crate::interrupt;
use crate::progress::say;
use crate::train::checkpoint::Found;
use crate::train::claim::Claim;
use crate::train::forecast::Forecast;
use crate::train::phases::Phases;
use crate::train::prepare::Prepared;
use crate::train::profile::Profile;
use crate::train::run::{Ending, Machine};
use crate::train::{resume, start};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// Time for measuring what the step's use of the machine is compared with.
const MEASURING: Duration = Duration::from_millis(150);

/// Runs `mpo train`; without `--config` and `--resume` the caller has said what to do.
///
/// # Errors
/// Whatever is wrong with configuration, data, model or folder, before anything is written; a run that cannot go on.
pub fn run(args: &TrainArgs) -> Result<ExitCode> {
    let opened = opened(args.resume.as_deref(), args.settings.config.as_deref(), &args.settings.set)?;
    if opened.is_finished && !args.dry_run {
        let out = &opened.config.output.dir;
        say(&format!("The run in `{}` is finished: the model is in `{}`.", out.display(), out.join("final").display()));
        return Ok(ExitCode::SUCCESS);
    }
    let Opened { config, found, .. } = opened;
    let threads = device::thread_pool(&config.hardware)?;
    threads.install(|| {
        let prepared = Prepared::new(config, found.as_ref())?;
        if args.dry_run {
            let forecast = Forecast::new(&prepared, &prepared.config, n_taken(found.as_ref()), device::rss_bytes())?;
            let available = forecast.available();
            let held = forecast.held(forecast.choose(&available)?);
            print(&describe(&prepared, &memory_in_words(&held, &available))?)?;
            return Ok(ExitCode::SUCCESS);
        }
        let out = prepared.config.output.dir.clone();
        ended(train(prepared, found, args.profile.as_deref())?, &out)
    })
}

/// A run to begin, or to go on with.
pub(super) struct Opened {
    pub config: RunConfig,
    found: Option<Found>,
    /// Nothing is left to do.
    pub is_finished: bool,
}

/// The run in the folder `out`, or a new one; `source` and `overrides` are `--config` and `--set`.
///
/// # Errors
/// A configuration with problems, or another one than that of the run; a folder that is no run, or that is taken.
pub(super) fn opened(out: Option<&Path>, source: Option<&str>, overrides: &[String]) -> Result<Opened> {
    match out {
        Some(out) => {
            let resumed = resume::open(out, source, overrides)?;
            for (_, error) in &resumed.damaged {
                say(&format!("skipping a damaged checkpoint: {error:#}"));
            }
            Ok(Opened { config: resumed.config, found: resumed.found, is_finished: resumed.is_finished })
        }
        None => {
            let source = source.context("`mpo train` needs `--config FILE` or `--resume OUT`")?;
            let config = config::load(source, overrides)?;
            resume::check_is_new(&config.output.dir)?;
            Ok(Opened { config, found: None, is_finished: false })
        }
    }
}

/// Trains without a word about the result, for a command that compares several.
pub(super) fn to_its_end(opened: Opened) -> Result<()> {
    let Opened { config, found, .. } = opened;
    let threads = device::thread_pool(&config.hardware)?;
    threads.install(|| train(Prepared::new(config, found.as_ref())?, found, None)).map(drop)
}

fn n_taken(found: Option<&Found>) -> Option<usize> {
    found.map(|found| found.state.step)
}

/// What is not as it was in the data, and a disk that may become full.
fn say_warnings(prepared: &Prepared) {
    for report in [Some(&prepared.encoding), prepared.eval_encoding.as_ref()].into_iter().flatten() {
        if !(report.cut.is_empty() && report.dropped.is_empty()) {
            say(&report.to_string());
        }
        report.findings.iter().for_each(|finding| say(&finding.warning()));
    }
    if prepared.encoding.findings.iter().any(|finding| finding.severity == Severity::Wrong) {
        say("hint: `mpo check` with the same `--config` says more of these rows");
    }
    prepared.canaries.iter().flat_map(|canaries| &canaries.notes).for_each(|note| say(note));
    if let Some(free) = device::free_disk(&prepared.config.output.dir).filter(|free| *free < prepared.disk) {
        let keep = prepared.config.checkpoint.keep;
        say(&format!(
            "warning: {} are free, and {} checkpoints take up to {} (`checkpoint.keep` = {keep})",
            gib(free),
            keep + 1,
            gib(prepared.disk)
        ));
    }
}

/// `None` where Ctrl-C was pressed before a step was taken.
fn train(prepared: Prepared, found: Option<Found>, profile: Option<&Path>) -> Result<Option<Ending>> {
    let forecast = Forecast::new(&prepared, &prepared.config, n_taken(found.as_ref()), device::rss_bytes())?;
    let available = forecast.available();
    let memory = forecast.choose(&available)?;
    interrupt::listen()?;
    say_warnings(&prepared);
    let rates = forecast.rates(MEASURING)?;
    say(&starting(&prepared, found.as_ref()));
    say(&format!("device   {}", device::choose(&prepared.config.hardware)?.reason));
    say(&first_lines(&forecast.estimate(memory, &rates), memory, &rates, &available));
    let machine = Machine { memory, low_rank: forecast.low_rank, rates, phases: Phases::default() };
    let out = prepared.config.output.dir.clone();
    let claim = Claim::new(&out)?;
    let trace = profile.map(|file| if file == Path::new(DEFAULT_TRACE) { out.join("trace.json") } else { file.to_owned() });
    let (profile, listener) = trace.map(|path| Profile::create(&path)).transpose()?.unzip();
    let phases = machine.phases.clone();
    let trained = phases.observe(listener, || match start::start(prepared, found, claim, machine)? {
        Some(run) => run.train().map(Some),
        None => Ok(None),
    });
    // Of a run that failed too: what it did until then may be why. One that failed before it began has left nothing.
    let trace = profile.filter(|_| out.exists()).map(Profile::finish);
    let trained = trained?;
    if let Some(path) = trace.transpose()? {
        say(&format!("Wrote the trace `{}`: open it at ui.perfetto.dev", path.display()));
    }
    Ok(trained)
}

fn ended(trained: Option<Ending>, out: &Path) -> Result<ExitCode> {
    match trained {
        None => {
            say(&format!(
                "Stopped before a step was taken; the reference's scores are kept.\nGo on with: mpo train --resume {}",
                out.display()
            ));
            Ok(ExitCode::from(interrupt::EXIT_CODE))
        }
        Some(Ending::Finished(summary)) => {
            say(&format!("\n{}", summary.text()));
            Ok(ExitCode::SUCCESS)
        }
        Some(Ending::Interrupted(checkpoint)) => {
            say(&format!("Stopped. Everything is in `{}`.\nGo on with: mpo train --resume {}", checkpoint.display(), out.display()));
            Ok(ExitCode::from(interrupt::EXIT_CODE))
        }
    }
}

fn starting(prepared: &Prepared, found: Option<&Found>) -> String {
    let from = found.map_or(String::new(), |found| format!("Going on after step {}: ", found.state.step));
    format!(
        "{from}{} parameters{}, {} training rows ({}), {} held out; output in `{}`",
        prepared.n_parameters,
        of_adapter(prepared).map_or(String::new(), |adapter| format!(" (frozen) and {adapter}")),
        prepared.train.len(),
        languages(&prepared.train),
        prepared.held_out.len(),
        prepared.config.output.dir.display()
    )
}

/// What `--dry-run` shows.
fn describe(prepared: &Prepared, memory: &str) -> Result<String> {
    let mut text = String::new();
    let loader = Loader::new(&dominant_numbers(&prepared.train), &prepared.config.train)?;
    let n_steps = loader.n_steps(&prepared.config.train)?;
    writeln!(
        text,
        "Model      {} ({}, {} parameters)",
        prepared.model_dir.display(),
        prepared.description.model_type,
        prepared.n_parameters
    )?;
    if let Some(adapter) = of_adapter(prepared) {
        writeln!(text, "Adapter    {adapter}")?;
    }
    let reference = prepared.config.reference.path.as_deref().unwrap_or("the model itself");
    writeln!(text, "Reference  {reference}")?;
    writeln!(
        text,
        "Data       {} training rows ({}), {} held out",
        prepared.train.len(),
        languages(&prepared.train),
        prepared.held_out.len()
    )?;
    for report in [Some(&prepared.encoding), prepared.eval_encoding.as_ref()].into_iter().flatten() {
        writeln!(text, "           {report}")?;
        report.findings.iter().try_for_each(|finding| writeln!(text, "           {}", finding.warning()))?;
    }
    if let Some(canaries) = &prepared.canaries {
        let languages: Vec<String> = canaries.n_of_language().iter().map(|(lang, n)| format!("{lang} {n}")).collect();
        let within = prepared.config.canary.every_steps.map_or(String::new(), |every| format!(", every {every} steps"));
        writeln!(text, "Canaries   {} benign prompts ({}), before and after{within}", canaries.all.len(), languages.join(", "))?;
        canaries.notes.iter().try_for_each(|note| writeln!(text, "           {note}"))?;
    }
    writeln!(text, "Device     {}", device::choose(&prepared.config.hardware)?.reason)?;
    writeln!(text, "Steps      {n_steps}, {} rows each", prepared.config.train.batch_size)?;
    writeln!(text, "Memory     {memory}; `mpo plan` says for what")?;
    let free = device::free_disk(&prepared.config.output.dir).map_or("unknown".into(), gib);
    writeln!(text, "Disk       up to {} for checkpoints, {free} free", gib(prepared.disk))?;
    writeln!(text, "Output     {}\n", prepared.config.output.dir.display())?;
    if let Some(row) = prepared.train.first() {
        writeln!(text, "Row `{}` as the model sees it; ⟦…⟧ are the tokens that are scored\n", row.id)?;
        for pair in row.pairs() {
            writeln!(text, "{}", prepared.encoder.marked(pair)?)?;
        }
    }
    writeln!(text, "Nothing was trained or written (--dry-run).")?;
    Ok(text)
}

/// `4884480 in low-rank terms of 210 projections (rank 16, alpha 32)`
fn of_adapter(prepared: &Prepared) -> Option<String> {
    let adapter = prepared.adapter.as_ref()?;
    let (n, n_projections) = (adapter.n_parameters(&prepared.description), adapter.projections.len());
    Some(format!("{n} in low-rank terms of {n_projections} projections (rank {}, alpha {})", adapter.rank, adapter.alpha))
}

/// `zh 8, sw 8`
fn languages(rows: &[EncodedRow]) -> String {
    let mut n_rows: BTreeMap<&str, usize> = BTreeMap::new();
    rows.iter().for_each(|row| *n_rows.entry(&row.target.lang).or_default() += 1);
    n_rows.iter().map(|(lang, n)| format!("{lang} {n}")).collect::<Vec<_>>().join(", ")
}
