//! Reading a number off an answer, in the ways of the public scorers; pure functions of text.
//!
//! `simple-evals` is the scorer of OpenAI's simple-evals: the last number behind the last "Answer:" of the language. It takes digits of any script
//! for digits, but compares them as text, so an answer in Bengali digits is wrong; `normalized` is the same with digits made ASCII first.
//! `strict-match` and `flexible-extract` are those of lm-evaluation-harness' task `mgsm_native_cot_LANG`, whose comparison drops all ASCII
//! punctuation from both sides: to it `-5` is `5`, and `18.5` is `185`.

use super::language::Language;
use crate::text::{comparable, digits};

/// A way of reading an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    SimpleEvals,
    Normalized,
    StrictMatch,
    FlexibleExtract,
}

impl Filter {
    pub const fn name(self) -> &'static str {
        match self {
            Filter::SimpleEvals => "simple-evals",
            Filter::Normalized => "normalized",
            Filter::StrictMatch => "strict-match",
            Filter::FlexibleExtract => "flexible-extract",
        }
    }

    /// What is read off the text; where nothing is, the empty text, and lm-evaluation-harness' `[invalid]` for its own two.
    pub fn parse(self, text: &str, language: &Language) -> String {
        let invalid = || "[invalid]".to_owned();
        match self {
            Filter::SimpleEvals => behind_prefix(text, language.answer),
            Filter::Normalized => behind_prefix(&digits::to_ascii(&comparable(text)), &comparable(language.answer)),
            Filter::StrictMatch => strict(text, language.sentence).map_or_else(invalid, str::to_owned),
            Filter::FlexibleExtract => flexible(text).map_or_else(invalid, str::to_owned),
        }
    }

    /// Whether what was read is the right answer.
    pub fn is_correct(self, parsed: &str, target: &str) -> bool {
        match self {
            Filter::SimpleEvals | Filter::Normalized => {
                let parsed = if parsed.contains('.') { parsed.trim_end_matches('0').trim_end_matches('.') } else { parsed };
                parsed.replace(',', "") == target.replace(',', "")
            }
            Filter::StrictMatch | Filter::FlexibleExtract => {
                let bare = |text: &str| text.to_lowercase().replace(|c: char| c.is_ascii_punctuation(), "");
                bare(parsed) == bare(target)
            }
        }
    }

    /// Whether anything was read.
    pub fn found(self, parsed: &str) -> bool {
        !parsed.is_empty() && parsed != "[invalid]"
    }
}

/// The last `\d+\.?\d*` behind the last `prefix`, thousands separators aside.
fn behind_prefix(text: &str, prefix: &str) -> String {
    let Some((_, answer)) = text.rsplit_once(prefix) else { return String::new() };
    let characters: Vec<char> = answer.chars().filter(|c| *c != ',').collect();
    let is_digit = |at: usize| characters.get(at).is_some_and(|c| digits::value(*c).is_some());
    let mut last = String::new();
    let mut at = 0;
    while at < characters.len() {
        let start = at;
        while is_digit(at) {
            at += 1;
        }
        if at == start {
            at += 1;
            continue;
        }
        if characters.get(at) == Some(&'.') {
            at += 1;
            while is_digit(at) {
                at += 1;
            }
        }
        last = characters[start..at].iter().collect();
    }
    last.trim_end_matches('.').to_owned()
}

/// The first `(\-?[0-9\.\,]+)` between the words of the language's closing sentence.
fn strict<'t>(text: &'t str, (before, behind): (&str, &str)) -> Option<&'t str> {
    text.match_indices(before).find_map(|(at, _)| {
        let rest = &text[at + before.len()..];
        let number = sign_and(rest, 1, |c| c.is_ascii_digit() || c == '.' || c == ',')?;
        rest[number.len()..].starts_with(behind).then_some(number)
    })
}

/// The last match of `(-?[$0-9.,]{2,})|(-?[0-9]+)`.
fn flexible(text: &str) -> Option<&str> {
    let (mut last, mut rest) = (None, text);
    while let Some(c) = rest.chars().next() {
        let found = sign_and(rest, 2, |c| c.is_ascii_digit() || "$.,".contains(c)).or_else(|| sign_and(rest, 1, |c| c.is_ascii_digit()));
        last = found.or(last);
        rest = &rest[found.map_or(c.len_utf8(), str::len)..];
    }
    last
}

/// A minus sign or none, and as many characters of a class as there are, at least `n_least`.
fn sign_and(text: &str, n_least: usize, class: impl Fn(char) -> bool) -> Option<&str> {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    // The classes are ASCII: a character is a byte.
    let n = unsigned.find(|c| !class(c)).unwrap_or(unsigned.len());
    (n >= n_least).then(|| &text[..text.len() - unsigned.len() + n])
}

#[cfg(test)]
mod tests {
    use super::super::language::language;
    use super::*;

    fn read(filter: Filter, lang: &str, text: &str, target: &str) -> (String, bool) {
        let parsed = filter.parse(text, language(lang).unwrap());
        let is_correct = filter.is_correct(&parsed, target);
        (parsed, is_correct)
    }

    /// Language, text, right answer, and what the scorer of simple-evals (github.com/openai/simple-evals, `mgsm_eval.py`) made of it when it was run.
    const OF_SIMPLE_EVALS: [(&str, &str, &str, &str, bool); 18] = [
        ("en", "Step 1...\nAnswer: 18", "18", "18", true),
        ("en", "Answer: $1,450", "1,450", "1450", true),
        ("en", "Answer: 18.0", "18", "18.0", true),
        ("en", "Answer: 18.50", "18", "18.50", false),
        ("en", "The result is 18", "18", "", false),
        ("en", "Answer: 3 boxes of 6 = 18", "18", "18", true),
        ("en", "Answer: -5", "5", "5", true),
        ("bn", "উত্তর: ১৮", "18", "১৮", false),
        ("bn", "উত্তর: 18", "18", "18", true),
        ("sw", "Jibu: 18", "18", "18", true),
        ("sw", "Answer: 18", "18", "", false),
        ("zh", "答案：18", "18", "18", true),
        ("zh", "答案是 18。", "18", "18", true),
        ("ja", "答え: 18ドル", "18", "18", true),
        ("th", "คำตอบ: 18", "18", "18", true),
        ("en", "Answer: 18. Answer: 20", "20", "20", true),
        ("en", "answer: 18", "18", "", false),
        ("en", "Answer: 2.5e3", "2500", "3", false),
    ];

    #[test]
    fn simple_evals_reads_as_the_public_scorer_does() {
        for (lang, text, target, parsed, correct) in OF_SIMPLE_EVALS {
            assert_eq!(read(Filter::SimpleEvals, lang, text, target), (parsed.to_owned(), correct), "{text}");
        }
    }

    #[test]
    fn normalized_differs_from_it_in_digits_alone() {
        for (lang, text, target, parsed, correct) in OF_SIMPLE_EVALS {
            let is_bengali = parsed == "১৮";
            let expected = if is_bengali { ("18".to_owned(), true) } else { (parsed.to_owned(), correct) };
            assert_eq!(read(Filter::Normalized, lang, text, target), expected, "{text}");
        }
        assert_eq!(read(Filter::Normalized, "bn", "উত্তর: ১,৪৫০", "1450"), ("1450".to_owned(), true));
        assert_eq!(read(Filter::Normalized, "th", "คำตอบ: ๑๘.๐", "18"), ("18.0".to_owned(), true));
    }

    #[test]
    fn strict_match_wants_the_closing_sentence() {
        let strict = |lang, text| read(Filter::StrictMatch, lang, text, "1450");
        assert_eq!(strict("sw", "… Jibu ni 1,450."), ("1,450.".to_owned(), true));
        assert_eq!(strict("sw", "Jibu: 1450"), ("[invalid]".to_owned(), false));
        assert_eq!(strict("ja", "答えは1450です。"), ("1450".to_owned(), true));
        assert_eq!(strict("ja", "答えは1450円です。答えは7です。"), ("7".to_owned(), false), "the first that is whole");
        assert_eq!(strict("en", "The answer is 1450. The answer is 2"), ("1450.".to_owned(), true), "the first");
        // The harness has this sentence for Bengali.
        assert_eq!(strict("bn", "The answer is -1450"), ("-1450".to_owned(), true), "its comparison knows no sign");
    }

    /// As `re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", text)[-1]` in Python 3.
    #[test]
    fn flexible_extract_takes_the_last_number() {
        let flexible = |text| read(Filter::FlexibleExtract, "en", text, "18").0;
        for (text, parsed) in [
            ("She has 3 and 15, so 18", "18"),
            ("costs $18.", "$18."),
            ("is -5", "-5"),
            ("18 ...", "..."),
            ("a - 7", "7"),
            ("18 eggs, and", "18"),
            ("--18,", "-18,"),
            ("১৮", "[invalid]"),
            ("none", "[invalid]"),
        ] {
            assert_eq!(flexible(text), parsed, "{text}");
        }
        assert!(read(Filter::FlexibleExtract, "en", "it is $18.", "18").1);
    }
}
