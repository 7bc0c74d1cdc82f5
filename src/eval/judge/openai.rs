//! Any endpoint that speaks OpenAI's chat completions: theirs, vLLM, llama.cpp, a proxy.
//!
//! One request a question, greedy, with room for thoughts ([`parameters`](super::parameters)). Busy or failing servers are asked again ([`super::retry`]);
//! what a server says in an error is shown cut, escaped, and without the key, should it repeat that. The [`gate`](super::gate) says what makes a reply.

use super::gate::{Unparsed, Why};
use super::parameters::{Change, MAX_TOKENS, Parameters};
use super::prompt::Prompt;
use super::refusal::{ApiError, Meaning};
use super::retry::{Policy, Retries, Setback, retry_after};
use super::shape::{self, NoMessage};
use super::{Blame, Failure, IsReadable, Reply, ShouldStop, Suspect, Transport};
use crate::escape::one_line;
use crate::progress::say;
use anyhow::{Result, anyhow, ensure};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use ureq::{Agent, Body, http};

pub const DEFAULT_URL: &str = "https://api.openai.com/v1";
pub const KEY_VARIABLE: &str = "OPENAI_API_KEY";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Of a reply's body, as it is once it is unpacked. A verdict with its reasons takes some KiB.
const MOST_BYTES: u64 = 4 << 20;
/// Of a server's error, in characters.
const SHOWN: usize = 200;

/// A secret. There is no `Display`, and `Debug` hides it.
#[derive(Clone)]
pub struct ApiKey(String);

impl ApiKey {
    /// `None` for a blank one.
    ///
    /// # Errors
    ///
    /// It holds what no HTTP header can.
    pub fn new(key: &str) -> Result<Option<Self>> {
        let key = key.trim();
        ensure!(
            key.chars().all(|c| c.is_ascii_graphic()),
            "{KEY_VARIABLE} holds a space, a line break or a letter that no key has; is all of it the key?"
        );
        Ok((!key.is_empty()).then(|| Self(key.to_owned())))
    }

    /// # Errors
    ///
    /// As [`ApiKey::new`].
    pub fn from_environment() -> Result<Option<Self>> {
        Self::new(&std::env::var(KEY_VARIABLE).unwrap_or_default())
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(hidden)")
    }
}

/// Everything but the model.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Up to and with `/v1`.
    pub url: String,
    pub key: Option<ApiKey>,
    /// For one whole request. Judges that think first are slow.
    pub timeout: Duration,
    pub retries: Policy,
    /// A reply that needs more is cut off, and no verdict.
    pub max_tokens: usize,
}

impl Settings {
    pub fn new(url: Option<&str>, key: Option<ApiKey>) -> Self {
        let url = url.unwrap_or(DEFAULT_URL).to_owned();
        Self { url, key, timeout: Duration::from_secs(300), retries: Policy::default(), max_tokens: MAX_TOKENS }
    }
}

/// A model behind an endpoint.
pub struct OpenAi {
    model: String,
    url: String,
    key: Option<ApiKey>,
    agent: Agent,
    retries: Retries,
    wished: Parameters,
    /// What is left of them once the endpoint has refused some.
    parameters: Mutex<Parameters>,
}

/// An answer with status 200, or what stands in its place.
type Answer = Result<String, Setback>;

/// An error of the server's, and when it wants to be asked again.
struct Refused {
    error: ApiError,
    after: Option<Duration>,
}

impl OpenAi {
    /// # Errors
    ///
    /// An address or a model name that cannot be right, no key where the default endpoint is asked, or a key that would travel unencrypted.
    pub fn new(model: &str, settings: &Settings) -> Result<Self> {
        ensure!(!model.trim().is_empty(), "`openai:` wants a model behind it, as in `openai:gpt-4o`");
        let url = settings.url.trim_end_matches('/').trim_end_matches("/chat/completions").to_owned();
        let authority = url.split_once("://").map_or("", |(_, rest)| rest.split('/').next().unwrap_or_default());
        ensure!(
            (url.starts_with("http://") || url.starts_with("https://")) && !authority.is_empty(),
            "`{}` is no address of a server; one looks like {DEFAULT_URL} or http://localhost:8000/v1",
            one_line(&settings.url, SHOWN)
        );
        // An address is named in errors and results, a secret must not be.
        ensure!(
            !authority.contains('@') && !url.contains(['?', '#']),
            "the judge's address must hold no user, password or query: what is secret belongs into {KEY_VARIABLE}"
        );
        ensure!(
            settings.key.is_some() || url != DEFAULT_URL,
            "{DEFAULT_URL} wants a key: set {KEY_VARIABLE}, or name a server of your own with `--judge-url http://localhost:8000/v1`"
        );
        ensure!(
            settings.key.is_none() || url.starts_with("https://") || is_this_machine(authority),
            "`{url}` is not encrypted, and {KEY_VARIABLE} would be sent to it in the open: use https://, or unset the variable if the \
             server wants no key"
        );
        let wished = Parameters::wished(settings.max_tokens);
        Ok(Self {
            model: model.trim().to_owned(),
            url,
            key: settings.key.clone(),
            agent: agent(settings),
            retries: Retries::new(settings.retries),
            wished,
            parameters: Mutex::new(wished),
        })
    }

    /// Asks once, and at once again without what the endpoint refuses.
    fn ask(&self, prompt: &Prompt) -> Result<Reply, Setback> {
        let begun = *self.parameters();
        // What this question is asked with, and what further ones will be.
        let (mut now, mut further) = (begun, begun);
        loop {
            match self.attempt(prompt, &now) {
                Ok(answer) => {
                    if !matches!(answer, Err(Setback::Once(_) | Setback::Again { .. })) {
                        self.adopt(&further);
                    }
                    return answer.map(|text| Reply { without: now.left_out(), ..Reply::new(text) });
                }
                Err(refused) => match now.without_refused(&refused.error) {
                    Some(Change::All(next)) => (now, further) = (next, further.with(&next)),
                    Some(Change::One(next)) => now = next,
                    None => return Err(self.setback(&refused)),
                },
            }
        }
    }

    /// # Errors
    /// The server answers with an error, whatever its status.
    fn attempt(&self, prompt: &Prompt, parameters: &Parameters) -> Result<Answer, Refused> {
        let mut body = Map::from_iter([("model".to_owned(), json!(self.model)), ("messages".to_owned(), json!(prompt.messages))]);
        parameters.write(&mut body);
        let mut request = self.agent.post(format!("{}/chat/completions", self.url));
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {}", key.0));
        }
        let mut response = match request.send_json(&body) {
            Ok(response) => response,
            Err(error) => return Ok(Err(self.of_connection(&error))),
        };
        let after = retry_after(|name| Some(response.headers().get(name)?.to_str().ok()?.to_owned()));
        let status = response.status();
        let text = read(&mut response);
        if !status.is_success() {
            let text = self.without_key(&text.ok().flatten().unwrap_or_default());
            return Err(Refused { error: ApiError::of_body(status.as_u16(), &text), after });
        }
        let text = match text {
            Ok(Some(text)) => self.without_key(&text),
            Ok(None) => {
                let what = format!("the server answered with more than {} MiB", MOST_BYTES >> 20);
                return Ok(Err(declined(Why::Malformed, what)));
            }
            Err(error) => return Ok(Err(self.of_connection(&error))),
        };
        match shape::read(&text) {
            Ok(message) => Ok(message.into_text().map_err(|unparsed| Setback::Final(Failure::Declined(unparsed)))),
            Err(NoMessage::Error(error)) => Err(Refused { error: *error, after }),
            Err(NoMessage::Empty(what)) => Ok(Err(Setback::Once(Failure::Declined(Unparsed::new(Why::Filtered, what))))),
            Err(NoMessage::Other(what)) => Ok(Err(Setback::Once(self.suspect(
                Why::Malformed,
                format!("the server answered with {what}"),
                &format!("answered with {what}, not with a chat completion: is `--judge-url` right? It ends in /v1"),
            )))),
        }
    }

    /// What an error means.
    fn setback(&self, refused: &Refused) -> Setback {
        let error = &refused.error;
        let (status, message) = (error.status, one_line(&error.message, SHOWN));
        let said = if message.is_empty() { String::new() } else { format!(" ({message})") };
        let fatal = |text: String| Setback::Final(Failure::Fatal(anyhow!("{} {text}", self.whom())));
        match error.meaning() {
            Meaning::Busy => Setback::Again { reason: format!("it answered with status {status}{said}"), after: refused.after },
            Meaning::NoQuota => fatal(format!("says that the account's quota is used up (status {status})")),
            // Servers repeat parts of a wrong key: nothing of what they say is shown.
            Meaning::NoKey => fatal(match self.key {
                Some(_) => format!("refuses the key (status {status}): is {KEY_VARIABLE} right, and may it use this model?"),
                None => format!("wants a key (status {status}): set {KEY_VARIABLE}"),
            }),
            Meaning::NoModel => fatal(format!("does not know the model (status {status}){said}: check the model's name")),
            Meaning::NotThere => {
                fatal(format!("is not there (status {status}){said}: check the model's name, and that `--judge-url` ends in /v1"))
            }
            Meaning::Elsewhere => fatal(format!("redirects to another address (status {status}): give the final one to `--judge-url`")),
            Meaning::Filtered => declined(Why::Filtered, format!("the judge's server declined the question for its content{said}")),
            Meaning::TooLong => declined(Why::TooLong, format!("the question is longer than the judge can read{said}")),
            Meaning::Unclear => Setback::Final(self.suspect(
                Why::Rejected,
                format!("status {status}{said}"),
                &format!("refuses the request with status {status}{said}"),
            )),
        }
    }

    /// A failure that is the question's fault unless all questions fail so.
    fn suspect(&self, why: Why, detail: String, error: &str) -> Failure {
        Failure::Suspect(Suspect {
            unparsed: Unparsed::new(why, detail),
            blame: Blame::Question,
            error: format!("{} {error}", self.whom()),
        })
    }

    fn of_connection(&self, error: &ureq::Error) -> Setback {
        let text = one_line(&self.without_key(&error.to_string()), SHOWN);
        match error {
            ureq::Error::Timeout(_) => Setback::Again { reason: format!("it did not answer in time ({text})"), after: None },
            ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => Setback::Unreachable(format!("no answer came through ({text})")),
            ureq::Error::Io(io) if io.kind() == std::io::ErrorKind::ConnectionRefused => {
                Setback::Unreachable(format!("no answer came through ({text})"))
            }
            _ => Setback::Again { reason: format!("no answer came through ({text})"), after: None },
        }
    }

    /// Asks further questions with what worked, and says so where that is new.
    fn adopt(&self, found: &Parameters) {
        let (before, after) = {
            let mut parameters = self.parameters();
            let before = *parameters;
            *parameters = before.with(found);
            (before, *parameters)
        };
        for change in after.changes_since(&before) {
            say(&format!("note: {} {change}", self.whom()));
        }
    }

    /// They are whole whenever the lock is free.
    fn parameters(&self) -> MutexGuard<'_, Parameters> {
        self.parameters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn without_key(&self, text: &str) -> String {
        self.key.as_ref().map_or_else(|| text.to_owned(), |key| text.replace(&key.0, "[hidden]"))
    }

    fn whom(&self) -> String {
        format!("the judge `{}` at {}", one_line(&self.model, SHOWN), self.url)
    }
}

impl Transport for OpenAi {
    /// The default endpoint goes without saying.
    fn identity(&self) -> String {
        let at = if self.url == DEFAULT_URL { String::new() } else { format!("@{}", self.url) };
        format!("openai:{}{at}", self.model)
    }

    fn parameters(&self) -> BTreeMap<String, Value> {
        OpenAi::parameters(self).card()
    }

    /// By what is wished for: whether the endpoint has it is found out anew.
    fn keys(&self, prompt: &Prompt) -> Vec<String> {
        let identity = self.identity();
        vec![prompt.key(&format!("{identity} {}", self.wished.key())), prompt.key(&identity)]
    }

    fn complete(&self, prompt: &Prompt, _: IsReadable<'_>, should_stop: ShouldStop<'_>) -> Result<Reply, Failure> {
        self.retries.run(&self.whom(), should_stop, || self.ask(prompt))
    }
}

/// What requests go through.
fn agent(settings: &Settings) -> Agent {
    Agent::config_builder()
        .user_agent(concat!("mpo/", env!("CARGO_PKG_VERSION")))
        .http_status_as_error(false)
        // The key goes to the address that the user named, and nowhere else.
        .max_redirects(0)
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_global(Some(settings.timeout))
        .build()
        .into()
}

/// The body, unpacked; `None` where it is too large. No more of it is read than that shows.
fn read(response: &mut http::Response<Body>) -> Result<Option<String>, ureq::Error> {
    let mut bytes = Vec::new();
    response.body_mut().as_reader().take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= MOST_BYTES).then(|| String::from_utf8_lossy(&bytes).into_owned()))
}

fn declined(why: Why, what: String) -> Setback {
    Setback::Final(Failure::Declined(Unparsed::new(why, what)))
}

/// What is said to it does not leave the machine.
fn is_this_machine(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str, key: &str) -> Settings {
        Settings::new(Some(url), ApiKey::new(key).unwrap())
    }

    fn error(url: &str, key: &str) -> String {
        let error = OpenAi::new("m", &settings(url, key)).err().map(|error| format!("{error:#}")).unwrap_or_default();
        assert!(key.is_empty() || !error.contains(key), "{error}");
        error
    }

    #[test]
    fn addresses_are_checked_before_anything_is_sent() {
        assert!(error("localhost:8000", "").contains("no address"));
        assert!(error("ftp://host/v1", "").contains("no address"));
        assert!(error("https://user:sk-secret@host/v1", "").contains("no user, password or query"));
        assert!(!error("https://host/v1?key=sk-secret", "").contains("sk-secret"));
        assert!(error("http://judge.example/v1", "sk-secret").contains("in the open"));
        assert!(error(DEFAULT_URL, "").contains("set OPENAI_API_KEY"));
        for (url, key) in [
            ("http://localhost:8000/v1", "sk-secret"),
            ("http://127.0.0.1:8000/v1/", "sk-secret"),
            ("http://[::1]:8000/v1", "sk-secret"),
            ("http://judge.example/v1", ""),
            ("https://judge.example/v1/chat/completions", "sk-secret"),
            (DEFAULT_URL, "sk-secret"),
        ] {
            assert_eq!(error(url, key), "");
        }
        assert!(OpenAi::new(" ", &settings(DEFAULT_URL, "k")).is_err());
    }

    #[test]
    fn the_model_is_named_with_its_endpoint() {
        let identity = |url: &str| OpenAi::new("gpt-4o", &settings(url, "k")).unwrap().identity();
        assert_eq!(identity(DEFAULT_URL), "openai:gpt-4o");
        assert_eq!(identity("https://api.openai.com/v1/chat/completions"), "openai:gpt-4o");
        assert_eq!(identity("http://localhost:1/v1/"), "openai:gpt-4o@http://localhost:1/v1");
    }

    #[test]
    fn a_cache_knows_a_reply_by_all_that_was_asked() {
        let keys = |model: &str, url: &str, max_tokens: usize, text: &str| {
            OpenAi::new(model, &Settings { max_tokens, ..settings(url, "k") }).unwrap().keys(&Prompt::user(text))
        };
        let one = keys("m", DEFAULT_URL, 100, "a");
        assert_eq!(one, keys("m", DEFAULT_URL, 100, "a"));
        for other in [
            keys("n", DEFAULT_URL, 100, "a"),
            keys("m", "http://localhost:1/v1", 100, "a"),
            keys("m", DEFAULT_URL, 101, "a"),
            keys("m", DEFAULT_URL, 100, "b"),
        ] {
            assert_ne!(one[0], other[0]);
        }
        assert_eq!(one[1], Prompt::user("a").key("openai:m"), "what versions before knew it by");
    }

    #[test]
    fn keys_are_hidden_and_whole() {
        let key = ApiKey::new(" sk-secret\n").unwrap().unwrap();
        assert_eq!((key.0.as_str(), format!("{key:?}")), ("sk-secret", "ApiKey(hidden)".to_owned()));
        assert!(!format!("{:?}", settings(DEFAULT_URL, "sk-secret")).contains("sk-secret"));
        assert!(ApiKey::new(" ").unwrap().is_none());
        assert!(!ApiKey::new("sk-secret\nsk-other").unwrap_err().to_string().contains("sk-"));
    }
}
