//! The run's folder: held against other processes, and taken away again where a new run fails before its first step.
//!
//! What goes wrong that early is put right in the configuration or the data, and a folder that holds a configuration can only be gone on
//! with as it is. So it must not be left behind; reference scores are kept in the shared cache all the same.

use super::folder::remove_leftovers;
use crate::files::lock_folder;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// What a run writes before its first step.
const BEFORE_FIRST_STEP: [&str; 4] = ["config.toml", "metrics.jsonl", "reference", "canary"];

/// A run folder that no other process may claim.
#[derive(Debug)]
pub struct Claim {
    dir: PathBuf,
    /// Folders that were made for it, the innermost first.
    made: Vec<PathBuf>,
    /// Whether the folder was empty and no step has been taken since.
    is_new: bool,
    /// Open for as long as the claim holds; the system lets go when the process ends, however it ends.
    _lock: File,
}

impl Claim {
    /// Makes the folder where it does not exist, locks it, and clears away what an interrupted write left in it.
    ///
    /// # Errors
    /// When another process holds it, or it cannot be made or read.
    pub fn new(dir: &Path) -> Result<Self> {
        let made = dir.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists()).map(Path::to_owned).collect();
        fs::create_dir_all(dir).with_context(|| format!("cannot make the folder `{}`", dir.display()))?;
        let lock = lock_folder(dir)?;
        remove_leftovers(dir)?;
        let is_new = fs::read_dir(dir).with_context(|| format!("cannot read the folder `{}`", dir.display()))?.next().is_none();
        Ok(Self { dir: dir.to_owned(), made, is_new, _lock: lock })
    }

    /// From now on the folder stays, whatever happens.
    pub fn keep(&mut self) {
        self.is_new = false;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.is_new {
            return;
        }
        // The error that matters is the one that ended the run. Only what a run writes is removed, and folders only where they are empty.
        for name in BEFORE_FIRST_STEP {
            let path = self.dir.join(name);
            let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        }
        let _ = remove_leftovers(&self.dir);
        for folder in &self.made {
            let _ = fs::remove_dir(folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(dir: &Path) -> Claim {
        let claim = Claim::new(dir).unwrap();
        fs::write(dir.join("config.toml"), "x").unwrap();
        fs::create_dir(dir.join("reference")).unwrap();
        fs::write(dir.join("reference/manifest.json"), "{}").unwrap();
        claim
    }

    #[test]
    fn a_new_folder_goes_unless_it_is_kept() {
        let work = tempfile::tempdir().unwrap();
        let dir = work.path().join("runs/one");
        drop(begin(&dir));
        assert!(!work.path().join("runs").exists(), "nor do the folders around it stay");
        let mut claim = begin(&dir);
        claim.keep();
        drop(claim);
        assert!(dir.join("config.toml").exists() && dir.join("reference/manifest.json").exists());
    }

    #[test]
    fn what_was_there_before_stays() {
        let work = tempfile::tempdir().unwrap();
        drop(begin(work.path()));
        assert!(work.path().exists(), "the folder is not ours");
        assert_eq!(fs::read_dir(work.path()).unwrap().count(), 0);
        fs::write(work.path().join("config.toml"), "a run that was stopped").unwrap();
        drop(Claim::new(work.path()).unwrap());
        assert!(work.path().join("config.toml").exists());
        fs::remove_file(work.path().join("config.toml")).unwrap();
        let claim = begin(work.path());
        fs::write(work.path().join("mine.txt"), "written meanwhile by someone else").unwrap();
        drop(claim);
        assert!(work.path().join("mine.txt").exists());
    }

    #[test]
    fn a_folder_is_claimed_once() {
        let run = tempfile::tempdir().unwrap();
        let held = Claim::new(run.path()).unwrap();
        assert!(Claim::new(run.path()).unwrap_err().to_string().contains("another `mpo`"));
        drop(held);
        Claim::new(run.path()).unwrap();
    }
}
