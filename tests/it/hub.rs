//! Files from a hub that a local server plays: what is fetched, kept, resumed and refused, and what the errors say.

use mpo::config::DataConfig;
use mpo::digest::git_blob_id;
use mpo::hub::{Environment, ModelFiles, Token, resolve_data_in, resolve_model_in};
use mpo::model::weights::{Checkpoint, SavedDtype, TensorToSave, save};
use mpo::web::Routes;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub const COMMIT: &str = "1111111111111111111111111111111111111111";
const OLDER_COMMIT: &str = "2222222222222222222222222222222222222222";
pub const SECRET: &str = "hf_SECRETSECRET";

#[derive(Debug, Clone)]
pub struct Request {
    pub path: String,
    pub headers: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Closes the connection after this many bytes of the body.
    pub cut_after: Option<usize>,
}

impl Response {
    pub fn ok(body: Vec<u8>) -> Self {
        Self { status: 200, body, ..Self::default() }
    }

    fn error(status: u16, code: &str) -> Self {
        Self { status, headers: vec![("X-Error-Code", code.to_owned())], ..Self::default() }
    }
}

/// An HTTP server on a loopback port, one request a connection.
pub struct Server {
    pub port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn new(answer: impl Fn(&Request) -> Response + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&requests);
        // Ends with the test process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let request = read_request(&stream);
                log.lock().unwrap().push(request.clone());
                respond(stream, &answer(&request));
            }
        });
        Self { port, requests }
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    fn paths(&self) -> Vec<String> {
        self.requests().into_iter().map(|request| request.path).collect()
    }
}

fn read_request(stream: &TcpStream) -> Request {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let path = lines.next().unwrap_or_default().split(' ').nth(1).unwrap_or_default().to_owned();
    let headers = lines.take_while(|line| !line.is_empty()).filter_map(|line| {
        let (name, value) = line.split_once(": ")?;
        Some((name.to_ascii_lowercase(), value.to_owned()))
    });
    Request { path, headers: headers.collect() }
}

fn respond(mut stream: TcpStream, response: &Response) {
    let mut head = format!("HTTP/1.1 {} X\r\nContent-Length: {}\r\nConnection: close\r\n", response.status, response.body.len());
    for (name, value) in &response.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let body = &response.body[..response.cut_after.unwrap_or(response.body.len())];
    // A client that has seen enough may hang up.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(b"\r\n")).and_then(|()| stream.write_all(body));
}

/// The file itself, or the rest of it that a `Range` header asks for.
fn content(request: &Request, body: &[u8]) -> Response {
    match request.headers.get("range") {
        None => Response::ok(body.to_vec()),
        Some(range) => {
            let start: usize = range.strip_prefix("bytes=").and_then(|range| range.strip_suffix('-')).unwrap().parse().unwrap();
            let range = format!("bytes {start}-{}/{}", body.len() - 1, body.len());
            Response { status: 206, headers: vec![("Content-Range", range)], body: body[start..].to_vec(), cut_after: None }
        }
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub type Files = BTreeMap<String, Vec<u8>>;

/// Answers for `org/name` as the hub does: a listing with hashes, small files directly, large ones by a redirect to `cdn`.
fn play_hub(request: &Request, files: &Files, cdn: &str) -> Response {
    let path = request.path.split('?').next().unwrap();
    for (prefix, kind) in [("/api/models/", ""), ("/api/datasets/", "datasets/")] {
        let Some(rest) = path.strip_prefix(prefix) else { continue };
        return match rest.strip_prefix("org/name/revision/") {
            Some("main") => Response::ok(listing(files, COMMIT).to_string().into_bytes()),
            Some("v1" | OLDER_COMMIT) => Response::ok(listing(files, OLDER_COMMIT).to_string().into_bytes()),
            Some(_) => Response::error(404, "RevisionNotFound"),
            None => Response::error(401, &format!("{kind}RepoNotFound")),
        };
    }
    let path = path.strip_prefix("/datasets").unwrap_or(path);
    let file = [COMMIT, OLDER_COMMIT].iter().find_map(|commit| path.strip_prefix(&format!("/org/name/resolve/{commit}/"))).unwrap();
    if file.ends_with(".safetensors") {
        return Response { status: 302, headers: vec![("Location", format!("{cdn}/{file}"))], ..Response::default() };
    }
    content(request, &files[file])
}

pub fn listing(files: &Files, commit: &str) -> Value {
    let entry = |(path, bytes): (&String, &Vec<u8>)| {
        if path.ends_with(".safetensors") {
            json!({"rfilename": path, "size": 134, "blobId": "a".repeat(40), "lfs": {"sha256": sha256(bytes), "size": bytes.len()}})
        } else {
            json!({"rfilename": path, "size": bytes.len(), "blobId": git_blob_id(bytes)})
        }
    };
    json!({"sha": commit, "siblings": files.iter().map(entry).collect::<Vec<_>>()})
}

/// A hub, the host that serves its large files, and empty caches.
pub struct World {
    pub hub: Server,
    pub cdn: Server,
    pub caches: tempfile::TempDir,
}

impl World {
    pub fn new(files: Files) -> Self {
        Self::with(files, |_| None)
    }

    /// A hub whose repository has this name, and small files only.
    pub fn named(id: &'static str, files: Files) -> Self {
        let here = files.clone();
        Self::with(files, move |request| {
            let asked = Request { path: request.path.replace(id, "org/name"), ..request.clone() };
            request.path.contains(id).then(|| play_hub(&asked, &here, ""))
        })
    }

    /// `instead` may answer in the hub's and the large files' place.
    pub fn with(files: Files, instead: impl Fn(&Request) -> Option<Response> + Send + Clone + 'static) -> Self {
        let (cdn_files, cdn_instead) = (files.clone(), instead.clone());
        let cdn = Server::new(move |request| cdn_instead(request).unwrap_or_else(|| content(request, &cdn_files[&request.path[1..]])));
        let address = format!("http://127.0.0.1:{}", cdn.port);
        let hub = Server::new(move |request| instead(request).unwrap_or_else(|| play_hub(request, &files, &address)));
        Self { hub, cdn, caches: tempfile::tempdir().unwrap() }
    }

    pub fn environment(&self, token: Option<&str>) -> Environment {
        Environment {
            hub_cache: self.caches.path().join("hub"),
            mpo_cache: self.caches.path().join("mpo"),
            // Another name than the one of the large files' host.
            endpoint: format!("http://localhost:{}", self.hub.port),
            token: token.and_then(Token::new),
            offline: false,
            routes: Routes::default(),
            retry_delay: Duration::ZERO,
        }
    }

    pub fn offline(&self) -> Environment {
        Environment { offline: true, ..self.environment(None) }
    }

    pub fn resolve(&self, revision: Option<&str>) -> anyhow::Result<ModelFiles> {
        resolve_model_in(&self.environment(None), "org/name", revision)
    }

    pub fn n_requests(&self) -> usize {
        self.hub.requests().len() + self.cdn.requests().len()
    }
}

pub fn error_text<T: std::fmt::Debug>(result: anyhow::Result<T>) -> String {
    let text = format!("{:#}", result.unwrap_err());
    assert!(!text.contains(SECRET), "{text}");
    text
}

/// Two shards with an index, what belongs to a model, and what is never fetched.
pub fn sharded_model() -> Files {
    let dir = tempfile::tempdir().unwrap();
    let values = [0.5; 64];
    let tensor = |name| TensorToSave { name, shape: &[8, 8], values: &values, dtype: SavedDtype::F32 };
    save(dir.path(), &[tensor("a"), tensor("b")], 300).unwrap();
    let mut files: Files = fs::read_dir(dir.path())
        .unwrap()
        .flatten()
        .map(|file| (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap()))
        .collect();
    assert_eq!(files.len(), 3);
    for (name, text) in [
        ("config.json", "{\"model_type\":\"llama\"}"),
        ("generation_config.json", "{}"),
        ("tokenizer.json", "{\"version\":\"1.0\"}"),
        ("tokenizer_config.json", "{\"a\":1}"),
        ("chat_template.jinja", "{{ messages }}"),
        ("README.md", "# name"),
        ("pytorch_model.bin", "pickle"),
        ("consolidated.safetensors", "other weights"),
        ("original/params.json", "{\"b\":1}"),
        ("run.py", "import os"),
    ] {
        files.insert(name.to_owned(), text.as_bytes().to_vec());
    }
    files
}

const FETCHED: [&str; 8] = [
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

pub fn file_names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir).unwrap().flatten().map(|file| file.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_model_is_fetched_once_and_then_used_without_a_request() {
    let world = World::new(sharded_model());
    let model = world.resolve(None).unwrap();
    assert_eq!(file_names(&model.dir), FETCHED);
    assert_eq!((model.id.as_str(), model.revision.as_deref(), model.commit.as_deref()), ("org/name", None, Some(COMMIT)));
    assert_eq!(Checkpoint::open(&model.dir).unwrap().n_parameters(), 128);
    // One listing, then one request a file (the weights' are redirected), all at the same commit.
    let paths = world.hub.paths();
    assert_eq!(paths[0], "/api/models/org/name/revision/main?blobs=true");
    assert_eq!(paths.len(), 1 + FETCHED.len());
    assert!(paths[1..].iter().all(|path| path.starts_with(&format!("/org/name/resolve/{COMMIT}/"))), "{paths:?}");
    // The layout of huggingface_hub.
    let repo = world.caches.path().join("hub/models--org--name");
    assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(model.dir, repo.join("snapshots").join(COMMIT));
    let target = fs::read_link(model.dir.join("config.json")).unwrap();
    assert!(target.starts_with("../../blobs"), "{target:?}");

    let n_requests = world.n_requests();
    assert_eq!(world.resolve(None).unwrap(), model);
    assert_eq!(resolve_model_in(&world.offline(), "org/name", None).unwrap(), model);
    assert_eq!(world.resolve(Some(COMMIT)).unwrap().dir, model.dir);
    assert_eq!(world.n_requests(), n_requests);
}

#[test]
fn a_single_file_is_preferred_to_other_weights() {
    let mut files = sharded_model();
    files.insert("model.safetensors".into(), files["model-00001-of-00002.safetensors"].clone());
    let world = World::new(files);
    let model = world.resolve(None).unwrap();
    assert_eq!(world.cdn.paths(), ["/model.safetensors"]);
    assert_eq!(Checkpoint::open(&model.dir).unwrap().n_parameters(), 64);
}

#[test]
fn a_revision_has_its_own_snapshot() {
    let world = World::new(sharded_model());
    let main = world.resolve(None).unwrap();
    let tagged = world.resolve(Some("v1")).unwrap();
    assert_eq!(tagged.commit.as_deref(), Some(OLDER_COMMIT));
    assert_eq!(tagged.revision.as_deref(), Some("v1"));
    assert_ne!(tagged.dir, main.dir);
    // Content that both commits share is not fetched again.
    assert_eq!(world.cdn.requests().len(), 2);
    let text = error_text(world.resolve(Some("v9")));
    assert!(text.contains("`org/name` has no revision `v9`"), "{text}");
    assert!(error_text(world.resolve(Some("../../etc"))).contains("is not a revision"));
}

#[test]
fn a_cache_that_lacks_a_file_is_completed() {
    let world = World::new(sharded_model());
    let model = world.resolve(None).unwrap();
    // As an interrupted download leaves it, or a program that wanted no template.
    fs::remove_file(model.dir.join("model-00002-of-00002.safetensors")).unwrap();
    let text = error_text(resolve_model_in(&world.offline(), "org/name", None));
    assert!(text.contains("HF_HUB_OFFLINE is set") && text.contains("not all of its weights"), "{text}");
    world.resolve(None).unwrap();
    fs::remove_file(model.dir.join("tokenizer_config.json")).unwrap();
    world.resolve(None).unwrap();
    assert_eq!(file_names(&model.dir), FETCHED);
    // The content itself was still there.
    assert_eq!(world.cdn.requests().len(), 2);
}

#[test]
fn the_token_goes_to_the_hub_and_to_no_other_host() {
    let world = World::new(sharded_model());
    resolve_model_in(&world.environment(Some(SECRET)), "org/name", None).unwrap();
    let authorization = |request: &Request| request.headers.get("authorization").cloned();
    assert!(world.hub.requests().iter().all(|request| authorization(request) == Some(format!("Bearer {SECRET}"))));
    assert_eq!(world.cdn.requests().iter().filter_map(authorization).collect::<Vec<_>>(), Vec::<String>::new());
    assert_eq!(world.cdn.requests().len(), 2);
}

#[test]
fn a_gated_model_says_how_to_get_in() {
    // The listing of a gated model is public; its files are not.
    let gated = |status| move |request: &Request| request.path.contains("/resolve/").then(|| Response::error(status, "GatedRepo"));
    let world = World::with(sharded_model(), gated(401));
    let text = error_text(world.resolve(None));
    for words in ["`org/name` is gated", "accept its licence at http://localhost", "/org/name", "HF_TOKEN", "/settings/tokens"] {
        assert!(text.contains(words), "{text:?} does not say {words:?}");
    }
    let world = World::with(sharded_model(), gated(403));
    let text = error_text(resolve_model_in(&world.environment(Some(SECRET)), "org/name", None));
    assert!(text.contains("your token has no access") && text.contains("fine-grained"), "{text}");
}

#[test]
fn a_model_that_is_not_there_says_so() {
    let world = World::new(sharded_model());
    let text = error_text(resolve_model_in(&world.environment(None), "org/nmae", None));
    assert!(text.contains("there is no model `org/nmae`") && text.contains("private or gated"), "{text}");
    let text = error_text(resolve_model_in(&world.environment(Some(SECRET)), "org/nmae", None));
    assert!(text.contains("refused the token, or there is no model `org/nmae`"), "{text}");
    let text = error_text(resolve_model_in(&world.offline(), "org/name", None));
    assert!(text.contains("HF_HUB_OFFLINE is set") && text.contains("is not in the cache"), "{text}");
}

#[test]
fn no_network_is_told_from_a_wrong_name() {
    let world = World::new(Files::new());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let environment = Environment { endpoint: format!("http://127.0.0.1:{port}"), ..world.environment(Some(SECRET)) };
    let text = error_text(resolve_model_in(&environment, "org/name", None));
    assert!(text.contains("cannot reach") && text.contains("is there a network?"), "{text}");
}

#[test]
fn repositories_without_usable_weights_are_refused() {
    let mut files = sharded_model();
    files.retain(|name, _| !name.starts_with("model"));
    let text = error_text(World::new(files).resolve(None));
    assert!(text.contains("has neither `model.safetensors` nor") && text.contains("never pickles"), "{text}");
    let mut files = sharded_model();
    files.remove("model-00002-of-00002.safetensors");
    let text = error_text(World::new(files).resolve(None));
    assert!(text.contains("names the shard `model-00002-of-00002.safetensors`, which the repository lacks"), "{text}");
    let mut files = sharded_model();
    files.remove("config.json");
    assert!(error_text(World::new(files).resolve(None)).contains("has no config.json"));
}

#[test]
fn an_interrupted_download_goes_on_where_it_stopped() {
    let files = sharded_model();
    let shard = files["model-00001-of-00002.safetensors"].clone();
    let body = shard.clone();
    let cut = move |request: &Request| {
        let is_first = request.path == "/model-00001-of-00002.safetensors" && !request.headers.contains_key("range");
        is_first.then(|| Response { cut_after: Some(100), ..Response::ok(body.clone()) })
    };
    let world = World::with(files, cut);
    let model = world.resolve(None).unwrap();
    assert_eq!(fs::read(model.dir.join("model-00001-of-00002.safetensors")).unwrap(), shard);
    let ranges: Vec<Option<String>> = world.cdn.requests().iter().map(|request| request.headers.get("range").cloned()).collect();
    assert_eq!(ranges, [None, Some("bytes=100-".into()), None]);
}

#[test]
fn a_busy_hub_is_asked_again() {
    let n_refused = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&n_refused);
    let busy = move |request: &Request| {
        let mut n = counter.lock().unwrap();
        let refuses = request.path.starts_with("/api/") && *n < 3;
        refuses.then(|| {
            *n += 1;
            Response::error(if *n == 1 { 429 } else { 503 }, "")
        })
    };
    let world = World::with(sharded_model(), busy);
    assert_eq!(file_names(&world.resolve(None).unwrap().dir), FETCHED);
    assert_eq!(*n_refused.lock().unwrap(), 3);
    let text = error_text(World::with(sharded_model(), |_| Some(Response::error(500, ""))).resolve(None));
    assert!(text.contains("answered with status 500"), "{text}");
}

#[test]
fn a_download_that_keeps_breaking_off_is_an_error_and_the_next_run_resumes() {
    let files = sharded_model();
    let shard = files["model-00001-of-00002.safetensors"].clone();
    let is_up = Arc::new(Mutex::new(false));
    let (up, body) = (Arc::clone(&is_up), shard.clone());
    let flaky = move |request: &Request| {
        let breaks = request.path == "/model-00001-of-00002.safetensors" && !*up.lock().unwrap();
        breaks.then(|| Response { cut_after: Some(10), ..content(request, &body) })
    };
    let world = World::with(files, flaky);
    let text = error_text(world.resolve(None));
    assert!(text.contains("cannot download `model-00001-of-00002.safetensors`") && text.contains("Run the same command again"), "{text}");
    let blob = world.caches.path().join(format!("hub/models--org--name/blobs/{}", sha256(&shard)));
    assert!(!blob.exists());
    *is_up.lock().unwrap() = true;
    let model = world.resolve(None).unwrap();
    // Five attempts brought ten bytes each.
    assert!(world.cdn.requests().iter().any(|request| request.headers.get("range").is_some_and(|range| range == "bytes=50-")));
    assert_eq!(fs::read(model.dir.join("model-00001-of-00002.safetensors")).unwrap(), shard);
}

#[test]
fn content_that_does_not_match_its_hash_is_not_kept() {
    let corrupt = |request: &Request| {
        let is_shard = request.path == "/model-00001-of-00002.safetensors";
        is_shard.then(|| Response::ok(vec![0; sharded_model()["model-00001-of-00002.safetensors"].len()]))
    };
    let world = World::with(sharded_model(), corrupt);
    let text = error_text(world.resolve(None));
    assert!(text.contains("has sha256") && text.contains("it was not kept"), "{text}");
    let blobs = file_names(&world.caches.path().join("hub/models--org--name/blobs"));
    assert!(!blobs.iter().any(|name| name.contains("incomplete")) && blobs.len() == 6, "{blobs:?}");
}

#[test]
fn a_listing_cannot_place_files_outside_the_cache() {
    for path in
        ["../escaped.json", "/tmp/escaped.json", "a/../../escaped.json", "a//b.json", "\u{1b}[31mred.json", "a\u{202e}b.json", "a\nb.json"]
    {
        let mut files = sharded_model();
        files.insert(path.to_owned(), b"{\"c\":1}".to_vec());
        let world = World::new(files);
        let text = error_text(world.resolve(None));
        assert!(text.contains("name leads out of its folder") && text.contains(path) && text.contains("nothing was fetched"), "{text}");
        assert_eq!(world.n_requests(), 1, "the listing alone");
    }
    // What a repository may have, and this cache may not: left alone, unless it is what was asked for.
    let mut files = sharded_model();
    for path in ["a\\..\\escaped.json", ".hidden.json", "aux.json", "C:x.json", "trailing. "] {
        files.insert(path.to_owned(), b"{\"c\":1}".to_vec());
    }
    let world = World::new(files);
    let model = world.resolve(None).unwrap();
    assert_eq!(file_names(&model.dir), FETCHED);
    let odd_commit = |request: &Request| {
        request.path.starts_with("/api/").then(|| Response::ok(listing(&sharded_model(), "../../elsewhere").to_string().into_bytes()))
    };
    let text = error_text(World::with(sharded_model(), odd_commit).resolve(None));
    assert!(text.contains("a commit that is none"), "{text}");
}

#[test]
fn an_existing_folder_wins_over_the_hub() {
    let world = World::new(Files::new());
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    let path = dir.path().to_str().unwrap();
    let model = resolve_model_in(&world.environment(None), path, None).unwrap();
    assert_eq!((model.dir.as_path(), model.id.as_str(), model.commit), (dir.path(), path, None));
    assert!(error_text(resolve_model_in(&world.environment(None), path, Some("main"))).contains("has no effect"));
    fs::remove_file(dir.path().join("config.json")).unwrap();
    assert!(error_text(resolve_model_in(&world.environment(None), path, None)).contains("has no config.json"));
    let text = error_text(resolve_model_in(&world.environment(None), "no/such/folder", None));
    assert!(text.contains("`no/such/folder` does not exist"), "{text}");
    assert_eq!(world.n_requests(), 0);
}

#[test]
fn the_builtin_model_and_data_need_nothing() {
    let world = World::new(Files::new());
    let environment = world.offline();
    let model = resolve_model_in(&environment, "builtin:tiny", None).unwrap();
    assert!(model.dir.starts_with(&environment.mpo_cache));
    let config: Value = serde_json::from_str(&fs::read_to_string(model.dir.join("config.json")).unwrap()).unwrap();
    let description = mpo::model::family::describe(&config).unwrap();
    mpo::model::family::check_weights(&description, &Checkpoint::open(&model.dir).unwrap()).unwrap();

    let lines = |path: &str, split: &str| {
        let data = DataConfig { path: path.into(), split: split.into(), ..DataConfig::default() };
        resolve_data_in(&environment, &data).map(|files| fs::read_to_string(&files[0]).unwrap().lines().count())
    };
    assert_eq!(lines("builtin:tiny", "train").unwrap(), 84);
    assert_eq!(lines("builtin:tiny", "heldout").unwrap(), 12);
    assert_eq!(lines("builtin:tiny/heldout", "train").unwrap(), 12);
    assert!(error_text(lines("builtin:tiny", "test")).contains("it has train, heldout, canary and questions"));
    assert!(error_text(lines("builtin:big", "train")).contains("no `builtin:big`"));
}

fn data_config(path: &str, sha256: Option<String>) -> DataConfig {
    DataConfig { path: path.into(), sha256, ..DataConfig::default() }
}

#[test]
fn data_at_an_address_is_downloaded_once_and_verified() {
    let body = b"{\"id\":\"1\"}\n".to_vec();
    let hash = sha256(&body);
    let served = body.clone();
    let server = Server::new(move |request| match request.path.split('?').next().unwrap() {
        "/dir/pairs.jsonl" => Response::ok(served.clone()),
        _ => Response::error(404, ""),
    });
    let world = World::new(Files::new());
    let url = format!("http://127.0.0.1:{}/dir/pairs.jsonl", server.port);
    let files = resolve_data_in(&world.environment(Some(SECRET)), &data_config(&url, Some(hash.clone()))).unwrap();
    let [file] = &files[..] else { panic!("one address, one file: {files:?}") };
    assert_eq!((fs::read(file).unwrap(), file.file_name().unwrap().to_str().unwrap()), (body, "pairs.jsonl"));
    assert_eq!(resolve_data_in(&world.offline(), &data_config(&url, Some(hash.clone()))).unwrap(), files);
    assert_eq!(server.requests().len(), 1);
    // The hub's token is the hub's business.
    assert!(!server.requests()[0].headers.contains_key("authorization"));

    // A damaged copy in the cache is fetched again; without network it is an error.
    fs::write(file, "{}").unwrap();
    assert!(error_text(resolve_data_in(&world.offline(), &data_config(&url, Some(hash.clone())))).contains("HF_HUB_OFFLINE is set"));
    resolve_data_in(&world.environment(None), &data_config(&url, Some(hash.clone()))).unwrap();
    assert_eq!(server.requests().len(), 2);

    let with_key = format!("{url}?key={SECRET}");
    let wrong = error_text(resolve_data_in(&world.environment(None), &data_config(&with_key, Some("0".repeat(64)))));
    assert!(wrong.contains(&format!("has sha256 {hash}")), "{wrong}");
    let absent = format!("http://127.0.0.1:{}/none?key={SECRET}", server.port);
    assert!(error_text(resolve_data_in(&world.environment(None), &data_config(&absent, Some(hash.clone())))).contains("status 404"));
    assert!(error_text(resolve_data_in(&world.environment(None), &data_config(&with_key, None))).contains("is not encrypted"));
    assert!(error_text(resolve_data_in(&world.environment(None), &data_config(&url, Some("12".into())))).contains("64 hexadecimal digits"));
}

#[test]
fn data_on_the_hub_is_chosen_by_split() {
    let files: Files = [("train.jsonl", "{\"a\":1}\n"), ("data/test.json", "[]"), ("README.md", "#")]
        .map(|(name, text)| (name.into(), text.into()))
        .into();
    let world = World::new(files);
    let data = |split: &str| DataConfig { path: "org/name".into(), split: split.into(), ..DataConfig::default() };
    let train = resolve_data_in(&world.environment(None), &data("train")).unwrap();
    assert_eq!(fs::read_to_string(&train[0]).unwrap(), "{\"a\":1}\n");
    assert_eq!(resolve_data_in(&world.offline(), &data("train")).unwrap(), train);
    assert_eq!(world.hub.requests().len(), 2);
    // What one split left in the cache is not taken for another.
    assert!(error_text(resolve_data_in(&world.offline(), &data("test"))).contains("HF_HUB_OFFLINE is set"));
    let test = resolve_data_in(&world.environment(None), &data("test")).unwrap();
    assert!(test[0].ends_with("data/test.json"));
    assert_eq!(fs::read_to_string(&test[0]).unwrap(), "[]");
    let text = error_text(resolve_data_in(&world.environment(None), &data("validation")));
    assert!(text.contains("`split` can be one of: test, train"), "{text}");
}

#[test]
fn all_shards_of_a_split_are_taken_in_order() {
    let files: Files = ["data/train-00001-of-00002.jsonl", "data/train-00000-of-00002.jsonl", "helpful/test-00000-of-00001.jsonl"]
        .map(|name| (name.into(), format!("\"{name}\"\n").into()))
        .into();
    let world = World::new(files);
    let data = |split: &str| DataConfig { path: "org/name".into(), split: split.into(), ..DataConfig::default() };
    let train = resolve_data_in(&world.environment(None), &data("train")).unwrap();
    let names: Vec<&str> = train.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"]);
    let n_requests = world.hub.requests().len();
    assert_eq!(resolve_data_in(&world.environment(None), &data("train")).unwrap(), train, "from the cache");
    assert_eq!(world.hub.requests().len(), n_requests);
    // Half of a split in the cache is no split.
    fs::remove_file(&train[1]).unwrap();
    assert!(error_text(resolve_data_in(&world.offline(), &data("train"))).contains("HF_HUB_OFFLINE is set"));
    assert_eq!(resolve_data_in(&world.environment(None), &data("train")).unwrap(), train);
    assert_eq!(resolve_data_in(&world.environment(None), &data("helpful/test")).unwrap().len(), 1);
    let with_hash = DataConfig { sha256: Some("0".repeat(64)), ..data("train") };
    assert!(error_text(resolve_data_in(&world.environment(None), &with_hash)).contains("2 files"));
}

#[test]
fn a_local_file_is_verified_too() {
    let world = World::new(Files::new());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pairs.jsonl");
    fs::write(&file, "{}\n").unwrap();
    let resolve = |data: &DataConfig| resolve_data_in(&world.environment(None), data);
    let path = file.to_str().unwrap();
    assert_eq!(resolve(&data_config(path, None)).unwrap(), std::slice::from_ref(&file));
    assert_eq!(resolve(&data_config(path, Some(sha256(b"{}\n").to_uppercase()))).unwrap(), std::slice::from_ref(&file));
    assert!(error_text(resolve(&data_config(path, Some("0".repeat(64))))).contains("it is another file"));
    assert!(error_text(resolve(&data_config(dir.path().to_str().unwrap(), None))).contains("is a folder"));
    let with_revision = DataConfig { revision: Some("main".into()), ..data_config(path, None) };
    assert!(error_text(resolve(&with_revision)).contains("has no effect"));
    assert!(error_text(resolve(&data_config("~/pairs.jsonl", None))).contains("`~` is not expanded"));
}
