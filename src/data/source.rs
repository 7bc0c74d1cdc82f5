//! The bytes of a file that holds JSON: as they are, or unpacked on the way where the file is gzip'ed, whatever its name.
//!
//! What is no text of ours is named by what it begins with: an archive, UTF-16, another compression. Nothing is unpacked as a whole.

use anyhow::{Context, Result, bail, ensure};
use flate2::bufread::MultiGzDecoder;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const GZIP: &[u8] = &[0x1f, 0x8b];

/// What else a file may begin with, what that is, and what to do.
const OTHERS: [(&[u8], &str, &str); 11] = [
    (&[0x28, 0xb5, 0x2f, 0xfd], "compressed with zstd", "unpack it (`zstd -d`), or pack it with gzip"),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], "compressed with xz", "unpack it (`xz -d`), or pack it with gzip"),
    (b"BZh", "compressed with bzip2", "unpack it (`bzip2 -d`), or pack it with gzip"),
    (&[0x04, 0x22, 0x4d, 0x18], "compressed with lz4", "unpack it (`lz4 -d`), or pack it with gzip"),
    (b"PK\x03\x04", "a zip archive", "unpack it (`unzip`), and name the file in it"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it, and name the file in it"),
    (b"PAR1", "a Parquet file within another file", "unpack it (`gunzip`)"),
    (b"ARROW1", "an Arrow file", "save it as Parquet or JSON lines, for example `dataset.to_parquet(…)`"),
    (&[0xff, 0xfe], "UTF-16 text", "save it as UTF-8 (`iconv -f UTF-16 -t UTF-8`)"),
    (&[0xfe, 0xff], "UTF-16 text", "save it as UTF-8 (`iconv -f UTF-16 -t UTF-8`)"),
    (b"SQLite format 3", "an SQLite database", "write its rows as JSON lines"),
];

/// Where a tar archive says that it is one.
const TAR: (usize, &[u8]) = (257, b"ustar");

/// Hands out the text of a file, byte by byte.
pub(super) struct Source {
    reader: Box<dyn Read + Send>,
    is_gzip: bool,
    n_bytes: usize,
    n_read: Arc<AtomicUsize>,
}

impl Source {
    /// # Errors
    /// A file of another kind, which the message names.
    pub fn open(path: &Path) -> Result<Self> {
        let cannot_read = || super::pieces::cannot_read(path);
        let mut file = File::open(path).with_context(cannot_read)?;
        let n_bytes = file.metadata().with_context(cannot_read)?.len() as usize;
        let first = beginning(&mut file).with_context(cannot_read)?;
        let n_read = Arc::new(AtomicUsize::new(0));
        let is_gzip = first.starts_with(GZIP);
        if !is_gzip {
            refuse_others(path, "", &first)?;
        } else {
            file.seek(SeekFrom::Start(0)).with_context(cannot_read)?;
            // What cannot be unpacked is told where it is read, with its line.
            let within = beginning(&mut MultiGzDecoder::new(BufReader::new(&file))).unwrap_or_default();
            ensure!(!within.starts_with(GZIP), "`{}` is gzip within gzip: unpack it once (`gunzip`)", path.display());
            refuse_others(path, "unpacked, ", &within)?;
        }
        file.seek(SeekFrom::Start(0)).with_context(cannot_read)?;
        let counted = Counted { file, n_read: Arc::clone(&n_read) };
        let reader: Box<dyn Read + Send> =
            if is_gzip { Box::new(MultiGzDecoder::new(BufReader::with_capacity(1 << 16, counted))) } else { Box::new(counted) };
        Ok(Self { reader, is_gzip, n_bytes, n_read })
    }

    /// Size of the file.
    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// Bytes of the file that were read, and unpacked if it is packed.
    pub fn position(&self) -> usize {
        self.n_read.load(Ordering::Relaxed).min(self.n_bytes)
    }

    /// Appends up to `n_wanted` bytes of text; fewer at the end of the file only. `line` is where they begin, for an error.
    pub fn read(&mut self, n_wanted: usize, bytes: &mut Vec<u8>, path: &Path, line: impl Fn(&[u8]) -> usize) -> Result<usize> {
        let result = self.reader.by_ref().take(n_wanted as u64).read_to_end(bytes);
        match result {
            Err(error) if self.is_gzip => {
                let what = match error.kind() {
                    io::ErrorKind::UnexpectedEof => "the gzip file ends within its text: it was cut short; fetch it again".to_owned(),
                    _ => format!("the gzip file is damaged ({error}); fetch it again"),
                };
                bail!("{}:{}: {what}", path.display(), line(bytes))
            }
            result => result.with_context(|| super::pieces::cannot_read(path)),
        }
    }
}

/// A file that counts what is read of it.
struct Counted {
    file: File,
    n_read: Arc<AtomicUsize>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.n_read.fetch_add(n, Ordering::Relaxed);
        Ok(n)
    }
}

fn beginning(reader: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(512).read_to_end(&mut bytes).map(|_| bytes)
}

fn refuse_others(path: &Path, how: &str, first: &[u8]) -> Result<()> {
    let is_tar = first.get(TAR.0..).is_some_and(|rest| rest.starts_with(TAR.1));
    let tar = is_tar.then_some(("a tar archive", "unpack it (`tar -xf`), and name the file in it"));
    let other = OTHERS.iter().find(|(magic, ..)| first.starts_with(magic)).map(|(_, what, hint)| (*what, *hint));
    // UTF-16 without a byte order mark: every second byte of `{"` is none.
    let wide = matches!(first, [b'{' | b'[', 0, ..] | [0, b'{' | b'[', ..]);
    let wide = wide.then_some(("UTF-16 text", "save it as UTF-8 (`iconv -f UTF-16 -t UTF-8`)"));
    match tar.or(other).or(wide) {
        Some((what, hint)) => bail!("`{}` is {how}{what}, where JSON, JSON lines or Parquet is expected: {hint}", path.display()),
        None => Ok(()),
    }
}
