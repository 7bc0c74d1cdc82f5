//! A row of training data: one preference pair in the dominant language and its parallel pair in a target language.

/// Who speaks in a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    System,
    User,
    Assistant,
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

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParallelPair {
    /// The row's own id, or its index in the file.
    pub id: String,
    pub dominant: PreferencePair,
    pub target: PreferencePair,
}
