//! A user's own prompts, in any language: JSONL with `id`, `lang`, `prompt`, `kind` (`harmful` or `benign`), and `tags`, `english` and a good
//! `answer` where there are any. In the place of `answer`, `chosen` and `rejected` are a good answer and a bad one, for `--judge nearest`.
//!
//! Over-refusal has to be measured in the languages that were trained, and XSTest is English: this is how benign prompts in another language are
//! asked. A prompt and its translations share an id. The canaries of a training run are such prompts too.

use super::card::{Card, Languages, Origin, Scoring, lower};
use super::table::Row;
use super::{Benchmark, Loaded, table};
use crate::eval::item::{Item, Kind};
use crate::eval::source::Source;
use anyhow::{Result, anyhow, bail, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

pub(super) struct Prompts;

static CARD: Card = Card {
    name: "prompts",
    aliases: &[],
    about: "your own prompts: attack success on harmful ones, over-refusal on benign ones",
    languages: Languages::OfData,
    rows: None,
    metrics: &[lower("asr"), lower("invalid_rate"), lower("over_refusal")],
    scoring: Scoring::Judge(&[(Kind::Harmful, "multijail"), (Kind::Benign, "xstest")]),
    origin: Origin::Local {
        from: "a JSONL file of yours: {\"id\", \"lang\", \"prompt\", \"kind\": \"harmful\" or \"benign\", \"tags\": […]}",
    },
    licence: "yours",
    max_new_tokens: 512,
};

const KEYS: [&str; 9] = ["id", "lang", "prompt", "kind", "tags", "english", "answer", "chosen", "rejected"];
/// Of a file's problems, shown at once.
const SHOWN: usize = 10;

impl Benchmark for Prompts {
    fn card(&self) -> &'static Card {
        &CARD
    }

    fn read(&self, source: &Source<'_>, langs: &[String]) -> Result<Loaded> {
        let file = source.file(CARD.name, None, &[".jsonl"])?;
        let items = read(&file.path, &|_| None)?;
        // Language by language, as everywhere; those that were not asked for are left out.
        let mut order: Vec<String> = langs.to_vec();
        if order.is_empty() {
            items.iter().for_each(|item| {
                if !order.contains(&item.lang) {
                    order.push(item.lang.clone());
                }
            });
        }
        let of = |lang: &String| items.iter().filter(|item| item.lang == *lang).cloned().collect::<Vec<_>>();
        Ok(Loaded { items: order.iter().flat_map(of).collect(), files: vec![file], notes: Vec::new() })
    }
}

/// All prompts of a file, in its order; a good answer is an item's `target`. `objection` says what else speaks against a prompt.
///
/// # Errors
/// Every problem of the file, each with its line.
pub fn read(path: &Path, objection: &dyn Fn(&Item) -> Option<String>) -> Result<Vec<Item>> {
    let (mut items, mut problems) = (Vec::new(), Vec::new());
    let mut first_place: BTreeMap<(String, String), String> = BTreeMap::new();
    for row in table::rows(path)? {
        match item(&row) {
            Ok(item) => {
                let key = (item.id.clone(), item.lang.clone());
                match first_place.get(&key) {
                    Some(place) => problems.push(format!("{}: the id `{}` in `{}` is that of {place} too", row.place(), key.0, key.1)),
                    None => drop(first_place.insert(key, row.place())),
                }
                problems.extend(objection(&item).map(|problem| format!("{}: {problem}", row.place())));
                items.push(item);
            }
            Err(of_row) => problems.extend(of_row.into_iter().map(|problem| format!("{}: {problem}", row.place()))),
        }
    }
    if !problems.is_empty() {
        let more = problems.len().saturating_sub(SHOWN);
        let more = if more > 0 { format!("\n  and {more} more") } else { String::new() };
        problems.truncate(SHOWN);
        bail!("the prompts cannot be used:\n  {}{more}", problems.join("\n  "));
    }
    Ok(items)
}

/// The row as an item, or everything that is wrong with it.
fn item(row: &Row) -> Result<Item, Vec<String>> {
    let mut problems = Vec::new();
    let mut note = |result: Result<String>| match result {
        Ok(text) => text,
        Err(error) => {
            // The place stands in front already.
            problems.push(error.to_string().replacen(&format!("{}: ", row.place()), "", 1));
            String::new()
        }
    };
    let id = note(row.label("id"));
    let lang = note(row.label("lang")).to_ascii_lowercase();
    let prompt = note(row.text("prompt").map(str::to_owned));
    let kind = note(row.label("kind").and_then(|kind| {
        ensure!(["harmful", "benign"].contains(&kind.as_str()), "`kind` is `{kind}`; it is `harmful` or `benign`");
        Ok(kind)
    }));
    let mut optional = |key: &str| row.fields.contains_key(key).then(|| note(row.text(key).map(str::to_owned)));
    let english = optional("english").into_iter().collect();
    let [answer, chosen, rejected] = ["answer", "chosen", "rejected"].map(&mut optional);
    let target = match (answer, chosen, rejected) {
        (answer, None, None) => answer,
        (None, Some(chosen), Some(_)) => Some(chosen),
        (Some(_), _, _) => Some(note(Err(anyhow!("`answer` is a good answer, as `chosen` is: give one of them")))),
        (None, _, _) => Some(note(Err(anyhow!("`chosen` and `rejected` belong together: the good answer and the bad one")))),
    };
    let tags = row.list("tags").unwrap_or_else(|error| {
        note(Err(error));
        Vec::new()
    });
    for key in row.fields.keys().filter(|key| !KEYS.contains(&key.as_str())) {
        problems.push(format!("unknown key `{key}`; the keys are {}", KEYS.join(", ")));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(Item {
        id,
        lang,
        kind: if kind == "benign" { Kind::Benign } else { Kind::Harmful },
        turns: vec![prompt],
        english,
        target,
        choices: Vec::new(),
        tags,
        temperature: None,
        doc: Value::Object(row.fields.clone()),
    })
}
