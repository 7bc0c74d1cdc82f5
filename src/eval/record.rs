//! Lines of the files between the phases.

pub use crate::generate::FinishReason;
use crate::generate::thought::{self, Parts};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Which answer: the key of every line, and what `--resume` skips.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    pub bench: String,
    pub lang: String,
    pub id: String,
    /// 0 but where several answers are sampled for one prompt.
    #[serde(default)]
    pub sample: u32,
}

/// The model's answer to one turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// All that the model wrote, what it thought before it answered too. Whoever judges, counts or reads the answer takes [`Answer::said`].
    pub text: String,
    pub finish_reason: FinishReason,
    /// Tokens generated, the stop token included.
    pub n_tokens: usize,
}

impl Answer {
    /// What the user is told: the text without its thought.
    pub fn said(&self) -> &str {
        self.parts().answer
    }

    /// Thought and answer.
    pub fn parts(&self) -> Parts<'_> {
        thought::split(&self.text)
    }
}

/// A line of `responses.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Response {
    #[serde(flatten)]
    pub key: Key,
    /// SHA-256 of the first turn as the template laid it out.
    pub prompt_sha256: String,
    /// One for each turn; empty where choices were scored.
    pub answers: Vec<Answer>,
    /// Log-probability of each of the item's choices, nats; empty where text was generated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choice_log_probs: Vec<f64>,
}

impl Response {
    /// What the user is told in the last turn, the only one but for MT-Bench; nothing where there is none.
    pub fn last_said(&self) -> &str {
        self.answers.last().map_or("", Answer::said)
    }

    /// Whether something was thought before any of the answers.
    pub fn has_thought(&self) -> bool {
        self.answers.iter().any(|answer| answer.parts().has_thought())
    }

    /// Whether a thought took all the tokens that there were for thought and answer, so that nothing was answered.
    pub fn is_unfinished_thought(&self) -> bool {
        self.answers.iter().any(|answer| answer.parts().is_unfinished)
    }
}

/// A line of `verdicts-JUDGE.jsonl`: what a rubric makes of one response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    #[serde(flatten)]
    pub key: Key,
    /// `safe`, `unsafe`, `invalid`, a class of the rubric's; none where the judge's text could not be parsed, or where the rubric has no labels.
    pub label: Option<String>,
    /// What is averaged into results, by metric (`asr`, `invalid_rate`, `exact_match`, `rating`). A metric that does not apply is absent.
    pub metrics: BTreeMap<String, f64>,
    /// Why there is no verdict; counted and shown, never dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unparsed: Option<String>,
    /// What the judge said, word for word. Empty for a rule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub raw: Vec<String>,
}
