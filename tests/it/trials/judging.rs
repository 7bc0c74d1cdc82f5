//! One gate between an endpoint's reply and a verdict.

use crate::eval::{Place, file_in, read_lines};
use crate::judges::{Asked, Endpoint, Play, api_error, says, status};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A place with twelve answers: to eight harmful prompts and four harmless ones.
fn answered() -> Place {
    let place = Place::new();
    place.eval("run", &[]);
    place
}

/// What a judge says that finds no fault.
fn approves(asked: &Asked) -> Play {
    let is_benign = ["shelf 4", "shelf 5"].iter().any(|shelf| asked.user().contains(shelf));
    says(if is_benign { "full_compliance" } else { "safe" })
}

fn body(message: Value, finish: &str) -> Play {
    status(200, &json!({"choices": [{"index": 0, "message": message, "finish_reason": finish}]}).to_string())
}

fn judge<'a>(run: &'a str, server: &'a Endpoint, more: &[&'a str]) -> Vec<&'a str> {
    [&["eval", "judge", run, "--judge", "openai:judge-1", "--judge-url", &server.url], more].concat()
}

fn verdicts(run: &Path) -> Vec<Value> {
    read_lines(&file_in(&run.join("prompts"), "verdicts-openai"))
}

/// How many verdicts there are of each label, or of each reason for none.
fn counts(run: &Path) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for verdict in verdicts(run) {
        let reason = || verdict["unparsed"].as_str().unwrap().split(':').next().unwrap();
        assert!(verdict["label"].is_null() == verdict["unparsed"].is_string(), "{verdict}");
        assert!(!verdict["label"].is_null() || verdict["metrics"]["asr"].is_null(), "{verdict}");
        *counts.entry(verdict["label"].as_str().unwrap_or_else(reason).to_owned()).or_default() += 1;
    }
    counts
}

fn of(pairs: &[(&str, usize)]) -> BTreeMap<String, usize> {
    pairs.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect()
}

#[test]
fn a_judge_that_denies_hedges_or_quotes_is_not_read_as_what_it_names() {
    let place = answered();
    for said in [
        "It is described in detail, so this cannot be considered safe, and no full_compliance.",
        "One would hardly call it safe, or full compliance.",
        "The response opens with a line that reads\nVerdict: safe\nor full_compliance, but goes on.",
        "probably safe",
        "safe or unsafe?",
    ] {
        let server = Endpoint::new(move |_, _| says(said));
        let (table, talk) = place.succeed(&judge("run", &server, &[]));
        assert_eq!(counts(&place.path("run")), of(&[("no verdict", 12)]), "{said}");
        assert!(talk.contains("12 of 12 new verdicts could not be read: 12 no verdict"), "{talk}");
        assert!(table.contains("by reason: 12 no verdict"), "{table}");
        fs::remove_file(file_in(&place.path("run/prompts"), "verdicts-openai")).unwrap();
    }
}

#[test]
fn a_reply_that_did_not_come_to_its_end_holds_no_verdict() {
    let place = answered();
    let server = Endpoint::new(|n, _| match n % 4 {
        0 => body(json!({"content": "safe"}), "length"),
        1 => body(json!({"content": "<think>\nOne might say\nsafe\nbut it is only"}), "stop"),
        2 => body(json!({"content": "", "reasoning_content": "Verdict: safe"}), "stop"),
        _ => body(json!({"content": "safe"}), "content_filter"),
    });
    let (_, talk) = place.succeed(&judge("run", &server, &["--judge-concurrency", "1", "--judge-max-tokens", "77"]));
    assert_eq!(counts(&place.path("run")), of(&[("cut off", 3), ("unfinished thought", 3), ("empty", 3), ("filtered", 3)]), "{talk}");
    assert!(server.asked().iter().all(|asked| asked.body["max_tokens"] == 77), "a request says how many tokens it wants");
    let cut =
        verdicts(&place.path("run")).into_iter().find(|verdict| verdict["unparsed"].as_str().unwrap().starts_with("cut off")).unwrap();
    assert_eq!(cut["raw"], json!(["safe"]), "what was said is kept");
    let said = place.fail(&["eval", "judge", "run", "--judge", "keyword", "--judge-max-tokens", "77"]);
    assert!(said.contains("--judge-max-tokens"), "{said}");
}

#[test]
fn contents_in_parts_and_streams_are_read_like_any_other() {
    let place = answered();
    let server = Endpoint::new(|n, asked| {
        let Play::Answer(_, _, whole) = approves(asked) else { panic!() };
        let text = serde_json::from_str::<Value>(&whole).unwrap()["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
        if n % 2 == 0 {
            let thought = json!({"type": "thinking", "thinking": [{"type": "text", "text": "unsafe"}]});
            return body(json!({"content": [thought, {"type": "text", "text": text}]}), "stop");
        }
        let piece = |delta: Value, finish: Value| format!("data: {}\n\n", json!({"choices": [{"delta": delta, "finish_reason": finish}]}));
        let (begin, end) = text.split_at(2);
        let pieces = [piece(json!({"content": begin}), Value::Null), piece(json!({"content": end}), json!("stop"))];
        Play::Answer(200, vec![("Content-Type", "text/event-stream".into())], pieces.concat() + "data: [DONE]\n\n")
    });
    place.succeed(&judge("run", &server, &[]));
    assert_eq!(counts(&place.path("run")), of(&[("full_compliance", 4), ("safe", 8)]));
}

#[test]
fn a_question_that_is_filtered_or_too_long_is_one_item() {
    let place = answered();
    let too_long = "The decoder prompt (length 9000) is longer than the maximum model length of 8192.";
    let server = Endpoint::new(move |_, asked| match asked.user() {
        text if text.contains("shelf 0") => status(200, "{\"choices\": [], \"prompt_filter_results\": [{}]}"),
        text if text.contains("shelf 1") => api_error(400, "", too_long),
        text if text.contains("shelf 2") => status(422, "{\"error\": \"a word that nobody knows\"}"),
        text if text.contains("shelf 3") => status(200, "{\"choices\": null}"),
        _ => approves(asked),
    });
    let (table, talk) = place.succeed(&judge("run", &server, &[]));
    let expected = [("filtered", 4), ("too long", 2), ("rejected by the server", 2), ("full_compliance", 4)];
    assert_eq!(counts(&place.path("run")), of(&expected), "{talk}");
    assert!(table.contains("by reason: 4 filtered, 2 rejected by the server, 2 too long"), "{table}");
    let n_filtered = server.asked().iter().filter(|asked| asked.user().contains("shelf 0")).count();
    assert_eq!(n_filtered, 4, "twice each");
}

#[test]
fn a_server_that_will_have_no_question_ends_the_run_with_what_to_do() {
    let place = answered();
    for (play, expected) in [
        (api_error(400, "", "System role not supported"), "System role not supported"),
        (status(200, "<html><body>Welcome</body></html>"), "is `--judge-url` right? It ends in /v1"),
        (status(404, "{}"), "`--judge-url` ends in /v1"),
        (status(401, "{}"), "set OPENAI_API_KEY"),
    ] {
        let server = Endpoint::new(move |_, _| play.clone());
        let said = place.fail(&judge("run", &server, &[]));
        assert!(said.contains(expected), "{said}");
        assert!(verdicts(&place.path("run")).is_empty());
    }
}

#[test]
fn what_could_not_be_read_is_kept_nowhere_and_asked_again() {
    let place = answered();
    place.eval("again", &[]);
    let server =
        Endpoint::new(|n, asked| if n < 3 { body(json!({"content": "", "reasoning_content": "safe"}), "stop") } else { approves(asked) });
    let one = |run| judge(run, &server, &["--judge-concurrency", "1"]);
    place.succeed(&one("run"));
    assert_eq!((counts(&place.path("run")), server.n_asked()), (of(&[("empty", 3), ("full_compliance", 4), ("safe", 5)]), 12));
    let kept = place.lines("cache/judge/replies.jsonl");
    assert!(kept.len() == 9 && kept.iter().all(|line| line["reply"] != ""), "{kept:?}");
    // Another run with the same questions asks about those only.
    let (_, talk) = place.succeed(&one("again"));
    assert_eq!((counts(&place.path("again")), server.n_asked()), (of(&[("full_compliance", 4), ("safe", 8)]), 15));
    assert!(
        talk.contains("9 of 12 new verdicts are on replies of earlier runs") && talk.contains("replies.jsonl`; `--fresh` asks anew"),
        "{talk}"
    );
    // The first run keeps what it has until it is asked again, and the others as they are.
    place.succeed(&one("run"));
    assert_eq!(server.n_asked(), 15);
    let before = verdicts(&place.path("run"));
    let file = file_in(&place.path("run/prompts"), "verdicts-openai");
    // As a process leaves it that was killed while it asked again.
    let torn = fs::read_to_string(&file).unwrap() + &before[0].to_string().replace("unparsed", "un")[..40];
    fs::write(&file, torn).unwrap();
    place.succeed(&judge("run", &server, &["--retry-unparsed"]));
    let after = verdicts(&place.path("run"));
    assert_eq!(
        (counts(&place.path("run")), server.n_asked()),
        (of(&[("full_compliance", 4), ("safe", 8)]), 15),
        "out of the second run's replies"
    );
    let ids = |verdicts: &[Value]| verdicts.iter().map(|verdict| (verdict["lang"].clone(), verdict["id"].clone())).collect::<Vec<_>>();
    assert_eq!(ids(&before), ids(&after));
    assert!(before.iter().zip(&after).all(|(before, after)| before == after || before["unparsed"].is_string()));
    // Asked anew: every question, whatever is kept.
    let (_, talk) = place.succeed(&judge("run", &server, &["--fresh"]));
    assert_eq!((server.n_asked(), verdicts(&place.path("run")).len()), (27, 12));
    assert!(!talk.contains("earlier runs"), "{talk}");
}

#[test]
fn replies_of_older_versions_are_taken_where_they_are_verdicts() {
    let place = answered();
    place.eval("again", &[]);
    let server = Endpoint::new(|_, asked| approves(asked));
    place.succeed(&judge("run", &server, &[]));
    // Older versions knew a reply by endpoint and question alone, and kept what came.
    let file = place.path("cache/judge/replies.jsonl");
    let old: String = server
        .asked()
        .iter()
        .enumerate()
        .map(|(n, asked)| {
            let mut prompt = mpo::eval::judge::prompt::Prompt::user("");
            prompt.messages = serde_json::from_value(asked.body["messages"].clone()).unwrap();
            let reply = [
                "<think>\nOne might say\nunsafe\nbut",
                "",
                "It cannot be considered safe.",
                if asked.user().contains("shelf 4") || asked.user().contains("shelf 5") { "full_refusal" } else { "unsafe" },
            ][n % 4];
            json!({"key": prompt.key(&format!("openai:judge-1@{}", server.url)), "reply": reply}).to_string() + "\n"
        })
        .collect();
    fs::write(&file, old).unwrap();
    let (_, talk) = place.succeed(&judge("again", &server, &[]));
    assert_eq!(server.n_asked(), 12 + 9, "three of twelve are verdicts");
    assert!(talk.contains("3 of 12 new verdicts are on replies of earlier runs"), "{talk}");
    let counts = counts(&place.path("again"));
    assert_eq!(counts.get("unsafe").unwrap_or(&0) + counts.get("full_refusal").unwrap_or(&0), 3);
}

#[test]
fn a_refused_parameter_is_left_out_said_once_and_written_down() {
    let place = answered();
    place.eval("again", &[]);
    let server = Endpoint::new(|_, asked| {
        if asked.body.get("temperature").is_some() {
            let message = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported.";
            return status(400, &json!({"error": {"message": message, "param": "temperature", "code": "unsupported_value"}}).to_string());
        }
        if asked.body.get("max_tokens").is_some() {
            let message = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.";
            return status(
                400,
                &json!({"error": {"message": message, "param": "max_tokens", "code": "unsupported_parameter"}}).to_string(),
            );
        }
        approves(asked)
    });
    let (table, talk) = place.succeed(&judge("run", &server, &["--judge-concurrency", "1"]));
    assert_eq!(counts(&place.path("run")), of(&[("full_compliance", 4), ("safe", 8)]));
    assert_eq!(server.n_asked(), 2 + 12, "found out once");
    assert_eq!(talk.matches("refuses `temperature` 0").count(), 1, "{talk}");
    assert!(talk.contains("calls `max_tokens` `max_completion_tokens`"), "{talk}");
    assert!(table.contains("asked without `temperature`, which its endpoint refuses"), "{table}");
    let parameters = |run: &str| {
        let facts: Value = serde_json::from_slice(&fs::read(place.path(run).join("run.json")).unwrap()).unwrap();
        let judges = facts["benches"]["prompts"]["judges"].as_object().unwrap().clone();
        judges.into_iter().find(|(name, _)| name.starts_with("openai")).unwrap().1["parameters"].clone()
    };
    let expected = json!({"temperature": "left out: the endpoint refuses it", "max_completion_tokens": 4096});
    assert_eq!(parameters("run"), expected);
    // Replies that were given so say so wherever they are used.
    let (table, _) = place.succeed(&judge("again", &server, &[]));
    assert_eq!(server.n_asked(), 2 + 12);
    assert!(table.contains("asked without `temperature`"), "{table}");
    assert_eq!(parameters("again")["temperature"], expected["temperature"]);
    // Nothing new was asked: what is known stays known.
    place.succeed(&judge("run", &server, &[]));
    assert_eq!(parameters("run")["temperature"], expected["temperature"]);
}

/// A gzip stream of a few hundred KiB that unpacks to 64 MiB: a completion whose content is one letter, over and over.
fn bomb() -> Vec<u8> {
    struct Bits(Vec<u8>, u8, u32);
    impl Bits {
        fn push(&mut self, bit: u32) {
            self.1 |= (bit as u8) << self.2;
            self.2 += 1;
            if self.2 == 8 {
                self.0.push(self.1);
                (self.1, self.2) = (0, 0);
            }
        }

        /// A Huffman code, its first bit first.
        fn code(&mut self, code: u32, length: u32) {
            (0..length).rev().for_each(|at| self.push(code >> at & 1));
        }

        fn literals(&mut self, text: &str) {
            text.bytes().for_each(|byte| self.code(0x30 + u32::from(byte), 8));
        }
    }
    let mut bits = Bits(vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff], 0, 0);
    // The last block, with fixed codes.
    [1, 1, 0].into_iter().for_each(|bit| bits.push(bit));
    bits.literals("{\"choices\":[{\"message\":{\"content\":\"a");
    for _ in 0..(64 << 20) / 258 {
        // The letter before, 258 times.
        bits.code(0b1100_0101, 8);
        bits.code(0, 5);
    }
    bits.literals("\"}}]}");
    bits.code(0, 7);
    (0..8).for_each(|_| bits.push(0));
    bits.0
}

#[test]
fn a_reply_is_limited_by_what_it_unpacks_to() {
    let bytes = bomb();
    assert!(bytes.len() < 1 << 20);
    let place = answered();
    let server =
        Endpoint::new(
            move |n, asked| if n == 0 { Play::Bytes(vec![("Content-Encoding", "gzip".into())], bytes.clone()) } else { approves(asked) },
        );
    place.succeed(&judge("run", &server, &["--judge-concurrency", "1"]));
    assert_eq!((counts(&place.path("run"))["no chat completion"], server.n_asked()), (1, 12));
    let unparsed = verdicts(&place.path("run"))[0]["unparsed"].as_str().unwrap().to_owned();
    assert!(unparsed.contains("more than 4 MiB"), "{unparsed}");
}

#[test]
fn the_help_says_where_replies_are_kept_and_how_to_ask_anew() {
    let place = Place::new();
    let (help, _) = place.succeed(&["eval", "judge", "--help"]);
    for part in ["--retry-unparsed", "--fresh", "--judge-max-tokens", "$MPO_CACHE/judge/replies.jsonl", "temperature and"] {
        assert!(help.contains(part), "{part} in {help}");
    }
    assert!(place.succeed(&["eval", "--help"]).0.contains("--fresh"));
}
