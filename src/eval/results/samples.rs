//! `samples_TASK_TIME.jsonl` in the layout of lm-evaluation-harness 0.4: one line for each prompt and filter.
//!
//! Where this engine knows other things than the harness does, the line says so:
//! `doc_id` is the prompt's place among those that were asked; `arguments` holds what the user says, before the chat template, and
//! `prompt_hash` is that of the text behind it; a scored choice has a log-probability but no "is it the greedy answer"; under `mpo` stands what
//! the judge said. `resps` are all that the model wrote, thoughts too; `filtered_resps` are read off the answers.

use super::Answered;
use super::harness::{Judged, sha256};
use super::metric::split_key;
use crate::eval::item::Item;
use crate::eval::record::{Answer, Key, Response, Verdict};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The lines of one task. `filtered` says what a filter reads off a response; where it says nothing, that is the text.
pub fn rows(bench: &Judged, lang: &str, filtered: &dyn Fn(&Answered) -> Option<String>) -> Vec<Value> {
    let filters: BTreeSet<&str> = bench.scores.metrics().map(|key| split_key(key).1).collect();
    // Where nothing was judged there are responses all the same.
    let filters = if filters.is_empty() { BTreeSet::from(["none"]) } else { filters };
    let mut rows = Vec::new();
    for filter in filters {
        for (doc_id, item) in bench.bench.items.iter().filter(|item| item.lang == lang).enumerate() {
            let responses: Vec<&Response> = bench.bench.responses_to(item).collect();
            if !responses.is_empty() {
                rows.push(row(
                    bench,
                    doc_id,
                    item,
                    &responses,
                    &|response| filtered(&Answered { bench: bench.name, item, response, filter }),
                    filter,
                ));
            }
        }
    }
    rows
}

/// The hash of a task: of its lines' hashes, one after the other.
pub fn task_hash(rows: &[Value]) -> String {
    let hashes = rows.iter().flat_map(|row| ["doc_hash", "prompt_hash", "target_hash"].map(|key| row[key].as_str().unwrap_or_default()));
    sha256(hashes.collect::<String>().as_bytes())
}

fn row(
    bench: &Judged,
    doc_id: usize,
    item: &Item,
    responses: &[&Response],
    filtered: &dyn Fn(&Response) -> Option<String>,
    filter: &str,
) -> Value {
    let verdicts: Vec<&Verdict> = responses.iter().filter_map(|response| verdict(bench, &response.key)).collect();
    let metrics = metrics(&verdicts, filter);
    let target = item.target.clone().unwrap_or_default();
    let whole = texts(item, responses, |answer| &answer.text);
    let read: Option<Vec<String>> = responses.iter().map(|response| filtered(response)).collect();
    let filtered: Vec<Value> = match read {
        // An answer is read off the last turn, or off all choices together.
        Some(read) => vec![one_or_all(read.into_iter().map(Value::from).collect())],
        None => texts(item, responses, Answer::said).into_iter().map(one_or_all).collect(),
    };
    let mut row = Map::from_iter([
        ("doc_id".to_owned(), json!(doc_id)),
        ("doc".to_owned(), item.doc.clone()),
        ("target".to_owned(), json!(target)),
        ("arguments".to_owned(), arguments(bench, item)),
        ("resps".to_owned(), json!(whole)),
        ("filtered_resps".to_owned(), json!(filtered)),
        ("filter".to_owned(), json!(filter)),
        ("metrics".to_owned(), json!(metrics.keys().collect::<Vec<_>>())),
        ("doc_hash".to_owned(), json!(sha256(serde_json::to_string_pretty(&item.doc).unwrap_or_default().as_bytes()))),
        ("prompt_hash".to_owned(), json!(responses[0].prompt_sha256)),
        ("target_hash".to_owned(), json!(sha256(target.as_bytes()))),
    ]);
    row.extend(metrics.into_iter().map(|(metric, value)| (metric, json!(value))));
    let finish: Vec<Vec<_>> =
        responses.iter().map(|response| response.answers.iter().map(|answer| answer.finish_reason).collect()).collect();
    let judged: Vec<Value> = verdicts
        .iter()
        .map(|verdict| json!({"sample": verdict.key.sample, "label": verdict.label, "unparsed": verdict.unparsed, "raw": verdict.raw}))
        .collect();
    row.insert(
        "mpo".to_owned(),
        json!({"id": item.id, "lang": item.lang, "tags": item.tags, "judge": bench.judge_facts.name, "verdicts": judged, "finish_reason": finish}),
    );
    row.into()
}

/// Of a single sample the value itself.
fn one_or_all(mut samples: Vec<Value>) -> Value {
    if samples.len() == 1 { samples.swap_remove(0) } else { json!(samples) }
}

fn verdict<'a>(bench: &'a Judged, key: &Key) -> Option<&'a Verdict> {
    bench.bench.verdicts.get(bench.judge.as_ref()?)?.get(key)
}

/// Of one filter, by the metric's name; the mean over samples.
fn metrics(verdicts: &[&Verdict], filter: &str) -> BTreeMap<String, f64> {
    let mut sums: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for (key, value) in verdicts.iter().flat_map(|verdict| &verdict.metrics) {
        let (metric, of_filter) = split_key(key);
        if of_filter == filter {
            let (sum, n) = sums.entry(metric.to_owned()).or_default();
            *sum += value;
            *n += 1.0;
        }
    }
    sums.into_iter().map(|(metric, (sum, n))| (metric, sum / n)).collect()
}

/// By request (turn, or choice), by sample, as strings.
fn texts(item: &Item, responses: &[&Response], of: fn(&Answer) -> &str) -> Vec<Vec<Value>> {
    if item.choices.is_empty() {
        let of_turn = |turn: usize| responses.iter().filter_map(|response| Some(json!(of(response.answers.get(turn)?)))).collect();
        return (0..item.turns.len()).map(of_turn).collect();
    }
    let of_choice = |choice: usize| {
        let log_probs = responses.iter().filter_map(|response| response.choice_log_probs.get(choice));
        log_probs.map(|log_prob| json!([log_prob.to_string()])).collect()
    };
    (0..item.choices.len()).map(of_choice).collect()
}

/// `{"gen_args_0": {"arg_0": prompt, "arg_1": settings or choice}}`: the form that the harness' files have on disk.
fn arguments(bench: &Judged, item: &Item) -> Value {
    let mut settings = bench.facts.generation.clone();
    if let Some(temperature) = item.temperature {
        settings.insert("temperature".to_owned(), json!(temperature));
    }
    let request = |prompt: &str, second: Value| json!({"arg_0": prompt, "arg_1": second});
    let requests: Vec<Value> = if item.choices.is_empty() {
        item.turns.iter().map(|turn| request(turn, settings.clone().into())).collect()
    } else {
        let prompt = item.turns.first().map(String::as_str).unwrap_or_default();
        item.choices.iter().map(|choice| request(prompt, json!(choice))).collect()
    };
    requests.into_iter().enumerate().map(|(i, request)| (format!("gen_args_{i}"), request)).collect::<Map<_, _>>().into()
}
