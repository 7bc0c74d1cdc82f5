//! Languages of the Latin script. A statistical detector says which of those it knows is nearest; common words say whether it is near.
//!
//! `lingua` was built with ten languages and takes every text for one of them: Dutch for German, Tagalog for Indonesian, Hausa for Swahili or
//! Yoruba, each with a confidence of 1. Its answer counts where the text has enough of the commonest words of that language, and at least as many as
//! of any other language, known or not ([`Words`]); all else is unknown. `tests/fixtures/languages.txt` has sentences to measure it by: of
//! its first 3, 6 and 12 words
//!
//! | words | of the ten, named right | named wrong | of thirteen others, taken for one of the ten |
//! |---|---|---|---|
//! | 3 | 43 of 50 | 0 | 0 of 65 |
//! | 6 | 49 of 50 | 0 | 1 of 65 |
//! | 12 | 50 of 50 | 0 | 0 of 65 |
//!
//! Among two candidates ([`language_among`]: English and the language it is in) all are named right, and of the others 5, 3 and 0 of 65 are taken for
//! one of the two. What is no better than this: a close relative without words of its own here (Malay without one of its own is Indonesian, Nigerian
//! Pidgin may be English), and prose without function words (a list of ingredients), which is unknown.

use crate::text::wording;
use lingua::{Language, LanguageDetector, LanguageDetectorBuilder};
use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

static NEAREST: LazyLock<LanguageDetector> = LazyLock::new(|| LanguageDetectorBuilder::from_all_languages().build());
static WORDS: LazyLock<Words> = LazyLock::new(|| Words::read(include_str!("words.txt")));

/// More words of a text change nothing but the time that it takes.
const ENOUGH_WORDS: usize = 120;
/// Of fewer words nothing is said, but where the letters are of one language only.
const FEWEST_WORDS: usize = 3;
/// Share of common words in a text of the language. In prose of the ten it is 0.3 to 0.6; other languages share some of them by chance.
const COMMON_SHARE: f64 = 0.2;
/// Common words that a text must have, however short it is.
const FEWEST_COMMON: usize = 2;
/// Share of words with a letter that only Vietnamese has.
const VIETNAMESE_SHARE: f64 = 0.25;
/// Words without a common one that the detector's certainty is enough for, among candidates: prose of more has some.
const FEW_WORDS: usize = 8;

/// The ISO 639-1 code of the language of a Latin-script text, one of those that are known; `None` where it is none of them or too short to tell.
pub(super) fn language(sample: &str) -> Option<String> {
    let text = Text::of(sample);
    if text.is_vietnamese() {
        return Some("vi".to_owned());
    }
    if text.words.len() < FEWEST_WORDS {
        return None;
    }
    let (code, _) = *nearest(sample).first()?;
    let n_common = text.n_common(code);
    let is_common = n_common >= FEWEST_COMMON && n_common as f64 >= COMMON_SHARE * text.words.len() as f64;
    (is_common && text.n_common_of_others(code, &[]) <= n_common).then(|| code.to_owned())
}

/// As [`language`], where the text is likely in one of `candidates`: fewer words decide between them.
pub(super) fn language_among(sample: &str, candidates: &[&str]) -> Option<String> {
    if let Some(known) = language(sample) {
        return Some(known);
    }
    let text = Text::of(sample);
    let ranked = nearest(sample);
    let (nearest_of_all, confidence) = *ranked.first()?;
    let &(code, _) = ranked.iter().find(|(code, _)| candidates.contains(code))?;
    let n_common = text.n_common(code);
    // Either its own words say so, and no other language's do as well, or the detector is sure and no other language's words speak against it.
    let is_worded =
        n_common > 0 && text.n_common_of_others(code, candidates) <= n_common && text.n_common_of_others(code, &[]) < 2 * n_common;
    let is_worded = is_worded && n_common as f64 >= 0.5 * COMMON_SHARE * text.words.len() as f64;
    let is_sure = nearest_of_all == code && confidence >= 0.9 && (FEWEST_WORDS..=FEW_WORDS).contains(&text.words.len());
    (is_worded || is_sure && text.n_common_of_others(code, &[]) == 0).then(|| code.to_owned())
}

/// Whether a Latin-script text of some length is certainly not in `lang`, which is known: hardly a word of it is common there.
pub(super) fn is_foreign_to(sample: &str, lang: &str) -> bool {
    let text = Text::of(sample);
    let n_words = text.words.len();
    WORDS.of.contains_key(lang) && n_words >= 12 && (text.n_common(lang) as f64) < 0.5 * COMMON_SHARE * n_words as f64
}

/// The known languages, nearest first, with the detector's confidence.
fn nearest(sample: &str) -> Vec<(&'static str, f64)> {
    let values = NEAREST.compute_language_confidence_values(sample);
    values.into_iter().filter_map(|(language, confidence)| Some((code(language)?, confidence))).collect()
}

fn code(language: Language) -> Option<&'static str> {
    let code = language.iso_code_639_1().to_string();
    WORDS.known.iter().find(|known| **known == code).copied()
}

/// Common words by language.
struct Words {
    /// Codes of the languages that the detector knows.
    known: Vec<&'static str>,
    of: HashMap<&'static str, HashSet<&'static str>>,
}

impl Words {
    fn read(text: &'static str) -> Self {
        let mut words = Self { known: Vec::new(), of: HashMap::new() };
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (name, list) = line.split_once(' ').unwrap_or((line, ""));
            let lang = name.trim_start_matches('-');
            if lang == name {
                words.known.push(lang);
            }
            words.of.insert(lang, list.split(' ').collect());
        }
        words
    }
}

/// A text as words.
struct Text {
    words: Vec<String>,
}

impl Text {
    fn of(sample: &str) -> Self {
        let said = wording(sample);
        let words = said.split(|c: char| !(c.is_alphanumeric() || c == '\'' || ('\u{300}'..='\u{36f}').contains(&c)));
        let words = words.map(|word| word.trim_matches('\'')).filter(|word| word.contains(char::is_alphabetic));
        Self { words: words.take(ENOUGH_WORDS).map(str::to_owned).collect() }
    }

    fn n_common(&self, lang: &str) -> usize {
        WORDS.of.get(lang).map_or(0, |common| self.words.iter().filter(|word| common.contains(word.as_str())).count())
    }

    /// The most common words of any other language; of those among `languages` only, where there are any.
    fn n_common_of_others(&self, lang: &str, languages: &[&str]) -> usize {
        let others = WORDS.of.keys().filter(|other| **other != lang && (languages.is_empty() || languages.contains(other)));
        others.map(|other| self.n_common(other)).max().unwrap_or(0)
    }

    /// Whether the letters say so: `ơ`, `ư` and letters with two marks are in no other language's words.
    fn is_vietnamese(&self) -> bool {
        let is_its_own = |c: char| matches!(c, 'ơ' | 'ư' | 'ạ'..='ỹ') && !matches!(c, 'ẹ' | 'ọ' | 'ẽ' | 'ỹ' | 'ị' | 'ụ' | 'ạ');
        let n = self.words.iter().filter(|word| word.contains(is_its_own)).count();
        n > 0 && n as f64 >= VIETNAMESE_SHARE * self.words.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const SENTENCES: &str = include_str!("../../../tests/fixtures/languages.txt");

    /// Language, whether it is known, sentence.
    fn sentences() -> impl Iterator<Item = (&'static str, bool, &'static str)> {
        let mut lang = ("", true);
        SENTENCES.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).filter_map(move |line| {
            match line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                Some(name) => {
                    lang = (name.trim_end_matches(" unknown"), !name.ends_with("unknown"));
                    None
                }
                None => Some((lang.0, lang.1, line)),
            }
        })
    }

    /// By number of words and whether the language is known: sentences, those named right, those named wrong.
    fn measured(detect: impl Fn(&str, &str) -> Option<String>) -> BTreeMap<(usize, bool), [usize; 3]> {
        let mut counts: BTreeMap<(usize, bool), [usize; 3]> = BTreeMap::new();
        for (lang, is_known, sentence) in sentences() {
            for n_words in [3, 6, 12] {
                let text = sentence.split(' ').take(n_words).collect::<Vec<_>>().join(" ");
                let found = detect(&text, lang);
                let is_right = found.as_deref() == is_known.then_some(lang);
                let is_wrong = found.is_some() && !is_right;
                let count = counts.entry((n_words, is_known)).or_default();
                count[0] += 1;
                count[1] += usize::from(is_right);
                count[2] += usize::from(is_wrong);
            }
        }
        counts
    }

    /// Sentences named right at least, named wrong at most, by number of words; the module's table says what they are.
    fn assert_measured(counts: &BTreeMap<(usize, bool), [usize; 3]>, known: [[usize; 2]; 3], unknown: [usize; 3]) {
        for ((n_words, [right, wrong]), wrong_unknown) in [3, 6, 12].into_iter().zip(known).zip(unknown) {
            let ([n, n_right, n_wrong], [n_unknown, _, n_named]) = (counts[&(n_words, true)], counts[&(n_words, false)]);
            assert_eq!((n, n_unknown), (50, 65));
            assert!(n_right >= right && n_wrong <= wrong && n_named <= wrong_unknown, "{n_words} words: {counts:?}");
        }
    }

    #[test]
    fn languages_that_are_not_known_are_unknown() {
        assert_measured(&measured(|text, _| language(text)), [[43, 0], [49, 0], [50, 0]], [0, 1, 0]);
    }

    #[test]
    fn fewer_words_decide_among_candidates() {
        assert_measured(&measured(|text, lang| language_among(text, &[lang, "en"])), [[50, 0], [50, 0], [50, 0]], [5, 3, 0]);
    }

    #[test]
    fn few_words_of_the_sort_that_answers_have() {
        for (text, lang) in [
            ("Yes, of course you can borrow it.", Some("en")),
            ("Ndiyo, unaweza kuazima mwavuli wangu.", Some("sw")),
            ("Trộn bột với nước.", Some("vi")),
            ("Karibu", None),
            ("Umbrella, flour", None),
            ("Mvula itasiya tinayenda pang'onopang'ono kupita kunyumba chifukwa njira inali idakali yonyowa kwambiri", None),
            ("Ame ga yanda node watashitachi wa yukkuri aruite ie ni kaerimashita michi wa mada nurete", None),
        ] {
            assert_eq!(language(text).as_deref(), lang, "{text}");
            assert_eq!(language_among(text, &["sw", "en"]).as_deref(), lang, "{text}");
        }
        assert_eq!(language_among("Changanya unga, maji na chumvi.", &["sw", "en"]).as_deref(), Some("sw"));
    }

    #[test]
    fn a_text_is_foreign_where_none_of_its_words_are_common() {
        for (lang, is_known, sentence) in sentences() {
            for (other, ..) in sentences().filter(|(_, is_known, _)| *is_known) {
                if lang == other {
                    assert!(!is_foreign_to(sentence, lang), "{lang}: {sentence}");
                } else if !is_known && matches!(lang, "nl" | "tr" | "pl" | "fi") && matches!(other, "sw" | "vi") {
                    assert!(is_foreign_to(sentence, other), "{lang} as {other}: {sentence}");
                }
            }
        }
        assert!(!is_foreign_to("Toen de regen ophield", "sw"), "too short to tell");
    }
}
