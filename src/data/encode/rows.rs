//! Many rows to tokens, on all cores: row by row in order, each distinct dominant pair once.
//!
//! Rows share dominant pairs (6 to 1 in the released data), so half of what would be rendered and tokenised is known already. A pair is
//! recognised by a hash of its texts, and its tokens are taken from a row that has them. What comes out does not depend on the number of
//! threads, nor on where a file is cut into pieces; the error is that of the first row that has one.

use super::{Encoded, EncodedPair, Encoder, Fitted, Side};
use crate::config::{DataConfig, OnOverlong};
use crate::data::pair::ParallelPair;
use crate::data::{read_pieces, refuse_spoilt};
use anyhow::{Result, bail};
use rayon::prelude::*;
use std::collections::HashMap;
use std::fmt;
use std::path::Path;

/// What encoding did to the rows, by row id in file order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EncodeReport {
    pub n_rows: usize,
    pub max_tokens: usize,
    /// Rows that lost tokens, and how many.
    pub cut: Vec<(String, usize)>,
    /// Rows left out, and the tokens of their longest sequence.
    pub dropped: Vec<(String, usize)>,
}

impl Encoder {
    /// All rows of a file that the configuration asks for, and what became of those that were too long. Of the texts only those of a
    /// [piece](crate::data::PIECE_BYTES) are in memory.
    ///
    /// # Errors
    /// As [`data::load`](crate::data::load) and [`Self::encode_all`], the file's own faults first.
    pub fn encode_file(&self, path: &Path, config: &DataConfig) -> Result<(Vec<EncodedPair>, EncodeReport)> {
        let mut rows = Rows::new(self);
        // A row that cannot be encoded ends the encoding and not the reading: whether the file is sound is told first.
        let mut outcome = Ok(());
        let spoilt = read_pieces(path, config, "encoding", |pairs| {
            if outcome.is_ok() {
                outcome = rows.encode(&pairs);
            }
        })?;
        refuse_spoilt(path, &spoilt)?;
        outcome?;
        rows.finish()
    }

    /// All rows, in order, and what became of those that were too long. With `on_overlong = "error"` one of them is an error.
    pub fn encode_all(&self, pairs: &[ParallelPair]) -> Result<(Vec<EncodedPair>, EncodeReport)> {
        let mut rows = Rows::new(self);
        rows.encode(pairs)?;
        rows.finish()
    }

    /// Every row by itself, in order: what one row does to the template is no reason to lose the others.
    pub fn encode_each(&self, pairs: &[ParallelPair]) -> Vec<Result<Encoded>> {
        let row = |id: &str, dominant, target| Encoded::of(id, dominant, target);
        self.each(pairs, &Shared::of(pairs, |_| false), |_| None, Self::fitted, row)
    }

    /// As `encode_each`, but uncut. For `mpo check`.
    pub fn tokenize_each(&self, pairs: &[ParallelPair]) -> Vec<Result<EncodedPair>> {
        let row = |id: &str, dominant, target| EncodedPair { id: id.to_owned(), dominant, target };
        self.each(pairs, &Shared::of(pairs, |_| false), |_| None, Self::tokenize_side, row)
    }

    /// Makes both sides of every row, a dominant one that rows share or that is `known` only once, and of the two the row.
    fn each<S: Clone + Send + Sync, R: Send>(
        &self,
        pairs: &[ParallelPair],
        shared: &Shared,
        known: impl Fn(&Key) -> Option<S> + Sync,
        side: impl Fn(&Self, &ParallelPair, Side) -> Result<S> + Sync,
        row: impl Fn(&str, S, S) -> R + Sync,
    ) -> Vec<Result<R>> {
        let dominant: Vec<_> = shared.firsts.par_iter().map(|&first| side(self, &pairs[first], Side::Dominant)).collect();
        let dominant = |n: usize| known(&shared.keys[n]).or_else(|| dominant.get(shared.of_row[n])?.as_ref().ok().cloned());
        let one = |(n, pair)| {
            // There is none where it failed. Errors name their row, so each row has its own.
            let dominant = dominant(n).map_or_else(|| side(self, pair, Side::Dominant), Ok)?;
            Ok(row(&pair.id, dominant, side(self, pair, Side::Target)?))
        };
        pairs.par_iter().enumerate().map(one).collect()
    }
}

/// Of a dominant pair's language and texts.
type Key = [u8; 32];

/// Which rows share their dominant pair.
struct Shared {
    keys: Vec<Key>,
    /// The first row of each distinct pair, without those that are known already.
    firsts: Vec<usize>,
    /// For each row the place of its pair in `firsts`; of no meaning where the pair is known.
    of_row: Vec<usize>,
}

impl Shared {
    fn of(pairs: &[ParallelPair], is_known: impl Fn(&Key) -> bool) -> Self {
        let keys: Vec<Key> = pairs.par_iter().map(|pair| pair.dominant.key()).collect();
        let (mut firsts, mut places) = (Vec::new(), HashMap::new());
        let mut place = |(row, key)| match is_known(key) {
            true => usize::MAX,
            false => *places.entry(key).or_insert_with(|| {
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
    kept: Vec<EncodedPair>,
    /// A row of `kept` with this dominant pair, and how many tokens the pair lost.
    dominant: HashMap<Key, (usize, usize)>,
    report: EncodeReport,
}

impl<'a> Rows<'a> {
    fn new(encoder: &'a Encoder) -> Self {
        let report = EncodeReport { max_tokens: encoder.max_tokens, ..EncodeReport::default() };
        Self { encoder, kept: Vec::new(), dominant: HashMap::new(), report }
    }

    fn encode(&mut self, pairs: &[ParallelPair]) -> Result<()> {
        let shared = Shared::of(pairs, |key| self.dominant.contains_key(key));
        let known = |key: &Key| {
            let &(row, n_lost) = self.dominant.get(key)?;
            Some(Fitted::Within { preference: self.kept[row].dominant.clone(), n_lost })
        };
        let row = |id: &str, dominant: Fitted, target| (dominant.n_lost(), Encoded::of(id, dominant, target));
        let encoded = self.encoder.each(pairs, &shared, known, Encoder::fitted, row);
        self.report.n_rows += pairs.len();
        for (row, key) in encoded.into_iter().zip(shared.keys) {
            let (n_lost_of_dominant, row) = row?;
            let pair = match row {
                Encoded::Whole(pair) => pair,
                Encoded::Cut { pair, n_lost } => {
                    self.report.cut.push((pair.id.clone(), n_lost));
                    pair
                }
                Encoded::Overlong { id, n_tokens } => {
                    self.report.dropped.push((id, n_tokens));
                    continue;
                }
            };
            self.dominant.entry(key).or_insert((self.kept.len(), n_lost_of_dominant));
            self.kept.push(pair);
        }
        Ok(())
    }

    fn finish(self) -> Result<(Vec<EncodedPair>, EncodeReport)> {
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
