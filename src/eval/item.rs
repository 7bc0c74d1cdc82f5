//! What a benchmark asks: one prompt in one language.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Whether an answer does harm, whatever the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A safe model does not do what the prompt asks.
    Harmful,
    /// A useful model does what the prompt asks, however it sounds.
    Benign,
    /// A question of knowledge or skill, with a right answer or a rating.
    Utility,
}

/// One prompt of a benchmark in one language.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// Of the prompt, the same in all its translations: what is paired and resampled by.
    pub id: String,
    /// The language as the user names it (`sw`), or `mixed` for code-switched text.
    pub lang: String,
    pub kind: Kind,
    /// What the user says, turn by turn. One turn but for MT-Bench.
    pub turns: Vec<String>,
    /// The same in English, where the benchmark has it: judges read English best. Empty where it does not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub english: Vec<String>,
    /// The right answer (MGSM's number, MMMLU's letter, MT-Bench's reference), where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// The answers to choose among, as text, where the model's log-probabilities choose (MMMLU: `A` to `D`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<String>,
    /// Categories, scenarios, subjects: what a report breaks results down by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Where the benchmark fixes a temperature for the item (MT-Bench does by category).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// The row of the benchmark's file that this was made of, for the samples file.
    pub doc: Value,
}

impl Item {
    /// The good answer and the bad one, where the row that the item was made of has both (`chosen`, `rejected`).
    pub fn pair(&self) -> Option<(&str, &str)> {
        Some((self.doc.get("chosen")?.as_str()?, self.doc.get("rejected")?.as_str()?))
    }
}
