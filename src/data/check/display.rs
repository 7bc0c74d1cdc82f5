//! The report as text, for a terminal of 100 columns or more.

use super::{CheckReport, Finding, FindingKind, LanguageCount, Percentiles, Severity, Supervision};
use std::fmt;

/// Row ids printed per finding; the rest is a number.
const N_SHOWN: usize = 8;

impl FindingKind {
    /// What the rows have in common.
    pub fn title(self) -> &'static str {
        match self {
            FindingKind::Refused => "training refuses this data",
            FindingKind::Transcript => "a whole dialogue in one turn",
            FindingKind::TurnOrder => "turns in an odd order",
            FindingKind::EndsInSpecialToken => "the response ends in the token that ends a turn, which would be learned twice",
            FindingKind::SpecialToken => "the text spells special tokens",
            FindingKind::UnreadColumn => "columns that mean something to other programs, and are not read",
            FindingKind::OtherTag => "the texts are not in the language that the row names",
            FindingKind::OtherLanguage => "the chosen response is in the dominant language",
            FindingKind::OneSided => "labels of one kind",
            FindingKind::Unbalanced => "more labels of one kind than of the other",
            FindingKind::Unreadable => "rows that cannot be read",
            FindingKind::EmptyResponse => "empty response",
            FindingKind::EmptyPrompt => "empty prompt",
            FindingKind::Untranslated => "untranslated: the target prompt equals the dominant one",
            FindingKind::SameLanguage => "the target pair is in the dominant language",
            FindingKind::OtherScript => "the response is in another script than its prompt",
            FindingKind::EqualResponses => "chosen and rejected response are equal",
            FindingKind::RepeatedRow => "the same row again",
            FindingKind::RepeatedId => "the same id again",
            FindingKind::NotEncodable => "rows that the chat template or the tokenizer refuses",
            FindingKind::TooLong => "rows longer than `max_tokens`",
            FindingKind::NegativeGap => {
                "the reference prefers the rejected dominant response: training would teach that to every target language"
            }
            FindingKind::RepeatedPrompt => "the same target prompt again, with other texts",
            FindingKind::NoSentenceEnd => "the response does not end like a sentence, so it may have been cut",
        }
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n_dominant: usize = self.dominant.iter().map(|count| count.n).sum();
        if self.dominant.is_empty() {
            writeln!(f, "{} rows{}", self.n_rows, if self.n_rows > 0 { " without dominant pairs" } else { "" })?;
        } else {
            writeln!(f, "{} rows, {n_dominant} distinct dominant pairs", self.n_rows)?;
            writeln!(f, "  dominant  {}", counts(&self.dominant))?;
        }
        writeln!(f, "  target    {}", counts(&self.target))?;
        if !self.not_read.is_empty() {
            let names: Vec<String> = self.not_read.iter().map(|name| format!("`{name}`")).collect();
            writeln!(f, "  not read  {}", names.join(", "))?;
        }
        if !self.lengths.is_empty() {
            self.write_lengths(f)?;
        }
        if let Some(Supervision { n_pairs, n_negative }) = self.supervision {
            writeln!(f, "\nThe reference prefers the rejected response on {n_negative} of {n_pairs} dominant pairs.")?;
        }
        for (severity, title) in [(Severity::Wrong, "Wrong"), (Severity::WorthKnowing, "Worth knowing")] {
            let findings: Vec<_> = self.findings.iter().filter(|finding| finding.severity == severity).collect();
            if !findings.is_empty() {
                writeln!(f, "\n{title}")?;
                findings.into_iter().try_for_each(|finding| write_finding(f, finding))?;
            }
        }
        if !self.is_wrong() {
            writeln!(f, "\nNothing is wrong.")?;
        }
        Ok(())
    }
}

impl CheckReport {
    fn write_lengths(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cells = |p: &Percentiles| format!("{:>6} {:>6} {:>6}", p.p50, p.p95, p.max);
        writeln!(f, "\nTokens{:17}prompt{:15}response{:5}prompt + longer response", "", "", "")?;
        writeln!(f, "{:16}{}", "", "   50 %   95 %    max  ".repeat(3).trim_end())?;
        for row in &self.lengths {
            let groups = [cells(&row.prompt), cells(&row.response), cells(&row.sequence)].join("  ");
            writeln!(f, "  {:<9} {:<4}{groups}", row.side, row.lang)?;
        }
        Ok(())
    }
}

fn counts(languages: &[LanguageCount]) -> String {
    languages.iter().map(|count| format!("{} {}", count.lang, count.n)).collect::<Vec<_>>().join(", ")
}

fn write_finding(f: &mut fmt::Formatter<'_>, finding: &Finding) -> fmt::Result {
    // What is wrong with the data as a whole has no rows.
    let n_rows = match finding.kind.is_of_rows() {
        true => finding.rows.len().to_string(),
        false => String::new(),
    };
    writeln!(f, "  {n_rows:>5}  {}", finding.kind.title())?;
    if let Some(detail) = &finding.detail {
        writeln!(f, "         {}", detail.replace('\n', "\n         "))?;
    }
    match finding.named() {
        Some(named) => writeln!(f, "         {named}"),
        None => Ok(()),
    }
}

impl FindingKind {
    /// Whether rows are at fault, and not the data as a whole.
    fn is_of_rows(self) -> bool {
        !matches!(self, FindingKind::Refused | FindingKind::OneSided | FindingKind::Unbalanced)
    }
}

impl Finding {
    /// `row 3, 5 and 12 more`
    fn named(&self) -> Option<String> {
        if !self.kind.is_of_rows() || self.rows.is_empty() {
            return None;
        }
        let others = match self.rows.len().saturating_sub(N_SHOWN) {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        let shown: Vec<_> = self.rows.iter().take(N_SHOWN).map(String::as_str).collect();
        let noun = if self.kind == FindingKind::UnreadColumn { "" } else { "row " };
        Some(format!("{noun}{}{others}", shown.join(", ")))
    }

    /// The finding as one line, for a program that goes on all the same.
    pub fn warning(&self) -> String {
        let mut line = format!("warning: {}", self.kind.title());
        if let Some(detail) = &self.detail {
            line += &format!("; {detail}");
        }
        if let Some(named) = self.named() {
            line += &format!(" ({named})");
        }
        line
    }
}
