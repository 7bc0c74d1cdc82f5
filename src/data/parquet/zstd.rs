//! Zstandard pages. The `parquet` crate decodes them with the C library; here they are handed out as they lie in the file, and `ruzstd`,
//! which is Rust, makes them the pages that they are. Other columns are read as always.

use parquet::basic::Compression;
use parquet::bloom_filter::Sbbf;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::reader::{FileReader, RowGroupReader};
use parquet::file::serialized_reader::{SerializedFileReader, SerializedPageReader};
use parquet::record::reader::RowIter;
use parquet::schema::types::Type;
use ruzstd::decoding::StreamingDecoder;
use std::fs::File;
use std::io::Read;
use std::sync::Arc;

/// A file some of whose columns may be compressed with Zstandard.
pub(super) struct Reader {
    inner: SerializedFileReader<File>,
    file: Arc<File>,
}

impl Reader {
    pub fn new(file: File) -> Result<Self> {
        Ok(Self { file: Arc::new(file.try_clone()?), inner: SerializedFileReader::new(file)? })
    }
}

impl FileReader for Reader {
    fn metadata(&self) -> &ParquetMetaData {
        self.inner.metadata()
    }

    fn num_row_groups(&self) -> usize {
        self.inner.num_row_groups()
    }

    fn get_row_group(&self, i: usize) -> Result<Box<dyn RowGroupReader + '_>> {
        Ok(Box::new(RowGroup { inner: self.inner.get_row_group(i)?, file: Arc::clone(&self.file) }))
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>> {
        RowIter::from_file(projection, self)
    }
}

struct RowGroup<'a> {
    inner: Box<dyn RowGroupReader + 'a>,
    file: Arc<File>,
}

impl RowGroupReader for RowGroup<'_> {
    fn metadata(&self) -> &RowGroupMetaData {
        self.inner.metadata()
    }

    fn num_columns(&self) -> usize {
        self.inner.num_columns()
    }

    fn get_column_page_reader(&self, i: usize) -> Result<Box<dyn PageReader>> {
        let column = self.metadata().column(i);
        if !matches!(column.compression(), Compression::ZSTD(_)) {
            return Ok(Box::new(Counted(self.inner.get_column_page_reader(i)?)));
        }
        // A page cannot be larger than its column.
        let most_bytes = u64::try_from(column.uncompressed_size()).unwrap_or(0);
        let stored = column.clone().into_builder().set_compression(Compression::UNCOMPRESSED).build()?;
        let n_rows = usize::try_from(self.metadata().num_rows()).unwrap_or(0);
        let pages = SerializedPageReader::new(Arc::clone(&self.file), &stored, n_rows, None)?;
        Ok(Box::new(Counted(Box::new(Pages { stored: pages, most_bytes }))))
    }

    fn get_column_bloom_filter(&self, i: usize) -> Option<&Sbbf> {
        self.inner.get_column_bloom_filter(i)
    }

    fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>> {
        RowIter::from_row_group(projection, self)
    }
}

/// Pages that hold as many values as they say: for those of a dictionary there is room before they are read.
struct Counted(Box<dyn PageReader>);

impl Iterator for Counted {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Counted {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.0.get_next_page()?;
        if let Some(Page::DictionaryPage { buf, num_values, .. }) = &page
            // Of all values, a truth takes the least.
            && *num_values as usize > buf.len().saturating_mul(8)
        {
            return Err(ParquetError::General(format!("a dictionary of {} bytes says that it has {num_values} values", buf.len())));
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.0.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.0.skip_next_page()
    }
}

struct Pages {
    /// As they lie in the file.
    stored: SerializedPageReader<File>,
    most_bytes: u64,
}

impl Pages {
    fn decoded(&self, page: Page) -> Result<Page> {
        Ok(match page {
            Page::DataPage { buf, num_values, encoding, def_level_encoding, rep_level_encoding, statistics } => {
                let buf = self.bytes(&buf, 0)?.into();
                Page::DataPage { buf, num_values, encoding, def_level_encoding, rep_level_encoding, statistics }
            }
            Page::DictionaryPage { buf, num_values, encoding, is_sorted } => {
                Page::DictionaryPage { buf: self.bytes(&buf, 0)?.into(), num_values, encoding, is_sorted }
            }
            Page::DataPageV2 {
                buf,
                num_values,
                encoding,
                num_nulls,
                num_rows,
                def_levels_byte_len,
                rep_levels_byte_len,
                is_compressed,
                statistics,
            } => {
                let n_levels = def_levels_byte_len as usize + rep_levels_byte_len as usize;
                let buf = if is_compressed { self.bytes(&buf, n_levels)?.into() } else { buf };
                Page::DataPageV2 {
                    buf,
                    num_values,
                    encoding,
                    num_nulls,
                    num_rows,
                    def_levels_byte_len,
                    rep_levels_byte_len,
                    is_compressed: false,
                    statistics,
                }
            }
        })
    }

    /// The first `n_plain` bytes as they are, and what the rest was before it was compressed.
    fn bytes(&self, stored: &[u8], n_plain: usize) -> Result<Vec<u8>> {
        let damaged = |what: String| ParquetError::General(format!("zstd: {what}"));
        let Some((plain, compressed)) = stored.split_at_checked(n_plain) else { return Err(damaged("the page is cut short".into())) };
        let mut bytes = plain.to_vec();
        // A page without values has nothing to compress.
        if compressed.is_empty() {
            return Ok(bytes);
        }
        let decoder = StreamingDecoder::new(compressed).map_err(|error| damaged(error.to_string()))?;
        decoder.take(self.most_bytes + 1).read_to_end(&mut bytes).map_err(|error| damaged(error.to_string()))?;
        if (bytes.len() - n_plain) as u64 > self.most_bytes {
            return Err(damaged(format!("a page holds more than the {} bytes of its column", self.most_bytes)));
        }
        Ok(bytes)
    }
}

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        match self.stored.get_next_page()? {
            Some(page) => self.decoded(page).map(Some),
            None => Ok(None),
        }
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.stored.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.stored.skip_next_page()
    }
}
