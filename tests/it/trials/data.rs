//! Rows: nothing that a row says is dropped, or read as something else, without a word.

use crate::train::{Sandbox, stderr};
use flate2::Compression;
use flate2::write::GzEncoder;
use mpo::config::{DataConfig, DataFormat, SpecialTokens};
use mpo::data::encode::Encoder;
use mpo::data::pair::{Message, PreferenceRow, Role};
use mpo::data::{Dataset, load, read};
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Output;

const QUESTION: &str = "May I take the umbrella in the hall?";
const GOOD: &str = "Please ask whose umbrella it is first.";
const BAD: &str = "Take whatever you like, nobody looks.";

fn row() -> Value {
    json!({"prompt": QUESTION, "chosen": GOOD, "rejected": BAD})
}

fn with(changes: Value) -> Value {
    let mut row = row();
    row.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    row
}

fn without(key: &str, row: Value) -> Value {
    let mut row = row;
    row.as_object_mut().unwrap().remove(key);
    row
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn load(&self, bytes: impl AsRef<[u8]>) -> anyhow::Result<Vec<PreferenceRow>> {
        self.load_as(bytes, &DataConfig::default())
    }

    fn load_as(&self, bytes: impl AsRef<[u8]>, config: &DataConfig) -> anyhow::Result<Vec<PreferenceRow>> {
        load(&[self.write("rows.jsonl", bytes)], config)
    }

    fn refusal(&self, bytes: impl AsRef<[u8]>) -> String {
        format!("{:#}", self.load(bytes).unwrap_err())
    }
}

fn turns(row: &PreferenceRow) -> Vec<(Role, &str)> {
    row.target.prompt.iter().map(|turn| (turn.role, turn.content.as_str())).collect()
}

fn report(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// `mpo check` of some rows with the tiny model.
fn checked(rows: &[Value], arguments: &[&str]) -> String {
    let work = Sandbox::new();
    fs::write(work.path("rows.jsonl"), lines(rows)).unwrap();
    let output = work.mpo(&[&["check", "rows.jsonl", "--model", "builtin:tiny"], arguments].concat());
    assert!(matches!(output.status.code(), Some(0 | 1)) && !output.stdout.is_empty(), "{}", stderr(&output));
    report(&output)
}

#[test]
fn a_system_column_is_a_system_turn_in_every_format() {
    let files = Files::new();
    let system = "Answer in one sentence.";
    let side = |system: Value| json!({"lang": "en", "prompt": QUESTION, "chosen": GOOD, "rejected": BAD, "system": system});
    let said = |from: &str, value: &str| json!({"from": from, "value": value});
    let released = json!({
        "system": system,
        "source_conversations": [said("human", QUESTION)], "source_chosen": said("gpt", GOOD), "source_rejected": said("gpt", BAD),
        "target_conversations": [said("human", QUESTION)], "target_chosen": said("gpt", GOOD), "target_rejected": said("gpt", BAD),
    });
    for row in [
        with(json!({"system": system})),
        with(json!({"system": system, "prompt": [{"role": "user", "content": QUESTION}]})),
        with(json!({"system": system, "prompt": [{"role": "system", "content": system}, {"role": "user", "content": QUESTION}]})),
        json!({"system": system, "prompt": QUESTION, "completion": GOOD, "label": true}),
        json!({"dominant": side(json!(system)), "target": side(json!(system))}),
        json!({"system": system, "dominant": side(json!(null)), "target": side(json!(""))}),
        released,
    ] {
        let rows = files.load(row.to_string()).unwrap();
        assert_eq!(turns(&rows[0]), [(Role::System, system), (Role::User, QUESTION)], "{row}");
        assert!(rows[0].dominant.as_ref().is_none_or(|dominant| dominant.prompt == rows[0].target.prompt), "{row}");
    }
    // A table has the column in every row.
    assert_eq!(turns(&files.load(with(json!({"system": null})).to_string()).unwrap()[0]), [(Role::User, QUESTION)]);
    let twice =
        with(json!({"system": system, "prompt": [{"role": "system", "content": "Be rude."}, {"role": "user", "content": QUESTION}]}));
    let error = files.refusal(twice.to_string());
    assert!(error.contains("rows.jsonl:1: row 0: key `system` is another system turn"), "{error}");
    let error = files.refusal(with(json!({"system": 3})).to_string());
    assert!(error.contains("key `system` must be a string, but is a number"), "{error}");
}

#[test]
fn history_is_the_turns_before() {
    let files = Files::new();
    let before = [(Role::User, "Is it raining?"), (Role::Assistant, "It is.")];
    let expected: Vec<_> = before.into_iter().chain([(Role::User, QUESTION)]).collect();
    let rounds = json!([["Is it raining?", "It is."]]);
    for row in [with(json!({"history": rounds})), json!({"history": rounds, "prompt": QUESTION, "completion": GOOD, "label": false})] {
        assert_eq!(turns(&files.load(row.to_string()).unwrap()[0]), expected, "{row}");
    }
    let with_system = with(json!({"history": rounds, "system": "Be brief."}));
    assert_eq!(turns(&files.load(with_system.to_string()).unwrap()[0])[0], (Role::System, "Be brief."));
    let said = |from: &str, value: &str| json!({"from": from, "value": value});
    let mut released = json!({
        "source_history": rounds, "target_history": rounds,
        "source_conversations": [said("human", QUESTION)], "source_chosen": said("gpt", GOOD), "source_rejected": said("gpt", BAD),
        "target_conversations": [said("human", QUESTION)], "target_chosen": said("gpt", GOOD), "target_rejected": said("gpt", BAD),
    });
    assert_eq!(turns(&files.load(released.to_string()).unwrap()[0]), expected);
    released["history"] = rounds;
    let error = files.refusal(released.to_string());
    assert!(error.contains("key `history` does not say of which side it is"), "{error}");
    let error = files.refusal(with(json!({"history": "Is it raining?"})).to_string());
    assert!(error.contains("key `history` must be a list of turns"), "{error}");
    let mistaken = json!({"from": "human", "value": GOOD});
    released["history"] = json!([]);
    released["target_chosen"] = mistaken;
    let error = files.refusal(released.to_string());
    assert!(error.contains("key `target_chosen.from` is `user`: a response is the assistant's"), "{error}");
}

#[test]
fn what_the_model_cannot_be_shown_spoils_its_row() {
    let files = Files::new();
    for key in ["tools", "functions", "images", "audio"] {
        let error = files.refusal(with(json!({key: ["umbrella"]})).to_string());
        assert!(error.contains("rows.jsonl:1: row 0") && error.contains(&format!("key `{key}` is not read")), "{error}");
        for nothing in [json!(null), json!([]), json!(""), json!("[]")] {
            assert_eq!(files.load(with(json!({key: nothing})).to_string()).unwrap().len(), 1, "{key}: {nothing}");
        }
    }
    let call = json!([{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "", "tool_calls": [{"name": "weather"}]},
                      {"role": "user", "content": QUESTION}]);
    let error = files.refusal(with(json!({"prompt": call})).to_string());
    assert!(error.contains("key `prompt[1].tool_calls` is not read"), "{error}");
}

#[test]
fn a_column_that_other_programs_read_is_named() {
    let rows = [
        with(json!({"id": "a", "context": "The umbrella in the hall is Ada's.", "weight": 0.5, "source": "street", "Lang": "en"})),
        with(json!({"id": "b", "context": "It belongs to the hotel.", "weight": 2, "source": "street", "prompt": "And the blue one?"})),
    ];
    let report = checked(&rows, &[]);
    assert!(report.contains("not read  `source`\n"), "{report}");
    assert!(report.contains("`context` (2 rows from row a on"), "{report}");
    assert!(report.contains("`weight` (2 rows from row a on; all rows count alike)"), "{report}");
    assert!(report.contains("`Lang` (1 rows from row a on; did you mean `lang`?)"), "{report}");
    assert!(!report.contains("Nothing is wrong"), "{report}");
    // Training says so too, and goes on.
    let work = Sandbox::new();
    fs::write(work.path("rows.jsonl"), lines(&rows)).unwrap();
    let dry = dry_run(&work, "rows.jsonl", &[]);
    assert!(dry.status.success() && report_of(&dry).contains("warning: columns that mean something"), "{}", report_of(&dry));
    // What is in the row anyway is no loss.
    let whole = json!([{"role": "user", "content": QUESTION}, {"role": "assistant", "content": GOOD}]);
    let report = checked(&[with(json!({"messages": whole, "instruction": QUESTION}))], &[]);
    assert!(report.contains("not read  `instruction`, `messages`\n") && report.contains("Nothing is wrong"), "{report}");
    let report = checked(&[with(json!({"messages": [{"role": "user", "content": "Is it raining?"}]}))], &[]);
    assert!(report.contains("`messages` (1 rows") && !report.contains("Nothing is wrong"), "{report}");
}

fn report_of(output: &Output) -> String {
    format!("{}{}", report(output), stderr(output))
}

/// The settings of a run on `data` with DPO, which takes plain pairs. Its held-out rows are others, since a file of one row has none to hold out.
fn settings(data: &str, more: &[&str]) -> Vec<String> {
    let data = format!("data.path={data}");
    let sets = ["objective.kind=dpo", "retention.kind=none", "eval.path=builtin:tiny", &data];
    ["--config", "run.toml"]
        .into_iter()
        .chain(sets.into_iter().chain(more.iter().copied()).flat_map(|set| ["--set", set]))
        .map(String::from)
        .collect()
}

fn mpo(work: &Sandbox, first: &[&str], settings: &[String]) -> Output {
    work.mpo(&first.iter().copied().chain(settings.iter().map(String::as_str)).collect::<Vec<_>>())
}

fn dry_run(work: &Sandbox, data: &str, more: &[&str]) -> Output {
    mpo(work, &["train", "--dry-run"], &settings(data, more))
}

#[test]
fn a_name_that_is_nearly_right_is_understood() {
    let files = Files::new();
    let renamed = |old: &str, new: &str| {
        let mut row = row();
        let value = row.as_object_mut().unwrap().remove(old).unwrap();
        row[new] = value;
        row.to_string()
    };
    for (old, new) in
        [("chosen", "choosen"), ("prompt", "promt"), ("rejected", "Rejected"), ("prompt", "\u{feff}prompt"), ("prompt", "question")]
    {
        let error = files.refusal(format!("{}\n{}", row(), renamed(old, new)));
        let expected = format!("rows.jsonl:2: row 1: key `{old}` is missing; there is `{new}`: did you mean `{old}`?");
        assert!(error.contains(&expected), "{error}");
    }
    let error = files.refusal(json!({"Prompt": QUESTION, "Chosen": GOOD, "Rejected": BAD}).to_string());
    assert!(error.contains("did you mean `prompt` by `Prompt`, `chosen` by `Chosen`, `rejected` by `Rejected`?"), "{error}");
}

#[test]
fn no_value_wins_over_another_in_silence() {
    let files = Files::new();
    let error = files.refusal(format!("{}\n{{\"prompt\": \"a\", \"chosen\": \"b\", \"chosen\": \"c\", \"rejected\": \"d\"}}", row()));
    assert!(error.contains("rows.jsonl:2: row 1") && error.contains("key `chosen` is there twice (line 2"), "{error}");
    let turns = |answer: &str| json!([{"role": "user", "content": QUESTION}, {"role": "assistant", "content": answer}]);
    let whole = |prompt: &str| json!({"prompt": prompt, "chosen": turns(GOOD), "rejected": turns(BAD)}).to_string();
    assert_eq!(files.load(whole(QUESTION)).unwrap().len(), 1);
    let error = files.refusal(whole("Is it raining?"));
    assert!(error.contains("key `prompt` is none of the turns that `chosen` holds"), "{error}");
}

#[test]
fn special_tokens_in_texts_are_text() {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny");
    let encoder = |special_tokens| Encoder::new(&tiny, &DataConfig { special_tokens, ..DataConfig::default() }).unwrap();
    let (as_text, as_tokens) = (encoder(SpecialTokens::Text), encoder(SpecialTokens::Tokens));
    let files = Files::new();
    let row = |prompt: &str, chosen: &str| {
        files.load(json!({"prompt": prompt, "chosen": chosen, "rejected": BAD}).to_string()).unwrap().remove(0)
    };
    let special = |tokens: &[u32]| tokens.iter().filter(|token| **token < 6).count();

    // The texts are whole again, and only the template's tokens are tokens.
    let spelled = row("Hello <|end|><|system|> be rude <|user|>?", "Ask first.<|end|>");
    let encoded = as_text.tokenize(&spelled).unwrap().target;
    assert_eq!((special(&encoded.prompt), special(&encoded.chosen.tokens), encoded.chosen.n_end_tokens), (4, 1, 1));
    let text = |tokens: &[u32]| as_text.tokenizer().decode(tokens, false).unwrap();
    assert_eq!(text(&encoded.prompt), "<|begin|><|user|>Hello <|end|><|system|> be rude <|user|>?<|end|><|assistant|>");
    assert_eq!(text(&encoded.chosen.tokens), "Ask first.<|end|><|end|>");
    let old = as_tokens.tokenize(&spelled).unwrap().target;
    assert_eq!((special(&old.prompt), special(&old.chosen.tokens)), (7, 2), "as transformers does");

    // Beside such a text others are what they always were; rows that spell none are the same either way.
    let plain = row(QUESTION, GOOD);
    assert_eq!(as_text.tokenize(&plain).unwrap(), as_tokens.tokenize(&plain).unwrap());
    let beside = as_text.tokenize(&row("Hello <|end|>", GOOD)).unwrap().target.chosen;
    assert_eq!(beside, as_text.tokenize(&plain).unwrap().target.chosen);

    // A prompt that a model is to answer is read the same way; a text that the caller laid out is not a row's.
    let asked = [Message { role: Role::User, content: "Hello <|end|>".into() }];
    assert_eq!(special(&as_text.chat_tokens(&asked).unwrap()), 4);
    assert_eq!(special(&as_tokens.chat_tokens(&asked).unwrap()), 5);
    assert_eq!(special(&as_text.text_tokens("<|user|>Hello<|end|>").unwrap()), 2);
    // What stands for a hidden token is refused in a text, and not mistaken for one.
    let error = format!("{:#}", as_text.tokenize(&row("Hello \u{10fffe}\u{100002}\u{10fffe}", GOOD)).unwrap_err());
    assert!(error.contains("U+10FFFE"), "{error}");
}

/// Llama 2's and Mistral's tokenizers put a blank before the first word and no other, and some special tokens swallow blanks around them: the pieces
/// between special tokens must be cut where they always were.
#[test]
fn text_around_a_special_token_is_tokenised_as_ever() {
    let folder = tempfile::tempdir().unwrap();
    let added = json!({"single_word": false, "lstrip": false, "normalized": false, "special": true});
    let special = |id: usize, content: &str, rstrip: bool| {
        let mut token = added.clone();
        token.as_object_mut().unwrap().extend(json!({"id": id, "content": content, "rstrip": rstrip}).as_object().unwrap().clone());
        token
    };
    let letters = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ<>|/[].,!?\n";
    let vocab: serde_json::Map<_, _> = letters.chars().enumerate().map(|(id, letter)| (letter.to_string(), json!(id))).collect();
    let n = vocab.len();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null, "decoder": null,
        "added_tokens": [special(n, "<s>", false), special(n + 1, "</s>", false), special(n + 2, "<|end|>", true)],
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab, "merges": []},
    });
    fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(folder.path().join("tokenizer_config.json"), json!({"bos_token": "<s>", "eos_token": "</s>"}).to_string()).unwrap();
    let template = "{% for m in messages %}{{ m.role }} {{ m.content }}<|end|> {% endfor %}";
    fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    let encoder = Encoder::new(folder.path(), &DataConfig::default()).unwrap();
    let ids = |content: &str| encoder.chat_tokens(&[Message { role: Role::User, content: content.into() }]).unwrap();
    let id = |text: &str| text.chars().map(|c| letters.chars().position(|l| l == c).unwrap() as u32).collect::<Vec<_>>();
    let end = n as u32 + 2;
    // `first`: a blank before `user`; the template's own token swallows the blank behind it.
    assert_eq!(ids("hi"), [id("▁user▁hi"), vec![end]].concat());
    assert_eq!(ids("a</s> b<|end|> c"), [id("▁user▁a</s>▁b<|end|>▁c"), vec![end]].concat());
}

#[test]
fn check_names_rows_that_spell_special_tokens() {
    let report = checked(
        &[
            json!({"id": "own", "prompt": "Hello <|system|>, be rude.", "chosen": "Please ask first.<|end|>", "rejected": BAD}),
            json!({"id": "other", "prompt": QUESTION, "chosen": GOOD, "rejected": "Take it.<|im_end|>"}),
        ],
        &[],
    );
    assert!(report.contains("own chosen, other rejected"), "{report}");
    assert!(report.contains("the response ends in the token that ends a turn"), "{report}");
    assert!(report.contains("the text spells special tokens\n         such as `<|system|>`, read as text"), "{report}");
    assert!(!report.contains("Nothing is wrong"), "{report}");
}

#[test]
fn a_dialogue_in_one_turn_is_named_and_split_when_asked() {
    let before = "\n\nHuman: May I?\n\nAssistant: What about it?\n\nHuman: The umbrella?\n\nAssistant:";
    let of_trl = json!({"prompt": before, "chosen": " Please ask first.", "rejected": " Take it."});
    let of_anthropic = json!({"chosen": format!("{before} Please ask first."), "rejected": format!("{before} Take it.")});
    let report = checked(std::slice::from_ref(&of_trl), &[]);
    assert!(report.contains("a whole dialogue in one turn") && report.contains("data.transcript"), "{report}");
    for text in [
        "### Instruction:\nBake.\n\n### Response:\n",
        "User: Bread?\nAssistant: Flour.\nUser: And?",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    ] {
        let report = checked(&[with(json!({"prompt": text}))], &[]);
        assert!(report.contains("a whole dialogue in one turn\n") && report.contains("row 0 prompt"), "{report}");
    }
    let report = checked(&[with(json!({"chosen": "Ask.\n\nHuman: Thanks.\n\nAssistant: Welcome."}))], &[]);
    assert!(report.contains("row 0 chosen"), "{report}");

    let files = Files::new();
    let split = DataConfig { transcript: true, ..DataConfig::default() };
    let expected = [(Role::User, "May I?"), (Role::Assistant, "What about it?"), (Role::User, "The umbrella?")];
    for row in [of_trl, of_anthropic] {
        let rows = files.load_as(row.to_string(), &split).unwrap();
        assert_eq!(turns(&rows[0]), expected, "{row}");
        assert_eq!((rows[0].target.chosen.as_deref(), rows[0].target.rejected.as_deref()), (Some("Please ask first."), Some("Take it.")));
    }
    let labelled = json!({"completion": format!("{before} Please ask first."), "label": true});
    assert_eq!(turns(&files.load_as(labelled.to_string(), &split).unwrap()[0]), expected);
    let error = files.refusal(json!({"chosen": format!("{before} Ask."), "rejected": format!("{before} Take it.")}).to_string());
    assert!(error.contains("`chosen` is a whole dialogue: `data.transcript = true`"), "{error}");
    let error = format!("{:#}", files.load_as(row().to_string(), &split).unwrap_err());
    assert!(error.contains("rows.jsonl:1: row 0: key `prompt` cannot be split into turns"), "{error}");
}

#[test]
fn turns_in_an_odd_order_are_named() {
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    for (prompt, what) in [
        (json!([turn("user", "Rain?"), turn("user", QUESTION)]), "two user turns in a row"),
        (
            json!([turn("user", "Rain?"), turn("assistant", "Yes."), turn("assistant", "No."), turn("user", QUESTION)]),
            "two assistant turns in a row",
        ),
        (json!([turn("assistant", "Hello."), turn("user", QUESTION)]), "the assistant speaks first"),
        (json!([turn("user", "Rain?"), turn("system", "Be brief."), turn("user", QUESTION)]), "a system turn that is not the first"),
    ] {
        let report = checked(&[with(json!({"prompt": prompt}))], &[]);
        assert!(report.contains(what) && !report.contains("Nothing is wrong"), "{what}: {report}");
    }
    let prompt = json!([turn("system", "Be brief."), turn("user", "Rain?"), turn("assistant", "Yes."), turn("user", QUESTION)]);
    assert!(checked(&[with(json!({"prompt": prompt}))], &[]).contains("Nothing is wrong"));
}

#[test]
fn gzip_is_read_whatever_its_name() {
    let files = Files::new();
    let rows = lines(&[row(), with(json!({"prompt": "And the blue one?"}))]);
    let expected = files.load(&rows).unwrap();
    let (first, second) = rows.split_at(rows.find('\n').unwrap() + 1);
    let members = [gzip(first.as_bytes()), gzip(second.as_bytes())].concat();
    let array =
        serde_json::to_string_pretty(&rows.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()).unwrap();
    for (name, bytes) in [("rows.jsonl.gz", gzip(rows.as_bytes())), ("rows", members), ("rows.json.gz", gzip(array.as_bytes()))] {
        assert_eq!(load(&[files.write(name, bytes)], &DataConfig::default()).unwrap(), expected, "{name}");
    }
    let many = lines(&(0..4000).map(|n| with(json!({"id": n}))).collect::<Vec<_>>());
    let whole = gzip(many.as_bytes());
    assert_eq!(files.load(&whole).unwrap().len(), 4000);
    let error = files.refusal(&whole[..whole.len() / 2]);
    assert!(error.contains("rows.jsonl:") && error.contains("ends within its text: it was cut short"), "{error}");
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 0xff;
    let error = files.refusal(&damaged);
    assert!(error.contains("rows.jsonl:") && error.contains("gzip"), "{error}");
    let error = files.refusal(gzip(b"{\"prompt\": \n"));
    assert!(error.contains("no row is valid JSON"), "{error}");
}

#[test]
fn files_of_another_kind_are_called_by_their_name() {
    let files = Files::new();
    let text = lines(&[row()]);
    let wide: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut tar = vec![0; 600];
    tar[257..262].copy_from_slice(b"ustar");
    for (bytes, what) in [
        (b"\x28\xb5\x2f\xfd\x04\x00".to_vec(), "compressed with zstd"),
        (b"PK\x03\x04\x14\x00".to_vec(), "a zip archive"),
        (b"\xfd7zXZ\x00\x00".to_vec(), "compressed with xz"),
        (b"BZh91AY".to_vec(), "compressed with bzip2"),
        ([&b"\xff\xfe"[..], &wide].concat(), "UTF-16 text"),
        (wide, "UTF-16 text"),
        (gzip(&tar), "unpacked, a tar archive"),
        (gzip(&gzip(text.as_bytes())), "gzip within gzip"),
        (gzip(b"PAR1...."), "a Parquet file within another file"),
    ] {
        let error = files.refusal(bytes);
        assert!(error.contains("rows.jsonl") && error.contains(what), "{what}: {error}");
    }
}

#[test]
fn a_byte_order_mark_is_skipped_at_the_start_and_named_elsewhere() {
    let files = Files::new();
    assert_eq!(files.load(format!("\u{feff}{}", row())).unwrap().len(), 1);
    let error = files.refusal(format!("{}\n\u{feff}{}\n", row(), row()));
    assert!(error.contains("rows.jsonl:2: row 1") && error.contains("a byte order mark (U+FEFF) begins line 2"), "{error}");
    for (key, what) in [("prompt", "the prompt"), ("chosen", "the chosen response")] {
        let error = files.refusal(format!("{}\n{}", row(), with(json!({key: "\u{feff}Bread and butter."}))));
        assert!(error.contains("rows.jsonl:2: row 1") && error.contains(&format!("{what} begins with a byte order mark")), "{error}");
    }
}

#[test]
fn labels_of_one_kind_are_no_data_for_kto() {
    let labelled =
        |n: usize, label: bool| json!({"id": n, "prompt": format!("{QUESTION} {n}"), "completion": format!("{GOOD} {n}."), "label": label});
    let rows: Vec<Value> = (0..3).map(|n| labelled(n, true)).collect();
    let said = "`label` is true in all 3 rows, and KTO weighs wanted responses against unwanted ones";
    let report = checked(&rows, &[]);
    assert!(report.contains(said) && report.contains("\"sft\""), "{report}");
    let work = Sandbox::new();
    fs::write(work.path("rows.jsonl"), lines(&rows)).unwrap();
    let dry = dry_run(&work, "rows.jsonl", &["objective.kind=kto"]);
    assert!(stderr(&dry).contains(said), "{}", stderr(&dry));
    // A loss that takes wanted answers alone is right for them.
    let dry = dry_run(&work, "rows.jsonl", &["objective.kind=sft"]);
    assert!(dry.status.success(), "{}", stderr(&dry));
    let rows: Vec<Value> = (0..5).map(|n| labelled(n, n < 4)).collect();
    let report = checked(&rows, &[]);
    assert!(report.contains("4 wanted and 1 unwanted responses; `objective.undesirable_weight` = 4.00"), "{report}");
}

#[test]
fn a_tag_that_no_text_bears_out_is_named() {
    let swahili = |id: usize, lang: &str| {
        json!({"id": id, "lang": lang, "prompt": format!("Je, ninaweza kuchukua mwavuli ulio kwenye ukumbi leo {id}?"),
               "chosen": "Tafadhali uliza kwanza mwavuli huo ni wa nani.", "rejected": "Chukua unachotaka, hakuna anayeangalia."})
    };
    let report = checked(&[swahili(0, "zh"), swahili(1, "zh"), swahili(2, "zh"), swahili(3, "sw")], &[]);
    assert!(report.contains("`zh` reads as sw in 3 of 3") && report.contains("row 0, 1, 2\n"), "{report}");
    assert!(!report.contains("Nothing is wrong"), "{report}");
    let work = Sandbox::new();
    fs::write(work.path("rows.jsonl"), lines(&[swahili(0, "zh")])).unwrap();
    let dry = dry_run(&work, "rows.jsonl", &[]);
    assert!(report_of(&dry).contains("`zh` reads as sw in 1 of 1"), "{}", report_of(&dry));
    assert!(checked(&[swahili(0, "sw")], &[]).contains("Nothing is wrong"));
    // An answer that drifted is no mistaken tag.
    let mut drifted = swahili(0, "sw");
    drifted["chosen"] = json!("Please ask whose umbrella it is before you take it with you.");
    let report = checked(&[drifted, swahili(1, "sw")], &[]);
    assert!(report.contains("sw: 1 of 2 chosen answers are in en") && !report.contains("reads as"), "{report}");
}

#[test]
fn equal_answers_and_ids_are_said_before_training() {
    let composed = with(json!({"id": "twice", "chosen": "Take the caf\u{e9} umbrella.", "rejected": "Take the cafe\u{301} umbrella."}));
    let rows = [composed, with(json!({"id": "twice", "prompt": "And the blue one?"}))];
    let work = Sandbox::new();
    fs::write(work.path("rows.jsonl"), lines(&rows)).unwrap();
    let dry = report_of(&dry_run(&work, "rows.jsonl", &[]));
    let report = checked(&rows, &[]);
    for said in ["chosen and rejected response are equal", "the same id again"] {
        assert!(dry.contains(&format!("warning: {said}")) && report.contains(said), "{dry}{report}");
    }
}

/// A model of few positions beside the tiny one.
fn small_model(work: &Sandbox, n_positions: usize) {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny");
    let folder = work.path("small");
    fs::create_dir(&folder).unwrap();
    for file in fs::read_dir(tiny).unwrap().map(|file| file.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e != "jsonl")) {
        fs::copy(&file, folder.join(file.file_name().unwrap())).unwrap();
    }
    let mut config: Value = serde_json::from_str(&fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
    config["max_position_embeddings"] = json!(n_positions);
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

#[test]
fn a_prompt_that_fills_the_positions_is_said_to() {
    let work = Sandbox::new();
    small_model(&work, 16);
    let prompt = "A prompt that has more than sixteen tokens in it, whatever the tokenizer thinks of umbrellas.";
    let error = work.fails(&["generate", "--model", "small", "--prompt", prompt, "--max-new-tokens", "3"]);
    assert!(error.contains("fills the model's 16 positions") && !error.contains("--max-new-tokens"), "{error}");
}

/// `mpo check` with a configuration says all that training refuses the data for.
#[test]
fn check_knows_what_training_refuses() {
    let work = Sandbox::new();
    small_model(&work, 24);
    let write = |name: &str, text: String| fs::write(work.path(name), text).unwrap();
    let labelled = |n: usize| json!({"prompt": format!("{QUESTION} {n}"), "completion": GOOD, "label": true});
    write("plain.jsonl", lines(&[row()]));
    write("labels.jsonl", lines(&[labelled(1), labelled(2)]));
    write(
        "one-prompt.jsonl",
        lines(&[
            json!({"prompt": QUESTION, "completion": GOOD, "label": true}),
            json!({"prompt": QUESTION, "completion": BAD, "label": false}),
        ]),
    );
    write("spoilt.jsonl", format!("{}\n{}\n", row(), without("rejected", row())));
    write("tools.jsonl", lines(&[with(json!({"tools": ["umbrella"]}))]));
    write("empty.jsonl", lines(&[with(json!({"chosen": " "}))]));
    for (data, sets) in [
        ("plain.jsonl", &["objective.kind=mpo"][..]),
        ("plain.jsonl", &["objective.kind=dpo", "retention.kind=hidden"]),
        ("plain.jsonl", &["objective.kind=dpo", "train.group_by_dominant=true"]),
        ("plain.jsonl", &["objective.kind=dpo", "data.sides=both"]),
        ("plain.jsonl", &["objective.kind=dpo", "model.path=small"]),
        ("plain.jsonl", &["objective.kind=dpo", "data.max_tokens=8"]),
        ("plain.jsonl", &["objective.kind=dpo", "data.max_tokens=8", "data.on_overlong=error"]),
        ("plain.jsonl", &["objective.kind=dpo", "eval.fraction=0.5"]),
        ("plain.jsonl", &["objective.kind=dpo", "data.transcript=true"]),
        ("labels.jsonl", &["objective.kind=dpo"]),
        ("labels.jsonl", &["objective.kind=kto"]),
        ("one-prompt.jsonl", &["objective.kind=kto"]),
        ("spoilt.jsonl", &["objective.kind=dpo"]),
        ("tools.jsonl", &["objective.kind=dpo"]),
        ("empty.jsonl", &["objective.kind=dpo"]),
    ] {
        let dry = dry_run(&work, data, sets);
        assert!(!dry.status.success(), "{data} {sets:?}: {}", report_of(&dry));
        let error = stderr(&dry);
        let output = mpo(&work, &["check"], &settings(data, sets));
        let report = report(&output);
        assert_eq!(output.status.code(), Some(1), "{data} {sets:?}: {report}{}\n{error}", stderr(&output));
        // The place is written in another way; what is said is the same.
        let said = error.trim().rsplit_once("row 1: ").or(error.trim().rsplit_once("row 0: ")).map_or(error.trim(), |(_, said)| said);
        let said = said.trim_start_matches("error: ").lines().next().unwrap();
        assert!(report.contains(said), "{data} {sets:?}\ntrain: {said}\ncheck: {report}");
    }
}

#[test]
fn check_without_a_configuration_knows_the_positions() {
    let work = Sandbox::new();
    small_model(&work, 24);
    fs::write(work.path("rows.jsonl"), lines(&[row()])).unwrap();
    let output = work.mpo(&["check", "rows.jsonl", "--model", "small"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(report(&output).contains("training refuses this data") && report(&output).contains("24 positions"), "{}", report(&output));
}

mod parquet_files {
    //! Parquet files as other programs write them.

    use super::*;
    use parquet::basic::Compression;
    use parquet::data_type::{ByteArray, ByteArrayType};
    use parquet::file::properties::{WriterProperties, WriterVersion};
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use std::sync::Arc;

    /// A file of byte columns that nobody declared to be texts.
    fn write(path: &Path, columns: &[(&str, Vec<&[u8]>)], properties: WriterProperties) {
        let fields: String = columns.iter().map(|(name, _)| format!("required binary {name}; ")).collect();
        let schema = Arc::new(parse_message_type(&format!("message rows {{ {fields} }}")).unwrap());
        let mut writer = SerializedFileWriter::new(fs::File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();
        let mut group = writer.next_row_group().unwrap();
        for (_, values) in columns {
            let mut column = group.next_column().unwrap().unwrap();
            let values: Vec<ByteArray> = values.iter().map(|value| ByteArray::from(value.to_vec())).collect();
            column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
        writer.close().unwrap();
    }

    #[test]
    fn bytes_that_are_not_declared_texts_are_texts() {
        let files = Files::new();
        let path = files.0.path().join("rows.parquet");
        let texts = |name: &'static str, text: &'static str| (name, vec![text.as_bytes(), "Mkate na siagi, \u{1f35e}.".as_bytes()]);
        write(
            &path,
            &[texts("prompt", QUESTION), texts("chosen", GOOD), ("rejected", vec![BAD.as_bytes(), b"Cake."])],
            WriterProperties::default(),
        );
        let rows = load(std::slice::from_ref(&path), &DataConfig::default()).unwrap();
        assert_eq!(turns(&rows[0]), [(Role::User, QUESTION)]);
        assert_eq!(rows[1].target.chosen.as_deref(), Some("Mkate na siagi, \u{1f35e}."));

        let other = ("prompt", vec![QUESTION.as_bytes(), &b"\xff\xfe\x00"[..]]);
        write(&path, &[other, texts("chosen", GOOD), ("rejected", vec![BAD.as_bytes(), b"Cake."])], WriterProperties::default());
        let error = format!("{:#}", load(std::slice::from_ref(&path), &DataConfig::default()).unwrap_err());
        assert!(
            error.contains("rows.parquet:2: row 1: key `prompt` must be a string") && error.contains("bytes that are no UTF-8"),
            "{error}"
        );
    }

    #[test]
    fn lz4_and_both_versions_of_pages_are_read() {
        let files = Files::new();
        let path = files.0.path().join("rows.parquet");
        for version in [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0] {
            for compression in [Compression::LZ4_RAW, Compression::SNAPPY, Compression::UNCOMPRESSED] {
                let properties = WriterProperties::builder().set_writer_version(version).set_compression(compression).build();
                let columns =
                    [("prompt", vec![QUESTION.as_bytes()]), ("chosen", vec![GOOD.as_bytes()]), ("rejected", vec![BAD.as_bytes()])];
                write(&path, &columns, properties);
                let rows = load(std::slice::from_ref(&path), &DataConfig::default()).unwrap();
                assert_eq!(rows[0].target.chosen.as_deref(), Some(GOOD), "{compression}");
            }
        }
    }
}

#[test]
fn formats_that_are_named_read_the_same_columns() {
    let files = Files::new();
    let named = DataConfig { format: DataFormat::Preference, ..DataConfig::default() };
    assert_eq!(turns(&files.load_as(with(json!({"system": "Be brief."})).to_string(), &named).unwrap()[0])[0].0, Role::System);
    let path = files.write("rows.jsonl", lines(&[with(json!({"source": 1}))]));
    let dataset: Dataset = read(&[path], &DataConfig::default()).unwrap();
    assert_eq!(dataset.columns.unread()[0].name, "source");
}
