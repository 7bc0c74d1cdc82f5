//! MGSM (Shi et al., arXiv 2210.03057): 250 grade-school problems in eleven languages, answered with a number after reasoning in the language.
//!
//! `mgsm` asks as OpenAI's simple-evals does, which is made for chat models: an instruction in the language, the final number behind its word for
//! "Answer". Result files call it `mgsm_simple_evals_LANG`. `mgsm-native-cot` is lm-evaluation-harness' task of that name, `mgsm_native_cot_LANG`:
//! its prompt in one user turn, no shots, its stop strings, at most 256 tokens, its two filters. Numbers of the two are not comparable.

mod language;
mod score;

pub use language::{Language, language};
pub use score::Filter;

use super::card::{Card, Languages, Metric, Origin, Scoring, higher, lower};
use super::{Benchmark, Loaded, table};
use crate::eval::item::{Item, Kind};
use crate::eval::record::{Response, Verdict};
use crate::eval::source::{HubFiles, Source, SourceFile};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::collections::BTreeMap;

/// MGSM with one of its prompts.
pub struct Mgsm {
    card: &'static Card,
    filters: &'static [Filter],
    filter_names: &'static [&'static str],
    prompt: fn(&Language, &str) -> String,
}

/// simple-evals' prompt.
pub static MGSM: Mgsm = Mgsm {
    card: &CARD,
    filters: &[Filter::SimpleEvals, Filter::Normalized, Filter::FlexibleExtract],
    filter_names: &[Filter::SimpleEvals.name(), Filter::Normalized.name(), Filter::FlexibleExtract.name()],
    prompt: |language, question| format!("{}\n\n{question}", language.instruction),
};

/// lm-evaluation-harness' `mgsm_native_cot`.
pub static NATIVE_COT: Mgsm = Mgsm {
    card: &NATIVE_COT_CARD,
    filters: &[Filter::StrictMatch, Filter::FlexibleExtract],
    filter_names: &[Filter::StrictMatch.name(), Filter::FlexibleExtract.name()],
    prompt: |language, question| format!("{}{question}\n{}", language.question, language.step_by_step),
};

const REPO: &str = "juletxara/mgsm";
const FILES: &str = "mgsm_*.tsv";
const LANGUAGES: Languages = Languages::Listed {
    codes: &["bn", "de", "en", "es", "fr", "ja", "ru", "sw", "te", "th", "zh"],
    aliases: &[],
    others: "others have translated it further (`Qwen/P-MMEval`, `CohereLabs/global-mgsm` on the hub), with prompts of their own",
};
const METRICS: &[Metric] = &[
    higher("exact_match,simple-evals"),
    higher("exact_match,normalized"),
    higher("exact_match,flexible-extract"),
    lower("no_answer,simple-evals"),
];
const NATIVE_COT_METRICS: &[Metric] =
    &[higher("exact_match,strict-match"), higher("exact_match,flexible-extract"), lower("no_answer,strict-match")];

static CARD: Card = Card {
    name: "mgsm",
    aliases: &[],
    about: "grade-school mathematics, asked as simple-evals does: exact match",
    languages: LANGUAGES,
    rows: Some(250),
    metrics: METRICS,
    scoring: Scoring::Rule,
    origin: Origin::Hub { repo: REPO, files: FILES },
    licence: "CC-BY-4.0",
    max_new_tokens: 512,
};

static NATIVE_COT_CARD: Card = Card {
    name: "mgsm-native-cot",
    aliases: &[],
    about: "grade-school mathematics, asked as lm-evaluation-harness' mgsm_native_cot: exact match",
    languages: LANGUAGES,
    rows: Some(250),
    metrics: NATIVE_COT_METRICS,
    scoring: Scoring::Rule,
    origin: Origin::Hub { repo: REPO, files: FILES },
    licence: "CC-BY-4.0",
    max_new_tokens: 256,
};

impl Benchmark for Mgsm {
    fn card(&self) -> &'static Card {
        self.card
    }

    fn read(&self, source: &Source<'_>, langs: &[String]) -> Result<Loaded> {
        let mut loaded = Loaded::default();
        let hub = HubFiles { repo: REPO, files: FILES };
        for (lang, file) in source.file_for_each(self.card.name, Some(hub), langs, &find)? {
            let language = language(&lang).with_context(|| format!("`{lang}` has no prompt of MGSM"))?;
            for (index, problem) in problems(&file)?.into_iter().enumerate() {
                loaded.items.push(Item {
                    id: index.to_string(),
                    lang: lang.clone(),
                    kind: Kind::Utility,
                    turns: vec![(self.prompt)(language, &problem.question)],
                    english: Vec::new(),
                    doc: json!({ "question": problem.question, "answer": null, "answer_number": problem.answer }),
                    target: Some(problem.answer),
                    choices: Vec::new(),
                    tags: Vec::new(),
                    temperature: None,
                });
            }
            loaded.files.push(file);
        }
        Ok(loaded)
    }

    fn score(&self, item: &Item, response: &Response) -> Result<Verdict> {
        let target = item.target.as_deref().with_context(|| format!("item `{}` of `{}` has no right answer", item.id, self.card.name))?;
        let mut metrics = BTreeMap::new();
        for (i, filter) in self.filters.iter().enumerate() {
            let parsed = self.filtered(item, response, filter.name());
            metrics.insert(format!("exact_match,{}", filter.name()), f64::from(u8::from(filter.is_correct(&parsed, target))));
            if i == 0 {
                metrics.insert(format!("no_answer,{}", filter.name()), f64::from(u8::from(!filter.found(&parsed))));
            }
        }
        Ok(Verdict { key: response.key.clone(), label: None, metrics, unparsed: None, raw: Vec::new() })
    }

    fn filters(&self) -> &'static [&'static str] {
        self.filter_names
    }

    fn filtered(&self, item: &Item, response: &Response, filter: &str) -> String {
        let filter = self.filters.iter().find(|known| known.name() == filter);
        filter.zip(language(&item.lang)).map_or_else(String::new, |(filter, language)| filter.parse(response.last_said(), language))
    }

    fn stops(&self, lang: &str) -> Vec<String> {
        if self.card.name != NATIVE_COT_CARD.name {
            return Vec::new();
        }
        let question = language(lang).map(|language| language.question.trim_end().to_owned());
        question.into_iter().chain(["</s>".to_owned(), "<|im_end|>".to_owned()]).collect()
    }

    fn task(&self, lang: &str) -> String {
        if self.card.name == NATIVE_COT_CARD.name { format!("mgsm_native_cot_{lang}") } else { format!("mgsm_simple_evals_{lang}") }
    }
}

/// The authors' TSV file, or the Parquet that the hub makes of it.
fn find(paths: &[&str], lang: &str) -> Option<String> {
    let tsv = format!("mgsm_{lang}.tsv");
    let is_tsv = |path: &&&str| path.rsplit('/').next() == Some(tsv.as_str());
    let is_parquet = |path: &&&str| path.starts_with(&format!("{lang}/test-")) && path.ends_with(".parquet");
    paths.iter().find(is_tsv).or_else(|| paths.iter().find(is_parquet)).map(|path| (*path).to_owned())
}

struct Problem {
    question: String,
    /// A whole number without separators.
    answer: String,
}

fn problems(file: &SourceFile) -> Result<Vec<Problem>> {
    if file.name.ends_with(".parquet") {
        let problem = |row: table::Row| {
            Ok(Problem { question: row.text("question")?.to_owned(), answer: whole(&row.label("answer_number")?, &row.place())? })
        };
        return table::rows(&file.path)?.into_iter().map(problem).collect();
    }
    let bytes = std::fs::read(&file.path).with_context(|| format!("cannot read `{}`", file.path.display()))?;
    let text = String::from_utf8(bytes).with_context(|| format!("`{}` is not UTF-8 text", file.path.display()))?;
    // No quotes mean anything here: one problem begins with one.
    let lines = text.trim_start_matches('\u{feff}').lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let problem = |(i, line): (usize, &str)| {
        let place = format!("{}:{}", file.path.display(), i + 1);
        let cells: Vec<&str> = line.trim().split('\t').collect();
        let [question, answer] = cells[..] else {
            anyhow::bail!("{place}: a line is a problem, a tab and a number; this one has {} parts", cells.len())
        };
        Ok(Problem { question: question.to_owned(), answer: whole(answer, &place)? })
    };
    lines.map(problem).collect()
}

/// A whole number with or without thousands separators, without them.
fn whole(text: &str, place: &str) -> Result<String> {
    let number = text.trim().replace(',', "");
    let digits = number.strip_prefix('-').unwrap_or(&number);
    ensure!(!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()), "{place}: the answer `{text}` is no whole number");
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::record::{Answer, FinishReason, Key};
    use serde_json::Value;

    fn response(text: &str) -> Response {
        Response {
            key: Key { bench: "mgsm".into(), lang: "sw".into(), id: "0".into(), sample: 0 },
            prompt_sha256: String::new(),
            answers: vec![Answer { text: text.into(), finish_reason: FinishReason::Stop, n_tokens: 3 }],
            choice_log_probs: vec![],
        }
    }

    fn item() -> Item {
        Item {
            id: "0".into(),
            lang: "sw".into(),
            kind: Kind::Utility,
            turns: vec!["?".into()],
            english: vec![],
            target: Some("1450".into()),
            choices: vec![],
            tags: vec![],
            temperature: None,
            doc: Value::Null,
        }
    }

    #[test]
    fn every_filter_gives_a_metric() {
        let score = |bench: &Mgsm, text| {
            let metrics = bench.score(&item(), &response(text)).unwrap().metrics;
            let listed: Vec<_> = bench.card.metrics.iter().map(|metric| metrics[metric.name]).collect();
            assert_eq!(listed.len(), metrics.len(), "the card names them all");
            listed
        };
        assert_eq!(score(&MGSM, "7 x 2\nJibu: 1,450"), [1.0, 1.0, 1.0, 0.0]);
        assert_eq!(score(&MGSM, "Jibu: १४५०"), [0.0, 1.0, 0.0, 0.0], "digits of another script");
        assert_eq!(score(&MGSM, "ni 1450"), [0.0, 0.0, 1.0, 1.0]);
        assert_eq!(score(&NATIVE_COT, "Jibu ni 1450."), [1.0, 1.0, 0.0]);
        assert_eq!(score(&NATIVE_COT, "Jibu: 1450"), [0.0, 1.0, 1.0]);
    }

    #[test]
    fn the_harness_prompt_has_its_stops_and_name() {
        let sw = language("sw").unwrap();
        assert_eq!((NATIVE_COT.prompt)(sw, "Mbili na mbili?"), "Swali: Mbili na mbili?\nJibu la Hatua kwa Hatua:");
        assert_eq!(NATIVE_COT.stops("sw"), ["Swali:", "</s>", "<|im_end|>"]);
        assert_eq!((NATIVE_COT.task("sw"), MGSM.task("sw")), ("mgsm_native_cot_sw".into(), "mgsm_simple_evals_sw".into()));
        assert!(MGSM.stops("sw").is_empty());
        assert!((MGSM.prompt)(sw, "Mbili na mbili?").ends_with("\"Jibu:\".\n\nMbili na mbili?"));
    }
}
