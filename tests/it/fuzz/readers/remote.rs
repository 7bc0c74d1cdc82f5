//! What comes over the network: an endpoint's body on its way to a verdict, and a hub's listing on its way to files. A server of this process, on the
//! loopback, answers with the input.

use super::eval::asked;
use super::{Reader, texts};
use crate::fuzz::shape::Shape;
use anyhow::anyhow;
use mpo::eval::judge::openai::{OpenAi, Settings};
use mpo::eval::judge::retry::Policy;
use mpo::eval::judge::rubric::by_name;
use mpo::eval::judge::{Judge, ModelJudge};
use mpo::hub::{Environment, resolve_dataset_files_in, resolve_model_in};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const BODIES: &[&str] = &[
    "choices",
    "message",
    "content",
    "refusal",
    "finish_reason",
    "stop",
    "length",
    "content_filter",
    "tool_calls",
    "reasoning_content",
    "reasoning",
    "delta",
    "text",
    "type",
    "index",
    "error",
    "code",
    "insufficient_quota",
    "context_length_exceeded",
    "unsafe",
    "safe",
    "<think>",
    "</think>",
    "data: {\"choices\": []}\n\n",
    "usage",
    "detail",
    "null",
];

const LISTINGS: &[&str] = &[
    "sha",
    "siblings",
    "rfilename",
    "size",
    "blobId",
    "lfs",
    "sha256",
    "config.json",
    "tokenizer.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "chat_template.jinja",
    "data/train.parquet",
    "../config.json",
    "/etc/passwd.json",
    "a/../b.json",
    "C:\\x.json",
    "config.json?x",
    "CON.json",
    "gated",
    "\u{202e}nosj.gifnoc",
    "0000000000000000000000000000000000000000",
];

pub fn readers() -> Vec<Reader> {
    vec![
        Reader::new(
            "judge-body",
            Shape::Json,
            || {
                texts(&[
                    "{\"id\": \"x\", \"choices\": [{\"index\": 0, \"message\": {\"role\": \"assistant\", \"content\": \"safe\"}, \"finish_reason\": \"stop\"}], \"usage\": {\"total_tokens\": 9}}",
                    "{\"choices\": [{\"message\": {\"content\": [{\"type\": \"text\", \"text\": \"unsafe\"}], \"reasoning_content\": \"It says where.\"}, \"finish_reason\": \"length\"}]}",
                    "{\"choices\": [{\"message\": {\"content\": null, \"refusal\": \"I cannot.\"}, \"finish_reason\": \"content_filter\"}]}",
                    "{\"error\": {\"code\": \"context_length_exceeded\", \"message\": \"This model's maximum context length is 9 tokens.\", \"type\": \"invalid_request_error\"}}",
                ])
            },
            BODIES,
            |_| {
                let server = Server::start(|_| None);
                let settings = Settings {
                    timeout: Duration::from_secs(30),
                    retries: Policy { attempts: 1, delay: Duration::ZERO },
                    ..Settings::new(Some(&format!("{}/v1", server.url)), None)
                };
                Box::new(move |input| {
                    // Errors come with another status, mostly.
                    let is_error = input.windows(7).any(|piece| piece == b"\"error\"") && input.len() % 8 != 0;
                    server.answer(if is_error { [400, 401, 404, 413, 422, 500][input.len() % 6] } else { 200 }, input);
                    let (rubric, transport) = (by_name("multijail")?, OpenAi::new("judge", &settings)?);
                    let judge = ModelJudge::new(rubric.as_ref(), &transport, None);
                    let (item, response) = asked();
                    match judge.judge(&item, &response, &|| false) {
                        Ok(verdict) if verdict.unparsed.is_none() => Ok(format!("{verdict:?}")),
                        Ok(verdict) => Err(anyhow!("{:?}", verdict.unparsed)),
                        Err(failure) => Err(anyhow!("{failure:?}")),
                    }
                })
            },
        ),
        Reader::new(
            "hub-listing",
            Shape::Json,
            || {
                let commit = "1".repeat(40);
                texts(&[
                    &format!(
                        "{{\"sha\": \"{commit}\", \"siblings\": [{{\"rfilename\": \"config.json\", \"size\": 2}}, {{\"rfilename\": \"tokenizer.json\"}}, {{\"rfilename\": \"model.safetensors\", \"size\": 2, \"blobId\": \"{commit}\"}}]}}"
                    ),
                    &format!(
                        "{{\"sha\": \"{commit}\", \"siblings\": [{{\"rfilename\": \"config.json\"}}, {{\"rfilename\": \"data/train.parquet\", \"size\": 2, \"lfs\": {{\"sha256\": \"44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a\", \"size\": 2}}}}]}}"
                    ),
                ])
            },
            LISTINGS,
            |folder| {
                let server = Server::start(|path| (!path.starts_with("/api/")).then(|| b"{}".to_vec()));
                let folder = folder.to_owned();
                Box::new(move |input| {
                    server.answer(200, input);
                    let cache = tempfile::tempdir_in(&folder)?;
                    let mut environment = Environment::from_variables(&|name| match name {
                        "MPO_CACHE" | "HF_HOME" => Some(OsString::from(cache.path())),
                        "HF_ENDPOINT" => Some(OsString::from(&server.url)),
                        _ => None,
                    })?;
                    environment.retry_delay = Duration::ZERO;
                    let all = |paths: &[&str]| Ok(paths.iter().map(|path| (*path).to_owned()).collect());
                    let model = resolve_model_in(&environment, "org/name", None).map(|found| (found.id, found.commit));
                    let data =
                        resolve_dataset_files_in(&environment, "org/rows", None, &all).map(|found| (found.commit, found.files.len()));
                    let outside = outside(&folder, cache.path());
                    assert!(outside.is_empty(), "written outside the cache: {outside:?}");
                    match (model, data) {
                        (Err(error), Err(other)) => {
                            Err(anyhow!("{}", format!("{error:#}\n{other:#}").replace(&cache.path().display().to_string(), "CACHE")))
                        }
                        (model, data) => Ok(format!("{:?} {:?}", model.ok(), data.ok())),
                    }
                })
            },
        ),
    ]
}

/// What lies beside the cache.
fn outside(folder: &std::path::Path, cache: &std::path::Path) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path != cache).collect()
}

/// Answers every request with what it was last told to, on connections that stay: a million of them would need more ports than there are.
struct Server {
    url: String,
    answer: Arc<Mutex<(u16, Vec<u8>)>>,
}

impl Server {
    /// `always` has an answer of its own for some paths.
    fn start(always: fn(&str) -> Option<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answer = Arc::new(Mutex::new((200, Vec::new())));
        let shared = Arc::clone(&answer);
        // Ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || while serve(&stream, &shared, always).is_some() {});
            }
        });
        Self { url, answer }
    }

    fn answer(&self, status: u16, body: &[u8]) {
        *self.answer.lock().unwrap() = (status, body.to_vec());
    }
}

/// Answers one request; none where the connection ends.
fn serve(stream: &TcpStream, answer: &Mutex<(u16, Vec<u8>)>, always: fn(&str) -> Option<Vec<u8>>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let (mut path, mut n_bytes) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if path.is_empty() {
            path = line.split(' ').nth(1)?.to_owned();
        }
        if let Some(length) = line.to_lowercase().strip_prefix("content-length:") {
            n_bytes = length.trim().parse().ok()?;
        }
    }
    reader.take(n_bytes).read_to_end(&mut Vec::new()).ok()?;
    let (status, body) = always(&path).map_or_else(|| answer.lock().unwrap().clone(), |body| (200, body));
    let head = format!("HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
    let mut stream = stream;
    stream.write_all(&[head.as_bytes(), &body].concat()).ok()
}
