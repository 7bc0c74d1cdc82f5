//! From TOML text, command-line arguments and `--set a.b=c` to a [`RunConfig`], or to the list of everything that is wrong.
//!
//! What `--set` says wins over the file: it replaces a key's value, the other member of an exclusive pair, what the file said about a
//! replaced path (`data.sha256`) or loss (`objective.beta`), and the file's keys that only a replaced variant read (`retention.pooling` under
//! `kind=none`).

use super::document::{Assignment, read_override, read_text};
use super::keys;
use super::problems::{ConfigError, MOST_SHOWN, Place, Problem};
use super::rules::{self, DESCRIBED_BY, EXCLUSIVE, Purpose, without_effect};
use super::{ObjectiveConfig, ObjectiveKind, RunConfig, paths, recipes};
use crate::escape::one_line;
use crate::secret::shown;
use anyhow::{Context, Result};
use toml::{Table, Value};

/// A command-line argument that stands for a key, such as `--model M` for `model.path`.
#[derive(Debug, Clone, Copy)]
pub struct Argument<'a> {
    /// As the user types it, for messages: `--model`.
    pub flag: &'a str,
    /// `section.key`.
    pub key: &'a str,
    /// A string, whatever it looks like; `None` where the user left the argument out.
    pub value: Option<&'a str>,
}

/// The configuration of a training run, from a file or a built-in recipe (`llama31.toml`) and overrides (`train.epochs=1`). Relative paths
/// start from the current folder and become absolute.
///
/// # Errors
/// [`ConfigError`] with every problem; an unreadable file.
pub fn load(source: &str, overrides: &[String]) -> Result<RunConfig> {
    let recipe = recipes::read(source)?;
    resolve(&recipe.text, &recipe.origin, &[], overrides, Purpose::Train)
}

/// As [`load`], from text; `origin` is what problems call it.
///
/// # Errors
/// [`ConfigError`] with every problem.
pub fn parse(text: &str, origin: &str, overrides: &[String]) -> Result<RunConfig> {
    resolve(text, origin, &[], overrides, Purpose::Train)
}

/// The settings of a command that scores and does not train: the length of training may be absent, and so may the file. `arguments`
/// replace the file's values as `--set` does, and `--set` replaces theirs.
///
/// # Errors
/// [`ConfigError`] with every problem; an unreadable file.
pub fn load_for_scoring(source: Option<&str>, arguments: &[Argument<'_>], overrides: &[String]) -> Result<RunConfig> {
    let (text, origin) = match source.map(recipes::read).transpose()? {
        Some(recipe) => (recipe.text, recipe.origin),
        None => (String::new(), "command line".to_string()),
    };
    resolve(&text, &origin, arguments, overrides, Purpose::Score)
}

impl RunConfig {
    /// The configuration as TOML that resolves to itself: every key that is read, with its value; none that is not.
    ///
    /// # Errors
    /// A value that TOML cannot hold: a path that is not UTF-8, a seed above 2^63 - 1.
    pub fn to_toml(&self) -> Result<String> {
        let mut table = self.to_table()?;
        for unread in without_effect(self) {
            let Some((section, key)) = unread.key.split_once('.') else { continue };
            if let Some(Value::Table(keys)) = table.get_mut(section) {
                keys.remove(key);
            }
        }
        table.retain(|_, section| section.as_table().is_none_or(|keys| !keys.is_empty()));
        let version = env!("CARGO_PKG_VERSION");
        let mut text = format!("# Resolved by mpo {version}: every value in effect. Again: mpo train --config THIS --set output.dir=NEW\n");
        for (section, keys) in &table {
            text += &format!("\n[{section}]\n");
            for (key, value) in keys.as_table().into_iter().flatten() {
                text += &format!("{key} = {}\n", show(&without_secrets(value)));
            }
        }
        Ok(text)
    }

    /// Section by section, absent options left out.
    pub(crate) fn to_table(&self) -> Result<Table> {
        Table::try_from(self).context("the configuration cannot be written as TOML")
    }
}

/// Addresses without what lets somebody in.
fn without_secrets(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(shown(text)),
        other => other.clone(),
    }
}

/// A value as TOML, and as a person writes it: `6e-7`, where the toml crate spells out every zero.
pub(crate) fn show(value: &Value) -> String {
    match value {
        Value::Float(number) if number.is_finite() => format!("{number:?}"),
        other => other.to_string(),
    }
}

fn resolve(text: &str, origin: &str, arguments: &[Argument<'_>], overrides: &[String], purpose: Purpose) -> Result<RunConfig> {
    let file = read_text(text, origin).map_err(ConfigError::new)?;
    let mut draft = Draft { origin, set: Vec::new(), problems: Vec::new(), in_doubt: Vec::new() };
    for assignment in file {
        draft.admit(assignment, Draft::assign);
    }
    let typed = arguments.iter().enumerate().filter_map(|(index, argument)| {
        let value = argument.value?;
        let place = Place::Argument { index, typed: format!("{} {value}", argument.flag) };
        Some(Ok(Assignment { key: argument.key.into(), value: Value::String(value.into()), place }))
    });
    let overrides = overrides.iter().enumerate().map(|(index, typed)| read_override(typed, arguments.len() + index));
    for assignment in typed.chain(overrides) {
        match assignment {
            Ok(assignment) => draft.admit(assignment, Draft::replace),
            Err(problem) => draft.problems.push(problem),
        }
    }
    let mut config = draft.finish(purpose)?;
    paths::make_absolute(&mut config)?;
    Ok(config)
}

/// The values set so far, and what is wrong so far.
struct Draft<'a> {
    origin: &'a str,
    set: Vec<Assignment>,
    problems: Vec<Problem>,
    /// Keys whose value is not known because of a problem already noted: no second problem is made of them.
    in_doubt: Vec<String>,
}

impl Draft<'_> {
    /// Passes a known key with a value of its type on to `then`; notes a problem otherwise.
    fn admit(&mut self, assignment: Assignment, then: fn(&mut Self, Assignment)) {
        let Assignment { key, value, place } = &assignment;
        if !keys::is_known(key) {
            // A file with hundreds of them is no configuration: what each of them may have meant is not looked for.
            let is_looked_for = self.problems.len() < MOST_SHOWN;
            let (message, meant) = if is_looked_for { keys::unknown(key) } else { (format!("unknown key `{}`", one_line(key, 100)), None) };
            self.in_doubt.extend(meant);
            self.problems.push(Problem { place: place.clone(), message });
        } else if let Some(message) = keys::mismatch(key, value) {
            self.in_doubt.push(key.clone());
            self.problems.push(Problem { place: place.clone(), message });
        } else {
            then(self, assignment);
        }
    }

    fn assign(&mut self, assignment: Assignment) {
        self.set.push(assignment);
    }

    /// Sets a key from the command line, with all that its new value replaces.
    fn replace(&mut self, assignment: Assignment) {
        let key = assignment.key.as_str();
        let excluded = EXCLUSIVE.iter().filter(|pair| pair.contains(&key)).flatten();
        self.set.retain(|earlier| !excluded.clone().any(|excluded| earlier.key == *excluded));
        let is_the_same = self.find(key).is_some_and(|earlier| earlier.value == assignment.value);
        let described = DESCRIBED_BY.iter().filter(|(chooser, _)| *chooser == key && !is_the_same).flat_map(|(_, keys)| *keys);
        self.set.retain(|earlier| {
            earlier.key != key && !(is_from_file(earlier) && described.clone().any(|described| earlier.key == *described))
        });
        self.set.push(assignment);
    }

    fn finish(mut self, purpose: Purpose) -> Result<RunConfig> {
        let mut config = self.build()?;
        if self.settle_unread(&config) {
            config = self.build()?;
        }
        for pair in EXCLUSIVE {
            if let [Some(_), Some(second)] = pair.map(|key| self.find(key)) {
                let message = format!("`{}` and `{}` are both set: keep one of them", pair[0], pair[1]);
                let place = second.place.clone();
                self.problems.push(Problem { place, message });
            }
        }
        for finding in rules::check(&config, purpose) {
            if !finding.keys.iter().any(|key| self.in_doubt.iter().any(|doubt| doubt == key)) {
                let place = finding.keys.iter().find_map(|key| self.find(key)).map(|assignment| assignment.place.clone());
                let place = place.unwrap_or(Place::Nowhere { origin: self.origin.into() });
                self.problems.push(Problem { place, message: finding.message });
            }
        }
        if self.problems.is_empty() { Ok(config) } else { Err(ConfigError::new(self.problems).into()) }
    }

    /// Keys that are set and that nothing reads: dropped where the file set them and the command line un-chose their variant, a problem
    /// otherwise. Returns whether any was dropped.
    fn settle_unread(&mut self, config: &RunConfig) -> bool {
        let n_before = self.set.len();
        for unread in without_effect(config) {
            let Some(index) = self.set.iter().position(|assignment| assignment.key == unread.key) else { continue };
            let was_unchosen = self.find(unread.chooser).is_some_and(|chooser| !is_from_file(chooser));
            if is_from_file(&self.set[index]) && was_unchosen {
                self.set.remove(index);
            } else if !self.in_doubt.iter().any(|doubt| doubt == unread.chooser) {
                let message = format!("`{}` has no effect: {}", unread.key, unread.why);
                self.problems.push(Problem { place: self.set[index].place.clone(), message });
            }
        }
        self.set.len() < n_before
    }

    /// The tree with every value set so far, and the defaults that depend on others.
    fn build(&self) -> Result<RunConfig> {
        let kind = self.find("objective.kind").and_then(|kind| kind.value.clone().try_into::<ObjectiveKind>().ok());
        let defaults = kind.map_or_else(ObjectiveConfig::default, ObjectiveConfig::of);
        let mut table = Table::from_iter([("objective".to_owned(), Value::try_from(defaults)?)]);
        for Assignment { key, value, .. } in &self.set {
            let (section, leaf) = key.split_once('.').context("a known key has a section")?;
            let keys = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            keys.as_table_mut().context("a section is a table")?.insert(leaf.into(), value.clone());
        }
        let mut config: RunConfig = table.try_into().context("each value has the type of its key")?;
        if self.find("retention.kind").is_none() {
            config.retention.kind = config.objective.kind.default_retention();
        }
        config.adapter.settle();
        Ok(config)
    }

    fn find(&self, key: &str) -> Option<&Assignment> {
        self.set.iter().find(|assignment| assignment.key == key)
    }
}

fn is_from_file(assignment: &Assignment) -> bool {
    matches!(assignment.place, Place::Line { .. })
}
