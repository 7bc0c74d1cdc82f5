//! A row of training data: a preference pair and, in parallel data, its counterpart in the dominant language.

use sha2::{Digest, Sha256};

/// Who speaks in a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    System,
    User,
    Assistant,
}

impl Role {
    /// As in JSON and as chat templates know it.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Message {
    pub role: Role,
    pub content: String,
}

/// A prompt with a chosen (safe) and a rejected (unsafe) response. Labelled data has one of the two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreferencePair {
    /// ISO 639-1 code, given by the row or detected.
    pub lang: String,
    pub prompt: Vec<Message>,
    pub chosen: Option<String>,
    pub rejected: Option<String>,
}

impl PreferencePair {
    /// The responses that are there, each with its name: chosen, then rejected.
    pub fn responses(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let both = [("chosen", &self.chosen), ("rejected", &self.rejected)];
        both.into_iter().filter_map(|(name, response)| Some((name, response.as_deref()?)))
    }

    /// What is equal for pairs with the same language and texts only: sha256, each part behind its length. Rows share dominant pairs, and a
    /// set of them is told apart without keeping their texts.
    pub fn key(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut text = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        text(&self.lang);
        for (name, response) in self.responses() {
            text(name);
            text(response);
        }
        for turn in &self.prompt {
            text(turn.role.name());
            text(&turn.content);
        }
        hash.finalize().into()
    }
}

/// One row: the pair that is trained on, and what it is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreferenceRow {
    /// The row's own id, or its index in the file.
    pub id: String,
    /// The same prompt and responses in the dominant language: what MPO and retention need. `None` in plain preference data.
    pub dominant: Option<PreferencePair>,
    /// What the objective scores.
    pub target: PreferencePair,
}

impl PreferenceRow {
    /// The pairs that are there: dominant, then target.
    pub fn pairs(&self) -> impl Iterator<Item = &PreferencePair> {
        self.dominant.iter().chain([&self.target])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_pairs_apart() {
        let pair = |change: &dyn Fn(&mut PreferencePair)| {
            let turn = |role, content: &str| Message { role, content: content.into() };
            let prompt = vec![turn(Role::System, "a"), turn(Role::User, "bc")];
            let mut pair = PreferencePair { lang: "en".into(), prompt, chosen: Some("de".into()), rejected: Some("f".into()) };
            change(&mut pair);
            pair.key()
        };
        let some = |text: &str| Some(text.to_owned());
        let changes: [&dyn Fn(&mut PreferencePair); 9] = [
            &|_| (),
            &|pair| pair.lang = "sw".into(),
            &|pair| pair.prompt[0].role = Role::User,
            &|pair| (pair.prompt[0].content, pair.prompt[1].content) = ("ab".into(), "c".into()),
            &|pair| (pair.chosen, pair.rejected) = (some("d"), some("ef")),
            &|pair| (pair.chosen, pair.rejected) = (some("f"), some("de")),
            &|pair| (pair.chosen, pair.rejected) = (some("def"), None),
            &|pair| (pair.chosen, pair.rejected) = (None, some("def")),
            &|pair| drop(pair.prompt.remove(0)),
        ];
        let keys: std::collections::HashSet<_> = changes.iter().map(|change| pair(*change)).collect();
        assert_eq!(keys.len(), changes.len());
        assert_eq!(pair(&|_| ()), pair(&|_| ()));
    }
}
