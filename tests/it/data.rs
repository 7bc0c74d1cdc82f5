//! Reading rows of both formats, what is refused and how, and the report of `mpo check`.

use crate::template::{byte_tokenizer, message};
use mpo::config::{DataConfig, DataFormat, OnOverlong};
use mpo::data::check::{CheckInput, CheckReport, FindingKind, Severity, check};
use mpo::data::encode::Encoder;
use mpo::data::pair::{PreferencePair, PreferenceRow, Role};
use mpo::data::{Dataset, load, read};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::slice::from_ref;
use tempfile::TempDir;

fn file(name: &str, text: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    (folder, path)
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

fn load_text(text: &str, config: &DataConfig) -> anyhow::Result<Vec<PreferenceRow>> {
    let (_folder, path) = file("rows.jsonl", text);
    load(&[path], config)
}

/// The whole error chain of what must fail.
fn refusal(text: &str, config: &DataConfig) -> String {
    format!("{:#}", load_text(text, config).unwrap_err())
}

fn dominant(row: &PreferenceRow) -> &PreferencePair {
    row.dominant.as_ref().unwrap()
}

fn parallel_row() -> Value {
    json!({
        "id": "bread",
        "dominant": {"lang": "en", "prompt": "How do I bake bread?", "chosen": "Start with good flour.", "rejected": "Buy a loaf."},
        "target": {"lang": "sw", "prompt": "Ninawezaje kuoka mkate?", "chosen": "Anza na unga mzuri.", "rejected": "Nunua mkate."},
    })
}

fn llamafactory_row() -> Value {
    let turn = |from: &str, value: &str| json!({"from": from, "value": value});
    json!({
        "source_conversations": [turn("human", "How do I bake bread?")],
        "source_chosen": turn("gpt", "Start with good flour."), "source_rejected": turn("gpt", "Buy a loaf."),
        "target_conversations": [turn("human", "パンはどうやって焼きますか？")],
        "target_chosen": turn("gpt", "よい小麦粉から始めます。"), "target_rejected": turn("gpt", "パンを買いましょう。"),
    })
}

fn edited(mut row: Value, pointer: &str, value: Value) -> Value {
    *row.pointer_mut(pointer).unwrap() = value;
    row
}

#[test]
fn parallel_rows_keep_their_order_ids_and_turns() {
    let turns = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Bread?"},
                       {"role": "assistant", "content": "What about it?"}, {"role": "user", "content": "How?"}]);
    let mut unnamed = edited(parallel_row(), "/dominant/prompt", turns);
    unnamed.as_object_mut().unwrap().remove("id");
    let numbered = edited(parallel_row(), "/id", json!(7));
    let pairs = load_text(&lines(&[parallel_row(), unnamed, numbered]), &DataConfig::default()).unwrap();
    assert_eq!(pairs.iter().map(|pair| pair.id.as_str()).collect::<Vec<_>>(), ["bread", "1", "7"]);
    assert_eq!(pairs[0].target.prompt, [message(Role::User, "Ninawezaje kuoka mkate?")]);
    assert_eq!(dominant(&pairs[0]).chosen.as_deref(), Some("Start with good flour."));
    assert_eq!(pairs[0].target.rejected.as_deref(), Some("Nunua mkate."));
    let roles: Vec<_> = dominant(&pairs[1]).prompt.iter().map(|turn| turn.role).collect();
    assert_eq!(roles, [Role::System, Role::User, Role::Assistant, Role::User]);
}

/// The released llama file has one such row, and the recipe that trains on it must run.
#[test]
fn an_empty_prompt_is_loaded_and_reported() {
    let row = edited(parallel_row(), "/target/prompt", json!(""));
    assert_eq!(load_text(&row.to_string(), &DataConfig::default()).unwrap().len(), 1);
    let report = check_rows(&[row]);
    assert_eq!(found(&report, FindingKind::EmptyPrompt), ["bread target"]);
    assert!(report.is_wrong());
}

#[test]
fn both_formats_are_recognised_in_arrays_and_in_lines() {
    for (row, n_ids) in [(parallel_row(), "bread"), (llamafactory_row(), "0")] {
        let array = serde_json::to_string_pretty(&json!([row, row])).unwrap();
        for text in [array.clone(), format!("\u{feff}{array}"), lines(&[row.clone(), row.clone()]), format!("\n{row}\n\n{row}")] {
            let pairs = load_text(&text, &DataConfig::default()).unwrap();
            assert_eq!((pairs.len(), pairs[0].id.as_str()), (2, n_ids));
            assert_eq!(dominant(&pairs[0]).chosen.as_deref(), Some("Start with good flour."));
        }
    }
}

#[test]
fn languages_are_read_where_given_and_detected_elsewhere() {
    let mut given = llamafactory_row();
    given["lang"] = json!("ja-JP");
    given["annotator"] = json!({"anything": "else"});
    let pairs = load_text(&lines(&[llamafactory_row(), given]), &DataConfig::default()).unwrap();
    let langs: Vec<_> = pairs.iter().map(|pair| (dominant(pair).lang.as_str(), pair.target.lang.as_str())).collect();
    assert_eq!(langs, [("en", "ja"), ("en", "ja-jp")], "in lower case, as `data.languages` has them");

    // The dominant language is whatever stands under that key.
    let mut swapped = parallel_row();
    swapped["dominant"] = parallel_row()["target"].clone();
    swapped["target"] = parallel_row()["dominant"].clone();
    let pairs = load_text(&swapped.to_string(), &DataConfig::default()).unwrap();
    assert_eq!((dominant(&pairs[0]).lang.as_str(), pairs[0].target.lang.as_str()), ("sw", "en"));
}

#[test]
fn languages_and_limit_choose_rows() {
    let row = |id: usize, lang: &str| edited(edited(parallel_row(), "/id", json!(id)), "/target/lang", json!(lang));
    let text = lines(&[row(0, "sw"), row(1, "bn"), row(2, "sw"), row(3, "ko"), row(4, "bn")]);
    let ids = |config: &DataConfig| load_text(&text, config).unwrap().into_iter().map(|pair| pair.id).collect::<Vec<_>>();
    let languages = Some(vec!["bn".to_owned(), "ko".to_owned()]);
    assert_eq!(ids(&DataConfig { languages: languages.clone(), ..DataConfig::default() }), ["1", "3", "4"]);
    assert_eq!(ids(&DataConfig { languages, limit: Some(2), ..DataConfig::default() }), ["1", "3"]);
    assert_eq!(ids(&DataConfig { limit: Some(3), ..DataConfig::default() }), ["0", "1", "2"]);

    let unknown = DataConfig { languages: Some(vec!["sw".into(), "yo".into()]), ..DataConfig::default() };
    let error = refusal(&text, &unknown);
    assert!(error.contains("asks for `yo`, but the target languages are `bn` (2 rows), `ko` (1 rows), `sw` (2 rows)"), "{error}");
}

#[test]
fn a_spoilt_row_is_refused_with_its_line_and_key() {
    let good = parallel_row();
    let without = |pointer: &str, key: &str| {
        let mut row = parallel_row();
        row.pointer_mut(pointer).unwrap().as_object_mut().unwrap().remove(key);
        row.to_string()
    };
    let with = |pointer: &str, value: Value| edited(parallel_row(), pointer, value).to_string();
    for (spoilt, expected) in [
        ("{\"id\": ".to_owned(), "not valid JSON: EOF while parsing a value (line 2, column 7)"),
        ("[1]".to_owned(), "a row must be an object, but this is a list"),
        (without("/target", "rejected"), "key `target.rejected` is missing"),
        (without("", "dominant"), "key `dominant` is missing"),
        (with("/target", json!("text")), "key `target` must be an object, but is a string"),
        (with("/dominant/chosen", json!(3)), "key `dominant.chosen` must be a string, but is a number"),
        (with("/dominant/prompt", json!(null)), "key `dominant.prompt` must be a string or a list of turns, but is null"),
        (with("/dominant/prompt", json!([{"role": "user"}])), "key `dominant.prompt[0].content` is missing"),
        (with("/dominant/prompt", json!([{"role": "tool", "content": "x"}])), "key `dominant.prompt[0].role`: unknown speaker `tool`"),
        (with("/target/prompt", json!([])), "the target prompt must end with a user turn"),
        (with("/target/chosen", json!(" \n")), "the chosen response of the target pair is empty"),
        (with("/dominant/rejected", json!("")), "the rejected response of the dominant pair is empty"),
    ] {
        let error = refusal(&format!("{good}\n{spoilt}\n{good}\n"), &DataConfig::default());
        assert!(error.contains("rows.jsonl:2: row 1: ") && error.contains(expected), "{error}");
    }
    let error = refusal(&format!("{good}\nx\ny\n"), &DataConfig::default());
    assert!(error.contains("(1 more such rows"), "{error}");
}

#[test]
fn rows_of_an_array_have_lines_too() {
    let mut row = llamafactory_row();
    row["target_chosen"].as_object_mut().unwrap().remove("value");
    let array = serde_json::to_string_pretty(&json!([llamafactory_row(), row])).unwrap();
    let line = 1 + array.lines().enumerate().filter(|(_, line)| *line == "  {").nth(1).unwrap().0;
    let error = refusal(&array, &DataConfig::default());
    assert!(error.contains(&format!("rows.jsonl:{line}: row 1: key `target_chosen.value` is missing")), "{error}");
    // A file that was cut short, in a row and between rows; a comma too few.
    let array = serde_json::to_string_pretty(&json!([llamafactory_row(), llamafactory_row()])).unwrap();
    for cut in [&array[..array.len() - 60], array.trim_end_matches(']')] {
        let error = refusal(cut, &DataConfig::default());
        assert!(error.contains("not valid JSON: EOF while parsing"), "{error}");
    }
    // Two files joined into one: the second half must not vanish.
    let error = refusal(&format!("{array}\n{array}"), &DataConfig::default());
    let line = 1 + array.lines().count();
    assert!(error.contains(&format!("rows.jsonl:{line}: row 2: not valid JSON: the array of rows ends before this line")), "{error}");
    let row = llamafactory_row().to_string();
    let error = refusal(&format!("[{row},\n {}]", row.replacen(':', "", 1)), &DataConfig::default());
    let column = 1 + row.find(':').unwrap() + 1;
    assert!(error.contains(&format!("rows.jsonl:2: row 1: not valid JSON: expected `:` (line 2, column {column})")), "{error}");
}

#[test]
fn files_without_usable_rows_are_refused() {
    for empty in ["", "\n\n", "[]", " [\n] "] {
        let error = refusal(empty, &DataConfig::default());
        assert!(error.contains("holds no rows"), "{error}");
    }
    let error = refusal("{\"prompt\": \"x\", \"answer\": \"y\"}", &DataConfig::default());
    assert!(error.contains("unknown format: the first row has the keys [`prompt`, `answer`]"), "{error}");
    assert!(["`dominant`", "`source_conversations`", "`chosen`", "`completion`"].iter().all(|key| error.contains(key)), "{error}");
    let error = refusal("nonsense", &DataConfig::default());
    assert!(error.contains("no row is valid JSON: expected ident (line 1, column 2)"), "{error}");
    let error = refusal(&parallel_row().to_string(), &DataConfig { limit: Some(0), ..DataConfig::default() });
    assert!(error.contains("no rows are left"), "{error}");
    let named = DataConfig { format: DataFormat::Llamafactory, ..DataConfig::default() };
    let error = refusal(&parallel_row().to_string(), &named);
    assert!(error.contains("key `source_conversations` is missing"), "{error}");

    let (_folder, path) = file("rows.jsonl", "");
    std::fs::write(&path, [b'{', b'}', b'\n', 0xff, 0xfe]).unwrap();
    let error = format!("{:#}", load(from_ref(&path), &DataConfig::default()).unwrap_err());
    assert!(error.contains("rows.jsonl:2: the file is not UTF-8"), "{error}");
    let error = format!("{:#}", load(&[path.with_file_name("absent")], &DataConfig::default()).unwrap_err());
    assert!(error.contains("cannot read the data file") && error.contains("absent"), "{error}");
}

fn check_rows(rows: &[Value]) -> CheckReport {
    let (_folder, path) = file("rows.jsonl", &lines(rows));
    let dataset = read(from_ref(&path), &DataConfig::default()).unwrap();
    check(&CheckInput {
        dataset: &dataset,
        encoder: None,
        objective: None,
        encoded: None,
        max_tokens: 1024,
        on_overlong: OnOverlong::Truncate,
        dominant_gaps: None,
        bad_supervision_share: 0.1,
    })
}

/// Rows of a finding, empty where it was not made.
fn found(report: &CheckReport, kind: FindingKind) -> Vec<&str> {
    report.findings.iter().filter(|finding| finding.kind == kind).flat_map(|finding| finding.rows.iter().map(String::as_str)).collect()
}

#[test]
fn a_clean_file_has_no_findings() {
    let report = check_rows(&[parallel_row()]);
    assert_eq!(report.findings, []);
    assert!(!report.is_wrong());
    assert!(report.to_string().contains("Nothing is wrong."), "{report}");
}

#[test]
fn every_fault_is_found_in_its_row() {
    let row = |id: &str, changes: &[(&str, &str)]| {
        let row = edited(parallel_row(), "/id", json!(id));
        changes.iter().fold(row, |row, (pointer, value)| edited(row, pointer, json!(value)))
    };
    let report = check_rows(&[
        row("good", &[]),
        row("empty response", &[("/target/chosen", "")]),
        row("empty prompt", &[("/target/prompt", " ")]),
        row("untranslated", &[("/target/prompt", "How do I bake bread?")]),
        row("same language", &[("/target/lang", "en"), ("/target/prompt", "Unga gani?")]),
        row("script", &[("/target/prompt", "Mkate?"), ("/target/chosen", "先准备好面粉和耐心。")]),
        row("equal", &[("/target/prompt", "Keki?"), ("/target/rejected", "Anza na unga mzuri. ")]),
        row("again", &[]),
        row("cut", &[("/target/prompt", "Chapati?"), ("/target/rejected", "Nunua mkate na")]),
        row("other answer", &[("/target/chosen", "Tumia chachu.")]),
        row("cut", &[("/target/prompt", "Biskuti?"), ("/target/chosen", "Tumia sukari.")]),
    ]);
    assert_eq!(report.n_rows, 10);
    for (kind, rows) in [
        (FindingKind::EmptyResponse, vec!["1 (line 2)"]),
        (FindingKind::EmptyPrompt, vec!["empty prompt target"]),
        (FindingKind::Untranslated, vec!["untranslated"]),
        (FindingKind::SameLanguage, vec!["same language"]),
        (FindingKind::OtherScript, vec!["script target.chosen"]),
        (FindingKind::EqualResponses, vec!["equal target"]),
        (FindingKind::RepeatedRow, vec!["again (as good)"]),
        (FindingKind::NoSentenceEnd, vec!["cut target.rejected"]),
        (FindingKind::RepeatedPrompt, vec!["other answer (as good)"]),
        (FindingKind::RepeatedId, vec!["cut"]),
        (FindingKind::Unreadable, vec![]),
    ] {
        assert_eq!(found(&report, kind), rows, "{kind:?}");
    }
    let cut = report.findings.iter().find(|finding| finding.kind == FindingKind::NoSentenceEnd).unwrap();
    assert_eq!((cut.severity, cut.detail.as_deref()), (Severity::WorthKnowing, Some("target sw 1 of 18")));
    assert!(report.is_wrong());
    let text = report.to_string();
    assert!(text.contains("10 rows, 1 distinct dominant pairs"), "{text}");
    assert!(!text.contains("chachu") && !text.contains("flour"), "the report quotes the data: {text}");
}

#[test]
fn faults_of_a_shared_dominant_pair_are_counted_once() {
    let row = |id: usize, prompt: &str| {
        let row = edited(parallel_row(), "/dominant/rejected", json!("Buy a loaf and"));
        edited(edited(row, "/id", json!(id)), "/target/prompt", json!(prompt))
    };
    let report = check_rows(&[row(0, "Mkate?"), row(1, "Keki?"), row(2, "Chapati?")]);
    assert_eq!(found(&report, FindingKind::NoSentenceEnd), ["0 dominant.rejected"]);
    assert!(!report.is_wrong(), "a guess is no reason to fail: {report}");
}

#[test]
fn lengths_and_limits_are_those_of_the_encoder() {
    let folder = byte_tokenizer(
        &json!({"bos_token": "<s>", "eos_token": "</s>"}),
        Some("{{ bos_token }}{{ messages[0].content }}>{% for m in messages[1:] %}{{ m.content + eos_token }}{% endfor %}"),
    );
    let long = edited(edited(parallel_row(), "/id", json!("long")), "/target/chosen", json!("A".repeat(60) + "."));
    let (_folder, path) = file("rows.jsonl", &lines(&[parallel_row(), long]));
    let config = DataConfig { max_tokens: 50, ..DataConfig::default() };
    let dataset = read(from_ref(&path), &config).unwrap();
    let encoder = Encoder::new(folder.path(), &config).unwrap();
    let encoded: Vec<_> = dataset.pairs.iter().map(|pair| encoder.tokenize(pair)).collect();
    let report = |on_overlong, dominant_gaps| {
        check(&CheckInput {
            dataset: &dataset,
            encoder: None,
            objective: None,
            encoded: Some(&encoded),
            max_tokens: 50,
            on_overlong,
            dominant_gaps,
            bad_supervision_share: 0.1,
        })
    };
    let cut = report(OnOverlong::Truncate, None);
    assert_eq!(found(&cut, FindingKind::TooLong), ["long"]);
    assert!(!cut.is_wrong());
    assert_eq!(found(&report(OnOverlong::Drop, None), FindingKind::TooLong), ["long (dropped)"]);
    assert!(report(OnOverlong::Error, None).is_wrong());
    // BOS + prompt + `>`; 61 characters + EOS.
    let target = cut.lengths.iter().find(|row| row.side == "target").unwrap();
    assert_eq!((target.prompt.max, target.response.max, target.sequence.max), (25, 62, 87));
    let dominant = cut.lengths.iter().find(|row| row.side == "dominant").unwrap();
    assert_eq!((dominant.lang.as_str(), dominant.prompt.p50, dominant.response.p50), ("en", 22, 12));

    // Two rows, one dominant pair: the reference is asked once.
    let negative = report(OnOverlong::Truncate, Some(&[-0.5, -0.5]));
    let finding = negative.findings.iter().find(|finding| finding.kind == FindingKind::NegativeGap).unwrap();
    assert_eq!((finding.severity, finding.detail.as_deref()), (Severity::Wrong, Some("1 of 1 dominant pairs, 100 %")));
    let positive = report(OnOverlong::Truncate, Some(&[0.5, 0.5]));
    assert_eq!(found(&positive, FindingKind::NegativeGap), [""; 0]);
    assert!(positive.to_string().contains("rejected response on 0 of 1 dominant pairs"), "{positive}");
    assert!(!cut.to_string().contains("The reference"), "it was not asked: {cut}");
    assert_eq!(found(&report(OnOverlong::Truncate, Some(&[f64::NAN, f64::NAN])), FindingKind::NegativeGap), [""; 0], "not scored");
}

#[test]
fn a_template_that_refuses_rows_is_a_finding() {
    let folder = byte_tokenizer(&json!({"eos_token": "</s>"}), Some("{{ raise_exception('no bread, please') }}"));
    let (_folder, path) = file("rows.jsonl", &parallel_row().to_string());
    let dataset: Dataset = read(from_ref(&path), &DataConfig::default()).unwrap();
    let encoder = Encoder::new(folder.path(), &DataConfig::default()).unwrap();
    let encoded: Vec<_> = dataset.pairs.iter().map(|pair| encoder.tokenize(pair)).collect();
    let report = check(&CheckInput {
        dataset: &dataset,
        encoder: None,
        objective: None,
        encoded: Some(&encoded),
        max_tokens: 1024,
        on_overlong: OnOverlong::Truncate,
        dominant_gaps: None,
        bad_supervision_share: 0.1,
    });
    assert_eq!(found(&report, FindingKind::NotEncodable), ["bread"]);
    assert!(report.is_wrong() && report.to_string().contains("no bread, please"), "{report}");
}
