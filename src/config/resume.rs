//! What may change when a run is resumed: only what leaves every number of the finished steps as it was.

use super::RunConfig;
use anyhow::{Result, bail};
use std::fmt;

/// One key with two values.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// `section.key`.
    pub key: String,
    /// The stored run's value; `None` when it was absent.
    pub old: Option<toml::Value>,
    /// The new value; `None` when it is absent.
    pub new: Option<toml::Value>,
}

impl Change {
    /// Whether a resumed run may have this change: the key is one that may change; a path only moves (if it appeared or vanished, that would
    /// be another reference or another evaluation); and the run becomes no shorter.
    pub fn is_allowed(&self) -> bool {
        let number = |value: &Option<toml::Value>| value.as_ref().and_then(|v| v.as_float().or(v.as_integer().map(|i| i as f64)));
        may_change_on_resume(&self.key)
            && match self.key.as_str() {
                "train.max_steps" | "train.epochs" => {
                    matches!((number(&self.old), number(&self.new)), (Some(old), Some(new)) if new >= old)
                }
                "adapter.path" | "reference.path" | "eval.path" | "canary.path" => self.old.is_some() && self.new.is_some(),
                _ => true,
            }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: &Option<toml::Value>| value.as_ref().map_or("absent".to_string(), super::load::show);
        write!(f, "`{}`: {} -> {}", self.key, show(&self.old), show(&self.new))
    }
}

/// Every key whose value differs between a stored run and a new configuration, in the tree's order.
///
/// # Errors
/// A value that TOML cannot hold (see [`RunConfig::to_toml`]).
pub fn diff(old: &RunConfig, new: &RunConfig) -> Result<Vec<Change>> {
    let (old, new) = (old.to_table()?, new.to_table()?);
    let get = |table: &toml::Table, section: &str, key: &str| table.get(section)?.get(key).cloned();
    let keys = super::keys::SECTIONS.iter().flat_map(|section| section.keys.iter().map(move |key| (section.name, *key)));
    let changes =
        keys.map(|(section, key)| Change { key: format!("{section}.{key}"), old: get(&old, section, key), new: get(&new, section, key) });
    Ok(changes.filter(|change| change.old != change.new).collect())
}

/// Whether the key may differ from the stored run's: where things lie and how they are read (the rows are checked by hash), how often
/// something is saved, evaluated or reported, how many threads compute, what is kept in memory rather than computed again, and how long the
/// run is. A longer run under a decaying schedule takes the longer schedule from the next step on, so that its result is not that of a run
/// which was this long from the start.
pub fn may_change_on_resume(key: &str) -> bool {
    let location = ["model.path", "model.revision", "adapter.path", "reference.path", "reference.revision"];
    let reading = ["data.format", "data.split", "data.special_tokens", "data.transcript"];
    let data = ["data.path", "data.revision", "data.sha256", "eval.path", "canary.path", "output.dir"];
    let cadence = ["eval.every_steps", "canary.every_steps", "checkpoint.every_steps", "checkpoint.keep", "train.max_skipped_steps"];
    let means = ["hardware.threads", "train.activation_checkpointing", "optimizer.in_backward"];
    let length = ["train.max_steps", "train.epochs"];
    [&location[..], &reading, &data, &cadence, &means, &length].concat().contains(&key) || key.starts_with("signs.")
}

/// Refuses a configuration that would continue `old` as another run.
///
/// # Errors
/// Every change that is not allowed, with both values.
pub fn check_resume(old: &RunConfig, new: &RunConfig) -> Result<()> {
    let refused: Vec<String> = diff(old, new)?.iter().filter(|change| !change.is_allowed()).map(|change| format!("\n  {change}")).collect();
    if !refused.is_empty() {
        bail!(
            "the run cannot go on with another configuration; this differs (stored -> new):{}\n\
            hint: leave these as they were, or start a new run in another `output.dir`",
            refused.concat()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> RunConfig {
        let mut config = RunConfig::default();
        config.train.max_steps = Some(10);
        config
    }

    #[test]
    fn keys_that_may_change_exist() {
        let n_known = super::super::keys::SECTIONS
            .iter()
            .flat_map(|section| section.keys.iter().map(move |key| format!("{}.{key}", section.name)))
            .filter(|key| may_change_on_resume(key) && !key.starts_with("signs."))
            .count();
        assert_eq!(n_known, 25, "a key of the list is misspelt or was renamed");
    }

    #[test]
    fn a_changed_learning_rate_is_refused_with_both_values() {
        let mut new = base();
        new.optimizer.lr = 1e-3;
        new.output.dir = "elsewhere".into();
        let message = check_resume(&base(), &new).unwrap_err().to_string();
        assert!(message.contains("`optimizer.lr`: 6e-7 -> 0.001"), "{message}");
        assert!(!message.contains("output.dir`:"), "{message}");
    }

    #[test]
    fn a_run_may_become_longer_but_not_shorter() {
        let with = |steps: Option<usize>| {
            let mut new = base();
            new.train.max_steps = steps;
            check_resume(&base(), &new).is_ok()
        };
        assert!(with(Some(20)) && with(Some(10)));
        assert!(!with(Some(5)) && !with(None));
    }

    #[test]
    fn a_path_may_move_but_not_appear() {
        let mut old = base();
        let mut new = base();
        new.reference.path = Some("/a".into());
        assert!(check_resume(&old, &new).is_err());
        old.reference.path = Some("/b".into());
        assert!(check_resume(&old, &new).is_ok());
    }
}
