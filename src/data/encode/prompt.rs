//! Prompts without an answer yet, for a model that is to give it.

use super::{Encoder, PLACEHOLDER};
use crate::data::pair::{Message, Role};
use crate::data::template::Thinking;
use anyhow::Result;

impl Encoder {
    /// A conversation as the template lays it out, up to where the assistant's next turn begins.
    ///
    /// # Errors
    /// The template refuses it, as some refuse a system message.
    pub fn chat_text(&self, messages: &[Message]) -> Result<String> {
        self.template.render(messages, true)
    }

    /// Turns thinking on or off in the prompts of [`Encoder::chat_text`].
    ///
    /// # Errors
    /// The template has no such switch.
    pub fn set_thinking(&mut self, thinking: Thinking) -> Result<()> {
        self.template.set_thinking(thinking)
    }

    /// Whether the template lets the model think before it answers; `None` where it does not say.
    pub fn thinking(&self) -> Option<bool> {
        self.template.thinking().ok().flatten()
    }

    /// The tokens of [`Encoder::chat_text`], as in training: special tokens that a turn spells are text, unless `data.special_tokens` says
    /// otherwise.
    pub fn chat_tokens(&self, messages: &[Message]) -> Result<Vec<u32>> {
        self.prompt_tokens(&self.template.render(&self.hidden_turns(messages)?, true)?)
    }

    /// The tokens of a text that is to be continued, special ones included, with BOS in front where the tokenizer wants it.
    pub fn text_tokens(&self, text: &str) -> Result<Vec<u32>> {
        self.prompt_tokens(text)
    }

    /// The tokens of what follows a prompt, by itself, as responses are tokenised in training.
    pub fn continuation_tokens(&self, text: &str) -> Result<Vec<u32>> {
        self.tokens(text)
    }

    /// The tokenizer's end-of-sequence token.
    pub fn eos_token(&self) -> Option<u32> {
        self.eos
    }

    /// The special token with which the template ends the assistant's turn (`<|eot_id|>`, `<|im_end|>`, `<end_of_turn>`). `None` where it
    /// ends turns with ordinary text, or does not take a conversation of one question and its answer.
    pub fn end_of_turn(&self) -> Option<u32> {
        let question = [Message { role: Role::User, content: PLACEHOLDER.into() }];
        let prompt = self.chat_text(&question).ok()?;
        let answer = self.response_text(&question, &prompt, PLACEHOLDER).ok()?;
        let (_, ending) = answer.rsplit_once(PLACEHOLDER)?;
        let first = *self.tokens(ending).ok()?.first()?;
        let added = self.tokenizer.get_added_tokens_decoder();
        added.get(&first).filter(|token| token.special).map(|_| first)
    }
}
