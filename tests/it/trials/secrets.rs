//! Keys, prompts and tokens reach the host that they are meant for, and no other; and nobody sends more than was asked for.

use crate::hub::{COMMIT, Files, Request, Response, SECRET, Server, World, error_text, file_names, listing, sharded_model};
use crate::judges::{Endpoint, Play};
use mpo::config::{self, DataConfig};
use mpo::hub::{Environment, resolve_data_in, resolve_model_in};
use mpo::web::{Failed, Routes, Waits, Web};
use serde_json::json;
use std::net::TcpListener;
use std::process::{Command, Output};

fn routes(variables: &[(&str, String)]) -> Routes {
    Routes::from_variables(&|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone()))
}

/// Nobody listens there.
fn dead_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn authorization(request: &Request) -> Option<&str> {
    request.headers.get("authorization").map(String::as_str)
}

fn mpo(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mpo"));
    for name in [
        "HTTP_PROXY",
        "http_proxy",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
        "NO_PROXY",
        "no_proxy",
        "HF_TOKEN",
        "HF_ENDPOINT",
    ] {
        command.env_remove(name);
    }
    command.current_dir(folder.path()).env("MPO_CACHE", folder.path()).env("HF_HOME", folder.path());
    command.args(arguments).envs(variables.iter().copied()).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn what_is_said_to_this_machine_passes_no_proxy() {
    let judge = Server::new(|_| Response::ok(b"{}".to_vec()));
    let proxy = Server::new(|_| Response::ok(b"{}".to_vec()));
    let web = Web::new(routes(&[("HTTP_PROXY", format!("http://127.0.0.1:{}", proxy.port))]), Waits::default());
    for host in ["localhost", "127.0.0.1", "127.1"] {
        let url = format!("http://{host}:{}/v1/chat/completions", judge.port);
        web.get(&url, Some("Bearer sk-SECRET"), 0).unwrap();
    }
    assert_eq!(judge.requests().len(), 3);
    assert_eq!(proxy.requests().len(), 0);
}

#[test]
fn a_judge_on_this_machine_gets_key_and_prompt_past_the_proxy() {
    let reply = json!({"choices": [{"message": {"content": "safe"}, "finish_reason": "stop"}]}).to_string();
    let judge = Endpoint::new(move |_, _| Play::Answer(200, vec![], reply.clone()));
    let proxy = Server::new(|_| Response::ok(Vec::new()));
    let gold = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(gold.path(), "{\"lang\": \"en\", \"query\": \"May I?\", \"response\": \"Yes.\", \"label\": \"safe\"}\n").unwrap();
    let arguments = ["eval", "judge-check", "--gold", gold.path().to_str().unwrap(), "--judge", "openai:m", "--judge-url", &judge.url];
    let address = format!("http://127.0.0.1:{}", proxy.port);
    let said = stderr(&mpo(&arguments, &[("HTTP_PROXY", &address), ("ALL_PROXY", &address), ("OPENAI_API_KEY", "sk-SECRET")]));
    assert!(!judge.asked.lock().unwrap().is_empty(), "{said}");
    assert_eq!(proxy.requests().len(), 0);
}

#[test]
fn a_dead_proxy_is_named_without_its_password() {
    let proxy = format!("http://user:hunter2@127.0.0.1:{}", dead_port());
    let web = Web::new(routes(&[("HTTPS_PROXY", proxy)]), Waits::default());
    let Err(Failed::Unreachable(reason)) = web.get("https://hub.example/x", None, 0) else { panic!("it was reached") };
    assert!(reason.contains("through the proxy `http://127.0.0.1:") && reason.contains("(HTTPS_PROXY)"), "{reason}");
    assert!(!reason.contains("hunter2"), "{reason}");
}

#[test]
fn a_key_is_never_sent_in_the_open() {
    let web = Web::new(Routes::default(), Waits::default());
    // An address that is reserved for documentation: it is refused before anybody is asked.
    for url in ["http://192.0.2.1/v1", "http://user:secret@hub.example/x"] {
        let key = (!url.contains('@')).then_some("Bearer sk-SECRET");
        let Err(Failed::Refused(error)) = web.get(url, key, 0) else { panic!("it was asked") };
        let text = format!("{error:#}");
        assert!(text.contains("is not encrypted") && !text.to_lowercase().contains("secret@"), "{text}");
        assert!(matches!(web.post(url, key, &json!({})), Err(Failed::Refused(_))));
    }
    let world = World::new(Files::new());
    let environment = Environment { endpoint: "http://hub.example".into(), ..world.environment(Some(SECRET)) };
    let text = error_text(resolve_model_in(&environment, "org/name", None));
    assert!(text.contains("unencrypted") && text.contains("HF_ENDPOINT"), "{text}");
}

#[test]
fn a_token_follows_no_redirect_to_another_port() {
    let world = World::with(sharded_model(), |_| None);
    // The same host, another port.
    let environment = Environment { endpoint: format!("http://127.0.0.1:{}", world.hub.port), ..world.environment(Some(SECRET)) };
    resolve_model_in(&environment, "org/name", None).unwrap();
    assert!(world.hub.requests().iter().all(|request| authorization(request).is_some()));
    assert_eq!(world.cdn.requests().len(), 2);
    assert!(world.cdn.requests().iter().all(|request| authorization(request).is_none()));
}

#[test]
fn a_token_follows_a_redirect_within_the_hub() {
    let renamed = |request: &Request| {
        let location = request.path.strip_prefix("/api/models/org/old").map(|rest| format!("/api/models/org/name{rest}"));
        location.map(|location| Response { status: 307, headers: vec![("Location", location)], ..Response::default() })
    };
    let world = World::with(sharded_model(), renamed);
    // The files themselves are asked for by the old name, which this hub does not know.
    let web = Web::new(Routes::default(), Waits::default());
    let url = format!("http://localhost:{}/api/models/org/old/revision/main", world.hub.port);
    assert_eq!(web.get(&url, Some("Bearer hf"), 0).unwrap().status(), 200);
    assert_eq!(world.hub.requests().iter().filter_map(authorization).collect::<Vec<_>>(), ["Bearer hf", "Bearer hf"]);
}

#[test]
fn redirects_end() {
    let text = |location: &'static str| {
        let server =
            Server::new(move |_| Response { status: 302, headers: vec![("Location", location.to_owned())], ..Response::default() });
        let url = format!("http://localhost:{}/x", server.port);
        match Web::new(Routes::default(), Waits::default()).get(&url, None, 0) {
            Err(Failed::Refused(error)) => (format!("{error:#}"), server.requests().len()),
            other => panic!("{other:?}"),
        }
    };
    let (said, n) = text("/x");
    assert!(said.contains("redirects on and on") && n == 11, "{said} {n}");
    let (said, n) = text("file:///etc/hosts");
    assert!(said.contains("redirects to `file:///etc/hosts`") && n == 1, "{said} {n}");
}

/// A gzip file of `n` zeros, some 160 times smaller: one byte, then copies of it.
fn zipped_zeros(n: usize) -> Vec<u8> {
    let mut bytes = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let (mut bits, mut n_bits) = (0u64, 0);
    let mut push = |value: u64, width: u32| {
        bits |= value << n_bits;
        n_bits += width;
        while n_bits >= 8 {
            bytes.push(bits as u8);
            bits >>= 8;
            n_bits -= 8;
        }
    };
    // Huffman codes are written from their highest bit on.
    let code = |value: u64, width: u32| value.reverse_bits() >> (64 - width);
    push(0b011, 3);
    push(code(0b0011_0000, 8), 8);
    for _ in 0..n / 258 {
        // Length 258, distance 1.
        push(code(0b1100_0101, 8), 8);
        push(0, 5);
    }
    push(0, 14);
    bytes
}

#[test]
fn a_listing_that_unpacks_without_end_is_not_taken() {
    let zipped = zipped_zeros(100 << 20);
    assert!(zipped.len() < 1 << 20);
    let listing = move |request: &Request| {
        request
            .path
            .starts_with("/api/")
            .then(|| Response { headers: vec![("Content-Encoding", "gzip".into())], ..Response::ok(zipped.clone()) })
    };
    let text = error_text(World::with(sharded_model(), listing).resolve(None));
    assert!(text.contains("has more than 67108864 bytes"), "{text}");
}

#[test]
fn a_file_that_is_longer_than_listed_is_not_taken() {
    for is_zipped in [false, true] {
        let long = move |request: &Request| {
            request.path.ends_with("/config.json").then(|| match is_zipped {
                true => Response { headers: vec![("Content-Encoding", "gzip".into())], ..Response::ok(zipped_zeros(1 << 20)) },
                false => Response::ok(vec![b'A'; 1 << 20]),
            })
        };
        let world = World::with(sharded_model(), long);
        let text = error_text(world.resolve(None));
        assert!(text.contains("sends more than the 22 bytes") && text.contains("config.json"), "{text}");
        let blobs = file_names(&world.caches.path().join("hub/models--org--name/blobs"));
        assert!(!blobs.iter().any(|name| name.contains("incomplete")), "{blobs:?}");
        assert_eq!(
            world.hub.requests().iter().filter(|request| request.path.ends_with("/config.json")).count(),
            1,
            "nothing is asked again"
        );
    }
}

#[test]
fn a_small_file_that_somebody_changed_is_not_kept() {
    let tampered = |request: &Request| request.path.ends_with("/tokenizer_config.json").then(|| Response::ok(b"{\"a\":2}".to_vec()));
    let text = error_text(World::with(sharded_model(), tampered).resolve(None));
    assert!(text.contains("tokenizer_config.json` has the git blob id") && text.contains("it was not kept"), "{text}");
}

#[test]
fn hashes_that_are_none_are_refused() {
    for (key, value) in [("sha", json!("\u{1b}[31mX")), ("blobId", json!("../../../x")), ("lfs", json!({"sha256": "../x", "size": 1}))] {
        let odd = move |request: &Request| {
            let mut listing = listing(&sharded_model(), COMMIT);
            match key {
                "sha" => listing["sha"] = value.clone(),
                key => listing["siblings"][0][key] = value.clone(),
            }
            request.path.starts_with("/api/").then(|| Response::ok(listing.to_string().into_bytes()))
        };
        let world = World::with(sharded_model(), odd);
        let text = error_text(world.resolve(None));
        assert!(text.contains("hexadecimal digits"), "{key}: {text}");
        assert_eq!(world.n_requests(), 1);
    }
}

#[test]
fn what_a_hub_says_does_not_reach_the_terminal_as_it_is() {
    let server = Server::new(|_| Response::ok("{\"sha\": \"\\u001b[31m\u{202e}\", \"siblings\": []}".into()));
    let endpoint = format!("http://127.0.0.1:{}", server.port);
    let arguments = ["train", "--config", "smoke.toml", "--set", "model.path=org/name", "--dry-run"];
    let output = mpo(&arguments, &[("HF_ENDPOINT", &endpoint), ("HF_TOKEN", SECRET)]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(r"\u{1b}[31m\u{202e}") && !said.contains('\u{1b}') && !said.contains('\u{202e}'), "{said}");
    assert!(!said.contains(SECRET), "{said}");
}

#[test]
fn nobody_there_is_said_at_once() {
    let endpoint = format!("http://127.0.0.1:{}", dead_port());
    let output = mpo(&["train", "--config", "smoke.toml", "--set", "model.path=org/name", "--dry-run"], &[("HF_ENDPOINT", &endpoint)]);
    let said = stderr(&output);
    for words in
        ["cannot reach", "the model `org/name`", "is there a network?", "hint: a model that lies in a local folder", "HF_HUB_OFFLINE=1"]
    {
        assert!(said.contains(words), "`{words}` is not in:\n{said}");
    }
}

#[test]
fn an_address_is_stored_and_said_without_its_secrets() {
    let url = "https://user:hunter2@127.0.0.1:9/pairs.jsonl?X-Amz-Signature=deadbeef&download=true";
    let config = config::parse(
        "[model]\npath = \"builtin:tiny\"\n[data]\npath = \"builtin:tiny\"\n[train]\nmax_steps = 1\n",
        "t",
        &[format!("data.path={url}"), "output.dir=out".into()],
    )
    .unwrap();
    let text = config.to_toml().unwrap();
    assert!(text.contains("https://hidden@127.0.0.1:9/pairs.jsonl?X-Amz-Signature=hidden&download=true"), "{text}");
    assert!(!text.contains("hunter2") && !text.contains("deadbeef"), "{text}");
    // The stored configuration is one, and says what it lacks as soon as that is needed.
    let again = config::parse(&text, "config.toml", &[]).unwrap();
    let world = World::new(Files::new());
    let data = DataConfig { path: again.data.path.clone(), ..DataConfig::default() };
    let said = error_text(resolve_data_in(&world.environment(None), &data));
    assert!(said.contains("without its secret part") && said.contains("give the whole address anew"), "{said}");

    let set = format!("data.path={url}");
    for arguments in [
        &["train", "--config", "smoke.toml", "--set", &set, "--dry-run"][..],
        &["train", "--config", "smoke.toml", "--set", &set, "--set", "x=1"],
    ] {
        let said = stderr(&mpo(arguments, &[]));
        assert!(said.contains("127.0.0.1:9") || said.contains("unknown key"), "{said}");
        assert!(!said.contains("hunter2") && !said.contains("deadbeef"), "{said}");
    }
}
