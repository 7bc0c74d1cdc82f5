//! Steps on one GPU, against the card's own matrix rate and its data sheet.
//!
//! ```text
//! cargo bench --features cuda --bench gpu -- --json benches/runs/NAME/gpu.json     # everything: the 8B shapes want 80 GB and 40 GB of disk
//! cargo bench --features cuda --bench gpu -- --only 135m,head
//! cargo bench --bench gpu -- --device cpu --only tiny                               # whether the program itself works
//! ```
//!
//! Weights and tokens are random: only sizes matter. Peak memory is what was in use of the driver's pool.

#[path = "../step/random.rs"]
mod random;
mod shapes;

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor};
use clap::{Parser, ValueEnum};
use mpo::adapter::Adapter;
use mpo::config::{AdapterConfig, AdapterKind, ComputeDtype, HardwareConfig, MasterWeights, MomentType, RunConfig};
use mpo::data::encode::{EncodedPreference, EncodedRow, Response};
use mpo::model::decoder::{Decoder, Keep, Purpose, TokenTarget};
use mpo::model::family;
use mpo::ops::{self, Place, gpu, linear, log_prob::Head};
use mpo::plan::estimate;
use mpo::plan::low_rank::LowRankTerms;
use mpo::reference::{Columns, Folders, FrozenScores, Provenance};
use mpo::scoring::KeptStates;
use mpo::train::optimizer::AdamW;
use mpo::train::step::{Gradients, StepSettings, evaluate_batch, passes};
use random::{random_tokens, random_values};
use serde_json::{Value, json};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Instant;

#[derive(Parser)]
#[command(about = "Measures steps on one GPU")]
struct Options {
    /// `hardware.device`
    #[arg(long, default_value = "cuda:0")]
    device: String,
    /// What to measure, in this order
    #[arg(long, value_delimiter = ',', value_enum, default_values_t = [Part::M135, Part::B1, Part::B8, Part::Lora, Part::Head])]
    only: Vec<Part>,
    /// Counted steps, after two that are not
    #[arg(long, default_value_t = 5)]
    steps: usize,
    #[arg(long, default_value = "target/bench/gpu.json")]
    json: PathBuf,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum Part {
    /// A model that any CPU trains
    Tiny,
    /// SmolLM2's shape
    #[value(name = "135m")]
    M135,
    /// TinyLlama's shape
    #[value(name = "1.1b")]
    B1,
    /// Llama 3.1's shape, all of it, stochastic rounding and 8-bit moments
    #[value(name = "8b")]
    B8,
    /// An adapter of rank 16 beside it
    Lora,
    /// Vocabulary 128,256, 8,192 tokens
    Head,
}

/// How a part trains.
struct Job {
    shape: &'static str,
    /// Of 4 sequences each.
    n_rows: usize,
    /// Tokens of a sequence, of which a quarter is prompt.
    length: usize,
    lora: bool,
    small_state: bool,
    checkpointing: bool,
}

impl Part {
    fn job(self) -> Option<Job> {
        let job = |shape, n_rows, length, checkpointing| Job { shape, n_rows, length, lora: false, small_state: false, checkpointing };
        Some(match self {
            Part::Tiny => job("tiny", 1, 64, false),
            Part::M135 => job("135m", 8, 512, false),
            Part::B1 => job("1.1b", 4, 1024, false),
            Part::B8 => Job { small_state: true, ..job("8b", 1, 1024, true) },
            Part::Lora => Job { lora: true, ..job("8b", 1, 512, true) },
            Part::Head => return None,
        })
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    let choice = mpo::device::choose(&HardwareConfig { device: options.device.clone(), threads: None })?;
    eprintln!("device   {}", choice.reason);
    let place = Place::new(choice.device, ComputeDtype::Bf16);
    let products = products(&place)?;
    let mut results =
        json!({"device": choice.reason, "products_flops": products, "data_sheet_flops": data_sheet(&choice.reason), "parts": {}});
    println!("{:<8}{:>12}{:>14}{:>16}{:>14}{:>12}", "part", "a step, ms", "tokens/s", "of products", "of sheet", "peak");
    for part in &options.only {
        let name = part.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        let measured = match part.job() {
            Some(job) => step(&job, &place, options.steps).with_context(|| name.clone())?,
            None => head(&place, options.steps)?,
        };
        let rate = measured["flops"].as_f64().unwrap_or(f64::NAN) / measured["seconds"].as_f64().unwrap_or(f64::NAN);
        let of = |whole: &Value| whole.as_f64().map_or("n/a".into(), |whole| format!("{:.1} %", 100.0 * rate / whole));
        println!(
            "{name:<8}{:>12.1}{:>14}{:>16}{:>14}{:>12}",
            1e3 * measured["seconds"].as_f64().unwrap_or(f64::NAN),
            measured["tokens_per_second"].as_f64().map_or("".into(), |rate| format!("{rate:.0}")),
            of(&results["products_flops"]),
            of(&results["data_sheet_flops"]),
            measured["peak_bytes"].as_u64().map_or("n/a".into(), mpo::device::gib),
        );
        results["parts"][&name] = measured;
        if let Some(folder) = options.json.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(&options.json, serde_json::to_vec_pretty(&results)?)?;
    }
    Ok(())
}

/// Dense bf16 FLOP/s of the card's data sheet, where it is one that we know.
fn data_sheet(name: &str) -> Option<f64> {
    let known = [("H200", 989e12), ("H100 PCIe", 756e12), ("H100", 989e12), ("A100", 312e12), ("L40S", 362e12), ("4090", 165e12)];
    known.iter().find(|(card, _)| name.contains(card)).map(|(_, flops)| *flops)
}

/// Waits until the device has done everything.
fn wait(tensor: &Tensor) -> Result<()> {
    ops::read_rows(&tensor.flatten_all()?.narrow(0, 0, 1)?.reshape((1, 1))?, &[0])?;
    Ok(())
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// FLOP/s of a large product, as the linear op does it.
fn products(place: &Place) -> Result<f64> {
    let n = if place.device.is_cpu() { 512 } else { 8192 };
    let matrix = |seed| ops::on_device(random_values(seed, n * n), &[n, n], place);
    let (x, w) = (matrix(1)?, matrix(2)?);
    let run = || -> Result<f64> {
        let start = Instant::now();
        let mut last = None;
        for _ in 0..10 {
            last = Some(linear::forward(&x, &w, None, place.compute)?);
        }
        wait(&*last.context("ten products were made")?)?;
        Ok(start.elapsed().as_secs_f64() / 10.0)
    };
    run()?;
    let seconds = median((0..5).map(|_| run()).collect::<Result<_>>()?);
    Ok(2.0 * (n as f64).powi(3) / seconds)
}

fn row(index: usize, length: usize, n_vocab: usize) -> EncodedRow {
    let pair = |lang: &str, seed: usize| {
        let tokens = |n: usize, part: usize| random_tokens((3 * seed + part) as u64, n, n_vocab);
        let response = |part| Response { tokens: tokens(length - length / 4, part), n_end_tokens: 1 };
        EncodedPreference { lang: lang.into(), prompt: tokens(length / 4, 0), chosen: response(1), rejected: response(2) }
    };
    EncodedRow { id: index.to_string(), dominant: Some(pair("en", index)), target: pair("sw", 1_000_000 + index), mismatched: None }
}

/// Seconds of a whole optimizer step: both sides, clipping, AdamW.
fn step(job: &Job, place: &Place, n_steps: usize) -> Result<Value> {
    let folder = shapes::write_model(job.shape)?;
    let mut config = RunConfig::default();
    config.model.dtype = place.compute;
    (config.train.batch_size, config.train.micro_batch_size) = (job.n_rows, job.n_rows);
    if job.small_state {
        (config.optimizer.master, config.optimizer.moments) = (MasterWeights::Stochastic, MomentType::EightBit);
    }
    let place = if job.small_state { place.clone().with_bf16_weights() } else { place.clone() };
    let description = family::describe_folder(&folder)?;
    let lora = AdapterConfig { kind: AdapterKind::Lora, alpha: Some(32.0), ..AdapterConfig::default() };
    let adapter = if job.lora { Some(Adapter::new(&lora, 0, &description)?) } else { None };
    let policy = match &adapter {
        Some(adapter) => adapter.load(&folder, place.clone(), Purpose::Train)?,
        None => Decoder::load(&folder, place.clone(), Purpose::Train)?,
    };
    let rows: Vec<EncodedRow> = (0..job.n_rows).map(|i| row(i, job.length, description.vocab_size)).collect();
    let batch: Vec<&EncodedRow> = rows.iter().collect();
    let mut settings = StepSettings::new(&config, 0);
    if job.checkpointing {
        settings.memory.keep = Keep::BlockInputs { every: NonZeroUsize::MIN };
    }
    let dominant: Vec<&EncodedPreference> = rows.iter().filter_map(|row| row.dominant.as_ref()).collect();
    let provenance = Provenance::of(&policy, place.compute, KeptStates::of(&config.retention), 0)?;
    let (scores, _) = FrozenScores::score(&policy, &dominant, provenance, Folders::default())?;
    let reference = Columns::of_dominant(scores);
    let parameters = policy.trained_parameters();
    let mut optimizer = AdamW::new(&config.optimizer, 0, parameters)?;
    let (mut n_tokens, mut loss) = (0, f64::NAN);
    let mut one = || -> Result<f64> {
        let start = Instant::now();
        policy.zero_gradients()?;
        let outcome = evaluate_batch(&policy, &batch, &reference, &settings, Gradients::Both)?;
        optimizer.step(parameters, config.optimizer.lr)?;
        wait(&parameters[0].value)?;
        (n_tokens, loss) = (outcome.n_tokens, outcome.loss);
        Ok(start.elapsed().as_secs_f64())
    };
    (0..2).try_for_each(|_| one().map(drop))?;
    let seconds = median((0..n_steps.max(1)).map(|_| one()).collect::<Result<_>>()?);
    ensure!(loss.is_finite(), "the loss is {loss}");
    let terms = adapter.as_ref().map(|adapter| LowRankTerms::new(&adapter.adaptation(), &description));
    let flops = estimate::flops(&passes(&batch, &settings, Gradients::Both, &description), &description, terms.as_ref(), settings.memory);
    Ok(json!({
        "seconds": seconds,
        // What is computed again does not count as work done.
        "flops": flops.total() - flops.recomputed,
        "tokens": n_tokens,
        "tokens_per_second": n_tokens as f64 / seconds,
        "peak_bytes": gpu::peak_bytes(&place.device),
        "loss": loss,
    }))
}

/// Seconds of the head alone, forward and backward.
fn head(place: &Place, n_steps: usize) -> Result<Value> {
    let (n_vocab, width, n_targets) = if place.device.is_cpu() { (1000, 64, 64) } else { (128_256, 4096, 8192) };
    let tensor = |seed, rows: usize| ops::on_device(random_values(seed, rows * width), &[rows, width], place);
    let (hidden, weight) = (tensor(1, n_targets)?, tensor(2, n_vocab)?);
    let gradient = Tensor::zeros((n_vocab, width), DType::F32, &place.device)?;
    let tokens = random_tokens(3, n_targets, n_vocab);
    let targets: Vec<TokenTarget> = tokens.iter().zip(0..).map(|(&token, row)| TokenTarget { row, token }).collect();
    let head = Head { soft_cap: None, compute: place.compute };
    let one = || -> Result<f64> {
        let start = Instant::now();
        let d_hidden = ops::zeros_like(&hidden)?;
        let scored = head.score(&hidden, &weight, &targets, 0)?;
        head.backward(&hidden, &weight, (&targets, scored), &vec![1e-3; n_targets], &d_hidden, Some(&gradient))?;
        wait(&d_hidden)?;
        Ok(start.elapsed().as_secs_f64())
    };
    one()?;
    let seconds = median((0..n_steps.max(1)).map(|_| one()).collect::<Result<_>>()?);
    let flops = 3.0 * 2.0 * (n_vocab * width * n_targets) as f64;
    Ok(json!({"seconds": seconds, "flops": flops, "peak_bytes": gpu::peak_bytes(&place.device)}))
}
