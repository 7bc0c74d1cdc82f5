//! What `mpo generate` and `mpo chat` share: the model that speaks, how it draws, and its text on a terminal.

use super::print;
use crate::cli::SpeakerArgs;
use crate::config::{ComputeDtype, DataConfig, HardwareConfig};
use crate::data::pair::{Message, Role};
use crate::data::template::Thinking;
use crate::escape::escape_for_terminal;
use crate::generate::{Completion, Event, FinishReason, Generator, Loaded, Prompt, Request, Sampling, thought};
use crate::hub;
use anyhow::{Context, Result};
use std::io::IsTerminal;
use std::ops::ControlFlow;

/// Longest answer where nobody says otherwise, in tokens.
const ANSWER_TOKENS: usize = 512;

/// The model, its tokenizer and its template.
pub(super) fn load(args: &SpeakerArgs) -> Result<Loaded> {
    let files = hub::resolve_model(&args.model, args.revision.as_deref())?;
    let dtype = if args.dtype == "bf16" { ComputeDtype::Bf16 } else { ComputeDtype::F32 };
    let data = DataConfig { template: args.template.clone(), ..DataConfig::default() };
    // What is wrong with a template is said of the key of a run's configuration.
    let hint = || format!("cannot load `{}`\nhint: `data.template` is `--template` here", args.model);
    let thinking = args.thinking.as_deref().map(Thinking::by_name).transpose()?;
    Loaded::load_thinking(&files, args.adapter.as_deref(), dtype, &data, thinking).map_err(|error| {
        match format!("{error:#}").contains("`data.template`") {
            true => error.context(hint()),
            false => error,
        }
    })
}

pub(super) fn hardware(args: &SpeakerArgs) -> HardwareConfig {
    HardwareConfig { threads: args.threads.map(Into::into), ..HardwareConfig::default() }
}

/// How long an answer may be: longer where the template asks for a thought before it.
pub(super) fn max_new_tokens(args: &SpeakerArgs, generator: &Generator<'_>) -> usize {
    let room = if generator.codec.thinks() == Some(true) { thought::ROOM } else { 0 };
    args.max_new_tokens.unwrap_or(ANSWER_TOKENS + room)
}

pub(super) fn request(args: &SpeakerArgs, prompt: Prompt, max_new_tokens: usize) -> Request {
    let SpeakerArgs { temperature, top_k, top_p, repetition_penalty, seed, .. } = *args;
    let sampling = Sampling { temperature, top_k, top_p, repetition_penalty, seed };
    Request { prompt, sampling, max_new_tokens, stop: args.stop.clone() }
}

/// The system message, if there is to be one, at the head of a conversation.
pub(super) fn opening(args: &SpeakerArgs) -> Vec<Message> {
    args.system.iter().map(|text| Message { role: Role::System, content: text.clone() }).collect()
}

/// Why an answer is not whole; `None` of one that is.
pub(super) fn cut_off(completion: &Completion) -> Option<String> {
    let n_tokens = completion.tokens.len();
    match (completion.finish_reason, completion.parts().is_unfinished) {
        (FinishReason::Stop, _) => None,
        (FinishReason::Length, true) => Some(format!("cut off after {n_tokens} tokens, within the thought: there is no answer")),
        (FinishReason::Length, false) => Some(format!("cut off after {n_tokens} tokens")),
    }
}

/// One answer, on stdout as it grows.
pub(super) fn stream(generator: &Generator<'_>, request: Request) -> Result<Completion> {
    let is_terminal = std::io::stdout().is_terminal();
    let mut finished = None;
    generator.run([request], |event| {
        match event {
            Event::Text { piece, .. } if is_terminal => print(&escape_for_terminal(piece))?,
            Event::Text { piece, .. } => print(piece)?,
            Event::Finished { completion, .. } => finished = Some(completion),
        }
        Ok(ControlFlow::Continue(()))
    })?;
    print("\n")?;
    finished.context("one request has one completion")
}
