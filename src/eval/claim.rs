//! A run's folder, held by the one process that writes it.

use crate::files::{lock_folder, remove_temporaries};
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::path::Path;

/// A run's folder that no other process may write; others may read.
#[derive(Debug)]
pub struct Claim {
    /// Open for as long as the claim holds.
    _lock: File,
}

impl Claim {
    /// Makes the folder where it does not exist, locks it, and clears away what writes of a killed process left in it and in its folders.
    ///
    /// # Errors
    /// Another process holds it, or it cannot be made or read.
    pub fn new(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make the folder `{}`", folder.display()))?;
        let lock = lock_folder(folder)?;
        remove_temporaries(folder)?;
        for entry in fs::read_dir(folder).with_context(|| format!("cannot read `{}`", folder.display()))? {
            let path = entry.with_context(|| format!("cannot read `{}`", folder.display()))?.path();
            if path.is_dir() {
                remove_temporaries(&path)?;
            }
        }
        Ok(Self { _lock: lock })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_written_by_one_and_leftovers_go() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("evals/run");
        fs::create_dir_all(folder.join("multijail")).unwrap();
        fs::write(folder.join("multijail/.responses.jsonl.77.tmp"), "half").unwrap();
        let held = Claim::new(&folder).unwrap();
        assert!(!folder.join("multijail/.responses.jsonl.77.tmp").exists());
        assert!(Claim::new(&folder).unwrap_err().to_string().contains("another `mpo`"));
        drop(held);
        Claim::new(&root.path().join("evals/new")).unwrap();
    }
}
