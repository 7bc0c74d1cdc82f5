//! Libraries that read a file assert some of what a sound one keeps to. Where a damaged file breaks that, the file is to blame and not the program.

use anyhow::{Result, anyhow};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Once;

/// What `read` returns, or, where it panics, that `path` is damaged; `kind` says of which kind the file should be. Nothing is used of a reader that has
/// panicked, so no half-made state is seen.
///
/// # Errors
/// It panicked.
pub fn or_damaged<T>(path: &Path, kind: &str, read: impl FnOnce() -> T) -> Result<T> {
    silence_readers();
    let was_reading = READING.replace(true);
    let done = catch_unwind(AssertUnwindSafe(read));
    READING.set(was_reading);
    done.map_err(|_| anyhow!("`{}` is damaged: it breaks the rules of {kind}; fetch it again", path.display()))
}

thread_local! {
    static READING: Cell<bool> = const { Cell::new(false) };
}

/// Such a panic becomes an error, and is not also told on the terminal.
fn silence_readers() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !READING.get() {
                others(info);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_panics_has_met_a_damaged_file() {
        let path = Path::new("a/table.xlsx");
        assert_eq!(or_damaged(path, "workbooks", || 3).unwrap(), 3);
        let nested = || or_damaged(path, "workbooks", || panic!("a length below zero")).unwrap();
        let error = or_damaged::<()>(path, "parcels", nested).unwrap_err().to_string();
        assert_eq!(error, "`a/table.xlsx` is damaged: it breaks the rules of parcels; fetch it again");
    }
}
