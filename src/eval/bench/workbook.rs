//! XLSX, cell by cell: a sheet of two cells, one of them in the last row and column that there can be, is small.

use crate::files::or_damaged;
use anyhow::{Context, Result, ensure};
use calamine::{Data, Reader, Xlsx, open_workbook};
use flate2::read::DeflateDecoder;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// Of a sheet, the empty ones between others included.
const MOST_CELLS: usize = 2_000_000;
/// What a packed file may grow to at most, in texts: a text takes some bytes, and deflate packs a thousand into one.
const MOST_TEXTS_PER_BYTE: u64 = 256;
/// Of the texts, in which their number stands.
const HEAD_BYTES: u64 = 1 << 16;

/// The rows of the first sheet that hold anything, each with its number from 1.
pub(super) fn cells(path: &Path) -> Result<Vec<(usize, Vec<String>)>> {
    let cannot = || format!("`{}` is no whole XLSX workbook", path.display());
    ensure_counts(path)?;
    let read = || -> Result<BTreeMap<u32, BTreeMap<u32, String>>> {
        let mut workbook: Xlsx<_> = open_workbook(path).with_context(cannot)?;
        let name = workbook.sheet_names().first().cloned().with_context(|| format!("`{}` has no sheets", path.display()))?;
        let mut reader = workbook.worksheet_cells_reader(&name).with_context(cannot)?;
        let mut rows: BTreeMap<u32, BTreeMap<u32, String>> = BTreeMap::new();
        while let Some(cell) = reader.next_cell().with_context(cannot)? {
            let (row, column) = cell.get_position();
            let text = Data::from(cell.get_value().clone()).to_string();
            // Sheets often go on below and beside their last text.
            if !text.trim().is_empty() {
                rows.entry(row).or_default().insert(column, text);
            }
        }
        Ok(rows)
    };
    let rows = or_damaged(path, "XLSX workbooks", read)??;
    let columns = || rows.values().flat_map(BTreeMap::keys).copied();
    let (first, last) = (columns().min().unwrap_or(0), columns().max().unwrap_or(0));
    let n_columns = (last - first) as usize + 1;
    ensure!(
        rows.len().saturating_mul(n_columns) <= MOST_CELLS,
        "`{}` has {} rows and {n_columns} columns, and no table of prompts is so large",
        path.display(),
        rows.len()
    );
    let cells = |row: &BTreeMap<u32, String>| (first..=last).map(|column| row.get(&column).cloned().unwrap_or_default()).collect();
    Ok(rows.iter().map(|(row, texts)| (*row as usize + 1, cells(texts))).collect())
}

/// The library makes room for as many texts as the file says that it has; a number beyond all memory would end the process.
fn ensure_counts(path: &Path) -> Result<()> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let n_texts = texts_head(&bytes).and_then(|head| number_behind(&head, "uniqueCount")).unwrap_or(0);
    ensure!(
        n_texts <= MOST_TEXTS_PER_BYTE * bytes.len() as u64,
        "`{}` is no whole XLSX workbook: it says that it has {n_texts} texts, in {} bytes",
        path.display(),
        bytes.len()
    );
    Ok(())
}

/// The beginning of the file of texts in a zip archive; none where there is no such file, or it is packed as no workbook is.
fn texts_head(zip: &[u8]) -> Option<String> {
    let u16_at = |at: usize| Some(usize::from(u16::from_le_bytes(*zip.get(at..)?.first_chunk()?)));
    let u32_at = |at: usize| Some(u32::from_le_bytes(*zip.get(at..)?.first_chunk()?) as usize);
    let end = zip.windows(4).rposition(|piece| piece == b"PK\x05\x06")?;
    let (n_files, mut entry) = (u16_at(end + 10)?, u32_at(end + 16)?);
    for _ in 0..n_files {
        let (method, n_packed, n_name) = (u16_at(entry + 10)?, u32_at(entry + 20)?, u16_at(entry + 28)?);
        let name = zip.get(entry + 46..)?.get(..n_name)?.to_ascii_lowercase();
        if name.ends_with(b"sharedstrings.xml") {
            let local = u32_at(entry + 42)?;
            let start =
                local.checked_add(30)?.checked_add(u16_at(local.checked_add(26)?)?)?.checked_add(u16_at(local.checked_add(28)?)?)?;
            let packed = zip.get(start..)?;
            let packed = &packed[..n_packed.min(packed.len())];
            let mut head = Vec::new();
            // What was unpacked before an error is enough.
            let _ = match method {
                0 => packed.take(HEAD_BYTES).read_to_end(&mut head),
                _ => DeflateDecoder::new(packed).take(HEAD_BYTES).read_to_end(&mut head),
            };
            return Some(String::from_utf8_lossy(&head).into_owned());
        }
        entry += 46 + n_name + u16_at(entry + 30)? + u16_at(entry + 32)?;
    }
    None
}

/// `name = "12"`.
fn number_behind(xml: &str, name: &str) -> Option<u64> {
    let (_, behind) = xml.split_once(name)?;
    let value = behind.trim_start().strip_prefix('=')?.trim_start().trim_start_matches(['"', '\'']);
    let digits = value.find(|c: char| !c.is_ascii_digit()).map_or(value, |end| &value[..end]);
    // A number too large for any type is too large.
    (!digits.is_empty()).then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_texts_is_read_where_it_stands() {
        assert_eq!(number_behind("<sst count=\"4\" uniqueCount = '12'>", "uniqueCount"), Some(12));
        assert_eq!(number_behind("<sst uniqueCount=\"99999999999999999999\">", "uniqueCount"), Some(u64::MAX));
        assert_eq!(number_behind("<sst uniqueCount=\"\">", "uniqueCount"), None);
        let workbook =
            std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/fuzz/table-xlsx--four-billion-texts")).unwrap();
        let head = texts_head(&workbook).unwrap();
        assert_eq!(number_behind(&head, "uniqueCount"), Some(4_294_967_296), "{head}");
        for length in 0..workbook.len() {
            let _ = texts_head(&workbook[..length]);
        }
    }
}
