//! A Parquet file as rows of JSON values: then every format reads it as it reads JSON.
//!
//! A column of texts becomes strings, one of lists of structs the turns of a conversation. Bytes are text too where they are UTF-8: Hive,
//! Impala and older Spark do not say which of their columns are texts. Rows are decoded some at a time, so that the file is never in memory
//! as a whole. Snappy (what Hugging Face writes), gzip, zstd, lz4 and no compression are understood.

mod zstd;

use super::pieces::{RawRow, cannot_read};
use super::rows::no_text;
use crate::files::or_damaged;
use anyhow::{Context, Result, anyhow, ensure};
use parquet::file::reader::FileReader;
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use serde_json::{Map, Number, Value};
use std::fs::File;
use std::path::{Path, PathBuf};

/// What a Parquet file begins with.
pub(super) const MAGIC: &[u8] = b"PAR1";

/// Rows of a piece: with the texts of preference data, some MiB.
const ROWS_PER_PIECE: usize = 1024;
/// As errors call it.
const KIND: &str = "Parquet files";

/// Hands out the rows of a Parquet file in order.
pub(super) struct ParquetReader {
    path: PathBuf,
    rows: RowIter<'static>,
    n_bytes: usize,
    /// In the whole file.
    n_rows: usize,
    /// Handed out.
    n_read: usize,
}

impl ParquetReader {
    /// # Errors
    /// A file that is cut short or damaged, or holds no row.
    pub fn open(path: &Path, file: File) -> Result<Self> {
        let n_bytes = file.metadata().with_context(|| cannot_read(path))?.len() as usize;
        let reader = or_damaged(path, KIND, || zstd::Reader::new(file))?;
        let reader = reader.with_context(|| format!("`{}` is no whole Parquet file", path.display()))?;
        let n_rows = usize::try_from(reader.metadata().file_metadata().num_rows()).unwrap_or(0);
        ensure!(n_rows > 0, "`{}` holds no rows", path.display());
        Ok(Self { path: path.to_owned(), rows: RowIter::from_file_into(Box::new(reader)), n_bytes, n_rows, n_read: 0 })
    }

    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    pub fn position(&self) -> usize {
        self.n_bytes * self.n_read / self.n_rows
    }

    /// The next rows; none at the end of the file.
    pub fn next_piece(&mut self) -> Result<Vec<RawRow>> {
        let mut piece = Vec::new();
        while piece.len() < ROWS_PER_PIECE {
            let Some(row) = or_damaged(&self.path, KIND, || self.rows.next())? else { break };
            let row = row.map_err(|error| self.explain(&error))?;
            self.n_read += 1;
            piece.push(RawRow { line: self.n_read, value: Ok(Value::Object(object(&row))) });
        }
        Ok(piece)
    }

    fn explain(&self, error: &parquet::errors::ParquetError) -> anyhow::Error {
        let message = error.to_string();
        let hint = if message.contains("Disabled feature") {
            "; write it anew with snappy, for example `pyarrow.parquet.write_table(pyarrow.parquet.read_table(\"old\"), \"new\")`"
        } else {
            ""
        };
        anyhow!("cannot read `{}` behind row {}: {message}{hint}", self.path.display(), self.n_read)
    }
}

fn object(row: &Row) -> Map<String, Value> {
    row.get_column_iter().map(|(key, field)| (key.clone(), value(field))).collect()
}

fn value(field: &Field) -> Value {
    let whole = |number: i64| Value::Number(number.into());
    let real = |number: f64| Number::from_f64(number).map_or(Value::Null, Value::Number);
    match field {
        Field::Null => Value::Null,
        Field::Bool(truth) => Value::Bool(*truth),
        Field::Byte(number) => whole((*number).into()),
        Field::Short(number) => whole((*number).into()),
        Field::Int(number) => whole((*number).into()),
        Field::Long(number) => whole(*number),
        Field::UByte(number) => whole((*number).into()),
        Field::UShort(number) => whole((*number).into()),
        Field::UInt(number) => whole((*number).into()),
        Field::ULong(number) => Value::Number((*number).into()),
        Field::Float16(number) => real(f64::from(*number)),
        Field::Float(number) => real((*number).into()),
        Field::Double(number) => real(*number),
        Field::Str(text) => Value::String(text.clone()),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Value::String(text.to_owned()),
            Err(_) => no_text(bytes.len()),
        },
        Field::Group(row) => Value::Object(object(row)),
        Field::ListInternal(list) => Value::Array(list.elements().iter().map(value).collect()),
        Field::MapInternal(map) => {
            let key = |key: &Field| match value(key) {
                Value::String(key) => key,
                other => other.to_string(),
            };
            Value::Object(map.entries().iter().map(|(name, field)| (key(name), value(field))).collect())
        }
        // Dates, times and decimals: as they are written.
        other => Value::String(other.to_string()),
    }
}
