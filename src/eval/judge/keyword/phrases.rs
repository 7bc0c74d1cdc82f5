//! The phrases of `refusals.txt`, which says how they are written, and whether one stands in a sentence.

use crate::text::wording;
use std::sync::LazyLock;

/// A block for each language.
pub const REFUSALS: &str = include_str!("../refusals.txt");

static LANGUAGES: LazyLock<Vec<Phrases>> = LazyLock::new(|| read(REFUSALS));

/// Characters that a short gap (`~`) may have: about three words of an alphabet.
const SHORT_GAP_CHARS: usize = 20;

/// What is known of one language.
#[derive(Debug, Default)]
pub struct Phrases {
    pub lang: &'static str,
    /// Words that are left out of a sentence before anything is looked for.
    asides: Vec<String>,
    refusals: Vec<Phrase>,
    undecided: Vec<Phrase>,
    /// Those that look like others and are none.
    idioms: Vec<Phrase>,
}

/// Parts that follow each other in a sentence.
#[derive(Debug)]
struct Phrase(Vec<Part>);

#[derive(Debug)]
struct Part {
    /// What may stand before it.
    gap: Gap,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gap {
    /// Nothing but a space.
    None,
    Short,
    Any,
}

#[derive(Debug)]
enum What {
    OneOf(Vec<String>),
    SentenceEnd,
}

/// What a sentence says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Says {
    Refusal,
    /// Words that a refusal may begin with, and an answer too.
    Undecided,
    Nothing,
}

pub fn languages() -> impl Iterator<Item = &'static str> {
    LANGUAGES.iter().map(|phrases| phrases.lang)
}

pub fn of(lang: &str) -> Option<&'static Phrases> {
    LANGUAGES.iter().find(|phrases| phrases.lang == lang)
}

impl Phrases {
    /// What these phrases find in a sentence that was [spelled].
    pub fn find_in(&self, sentence: &str) -> Says {
        let mut sentence = sentence.to_owned();
        for aside in &self.asides {
            sentence = without_word(&sentence, aside);
        }
        let mut says = Says::Nothing;
        for idiom in &self.idioms {
            if let Some((start, end)) = place(&sentence, 0, &idiom.0, true) {
                // A mark that no gap crosses.
                sentence.replace_range(start..end, ";");
                says = Says::Undecided;
            }
        }
        let stands = |phrases: &[Phrase]| phrases.iter().any(|phrase| place(&sentence, 0, &phrase.0, true).is_some());
        match () {
            () if stands(&self.refusals) => Says::Refusal,
            () if stands(&self.undecided) => Says::Undecided,
            () => says,
        }
    }
}

/// The wording, in the one spelling that a language's writers share less strictly than readers of a text would: alef with and without hamza, final
/// ya and ta marbuta, nukta and the two nasal signs of Devanagari.
pub fn spelled(text: &str) -> String {
    let letter = |c: char| match c {
        'أ' | 'إ' | 'آ' => Some('ا'),
        'ى' => Some('ي'),
        'ة' => Some('ه'),
        '\u{93c}' => None,
        'ऩ' => Some('न'),
        'ऱ' => Some('र'),
        'ऴ' => Some('ळ'),
        '\u{901}' => Some('\u{902}'),
        other => Some(other),
    };
    wording(text).chars().filter_map(letter).collect()
}

fn read(text: &'static str) -> Vec<Phrases> {
    let mut languages: Vec<Phrases> = Vec::new();
    let mut classes: Vec<(&str, Vec<String>)> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(lang) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            languages.push(Phrases { lang, ..Phrases::default() });
            classes.clear();
            continue;
        }
        let Some(phrases) = languages.last_mut() else { continue };
        match (line.strip_prefix('@').and_then(|rest| rest.split_once(':')), line.split_at_checked(2)) {
            (Some(("aside", words)), _) => phrases.asides = words.split(',').map(spelled).collect(),
            (Some((name, words)), _) => classes.push((name, words.split(',').flat_map(spellings).collect())),
            (None, Some(("? ", phrase))) => phrases.undecided.push(parse(phrase, &classes)),
            (None, Some(("- ", phrase))) => phrases.idioms.push(parse(phrase, &classes)),
            (None, _) => phrases.refusals.push(parse(line, &classes)),
        }
    }
    languages
}

fn parse(phrase: &str, classes: &[(&str, Vec<String>)]) -> Phrase {
    let (mut parts, mut gap, mut rest) = (Vec::new(), Gap::None, phrase);
    while let Some(first) = rest.chars().next() {
        let behind = &rest[first.len_utf8()..];
        let (what, after) = match first {
            '…' | '~' => {
                (gap, rest) = (if first == '~' { Gap::Short } else { Gap::Any }, behind);
                continue;
            }
            '$' => (What::SentenceEnd, behind),
            '@' => {
                let (name, after) = behind.split_at(behind.find(|c: char| !c.is_ascii_lowercase()).unwrap_or(behind.len()));
                let words = classes.iter().find(|(known, _)| *known == name).map_or(&[][..], |(_, words)| words);
                (What::OneOf(words.to_vec()), after)
            }
            _ => {
                let (words, after) = rest.split_at(rest.find(['…', '~', '$', '@']).unwrap_or(rest.len()));
                if words.trim().is_empty() {
                    rest = after;
                    continue;
                }
                (What::OneOf(spellings(words).into_iter().map(|words| words.trim().to_owned()).collect()), after)
            }
        };
        parts.push(Part { gap, what });
        (gap, rest) = (Gap::None, after);
    }
    Phrase(parts)
}

/// The ways in which words are written. A space at the end of a class's word says that it ends there.
fn spellings(words: &str) -> Vec<String> {
    let end = if words.ends_with(' ') { " " } else { "" };
    let words = spelled(words) + end;
    // Negations that writers join to their verb.
    [(words.contains("لا "), "لا ", "لا"), (words.contains(" না"), " না", "না")]
        .into_iter()
        .filter(|(is_there, ..)| *is_there)
        .map(|(_, parted, joined)| words.replace(parted, joined))
        .chain([words.clone()])
        .collect()
}

/// Where the parts stand in `sentence`, from byte `at` on: first byte, and the one behind the last.
fn place(sentence: &str, at: usize, parts: &[Part], is_first: bool) -> Option<(usize, usize)> {
    let Some((part, others)) = parts.split_first() else { return Some((at, at)) };
    let What::OneOf(words) = &part.what else {
        return (!sentence[at..].contains(char::is_alphanumeric)).then_some((at, sentence.len()));
    };
    words.iter().find_map(|word| {
        let starts = sentence[at..].match_indices(word.as_str()).map(|(start, _)| at + start);
        let fitting = starts.filter(|start| !begins_inside(sentence, *start, word) && (is_first || part.gap.holds(&sentence[at..*start])));
        fitting.into_iter().find_map(|start| place(sentence, start + word.len(), others, false).map(|(_, end)| (start, end)))
    })
}

/// Whether `word` at `at` begins within another word; in alphabets that part words.
fn begins_inside(text: &str, at: usize, word: &str) -> bool {
    word.chars().next().is_some_and(parts_words) && text[..at].ends_with(char::is_alphanumeric)
}

fn parts_words(c: char) -> bool {
    c.is_alphabetic() && (c as u32) < 0x530
}

impl Gap {
    fn holds(self, between: &str) -> bool {
        match self {
            Gap::None => between.trim().is_empty(),
            Gap::Short => !between.contains([',', ';', ':', '(', ')']) && between.chars().count() <= SHORT_GAP_CHARS,
            Gap::Any => true,
        }
    }
}

/// The sentence without a word, wherever it stands alone.
fn without_word(sentence: &str, word: &str) -> String {
    if !sentence.contains(word) {
        return sentence.to_owned();
    }
    sentence.split(' ').filter(|other| *other != word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phrase_stands_in_a_sentence_made_of_it() {
        for phrases in LANGUAGES.iter() {
            for phrase in [&phrases.refusals, &phrases.undecided, &phrases.idioms].into_iter().flatten() {
                let part = |part: &Part| match &part.what {
                    What::OneOf(words) => {
                        words.first().map(|word| if part.gap == Gap::None { format!(" {word}") } else { format!(" x {word}") })
                    }
                    What::SentenceEnd => Some(String::new()),
                };
                let sentence: Option<String> = phrase.0.iter().map(part).collect();
                let sentence = sentence.unwrap_or_else(|| panic!("{}: a class without words in {phrase:?}", phrases.lang));
                assert!(place(&sentence, 0, &phrase.0, true).is_some(), "{}: {phrase:?} is not in `{sentence}`", phrases.lang);
                let is_one_sentence = !sentence.contains(['.', '!', '?', '\n']);
                assert!(is_one_sentence, "{}: `{sentence}` would never stand in one sentence", phrases.lang);
            }
            assert!(phrases.refusals.len() > 8, "{}", phrases.lang);
        }
    }

    #[test]
    fn gaps_are_what_they_say() {
        let classes = [("do", vec!["help".to_owned(), "write".to_owned()])];
        let stands = |phrase: &str, sentence: &str| place(sentence, 0, &parse(phrase, &classes).0, true).is_some();
        assert!(stands("i can't ~ @do", "i can't really help"));
        assert!(!stands("i can't ~ @do", "i can't, whatever, help"), "no comma within a short gap");
        assert!(!stands("i can't ~ @do", "i can't think of anything better to write"));
        assert!(stands("i … help", "i can't, whatever, help"));
        assert!(stands("i can't $", "no, i can't!") && !stands("i can't $", "i can't swim"));
        assert!(!stands("i can't", "hawaii can't"), "a phrase does not begin within a word");
        assert!(stands("i can't @do", "i can't write") && !stands("i can't @do", "i can't ever write"));
        assert!(stands("@do", "first this, then help"));
    }

    #[test]
    fn spellings_that_writers_mix_are_one() {
        for (one, other) in [("لا أستطيع", "لا استطيع"), ("مساعدة", "مساعده"), ("माफ़", "माफ"), ("हूँ", "हूं")]
        {
            assert_eq!(spelled(one), spelled(other));
        }
        assert_eq!(spellings("لا يمكنني"), ["لايمكنني", "لا يمكنني"]);
        assert_eq!(spellings("পারব না"), ["পারবনা", "পারব না"]);
    }
}
