//! What a finished run says: `summary.json`, and a table for people.

use super::best::Best;
use super::canary::{self, Compared};
use super::log::{self, Totals};
use super::measure::{Measured, Measurement};
use super::phases::PHASES;
use super::run::Run;
use super::signs::Sign;
use crate::config::{ObjectiveKind, RetentionKind};
use crate::device::gib;
use crate::files::write_atomically;
use crate::plan::units::flop_rate;
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

/// Said of runs of the built-in model.
const DEMONSTRATION: &str = "This demonstrates the mechanism on benign text with a tiny model. It shows nothing about safety.";

/// The contents of `summary.json`.
#[derive(Debug, Serialize)]
pub struct Summary {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<&'static str>,
    /// Steps taken, skipped ones included.
    pub steps: usize,
    pub skipped_steps: usize,
    pub rows: Rows,
    #[serde(flatten)]
    pub totals: Totals,
    pub tokens_per_second: f64,
    /// Of matrix products alone, measured before this start of the run.
    pub gemm_flops_per_second: f64,
    /// Both on the same rows, with the weights of step 0 and of the last step.
    pub before: Measured,
    pub after: Measured,
    /// With the weights of step 0 and of the last step, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canaries: Option<Compared>,
    /// Some of the canaries with two known answers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<canary::Example>,
    pub failure_signs: Vec<Sign>,
    /// Which checkpoint did best, where one was to be kept (`checkpoint.best`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best: Option<Best>,
    pub written: Written,
    /// The command to try next.
    pub next: String,
    pub objective: ObjectiveKind,
    #[serde(skip)]
    has_retention: bool,
    /// What the trained weights are called.
    #[serde(skip)]
    trained: &'static str,
}

#[derive(Debug, Serialize)]
pub struct Rows {
    pub train: usize,
    /// Training rows that `before` and `after` were measured on.
    pub measured: usize,
    pub held_out: usize,
}

/// Where everything is.
#[derive(Debug, Serialize)]
pub struct Written {
    pub run: PathBuf,
    /// The trained model: a Hugging Face folder; of an adapter's run, the adapter in PEFT's format.
    pub model: PathBuf,
    /// The same of the best checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best: Option<PathBuf>,
    pub metrics: PathBuf,
    pub summary: PathBuf,
    pub config: PathBuf,
}

impl Summary {
    pub fn new(run: &Run, after: Measured, model: PathBuf, best: Option<PathBuf>) -> Result<Self> {
        let totals = log::totals(run.log.path())?;
        let written = Written {
            run: run.dir.clone(),
            metrics: run.log.path().to_path_buf(),
            summary: run.dir.join("summary.json"),
            config: run.dir.join("config.toml"),
            model,
            best,
        };
        let reference = run.config.reference.path.as_deref().unwrap_or(&run.config.model.path);
        let model = match run.config.adapter.is_lora() {
            // The base is the configuration's model.
            true => format!("--adapter {}", written.model.display()),
            false => format!("--model {}", written.model.display()),
        };
        let next = format!("mpo gaps --config {} {model} --reference {reference}", written.config.display());
        Ok(Self {
            note: run.config.model.path.starts_with("builtin:").then_some(DEMONSTRATION),
            steps: run.state.step,
            skipped_steps: run.state.n_skipped,
            rows: Rows { train: run.train.len(), measured: run.probe.len(), held_out: run.held_out.len() },
            tokens_per_second: totals.tokens as f64 / totals.seconds,
            totals,
            gemm_flops_per_second: run.machine.rates.products,
            before: run.state.start.clone(),
            after,
            canaries: run.canaries.as_ref().and_then(|canaries| canaries.measured()).map(|(before, after)| Compared::new(before, after)),
            examples: run.canaries.as_ref().map_or(Ok(Vec::new()), |canaries| canaries.examples())?,
            failure_signs: run.state.signs.found.clone(),
            best: run.state.best.clone(),
            written,
            next,
            objective: run.config.objective.kind,
            has_retention: run.config.retention.kind != RetentionKind::None,
            trained: if run.config.adapter.is_lora() { "Adapter" } else { "Model" },
        })
    }

    pub fn write(&self) -> Result<()> {
        write_atomically(&self.written.summary, format!("{}\n", serde_json::to_string_pretty(self)?).as_bytes())
    }

    /// The summary for people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write_text(&mut text);
        text
    }

    fn write_text(&self, out: &mut String) -> std::fmt::Result {
        let &Totals { epochs, seconds, .. } = &self.totals;
        let (steps, name) = (self.steps, self.objective.name());
        writeln!(out, "Trained {steps} steps of {name} ({epochs:.2} epochs) in {seconds:.0} s, {:.0} tokens/s", self.tokens_per_second)?;
        writeln!(out, "{}", use_of_the_machine(&self.totals))?;
        if let Some(peak) = self.totals.peak_gpu_bytes {
            writeln!(out, "at most {} of the GPU's memory, and {} of the host's", gib(peak), gib(self.totals.peak_rss_bytes))?;
        }
        if self.totals.lost_steps > 0 {
            let lost = self.totals.lost_steps;
            writeln!(
                out,
                "the lines of {lost} steps were lost from `metrics.jsonl`: times, tokens and losses here are those of the others"
            )?;
        }
        if self.skipped_steps > 0 {
            writeln!(out, "{} steps made no update: loss or gradient was not finite", self.skipped_steps)?;
        }
        let rows = if self.rows.measured < self.rows.train {
            format!("{} of {} training rows", self.rows.measured, self.rows.train)
        } else {
            format!("{} training rows", self.rows.train)
        };
        self.write_measured(out, &rows, &self.before.train, &self.after.train, true)?;
        if let (Some(before), Some(after)) = (&self.before.held_out, &self.after.held_out) {
            self.write_measured(out, &format!("{} held-out rows", self.rows.held_out), before, after, false)?;
        }
        if let Some(canaries) = &self.canaries {
            write!(out, "\n{canaries}")?;
        }
        if !self.examples.is_empty() {
            write!(out, "\n{}", canary::in_words(&self.examples))?;
        }
        writeln!(out)?;
        match &self.failure_signs[..] {
            [] => writeln!(out, "Failure signs: none")?,
            signs => {
                writeln!(out, "Failure signs:")?;
                signs.iter().try_for_each(|sign| writeln!(out, "  {}", sign.message))?;
            }
        }
        writeln!(out, "\n{:<8} {}", self.trained, self.written.model.display())?;
        if let (Some(best), Some(dir)) = (&self.best, &self.written.best) {
            let Best { metric, step, value } = best;
            writeln!(out, "Best     {} (step {step} of {}, {metric} {value:.4})", dir.display(), self.steps)?;
        }
        writeln!(out, "Metrics  {}", self.written.metrics.display())?;
        writeln!(out, "Summary  {}", self.written.summary.display())?;
        writeln!(out, "Next     {}", self.next)?;
        self.note.map_or(Ok(()), |note| writeln!(out, "\n{note}"))
    }

    fn write_measured(
        &self,
        out: &mut String,
        rows: &str,
        before: &Measurement,
        after: &Measurement,
        with_dominant: bool,
    ) -> std::fmt::Result {
        let has_goal = !before.all.goal.is_nan();
        writeln!(out, "\n{rows:<28}{:>10}{:>10}{:>10}", "before", "after", if has_goal { "goal" } else { "" })?;
        let mut line = |name: &str, before: f64, after: f64, goal: f64| {
            let goal = if goal.is_nan() { String::new() } else { format!("{goal:>10.3}") };
            // What there are no numbers of is no line.
            if before.is_nan() && after.is_nan() { Ok(()) } else { writeln!(out, "  {name:<26}{before:>10.3}{after:>10.3}{goal}") }
        };
        line("loss", before.losses.loss, after.losses.loss, f64::NAN)?;
        if self.has_retention {
            line("retention (unweighted)", before.losses.retention, after.losses.retention, f64::NAN)?;
        }
        if has_goal {
            line("rows with a positive gap", before.all.accuracy, after.all.accuracy, f64::NAN)?;
        } else {
            line("chosen reward", before.all.chosen_reward, after.all.chosen_reward, f64::NAN)?;
            line("rejected reward", before.all.rejected_reward, after.all.rejected_reward, f64::NAN)?;
            line("rows with a positive margin", before.all.accuracy, after.all.accuracy, f64::NAN)?;
            line("chosen, nats a token", before.all.chosen_per_token, after.all.chosen_per_token, f64::NAN)?;
        }
        for (lang, before) in &before.languages {
            let Some(after) = after.languages.get(lang) else { continue };
            line(&format!("reward gap {lang}"), before.reward_gap_target, after.reward_gap_target, before.goal)?;
        }
        let dominant = BTreeMap::iter(&self.before.dominant).filter(|_| with_dominant);
        for (lang, before) in dominant {
            let Some(after) = self.after.dominant.get(lang) else { continue };
            line(&format!("reward gap {lang} (dominant)"), before.reward_gap, after.reward_gap, f64::NAN)?;
        }
        Ok(())
    }
}

/// `112 GFLOP/s, 61 % of …; forward 25 %, …`. Where a GPU computes, only the host's time is known by phase.
fn use_of_the_machine(totals: &Totals) -> String {
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    let known: f64 = totals.shares.values().sum();
    let shares = PHASES.iter().filter_map(|phase| Some(format!("{phase} {}", percent(*totals.shares.get(*phase)?))));
    format!(
        "{}, {} of what matrix products alone reach here; {}{}, other {}",
        flop_rate(totals.flops_per_second),
        // The rate of products alone was measured once, on a machine that others use too.
        percent(totals.gemm_share.min(1.0)),
        if totals.peak_gpu_bytes.is_some() { "of the host's time " } else { "" },
        shares.collect::<Vec<_>>().join(", "),
        percent(1.0 - known)
    )
}
