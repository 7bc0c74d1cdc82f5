//! Runs jobs, each in a process of its own, and keeps what they measured.

use crate::job::{Engine, Job, Measured};
use crate::parts::Part;
use crate::report::Line;
use crate::{machine, shapes};
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// One engine under one setting, all rounds.
#[derive(Serialize)]
pub struct Series {
    pub job: Job,
    pub rounds: Vec<Measured>,
}

#[derive(Serialize)]
pub struct Results {
    pub machine: Value,
    /// The table.
    pub lines: Vec<Line>,
    /// By part and label.
    series: BTreeMap<String, BTreeMap<String, Series>>,
}

impl Results {
    pub fn new(machine: Value) -> Self {
        Self { machine, lines: Vec::new(), series: BTreeMap::new() }
    }

    /// Runs `job` once more. A peer is left out when there is no Python.
    pub fn measure(&mut self, part: Part, label: &str, job: &Job, python: Option<&Path>) -> Result<()> {
        let Some(mut command) = command(job.engine, &job.shape, python)? else { return Ok(()) };
        shapes::write_model(&job.shape)?;
        let measured = run(&mut command, job).with_context(|| format!("part `{}`, {label}", part.name()))?;
        eprintln!("  {label}: {}", short(&measured));
        let series = self.series.entry(part.name()).or_default();
        // The list is long, and follows from the rest.
        let job = Job { list: None, ..job.clone() };
        series.entry(label.to_owned()).or_insert_with(|| Series { job, rounds: Vec::new() }).rounds.push(measured);
        Ok(())
    }

    /// What was measured under a label; `None` where it was not run.
    pub fn series(&self, part: Part, label: &str) -> Option<&Series> {
        self.series.get(&part.name())?.get(label)
    }

    /// Written whole, so that a later failure loses nothing.
    pub fn write(&mut self, path: &Path) -> Result<()> {
        machine::note_end(&mut self.machine);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let text = format!("{}\n", serde_json::to_string_pretty(self)?);
        mpo::files::write_atomically(path, text.as_bytes())
    }
}

fn short(measured: &Measured) -> String {
    let seconds = measured.total_seconds();
    let mib = measured.peak_rss_bytes as f64 / f64::from(1 << 20);
    match measured.step_seconds.len() {
        n if n > 10 => format!("{seconds:.1} s in {n} steps, peak {mib:.0} MiB"),
        _ => format!("{:.3} s a step, {:.3} s of CPU, peak {mib:.0} MiB", measured.median_seconds(), measured.median_cpu_seconds()),
    }
}

/// The process for an engine; `None` for a peer without Python.
fn command(engine: Engine, shape: &str, python: Option<&Path>) -> Result<Option<Command>> {
    let script = match engine {
        Engine::Mpo | Engine::MpoCheckpointing | Engine::MpoLora | Engine::GemmList | Engine::OpList => {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg("measure");
            return Ok(Some(command));
        }
        Engine::TorchList => "products.py",
        Engine::TrlDpo => "dpo.py",
        Engine::FullLogits => "head.py",
        Engine::ReleasedSdpa | Engine::ReleasedEager | Engine::Lean if shape == shapes::SMOLLM2 => "step.py",
        engine => bail!("{engine:?} has no peer of shape {shape}"),
    };
    Ok(python.map(|python| {
        let mut command = Command::new(python);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers").join(script));
        command
    }))
}

fn run(command: &mut Command, job: &Job) -> Result<Measured> {
    let threads = job.threads.to_string();
    for name in ["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"] {
        command.env(name, &threads);
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // Dropped at the end of the statement: the child reads to the end.
    child.stdin.take().context("no standard input")?.write_all(serde_json::to_string(job)?.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line).with_context(|| format!("{command:?} printed {text:?}"))
}
