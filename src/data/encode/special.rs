//! Special tokens that a row's text spells (`<|im_end|>` within an answer), kept apart from those of the chat template.
//!
//! A tokenizer matches its special tokens wherever their characters stand: a text could end a turn, or open one of the system. Rows that
//! spell none are tokenised as they always were. In the others each such spelling is hidden before the template sees it, so that every
//! special token of the rendered text is the template's; these are then written as marks that a second tokenizer knows under their ids, and
//! it reads all the rest as text. So the pieces between special tokens, and with them the merges, are the same in both.

use super::Encoder;
use crate::data::pair::Message;
use anyhow::{Context, Result, anyhow, ensure};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::OnceLock;
use tokenizers::{AddedToken, Tokenizer};

/// Stands around what is hidden. A noncharacter: no text has it, no template or normaliser changes it.
const HIDDEN: char = '\u{10fffe}';

/// Stands around the marks of the template's special tokens.
const MARKED: char = '\u{10ffff}';

/// The number of a special token is written as a character from here on.
const FIRST_NUMBER: u32 = 0x10_0000;

/// What tokenizers call a character that they do not know.
const UNKNOWN: [&str; 5] = ["<unk>", "[UNK]", "<UNK>", "<|unk|>", "[unk]"];

/// The special tokens of a tokenizer.
pub(super) struct Special {
    /// Longest first, so that of two that begin alike the longer one is found.
    tokens: Vec<AddedToken>,
    ids: Vec<u32>,
    /// What they begin with: `<`, as a rule.
    first: Vec<char>,
    guarded: OnceLock<Result<Guarded, String>>,
}

/// A tokenizer that reads special tokens as text, and marks as special tokens.
struct Guarded {
    tokenizer: Tokenizer,
    /// From a mark's id to that of the special token.
    of_mark: HashMap<u32, u32>,
}

impl Special {
    pub fn of(tokenizer: &Tokenizer) -> Self {
        let added = tokenizer.get_added_tokens_decoder();
        let mut tokens: Vec<(u32, AddedToken)> =
            added.iter().filter(|(_, token)| token.special && !token.content.is_empty()).map(|(id, token)| (*id, token.clone())).collect();
        tokens.sort_by(|(a_id, a), (b_id, b)| b.content.len().cmp(&a.content.len()).then(a_id.cmp(b_id)));
        let mut first: Vec<char> = tokens.iter().filter_map(|(_, token)| token.content.chars().next()).collect();
        first.sort_unstable();
        first.dedup();
        let (ids, tokens) = tokens.into_iter().unzip();
        Self { tokens, ids, first, guarded: OnceLock::new() }
    }

    /// Where special tokens stand in `text`, and which: byte and number, from left to right.
    fn spelled<'a>(&'a self, text: &'a str) -> impl Iterator<Item = (usize, usize)> + 'a {
        let mut end = 0;
        text.match_indices(self.first.as_slice()).filter_map(move |(at, _)| {
            if at < end {
                return None;
            }
            let number = self.tokens.iter().position(|token| text[at..].starts_with(token.content.as_str()))?;
            end = at + self.tokens[number].content.len();
            Some((at, number))
        })
    }

    /// The special tokens that `text` spells.
    pub fn names<'a>(&'a self, text: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.spelled(text).map(|(_, number)| self.tokens[number].content.as_str())
    }

    /// `text` with every special token in `around`.
    fn written(&self, text: &str, around: char) -> String {
        let mut written = String::with_capacity(text.len() + 8);
        let mut end = 0;
        for (at, number) in self.spelled(text) {
            written.push_str(&text[end..at]);
            // A tokenizer has fewer special tokens than this plane has characters; `hide` has made sure of it.
            written.extend([around, char::from_u32(FIRST_NUMBER + number as u32).unwrap_or(around), around]);
            end = at + self.tokens[number].content.len();
        }
        written + &text[end..]
    }

    /// A text of a row, its special tokens hidden from the template and the tokenizer.
    pub fn hide<'a>(&self, text: &'a str) -> Result<Cow<'a, str>> {
        ensure!(
            !text.contains([HIDDEN, MARKED]),
            "a text holds U+10FFFE or U+10FFFF, which are no characters and which no text may have: remove them"
        );
        if self.spelled(text).next().is_none() {
            return Ok(Cow::Borrowed(text));
        }
        ensure!(self.tokens.len() < 0xfffe, "the tokenizer has {} special tokens", self.tokens.len());
        Ok(Cow::Owned(self.written(text, HIDDEN)))
    }

    /// Whether a rendered text has something hidden in it.
    pub fn hides(text: &str) -> bool {
        text.contains(HIDDEN)
    }

    /// A rendered text as a person reads it.
    fn shown(&self, text: &str) -> String {
        let mut shown = String::with_capacity(text.len());
        // Every second part was hidden.
        for (n, part) in text.split(HIDDEN).enumerate() {
            let number = part.chars().next().filter(|_| n % 2 == 1).and_then(|c| u32::from(c).checked_sub(FIRST_NUMBER));
            match number.and_then(|number| self.tokens.get(number as usize)) {
                Some(token) => shown.push_str(&token.content),
                None => shown.push_str(part),
            }
        }
        shown
    }

    /// The tokens of a rendered text in which something is hidden.
    pub fn tokens(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
        let guarded = self.guarded.get_or_init(|| self.guard(tokenizer).map_err(|error| format!("{error:#}")));
        let guarded = guarded.as_ref().map_err(|error| anyhow!("{error}"))?;
        let text = self.shown(&self.written(text, MARKED));
        let encoding = guarded.tokenizer.encode_fast(text, false).map_err(|error| anyhow!("the tokenizer failed: {error}"))?;
        let id = |id: &u32| match guarded.of_mark.get(id) {
            Some(special) => Ok(*special),
            None if self.ids.contains(id) => {
                let name = guarded.tokenizer.id_to_token(*id).unwrap_or_default();
                // A character that the vocabulary lacks is none of these spellings.
                if UNKNOWN.contains(&name.as_str()) {
                    return Ok(*id);
                }
                Err(anyhow!("the tokenizer cannot write `{name}` as text: remove it, or set `data.special_tokens = \"tokens\"`"))
            }
            None => Ok(*id),
        };
        encoding.get_ids().iter().map(id).collect()
    }

    fn guard(&self, tokenizer: &Tokenizer) -> Result<Guarded> {
        let mut tokenizer = tokenizer.clone();
        tokenizer.set_encode_special_tokens(true);
        // No special tokens to the tokenizer, which would read them as text too; the blanks around them are treated alike.
        let mark = |(number, token): (usize, &AddedToken)| AddedToken {
            content: [MARKED, char::from_u32(FIRST_NUMBER + number as u32).unwrap_or(MARKED), MARKED].iter().collect(),
            special: false,
            ..token.clone()
        };
        let marks: Vec<AddedToken> = self.tokens.iter().enumerate().map(mark).collect();
        tokenizer.add_tokens(marks.clone()).map_err(|error| anyhow!("the tokenizer failed: {error}"))?;
        let id = |mark: &AddedToken| tokenizer.token_to_id(&mark.content).context("the tokenizer took no further tokens");
        let of_mark = marks.iter().zip(&self.ids).map(|(mark, special)| Ok((id(mark)?, *special))).collect::<Result<_>>()?;
        Ok(Guarded { tokenizer, of_mark })
    }
}

impl Encoder {
    /// The special tokens of the tokenizer that `text` spells, from left to right.
    pub fn special_tokens<'a>(&'a self, text: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.special.names(text)
    }

    /// Whether they are read as tokens there, and not as text.
    pub fn reads_special_tokens(&self) -> bool {
        self.reads_special_tokens
    }

    /// A text of a row as the template gets it.
    pub(super) fn hidden<'a>(&self, text: &'a str) -> Result<Cow<'a, str>> {
        if self.reads_special_tokens { Ok(Cow::Borrowed(text)) } else { self.special.hide(text) }
    }

    /// The turns of a row as the template gets them.
    pub(super) fn hidden_turns<'a>(&self, messages: &'a [Message]) -> Result<Cow<'a, [Message]>> {
        let texts = messages.iter().map(|turn| self.hidden(&turn.content)).collect::<Result<Vec<_>>>()?;
        if texts.iter().all(|text| matches!(text, Cow::Borrowed(_))) {
            return Ok(Cow::Borrowed(messages));
        }
        Ok(messages.iter().zip(texts).map(|(turn, text)| Message { role: turn.role, content: text.into_owned() }).collect())
    }
}
