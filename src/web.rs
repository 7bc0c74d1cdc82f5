//! Connections, for everything that asks another machine: how they are made, through which proxy, how long is waited, who is told a key, and how
//! much of an answer is taken.
//!
//! A key goes to the scheme, host and port that it was meant for, encrypted or within this machine, and follows no redirect to another.
//! What is said to this machine passes no proxy. An answer is limited as it comes, after decompression.

mod address;
mod proxy;

pub use address::{Origin, is_this_machine};
pub use proxy::Routes;

use crate::progress::say;
use crate::secret::shown;
use anyhow::{Result, anyhow, bail};
use std::fmt;
use std::io::{self, Read};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use ureq::http::{Response, header};
use ureq::{Agent, Body};

/// Who has not answered by then, name and connection each, is said to be slow; see [`Web::get`].
const SOON: Duration = Duration::from_millis(900);
/// And is given up then.
const PATIENCE: Duration = Duration::from_secs(5);
const MOST_REDIRECTS: usize = 10;

/// How long a connection may do nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Waits {
    /// Until an answer begins.
    pub response: Option<Duration>,
    /// Between two pieces of it.
    pub silence: Option<Duration>,
    /// For all of a request.
    pub whole: Option<Duration>,
}

/// A client; of one per purpose.
pub struct Web {
    routes: Routes,
    direct: Agent,
    /// Through the proxy for http:// and for https://, once one is needed.
    through: [OnceLock<Agent>; 2],
    waits: Waits,
    /// Since then a wait is no reason to doubt the network.
    was_reached: AtomicBool,
    was_said: AtomicBool,
}

/// Why a request brought no answer.
#[derive(Debug)]
pub enum Failed {
    /// Nobody was reached: no network, no such host, nobody listens there.
    Unreachable(String),
    /// A connection that broke off, or an answer that is none.
    Broken(String),
    /// What must not be asked, or not in this way.
    Refused(anyhow::Error),
}

impl Web {
    pub fn new(routes: Routes, waits: Waits) -> Self {
        let (was_reached, was_said) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { routes, direct: agent(None, waits), through: Default::default(), waits, was_reached, was_said }
    }

    /// An answer of any status but a redirect, from byte `start` on if the server can do that. `authorization` is told to the origin of `url` alone.
    ///
    /// A host that gives no sign of life for two seconds is named to the user, who may know that there is no network, and then waited for
    /// somewhat longer, once.
    ///
    /// # Errors
    /// Nobody was reached; a key would be told to somebody else, or in the open; redirects without end, or to where none may lead.
    pub fn get(&self, url: &str, authorization: Option<&str>, start: u64) -> Result<Response<Body>, Failed> {
        let mut authorization = authorization;
        let mut url = url.to_owned();
        let mut origin = Origin::of(&url).map_err(Failed::Refused)?;
        for _ in 0..=MOST_REDIRECTS {
            ensure_private(&origin, &url, authorization.is_some()).map_err(Failed::Refused)?;
            let response = self.reach(&origin, &url, |agent, connect| {
                let mut request = agent.get(&url).config().timeout_resolve(Some(connect)).timeout_connect(Some(connect)).build();
                if let Some(authorization) = authorization {
                    request = request.header(header::AUTHORIZATION, authorization);
                }
                if start > 0 {
                    request = request.header(header::RANGE, format!("bytes={start}-"));
                }
                request.call()
            })?;
            // 304 is an answer without content to a question that is not asked here.
            let location = response.headers().get(header::LOCATION).filter(|_| response.status().is_redirection());
            let Some(location) = location else { return Ok(response) };
            let to = location.to_str().ok().map(|location| address::join(&url, location));
            let to = to.ok_or_else(|| Failed::Refused(anyhow!("`{}` redirects to what is no address", shown(&url))))?;
            let next = Origin::of(&to)
                .and_then(|next| match origin.is_encrypted() && !next.is_encrypted() {
                    true => bail!("it is not encrypted"),
                    false => Ok(next),
                })
                .map_err(|error| Failed::Refused(error.context(format!("`{}` redirects to `{}`", shown(&url), shown(&to)))))?;
            if next != origin {
                authorization = None;
            }
            (url, origin) = (to, next);
        }
        Err(Failed::Refused(anyhow!("`{}` redirects on and on, more than {MOST_REDIRECTS} times", shown(&url))))
    }

    /// The answer to a JSON body, a redirect too: what was meant for one address is not told to another.
    ///
    /// # Errors
    /// As of [`Web::get`].
    pub fn post(&self, url: &str, authorization: Option<&str>, body: &serde_json::Value) -> Result<Response<Body>, Failed> {
        let origin = Origin::of(url).map_err(Failed::Refused)?;
        ensure_private(&origin, url, authorization.is_some()).map_err(Failed::Refused)?;
        self.reach(&origin, url, |agent, connect| {
            let mut request = agent.post(url).config().timeout_resolve(Some(connect)).timeout_connect(Some(connect)).build();
            if let Some(authorization) = authorization {
                request = request.header(header::AUTHORIZATION, authorization);
            }
            request.send_json(body)
        })
    }

    /// Whether somebody was there before.
    pub fn was_reached(&self) -> bool {
        self.was_reached.load(Ordering::Relaxed)
    }

    fn reach(
        &self,
        origin: &Origin,
        url: &str,
        request: impl Fn(&Agent, Duration) -> Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, Failed> {
        let proxy = self.routes.proxy(origin).map_err(Failed::Refused)?;
        let agent = proxy.as_ref().map_or(&self.direct, |proxy| {
            self.through[usize::from(origin.is_encrypted())].get_or_init(|| agent(Some(proxy.proxy.clone()), self.waits))
        });
        let way = proxy.as_ref().map_or(String::new(), |proxy| format!(" through the proxy `{}` ({})", proxy.shown, proxy.variable));
        let was_reached = self.was_reached();
        let mut answer = request(agent, if was_reached { PATIENCE } else { SOON });
        if !was_reached && answer.as_ref().is_err_and(is_slow) {
            if !self.was_said.swap(true, Ordering::Relaxed) {
                say(&format!("no answer from {origin}{way} yet; trying for some seconds more ({})", shown(url)));
            }
            answer = request(agent, PATIENCE);
        }
        let failed = match answer {
            Ok(response) => {
                self.was_reached.store(true, Ordering::Relaxed);
                return Ok(response);
            }
            Err(error) => error,
        };
        let reason = format!("{}{way}", shown(&failed.to_string()));
        if is_unreachable(&failed) {
            return Err(Failed::Unreachable(reason));
        }
        self.was_reached.store(true, Ordering::Relaxed);
        Err(Failed::Broken(reason))
    }
}

fn agent(proxy: Option<ureq::Proxy>, waits: Waits) -> Agent {
    Agent::config_builder()
        .user_agent(concat!("mpo/", env!("CARGO_PKG_VERSION")))
        .http_status_as_error(false)
        // Redirects are followed here, or not at all.
        .max_redirects(0)
        .max_redirects_will_error(false)
        // Ranges and sizes are those of the file itself.
        .accept_encoding("identity")
        .proxy(proxy)
        .timeout_recv_response(waits.response)
        .timeout_per_read(waits.silence)
        .timeout_global(waits.whole)
        .build()
        .into()
}

fn is_slow(error: &ureq::Error) -> bool {
    matches!(error, ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect))
}

fn is_unreachable(error: &ureq::Error) -> bool {
    use io::ErrorKind::{AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable, NotConnected, TimedOut};
    match error {
        ureq::Error::Io(error) => {
            let kinds = [AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkDown, NetworkUnreachable, NotConnected, TimedOut];
            // A name that cannot be looked up has no kind of its own.
            kinds.contains(&error.kind()) || error.to_string().contains("lookup address")
        }
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed | ureq::Error::ConnectProxyFailed(_) => true,
        ureq::Error::Tls(_) | ureq::Error::Rustls(_) => true,
        _ => is_slow(error),
    }
}

/// # Errors
/// A key, or a password within the address, would travel in the open.
fn ensure_private(origin: &Origin, url: &str, has_key: bool) -> Result<()> {
    if origin.is_encrypted() || origin.is_this_machine() || !(has_key || origin.has_user) {
        return Ok(());
    }
    Err(InTheOpen { shown: shown(url) }.into())
}

/// A key would be readable on the way.
#[derive(Debug)]
pub struct InTheOpen {
    shown: String,
}

impl fmt::Display for InTheOpen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not encrypted, and what is secret would be sent to it in the open: use https://", self.shown)
    }
}

impl std::error::Error for InTheOpen {}

/// Why a body was not taken.
#[derive(Debug)]
pub enum Untaken {
    /// It has more bytes than that.
    TooLong(u64),
    /// It broke off, or cannot be decompressed.
    Broken(io::Error),
}

impl fmt::Display for Untaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong(most) => write!(f, "the answer has more than {most} bytes, which no right answer has"),
            Self::Broken(error) => write!(f, "the answer broke off ({error})"),
        }
    }
}

/// All of a body, if after decompression it has at most `most` bytes; of a longer one no more than that is taken.
///
/// # Errors
/// It is longer, announced or not; it breaks off.
pub fn read_limited(response: &mut Response<Body>, most: u64) -> Result<Vec<u8>, Untaken> {
    if response.body().content_length().is_some_and(|announced| announced > most) {
        return Err(Untaken::TooLong(most));
    }
    let mut bytes = Vec::new();
    response.body_mut().as_reader().take(most.saturating_add(1)).read_to_end(&mut bytes).map_err(Untaken::Broken)?;
    if bytes.len() as u64 > most { Err(Untaken::TooLong(most)) } else { Ok(bytes) }
}
