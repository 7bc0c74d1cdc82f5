//! `checkpoint.best`: which checkpoint did best on the held-out rows.
//!
//! Held-out rows are measured every `eval.every_steps` steps and after the last one. A checkpoint whose number is better than all before it is
//! saved and stays, whatever `checkpoint.keep` says, until a better one comes; a tie leaves the earlier one in place. What is known of the best
//! is part of every checkpoint, so a resumed run ends with the same one. Step 0 does not compete: its weights are those that the run came from.

use super::folder;
use super::measure::Measurement;
use super::metrics::add_measurement;
use crate::config::{BestIs, CheckpointConfig, ConfigError};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// What the name of a held-out number begins with in `metrics.jsonl`.
pub const EVAL: &str = "eval_";

/// The best measurement of a run so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// `checkpoint.best`, a key of `metrics.jsonl`.
    pub metric: String,
    /// Steps taken when it was measured.
    pub step: usize,
    pub value: f64,
}

/// How the best is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Contest {
    metric: String,
    best_is: BestIs,
}

impl Contest {
    /// `None` where the configuration asks for no best checkpoint. `start` is what was measured on the held-out rows before the first step.
    ///
    /// # Errors
    /// A [`ConfigError`] with the names of all held-out numbers, where there is none of the name that is asked for.
    pub fn new(config: &CheckpointConfig, start: Option<&Measurement>) -> Result<Option<Self>> {
        let Some(metric) = config.best.clone() else { return Ok(None) };
        // The configuration's rules have seen to both.
        let best_is = config.best_is().context("`checkpoint.best_is` is not set")?;
        let measured = numbers(start.context("`checkpoint.best` needs held-out rows")?);
        if !measured.contains_key(&metric) {
            let names: Vec<String> = measured.keys().map(|name| format!("`{name}`")).collect();
            let message = format!("`checkpoint.best` is \"{metric}\", which is not measured; it can be one of {}", names.join(", "));
            return Err(ConfigError::with_data(message).into());
        }
        Ok(Some(Self { metric, best_is }))
    }

    /// Whether the weights after `step` steps did better on the held-out rows than `best`, which then becomes them. What is not a finite
    /// number is never better.
    pub fn judge(&self, best: &mut Option<Best>, step: usize, held_out: &Measurement) -> bool {
        let value = numbers(held_out).get(&self.metric).and_then(Value::as_f64);
        let Some(value) = value.filter(|value| value.is_finite() && step > 0) else { return false };
        let is_better = best.as_ref().is_none_or(|best| match self.best_is {
            BestIs::Lower => value < best.value,
            BestIs::Higher => value > best.value,
        });
        if is_better {
            *best = Some(Best { metric: self.metric.clone(), step, value });
        }
        is_better
    }
}

/// The held-out numbers under their names in `metrics.jsonl`.
fn numbers(held_out: &Measurement) -> Map<String, Value> {
    let mut numbers = Map::new();
    add_measurement(&mut numbers, EVAL, held_out);
    numbers
}

/// Writes `OUT/best`: the model of `checkpoint`, without what only training needs. Where the file system can, the two share their files.
pub fn publish(run: &Path, checkpoint: &Path) -> Result<PathBuf> {
    let dir = run.join("best");
    let entries = fs::read_dir(checkpoint).with_context(|| format!("cannot read the folder `{}`", checkpoint.display()))?;
    let files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    folder::publish(&dir, |folder| {
        for file in files.iter().filter(|file| file.is_file()) {
            let name =
                file.file_name().and_then(|name| name.to_str()).with_context(|| format!("`{}` has no usable name", file.display()))?;
            if fs::hard_link(file, folder.dir().join(name)).is_err() {
                folder.copy(name, File::open(file).with_context(|| format!("cannot read `{}`", file.display()))?)?;
            }
        }
        Ok(())
    })?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::measure::{Losses, RowMeasure};

    fn measured(loss: f64, gap: f64) -> Measurement {
        let row = RowMeasure { rejected_per_token: Some(-2.0), ..RowMeasure::with_gap("sw", gap, 1.0) };
        Measurement::new(Losses { loss, objective: loss, retention: 0.0 }, &[row])
    }

    fn contest(best: &str, best_is: Option<BestIs>) -> Result<Option<Contest>> {
        let config = CheckpointConfig { best: Some(best.into()), best_is, ..CheckpointConfig::default() };
        Contest::new(&config, Some(&measured(1.0, 0.0)))
    }

    #[test]
    fn the_first_of_the_best_is_kept() {
        let contest = contest("eval_loss", None).unwrap().unwrap();
        let mut best = None;
        let losses = [(0, 0.1), (5, 0.9), (10, f64::NAN), (15, 0.7), (20, 0.7), (25, 0.8)];
        let better: Vec<usize> =
            losses.into_iter().filter(|&(step, loss)| contest.judge(&mut best, step, &measured(loss, 0.0))).map(|(step, _)| step).collect();
        assert_eq!(better, [5, 15], "neither step 0, nor what is no number, nor a tie");
        assert_eq!(best, Some(Best { metric: "eval_loss".into(), step: 15, value: 0.7 }));
    }

    #[test]
    fn any_held_out_number_can_decide() {
        let contest = contest("eval_reward_gap_target/sw", Some(BestIs::Higher)).unwrap().unwrap();
        let mut best = None;
        assert!(contest.judge(&mut best, 1, &measured(1.0, 0.5)) && contest.judge(&mut best, 2, &measured(9.0, 0.6)));
        assert!(!contest.judge(&mut best, 3, &measured(0.0, 0.55)));
        assert_eq!(best.unwrap().step, 2);
    }

    #[test]
    fn a_number_that_is_not_measured_is_refused_with_those_that_are() {
        let error = contest("eval_los", Some(BestIs::Lower)).unwrap_err();
        assert!(error.is::<ConfigError>());
        let error = error.to_string();
        assert!(
            error.contains("\"eval_los\"") && error.contains("`eval_loss`") && error.contains("`eval_reward_gap_target/sw`"),
            "{error}"
        );
    }

    #[test]
    fn the_best_model_is_the_checkpoint_s_without_the_trainer() {
        let run = tempfile::tempdir().unwrap();
        let checkpoint = run.path().join("checkpoint-000003");
        fs::create_dir_all(checkpoint.join("trainer")).unwrap();
        fs::write(checkpoint.join("model.safetensors"), "weights").unwrap();
        fs::write(checkpoint.join("trainer/state.json"), "{}").unwrap();
        let dir = publish(run.path(), &checkpoint).unwrap();
        fs::remove_dir_all(&checkpoint).unwrap();
        let names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["model.safetensors"]);
        assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), b"weights");
    }
}
