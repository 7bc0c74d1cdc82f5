//! What the numbers were measured on.

use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;

/// CPU, memory, GPU, kernel, compilers and libraries, the commit and the command.
pub fn description(python: Option<&Path>) -> Value {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.split(':').next().is_some_and(|name| name.trim() == key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let flags = field(&cpu, "flags").unwrap_or_default();
    let flags: Vec<&str> = flags.split(' ').filter(|flag| ["avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16"].contains(flag)).collect();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let commit = output(Command::new("git").args(["describe", "--always", "--dirty"]).current_dir(env!("CARGO_MANIFEST_DIR")));
    let versions = "import torch, transformers, trl; print(torch.__version__, transformers.__version__, trl.__version__)";
    json!({
        "date": output(Command::new("date").args(["-u", "+%Y-%m-%dT%H:%MZ"])),
        "command": std::env::args().skip(1).filter(|argument| argument != "--bench").collect::<Vec<_>>(),
        "commit": commit,
        "cpu": field(&cpu, "model name"),
        "cpu_family": field(&cpu, "cpu family"),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "flags": flags,
        "memory": field(&memory, "MemTotal"),
        "gpu": output(Command::new("nvidia-smi").args(["--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader"])),
        "kernel": output(Command::new("uname").arg("-sr")),
        "rustc": output(Command::new("rustc").arg("-V")),
        "torch_transformers_trl": python.and_then(|python| output(Command::new(python).args(["-c", versions]))),
        "load_at_start": load(),
    })
}

/// Records how busy the machine is now, and when that is.
pub fn note_end(machine: &mut Value) {
    machine["date_at_end"] = output(Command::new("date").args(["-u", "+%Y-%m-%dT%H:%MZ"])).into();
    machine["load_at_end"] = load().into();
}

/// Runnable processes over the last minutes.
fn load() -> Option<String> {
    Some(fs::read_to_string("/proc/loadavg").ok()?.trim().to_owned())
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
