//! Steps on one GPU: against PyTorch on the same card, the card's own matrix rate, and its data sheet.
//!
//! ```text
//! cargo bench --features cuda --bench gpu -- --python VENV/bin/python --json benches/runs/NAME/gpu.json     # everything: the 8B shape wants 80 GB
//! cargo bench --features cuda --bench gpu -- --only 135m,head
//! cargo bench --bench gpu -- --device cpu --only tiny --python VENV/bin/python                              # whether the program itself works
//! cargo bench --bench gpu -- --device emulated --only tiny                                                  # and what it does to a card
//! ```
//!
//! Each measurement is a process of its own. `../README.md` says what each column means.

mod head;
mod job;
#[path = "../step/machine.rs"]
mod machine;
mod measure;
mod parts;
mod processes;
#[path = "../step/random.rs"]
mod random;
#[path = "../step/rows.rs"]
mod rows;
mod shapes;
mod table;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use job::Job;
use parts::Part;
use serde::Serialize;
use serde_json::Value;
use std::io;
use std::path::{Path, PathBuf};
use table::{Goal, Line, Rates};

#[derive(Parser)]
#[command(about = "Measures steps on one GPU")]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: Options,
    /// What `cargo bench` adds
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(clap::Args)]
pub struct Options {
    /// `hardware.device`
    #[arg(long, default_value = "cuda:0")]
    device: String,
    /// Python with torch and transformers (`benches/peers/requirements.txt`): measures PyTorch too
    #[arg(long)]
    python: Option<PathBuf>,
    /// Parts to run, in this order; all but `tiny` when absent
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Part>,
    /// Counted steps of a process, after two that are not
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// Where the results go, written after every measurement
    #[arg(long, default_value = "target/bench/gpu.json")]
    json: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Measure the job on standard input in this process
    #[command(hide = true)]
    Measure,
}

#[derive(Serialize)]
struct Results {
    machine: Value,
    rates: Rates,
    goals: Vec<Goal>,
    lines: Vec<Line>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Command::Measure) => {
            let job = serde_json::from_reader(io::stdin().lock()).context("the job on standard input")?;
            println!("{}", serde_json::to_string(&measure::run(&job)?)?);
            Ok(())
        }
        None => compare(&arguments.options),
    }
}

fn compare(options: &Options) -> Result<()> {
    let python = options.python.as_deref();
    let products = processes::measure(&parts::products(options), None)?;
    let device = products.notes.get("device").and_then(Value::as_str).unwrap_or_default();
    eprintln!("device   {device}");
    let rates = Rates { products: products.rate(), data_sheet: table::data_sheet(device) };
    let mut results = Results { machine: machine::description(python), rates, goals: Vec::new(), lines: Vec::new() };
    results.machine["device"] = device.into();
    let only = if options.only.is_empty() { &Part::ALL[..] } else { &options.only };
    for &part in only {
        measure_part(part, options, &mut results)?;
    }
    if let Some(rate) = rates.products {
        println!("large products: {:.1} TFLOP/s\n", 1e-12 * rate);
    }
    print!("{}", table::lines(&results.lines, rates));
    if !results.goals.is_empty() {
        println!("\n{}", table::goal_lines(&results.goals));
    }
    println!("All values: {}", options.json.display());
    let n_failed = results.lines.iter().filter(|line| line.measured.is_err()).count();
    ensure!(n_failed == 0, "{n_failed} measurements failed");
    Ok(())
}

/// All engines of a part on one batch; where one of them runs out of memory, all of them on the next smaller one.
fn measure_part(part: Part, options: &Options, results: &mut Results) -> Result<()> {
    let setup = part.setup();
    for &n_rows in setup.rows {
        let mut everything_fits = true;
        for &engine in setup.engines.iter().filter(|engine| options.python.is_some() || !engine.is_peer()) {
            let job: Job = setup.job(engine, n_rows, options);
            eprintln!("{}: {}, {n_rows} rows", part.name(), engine.label());
            let measured = processes::measure(&job, options.python.as_deref()).map_err(|error| format!("{error:#}"));
            match &measured {
                Err(error) => eprintln!("{error}"),
                Ok(measured) => {
                    everything_fits &= measured.out_of_memory.is_none();
                    eprint!("{}", table::kernels(measured));
                }
            }
            results.lines.push(Line { part: part.name(), job, measured });
            results.goals = table::goals(&results.lines, results.rates);
            machine::note_end(&mut results.machine);
            write(&options.json, results)?;
        }
        if everything_fits {
            break;
        }
    }
    Ok(())
}

/// Written whole, so that a later failure loses nothing.
fn write(path: &Path, results: &Results) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    mpo::files::write_atomically(path, format!("{}\n", serde_json::to_string_pretty(results)?).as_bytes())
}
