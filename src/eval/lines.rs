//! Files of one JSON object a line, written while work goes on: what is in them is what a killed run has finished.
//!
//! A line goes to the file in one call, so a killed process leaves whole lines and at most one torn at the end. A reader leaves that one out and
//! says so; a writer cuts it off before it goes on. A line that is damaged anywhere else is an error with its number.

use crate::files::{parse_json, write_atomically};
use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// At most so much work is lost when the machine, not only the process, goes down.
const SYNC_EVERY: Duration = Duration::from_secs(5);

/// The objects of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Lines<T> {
    pub values: Vec<T>,
    /// Whether the last line was torn, and left out.
    pub torn: bool,
}

/// Reads every line of `path`.
///
/// # Errors
/// The file cannot be read, or a line other than a torn last one is no `T`: the error names the line.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Lines<T>> {
    read_checked(path, |_| Ok(()))
}

/// The same, and `check` looks at every object.
///
/// # Errors
/// As [`read`], and where `check` finds something: the error names the line.
pub fn read_checked<T: DeserializeOwned>(path: &Path, check: impl Fn(&T) -> Result<()>) -> Result<Lines<T>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let (whole, torn) = whole_lines(&bytes);
    let mut values = Vec::new();
    for (index, line) in whole.split(|byte| *byte == b'\n').enumerate() {
        if !line.trim_ascii().is_empty() {
            let parse = || -> Result<T> { Ok(serde_json::from_value(parse_json(line)?)?) };
            let value = parse().with_context(|| format!("`{}` line {} is damaged", path.display(), index + 1))?;
            check(&value).with_context(|| format!("`{}` line {}", path.display(), index + 1))?;
            values.push(value);
        }
    }
    Ok(Lines { values, torn })
}

/// The lines that end, and whether something stands behind them that is no whole object. One without its line break is whole all the same:
/// editors leave it so.
fn whole_lines(bytes: &[u8]) -> (&[u8], bool) {
    let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let rest = bytes[end..].trim_ascii();
    if rest.is_empty() || serde_json::from_slice::<serde::de::IgnoredAny>(rest).is_ok() { (bytes, false) } else { (&bytes[..end], true) }
}

/// A file open for further lines.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    file: File,
    synced: Instant,
}

impl Writer {
    /// Opens `path`, which is made, with its folder, if it is missing; a torn last line is cut off.
    pub fn open(path: &Path) -> Result<Self> {
        let context = || format!("cannot write `{}`", path.display());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(context)?;
        }
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(path).with_context(context)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).with_context(|| format!("cannot read `{}`", path.display()))?;
        let whole = whole_lines(&bytes).0;
        // In place: this needs no room, which a disk that was full may not have yet.
        file.set_len(whole.len() as u64).with_context(context)?;
        if !whole.is_empty() && !whole.ends_with(b"\n") {
            file.write_all(b"\n").with_context(context)?;
        }
        Ok(Self { path: path.to_owned(), file, synced: Instant::now() })
    }

    /// Appends a line. It survives the process at once, and the machine after some seconds.
    pub fn append(&mut self, value: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        self.file.write_all(&line).with_context(|| format!("cannot write `{}`", self.path.display()))?;
        if self.synced.elapsed() > SYNC_EVERY { self.sync() } else { Ok(()) }
    }

    /// Makes all lines survive a loss of power: to be called when the work is done.
    pub fn sync(&mut self) -> Result<()> {
        self.synced = Instant::now();
        self.file.sync_data().with_context(|| format!("cannot write `{}`", self.path.display()))
    }
}

/// Writes all lines of a file at once; it is there whole or not at all.
pub fn write<T: Serialize>(path: &Path, values: &[T]) -> Result<()> {
    let mut bytes = Vec::new();
    for value in values {
        serde_json::to_writer(&mut bytes, value)?;
        bytes.push(b'\n');
    }
    write_atomically(path, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/lines.jsonl");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    #[test]
    fn a_killed_run_goes_on_after_its_last_whole_line() {
        // However much of the third line had reached the disk; a number cut short would still be a number, were its bracket not missing.
        let third = b"[3,33]";
        for n_bytes in 0..third.len() {
            let (_folder, path) = file(&[b"[1]\n[2]\n", &third[..n_bytes]].concat());
            assert_eq!(read::<Vec<u32>>(&path).unwrap(), Lines { values: vec![vec![1], vec![2]], torn: n_bytes > 0 });
            let mut writer = Writer::open(&path).unwrap();
            writer.append(&[3]).unwrap();
            writer.sync().unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"[1]\n[2]\n[3]\n");
        }
    }

    #[test]
    fn a_last_line_without_its_break_is_kept() {
        let (_folder, path) = file(b"[1]\n\n[2]");
        assert_eq!(read::<Vec<u32>>(&path).unwrap(), Lines { values: vec![vec![1], vec![2]], torn: false });
        Writer::open(&path).unwrap().append(&[3]).unwrap();
        assert_eq!(read::<Vec<u32>>(&path).unwrap().values, [[1], [2], [3]]);
    }

    #[test]
    fn damage_elsewhere_is_an_error_with_its_line() {
        let (_folder, path) = file(b"[1]\n[2\n[3]\n");
        let error = format!("{:#}", read::<Vec<u32>>(&path).unwrap_err());
        assert!(error.contains("line 2") && error.contains("lines.jsonl"), "{error}");
        // A whole last line of another kind is damage too, not a torn line.
        let (_folder, path) = file(b"[1]\n{\"a\":1}");
        assert!(format!("{:#}", read::<Vec<u32>>(&path).unwrap_err()).contains("line 2"));
    }

    #[test]
    fn a_new_file_gets_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/c.jsonl");
        Writer::open(&path).unwrap().append(&"x\ny").unwrap();
        assert_eq!(read::<String>(&path).unwrap().values, ["x\ny"]);
        write(&path, &["p", "q"]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "\"p\"\n\"q\"\n");
    }
}
