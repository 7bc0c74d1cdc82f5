//! Greedy answers to the canaries, and what can be told of a text without a judge.

use super::prompts::Prompts;
use crate::data::pair::{Message, Role};
use crate::eval::breakdown::{Class, LanguageMatch, classify, language_match, repetition};
use crate::eval::item::Kind;
use crate::generate::thought;
use crate::generate::{Codec, Completion, Event, FinishReason, Generator, Prompt, Request};
use crate::interrupt;
use crate::model::decoder::Decoder;
use crate::progress::Progress;
use anyhow::{Context, Result};
use serde::Serialize;
use std::ops::ControlFlow;

/// The answer to every prompt, in their order.
pub struct Asked {
    pub answers: Vec<Completion>,
}

/// A line of `OUT/canary/step-000010.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Record {
    pub id: String,
    pub lang: String,
    pub prompt: String,
    /// All that the model wrote, its thought too.
    pub answer: String,
    /// A stop token counts.
    pub n_tokens: usize,
    pub finish_reason: FinishReason,
    #[serde(flatten)]
    pub look: Look,
}

/// What a text is, going by the same rules as `mpo eval`'s breakdown.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Look {
    /// By its first words: a heuristic.
    pub is_refusal: bool,
    /// Its first words do not decide whether it refuses.
    pub is_unclear: bool,
    /// A loop, or nothing.
    pub is_repetitive_or_empty: bool,
    /// Whether it is in the prompt's language; `None` where that cannot be told.
    pub is_in_language: Option<bool>,
    /// Share of the text that says again what it said before.
    pub repetition: f64,
}

/// Looks at an answer to a benign prompt in `lang`, behind the thought that the model may have had before it.
pub fn look_at(text: &str, lang: &str) -> Look {
    let text = thought::answer(text);
    let class = classify(text, lang, Kind::Benign, None);
    let is_in_language = match language_match(text, lang) {
        LanguageMatch::Same => Some(true),
        LanguageMatch::Other(_) => Some(false),
        LanguageMatch::Unknown => None,
    };
    Look {
        is_refusal: class == Class::Refusal,
        is_unclear: class == Class::Unclear,
        is_repetitive_or_empty: class == Class::RepetitiveOrEmpty,
        is_in_language,
        repetition: repetition(text),
    }
}

impl Asked {
    /// Lets the model answer every prompt, the most likely token each time; `None` where Ctrl-C came between.
    pub fn of(model: &Decoder, codec: &Codec, prompts: &Prompts) -> Result<Option<Self>> {
        let request = |prompt: &super::Prompt| {
            let message = Message { role: Role::User, content: prompt.text.clone() };
            Request::greedy(Prompt::Chat(vec![message]), prompts.max_new_tokens)
        };
        let progress = Progress::new("asking the canaries", prompts.all.len());
        let mut answers: Vec<Option<Completion>> = prompts.all.iter().map(|_| None).collect();
        let generator = Generator::new(model, codec);
        generator
            .run(prompts.all.iter().map(request), |event| {
                if let Event::Finished { index, completion } = event {
                    answers[index] = Some(completion);
                    progress.advance(1);
                }
                Ok(if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })
            .context("asking the canaries")?;
        // All of them may be there although Ctrl-C came with the last one.
        Ok(answers.into_iter().collect::<Option<Vec<_>>>().map(|answers| Self { answers }))
    }

    /// The text of an answer, and its length in tokens.
    pub fn answer(&self, prompt: usize) -> (&str, usize) {
        let Completion { text, tokens, .. } = &self.answers[prompt];
        (text, tokens.len())
    }

    /// What is written of them.
    pub fn records(&self, prompts: &Prompts) -> Vec<Record> {
        let record = |(prompt, answer): (&super::Prompt, &Completion)| Record {
            id: prompt.id.clone(),
            lang: prompt.lang.clone(),
            prompt: prompt.text.clone(),
            answer: answer.text.clone(),
            n_tokens: answer.tokens.len(),
            finish_reason: answer.finish_reason,
            look: look_at(&answer.text, &prompt.lang),
        };
        prompts.all.iter().zip(&self.answers).map(record).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_told_of_a_text() {
        let sentence = "Kwanza changanya unga na maji vizuri, kisha acha unga upumzike kwa saa moja.";
        let look = |text: &str| {
            let Look { is_refusal, is_repetitive_or_empty, is_in_language, .. } = look_at(text, "sw");
            (is_refusal, is_repetitive_or_empty, is_in_language)
        };
        assert_eq!(look(sentence), (false, false, Some(true)));
        assert_eq!(look("Samahani, siwezi kukusaidia na hilo."), (true, false, Some(true)));
        // A refusal in another language counts as both.
        assert_eq!(look("I'm sorry, but I can't help you with that request."), (true, false, Some(false)));
        assert_eq!(look("First mix the flour with the water, then let the dough rest."), (false, false, Some(false)));
        assert!(look(&sentence.repeat(9)).1);
        assert_eq!(look(" \n"), (false, true, None));
        // A thought is no answer: neither what it says nor that there is nothing behind it goes by its words.
        assert_eq!(look(&format!("<think>I can't help with that.</think>\n{sentence}")), (false, false, Some(true)));
        assert_eq!(look("<think>They ask about bread, and that is fine, so I say how."), (false, true, None));
    }
}
