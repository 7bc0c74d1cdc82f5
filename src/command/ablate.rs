//! `mpo ablate`: the same model trained with one loss after another, with and without retention, in one table.
//!
//! Each cell is a run folder of its own, kept and never run twice: an ablation that was stopped goes on with the cell it was at. What is
//! compared is measured alike for all, on rows that the runs did not see: a loss's own value says nothing about another's.

use super::train::{opened, to_its_end};
use super::{gaps, print};
use crate::cli::AblateArgs;
use crate::config::{self, DataConfig, DataFormat, ObjectiveKind, RetentionKind, RunConfig};
use crate::device;
use crate::files::{read_json, write_atomically};
use crate::gaps::{PairGap, RowGaps};
use crate::interrupt;
use crate::progress::say;
use anyhow::{Context, Result};
use serde::Serialize;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The table's numbers, in the folder of an ablation; an empty list until all runs are measured.
pub(super) const ABLATION: &str = "ablation.json";

/// One trained model, or, without a run, the model that all runs began with.
#[derive(Debug, Serialize)]
struct Cell {
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<Trained>,
    #[serde(flatten)]
    numbers: Numbers,
}

#[derive(Debug, Serialize)]
struct Trained {
    objective: ObjectiveKind,
    retention: RetentionKind,
    dir: PathBuf,
    /// The run's own loss on its probe of training rows.
    loss_before: f64,
    loss_after: f64,
}

/// Means over the measured rows; nats a token.
#[derive(Debug, Serialize)]
struct Numbers {
    reward_gap: f64,
    /// Share of rows with a positive gap.
    positive: f64,
    chosen: f64,
    /// NaN in data without dominant pairs.
    dominant_reward_gap: f64,
    dominant_chosen: f64,
}

/// Trains what is not trained yet, and prints the table.
///
/// # Errors
/// As of `mpo train`, for any of the runs; every configuration is checked before the first run starts.
pub fn run(args: &AblateArgs) -> Result<ExitCode> {
    let mut cells = Vec::new();
    for objective in or_all(&args.objectives, ObjectiveKind::ALL.map(ObjectiveKind::name)) {
        for retention in or_all(&args.retention, ["none", "hidden"]) {
            let dir = args.out.join(format!("{objective}-{retention}"));
            let set =
                [format!("objective.kind={objective}"), format!("retention.kind={retention}"), format!("output.dir={}", dir.display())];
            let overrides = [&args.set[..], &set].concat();
            cells.push((config::load(&args.config, &overrides)?, overrides));
        }
    }
    let n_cells = cells.len();
    let path = args.out.join(ABLATION);
    // Whoever looks for the newest run knows from the first one on that these are to be compared.
    if !path.exists() {
        write_atomically(&path, b"[]\n")?;
    }
    for (number, (config, overrides)) in cells.iter().enumerate() {
        let dir = &config.output.dir;
        let resumed = dir.join("config.toml").is_file().then_some(dir.as_path());
        let opened = opened(resumed, Some(&args.config), overrides)?;
        let done = if opened.is_finished { ", done before" } else { "" };
        say(&format!("{}/{n_cells} `{}`{done}", number + 1, dir.display()));
        if !opened.is_finished {
            to_its_end(opened)?;
        }
        if interrupt::requested() {
            say(&format!("Stopped. The same command goes on from here; finished runs are in `{}`.", args.out.display()));
            return Ok(ExitCode::from(interrupt::EXIT_CODE));
        }
    }

    let (first, _) = cells.first().context("no loss and no retention to compare")?;
    let mut table = vec![Cell { run: None, numbers: measure(first, None)? }];
    for (config, _) in &cells {
        let dir = config.output.dir.clone();
        let (loss_before, loss_after) = losses(&dir)?;
        let (objective, retention) = (config.objective.kind, config.retention.kind);
        let run = Trained { objective, retention, dir: dir.clone(), loss_before, loss_after };
        table.push(Cell { run: Some(run), numbers: measure(config, Some(&dir.join("final")))? });
    }
    write_atomically(&path, format!("{}\n", serde_json::to_string_pretty(&table)?).as_bytes())?;
    say(&format!(
        "\nMeans over {}; the runs are in `{}`, the numbers in `{}`.\n",
        measured_rows(first),
        args.out.display(),
        path.display()
    ));
    print(&text(&table)?)?;
    Ok(ExitCode::SUCCESS)
}

fn or_all<const N: usize>(chosen: &[String], all: [&str; N]) -> Vec<String> {
    if chosen.is_empty() { all.map(str::to_owned).to_vec() } else { chosen.to_vec() }
}

fn measured_rows(config: &RunConfig) -> &'static str {
    if config.eval.path.is_some() { "held-out rows" } else { "all rows, those that were trained on among them" }
}

/// The numbers of a model, the configuration's own where no other is given.
fn measure(config: &RunConfig, model: Option<&Path>) -> Result<Numbers> {
    let mut config = config.clone();
    config.reference = config::ReferenceConfig::default();
    if let Some(path) = config.eval.path.take() {
        config.data = DataConfig { path, revision: None, sha256: None, format: DataFormat::Auto, limit: None, ..config.data };
    }
    // Of a run with adapters the trained folder is an adapter, and the model is where it was.
    let adapter = match model {
        Some(folder) if config.adapter.is_lora() => Some(folder.to_owned()),
        Some(folder) => {
            config.model = config::ModelConfig { path: folder.display().to_string(), revision: None, ..config.model };
            None
        }
        None => config.adapter.path.as_ref().map(PathBuf::from),
    };
    // Of losses without the key this is its default: a gap in nats a token, the same for all.
    config.objective.gap = config::Gap::LengthNormalized;
    let rows = device::thread_pool(&config.hardware)?.install(|| gaps::measure(&config, adapter.as_deref()))?;
    Ok(Numbers::of(&rows))
}

impl Numbers {
    fn of(rows: &[RowGaps]) -> Self {
        let mean = |of: &dyn Fn(&RowGaps) -> Option<f64>| {
            let values: Vec<f64> = rows.iter().filter_map(of).collect();
            values.iter().sum::<f64>() / values.len() as f64
        };
        let chosen = |pair: &PairGap| pair.chosen.map(|answer| answer.logp / answer.tokens as f64);
        Self {
            reward_gap: mean(&|row| row.policy.target.reward_gap),
            positive: mean(&|row| Some(f64::from(u8::from(row.policy.target.reward_gap? > 0.0)))),
            chosen: mean(&|row| chosen(&row.policy.target)),
            dominant_reward_gap: mean(&|row| row.policy.dominant.as_ref()?.reward_gap),
            dominant_chosen: mean(&|row| chosen(row.policy.dominant.as_ref()?)),
        }
    }
}

/// Of a finished run, before and after.
fn losses(run: &Path) -> Result<(f64, f64)> {
    let path = run.join("summary.json");
    let summary = read_json(&path)?;
    let loss = |when: &str| match &summary[when]["train"]["loss"] {
        // JSON has no NaN.
        serde_json::Value::Null if summary[when]["train"].is_object() => Ok(f64::NAN),
        loss => loss.as_f64().with_context(|| format!("`{}` has no loss `{when}` training", path.display())),
    };
    Ok((loss("before")?, loss("after")?))
}

fn text(table: &[Cell]) -> Result<String> {
    let mut text = String::new();
    let head = ["gap", "> 0", "chosen", "dom. gap", "chosen"];
    writeln!(
        text,
        "{:<12}{:<11}{:>20}{:>10}{:>8}{:>10}{:>12}{:>10}",
        "objective", "retention", "own loss", head[0], head[1], head[2], head[3], head[4]
    )?;
    for Cell { run, numbers } in table {
        let name = match run {
            None => format!("{:<43}", "the model as it came"),
            Some(Trained { objective, retention, loss_before, loss_after, .. }) => {
                let losses = format!("{loss_before:.3} -> {loss_after:.3}");
                format!("{:<12}{:<11}{losses:>20}", objective.name(), retention.name())
            }
        };
        let Numbers { reward_gap, positive, chosen, dominant_reward_gap, dominant_chosen } = numbers;
        let percent = 100.0 * positive;
        writeln!(text, "{name}{reward_gap:>10.3}{percent:>7.0}%{chosen:>10.3}{dominant_reward_gap:>12.3}{dominant_chosen:>10.3}")?;
    }
    Ok(text)
}
