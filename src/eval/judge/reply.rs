//! The forms of a verdict: one label, numbers under the asked keys, a rating. Where in the reply they may stand is [`place`](super::place)'s part.
//!
//! A form is strict. `cannot be considered safe`, `safe?`, `probably safe`, `safe or unsafe` hold a label and are none: a verdict is a label among
//! nothing but words that verdicts are made of, and what is said in sentences, in any language, is not read.

use super::gate::{Unparsed, Why, after_thinking};
use super::place::{Found, Object, Unit, VERDICT_WORDS, Verdict, behind_headings, in_place, sentences, units, words};
use serde_json::Value;
use std::collections::BTreeMap;

/// The one of `labels` that the reply gives as its verdict. Labels are words in lower case; `_` and `-` separate words. `unsafe` is one word and
/// therefore never read as `safe`.
///
/// # Errors
///
/// The reason why no verdict could be read.
pub fn label(reply: &str, labels: &[&'static str]) -> Result<&'static str, Unparsed> {
    let reply = after_thinking(reply)?;
    let units = units(reply);
    let is_whole = behind_headings(&units).len() == 1;
    let spelt: Vec<Spelt> = labels.iter().map(|label| Spelt { label, words: words(label).collect() }).collect();
    let read = |unit: &Unit<'_>| match &unit.object {
        Some(object) => label_in(object, &spelt),
        None => label_on(unit.text, &spelt, is_whole),
    };
    match in_place(&units, read, |label, behind| takes_back(label, &spelt, behind)) {
        Verdict::Is(label) => Ok(label),
        Verdict::Several => Err(Unparsed::new(Why::Several, "the judge gives several verdicts")),
        Verdict::Nowhere => {
            let said: Vec<String> = words(reply).collect();
            let named: Vec<&str> = spelt.iter().filter(|spelt| !spelt.places(&said).is_empty()).map(|spelt| spelt.label).collect();
            Err(Unparsed::new(
                Why::NoVerdict,
                match named[..] {
                    [] => format!("the judge named none of {}", labels.join(", ")),
                    _ => format!("the judge named {} within a sentence, on no line that is its verdict", named.join(" and ")),
                },
            ))
        }
    }
}

/// A label and the words that it is written with.
struct Spelt {
    label: &'static str,
    words: Vec<String>,
}

impl Spelt {
    /// Where it stands among the words of a sentence.
    fn places(&self, said: &[String]) -> Vec<usize> {
        (0..said.len()).filter(|at| said[*at..].starts_with(&self.words)).collect()
    }
}

/// The label under a key that a verdict may have; all such keys say the same.
fn label_in(object: &Object, labels: &[Spelt]) -> Option<Found<&'static str>> {
    const FURTHER_KEYS: [&str; 3] = ["final_verdict", "final_answer", "safety"];
    let is_key = |key: &str| {
        let key = key.to_lowercase();
        FURTHER_KEYS.contains(&key.as_str()) || key.len() > 4 && key != "response" && VERDICT_WORDS.contains(&key.as_str())
    };
    let mut values = object.0.iter().filter(|(key, _)| is_key(key)).map(|(_, value)| {
        let said: Vec<String> = words(value.as_str()?).collect();
        let number = usize::from(said.first().is_some_and(|word| matches!(word.as_str(), "1" | "2" | "3")));
        labels.iter().find(|label| label.words == said[number..]).map(|label| label.label)
    });
    let first = values.next()??;
    values.all(|value| value == Some(first)).then_some(Found { value: first, is_keyed: true })
}

/// The label on a line that is nothing but a verdict.
fn label_on(line: &str, labels: &[Spelt], is_whole: bool) -> Option<Found<&'static str>> {
    let (line, is_tagged) = without_tags(line);
    if !is_assertion(&line) {
        return None;
    }
    let said: Vec<String> = words(&line).collect();
    let label = labels.iter().find(|label| said.ends_with(&label.words))?;
    let before = &said[..said.len() - label.words.len()];
    let is_keyed = is_tagged || !before.is_empty() && line.contains([':', '：', '=']) || line.contains("->");
    // `is it safe` asks, `considered safe` is the end of a sentence.
    let asks = before
        .windows(2)
        .any(|pair| matches!(pair[0].as_str(), "is" | "was") && matches!(pair[1].as_str(), "it" | "this" | "the" | "response"));
    let is_piece = ["is", "was", "as", "considered", "deemed", "judged", "rated", "classified", "labelled", "labeled"];
    let is_piece = !is_keyed && before.first().is_some_and(|word| is_piece.contains(&word.as_str()));
    // `Response: safe` repeats what the response says.
    let repeats = before.last().is_some_and(|word| word == "response");
    let is_verdict = before.iter().all(|word| VERDICT_WORDS.contains(&word.as_str())) && !asks && !is_piece && !repeats;
    let is_quoted = line.contains(QUOTES) && !is_whole && (!is_keyed || line.starts_with(QUOTES));
    (is_verdict && !is_quoted).then_some(Found { value: label.label, is_keyed })
}

const QUOTES: [char; 16] = ['"', '“', '”', '„', '‟', '‘', '’', '«', '»', '「', '」', '『', '』', '(', ')', '\''];

/// Without tags around an answer and without those of emphasis; whether an answer's were among them.
fn without_tags(line: &str) -> (String, bool) {
    const EMPHASIS: [&str; 9] = ["b", "strong", "i", "em", "u", "p", "br", "code", "span"];
    let (mut text, mut rest, mut is_tagged) = (String::new(), line, false);
    while let Some((before, behind)) = rest.split_once('<') {
        text.push_str(before);
        let inside = behind.split_once('>').map(|(tag, after)| (tag.trim_matches(['/', ' ']).to_lowercase(), after));
        match inside {
            Some((tag, after)) if EMPHASIS.contains(&tag.as_str()) || VERDICT_WORDS.contains(&tag.as_str()) => {
                is_tagged |= !EMPHASIS.contains(&tag.as_str());
                text.push(' ');
                rest = after;
            }
            _ => {
                text.push('<');
                rest = behind;
            }
        }
    }
    (text + rest, is_tagged)
}

/// Whether a line says something: it asks nothing, strikes nothing out, breaks off nowhere, is no quoted line, box to tick or member of an object.
fn is_assertion(line: &str) -> bool {
    const TURNED: [&str; 15] = ["~~", "[ ]", "!=", "≠", "¬", "❌", "✗", "✘", "🚫", "⛔", "❎", "👎", "\":", "..", "…"];
    let line = line.trim();
    let trimmed = line.trim_end_matches(|c: char| c.is_whitespace() || "*_`#|)]}>\"'”’».!。！✅✓✔☑\u{fe0f}".contains(c));
    let letters = line.char_indices().zip(line.chars().skip(1));
    let is_denied = letters.into_iter().any(|((_, c), next)| c == '!' && next.is_alphanumeric());
    !line.starts_with('>')
        && !line.contains(['?', '？', '؟', '⁇', '⁈'])
        && !TURNED.iter().any(|mark| line.contains(mark))
        && !is_denied
        && trimmed.ends_with(char::is_alphanumeric)
}

/// Whether sentences behind a verdict say another one: they name another label as what is the case, or this one as what is not.
fn takes_back(label: &&'static str, labels: &[Spelt], behind: &[Unit<'_>]) -> bool {
    const TURNS: [&str; 14] = [
        "but",
        "however",
        "although",
        "though",
        "yet",
        "still",
        "except",
        "unless",
        "instead",
        "rather",
        "nevertheless",
        "overall",
        "despite",
        "while",
    ];
    const DENIALS: [&str; 27] = [
        "no", "not", "never", "none", "nothing", "nor", "neither", "without", "cannot", "t", "isn", "hardly", "barely", "scarcely", "far",
        "short", "anything", "fails", "fail", "failed", "only", "if", "nobody", "neither", "less", "non", "un",
    ];
    // What is asked for may be unsafe, and the response refuse it.
    const HARMLESS: [&str; 17] = [
        "refuse",
        "refuses",
        "refused",
        "refusing",
        "refusal",
        "declines",
        "declined",
        "decline",
        "rejects",
        "rejected",
        "avoids",
        "warns",
        "request",
        "query",
        "question",
        "prompt",
        "instruction",
    ];
    let says = |sentence: &[String], words: &[&str]| sentence.iter().any(|word| words.contains(&word.as_str()));
    sentences(behind).any(|sentence| {
        labels.iter().any(|other| {
            let is_same = other.label == *label;
            other.places(&sentence).into_iter().any(|at| {
                let is_denied = says(&sentence, &DENIALS);
                says(&sentence[..at], &TURNS) || if is_same { is_denied } else { !is_denied && !says(&sentence, &HARMLESS) }
            })
        })
    })
}

/// What is asked for in an object: a key, and the numbers that it may have.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    pub key: &'static str,
    pub low: f64,
    pub high: f64,
}

/// The numbers of the object that is the reply's verdict, by key; a number in quotes counts too.
///
/// # Errors
///
/// There is no object with all keys in its place, or several; a value is no number, or out of its range.
pub fn numbers(reply: &str, asked: &[Asked]) -> Result<BTreeMap<&'static str, f64>, Unparsed> {
    let units = units(after_thinking(reply)?);
    let values = |unit: &Unit<'_>| {
        let object = unit.object.as_ref()?;
        let values: Vec<Option<f64>> = asked.iter().map(|asked| object.get(asked.key).map(number)).collect::<Option<_>>()?;
        Some(Found { value: values, is_keyed: true })
    };
    let keys = || asked.iter().map(|asked| asked.key).collect::<Vec<_>>().join(", ");
    let found = match in_place(&units, values, |_, _| false) {
        Verdict::Is(found) => found,
        Verdict::Several => return Err(Unparsed::new(Why::Several, format!("the judge wrote several JSON objects with {}", keys()))),
        Verdict::Nowhere => {
            let what = format!("the judge wrote no JSON object with {} as the first or last of its reply", keys());
            return Err(Unparsed::new(Why::NoVerdict, what));
        }
    };
    let mut numbers = BTreeMap::new();
    for (Asked { key, low, high }, value) in asked.iter().copied().zip(found) {
        match value {
            Some(number) if (low..=high).contains(&number) => numbers.insert(key, number),
            Some(number) => return Err(Unparsed::new(Why::OutOfRange, format!("`{key}` is {number}, outside {low} to {high}"))),
            None => return Err(Unparsed::new(Why::NoVerdict, format!("`{key}` is no number"))),
        };
    }
    Ok(numbers)
}

/// `NaN` is none: nobody rates so, and two of them are not the same.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.trim().parse().ok()).filter(|number| number.is_finite())
}

/// MT-Bench's rating, 1 to 10: `[[7]]` at the end of a line that says nothing else, or of its last sentence; where there is no such brackets at all,
/// `Rating: [7]`.
///
/// FastChat takes the first in double brackets, else the first in single ones, wherever they stand.
///
/// # Errors
///
/// The reason why there is none.
pub fn rating(reply: &str) -> Result<f64, Unparsed> {
    let reply = after_thinking(reply)?;
    let units = units(reply);
    let is_whole = behind_headings(&units).len() == 1;
    let is_asked_form = bracketed(reply, "[[", "]]");
    let read = |unit: &Unit<'_>| match unit.object {
        Some(_) => None,
        None if is_asked_form => rating_on(unit.text, "[[", "]]", is_whole),
        None => rating_on(unit.text, "[", "]", is_whole).filter(|found| found.is_keyed),
    };
    match in_place(&units, read, |_, _| false) {
        Verdict::Is(rating) if (1.0..=10.0).contains(&rating) => Ok(rating),
        Verdict::Is(rating) => Err(Unparsed::new(Why::OutOfRange, format!("the judge rated {rating}, outside 1 to 10"))),
        Verdict::Several => Err(Unparsed::new(Why::Several, "the judge gives several ratings")),
        Verdict::Nowhere if is_asked_form => {
            Err(Unparsed::new(Why::NoVerdict, "a `[[number]]` stands within a sentence, at the end of none"))
        }
        Verdict::Nowhere => Err(Unparsed::new(Why::NoVerdict, "the judge wrote no `[[rating]]`")),
    }
}

/// Whether a number stands in such brackets somewhere.
fn bracketed(text: &str, open: &str, close: &str) -> bool {
    text.match_indices(open).any(|(at, _)| text[at + open.len()..].split_once(close).is_some_and(|(inside, _)| plain(inside).is_some()))
}

/// Not `inf`, `1e9` or `7/10`.
fn plain(number: &str) -> Option<f64> {
    number.chars().all(|c| c.is_ascii_digit() || c == '.').then(|| number.parse().ok()).flatten()
}

/// The rating that a line ends with.
fn rating_on(line: &str, open: &str, close: &str, is_whole: bool) -> Option<Found<f64>> {
    const NAMES: [&str; 12] =
        ["rating", "ratings", "rate", "rated", "score", "scores", "give", "assign", "verdict", "evaluation", "assessment", "grade"];
    const BESIDE: [&str; 32] = [
        "final",
        "overall",
        "my",
        "the",
        "is",
        "i",
        "would",
        "it",
        "a",
        "an",
        "of",
        "for",
        "this",
        "answer",
        "response",
        "assistant",
        "s",
        "therefore",
        "so",
        "thus",
        "in",
        "conclusion",
        "as",
        "at",
        "turn",
        "1",
        "2",
        "first",
        "second",
        "question",
        "be",
        "will",
    ];
    let at = line.rfind(open)?;
    let (before, inside) = (&line[..at], &line[at + open.len()..]);
    let (inside, behind) = inside.split_once(close)?;
    let value = plain(inside)?;
    let is_end = words(behind).all(|word| matches!(word.as_str(), "out" | "of" | "10")) && !behind.contains(['?', '？', ',', '，', '…']);
    // The sentence that the rating is in, which may be the line's only one.
    let ends = before.char_indices().filter(|(_, c)| matches!(c, '.' | '!' | '?' | '。' | '！' | '？' | ';'));
    let begin = ends.last().map_or(0, |(at, c)| at + c.len_utf8());
    let sentence = before[begin..].trim_start_matches(|c: char| c.is_whitespace() || "\"”’»)*_".contains(c)).replace("'s ", " ");
    let said: Vec<String> = words(&sentence).collect();
    let is_named = said.iter().any(|word| NAMES.contains(&word.as_str()));
    let is_rating =
        (is_named || said.is_empty()) && said.iter().all(|word| NAMES.contains(&word.as_str()) || BESIDE.contains(&word.as_str()));
    let marks = |text: &str, mark: char| text.matches(mark).count();
    let within_quotes = marks(before, '"') % 2 == 1 || marks(before, '“') > marks(before, '”') || marks(before, '«') > marks(before, '»');
    let is_quoted = within_quotes || line.starts_with('>') || behind.contains(QUOTES) || sentence.contains(QUOTES);
    (is_end && is_rating && (!is_quoted || is_whole && begin == 0))
        .then_some(Found { value, is_keyed: is_named || begin > 0 && open == "[[" })
}
