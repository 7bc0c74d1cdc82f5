//! One optimizer step on SmolLM2-135M's shape with random weights, f32: one row of four sequences of 64 prompt and 192 response tokens.
//!
//! ```text
//! cargo bench --bench step                                  # ours
//! cargo bench --bench step -- --python VENV/bin/python      # and PyTorch the released way, in turn, with ratios
//! ```
//!
//! Each measurement is a process of its own, so that its peak memory is its own; rounds alternate between engines. What PyTorch does stands
//! in `peers/step.py`. Reference scores are computed and cached before the clock starts, as in a run.

use anyhow::{Context, Result, ensure};
use clap::Parser;
use mpo::config::{ComputeDtype, RunConfig};
use mpo::data::encode::{EncodedPair, EncodedPreference, Response};
use mpo::model::decoder::{Decoder, Purpose};
use mpo::model::family;
use mpo::model::weights::{SavedDtype, TensorToSave, save};
use mpo::reference::{Folders, FrozenScores, Provenance};
use mpo::scoring::KeptStates;
use mpo::train::step::{Gradients, StepSettings, evaluate_batch};
use mpo::train::{clip, optimizer::AdamW};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

#[derive(Parser)]
struct Arguments {
    /// Python with the packages of `benches/peers/requirements.txt`: measures PyTorch too
    #[arg(long)]
    python: Option<PathBuf>,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Rounds, each a fresh process per engine
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Measured steps per process, after one that is not
    #[arg(long, default_value_t = 3)]
    steps: usize,
    /// Where the random model is kept
    #[arg(long, default_value = "target/bench/smollm2-135m")]
    model: PathBuf,
    /// Measure our step in this process and print it as JSON
    #[arg(long, hide = true)]
    measure: bool,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

const N_PROMPT: usize = 64;
const N_RESPONSE: usize = 192;
const VOCABULARY: u32 = 49_152;

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if !arguments.model.join("model.safetensors").is_file() {
        write_random_model(&arguments.model)?;
    }
    if arguments.measure {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(arguments.threads).build()?;
        println!("{}", pool.install(|| measure(&arguments))?);
        return Ok(());
    }
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..arguments.rounds {
        eprintln!("round {} of {}", round + 1, arguments.rounds);
        ours.push(run(Command::new(std::env::current_exe()?).arg("--measure").arg("--model").arg(&arguments.model), &arguments)?);
        if let Some(python) = &arguments.python {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/step.py");
            theirs.push(run(Command::new(python).arg(script), &arguments)?);
        }
    }
    report("mpo", &ours);
    if !theirs.is_empty() {
        report("PyTorch, released way, SDPA", &theirs);
        let ratio = |key: &str| median(&theirs, key) / median(&ours, key);
        println!("PyTorch takes {:.2} times our seconds and {:.2} times our memory", ratio("step_seconds"), ratio("peak_rss_bytes"));
    }
    let all = json!({ "ours": ours, "pytorch": theirs });
    println!("{all}");
    Ok(())
}

fn run(command: &mut Command, arguments: &Arguments) -> Result<Value> {
    let output = command.args(["--threads", &arguments.threads.to_string(), "--steps", &arguments.steps.to_string()]).output()?;
    ensure!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    serde_json::from_str(text.trim()).with_context(|| format!("{command:?} printed {text:?}"))
}

fn median(results: &[Value], key: &str) -> f64 {
    let mut values: Vec<f64> = results.iter().filter_map(|result| result[key].as_f64()).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn report(name: &str, results: &[Value]) {
    let (seconds, bytes) = (median(results, "step_seconds"), median(results, "peak_rss_bytes"));
    println!("{name}: {seconds:.3} s a step, peak {:.0} MiB (medians of {} processes)", bytes / f64::from(1 << 20), results.len());
}

/// Median seconds of a step, and the peak memory of this process.
fn measure(arguments: &Arguments) -> Result<Value> {
    let config = RunConfig::default();
    let policy = Decoder::load(&arguments.model, ComputeDtype::F32, Purpose::Train)?;
    let row = EncodedPair { id: "row".into(), dominant: random_pair("en", 1), target: random_pair("sw", 2) };
    let settings = StepSettings::new(&config, 0);
    let provenance = Provenance::of(&policy, config.model.dtype, KeptStates::of(&config.retention), 0)?;
    let (reference, _) = FrozenScores::score(&policy, &[&row.dominant], provenance, Folders::default())?;
    let mut optimizer = AdamW::new(&config.optimizer, policy.parameters())?;
    let mut seconds = Vec::new();
    let mut loss = 0.0;
    for step in 0..=arguments.steps {
        let start = Instant::now();
        policy.zero_gradients()?;
        loss = evaluate_batch(&policy, &[&row], Some(&reference), &settings, Gradients::Both)?.loss;
        let norm = clip::gradient_norm(policy.parameters())?;
        optimizer.step(policy.parameters(), config.optimizer.lr, clip::clip_factor(norm, config.optimizer.clip_norm))?;
        if step > 0 {
            seconds.push(start.elapsed().as_secs_f64());
        }
    }
    let all = seconds.clone();
    seconds.sort_by(f64::total_cmp);
    Ok(json!({
        "engine": "mpo", "dtype": "f32", "threads": rayon::current_num_threads(), "sequences": 4, "prompt_tokens": N_PROMPT,
        "response_tokens": N_RESPONSE, "step_seconds": seconds[seconds.len() / 2], "all_step_seconds": all,
        "peak_rss_bytes": mpo::device::peak_rss_bytes(), "loss": loss,
    }))
}

fn random_pair(lang: &str, seed: u64) -> EncodedPreference {
    let mut random = Random(seed);
    let mut tokens = |n: usize| (0..n).map(|_| 3 + (random.uniform() * f64::from(VOCABULARY - 3)) as u32).collect::<Vec<_>>();
    let (prompt, chosen, rejected) = (tokens(N_PROMPT), tokens(N_RESPONSE), tokens(N_RESPONSE));
    let response = |tokens| Response { tokens, n_end_tokens: 1 };
    EncodedPreference { lang: lang.into(), prompt, chosen: response(chosen), rejected: response(rejected) }
}

fn write_random_model(dir: &Path) -> Result<()> {
    let config = json!({
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 100000.0,
        "max_position_embeddings": 8192, "tie_word_embeddings": true,
    });
    std::fs::create_dir_all(dir)?;
    let mut random = Random(0);
    let tensors: Vec<(String, Vec<usize>, Vec<f32>)> = family::expected_tensors(&family::describe(&config)?)
        .into_iter()
        .map(|(name, shape)| {
            let n: usize = shape.iter().product();
            let values = if shape.len() == 1 { vec![1.0; n] } else { (0..n).map(|_| 0.02 * random.normal() as f32).collect() };
            (name, shape, values)
        })
        .collect();
    let to_save: Vec<_> =
        tensors.iter().map(|(name, shape, values)| TensorToSave { name, shape, values, dtype: SavedDtype::F32 }).collect();
    std::fs::write(dir.join("config.json"), config.to_string())?;
    save(dir, &to_save, u64::MAX).map(drop)
}

/// SplitMix64: enough for weights whose values do not matter.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (-2.0 * (1.0 - self.uniform()).ln()).sqrt() * (2.0 * std::f64::consts::PI * self.uniform()).cos()
    }
}
