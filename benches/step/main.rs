//! The optimizer step against its peers and against its floor, in one command.
//!
//! ```text
//! cargo bench --bench step -- --python VENV/bin/python     # everything; `--quick` for two minutes of it, `--only f32,head` for parts
//! cargo bench --bench step                                 # ours and the floors only
//! ```
//!
//! Each measurement is a process of its own, so that its peak memory is its own; rounds alternate between all engines of a comparison.
//! `README.md` beside this folder says what each line of the table means.

mod floor;
mod head;
mod job;
mod lengths;
mod machine;
mod measure;
mod parts;
mod processes;
mod random;
mod report;
mod rows;
mod shapes;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use parts::Part;
use processes::Results;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

#[global_allocator]
static ALLOCATOR: mpo::allocator::LargePages = mpo::allocator::LargePages;

#[derive(Parser)]
#[command(about = "Measures the optimizer step against its peers and its floor")]
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
    /// Python with the packages of `benches/peers/requirements.txt`: measures PyTorch too
    #[arg(long)]
    python: Option<PathBuf>,
    /// Parts to run, in this order; all when absent
    #[arg(long, value_delimiter = ',', value_enum)]
    only: Vec<Part>,
    /// One round of one step, without `0.5b`, `epoch` and the longest sequences: under two minutes
    #[arg(long)]
    quick: bool,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Rounds, each a fresh process per engine; `lengths`, `0.5b` and `memory` take at most 2, `epoch` 1
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Counted steps per process, after one that is not
    #[arg(long, default_value_t = 3)]
    steps: usize,
    /// Rows of each epoch, from the first on
    #[arg(long, default_value_t = 60)]
    epoch_rows: usize,
    /// Where the results go, written after every round
    #[arg(long, default_value = "target/bench/step.json")]
    json: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Print the table of token lengths of a released data file
    Lengths(lengths::Recipe),
    /// Measure the job on standard input in this process
    #[command(hide = true)]
    Measure,
}

impl Options {
    fn rounds(&self, at_most: usize) -> usize {
        if self.quick { 1 } else { self.rounds.min(at_most) }
    }

    fn steps(&self) -> usize {
        if self.quick { 1 } else { self.steps }
    }

    fn parts(&self) -> Vec<Part> {
        match (&self.only[..], self.quick) {
            ([], true) => Part::QUICK.to_vec(),
            ([], false) => Part::ALL.to_vec(),
            (only, _) => only.to_vec(),
        }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match arguments.command {
        Some(Command::Measure) => {
            let job = serde_json::from_reader(io::stdin().lock()).context("the job on standard input")?;
            println!("{}", serde_json::to_string(&measure::run(&job)?)?);
        }
        Some(Command::Lengths(recipe)) => io::stdout().write_all(lengths::table(&recipe)?.as_bytes())?,
        None => compare(&arguments.options)?,
    }
    Ok(())
}

fn compare(options: &Options) -> Result<()> {
    let mut results = Results::new(machine::description(options.python.as_deref()));
    let json = Path::new(env!("CARGO_MANIFEST_DIR")).join(&options.json);
    for part in options.parts() {
        let comparison = part.comparison(options)?;
        for round in 0..comparison.rounds {
            eprintln!("{}: round {} of {}", part.name(), round + 1, comparison.rounds);
            for (label, job) in &comparison.jobs {
                results.measure(part, label, job, options.python.as_deref())?;
            }
            results.lines = options.parts().into_iter().flat_map(|part| part.lines(&results)).collect();
            results.write(&json)?;
        }
        // A shape whose weights are large is not left behind.
        shapes::remove_model(shapes::QWEN)?;
    }
    print!("{}", report::table(&results.lines));
    println!("\nAll values: {}", json.display());
    Ok(())
}
