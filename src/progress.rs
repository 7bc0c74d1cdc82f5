//! What a person sees of work under way, on stderr: a line now and then, and a bar that is gone when the work is done.

use crate::escape::{escape_for_terminal, one_line};
use crate::secret::shown;
use indicatif::{BinaryBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Work that is over sooner shows no bar.
const HIDDEN_FOR: Duration = Duration::from_secs(1);
/// A download of more bytes is announced where there is no terminal to show a bar.
const WORTH_A_LINE: u64 = 16 << 20;

/// Characters of a name that stand before a bar.
const LABEL_CHARS: usize = 80;

/// Writes a line to stderr. Where nobody reads any more, there is nobody to tell: `eprintln!` would panic.
///
/// Whatever the text is made of, a terminal obeys nothing of it, and no password of an address is in it.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", escape_for_terminal(&shown(text)));
}

/// Advances by units of work; gone from the terminal when dropped. Nothing is drawn where stderr is not a terminal.
pub struct Progress {
    bar: ProgressBar,
    started: Instant,
}

impl Progress {
    /// `what` stands before the bar, `n_units` is the whole length.
    pub fn new(what: &'static str, n_units: usize) -> Self {
        Self::hidden(what, Some(n_units as u64), "{msg} {bar:30} {percent}% {elapsed} ETA {eta}")
    }

    /// A download in bytes that goes on from byte `start`; `n_bytes` is the whole file's size where it is known.
    pub fn download(label: &str, start: u64, n_bytes: Option<u64>) -> Self {
        if !std::io::stderr().is_terminal() && n_bytes.is_none_or(|n_bytes| n_bytes > WORTH_A_LINE) {
            let size = n_bytes.map_or_else(|| "unknown size".to_owned(), |n_bytes| BinaryBytes(n_bytes).to_string());
            say(&format!("downloading {label} ({size})"));
        }
        let label = &one_line(label, LABEL_CHARS);
        let template = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
        let progress = Self::hidden(label, n_bytes, template);
        progress.bar.set_position(start);
        progress.bar.reset_eta();
        progress
    }

    fn hidden(what: &str, length: Option<u64>, template: &str) -> Self {
        let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::hidden()).with_message(what.to_owned());
        if let Ok(style) = ProgressStyle::with_template(template) {
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
