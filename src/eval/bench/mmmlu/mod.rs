//! MMMLU (OpenAI, 2024): MMLU's 14,042 questions of 57 subjects (Hendrycks et al., arXiv 2009.03300), translated by people into 14 languages.
//!
//! `mmmlu` lets the log-probabilities of A, B, C and D choose. Its text is that of lm-evaluation-harness 0.4.13 (group `mmmlu_ko_kr`: a sentence
//! about the subject, the question, four lines, `Answer:`), zero-shot. With a chat template the harness makes that sentence a system message; here
//! it begins the user's turn, because not every model has a system role. So the prompt is not the same and neither is the name in result files:
//! `mmmlu_chat_ko_kr`.
//!
//! `mmmlu-generative` asks for reasoning and a last line `Answer: LETTER` and reads it in the way of simple-evals: `mmmlu_simple_evals_ko_kr`.
//!
//! English is MMLU itself (`cais/mmlu`); translations are paired with it only where subject and answer agree in every row.

mod answer;

use super::card::{Card, Languages, Metric, Origin, Scoring, higher, lower};
use super::table::Row;
use super::{Benchmark, Loaded, table};
use crate::eval::item::{Item, Kind};
use crate::eval::record::{Response, Verdict};
use crate::eval::source::{HubFiles, Source, SourceFile};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeMap;

pub use answer::{letter, normalized_letter};

/// MMMLU in one of its forms.
pub struct Mmmlu {
    card: &'static Card,
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Log-probabilities choose.
    Choice,
    /// The model writes.
    Text,
}

/// By log-probability.
pub static MMMLU: Mmmlu = Mmmlu { card: &CARD, form: Form::Choice };
/// By what the model writes.
pub static GENERATIVE: Mmmlu = Mmmlu { card: &GENERATIVE_CARD, form: Form::Text };

const FILTER: &str = "simple-evals";
/// The same, of comparable text.
const NORMALIZED: &str = "normalized";
const LETTERS: [&str; 4] = ["A", "B", "C", "D"];
const HUB: HubFiles<'_> = HubFiles { repo: "openai/MMMLU", files: "test/mmlu_*.csv" };
const ENGLISH_HUB: HubFiles<'_> = HubFiles { repo: "cais/mmlu", files: "all/test-*.parquet" };
const ORIGIN: Origin = Origin::Hub { repo: HUB.repo, files: HUB.files };
const LANGUAGES: Languages = Languages::Listed {
    codes: &["ar", "bn", "de", "en", "es", "fr", "hi", "id", "it", "ja", "ko", "pt", "sw", "yo", "zh"],
    aliases: &[],
    others: "",
};
const METRICS: &[Metric] = &[higher("acc")];
const GENERATIVE_METRICS: &[Metric] =
    &[higher("exact_match,simple-evals"), higher("exact_match,normalized"), lower("no_answer,simple-evals")];

static CARD: Card = Card {
    name: "mmmlu",
    aliases: &["mmlu"],
    about: "multiple choice in 57 subjects, by log-probability: accuracy (en is cais/mmlu)",
    languages: LANGUAGES,
    rows: Some(14_042),
    metrics: METRICS,
    scoring: Scoring::Rule,
    origin: ORIGIN,
    licence: "MIT",
    max_new_tokens: 0,
};

static GENERATIVE_CARD: Card = Card {
    name: "mmmlu-generative",
    aliases: &["mmmlu-cot"],
    about: "the same, answered in text as simple-evals asks: exact match",
    languages: LANGUAGES,
    rows: Some(14_042),
    metrics: GENERATIVE_METRICS,
    scoring: Scoring::Rule,
    origin: ORIGIN,
    licence: "MIT",
    max_new_tokens: 1024,
};

/// Code, the locale in file names, and the language's name in the prompt.
const LOCALES: [(&str, &str, &str); 14] = [
    ("ar", "AR-XY", "Arabic"),
    ("bn", "BN-BD", "Bengali"),
    ("de", "DE-DE", "German"),
    ("es", "ES-LA", "Spanish"),
    ("fr", "FR-FR", "French"),
    ("hi", "HI-IN", "Hindi"),
    ("id", "ID-ID", "Indonesian"),
    ("it", "IT-IT", "Italian"),
    ("ja", "JA-JP", "Japanese"),
    ("ko", "KO-KR", "Korean"),
    ("pt", "PT-BR", "Brazilian Portuguese"),
    ("sw", "SW-KE", "Swahili"),
    ("yo", "YO-NG", "Yoruba"),
    ("zh", "ZH-CN", "Simplified Chinese"),
];

fn locale(lang: &str) -> Option<(&'static str, &'static str)> {
    LOCALES.iter().find(|(code, ..)| *code == lang).map(|(_, locale, name)| (*locale, *name))
}

impl Benchmark for Mmmlu {
    fn card(&self) -> &'static Card {
        self.card
    }

    fn read(&self, source: &Source<'_>, langs: &[String]) -> Result<Loaded> {
        let mut loaded = Loaded::default();
        let mut questions: BTreeMap<&str, Vec<Question>> = BTreeMap::new();
        for (repository, is_english) in [(HUB, false), (ENGLISH_HUB, true)] {
            let of_repository: Vec<String> = langs.iter().filter(|lang| (*lang == "en") == is_english).cloned().collect();
            if of_repository.is_empty() {
                continue;
            }
            for (lang, file) in source.file_for_each(self.card.name, Some(repository), &of_repository, &find)? {
                // Codes live as long as the caller's list.
                let lang = langs.iter().find(|asked| **asked == lang).map_or("", String::as_str);
                questions.insert(lang, read_questions(&file)?);
                loaded.files.push(file);
            }
        }
        let english_is_apart = self.note_english(&questions, &mut loaded.notes);
        for lang in langs {
            for question in questions.remove(lang.as_str()).into_iter().flatten() {
                let mut item = self.item(lang, question);
                if english_is_apart && lang == "en" {
                    item.id = format!("en/{}", item.id);
                }
                loaded.items.push(item);
            }
        }
        Ok(loaded)
    }

    fn score(&self, item: &Item, response: &Response) -> Result<Verdict> {
        let target = item.target.as_deref().with_context(|| format!("item `{}` of `{}` has no right answer", item.id, self.card.name))?;
        let mut metrics = BTreeMap::new();
        let mut number = |name: &str, is_so: bool| metrics.insert(name.to_owned(), f64::from(u8::from(is_so)));
        let label = match self.form {
            Form::Choice => {
                let chosen = most_probable(item, &response.choice_log_probs)?;
                number("acc", chosen == target);
                Some(chosen.to_owned())
            }
            Form::Text => {
                let read = self.filtered(item, response, FILTER);
                number("exact_match,simple-evals", read == target);
                number("exact_match,normalized", self.filtered(item, response, NORMALIZED) == target);
                number("no_answer,simple-evals", read.is_empty());
                (!read.is_empty()).then_some(read)
            }
        };
        Ok(Verdict { key: response.key.clone(), label, metrics, unparsed: None, raw: Vec::new() })
    }

    fn filters(&self) -> &'static [&'static str] {
        match self.form {
            Form::Choice => &["none"],
            Form::Text => &[FILTER, NORMALIZED],
        }
    }

    /// The letter: the chosen one, or the one that the text gives; empty where there is none.
    fn filtered(&self, item: &Item, response: &Response, filter: &str) -> String {
        let letter = if filter == NORMALIZED { normalized_letter } else { letter };
        match self.form {
            Form::Choice => most_probable(item, &response.choice_log_probs).unwrap_or_default().to_owned(),
            Form::Text => letter(response.last_said()).map_or_else(String::new, String::from),
        }
    }

    fn task(&self, lang: &str) -> String {
        let locale = locale(lang).map_or(lang, |(locale, _)| locale).to_ascii_lowercase().replace('-', "_");
        match self.form {
            Form::Choice => format!("mmmlu_chat_{locale}"),
            Form::Text => format!("mmmlu_simple_evals_{locale}"),
        }
    }
}

impl Mmmlu {
    fn item(&self, lang: &str, question: Question) -> Item {
        let (prompt, choices) = match self.form {
            Form::Choice => (choice_prompt(lang, &question), LETTERS.map(str::to_owned).to_vec()),
            Form::Text => (text_prompt(&question), Vec::new()),
        };
        Item {
            id: question.id,
            lang: lang.to_owned(),
            kind: Kind::Utility,
            turns: vec![prompt],
            english: Vec::new(),
            target: Some(question.answer),
            choices,
            tags: vec![question.subject],
            temperature: None,
            doc: question.doc,
        }
    }

    /// Whether English must not be paired with the translations, and says so.
    fn note_english(&self, questions: &BTreeMap<&str, Vec<Question>>, notes: &mut Vec<String>) -> bool {
        let Some(english) = questions.get("en") else { return false };
        let is_parallel = |other: &Vec<Question>| {
            let same = |(a, b): (&Question, &Question)| (&a.id, &a.subject, &a.answer) == (&b.id, &b.subject, &b.answer);
            english.len() == other.len() && english.iter().zip(other).all(same)
        };
        let is_apart = questions.iter().any(|(lang, other)| *lang != "en" && !is_parallel(other));
        if is_apart {
            notes.push(format!(
                "`{}`: the English questions are not in the order of the translations; they are compared as a whole, not question by question",
                self.card.name
            ));
        }
        is_apart
    }
}

/// The item's choice with the largest log-probability, the first among equals.
fn most_probable<'i>(item: &'i Item, log_probs: &[f64]) -> Result<&'i str> {
    ensure!(
        log_probs.len() == item.choices.len() && !log_probs.is_empty(),
        "item `{}` in `{}` has {} choices, and its response {} log-probabilities",
        item.id,
        item.lang,
        item.choices.len(),
        log_probs.len()
    );
    ensure!(
        log_probs.iter().all(|log_prob| !log_prob.is_nan()),
        "the log-probabilities of item `{}` in `{}` are not numbers",
        item.id,
        item.lang
    );
    let first_best = (1..log_probs.len()).fold(0, |best, i| if log_probs[i] > log_probs[best] { i } else { best });
    Ok(&item.choices[first_best])
}

/// The hub's file of a language.
fn find(paths: &[&str], lang: &str) -> Option<String> {
    let name = |path: &str| path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    let path = match locale(lang) {
        Some((locale, _)) => {
            let file = format!("mmlu_{locale}.csv").to_ascii_lowercase();
            paths.iter().find(|path| name(path) == file)
        }
        None => paths.iter().find(|path| path.starts_with("all/test-") && path.ends_with(".parquet") || name(path) == "mmlu_en.csv"),
    };
    path.map(|path| (*path).to_owned())
}

struct Question {
    id: String,
    text: String,
    options: [String; 4],
    /// A letter.
    answer: String,
    subject: String,
    doc: Value,
}

fn read_questions(file: &SourceFile) -> Result<Vec<Question>> {
    table::rows(&file.path)?.into_iter().enumerate().map(|(index, row)| question(index, row)).collect()
}

/// MMMLU's columns are `Question A B C D Answer Subject`, MMLU's `question choices answer subject`.
fn question(index: usize, row: Row) -> Result<Question> {
    let is_mmlu = row.fields.contains_key("choices");
    // An option may be empty: there are such questions.
    let options = if is_mmlu {
        let list = row.list("choices")?;
        <[String; 4]>::try_from(list).map_err(|list| anyhow::anyhow!("{}: `choices` has {} texts, not 4", row.place(), list.len()))?
    } else {
        let [a, b, c, d] = LETTERS.map(|letter| row.cell(letter).map(str::to_owned));
        [a?, b?, c?, d?]
    };
    let answer = row.label(if is_mmlu { "answer" } else { "Answer" })?;
    let answer = match answer.as_str() {
        "0" => "A",
        "1" => "B",
        "2" => "C",
        "3" => "D",
        letter if LETTERS.contains(&letter) => letter,
        other => bail!("{}: the answer is `{other}`; it is one of A, B, C, D", row.place()),
    };
    Ok(Question {
        id: index.to_string(),
        text: row.text_of(&["Question", "question"])?.to_owned(),
        options,
        answer: answer.to_owned(),
        subject: row.text_of(&["Subject", "subject"])?.to_owned(),
        doc: Value::Object(row.fields),
    })
}

/// lm-evaluation-harness' description and `doc_to_text`, one after the other.
fn choice_prompt(lang: &str, question: &Question) -> String {
    let language = locale(lang).map(|(_, name)| format!(" ({name})")).unwrap_or_default();
    let subject = question.subject.replace('_', " ");
    let [a, b, c, d] = &question.options;
    format!(
        "The following are multiple choice questions (with answers) about {subject}{language}.\n\n{}\nA. {a}\nB. {b}\nC. {c}\nD. {d}\nAnswer:",
        question.text.trim()
    )
}

/// simple-evals' prompt for multiple choice, which is English for every language.
fn text_prompt(question: &Question) -> String {
    let [a, b, c, d] = &question.options;
    format!(
        "Answer the following multiple choice question. The last line of your response should be of the following format: 'Answer: $LETTER' \
         (without quotes) where LETTER is one of ABCD. Think step by step before answering.\n\n{}\n\nA) {a}\nB) {b}\nC) {c}\nD) {d}",
        question.text
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::record::{Answer, FinishReason, Key};

    fn sample() -> Question {
        Question {
            id: "3".into(),
            text: " Mbili na mbili? ".into(),
            options: ["3", "4", "5", "6"].map(str::to_owned),
            answer: "B".into(),
            subject: "abstract_algebra".into(),
            doc: Value::Null,
        }
    }

    fn response(text: &str, choice_log_probs: &[f64]) -> Response {
        Response {
            key: Key { bench: "mmmlu".into(), lang: "sw".into(), id: "3".into(), sample: 0 },
            prompt_sha256: String::new(),
            answers: vec![Answer { text: text.into(), finish_reason: FinishReason::Stop, n_tokens: 3 }],
            choice_log_probs: choice_log_probs.to_vec(),
        }
    }

    #[test]
    fn the_prompts_are_laid_out_as_published() {
        let item = MMMLU.item("sw", sample());
        assert_eq!(
            item.turns[0],
            "The following are multiple choice questions (with answers) about abstract algebra (Swahili).\n\nMbili na mbili?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer:"
        );
        assert_eq!((item.choices.join(""), item.tags[0].as_str()), ("ABCD".into(), "abstract_algebra"));
        assert!(
            MMMLU.item("en", sample()).turns[0]
                .starts_with("The following are multiple choice questions (with answers) about abstract algebra.\n\n")
        );
        let item = GENERATIVE.item("sw", sample());
        assert!(item.choices.is_empty() && item.turns[0].ends_with("before answering.\n\n Mbili na mbili? \n\nA) 3\nB) 4\nC) 5\nD) 6"));
        assert_eq!((MMMLU.task("ko"), GENERATIVE.task("pt")), ("mmmlu_chat_ko_kr".into(), "mmmlu_simple_evals_pt_br".into()));
    }

    #[test]
    fn the_most_probable_letter_is_the_answer() {
        let item = MMMLU.item("sw", sample());
        let acc = |log_probs: &[f64]| {
            let verdict = MMMLU.score(&item, &response("", log_probs)).map_err(|error| error.to_string())?;
            Ok::<_, String>((verdict.label.unwrap(), verdict.metrics["acc"]))
        };
        assert_eq!(acc(&[-3.0, -1.0, -2.0, -9.0]).unwrap(), ("B".into(), 1.0));
        assert_eq!(acc(&[-1.0, -1.0, -1.0, -9.0]).unwrap(), ("A".into(), 0.0), "the first among equals");
        assert!(acc(&[-1.0]).unwrap_err().contains("has 4 choices, and its response 1 log-probabilities"));
        assert!(acc(&[-1.0, f64::NAN, 0.0, 0.0]).unwrap_err().contains("are not numbers"));
        let item = GENERATIVE.item("sw", sample());
        let score = |text| GENERATIVE.score(&item, &response(text, &[])).unwrap();
        assert_eq!(score("2 + 2\nJibu: B").metrics["exact_match,simple-evals"], 1.0);
        let none = score("four");
        assert_eq!((none.metrics["exact_match,simple-evals"], none.metrics["no_answer,simple-evals"], none.label), (0.0, 1.0, None));
    }

    #[test]
    fn english_is_paired_only_where_it_is_parallel() {
        let mut questions = BTreeMap::from([("en", vec![sample()]), ("sw", vec![sample()])]);
        let mut notes = Vec::new();
        assert!(!MMMLU.note_english(&questions, &mut notes) && notes.is_empty());
        questions.get_mut("en").unwrap()[0].answer = "C".into();
        assert!(MMMLU.note_english(&questions, &mut notes));
        assert!(notes[0].contains("not in the order of the translations"));
    }
}
