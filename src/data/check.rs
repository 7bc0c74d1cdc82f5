//! What is wrong with a data set, and what is worth knowing about it: the report of `mpo check`, and the warnings of `mpo train`.
//!
//! A finding is *wrong* where its rows teach something that nobody can want: no prompt, two equal answers, an answer in another script. It
//! is *worth knowing* where the guess may be mistaken or the run copes: an answer that ends mid-sentence, a row that `max_tokens` cuts.
//! Pure functions of rows: no file, no model. `inspect` looks at rows one by one, `tags` at their languages. The report names rows and
//! never quotes them, since the texts are often harmful.

mod display;
mod inspect;
mod tags;
mod text;

use super::columns::{Columns, Unread};
use super::encode::{EncodedPreference, EncodedRow, Encoder};
use super::pair::{Message, PreferencePair, PreferenceRow};
use super::truncate::{Fit, fit};
use super::{Dataset, RowFault, SpoiltRow};
use crate::config::{ObjectiveConfig, OnOverlong};
pub use inspect::one_sided;
pub(super) use inspect::{Depth, Inspector};
use std::collections::{BTreeMap, HashSet};

/// What a check looks at.
pub struct CheckInput<'a> {
    pub dataset: &'a Dataset,
    /// Knows the special tokens.
    pub encoder: Option<&'a Encoder>,
    /// The loss that the data is for, where that is known.
    pub objective: Option<&'a ObjectiveConfig>,
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
    /// What `mpo train` says before it stops.
    Refused,
    Unreadable,
    EmptyResponse,
    EmptyPrompt,
    Untranslated,
    SameLanguage,
    OtherScript,
    EqualResponses,
    RepeatedRow,
    RepeatedId,
    Transcript,
    TurnOrder,
    EndsInSpecialToken,
    UnreadColumn,
    OtherTag,
    OneSided,
    NotEncodable,
    TooLong,
    NegativeGap,
    SpecialToken,
    OtherLanguage,
    Unbalanced,
    RepeatedPrompt,
    NoSentenceEnd,
}

impl FindingKind {
    /// Whether training stops for it, and says the same.
    fn is_refusal(self) -> bool {
        matches!(self, Self::Refused | Self::Unreadable | Self::EmptyResponse | Self::NotEncodable)
    }
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
    /// Columns that are not read, and that no other program is known to read.
    pub not_read: Vec<String>,
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

    /// Adds why training refuses the data, unless a finding says so already.
    pub fn refused(&mut self, message: String) {
        let is_said = self.findings.iter().any(|finding| finding.kind.is_refusal());
        if !is_said {
            let refused = Finding { kind: FindingKind::Refused, severity: Severity::Wrong, rows: Vec::new(), detail: Some(message) };
            self.findings.insert(0, refused);
        }
    }
}

/// Looks at every row and gathers what it finds.
pub fn check(input: &CheckInput) -> CheckReport {
    let pairs = &input.dataset.pairs;
    let first_of_dominant = first_of_each(pairs.iter().map(|row| row.dominant.as_ref()));
    let mut inspector = Inspector::new(input.encoder, input.objective, Depth::Whole);
    inspector.look(pairs);
    let mut findings = inspector.finish();
    for row in &input.dataset.spoilt {
        let (kind, message) = match &row.fault {
            RowFault::Malformed(message) => (FindingKind::Unreadable, message),
            RowFault::Empty(message) => (FindingKind::EmptyResponse, message),
        };
        findings.add(kind, Severity::Wrong, format!("{} ({})", row.index, place(row, &input.dataset.spoilt)), Some(message.clone()));
    }
    findings.add_columns(&input.dataset.columns);
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
        not_read: input
            .dataset
            .columns
            .unread()
            .into_iter()
            .filter(|column| column.what == Unread::Other)
            .map(|column| column.name)
            .collect(),
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

/// Findings by severity and kind.
#[derive(Default)]
pub(super) struct Findings(BTreeMap<(Severity, FindingKind), (Vec<String>, Option<String>)>);

impl Findings {
    /// Keeps the first detail of a kind.
    pub fn add(&mut self, kind: FindingKind, severity: Severity, row: String, detail: Option<String>) {
        let (rows, first_detail) = self.0.entry((severity, kind)).or_default();
        rows.push(row);
        *first_detail = first_detail.take().or(detail);
    }

    /// Columns that mean something to other programs.
    pub fn add_columns(&mut self, columns: &Columns) {
        for column in columns.unread() {
            let (severity, why) = match column.what {
                Unread::Other => continue,
                Unread::InPrompt => {
                    (Severity::Wrong, "part of the prompt to other programs: write it into `prompt`, or remove it".to_owned())
                }
                Unread::Weight => (Severity::WorthKnowing, "all rows count alike".to_owned()),
                Unread::NearlyNamed(meant) => (Severity::WorthKnowing, format!("did you mean `{meant}`?")),
            };
            let what = format!("`{}` ({} rows from row {} on; {why})", column.name, column.n_rows, column.first_row);
            self.add(FindingKind::UnreadColumn, severity, what, None);
        }
    }

    /// Gives a kind of a severity the detail of all of its rows.
    pub fn detail(&mut self, kind: FindingKind, severity: Severity, detail: String) {
        if let Some((_, known)) = self.0.get_mut(&(severity, kind)) {
            *known = Some(detail);
        }
    }

    /// Gives a kind that was found a detail about all of its rows.
    pub fn describe(&mut self, kind: FindingKind, detail: impl Fn() -> String) {
        for (_, (_, found)) in self.0.iter_mut().filter(|((_, found), _)| *found == kind) {
            *found = Some(detail());
        }
    }

    pub fn sorted(self) -> Vec<Finding> {
        self.0.into_iter().map(|((severity, kind), (rows, detail))| Finding { kind, severity, rows, detail }).collect()
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

/// What is equal for pairs with the same texts, whatever their language is called.
fn texts(pair: &PreferencePair) -> (&[Message], Option<&str>, Option<&str>) {
    (&pair.prompt, pair.chosen.as_deref(), pair.rejected.as_deref())
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
