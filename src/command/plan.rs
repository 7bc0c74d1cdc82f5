//! `mpo plan`: what a run will need, and what each switch would change.

use super::{print, print_data};
use crate::cli::PlanArgs;
use crate::config::{self, ActivationCheckpointing, ComputeDtype, MasterWeights, RunConfig};
use crate::data::loader::dominant_numbers;
use crate::device::{self, gib};
use crate::plan::StepMemory;
use crate::plan::estimate::{Estimate, StepNeeds};
use crate::plan::gpu::GpuMemory;
use crate::plan::held::{Available, Held, Share};
use crate::plan::rates::Rates;
use crate::plan::units::{byte_rate, count, duration, flop, flop_rate};
use crate::train::forecast::Forecast;
use crate::train::prepare::Prepared;
use anyhow::Result;
use serde::Serialize;
use std::collections::HashMap;
use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

/// Time for measuring this machine, once for the run as it is configured, and again for a switch that changes how fast it is.
const BUDGET: Duration = Duration::from_millis(800);
const BUDGET_OF_A_SWITCH: Duration = Duration::from_millis(300);

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    model_type: String,
    n_parameters: usize,
    /// Of these, or of the adapter in their place.
    n_trained: usize,
    n_rows: usize,
    /// Of the run as it is configured.
    #[serde(flatten)]
    planned: Planned,
    /// The device that it computes on, and why.
    device: String,
    rates: Rates,
    /// Bytes that this process may come to have; absent where the system does not say.
    available_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_gpu_bytes: Option<u64>,
    /// What a run on the CPU would hold on a GPU, with activation checkpointing and without: counted, not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<[GpuMemory; 2]>,
    switches: Vec<Switched>,
}

#[derive(Debug, Serialize)]
struct Planned {
    activation_checkpointing: ActivationCheckpointing,
    /// Of the host's memory.
    peak_bytes: u64,
    /// Of the GPU's, where one computes.
    #[serde(skip_serializing_if = "Option::is_none")]
    peak_gpu_bytes: Option<u64>,
    fits: Option<bool>,
    run_seconds: f64,
    #[serde(flatten)]
    estimate: Estimate,
}

/// The same run with some keys set otherwise.
#[derive(Debug, Serialize)]
struct Switched {
    set: Vec<String>,
    #[serde(flatten)]
    planned: Planned,
}

/// Prints the plan.
///
/// # Errors
/// Whatever is wrong with configuration, data or model.
pub fn run(args: &PlanArgs) -> Result<ExitCode> {
    let config = config::load(&args.config, &args.set)?;
    let report = device::thread_pool(&config.hardware)?.install(|| report(config))?;
    match args.json {
        true => print_data(&format!("{}\n", serde_json::to_string_pretty(&report)?))?,
        false => print(&text(&report)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn report(config: RunConfig) -> Result<Report> {
    let prepared = Prepared::new(config, None)?;
    let process = device::rss_bytes();
    let forecast = Forecast::new(&prepared, &prepared.config, None, process)?;
    let available = forecast.available();
    let rates = forecast.rates(BUDGET)?;
    let planned = planned(&forecast, &prepared.config, &rates, &available);
    let mut switches = Vec::new();
    for (set, config) in switches_of(&prepared, planned.activation_checkpointing, forecast.place.is_on_gpu()) {
        let forecast = Forecast::new(&prepared, &config, None, process)?;
        let is_as_fast = (config.model.dtype, &config.hardware) == (prepared.config.model.dtype, &prepared.config.hardware);
        let rates = if is_as_fast {
            rates.clone()
        } else {
            device::thread_pool(&config.hardware)?.install(|| forecast.rates(BUDGET_OF_A_SWITCH))?
        };
        switches.push(Switched { set, planned: self::planned(&forecast, &config, &rates, &available) });
    }
    let would_hold = |setting| forecast.gpu_memory(forecast.settled(setting));
    Ok(Report {
        model_type: prepared.description.model_type.clone(),
        n_parameters: prepared.n_parameters,
        n_trained: prepared.adapter.as_ref().map_or(prepared.n_parameters, |adapter| adapter.n_parameters(&prepared.description)),
        n_rows: prepared.train.len(),
        planned,
        rates,
        device: device::choose(&prepared.config.hardware)?.reason,
        available_bytes: available.host,
        available_gpu_bytes: available.gpu,
        gpu: (!forecast.place.is_on_gpu()).then(|| [ActivationCheckpointing::ON, ActivationCheckpointing::Off].map(would_hold)),
        switches,
    })
}

/// What the run would do, or try to do where it does not fit.
fn planned(forecast: &Forecast, config: &RunConfig, rates: &Rates, available: &Available) -> Planned {
    let memory = match (config.train.activation_checkpointing, forecast.choose(available)) {
        (_, Ok(memory)) => memory,
        (ActivationCheckpointing::Auto, Err(_)) => forecast.settled(ActivationCheckpointing::ON),
        (setting, Err(_)) => forecast.settled(setting),
    };
    let (setting, estimate) = (setting_of(memory), forecast.estimate(memory, rates));
    Planned {
        activation_checkpointing: setting,
        peak_bytes: estimate.held.host.total(),
        peak_gpu_bytes: estimate.held.gpu.map(|gpu| gpu.total()),
        fits: estimate.held.fits(available),
        run_seconds: estimate.run_seconds(),
        estimate,
    }
}

impl Planned {
    /// Of the memory of the device that computes.
    fn peak_where_it_computes(&self) -> u64 {
        self.peak_gpu_bytes.unwrap_or(self.peak_bytes)
    }
}

fn setting_of(memory: StepMemory) -> ActivationCheckpointing {
    memory.checkpoint_every().map_or(ActivationCheckpointing::Off, ActivationCheckpointing::Every)
}

/// The switches that would change something, each with the keys to set.
fn switches_of(prepared: &Prepared, checkpointing: ActivationCheckpointing, on_gpu: bool) -> Vec<(Vec<String>, RunConfig)> {
    let config = &prepared.config;
    let mut switches: Vec<(Vec<String>, RunConfig)> = Vec::new();
    let mut add = |set: &[String], change: &dyn Fn(&mut RunConfig)| {
        let mut changed = config.clone();
        change(&mut changed);
        switches.push((set.to_vec(), changed));
    };
    let (other, word) = match checkpointing {
        ActivationCheckpointing::Off => (ActivationCheckpointing::ON, "on"),
        _ => (ActivationCheckpointing::Off, "off"),
    };
    add(&[format!("train.activation_checkpointing={word}")], &|config| config.train.activation_checkpointing = other);
    let train = &config.train;
    let largest_group = largest_group(prepared);
    match train.group_by_dominant {
        true => add(&["train.group_by_dominant=false".into()], &|config| config.train.group_by_dominant = false),
        false if largest_group > 1 => {
            let batch_size = train.batch_size.max(largest_group);
            let mut set = vec!["train.group_by_dominant=true".to_owned()];
            set.extend((batch_size > train.batch_size).then(|| format!("train.batch_size={batch_size}")));
            add(&set, &|config| (config.train.group_by_dominant, config.train.batch_size) = (true, batch_size));
        }
        false => {}
    }
    for size in [1, train.batch_size] {
        if size != train.micro_batch_size {
            add(&[format!("train.micro_batch_size={size}")], &|config| config.train.micro_batch_size = size);
        }
    }
    let (dtype, name) = match config.model.dtype {
        ComputeDtype::F32 => (ComputeDtype::Bf16, "bf16"),
        ComputeDtype::Bf16 => (ComputeDtype::F32, "f32"),
    };
    if config.optimizer.master == MasterWeights::F32 {
        add(&[format!("model.dtype={name}")], &|config| config.model.dtype = dtype);
    }
    if on_gpu {
        return switches;
    }
    let n_cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    for threads in [1, n_cores] {
        if threads != rayon::current_num_threads() {
            add(&[format!("hardware.threads={threads}")], &|config| config.hardware.threads = Some(threads));
        }
    }
    switches
}

/// Rows that share a dominant pair, at most.
fn largest_group(prepared: &Prepared) -> usize {
    let mut sizes: HashMap<usize, usize> = HashMap::new();
    dominant_numbers(prepared.train.iter().filter(|row| row.dominant.is_some()))
        .into_iter()
        .for_each(|number| *sizes.entry(number).or_default() += 1);
    sizes.into_values().max().unwrap_or(0)
}

fn text(report: &Report) -> Result<String> {
    let mut text = String::new();
    let Report { planned, rates, .. } = report;
    let estimate = &planned.estimate;
    writeln!(text, "Model    {} parameters ({})", report.n_parameters, report.model_type)?;
    if report.n_trained != report.n_parameters {
        writeln!(text, "Adapter  {} parameters beside them, which are frozen", report.n_trained)?;
    }
    writeln!(
        text,
        "Machine  matrix products {}, attention {}, memory {} ({})",
        flop_rate(rates.products),
        flop_rate(rates.attention),
        byte_rate(rates.bytes),
        rates.of
    )?;
    write_memory(&mut text, report)?;

    let (mean, largest) = (&estimate.mean_step, &estimate.largest_step);
    writeln!(text, "\n{:<26}{:>12}{:>15}", "A step", "mean batch", "largest batch")?;
    let mut line = |name: &str, of: &dyn Fn(&StepNeeds) -> String| writeln!(text, "  {name:<24}{:>12}{:>15}", of(mean), of(largest));
    line("tokens computed", &|needs| count(needs.tokens))?;
    line("blocks, forward", &|needs| flop(needs.flops.body_forward))?;
    line("blocks, backward", &|needs| flop(needs.flops.body_backward))?;
    if mean.flops.recomputed > 0.0 {
        line("blocks, forward again", &|needs| flop(needs.flops.recomputed))?;
    }
    line("attention", &|needs| flop(needs.flops.attention))?;
    line("head", &|needs| flop(needs.flops.head))?;
    line("together", &|needs| flop(needs.flops.total()))?;
    line("optimizer traffic", &|needs| gib(needs.update_bytes as u64))?;
    line("expected time", &|needs| duration(needs.seconds.total()))?;

    writeln!(text, "\nThe run: {} steps over {} rows", estimate.n_steps, report.n_rows)?;
    let answers = (estimate.generating_seconds > 0.0).then_some(("canaries' answers", estimate.generating_seconds));
    let parts = [("scoring the reference", estimate.scoring_seconds), ("measuring", estimate.measuring_seconds)].into_iter().chain(answers);
    for (name, seconds) in parts.chain([("steps", estimate.steps_seconds), ("together", planned.run_seconds)]) {
        writeln!(text, "  {name:<24}{:>12}", duration(seconds))?;
    }

    writeln!(text, "\n{:<58}{:>10}{:>12}{:>14}", "What a switch would change", "memory", "a step", "the run")?;
    let mut row = |name: &str, planned: &Planned| -> std::fmt::Result {
        let does_not_fit = if planned.fits == Some(false) { "  does not fit" } else { "" };
        let step = duration(planned.estimate.mean_step.seconds.total());
        writeln!(
            text,
            "  {name:<56}{:>10}{step:>12}{:>14}{does_not_fit}",
            gib(planned.peak_where_it_computes()),
            duration(planned.run_seconds)
        )
    };
    row("as configured", planned)?;
    for switched in &report.switches {
        row(&switched.set.iter().map(|set| format!("--set {set}")).collect::<Vec<_>>().join(" "), &switched.planned)?;
    }
    Ok(text)
}

/// A table of kinds for every memory that is used; for a run on the CPU, what it would hold on a GPU.
fn write_memory(text: &mut String, report: &Report) -> std::fmt::Result {
    let Report { planned, .. } = report;
    let checkpointing = checkpointing_in_words(planned.activation_checkpointing);
    let mut table = |title: &str, parts: &[(&str, u64)], available: Option<u64>| {
        writeln!(text, "\n{title}")?;
        // A run without canaries has nothing to say of them.
        for (name, bytes) in parts.iter().filter(|(_, bytes)| *bytes > 0) {
            writeln!(text, "  {name:<24}{:>12}", gib(*bytes))?;
        }
        let needed = parts.iter().map(|(_, bytes)| bytes).sum();
        let free = available.map_or("what is free is not known".into(), |bytes| format!("{} free", gib(bytes)));
        let verdict = match available.map(|available| needed <= available) {
            Some(true) => "it fits",
            Some(false) => "IT DOES NOT FIT",
            None => "whether it fits is not known",
        };
        writeln!(text, "  {:<24}{:>12}   {free}: {verdict}", "together", gib(needed))
    };
    let Held { host, gpu } = &planned.estimate.held;
    if let Some(gpu) = gpu {
        table(&format!("The GPU's memory at the fullest moment, {checkpointing}"), &gpu.parts(), report.available_gpu_bytes)?;
        table("The host's memory", &host.parts(), report.available_bytes)?;
    } else {
        table(&format!("Memory at the fullest moment, {checkpointing}"), &host.parts(), report.available_bytes)?;
    }
    let Some(on_gpu) = &report.gpu else { return Ok(()) };
    let [checkpointed, kept] = on_gpu.map(|memory| memory.total());
    writeln!(
        text,
        "\nOn a GPU about {} with activation checkpointing ({}), {} without ({}): counted from shapes, not tried",
        gib(checkpointed),
        card_for(checkpointed),
        gib(kept),
        card_for(kept)
    )
}

/// The smallest usual card that so many bytes fit on: what is sold as 80 GB has nearly 80 GiB, an H200 131.
fn card_for(bytes: u64) -> String {
    let fits = |gb: &&u64| bytes as f64 <= 0.98 * (**gb << 30) as f64;
    [8u64, 16, 24, 40, 48, 80, 131].iter().find(|gb| fits(gb)).map_or("more than any one card".into(), |gb| format!("one card of {gb} GiB"))
}

/// What is kept of a forward.
pub(super) fn checkpointing_in_words(setting: ActivationCheckpointing) -> String {
    match setting {
        ActivationCheckpointing::ON => "activation checkpointing on".into(),
        ActivationCheckpointing::Every(n) => format!("activation checkpointing every {n} blocks"),
        ActivationCheckpointing::Off | ActivationCheckpointing::Auto => "all activations kept".into(),
    }
}

/// `about 61.2 GiB of the GPU's, 79.1 GiB free, and 3.2 GiB of the host's, 100.0 GiB free`
pub(super) fn memory_in_words(held: &Held, available: &Available) -> String {
    let free = |share: &Share| share.available.map_or("what is free is not known".into(), |bytes| format!("{} free", gib(bytes)));
    match held.gpu {
        None => held.shares(available).iter().map(|share| format!("about {} at most, {}", gib(share.needed), free(share))).collect(),
        Some(_) => {
            let of = |share: &Share| format!("{} of the {}'s, {}", gib(share.needed), share.store, free(share));
            format!("about {}", held.shares(available).iter().map(of).collect::<Vec<_>>().join(", and "))
        }
    }
}

/// The first lines, for a run that starts.
pub(super) fn first_lines(estimate: &Estimate, memory: StepMemory, rates: &Rates, available: &Available) -> String {
    let step = &estimate.mean_step;
    format!(
        "memory   {}; {}\nwork     {} a step in about {}, {} steps in about {}; matrix products reach {} here ({})",
        memory_in_words(&estimate.held, available),
        checkpointing_in_words(setting_of(memory)),
        flop(step.flops.total()),
        duration(step.seconds.total()),
        estimate.n_steps,
        duration(estimate.run_seconds()),
        flop_rate(rates.products),
        rates.of,
    )
}
