//! Parallel preference pairs: reading, checking, rendering, encoding, packing and loading them in a seeded, resumable order.
//!
//! `load` turns a local file into rows, whatever its format: `rows` takes the file apart, `parallel` and `llamafactory` know one
//! format each, `language` names the languages that the rows do not. `template` and `encode` turn rows into tokens, `truncate` keeps them
//! within `max_tokens`. `check` reports what is wrong with the rows.

pub mod batch;
pub mod check;
pub mod encode;
mod language;
mod llamafactory;
pub mod loader;
pub mod pair;
mod parallel;
mod rows;
pub mod template;
pub mod tokenizer_config;
mod truncate;

use crate::config::{DataConfig, DataFormat};
use anyhow::{Context, Result, bail};
use pair::{ParallelPair, Role};
use rayon::prelude::*;
use rows::{Fields, RawRow};
use std::collections::BTreeMap;
use std::path::Path;

/// A row that could not be read, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoiltRow {
    /// Index of the row in the file, from 0: its id, as far as anyone can tell.
    pub index: usize,
    /// Line of the file on which the row starts, from 1.
    pub line: usize,
    pub fault: RowFault,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowFault {
    /// Not JSON, or not the format's keys: the message names the key.
    Malformed(String),
    /// A response without text.
    Empty(String),
}

impl std::fmt::Display for RowFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (RowFault::Malformed(message) | RowFault::Empty(message)) = self;
        f.write_str(message)
    }
}

/// What a data file holds: rows in file order, and those that could not be read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Dataset {
    pub pairs: Vec<ParallelPair>,
    pub spoilt: Vec<SpoiltRow>,
}

/// Reads the rows of a local file, keeps `languages` and the first `limit` of them. A single spoilt row is an error: training data
/// must not shrink unnoticed.
pub fn load(path: &Path, config: &DataConfig) -> Result<Vec<ParallelPair>> {
    let dataset = read(path, config)?;
    if let Some(row) = dataset.spoilt.first() {
        let others = match dataset.spoilt.len() - 1 {
            0 => String::new(),
            n => format!(" ({n} more such rows: `mpo check` lists them all)"),
        };
        bail!("{}:{}: row {}: {}{others}", path.display(), row.line, row.index, row.fault);
    }
    Ok(dataset.pairs)
}

/// As `load`, but sets spoilt rows aside instead of failing at the first: for `mpo check`.
pub fn read(path: &Path, config: &DataConfig) -> Result<Dataset> {
    let raw = rows::read(path)?;
    let format = resolve_format(config.format, &raw).with_context(|| format!("in `{}`", path.display()))?;
    let parsed: Vec<_> = raw.into_par_iter().enumerate().map(|(index, row)| parse(format, index, row)).collect();
    let mut dataset = Dataset::default();
    for row in parsed {
        match row {
            Ok(pair) => dataset.pairs.push(pair),
            Err(spoilt) => dataset.spoilt.push(spoilt),
        }
    }
    if let Some(languages) = &config.languages {
        keep_languages(&mut dataset.pairs, languages).with_context(|| format!("in `{}`", path.display()))?;
    }
    dataset.pairs.truncate(config.limit.unwrap_or(usize::MAX));
    if dataset.pairs.is_empty() && dataset.spoilt.is_empty() {
        bail!("no rows are left of `{}` (`data.limit` is {:?})", path.display(), config.limit);
    }
    Ok(dataset)
}

fn resolve_format(format: DataFormat, rows: &[RawRow]) -> Result<DataFormat> {
    if format != DataFormat::Auto {
        return Ok(format);
    }
    let Some(row) = rows.iter().find_map(|row| row.value.as_ref().ok()) else {
        let problem = rows.iter().find_map(|row| row.value.as_ref().err());
        bail!("no row is valid JSON: {}", problem.map_or("", String::as_str));
    };
    match row {
        row if parallel::recognises(row) => Ok(DataFormat::Parallel),
        row if llamafactory::recognises(row) => Ok(DataFormat::Llamafactory),
        row => {
            let keys: Vec<_> = row.as_object().into_iter().flatten().map(|(key, _)| format!("`{key}`")).collect();
            bail!(
                "unknown format: the first row has the keys [{}], where `parallel` has `dominant` and `target`, \
                 and `llamafactory` has `source_conversations` and `target_conversations`",
                keys.join(", ")
            )
        }
    }
}

fn parse(format: DataFormat, index: usize, row: RawRow) -> std::result::Result<ParallelPair, SpoiltRow> {
    let spoilt = |fault| SpoiltRow { index, line: row.line, fault };
    let value = row.value.as_ref().map_err(|error| spoilt(RowFault::Malformed(format!("not valid JSON: {error}"))))?;
    let pair = Fields::of_row(value).and_then(|fields| match format {
        DataFormat::Llamafactory => llamafactory::pair(&fields, index),
        DataFormat::Parallel | DataFormat::Auto => parallel::pair(&fields, index),
    });
    let mut pair = pair.map_err(|error| spoilt(RowFault::Malformed(format!("{error:#}"))))?;
    for (side, preference) in [("dominant", &pair.dominant), ("target", &pair.target)] {
        if let Some(which) = rows::empty_response(preference) {
            return Err(spoilt(RowFault::Empty(format!("the {which} response of the {side} pair is empty"))));
        }
        if preference.prompt.last().is_none_or(|turn| turn.role != Role::User) {
            return Err(spoilt(RowFault::Malformed(format!("the {side} prompt must end with a user turn"))));
        }
    }
    language::fill(&mut pair);
    Ok(pair)
}

fn keep_languages(pairs: &mut Vec<ParallelPair>, languages: &[String]) -> Result<()> {
    let mut present: BTreeMap<&str, usize> = BTreeMap::new();
    for pair in pairs.iter() {
        *present.entry(&pair.target.lang).or_default() += 1;
    }
    let unknown: Vec<_> = languages.iter().filter(|lang| !present.contains_key(lang.as_str())).map(|lang| format!("`{lang}`")).collect();
    if !unknown.is_empty() {
        let present: Vec<_> = present.iter().map(|(lang, n)| format!("`{lang}` ({n} rows)")).collect();
        bail!("`data.languages` asks for {}, but the target languages are {}", unknown.join(", "), present.join(", "));
    }
    pairs.retain(|pair| languages.contains(&pair.target.lang));
    Ok(())
}
