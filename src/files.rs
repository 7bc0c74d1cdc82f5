//! Writing files so that a reader, or a run that is killed, sees all of a file or nothing of it; folders that one process writes at a time; and
//! [`json`] that others wrote, and files that their readers cannot cope with.

mod damaged;
pub mod json;

pub use damaged::or_damaged;
pub use json::{parse_json, read_json, read_json_as};

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::Path;

/// Writes under a temporary name in the same folder, which is made if it is missing, syncs, and renames.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let name = path.file_name().with_context(|| format!("`{}` is not the name of a file", path.display()))?.to_string_lossy();
    // The process id keeps two runs that share a folder from writing into one temporary file.
    let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let write = || -> std::io::Result<()> {
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().inspect_err(|_| drop(fs::remove_file(&temporary))).with_context(|| format!("cannot write `{}`", path.display()))
}

/// Holds a folder against other processes for as long as the file is open; the system lets go when the process ends, however it ends.
///
/// # Errors
/// Another process holds it.
pub fn lock_folder(dir: &Path) -> Result<File> {
    let folder = File::open(dir).with_context(|| format!("cannot open the folder `{}`", dir.display()))?;
    match folder.try_lock() {
        Err(TryLockError::WouldBlock) => bail!("another `mpo` is at work in `{}`: wait for it, or stop it first", dir.display()),
        // Some network file systems know no locks; then nothing is checked.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(folder),
    }
}

/// Removes what a process that was killed left of files under way ([`write_atomically`]'s temporary names): to be called by the one that holds the
/// folder.
pub fn remove_temporaries(dir: &Path) -> Result<()> {
    let context = || format!("cannot clear away what an interrupted write left in `{}`", dir.display());
    for entry in fs::read_dir(dir).with_context(context)? {
        let entry = entry.with_context(context)?;
        if is_temporary(&entry.file_name()) {
            fs::remove_file(entry.path()).with_context(context)?;
        }
    }
    Ok(())
}

/// Whether a file has a name that [`write_atomically`] gives while it writes.
pub fn is_temporary(name: &OsStr) -> bool {
    let process = name.to_str().filter(|name| name.starts_with('.')).and_then(|name| name.strip_suffix(".tmp")?.rsplit_once('.'));
    process.is_some_and(|(_, id)| id.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_a_file_and_leaves_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/file");
        write_atomically(&path, b"one").unwrap();
        write_atomically(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_failure_names_the_file_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        fs::create_dir_all(path.join("inside")).unwrap();
        let error = write_atomically(&path, b"one").unwrap_err();
        assert!(format!("{error:#}").contains("taken"), "{error:#}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_what_a_write_left_is_cleared_away() {
        let folder = tempfile::tempdir().unwrap();
        for name in [".run.json.4711.tmp", "run.json", ".hidden.tmp", "mine.12.tmp", ".a.b.tmp"] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        remove_temporaries(folder.path()).unwrap();
        let mut names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".a.b.tmp", ".hidden.tmp", "mine.12.tmp", "run.json"]);
    }

    #[test]
    fn a_folder_is_held_by_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let held = lock_folder(folder.path()).unwrap();
        assert!(lock_folder(folder.path()).unwrap_err().to_string().contains("another `mpo` is at work"));
        drop(held);
        lock_folder(folder.path()).unwrap();
    }
}
