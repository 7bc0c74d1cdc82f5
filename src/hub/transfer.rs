//! One file over HTTP into its place: streamed, verified, resumed where it broke off, and never there in part.
//!
//! hf-hub's own download is not used for this: it has no timeouts and no checksums, and it repeats the token to the host that the hub redirects
//! to. Here the bytes go to `NAME.incomplete`, which is renamed only when size and SHA-256 are right.

use super::environment::{Environment, Token};
use crate::digest::{contents_of, hex};
use crate::progress::Progress;
use anyhow::{Context, anyhow};
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use ureq::config::RedirectAuthHeaders;
use ureq::{Agent, Body, http};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Without a byte for this long, a connection counts as broken.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
const ATTEMPTS: u32 = 5;
const BUFFER_BYTES: usize = 1 << 20;

/// What to fetch, and what is known about it beforehand.
pub(super) struct Request<'a> {
    pub url: &'a str,
    pub token: Option<&'a Token>,
    /// Names the file to the user, beside the progress bar and in errors: an address may hold secrets.
    pub label: &'a str,
    pub n_bytes: Option<u64>,
    pub sha256: Option<&'a str>,
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

    fn of(error: ureq::Error) -> Self {
        use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, NotConnected};
        let is_unreachable = match &error {
            ureq::Error::Io(error) => matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable | NotConnected),
            ureq::Error::Timeout(timeout) => matches!(timeout, ureq::Timeout::Resolve | ureq::Timeout::Connect),
            ureq::Error::HostNotFound | ureq::Error::ConnectionFailed | ureq::Error::Tls(_) | ureq::Error::Rustls(_) => true,
            _ => false,
        };
        if is_unreachable { Failure::Unreachable(error.to_string()) } else { Failure::Broken(error.to_string()) }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Failure::Other(error)
    }
}

/// An HTTP client with our timeouts.
pub(super) struct Client {
    agent: Agent,
    retry_delay: Duration,
}

impl Client {
    pub fn new(environment: &Environment) -> Self {
        let agent = Agent::config_builder()
            .user_agent(concat!("mpo/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            // A renamed repository redirects on the same host; files are served by others, whose addresses carry their own signature.
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            // Ranges and sizes are those of the file itself.
            .accept_encoding("identity")
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(SILENCE_TIMEOUT))
            .timeout_per_read(Some(SILENCE_TIMEOUT))
            .build()
            .into();
        Self { agent, retry_delay: environment.retry_delay }
    }

    /// A small JSON document.
    pub fn json<T: serde::de::DeserializeOwned>(&self, url: &str, token: Option<&Token>) -> Result<T, Failure> {
        self.with_retries(|| {
            let mut response = self.get(url, token, 0)?;
            let text = response.body_mut().read_to_string().map_err(Failure::of)?;
            serde_json::from_str(&text)
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
        let digest = self.with_retries(|| self.transfer(request, &mut file))?;
        if let Some(expected) = request.sha256
            && !digest.eq_ignore_ascii_case(expected)
        {
            fs::remove_file(&partial).with_context(cannot_write)?;
            return Err(Failure::Other(anyhow!(
                "`{}` has sha256 {digest}, but {expected} was expected; it was not kept. Try again; if it stays so, the file has changed at \
                 its source",
                request.label
            )));
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

    /// One attempt, from what `file` already holds.
    fn transfer(&self, request: &Request<'_>, file: &mut File) -> Result<String, Failure> {
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
        let remaining = header(&response, "content-length").and_then(|length| length.parse::<u64>().ok());
        let n_bytes = request.n_bytes.or(remaining.map(|remaining| start + remaining));
        file.set_len(start).and_then(|()| file.rewind()).context("cannot write the partial file")?;
        let mut hash = Sha256::new();
        hash_rest(file, &mut hash).context("cannot read the partial file")?;

        let progress = Progress::download(request.label, start, n_bytes);
        let received = start + copy(&mut response.body_mut().as_reader(), file, &mut hash, &progress)?;
        match n_bytes {
            Some(n_bytes) if received < n_bytes => {
                Err(Failure::Broken(format!("the transfer broke off after {received} of {n_bytes} bytes")))
            }
            Some(n_bytes) if received > n_bytes => {
                Err(Failure::Other(anyhow!("`{}` sent {received} bytes where {n_bytes} were announced", request.label)))
            }
            _ => Ok(hex(&hash.finalize())),
        }
    }

    /// A successful response, from byte `start` on if the server can do that.
    fn get(&self, url: &str, token: Option<&Token>, start: u64) -> Result<http::Response<Body>, Failure> {
        let mut request = self.agent.get(url);
        if let Some(token) = token {
            request = request.header("Authorization", token.authorization());
        }
        if start > 0 {
            request = request.header("Range", format!("bytes={start}-"));
        }
        let response = request.call().map_err(Failure::of)?;
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
