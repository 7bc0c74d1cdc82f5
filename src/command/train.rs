//! `mpo train`: a configuration, or a run to go on with, to a trained model.

use super::print;
use crate::cli::TrainArgs;
use crate::config;
use crate::data::encode::EncodedPair;
use crate::data::loader::{Loader, dominant_numbers};
use crate::device::{self, gib};
use crate::progress::say;
use crate::train::checkpoint::Found;
use crate::train::prepare::Plan;
use crate::train::run::Ending;
use crate::train::{interrupt, resume, start};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::ExitCode;

/// Runs `mpo train`; without `--config` and `--resume` the caller has said what to do.
///
/// # Errors
/// Whatever is wrong with configuration, data, model or folder, before anything is written; a run that cannot go on.
pub fn run(args: &TrainArgs) -> Result<ExitCode> {
    let (config, found) = match &args.resume {
        Some(out) => {
            let resumed = resume::open(out, args.settings.config.as_deref(), &args.settings.set)?;
            for (_, error) in &resumed.damaged {
                say(&format!("skipping a damaged checkpoint: {error:#}"));
            }
            if resumed.is_finished && !args.dry_run {
                say(&format!("The run in `{}` is finished: the model is in `{}`.", out.display(), out.join("final").display()));
                return Ok(ExitCode::SUCCESS);
            }
            (resumed.config, resumed.found)
        }
        None => {
            let source = args.settings.config.as_deref().context("`mpo train` needs `--config FILE` or `--resume OUT`")?;
            let config = config::load(source, &args.settings.set)?;
            resume::check_is_new(&config.output.dir)?;
            (config, None)
        }
    };
    let threads = device::thread_pool(&config.hardware)?;
    threads.install(|| {
        let plan = Plan::new(config, found.as_ref())?;
        if args.dry_run { print(&describe(&plan)?).map(|()| ExitCode::SUCCESS) } else { train(plan, found) }
    })
}

fn train(plan: Plan, found: Option<Found>) -> Result<ExitCode> {
    let out = plan.config.output.dir.clone();
    for report in [Some(&plan.encoding), plan.eval_encoding.as_ref()].into_iter().flatten() {
        if !(report.cut.is_empty() && report.dropped.is_empty()) {
            say(&report.to_string());
        }
    }
    if let Some(free) = device::free_disk(&out).filter(|free| *free < plan.disk) {
        let keep = plan.config.checkpoint.keep;
        say(&format!(
            "warning: {} are free, and {} checkpoints take up to {} (`checkpoint.keep` = {keep})",
            gib(free),
            keep + 1,
            gib(plan.disk)
        ));
    }
    interrupt::listen()?;
    say(&starting(&plan, found.as_ref()));
    let Some(run) = start::start(plan, found)? else {
        say(&format!("Stopped while the reference was being scored.\nGo on with: mpo train --resume {}", out.display()));
        return Ok(ExitCode::from(interrupt::EXIT_CODE));
    };
    match run.train()? {
        Ending::Finished(summary) => {
            say(&format!("\n{}", summary.text()));
            Ok(ExitCode::SUCCESS)
        }
        Ending::Interrupted(checkpoint) => {
            say(&format!("Stopped. Everything is in `{}`.\nGo on with: mpo train --resume {}", checkpoint.display(), out.display()));
            Ok(ExitCode::from(interrupt::EXIT_CODE))
        }
    }
}

fn starting(plan: &Plan, found: Option<&Found>) -> String {
    let from = found.map_or(String::new(), |found| format!("Going on after step {}: ", found.state.step));
    format!(
        "{from}{} parameters, {} training rows ({}), {} held out; output in `{}`",
        plan.n_parameters,
        plan.train.len(),
        languages(&plan.train),
        plan.held_out.len(),
        plan.config.output.dir.display()
    )
}

/// What `--dry-run` shows.
fn describe(plan: &Plan) -> Result<String> {
    let mut text = String::new();
    let loader = Loader::new(&dominant_numbers(&plan.train), &plan.config.train)?;
    let n_steps = loader.n_steps(&plan.config.train)?;
    writeln!(text, "Model      {} ({}, {} parameters)", plan.model_dir.display(), plan.description.model_type, plan.n_parameters)?;
    let reference = plan.config.reference.path.as_deref().unwrap_or("the model itself");
    writeln!(text, "Reference  {reference}")?;
    writeln!(text, "Data       {} training rows ({}), {} held out", plan.train.len(), languages(&plan.train), plan.held_out.len())?;
    for report in [Some(&plan.encoding), plan.eval_encoding.as_ref()].into_iter().flatten() {
        writeln!(text, "           {report}")?;
    }
    writeln!(text, "Steps      {n_steps}, {} rows each", plan.config.train.batch_size)?;
    let available = device::available_memory().map_or("unknown".into(), gib);
    writeln!(text, "Memory     about {} needed, {available} free", gib(plan.memory.total()))?;
    let free = device::free_disk(&plan.config.output.dir).map_or("unknown".into(), gib);
    writeln!(text, "Disk       up to {} for checkpoints, {free} free", gib(plan.disk))?;
    writeln!(text, "Output     {}\n", plan.config.output.dir.display())?;
    if let Some(row) = plan.train.first() {
        writeln!(text, "Row `{}` as the model sees it; ⟦…⟧ are the tokens that are scored\n", row.id)?;
        writeln!(text, "{}\n{}", plan.encoder.marked(&row.dominant)?, plan.encoder.marked(&row.target)?)?;
    }
    writeln!(text, "Nothing was trained or written (--dry-run).")?;
    Ok(text)
}

/// `zh 8, sw 8`
fn languages(rows: &[EncodedPair]) -> String {
    let mut n_rows: BTreeMap<&str, usize> = BTreeMap::new();
    rows.iter().for_each(|row| *n_rows.entry(&row.target.lang).or_default() += 1);
    n_rows.iter().map(|(lang, n)| format!("{lang} {n}")).collect::<Vec<_>>().join(", ")
}
