//! The benign prompts of `canary.path`, as tokens.

use super::pairs::Pair;
use crate::config::{CanaryConfig, DataConfig, DataFormat};
use crate::data::encode::{EncodedRow, Encoder};
use crate::data::language;
use crate::data::pair::{Message, PreferencePair, PreferenceRow, Role};
use crate::digest::hex;
use crate::eval::bench::{languages, prompts};
use crate::eval::item::{Item, Kind};
use crate::eval::judge::guard::base_language;
use crate::eval::judge::keyword;
use crate::hub;
use crate::model::description::DecoderDescription;
use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// Of a file's problems, shown at once.
const SHOWN: usize = 10;

/// A benign prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    pub id: String,
    pub lang: String,
    /// What the user says.
    pub text: String,
    /// As the template lays it out, up to where the answer begins.
    pub tokens: Vec<u32>,
    /// Of a good answer with the end of its turn, where the file has one.
    pub answer: Option<Vec<u32>>,
    /// The good answer and the bad one, where the file has both.
    pub pair: Option<Pair>,
    /// Whether a refusal is one too many.
    pub is_benign: bool,
}

/// The prompts of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompts {
    /// Language by language, each in the order of the file.
    pub all: Vec<Prompt>,
    /// Longest answer, in tokens.
    pub max_new_tokens: usize,
    /// The dominant languages of the training rows: what is not to change.
    pub dominant: BTreeSet<String>,
    /// What a user should know of them.
    pub notes: Vec<String>,
    /// Of everything above that a measurement depends on.
    pub sha256: String,
}

impl Prompts {
    /// Reads and encodes those that `config` asks for; `None` where it asks for none. `rows` are those that are trained on, `data` says how text
    /// becomes tokens.
    ///
    /// # Errors
    /// Every problem of the file, each with its line; no benign prompt; prompts that leave the model no room to answer.
    pub fn load(
        config: &CanaryConfig,
        data: &DataConfig,
        encoder: &Encoder,
        description: &DecoderDescription,
        rows: &[EncodedRow],
    ) -> Result<Option<Self>> {
        let Some(path) = &config.path else { return Ok(None) };
        // Their answers are looked at for their language: what that takes belongs into what is forecast.
        language::load_models();
        let load = || Self::read(path, config, data, encoder, description, rows);
        load().with_context(|| format!("in the canaries of `canary.path` = \"{path}\"")).map(Some)
    }

    fn read(
        path: &str,
        config: &CanaryConfig,
        data: &DataConfig,
        encoder: &Encoder,
        description: &DecoderDescription,
        rows: &[EncodedRow],
    ) -> Result<Self> {
        ensure!(!hub::is_on_hub(path), "a data set on the hub does not say which of its files it means: give a file, or its address");
        let source = DataConfig {
            path: path.to_owned(),
            revision: None,
            sha256: None,
            format: DataFormat::Auto,
            split: "canary".into(),
            ..data.clone()
        };
        let files = hub::resolve_data(&source)?;
        let [file] = files.as_slice() else { bail!("it has {} files, and should be one", files.len()) };
        let dominant: BTreeSet<&str> = rows.iter().filter_map(|row| row.dominant.as_ref()).map(|pair| pair.lang.as_str()).collect();
        let trained: BTreeSet<&str> = rows.iter().map(|row| row.target.lang.as_str()).chain(dominant.iter().copied()).collect();
        let items = prompts::read(file, &|item| unknown_language(&item.lang, &trained))?;
        // A prompt with two known answers is asked whatever it is about.
        let is_asked = |item: &Item| item.kind == Kind::Benign || item.pair().is_some();
        let (benign, others): (Vec<Item>, Vec<Item>) = items.into_iter().partition(is_asked);
        ensure!(
            !benign.is_empty(),
            "none of its {} prompts is benign (`\"kind\": \"benign\"`), and canaries are about what harmless prompts get for an answer",
            others.len()
        );
        let chosen = first_of_each_language(benign, config.limit);
        let all = chosen.iter().map(|item| encoded(item, encoder)).collect::<Result<Vec<_>>>()?;
        check_tokens(&all, config.max_new_tokens, description)?;
        let sha256 = digest(&all, config.max_new_tokens);
        let notes = notes(&all, others.len(), &trained);
        let dominant = dominant.into_iter().map(str::to_owned).collect();
        Ok(Self { all, max_new_tokens: config.max_new_tokens, dominant, notes, sha256 })
    }

    /// How many there are of each language.
    pub fn n_of_language(&self) -> BTreeMap<&str, usize> {
        let mut n_of_language = BTreeMap::new();
        self.all.iter().for_each(|prompt| *n_of_language.entry(prompt.lang.as_str()).or_default() += 1);
        n_of_language
    }
}

/// What is said of a language that is neither one of the benchmarks' nor one that is trained: most likely a slip.
fn unknown_language(lang: &str, trained: &BTreeSet<&str>) -> Option<String> {
    let is_known = languages::name(base_language(lang)).is_some() || trained.contains(lang);
    (!is_known)
        .then(|| format!("`lang` is `{lang}`, a language that neither mpo nor the training data knows; codes are ISO 639-1, such as `sw`"))
}

/// Language by language in the order of their first prompts, `limit` of each.
fn first_of_each_language(items: Vec<Item>, limit: usize) -> Vec<Item> {
    let mut languages: Vec<(String, Vec<Item>)> = Vec::new();
    for item in items {
        match languages.iter_mut().find(|(lang, _)| *lang == item.lang) {
            Some((_, of_language)) if of_language.len() >= limit => {}
            Some((_, of_language)) => of_language.push(item),
            None => languages.push((item.lang.clone(), vec![item])),
        }
    }
    languages.into_iter().flat_map(|(_, items)| items).collect()
}

fn encoded(item: &Item, encoder: &Encoder) -> Result<Prompt> {
    let text = item.turns.first().cloned().unwrap_or_default();
    let prompt = vec![Message { role: Role::User, content: text.clone() }];
    let target = PreferencePair { lang: item.lang.clone(), prompt, chosen: item.target.clone(), rejected: None };
    // As a row of the training data is encoded, and as `mpo gaps` would score it.
    let id = format!("{}/{}", item.id, item.lang);
    let row = encoder.tokenize(&PreferenceRow { id, dominant: None, target })?.target;
    let answer = item.target.is_some().then_some(row.chosen.tokens);
    let pair = item.pair().map(|(chosen, rejected)| Pair { chosen: chosen.to_owned(), rejected: rejected.to_owned() });
    Ok(Prompt {
        id: item.id.clone(),
        lang: item.lang.clone(),
        text,
        tokens: row.prompt,
        answer,
        pair,
        is_benign: item.kind == Kind::Benign,
    })
}

fn check_tokens(prompts: &[Prompt], max_new_tokens: usize, description: &DecoderDescription) -> Result<()> {
    let mut problems = Vec::new();
    for Prompt { id, lang, tokens, answer, .. } in prompts {
        let answer = answer.as_deref().unwrap_or_default();
        let n_tokens = tokens.len() + max_new_tokens.max(answer.len());
        if n_tokens > description.max_positions {
            problems.push(format!("`{id}` ({lang}) takes {n_tokens} tokens with its answer, the model has {}", description.max_positions));
        }
        if let Some(token) = tokens.iter().chain(answer).find(|token| **token as usize >= description.vocab_size) {
            problems.push(format!("`{id}` ({lang}) has the token {token}, the model's vocabulary ends at {}", description.vocab_size));
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    let more = problems.len().saturating_sub(SHOWN);
    let more = if more > 0 { format!("\n  and {more} more") } else { String::new() };
    problems.truncate(SHOWN);
    bail!("prompts that the model cannot be asked:\n  {}{more}\nhint: `canary.max_new_tokens` = {max_new_tokens}", problems.join("\n  "))
}

/// Every part behind its length, so that no two sets of prompts read the same.
fn digest(prompts: &[Prompt], max_new_tokens: usize) -> String {
    let mut hash = Sha256::new();
    let mut bytes = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    bytes(&(max_new_tokens as u64).to_le_bytes());
    let tokens = |tokens: &[u32]| tokens.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<u8>>();
    for prompt in prompts {
        bytes(prompt.id.as_bytes());
        bytes(prompt.lang.as_bytes());
        bytes(&tokens(&prompt.tokens));
        // An answer has at least one token.
        bytes(&tokens(prompt.answer.as_deref().unwrap_or_default()));
        // The digest of prompts without a pair is that of older runs.
        if let Some(Pair { rejected, .. }) = &prompt.pair {
            bytes(rejected.as_bytes());
            bytes(&[u8::from(prompt.is_benign)]);
        }
    }
    hex(&hash.finalize())
}

fn notes(prompts: &[Prompt], n_harmful: usize, trained: &BTreeSet<&str>) -> Vec<String> {
    let asked: BTreeSet<&str> = prompts.iter().map(|prompt| prompt.lang.as_str()).collect();
    let list = |languages: Vec<&str>| languages.join(" ");
    let mut notes = Vec::new();
    let missing: Vec<&str> = trained.iter().copied().filter(|lang| !asked.contains(lang)).collect();
    if !missing.is_empty() {
        notes.push(format!("canaries: over-refusal is not measured in {}, for lack of benign prompts", list(missing)));
    }
    let unread: Vec<&str> = asked.into_iter().filter(|lang| !keyword::knows(lang)).collect();
    if !unread.is_empty() {
        notes.push(format!("canaries: no phrases of refusal are known in {}; only refusals in English are seen there", list(unread)));
    }
    if n_harmful > 0 {
        notes.push(format!("canaries: {n_harmful} harmful prompts of the file are not asked; `mpo eval --bench prompts` does"));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(id: &str, lang: &str) -> Prompt {
        Prompt { id: id.into(), lang: lang.into(), text: "q".into(), tokens: vec![1, 2], answer: None, pair: None, is_benign: true }
    }

    #[test]
    fn the_first_of_each_language_are_asked() {
        let item = |id: usize, lang: &str| Item {
            id: id.to_string(),
            lang: lang.into(),
            kind: Kind::Benign,
            turns: vec!["q".into()],
            english: vec![],
            target: None,
            choices: vec![],
            tags: vec![],
            temperature: None,
            doc: serde_json::Value::Null,
        };
        let items = [(1, "sw"), (1, "en"), (2, "sw"), (3, "sw"), (2, "en")].map(|(id, lang)| item(id, lang));
        let chosen = first_of_each_language(items.to_vec(), 2);
        let names: Vec<(&str, &str)> = chosen.iter().map(|item| (item.lang.as_str(), item.id.as_str())).collect();
        assert_eq!(names, [("sw", "1"), ("sw", "2"), ("en", "1"), ("en", "2")]);
    }

    #[test]
    fn the_digest_tells_prompts_apart() {
        let changed = |change: &dyn Fn(&mut Prompt)| {
            let mut prompt = prompt("a", "sw");
            change(&mut prompt);
            digest(&[prompt], 8)
        };
        let same = changed(&|_| ());
        assert_eq!(same, digest(&[prompt("a", "sw")], 8));
        assert_ne!(same, digest(&[prompt("a", "sw")], 9));
        assert_ne!(same, changed(&|prompt| prompt.id.push('b')));
        assert_ne!(same, changed(&|prompt| prompt.lang = "bn".into()));
        assert_ne!(same, changed(&|prompt| prompt.tokens.push(3)));
        assert_ne!(same, changed(&|prompt| prompt.answer = Some(vec![3])));
        assert_ne!(same, changed(&|prompt| prompt.pair = Some(Pair { chosen: "a".into(), rejected: "b".into() })));
    }

    #[test]
    fn what_is_not_measured_is_said() {
        let prompts = [prompt("a", "sw"), prompt("a", "yo")];
        let notes = notes(&prompts, 3, &["bn", "sw", "zh"].into());
        assert!(notes[0].contains("not measured in bn zh"), "{notes:?}");
        assert!(notes[1].contains("known in yo;") && notes[2].contains("3 harmful prompts"), "{notes:?}");
        assert!(super::notes(&prompts[..1], 0, &["sw"].into()).is_empty());
    }
}
