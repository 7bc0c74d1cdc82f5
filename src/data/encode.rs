//! From text to tokens: the chat template renders, the tokenizer encodes, and overlong rows are cut by METHOD section 2's rules.

/// Response tokens: everything that is rendered after the prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub tokens: Vec<u32>,
    /// How many of the last tokens end the turn (template or `eos_token`) rather than belong to the answer.
    pub n_end_tokens: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedPreference {
    pub lang: String,
    pub prompt: Vec<u32>,
    pub chosen: Response,
    pub rejected: Response,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedPair {
    pub id: String,
    pub dominant: EncodedPreference,
    pub target: EncodedPreference,
}
