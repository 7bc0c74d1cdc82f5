//! Runs jobs, each in a process of its own: peak memory is then the job's own, and one that does not fit takes nothing down with it.

use crate::job::{Job, Measured};
use anyhow::{Context, Result, ensure};
use std::env;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Runs `job`; a peer needs `python`.
pub fn measure(job: &Job, python: Option<&Path>) -> Result<Measured> {
    let mut command = match job.engine.is_peer() {
        false => {
            let mut command = Command::new(env::current_exe()?);
            command.arg("measure");
            command
        }
        true => {
            let mut command = Command::new(python.context("a peer needs `--python`")?);
            command.arg(root().join("benches/peers/step.py"));
            command
        }
    };
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // Dropped at the end of the statement: the child reads to the end.
    child.stdin.take().context("no standard input")?.write_all(serde_json::to_string(job)?.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line).with_context(|| format!("{command:?} printed {text:?}"))
}

/// The repository: where cargo, or whoever runs a binary that was made elsewhere, says that it lies; else where it lay when this was compiled.
fn root() -> PathBuf {
    env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()).into()
}
