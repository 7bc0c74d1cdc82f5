//! What was measured, line by line, and beside it what was aimed at.

use crate::job::{Engine, Job, Kernel, Measured};
use crate::parts::Part;
use mpo::device::gib;
use serde::Serialize;
use std::fmt::Write;

/// One measurement; `Err` holds why there is none.
#[derive(Serialize)]
pub struct Line {
    pub part: String,
    pub job: Job,
    pub measured: Result<Measured, String>,
}

/// FLOP/s that work is compared with.
#[derive(Clone, Copy, Serialize)]
pub struct Rates {
    /// The card's own, in large products of this run.
    pub products: Option<f64>,
    /// The data sheet's dense bf16 rate, of a card that we know.
    pub data_sheet: Option<f64>,
}

/// A number that was aimed at.
#[derive(Debug, PartialEq, Serialize)]
pub struct Goal {
    pub what: &'static str,
    pub measured: String,
    pub goal: &'static str,
    pub is_reached: bool,
}

impl Line {
    fn tokens_per_second(&self) -> Option<f64> {
        let n_tokens: usize = self.job.rows.iter().map(|row| row.n_tokens()).sum();
        Some(n_tokens as f64 / self.measured.as_ref().ok()?.seconds()?)
    }
}

/// Dense bf16 FLOP/s of the card's data sheet, where it is one that we know.
pub fn data_sheet(name: &str) -> Option<f64> {
    let known = [("H200", 989e12), ("H100 PCIe", 756e12), ("H100", 989e12), ("A100", 312e12), ("L40S", 362e12), ("4090", 165e12)];
    known.iter().find(|(card, _)| name.contains(card)).map(|(_, flops)| *flops)
}

/// All lines. Tokens count every sequence whole, whatever an engine shares or leaves out.
pub fn lines(lines: &[Line], rates: Rates) -> String {
    let mut text = format!(
        "{:<14}{:<29}{:>5}{:>12}{:>11}{:>10}{:>10}{:>8}{:>11}\n",
        "part", "", "rows", "a step, ms", "tokens/s", "of sheet", "of rate", "gaps", "peak"
    );
    let percent = |share: Option<f64>| share.map_or(String::new(), |share| format!("{:.1} %", 100.0 * share));
    for line in lines {
        let (engine, n_rows) = (line.job.engine.label(), line.job.rows_per_step);
        // Writing to a String cannot fail.
        let _ = write!(text, "{:<14}{engine:<29}{n_rows:>5}", line.part);
        let _ = match &line.measured {
            Err(_) => writeln!(text, "   failed, see above"),
            Ok(Measured { out_of_memory: Some(_), .. }) => writeln!(text, "   out of memory"),
            Ok(measured) => writeln!(
                text,
                "{:>12}{:>11}{:>10}{:>10}{:>8}{:>11}",
                measured.seconds().map_or(String::new(), |seconds| format!("{:.1}", 1e3 * seconds)),
                line.tokens_per_second().map_or(String::new(), |rate| format!("{rate:.0}")),
                percent(rates.data_sheet.and_then(|sheet| Some(measured.rate()? / sheet))),
                percent(rates.products.and_then(|rate| Some(measured.rate()? / rate))),
                percent(measured.gaps()),
                measured.peak_bytes.map_or(String::new(), gib),
            ),
        };
    }
    text
}

/// Where the card's time goes: what to tune. The JSON has all of it.
pub fn kernels(measured: &Measured) -> String {
    const SHOWN: usize = 12;
    let busy: f64 = measured.kernels.iter().map(|kernel| kernel.seconds).sum();
    let line = |kernel: &Kernel| {
        let Kernel { name, n_launches, seconds } = kernel;
        format!("  {:>5.1} %{:>10.2} ms{n_launches:>7} x  {name}\n", 100.0 * seconds / busy, 1e3 * seconds)
    };
    measured.kernels.iter().take(SHOWN).map(line).collect()
}

/// What could be compared with a goal.
pub fn goals(lines: &[Line], rates: Rates) -> Vec<Goal> {
    // The last one of a part is that of the batch which fits.
    let find = |part: Part, engine| lines.iter().rfind(|line| line.part == part.name() && line.job.engine == engine);
    let measured = |part, engine| find(part, engine)?.measured.as_ref().ok();
    let tokens = |part, engine| find(part, engine)?.tokens_per_second();
    let full = measured(Part::B8, Engine::Mpo);
    let at_least = |what, value: Option<f64>, least: f64, goal| {
        value.map(|value| Goal { what, measured: format!("{value:.2}"), goal, is_reached: value >= least })
    };
    let at_most = |what, value: Option<f64>, most: f64, goal| {
        value.map(|value| Goal { what, measured: format!("{value:.2}"), goal, is_reached: value <= most })
    };
    let memory = |what, bytes: Option<u64>, most: u64, goal| {
        bytes.map(|bytes| Goal { what, measured: gib(bytes), goal, is_reached: bytes < most << 30 })
    };
    let share_of_sheet = full.and_then(|full| Some(full.rate()? / rates.data_sheet?));
    let faster = tokens(Part::B1, Engine::Mpo).zip(tokens(Part::B1, Engine::ReleasedSdpa)).map(|(ours, theirs)| ours / theirs);
    let lora = tokens(Part::Lora, Engine::MpoLora).zip(tokens(Part::B8, Engine::Mpo)).map(|(lora, full)| lora / full);
    let head = measured(Part::Head, Engine::Head).and_then(|head| Some(head.seconds()? / head.floor_seconds?));
    [
        at_least("8B: share of the data sheet's rate", share_of_sheet, 0.45, "at least 0.45"),
        memory("8B: peak", full.and_then(|full| full.peak_bytes), 78, "under 78 GiB"),
        at_most("8B: launch gaps, share of the step", full.and_then(Measured::gaps), 0.05, "under 0.05"),
        at_least("1.1B: tokens/s over PyTorch, released way", faster, 2.0, "at least 2"),
        at_least("8B: tokens/s, LoRA over full", lora, 1.25, "at least 1.25"),
        memory("8B, LoRA, a row of 4 x 512: peak", measured(Part::LoraRow, Engine::MpoLora).and_then(|m| m.peak_bytes), 24, "under 24 GiB"),
        at_most("head: time over its products", head, 1.3, "at most 1.3"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

pub fn goal_lines(goals: &[Goal]) -> String {
    let line = |goal: &Goal| {
        let verdict = if goal.is_reached { "reached" } else { "missed" };
        format!("{:<44}{:>10}   {:<14} {verdict}\n", goal.what, goal.measured, goal.goal)
    };
    goals.iter().map(line).collect()
}
