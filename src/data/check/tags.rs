//! Languages as rows name them, against the languages that their texts are in.
//!
//! A tag is doubted only where no text of its pair reads as that language: prompts may be untranslated, and answers of weak models drift
//! into the dominant language, which is counted by itself. Nothing is said of languages that the detector does not know, and of short
//! texts.

use super::{FindingKind, Findings, Severity};
use crate::data::language::{UNDETERMINED, detect};
use crate::data::pair::{PreferencePair, PreferenceRow};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// What [`detect`] can answer.
const KNOWN: [&str; 37] = [
    "en", "fr", "de", "id", "it", "pt", "es", "sw", "vi", "yo", "ja", "zh", "ko", "ur", "fa", "ar", "uk", "ru", "as", "bn", "hi", "te",
    "ta", "kn", "ml", "gu", "pa", "si", "th", "lo", "km", "my", "am", "ka", "hy", "el", "he",
];

/// Letters below which a text says little about its language. A Han or Hangul character says as much as three.
const ENOUGH_LETTERS: usize = 24;

/// The language in which most answers drift where there is no dominant pair.
const DRIFTS_TO: &str = "en";

#[derive(Default)]
pub(super) struct Tags {
    /// Pairs by side and tag.
    n_pairs: BTreeMap<(&'static str, String), usize>,
    /// Of those, the rows whose texts are in another language.
    other: BTreeMap<(&'static str, String), BTreeMap<String, Vec<String>>>,
    /// Rows whose chosen answer is in the dominant language, by the language of the row.
    drifted: BTreeMap<String, (String, Vec<String>)>,
}

/// What the languages of a pair's texts say.
#[derive(Default)]
struct Heard {
    other: Option<String>,
    drifted: Option<String>,
}

impl Tags {
    /// Rows that were looked at.
    pub fn n_rows(&self) -> usize {
        self.n_pairs.iter().filter(|((side, _), _)| *side != "dominant").map(|(_, n)| n).sum()
    }

    pub fn look(&mut self, rows: &[PreferenceRow], is_first_of_dominant: &[bool], with_answers: bool) {
        let heard: Vec<(Heard, Heard)> = rows
            .par_iter()
            .zip(is_first_of_dominant)
            .map(|(row, is_first)| {
                let drifts_to = row.dominant.as_ref().map_or(DRIFTS_TO, |dominant| &dominant.lang);
                let dominant = row.dominant.as_ref().filter(|_| *is_first);
                let of_dominant = dominant.map_or(Heard::default(), |pair| hear(pair, None));
                (of_dominant, hear(&row.target, Some(drifts_to).filter(|_| with_answers)))
            })
            .collect();
        for ((row, is_first), (of_dominant, of_target)) in rows.iter().zip(is_first_of_dominant).zip(heard) {
            if let Some(pair) = row.dominant.as_ref().filter(|_| *is_first) {
                self.count("dominant", &row.id, &pair.lang, of_dominant);
            }
            self.count(if row.dominant.is_some() { "target" } else { "" }, &row.id, &row.target.lang, of_target);
        }
    }

    fn count(&mut self, side: &'static str, id: &str, lang: &str, heard: Heard) {
        *self.n_pairs.entry((side, lang.to_owned())).or_default() += 1;
        if let Some(other) = heard.other {
            self.other.entry((side, lang.to_owned())).or_default().entry(other).or_default().push(id.to_owned());
        } else if let Some(drifted) = heard.drifted {
            self.drifted.entry(lang.to_owned()).or_insert_with(|| (drifted, Vec::new())).1.push(id.to_owned());
        }
    }

    /// Wrong where most pairs of a tag are in another language: the tag is mistaken, and not a text.
    pub fn report(&self, findings: &mut Findings) {
        let mut details: BTreeMap<Severity, Vec<String>> = BTreeMap::new();
        for ((side, tag), others) in &self.other {
            let n_pairs = self.n_pairs.get(&(*side, tag.clone())).copied().unwrap_or(0);
            let n_other: usize = others.values().map(Vec::len).sum();
            let severity = if 2 * n_other > n_pairs { Severity::Wrong } else { Severity::WorthKnowing };
            let space = if side.is_empty() { "" } else { " " };
            for (other, ids) in others {
                details.entry(severity).or_default().push(format!("{side}{space}`{tag}` reads as {other} in {} of {n_pairs}", ids.len()));
                ids.iter().for_each(|id| findings.add(FindingKind::OtherTag, severity, format!("{id}{space}{side}"), None));
            }
        }
        for (severity, details) in details {
            findings.detail(FindingKind::OtherTag, severity, details.join(", "));
        }
        let mut drifted = Vec::new();
        for (lang, (to, ids)) in &self.drifted {
            let n_pairs: usize = self.n_pairs.iter().filter(|((side, tag), _)| tag == lang && *side != "dominant").map(|(_, n)| n).sum();
            drifted.push(format!("{lang}: {} of {n_pairs} chosen answers are in {to}", ids.len()));
            ids.iter().for_each(|id| findings.add(FindingKind::OtherLanguage, Severity::WorthKnowing, id.clone(), None));
        }
        if !drifted.is_empty() {
            findings.detail(FindingKind::OtherLanguage, Severity::WorthKnowing, drifted.join(", "));
        }
    }
}

/// `zh` of `zh-cn`, where the detector knows it.
fn known(tag: &str) -> Option<&str> {
    let base = tag.split(['-', '_']).next().unwrap_or(tag);
    KNOWN.contains(&base).then_some(base)
}

fn hear(pair: &PreferencePair, drifts_to: Option<&str>) -> Heard {
    let Some(tag) = known(&pair.lang) else { return Heard::default() };
    let mut texts: Vec<&str> = pair.prompt.iter().map(|turn| turn.content.as_str()).collect();
    texts.extend(pair.responses().map(|(_, text)| text));
    if !texts.iter().any(|text| is_enough(text)) {
        return Heard::default();
    }
    let whole = detect(&texts);
    let reads_as_tagged = whole == tag
        || whole == UNDETERMINED
        || texts.iter().filter(|text| texts.len() > 1 && !text.is_empty()).any(|text| detect(&[text]) == tag);
    if !reads_as_tagged && known(&whole).is_some() {
        return Heard { other: Some(whole), drifted: None };
    }
    let answer = pair.chosen.as_deref().filter(|text| is_enough(text));
    let drifts = |(to, answer): (&str, &str)| to != tag && detect(&[answer]) == to;
    Heard { other: None, drifted: drifts_to.zip(answer).filter(|pair| drifts(*pair)).map(|(to, _)| to.to_owned()) }
}

fn is_enough(text: &str) -> bool {
    let mut n_letters = 0;
    text.chars().filter(|c| c.is_alphabetic()).any(|c| {
        n_letters += if u32::from(c) >= 0x1100 { 3 } else { 1 };
        n_letters >= ENOUGH_LETTERS
    })
}
