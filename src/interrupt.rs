//! Ctrl-C, and the SIGTERM of a cluster that wants its machine back: the first asks for a stop as soon as what
//! was begun is whole (a step, a batch of reference scores), the second ends the process at once.

use crate::progress::say;
use anyhow::{Context, Result};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The exit status of a process that was interrupted, as shells have it.
pub const EXIT_CODE: u8 = 130;

static N_INTERRUPTS: AtomicUsize = AtomicUsize::new(0);

/// Takes over Ctrl-C for this process.
pub fn listen() -> Result<()> {
    let on_interrupt = || {
        if N_INTERRUPTS.fetch_add(1, Ordering::SeqCst) > 0 {
            // Everything that was written is whole: folders and files appear by renaming, lines in one piece.
            std::process::exit(EXIT_CODE.into());
        }
        say("\nStopping when what was begun is done (a step, or a batch of rows); Ctrl-C again stops at once.");
    };
    match ctrlc::set_handler(on_interrupt) {
        // A second run in one process shares the first one's handler.
        Ok(()) | Err(ctrlc::Error::MultipleHandlers) => Ok(()),
        Err(error) => Err(error).context("cannot listen to Ctrl-C"),
    }
}

/// Work that was given up half-way because Ctrl-C was pressed. Nothing of it counts.
#[derive(Debug)]
pub struct Stopped;

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stopped by Ctrl-C")
    }
}

impl std::error::Error for Stopped {}

/// Whether Ctrl-C was pressed.
pub fn requested() -> bool {
    N_INTERRUPTS.load(Ordering::SeqCst) > 0
}
