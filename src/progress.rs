//! A progress bar on stderr for work whose length is known; work that is over within a second shows none.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::{Duration, Instant};

const HIDDEN_FOR: Duration = Duration::from_secs(1);

/// Advances by units of work; gone from the terminal when dropped. Nothing is drawn where stderr is not a terminal.
pub struct Progress {
    bar: ProgressBar,
    started: Instant,
}

impl Progress {
    /// `what` stands before the bar, `n_units` is the whole length.
    pub fn new(what: &'static str, n_units: usize) -> Self {
        let bar = ProgressBar::with_draw_target(Some(n_units as u64), ProgressDrawTarget::hidden()).with_message(what);
        if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {percent}% {elapsed} ETA {eta}") {
            bar.set_style(style);
        }
        Self { bar, started: Instant::now() }
    }

    pub fn advance(&self, n_units: usize) {
        if self.bar.is_hidden() && self.started.elapsed() > HIDDEN_FOR {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.inc(n_units as u64);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
