//! The first phase: a model answers the prompts of a benchmark.
//!
//! A response is in the file as soon as it is whole, in the order in which responses end; when all are there, the file is put into the order of the items.
//! So a run that was killed and went on leaves the same file as one that was not.

use super::asked::Asked;
use super::bench::Benchmark;
use super::item::Item;
use super::lines;
use super::record::{Answer, Key, Response};
use crate::data::pair::{Message, Role};
use crate::digest::hex;
use crate::generate::{Choices, Completion, Event, Generator, Prompt, Request, Sampling};
use crate::progress::Progress;
use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::iter;
use std::ops::ControlFlow;
use std::path::Path;

/// A benchmark's prompts, and who answers them.
pub struct Answering<'a> {
    pub bench: &'a dyn Benchmark,
    pub items: &'a [Item],
    pub asked: &'a Asked,
    /// Of a turn, thought and answer.
    pub max_new_tokens: usize,
    pub generator: Generator<'a>,
    /// Whether the user wants to stop; what is under way is then given up.
    pub should_stop: &'a dyn Fn() -> bool,
    /// Is shown each response that is new.
    pub on_response: &'a dyn Fn(&Item, &Response),
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Responses that this call gave.
    pub n_new: usize,
    /// Responses that there were before.
    pub n_before: usize,
    /// Responses that are still missing.
    pub n_missing: usize,
}

/// A response under way: the turns that are answered.
struct Job<'a> {
    item: &'a Item,
    key: Key,
    prompt_sha256: String,
    answers: Vec<Answer>,
}

impl<'a> Answering<'a> {
    /// Answers what has no response in the file `path` yet.
    ///
    /// # Errors
    /// A response that cannot be written; a prompt that the chat template refuses, or other errors of generation. What was written stands.
    pub fn run(&self, path: &Path) -> Result<Outcome> {
        let before: Vec<Response> = if path.exists() { lines::read(path)?.values } else { Vec::new() };
        let done: HashSet<&Key> = before.iter().map(|response| &response.key).collect();
        let all = self.jobs();
        let n_all = all.len();
        let left: Vec<Job> = all.into_iter().filter(|job| !done.contains(&job.key)).collect();
        let mut outcome = Outcome { n_new: 0, n_before: n_all - left.len(), n_missing: left.len() };
        if left.is_empty() {
            // The end may have come between the last response and its place.
            self.put_in_order(path)?;
            return Ok(outcome);
        }
        let progress = Progress::new("answering", left.len());
        let mut file = lines::Writer::open(path)?;
        let mut keep = |job: Job, choice_log_probs: Vec<f64>| {
            let response = Response { key: job.key, prompt_sha256: job.prompt_sha256, answers: job.answers, choice_log_probs };
            file.append(&response)?;
            outcome.n_new += 1;
            outcome.n_missing -= 1;
            progress.advance(1);
            (self.on_response)(job.item, &response);
            Ok(())
        };
        if self.items.iter().any(|item| !item.choices.is_empty()) {
            self.choose(left, &mut keep)?;
        } else {
            self.generate(left, &mut keep)?;
        }
        file.sync()?;
        if outcome.n_missing == 0 {
            self.put_in_order(path)?;
        }
        Ok(outcome)
    }

    /// One for each item and sample, in the order of the file when it is whole.
    fn jobs(&self) -> Vec<Job<'a>> {
        let bench = self.bench.card().name;
        let job = |item: &'a Item, sample| {
            let key = Key { bench: bench.into(), lang: item.lang.clone(), id: item.id.clone(), sample };
            Job { item, key, prompt_sha256: String::new(), answers: Vec::new() }
        };
        self.items.iter().flat_map(|item| (0..self.asked.n_samples.max(1)).map(move |sample| job(item, sample))).collect()
    }

    fn put_in_order(&self, path: &Path) -> Result<()> {
        let order: Vec<Key> = self.jobs().into_iter().map(|job| job.key).collect();
        let place: HashMap<&Key, usize> = order.iter().enumerate().map(|(place, key)| (key, place)).collect();
        let mut responses: Vec<Response> = lines::read(path)?.values;
        responses.sort_by_key(|response| place.get(&response.key).copied());
        lines::write(path, &responses)
    }

    /// A conversation of several turns goes on as soon as one is answered, before new ones are begun.
    fn generate(&self, left: Vec<Job<'a>>, keep: &mut dyn FnMut(Job, Vec<f64>) -> Result<()>) -> Result<()> {
        let waiting = RefCell::new(VecDeque::from(left));
        let under_way: RefCell<Vec<Option<Job>>> = RefCell::new(Vec::new());
        let failure = RefCell::new(None);
        let requests = iter::from_fn(|| {
            let mut job = waiting.borrow_mut().pop_front().filter(|_| !(self.should_stop)())?;
            let request = self.request(&mut job).map_err(|error| failure.replace(Some(error))).ok()?;
            under_way.borrow_mut().push(Some(job));
            Some(request)
        });
        self.generator.run(requests, |event| {
            if (self.should_stop)() {
                return Ok(ControlFlow::Break(()));
            }
            let Event::Finished { index, completion } = event else { return Ok(ControlFlow::Continue(())) };
            let mut job = under_way.borrow_mut()[index].take().context("a request is answered once")?;
            job.answers.push(answer(completion));
            if job.answers.len() < job.item.turns.len() {
                waiting.borrow_mut().push_front(job);
            } else {
                keep(job, Vec::new())?;
            }
            Ok(ControlFlow::Continue(()))
        })?;
        failure.into_inner().map_or(Ok(()), Err)
    }

    /// The next turn of a conversation.
    fn request(&self, job: &mut Job) -> Result<Request> {
        let message = |role, text: &str| Message { role, content: text.to_owned() };
        let mut messages = Vec::new();
        for (turn, text) in job.item.turns.iter().enumerate().take(job.answers.len() + 1) {
            messages.push(message(Role::User, text));
            // Chat templates drop thoughts of earlier turns, those that know of thoughts at all.
            messages.extend(job.answers.get(turn).map(|answer| message(Role::Assistant, answer.said())));
        }
        let prompt = Prompt::Chat(messages);
        if job.prompt_sha256.is_empty() {
            job.prompt_sha256 = self.prompt_sha256(&prompt).with_context(|| format!("prompt `{}` in `{}`", job.key.id, job.key.lang))?;
        }
        let sampling = Sampling {
            temperature: self.asked.temperature.or(job.item.temperature).unwrap_or(0.0),
            top_p: self.asked.top_p.unwrap_or(1.0),
            seed: seed(self.asked.seed, &job.key, job.answers.len()),
            ..Sampling::default()
        };
        Ok(Request { prompt, sampling, max_new_tokens: self.max_new_tokens, stop: self.bench.stops(&job.item.lang) })
    }

    /// The log-probability of every choice, behind the prompt.
    fn choose(&self, left: Vec<Job<'a>>, keep: &mut dyn FnMut(Job, Vec<f64>) -> Result<()>) -> Result<()> {
        let mut left = left.into_iter();
        loop {
            let mut jobs: Vec<Job> = left.by_ref().take(self.generator.batch_size.max(1)).collect();
            if jobs.is_empty() || (self.should_stop)() {
                return Ok(());
            }
            let mut choices = Vec::with_capacity(jobs.len());
            for job in &mut jobs {
                let turns = job.item.turns.iter().map(|turn| Message { role: Role::User, content: turn.clone() });
                let prompt = Prompt::Chat(turns.collect());
                job.prompt_sha256 = self.prompt_sha256(&prompt)?;
                choices.push(Choices { prompt, continuations: job.item.choices.clone() });
            }
            for (job, log_probs) in jobs.into_iter().zip(self.generator.log_probs(&choices)?) {
                keep(job, log_probs)?;
            }
        }
    }

    fn prompt_sha256(&self, prompt: &Prompt) -> Result<String> {
        let tokens = self.generator.codec.tokens(prompt)?;
        Ok(hex(&Sha256::digest(tokens.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<u8>>())))
    }
}

fn answer(completion: Completion) -> Answer {
    Answer { n_tokens: completion.tokens.len(), text: completion.text, finish_reason: completion.finish_reason }
}

/// What the random choices of one answer follow from: the same whatever else is asked.
fn seed(seed: u64, key: &Key, turn: usize) -> u64 {
    let Key { bench, lang, id, sample } = key;
    let digest = Sha256::digest(format!("{seed}\n{bench}\n{lang}\n{id}\n{sample}\n{turn}"));
    digest.iter().take(8).fold(0, |seed, &byte| seed << 8 | u64::from(byte))
}
