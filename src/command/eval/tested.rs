//! Which checkpoint is tested: the one that was named, or the newest run of the working folder; and how it was trained, where that is known.

use crate::command::ablate::ABLATION;
use crate::config;
use crate::eval::contamination::TrainingPrompt;
use crate::eval::results::facts::TrainingFacts;
use crate::progress::say;
use crate::{data, hub};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Folders below the working folder in which runs are looked for.
const DEPTH: usize = 3;

/// A checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tested {
    /// A folder, `org/name` or `builtin:tiny`; of an adapter its base.
    pub model: String,
    pub adapter: Option<PathBuf>,
    /// The folder of the training run that it came from.
    pub training: Option<PathBuf>,
    /// What tables call it.
    pub name: String,
}

impl Tested {
    /// What `--model` and `--adapter` name; the newest run where neither is given.
    ///
    /// # Errors
    /// There is no run; a folder holds an adapter whose base is not known.
    pub fn choose(model: Option<&str>, adapter: Option<&Path>) -> Result<Self> {
        let Some(model) = model else {
            if let Some(adapter) = adapter {
                return Self::adapter(adapter);
            }
            let run = newest_run(Path::new("."))?;
            say(&format!("no --model: the newest run here is `{}`", run.display()));
            return Self::choose(Some(&run.join("final").display().to_string()), None);
        };
        let folder = Path::new(model);
        if folder.join("adapter_config.json").is_file() && !folder.join("config.json").is_file() {
            return Self::adapter(folder);
        }
        let checkpoint = adapter.unwrap_or(folder);
        Ok(Self {
            model: model.to_owned(),
            adapter: adapter.map(Path::to_owned),
            training: training_run(checkpoint),
            name: name_of(checkpoint),
        })
    }

    /// An adapter says itself what it was made for.
    fn adapter(folder: &Path) -> Result<Self> {
        let path = folder.join("adapter_config.json");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let config: Value = serde_json::from_str(&text).with_context(|| format!("`{}` is damaged", path.display()))?;
        let Some(base) = config["base_model_name_or_path"].as_str().filter(|base| !base.is_empty()) else {
            bail!("`{}` does not name its base model: give it with `--model`, and the folder with `--adapter`", path.display())
        };
        Ok(Self { model: base.to_owned(), adapter: Some(folder.to_owned()), training: training_run(folder), name: name_of(folder) })
    }

    /// Where a run of `benches` goes unless the user says otherwise: `evals/NAME/BENCH`.
    pub fn default_out(&self, benches: &[String]) -> PathBuf {
        let plain: String =
            self.name.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '-' }).collect();
        Path::new("evals").join(plain.trim_matches(['.', '-'])).join(benches.join("+"))
    }

    /// What the training run's own files say of it, and the prompts that it was trained on. Where they cannot be had that is said, and no more is
    /// known than without a run.
    pub fn trained_on(&self) -> Option<(TrainingFacts, Vec<TrainingPrompt>)> {
        let folder = self.training.as_deref()?;
        read_training(folder)
            .map_err(|error| say(&format!("note: what `{}` was trained on is not known: {error:#}", folder.display())))
            .ok()
    }
}

fn read_training(folder: &Path) -> Result<(TrainingFacts, Vec<TrainingPrompt>)> {
    let config = config::load(&folder.join("config.toml").display().to_string(), &[])?;
    let rows = data::load(&hub::resolve_data(&config.data)?, &config.data)?;
    let mut facts = TrainingFacts { folder: Some(folder.to_owned()), dominant: None, targets: Vec::new() };
    let mut prompts = Vec::new();
    for row in &rows {
        facts.dominant = facts.dominant.or_else(|| row.dominant.as_ref().map(|pair| pair.lang.clone()));
        if !facts.targets.contains(&row.target.lang) {
            facts.targets.push(row.target.lang.clone());
        }
        for pair in row.pairs() {
            let text: Vec<&str> = pair.prompt.iter().map(|turn| turn.content.as_str()).collect();
            prompts.push(TrainingPrompt { id: row.id.clone(), text: text.join("\n") });
        }
    }
    Ok((facts, prompts))
}

/// The folder of the training run that a model folder lies in.
fn training_run(checkpoint: &Path) -> Option<PathBuf> {
    let parent = checkpoint.parent()?;
    // `final`, named from within the run's folder, has an empty parent.
    let run = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    is_run(run).then(|| run.to_owned())
}

fn is_run(folder: &Path) -> bool {
    folder.join("config.toml").is_file() && folder.join("metrics.jsonl").is_file()
}

/// `first` of `runs/first/final`, `first/checkpoint-00000100` of a checkpoint, the last part of any other.
fn name_of(checkpoint: &Path) -> String {
    let last = |path: &Path| {
        let absolute = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        absolute.file_name().map(|name| name.to_string_lossy().into_owned())
    };
    let own = last(checkpoint).unwrap_or_else(|| checkpoint.display().to_string());
    match training_run(checkpoint).as_deref().and_then(last) {
        Some(run) if own == "final" => run,
        Some(run) => format!("{run}/{own}"),
        None => own,
    }
}

/// The folder of the run below `root` that finished last, an ablation's runs aside.
fn newest_run(root: &Path) -> Result<PathBuf> {
    let mut newest: Option<(SystemTime, PathBuf)> = None;
    let mut folders = vec![(root.to_owned(), 0)];
    let mut compared = None;
    while let Some((folder, depth)) = folders.pop() {
        // Of an ablation no run is meant more than another.
        if folder.join(ABLATION).is_file() {
            compared = Some(folder);
            continue;
        }
        let finished = fs::metadata(folder.join("summary.json")).and_then(|summary| summary.modified());
        if let (true, true, Ok(finished)) = (is_run(&folder), folder.join("final").is_dir(), finished) {
            if newest.as_ref().is_none_or(|(time, _)| *time < finished) {
                newest = Some((finished, folder.strip_prefix(root).unwrap_or(&folder).to_owned()));
            }
            continue;
        }
        if depth < DEPTH {
            let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
            let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            folders
                .extend(below.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.')).map(|entry| (entry.path(), depth + 1)));
        }
    }
    newest.map(|(_, folder)| folder).with_context(|| {
        let ablation = compared.map_or(String::new(), |folder| {
            format!("; those of the ablation in `{}` are named one by one", folder.strip_prefix(root).unwrap_or(&folder).display())
        });
        format!(
            "no --model was given, and no finished run of `mpo train` lies below this folder{ablation}\n\
             hint: name a model (`--model org/name`, a folder, or `builtin:tiny` to try it)"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(root: &Path, name: &str) -> PathBuf {
        let folder = root.join(name);
        fs::create_dir_all(folder.join("final")).unwrap();
        for file in ["config.toml", "metrics.jsonl", "summary.json"] {
            fs::write(folder.join(file), "").unwrap();
        }
        folder
    }

    #[test]
    fn the_run_that_finished_last_is_found() {
        let root = tempfile::tempdir().unwrap();
        assert!(newest_run(root.path()).unwrap_err().to_string().contains("hint: name a model"));
        let late = run(root.path(), "runs/late");
        run(root.path(), "runs/deeper/early");
        let hour = std::time::Duration::from_secs(3600);
        let summary = fs::File::open(late.join("summary.json")).unwrap();
        summary.set_modified(SystemTime::now() + hour).unwrap();
        fs::create_dir_all(root.path().join("runs/unfinished/final")).unwrap();
        let compared = run(root.path(), "runs/ablation/mpo-hidden");
        fs::File::open(compared.join("summary.json")).unwrap().set_modified(SystemTime::now() + 2 * hour).unwrap();
        assert_eq!(newest_run(root.path()).unwrap(), Path::new("runs/ablation/mpo-hidden"), "a run of that name is one");
        fs::write(root.path().join("runs/ablation").join(ABLATION), "[]").unwrap();
        assert_eq!(newest_run(root.path()).unwrap(), Path::new("runs/late"));
    }

    #[test]
    fn a_checkpoint_is_named_after_its_run() {
        let root = tempfile::tempdir().unwrap();
        let run = run(root.path(), "runs/first");
        assert_eq!(name_of(&run.join("final")), "first");
        assert_eq!(name_of(&run.join("checkpoint-00000002")), "first/checkpoint-00000002");
        assert_eq!(name_of(Path::new("org/name")), "name");
        assert_eq!(training_run(&run.join("final")), Some(run));
        assert_eq!(training_run(Path::new("org/name")), None);
    }

    #[test]
    fn an_adapter_is_tested_on_its_base() {
        let root = tempfile::tempdir().unwrap();
        let folder = run(root.path(), "lora").join("final");
        fs::write(folder.join("adapter_config.json"), r#"{"base_model_name_or_path": "builtin:tiny"}"#).unwrap();
        let tested = Tested::choose(folder.to_str(), None).unwrap();
        assert_eq!((tested.model.as_str(), tested.adapter.as_deref(), tested.name.as_str()), ("builtin:tiny", Some(&*folder), "lora"));
        assert_eq!(tested.default_out(&["multijail".into()]), Path::new("evals/lora/multijail"));
        assert_eq!(tested.default_out(&["mgsm".into(), "mmmlu".into()]), Path::new("evals/lora/mgsm+mmmlu"));
        fs::write(folder.join("adapter_config.json"), "{}").unwrap();
        assert!(Tested::choose(folder.to_str(), None).unwrap_err().to_string().contains("--adapter"));
    }
}
