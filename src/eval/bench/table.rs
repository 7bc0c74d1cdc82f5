//! A file as rows with names, whichever way it is written: CSV, XLSX, JSON, JSONL or Parquet; the first bytes tell, not the name.
//!
//! Each row keeps the line it starts on, so that every complaint can say `file:line`. Byte order marks, CRLF and line breaks within quoted
//! fields are CSV's own business and never split a row or end up in a column's name.

use super::workbook;
use crate::data::raw_rows;
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A row of a file.
#[derive(Debug, Clone)]
pub(super) struct Row {
    file: PathBuf,
    /// Line on which the row starts, from 1; of Parquet and XLSX, which have no lines, the row.
    line: usize,
    /// The columns as they stand in the file.
    pub fields: Map<String, Value>,
}

impl Row {
    /// `file:line`.
    pub fn place(&self) -> String {
        format!("{}:{}", self.file.display(), self.line)
    }

    /// The text of a column, word for word.
    pub fn text(&self, column: &str) -> Result<&str> {
        match self.fields.get(column) {
            Some(Value::String(text)) if !text.trim().is_empty() => Ok(text),
            Some(Value::String(_) | Value::Null) => bail!("{}: `{column}` is empty", self.place()),
            Some(other) => bail!("{}: `{column}` must be a text, but is {other}", self.place()),
            None => bail!("{}: there is no `{column}`; there are {}", self.place(), self.columns()),
        }
    }

    /// The text of a column that may be empty.
    pub fn cell(&self, column: &str) -> Result<&str> {
        match self.fields.get(column) {
            Some(Value::String(text)) => Ok(text),
            _ => self.text(column),
        }
    }

    /// The text of the first of these columns that the file has.
    pub fn text_of(&self, columns: &[&str]) -> Result<&str> {
        match columns.iter().find(|column| self.fields.contains_key(**column)) {
            Some(column) => self.text(column),
            None => bail!("{}: there is none of `{}`; there are {}", self.place(), columns.join("`, `"), self.columns()),
        }
    }

    /// A text or a whole number, as text: what an id or an answer may be.
    pub fn label(&self, column: &str) -> Result<String> {
        match self.fields.get(column) {
            Some(Value::Number(number)) if number.is_i64() || number.is_u64() => Ok(number.to_string()),
            _ => self.text(column).map(|text| text.trim().to_owned()),
        }
    }

    /// A list of texts, written as a list or as Python prints one (`['a', 'b']`); another text is a list of one. None where the column is
    /// missing or empty.
    pub fn list(&self, column: &str) -> Result<Vec<String>> {
        match self.fields.get(column) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(python_list(text)),
            Some(Value::Array(values)) => {
                let text = |value: &Value| value.as_str().map(str::to_owned);
                let texts: Option<_> = values.iter().map(text).collect();
                texts.with_context(|| format!("{}: `{column}` must be a list of texts", self.place()))
            }
            Some(other) => bail!("{}: `{column}` must be a list of texts, but is {other}", self.place()),
        }
    }

    fn columns(&self) -> String {
        if self.fields.is_empty() {
            return "none".to_owned();
        }
        self.fields.keys().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ")
    }
}

/// All rows of a file whose columns have names.
pub(super) fn rows(path: &Path) -> Result<Vec<Row>> {
    match Kind::of(path)? {
        Kind::Json => {
            let row = |(line, value)| match value {
                Ok(Value::Object(fields)) => Ok(Row { file: path.to_owned(), line, fields }),
                Ok(other) => Err(anyhow!("{}:{line}: a row must be an object, but this is {other}", path.display())),
                Err(error) => Err(anyhow!("{}:{line}: not valid JSON: {error}", path.display())),
            };
            raw_rows(path)?.into_iter().map(row).collect()
        }
        Kind::Csv | Kind::Workbook => {
            let mut lines = cells(path, Shape::Table)?.into_iter();
            let (_, header) =
                lines.next().with_context(|| format!("`{}` is empty: its first row should name the columns", path.display()))?;
            let distinct: BTreeSet<_> = header.iter().collect();
            ensure!(distinct.len() == header.len(), "`{}` has two columns of the same name: {}", path.display(), header.join(", "));
            let row = |(line, cells): (usize, Vec<String>)| {
                let fields = header.iter().cloned().zip(cells.into_iter().map(Value::String)).collect();
                Row { file: path.to_owned(), line, fields }
            };
            Ok(lines.map(row).collect())
        }
    }
}

/// The texts of a file of one column without a row of names, with the line of each; blank rows are passed over.
///
/// Some published files forget the quotes around a text with commas here and there: its pieces are joined again, exactly as they stood. Where
/// that would be every tenth row, the file is a table and not a list.
pub(super) fn list(path: &Path) -> Result<Vec<(usize, String)>> {
    ensure!(!matches!(Kind::of(path)?, Kind::Json), "`{}` should be CSV or XLSX without a row of names", path.display());
    let (mut texts, mut n_joined, mut first_joined) = (Vec::new(), 0, 0);
    for (line, mut cells) in cells(path, Shape::Lines)? {
        while cells.last().is_some_and(|cell| cell.trim().is_empty()) {
            cells.pop();
        }
        if cells.len() > 1 {
            n_joined += 1;
            first_joined = if n_joined == 1 { line } else { first_joined };
        }
        if !cells.is_empty() {
            texts.push((line, cells.join(",")));
        }
    }
    ensure!(
        n_joined * 10 <= texts.len(),
        "{}:{first_joined}: {n_joined} of {} rows have several columns, where a list of prompts has one",
        path.display(),
        texts.len()
    );
    Ok(texts)
}

enum Kind {
    Csv,
    Workbook,
    /// And JSONL and Parquet, which the reader of preference data tells apart.
    Json,
}

impl Kind {
    fn of(path: &Path) -> Result<Self> {
        let mut first = Vec::new();
        let read = File::open(path).and_then(|file| file.take(4096).read_to_end(&mut first));
        read.with_context(|| format!("cannot read `{}`", path.display()))?;
        if first.starts_with(b"PK\x03\x04") {
            return Ok(Kind::Workbook);
        }
        let text = first.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&first).trim_ascii_start();
        // A row of names may begin with a bracket, but nobody names a column so.
        let is_json = first.starts_with(b"PAR1") || text.starts_with(b"{") || text.starts_with(b"[");
        Ok(if is_json { Kind::Json } else { Kind::Csv })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Every row has as many cells as the first.
    Table,
    /// Rows of any length.
    Lines,
}

fn cells(path: &Path, shape: Shape) -> Result<Vec<(usize, Vec<String>)>> {
    if matches!(Kind::of(path)?, Kind::Workbook) { workbook::cells(path) } else { csv_cells(path, shape) }
}

fn csv_cells(path: &Path, shape: Shape) -> Result<Vec<(usize, Vec<String>)>> {
    let text = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(shape == Shape::Lines).from_reader(text.as_slice());
    let (mut rows, mut lines) = (Vec::new(), Lines { text: &text, line: 1, byte: 0 });
    for record in reader.records() {
        let record = record.map_err(|error| explain(path, &mut lines, &error))?;
        rows.push((lines.of(record.position()), record.iter().map(str::to_owned).collect()));
    }
    Ok(rows)
}

/// Where records begin. The reader leaves the second half of CRLF and blank lines to the record that follows them, so its own lines may be too
/// small.
struct Lines<'a> {
    text: &'a [u8],
    /// Line, from 1, of the byte up to which was counted.
    line: usize,
    byte: usize,
}

impl Lines<'_> {
    /// Positions do not go back.
    fn of(&mut self, position: Option<&csv::Position>) -> usize {
        let mut start = position.map_or(self.byte, |position| position.byte() as usize).clamp(self.byte, self.text.len());
        while self.text.get(start).is_some_and(|byte| matches!(byte, b'\r' | b'\n')) {
            start += 1;
        }
        self.line += self.text[self.byte..start].iter().filter(|byte| **byte == b'\n').count();
        self.byte = start;
        self.line
    }
}

fn explain(path: &Path, lines: &mut Lines<'_>, error: &csv::Error) -> anyhow::Error {
    let mut place = |position: &Option<csv::Position>| format!("{}:{}", path.display(), lines.of(position.as_ref()));
    match error.kind() {
        csv::ErrorKind::Utf8 { pos, .. } => anyhow!("{}: the row is not UTF-8 text; save the file as UTF-8", place(pos)),
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => anyhow!(
            "{}: the row has {len} columns, and the first row has {expected_len}; a text with commas or line breaks must stand in quotes",
            place(pos)
        ),
        _ => anyhow!("cannot read `{}`: {error}", path.display()),
    }
}

/// `['a', "it's"]` as Python prints a list of texts; another text as a list of itself.
fn python_list(text: &str) -> Vec<String> {
    let Some(inner) = text.trim().strip_prefix('[').and_then(|text| text.strip_suffix(']')) else {
        return if text.trim().is_empty() { Vec::new() } else { vec![text.trim().to_owned()] };
    };
    let (mut texts, mut characters) = (Vec::new(), inner.chars());
    while let Some(quote) = characters.find(|c| matches!(c, '\'' | '"')) {
        let mut word = String::new();
        while let Some(c) = characters.next().filter(|c| *c != quote) {
            word.push(if c == '\\' { characters.next().unwrap_or(c) } else { c });
        }
        texts.push(word);
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        (dir, path)
    }

    #[test]
    fn marks_line_breaks_and_carriage_returns_split_no_row() {
        let text = "\u{feff}id,en,sw\n0,\"two\nlines\",\"moja\r\nmbili\"\n1,plain,\"a \"\"quoted\"\" word\"\r\n2,x,y";
        let (_dir, path) = written("a.csv", text.as_bytes());
        let rows = rows(&path).unwrap();
        assert_eq!(rows[0].text("id").unwrap(), "0", "the mark is no part of the name");
        assert_eq!((rows[0].text("en").unwrap(), rows[0].text("sw").unwrap()), ("two\nlines", "moja\r\nmbili"));
        assert_eq!((rows[1].text("sw").unwrap(), rows[2].text("sw").unwrap()), ("a \"quoted\" word", "y"));
        let lines: Vec<_> = rows.iter().map(|row| row.place().rsplit_once(':').unwrap().1.to_owned()).collect();
        assert_eq!(lines, ["2", "5", "6"]);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        let fails = |text: &[u8]| {
            let (_dir, path) = written("a.csv", text);
            rows(&path).unwrap_err().to_string().replace(&path.display().to_string(), "a.csv")
        };
        let error = fails(b"id,en\n0,x\n1,x,y\n");
        assert!(error.starts_with("a.csv:3: the row has 3 columns, and the first row has 2"), "{error}");
        assert!(fails(b"id,en\n0,\xff\n").starts_with("a.csv:2: the row is not UTF-8"));
        assert!(fails(b"id,id\n").contains("two columns of the same name"));
        assert!(fails(b"").contains("is empty"));
        let (_dir, path) = written("a.csv", b"id,en\n0, \n");
        let row = &rows(&path).unwrap()[0];
        assert!(row.text("en").unwrap_err().to_string().ends_with("a.csv:2: `en` is empty"));
        assert!(row.text("sw").unwrap_err().to_string().ends_with("a.csv:2: there is no `sw`; there are `id`, `en`"));
    }

    #[test]
    fn json_is_told_by_its_first_bytes() {
        let (_dir, path) = written("a.csv", b"{\"id\": 3, \"tags\": [\"a\"]}\n{\"id\": \"x\", \"tags\": null}\n");
        let rows = rows(&path).unwrap();
        assert_eq!((rows[0].label("id").unwrap(), rows[1].label("id").unwrap()), ("3".into(), "x".into()));
        assert_eq!((rows[0].list("tags").unwrap(), rows[1].list("tags").unwrap()), (vec!["a".to_owned()], vec![]));
        let (_dir, path) = written("a.jsonl", b"{\"id\": 3}\n[1]\n");
        assert!(super::rows(&path).unwrap_err().to_string().ends_with("a.jsonl:2: a row must be an object, but this is [1]"));
    }

    #[test]
    fn a_list_without_a_name_is_read_line_by_line() {
        let (_dir, path) = written("a.csv", "a,1\nb,2\n".as_bytes());
        let error = list(&path).unwrap_err().to_string();
        assert!(error.ends_with("a.csv:1: 2 of 2 rows have several columns, where a list of prompts has one"), "{error}");
        let mut text = "plain\n\"with, comma\nand line\"\n\n last ,\n".to_owned();
        let (_dir, path) = written("a.csv", text.as_bytes());
        assert_eq!(list(&path).unwrap(), [(1, "plain".into()), (2, "with, comma\nand line".into()), (5, " last ".into())]);
        text += &"more\n".repeat(7);
        let (_dir, path) = written("a.csv", format!("{text}no quotes, here\n").as_bytes());
        assert_eq!(list(&path).unwrap().last().unwrap(), &(13, "no quotes, here".to_owned()));
    }

    #[test]
    fn lists_are_read_as_python_prints_them() {
        assert_eq!(python_list(r#"['Hate & co', "it's", 'it\'s']"#), ["Hate & co", "it's", "it's"]);
        assert_eq!((python_list("[]").len(), python_list(" ").len()), (0, 0));
        assert_eq!(python_list(" theft "), ["theft"]);
    }
}
