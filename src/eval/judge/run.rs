//! Many questions at once, and their verdicts in the order of the questions: the file is the same whatever the timing.
//!
//! A question that fails is its own fault while others are answered: then it is unparsed, and the run goes on. Where one after another fails and none
//! was answered, the endpoint is at fault: the run ends, and none of those questions has a verdict.

use super::gate::Unparsed;
use super::{Blame, Failure, Judge, ShouldStop, Suspect};
use crate::eval::item::Item;
use crate::eval::record::{Key, Response, Verdict};
use anyhow::{Context, Result, anyhow};
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

/// So many questions that an endpoint would not have, none being answered ever, are not asked wrongly one by one.
const MOST_REJECTED: usize = 5;
/// So many questions in a row without a reply after all attempts, none being answered meanwhile: the server is down.
const MOST_UNANSWERED: usize = 3;

/// One response to judge, with the item that it answers.
pub type Question<'a> = (&'a Item, &'a Response);

/// What came of a run that did not fail.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Verdicts given in this run.
    pub n_judged: usize,
    /// Among them, those without a readable verdict.
    pub n_unparsed: usize,
    /// Questions that had a verdict before.
    pub n_skipped: usize,
    /// The user stopped it; what was asked for is not complete.
    pub stopped: bool,
}

/// Judges all questions but those in `done`, `n_at_once` of them at a time, and hands every verdict to `on_verdict` in the questions'
/// order.
///
/// After a failure or a stop, nothing new is asked; verdicts that lie before the first missing one are still handed out, and replies
/// beyond it are in the judge's cache.
///
/// # Errors
///
/// The judge's first failure in the order of the questions, with the question's key; or what `on_verdict` returned.
pub fn judge_all(
    questions: &[Question<'_>],
    judge: &dyn Judge,
    done: &HashSet<Key>,
    n_at_once: usize,
    should_stop: ShouldStop<'_>,
    on_verdict: &mut dyn FnMut(Verdict) -> Result<()>,
) -> Result<Outcome> {
    let left: Vec<Question<'_>> = questions.iter().copied().filter(|(_, response)| !done.contains(&response.key)).collect();
    let mut outcome = Outcome { n_skipped: questions.len() - left.len(), ..Outcome::default() };
    let next = AtomicUsize::new(0);
    let is_over = AtomicBool::new(false);
    let ends = || is_over.load(Ordering::Relaxed) || should_stop();
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..n_at_once.clamp(1, left.len().max(1)) {
            let (sender, left, next, ends) = (sender.clone(), &left, &next, &ends);
            scope.spawn(move || {
                while !ends() {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some((item, response)) = left.get(at) else { return };
                    // Nobody listens any more once the run has failed.
                    if sender.send((at, judge.judge(item, response, ends))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let delivery = Delivery { left: &left, judge, is_over: &is_over, has_verdicts: outcome.n_skipped > 0, waiting: BTreeMap::new() };
        let result = delivery.run(receiver, &mut outcome, on_verdict);
        is_over.store(true, Ordering::Relaxed);
        result
    })?;
    outcome.stopped = outcome.n_judged < left.len();
    Ok(outcome)
}

/// What arrived and has not been handed out.
struct Delivery<'a> {
    left: &'a [Question<'a>],
    judge: &'a dyn Judge,
    is_over: &'a AtomicBool,
    /// This judge gave some in an earlier run: its address and its name are right.
    has_verdicts: bool,
    waiting: BTreeMap<usize, Arrived>,
}

enum Arrived {
    Verdict(Verdict),
    Failed(Failure),
    /// With the number of replies that there were by then.
    Suspect(Suspect, usize),
}

impl Delivery<'_> {
    /// Hands out what arrives, in order, until something is missing for good.
    fn run(
        mut self,
        receiver: mpsc::Receiver<(usize, Result<Verdict, Failure>)>,
        outcome: &mut Outcome,
        on_verdict: &mut dyn FnMut(Verdict) -> Result<()>,
    ) -> Result<()> {
        for (at, result) in receiver {
            let arrived = match result {
                Ok(verdict) => Arrived::Verdict(verdict),
                Err(Failure::Declined(reason)) => Arrived::Verdict(unparsed(self.left[at].1, reason)),
                Err(Failure::Suspect(suspect)) => Arrived::Suspect(suspect, self.judge.tally().n_replies),
                Err(failure) => {
                    self.is_over.store(true, Ordering::Relaxed);
                    Arrived::Failed(failure)
                }
            };
            self.waiting.insert(at, arrived);
            self.hand_out(false, outcome, on_verdict)?;
            self.ensure_endpoint_answers()?;
        }
        // Nobody else will be asked: what is still suspect is decided by what there is.
        let n_left = self.left.len() - outcome.n_judged;
        let is_whole = self.waiting.len() == n_left && !self.waiting.values().any(|arrived| matches!(arrived, Arrived::Failed(_)));
        if is_whole {
            self.hand_out(true, outcome, on_verdict)?;
        }
        // Others may have failed at once; the first in order speaks, unless it only stopped because another failed.
        let fatal = std::mem::take(&mut self.waiting).into_iter().find_map(|(at, arrived)| match arrived {
            Arrived::Failed(Failure::Fatal(error)) => Some(error.context(name(self.left, at))),
            Arrived::Suspect(suspect, _) if is_whole => Some(anyhow!(suspect.error).context(name(self.left, at))),
            _ => None,
        });
        fatal.map_or(Ok(()), Err)
    }

    fn hand_out(&mut self, is_end: bool, outcome: &mut Outcome, on_verdict: &mut dyn FnMut(Verdict) -> Result<()>) -> Result<()> {
        while let Some(arrived) = self.waiting.remove(&outcome.n_judged) {
            let verdict = match arrived {
                Arrived::Verdict(verdict) => verdict,
                Arrived::Suspect(suspect, n_replies) if self.is_the_questions_fault(&suspect, n_replies, is_end) => {
                    unparsed(self.left[outcome.n_judged].1, suspect.unparsed)
                }
                Arrived::Failed(Failure::Fatal(error)) => return Err(error).with_context(|| name(self.left, outcome.n_judged)),
                waits => {
                    self.waiting.insert(outcome.n_judged, waits);
                    return Ok(());
                }
            };
            outcome.n_unparsed += usize::from(verdict.unparsed.is_some());
            on_verdict(verdict)?;
            outcome.n_judged += 1;
        }
        Ok(())
    }

    fn is_the_questions_fault(&self, suspect: &Suspect, n_replies: usize, is_end: bool) -> bool {
        let now = self.judge.tally();
        match suspect.blame {
            Blame::Question => is_end || self.has_answered(),
            Blame::Endpoint => now.n_replies > if is_end { 0 } else { n_replies },
        }
    }

    /// Whether the judge ever said something.
    fn has_answered(&self) -> bool {
        let tally = self.judge.tally();
        self.has_verdicts || tally.n_replies > 0 || tally.n_earlier > 0
    }

    /// # Errors
    /// Question after question failed, and none was answered.
    fn ensure_endpoint_answers(&self) -> Result<()> {
        let n_replies = self.judge.tally().n_replies;
        let suspects = |blame: Blame| {
            self.waiting.iter().filter_map(move |(at, arrived)| match arrived {
                Arrived::Suspect(suspect, n_then) if suspect.blame == blame && (blame == Blame::Question || *n_then == n_replies) => {
                    Some((*at, suspect))
                }
                _ => None,
            })
        };
        for (blame, most, what) in
            [(Blame::Question, MOST_REJECTED, "was answered"), (Blame::Endpoint, MOST_UNANSWERED, "was answered meanwhile")]
        {
            let n = suspects(blame).count();
            if n < most || blame == Blame::Question && self.has_answered() {
                continue;
            }
            self.is_over.store(true, Ordering::Relaxed);
            let Some((at, suspect)) = suspects(blame).next() else { continue };
            return Err(anyhow!("{}", suspect.error).context(format!("{n} questions failed and none {what}")).context(name(self.left, at)));
        }
        Ok(())
    }
}

fn unparsed(response: &Response, unparsed: Unparsed) -> Verdict {
    let raw = unparsed.said.clone().into_iter().collect();
    Verdict { key: response.key.clone(), label: None, metrics: BTreeMap::new(), unparsed: Some(unparsed.into()), raw }
}

fn name(left: &[Question<'_>], at: usize) -> String {
    let key = left.get(at).map(|(_, response)| &response.key);
    key.map_or_else(String::new, |key| format!("judging {} {} `{}`", key.bench, key.lang, key.id))
}

#[cfg(test)]
mod tests {
    use super::super::Card;
    use super::*;
    use crate::eval::item::Kind;
    use serde_json::Value;
    use std::time::Duration;

    /// Takes longer for earlier questions, so that later ones are ready first.
    struct Slow {
        n: usize,
        fails_at: Option<usize>,
        asked: AtomicUsize,
    }

    impl Judge for Slow {
        fn card(&self) -> Card {
            let (labels, metrics, caveats) = (&[][..], &[][..], vec![]);
            let (judge, prompt_sha256) = ("slow".into(), String::new());
            let parameters = BTreeMap::new();
            Card { judge, rubric: "slow", version: "1", prompt_sha256, labels, metrics, translator: None, parameters, caveats }
        }

        fn judge(&self, item: &Item, response: &Response, should_stop: ShouldStop<'_>) -> Result<Verdict, Failure> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            let id: usize = item.id.parse().unwrap();
            std::thread::sleep(Duration::from_millis(((self.n - id) % 5) as u64));
            match self.fails_at {
                Some(at) if at == id => Err(Failure::Fatal(anyhow::anyhow!("no network"))),
                Some(at) if id > at && should_stop() => Err(Failure::Stopped),
                _ => {
                    let unparsed = (id % 10 == 3).then(|| "unclear".to_owned());
                    Ok(Verdict { key: response.key.clone(), label: None, metrics: BTreeMap::new(), unparsed, raw: vec![] })
                }
            }
        }
    }

    fn slow(n: usize, fails_at: Option<usize>) -> Slow {
        Slow { n, fails_at, asked: AtomicUsize::new(0) }
    }

    fn questions(n: usize) -> Vec<(Item, Response)> {
        let key = |id: usize| Key { bench: "b".into(), lang: "sw".into(), id: id.to_string(), sample: 0 };
        let item = |id: usize| Item {
            id: id.to_string(),
            lang: "sw".into(),
            kind: Kind::Harmful,
            turns: vec!["q".into()],
            english: vec![],
            target: None,
            choices: vec![],
            tags: vec![],
            temperature: None,
            doc: Value::Null,
        };
        let response = |id| Response { key: key(id), prompt_sha256: String::new(), answers: vec![], choice_log_probs: vec![] };
        (0..n).map(|id| (item(id), response(id))).collect()
    }

    fn ids(verdicts: &[Verdict]) -> Vec<usize> {
        verdicts.iter().map(|verdict| verdict.key.id.parse().unwrap()).collect()
    }

    #[test]
    fn verdicts_come_in_order_whatever_the_timing() {
        let all = questions(40);
        let pairs: Vec<Question<'_>> = all.iter().map(|(item, response)| (item, response)).collect();
        for n_at_once in [1, 3, 16, 100] {
            let mut verdicts = Vec::new();
            let done: HashSet<Key> = [&all[0], &all[7]].map(|(_, response)| response.key.clone()).into();
            let judge = slow(40, None);
            let outcome = judge_all(&pairs, &judge, &done, n_at_once, &|| false, &mut |verdict| {
                verdicts.push(verdict);
                Ok(())
            });
            assert_eq!(outcome.unwrap(), Outcome { n_judged: 38, n_unparsed: 4, n_skipped: 2, stopped: false });
            assert!(ids(&verdicts).into_iter().eq((0..40).filter(|id| ![0, 7].contains(id))));
            assert_eq!(judge.asked.load(Ordering::SeqCst), 38);
        }
        let outcome = judge_all(&[], &slow(0, None), &HashSet::new(), 4, &|| false, &mut |_| Ok(()));
        assert_eq!(outcome.unwrap(), Outcome::default());
    }

    #[test]
    fn a_failure_keeps_what_lies_before_it() {
        let all = questions(60);
        let pairs: Vec<Question<'_>> = all.iter().map(|(item, response)| (item, response)).collect();
        for n_at_once in [1, 8] {
            let mut verdicts = Vec::new();
            let judge = slow(60, Some(20));
            let error = judge_all(&pairs, &judge, &HashSet::new(), n_at_once, &|| false, &mut |verdict| {
                verdicts.push(verdict);
                Ok(())
            });
            let text = format!("{:#}", error.unwrap_err());
            assert!(text.contains("judging b sw `20`") && text.contains("no network"), "{text}");
            assert!(ids(&verdicts).into_iter().eq(0..20), "{:?}", ids(&verdicts));
            assert!(judge.asked.load(Ordering::SeqCst) <= 20 + 2 * n_at_once, "nothing new is asked");
        }
    }

    #[test]
    fn a_stop_is_no_failure() {
        let all = questions(60);
        let pairs: Vec<Question<'_>> = all.iter().map(|(item, response)| (item, response)).collect();
        let n = AtomicUsize::new(0);
        let stop = || n.load(Ordering::SeqCst) >= 10;
        let mut verdicts = Vec::new();
        let outcome = judge_all(&pairs, &slow(60, None), &HashSet::new(), 4, &stop, &mut |verdict| {
            verdicts.push(verdict);
            n.fetch_add(1, Ordering::SeqCst);
            Ok(())
        })
        .unwrap();
        assert!(outcome.stopped && (10..30).contains(&outcome.n_judged), "{outcome:?}");
        assert!(ids(&verdicts).into_iter().eq(0..outcome.n_judged));
    }

    #[test]
    fn a_full_disk_ends_the_run() {
        let all = questions(30);
        let pairs: Vec<Question<'_>> = all.iter().map(|(item, response)| (item, response)).collect();
        let judge = slow(30, None);
        let error = judge_all(&pairs, &judge, &HashSet::new(), 4, &|| false, &mut |_| anyhow::bail!("disk full")).unwrap_err();
        assert!(error.to_string().contains("disk full"));
        assert!(judge.asked.load(Ordering::SeqCst) < 30);
    }
}
