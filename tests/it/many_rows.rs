//! Files of more than one piece: the same tokens, reports and errors as row by row in memory.

use crate::template::byte_tokenizer;
use mpo::config::{DataConfig, OnOverlong};
use mpo::data::encode::{Encoded, Encoder};
use mpo::data::{PIECE_BYTES, load, read};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::slice::from_ref;
use tempfile::TempDir;

/// Refuses a prompt with `refuse` in it.
const TEMPLATE: &str = "{% for m in messages %}{% if 'refuse' in m.content %}{{ raise_exception('refused') }}{% endif %}\
                        <{{ m.content }}>{% if m.role == 'assistant' %}<|end|>{% endif %}{% endfor %}";

fn encoder(on_overlong: OnOverlong, max_tokens: usize) -> (TempDir, Encoder) {
    let folder = byte_tokenizer(&json!({"eos_token": "</s>"}), Some(TEMPLATE));
    let encoder = Encoder::new(folder.path(), &DataConfig { on_overlong, max_tokens, ..DataConfig::default() }).unwrap();
    (folder, encoder)
}

/// Row `i` shares its dominant pair with row `i + 7`; a few are longer, on one side or both. Most of it is a key that is not read.
fn row(i: usize) -> Value {
    let text = |what: &str, i: usize| format!("{what} {i} {}", "é".repeat(if i % 5 == 3 { 32 } else { 25 }));
    let side = |lang: &str, i: usize| json!({"lang": lang, "prompt": text("?", i), "chosen": text("yes", i), "rejected": text("no", i)});
    json!({"id": format!("row {i}"), "dominant": side("en", i % 7), "target": side("sw", i), "note": "x".repeat(30_000)})
}

fn n_rows() -> usize {
    let n_rows = 3 * PIECE_BYTES / row(0).to_string().len();
    assert!(n_rows > 100);
    n_rows
}

fn write(folder: &Path, rows: &[Value]) -> [PathBuf; 2] {
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    [("rows.jsonl", lines), ("rows.json", json!(rows).to_string())].map(|(name, text)| {
        std::fs::write(folder.join(name), text).unwrap();
        folder.join(name)
    })
}

#[test]
fn a_file_is_encoded_as_its_rows_are() {
    let rows: Vec<Value> = (0..n_rows()).map(row).collect();
    let config = DataConfig::default();
    for (on_overlong, max_tokens) in [(OnOverlong::Truncate, 130), (OnOverlong::Drop, 130), (OnOverlong::Released, 100)] {
        let (folder, encoder) = encoder(on_overlong, max_tokens);
        let [lines, array] = write(folder.path(), &rows);
        let pairs = load(from_ref(&lines), &config).unwrap();
        assert_eq!(pairs, load(from_ref(&array), &config).unwrap());
        let (mut kept, mut cut, mut dropped) = (Vec::new(), Vec::new(), Vec::new());
        for pair in &pairs {
            match encoder.encode(pair).unwrap() {
                Encoded::Whole(pair) => kept.push(pair),
                Encoded::Cut { row: pair, n_lost } => {
                    cut.push((pair.id.clone(), n_lost));
                    kept.push(pair);
                }
                Encoded::Overlong { id, n_tokens } => dropped.push((id, n_tokens)),
            }
        }
        assert_eq!(cut.is_empty(), on_overlong == OnOverlong::Drop);
        assert_eq!(dropped.is_empty(), on_overlong != OnOverlong::Drop);
        for file in [lines, array] {
            let (encoded, report) = encoder.encode_files(from_ref(&file), &config).unwrap();
            assert!(encoded == kept, "{on_overlong:?}");
            assert_eq!((report.n_rows, &report.cut, &report.dropped), (rows.len(), &cut, &dropped));
        }
        let each: Vec<_> = encoder.encode_each(&pairs).into_iter().map(Result::unwrap).collect();
        assert!(each == pairs.iter().map(|pair| encoder.encode(pair).unwrap()).collect::<Vec<_>>());
        let uncut: Vec<_> = encoder.tokenize_each(&pairs).into_iter().map(Result::unwrap).collect();
        assert!(uncut == pairs.iter().map(|pair| encoder.tokenize(pair).unwrap()).collect::<Vec<_>>());
    }
}

#[test]
fn limit_and_languages_choose_among_all_pieces() {
    let (folder, encoder) = encoder(OnOverlong::Truncate, 1024);
    let mut rows: Vec<Value> = (0..n_rows()).map(row).collect();
    let last = rows.len() - 1;
    rows[last]["target"]["lang"] = json!("bn");
    let [lines, _] = write(folder.path(), &rows);
    let ids = |config: DataConfig| -> Vec<String> {
        let (kept, _) = encoder.encode_files(from_ref(&lines), &config).unwrap();
        assert_eq!(kept.len(), load(from_ref(&lines), &config).unwrap().len());
        kept.into_iter().map(|row| row.id).collect()
    };
    let bengali = Some(vec!["bn".to_owned()]);
    assert_eq!(ids(DataConfig { languages: bengali, limit: Some(3), ..DataConfig::default() }), [format!("row {last}")]);
    let n_most = last - 1;
    assert_eq!(ids(DataConfig { limit: Some(n_most), ..DataConfig::default() }).len(), n_most);
    let unknown = DataConfig { languages: Some(vec!["ko".into()]), ..DataConfig::default() };
    let error = format!("{:#}", encoder.encode_files(from_ref(&lines), &unknown).unwrap_err());
    assert!(error.contains(&format!("`bn` (1 rows), `sw` ({last} rows)")), "{error}");
}

#[test]
fn the_first_error_is_the_one_that_is_told() {
    let (folder, encoder) = encoder(OnOverlong::Truncate, 1024);
    let refused = |rows: &[Value]| {
        let [lines, _] = write(folder.path(), rows);
        format!("{:#}", encoder.encode_files(from_ref(&lines), &DataConfig::default()).unwrap_err())
    };
    let mut rows: Vec<Value> = (0..n_rows()).map(row).collect();
    let last = rows.len() - 1;
    for i in [5, 40, last] {
        rows[i]["target"]["prompt"] = json!("refuse");
    }
    let error = refused(&rows);
    assert!(error.starts_with("row `row 5`, target pair: ") && error.contains("refused"), "{error}");
    // A dominant pair that rows share fails in its first row, and in no later one.
    for i in (3..rows.len()).step_by(7) {
        rows[i]["dominant"]["prompt"] = json!("refuse");
    }
    let error = refused(&rows);
    assert!(error.starts_with("row `row 3`, dominant pair: "), "{error}");
    // That the file itself is not sound is said before that, wherever it is.
    rows[last]["target"]["chosen"] = json!("");
    let error = refused(&rows);
    assert!(error.ends_with(&format!("rows.jsonl:{}: row {last}: the chosen response of the target pair is empty", last + 1)), "{error}");

    // `mpo check` wants to know of every row.
    let dataset = read(&[folder.path().join("rows.jsonl")], &DataConfig::default()).unwrap();
    assert_eq!((dataset.pairs.len(), dataset.spoilt.len()), (last, 1));
    for (pair, encoded) in dataset.pairs.iter().zip(encoder.tokenize_each(&dataset.pairs)) {
        match encoder.tokenize(pair) {
            Ok(expected) => assert!(encoded.unwrap() == expected),
            Err(expected) => assert_eq!(format!("{:#}", encoded.unwrap_err()), format!("{expected:#}")),
        }
    }
}
