//! A row of training data: one preference pair in the dominant language and its parallel pair in a target language.

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

/// A prompt with a chosen (safe) and a rejected (unsafe) response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreferencePair {
    /// ISO 639-1 code, given by the row or detected.
    pub lang: String,
    pub prompt: Vec<Message>,
    pub chosen: String,
    pub rejected: String,
}

impl PreferencePair {
    /// What is equal for pairs with the same language and texts only: sha256, each part behind its length. Rows share dominant pairs, and a
    /// set of them is told apart without keeping their texts.
    pub fn key(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut text = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        text(&self.lang);
        text(&self.chosen);
        text(&self.rejected);
        for turn in &self.prompt {
            text(turn.role.name());
            text(&turn.content);
        }
        hash.finalize().into()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParallelPair {
    /// The row's own id, or its index in the file.
    pub id: String,
    pub dominant: PreferencePair,
    pub target: PreferencePair,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_pairs_apart() {
        let pair = |change: &dyn Fn(&mut PreferencePair)| {
            let turn = |role, content: &str| Message { role, content: content.into() };
            let prompt = vec![turn(Role::System, "a"), turn(Role::User, "bc")];
            let mut pair = PreferencePair { lang: "en".into(), prompt, chosen: "de".into(), rejected: "f".into() };
            change(&mut pair);
            pair.key()
        };
        let changes: [&dyn Fn(&mut PreferencePair); 7] = [
            &|_| (),
            &|pair| pair.lang = "sw".into(),
            &|pair| pair.prompt[0].role = Role::User,
            &|pair| (pair.prompt[0].content, pair.prompt[1].content) = ("ab".into(), "c".into()),
            &|pair| (pair.chosen, pair.rejected) = ("d".into(), "ef".into()),
            &|pair| (pair.chosen, pair.rejected) = ("f".into(), "de".into()),
            &|pair| drop(pair.prompt.remove(0)),
        ];
        let keys: std::collections::HashSet<_> = changes.iter().map(|change| pair(*change)).collect();
        assert_eq!(keys.len(), changes.len());
        assert_eq!(pair(&|_| ()), pair(&|_| ()));
    }
}
