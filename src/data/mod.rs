//! Preference pairs, parallel or plain: reading, checking, rendering, encoding, packing and loading them in a seeded, resumable order.
//!
//! `load` turns local files into rows, whatever their format: `source` unpacks, `pieces` and `parquet` read a file bit by bit, `rows` takes
//! a row apart, `parallel`, `llamafactory`, `preference` and `label` know one format each, `transcript` splits dialogues, `columns` knows
//! what else a row may say, `language` names the languages that the rows do not. `sides` says which pairs of a row become rows to train on.
//! `template` and `encode` turn rows into tokens, `truncate` keeps them within `max_tokens`; `encode::Encoder::encode_files` goes from
//! files to tokens without ever holding all texts. `check` reports what is wrong with the rows.

pub mod batch;
pub mod check;
pub mod columns;
mod distinct;
pub mod encode;
mod label;
pub mod language;
mod llamafactory;
pub mod loader;
pub mod mismatch;
pub mod pair;
mod parallel;
mod parquet;
mod pieces;
mod preference;
mod rows;
mod sides;
mod source;
pub mod template;
pub mod tokenizer_config;
mod transcript;
mod truncate;

use crate::config::{DataConfig, DataFormat};
use crate::progress::Progress;
use anyhow::{Context, Result, bail};
use columns::{Columns, Unread};
use language::Languages;
use pair::{PreferenceRow, Role};
pub use pieces::PIECE_BYTES;
use pieces::{RawRow, RowReader};
use rayon::prelude::*;
use rows::Fields;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A row that could not be read, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoiltRow {
    /// Index of the row in all files, from 0: its id, as far as anyone can tell.
    pub index: usize,
    pub file: PathBuf,
    /// Line of the file on which the row starts, from 1; the row itself in a Parquet file.
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
    pub pairs: Vec<PreferenceRow>,
    pub spoilt: Vec<SpoiltRow>,
    /// What the rows say that is not read.
    pub columns: Columns,
}

/// Reads the rows of local files, one behind the other, keeps `languages` and the first `limit` of them. A single spoilt row is an error:
/// training data must not shrink unnoticed.
pub fn load(files: &[PathBuf], config: &DataConfig) -> Result<Vec<PreferenceRow>> {
    let dataset = read(files, config)?;
    refuse_spoilt(&dataset.spoilt)?;
    Ok(dataset.pairs)
}

/// As `load`, but sets spoilt rows aside instead of failing at the first: for `mpo check`.
pub fn read(files: &[PathBuf], config: &DataConfig) -> Result<Dataset> {
    let mut pairs = Vec::new();
    let Read { spoilt, columns } = read_pieces(files, config, "reading", |piece| pairs.extend(piece))?;
    Ok(Dataset { pairs, spoilt, columns })
}

/// The rows of a JSON, JSONL or Parquet file as they stand there: the line on which each starts (of Parquet the row), from 1, and its value
/// or what is wrong with its JSON. For files that hold no preferences.
pub fn raw_rows(file: &Path) -> Result<Vec<(usize, std::result::Result<serde_json::Value, String>)>> {
    let mut reader = RowReader::open(file)?;
    let mut rows = Vec::new();
    loop {
        let piece = reader.next_piece()?;
        if piece.is_empty() {
            return Ok(rows);
        }
        rows.extend(piece.into_iter().map(|row| (row.line, row.value)));
    }
}

fn refuse_spoilt(spoilt: &[SpoiltRow]) -> Result<()> {
    let Some(row) = spoilt.first() else { return Ok(()) };
    let others = match spoilt.len() - 1 {
        0 => String::new(),
        n => format!(" ({n} more such rows: `mpo check` lists them all)"),
    };
    bail!("{}:{}: row {}: {}{others}", row.file.display(), row.line, row.index, row.fault)
}

/// What was found in files besides the rows that are kept.
#[derive(Default)]
struct Read {
    /// The rows that cannot be read.
    spoilt: Vec<SpoiltRow>,
    columns: Columns,
}

/// Hands the rows that are kept to `each`, those of [`PIECE_BYTES`] of a file at a time, in order; returns what else was found.
/// `what` is being done, for the person who waits.
fn read_pieces(files: &[PathBuf], config: &DataConfig, what: &'static str, mut each: impl FnMut(Vec<PreferenceRow>)) -> Result<Read> {
    let readers = files.iter().map(|file| RowReader::open(file)).collect::<Result<Vec<_>>>()?;
    let progress = Progress::new(what, readers.iter().map(RowReader::n_bytes).sum());
    let mut rows = Rows::new(config);
    let named = || files.iter().map(|file| format!("`{}`", file.display())).collect::<Vec<_>>().join(", ");
    for (file, mut reader) in files.iter().zip(readers) {
        loop {
            let start = reader.position();
            let piece = reader.next_piece()?;
            if piece.is_empty() {
                break;
            }
            let pairs = rows.take(file, piece).with_context(|| format!("in `{}`", file.display()))?;
            if !pairs.is_empty() {
                each(pairs);
            }
            progress.advance(reader.position() - start);
        }
    }
    rows.finish().with_context(|| format!("in {}", named()))?;
    if rows.n_kept == 0 && rows.found.spoilt.is_empty() {
        bail!("no rows are left of {} (`data.limit` is {:?})", named(), config.limit);
    }
    Ok(rows.found)
}

/// From the rows of the files, piece by piece, to the pairs that the configuration asks for.
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
    found: Read,
}

impl<'a> Rows<'a> {
    fn new(config: &'a DataConfig) -> Self {
        Self {
            config,
            format: (config.format != DataFormat::Auto).then_some(config.format),
            first_problem: None,
            languages: Languages::expecting(config.languages.as_deref()),
            present: BTreeMap::new(),
            n_rows: 0,
            n_kept: 0,
            found: Read::default(),
        }
    }

    fn take(&mut self, file: &Path, piece: Vec<RawRow>) -> Result<Vec<PreferenceRow>> {
        if self.format.is_none() {
            self.recognise(&piece)?;
        }
        let (format, n_before) = (self.format, self.n_rows);
        self.n_rows += piece.len();
        let splits = self.config.transcript;
        let parsed: Vec<_> = piece.into_par_iter().enumerate().map(|(i, row)| parse(format, splits, file, n_before + i, row)).collect();
        let mut pairs = Vec::with_capacity(parsed.len());
        for row in parsed {
            match row {
                Ok((pair, unread)) => {
                    self.found.columns.add(unread, &pair.id);
                    pairs.push(pair);
                }
                Err(spoilt) => self.found.spoilt.push(spoilt),
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
        let first = rows.iter().find_map(|row| row.value.as_ref().ok()).map(Fields::of_row).transpose()?;
        self.format = match &first {
            None => None,
            Some(row) if parallel::recognises(row) => Some(DataFormat::Parallel),
            Some(row) if llamafactory::recognises(row) => Some(DataFormat::Llamafactory),
            Some(row) if preference::recognises(row) => Some(DataFormat::Preference),
            Some(row) if label::recognises(row) => Some(DataFormat::Label),
            Some(row) => bail!(
                "unknown format: the first row has the keys [{}], where `parallel` has `dominant` and `target`, `llamafactory` has \
                 `source_conversations` and `target_conversations`, `preference` has `prompt`, `chosen` and `rejected`, and `label` has \
                 `prompt`, `completion` and `label`{}",
                row.keys().join(", "),
                columns::nearest_keys(row.values())
            ),
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

/// A row, and what of it is not read. Without a format no row was JSON.
fn parse(
    format: Option<DataFormat>,
    splits_transcripts: bool,
    file: &Path,
    index: usize,
    row: RawRow,
) -> std::result::Result<(PreferenceRow, Vec<(Unread, String)>), SpoiltRow> {
    let spoilt = |fault| SpoiltRow { index, file: file.to_owned(), line: row.line, fault };
    let value = row.value.map_err(|error| spoilt(RowFault::Malformed(format!("not valid JSON: {error}"))))?;
    let malformed = |error: anyhow::Error| spoilt(RowFault::Malformed(format!("{error:#}")));
    let value = if splits_transcripts { transcript::split_row(&value).map_err(malformed)? } else { value };
    let format = format.unwrap_or(DataFormat::Parallel);
    let fields = Fields::of_row(&value).map_err(malformed)?;
    let pair = match format {
        DataFormat::Llamafactory => llamafactory::row(&fields, index),
        DataFormat::Preference => preference::row(&fields, index),
        DataFormat::Label => label::row(&fields, index),
        DataFormat::Parallel | DataFormat::Auto => parallel::row(&fields, index),
    };
    let pair = pair.map_err(malformed)?;
    let (of_target, side_of_target) = if pair.dominant.is_some() { (" of the target pair", "target ") } else { ("", "") };
    let dominant = pair.dominant.iter().map(|dominant| (" of the dominant pair", "dominant ", dominant));
    for (of_pair, side, preference) in dominant.chain([(of_target, side_of_target, &pair.target)]) {
        if let Some(which) = rows::empty_response(preference) {
            return Err(spoilt(RowFault::Empty(format!("the {which} response{of_pair} is empty"))));
        }
        if preference.prompt.last().is_none_or(|turn| turn.role != Role::User) {
            return Err(spoilt(RowFault::Malformed(format!("the {side}prompt must end with a user turn"))));
        }
        if let Some(which) = rows::marked_text(preference) {
            let message = format!("the {which}{of_pair} begins with a byte order mark (U+FEFF), which the model would read: remove it");
            return Err(spoilt(RowFault::Malformed(message)));
        }
    }
    let unread = columns::unread(format, &fields, &pair).map_err(|message| spoilt(RowFault::Malformed(message)))?;
    Ok((pair, unread))
}
