//! A file as rows, whichever way they are laid out: Parquet, one JSON array, or one JSON object a line (JSONL).
//!
//! JSON may be gzip'ed. The file is read piece by piece, so that neither its text nor its values are ever in memory as a whole, and the
//! rows of a piece are parsed on all cores. Each row keeps the line it starts on, so that every later complaint can say `file:line`. A line
//! of JSONL that is not JSON spoils only itself; in an array nothing after the fault can be trusted, so reading stops there.

use super::distinct::Distinct;
use super::parquet::{self, ParquetReader};
use super::source::Source;
use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;
use serde::de::IgnoredAny;
use serde_json::{Deserializer, Value};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// How much of a file is read at a time, and as much of it is in memory as text and as JSON values (a longer row is read whole). Thousands of
/// rows, so that all cores have work until shortly before a piece's end.
pub const PIECE_BYTES: usize = 4 << 20;

/// Of no meaning in UTF-8; some programs begin a file with it all the same.
pub(super) const BYTE_ORDER_MARK: char = '\u{feff}';

/// No row is longer: what goes on without an end is no row.
const MAX_ROW_BYTES: usize = 256 << 20;

/// One row as it stands in the file.
pub(super) struct RawRow {
    /// Line of the file on which the row starts, from 1; of a Parquet file, which has no lines, the row.
    pub line: usize,
    /// What is wrong with its JSON, and where in the file, if it could not be parsed.
    pub value: Result<Value, String>,
}

/// Hands out the rows of a file in order.
pub(super) enum RowReader {
    Json(JsonReader),
    Parquet(ParquetReader),
}

impl RowReader {
    /// The first bytes of the file tell its kind, whatever its name.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = File::open(path).with_context(|| cannot_read(path))?;
        let mut first = Vec::new();
        file.by_ref().take(parquet::MAGIC.len() as u64).read_to_end(&mut first).with_context(|| cannot_read(path))?;
        if first == parquet::MAGIC {
            return ParquetReader::open(path, file).map(Self::Parquet);
        }
        JsonReader::open(path).map(Self::Json)
    }

    /// Size of the whole file.
    pub fn n_bytes(&self) -> usize {
        match self {
            Self::Json(reader) => reader.source.n_bytes(),
            Self::Parquet(reader) => reader.n_bytes(),
        }
    }

    /// Bytes of the file whose rows were handed out; about as many, where they do not lie one behind the other or are packed.
    pub fn position(&self) -> usize {
        match self {
            Self::Json(reader) => reader.source.position(),
            Self::Parquet(reader) => reader.position(),
        }
    }

    /// The next rows, those of about `PIECE_BYTES`; none at the end of the file.
    ///
    /// # Errors
    /// A file that cannot be read, is not UTF-8, or holds no row at all; a spoilt row is none.
    pub fn next_piece(&mut self) -> Result<Vec<RawRow>> {
        match self {
            Self::Json(reader) => reader.next_piece(),
            Self::Parquet(reader) => reader.next_piece(),
        }
    }
}

/// Rows that are written as JSON.
pub(super) struct JsonReader {
    path: PathBuf,
    source: Source,
    piece_bytes: usize,
    max_row_bytes: usize,
    /// Read and not yet handed out.
    text: String,
    /// A character at the end of what was read whose last bytes are still to come.
    partial: Vec<u8>,
    /// Where `text` begins in the file: line, from 1, and byte of the line.
    line: usize,
    column: usize,
    layout: Layout,
    is_read: bool,
    n_rows: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// Nothing but white space was seen.
    Unknown,
    Lines,
    Array,
    /// The array was closed.
    BehindArray,
    /// A fault in an array: what follows is not looked at.
    Abandoned,
}

/// A row's text, and where it begins.
struct Place<'a> {
    text: &'a str,
    line: usize,
    column: usize,
}

impl JsonReader {
    fn open(path: &Path) -> Result<Self> {
        Self::with_pieces(path, PIECE_BYTES)
    }

    fn with_pieces(path: &Path, piece_bytes: usize) -> Result<Self> {
        Ok(Self {
            path: path.to_path_buf(),
            source: Source::open(path)?,
            piece_bytes,
            max_row_bytes: MAX_ROW_BYTES,
            text: String::new(),
            partial: Vec::new(),
            line: 1,
            column: 0,
            layout: Layout::Unknown,
            is_read: false,
            n_rows: 0,
        })
    }

    fn next_piece(&mut self) -> Result<Vec<RawRow>> {
        loop {
            if self.layout == Layout::Unknown {
                self.recognise_layout();
            }
            let rows = match self.layout {
                Layout::Unknown | Layout::Abandoned => Vec::new(),
                Layout::Lines => self.lines(),
                Layout::Array => self.elements(),
                Layout::BehindArray => self.text_behind_array(),
            };
            self.n_rows += rows.len();
            if !rows.is_empty() {
                return Ok(rows);
            }
            if self.is_read || self.layout == Layout::Abandoned {
                let path = self.path.display();
                ensure!(self.n_rows > 0, "`{path}` holds no rows: expected a JSON array of rows, or one JSON object a line");
                return Ok(rows);
            }
            self.read_more()?;
        }
    }

    /// Reads a piece; more than that while a row is longer, so that its beginning is not looked at again and again.
    fn read_more(&mut self) -> Result<()> {
        let room = (self.max_row_bytes + 1).saturating_sub(self.text.len());
        ensure!(
            room > 0,
            "{}:{}: the row that begins here has more than {} bytes: is this JSON, or JSON lines?",
            self.path.display(),
            self.line,
            self.max_row_bytes
        );
        let n_wanted = self.piece_bytes.max(self.text.len()).min(room);
        let mut bytes = std::mem::take(&mut self.partial);
        let line = self.line + count_lines(self.text.as_bytes());
        let n_read = self.source.read(n_wanted, &mut bytes, &self.path, |read| line + count_lines(read))?;
        self.is_read = n_read < n_wanted;
        match std::str::from_utf8(&bytes) {
            Ok(text) => self.text.push_str(text),
            Err(error) => {
                let (whole, rest) = bytes.split_at(error.valid_up_to());
                let is_cut_off = error.error_len().is_none() && !self.is_read;
                if !is_cut_off {
                    bail!("{}:{}: the file is not UTF-8 text", self.path.display(), line + count_lines(whole));
                }
                self.text.push_str(&String::from_utf8_lossy(whole));
                self.partial = rest.to_vec();
            }
        }
        Ok(())
    }

    /// An array begins with `[`, and no row of JSONL that could be one does.
    fn recognise_layout(&mut self) {
        let start = if self.text.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len_utf8() } else { 0 };
        let Some(first) = self.text[start..].find(|c: char| !c.is_whitespace()) else { return };
        self.text.drain(..start);
        self.layout = Layout::Lines;
        if self.text[first..].starts_with('[') {
            self.layout = Layout::Array;
            self.skip(first + 1);
        }
    }

    /// Takes the lines that are there in full.
    fn lines(&mut self) -> Vec<RawRow> {
        let end = if self.is_read { self.text.len() } else { self.text.rfind('\n').map_or(0, |newline| newline + 1) };
        let lines = self.text[..end].lines().zip(self.line..).filter(|(text, _)| !text.trim().is_empty());
        let places: Vec<_> = lines.map(|(text, line)| Place { text, line, column: 0 }).collect();
        let rows =
            places.par_iter().map(|place| place.parse(serde_json::from_str::<Distinct>(place.text).map(|Distinct(value)| value))).collect();
        self.skip(end);
        rows
    }

    /// Takes the elements that are there in full. `serde_json` would otherwise lose where each of them starts.
    fn elements(&mut self) -> Vec<RawRow> {
        let mut places = Vec::new();
        let (mut position, mut line, mut column) = (0, self.line, self.column);
        let mut end = loop {
            let rest = &self.text[position..];
            let gap = rest.find(|c: char| !c.is_whitespace() && c != ',').unwrap_or(rest.len());
            (line, column) = behind(&rest[..gap], line, column);
            position += gap;
            let rest = &rest[gap..];
            if rest.starts_with(']') {
                self.layout = Layout::BehindArray;
                break position + 1;
            }
            let element = element_bytes(rest);
            // What ends with the text, or would go on behind it, may be whole only with the next piece.
            let is_cut_off = element.as_ref().map_or_else(serde_json::Error::is_eof, |n_bytes| *n_bytes == rest.len());
            if is_cut_off && !self.is_read {
                break position;
            }
            let text = &rest[..*element.as_ref().unwrap_or(&rest.len())];
            places.push(Place { text, line, column });
            (line, column) = behind(text, line, column);
            position += text.len();
            if element.is_err() {
                break position;
            }
        };
        let mut rows: Vec<RawRow> = places.par_iter().map(|place| place.parse(first_value(place.text))).collect();
        if let Some(fault) = rows.iter().position(|row| row.value.is_err()) {
            rows.truncate(fault + 1);
            self.layout = Layout::Abandoned;
            end = self.text.len();
        }
        self.skip(end);
        rows
    }

    fn text_behind_array(&mut self) -> Vec<RawRow> {
        let n_blank = self.text.len() - self.text.trim_start().len();
        self.skip(n_blank);
        if self.text.is_empty() {
            return Vec::new();
        }
        self.layout = Layout::Abandoned;
        vec![RawRow { line: self.line, value: Err("the array of rows ends before this line, but the file goes on".into()) }]
    }

    /// Drops the first `n_bytes` of the text.
    fn skip(&mut self, n_bytes: usize) {
        (self.line, self.column) = behind(&self.text[..n_bytes], self.line, self.column);
        self.text.drain(..n_bytes);
    }
}

impl Place<'_> {
    fn parse(&self, value: serde_json::Result<Value>) -> RawRow {
        let value = value.map_err(|error| match self.text.starts_with(BYTE_ORDER_MARK) {
            true => format!("a byte order mark (U+FEFF) begins line {}: were two files joined? Remove it", self.line),
            false => fault(&error, self.line, self.column),
        });
        RawRow { line: self.line, value }
    }
}

/// Length of the JSON value that the text begins with, as far as that can be told without making the value.
fn element_bytes(text: &str) -> serde_json::Result<usize> {
    let mut values = Deserializer::from_str(text).into_iter::<IgnoredAny>();
    values.next().unwrap_or_else(|| serde_json::from_str(""))?;
    Ok(values.byte_offset())
}

/// The value that the text begins with. The end of the text before `]` is not the end of the array, but of a file that was cut short.
fn first_value(text: &str) -> serde_json::Result<Value> {
    let first = Deserializer::from_str(text).into_iter::<Distinct>().next();
    first.unwrap_or_else(|| serde_json::from_str("")).map(|Distinct(value)| value)
}

/// `serde_json` counts from where the row starts: `line`, after `column` bytes.
fn fault(error: &serde_json::Error, line: usize, column: usize) -> String {
    let text = error.to_string();
    let message = text.split_once(" at line ").map_or(text.as_str(), |(message, _)| message);
    let column = if error.line() <= 1 { column } else { 0 } + error.column();
    format!("{message} (line {}, column {column})", line + error.line().saturating_sub(1))
}

/// Line and byte of the line behind `text`, which begins at `line` and `column`.
fn behind(text: &str, line: usize, column: usize) -> (usize, usize) {
    match text.rfind('\n') {
        None => (line, column + text.len()),
        Some(newline) => (line + count_lines(text.as_bytes()), text.len() - newline - 1),
    }
}

fn count_lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte == b'\n').count()
}

pub(super) fn cannot_read(path: &Path) -> String {
    format!("cannot read the data file `{}`", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All rows of `text`, read in pieces of `piece_bytes`: line and value, or message.
    fn read(text: &[u8], piece_bytes: usize) -> Result<Vec<(usize, Result<Value, String>)>> {
        let mut file = tempfile::NamedTempFile::new()?;
        std::io::Write::write_all(&mut file, text)?;
        let mut reader = JsonReader::with_pieces(file.path(), piece_bytes)?;
        let mut rows = Vec::new();
        loop {
            let piece = reader.next_piece()?;
            if piece.is_empty() {
                return Ok(rows);
            }
            rows.extend(piece.into_iter().map(|row| (row.line, row.value)));
        }
    }

    #[test]
    fn pieces_of_any_size_give_the_same_rows() {
        let texts = [
            "{\"a\": \"é\"}\n\n  \r\n{\"b\": [1, \"日本\"]}\r\nnot json\n{\"c\": 2}",
            "\u{feff}\n [\n{\"a\": \"é\"},\n\n 1234, true , \"日]本\",[{\"b\":\n[]}] ] \n\n",
            "[{\"a\": 1}, {\"a\":\n {\"b\" 2}}, {\"c\": 3}]",
            "[{\"a\": \"\\ud800\"}, {\"c\": 3}]",
            "[1, 23abc, 4]",
            "[1, {\"a\": \"x",
            "[1, 2,",
            "[1]\n\n [2]",
        ];
        for text in texts {
            let whole = read(text.as_bytes(), 1 << 20).unwrap();
            assert!(!whole.is_empty());
            for piece_bytes in 1..text.len() + 2 {
                assert_eq!(read(text.as_bytes(), piece_bytes).unwrap(), whole, "{piece_bytes} bytes of {text:?}");
            }
        }
    }

    /// A small file may unpack to a row without an end.
    #[test]
    fn a_row_that_does_not_end_is_given_up() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, format!("{{}}\n{{\"prompt\": \"{}", "a".repeat(200)).as_bytes()).unwrap();
        let reader = |max_row_bytes| JsonReader { max_row_bytes, ..JsonReader::with_pieces(file.path(), 16).unwrap() };
        let mut short = reader(100);
        assert_eq!(short.next_piece().unwrap().len(), 1);
        let error = short.next_piece().err().unwrap().to_string();
        assert!(error.ends_with(":2: the row that begins here has more than 100 bytes: is this JSON, or JSON lines?"), "{error}");
        let mut long = reader(1000);
        assert_eq!(long.next_piece().unwrap().len() + long.next_piece().unwrap().len(), 2);
    }

    #[test]
    fn lines_and_columns_are_those_of_the_file() {
        let fault = |text: &str| read(text.as_bytes(), 3).unwrap().pop().unwrap();
        assert_eq!(fault("[1,\n {\"a\":\n {\"b\" 2}}, 3]"), (2, Err("expected `:` (line 3, column 7)".into())));
        assert_eq!(fault("{\"a\": 1}\n\n{\"a\" 1}\n"), (3, Err("expected `:` (line 3, column 6)".into())));
        assert_eq!(fault("[1,\n 2\n"), (3, Err("EOF while parsing a value (line 3, column 0)".into())));
        assert_eq!(fault("[1]\n\n [2]"), (3, Err("the array of rows ends before this line, but the file goes on".into())));
    }

    #[test]
    fn text_that_is_not_utf8_is_found_in_any_piece() {
        for text in [&b"{}\n{}\n\xff{}"[..], b"{}\n\n\xe6\x97", b"[1,\n2,\n\xe6\x97]"] {
            for piece_bytes in 1..text.len() + 2 {
                let error = read(text, piece_bytes).unwrap_err().to_string();
                assert!(error.ends_with(":3: the file is not UTF-8 text"), "{piece_bytes}: {error}");
            }
        }
        assert!(read(b" \n", 1).unwrap_err().to_string().contains("holds no rows"));
    }
}
