//! Parallel preference pairs: reading, checking, rendering, encoding, packing and loading them in a seeded, resumable order.
//!
//! `load` turns a local file into rows, whatever its format: `pieces` reads the file bit by bit, `rows` takes a row apart, `parallel` and
//! `llamafactory` know one format each, `language` names the languages that the rows do not. `template` and `encode` turn rows into tokens,
//! `truncate` keeps them within `max_tokens`; `encode::Encoder::encode_file` goes from file to tokens without ever holding all texts. `check`
//! reports what is wrong with the rows.

pub mod batch;
pub mod check;
pub mod encode;
mod language;
mod llamafactory;
pub mod loader;
pub mod pair;
mod parallel;
mod pieces;
mod rows;
pub mod template;
pub mod tokenizer_config;
mod truncate;

use crate::config::{DataConfig, DataFormat};
use crate::progress::Progress;
use anyhow::{Context, Result, bail};
use language::Languages;
use pair::{ParallelPair, Role};
pub use pieces::PIECE_BYTES;
use pieces::{RawRow, RowReader};
use rayon::prelude::*;
use rows::Fields;
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
    refuse_spoilt(path, &dataset.spoilt)?;
    Ok(dataset.pairs)
}

/// As `load`, but sets spoilt rows aside instead of failing at the first: for `mpo check`.
pub fn read(path: &Path, config: &DataConfig) -> Result<Dataset> {
    let mut pairs = Vec::new();
    let spoilt = read_pieces(path, config, "reading", |piece| pairs.extend(piece))?;
    Ok(Dataset { pairs, spoilt })
}

fn refuse_spoilt(path: &Path, spoilt: &[SpoiltRow]) -> Result<()> {
    let Some(row) = spoilt.first() else { return Ok(()) };
    let others = match spoilt.len() - 1 {
        0 => String::new(),
        n => format!(" ({n} more such rows: `mpo check` lists them all)"),
    };
    bail!("{}:{}: row {}: {}{others}", path.display(), row.line, row.index, row.fault)
}

/// Hands the rows that are kept to `each`, those of [`PIECE_BYTES`] of the file at a time, in order; returns the rows that cannot be read.
/// `what` is being done, for the person who waits.
fn read_pieces(path: &Path, config: &DataConfig, what: &'static str, mut each: impl FnMut(Vec<ParallelPair>)) -> Result<Vec<SpoiltRow>> {
    let mut reader = RowReader::open(path)?;
    let progress = Progress::new(what, reader.n_bytes());
    let mut rows = Rows::new(config);
    loop {
        let start = reader.position();
        let piece = reader.next_piece()?;
        if piece.is_empty() {
            break;
        }
        let pairs = rows.take(piece).with_context(|| format!("in `{}`", path.display()))?;
        if !pairs.is_empty() {
            each(pairs);
        }
        progress.advance(reader.position() - start);
    }
    rows.finish().with_context(|| format!("in `{}`", path.display()))?;
    if rows.n_kept == 0 && rows.spoilt.is_empty() {
        bail!("no rows are left of `{}` (`data.limit` is {:?})", path.display(), config.limit);
    }
    Ok(rows.spoilt)
}

/// From the rows of a file, piece by piece, to the pairs that the configuration asks for.
struct Rows<'a> {
    config: &'a DataConfig,
    /// `None` until a row was met that tells.
    format: Option<DataFormat>,
    /// What is wrong with the first row that is not JSON, for the case that none is.
    first_problem: Option<String>,
    languages: Languages,
    /// Rows of each target language, where `data.languages` chooses among them.
    present: BTreeMap<String, usize>,
    n_rows: usize,
    n_kept: usize,
    spoilt: Vec<SpoiltRow>,
}

impl<'a> Rows<'a> {
    fn new(config: &'a DataConfig) -> Self {
        Self {
            config,
            format: (config.format != DataFormat::Auto).then_some(config.format),
            first_problem: None,
            languages: Languages::default(),
            present: BTreeMap::new(),
            n_rows: 0,
            n_kept: 0,
            spoilt: Vec::new(),
        }
    }

    fn take(&mut self, piece: Vec<RawRow>) -> Result<Vec<ParallelPair>> {
        if self.format.is_none() {
            self.recognise(&piece)?;
        }
        let (format, n_before) = (self.format, self.n_rows);
        self.n_rows += piece.len();
        let parsed: Vec<_> = piece.into_par_iter().enumerate().map(|(i, row)| parse(format, n_before + i, row)).collect();
        let mut pairs = Vec::with_capacity(parsed.len());
        for row in parsed {
            match row {
                Ok(pair) => pairs.push(pair),
                Err(spoilt) => self.spoilt.push(spoilt),
            }
        }
        let n_wanted = self.config.limit.unwrap_or(usize::MAX) - self.n_kept;
        if self.config.languages.is_none() {
            pairs.truncate(n_wanted);
        }
        pairs.par_iter_mut().for_each(|pair| self.languages.fill(pair));
        if let Some(languages) = &self.config.languages {
            for pair in &pairs {
                *self.present.entry(pair.target.lang.clone()).or_default() += 1;
            }
            pairs.retain(|pair| languages.contains(&pair.target.lang));
            pairs.truncate(n_wanted);
        }
        self.n_kept += pairs.len();
        Ok(pairs)
    }

    /// The format is that of the first row that is JSON.
    fn recognise(&mut self, rows: &[RawRow]) -> Result<()> {
        self.format = match rows.iter().find_map(|row| row.value.as_ref().ok()) {
            Some(row) if parallel::recognises(row) => Some(DataFormat::Parallel),
            Some(row) if llamafactory::recognises(row) => Some(DataFormat::Llamafactory),
            Some(row) => {
                let keys: Vec<_> = row.as_object().into_iter().flatten().map(|(key, _)| format!("`{key}`")).collect();
                bail!(
                    "unknown format: the first row has the keys [{}], where `parallel` has `dominant` and `target`, \
                     and `llamafactory` has `source_conversations` and `target_conversations`",
                    keys.join(", ")
                )
            }
            None => None,
        };
        if self.first_problem.is_none() {
            self.first_problem = rows.iter().find_map(|row| row.value.as_ref().err()).cloned();
        }
        Ok(())
    }

    /// # Errors
    /// No row told the format, or a language that was asked for is not there.
    fn finish(&self) -> Result<()> {
        if self.format.is_none() {
            bail!("no row is valid JSON: {}", self.first_problem.as_deref().unwrap_or_default());
        }
        let wanted = self.config.languages.iter().flatten();
        let unknown: Vec<_> = wanted.filter(|lang| !self.present.contains_key(*lang)).map(|lang| format!("`{lang}`")).collect();
        if !unknown.is_empty() {
            let present: Vec<_> = self.present.iter().map(|(lang, n)| format!("`{lang}` ({n} rows)")).collect();
            bail!("`data.languages` asks for {}, but the target languages are {}", unknown.join(", "), present.join(", "));
        }
        Ok(())
    }
}

/// Without a format no row was JSON.
fn parse(format: Option<DataFormat>, index: usize, row: RawRow) -> std::result::Result<ParallelPair, SpoiltRow> {
    let spoilt = |fault| SpoiltRow { index, line: row.line, fault };
    let value = row.value.as_ref().map_err(|error| spoilt(RowFault::Malformed(format!("not valid JSON: {error}"))))?;
    let pair = Fields::of_row(value).and_then(|fields| match format {
        Some(DataFormat::Llamafactory) => llamafactory::pair(&fields, index),
        Some(DataFormat::Parallel | DataFormat::Auto) | None => parallel::pair(&fields, index),
    });
    let pair = pair.map_err(|error| spoilt(RowFault::Malformed(format!("{error:#}"))))?;
    for (side, preference) in [("dominant", &pair.dominant), ("target", &pair.target)] {
        if let Some(which) = rows::empty_response(preference) {
            return Err(spoilt(RowFault::Empty(format!("the {which} response of the {side} pair is empty"))));
        }
        if preference.prompt.last().is_none_or(|turn| turn.role != Role::User) {
            return Err(spoilt(RowFault::Malformed(format!("the {side} prompt must end with a user turn"))));
        }
    }
    Ok(pair)
}
