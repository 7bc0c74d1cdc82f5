//! Replies on disk: no question is paid for twice, in this run or any other.
//!
//! One JSONL file, a line `{"key": …, "reply": …}` for each reply, appended in one write; threads and processes may share it. The key is
//! the sha256 of the judge's name and of the whole prompt, in which rubric, query and response are; the texts themselves are not kept. A
//! line that a dying process left torn is skipped, and the next one begins behind a line break.

use super::prompt::Prompt;
use super::{Failure, ShouldStop, Transport};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    reply: String,
}

/// All replies that were ever given, as far as this file knows.
pub struct Cache {
    path: PathBuf,
    inner: Mutex<Inner>,
}

struct Inner {
    file: File,
    replies: HashMap<String, String>,
    n_skipped: usize,
}

impl Cache {
    /// Reads the file, or begins it.
    ///
    /// # Errors
    ///
    /// It cannot be made, read or written.
    pub fn open(path: &Path) -> Result<Self> {
        let open = || -> std::io::Result<(File, Vec<u8>)> {
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok((file, bytes))
        };
        let (file, bytes) = open().with_context(|| format!("cannot open the judge's cache `{}`", path.display()))?;
        let mut inner = Inner { file, replies: HashMap::new(), n_skipped: 0 };
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice::<Line>(line) {
                Ok(line) => drop(inner.replies.insert(line.key, line.reply)),
                Err(_) => inner.n_skipped += 1,
            }
        }
        Ok(Self { path: path.to_owned(), inner: Mutex::new(inner) })
    }

    /// Lines that could not be read when the file was opened: what a killed process or a full disk left.
    pub fn n_skipped(&self) -> usize {
        self.lock().n_skipped
    }

    pub fn get(&self, key: &str) -> Option<String> {
        self.lock().replies.get(key).cloned()
    }

    /// # Errors
    ///
    /// The line could not be written: a full disk, most likely.
    pub fn put(&self, key: &str, reply: &str) -> Result<()> {
        let line = Line { key: key.to_owned(), reply: reply.to_owned() };
        let line = serde_json::to_string(&line)?;
        let mut inner = self.lock();
        append(&mut inner.file, &line).with_context(|| format!("cannot write the judge's cache `{}`", self.path.display()))?;
        inner.replies.insert(key.to_owned(), reply.to_owned());
        Ok(())
    }

    /// What the map holds is whole whenever the lock is free.
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds a line in one write, behind the line break that a torn last line lacks. The file is open for appending: what two processes write at
/// once comes one behind the other.
fn append(file: &mut File, line: &str) -> std::io::Result<()> {
    let end = file.seek(SeekFrom::End(0))?;
    let mut last = [b'\n'];
    if end > 0 {
        file.seek(SeekFrom::Start(end - 1))?;
        file.read_exact(&mut last)?;
    }
    let separator = if last == [b'\n'] { "" } else { "\n" };
    file.write_all(format!("{separator}{line}\n").as_bytes())
}

/// A transport that asks the cache first.
pub struct Cached<'a> {
    pub inner: &'a dyn Transport,
    pub cache: &'a Cache,
}

impl Transport for Cached<'_> {
    fn identity(&self) -> String {
        self.inner.identity()
    }

    fn complete(&self, prompt: &Prompt, should_stop: ShouldStop<'_>) -> Result<String, Failure> {
        let key = prompt.key(&self.identity());
        if let Some(reply) = self.cache.get(&key) {
            return Ok(reply);
        }
        let reply = self.inner.complete(prompt, should_stop)?;
        self.cache.put(&key, &reply).map_err(Failure::Fatal)?;
        Ok(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::super::local::Local;
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn replies_outlive_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/cache.jsonl");
        let cache = Cache::open(&path).unwrap();
        cache.put("a", "safe\nbecause").unwrap();
        cache.put("b", "").unwrap();
        assert_eq!(cache.get("c"), None);
        let again = Cache::open(&path).unwrap();
        assert_eq!((again.get("a").as_deref(), again.get("b").as_deref(), again.n_skipped()), (Some("safe\nbecause"), Some(""), 0));
    }

    #[test]
    fn a_torn_line_costs_one_reply() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache.jsonl");
        Cache::open(&path).unwrap().put("a", "safe").unwrap();
        Cache::open(&path).unwrap().put("b", "unsafe ☠").unwrap();
        let whole = std::fs::read(&path).unwrap();
        // Wherever the second line was cut: within the key, within a character, before the line break.
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for end in first + 1..whole.len() {
            std::fs::write(&path, &whole[..end]).unwrap();
            let cache = Cache::open(&path).unwrap();
            let is_whole = end == whole.len() - 1;
            assert_eq!((cache.n_skipped(), cache.get("b").is_some()), (usize::from(!is_whole), is_whole), "cut at {end}");
            cache.put("c", "invalid").unwrap();
            let again = Cache::open(&path).unwrap();
            assert_eq!((again.get("a").as_deref(), again.get("c").as_deref()), (Some("safe"), Some("invalid")), "cut at {end}");
        }
    }

    #[test]
    fn threads_and_handles_share_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache.jsonl");
        let caches = [Cache::open(&path).unwrap(), Cache::open(&path).unwrap()];
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let cache = &caches[thread % 2];
                scope.spawn(move || (0..25).for_each(|n| cache.put(&format!("{thread}-{n}"), &"x".repeat(300 * n)).unwrap()));
            }
        });
        let again = Cache::open(&path).unwrap();
        let n_replies = again.lock().replies.len();
        assert_eq!((n_replies, again.n_skipped()), (200, 0));
    }

    #[test]
    fn a_question_is_asked_once() {
        let dir = tempfile::tempdir().unwrap();
        let n = AtomicUsize::new(0);
        let judge =
            |name: &str| Local { identity: name.to_owned(), generate: |_: &Prompt| Ok(Some(n.fetch_add(1, Ordering::SeqCst).to_string())) };
        for name in ["one", "two", "one"] {
            let cache = Cache::open(&dir.path().join("cache.jsonl")).unwrap();
            let inner = judge(name);
            let cached = Cached { inner: &inner, cache: &cache };
            for text in ["a", "b", "a"] {
                cached.complete(&Prompt::user(text), &|| false).unwrap();
            }
        }
        assert_eq!(n.load(Ordering::SeqCst), 4, "two questions of two judges");
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = Cache::open(dir.path()).err().unwrap();
        assert!(format!("{error:#}").contains("judge's cache"), "{error:#}");
    }
}
