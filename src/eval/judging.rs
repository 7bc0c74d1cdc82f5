//! The second phase: a judge, or the benchmark's own rule, gives every response a verdict.

use super::bench::{Benchmark, Scoring};
use super::breakdown::{Class, classify, language_match};
use super::item::{Item, Kind};
use super::judge::run::judge_all;
use super::judge::{self, Card, Failure, Judge, ShouldStop, Tally, parameters, slug};
use super::lines;
use super::record::{Key, Response, Verdict};
use super::results::facts::JudgeFacts;
use super::results::metric::Metric;
use super::results::run::{LoadedBench, RULE, verdicts_file};
use crate::progress::Progress;
use anyhow::{Context, Result, anyhow};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

/// Whether a response is in the prompt's language.
const LANGUAGE_MATCH: &str = "language_match";

/// One judge with the rubric that each kind of item asks for, as benign and harmful prompts of one benchmark do.
pub struct ByKind<'a> {
    pub judges: Vec<(Kind, Box<dyn Judge + 'a>)>,
}

impl ByKind<'_> {
    fn of(&self, kind: Kind) -> Option<&dyn Judge> {
        self.judges.iter().find(|(of, _)| *of == kind).map(|(_, judge)| &**judge)
    }

    /// One card for each rubric.
    pub fn cards(&self) -> Vec<Card> {
        let mut cards: Vec<Card> = Vec::new();
        for (_, judge) in &self.judges {
            let card = judge.card();
            if cards.iter().all(|known| known.rubric != card.rubric) {
                cards.push(card);
            }
        }
        cards
    }

    /// What the verdicts' numbers mean, by name.
    pub fn metrics(&self) -> BTreeMap<String, Metric> {
        // A rubric says more than a name does: CSRT's attack success is a score and no share.
        let metric = |own: &judge::Metric| Metric { scale: own.scale, better: own.better, ..Metric::known(own.name) };
        self.cards().iter().flat_map(|card| card.metrics).map(|own| (own.name.to_owned(), metric(own))).collect()
    }

    /// The NAME of `verdicts-NAME.jsonl`, and what a report says of it. `languages` are those that the judge is made for, where it names them.
    pub fn facts(&self, languages: Option<Vec<String>>) -> (String, JudgeFacts) {
        let cards = self.cards();
        let slug = slug(&cards);
        let joined = |part: &dyn Fn(&Card) -> String| cards.iter().map(part).collect::<Vec<_>>().join("+");
        let name = cards.first().map_or_else(String::new, |card| card.judge.clone());
        let translated_by = cards.first().and_then(|card| card.translator.clone());
        let mut caveats: Vec<String> = cards.iter().flat_map(|card| card.caveats.clone()).collect();
        caveats.dedup();
        let facts = JudgeFacts {
            rubric: joined(&|card| format!("{} {}", card.rubric, card.version)),
            prompt_sha256: Some(joined(&|card| card.prompt_sha256.clone())),
            heuristic: name == "keyword",
            name,
            languages,
            translated_by,
            parameters: cards.into_iter().fold(BTreeMap::new(), |mut all, card| {
                parameters::merge(&mut all, card.parameters);
                all
            }),
            caveats,
        };
        (slug, facts)
    }
}

impl Judge for ByKind<'_> {
    /// Of the first rubric; [`ByKind::facts`] speaks of all.
    fn card(&self) -> Card {
        self.judges[0].1.card()
    }

    fn tally(&self) -> Tally {
        let tallies = self.judges.iter().map(|(_, judge)| judge.tally());
        tallies
            .fold(Tally::default(), |sum, one| Tally { n_replies: sum.n_replies + one.n_replies, n_earlier: sum.n_earlier + one.n_earlier })
    }

    fn judge(&self, item: &Item, response: &Response, should_stop: ShouldStop<'_>) -> Result<Verdict, Failure> {
        match self.of(item.kind) {
            Some(judge) => judge.judge(item, response, should_stop),
            None => Err(Failure::Fatal(anyhow!("no rubric for prompts of the kind {:?}", item.kind))),
        }
    }
}

/// What came of judging.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    pub n_new: usize,
    /// Why verdicts could not be read, one text for each.
    pub unparsed: Vec<String>,
    /// New verdicts on replies that earlier runs were given.
    pub n_earlier: usize,
    pub stopped: bool,
}

/// Which responses are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Those without a verdict.
    Missing,
    /// And those whose verdict could not be read.
    Unparsed,
    /// All of them.
    All,
}

/// Has the responses of `bench` judged that `ask` names. A verdict that replaces another stands in the file behind it, where it counts as soon as it is
/// written; once all are there, the earlier ones go.
///
/// # Errors
/// The judge's failure; a verdict that cannot be written. What was written stands.
pub fn judge_bench(
    folder: &Path,
    bench: &LoadedBench,
    name: &str,
    judge: &dyn Judge,
    asking: &Asking<'_>,
    on_verdict: &dyn Fn(&Item, &Response, &Verdict),
) -> Result<Outcome> {
    let path = folder.join(verdicts_file(name));
    let stays = |verdict: &&Verdict| match asking.ask {
        Ask::Missing => true,
        Ask::Unparsed => verdict.unparsed.is_none(),
        Ask::All => false,
    };
    let known = || bench.verdicts.get(name).into_iter().flat_map(BTreeMap::values);
    let done: HashSet<Key> = known().filter(stays).map(|verdict| verdict.key.clone()).collect();
    let questions: Vec<(&Item, &Response)> =
        bench.items.iter().flat_map(|item| bench.responses_to(item).map(move |response| (item, response))).collect();
    let progress = Progress::new("judging", questions.len());
    progress.advance(done.len());
    let by_key: BTreeMap<&Key, (&Item, &Response)> = questions.iter().map(|&(item, response)| (&response.key, (item, response))).collect();
    let mut file = lines::Writer::open(&path)?;
    let mut unparsed = Vec::new();
    let outcome = judge_all(&questions, judge, &done, asking.n_at_once, asking.should_stop, &mut |mut verdict| {
        let (item, response) = by_key.get(&verdict.key).context("a verdict on a response that is not there")?;
        verdict.metrics.extend(language_match(response.last_said(), &item.lang).metric().map(|value| (LANGUAGE_MATCH.to_owned(), value)));
        file.append(&verdict)?;
        progress.advance(1);
        unparsed.extend(verdict.unparsed.clone());
        on_verdict(item, response, &verdict);
        Ok(())
    })?;
    file.sync()?;
    drop(file);
    if asking.ask != Ask::Missing && !outcome.stopped {
        leave_one_each(&path, &questions)?;
    }
    Ok(Outcome { n_new: outcome.n_judged, unparsed, n_earlier: judge.tally().n_earlier, stopped: outcome.stopped })
}

/// How responses are judged.
pub struct Asking<'a> {
    pub ask: Ask,
    pub n_at_once: usize,
    pub should_stop: ShouldStop<'a>,
}

/// Writes a file of verdicts anew, in the order of the questions, without those that later ones replace.
fn leave_one_each(path: &Path, questions: &[(&Item, &Response)]) -> Result<()> {
    let all = lines::read::<Verdict>(path)?.values;
    let n_all = all.len();
    let mut latest: BTreeMap<Key, Verdict> = all.into_iter().map(|verdict| (verdict.key.clone(), verdict)).collect();
    if latest.len() == n_all {
        return Ok(());
    }
    let in_order: Vec<Verdict> = questions.iter().filter_map(|(_, response)| latest.remove(&response.key)).collect();
    lines::write(path, &in_order)
}

/// Scores every response by the benchmark's rule.
///
/// # Errors
/// The benchmark has none; the file cannot be written.
pub fn score_bench(folder: &Path, loaded: &LoadedBench, bench: &dyn Benchmark) -> Result<()> {
    let scored = loaded.items.iter().flat_map(|item| loaded.responses_to(item).map(move |response| bench.score(item, response)));
    lines::write(&folder.join(verdicts_file(RULE)), &scored.collect::<Result<Vec<_>>>()?)
}

/// What a report says of a benchmark that scores itself.
pub fn rule() -> JudgeFacts {
    JudgeFacts { name: RULE.to_owned(), rubric: "exact".to_owned(), ..JudgeFacts::default() }
}

/// Whether a judge is asked at all.
pub fn needs_judge(bench: &dyn Benchmark) -> bool {
    matches!(bench.card().scoring, Scoring::Judge(_))
}

/// Counts what responses are, by language; with the verdicts of `judge`, where there are any.
pub fn count_kinds(bench: &mut LoadedBench, judge: Option<&str>) {
    let verdicts = judge.and_then(|judge| bench.verdicts.get(judge));
    let mut breakdown: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
    for item in &bench.items {
        for response in bench.responses_to(item).filter(|response| !response.answers.is_empty()) {
            let verdict = verdicts.and_then(|verdicts| verdicts.get(&response.key));
            let class = match response.is_unfinished_thought() {
                true => Class::UnfinishedThought,
                false => classify(response.last_said(), &item.lang, item.kind, verdict),
            };
            *breakdown.entry(item.lang.clone()).or_default().entry(class.title().to_owned()).or_default() += 1;
        }
    }
    bench.breakdown = breakdown;
    bench.breakdown_by = judge.filter(|_| verdicts.is_some()).map(str::to_owned);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::judge::local::Local;
    use crate::eval::judge::prompt::Prompt;
    use crate::eval::judge::{ModelJudge, rubric};
    use crate::eval::results::metric::Scale;

    #[test]
    fn a_rubric_says_more_of_its_metrics_than_their_names_do() {
        let transport = Local { identity: "guard:x".into(), generate: |_: &Prompt| Ok(None) };
        let [csrt, multijail] = ["csrt", "multijail"].map(|name| rubric::by_name(name).unwrap());
        let scale = |rubric| {
            let judge = Box::new(ModelJudge::new(rubric, &transport, None)) as Box<dyn Judge>;
            ByKind { judges: vec![(Kind::Harmful, judge)] }.metrics()["asr"].scale
        };
        assert_eq!((scale(&*csrt), scale(&*multijail)), (Scale::Score, Scale::Share));
    }
}
