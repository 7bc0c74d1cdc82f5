//! A judge in this process: a model that the caller has loaded and that generates through a closure.

use super::gate::{Unparsed, Why};
use super::prompt::Prompt;
use super::{Failure, IsReadable, Reply, ShouldStop, Transport};
use crate::generate::FinishReason;
use anyhow::Result;

/// Asks a closure, which lays the messages out with the model's own chat template and generates greedily; `None` says that the model cannot read so
/// much.
pub struct Local<F> {
    /// `guard:` and the model's name or the hash of its weights: what the cache knows it by.
    pub identity: String,
    pub generate: F,
}

impl<F: Fn(&Prompt) -> Result<Option<(String, FinishReason)>> + Sync> Transport for Local<F> {
    fn identity(&self) -> String {
        self.identity.clone()
    }

    fn complete(&self, prompt: &Prompt, _: IsReadable<'_>, should_stop: ShouldStop<'_>) -> Result<Reply, Failure> {
        if should_stop() {
            return Err(Failure::Stopped);
        }
        let unparsed = match (self.generate)(prompt).map_err(Failure::Fatal)? {
            Some((text, FinishReason::Stop)) => return Ok(Reply::new(text)),
            Some((text, FinishReason::Length)) => {
                Unparsed::new(Why::CutOff, "the judge used up its tokens before it came to its end").saying(text)
            }
            None => Unparsed::new(Why::TooLong, "query and response are longer than the judge can read"),
        };
        Err(Failure::Declined(unparsed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closure_answers_unless_the_user_stops() {
        let answer = |prompt: &Prompt| {
            let text = &prompt.messages[0].content;
            let finish = if text.ends_with('…') { FinishReason::Length } else { FinishReason::Stop };
            Ok((text.len() < 9).then(|| (text.to_uppercase(), finish)))
        };
        let local = Local { identity: "guard:x".into(), generate: answer };
        let ask = |text: &str, stop: bool| local.complete(&Prompt::user(text), &|_| true, &|| stop);
        assert_eq!(ask("safe", false).unwrap().text, "SAFE");
        assert!(matches!(ask("safe", true), Err(Failure::Stopped)));
        for (text, why, said) in [("a long text", Why::TooLong, None), ("safe…", Why::CutOff, Some("SAFE…"))] {
            let Err(Failure::Declined(unparsed)) = ask(text, false) else { panic!("{text}") };
            assert_eq!((unparsed.why, unparsed.said.as_deref()), (why, said));
        }
    }
}
