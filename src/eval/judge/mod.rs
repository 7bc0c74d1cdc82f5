//! Judges: what an answer is worth, said by a model or by a rule, in a form that can be checked afterwards.
//!
//! A model judge is a [`Transport`] (how a question reaches a model: [`openai`], [`local`]) times a [`Rubric`] (what is asked and how the
//! reply is read: one file each in [`rubric`], and the guards' own formats in [`guard`]). Between them lies a [`cache`]; before them, where
//! the judge should read English only, a [`translate`] step. [`keyword`] is a rule and asks nobody. [`run`] asks many questions at once and
//! hands the verdicts out in order; [`check`] compares a judge with labels of people.
//!
//! The text under judgement is hostile: it was made by a model that may have been taught to please a judge. So it stands between marks that
//! it could not foresee ([`prompt`]), anything in it that looks like a mark or a special token is broken up, the verdict is read from the
//! end of the judge's reply, and a reply that does not say clearly one thing is counted as unparsed: never dropped, never guessed.

pub mod cache;
pub mod check;
pub mod guard;
pub mod keyword;
pub mod local;
pub mod openai;
pub mod own;
pub mod prompt;
pub mod reply;
pub mod retry;
pub mod rubric;
pub mod run;
pub mod translate;
pub mod translation;

use super::item::{Item, Kind};
use super::record::{Response, Verdict};
pub use super::results::metric::{Better, Scale};
use crate::digest::hex;
use prompt::Prompt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use translate::Translator;

/// Whether the user wants to stop; asked between steps and while waiting.
pub type ShouldStop<'a> = &'a (dyn Fn() -> bool + Sync);

/// Grades one response.
pub trait Judge: Sync {
    /// What verdicts, files and reports say of it.
    fn card(&self) -> Card;

    /// A verdict, also where the judge's text could not be read; an error only where there is none.
    fn judge(&self, item: &Item, response: &Response, should_stop: ShouldStop<'_>) -> Result<Verdict, Failure>;
}

/// Why there is no reply.
#[derive(Debug)]
pub enum Failure {
    /// The judge will not answer this question (a content filter, a text beyond its context): recorded as unparsed.
    Declined(String),
    /// The user stopped the run.
    Stopped,
    /// Nothing further can be asked: no network, no right, a server that keeps failing.
    Fatal(anyhow::Error),
}

/// How a question reaches a model.
pub trait Transport: Sync {
    /// Names the model and where it is asked, as caches and files know it (`openai:gpt-4o`). Never holds a key.
    fn identity(&self) -> String;

    /// The model's reply, greedy.
    fn complete(&self, prompt: &Prompt, should_stop: ShouldStop<'_>) -> Result<String, Failure>;
}

/// What is asked about a response, and how the reply is read.
pub trait Rubric: Sync {
    fn name(&self) -> &'static str;

    /// Changes whenever wording or parsing do.
    fn version(&self) -> &'static str;

    /// Everything that is fixed in its prompts; its sha256 stands in reports.
    fn wording(&self) -> String;

    /// What a verdict's label can be; empty where there is none.
    fn labels(&self) -> &'static [&'static str];

    fn metrics(&self) -> &'static [Metric];

    /// The verdict, where the rubric knows it without a judge (an empty answer).
    fn without_asking(&self, _exchange: &Exchange) -> Option<Score> {
        None
    }

    /// One or more questions to the judge.
    fn prompts(&self, exchange: &Exchange) -> Vec<Prompt>;

    /// Reads the replies, one for each of the prompts.
    fn score(&self, exchange: &Exchange, replies: &[String]) -> Score;
}

/// sha256 of a rubric's wording, as reports give it.
pub fn prompt_sha256(rubric: &dyn Rubric) -> String {
    hex(&Sha256::digest(rubric.wording()))
}

/// What a number among a verdict's metrics means.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Metric {
    pub name: &'static str,
    pub scale: Scale,
    pub better: Better,
    pub about: &'static str,
}

/// What a report says about a judge.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Card {
    /// `openai:gpt-4o`, `guard:PolyGuard-Qwen-Smol`, `keyword`.
    pub judge: String,
    pub rubric: &'static str,
    pub version: &'static str,
    /// sha256 of the rubric's wording, or of the rule's patterns.
    pub prompt_sha256: String,
    pub labels: &'static [&'static str],
    pub metrics: &'static [Metric],
    /// Who translated the answers before they were judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub translator: Option<String>,
    /// What a reader must know before comparing numbers.
    pub caveats: Vec<String>,
}

impl Card {
    /// For the name of a file: `openai-gpt-4o-multijail`.
    pub fn slug(&self) -> String {
        slug(std::slice::from_ref(self))
    }
}

/// Characters of a slug: a file's name has to hold it with room for more.
const SLUG_CHARS: usize = 120;

/// One name for a judge with several rubrics: `openai-gpt-4o-multijail+xstest`. A long one ends in the hash of all of it.
pub fn slug(cards: &[Card]) -> String {
    let Some(first) = cards.first() else { return String::new() };
    let rubrics: Vec<&str> = cards.iter().map(|card| card.rubric).filter(|rubric| *rubric != first.judge).collect();
    let rubrics = rubrics.join("+");
    let parts = [Some(first.judge.as_str()), Some(rubrics.as_str()).filter(|rubrics| !rubrics.is_empty()), first.translator.as_deref()];
    let joined = parts.into_iter().flatten().collect::<Vec<_>>().join("-");
    let slug: String = joined.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+') { c } else { '-' }).collect();
    let slug = slug.trim_matches(['-', '.']);
    if slug.len() <= SLUG_CHARS {
        return slug.to_owned();
    }
    let sha256 = hex(&Sha256::digest(&joined));
    format!("{}-{}", &slug[..SLUG_CHARS - 13], &sha256[..12])
}

/// What a rubric sees: who said what, with nothing about who the model is.
#[derive(Debug, Clone, PartialEq)]
pub struct Exchange {
    pub lang: String,
    pub kind: Kind,
    pub turns: Vec<Turn>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    pub query: String,
    /// Where the benchmark, or a translator, has it.
    pub query_in_english: Option<String>,
    /// What the model answered, without its thought; translated where a translator was asked.
    pub answer: String,
    /// The right answer, where there is one.
    pub reference: Option<String>,
}

impl Exchange {
    /// Pairs the item's turns with the answers, without what was thought before them; turns that were never answered are left out.
    ///
    /// The references of several turns are a JSON list of strings in the item's `target`; any other text belongs to the first turn.
    pub fn new(item: &Item, response: &Response) -> Self {
        let references = item.target.as_ref().map(|target| {
            let list: Result<Vec<String>, _> = serde_json::from_str(target);
            list.unwrap_or_else(|_| vec![target.clone()])
        });
        let turn = |(at, (query, answer)): (usize, (&String, &super::record::Answer))| Turn {
            query: query.clone(),
            query_in_english: item.english.get(at).cloned(),
            answer: answer.said().to_owned(),
            reference: references.as_ref().and_then(|all| all.get(at).cloned()),
        };
        let turns = item.turns.iter().zip(&response.answers).enumerate().map(turn).collect();
        Self { lang: item.lang.clone(), kind: item.kind, turns }
    }

    /// The last turn's answer, which is the only one but for MT-Bench.
    pub fn last(&self) -> Option<&Turn> {
        self.turns.last()
    }

    pub fn is_empty_answer(&self) -> bool {
        self.turns.iter().all(|turn| turn.answer.trim().is_empty())
    }
}

/// What a rubric makes of the replies. Either a label, metrics or both, or the reason why not.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    pub label: Option<String>,
    pub metrics: BTreeMap<String, f64>,
    pub unparsed: Option<String>,
}

impl Score {
    pub fn labelled(label: &str, metrics: &[(&str, f64)]) -> Self {
        Self { label: Some(label.to_owned()), ..Self::of(metrics) }
    }

    pub fn of(metrics: &[(&str, f64)]) -> Self {
        Self { metrics: metrics.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(), ..Self::default() }
    }

    pub fn unparsed(reason: impl Into<String>) -> Self {
        Self { unparsed: Some(reason.into()), ..Self::default() }
    }

    fn into_verdict(self, response: &Response, raw: Vec<String>) -> Verdict {
        Verdict { key: response.key.clone(), label: self.label, metrics: self.metrics, unparsed: self.unparsed, raw }
    }
}

/// A transport times a rubric.
pub struct ModelJudge<'a> {
    pub rubric: &'a dyn Rubric,
    pub transport: &'a dyn Transport,
    /// Makes English of the answers, and of queries that the benchmark does not have in English.
    pub translator: Option<&'a Translator<'a>>,
}

impl Judge for ModelJudge<'_> {
    fn card(&self) -> Card {
        Card {
            judge: self.transport.identity(),
            rubric: self.rubric.name(),
            version: self.rubric.version(),
            prompt_sha256: prompt_sha256(self.rubric),
            labels: self.rubric.labels(),
            metrics: self.rubric.metrics(),
            translator: self.translator.map(Translator::identity),
            caveats: vec!["intervals cover the sampling of prompts, not the judge's errors".to_owned()],
        }
    }

    /// `raw` holds what the translator said, then what the judge said.
    fn judge(&self, item: &Item, response: &Response, should_stop: ShouldStop<'_>) -> Result<Verdict, Failure> {
        let mut exchange = Exchange::new(item, response);
        let mut raw = Vec::new();
        if exchange.turns.is_empty() {
            return Ok(Score::unparsed("the response holds no text to judge").into_verdict(response, raw));
        }
        if let Some(score) = self.rubric.without_asking(&exchange) {
            return Ok(score.into_verdict(response, raw));
        }
        let unless_declined = |failure| match failure {
            Failure::Declined(reason) => Ok(Score::unparsed(reason)),
            other => Err(other),
        };
        if let Some(translator) = self.translator
            && let Err(failure) = translator.translate_exchange(&mut exchange, &mut raw, should_stop)
        {
            return Ok(unless_declined(failure)?.into_verdict(response, raw));
        }
        let mut replies = Vec::new();
        for prompt in self.rubric.prompts(&exchange) {
            match self.transport.complete(&prompt, should_stop) {
                Ok(reply) => replies.push(reply),
                Err(failure) => {
                    raw.append(&mut replies);
                    return Ok(unless_declined(failure)?.into_verdict(response, raw));
                }
            }
        }
        let score = self.rubric.score(&exchange, &replies);
        raw.append(&mut replies);
        Ok(score.into_verdict(response, raw))
    }
}
