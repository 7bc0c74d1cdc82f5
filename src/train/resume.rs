//! Going on with a stopped run: its configuration, what of it may change, and the checkpoint to go on from.

use super::checkpoint::{self, Found};
use crate::config::{self, RunConfig};
use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// A run folder to go on in.
pub struct Resumed {
    pub config: RunConfig,
    /// `None` where the run was stopped before its first checkpoint.
    pub found: Option<Found>,
    /// Newer checkpoints that do not verify, and why.
    pub damaged: Vec<(PathBuf, anyhow::Error)>,
    /// Nothing is left to do.
    pub is_finished: bool,
}

/// Opens the run folder `out`. `source` and `overrides` are `--config` and `--set` given along with `--resume`.
///
/// # Errors
/// Not a run folder; a configuration that differs where it may not; checkpoints that are all damaged.
pub fn open(out: &Path, source: Option<&str>, overrides: &[String]) -> Result<Resumed> {
    let out = std::path::absolute(out).with_context(|| format!("`{}` cannot be made absolute", out.display()))?;
    let path = out.join("config.toml");
    ensure!(out.is_dir(), "there is no run to go on with: the folder `{}` does not exist", out.display());
    ensure!(path.is_file(), "`{}` has no `config.toml`: it is not the folder of a run that was started", out.display());
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let scan = checkpoint::scan(&out)?;

    let mut config = match source {
        Some(source) => config::load(source, overrides)?,
        None => config::parse(&text, &path.display().to_string(), overrides)?,
    };
    // The folder may have been moved since.
    config.output.dir = out.clone();
    // The checkpoint's own copy counts: `config.toml` may have been edited since.
    let stored = match &scan.found {
        Some(found) => config::parse(&found.config, &found.dir.join("trainer/config.toml").display().to_string(), &[])?,
        None => config::parse(&text, &path.display().to_string(), &[])?,
    };
    config::check_resume(&stored, &config)?;
    let is_as_long = (stored.train.max_steps, stored.train.epochs) == (config.train.max_steps, config.train.epochs);
    let is_finished = is_as_long && scan.found.as_ref().is_some_and(|found| summary_steps(&out) == Some(found.state.step));
    Ok(Resumed { config, found: scan.found, damaged: scan.damaged, is_finished })
}

/// The steps of a finished run: its summary is written last.
fn summary_steps(out: &Path) -> Option<usize> {
    let summary: serde_json::Value = serde_json::from_slice(&fs::read(out.join("summary.json")).ok()?).ok()?;
    usize::try_from(summary["steps"].as_u64()?).ok()
}

/// Refuses a folder that already holds something.
pub fn check_is_new(out: &Path) -> Result<()> {
    let is_run = out.join("config.toml").is_file();
    let hint = if is_run { format!(", or go on with that run: `mpo train --resume {}`", out.display()) } else { String::new() };
    ensure!(!out.is_file(), "`{}` is a file, and a run needs a folder\nhint: choose another `output.dir`", out.display());
    let is_taken = out.read_dir().is_ok_and(|mut entries| entries.next().is_some());
    ensure!(!is_taken, "`{}` exists and is not empty\nhint: choose another `output.dir`{hint}", out.display());
    Ok(())
}
