//! Our side of a job, in a process of its own: the optimizer step as `mpo train` does it, on random weights that the card makes itself.

use crate::head;
use crate::job::{Engine, Job, Kernel, Measured};
use crate::random::random_values;
use crate::rows::random_row;
use anyhow::{Context, Result, bail, ensure};
use candle_core::Tensor;
use mpo::adapter::Adapter;
use mpo::config::{AdapterConfig, AdapterKind, HardwareConfig, MasterWeights, MomentType, RunConfig};
use mpo::data::encode::{EncodedPreference, EncodedRow};
use mpo::model::decoder::{Decoder, Keep, Purpose};
use mpo::model::description::DecoderDescription;
use mpo::model::family;
use mpo::model::low_rank::Adaptation;
use mpo::ops::{self, Place, gpu, linear};
use mpo::plan::estimate;
use mpo::plan::low_rank::LowRankTerms;
use mpo::reference::{Columns, Folders, FrozenScores, Provenance};
use mpo::scoring::KeptStates;
use mpo::train::evaluate::PolicyIs;
use mpo::train::optimizer::AdamW;
use mpo::train::step::{Gradients, StepMemory, StepSettings, passes};
use mpo::train::update::update;
use std::num::NonZeroUsize;
use std::time::Instant;

/// Does what `job` says, on the device `emulated` too where there is a C++ compiler. What does not fit into the card's memory is an answer.
pub fn run(job: &Job) -> Result<Measured> {
    if job.device == "emulated" {
        let done = gpu::on_emulated_gpu(|| run(&Job { device: "cpu".into(), ..job.clone() }));
        return done?.context("no C++ compiler emulates a GPU here")?;
    }
    match measured(job) {
        Err(error) if is_out_of_memory(&error) => Ok(Measured { out_of_memory: Some(format!("{error:#}")), ..Measured::default() }),
        result => result,
    }
}

/// The driver's and cuBLAS's words for it.
fn is_out_of_memory(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}");
    ["OUT_OF_MEMORY", "out of memory", "ALLOC_FAILED"].iter().any(|words| text.contains(words))
}

fn measured(job: &Job) -> Result<Measured> {
    let choice = mpo::device::choose(&HardwareConfig { device: job.device.clone(), threads: None })?;
    let place = Place::new(choice.device, job.dtype);
    let mut measured = match job.engine {
        Engine::Mpo | Engine::MpoLora => steps(job, if job.small_state { place.with_bf16_weights() } else { place })?,
        Engine::Products => products(job, &place)?,
        Engine::Head => head::measure(job, &place)?,
        engine => bail!("{engine:?} is a Python peer"),
    };
    measured.notes.insert("device".into(), choice.reason.into());
    Ok(measured)
}

/// Times `step` until the card has done it: warm-up, counted steps, and one more whose launches are recorded.
pub fn clock(job: &Job, place: &Place, mut step: impl FnMut() -> Result<()>) -> Result<Measured> {
    let mut timed = || -> Result<f64> {
        let start = Instant::now();
        step()?;
        place.device.synchronize()?;
        Ok(start.elapsed().as_secs_f64())
    };
    // What making the model took is forgotten.
    gpu::peak_bytes(&place.device);
    (0..job.warm_up).try_for_each(|_| timed().map(drop))?;
    let step_seconds = (0..job.passes).map(|_| timed()).collect::<Result<_>>()?;
    let peak_bytes = gpu::peak_bytes(&place.device);
    let (_, kernels) = gpu::record(timed)?;
    let busy_seconds = (!kernels.is_empty()).then(|| kernels.iter().map(|kernel| kernel.seconds).sum());
    let kernels = kernels.into_iter().map(|gpu::Recorded { name, n_launches, seconds }| Kernel { name, n_launches, seconds }).collect();
    Ok(Measured { step_seconds, peak_bytes, busy_seconds, kernels, ..Measured::default() })
}

/// 2 GiB in bf16: what a run chooses by the memory that is free, a step is told here.
const KEPT_LOGITS: usize = 1 << 30;

/// A whole optimizer step: both sides, clipping, AdamW.
fn steps(job: &Job, place: Place) -> Result<Measured> {
    let config = config(job);
    let description = family::describe(&job.config)?;
    let adaptation = (job.engine == Engine::MpoLora).then(|| adaptation(&description)).transpose()?;
    let purpose = if job.in_backward { Purpose::TrainInBackward } else { Purpose::Train };
    let policy = policy(&description, adaptation.as_ref(), &place, purpose)?;
    let rows: Vec<EncodedRow> = job.rows.iter().enumerate().map(|(i, row)| random_row(i, row, description.vocab_size)).collect();
    let batch: Vec<&EncodedRow> = rows.iter().collect();
    let mut settings = StepSettings::new(&config, 0);
    settings.memory.kept_logits = KEPT_LOGITS;
    if job.checkpointing {
        settings.memory.keep = Keep::BlockInputs { every: NonZeroUsize::MIN };
    }
    let reference = reference(&policy, &rows, &config)?;
    let mut optimizer = AdamW::new(&config.optimizer, 0, policy.trained_parameters())?;
    let (mut loss, mut n_tokens_computed, mut n_reads) = (f64::NAN, 0, 0);
    let mut measured = clock(job, &place, || {
        let before = gpu::reads();
        let (outcome, _) = update(&policy, &batch, PolicyIs::Trained(&reference), &settings, &mut optimizer, config.optimizer.lr)?;
        (loss, n_tokens_computed, n_reads) = (outcome.loss, outcome.n_tokens_computed, gpu::reads() - before);
        Ok(())
    })?;
    ensure!(loss.is_finite(), "the loss is {loss}");
    let terms = adaptation.as_ref().map(|adaptation| LowRankTerms::new(adaptation, &description));
    // What is computed twice is no work.
    let once = StepMemory { keep: Keep::ForBackward, kept_logits: usize::MAX };
    let passes = passes(&batch, &settings, Gradients::Both, &description);
    measured.flops = Some(estimate::flops(&passes, &description, terms.as_ref(), once).total());
    let notes = [("loss", loss.into()), ("tokens_computed", n_tokens_computed.into()), ("reads", n_reads.into())];
    measured.notes.extend(notes.map(|(key, value)| (key.into(), value)));
    Ok(measured)
}

fn config(job: &Job) -> RunConfig {
    let mut config = RunConfig::default();
    config.model.dtype = job.dtype;
    (config.train.batch_size, config.train.micro_batch_size) = (job.rows_per_step, job.rows_per_step);
    config.train.group_by_dominant = job.grouped;
    if job.in_backward {
        (config.optimizer.in_backward, config.optimizer.clip_norm) = (true, 0.0);
    }
    if job.small_state {
        (config.optimizer.master, config.optimizer.moments) = (MasterWeights::Stochastic, MomentType::EightBit);
    }
    config
}

/// As `[adapter]` has it by default.
fn adaptation(description: &DecoderDescription) -> Result<Adaptation> {
    let lora = AdapterConfig { kind: AdapterKind::Lora, alpha: Some(32.0), ..AdapterConfig::default() };
    Ok(Adapter::new(&lora, 0, description)?.adaptation())
}

fn policy(description: &DecoderDescription, adaptation: Option<&Adaptation>, place: &Place, purpose: Purpose) -> Result<Decoder> {
    let policy = Decoder::random(description.clone(), adaptation, place.clone(), purpose)?;
    // Zeros would be kind to a card: they cost less power.
    for (seed, parameter) in policy.low_rank_parameters().iter().enumerate() {
        ops::update(&parameter.value, |values| values.copy_from_slice(&random_values(seed as u64, values.len())))?;
    }
    Ok(policy)
}

/// What the loss reads of the frozen model, computed before the clock starts; its provenance would hash weights that nobody asks for again.
fn reference(policy: &Decoder, rows: &[EncodedRow], config: &RunConfig) -> Result<Columns> {
    let dominant: Vec<&EncodedPreference> = rows.iter().filter_map(|row| row.dominant.as_ref()).collect();
    let provenance = Provenance {
        weights: "random".into(),
        states: KeptStates::of(&config.retention),
        pad_token: None,
        dtype: config.model.dtype,
        device: "any".into(),
        instruction_set: "any".into(),
        engine: 0,
    };
    Ok(Columns::of_dominant(FrozenScores::score(policy, &dominant, provenance, Folders::default())?.0))
}

/// Products of large square matrices, as the linear op does them: ten a step.
fn products(job: &Job, place: &Place) -> Result<Measured> {
    const A_STEP: usize = 10;
    let n = if place.device.is_cpu() { 512 } else { 8192 };
    let matrix = |seed| -> Result<Tensor> { ops::on_device(random_values(seed, n * n), &[n, n], place) };
    let (x, w) = (matrix(1)?, matrix(2)?);
    let mut measured = clock(job, place, || {
        (0..A_STEP).try_for_each(|_| linear::forward(&x, &w, None, place.compute).map(drop)).context("large products")
    })?;
    measured.flops = Some((A_STEP * 2) as f64 * (n as f64).powi(3));
    Ok(measured)
}
