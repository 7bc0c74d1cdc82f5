//! Reward gaps of every row under a policy and a reference, and what they say per language.
//!
//! The paper's first observation (arXiv 2505.16869, section 3) is such a table: the gap between safe and unsafe answers is wide in the
//! dominant language and narrow elsewhere.

use crate::config::Gap;
use crate::data::encode::{EncodedPreference, EncodedRow};
use crate::objective::{PairScores, ResponseScore};
use crate::reference::FrozenScores;
use anyhow::{Result, bail};
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
    /// Absent in plain preference data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dominant: Option<PairGap>,
    pub target: PairGap,
}

/// One preference pair under one model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PairGap {
    pub lang: String,
    /// Absent where labelled data has the other answer only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chosen: Option<Answer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<Answer>,
    /// Of two answers, without beta; nats a token, or nats for `gap = "sum"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reward_gap: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Answer {
    /// Summed over the response tokens, nats.
    pub logp: f64,
    pub tokens: usize,
}

/// The gaps of `rows`, in their order. Both columns must hold every pair of every row.
pub fn measure(rows: &[EncodedRow], policy: &FrozenScores, reference: &FrozenScores, gap: Gap) -> Result<Vec<RowGaps>> {
    let both = |row: &EncodedRow, scores: &FrozenScores| -> Result<BothSides> {
        let pair = |pair: &EncodedPreference| Ok::<_, anyhow::Error>(PairGap::new(&pair.lang, &scores.pair_scores(pair)?, gap));
        Ok(BothSides { dominant: row.dominant.as_ref().map(pair).transpose()?, target: pair(&row.target)? })
    };
    let measured: Vec<RowGaps> = rows
        .iter()
        .map(|row| Ok(RowGaps { id: row.id.clone(), policy: both(row, policy)?, reference: both(row, reference)? }))
        .collect::<Result<_>>()?;
    // A mean over one that is no number is none, and a table of such says nothing.
    let bad: Vec<&str> = measured.iter().filter(|row| !row.is_finite()).map(|row| row.id.as_str()).collect();
    if let Some(first) = bad.first() {
        bail!(
            "{} of {} rows have a log-probability that is not a number, `{first}` the first of them\n\
             hint: the weights may be damaged, or `model.dtype` too narrow for them",
            bad.len(),
            measured.len()
        );
    }
    Ok(measured)
}

impl RowGaps {
    fn is_finite(&self) -> bool {
        let pairs = [&self.policy, &self.reference].into_iter().flat_map(|sides| sides.dominant.iter().chain([&sides.target]));
        pairs.flat_map(|pair| [pair.chosen, pair.rejected]).flatten().all(|answer| answer.logp.is_finite())
    }
}

impl PairGap {
    fn new(lang: &str, scores: &PairScores, gap: Gap) -> Self {
        let answer = |score: ResponseScore| (!score.is_absent()).then_some(Answer { logp: score.log_prob, tokens: score.n_tokens });
        Self { lang: lang.into(), chosen: answer(scores.chosen), rejected: answer(scores.rejected), reward_gap: scores.known_gap(gap) }
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

/// Which pairs of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Dominant,
    Target,
}

/// A language's gaps in one table.
#[derive(Debug, Clone, PartialEq)]
pub struct LanguageGaps {
    pub side: Side,
    pub lang: String,
    pub n: usize,
    pub mean: f64,
    pub median: f64,
    /// Share of the pairs with a positive gap.
    pub positive: f64,
    /// What a target language's rows have still to go; `None` for a dominant language, and without dominant pairs.
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

/// Dominant languages first, over their distinct pairs; then target languages over their rows; each in order of first appearance. A row with
/// one answer has no gap and is left out.
pub fn by_language(rows: &[RowGaps], under: Under, beta: f64) -> Vec<LanguageGaps> {
    let mut languages = Vec::new();
    for lang in in_order(rows.iter().filter_map(|row| Some(row.policy.dominant.as_ref()?.lang.as_str()))) {
        // Rows that share a dominant pair have the very same numbers for it, so equal entries are one pair.
        let mut distinct: Vec<&PairGap> = Vec::new();
        for pair in rows.iter().filter_map(|row| both_sides(row, under).dominant.as_ref()).filter(|pair| pair.lang == lang) {
            if !distinct.contains(&pair) {
                distinct.push(pair);
            }
        }
        languages.push(LanguageGaps::new(Side::Dominant, lang, distinct.iter().filter_map(|pair| pair.reward_gap).collect(), None));
    }
    for lang in in_order(rows.iter().map(|row| row.policy.target.lang.as_str())) {
        let of_language = || rows.iter().filter(|row| row.policy.target.lang == lang);
        let gaps: Vec<f64> = of_language().filter_map(|row| both_sides(row, under).target.reward_gap).collect();
        let compared = |row: &RowGaps| Some((both_sides(row, under).target.reward_gap?, row.reference.dominant.as_ref()?.reward_gap?));
        let compared: Vec<(f64, f64)> = of_language().filter_map(compared).collect();
        languages.push(LanguageGaps::new(Side::Target, lang, gaps, ToGo::mean(&compared, beta)));
    }
    languages.retain(|language| language.n > 0);
    languages
}

impl ToGo {
    /// Over pairs of a target gap and the dominant one that it is compared with; `None` without any.
    fn mean(compared: &[(f64, f64)], beta: f64) -> Option<Self> {
        let mean =
            |of: fn(f64, f64, f64) -> f64| compared.iter().map(|&(gap, wanted)| of(gap, wanted, beta)).sum::<f64>() / compared.len() as f64;
        let distance = mean(|gap, wanted, _| wanted - gap);
        let squared = mean(|gap, wanted, beta| (beta * gap - wanted).powi(2));
        (!compared.is_empty()).then_some(Self { distance, squared })
    }
}

impl LanguageGaps {
    fn new(side: Side, lang: &str, gaps: Vec<f64>, to_go: Option<ToGo>) -> Self {
        let n = gaps.len();
        let mean = gaps.iter().sum::<f64>() / n as f64;
        let positive = gaps.iter().filter(|&&gap| gap > 0.0).count() as f64 / n as f64;
        Self { side, lang: lang.into(), n, mean, median: median(gaps), positive, to_go }
    }
}

/// The table as text, one line a language.
pub fn table(languages: &[LanguageGaps]) -> String {
    let mut text = format!(
        "{:<12}{:>6}{:>10}{:>10}{:>8}{:>16}{:>22}\n",
        "language", "n", "mean", "median", "> 0", "to dominant", "(beta RG_t - RG_d)^2"
    );
    for language in languages {
        let LanguageGaps { side, lang, n, mean, median, positive, to_go } = language;
        let name = if *side == Side::Dominant { format!("{lang} (dom.)") } else { lang.clone() };
        let _ = write!(text, "{name:<12}{n:>6}{mean:>10.4}{median:>10.4}{:>7.0}%", 100.0 * positive);
        let _ = match to_go {
            Some(ToGo { distance, squared }) => writeln!(text, "{distance:>16.4}{squared:>22.4}"),
            None => writeln!(text, "{:>16}{:>22}", "-", "-"),
        };
    }
    text
}

fn both_sides(row: &RowGaps, under: Under) -> &BothSides {
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
            dominant: Some(pair("en", -2.0, -2.0 - 2.0 * (dominant + shift))),
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
        assert_eq!(
            languages[0],
            LanguageGaps { side: Side::Dominant, lang: "en".into(), n: 2, mean: 1.5, median: 1.5, positive: 1.0, to_go: None }
        );
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
    fn rows_without_a_dominant_pair_or_an_answer_have_no_such_numbers() {
        let mut rows = [row("0", "sw", 1.0, 0.25), row("1", "sw", 1.0, -0.5), row("2", "bn", 1.0, 0.5)];
        for row in &mut rows {
            (row.policy.dominant, row.reference.dominant) = (None, None);
        }
        for index in [1, 2] {
            let target = &mut rows[index].policy.target;
            (target.rejected, target.reward_gap) = (None, None);
        }
        let languages = by_language(&rows, Under::Policy, 1.0);
        assert_eq!(
            languages,
            [LanguageGaps { side: Side::Target, lang: "sw".into(), n: 1, mean: 0.25, median: 0.25, positive: 1.0, to_go: None }]
        );
        let line = json_lines(&rows[1..2]).unwrap();
        assert!(
            line.starts_with(r#"{"id":"1","target":{"lang":"sw","chosen":{"logp":-2.0,"tokens":2}},"reference":{"target":{"#),
            "{line}"
        );
    }

    #[test]
    fn median_of_odd_and_even_counts() {
        assert_eq!(median(vec![3.0, -1.0, 2.0]), 2.0);
        assert_eq!(median(vec![3.0, -1.0, 2.0, 0.0]), 1.0);
    }
}
