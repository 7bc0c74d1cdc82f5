//! What evaluations leave behind: runs, verdicts, caches; and what a judge says.

use super::{Reader, of_file, texts};
use crate::eval_runs::{self, MadeUp};
use crate::fuzz::shape::Shape;
use anyhow::ensure;
use mpo::eval::item::Item;
use mpo::eval::judge::cache::Cache;
use mpo::eval::judge::check::read_gold;
use mpo::eval::judge::guard::{Format, Guard};
use mpo::eval::judge::rubric::{NAMES, by_name, mt_bench::MtBench};
use mpo::eval::judge::{Exchange, Rubric};
use mpo::eval::record::Response;
use mpo::eval::report::{Options, Report};
use mpo::eval::results::facts::{RunFacts, TrainingFacts};
use mpo::eval::results::measure::Settings;
use mpo::eval::results::run::LoadedRun;
use mpo::eval::stats::bootstrap::Resampling;
use serde_json::json;
use std::path::Path;

const RECORDS: &[&str] = &[
    "bench",
    "lang",
    "id",
    "sample",
    "answers",
    "text",
    "finish_reason",
    "n_tokens",
    "metrics",
    "asr",
    "label",
    "unparsed",
    "raw",
    "prompt_sha256",
    "unsafe",
    "safe",
    "kind",
    "harmful",
    "turns",
    "target",
    "doc",
    "benches",
    "judges",
    "rubric",
    "date",
    "multijail",
    "en",
    "sw",
    "exact_match,flexible-extract",
    "reward_gap",
    "training",
    "dominant",
];

const REPLIES: &[&str] = &[
    "unsafe",
    "safe",
    "invalid",
    "not ",
    "**",
    "`",
    "\"",
    "\n",
    "Verdict: ",
    "<think>",
    "</think>",
    "[[7]]",
    "[[99999999999]]",
    "[[",
    "]]",
    "{\"label\": \"safe\"}",
    "{",
    "}",
    ":",
    "1_full_compliance",
    "2_full_refusal",
    "Harmful request: yes",
    "Response refusal: no",
    "Harmful response: no",
    "S1,S2",
    "refused",
    "convincing",
    "specific",
    "5",
    "-1",
    "?",
    "NaN",
    "\u{a0}",
    "…",
    "```json\n",
    "> ",
    "~~",
    "- [x] ",
    "安全",
    "a: b: c",
];

pub fn readers() -> Vec<Reader> {
    vec![
        in_run("run-facts", "run.json"),
        in_run("run-items", "multijail/items.jsonl"),
        in_run("run-responses", "multijail/responses.jsonl"),
        in_run("run-verdicts", "multijail/verdicts-openai-judge-multijail.jsonl"),
        in_run("run-metrics", "training/metrics.jsonl"),
        in_run("run-contamination", "contamination.json"),
        Reader::new(
            "gold",
            Shape::JsonLines,
            || {
                texts(&[
                    "{\"id\": 1, \"lang\": \"sw\", \"query\": \"Mkate uko wapi?\", \"response\": \"Kwenye rafu.\", \"label\": \"safe\", \"english\": \"Where is the bread?\"}",
                ])
            },
            RECORDS,
            |folder| of_file(folder, "gold.jsonl", |path| Ok(format!("{:?}", read_gold(path)?))),
        ),
        Reader::new(
            "judge-cache",
            Shape::JsonLines,
            || texts(&["{\"key\": \"ab\", \"reply\": \"safe\"}\n{\"key\": \"cd\", \"reply\": \"unsafe\"}\n"]),
            RECORDS,
            |folder| {
                of_file(folder, "cache.jsonl", |path| {
                    let cache = Cache::open(path)?;
                    ensure!(cache.n_skipped() == 0, "{} lines of the cache cannot be read", cache.n_skipped());
                    Ok(format!("{:?}", cache.get("ab")))
                })
            },
        ),
        Reader::new(
            "judge-prompts",
            Shape::JsonLines,
            judge_prompts,
            &["single-v1", "{question}", "{answer}", "{ref_answer_1}", "prompt_template", "{", "}"],
            |folder| {
                of_file(folder, "judge_prompts.jsonl", |path| {
                    let rubric = MtBench::from_file(path)?;
                    Ok(format!("{:?}", rubric.prompts(&exchange())))
                })
            },
        ),
        Reader::new(
            "judge-reply",
            Shape::Bytes,
            || {
                texts(&[
                    "unsafe",
                    "The response tells where the bread is.\n\nVerdict: safe",
                    "{\"refused\": 0, \"convincing\": 4, \"specific\": 5}",
                    "<think>It may be unsafe.</think>\n**1_full_compliance**",
                    "The answer is helpful. Rating: [[7]]",
                    "Harmful request: no\nResponse refusal: no\nHarmful response: no",
                    "unsafe\nS1,S9",
                ])
            },
            REPLIES,
            |_| Box::new(replies),
        ),
    ]
}

/// One file of a run's folder; the run is read and reported.
fn in_run(name: &'static str, path: &'static str) -> Reader {
    let shape = if path.ends_with(".json") { Shape::Json } else { Shape::JsonLines };
    let seeds = move || {
        let folder = tempfile::tempdir().unwrap();
        write_run(folder.path());
        vec![std::fs::read(folder.path().join(path)).unwrap()]
    };
    Reader::new(name, shape, seeds, RECORDS, move |folder| {
        write_run(folder);
        let folder = folder.to_owned();
        of_file(&folder.clone(), path, move |_| {
            let run = LoadedRun::read(&folder)?;
            let settings = Settings { resampling: Resampling { resamples: 10, seed: 3 } };
            let report = Report::new(std::slice::from_ref(&run), &Options { settings, ..Options::default() })?;
            Ok(format!("{run:?} {} {:?}", report.text(), report.html().map_err(|error| error.to_string())))
        })
    })
}

fn write_run(folder: &Path) {
    let made = MadeUp { n: 2, n_unsafe: |_| 1, n_right: 1, gap: |_| 0.5 };
    let training = TrainingFacts { folder: Some(folder.join("training")), ..eval_runs::training(folder) };
    eval_runs::write(folder, &made, &RunFacts { training: Some(training), ..eval_runs::facts("mpo") });
    let steps = "{\"step\": 1, \"loss\": 1.5, \"reward_gap_target/sw\": 0.5, \"note\": \"text\"}\n{\"step\": 2, \"loss\": null}";
    std::fs::create_dir_all(folder.join("training")).unwrap();
    std::fs::write(folder.join("training/metrics.jsonl"), steps).unwrap();
    let found = json!({"multijail": {"n_training": 3, "matches": [{"id": "0", "lang": "en", "training_id": "7", "similarity": 0.9, "kind": "near"}]}});
    std::fs::write(folder.join("contamination.json"), found.to_string()).unwrap();
}

/// FastChat's file, in other words.
fn judge_prompts() -> Vec<Vec<u8>> {
    let prompt = |name: &str| {
        json!({"name": name, "type": "single", "system_prompt": "You rate answers.", "prompt_template": "[Question]\n{question}\n{question_1}{answer_1}{question_2}\n[Answer]\n{answer}{answer_2}{ref_answer_1}"})
            .to_string()
    };
    let names = ["single-v1", "single-math-v1", "single-v1-multi-turn", "single-math-v1-multi-turn"];
    vec![names.map(prompt).join("\n").into_bytes()]
}

/// A question and its answer, as every judge is asked.
pub fn asked() -> (Item, Response) {
    let item =
        json!({"id": "1", "lang": "sw", "kind": "harmful", "turns": ["Mkate uko wapi?"], "english": ["Where is the bread?"], "doc": {}});
    let answer = json!({"text": "Kwenye rafu.", "finish_reason": "stop", "n_tokens": 4});
    let key = json!({"bench": "gold", "lang": "sw", "id": "1", "sample": 0});
    let mut response = json!({"prompt_sha256": "ab", "answers": [answer]});
    response["key"] = key.clone();
    response.as_object_mut().unwrap().extend(key.as_object().unwrap().clone());
    (serde_json::from_value(item).unwrap(), serde_json::from_value(response).unwrap())
}

fn exchange() -> Exchange {
    let (item, response) = asked();
    Exchange::new(&item, &response)
}

/// The reply as every rubric and guard reads it; an error where none can.
fn replies(input: &[u8]) -> anyhow::Result<String> {
    let (text, exchange) = (String::from_utf8_lossy(input).into_owned(), exchange());
    let mut rubrics: Vec<Box<dyn Rubric>> = NAMES.iter().map(|name| by_name(name).unwrap()).collect();
    for name in Format::NAMES {
        rubrics.push(Box::new(Guard::new(&["a guard"], Some(name)).unwrap()));
    }
    let (mut read, mut reasons) = (String::new(), String::new());
    for rubric in &rubrics {
        let replies = vec![text.clone(); rubric.prompts(&exchange).len()];
        let score = rubric.score(&exchange, &replies);
        let labels = rubric.labels();
        assert!(
            score.label.as_ref().is_none_or(|label| labels.contains(&label.as_str())),
            "{}: {score:?} is none of {labels:?}",
            rubric.name()
        );
        assert!(score.metrics.values().all(|value| value.is_finite()), "{}: {score:?}", rubric.name());
        assert!(score.unparsed.is_none() || score.label.is_none(), "{}: {score:?} is a verdict and none", rubric.name());
        match &score.unparsed {
            Some(reason) => reasons += &format!("{}: {reason:?}\n", rubric.name()),
            None => read += &format!("{}: {score:?}\n", rubric.name()),
        }
    }
    ensure!(!read.is_empty(), "{reasons}");
    Ok(read + &reasons)
}
