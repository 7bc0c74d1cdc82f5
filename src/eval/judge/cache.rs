//! Replies on disk: no question is paid for twice, in this run or any other.
//!
//! One JSONL file, a line `{"key": …, "reply": …}` for each reply, appended in one write; threads and processes may share it. The key is the sha256 of
//! all that a request says: endpoint, model, what is asked for beside the question ([`parameters`](super::parameters)), and the whole prompt, in which
//! rubric, query and response are; the texts themselves are not kept. Of two lines for one key the later counts. A line that a dying process left torn is
//! skipped, and the next one begins behind a line break.
//!
//! Only what can be read as a verdict is kept, and of what older versions kept only that is taken: a server that was repaired is asked again.

use super::prompt::Prompt;
use super::{Failure, IsReadable, Reply, ShouldStop, Transport};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    reply: String,
    /// Names of parameters that the endpoint refused when it gave the reply.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    without: Vec<String>,
}

/// All replies that were ever given, as far as this file knows.
pub struct Cache {
    path: PathBuf,
    /// Replies of earlier runs are passed by.
    is_fresh: bool,
    inner: Mutex<Inner>,
}

struct Inner {
    file: File,
    replies: HashMap<String, Reply>,
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
                Ok(Line { key, reply, without }) => drop(inner.replies.insert(key, Reply { text: reply, without, is_earlier: true })),
                Err(_) => inner.n_skipped += 1,
            }
        }
        Ok(Self { path: path.to_owned(), is_fresh: false, inner: Mutex::new(inner) })
    }

    /// The same without what earlier runs were told: they are asked anew, and their replies replaced.
    pub fn fresh(self, is_fresh: bool) -> Self {
        Self { is_fresh, ..self }
    }

    /// Lines that could not be read when the file was opened: what a killed process or a full disk left.
    pub fn n_skipped(&self) -> usize {
        self.lock().n_skipped
    }

    pub fn get(&self, key: &str) -> Option<Reply> {
        self.lock().replies.get(key).filter(|reply| !(self.is_fresh && reply.is_earlier)).cloned()
    }

    /// # Errors
    ///
    /// The line could not be written: a full disk, most likely.
    pub fn put(&self, key: &str, reply: &Reply) -> Result<()> {
        let line = Line { key: key.to_owned(), reply: reply.text.clone(), without: reply.without.clone() };
        let line = serde_json::to_string(&line)?;
        let mut inner = self.lock();
        append(&mut inner.file, &line).with_context(|| format!("cannot write the judge's cache `{}`", self.path.display()))?;
        inner.replies.insert(key.to_owned(), reply.clone());
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

    fn parameters(&self) -> BTreeMap<String, Value> {
        self.inner.parameters()
    }

    fn keys(&self, prompt: &Prompt) -> Vec<String> {
        self.inner.keys(prompt)
    }

    fn complete(&self, prompt: &Prompt, is_readable: IsReadable<'_>, should_stop: ShouldStop<'_>) -> Result<Reply, Failure> {
        let keys = self.keys(prompt);
        let mut kept = keys.iter().filter_map(|key| self.cache.get(key));
        if let Some(reply) = kept.find(|reply| is_readable(&reply.text)) {
            return Ok(reply);
        }
        let reply = self.inner.complete(prompt, is_readable, should_stop)?;
        if is_readable(&reply.text)
            && let Some(key) = keys.first()
        {
            self.cache.put(key, &reply).map_err(Failure::Fatal)?;
        }
        Ok(reply)
    }
}

#[cfg(test)]
mod tests {
    use super::super::local::Local;
    use super::*;
    use crate::generate::FinishReason;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn put(cache: &Cache, key: &str, text: &str) {
        cache.put(key, &Reply::new(text)).unwrap();
    }

    fn text(cache: &Cache, key: &str) -> Option<String> {
        cache.get(key).map(|reply| reply.text)
    }

    #[test]
    fn replies_outlive_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/cache.jsonl");
        let cache = Cache::open(&path).unwrap();
        put(&cache, "a", "safe\nbecause");
        cache.put("b", &Reply { without: vec!["temperature".into()], ..Reply::new("unsafe") }).unwrap();
        assert_eq!((cache.get("c"), cache.get("a").unwrap().is_earlier), (None, false));
        let again = Cache::open(&path).unwrap();
        assert_eq!((text(&again, "a").as_deref(), again.n_skipped()), (Some("safe\nbecause"), 0));
        assert_eq!(again.get("b").unwrap(), Reply { text: "unsafe".into(), without: vec!["temperature".into()], is_earlier: true });
        // Nothing of it is taken by who asks anew; what that one is told replaces it.
        let fresh = again.fresh(true);
        assert_eq!(fresh.get("a"), None);
        put(&fresh, "a", "unsafe");
        assert_eq!(text(&fresh, "a").as_deref(), Some("unsafe"));
        assert_eq!(text(&Cache::open(&path).unwrap(), "a").as_deref(), Some("unsafe"));
    }

    #[test]
    fn a_torn_line_costs_one_reply() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache.jsonl");
        put(&Cache::open(&path).unwrap(), "a", "safe");
        put(&Cache::open(&path).unwrap(), "b", "unsafe ☠");
        let whole = std::fs::read(&path).unwrap();
        // Wherever the second line was cut: within the key, within a character, before the line break.
        let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for end in first + 1..whole.len() {
            std::fs::write(&path, &whole[..end]).unwrap();
            let cache = Cache::open(&path).unwrap();
            let is_whole = end == whole.len() - 1;
            assert_eq!((cache.n_skipped(), cache.get("b").is_some()), (usize::from(!is_whole), is_whole), "cut at {end}");
            put(&cache, "c", "invalid");
            let again = Cache::open(&path).unwrap();
            assert_eq!((text(&again, "a").as_deref(), text(&again, "c").as_deref()), (Some("safe"), Some("invalid")), "cut at {end}");
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
                scope.spawn(move || (0..25).for_each(|n| put(cache, &format!("{thread}-{n}"), &"x".repeat(300 * n))));
            }
        });
        let again = Cache::open(&path).unwrap();
        let n_replies = again.lock().replies.len();
        assert_eq!((n_replies, again.n_skipped()), (200, 0));
    }

    type Answered = Result<Option<(String, FinishReason)>>;

    /// A judge that says how often it was asked.
    fn counting<'n>(name: &str, n: &'n AtomicUsize) -> Local<impl Fn(&Prompt) -> Answered + Sync + use<'n>> {
        let generate = |_: &Prompt| Ok(Some((n.fetch_add(1, Ordering::SeqCst).to_string(), FinishReason::Stop)));
        Local { identity: name.to_owned(), generate }
    }

    #[test]
    fn a_question_is_asked_once() {
        let dir = tempfile::tempdir().unwrap();
        let n = AtomicUsize::new(0);
        for name in ["one", "two", "one"] {
            let cache = Cache::open(&dir.path().join("cache.jsonl")).unwrap();
            let inner = counting(name, &n);
            let cached = Cached { inner: &inner, cache: &cache };
            for text in ["a", "b", "a"] {
                cached.complete(&Prompt::user(text), &|_| true, &|| false).unwrap();
            }
        }
        assert_eq!(n.load(Ordering::SeqCst), 4, "two questions of two judges");
    }

    #[test]
    fn what_cannot_be_read_is_neither_kept_nor_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache.jsonl");
        let n = AtomicUsize::new(0);
        let ask = |is_readable: IsReadable<'_>| {
            let cache = Cache::open(&path).unwrap();
            let inner = counting("one", &n);
            let cached = Cached { inner: &inner, cache: &cache };
            cached.complete(&Prompt::user("a"), is_readable, &|| false).unwrap().text
        };
        assert_eq!((ask(&|_| false), ask(&|_| false)), ("0".into(), "1".into()));
        assert_eq!(std::fs::read(&path).unwrap(), b"");
        assert_eq!((ask(&|_| true), ask(&|_| true)), ("2".into(), "2".into()));
        // An older version kept whatever came.
        assert_eq!((ask(&|text| text != "2"), ask(&|_| true)), ("3".into(), "3".into()));
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = Cache::open(dir.path()).err().unwrap();
        assert!(format!("{error:#}").contains("judge's cache"), "{error:#}");
    }
}
