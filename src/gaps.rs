//! Reward gaps of every row under a policy and a reference, and what they say per language.
//!
//! The paper's first observation (arXiv 2505.16869, section 3) is such a table: the gap between safe and unsafe answers is wide in the
//! dominant language and narrow elsewhere.

use crate::config::Gap;
use crate::data::encode::{EncodedPair, EncodedPreference};
use crate::objective::{PairScores, ResponseScore};
use crate::reference::FrozenScores;
use anyhow::Result;
use serde::Serialize;
use std::fmt::Write;

/// One JSON line of `mpo gaps`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RowGaps {
    pub id: String,
    /// Under the policy.
    #[serde(flatten)]
    pub policy: BothSides,
    /// Under the reference: the same numbers where the reference is the policy.
    pub reference: BothSides,
}

/// A row's two pairs under one model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BothSides {
    pub dominant: PairGap,
    pub target: PairGap,
}

/// One preference pair under one model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PairGap {
    pub lang: String,
    pub chosen: Answer,
    pub rejected: Answer,
    /// Without beta; nats a token, or nats for `gap = "sum"`.
    pub reward_gap: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Answer {
    /// Summed over the response tokens, nats.
    pub logp: f64,
    pub tokens: usize,
}

/// The gaps of `rows`, in their order. Both columns must hold every pair of every row.
pub fn measure(rows: &[EncodedPair], policy: &FrozenScores, reference: &FrozenScores, gap: Gap) -> Result<Vec<RowGaps>> {
    let both = |row: &EncodedPair, scores: &FrozenScores| -> Result<BothSides> {
        let pair = |pair: &EncodedPreference| Ok::<_, anyhow::Error>(PairGap::new(&pair.lang, &scores.pair_scores(pair)?, gap));
        Ok(BothSides { dominant: pair(&row.dominant)?, target: pair(&row.target)? })
    };
    rows.iter().map(|row| Ok(RowGaps { id: row.id.clone(), policy: both(row, policy)?, reference: both(row, reference)? })).collect()
}

impl PairGap {
    fn new(lang: &str, scores: &PairScores, gap: Gap) -> Self {
        let answer = |score: ResponseScore| Answer { logp: score.log_prob, tokens: score.n_tokens };
        Self { lang: lang.into(), chosen: answer(scores.chosen), rejected: answer(scores.rejected), reward_gap: scores.reward_gap(gap) }
    }
}

/// One JSON object a line, in the order of `rows`.
pub fn json_lines(rows: &[RowGaps]) -> Result<String> {
    let mut lines = String::new();
    for row in rows {
        lines.push_str(&serde_json::to_string(row)?);
        lines.push('\n');
    }
    Ok(lines)
}

/// A language's gaps in one table.
#[derive(Debug, Clone, PartialEq)]
pub struct LanguageGaps {
    pub lang: String,
    pub n: usize,
    pub mean: f64,
    pub median: f64,
    /// Share of the pairs with a positive gap.
    pub positive: f64,
    /// What a target language's rows have still to go; `None` for a dominant language.
    pub to_go: Option<ToGo>,
}

/// Means over a target language's rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ToGo {
    /// `RG(reference, dominant pair) - RG_t`
    pub distance: f64,
    /// `(beta RG_t - RG(reference, dominant pair))^2`, the language's part in the loss.
    pub squared: f64,
}

/// Whose gaps a table shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Under {
    Policy,
    Reference,
}

/// Dominant languages first, over their distinct pairs; then target languages over their rows; each in order of first appearance.
pub fn by_language(rows: &[RowGaps], under: Under, beta: f64) -> Vec<LanguageGaps> {
    let sides = |row| -> &BothSides { side(row, under) };
    let mut languages = Vec::new();
    for lang in in_order(rows.iter().map(|row| row.policy.dominant.lang.as_str())) {
        // Rows that share a dominant pair have the very same numbers for it, so equal entries are one pair.
        let mut distinct: Vec<&PairGap> = Vec::new();
        for pair in rows.iter().map(|row| &sides(row).dominant).filter(|pair| pair.lang == lang) {
            if !distinct.contains(&pair) {
                distinct.push(pair);
            }
        }
        languages.push(LanguageGaps::new(lang, distinct.iter().map(|pair| pair.reward_gap).collect(), None));
    }
    for lang in in_order(rows.iter().map(|row| row.policy.target.lang.as_str())) {
        let of_language = || rows.iter().filter(|row| row.policy.target.lang == lang);
        let gaps: Vec<f64> = of_language().map(|row| sides(row).target.reward_gap).collect();
        let wanted: Vec<f64> = of_language().map(|row| row.reference.dominant.reward_gap).collect();
        let mean = |of: fn(f64, f64, f64) -> f64| {
            gaps.iter().zip(&wanted).map(|(&gap, &wanted)| of(gap, wanted, beta)).sum::<f64>() / gaps.len() as f64
        };
        let distance = mean(|gap, wanted, _| wanted - gap);
        let squared = mean(|gap, wanted, beta| (beta * gap - wanted).powi(2));
        languages.push(LanguageGaps::new(lang, gaps.clone(), Some(ToGo { distance, squared })));
    }
    languages
}

impl LanguageGaps {
    fn new(lang: &str, gaps: Vec<f64>, to_go: Option<ToGo>) -> Self {
        let n = gaps.len();
        let mean = gaps.iter().sum::<f64>() / n as f64;
        let positive = gaps.iter().filter(|&&gap| gap > 0.0).count() as f64 / n as f64;
        Self { lang: lang.into(), n, mean, median: median(gaps), positive, to_go }
    }
}

/// The table as text, one line a language.
pub fn table(languages: &[LanguageGaps]) -> String {
    let mut text = format!(
        "{:<12}{:>6}{:>10}{:>10}{:>8}{:>16}{:>22}\n",
        "language", "n", "mean", "median", "> 0", "to dominant", "(beta RG_t - RG_d)^2"
    );
    for language in languages {
        let LanguageGaps { lang, n, mean, median, positive, to_go } = language;
        let name = if to_go.is_none() { format!("{lang} (dom.)") } else { lang.clone() };
        let _ = write!(text, "{name:<12}{n:>6}{mean:>10.4}{median:>10.4}{:>7.0}%", 100.0 * positive);
        let _ = match to_go {
            Some(ToGo { distance, squared }) => writeln!(text, "{distance:>16.4}{squared:>22.4}"),
            None => writeln!(text, "{:>16}{:>22}", "-", "-"),
        };
    }
    text
}

fn side(row: &RowGaps, under: Under) -> &BothSides {
    match under {
        Under::Policy => &row.policy,
        Under::Reference => &row.reference,
    }
}

fn in_order<'a>(languages: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut distinct = Vec::new();
    for lang in languages {
        if !distinct.contains(&lang) {
            distinct.push(lang);
        }
    }
    distinct
}

/// The middle value, or the mean of the two middle ones.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        1 => values[middle],
        _ if values.is_empty() => f64::NAN,
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(lang: &str, chosen: f64, rejected: f64) -> PairGap {
        let score = |log_prob| ResponseScore { log_prob, n_tokens: 2 };
        PairGap::new(lang, &PairScores { chosen: score(chosen), rejected: score(rejected) }, Gap::LengthNormalized)
    }

    fn row(id: &str, lang: &str, dominant: f64, target: f64) -> RowGaps {
        let both = |shift: f64| BothSides {
            dominant: pair("en", -2.0, -2.0 - 2.0 * (dominant + shift)),
            target: pair(lang, -2.0, -2.0 - 2.0 * (target + shift)),
        };
        RowGaps { id: id.into(), policy: both(0.0), reference: both(0.5) }
    }

    #[test]
    fn a_line_has_the_documented_form() {
        let line = json_lines(&[row("7", "sw", 1.0, 0.25)]).unwrap();
        let pair = |lang: &str, rejected: f64, gap: f64| {
            format!(
                r#"{{"lang":"{lang}","chosen":{{"logp":-2.0,"tokens":2}},"rejected":{{"logp":{rejected:?},"tokens":2}},"reward_gap":{gap:?}}}"#
            )
        };
        let expected = format!(
            r#"{{"id":"7","dominant":{},"target":{},"reference":{{"dominant":{},"target":{}}}}}"#,
            pair("en", -4.0, 1.0),
            pair("sw", -2.5, 0.25),
            pair("en", -5.0, 1.5),
            pair("sw", -3.5, 0.75)
        );
        assert_eq!(line, expected + "\n");
    }

    #[test]
    fn languages_by_hand() {
        let rows = [row("0", "sw", 1.0, 0.25), row("1", "bn", 1.0, -0.5), row("2", "sw", 2.0, -0.25), row("3", "sw", 2.0, 0.75)];
        let languages = by_language(&rows, Under::Policy, 2.0);
        assert_eq!(languages.iter().map(|language| language.lang.as_str()).collect::<Vec<_>>(), ["en", "sw", "bn"]);
        // Two distinct dominant pairs although there are four rows.
        assert_eq!(languages[0], LanguageGaps { lang: "en".into(), n: 2, mean: 1.5, median: 1.5, positive: 1.0, to_go: None });
        let sw = &languages[1];
        assert_eq!((sw.n, sw.mean, sw.median, sw.positive), (3, 0.25, 0.25, 2.0 / 3.0));
        // The reference's dominant gaps are 1.5, 2.5 and 2.5.
        let to_go = sw.to_go.unwrap();
        assert_eq!(to_go.distance, (1.25 + 2.75 + 1.75) / 3.0);
        assert_eq!(to_go.squared, (1.0 + 9.0 + 1.0) / 3.0);
        let reference = by_language(&rows, Under::Reference, 2.0);
        assert_eq!(reference[1].mean, 0.75);
        assert_eq!(reference[1].to_go.unwrap().distance, to_go.distance - 0.5);
    }

    #[test]
    fn table_has_a_line_for_each_language() {
        let rows = [row("0", "sw", 1.0, 0.25), row("1", "bn", 1.0, -0.5)];
        let text = table(&by_language(&rows, Under::Policy, 1.0));
        assert_eq!(text.lines().count(), 4);
        assert!(text.lines().nth(2).unwrap().starts_with("sw"), "{text}");
        let widths: Vec<usize> = text.lines().map(str::len).collect();
        assert!(widths.iter().all(|&width| width == widths[0]), "{text}");
    }

    #[test]
    fn median_of_odd_and_even_counts() {
        assert_eq!(median(vec![3.0, -1.0, 2.0]), 2.0);
        assert_eq!(median(vec![3.0, -1.0, 2.0, 0.0]), 1.0);
    }
}
