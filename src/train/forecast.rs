//! What a prepared run will compute and hold: its own rows in its own batches, counted before anything large is loaded.

use super::columns::{Reads, Wanted};
use super::evaluate::{distinct_dominant, measuring, probe_rows};
use super::prepare::Prepared;
use super::run::N_TERM_NORMS;
use super::step::{Gradients, StepSettings, passes};
use crate::config::{ActivationCheckpointing, RetentionKind, RunConfig};
use crate::data::encode::{EncodedPreference, EncodedRow};
use crate::data::loader::{Loader, dominant_numbers};
use crate::device::{self, gib};
use crate::model::decoder::Keep;
use crate::ops::{Place, gpu};
use crate::plan::StepMemory;
use crate::plan::estimate::{Estimate, Generation, Workload};
use crate::plan::gpu::{self as on_gpu, GpuMemory};
use crate::plan::held::{Available, Held, Share, Store};
use crate::plan::low_rank::LowRankTerms;
use crate::plan::memory::{Memory, ParameterBytes, Setup};
use crate::plan::rates::{self, Rates};
use crate::plan::work::{Gradient, Pass};
use crate::reference::split_by_tokens;
use crate::scoring::{self, KeptStates};
use anyhow::{Result, bail};
use rayon::prelude::*;
use std::time::Duration;

/// Rows that are looked at one batch at a time; those of a longer run are like the first ones.
const MOST_ROWS: usize = 100_000;

/// A prepared run under `config`, which may differ from its own in how it computes.
pub struct Forecast<'a> {
    prepared: &'a Prepared,
    config: &'a RunConfig,
    /// Where it computes.
    pub place: Place,
    pub workload: Workload,
    threads: usize,
    /// What the process held before a model was loaded.
    process: u64,
    /// Of the run's adapter.
    pub low_rank: Option<LowRankTerms>,
}

impl<'a> Forecast<'a> {
    /// Counts the passes. `n_taken`: the steps of a run that goes on; `process`: what this process holds, without a model.
    pub fn new(prepared: &'a Prepared, config: &'a RunConfig, n_taken: Option<usize>, process: u64) -> Result<Self> {
        let workload = workload(prepared, config, n_taken)?;
        let threads = config.hardware.threads.unwrap_or_else(rayon::current_num_threads);
        let low_rank = prepared.adapter.as_ref().map(|adapter| LowRankTerms::new(&adapter.adaptation(), &prepared.description));
        Ok(Self { prepared, config, place: device::place(config)?, workload, threads, process, low_rank })
    }

    /// How fast the device of the run is at it; the CPU is measured on the surrounding threads.
    pub fn rates(&self, budget: Duration) -> Result<Rates> {
        let Prepared { description, n_parameters, .. } = self.prepared;
        rates::measure(description, &self.place, self.workload.mean_pass(), *n_parameters, budget)
    }

    /// Whatever memory the process may come to have: what is free, and what it has already.
    pub fn available(&self) -> Available {
        Available {
            host: device::available_memory().map(|free| free + device::rss_bytes()),
            gpu: gpu::free_bytes(&self.place.device).map(|free| free + on_gpu::CONTEXT),
        }
    }

    /// What stays in memory from a forward to its backward, as the configuration says, or for `auto` as the free memory of the device allows
    /// that computes; on a GPU also of what the head makes, which costs it a third more to make again.
    ///
    /// # Errors
    /// The run does not fit into what is `available`, with the numbers.
    pub fn choose(&self, available: &Available) -> Result<StepMemory> {
        let setting = self.config.train.activation_checkpointing;
        let keeping = self.settled(ActivationCheckpointing::Off);
        let chosen = match (setting, self.held(keeping).computing(available).is_comfortable()) {
            (ActivationCheckpointing::Auto, Some(false)) => self.settled(ActivationCheckpointing::ON),
            (ActivationCheckpointing::Auto, _) => keeping,
            _ => self.settled(setting),
        };
        let held = self.held(chosen);
        match held.shares(available).into_iter().find(|share| share.fits() == Some(false)) {
            Some(share) => bail!(self.refusal(&held, &share)),
            None => Ok(self.with_logits(chosen, available)),
        }
    }

    /// On a GPU: as many of a micro-batch's logits as there is room for.
    fn with_logits(&self, chosen: StepMemory, available: &Available) -> StepMemory {
        let candidates = [usize::MAX, 1 << 30, 1 << 28].map(|kept_logits| StepMemory { kept_logits, ..chosen });
        let has_room = |step: &StepMemory| self.held(*step).computing(available).is_comfortable() == Some(true);
        candidates.into_iter().filter(|_| self.place.is_on_gpu()).find(has_room).unwrap_or(chosen)
    }

    /// What a setting other than `auto` means; `auto` is `off` here.
    pub fn settled(&self, setting: ActivationCheckpointing) -> StepMemory {
        let keeping = StepMemory::default();
        match setting {
            ActivationCheckpointing::Auto | ActivationCheckpointing::Off => keeping,
            ActivationCheckpointing::Every(every) => {
                // Logits stay as well where they fit below what the blocks take in any case.
                let keep = Keep::BlockInputs { every };
                let [least, all] = [0, keeping.kept_logits].map(|kept_logits| StepMemory { keep, kept_logits });
                let needed = |step| self.held(step).computing(&Available::default()).needed;
                if needed(all) <= needed(least) { all } else { least }
            }
        }
    }

    /// What the run holds where it computes, and on the host.
    pub fn held(&self, step: StepMemory) -> Held {
        let passes = self.workload.passes();
        let setup = self.setup(step, &passes, self.place.is_on_gpu());
        match self.place.is_on_gpu() {
            true => Held { host: on_gpu::host_beside(&setup, self.config.model.dtype), gpu: Some(self.gpu_memory(step)) },
            false => Held { host: Memory::of(&setup), gpu: None },
        }
    }

    /// What the run holds on a GPU, or would hold on one.
    pub fn gpu_memory(&self, step: StepMemory) -> GpuMemory {
        let Prepared { description, canaries, .. } = self.prepared;
        let (passes, compute) = (self.workload.passes(), self.config.model.dtype);
        let n_bytes = on_gpu::bytes_of_value(compute);
        GpuMemory {
            reference: n_bytes * n_head_values(self.prepared, self.config) as u64,
            canaries: canaries.as_ref().map_or(0, |canaries| canaries.cache_bytes(description, n_bytes as usize, true)),
            ..GpuMemory::of(&self.setup(step, &passes, true), compute, &self.config.optimizer)
        }
    }

    pub fn estimate(&self, step: StepMemory, rates: &Rates) -> Estimate {
        let passes = self.workload.passes();
        Estimate::new(&self.workload, &self.setup(step, &passes, self.place.is_on_gpu()), self.held(step), rates)
    }

    /// Of reference and canaries, what lies with the host: without the reference's head and the canaries' caches, where a GPU computes.
    fn setup<'b>(&'b self, step: StepMemory, passes: &'b [&'b [Pass]], on_gpu: bool) -> Setup<'b> {
        let Prepared { description, n_parameters, train, held_out, canaries, .. } = self.prepared;
        let rows = || train.iter().chain(held_out);
        let n_states = n_state_values(&rows().collect::<Vec<_>>(), self.prepared, self.config);
        let caches = canaries.as_ref().map_or(0, |canaries| canaries.cache_bytes(description, size_of::<f32>(), false));
        let (n_head, caches) = if on_gpu { (0, 0) } else { (n_head_values(self.prepared, self.config), caches) };
        Setup {
            description,
            n_parameters: *n_parameters,
            low_rank: self.low_rank.as_ref(),
            bytes: ParameterBytes::of(&self.config.optimizer),
            step,
            threads: self.threads,
            passes,
            canaries: caches + canaries.as_ref().map_or(0, |canaries| canaries.start_bytes(description)),
            n_reference: n_states + n_head,
            data: rows().map(bytes_of_row).sum(),
            process: self.process,
        }
    }

    fn refusal(&self, held: &Held, share: &Share) -> String {
        let (needed, available) = (gib(share.needed), share.available.map_or("not enough".into(), gib));
        let (model, passes) = match (&held.gpu, &held.host, share.store) {
            (Some(_), host, Store::Host) => {
                return format!(
                    "training this model on the GPU needs about {needed} of the host's memory ({} for tensors on their way to and from it, {} for \
                     the reference's scores and the data), and {available} are free\n\
                     hint: fewer rows need fewer scores; whatever else runs on this machine may be in the way",
                    gib(host.scratch),
                    gib(host.reference + host.canaries + host.data)
                );
            }
            (Some(gpu), ..) => (gpu.weights + gpu.gradients + gpu.moments, gpu.activations + gpu.logits + gpu.scratch),
            (None, host, _) => (host.weights + host.gradients + host.moments, host.activations + host.logits + host.scratch),
        };
        let whose = if held.gpu.is_some() { " of the GPU's memory" } else { "" };
        let mut text = format!(
            "training this model needs about {needed}{whose} ({} for weights, gradients and optimizer moments, {} for the passes of a micro-batch), \
             and {available} are free\n",
            gib(model),
            gib(passes),
        );
        let checkpointed = self.held(self.settled(ActivationCheckpointing::ON)).computing(&Available::default()).needed;
        if share.available.is_some_and(|available| checkpointed <= available) {
            text += &format!("hint: with `train.activation_checkpointing = \"on\"` it needs {}\n", gib(checkpointed));
        }
        text += "hint: a smaller `train.micro_batch_size` or `data.max_tokens` lowers the second number only; a smaller model";
        text += if held.gpu.is_some() {
            ", an adapter (`adapter.kind = \"lora\"`), smaller moments and masters (`optimizer`), or a larger GPU, lowers or meets the first"
        } else {
            ", or a machine with more memory, lowers or meets the first"
        };
        text
    }
}

fn workload(prepared: &Prepared, config: &RunConfig, n_taken: Option<usize>) -> Result<Workload> {
    let Prepared { train, held_out, description, pad_token, .. } = prepared;
    let settings = StepSettings::new(config, *pad_token);
    let mut loader = Loader::new(&dominant_numbers(train), &config.train)?;
    let n_steps = loader.n_steps(&config.train)?.saturating_sub(n_taken.unwrap_or(0));
    let mut batches = Vec::new();
    let mut n_rows = 0;
    while batches.len() < n_steps && n_rows < MOST_ROWS {
        let batch = loader.next_batch();
        n_rows += batch.len();
        batches.push(batch);
    }
    let of_batch = |batch: &Vec<usize>| {
        let rows: Vec<&EncodedRow> = batch.iter().map(|&row| &train[row]).collect();
        passes(&rows, &settings, Gradients::Both, description)
    };
    let batches = batches.par_iter().map(of_batch).collect();

    let all: Vec<&EncodedRow> = train.iter().chain(held_out).collect();
    let wanted = if n_taken.is_some() { Wanted::default() } else { Wanted::of(&all, Reads::of(config)) };
    let states = KeptStates::of(&config.retention);
    let score = |pairs: &[&EncodedPreference], states| {
        let (batch, spans) = scoring::pack(pairs, states, *pad_token);
        let n_scored = spans.iter().flat_map(|spans| spans.both()).map(|span| span.response.len()).sum();
        Pass::new(&batch, description, n_scored, Gradient::None)
    };
    let measure = |rows: &[&EncodedRow]| -> Vec<Pass> {
        let settings = measuring(&settings);
        rows.chunks(settings.micro_batch_size).flat_map(|rows| passes(rows, &settings, Gradients::None, description)).collect()
    };
    let probe: Vec<&EncodedRow> = probe_rows(train).into_iter().map(|row| &train[row]).collect();
    let dominant_gaps = distinct_dominant(&probe).into_iter().map(|pair| score(&[pair], KeptStates::Nothing)).collect();
    let n_within = config.eval.every_steps.map_or(0, |every| n_steps.saturating_sub(1) / every);
    let canaries = prepared.canaries.as_ref();
    let n_asked = 2 + config.canary.every_steps.map_or(0, |every| n_steps.saturating_sub(1) / every);
    let n_repeated = if config.retention.kind == RetentionKind::None || n_taken.is_some() { 0 } else { N_TERM_NORMS.min(n_steps) };
    Ok(Workload {
        scoring: [(&wanted.dominant, states), (&wanted.target, KeptStates::Nothing)]
            .into_iter()
            .flat_map(|(pairs, states)| split_by_tokens(pairs).into_iter().map(move |pairs| score(pairs, states)))
            .collect(),
        // The training rows before, once within and after the run.
        measuring: vec![
            (3, measure(&probe)),
            (2 + n_within, measure(&held_out.iter().collect::<Vec<_>>())),
            (2, dominant_gaps),
            (n_asked, canaries.map_or(Vec::new(), |canaries| canaries.passes(description))),
        ],
        generating: (n_asked, canaries.map_or(Generation::default(), |canaries| canaries.generation())),
        batches,
        n_steps,
        n_repeated,
    })
}

/// Values of the reference's states that are kept, those of every distinct dominant sequence.
fn n_state_values(rows: &[&EncodedRow], prepared: &Prepared, config: &RunConfig) -> usize {
    let hidden_size = prepared.description.hidden_size;
    let pairs = Wanted::of(rows, Reads::of(config)).dominant;
    match KeptStates::of(&config.retention) {
        KeptStates::Nothing => 0,
        KeptStates::Pooled(_) => 2 * pairs.len() * hidden_size,
        KeptStates::Predicting => {
            let n_answer_tokens: usize = pairs.iter().map(|pair| pair.chosen.tokens.len() + pair.rejected.tokens.len()).sum();
            n_answer_tokens * hidden_size
        }
    }
}

/// Values of the reference's head, which `kl` keeps.
fn n_head_values(prepared: &Prepared, config: &RunConfig) -> usize {
    match KeptStates::of(&config.retention) {
        KeptStates::Predicting => prepared.description.vocab_size * prepared.description.hidden_size,
        KeptStates::Nothing | KeptStates::Pooled(_) => 0,
    }
}

fn bytes_of_row(row: &EncodedRow) -> u64 {
    let of_side = |side: &EncodedPreference| size_of::<u32>() * side.n_packed() + side.lang.capacity();
    (size_of::<EncodedRow>() + row.id.capacity() + row.pairs().map(of_side).sum::<usize>()) as u64
}
