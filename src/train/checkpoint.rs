//! Checkpoints: `OUT/checkpoint-000100/`, a Hugging Face model folder with a `trainer/` folder inside that a run can go on from.
//!
//! ```text
//! checkpoint-000100/
//!     config.json, tokenizer files, …, model.safetensors     what transformers loads, in the checkpoint's own element type; of an adapter, what PEFT loads
//!     trainer/state.json                                     step, data cursor, signs: everything that is small
//!     trainer/config.toml                                    the configuration that made it
//!     trainer/master/, trainer/moments/                      weights and optimizer moments, f32
//!     trainer/manifest.json                                  size and sha256 of every other file
//! ```
//!
//! A checkpoint appears whole or not at all (see [`folder`]); older ones are removed only after the new one was read back and verified.
//! Tensors are streamed from where they are: saving needs no second copy of the model.

mod source;

pub use source::SourceFiles;

use super::best::Best;
use super::folder::{self, FolderWriter, Manifest};
use super::measure::Measured;
use super::optimizer::AdamW;
use super::signs::Signs;
use crate::data::loader::LoaderState;
use crate::files::read_json;
use crate::model::parameter::Parameter;
use crate::model::weights::{self, SavedDtype};
use crate::ops;
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use source::{WeightsFile, write_tensors};
use std::fs;
use std::path::{Path, PathBuf};

/// Version of `trainer/`: a run goes on from its own version only.
const VERSION: u32 = 2;
const MANIFEST: &str = "trainer/manifest.json";
const STATE: &str = "trainer/state.json";
const CONFIG: &str = "trainer/config.toml";
const MASTER: &str = "trainer/master";
const MOMENTS: &str = "trainer/moments";
/// What every checkpoint has, and its manifest names.
const REQUIRED: [&str; 4] = [STATE, CONFIG, MASTER, MOMENTS];

/// Everything small that a run needs to go on as if it had never stopped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    pub version: u32,
    /// Steps taken, skipped ones included.
    pub step: usize,
    /// Optimizer updates made.
    pub n_updates: u64,
    /// Non-finite steps since the last good one.
    pub n_skipped_in_row: usize,
    /// Skipped steps in all.
    pub n_skipped: usize,
    pub loader: LoaderState,
    /// Of all encoded rows: a run goes on with the rows it began with.
    pub data_sha256: String,
    /// Of its canaries, where it has any.
    #[serde(default)]
    pub canary_sha256: Option<String>,
    pub signs: Signs,
    /// Measured before the first step, on the rows that the summary and the signs compare with.
    pub start: Measured,
    /// Where the run is to keep its best checkpoint, the best so far; it lies beside this one.
    #[serde(default)]
    pub best: Option<Best>,
}

impl TrainerState {
    pub const VERSION: u32 = VERSION;

    /// # Errors
    /// Counts that no run comes to.
    fn check(&self) -> Result<()> {
        let Self { step, n_updates, n_skipped, n_skipped_in_row, .. } = self;
        ensure!(*n_updates <= *step as u64, "it counts {n_updates} updates in {step} steps");
        ensure!(
            n_skipped <= step && n_skipped_in_row <= n_skipped,
            "it counts {n_skipped} skipped steps, {n_skipped_in_row} of them in a row, in {step}"
        );
        if let Some(best) = &self.best {
            ensure!(
                best.step <= *step && best.value.is_finite(),
                "its best checkpoint is of step {}, and it is itself of step {step}",
                best.step
            );
        }
        Ok(())
    }

    /// Checks that a run of `n_steps` steps, whose loader stands at `loader` after as many as this has taken, can be where this says it is.
    ///
    /// # Errors
    /// Names what the run cannot have come to.
    pub fn check_against(&self, n_steps: usize, loader: &LoaderState) -> Result<()> {
        ensure!(
            self.step <= n_steps,
            "its {} steps are more than the {n_steps} of the run: `train.epochs` and `train.max_steps` must leave as many",
            self.step
        );
        let LoaderState { epoch, position, .. } = self.loader;
        ensure!(
            self.loader == *loader,
            "its data cursor is at epoch {epoch}, position {position}, of {} rows by seed {}; after {} steps this run is at epoch {}, position {}, \
             of {} rows by seed {}",
            self.loader.n_rows,
            self.loader.seed,
            self.step,
            loader.epoch,
            loader.position,
            loader.n_rows,
            loader.seed
        );
        Ok(())
    }
}

/// All that a checkpoint is made of.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot<'a> {
    pub state: &'a TrainerState,
    /// The resolved configuration as TOML.
    pub config: &'a str,
    pub files: &'a SourceFiles,
    /// Those that are trained.
    pub parameters: &'a [Parameter],
    pub optimizer: &'a AdamW,
}

/// Where the checkpoint of a step lies in the run folder `run`.
pub fn folder_of(run: &Path, step: usize) -> PathBuf {
    run.join(format!("checkpoint-{step:06}"))
}

/// Writes `OUT/checkpoint-STEP`, reads it back, and only then removes all but the newest `keep` checkpoints and the best one.
pub fn save(run: &Path, snapshot: &Snapshot<'_>, keep: usize) -> Result<PathBuf> {
    let dir = folder_of(run, snapshot.state.step);
    folder::publish(&dir, |folder| write(folder, snapshot))?;
    Manifest::verify(&dir, &dir.join(MANIFEST), &REQUIRED).context("the checkpoint that was just written does not read back as written")?;
    remove_old(run, snapshot.state, keep)?;
    Ok(dir)
}

/// Writes `OUT/final`, the trained model alone.
pub fn save_final(run: &Path, files: &SourceFiles, parameters: &[Parameter]) -> Result<PathBuf> {
    let dir = run.join("final");
    save_model(&dir, files, parameters)?;
    Ok(dir)
}

/// Writes `parameters` and the files beside them as the folder `dir`, whole or not at all.
pub fn save_model(dir: &Path, files: &SourceFiles, parameters: &[Parameter]) -> Result<()> {
    folder::publish(dir, |folder| files.write(folder, parameters))
}

fn write(folder: &mut FolderWriter, snapshot: &Snapshot<'_>) -> Result<()> {
    let Snapshot { state, config, files, parameters, optimizer } = snapshot;
    files.write(folder, parameters)?;
    let saved = |(name, tensor)| (name, tensor, saved_dtype(tensor));
    let master: Vec<_> = optimizer.exact_values(parameters).map(saved).collect();
    write_tensors(folder, MASTER, WeightsFile::Model, &master)?;
    let moments: Vec<_> = optimizer.tensors(parameters).map(saved).collect();
    write_tensors(folder, MOMENTS, WeightsFile::Model, &moments)?;
    folder.write(CONFIG, config.as_bytes())?;
    folder.write(STATE, &serde_json::to_vec_pretty(state)?)?;
    folder.write_manifest(MANIFEST)
}

/// The type that holds every value of a tensor: bf16 has all the codes of 8-bit moments, the integers up to 256.
fn saved_dtype(tensor: &Tensor) -> SavedDtype {
    match tensor.dtype() {
        DType::BF16 | DType::U8 => SavedDtype::Bf16,
        _ => SavedDtype::F32,
    }
}

/// A checkpoint that verifies.
#[derive(Debug, Clone)]
pub struct Found {
    pub dir: PathBuf,
    pub state: TrainerState,
    /// The configuration that made it, as TOML.
    pub config: String,
}

/// What is in a run folder.
#[derive(Debug)]
pub struct Scan {
    /// The newest checkpoint that verifies.
    pub found: Option<Found>,
    /// Newer ones that do not, and why.
    pub damaged: Vec<(PathBuf, anyhow::Error)>,
}

/// Looks for the newest checkpoint of the run folder `run` that verifies.
///
/// # Errors
/// When there are checkpoints and every one is damaged.
pub fn scan(run: &Path) -> Result<Scan> {
    let mut scan = Scan { found: None, damaged: Vec::new() };
    for (_, dir) in list(run)?.into_iter().rev() {
        match open(&dir) {
            Ok(found) => {
                scan.found = Some(found);
                return Ok(scan);
            }
            Err(error) => scan.damaged.push((dir, error)),
        }
    }
    let listed: String = scan.damaged.iter().map(|(_, error)| format!("\n  {error:#}")).collect();
    ensure!(scan.damaged.is_empty(), "no checkpoint in `{}` can be used:{listed}", run.display());
    Ok(scan)
}

fn open(dir: &Path) -> Result<Found> {
    Manifest::verify(dir, &dir.join(MANIFEST), &REQUIRED)?;
    let read = |name: &str| fs::read_to_string(dir.join(name)).with_context(|| format!("cannot read `{}`", dir.join(name).display()));
    let parse = |value: serde_json::Value| -> Result<TrainerState> {
        let version = value["version"].as_u64();
        ensure!(version == Some(VERSION.into()), "it was written by another version of mpo (format {version:?}, this one reads {VERSION})");
        let state: TrainerState = serde_json::from_value(value)?;
        state.check()?;
        let is_named_so = dir.file_name().is_some_and(|name| folder_of(Path::new(""), state.step).as_os_str() == name);
        ensure!(is_named_so, "it is of step {}, and its folder says another", state.step);
        Ok(state)
    };
    let state = parse(read_json(&dir.join(STATE))?).with_context(|| format!("`{}`", dir.join(STATE).display()))?;
    Ok(Found { dir: dir.to_path_buf(), state, config: read(CONFIG)? })
}

/// Puts a checkpoint's weights and moments into place.
pub fn restore(found: &Found, parameters: &[Parameter], optimizer: &mut AdamW) -> Result<()> {
    let in_file = |name: &str| format!("`{}` does not fit this run", found.dir.join(name).display());
    let master = weights::Checkpoint::open(&found.dir.join(MASTER))?;
    for (parameter, (name, exact)) in parameters.iter().zip(optimizer.exact_values(parameters)) {
        read_tensor(&master, &name, exact).with_context(|| in_file(MASTER))?;
        read_tensor(&master, &name, &parameter.value).with_context(|| in_file(MASTER))?;
    }
    let saved = weights::Checkpoint::open(&found.dir.join(MOMENTS))?;
    for (name, tensor) in optimizer.tensors(parameters) {
        read_tensor(&saved, &name, tensor).with_context(|| in_file(MOMENTS))?;
    }
    optimizer.n_updates = found.state.n_updates;
    Ok(())
}

fn read_tensor(source: &weights::Checkpoint, name: &str, target: &Tensor) -> Result<()> {
    ensure!(
        source.shape(name)? == target.dims(),
        "`{name}` was saved with shape {:?}, the model has {:?}",
        source.shape(name)?,
        target.dims()
    );
    ops::update(target, |values| source.read_into(name, values))?
}

/// Steps and folders of all checkpoints in `run`, oldest first.
fn list(run: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let mut checkpoints = Vec::new();
    for entry in fs::read_dir(run).with_context(|| format!("cannot read the folder `{}`", run.display()))? {
        let path = entry?.path();
        let step = path.file_name().and_then(|name| name.to_str()?.strip_prefix("checkpoint-")?.parse().ok());
        checkpoints.extend(step.filter(|_| path.is_dir()).map(|step| (step, path)));
    }
    checkpoints.sort_unstable();
    Ok(checkpoints)
}

/// Keeps the newest `keep` checkpoints up to the state's step, and its best. Later ones are damaged leftovers of a run that went back to an
/// older checkpoint.
fn remove_old(run: &Path, state: &TrainerState, keep: usize) -> Result<()> {
    let (later, mut ours): (Vec<_>, Vec<_>) = list(run)?.into_iter().partition(|(step, _)| *step > state.step);
    let n_old = ours.len().saturating_sub(keep.max(1));
    let best = state.best.as_ref().map(|best| best.step);
    let old = ours.drain(..n_old).filter(|(step, _)| Some(*step) != best);
    for (_, dir) in later.into_iter().chain(old) {
        folder::remove(&dir)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::source::MAX_SHARD_BYTES;
    use super::*;
    use crate::config::OptimizerConfig;
    use crate::config::OutputDtype;
    use crate::model::weights::TensorToSave;
    use crate::train::measure::{Losses, Measurement, RowMeasure};
    use std::collections::BTreeMap;

    fn parameter(name: &str, shape: &[usize], seed: u32) -> Parameter {
        let values = |seed: u32| {
            let n = shape.iter().product::<usize>() as u32;
            let values = (0..n).map(|i| (i * 7919 + seed) as f32 / 997.0).collect();
            ops::tensor(values, shape).unwrap()
        };
        Parameter { name: name.into(), value: values(seed), gradient: Some(values(seed + 1)) }
    }

    fn state(step: usize) -> TrainerState {
        let row = RowMeasure::with_gap("sw", 0.1, 1.0);
        let train = Measurement::new(Losses { loss: 0.81, objective: 0.81, retention: 0.0 }, &[row]);
        let loader = LoaderState { epoch: 1, position: 2, seed: 3, n_rows: 4 };
        let start = Measured { train, held_out: None, dominant: BTreeMap::new() };
        TrainerState {
            version: VERSION,
            step,
            n_updates: 0,
            n_skipped_in_row: 1,
            n_skipped: 1,
            loader,
            data_sha256: "ab".into(),
            canary_sha256: None,
            signs: Signs::default(),
            start,
            best: None,
        }
    }

    /// A model folder in bf16, and a run that trains it.
    struct Example {
        run: tempfile::TempDir,
        source: tempfile::TempDir,
        parameters: Vec<Parameter>,
        optimizer: AdamW,
    }

    impl Example {
        fn new() -> Self {
            let source = tempfile::tempdir().unwrap();
            let parameters = vec![parameter("a.weight", &[3, 5], 1), parameter("b.weight", &[4], 2)];
            let values: Vec<_> = parameters.iter().map(|p| ops::read(&p.value).unwrap()).collect();
            let tensor =
                |i: usize, dtype| TensorToSave { name: &parameters[i].name, shape: parameters[i].value.dims(), values: &values[i], dtype };
            weights::save(source.path(), &[tensor(0, SavedDtype::Bf16), tensor(1, SavedDtype::F32)], MAX_SHARD_BYTES).unwrap();
            drop(values);
            fs::write(source.path().join("config.json"), r#"{"model_type": "llama", "torch_dtype": "bfloat16"}"#).unwrap();
            fs::write(source.path().join("tokenizer.json"), "{}").unwrap();
            fs::write(source.path().join("README.md"), "not a file of the model").unwrap();
            let mut optimizer = AdamW::new(&OptimizerConfig::default(), 7, &parameters).unwrap();
            optimizer.step(&parameters, 1e-3).unwrap();
            Self { run: tempfile::tempdir().unwrap(), source, parameters, optimizer }
        }

        fn save(&self, step: usize, keep: usize) -> Result<PathBuf> {
            self.save_state(&state(step), keep)
        }

        fn save_state(&self, state: &TrainerState, keep: usize) -> Result<PathBuf> {
            let files = SourceFiles::read(self.source.path(), OutputDtype::Checkpoint)?;
            let snapshot = Snapshot { state, config: "a = 1\n", files: &files, parameters: &self.parameters, optimizer: &self.optimizer };
            save(self.run.path(), &snapshot, keep)
        }

        fn steps(&self) -> Vec<usize> {
            list(self.run.path()).unwrap().into_iter().map(|(step, _)| step).collect()
        }
    }

    fn bits(tensor: &Tensor) -> Vec<u32> {
        ops::read(tensor).unwrap().iter().map(|value| value.to_bits()).collect()
    }

    #[test]
    fn what_is_saved_comes_back_bit_for_bit() {
        let example = Example::new();
        let dir = example.save(7, 2).unwrap();
        let scan = scan(example.run.path()).unwrap();
        let found = scan.found.unwrap();
        assert!(scan.damaged.is_empty());
        assert_eq!((&found.dir, &found.state, found.config.as_str()), (&dir, &state(7), "a = 1\n"));

        let parameters = vec![parameter("a.weight", &[3, 5], 50), parameter("b.weight", &[4], 60)];
        let mut optimizer = AdamW::new(&OptimizerConfig::default(), 7, &parameters).unwrap();
        restore(&found, &parameters, &mut optimizer).unwrap();
        assert_eq!(optimizer.n_updates, 0);
        for (restored, original) in parameters.iter().zip(&example.parameters) {
            assert_eq!(bits(&restored.value), bits(&original.value));
        }
        for ((name, restored), (_, original)) in optimizer.tensors(&parameters).zip(example.optimizer.tensors(&example.parameters)) {
            assert_eq!(bits(restored), bits(original), "{name}");
            assert!(bits(restored).iter().any(|bits| *bits != 0), "{name}");
        }
    }

    #[test]
    fn the_model_folder_keeps_the_source_s_files_and_element_types() {
        let example = Example::new();
        let dir = example.save(7, 2).unwrap();
        assert_eq!(fs::read(dir.join("config.json")).unwrap(), fs::read(example.source.path().join("config.json")).unwrap());
        assert!(dir.join("tokenizer.json").is_file() && !dir.join("README.md").exists());
        let saved = weights::Checkpoint::open(&dir).unwrap();
        assert_eq!([saved.tensor_dtype("a.weight").unwrap(), saved.tensor_dtype("b.weight").unwrap()], [SavedDtype::Bf16, SavedDtype::F32]);
    }

    #[test]
    fn another_element_type_is_written_into_the_config() {
        let example = Example::new();
        let files = SourceFiles::read(example.source.path(), OutputDtype::F32).unwrap();
        let dir = save_final(example.run.path(), &files, &example.parameters).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
        assert_eq!(config["torch_dtype"], "float32");
        assert_eq!(weights::Checkpoint::open(&dir).unwrap().tensor_dtype("a.weight").unwrap(), SavedDtype::F32);
        assert!(!dir.join("trainer").exists());
        let version_5 = source::with_dtype(br#"{"dtype": "bfloat16"}"#, SavedDtype::F32).unwrap();
        assert_eq!(String::from_utf8(version_5).unwrap(), "{\n  \"dtype\": \"float32\"\n}\n");
    }

    #[test]
    fn only_the_newest_are_kept_and_what_lies_ahead_goes() {
        let example = Example::new();
        for step in [1, 2, 3] {
            example.save(step, 2).unwrap();
        }
        assert_eq!(example.steps(), [2, 3]);
        example.save(9, 2).unwrap();
        example.save(4, 2).unwrap();
        assert_eq!(example.steps(), [3, 4], "step 9 belongs to a future that was given up");
    }

    #[test]
    fn the_best_outlives_those_that_are_kept_until_a_better_one_comes() {
        let example = Example::new();
        let save = |step: usize, best: usize| {
            let best = Some(Best { metric: "eval_loss".into(), step: best, value: 0.5 });
            example.save_state(&TrainerState { best, ..state(step) }, 1).unwrap();
            example.steps()
        };
        assert_eq!(save(1, 1), [1]);
        assert_eq!(save(2, 1), [1, 2]);
        assert_eq!(save(3, 1), [1, 3]);
        assert_eq!(save(4, 4), [4]);
        assert_eq!(scan(example.run.path()).unwrap().found.unwrap().state.best.unwrap().step, 4);
    }

    #[test]
    fn a_damaged_checkpoint_is_named_and_the_next_older_one_used() {
        let example = Example::new();
        example.save(1, 3).unwrap();
        let newest = example.save(2, 3).unwrap();
        fs::write(newest.join("trainer/moments/model.safetensors"), b"cut").unwrap();
        let scanned = scan(example.run.path()).unwrap();
        assert_eq!(scanned.found.unwrap().state.step, 1);
        let message = format!("{:#}", scanned.damaged[0].1);
        assert!(scanned.damaged.len() == 1 && message.contains("checkpoint-000002/trainer/moments/model.safetensors"), "{message}");

        fs::remove_file(example.run.path().join("checkpoint-000001/trainer/manifest.json")).unwrap();
        let message = format!("{:#}", scan(example.run.path()).unwrap_err());
        assert!(message.contains("checkpoint-000001") && message.contains("checkpoint-000002"), "{message}");
    }

    #[test]
    fn a_run_without_checkpoints_is_no_error() {
        let run = tempfile::tempdir().unwrap();
        let scanned = scan(run.path()).unwrap();
        assert!(scanned.found.is_none() && scanned.damaged.is_empty());
    }
}
