//! Our side of a job, in a process of its own: the optimizer step as `mpo train` does it, on random weights and random tokens.

use crate::job::{Engine, Job, Lengths, Measured, Row};
use crate::random::random_tokens;
use crate::{floor, head, shapes};
use anyhow::{Context, Result, bail, ensure};
use mpo::adapter::Adapter;
use mpo::config::{AdapterConfig, AdapterKind, RunConfig};
use mpo::data::encode::{EncodedPreference, EncodedRow, Response};
use mpo::data::loader::{Loader, dominant_numbers};
use mpo::model::decoder::{Decoder, Keep, Purpose};
use mpo::model::family;
use mpo::reference::{Columns, Folders, FrozenScores, Provenance};
use mpo::scoring::KeptStates;
use mpo::train::optimizer::AdamW;
use mpo::train::step::{Gradients, StepSettings, evaluate_batch};
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Instant;

/// Does what `job` says on as many threads as it says.
pub fn run(job: &Job) -> Result<Measured> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(job.threads).build()?;
    pool.install(|| match job.engine {
        Engine::Mpo | Engine::MpoCheckpointing if job.shape == shapes::HEAD => head::measure(job),
        Engine::Mpo | Engine::MpoCheckpointing | Engine::MpoLora => steps(job),
        Engine::GemmList => floor::measure_gemm(job),
        Engine::OpList => floor::measure_ops(job),
        engine => bail!("{engine:?} is a Python peer"),
    })
}

fn steps(job: &Job) -> Result<Measured> {
    let mut config = RunConfig::default();
    config.model.dtype = job.dtype;
    config.train.batch_size = job.batch_size;
    config.train.group_by_dominant = job.batch_size > 1;
    config.train.shuffle = false;
    let policy = policy(job, &shapes::folder(&job.shape))?;
    let n_vocab = policy.description().vocab_size;
    let rows: Vec<EncodedRow> = job.rows.iter().enumerate().map(|(i, row)| random_row(i, row, n_vocab)).collect();
    let mut settings = StepSettings::new(&config, 0);
    if job.engine == Engine::MpoCheckpointing {
        settings.memory.keep = Keep::BlockInputs { every: NonZeroUsize::MIN };
    }

    let start = Instant::now();
    let dominant: Vec<&EncodedPreference> = rows.iter().filter_map(|row| row.dominant.as_ref()).collect();
    let provenance = Provenance::of(&policy, job.dtype, KeptStates::of(&config.retention), 0)?;
    let (scores, _) = FrozenScores::score(&policy, &dominant, provenance, Folders::default())?;
    let reference = Columns::of_dominant(scores);
    let reference_seconds = if job.counts_reference { start.elapsed().as_secs_f64() } else { 0.0 };

    let mut optimizer = AdamW::new(&config.optimizer, 0, policy.trained_parameters())?;
    let mut loader = Loader::new(&dominant_numbers(&rows), &config.train)?;
    let first = loader.clone().next_batch();
    let (mut loss, mut n_tokens_computed) = (f64::NAN, 0);
    let mut measured = Clock::measure(job, |is_counted| {
        let batch = if is_counted { loader.next_batch() } else { first.clone() };
        let batch: Vec<&EncodedRow> = batch.iter().map(|&row| &rows[row]).collect();
        policy.zero_gradients()?;
        let outcome = evaluate_batch(&policy, &batch, &reference, &settings, Gradients::Both)?;
        optimizer.step(policy.trained_parameters(), config.optimizer.lr)?;
        (loss, n_tokens_computed) = (outcome.loss, outcome.n_tokens_computed);
        Ok(())
    })?;
    ensure!(loss.is_finite(), "the loss is {loss}");
    measured.reference_seconds = reference_seconds;
    measured.notes.extend([("loss".into(), loss.into()), ("tokens_computed_in_last_step".into(), n_tokens_computed.into())]);
    Ok(measured)
}

/// The whole model to train, or an adapter as `[adapter]` has it by default.
fn policy(job: &Job, folder: &Path) -> Result<Decoder> {
    if job.engine != Engine::MpoLora {
        return Decoder::load(folder, job.dtype, Purpose::Train);
    }
    let lora = AdapterConfig { kind: AdapterKind::Lora, alpha: Some(32.0), ..AdapterConfig::default() };
    Adapter::new(&lora, 0, &family::describe_folder(folder)?)?.load(folder, job.dtype, Purpose::Train)
}

/// Wall and CPU time of steps.
pub struct Clock;

impl Clock {
    /// Runs `step` for the warm-up (`false`), then for every counted step (`true`).
    pub fn measure(job: &Job, mut step: impl FnMut(bool) -> Result<()>) -> Result<Measured> {
        for _ in 0..job.warm_up {
            step(false)?;
        }
        let n_steps = job.passes * job.rows.len().div_ceil(job.batch_size);
        let (mut step_seconds, mut step_cpu_seconds) = (Vec::new(), Vec::new());
        for _ in 0..n_steps {
            let (start, cpu) = (Instant::now(), cpu_seconds()?);
            step(true)?;
            step_seconds.push(start.elapsed().as_secs_f64());
            step_cpu_seconds.push(cpu_seconds()? - cpu);
        }
        Ok(Measured {
            step_seconds,
            step_cpu_seconds,
            peak_rss_bytes: mpo::device::peak_rss_bytes(),
            reference_seconds: 0.0,
            extra_bytes: None,
            notes: serde_json::Map::new(),
        })
    }
}

/// User and system time of this process so far.
fn cpu_seconds() -> Result<f64> {
    // SAFETY: `rusage` is plain old data for which all zeros is a value, and the pointer is valid for the call.
    let (code, usage) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        (libc::getrusage(libc::RUSAGE_SELF, &mut usage), usage)
    };
    ensure!(code == 0, "getrusage failed");
    let seconds = |time: libc::timeval| time.tv_sec as f64 + 1e-6 * time.tv_usec as f64;
    Ok(seconds(usage.ru_utime) + seconds(usage.ru_stime))
}

fn random_row(index: usize, row: &Row, n_vocab: usize) -> EncodedRow {
    let pair = |lang: &str, seed: usize, lengths: &Lengths| {
        let tokens = |n: usize, part: usize| random_tokens((3 * seed + part) as u64, n, n_vocab);
        let response = |n, part| Response { tokens: tokens(n, part), n_end_tokens: 1 };
        EncodedPreference {
            lang: lang.into(),
            prompt: tokens(lengths.prompt, 0),
            chosen: response(lengths.chosen, 1),
            rejected: response(lengths.rejected, 2),
        }
    };
    EncodedRow {
        id: index.to_string(),
        dominant: Some(pair("en", row.pair, &row.dominant)),
        target: pair(&row.language, 1_000_000 + index, &row.target),
        mismatched: None,
    }
}

/// Bytes that this process holds now.
pub fn rss_bytes() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("the memory of a process is read off Linux' /proc")?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    Ok(1024 * kib.context("no VmRSS in /proc/self/status")?)
}
