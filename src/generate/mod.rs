//! Generation: texts that a model goes on with, many at a time.
//!
//! ```text
//! conversation or text   codec   -> prompt tokens
//! prompts                engine  -> a cache each, read by the packed forward of training
//! caches                 engine  -> one more token of every sequence, by a forward that reads each weight once
//! logits                 sample  -> the token, and its log-probability under the model
//! tokens                 text    -> text piece by piece, up to a stop string
//! text                   thought -> what the model thought, and what it answers
//! ```
//!
//! A sequence that ends makes room for the next request at once (continuous batching), and there is no padding. What a request gives does not
//! depend on which others are under way, on their order, or on the number of threads, bit for bit; a random choice is a function of the request's
//! seed and of how many tokens came before.
//!
//! [`Generator`] borrows a decoder that is in memory, as that of a training run; [`Loaded`] is one from a model folder.

mod choices;
mod codec;
mod engine;
mod request;
mod sample;
mod text;
pub mod thought;

pub use choices::Choices;
pub use codec::Codec;
pub use engine::{Engine, NewToken, TokenRequest};
pub use request::{Completion, Event, FinishReason, Prompt, Request};
pub use sample::Sampling;

use crate::adapter::load_model;
use crate::config::DataConfig;
use crate::data::pair::Message;
use crate::data::template::Thinking;
use crate::hub::ModelFiles;
use crate::model::decoder::{Decoder, Purpose};
use crate::ops::Place;
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use text::Text;

/// Sequences under way at once, where nobody says otherwise: reading a weight once for so many is most of the gain, and their caches are small.
pub const DEFAULT_BATCH_SIZE: usize = 16;

/// A model that gives texts: a decoder, and what lies between its tokens and text.
#[derive(Clone, Copy)]
pub struct Generator<'a> {
    pub model: &'a Decoder,
    pub codec: &'a Codec,
    /// Sequences under way at once, at least 1. It changes the speed and no result.
    pub batch_size: usize,
}

/// A [`Generator`]'s parts, from a model folder.
pub struct Loaded {
    pub model: Decoder,
    pub codec: Codec,
}

impl Loaded {
    /// The model in `files`, with the adapter in the folder `adapter` beside it, if there is one. Of `data` the template counts.
    ///
    /// # Errors
    /// As [`load_model`] and [`Codec::load`].
    pub fn load(files: &ModelFiles, adapter: Option<&Path>, place: impl Into<Place>, data: &DataConfig) -> Result<Self> {
        Self::load_thinking(files, adapter, place, data, None)
    }

    /// The same with thinking turned on or off.
    ///
    /// # Errors
    /// Also those of [`Codec::with_thinking`].
    pub fn load_thinking(
        files: &ModelFiles,
        adapter: Option<&Path>,
        place: impl Into<Place>,
        data: &DataConfig,
        thinking: Option<Thinking>,
    ) -> Result<Self> {
        // The tokenizer first: what is wrong with it shows before gigabytes are read.
        let codec = Codec::load(&files.dir, data)?.with_thinking(thinking)?;
        Ok(Self { model: load_model(files, adapter, place, Purpose::Inference)?, codec })
    }

    pub fn generator(&self) -> Generator<'_> {
        Generator::new(&self.model, &self.codec)
    }
}

/// A request under way.
struct Pending<'a> {
    text: Text<'a>,
    tokens: Vec<u32>,
    log_probs: Vec<f32>,
    n_prompt_tokens: usize,
    max_new_tokens: usize,
}

impl<'a> Generator<'a> {
    pub fn new(model: &'a Decoder, codec: &'a Codec) -> Self {
        Self { model, codec, batch_size: DEFAULT_BATCH_SIZE }
    }

    /// Answers every request and says so as it happens: pieces of text, then the whole completion, by the request's index. Completions come in the
    /// order in which they end. `on_event` may stop all work.
    ///
    /// # Errors
    /// A request that cannot be met (its index is named), an error of `on_event`, logits that are not numbers. Completions that `on_event` was
    /// given stand.
    pub fn run(
        &self,
        requests: impl IntoIterator<Item = Request>,
        mut on_event: impl FnMut(Event<'_>) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let mut requests = requests.into_iter().enumerate();
        let mut engine = Engine::new(self.model);
        let mut pending: HashMap<usize, Pending> = HashMap::new();
        loop {
            let mut admitted = Vec::new();
            while engine.len() + admitted.len() < self.batch_size.max(1) {
                let Some((index, request)) = requests.next() else { break };
                let (request, new) = self.prepare(request).with_context(|| format!("request {index}"))?;
                if request.prompt.len() >= self.model.description().max_positions {
                    let completion = new.completion(FinishReason::Length);
                    if on_event(Event::Finished { index, completion })?.is_break() {
                        return Ok(());
                    }
                    continue;
                }
                pending.insert(index, new);
                admitted.push((index, request));
            }
            let tokens = if admitted.is_empty() { engine.step()? } else { engine.admit(admitted)? };
            if tokens.is_empty() {
                return Ok(());
            }
            for token in tokens {
                let index = token.id;
                let state = pending.get_mut(&index).context("the engine knows a sequence that nobody asked for")?;
                let finished = self.accept(state, &token);
                let piece = state.text.take_piece(finished.is_some());
                if !piece.is_empty() && on_event(Event::Text { index, piece })?.is_break() {
                    return Ok(());
                }
                let Some(reason) = finished else { continue };
                engine.remove(index);
                let Some(state) = pending.remove(&index) else { continue };
                if on_event(Event::Finished { index, completion: state.completion(reason) })?.is_break() {
                    return Ok(());
                }
            }
        }
    }

    /// All completions, in the order of the requests.
    ///
    /// # Errors
    /// As [`Generator::run`].
    pub fn complete(&self, requests: impl IntoIterator<Item = Request>) -> Result<Vec<Completion>> {
        let mut completions = Vec::new();
        self.run(requests, |event| {
            if let Event::Finished { index, completion } = event {
                completions.push((index, completion));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        completions.sort_by_key(|(index, _)| *index);
        Ok(completions.into_iter().map(|(_, completion)| completion).collect())
    }

    /// The greedy answer to a conversation, as text, and how it ended: what a judge in this process says. `None` where the conversation alone is longer
    /// than the model can read.
    ///
    /// # Errors
    /// As [`Generator::run`].
    pub fn answer(&self, messages: &[Message], max_new_tokens: usize) -> Result<Option<(String, FinishReason)>> {
        let request = Request::greedy(Prompt::Chat(messages.to_vec()), max_new_tokens);
        let completion = self.complete([request])?.pop().context("one request has one completion")?;
        Ok((!completion.tokens.is_empty()).then_some((completion.text, completion.finish_reason)))
    }

    fn prepare(&self, request: Request) -> Result<(TokenRequest, Pending<'a>)> {
        request.check()?;
        let prompt = self.codec.tokens(&request.prompt)?;
        let pending = Pending {
            text: Text::new(self.codec.tokenizer(), self.codec.marks(), self.codec.left_open(&prompt), request.stop),
            tokens: Vec::new(),
            log_probs: Vec::new(),
            n_prompt_tokens: prompt.len(),
            max_new_tokens: request.max_new_tokens,
        };
        Ok((TokenRequest { prompt, sampling: request.sampling }, pending))
    }

    /// Adds a token; says why the text ends with it, if it does.
    fn accept(&self, state: &mut Pending, new: &NewToken) -> Option<FinishReason> {
        state.tokens.push(new.token);
        state.log_probs.push(new.log_prob);
        if self.codec.is_stop(new.token) {
            return Some(FinishReason::Stop);
        }
        if state.text.push(new.token).is_break() {
            return Some(FinishReason::Stop);
        }
        let is_full = state.n_prompt_tokens + state.tokens.len() >= self.model.description().max_positions;
        (is_full || state.tokens.len() >= state.max_new_tokens).then_some(FinishReason::Length)
    }
}

impl Pending<'_> {
    fn completion(self, finish_reason: FinishReason) -> Completion {
        let Self { text, tokens, log_probs, n_prompt_tokens, .. } = self;
        Completion { text: text.finish(), tokens, log_probs, finish_reason, n_prompt_tokens }
    }
}
