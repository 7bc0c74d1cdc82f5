//! What is asked of a model, and what it gives.

use super::sample::Sampling;
use super::thought::{self, Parts};
use crate::data::pair::Message;
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// What a model is to go on from.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// A conversation, laid out by the chat template.
    Chat(Vec<Message>),
    /// A text as it stands, special tokens included; BOS in front where the tokenizer wants it.
    Text(String),
    /// Tokens as they stand.
    Tokens(Vec<u32>),
}

/// One text to be generated.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub prompt: Prompt,
    pub sampling: Sampling,
    /// At least 1; the stop token counts.
    pub max_new_tokens: usize,
    /// The answer ends before the first of these; they are matched in text, wherever tokens begin and end, and not in a thought.
    pub stop: Vec<String>,
}

impl Request {
    /// The most likely token each time, without stop strings.
    pub fn greedy(prompt: Prompt, max_new_tokens: usize) -> Self {
        Self { prompt, sampling: Sampling::default(), max_new_tokens, stop: Vec::new() }
    }

    /// # Errors
    /// Says which value is outside its range.
    pub fn check(&self) -> Result<()> {
        ensure!(self.max_new_tokens > 0, "`max_new_tokens` is 0; at least one token is generated");
        ensure!(self.stop.iter().all(|stop| !stop.is_empty()), "a stop string is empty, and would end every text before it begins");
        self.sampling.check()
    }
}

/// Why a generated text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// A stop token or a stop string.
    Stop,
    /// The limit of new tokens, or of the model's positions.
    Length,
}

/// A generated text.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// With the thought before the answer ([`super::thought`] takes them apart), also the mark of one that the prompt opened. Without other special
    /// tokens, and without what a stop string cut off.
    pub text: String,
    /// Every token that was generated, a stop token included. None where the prompt left no position.
    pub tokens: Vec<u32>,
    /// Of each token under the model itself, whatever the sampling: nats, temperature 1, no penalty.
    pub log_probs: Vec<f32>,
    pub finish_reason: FinishReason,
    pub n_prompt_tokens: usize,
}

impl Completion {
    /// What was thought, and what is answered.
    pub fn parts(&self) -> Parts<'_> {
        thought::split(&self.text)
    }

    /// Of the whole text, nats.
    pub fn log_prob(&self) -> f64 {
        self.log_probs.iter().map(|&log_prob| f64::from(log_prob)).sum()
    }
}

/// What happens to a request, named by its index.
#[derive(Debug)]
pub enum Event<'a> {
    /// The text goes on by this; the pieces of a completion are its text.
    Text {
        index: usize,
        piece: &'a str,
    },
    Finished {
        index: usize,
        completion: Completion,
    },
}
