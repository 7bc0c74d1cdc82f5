//! Many rows to tokens, on all cores: row by row in order, each distinct dominant pair once.
//!
//! Rows share dominant pairs (6 to 1 in the released data), so half of what would be rendered and tokenised is known already. A pair is
//! recognised by a hash of its texts, and its tokens are taken from a row that has them. What comes out does not depend on the number of
//! threads, nor on where a file is cut into pieces; the error is that of the first row that has one.

use super::{Encoded, EncodedRow, Encoder, Fitted, Side};
use crate::config::{DataConfig, ObjectiveConfig, OnOverlong};
use crate::data::check::{Depth, Finding, Inspector};
use crate::data::columns::Columns;
use crate::data::pair::{PreferencePair, PreferenceRow};
use crate::data::sides::SideRows;
use crate::data::{read_pieces, refuse_spoilt};
use anyhow::{Result, bail};
use rayon::prelude::*;
use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

/// What encoding did to the rows, by row id in file order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EncodeReport {
    pub n_rows: usize,
    pub max_tokens: usize,
    /// Rows that lost tokens, and how many.
    pub cut: Vec<(String, usize)>,
    /// Rows left out, and the tokens of their longest sequence.
    pub dropped: Vec<(String, usize)>,
    /// What is wrong with rows that are trained on all the same, as `mpo check` finds it.
    pub findings: Vec<Finding>,
}

impl Encoder {
    /// All rows of some files that the configuration asks for, as `data.sides` makes rows of their pairs, and what became of those that
    /// were too long. Of the texts only those of a [piece](crate::data::PIECE_BYTES) are in memory.
    ///
    /// # Errors
    /// As [`data::load`](crate::data::load) and [`Self::encode_all`], the file's own faults first.
    pub fn encode_files(&self, files: &[PathBuf], config: &DataConfig) -> Result<(Vec<EncodedRow>, EncodeReport)> {
        self.encode_pieces(files, config, |_| ()).map(|(rows, report, _)| (rows, report))
    }

    /// As `encode_files`; the report also has what is wrong with rows that can be trained on all the same, with `objective`.
    ///
    /// # Errors
    /// As `encode_files`.
    pub fn inspect_files(
        &self,
        files: &[PathBuf],
        config: &DataConfig,
        objective: &ObjectiveConfig,
    ) -> Result<(Vec<EncodedRow>, EncodeReport)> {
        let mut inspector = Inspector::new(Some(self), Some(objective), Depth::Training);
        let (rows, report, columns) = self.encode_pieces(files, config, |pairs| inspector.look(pairs))?;
        Ok((rows, EncodeReport { findings: inspector.warnings(&columns), ..report }))
    }

    fn encode_pieces(
        &self,
        files: &[PathBuf],
        config: &DataConfig,
        mut look: impl FnMut(&[PreferenceRow]),
    ) -> Result<(Vec<EncodedRow>, EncodeReport, Columns)> {
        let (mut rows, mut sides) = (Rows::new(self), SideRows::new(config.sides));
        // A row that cannot be encoded ends the encoding and not the reading: whether the file is sound is told first.
        let mut outcome = Ok(());
        let found = read_pieces(files, config, "encoding", |pairs| {
            if outcome.is_ok() {
                look(&pairs);
                outcome = sides.of(pairs).and_then(|pairs| rows.encode(&pairs));
            }
        })?;
        refuse_spoilt(&found.spoilt)?;
        outcome?;
        let (rows, report) = rows.finish()?;
        Ok((rows, report, found.columns))
    }

    /// All rows, in order, and what became of those that were too long. With `on_overlong = "error"` one of them is an error.
    pub fn encode_all(&self, pairs: &[PreferenceRow]) -> Result<(Vec<EncodedRow>, EncodeReport)> {
        let mut rows = Rows::new(self);
        rows.encode(pairs)?;
        rows.finish()
    }

    /// Every row by itself, in order: what one row does to the template is no reason to lose the others.
    pub fn encode_each(&self, rows: &[PreferenceRow]) -> Vec<Result<Encoded>> {
        self.each(rows, &Shared::of(rows, |_| false), |_| None, Self::fitted, Encoded::of)
    }

    /// As `encode_each`, but uncut. For `mpo check`.
    pub fn tokenize_each(&self, rows: &[PreferenceRow]) -> Vec<Result<EncodedRow>> {
        let row = |id: &str, dominant, target| EncodedRow { id: id.to_owned(), dominant, target, mismatched: None };
        self.each(rows, &Shared::of(rows, |_| false), |_| None, Self::tokenize_side, row)
    }

    /// Makes both sides of every row, a dominant one that rows share or that is `known` only once, and of the two the row.
    fn each<S: Clone + Send + Sync, R: Send>(
        &self,
        rows: &[PreferenceRow],
        shared: &Shared,
        known: impl Fn(&Key) -> Option<S> + Sync,
        side: impl Fn(&Self, &str, Side, &PreferencePair) -> Result<S> + Sync,
        make: impl Fn(&str, Option<S>, S) -> R + Sync,
    ) -> Vec<Result<R>> {
        let of_dominant = |row: &PreferenceRow| row.dominant.as_ref().map(|pair| side(self, &row.id, Side::Dominant, pair));
        let firsts: Vec<_> = shared.firsts.par_iter().map(|&first| of_dominant(&rows[first])).collect();
        let ready = |n: usize| known(shared.keys[n].as_ref()?).or_else(|| firsts.get(shared.of_row[n])?.as_ref()?.as_ref().ok().cloned());
        let one = |(n, row): (usize, &PreferenceRow)| {
            // There is none where it failed. Errors name their row, so each row has its own.
            let dominant = ready(n).map(Ok).or_else(|| of_dominant(row)).transpose()?;
            Ok(make(&row.id, dominant, side(self, &row.id, Side::Target, &row.target)?))
        };
        rows.par_iter().enumerate().map(one).collect()
    }
}

/// Of a dominant pair's language and texts.
type Key = [u8; 32];

/// Which rows share their dominant pair.
struct Shared {
    /// `None` for a row without one.
    keys: Vec<Option<Key>>,
    /// The first row of each distinct pair, without those that are known already.
    firsts: Vec<usize>,
    /// For each row the place of its pair in `firsts`; of no meaning where the pair is known, or there is none.
    of_row: Vec<usize>,
}

impl Shared {
    fn of(rows: &[PreferenceRow], is_known: impl Fn(&Key) -> bool) -> Self {
        let keys: Vec<Option<Key>> = rows.par_iter().map(|row| row.dominant.as_ref().map(PreferencePair::key)).collect();
        let (mut firsts, mut places) = (Vec::new(), HashMap::new());
        let mut place = |(row, key): (usize, &Option<Key>)| match key.filter(|key| !is_known(key)) {
            None => usize::MAX,
            Some(key) => *places.entry(key).or_insert_with(|| {
                firsts.push(row);
                firsts.len() - 1
            }),
        };
        let of_row = keys.iter().enumerate().map(&mut place).collect();
        Self { keys, firsts, of_row }
    }
}

/// Rows that were encoded so far, piece by piece.
struct Rows<'a> {
    encoder: &'a Encoder,
    kept: Vec<EncodedRow>,
    /// A row of `kept` with this dominant pair, and how many tokens the pair lost.
    dominant: HashMap<Key, (usize, usize)>,
    report: EncodeReport,
}

impl<'a> Rows<'a> {
    fn new(encoder: &'a Encoder) -> Self {
        let report = EncodeReport { max_tokens: encoder.max_tokens, ..EncodeReport::default() };
        Self { encoder, kept: Vec::new(), dominant: HashMap::new(), report }
    }

    fn encode(&mut self, pairs: &[PreferenceRow]) -> Result<()> {
        let shared = Shared::of(pairs, |key| self.dominant.contains_key(key));
        let known = |key: &Key| {
            let &(row, n_lost) = self.dominant.get(key)?;
            Some(Fitted::Within { preference: self.kept[row].dominant.clone()?, n_lost })
        };
        let row =
            |id: &str, dominant: Option<Fitted>, target| (dominant.as_ref().map_or(0, Fitted::n_lost), Encoded::of(id, dominant, target));
        let encoded = self.encoder.each(pairs, &shared, known, Encoder::fitted, row);
        self.report.n_rows += pairs.len();
        for (row, key) in encoded.into_iter().zip(shared.keys) {
            let (n_lost_of_dominant, row) = row?;
            let row = match row {
                Encoded::Whole(row) => row,
                Encoded::Cut { row, n_lost } => {
                    self.report.cut.push((row.id.clone(), n_lost));
                    row
                }
                Encoded::Overlong { id, n_tokens } => {
                    self.report.dropped.push((id, n_tokens));
                    continue;
                }
            };
            if let Some(key) = key {
                self.dominant.entry(key).or_insert((self.kept.len(), n_lost_of_dominant));
            }
            self.kept.push(row);
        }
        Ok(())
    }

    fn finish(self) -> Result<(Vec<EncodedRow>, EncodeReport)> {
        let Self { encoder, kept, report, .. } = self;
        if encoder.on_overlong == OnOverlong::Error && !report.dropped.is_empty() {
            bail!(
                "{} of {} rows are longer than `data.max_tokens` = {}: {}\nraise it, or let `data.on_overlong` be `truncate` or `drop`",
                report.dropped.len(),
                report.n_rows,
                report.max_tokens,
                list(&report.dropped, "tokens")
            );
        }
        if kept.is_empty() {
            bail!("no row fits into `data.max_tokens` = {}: {}", report.max_tokens, list(&report.dropped, "tokens"));
        }
        Ok((kept, report))
    }
}

/// The first few rows with their numbers, then how many more there are.
fn list(rows: &[(String, usize)], unit: &str) -> String {
    const N_SHOWN: usize = 8;
    let mut text = rows.iter().take(N_SHOWN).map(|(id, n)| format!("`{id}` ({n} {unit})")).collect::<Vec<_>>().join(", ");
    if rows.len() > N_SHOWN {
        text += &format!(" and {} more", rows.len() - N_SHOWN);
    }
    text
}

impl fmt::Display for EncodeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.cut.is_empty() && self.dropped.is_empty() {
            return write!(f, "all {} rows fit into {} tokens", self.n_rows, self.max_tokens);
        }
        write!(f, "{} rows: {} cut to {} tokens", self.n_rows, self.cut.len(), self.max_tokens)?;
        if !self.cut.is_empty() {
            write!(f, " (row {})", list(&self.cut, "tokens lost"))?;
        }
        write!(f, ", {} dropped as too long", self.dropped.len())?;
        if !self.dropped.is_empty() {
            write!(f, " (row {})", list(&self.dropped, "tokens"))?;
        }
        Ok(())
    }
}
