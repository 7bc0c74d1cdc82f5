//! Judges: what an answer is worth, said by a model or by a rule, in a form that can be checked afterwards.
//!
//! A model judge is a [`Transport`] (how a question reaches a model: [`openai`], [`local`]) times a [`Rubric`] (what is asked and how the
//! reply is read: one file each in [`rubric`], and the guards' own formats in [`guard`]). Between them lie a [`cache`] and the [`gate`], whose page says
//! what makes a reply a verdict; before them, where the judge should read English only, a [`translate`] step. [`keyword`] is a rule and asks nobody.
//! [`run`] asks many questions at once and hands the verdicts out in order; [`check`] compares a judge with labels of people.
//!
//! The text under judgement is hostile: it was made by a model that may have been taught to please a judge. So it stands between marks that
//! it could not foresee ([`prompt`]), anything in it that looks like a mark or a special token is broken up, the verdict is read where no quotation
//! stands, and a reply that does not say clearly one thing is counted as unparsed: never dropped, never guessed.

pub mod cache;
pub mod check;
pub mod gate;
pub mod guard;
pub mod keyword;
pub mod local;
pub mod numbers;
pub mod openai;
pub mod own;
pub mod parameters;
pub mod place;
pub mod prompt;
pub mod refusal;
pub mod reply;
pub mod retry;
pub mod rubric;
pub mod run;
pub mod shape;
pub mod translate;
pub mod translation;

use super::item::{Item, Kind};
use super::record::{Response, Verdict};
pub use super::results::metric::{Better, Scale};
use crate::digest::hex;
use gate::{Unparsed, Why};
use prompt::Prompt;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use translate::Translator;

/// Whether the user wants to stop; asked between steps and while waiting.
pub type ShouldStop<'a> = &'a (dyn Fn() -> bool + Sync);

/// Grades one response.
pub trait Judge: Sync {
    /// What verdicts, files and reports say of it.
    fn card(&self) -> Card;

    /// A verdict, also where the judge's text could not be read; an error only where there is none.
    fn judge(&self, item: &Item, response: &Response, should_stop: ShouldStop<'_>) -> Result<Verdict, Failure>;

    /// What it was told so far.
    fn tally(&self) -> Tally {
        Tally::default()
    }
}

/// What a judge was told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Replies that came, readable or not.
    pub n_replies: usize,
    /// Verdicts on replies of earlier runs.
    pub n_earlier: usize,
}

/// Why there is no reply.
#[derive(Debug)]
pub enum Failure {
    /// This question will have no verdict (a content filter, a text beyond the judge's context, a reply that was cut off): recorded as unparsed.
    Declined(Unparsed),
    /// No reply, for the question's sake or for the endpoint's: what comes of others decides ([`run`]).
    Suspect(Suspect),
    /// The user stopped the run.
    Stopped,
    /// Nothing further can be asked: no network, no right, an address where no judge is.
    Fatal(anyhow::Error),
}

/// A question that failed while others may do better.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspect {
    /// Its verdict, if it is the question's fault.
    pub unparsed: Unparsed,
    pub blame: Blame,
    /// What is said where it is the endpoint's.
    pub error: String,
}

/// Whose fault a failure seems to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The server answered, and would not have the question.
    Question,
    /// The server is busy, broken or silent.
    Endpoint,
}

/// What a model said, to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub text: String,
    /// Names of parameters that its endpoint refused, and that it was asked without.
    pub without: Vec<String>,
    /// Out of the cache, from an earlier run.
    pub is_earlier: bool,
}

impl Reply {
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), without: Vec::new(), is_earlier: false }
    }
}

/// Whether a reply says what it was asked for: others are not worth keeping.
pub type IsReadable<'a> = &'a dyn Fn(&str) -> bool;

/// How a question reaches a model.
pub trait Transport: Sync {
    /// Names the model and where it is asked, as caches and files know it (`openai:gpt-4o`). Never holds a key.
    fn identity(&self) -> String;

    /// What is asked for beside the question, as results have it.
    fn parameters(&self) -> BTreeMap<String, Value> {
        BTreeMap::new()
    }

    /// What a cache knows the reply by: all that is asked. Behind it, keys that older versions knew it by.
    fn keys(&self, prompt: &Prompt) -> Vec<String> {
        vec![prompt.key(&self.identity())]
    }

    /// The model's reply, greedy, and to its end: one that was cut off, filtered or never began is a failure.
    fn complete(&self, prompt: &Prompt, is_readable: IsReadable<'_>, should_stop: ShouldStop<'_>) -> Result<Reply, Failure>;
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
    /// What was asked for beside the question; [`parameters::LEFT_OUT`] in the place of what the endpoint refuses.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, Value>,
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
    rubric: &'a dyn Rubric,
    transport: &'a dyn Transport,
    translator: Option<&'a Translator<'a>>,
    told: Mutex<Told>,
}

/// What came of asking, so far.
#[derive(Default)]
struct Told {
    tally: Tally,
    /// Parameters that some replies were given without.
    without: BTreeSet<String>,
}

impl<'a> ModelJudge<'a> {
    /// The translator makes English of the answers, and of queries that the benchmark does not have in English.
    pub fn new(rubric: &'a dyn Rubric, transport: &'a dyn Transport, translator: Option<&'a Translator<'a>>) -> Self {
        Self { rubric, transport, translator, told: Mutex::default() }
    }

    /// Counts are whole whenever the lock is free.
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The judge's replies to the rubric's questions, in `replies`; whether all of them are those of earlier runs.
    fn ask(&self, exchange: &Exchange, replies: &mut Vec<String>, should_stop: ShouldStop<'_>) -> Result<bool, Failure> {
        let is_readable = |reply: &str| self.rubric.score(exchange, &[reply.to_owned()]).unparsed.is_none();
        let mut is_earlier = true;
        for prompt in self.rubric.prompts(exchange) {
            let reply = self.transport.complete(&prompt, &is_readable, should_stop)?;
            let mut told = self.told();
            told.tally.n_replies += usize::from(!reply.is_earlier);
            told.without.extend(reply.without);
            is_earlier &= reply.is_earlier;
            replies.push(reply.text);
        }
        Ok(is_earlier)
    }

    fn unparsed(unparsed: Unparsed, response: &Response, mut raw: Vec<String>) -> Verdict {
        raw.extend(unparsed.said.clone());
        Score::unparsed(unparsed).into_verdict(response, raw)
    }
}

impl Judge for ModelJudge<'_> {
    fn card(&self) -> Card {
        let mut parameters = self.transport.parameters();
        parameters.extend(self.told().without.iter().map(|name| (name.clone(), parameters::LEFT_OUT.into())));
        let mut caveats = vec!["intervals cover the sampling of prompts, not the judge's errors".to_owned()];
        let refused =
            |parameters: &BTreeMap<String, Value>| parameters.get("temperature").is_some_and(|value| value == parameters::LEFT_OUT);
        if self.translator.is_some_and(|translator| refused(&translator.transport.parameters())) {
            caveats.push("the translator was asked without `temperature` 0, which its endpoint refuses".to_owned());
        }
        Card {
            judge: self.transport.identity(),
            rubric: self.rubric.name(),
            version: self.rubric.version(),
            prompt_sha256: prompt_sha256(self.rubric),
            labels: self.rubric.labels(),
            metrics: self.rubric.metrics(),
            translator: self.translator.map(Translator::identity),
            parameters,
            caveats,
        }
    }

    fn tally(&self) -> Tally {
        self.told().tally
    }

    /// `raw` holds what the translator said, then what the judge said.
    fn judge(&self, item: &Item, response: &Response, should_stop: ShouldStop<'_>) -> Result<Verdict, Failure> {
        let mut exchange = Exchange::new(item, response);
        let mut raw = Vec::new();
        if exchange.turns.is_empty() {
            let nothing = Unparsed::new(Why::NothingToJudge, "the response holds no text to judge");
            return Ok(Self::unparsed(nothing, response, raw));
        }
        if let Some(score) = self.rubric.without_asking(&exchange) {
            return Ok(score.into_verdict(response, raw));
        }
        if let Some(translator) = self.translator {
            match translator.translate_exchange(&mut exchange, &mut raw, should_stop) {
                Ok(()) => {}
                Err(Failure::Declined(unparsed)) => return Ok(Self::unparsed(unparsed, response, raw)),
                Err(other) => return Err(other),
            }
        }
        let mut replies = Vec::new();
        let asked = self.ask(&exchange, &mut replies, should_stop);
        if let Ok(is_earlier) = asked {
            self.told().tally.n_earlier += usize::from(is_earlier);
        }
        let score = asked.map(|_| self.rubric.score(&exchange, &replies));
        raw.append(&mut replies);
        match score {
            Ok(score) => Ok(score.into_verdict(response, raw)),
            Err(Failure::Declined(unparsed)) => Ok(Self::unparsed(unparsed, response, raw)),
            Err(other) => Err(other),
        }
    }
}
