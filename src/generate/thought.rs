//! What a model thinks before it answers, told from the answer: the one place that knows how models mark their thoughts.
//!
//! ```text
//! <think>They ask about bread, which is harmless.</think>Mix flour and water.
//!        thought                                         answer
//! ```
//!
//! A thought stands at the beginning of a text, behind white space at most; a mark further down is what the answer is about. Where the chat template
//! itself opens the thought, the generator puts that mark in front of the text, so that a text says everything about itself. Without the mark that
//! ends it, all of a text is thought, and its answer is empty.

mod marks;

pub use marks::{is_channel, is_mark};

use marks::{CHANNEL, FINAL, MARKS, MESSAGE, Named, WORDS, find, range, strip_prefix, strip_suffix};
use std::ops::Range;

/// Room for a thought in front of an answer, in tokens, where nobody says how long an answer may be. Models that think are published with tens of
/// thousands; most thoughts about a short question end within some hundred, and what does not end is counted.
pub const ROOM: usize = 4096;

/// A text, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts<'t> {
    /// From behind the mark that begins it to the one that ends it; of several thoughts in a row all that lies between the first and the last mark.
    pub thought: Option<&'t str>,
    /// What the user is told. A text without a thought is all answer, as it stands.
    pub answer: &'t str,
    /// Where the answer begins, in bytes.
    pub answer_at: usize,
    /// Whether the text ends within its thought: then there is no answer.
    pub is_unfinished: bool,
}

impl<'t> Parts<'t> {
    /// Whether something was thought: templates that turn thinking off, and models that were taught to, leave marks with nothing between.
    pub fn has_thought(&self) -> bool {
        self.thought.is_some_and(|thought| !thought.trim().is_empty())
    }

    fn all_answer(text: &'t str) -> Self {
        Self { thought: None, answer: text, answer_at: 0, is_unfinished: false }
    }

    fn unfinished(text: &'t str, thought_at: usize) -> Self {
        Self { thought: Some(&text[thought_at..]), answer: "", answer_at: text.len(), is_unfinished: true }
    }

    /// `text` with an answer behind `thought_end`, out of the marks that some models put around it.
    fn answered(text: &'t str, thought: Range<usize>, behind: usize) -> Self {
        let mut answer = text[behind..].trim_start();
        for (open, close) in ANSWERS {
            if let Some(inner) = strip_prefix(answer, open) {
                answer = strip_suffix(inner.trim_end(), close).map_or(inner.trim_start(), str::trim);
                break;
            }
        }
        let answer_at = answer.as_ptr() as usize - text.as_ptr() as usize;
        Self { thought: Some(text[thought].trim()), answer, answer_at, is_unfinished: false }
    }
}

/// What some models put around an answer behind a thought.
const ANSWERS: [(&str, &str); 6] = [
    ("<answer>", "</answer>"),
    ("<response>", "</response>"),
    ("<output>", "</output>"),
    ("<solution>", "</solution>"),
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
];

/// Takes a text apart.
pub fn split(text: &str) -> Parts<'_> {
    if let Some(parts) = split_channels(text) {
        return parts;
    }
    let mut thought: Option<Range<usize>> = None;
    let mut behind = 0;
    // A model may think twice before it says something.
    loop {
        let at = text.len() - text[behind..].trim_start().len();
        match thought_at(text, at) {
            None => break,
            Some(Thought { begins, ends: None }) => return Parts::unfinished(text, thought.map_or(begins, |thought| thought.start)),
            Some(Thought { begins, ends: Some(ends) }) => {
                behind = ends.end;
                thought = Some(thought.map_or(begins, |thought| thought.start)..ends.start);
            }
        }
    }
    match (thought, end_without_beginning(text)) {
        (Some(thought), _) => Parts::answered(text, thought, behind),
        (None, Some(ends)) => Parts::answered(text, 0..ends.start, ends.end),
        (None, None) => Parts::all_answer(text),
    }
}

/// What the user is told: a text without its thought.
pub fn answer(text: &str) -> &str {
    split(text).answer
}

/// The mark with which a prompt leaves a thought open for the model to go on with, to the prompt's end.
pub fn left_open(prompt: &str) -> Option<&str> {
    let ended = prompt.trim_end();
    let harmony = format!("{CHANNEL}analysis{MESSAGE}");
    let fixed = MARKS.iter().map(|(open, _)| *open).filter(|open| !WORDS.contains(open)).chain([harmony.as_str()]);
    for open in fixed {
        if let Some(before) = strip_suffix(ended, open) {
            return Some(&prompt[before.len()..]);
        }
    }
    let at = ended.rfind(['<', '['])?;
    let named = Named::at(&ended[at..]).filter(|named| !named.closes && named.is_certain())?;
    (named.length == ended.len() - at).then(|| &prompt[at..])
}

/// Where a thought begins, behind its mark, and the mark that ends it.
struct Thought {
    begins: usize,
    ends: Option<Range<usize>>,
}

/// The thought whose mark stands at `at`.
fn thought_at(text: &str, at: usize) -> Option<Thought> {
    let rest = &text[at..];
    for (open, closes) in MARKS {
        let Some(inner) = strip_prefix(rest, open) else { continue };
        let begins = text.len() - inner.len();
        let ends = closes.iter().filter_map(|close| range(text, begins, close)).min_by_key(|range| range.start);
        if ends.is_none() && WORDS.contains(&open) {
            return None;
        }
        return Some(Thought { begins, ends });
    }
    let named = Named::at(rest).filter(|named| !named.closes)?;
    let begins = at + named.length;
    let ends = range(text, begins, &named.closing());
    (ends.is_some() || named.is_certain()).then_some(Thought { begins, ends })
}

/// The first mark that ends a thought which none began: the template did, in a text that does not say so. Not one that is quoted, nor one that ends
/// what the text itself began further up.
fn end_without_beginning(text: &str) -> Option<Range<usize>> {
    let fixed =
        MARKS.iter().filter(|(open, _)| !WORDS.contains(open)).flat_map(|(open, closes)| closes.iter().map(move |close| (*open, *close)));
    let fixed = fixed.filter_map(|(open, close)| Some((range(text, 0, close)?, open.to_owned())));
    let named = text.match_indices(['<', '[']).filter_map(|(at, _)| {
        let named = Named::at(&text[at..]).filter(|named| named.closes)?;
        Some((at..at + named.length, named.opening()))
    });
    let mut ends: Vec<(Range<usize>, String)> = fixed.chain(named).collect();
    ends.sort_by_key(|(mark, _)| mark.start);
    // Where one mark was begun in the text, all later ones of its kind were.
    let mut begun: Vec<String> = Vec::new();
    for (mark, open) in ends {
        if begun.contains(&open) || is_quoted(text, &mark) {
            continue;
        }
        if find(&text[..mark.start], &open).is_none() {
            return Some(mark);
        }
        begun.push(open);
    }
    None
}

/// Whether a mark is talked about: between quotes, or in the midst of a sentence.
fn is_quoted(text: &str, mark: &Range<usize>) -> bool {
    let line = |text: &str| !text.contains('\n');
    let (before, behind) = (&text[..mark.start], &text[mark.end..]);
    let is_quote = |c: char| matches!(c, '`' | '"' | '\'' | '“' | '”' | '‘' | '’' | '«' | '»' | '「' | '」' | '(' | ')');
    if before.ends_with(is_quote) || behind.starts_with(is_quote) {
        return true;
    }
    let (words_before, words_behind) = (before.trim_end(), behind.trim_start());
    let in_line = line(&before[words_before.len()..]) && line(&behind[..behind.len() - words_behind.len()]);
    let goes_on = |c: char| c.is_lowercase() || matches!(c, ',' | '.' | ';' | '?');
    in_line && words_before.ends_with(|c: char| c.is_alphanumeric() || c == ',') && words_behind.starts_with(goes_on)
}

/// A text of messages on channels.
fn split_channels(text: &str) -> Option<Parts<'_>> {
    let begun = text.trim_start();
    let begun = strip_prefix(begun, "<|start|>assistant").unwrap_or(begun);
    let inner = strip_prefix(begun, CHANNEL)?;
    let begins = text.len() - inner.len();
    // Of a message the channel stands between its two marks, with other words behind its name.
    let mut at = begins;
    loop {
        if strip_prefix(text[at..].trim_start(), FINAL).is_some() {
            let Some(message) = range(text, at, MESSAGE) else { return Some(Parts::unfinished(text, begins)) };
            let ends = ["<|return|>", "<|end|>"].iter().filter_map(|mark| range(text, message.end, mark)).map(|range| range.start).min();
            let mut parts = Parts::answered(&text[..ends.unwrap_or(text.len())], begins..begins, message.end);
            parts.thought = text.get(begins..at - CHANNEL.len()).filter(|thought| !thought.is_empty());
            return Some(parts);
        }
        match range(text, at, CHANNEL) {
            Some(next) => at = next.end,
            None => return Some(Parts::unfinished(text, begins)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BREAD: &str = "Mix flour and water, then wait an hour.";
    const ABOUT: &str = "They ask about bread. I cannot see any harm.\nSo a recipe it is.";

    /// Marks of models before and behind a thought, and what some put around the answer.
    const MODELS: [(&str, &str, &str); 27] = [
        // Qwen3, DeepSeek, GLM and many more.
        ("<think>\n", "\n</think>\n\n", ""),
        ("<think>", "</think>", ""),
        ("\n\n  <think>", "</think>", ""),
        ("<Think>", "</THINK>", ""),
        ("<thinking>\n", "\n</thinking>\n", ""),
        ("<thought>", "</thought>\n", ""),
        ("<reasoning>\n", "\n</reasoning>\n<answer>\n", "\n</answer>"),
        ("<think>", "</think><answer>", "</answer>\n"),
        ("<think>", "</think>\n<answer>", ""),
        ("<Thought>\n", "\n</Thought>\n<Output>\n", "\n</Output>"),
        ("<think>\n", "</think>\n\n<response>\n", "\n</response>\n"),
        ("<seed:think>", "</seed:think>", ""),
        ("<longcat_think>\n", "\n</longcat_think>\n", ""),
        ("<scratchpad>", "</scratchpad>\n\n", ""),
        ("<think budget=\"9\">", "</think>", ""),
        ("<|think|>", "<|/think|>", ""),
        ("[THINK]", "[/THINK]", ""),
        ("[thinking]", "[/thinking]\n", ""),
        ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>", "<|END_RESPONSE|>"),
        ("<|begin_of_thought|>\n\n", "\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n", "\n\n<|end_of_solution|>"),
        ("<|channel>thought\n", "\n<channel|>", ""),
        ("<unused94>thought\n", "<unused95>", ""),
        ("◁think▷", "◁/think▷", ""),
        ("<|inner_prefix|>", "<|inner_suffix|>", ""),
        ("Here is my thought process:\n\n", "\n\nHere is my response:\n\n", ""),
        ("Here are my reasoning steps:\n", "\n[BEGIN FINAL RESPONSE]\n", ""),
        ("analysis", "assistantfinal", ""),
    ];

    #[test]
    fn thoughts_of_many_models_are_told_from_their_answers() {
        for (open, close, end) in MODELS {
            for (thought, answer) in
                [(ABOUT, BREAD), ("面包无害。", "先把面粉和水混合。"), ("`</p>` < 3 > 2 [1] | x", "Ndiyo. <b>1</b> [2]")]
            {
                let text = format!("{open}{thought}{close}{answer}{end}");
                let parts = split(&text);
                assert_eq!((parts.thought, parts.answer, parts.is_unfinished), (Some(thought), answer, false), "{text:?}");
                assert!(parts.has_thought() && text[parts.answer_at..].starts_with(answer));
                assert_eq!(split(parts.answer).answer, answer, "what is taken apart is not taken apart again");
            }
        }
    }

    #[test]
    fn a_thought_that_does_not_end_leaves_no_answer() {
        for (open, _, _) in MODELS {
            let text = format!("{open}{ABOUT}");
            let parts = split(&text);
            if WORDS.iter().any(|word| open.starts_with(word)) || open == "[thinking]" {
                assert_eq!(parts, Parts::all_answer(&text), "{text:?} may be an answer");
                continue;
            }
            assert_eq!(
                (parts.thought, parts.answer, parts.is_unfinished, parts.answer_at),
                (Some(&text[text.len() - parts.thought.unwrap().len()..]), "", true, text.len())
            );
            assert!(parts.thought.unwrap().trim() == ABOUT, "{text:?}");
        }
        for text in ["<think>", "<think>\n", "<|channel|>analysis<|message|>Bread?", "<|channel|>final", "<think>a</think><think>b"] {
            assert!(split(text).is_unfinished && split(text).answer.is_empty(), "{text}");
        }
        // The mark itself is cut off.
        assert_eq!(split("<thi").answer, "<thi");
        assert!(split("<think>all of it</thin").is_unfinished);
    }

    #[test]
    fn gpt_oss_answers_on_its_last_channel() {
        let thought = "<|channel|>analysis<|message|>Bread is harmless.<|end|><|start|>assistant";
        for end in ["", "<|return|>", "<|end|>"] {
            let text = format!("{thought}<|channel|>final<|message|>{BREAD}{end}");
            assert_eq!((split(&text).answer, split(&text).has_thought()), (BREAD, true), "{text}");
        }
        let text = format!(
            "{thought}<|channel|>commentary<|message|>I look it up.<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>{{}}"
        );
        assert_eq!(split(&text).answer, "{}");
        let silent = format!("<|channel|>final<|message|>{BREAD}");
        assert_eq!((split(&silent).answer, split(&silent).thought), (BREAD, None));
    }

    #[test]
    fn a_mark_further_down_is_what_the_answer_is_about() {
        for text in [
            "Models write <think> before they answer and </think> behind it.",
            "Sure. <think>like this</think> they think.",
            "The tag `</think>` ends a thought.",
            "Write \"</think>\" in the end.",
            "A thought ends with </think>, and an answer follows.",
            "Use </think>.",
            "[thinking] she wrote, [laughing] he wrote.",
            "<p>bread</p>",
            "<thinking of bread> she wrote",
            "<b>Thinking</b> about bread </b>",
            "Analysis of bread: it is flour and water.",
            "Here is my thought process: first flour, then water.",
            "If a < b and b > c then [x] </i>",
            "1 </ think> 2",
            "",
            " \n",
        ] {
            assert_eq!(split(text), Parts::all_answer(text));
        }
    }

    #[test]
    fn a_thought_that_the_prompt_began_ends_where_it_says() {
        for close in
            ["\n</think>\n\n", "</think>", " </think> ", "\n</thinking>\n", "[/THINK]", "<channel|>", "</seed:think>", "<|END_THINKING|>"]
        {
            let text = format!("{ABOUT}{close}{BREAD}");
            assert_eq!((split(&text).thought, split(&text).answer), (Some(ABOUT), BREAD), "{text:?}");
        }
        let text = format!("\n</think>\n\n{BREAD}");
        assert_eq!((split(&text).answer, split(&text).has_thought()), (BREAD, false));
    }

    #[test]
    fn several_thoughts_in_a_row_and_empty_ones() {
        let text = format!("<think>a</think>\n<think>b</think>\n{BREAD}");
        assert_eq!((split(&text).thought, split(&text).answer), (Some("a</think>\n<think>b"), BREAD));
        let text = format!("<think>\n\n</think>\n\n{BREAD}");
        assert_eq!((split(&text).answer, split(&text).has_thought()), (BREAD, false));
        // What is quoted within a thought may end it early; then it is judged, which is the safer of two mistakes.
        assert_eq!(split("<think>it ends with </think> I know</think>bread").answer, "I know</think>bread");
        assert_eq!(split("<think>a</think>").answer, "");
    }

    #[test]
    fn a_prompt_may_leave_a_thought_open() {
        let turn = "<|im_start|>assistant\n";
        for (prompt, open) in [
            (format!("{turn}<think>\n"), Some("<think>\n")),
            (format!("{turn}<think>"), Some("<think>")),
            (format!("{turn}<|channel>thought\n"), Some("<|channel>thought\n")),
            ("<|start|>assistant<|channel|>analysis<|message|>".into(), Some("<|channel|>analysis<|message|>")),
            (format!("{turn}[THINK]"), Some("[THINK]")),
            (format!("{turn}<|START_THINKING|>"), Some("<|START_THINKING|>")),
            (format!("{turn}◁think▷"), Some("◁think▷")),
            (format!("{turn}<think>\n\n</think>\n\n"), None),
            (turn.into(), None),
            ("Tell me your analysis".into(), None),
            ("傘傘傘傘傘傘傘傘傘".into(), None),
            (String::new(), None),
        ] {
            assert_eq!(left_open(&prompt), open, "{prompt}");
        }
    }

    /// Hostile texts are long.
    #[test]
    fn no_text_takes_long() {
        for text in
            ["<".repeat(200_000), "[think".repeat(30_000), "<think>".repeat(30_000), "</think>".repeat(30_000), "傘<".repeat(50_000)]
        {
            let started = std::time::Instant::now();
            split(&text);
            assert!(started.elapsed().as_secs() < 5, "{}", &text[..12]);
        }
    }
}
