//! `metrics.jsonl`: one JSON line a step, and one for each time that canaries are asked, written at once and in one piece.
//!
//! A line is in the file when the next step begins, so that a killed run keeps what it has measured. On resume the lines after the
//! checkpoint are cut, and each step stands once. A line about something other than a step says so in `kind`; it is about the weights after
//! `step` steps, and a run that goes on from there writes it again. Lines that are gone are written again with what the schedule and the data
//! say of their steps, and `lost`: then no sum speaks of them.

use super::metrics::SHARE;
use crate::files::write_atomically;
use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The log of a run, open for appending.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Opens `path` for a run that has taken `n_steps` steps: an existing file keeps its lines up to that step, and loses those after it
    /// as well as a line that was cut short.
    pub fn open(path: &Path, n_steps: usize) -> Result<Self> {
        if path.exists() {
            let text = fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
            let kept: Vec<u8> =
                text.split_inclusive(|byte| *byte == b'\n').filter(|line| is_kept(line, n_steps)).flatten().copied().collect();
            if kept != text {
                write_atomically(path, &kept)?;
            }
        }
        Ok(Self { path: path.to_path_buf(), file: append_to(path)? })
    }

    /// Writes lines for the steps up to `n_steps` that have none: what `line_of` knows of each, marked as lost. The steps.
    pub fn rebuild(&mut self, n_steps: usize, mut line_of: impl FnMut(usize) -> Map<String, Value>) -> Result<Vec<usize>> {
        let text = fs::read(&self.path).with_context(|| format!("cannot read `{}`", self.path.display()))?;
        // By step, and the lines of a step in their order: what is about the weights before a step stands before the step's own line.
        let mut lines: BTreeMap<usize, Vec<&[u8]>> = BTreeMap::new();
        let mut found = BTreeSet::new();
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            let Ok(head) = serde_json::from_slice::<Head>(line) else { continue };
            let is_step = head.kind.is_none();
            // A step that stands twice is one line too many.
            if !is_step || found.insert(head.step) {
                lines.entry(if is_step { head.step } else { head.step + 1 }).or_default().push(line);
            }
        }
        let lost: Vec<usize> = (1..=n_steps).filter(|step| !found.contains(step)).collect();
        if lost.is_empty() {
            return Ok(lost);
        }
        let rebuilt: Vec<(usize, Vec<u8>)> = lost
            .iter()
            .map(|&step| {
                let mut line = Map::from_iter([("step".to_owned(), step.into())]);
                line.extend(line_of(step));
                line.insert(LOST.into(), true.into());
                Ok((step, [serde_json::to_vec(&line)?, b"\n".to_vec()].concat()))
            })
            .collect::<Result<_>>()?;
        rebuilt.iter().for_each(|(step, line)| lines.entry(*step).or_default().push(line));
        let whole: Vec<u8> = lines.into_values().flatten().flatten().copied().collect();
        write_atomically(&self.path, &whole)?;
        self.file = append_to(&self.path)?;
        Ok(lost)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends one line.
    pub fn append(&mut self, line: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        // One call and no buffer: nothing is lost when the process dies.
        self.file.write_all(&text).with_context(|| format!("cannot write `{}`", self.path.display()))
    }

    /// Makes everything written so far survive a loss of power.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().with_context(|| format!("cannot write `{}`", self.path.display()))
    }
}

/// A key of lines that were lost and written again with what is known without them.
const LOST: &str = "lost";

fn append_to(path: &Path) -> Result<File> {
    OpenOptions::new().create(true).append(true).open(path).with_context(|| format!("cannot write `{}`", path.display()))
}

/// What all lines of a log come to.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Totals {
    /// Of the first and of the last step; `None` where it was not finite.
    pub first_loss: Option<f64>,
    pub last_loss: Option<f64>,
    pub epochs: f64,
    pub tokens: u64,
    pub tokens_computed: u64,
    /// Wall time of all steps, over all starts of the run.
    pub seconds: f64,
    pub peak_rss_bytes: u64,
    /// Where a GPU computed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_gpu_bytes: Option<u64>,
    /// Steps whose lines were lost: no other number here speaks of them.
    #[serde(skip_serializing_if = "is_zero")]
    pub lost_steps: usize,
    /// Floating-point operations a second.
    pub flops_per_second: f64,
    /// Of the rate of matrix products that was measured at the start.
    pub gemm_share: f64,
    /// Of the steps' time, by phase.
    pub shares: BTreeMap<String, f64>,
}

/// What is added up of a line.
#[derive(serde::Deserialize)]
struct Line {
    loss: Option<f64>,
    epoch: f64,
    tokens: u64,
    tokens_computed: u64,
    seconds: f64,
    peak_rss_bytes: u64,
    peak_gpu_bytes: Option<u64>,
    // Lines of an older version do not say.
    #[serde(default)]
    flops_per_second: f64,
    #[serde(default)]
    gemm_share: f64,
    #[serde(flatten)]
    more: BTreeMap<String, Value>,
}

/// Adds up the lines of `path`.
pub fn totals(path: &Path) -> Result<Totals> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let mut totals = Totals::default();
    let mut is_first = true;
    for (index, line) in text.lines().enumerate() {
        let context = || format!("`{}` line {}", path.display(), index + 1);
        let head: Head = serde_json::from_str(line).with_context(context)?;
        if head.lost {
            // Another step's loss is not the first.
            is_first &= head.step != 1;
            totals.lost_steps += 1;
        }
        if head.lost || head.kind.is_some() {
            continue;
        }
        let line: Line = serde_json::from_str(line).with_context(context)?;
        if std::mem::take(&mut is_first) {
            totals.first_loss = line.loss;
        }
        totals.last_loss = line.loss;
        totals.epochs = line.epoch;
        totals.tokens += line.tokens;
        totals.tokens_computed += line.tokens_computed;
        totals.seconds += line.seconds;
        totals.peak_rss_bytes = totals.peak_rss_bytes.max(line.peak_rss_bytes);
        totals.peak_gpu_bytes = totals.peak_gpu_bytes.max(line.peak_gpu_bytes);
        totals.flops_per_second += line.seconds * line.flops_per_second;
        totals.gemm_share += line.seconds * line.gemm_share;
        for (key, value) in &line.more {
            if let (Some(phase), Some(share)) = (key.strip_prefix(SHARE), value.as_f64()) {
                *totals.shares.entry(phase.to_owned()).or_default() += line.seconds * share;
            }
        }
    }
    let rates = [&mut totals.flops_per_second, &mut totals.gemm_share];
    rates.into_iter().chain(totals.shares.values_mut()).for_each(|sum| *sum /= totals.seconds);
    Ok(totals)
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// What every line has, and what only those have that are not about a step.
#[derive(serde::Deserialize)]
struct Head {
    step: usize,
    kind: Option<String>,
    #[serde(default)]
    lost: bool,
}

fn is_kept(line: &[u8], n_steps: usize) -> bool {
    let is_before = |head: Head| if head.kind.is_some() { head.step < n_steps } else { head.step <= n_steps };
    line.ends_with(b"\n") && serde_json::from_slice(line).is_ok_and(is_before)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_line_that_is_no_step_is_written_again_by_whoever_goes_on_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let step = |step: usize| json!({"step": step, "loss": step, "epoch": 1.0, "tokens": 2, "tokens_computed": 2, "seconds": 0.5, "peak_rss_bytes": 9});
        let other = |step: usize| json!({"step": step, "kind": "canary", "seconds": 100.0});
        let mut log = MetricsLog::open(&path, 0).unwrap();
        [other(0), step(1), step(2), other(2), step(3), other(3)].iter().for_each(|line| log.append(line).unwrap());
        let totals = totals(&path).unwrap();
        assert_eq!((totals.first_loss, totals.last_loss, totals.tokens, totals.seconds), (Some(1.0), Some(3.0), 6, 1.5));
        let kept = |n_steps: usize| {
            MetricsLog::open(&path, n_steps).unwrap();
            fs::read_to_string(&path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
        };
        assert_eq!(kept(3), [other(0), step(1), step(2), other(2), step(3)]);
        assert_eq!(kept(2), [other(0), step(1), step(2)]);
        assert_eq!(kept(0), [] as [Value; 0]);
    }

    #[test]
    fn each_step_stands_once_after_a_resume() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path, 0).unwrap();
        for step in 1..=5 {
            log.append(&json!({"step": step, "loss": 0.1 + 0.2})).unwrap();
        }
        fs::write(&path, [fs::read(&path).unwrap(), b"{\"step\":6,\"lo".to_vec()].concat()).unwrap();
        let mut log = MetricsLog::open(&path, 3).unwrap();
        log.append(&json!({"step": 4, "loss": 7})).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let steps: Vec<u64> =
            text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["step"].as_u64().unwrap()).collect();
        assert_eq!(steps, [1, 2, 3, 4]);
        assert!(text.starts_with("{\"step\":1,\"loss\":0.30000000000000004}\n"), "numbers are written in full: {text}");
    }

    #[test]
    fn lines_that_are_gone_are_written_again_with_what_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let step = |step: usize| {
            format!(
                "{}\n",
                json!({"step": step, "loss": step, "epoch": 1.0, "tokens": 2, "tokens_computed": 2, "seconds": 0.5, "peak_rss_bytes": 9})
            )
        };
        let canary = |step: usize| format!("{}\n", json!({"step": step, "kind": "canary"}));
        fs::write(&path, [canary(0), step(2), canary(2), "{\"step\": 3, \"lo\n".into(), step(4), step(4)].concat()).unwrap();
        let mut log = MetricsLog::open(&path, 5).unwrap();
        let known = |step: usize| Map::from_iter([("lr".to_owned(), json!(step))]);
        assert_eq!(log.rebuild(5, known).unwrap(), [1, 3, 5]);
        let lost = |step: usize| format!("{}\n", json!({"step": step, "lr": step, "lost": true}));
        let whole = [canary(0), lost(1), step(2), canary(2), lost(3), step(4), lost(5)].concat();
        assert_eq!(fs::read_to_string(&path).unwrap(), whole);
        log.append(&json!({"step": 6, "loss": 0.5, "epoch": 1.0, "tokens": 2, "tokens_computed": 2, "seconds": 0.5, "peak_rss_bytes": 9}))
            .unwrap();
        let totals = totals(&path).unwrap();
        assert_eq!((totals.first_loss, totals.last_loss, totals.tokens, totals.lost_steps), (None, Some(0.5), 6, 3));
        assert_eq!(MetricsLog::open(&path, 6).unwrap().rebuild(6, known).unwrap(), [0; 0], "once is enough");
        fs::remove_file(&path).unwrap();
        assert_eq!(MetricsLog::open(&path, 2).unwrap().rebuild(2, known).unwrap(), [1, 2]);
    }

    #[test]
    fn rates_and_shares_are_weighed_by_time() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = MetricsLog::open(&dir.path().join("metrics.jsonl"), 0).unwrap();
        for (step, seconds, rate, share) in [(1, 1.0, 80.0, 0.4), (2, 3.0, 100.0, 0.2)] {
            let mut line = json!({
                "step": step, "loss": 1.0, "epoch": 0.5, "tokens": 10, "tokens_computed": 9, "seconds": seconds, "peak_rss_bytes": 7,
                "flops_per_second": rate, "gemm_share": rate / 200.0, "share/head": share, "reward_gap_target/sw": 0.1,
            });
            if step == 1 {
                line["peak_gpu_bytes"] = 11.into();
            }
            log.append(&line).unwrap();
        }
        let totals = totals(log.path()).unwrap();
        assert_eq!((totals.peak_rss_bytes, totals.peak_gpu_bytes), (7, Some(11)), "a run may go on where there is no GPU");
        assert_eq!((totals.seconds, totals.flops_per_second, totals.gemm_share), (4.0, 95.0, 0.475));
        assert_eq!(totals.shares, BTreeMap::from([("head".to_owned(), 0.25)]));
    }

    #[test]
    fn a_cut_last_line_goes_even_when_its_step_could_stay() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        fs::write(&path, "{\"step\":1}\n{\"step\":2}").unwrap();
        MetricsLog::open(&path, 9).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"step\":1}\n");
    }
}
