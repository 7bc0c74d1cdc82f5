//! What is wrong with a data set, and what is worth knowing about it: the report of `mpo check`.
//!
//! A finding is *wrong* where its rows teach something that nobody can want: no prompt, two equal answers, an answer in another script. It
//! is *worth knowing* where the guess may be mistaken or the run copes: an answer that ends mid-sentence, a row that `max_tokens` cuts.
//! Pure functions of rows: no file, no model. The report names rows and never quotes them, since the texts are often harmful.

mod display;
mod text;

use super::encode::{EncodedPreference, EncodedRow};
use super::pair::{Message, PreferencePair, PreferenceRow};
use super::truncate::{Fit, fit};
use super::{Dataset, RowFault, SpoiltRow};
use crate::config::OnOverlong;
use std::collections::{BTreeMap, HashMap, HashSet};
use text::{ends_a_sentence, scripts_differ};

/// What a check looks at.
pub struct CheckInput<'a> {
    pub dataset: &'a Dataset,
    /// Each row's tokens, uncut (`Encoder::tokenize`), or why there are none. `None` without a tokenizer.
    pub encoded: Option<&'a [anyhow::Result<EncodedRow>]>,
    pub max_tokens: usize,
    pub on_overlong: OnOverlong,
    /// The reference's reward gap on each row's dominant pair, NaN for a row that was not scored. `None` without `--gaps`.
    pub dominant_gaps: Option<&'a [f64]>,
    /// Share of dominant pairs with a negative gap above which the supervision is called bad (`signs.bad_supervision_share`).
    pub bad_supervision_share: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// `mpo check` exits with 1.
    Wrong,
    WorthKnowing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FindingKind {
    Unreadable,
    EmptyResponse,
    EmptyPrompt,
    Untranslated,
    SameLanguage,
    OtherScript,
    EqualResponses,
    RepeatedRow,
    RepeatedId,
    NotEncodable,
    TooLong,
    NegativeGap,
    RepeatedPrompt,
    NoSentenceEnd,
}

/// Rows that share a fault. What they share of the dominant side is counted once for all rows that share the pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub kind: FindingKind,
    pub severity: Severity,
    /// Row ids in file order, with the field where only one is at fault (`12 target.chosen`).
    pub rows: Vec<String>,
    /// The first row's error message, or other detail.
    pub detail: Option<String>,
}

/// Rows of a language on one side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LanguageCount {
    pub lang: String,
    /// Distinct pairs on the dominant side, rows on the target side.
    pub n: usize,
}

/// Median, 95th percentile (nearest rank) and maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Percentiles {
    pub p50: usize,
    pub p95: usize,
    pub max: usize,
}

/// Token counts of one language on one side, before any cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lengths {
    pub side: &'static str,
    pub lang: String,
    pub prompt: Percentiles,
    /// Over chosen and rejected responses.
    pub response: Percentiles,
    /// Prompt and longer response.
    pub sequence: Percentiles,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckReport {
    /// Rows that could be read.
    pub n_rows: usize,
    pub dominant: Vec<LanguageCount>,
    pub target: Vec<LanguageCount>,
    /// Empty without a tokenizer.
    pub lengths: Vec<Lengths>,
    /// Wrong ones first.
    pub findings: Vec<Finding>,
    pub max_tokens: usize,
    /// What the reference thinks of the dominant pairs; `None` where it was not asked, or there are none.
    pub supervision: Option<Supervision>,
}

/// Distinct dominant pairs that the reference scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Supervision {
    pub n_pairs: usize,
    /// Those on which it prefers the rejected response.
    pub n_negative: usize,
}

impl CheckReport {
    pub fn is_wrong(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Wrong)
    }
}

/// Looks at every row and gathers what it finds.
pub fn check(input: &CheckInput) -> CheckReport {
    let pairs = &input.dataset.pairs;
    let first_of_dominant = first_of_each(pairs.iter().map(|row| row.dominant.as_ref()));
    let mut findings = Findings::default();
    for row in &input.dataset.spoilt {
        let (kind, message) = match &row.fault {
            RowFault::Malformed(message) => (FindingKind::Unreadable, message),
            RowFault::Empty(message) => (FindingKind::EmptyResponse, message),
        };
        findings.add(kind, Severity::Wrong, format!("{} ({})", row.index, place(row, &input.dataset.spoilt)), Some(message.clone()));
    }
    for (pair, is_first) in pairs.iter().zip(&first_of_dominant) {
        check_row(pair, *is_first, &mut findings);
    }
    findings.describe(FindingKind::NoSentenceEnd, || cut_shares(pairs, &first_of_dominant));
    check_repetitions(pairs, &mut findings);
    if let Some(encoded) = input.encoded {
        check_encodings(pairs, encoded, input, &mut findings);
    }
    let supervision = input
        .dominant_gaps
        .filter(|_| pairs.iter().any(|row| row.dominant.is_some()))
        .map(|gaps| check_gaps(pairs, gaps, &first_of_dominant, input.bad_supervision_share, &mut findings));
    let distinct = pairs.iter().zip(&first_of_dominant).filter(|(_, is_first)| **is_first).map(|(pair, _)| pair);
    CheckReport {
        n_rows: pairs.len(),
        dominant: count_languages(distinct.filter_map(|row| row.dominant.as_ref())),
        target: count_languages(pairs.iter().map(|pair| &pair.target)),
        lengths: input.encoded.map_or(Vec::new(), |encoded| lengths(encoded, &first_of_dominant)),
        findings: findings.sorted(),
        max_tokens: input.max_tokens,
        supervision,
    }
}

/// Where a spoilt row stands; its file is named where the rows come from several.
fn place(row: &SpoiltRow, all: &[SpoiltRow]) -> String {
    match row.file.file_name() {
        Some(name) if all.iter().any(|other| other.file != row.file) => format!("{} line {}", name.display(), row.line),
        _ => format!("line {}", row.line),
    }
}

#[derive(Default)]
struct Findings(BTreeMap<(Severity, FindingKind), (Vec<String>, Option<String>)>);

impl Findings {
    /// Keeps the first detail of a kind.
    fn add(&mut self, kind: FindingKind, severity: Severity, row: String, detail: Option<String>) {
        let (rows, first_detail) = self.0.entry((severity, kind)).or_default();
        rows.push(row);
        *first_detail = first_detail.take().or(detail);
    }

    fn wrong(&mut self, kind: FindingKind, row: String) {
        self.add(kind, Severity::Wrong, row, None);
    }

    fn worth_knowing(&mut self, kind: FindingKind, row: String) {
        self.add(kind, Severity::WorthKnowing, row, None);
    }

    /// Gives a kind that was found a detail about all of its rows.
    fn describe(&mut self, kind: FindingKind, detail: impl Fn() -> String) {
        for (_, (_, found)) in self.0.iter_mut().filter(|((_, found), _)| *found == kind) {
            *found = Some(detail());
        }
    }

    fn sorted(self) -> Vec<Finding> {
        self.0.into_iter().map(|((severity, kind), (rows, detail))| Finding { kind, severity, rows, detail }).collect()
    }
}

fn check_row(row: &PreferenceRow, is_first_of_dominant: bool, findings: &mut Findings) {
    let id = &row.id;
    let Some(dominant) = &row.dominant else {
        return check_pair(&row.target, |field| if field.is_empty() { id.clone() } else { format!("{id} {field}") }, findings);
    };
    let (dominant_prompt, target_prompt) = (prompt_text(dominant), prompt_text(&row.target));
    let is_translated = dominant_prompt.trim() != target_prompt.trim();
    if !is_translated {
        findings.wrong(FindingKind::Untranslated, id.clone());
    } else if dominant.lang == row.target.lang && !target_prompt.trim().is_empty() {
        findings.wrong(FindingKind::SameLanguage, id.clone());
    }
    for (side, pair) in [("dominant", dominant), ("target", &row.target)].into_iter().skip(usize::from(!is_first_of_dominant)) {
        check_pair(pair, |field| format!("{id} {side}{}{field}", if field.is_empty() { "" } else { "." }), findings);
    }
}

/// `place` names the row, and where in it the field of that name is (the pair itself for an empty name).
fn check_pair(pair: &PreferencePair, place: impl Fn(&str) -> String, findings: &mut Findings) {
    let prompt = prompt_text(pair);
    if prompt.trim().is_empty() {
        findings.wrong(FindingKind::EmptyPrompt, place(""));
    }
    if let (Some(chosen), Some(rejected)) = (&pair.chosen, &pair.rejected)
        && chosen.trim() == rejected.trim()
    {
        findings.wrong(FindingKind::EqualResponses, place(""));
    }
    for (which, response) in pair.responses() {
        if scripts_differ(&prompt, response) {
            findings.wrong(FindingKind::OtherScript, place(which));
        }
        if !ends_a_sentence(response) {
            findings.worth_knowing(FindingKind::NoSentenceEnd, place(which));
        }
    }
}

/// "dominant en 5 of 200, target bn 180 of 200, …": responses without a sentence end per side and language.
fn cut_shares(pairs: &[PreferenceRow], first_of_dominant: &[bool]) -> String {
    let mut counts: BTreeMap<(&str, &str), (usize, usize)> = BTreeMap::new();
    for (row, is_first) in pairs.iter().zip(first_of_dominant) {
        let dominant = row.dominant.iter().filter(|_| *is_first).map(|pair| ("dominant ", pair));
        let side_of_target = if row.dominant.is_some() { "target " } else { "" };
        for (side, pair) in dominant.chain([(side_of_target, &row.target)]) {
            let (n_cut, n) = counts.entry((side, &pair.lang)).or_default();
            *n_cut += pair.responses().filter(|(_, text)| !ends_a_sentence(text)).count();
            *n += pair.responses().count();
        }
    }
    let share = |((side, lang), (n_cut, n)): ((&str, &str), (usize, usize))| format!("{side}{lang} {n_cut} of {n}");
    counts.into_iter().filter(|(_, (n_cut, _))| *n_cut > 0).map(share).collect::<Vec<_>>().join(", ")
}

fn check_repetitions(pairs: &[PreferenceRow], findings: &mut Findings) {
    let (mut ids, mut rows, mut prompts) = (HashMap::new(), HashMap::new(), HashMap::new());
    for pair in pairs {
        if let Some(first) = ids.insert(&pair.id, &pair.id) {
            findings.wrong(FindingKind::RepeatedId, first.clone());
        }
        let target_prompt = (&pair.target.lang, &pair.target.prompt);
        let row_texts = (pair.dominant.as_ref().map(texts), texts(&pair.target));
        if let Some(first) = rows.get(&row_texts) {
            findings.wrong(FindingKind::RepeatedRow, format!("{} (as {first})", pair.id));
        } else if let Some(first) = prompts.get(&target_prompt)
            && pair.target.responses().count() == 2
        {
            // Labelled data has a row for each answer to a prompt.
            findings.worth_knowing(FindingKind::RepeatedPrompt, format!("{} (as {first})", pair.id));
        }
        rows.entry(row_texts).or_insert(&pair.id);
        prompts.entry(target_prompt).or_insert(&pair.id);
    }
}

fn check_encodings(pairs: &[PreferenceRow], encoded: &[anyhow::Result<EncodedRow>], input: &CheckInput, findings: &mut Findings) {
    // Whoever asked for an error gets one from training; whoever asked for a cut or a drop knows.
    let severity = if input.on_overlong == OnOverlong::Error { Severity::Wrong } else { Severity::WorthKnowing };
    for (pair, encoded) in pairs.iter().zip(encoded) {
        match encoded {
            Err(error) => findings.add(FindingKind::NotEncodable, Severity::Wrong, pair.id.clone(), Some(format!("{error:#}"))),
            Ok(encoded) => {
                let fits: Vec<Fit> = encoded.pairs().map(|pair| fit(&mut pair.clone(), input.max_tokens, input.on_overlong)).collect();
                if fits.iter().any(|fit| matches!(fit, Fit::Overlong { .. })) {
                    findings.add(FindingKind::TooLong, severity, format!("{} (dropped)", pair.id), None);
                } else if fits.iter().any(|fit| matches!(fit, Fit::Cut { .. })) {
                    findings.add(FindingKind::TooLong, severity, pair.id.clone(), None);
                }
            }
        }
    }
}

fn check_gaps(pairs: &[PreferenceRow], gaps: &[f64], first_of_dominant: &[bool], bad_share: f64, findings: &mut Findings) -> Supervision {
    let is_counted = |((_, gap), is_first): &((_, &f64), &bool)| **is_first && !gap.is_nan();
    let scored: Vec<_> = pairs.iter().zip(gaps).zip(first_of_dominant).filter(is_counted).map(|(row, _)| row).collect();
    let n_pairs = scored.len();
    let negative: Vec<_> = scored.into_iter().filter(|(_, gap)| **gap < 0.0).map(|(pair, _)| pair.id.clone()).collect();
    let supervision = Supervision { n_pairs, n_negative: negative.len() };
    let share = negative.len() as f64 / n_pairs.max(1) as f64;
    let severity = if share > bad_share { Severity::Wrong } else { Severity::WorthKnowing };
    let detail = format!("{} of {n_pairs} dominant pairs, {:.0} %", negative.len(), 100.0 * share);
    for id in negative {
        findings.add(FindingKind::NegativeGap, severity, id, Some(detail.clone()));
    }
    supervision
}

/// For each pair that is there, whether it is the first with its texts.
fn first_of_each<'a>(pairs: impl Iterator<Item = Option<&'a PreferencePair>>) -> Vec<bool> {
    let mut seen = HashSet::new();
    pairs.map(|pair| pair.is_some_and(|pair| seen.insert(texts(pair)))).collect()
}

fn texts(pair: &PreferencePair) -> (&[Message], Option<&str>, Option<&str>) {
    (&pair.prompt, pair.chosen.as_deref(), pair.rejected.as_deref())
}

fn prompt_text(pair: &PreferencePair) -> String {
    pair.prompt.iter().map(|turn| turn.content.as_str()).collect::<Vec<_>>().join("\n")
}

fn count_languages<'a>(pairs: impl Iterator<Item = &'a PreferencePair>) -> Vec<LanguageCount> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    pairs.for_each(|pair| *counts.entry(&pair.lang).or_default() += 1);
    counts.into_iter().map(|(lang, n)| LanguageCount { lang: lang.to_owned(), n }).collect()
}

fn lengths(encoded: &[anyhow::Result<EncodedRow>], first_of_dominant: &[bool]) -> Vec<Lengths> {
    let mut groups: BTreeMap<(&'static str, &str), Vec<&EncodedPreference>> = BTreeMap::new();
    for (row, is_first) in encoded.iter().zip(first_of_dominant) {
        let Ok(row) = row else { continue };
        for dominant in row.dominant.iter().filter(|_| *is_first) {
            groups.entry(("dominant", &dominant.lang)).or_default().push(dominant);
        }
        groups.entry(("target", &row.target.lang)).or_default().push(&row.target);
    }
    let group = |((side, lang), rows): ((&'static str, &str), Vec<&EncodedPreference>)| Lengths {
        side,
        lang: lang.to_owned(),
        prompt: percentiles(rows.iter().map(|row| row.prompt.len()).collect()),
        response: percentiles(
            rows.iter().flat_map(|row| [&row.chosen, &row.rejected]).filter(|r| !r.is_absent()).map(|r| r.tokens.len()).collect(),
        ),
        sequence: percentiles(rows.iter().map(|row| row.longest_sequence()).collect()),
    };
    groups.into_iter().map(group).collect()
}

fn percentiles(mut values: Vec<usize>) -> Percentiles {
    values.sort_unstable();
    let rank = |percent: usize| values.get((values.len() * percent).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0);
    Percentiles { p50: rank(50), p95: rank(95), max: rank(100) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        assert_eq!(percentiles((1..=100).rev().collect()), Percentiles { p50: 50, p95: 95, max: 100 });
        assert_eq!(percentiles(vec![7]), Percentiles { p50: 7, p95: 7, max: 7 });
        assert_eq!(percentiles(vec![1, 2, 10]), Percentiles { p50: 2, p95: 10, max: 10 });
    }
}
