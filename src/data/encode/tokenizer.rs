//! `tokenizer.json`, as the library reads it, unless the library could not survive it.

use crate::files::or_damaged;
use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use std::path::Path;
use tokenizers::Tokenizer;

/// A Unigram vocabulary becomes a tree as deep as its longest word, which is taken down by a call for each level: 60,000 of them overflow the stack. The
/// longest words of published vocabularies have some hundred bytes.
const MOST_WORD_BYTES: usize = 1024;

/// Reads the tokenizer at `path`.
///
/// # Errors
/// It cannot be read, or holds a word that is none.
pub(super) fn read(path: &Path) -> Result<Tokenizer> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read the tokenizer `{}`", path.display()))?;
    if has_long_text(&bytes)
        && let Some(n_bytes) = longest_word(&bytes).filter(|n_bytes| *n_bytes > MOST_WORD_BYTES)
    {
        bail!(
            "cannot read the tokenizer `{}`: its vocabulary has a word of {n_bytes} bytes, and words have at most {MOST_WORD_BYTES}",
            path.display()
        );
    }
    let read = or_damaged(path, "tokenizer files", || Tokenizer::from_bytes(&bytes))?;
    read.map_err(|error| anyhow!("cannot read the tokenizer `{}`: {error}", path.display()))
}

/// Whether quotes stand further apart somewhere than a word is long: only then the vocabulary is looked at word by word.
fn has_long_text(bytes: &[u8]) -> bool {
    bytes.split(|byte| *byte == b'"').any(|piece| piece.len() > MOST_WORD_BYTES)
}

/// Of the model's vocabulary: words by their ids, or pairs of a word and its score.
fn longest_word(bytes: &[u8]) -> Option<usize> {
    let tokenizer: Value = serde_json::from_slice(bytes).ok()?;
    match &tokenizer["model"]["vocab"] {
        Value::Object(words) => words.keys().map(String::len).max(),
        Value::Array(pairs) => pairs.iter().filter_map(|pair| pair[0].as_str()).map(str::len).max(),
        _ => None,
    }
}
