//! The gate between what an endpoint sends and a verdict. Each decision is made in one place, in this order:
//!
//! ```text
//! status    refusal     busy: ask again; a parameter is refused: leave it out; else this question, or the end of the run (retry, run)
//! body      shape       a chat completion, whole or streamed, that is not too large; an error inside a 200 is an error like any other
//! end       shape       `finish_reason` says that the model came to the end of what it had to say
//! said      shape       something was said beside thoughts, and it is no refusal
//! thought   gate        what the model thought aloud is over
//! place     place       the verdict is the reply's first or last line, and nothing next to it introduces it, goes on with it or takes it back
//! form      reply       one label among nothing but words of verdicts
//!           numbers     the asked keys, each in its range; `[[7]]`
//! ```
//!
//! A reply that does not pass is *unparsed*, with its reason: one item, counted by reason, kept in no cache, and never read as the likelier verdict.
//! A verdict that is wrong is worse than one that is missing.

use std::collections::BTreeMap;
use std::fmt;

/// Why there is no verdict. The names begin the texts of results and are what a summary counts by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    CutOff,
    Filtered,
    Refused,
    TooLong,
    Rejected,
    NoReply,
    Malformed,
    EndedOtherwise,
    Thinking,
    Empty,
    NoVerdict,
    Several,
    OutOfRange,
    NoTranslation,
    NothingToJudge,
}

impl Why {
    const ALL: [Why; 15] = [
        Why::CutOff,
        Why::Filtered,
        Why::Refused,
        Why::TooLong,
        Why::Rejected,
        Why::NoReply,
        Why::Malformed,
        Why::EndedOtherwise,
        Why::Thinking,
        Why::Empty,
        Why::NoVerdict,
        Why::Several,
        Why::OutOfRange,
        Why::NoTranslation,
        Why::NothingToJudge,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Why::CutOff => "cut off",
            Why::Filtered => "filtered",
            Why::Refused => "refused",
            Why::TooLong => "too long",
            Why::Rejected => "rejected by the server",
            Why::NoReply => "no reply",
            Why::Malformed => "no chat completion",
            Why::EndedOtherwise => "ended otherwise",
            Why::Thinking => "unfinished thought",
            Why::Empty => "empty",
            Why::NoVerdict => "no verdict",
            Why::Several => "several verdicts",
            Why::OutOfRange => "out of range",
            Why::NoTranslation => "no translation",
            Why::NothingToJudge => "nothing to judge",
        }
    }
}

/// A reply, or the lack of one, that is no verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unparsed {
    pub why: Why,
    pub detail: String,
    /// What was said all the same, word for word.
    pub said: Option<String>,
}

impl Unparsed {
    pub fn new(why: Why, detail: impl Into<String>) -> Self {
        Self { why, detail: detail.into(), said: None }
    }

    pub fn saying(self, said: impl Into<String>) -> Self {
        let said = said.into();
        Self { said: (!said.is_empty()).then_some(said), ..self }
    }
}

impl fmt::Display for Unparsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.why.name(), self.detail)
    }
}

impl From<Unparsed> for String {
    fn from(unparsed: Unparsed) -> Self {
        unparsed.to_string()
    }
}

/// The reason's name in the text of a verdict that could not be read; `other` in texts of older versions.
pub fn reason(unparsed: &str) -> &'static str {
    let begins = |why: &&Why| unparsed.strip_prefix(why.name()).is_some_and(|rest| rest.starts_with(':'));
    Why::ALL.iter().find(begins).map_or("other", |why| why.name())
}

/// `2 cut off, 1 filtered`, the most frequent first.
pub fn count_reasons<'a>(unparsed: impl IntoIterator<Item = &'a str>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    unparsed.into_iter().for_each(|text| *counts.entry(reason(text)).or_default() += 1);
    let mut counts: Vec<(&str, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    counts.iter().map(|(reason, n)| format!("{n} {reason}")).collect::<Vec<_>>().join(", ")
}

/// A reply beyond this many bytes holds no verdict, whatever else.
const LONGEST: usize = 256 << 10;

/// What a model says once it has thought.
///
/// # Errors
///
/// It is still thinking, has said nothing, or more than any verdict is.
pub fn after_thinking(reply: &str) -> Result<&str, Unparsed> {
    if reply.len() > LONGEST {
        return Err(Unparsed::new(Why::Malformed, format!("a reply of {} KiB is no verdict", reply.len() >> 10)));
    }
    let (mut behind, mut is_open) = (0, false);
    for (at, _) in reply.char_indices().filter(|(_, c)| matches!(c, '<' | '[' | '◁')) {
        match Mark::at(&reply[at..]) {
            Some(Mark { length, closes: true }) => (behind, is_open) = (at + length, false),
            Some(Mark { closes: false, .. }) => is_open = true,
            None => {}
        }
    }
    let said = without_end(&reply[behind..]);
    match (is_open, said) {
        (true, _) => Err(Unparsed::new(Why::Thinking, "the reply ends within a thought")),
        (false, "") if behind > 0 => Err(Unparsed::new(Why::Empty, "nothing was said behind the thought")),
        (false, "") => Err(Unparsed::new(Why::Empty, "nothing was said")),
        (false, said) => Ok(said),
    }
}

/// Without the tokens that end a turn, which some servers leave in a text.
fn without_end(said: &str) -> &str {
    const ENDS: [&str; 4] = ["</s>", "<eos>", "<end_of_turn>", "<｜end▁of▁sentence｜>"];
    const LONGEST: usize = 24;
    let mut said = said.trim();
    loop {
        let named = said.strip_suffix("|>").and_then(|inside| inside.rfind("<|")).filter(|at| said.len() - at <= LONGEST);
        let fixed = ENDS.iter().find_map(|end| said.strip_suffix(end));
        match fixed.or(named.map(|at| &said[..at])) {
            Some(before) => said = before.trim_end(),
            None => return said,
        }
    }
}

/// A mark of a thought, or of a message to somebody else than the user: `<think>`, `[/THINK]`, `<|channel|>analysis`, `<|END_THINKING|>`, `◁think▷`.
struct Mark {
    /// In bytes.
    length: usize,
    closes: bool,
}

impl Mark {
    /// The one that the text begins with. A final message closes what was thought before it.
    fn at(text: &str) -> Option<Self> {
        const LONGEST: usize = 48;
        const NAMES: [&str; 9] =
            ["think", "thought", "reasoning", "reflection", "scratchpad", "scratch_pad", "monologue", "analysis", "inner_prefix"];
        let close = match text.chars().next()? {
            '<' => '>',
            '[' => ']',
            '◁' => '▷',
            _ => return None,
        };
        let head = &text[..text.char_indices().nth(LONGEST).map_or(text.len(), |(at, _)| at)];
        let end = head.find(close)?;
        let length = end + close.len_utf8();
        let inside = head[head.chars().next()?.len_utf8()..end].to_lowercase();
        let name = inside.trim_matches(['|', ' ', '/']);
        let closes = inside.trim_start_matches('|').starts_with('/') || name.starts_with("end_");
        let is_square = close == ']';
        if name == "channel" && !is_square {
            return Some(Self::channel(text, &inside, length));
        }
        match name {
            "unused94" => return Some(Self { length, closes: false }),
            "unused95" | "inner_suffix" => return Some(Self { length, closes: true }),
            "begin final response" => return Some(Self { length, closes: true }),
            _ => {}
        }
        // A mark may carry attributes, but a sentence between brackets is none.
        let word = if is_square { name } else { name.split(' ').next().unwrap_or_default() };
        let is_name = word.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | ':'));
        let is_thought = NAMES.iter().any(|known| word.contains(known)) && word.len() < 24;
        let is_empty_element = inside.ends_with('/');
        (is_name && is_thought && !is_empty_element).then_some(Self { length, closes })
    }

    /// gpt-oss names a channel behind its mark, Gemma in front of a thought; `<channel|>` ends one.
    fn channel(text: &str, inside: &str, length: usize) -> Self {
        if inside == "channel|" {
            return Self { length, closes: true };
        }
        const MESSAGE: &str = "<|message|>";
        let rest = text[length..].trim_start();
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric()).collect();
        if !matches!(name.to_lowercase().as_str(), "final" | "answer" | "response") {
            return Self { length, closes: false };
        }
        let named = text.len() - rest.len() + name.len();
        // Between the two may stand what the message is constrained to.
        let near = &text.as_bytes()[named..text.len().min(named + 64)];
        let message = near.windows(MESSAGE.len()).position(|part| part == MESSAGE.as_bytes());
        let message = message.map_or(named, |at| named + at + MESSAGE.len());
        Self { length: message, closes: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thoughts_of_many_models_end_before_the_reply_does() {
        for (open, close) in [
            ("<think>", "</think>"),
            ("<THINK>\n", "\n</Think>\n\n"),
            ("<thinking>", "</thinking>"),
            ("<reasoning>", "</reasoning>"),
            ("<thought>", "</thought>"),
            ("<seed:think>", "</seed:think>"),
            ("<think budget=\"9\">", "</think>"),
            ("<analysis>", "</analysis>"),
            ("<inner_monologue>", "</inner_monologue>"),
            ("[THINK]", "[/THINK]"),
            ("◁think▷", "◁/think▷"),
            ("<|begin_of_thought|>", "<|end_of_thought|>"),
            ("<|START_THINKING|>", "<|END_THINKING|>"),
            ("<|channel>thought\n", "<channel|>"),
            ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
            ("<unused94>thought\n", "<unused95>"),
        ] {
            let whole = format!("{open}One might say\nsafe\nbut no.{close}unsafe");
            assert_eq!(after_thinking(&whole), Ok("unsafe"), "{whole}");
            assert_eq!(after_thinking(&whole[open.len()..]), Ok("unsafe"), "the template began it: {whole}");
            let open = format!("{open}One might say\nunsafe");
            assert_eq!(after_thinking(&open).unwrap_err().why, Why::Thinking, "{open}");
            let later = format!("I will think first.\n{open}");
            assert_eq!(after_thinking(&later).unwrap_err().why, Why::Thinking, "{later}");
            let silent = format!("{open} {close} \n");
            assert_eq!(after_thinking(&silent).unwrap_err().why, Why::Empty, "{silent}");
        }
    }

    #[test]
    fn what_is_no_mark_stays() {
        for text in [
            "safe",
            "[1] thinks that 2 < 3 > 1",
            "<b>safe</b>",
            "[I am thinking about it]",
            "<answer>safe</answer>",
            "<think/>safe",
            "a [ b",
        ] {
            assert_eq!(after_thinking(text), Ok(text));
        }
        assert_eq!(after_thinking(" \n").unwrap_err().why, Why::Empty);
        assert_eq!(after_thinking(&"safe ".repeat(60_000)).unwrap_err().why, Why::Malformed);
    }

    #[test]
    fn reasons_are_counted_by_name() {
        let texts: Vec<String> = [Why::Filtered, Why::CutOff, Why::CutOff].map(|why| Unparsed::new(why, "because").to_string()).to_vec();
        assert_eq!(
            count_reasons(texts.iter().map(String::as_str).chain(["the judge named none of a, b"])),
            "2 cut off, 1 filtered, 1 other"
        );
        assert!(Why::ALL.iter().all(|why| reason(&Unparsed::new(*why, "").to_string()) == why.name()));
    }

    /// Hostile replies are long.
    #[test]
    fn no_reply_takes_long() {
        for text in ["<", "[think", "<think>", "</think>", "◁", "<|channel|>", "<|channel|>final"] {
            let long = text.repeat((LONGEST - 8) / text.len());
            let started = std::time::Instant::now();
            let _ = after_thinking(&long);
            assert!(started.elapsed().as_secs() < 5, "{text}");
        }
    }
}
