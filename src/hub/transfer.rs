//! One file over HTTP into its place: streamed, verified, resumed where it broke off, and never there in part.
//!
//! hf-hub's own download is not used for this: it has no timeouts and no checksums, and it repeats the token to the host that the hub redirects
//! to. Here the bytes go to `NAME.incomplete`, which is renamed only when size and hash are right. Never more is taken than was announced.

use super::environment::{Environment, Token};
use crate::digest::{begin_git_blob, contents_of, hex};
use crate::progress::Progress;
use crate::secret::shown;
use crate::web::{Failed, InTheOpen, Untaken, Waits, Web, read_limited};
use anyhow::{Context, anyhow};
use sha2::{Digest, Sha256};
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use ureq::{Body, http};

/// Without a byte for this long, a connection counts as broken.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
const ATTEMPTS: u32 = 5;
const BUFFER_BYTES: usize = 1 << 20;
/// A listing of a hundred thousand files has some 20 MiB.
const MOST_LISTING_BYTES: u64 = 64 << 20;
/// Of a file whose size nobody announces.
pub(super) const MOST_FILE_BYTES: u64 = 1 << 40;
/// Of one that is no weights and no data: tokenizers have some tens of MiB.
pub(super) const MOST_SMALL_BYTES: u64 = 256 << 20;

/// What to fetch, and what is known about it beforehand.
pub(super) struct Request<'a> {
    pub url: &'a str,
    pub token: Option<&'a Token>,
    /// Names the file to the user, beside the progress bar and in errors: an address may hold secrets.
    pub label: &'a str,
    pub n_bytes: Option<u64>,
    /// Of how much is taken at most where the size is not known, nor announced.
    pub most: u64,
    pub sha256: Option<&'a str>,
    /// The content's name in git, for a file whose sha256 is not known.
    pub git_blob: Option<&'a str>,
}

/// Why a request brought nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server answered with an error; `code` is the hub's own name for it, or empty.
    Refused { status: u16, code: String },
    /// No connection.
    Unreachable(String),
    /// A connection that broke off.
    Broken(String),
    /// The disk, or content other than announced.
    Other(anyhow::Error),
}

impl Failure {
    /// Whether the same request may succeed a little later. Who was never reached is not waited for: most likely there is no network.
    fn may_pass(&self, was_reached: bool) -> bool {
        match self {
            Failure::Refused { status, .. } => *status == 416 || *status == 429 || *status >= 500,
            Failure::Unreachable(_) => was_reached,
            Failure::Broken(_) => true,
            Failure::Other(_) => false,
        }
    }
}

/// More came than was announced.
#[derive(Debug)]
struct TooLong {
    label: String,
    most: u64,
}

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` sends more than the {} bytes that it may have; nothing of it was kept", self.label, self.most)
    }
}

impl std::error::Error for TooLong {}

impl From<Failed> for Failure {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Unreachable(reason) => Failure::Unreachable(reason),
            Failed::Broken(reason) => Failure::Broken(reason),
            Failed::Refused(error) if error.is::<InTheOpen>() => Failure::Other(error.context(
                "a token or password would be sent unencrypted: set HF_ENDPOINT to an https:// address, or HF_HUB_DISABLE_IMPLICIT_TOKEN=1 to send none",
            )),
            Failed::Refused(error) => Failure::Other(error),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Failure::Other(error)
    }
}

/// Fetches again what broke off.
pub(super) struct Client {
    web: Web,
    retry_delay: Duration,
}

impl Client {
    pub fn new(environment: &Environment) -> Self {
        let waits = Waits { response: Some(SILENCE_TIMEOUT), silence: Some(SILENCE_TIMEOUT), whole: None };
        Self { web: Web::new(environment.routes.clone(), waits), retry_delay: environment.retry_delay }
    }

    /// A small JSON document.
    pub fn json<T: serde::de::DeserializeOwned>(&self, url: &str, token: Option<&Token>) -> Result<T, Failure> {
        self.with_retries(|| {
            let mut response = self.get(url, token, 0)?;
            let url = shown(url);
            let text = read_limited(&mut response, MOST_LISTING_BYTES).map_err(|untaken| match untaken {
                Untaken::TooLong(_) => Failure::Other(anyhow!("`{url}`: {untaken}")),
                Untaken::Broken(_) => Failure::Broken(format!("`{url}`: {untaken}")),
            })?;
            serde_json::from_slice(&text)
                .map_err(|error| Failure::Other(anyhow!("`{url}` answered with something else than expected: {error}")))
        })
    }

    /// Downloads to `destination` unless it exists by now, and returns its SHA-256 (hex).
    ///
    /// A transfer that breaks off goes on where it stopped when a checksum will prove the result, in this run or the next.
    pub fn download(&self, request: &Request<'_>, destination: &Path) -> Result<String, Failure> {
        let mut partial = destination.as_os_str().to_owned();
        partial.push(".incomplete");
        let partial = PathBuf::from(partial);
        let cannot_write = || format!("cannot write `{}`", partial.display());
        if let Some(parent) = destination.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot make the folder `{}`", parent.display()))?;
        }
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&partial).with_context(cannot_write)?;
        // A second process that wants the same file waits here, and then finds it done. Some network file systems have no locks: there the
        // checksum still refuses what two writers may have mixed.
        let _ = file.lock();
        if destination.exists() {
            return Ok(contents_of(destination)?.sha256);
        }
        let (digest, git_blob) = self.with_retries(|| {
            // What is too long will be so next time: nothing of it is kept.
            self.transfer(request, &mut file).inspect_err(|failure| {
                if matches!(failure, Failure::Other(error) if error.is::<TooLong>()) {
                    let _ = fs::remove_file(&partial);
                }
            })
        })?;
        let checks = [("sha256", &digest, request.sha256), ("the git blob id", &git_blob, request.git_blob)];
        for (what, actual, expected) in checks {
            if let Some(expected) = expected.filter(|expected| !actual.eq_ignore_ascii_case(expected)) {
                fs::remove_file(&partial).with_context(cannot_write)?;
                return Err(Failure::Other(anyhow!(
                    "`{}` has {what} {actual}, but {expected} was expected; it was not kept. Try again; if it stays so, the file has changed at \
                     its source",
                    request.label
                )));
            }
        }
        file.sync_all().with_context(cannot_write)?;
        fs::rename(&partial, destination).with_context(|| format!("cannot rename `{}`", partial.display()))?;
        Ok(digest)
    }

    fn with_retries<T>(&self, mut attempt: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
        for failed in 0..ATTEMPTS - 1 {
            match attempt() {
                Err(failure) if failure.may_pass(failed > 0) => std::thread::sleep(self.retry_delay * 2u32.pow(failed)),
                result => return result,
            }
        }
        attempt()
    }

    /// One attempt, from what `file` already holds; the whole file's SHA-256 and name in git.
    fn transfer(&self, request: &Request<'_>, file: &mut File) -> Result<(String, String), Failure> {
        let mut start = if request.sha256.is_some() { file.metadata().context("cannot read the partial file")?.len() } else { 0 };
        if request.n_bytes.is_some_and(|n_bytes| start >= n_bytes) {
            start = 0;
        }
        let mut response = match self.get(request.url, request.token, start) {
            Err(Failure::Refused { status: 416, code }) => {
                file.set_len(0).context("cannot write the partial file")?;
                return Err(Failure::Refused { status: 416, code });
            }
            response => response?,
        };
        if response.status().as_u16() != 206 {
            start = 0;
        }
        // Without the length of what is compressed, which says nothing of the file's.
        let announced = response.body().content_length().map(|remaining| start + remaining);
        let n_bytes = request.n_bytes.or(announced);
        let most = n_bytes.unwrap_or(request.most);
        let too_long = || Failure::Other(TooLong { label: request.label.to_owned(), most }.into());
        if announced.is_some_and(|announced| announced > most) {
            return Err(too_long());
        }
        file.set_len(start).and_then(|()| file.rewind()).context("cannot write the partial file")?;
        let mut hash = Sha256::new();
        hash_rest(file, &mut hash).context("cannot read the partial file")?;

        let progress = Progress::download(request.label, start, n_bytes);
        let mut body = response.body_mut().as_reader().take((most - start).saturating_add(1));
        let received = start + copy(&mut body, file, &mut hash, &progress)?;
        if received > most {
            return Err(too_long());
        }
        if let Some(n_bytes) = n_bytes.filter(|n_bytes| received < *n_bytes) {
            return Err(Failure::Broken(format!("the transfer broke off after {received} of {n_bytes} bytes")));
        }
        let git_blob = match request.git_blob {
            Some(_) => name_in_git(file, received).context("cannot read the partial file")?,
            None => String::new(),
        };
        Ok((hex(&hash.finalize()), git_blob))
    }

    /// A successful response, from byte `start` on if the server can do that.
    fn get(&self, url: &str, token: Option<&Token>, start: u64) -> Result<http::Response<Body>, Failure> {
        let authorization = token.map(Token::authorization);
        let response = self.web.get(url, authorization.as_deref(), start)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = header(&response, "x-error-code").unwrap_or_default().to_owned();
        Err(Failure::Refused { status: response.status().as_u16(), code })
    }
}

fn header<'a>(response: &'a http::Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// Copies all of `body` to the end of `file`; the number of bytes.
fn copy(body: &mut impl Read, file: &mut File, hash: &mut Sha256, progress: &Progress) -> Result<u64, Failure> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut total = 0;
    loop {
        let n = match body.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Failure::Broken(format!("the transfer broke off: {error}"))),
        };
        file.write_all(&buffer[..n]).context("cannot write the partial file; is the disk full?")?;
        hash.update(&buffer[..n]);
        progress.advance(n);
        total += n as u64;
    }
}

/// Of a small file: it is read a second time.
fn name_in_git(file: &mut File, n_bytes: u64) -> io::Result<String> {
    file.rewind()?;
    let mut hash = begin_git_blob(n_bytes);
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// Hashes from the file's position to its end.
fn hash_rest(file: &mut File, hash: &mut Sha256) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            n => hash.update(&buffer[..n]),
        }
    }
}
