//! How models mark their thoughts: the table, and marks whose name says what they are.

use std::ops::Range;

/// Marks that names do not follow from: what begins a thought, and what may end it. Case does not count.
pub(super) const MARKS: [(&str, &[&str]); 11] = [
    // Gemma 4; MedGemma.
    ("<|channel>thought", &["<channel|>"]),
    ("<unused94>thought", &["<unused95>"]),
    ("<unused94>", &["<unused95>"]),
    // Cohere; OpenThinker and Sky-T1; Kimi; Apertus.
    ("<|START_THINKING|>", &["<|END_THINKING|>"]),
    ("<|begin_of_thought|>", &["<|end_of_thought|>"]),
    ("◁think▷", &["◁/think▷"]),
    ("<|inner_prefix|>", &["<|inner_suffix|>"]),
    // Granite 3.2; Apriel.
    ("Here is my thought process:", &["Here is my response:", "Here's my response:"]),
    ("Here's my thought process:", &["Here's my response:", "Here is my response:"]),
    ("Here are my reasoning steps:", &["[BEGIN FINAL RESPONSE]"]),
    // gpt-oss without its marks, as a decoder leaves it that drops special tokens.
    ("analysis", &["assistantfinal"]),
];

/// What is a thought only if it ends: these beginnings may be an answer's own words.
pub(super) const WORDS: [&str; 4] =
    ["Here is my thought process:", "Here's my thought process:", "Here are my reasoning steps:", "analysis"];

/// gpt-oss writes a message for each channel; the one to the user is `final`.
pub(super) const CHANNEL: &str = "<|channel|>";
pub(super) const MESSAGE: &str = "<|message|>";
pub(super) const FINAL: &str = "final";
/// Around its messages.
pub(super) const MESSAGE_MARKS: [&str; 6] = [CHANNEL, MESSAGE, "<|start|>", "<|end|>", "<|return|>", "<|constrain|>"];

/// Whether a special token's text is a mark: it is part of a generated text, as other special tokens are not. `has_channels`: whether the vocabulary has
/// gpt-oss' channels, which alone make its other marks any.
pub fn is_mark(token: &str, has_channels: bool) -> bool {
    // `<|channel>` is the part of a beginning that is a token.
    let begins = |open: &str| !WORDS.contains(&open) && token.len() > 2 && open.starts_with(token);
    let is_fixed = MARKS.iter().any(|(open, closes)| begins(open) || closes.contains(&token));
    let is_named = Named::at(token).is_some_and(|named| named.length == token.len());
    is_fixed || is_named || has_channels && MESSAGE_MARKS.contains(&token)
}

/// Whether a vocabulary with this token marks thoughts by channels.
pub fn is_channel(token: &str) -> bool {
    token == CHANNEL
}

/// A mark whose name says what it is: `<think>`, `</seed:think>`, `[THINK]`, `<reasoning>`, `<|/think|>`.
pub(super) struct Named {
    open: char,
    close: char,
    pub closes: bool,
    /// `|` in front and behind where the mark has them.
    name: String,
    /// Of the whole mark, in bytes.
    pub length: usize,
}

impl Named {
    /// The one that `text` begins with.
    pub fn at(text: &str) -> Option<Self> {
        const LONGEST: usize = 40;
        const NAMES: [&str; 6] = ["think", "thought", "reason", "reflection", "scratchpad", "monologue"];
        let open = text.chars().next()?;
        let close = match open {
            '<' => '>',
            '[' => ']',
            _ => return None,
        };
        let length = text.bytes().take(LONGEST).position(|byte| byte == close as u8)? + 1;
        // A mark may have attributes, `<think budget="9">`.
        let inside = &text[1..length - 1];
        let inside = inside.split_once(' ').filter(|(_, attributes)| attributes.contains('=')).map_or(inside, |(name, _)| name);
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | ':' | '|');
        let name = inside.replacen('/', "", 1);
        let closes = inside.starts_with('/') || inside.starts_with("|/");
        let is_one =
            closes == (name.len() < inside.len()) && name.chars().all(is_name) && NAMES.iter().any(|word| find(&name, word).is_some());
        is_one.then_some(Self { open, close, closes, name, length })
    }

    /// Whether nothing else is meant, even where it never ends: `[thinking]` may be how a story begins.
    pub fn is_certain(&self) -> bool {
        self.open == '<' || self.name == "THINK"
    }

    pub fn opening(&self) -> String {
        format!("{}{}{}", self.open, self.name, self.close)
    }

    pub fn closing(&self) -> String {
        let bar = if self.name.starts_with('|') { "|" } else { "" };
        format!("{}{bar}/{}{}", self.open, &self.name[bar.len()..], self.close)
    }
}

/// Where `mark` stands in `text` from `at` on, whatever its case.
pub(super) fn range(text: &str, at: usize, mark: &str) -> Option<Range<usize>> {
    find(&text[at..], mark).map(|found| at + found..at + found + mark.len())
}

/// As `str::find`, whatever the case of ASCII letters.
pub(super) fn find(text: &str, mark: &str) -> Option<usize> {
    let first = mark.as_bytes().first()?;
    let is_there = |at: usize| text.as_bytes()[at..].get(..mark.len()).is_some_and(|head| head.eq_ignore_ascii_case(mark.as_bytes()));
    (0..text.len()).find(|&at| text.as_bytes()[at].eq_ignore_ascii_case(first) && is_there(at))
}

pub(super) fn strip_prefix<'t>(text: &'t str, mark: &str) -> Option<&'t str> {
    text.get(..mark.len()).filter(|head| head.eq_ignore_ascii_case(mark)).map(|head| &text[head.len()..])
}

/// As `str::strip_suffix`, whatever the case of ASCII letters.
pub(super) fn strip_suffix<'t>(text: &'t str, mark: &str) -> Option<&'t str> {
    let at = text.len().checked_sub(mark.len())?;
    text.get(at..).filter(|tail| tail.eq_ignore_ascii_case(mark)).map(|_| &text[..at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_tokens_that_are_marks_are_told_from_others() {
        for token in [
            "<think>",
            "</think>",
            "<seed:think>",
            "[THINK]",
            "[/THINK]",
            "<|channel>",
            "<channel|>",
            "<|END_THINKING|>",
            "<unused95>",
            "<|/think|>",
        ] {
            assert!(is_mark(token, false), "{token}");
        }
        for token in ["<|im_end|>", "<|end|>", "<s>", "</s>", "<pad>", "<|user|>", "[INST]", "<unused9>", "<", "analysis", ""] {
            assert!(!is_mark(token, false), "{token}");
        }
        assert!(is_mark("<|end|>", true) && is_mark("<|message|>", true) && !is_mark("<|call|>", true));
    }
}
