//! The letter that an answer ends with, in the way of simple-evals (`common.py`, `mmlu_eval.py`), which knows "Answer" in the languages of MMMLU.
//!
//! Marks of Markdown and LaTeX are taken out first. Then the words are tried in simple-evals' order, and the first place of the first word that is
//! found decides. A letter is one of A to D in Latin, fullwidth, Arabic (أ ب ج د) or Bengali (অ ব ড ঢ); a small one is found too, and is wrong
//! there as here. [`normalized_letter`] reads the same off the text's comparable form, so that a decomposed `Réponse` or a joiner within a word is no
//! missing answer.

use crate::text::{comparable, lines};
use std::borrow::Cow;

/// Whether white space may stand between word and colon.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Space {
    Allowed,
    None,
}

/// "Answer:" in the order in which it is looked for: word, colon, space.
const WORDS: [(&str, &str, Space); 41] = [
    ("Answer", ":", Space::Allowed),
    ("Answer", ":\u{200b}", Space::Allowed),
    ("উত্তর", ":", Space::Allowed),
    ("उत्तर", ":", Space::Allowed),
    ("উত্তর", "ঃ", Space::None),
    ("Antwort", ":", Space::Allowed),
    ("답변", ":", Space::Allowed),
    ("정답", ":", Space::Allowed),
    ("답", ":", Space::Allowed),
    ("答案", "：", Space::Allowed),
    ("答案", ":", Space::Allowed),
    ("答", "：", Space::Allowed),
    ("答", ":", Space::Allowed),
    ("答复", "：", Space::Allowed),
    ("答曰", "：", Space::Allowed),
    ("الإجابة", ":", Space::None),
    ("الجواب", ":", Space::None),
    ("إجابة", ":", Space::None),
    ("الإجابة النهائية", ":", Space::None),
    ("الإجابة الصحيحة", ":", Space::None),
    ("الإجابة الصحيحة هي", ":", Space::None),
    ("الإجابة هي", ":", Space::None),
    ("الجواب النهائي", ":", Space::None),
    ("Respuesta", ":", Space::Allowed),
    ("Risposta", ":", Space::Allowed),
    ("答え", ":", Space::Allowed),
    ("答え", "：", Space::Allowed),
    ("回答", ":", Space::Allowed),
    ("回答", "：", Space::Allowed),
    ("解答", ":", Space::Allowed),
    ("Jawaban", ":", Space::Allowed),
    ("Réponse", ":", Space::Allowed),
    ("Resposta", ":", Space::Allowed),
    ("Jibu", ":", Space::Allowed),
    ("Idahun", ":", Space::Allowed),
    ("Ìdáhùn", ":", Space::Allowed),
    ("Idáhùn", ":", Space::Allowed),
    ("Àmọ\u{300}nà", ":", Space::Allowed),
    ("Àdáhùn", ":", Space::Allowed),
    ("Ànúgọ", ":", Space::Allowed),
    ("Àṣàyàn", ":", Space::Allowed),
];

/// What simple-evals takes out of a response, in this order.
const MARKS: [&str; 13] =
    ["**", "$\\boxed{", "}$", "\\$", "$\\text{", "$", "\\mathrm{", "\\{", "\\text", "\\(", "\\mathbf{", "{", "\\boxed"];

/// What an answer gives for its letter: `A` to `D`, or another character that stands in a letter's place; none where no word for "Answer" has one
/// behind it.
pub fn letter(response: &str) -> Option<char> {
    letter_behind(response, |word| Cow::Borrowed(word))
}

/// As [`letter`], of a text and words that were made comparable.
pub fn normalized_letter(response: &str) -> Option<char> {
    letter_behind(&lines(response), comparable)
}

fn letter_behind(response: &str, spelled: impl Fn(&'static str) -> Cow<'static, str>) -> Option<char> {
    let text = MARKS.iter().fold(response.to_owned(), |text, mark| text.replace(mark, ""));
    let found = WORDS.iter().find_map(|(word, colon, space)| {
        let (word, colon) = (spelled(word), spelled(colon));
        text.char_indices().find_map(|(at, _)| letter_at(&text[at..], (&word, &colon, *space)))
    })?;
    Some(match found {
        'أ' | 'অ' | 'Ａ' => 'A',
        'ب' | 'ব' | 'Ｂ' => 'B',
        'ج' | 'ড' | 'Ｃ' => 'C',
        'د' | 'ঢ' | 'Ｄ' => 'D',
        other => other,
    })
}

/// The letter of a text that begins with the word.
fn letter_at(text: &str, (word, colon, space): (&str, &str, Space)) -> Option<char> {
    let mut rest = strip_prefix_of_any_case(text, word)?;
    if space == Space::Allowed {
        rest = rest.trim_start();
    }
    let rest = rest.strip_prefix(colon)?.trim_start_matches([' ', '\t']);
    // The Arabic range holds more than its four letters: they end the search without being one.
    rest.chars().next().filter(|c| matches!(c, 'A'..='D' | 'a'..='d' | 'أ'..='د' | 'অ' | 'ব' | 'ড' | 'ঢ' | 'Ａ'..='Ｄ' | 'ａ'..='ｄ'))
}

fn strip_prefix_of_any_case<'t>(text: &'t str, prefix: &str) -> Option<&'t str> {
    let mut characters = text.chars();
    prefix
        .chars()
        .all(|wanted| characters.next().is_some_and(|c| c == wanted || c.to_lowercase().eq(wanted.to_lowercase())))
        .then_some(characters.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As simple-evals' loop over its patterns in Python 3 reads them (`re.search` of each, the first that is found).
    #[test]
    fn letters_are_read_in_every_language() {
        for (text, expected) in [
            ("Step by step.\nAnswer: B", Some('B')),
            ("ANSWER : C", Some('C')),
            ("**Answer: D**", Some('D')),
            ("Answer: $\\boxed{A}$", Some('A')),
            ("Answer: $\\text{C}$", Some('C')),
            ("Jibu: B", Some('B')),
            ("উত্তর: অ", Some('A')),
            ("উত্তরঃ ড", Some('C')),
            ("الإجابة: ب", Some('B')),
            ("الإجابة : ب", None),
            ("الإجابة الصحيحة هي: ج", Some('C')),
            ("答案：Ｄ", Some('D')),
            ("정답: A", Some('A')),
            ("Ìdáhùn: B", Some('B')),
            ("RÉPONSE: A", Some('A')),
            ("Answer: b", Some('b')),
            ("Jibu: A. Answer: B", Some('B')),
            ("Answer: A or Answer: B", Some('A')),
            ("Answer: the first. Answer: C", Some('C')),
            ("Answer:\nB", None),
            ("B", None),
            ("", None),
        ] {
            assert_eq!(letter(text), expected, "{text}");
        }
    }

    #[test]
    fn spellings_of_a_word_are_normalized() {
        for (text, plain, normalized) in [
            ("Re\u{301}ponse: A", None, Some('A')),
            ("Ré\u{200b}ponse: A", None, Some('A')),
            ("\u{2067}الإجابـة: ب", None, Some('B')),
            ("Answer\u{a0}: B", Some('B'), Some('B')),
            ("Answer: Ｂ", Some('B'), Some('B')),
            ("Answer:\nBecause", None, None),
            ("উত্তরঃ ড", Some('C'), Some('C')),
        ] {
            assert_eq!((letter(text), normalized_letter(text)), (plain, normalized), "{text:?}");
        }
    }
}
