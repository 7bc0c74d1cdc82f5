//! How much memory a thread may yet take: for threads that do what a stranger's file says.
//!
//! An allocation cannot fail in Rust but by ending the process. A thread that has used its allowance up is therefore stopped where it stands, for good,
//! before it gets the memory; whoever waits for it reads that off a flag, and gives it up with what it has.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// What a thread without an allowance has left.
const UNLIMITED: isize = isize::MAX;

thread_local! {
    static LEFT: Cell<isize> = const { Cell::new(UNLIMITED) };
    static SPENT: Cell<Option<&'static AtomicBool>> = const { Cell::new(None) };
}

/// Gives this thread `n_bytes` to take, frees counted back. Where it asks for more, it sets `spent` and never goes on.
///
/// Counts nothing in a program whose allocator is another than [`LargePages`](super::LargePages).
pub fn grant(n_bytes: usize, spent: &'static AtomicBool) {
    SPENT.set(Some(spent));
    LEFT.set(isize::try_from(n_bytes).unwrap_or(UNLIMITED));
}

/// Lets this thread take what it wants again.
pub fn lift() {
    LEFT.set(UNLIMITED);
}

/// Counts bytes that this thread is about to take.
#[inline]
pub(super) fn charge(n_bytes: usize) {
    let left = LEFT.get();
    if left != UNLIMITED {
        // No block is larger than `isize::MAX`.
        let left = left.saturating_sub(n_bytes as isize);
        if left < 0 {
            stop();
        }
        LEFT.set(left);
    }
}

/// Counts bytes that this thread has given back.
#[inline]
pub(super) fn refund(n_bytes: usize) {
    let left = LEFT.get();
    if left != UNLIMITED {
        LEFT.set(left.saturating_add(n_bytes as isize).min(UNLIMITED - 1));
    }
}

#[cold]
fn stop() -> ! {
    // Nothing here may allocate.
    if let Some(spent) = SPENT.get() {
        spent.store(true, Ordering::Release);
    }
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
