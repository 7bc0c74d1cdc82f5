//! Every reader against inputs that are nearly right: it reads them, or refuses them in words. No panic, no abort, no endless work, and no reading of the
//! same bytes in two ways.
//!
//! ```text
//! cargo test --test it fuzz                                                      a few thousand inputs, always the same; what once failed
//! MPO_FUZZ_INPUTS=1000000 cargo test --release --test it fuzz::long -- --ignored --nocapture     so many, over all readers
//!     MPO_FUZZ_SEED=7              other inputs
//!     MPO_FUZZ_READERS=template,parquet    these readers alone
//! ```
//!
//! Inputs are seeds of a reader, changed by bytes or by what they are made of ([`shape`], [`mutate`]); input 17 of a reader and a seed is always the same.
//! They are read by a [`reading`], a process of this executable under a limit of memory and time, so that an abort is a finding like any other and costs
//! one input. Those that fail are written to `target/fuzz/READER--…`; moved to `tests/fixtures/fuzz/`, under that name, they are read in every `cargo test`.

mod ledger;
mod mutate;
mod parent;
mod random;
mod readers;
mod reading;
mod shape;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Of each reader, in every `cargo test`.
const SHORT: u64 = 120;
const LONG: u64 = 1_000_000;

fn kept() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fuzz")
}

fn variable<T: std::str::FromStr>(name: &str, otherwise: T) -> T {
    std::env::var(name).ok().and_then(|text| text.replace('_', "").parse().ok()).unwrap_or(otherwise)
}

#[test]
fn inputs_that_are_nearly_right_are_read_or_refused_in_words() {
    let outcomes: Vec<_> = readers::all().iter().map(|reader| parent::run(reader, 1, SHORT, &kept(), |_| {})).collect();
    let complaints = parent::complaints(&outcomes);
    assert!(complaints.is_empty(), "inputs are in `{}`:\n{complaints}{}", kept().display(), parent::table(&outcomes));
    for outcome in &outcomes {
        assert!(outcome.n_accepted > 0 && outcome.n_rejected > 0, "inputs are all alike:\n{}", parent::table(&outcomes));
    }
}

#[test]
fn inputs_that_failed_once_fail_no_more() {
    let mut by_reader: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/fuzz")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        by_reader.entry(name.split("--").next().unwrap().to_owned()).or_default().push(path);
    }
    for (name, mut files) in by_reader {
        files.sort();
        let reader = readers::all().into_iter().find(|reader| reader.name == name).unwrap_or_else(|| panic!("`{name}` is no reader"));
        let complaints = parent::complaints(&[parent::replay(&reader, files.clone(), &kept())]);
        assert!(complaints.is_empty(), "of {files:?}\n{complaints}");
    }
}

#[test]
#[ignore = "MPO_FUZZ_INPUTS=1000000 cargo test --release --test it fuzz::long -- --ignored --nocapture"]
fn long() {
    let chosen = parent::chosen(std::env::var("MPO_FUZZ_READERS").ok().as_deref());
    let (n_inputs, seed) = (variable("MPO_FUZZ_INPUTS", LONG), variable("MPO_FUZZ_SEED", 1));
    let each = n_inputs.div_ceil(chosen.len().max(1) as u64);
    let started = Instant::now();
    let mut outcomes = Vec::new();
    for (n_done, reader) in chosen.iter().enumerate() {
        let mut shown = Instant::now();
        outcomes.push(parent::run(reader, seed, each, &kept(), |index| {
            if shown.elapsed().as_secs() >= 2 {
                shown = Instant::now();
                let done = n_done as f64 + index as f64 / each as f64;
                let left = started.elapsed().as_secs_f64() / done.max(1e-9) * (chosen.len() as f64 - done);
                eprint!("\r{}: {index} of {each}; about {left:.0} s to go\x1b[K", reader.name);
                let _ = std::io::stderr().flush();
            }
        }));
    }
    let (n, complaints) = (outcomes.iter().map(|outcome| outcome.n_inputs).sum::<u64>(), parent::complaints(&outcomes));
    eprintln!("\r\x1b[K{}{n} inputs in {:.0} s, seed {seed}", parent::table(&outcomes), started.elapsed().as_secs_f64());
    assert!(complaints.is_empty(), "inputs are in `{}`:\n{complaints}", kept().display());
}

/// The process that the others start.
#[test]
#[ignore = "is started by the tests beside it"]
fn worker() {
    reading::work();
}
