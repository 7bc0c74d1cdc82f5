//! A judge in this process: a model that the caller has loaded and that generates through a closure.

use super::prompt::Prompt;
use super::{Failure, ShouldStop, Transport};
use anyhow::Result;

/// Asks a closure, which lays the messages out with the model's own chat template and generates greedily; `None` says that the model cannot read so much.
pub struct Local<F> {
    /// `guard:` and the model's name or the hash of its weights: what the cache knows it by.
    pub identity: String,
    pub generate: F,
}

impl<F: Fn(&Prompt) -> Result<Option<String>> + Sync> Transport for Local<F> {
    fn identity(&self) -> String {
        self.identity.clone()
    }

    fn complete(&self, prompt: &Prompt, should_stop: ShouldStop<'_>) -> Result<String, Failure> {
        if should_stop() {
            return Err(Failure::Stopped);
        }
        let reply = (self.generate)(prompt).map_err(Failure::Fatal)?;
        reply.ok_or_else(|| Failure::Declined("query and response are longer than the judge can read".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closure_answers_unless_the_user_stops() {
        let local = Local {
            identity: "guard:x".into(),
            generate: |prompt: &Prompt| Ok((prompt.messages[0].content.len() < 9).then(|| prompt.messages[0].content.to_uppercase())),
        };
        assert_eq!(local.complete(&Prompt::user("safe"), &|| false).unwrap(), "SAFE");
        assert!(matches!(local.complete(&Prompt::user("safe"), &|| true), Err(Failure::Stopped)));
        assert!(matches!(local.complete(&Prompt::user("a long text"), &|| false), Err(Failure::Declined(_))));
    }
}
