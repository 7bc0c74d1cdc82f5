//! Preference data in TRL's layouts: rows from JSON and Parquet, what is refused and how, what `mpo check` and `mpo gaps` make of them, and that
//! a response that is not there changes nothing for the one that is.

use crate::support::*;
use crate::train::{Sandbox, stderr};
use mpo::config::{DataConfig, OnOverlong, Sides};
use mpo::data::batch::{Layout, PackedBatch, PairSpans, PromptSharing};
use mpo::data::encode::{EncodedPreference, EncodedRow, Encoder, Response};
use mpo::data::loader::dominant_numbers;
use mpo::data::pair::{Message, PreferenceRow, Role};
use mpo::data::{load, read};
use mpo::model::decoder::{Decoder, Keep};
use mpo::ops::Buffer;
use mpo::scoring::{KeptStates, ScoredPair, pair_scores, response_targets, score};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn written(rows: &[Value]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    (folder, path)
}

fn load_rows(rows: &[Value]) -> anyhow::Result<Vec<PreferenceRow>> {
    let (_folder, path) = written(rows);
    load(&[path], &DataConfig::default())
}

fn refusal(rows: &[Value]) -> String {
    format!("{:#}", load_rows(rows).unwrap_err())
}

fn turn(role: &str, content: &str) -> Value {
    json!({"role": role, "content": content})
}

fn messages(turns: &[(Role, &str)]) -> Vec<Message> {
    turns.iter().map(|&(role, content)| Message { role, content: content.into() }).collect()
}

const QUESTION: &str = "How do I bake bread?";
const GOOD: &str = "Start with good flour.";
const BAD: &str = "Buy a loaf.";

fn texts() -> Value {
    json!({"prompt": QUESTION, "chosen": GOOD, "rejected": BAD})
}

fn labelled(label: bool) -> Value {
    json!({"prompt": QUESTION, "completion": if label { GOOD } else { BAD }, "label": label})
}

#[test]
fn every_layout_says_the_same() {
    let user = turn("user", QUESTION);
    let (good, bad) = (turn("assistant", GOOD), turn("assistant", BAD));
    for row in [
        texts(),
        json!({"prompt": [user], "chosen": [good], "rejected": [bad]}),
        json!({"chosen": [user, good], "rejected": [user, bad]}),
        // As UltraFeedback has it: the first turn once more, as a text.
        json!({"prompt": QUESTION, "chosen": [user, good], "rejected": [user, bad]}),
        json!({"prompt": QUESTION, "chosen": [good], "rejected": [bad]}),
        json!({"prompt": [user], "chosen": GOOD, "rejected": BAD}),
        json!({"prompt": null, "chosen": [user, good], "rejected": [user, bad], "score": 3}),
    ] {
        let rows = load_rows(std::slice::from_ref(&row)).unwrap();
        let [PreferenceRow { id, dominant: None, target }] = &rows[..] else { panic!("{row}: {rows:?}") };
        assert_eq!((id.as_str(), target.lang.as_str()), ("0", "en"));
        assert_eq!(target.prompt, messages(&[(Role::User, QUESTION)]), "{row}");
        assert_eq!((target.chosen.as_deref(), target.rejected.as_deref()), (Some(GOOD), Some(BAD)));
    }
}

#[test]
fn a_conversation_before_the_response_is_its_prompt() {
    let (system, user, reply) = (turn("system", "Be brief."), turn("user", "Bread?"), turn("assistant", "What about it?"));
    let (again, good, bad) = (turn("user", QUESTION), turn("assistant", GOOD), turn("assistant", BAD));
    let expected =
        messages(&[(Role::System, "Be brief."), (Role::User, "Bread?"), (Role::Assistant, "What about it?"), (Role::User, QUESTION)]);
    for row in [
        json!({"id": "a", "lang": "SW", "prompt": [system, user, reply, again], "chosen": [good], "rejected": [bad]}),
        json!({"id": "a", "lang": "sw", "chosen": [system, user, reply, again, good], "rejected": [system, user, reply, again, bad]}),
        // Both begin with turns of their own, the same ones.
        json!({"id": "a", "lang": "sw", "prompt": [system, user], "chosen": [reply, again, good], "rejected": [reply, again, bad]}),
    ] {
        let rows = load_rows(std::slice::from_ref(&row)).unwrap();
        assert_eq!((rows[0].id.as_str(), rows[0].target.lang.as_str()), ("a", "sw"));
        assert_eq!(rows[0].target.prompt, expected, "{row}");
    }
}

#[test]
fn a_label_tells_which_response_a_row_has() {
    let conversation = json!({"prompt": [turn("user", QUESTION)], "completion": [turn("assistant", BAD)], "label": false});
    let whole = json!({"completion": [turn("user", QUESTION), turn("assistant", GOOD)], "label": true});
    let rows = load_rows(&[labelled(true), conversation, whole]).unwrap();
    let answers: Vec<_> = rows.iter().map(|row| (row.target.chosen.as_deref(), row.target.rejected.as_deref())).collect();
    assert_eq!(answers, [(Some(GOOD), None), (None, Some(BAD)), (Some(GOOD), None)]);
    assert!(rows.iter().all(|row| row.dominant.is_none() && row.target.prompt == messages(&[(Role::User, QUESTION)])));
}

#[test]
fn what_is_wrong_with_a_row_is_said_with_its_line_and_key() {
    let with = |mut row: Value, key: &str, value: Value| {
        row[key] = value;
        row
    };
    let without = |mut row: Value, key: &str| {
        row.as_object_mut().unwrap().remove(key);
        row
    };
    let (user, good) = (turn("user", QUESTION), turn("assistant", GOOD));
    for (first, spoilt, expected) in [
        (texts(), without(texts(), "rejected"), "key `rejected` is missing"),
        (texts(), without(texts(), "prompt"), "key `prompt` is missing: without it `chosen` must be a conversation"),
        (texts(), with(texts(), "chosen", json!(3)), "key `chosen` must be a string or a list of turns, but is a number"),
        (texts(), with(texts(), "rejected", json!(" ")), "the rejected response is empty"),
        (texts(), with(texts(), "chosen", json!([])), "key `chosen` has no turns"),
        (
            texts(),
            with(texts(), "chosen", json!([good, user])),
            "key `chosen` must end with an assistant turn, the response, but it ends with a user turn",
        ),
        (texts(), with(texts(), "prompt", json!([good])), "the prompt must end with a user turn"),
        (texts(), with(texts(), "prompt", json!([{"role": "user"}])), "key `prompt[0].content` is missing"),
        (
            texts(),
            json!({"chosen": [user, good], "rejected": [turn("user", "Bread?"), turn("assistant", BAD)]}),
            "they part at turn 0 (`chosen[0]` and `rejected[0]`)",
        ),
        (texts(), json!({"chosen": [user, good], "rejected": [user, turn("assistant", "Hm."), user, good]}), "they part at turn 1"),
        (labelled(true), without(labelled(true), "label"), "key `label` is missing"),
        (labelled(true), with(labelled(true), "label", json!("true")), "key `label` must be true or false, but is a string"),
        (labelled(true), with(labelled(true), "label", json!(1)), "key `label` must be true or false, but is a number"),
        (labelled(true), with(labelled(true), "completion", json!([user])), "key `completion` must end with an assistant turn"),
        (labelled(true), without(labelled(true), "prompt"), "key `prompt` is missing: without it `completion` must be a conversation"),
        (labelled(true), with(labelled(true), "completion", json!("")), "the chosen response is empty"),
    ] {
        let error = refusal(&[first, spoilt]);
        assert!(error.contains("rows.jsonl:2: row 1: ") && error.contains(expected), "`{expected}` in:\n{error}");
    }
    let error = refusal(&[without(texts(), "rejected")]);
    assert!(error.contains("rows.jsonl:1: row 0: key `rejected` is missing"), "the first row is of this format all the same: {error}");
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/parquet").join(name)
}

/// Parquet files that Hugging Face's `datasets` and pyarrow wrote (`tests/oracle/parquet_files.py`), beside the same rows as JSON lines.
#[test]
fn parquet_holds_what_json_lines_hold() {
    for (name, n_rows) in [("texts", 3), ("conversations", 3), ("labels", 4), ("parallel", 2)] {
        let json = load(&[fixture(&format!("{name}.jsonl"))], &DataConfig::default()).unwrap();
        assert_eq!(json.len(), n_rows);
        assert_eq!(load(&[fixture(&format!("{name}.parquet"))], &DataConfig::default()).unwrap(), json, "{name}");
    }
    // Other compressions; several files are one data set.
    let zstd = load(&[fixture("texts-zstd.parquet")], &DataConfig::default()).unwrap();
    assert_eq!(zstd, load(&[fixture("texts.jsonl")], &DataConfig::default()).unwrap());
    let gzip = load(&[fixture("texts-gzip.parquet")], &DataConfig::default()).unwrap();
    assert_eq!(gzip, load(&[fixture("texts.jsonl")], &DataConfig::default()).unwrap());
    let both = load(&[fixture("texts.parquet"), fixture("texts-gzip.parquet")], &DataConfig::default()).unwrap();
    assert_eq!(both.len(), 2 * gzip.len());
}

#[test]
fn a_parquet_file_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let cut = folder.path().join("cut.parquet");
    let whole = std::fs::read(fixture("texts.parquet")).unwrap();
    for n_bytes in [6, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&cut, &whole[..n_bytes]).unwrap();
        let error = format!("{:#}", load(std::slice::from_ref(&cut), &DataConfig::default()).unwrap_err());
        assert!(error.contains("cut.parquet` is no whole Parquet file"), "{error}");
    }
    let spoilt = format!("{:#}", load(&[fixture("spoilt.parquet")], &DataConfig::default()).unwrap_err());
    assert!(spoilt.contains("spoilt.parquet:2: row 1: key `chosen` must be a string or a list of turns, but is null"), "{spoilt}");
}

/// A file that was damaged on the way: whatever byte it is, there are rows or an error, and never a crash.
#[test]
fn a_damaged_parquet_file_crashes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.parquet");
    for name in ["conversations.parquet", "texts-zstd.parquet"] {
        let (mut n_refused, whole) = (0, std::fs::read(fixture(name)).unwrap());
        for at in (4..whole.len()).step_by(5) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            std::fs::write(&path, &bytes).unwrap();
            n_refused += usize::from(load(std::slice::from_ref(&path), &DataConfig::default()).is_err());
        }
        assert!(n_refused > 50, "{name}: {n_refused}");
    }
}

#[test]
fn sides_say_which_pairs_are_scored() {
    let pair = |lang: &str, prompt: &str| json!({"lang": lang, "prompt": prompt, "chosen": "Yes.", "rejected": "No."});
    let row = |id: &str, prompt: &str| json!({"id": id, "dominant": pair("en", prompt), "target": pair("sw", &format!("{id}?"))});
    let (_folder, path) = written(&[row("a", "One?"), row("b", "One?"), row("c", "Two?")]);
    let model = crate::template::byte_tokenizer(&json!({}), Some("{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"));
    let encoded = |sides| -> Vec<EncodedRow> {
        let config = DataConfig { sides, on_overlong: OnOverlong::Error, ..DataConfig::default() };
        Encoder::new(model.path(), &config).unwrap().encode_files(std::slice::from_ref(&path), &config).unwrap().0
    };
    let ids = |rows: &[EncodedRow]| rows.iter().map(|row| row.id.clone()).collect::<Vec<_>>();
    let (target, dominant, both) = (encoded(Sides::Target), encoded(Sides::Dominant), encoded(Sides::Both));
    assert_eq!(ids(&target), ["a", "b", "c"]);
    assert_eq!(ids(&dominant), ["a dominant", "c dominant"]);
    assert_eq!(ids(&both), ["a dominant", "a", "b", "c dominant", "c"]);
    // What retention holds on to is the same whatever is scored, and a pair is held out with all of its rows.
    assert_eq!(dominant[0].dominant, target[0].dominant);
    assert_eq!(dominant[0].target, *target[0].dominant_pair().unwrap());
    assert_eq!(dominant_numbers(&both), [0, 0, 0, 1, 1]);
}

#[test]
fn rows_without_dominant_pairs_belong_together_by_their_prompt() {
    let row = |prompt: u32, chosen: u32| {
        let response = |token| Response { tokens: vec![token], n_end_tokens: 0 };
        let target = EncodedPreference { lang: "en".into(), prompt: vec![prompt], chosen: response(chosen), rejected: response(9) };
        EncodedRow { id: chosen.to_string(), dominant: None, target, mismatched: None }
    };
    assert_eq!(dominant_numbers(&[row(1, 5), row(2, 5), row(1, 6)]), [0, 1, 0]);
}

#[test]
fn check_and_gaps_understand_plain_and_labelled_data() {
    let work = Sandbox::new();
    let write = |name: &str, rows: &[Value]| {
        std::fs::write(work.path(name), rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    };
    let other = json!({"prompt": "Is it raining?", "chosen": "Take a coat.", "rejected": "Take a coat."});
    write("plain.jsonl", &[texts(), other]);
    let checked = work.mpo(&["check", "plain.jsonl", "--model", "builtin:tiny", "--gaps"]);
    let report = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert_eq!(checked.status.code(), Some(1), "{report}{}", stderr(&checked));
    assert!(report.starts_with("2 rows without dominant pairs\n"), "{report}");
    assert!(report.contains("chosen and rejected response are equal\n         row 1\n"), "{report}");
    assert!(!report.contains("NaN") && !report.contains("of 0 dominant"), "{report}");

    write("labels.jsonl", &[labelled(true), labelled(false)]);
    let checked = work.mpo(&["check", "labels.jsonl", "--model", "builtin:tiny"]);
    let report = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(checked.status.success() && report.contains("Nothing is wrong."), "{report}{}", stderr(&checked));

    for (data, n_lines) in [("plain.jsonl", 2), ("labels.jsonl", 1)] {
        let out = work.path("gaps.jsonl");
        let measured = work.mpo(&["gaps", "--model", "builtin:tiny", "--data", data, "--out", out.to_str().unwrap()]);
        let table = String::from_utf8_lossy(&measured.stdout).into_owned();
        assert!(measured.status.success() && !table.contains("NaN") && !table.contains("dom."), "{table}{}", stderr(&measured));
        assert_eq!(table.lines().count(), n_lines, "the label file has answers and no gap: {table}");
        let lines: Vec<Value> = std::fs::read_to_string(&out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert!(lines.iter().all(|line| line.get("dominant").is_none() && line["target"]["lang"] == "en"), "{lines:?}");
        if data == "labels.jsonl" {
            let answers = |line: &Value| [&line["target"]["chosen"], &line["target"]["rejected"]].map(|answer| answer.is_object());
            assert_eq!([answers(&lines[0]), answers(&lines[1])], [[true, false], [false, true]]);
        }
    }
}

#[test]
fn mpo_refuses_rows_without_dominant_pairs_and_says_what_would_be_right() {
    let work = Sandbox::new();
    let refused = |rows: &[Value], overrides: &[&str]| {
        std::fs::write(work.path("rows.jsonl"), rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
        let overrides: Vec<&str> = overrides.iter().flat_map(|set| ["--set", set]).collect();
        let arguments = ["train", "--config", "run.toml", "--set", "output.dir=refused", "--set", "data.path=rows.jsonl"];
        let output = work.mpo(&[&arguments[..], &overrides].concat());
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(!work.path("refused").exists());
        stderr(&output)
    };
    let other = json!({"prompt": "Is it raining?", "chosen": "Yes.", "rejected": "No."});
    for retention in ["retention.kind=hidden", "retention.kind=none"] {
        let error = refused(&[texts(), other.clone()], &[retention]);
        assert!(error.contains("has no dominant pair, which") && error.contains("`objective.kind` \"mpo\""), "{error}");
        assert!(error.contains("`parallel` (`dominant` and `target` in each row)"), "{error}");
    }
    let error = refused(&[labelled(true), json!({"prompt": "Is it raining?", "completion": "Yes.", "label": true})], &[]);
    assert!(error.contains("has no dominant pair"), "{error}");
    let output = work.mpo(&["train", "--config", "run.toml", "--set", "data.sides=both"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("`data.sides` can only be \"target\""), "{}", stderr(&output));
}

const HIDDEN: usize = 64;
const VOCABULARY: usize = 300;

/// Pairs of which the first has no chosen and the second no rejected response.
fn pairs_with_absent_responses() -> Vec<EncodedPreference> {
    let mut pairs: Vec<EncodedPreference> = rows(4, 60, VOCABULARY, 3).into_iter().map(|row| row.target).collect();
    pairs[0].chosen = Response::default();
    pairs[1].rejected = Response::default();
    pairs
}

#[test]
fn a_response_is_scored_alike_whether_the_other_one_is_there_or_not() {
    for config in [llama(HIDDEN, VOCABULARY), gemma2(HIDDEN, VOCABULARY)] {
        let model = model(&config, 1);
        let whole: Vec<EncodedPreference> = rows(4, 60, VOCABULARY, 3).into_iter().map(|row| row.target).collect();
        let partial = pairs_with_absent_responses();
        let kept = KeptStates::Predicting;
        let scores = |pairs: &[EncodedPreference]| score(&model, &pairs.iter().collect::<Vec<_>>(), kept, PAD).unwrap();
        let (whole, packed) = (scores(&whole), scores(&partial));
        assert_eq!((&packed[0].rejected, &packed[1].chosen), (&whole[0].rejected, &whole[1].chosen), "not a bit differs");
        assert_eq!(packed[2..], whole[2..]);
        for absent in [&packed[0].chosen, &packed[1].rejected] {
            assert_eq!((absent.score.log_prob, absent.score.n_tokens, absent.states.len()), (0.0, 0, 0));
        }
        // Packed or alone.
        let alone: Vec<ScoredPair> = partial.iter().flat_map(|pair| scores(std::slice::from_ref(pair))).collect();
        assert_eq!(packed, alone);
    }
}

/// d (sum of all response log-probabilities) / d parameters, for `pairs` packed together; prompts once or once a response.
#[allow(non_snake_case)]
fn gradient_of_sum(model: &Decoder, pairs: &[&EncodedPreference], sharing: PromptSharing) -> Vec<Vec<f32>> {
    let mut batch = PackedBatch::default();
    let spans: Vec<PairSpans> = pairs.iter().map(|pair| batch.push_pair(pair, &Layout { sharing, pad_token: None })).collect();
    let targets = response_targets(&batch, &spans);
    let forward = model.forward(&batch, Keep::ForBackward).unwrap();
    let scored = model.score(&forward.hidden_ND, &targets, usize::MAX).unwrap();
    let n_tokens: usize = pair_scores(&mpo::ops::read(&scored.log_probs).unwrap(), &spans)
        .unwrap()
        .iter()
        .map(|pair| pair.chosen.n_tokens + pair.rejected.n_tokens)
        .sum();
    let d_hidden_ND = Buffer::zeros(forward.hidden_ND.dims()).unwrap();
    model.zero_gradients().unwrap();
    let d_log_probs = mpo::ops::tensor(vec![1.0; n_tokens], &[n_tokens]).unwrap();
    model.score_backward(&forward.hidden_ND, (&targets, scored), &d_log_probs, &d_hidden_ND).unwrap();
    model.backward(forward, d_hidden_ND).unwrap();
    gradients(model)
}

#[test]
fn packing_and_accumulation_with_absent_responses_change_no_gradient() {
    let model = model(&llama(HIDDEN, VOCABULARY), 1);
    let pairs = pairs_with_absent_responses();
    let borrowed: Vec<&EncodedPreference> = pairs.iter().collect();
    let packed = gradient_of_sum(&model, &borrowed, PromptSharing::Shared);
    let mut sum: Option<Vec<Vec<f32>>> = None;
    for pair in &borrowed {
        let alone = gradient_of_sum(&model, &[pair], PromptSharing::Separate);
        match &mut sum {
            None => sum = Some(alone),
            Some(sum) => sum.iter_mut().flatten().zip(alone.iter().flatten()).for_each(|(sum, value)| *sum += value),
        }
    }
    assert!(norm(&packed) > 0.0);
    assert!(relative_difference(&packed, &sum.unwrap()) < 1e-6);
}

#[test]
fn spoilt_rows_of_several_files_are_listed_with_their_file() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, rows: &[Value]| {
        let path = folder.path().join(name);
        std::fs::write(&path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
        path
    };
    let files = [write("a.jsonl", &[texts(), json!({"prompt": 3})]), write("b.jsonl", &[json!(3), texts()])];
    let dataset = read(&files, &DataConfig::default()).unwrap();
    let ids: Vec<&str> = dataset.pairs.iter().map(|row| row.id.as_str()).collect();
    assert_eq!(ids, ["0", "3"], "counted through");
    let places: Vec<_> = dataset.spoilt.iter().map(|row| (row.index, row.file.clone(), row.line)).collect();
    assert_eq!(places, [(1, files[0].clone(), 2), (2, files[1].clone(), 1)]);
}
