//! The process that reads: it may run out of memory, overflow its stack or hang, and the parent goes on behind the input that did it.

use super::ledger::{Entry, Ledger};
use super::readers::Reader;
use anyhow::Result;
use mpo::command::render;
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::fs::OpenOptions;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Processor time that one input may take: of a tiny one this is an eternity. A debug build on a busy machine must stay below it.
const MOST_SECONDS: u64 = 10;
/// And on the clock: what waits for something takes no processor time.
const MOST_WAIT: Duration = Duration::from_secs(120);
/// Memory that a worker may use, where the system tells: an input is a quarter of a megabyte at most.
const MOST_MEMORY: u64 = 1 << 30;
/// Addresses that it may have, used or not: a template's thread alone has half a gigabyte. What asks for more at once has taken a number at its word.
const MOST_ADDRESSES: u64 = 48 << 30;
/// What an error says, in all of its causes, must be what somebody can scroll through.
const LONGEST_ERROR: usize = 60_000;

/// The variable that makes a worker of the test executable, and holds its [`Job`].
pub const JOB: &str = "MPO_FUZZ_WORKER";

/// What a worker is to do.
#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    pub reader: String,
    pub seed: u64,
    pub first: u64,
    pub end: u64,
    /// Read these instead of inputs made from the seed; `first` and `end` count them.
    pub files: Vec<PathBuf>,
    /// For `ledger`, `findings.jsonl` and what the reader needs.
    pub folder: PathBuf,
}

/// An input that did what none may do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Finding {
    pub index: u64,
    pub what: String,
}

impl Job {
    pub fn ledger(&self) -> PathBuf {
        self.folder.join("ledger")
    }

    pub fn findings(&self) -> PathBuf {
        self.folder.join("findings.jsonl")
    }

    pub fn input(&self, reader: &Reader, index: u64) -> Vec<u8> {
        match self.files.get(index as usize) {
            Some(file) => std::fs::read(file).unwrap(),
            None => reader.input(self.seed, index),
        }
    }
}

thread_local! {
    /// Where the last panic of this thread was, and what it said.
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Does the job that the environment names; nothing where it names none.
pub fn work() {
    let Some(job) = std::env::var_os(JOB) else { return };
    let job: Job = serde_json::from_str(job.to_str().unwrap()).unwrap();
    limit_memory();
    let reader = super::readers::all().into_iter().find(|reader| reader.name == job.reader).unwrap();
    let ledger = Arc::new(Ledger::open(&job.ledger()));
    let folder = job.folder.join("files");
    // Of a worker before, which an input ended.
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let mut read = (reader.open)(&folder);
    std::panic::set_hook(Box::new(|info| PANIC.with_borrow_mut(|said| *said = info.to_string())));
    watch(Arc::clone(&ledger));
    for index in job.first..job.end {
        ledger.set(Entry::Index, index);
        if index % 1000 == 999 {
            // Readers may say something of every input; nobody reads it.
            // SAFETY: an operation on a file that this process has open.
            unsafe { libc::ftruncate(2, 0) };
        }
        let input = job.input(&reader, index);
        let started = Instant::now();
        let found = one(&mut *read, &input, index % 8 == 0, &ledger);
        let micros = started.elapsed().as_micros() as u64;
        if micros > ledger.get(Entry::SlowestMicros) {
            ledger.set(Entry::SlowestMicros, micros);
            ledger.set(Entry::SlowestIndex, index);
        }
        if let Some(what) = found {
            note(&job.findings(), &Finding { index, what });
        }
    }
    ledger.set(Entry::End, 2);
}

/// Reads one input; what is wrong with how it was read.
fn one(read: &mut dyn FnMut(&[u8]) -> Result<String>, input: &[u8], is_read_twice: bool, ledger: &Ledger) -> Option<String> {
    let mut attempt = || catch_unwind(AssertUnwindSafe(|| read(input).map_err(|error| render(&error, false))));
    let said = || PANIC.with_borrow(|said| if said.is_empty() { "panicked on another thread".to_owned() } else { said.clone() });
    let Ok(result) = attempt() else { return Some(said()) };
    if is_read_twice {
        match attempt() {
            Err(_) => return Some(said()),
            // Libraries may name another of several faults.
            Ok(again) if again != result && (again.is_ok() || result.is_ok()) => {
                return Some(format!("read differently a second time: {}", difference(&result, &again)));
            }
            Ok(_) => {}
        }
    }
    match result {
        Ok(_) => {
            ledger.add(Entry::Accepted);
            None
        }
        Err(error) => {
            ledger.add(Entry::Rejected);
            ledger.set(Entry::LongestError, ledger.get(Entry::LongestError).max(error.len() as u64));
            what_is_wrong(&error)
        }
    }
}

fn what_is_wrong(error: &str) -> Option<String> {
    let start = || error.chars().take(300).collect::<String>();
    if error.trim_start_matches("error:").trim().is_empty() {
        Some("an error without words".to_owned())
    } else if error.len() > LONGEST_ERROR {
        Some(format!("an error of {} bytes: {}", error.len(), start()))
    } else {
        error
            .contains(|c: char| c.is_control() && !matches!(c, '\n' | '\t'))
            .then(|| format!("an error with control characters: {}", start()))
    }
}

fn difference(first: &Result<String, String>, second: &Result<String, String>) -> String {
    let text = |result: &Result<String, String>| match result {
        Ok(read) => format!("Ok({read})"),
        Err(error) => format!("Err({error})"),
    };
    let (first, second) = (text(first), text(second));
    let same = first.chars().zip(second.chars()).take_while(|(a, b)| a == b).count();
    let rest = |text: &str| text.chars().skip(same.saturating_sub(40)).take(160).collect::<String>();
    format!("…{} — …{}", rest(&first), rest(&second))
}

fn note(path: &Path, finding: &Finding) {
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    writeln!(file, "{}", serde_json::to_string(finding).unwrap()).unwrap();
}

/// Ends the process when an input takes too long.
fn watch(ledger: Arc<Ledger>) {
    std::thread::spawn(move || {
        let (mut index, mut since, mut cpu) = (u64::MAX, Instant::now(), Duration::ZERO);
        loop {
            std::thread::sleep(Duration::from_millis(20));
            let now = ledger.get(Entry::Index);
            if memory() > MOST_MEMORY {
                ledger.set(Entry::End, 3);
                // SAFETY: as below.
                unsafe { libc::_exit(1) };
            }
            if now != index {
                (index, since, cpu) = (now, Instant::now(), processor_time());
            } else if (processor_time() - cpu).as_secs() >= MOST_SECONDS || since.elapsed() > MOST_WAIT {
                ledger.set(Entry::End, 1);
                // SAFETY: ends the process, whatever its other threads do.
                unsafe { libc::_exit(1) };
            }
        }
    });
}

fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is valid for the call to write to.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// What of this process is in memory; 0 where the system does not tell.
fn memory() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok().and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

fn limit_memory() {
    let limit = |most| libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: both are valid for the calls to read from. A system that knows no such limit goes without, and no core is written.
    unsafe {
        libc::setrlimit(libc::RLIMIT_AS, &limit(MOST_ADDRESSES));
        libc::setrlimit(libc::RLIMIT_CORE, &limit(0));
    }
}
