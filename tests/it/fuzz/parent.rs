//! Starts workers, one reader after the other, and goes on behind an input that ended one.

use super::ledger::{Entry, Ledger};
use super::readers::{self, Reader};
use super::reading::{Finding, JOB, Job};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A reader that ends its worker more often than this is broken, and not tried further.
const MOST_ENDS: usize = 40;
/// Inputs that one worker reads: what it has given up, as a thread whose template never ends, goes with it.
const BATCH: u64 = 2_000;
/// Of findings of one kind, so many inputs are kept.
const MOST_KEPT: usize = 3;

/// What came of a reader's inputs.
#[derive(Debug)]
pub struct Outcome {
    pub reader: &'static str,
    pub n_inputs: u64,
    pub n_accepted: u64,
    pub n_rejected: u64,
    pub slowest: Duration,
    pub slowest_index: u64,
    pub longest_error: u64,
    pub seconds: f64,
    /// By kind.
    pub findings: BTreeMap<String, Vec<Finding>>,
}

/// Lets `reader` read `n_inputs` made from `seed`. Inputs that fail are written to `kept`.
pub fn run(reader: &Reader, seed: u64, n_inputs: u64, kept: &Path, mut said: impl FnMut(u64)) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let job = Job { reader: reader.name.into(), seed, first: 0, end: n_inputs, files: Vec::new(), folder: folder.path().to_owned() };
    go(reader, job, kept, &mut said)
}

/// Lets `reader` read `files`.
pub fn replay(reader: &Reader, files: Vec<PathBuf>, kept: &Path) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let job = Job { reader: reader.name.into(), seed: 0, first: 0, end: files.len() as u64, files, folder: folder.path().to_owned() };
    go(reader, job, kept, &mut |_| {})
}

fn go(reader: &Reader, mut job: Job, kept: &Path, said: &mut dyn FnMut(u64)) -> Outcome {
    let (started, ledger) = (Instant::now(), Ledger::open(&job.ledger()));
    let (mut findings, end) = (Vec::new(), job.end);
    while job.first < end && findings.len() < MOST_ENDS {
        job.end = end.min(job.first + BATCH);
        ledger.set(Entry::Index, job.first);
        ledger.set(Entry::End, 0);
        let (status, words) = wait(&job, &ledger, said);
        let index = ledger.get(Entry::Index);
        match ledger.get(Entry::End) {
            2 => {}
            1 => findings.push(Finding { index, what: "took too long".into() }),
            3 => findings.push(Finding { index, what: "took too much memory".into() }),
            _ => findings.push(Finding { index, what: end_of(status, &words) }),
        }
        job.first = index + 1;
    }
    let noted = fs::read_to_string(job.findings()).unwrap_or_default();
    findings.extend(noted.lines().map(|line| serde_json::from_str::<Finding>(line).unwrap()));
    let mut by_kind: BTreeMap<String, Vec<Finding>> = BTreeMap::new();
    findings.into_iter().for_each(|finding| by_kind.entry(kind(&finding.what).to_owned()).or_default().push(finding));
    for finding in by_kind.values().flat_map(|findings| findings.iter().take(MOST_KEPT)) {
        fs::create_dir_all(kept).unwrap();
        fs::write(kept.join(format!("{}--{}", reader.name, finding.index)), job.input(reader, finding.index)).unwrap();
    }
    Outcome {
        reader: reader.name,
        n_inputs: ledger.get(Entry::Index) + 1,
        n_accepted: ledger.get(Entry::Accepted),
        n_rejected: ledger.get(Entry::Rejected),
        slowest: Duration::from_micros(ledger.get(Entry::SlowestMicros)),
        slowest_index: ledger.get(Entry::SlowestIndex),
        longest_error: ledger.get(Entry::LongestError),
        seconds: started.elapsed().as_secs_f64(),
        findings: by_kind,
    }
}

/// Runs a worker to its end; how it ended, and what it said last.
fn wait(job: &Job, ledger: &Ledger, said: &mut dyn FnMut(u64)) -> (ExitStatus, String) {
    let words = job.folder.join("stderr");
    let _ = fs::remove_file(&words);
    let mut worker = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "fuzz::worker", "--ignored", "--nocapture", "--test-threads=1"])
        .env(JOB, serde_json::to_string(job).unwrap())
        .env("RUST_BACKTRACE", "0")
        // Nothing outside this machine, and nobody's token.
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_HOME", job.folder.join("home"))
        .env("MPO_CACHE", job.folder.join("cache"))
        .stdout(Stdio::null())
        .stderr(File::options().create(true).append(true).open(&words).unwrap())
        .spawn()
        .unwrap();
    let status = loop {
        if let Some(status) = worker.try_wait().unwrap() {
            break status;
        }
        said(ledger.get(Entry::Index));
        std::thread::sleep(Duration::from_millis(20));
    };
    let words = String::from_utf8_lossy(&fs::read(&words).unwrap_or_default()).into_owned();
    (status, words)
}

fn end_of(status: ExitStatus, words: &str) -> String {
    let said = ["overflowed its stack", "memory allocation", "panicked"].into_iter().find(|word| words.contains(word));
    let how = status.signal().map_or_else(|| format!("ended with {status}"), |signal| format!("killed by signal {signal}"));
    said.map_or_else(|| how.clone(), |said| format!("{how}: {said}"))
}

/// Findings are of one kind where they panic at one place, or begin alike.
fn kind(what: &str) -> &str {
    let first = what.lines().next().unwrap_or_default();
    if first.starts_with("panicked at") { first } else { first.split(':').next().unwrap_or_default() }
}

/// What must be fixed, for people; empty where nothing must.
pub fn complaints(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    for outcome in outcomes {
        for findings in outcome.findings.values() {
            let first: Vec<String> = findings.iter().take(MOST_KEPT).map(|finding| finding.index.to_string()).collect();
            let what = findings.first().map_or("", |finding| &finding.what).replace('\n', "\n    ");
            text += &format!("  {}: {} inputs ({}): {what}\n", outcome.reader, findings.len(), first.join(", "));
        }
    }
    text
}

/// A row for each reader.
pub fn table(outcomes: &[Outcome]) -> String {
    let mut text = format!(
        "{:<24}{:>9}{:>10}{:>10}{:>9}{:>8}{:>12}{:>9}{:>14}\n",
        "reader", "inputs", "accepted", "rejected", "failed", "s", "slowest ms", "which", "longest error"
    );
    for outcome in outcomes {
        let n_failed: usize = outcome.findings.values().map(Vec::len).sum();
        text += &format!(
            "{:<24}{:>9}{:>10}{:>10}{:>9}{:>8.1}{:>12.1}{:>9}{:>14}\n",
            outcome.reader,
            outcome.n_inputs,
            outcome.n_accepted,
            outcome.n_rejected,
            n_failed,
            outcome.seconds,
            outcome.slowest.as_secs_f64() * 1e3,
            outcome.slowest_index,
            outcome.longest_error
        );
    }
    text
}

/// The readers of these names, all where there are none.
pub fn chosen(names: Option<&str>) -> Vec<Reader> {
    let all = readers::all();
    let Some(names) = names else { return all };
    let names: Vec<&str> = names.split(',').collect();
    all.into_iter().filter(|reader| names.iter().any(|name| reader.name.starts_with(name))).collect()
}
