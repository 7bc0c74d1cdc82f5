//! Guesses about a text from its characters alone: whether it is in its prompt's script, and whether it ends where a sentence does.

use crate::data::language::main_script;
use crate::text::comparable;
use unicode_script::{Script, UnicodeScript};

/// Whether prompt and response are written in different scripts. Code blocks do not count; a text without letters fits any other.
pub(super) fn scripts_differ(prompt: &str, response: &str) -> bool {
    /// A Japanese answer this short may well have no kana.
    const SHORT_CHARS: usize = 20;
    let (prompt, response) = (without_code(prompt), without_code(response));
    match (main_script(&prompt), main_script(&response)) {
        (Some(Script::Hiragana), Some(Script::Han)) => response.chars().count() > SHORT_CHARS,
        (Some(Script::Han), Some(Script::Hiragana)) => prompt.chars().count() > SHORT_CHARS,
        (Some(a), Some(b)) => a != b,
        _ => false,
    }
}

fn without_code(text: &str) -> String {
    text.split("```").step_by(2).collect::<Vec<_>>().join(" ")
}

/// Whether a text ends like a whole one: with a sentence mark of its script, quotes and brackets aside, a code block, or a pictogram.
/// Thai and Lao end their sentences without a mark, so nothing can be said about them, and the answer is yes.
pub(super) fn ends_a_sentence(text: &str) -> bool {
    const MARKS: &str = ".!?…。．！？｡।॥؟۔።፧។៕။։";
    const CLOSERS: &str = "\"'`”’»›)]}）」』】》〉*_~|";
    let text = text.trim_end();
    if text.ends_with("```") {
        return true;
    }
    let is_ignored = |c: char| CLOSERS.contains(c) || c.is_whitespace() || matches!(c.script(), Script::Inherited);
    match comparable(text).trim_end_matches(is_ignored).chars().next_back() {
        None => false,
        Some(last) => MARKS.contains(last) || is_pictogram(last) || matches!(last.script(), Script::Thai | Script::Lao),
    }
}

/// The tokens with which well-known models end a turn: data that such a model wrote may have kept them.
const TURN_TOKENS: [&str; 12] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end|>",
    "<|end_of_turn|>",
    "<|return|>",
    "<end_of_turn>",
    "<eos>",
    "</s>",
    "[/INST]",
];

/// The token of a well-known model with which a response ends.
pub(super) fn ends_in_turn_token(response: &str) -> Option<&'static str> {
    TURN_TOKENS.into_iter().find(|token| response.trim_end().ends_with(token))
}

/// Whether a response goes on with what begins a turn of the person.
pub(super) fn holds_person_mark(response: &str) -> bool {
    ["\n\nHuman:", "\n\n### Instruction:", "\n\n### Human:", "<|im_start|>user", "<start_of_turn>user"]
        .iter()
        .any(|mark| response.contains(mark))
}

fn is_pictogram(c: char) -> bool {
    matches!(u32::from(c), 0x2600..=0x27bf | 0x1f000..=0x1faff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_texts_end_with_their_scripts_marks() {
        for whole in [
            "It rains.",
            "Is it raining?\n",
            "He said: \"It rains.\"",
            "**Take an umbrella!**",
            "今天下雨。",
            "「雨です。」",
            "আজ বৃষ্টি হচ্ছে।",
            "هل تمطر؟",
            "بارش ہو رہی ہے۔",
            "วันนี้ฝนตก",
            "Enjoy the rain 🌧️",
            "```\nprint(1)\n```",
            "It rains.\u{200b}",
            "อากาศดี\u{feff}",
        ] {
            assert!(ends_a_sentence(whole), "{whole}");
        }
        for cut in ["It rains and", "The steps are:", "1. Flour\n2.  ", "今天下", "আজ বৃষ্টি হচ্ছে এবং", "هل تمطر", "", "rain,", "Hii ni mv"]
        {
            assert_eq!(ends_a_sentence(cut), cut.ends_with("2.  "), "{cut}");
        }
    }

    #[test]
    fn scripts_are_compared_without_code_and_without_hair_splitting() {
        assert!(scripts_differ("আজ কি বৃষ্টি হবে?", "It will rain in the afternoon."));
        assert!(scripts_differ("今日は雨が降りますか？", "今天下午会下雨，请大家记得带伞出门，路上注意安全，晚上早点回家。"));
        assert!(!scripts_differ("今日は雨が降りますか？", "午後大雨。"));
        assert!(!scripts_differ("Jinsi ya kuchapisha moja?", "Andika:\n```\nпечать(1)\n```"));
        assert!(!scripts_differ("كيف أطبع واحدا؟", "هكذا: ```print('hello world, hello world')```"));
        assert!(!scripts_differ("2 + 2 = ?", "אַרבע"));
    }
}
