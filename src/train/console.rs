//! What a person sees of a run, on stderr: a progress bar where it is a terminal, now and then a line where it is not.

use super::measure::Means;
use super::metrics::StepLine;
use crate::progress::say;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Without a terminal, a line at most this often, besides the first and the last step.
const LINE_INTERVAL: Duration = Duration::from_secs(20);

/// The console of one run.
pub struct Console {
    bar: ProgressBar,
    is_terminal: bool,
    n_steps: usize,
    last_line: Option<Instant>,
}

impl Console {
    /// For a run of `n_steps` that has taken `n_taken`.
    pub fn new(n_steps: usize, n_taken: usize) -> Self {
        let is_terminal = std::io::stderr().is_terminal();
        let target = if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(n_steps as u64), target).with_position(n_taken as u64);
        if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len} {elapsed} ETA {eta}  {wide_msg}") {
            bar.set_style(style);
        }
        // The steps before a resume say nothing about the speed of those after it.
        bar.reset_eta();
        Self { bar, is_terminal, n_steps, last_line: None }
    }

    /// Shows a step that was taken.
    pub fn step(&mut self, line: &StepLine) {
        self.bar.set_position(line.step as u64);
        // A warm-up begins with no rate at all, and `0.00e0` is no way to write that.
        let lr = if line.lr == 0.0 { "0".into() } else { format!("{:.2e}", line.lr) };
        let numbers = format!("loss {:.4}{}  lr {lr}", line.loss, progress(&line.means));
        if self.is_terminal {
            self.bar.set_message(numbers);
            return;
        }
        let is_due = self.last_line.is_none_or(|last| last.elapsed() >= LINE_INTERVAL) || line.step == self.n_steps;
        if is_due {
            say(&format!("step {}/{}  {numbers}  {:.0} tokens/s", line.step, self.n_steps, line.tokens_per_second));
            self.last_line = Some(Instant::now());
        }
    }

    /// Says something above the bar.
    pub fn say(&self, text: &str) {
        self.bar.suspend(|| say(text));
    }

    /// Does something that has a bar of its own.
    pub fn aside<R>(&self, work: impl FnOnce() -> R) -> R {
        self.bar.suspend(work)
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// What the loss is about, in a few words: the way to its goal; the margin that it widens; or how likely the answers are that it teaches.
fn progress(means: &Means) -> String {
    match means {
        Means { goal, reward_gap_target: gap, .. } if !goal.is_nan() => format!("  gap {gap:+.3} (goal {goal:+.3})"),
        Means { margin, accuracy, .. } if !margin.is_nan() => format!("  margin {margin:+.3} ({:.0} % right)", 100.0 * accuracy),
        Means { chosen_per_token: chosen, .. } if !chosen.is_nan() => format!("  chosen {chosen:+.3} a token"),
        _ => String::new(),
    }
}
