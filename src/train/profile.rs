//! `mpo train --profile`: a trace of the run's spans that opens in Perfetto (ui.perfetto.dev) and in `chrome://tracing`.
//!
//! Written under another name as the run goes, and renamed when it ends, by itself or by Ctrl-C.

use super::phases::Listener;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tracing_chrome::{ChromeLayerBuilder, FlushGuard};

/// A trace being written.
pub struct Profile {
    path: PathBuf,
    partial: PathBuf,
    /// Ends the file when it is dropped.
    guard: Option<FlushGuard>,
    error: WriteError,
}

/// The first thing that went wrong. The layer's own thread would panic on it.
type WriteError = Arc<Mutex<Option<io::Error>>>;

impl Profile {
    /// Begins the trace that will be at `path`, and the layer that fills it.
    pub fn create(path: &Path) -> Result<(Self, Listener)> {
        let name = path.file_name().with_context(|| format!("`{}` is not the name of a file", path.display()))?.to_string_lossy();
        let partial = path.with_file_name(format!(".{name}.partial"));
        let file = File::create(&partial).with_context(|| format!("cannot write `{}`", path.display()))?;
        let error = WriteError::default();
        let writer = Forgiving { file, error: error.clone() };
        let (layer, guard) = ChromeLayerBuilder::new().writer(writer).include_args(true).include_locations(false).build();
        Ok((Self { path: path.to_owned(), partial, guard: Some(guard), error }, Box::new(layer)))
    }

    /// Completes the file and puts it in its place.
    ///
    /// # Errors
    /// What the disk said, now or while the run was on.
    pub fn finish(mut self) -> Result<PathBuf> {
        drop(self.guard.take());
        let written = match self.error.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(error) => Err(error),
            None => File::open(&self.partial).and_then(|file| file.sync_all()).and_then(|()| fs::rename(&self.partial, &self.path)),
        };
        written.with_context(|| format!("cannot write the trace `{}`", self.path.display()))?;
        Ok(self.path.clone())
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        drop(self.guard.take());
        // Gone where it was finished; where it was not, the run never began.
        let _ = fs::remove_file(&self.partial);
    }
}

/// Writes until something goes wrong, and remembers what it was.
struct Forgiving {
    file: File,
    error: WriteError,
}

impl Write for Forgiving {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut error = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        if error.is_none() {
            *error = self.file.write_all(bytes).err();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::phases::Phases;
    use serde_json::Value;
    use tracing::info_span;

    #[test]
    fn a_finished_trace_is_json_and_an_unfinished_one_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.json");
        // A thread of its own: the layer keeps its channel in a thread-local.
        let trace = |finish: bool| {
            let path = path.clone();
            std::thread::spawn(move || {
                let (profile, layer) = Profile::create(&path).unwrap();
                Phases::default().observe(Some(layer), || info_span!("step", step = 3).in_scope(|| info_span!("forward").in_scope(|| ())));
                if finish { profile.finish().map(drop).unwrap() } else { drop(profile) }
            })
            .join()
            .unwrap();
        };
        trace(false);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        trace(true);
        let events: Vec<Value> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let named = |name: &str, ph: &str| events.iter().position(|event| event["name"] == name && event["ph"] == ph).unwrap();
        assert!(named("step", "B") < named("forward", "B") && named("forward", "E") < named("step", "E"));
        assert_eq!(events[named("step", "B")]["args"]["step"], "3");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_full_disk_is_an_error_and_no_panic() {
        if Path::new("/dev/full").exists() {
            let error = WriteError::default();
            let mut writer = Forgiving { file: File::options().write(true).open("/dev/full").unwrap(), error: error.clone() };
            assert_eq!(writer.write(b"[\n").unwrap(), 2);
            assert!(error.lock().unwrap().is_some());
        }
    }
}
