//! sha256 of what is written or read, in passing; and git's own names of contents.

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, BufReader, Write};
use std::path::Path;

/// `io::copy` takes over the buffer of a `BufReader`; its own, 8 KiB, would make a system call for each.
const BUFFER_BYTES: usize = 1 << 20;

/// A writer that knows the size and sha256 of what went through it.
pub struct HashingWriter<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

/// Size and sha256 (hexadecimal) of a file's contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    pub bytes: u64,
    pub sha256: String,
}

impl<W: Write> HashingWriter<W> {
    pub fn new(inner: W) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }

    /// The inner writer, and what went through it.
    pub fn finish(self) -> (W, Contents) {
        (self.inner, Contents { bytes: self.bytes, sha256: hex(&self.hash.finalize()) })
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(buffer)?;
        self.hash.update(&buffer[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Reads a file through.
pub fn contents_of(path: &Path) -> Result<Contents> {
    let mut writer = HashingWriter::new(io::sink());
    let mut read = || io::copy(&mut BufReader::with_capacity(BUFFER_BYTES, File::open(path)?), &mut writer);
    read().with_context(|| format!("cannot read `{}`", path.display()))?;
    Ok(writer.finish().1)
}

/// The name that git gives to a content of `bytes` bytes, which are to be hashed behind this beginning. It is what a hub tells of small files; two
/// contents of one name can be made on purpose, but not one for the name of a content that somebody else made.
pub fn begin_git_blob(bytes: u64) -> sha1::Sha1 {
    sha1::Sha1::new_with_prefix(format!("blob {bytes}\0"))
}

/// [`begin_git_blob`] of a content in memory, in hexadecimal.
pub fn git_blob_id(content: &[u8]) -> String {
    hex(&begin_git_blob(content.len() as u64).chain_update(content).finalize())
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_and_writing_agree_with_sha256sum() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        let mut writer = HashingWriter::new(File::create(&path).unwrap());
        writer.write_all(b"he").unwrap();
        writer.write_all(b"llo").unwrap();
        let (_, written) = writer.finish();
        // printf hello | sha256sum
        let sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824".to_string();
        assert_eq!(written, Contents { bytes: 5, sha256 });
        assert_eq!(contents_of(&path).unwrap(), written);
    }
}
