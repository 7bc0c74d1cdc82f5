//! The report for a terminal: the paper's table, with an interval under each number.

use super::compare::{Cell, Row, Table};
use super::grid::{Grid, wrapped};
use super::kept::{GapAgainstAttack, Kept};
use super::reference::{AgainstReference, Mean};
use super::{Breakdown, Report};
use crate::escape::one_line;
use crate::eval::breakdown::Class;
use crate::eval::results::metric::Better;
use crate::eval::stats::Interval;

/// Characters of a line of notes.
const WIDTH: usize = 120;
/// A name in the first column may have so many.
const NAME_CHARS: usize = 40;
/// Where a language has no value.
pub const DASH: &str = "–";

pub fn text(report: &Report) -> String {
    let mut parts: Vec<String> = report.tables.iter().filter(|table| table.is_main).map(|table| main_table(table, report)).collect();
    parts.extend(report.kept.iter().map(kept));
    parts.extend(report.gaps.iter().map(gaps));
    parts.extend(report.references.iter().map(against_reference));
    parts.extend(report.beside().map(beside_table));
    parts.extend(report.breakdowns.iter().map(breakdown));
    if parts.is_empty() {
        parts.push("Nothing has been judged yet.\n".to_owned());
    }
    let notes: Vec<String> = report.notes.iter().map(|note| wrapped(&format!("- {}", plain(note)), WIDTH, "  ")).collect();
    parts.push(notes.join("\n") + "\n");
    parts.join("\n")
}

/// Bench, metric, which way is better.
pub fn caption(table: &Table) -> String {
    let unit = if table.metric.percent() == 100.0 { ", %" } else { "" };
    let way = match table.metric.better {
        Better::Lower => " (lower is better)",
        Better::Higher => " (higher is better)",
        Better::Neither => "",
    };
    let filter = table.key.split_once(',').map(|(_, filter)| format!(", {filter}")).unwrap_or_default();
    plain(&format!("{}: {}{filter}{unit}{way}", table.bench, table.metric.title))
}

fn main_table(table: &Table, report: &Report) -> String {
    let has_any = table.rows.iter().any(|row| row.in_any_language.is_some());
    let mut head = vec![String::new()];
    head.extend(table.languages.iter().map(|lang| capital(lang)));
    head.extend(table.averages.iter().map(|(over, _)| over.title().to_owned()));
    head.extend(has_any.then(|| "ANY".to_owned()));
    let several_judges = has_several_judges(table);
    let rows = table.rows.iter().map(|row| {
        let name = row_name(row, several_judges, report.baseline.as_deref());
        let mut cells = vec![name];
        // Where all resamples say the same, there is no interval to tell: `0.0-0.0` would pass for certainty.
        let interval = |Interval { low, high }: Interval| {
            if low == high { String::new() } else { format!("{}-{}", short(table, low), short(table, high)) }
        };
        let dash = || vec![DASH.to_owned()];
        let languages = table.languages.iter().map(|lang| row.cells.get(lang));
        cells.extend(languages.map(|cell| cell.map_or_else(dash, |cell| vec![marked(table, cell), interval(cell.measured.interval)])));
        let averages = row.averages.iter().map(|average| average.as_ref().map(|average| (average.value, average.interval)));
        let any = has_any.then(|| row.in_any_language.map(|any| (any.value, any.interval)));
        let others =
            averages.chain(any).map(|pair| pair.map_or_else(dash, |(value, between)| vec![number(table, value), interval(between)]));
        cells.extend(others);
        cells
    });
    let grid = Grid { head, rows: rows.collect() }.text();
    let any = if has_any { "ANY: in at least one of the languages, of the prompts judged in all of them.\n" } else { "" };
    format!("{}\n{grid}{any}", caption(table))
}

/// One line a row, no intervals: numbers that explain the main ones.
fn beside_table(table: &Table) -> String {
    let mut head = vec![String::new()];
    head.extend(table.languages.iter().map(|lang| capital(lang)));
    let several_judges = has_several_judges(table);
    let rows = table.rows.iter().map(|row| {
        let name = row_name(row, several_judges, None);
        let value = |lang: &String| vec![row.cells.get(lang).map_or_else(|| DASH.to_owned(), |cell| number(table, cell.measured.value))];
        std::iter::once(name).chain(table.languages.iter().map(value)).collect()
    });
    format!("{}\n{}", caption(table), Grid { head, rows: rows.collect() }.text())
}

fn kept(kept: &Kept) -> String {
    let percent = kept.percent;
    let unit = if percent == 100.0 { " points" } else { "" };
    let margin = kept.by_language.first().map_or(0.0, |(_, test)| percent * test.margin);
    let rows = kept.by_language.iter().map(|(lang, test)| {
        let Interval { low, high } = test.interval;
        let cells = [
            capital(lang),
            format!("{:+.2}", percent * test.difference),
            format!("{:+.2} to {:+.2}", percent * low, percent * high),
            (if test.holds { "kept" } else { "not shown" }).to_owned(),
            format!("{:.2}", percent * test.detectable),
        ];
        cells.into_iter().map(|cell| vec![cell]).collect()
    });
    let head = ["", "change", "95 % interval", "kept?", "detectable"].map(Into::into).to_vec();
    let grid = Grid { head, rows: rows.collect() }.text();
    let title = format!("{}: was {} kept by {}? (judge {})", kept.bench, kept.title, kept.run, kept.judge);
    format!(
        "{}\n{grid}Kept: the interval of the change for the worse stays within {margin:.2}{unit}. Detectable: the margin that these prompts would show 4 times of 5.\n",
        plain(&title)
    )
}

fn against_reference(gaps: &AgainstReference) -> String {
    let mean = |mean: Mean, sign: bool| {
        let Interval { low, high } = mean.interval;
        vec![if sign { format!("{:+.4}", mean.value) } else { format!("{:.4}", mean.value) }, format!("{low:.3} to {high:.3}")]
    };
    let rows = gaps.by_language.iter().map(|(lang, gaps)| {
        let pairs = vec![gaps.n.to_string()];
        vec![vec![capital(lang)], mean(gaps.own, false), mean(gaps.reference, false), mean(gaps.difference, true), pairs]
    });
    let head = ["", "reward gap", "of the reference", "difference", "pairs"].map(Into::into).to_vec();
    let grid = Grid { head, rows: rows.collect() }.text();
    format!("{}\n{grid}{DIFFERENCES}\n", reference_title(gaps))
}

/// What stands under the table of gaps.
pub const DIFFERENCES: &str = "Nats a token. The difference is taken pair by pair, and its interval is of those differences.";

pub fn reference_title(gaps: &AgainstReference) -> String {
    plain(&format!("{}: reward gaps of {} and of its reference, {}", gaps.bench, gaps.run, gaps.reference))
}

fn gaps(gaps: &GapAgainstAttack) -> String {
    let rows = gaps.points.iter().map(|(lang, gap, attack)| {
        [capital(lang), format!("{gap:.4}"), format!("{:.2}", 100.0 * attack)].into_iter().map(|cell| vec![cell]).collect()
    });
    let grid = Grid { head: ["", "reward gap", "attack success, %"].map(Into::into).to_vec(), rows: rows.collect() }.text();
    let title = format!("{}: reward gap against attack success, {} (judge {})", gaps.bench, gaps.run, gaps.judge);
    format!("{}\n{grid}{}\n", plain(&title), correlation(gaps))
}

/// Spearman's rho in words.
pub fn correlation(gaps: &GapAgainstAttack) -> String {
    match &gaps.correlation {
        None => "Too few languages for a rank correlation.".to_owned(),
        Some(found) => {
            let how = if found.exact { "exact" } else { "of drawn orders" };
            format!("Spearman's rho = {:.3} over {} languages, p = {:.4} ({how})", found.rho, found.n, found.p)
        }
    }
}

fn breakdown(breakdown: &Breakdown) -> String {
    let kinds = kinds(breakdown);
    let rows = breakdown.by_language.iter().map(|(lang, counts)| {
        let n = |kind: &String| vec![counts.get(kind).copied().unwrap_or(0).to_string()];
        std::iter::once(vec![capital(lang)]).chain(kinds.iter().map(n)).collect()
    });
    let head = std::iter::once(String::new()).chain(kinds.iter().map(|kind| plain(kind))).collect();
    let grid = Grid { head, rows: rows.collect() }.text();
    format!("{}\n{grid}", breakdown_title(breakdown))
}

pub fn breakdown_title(breakdown: &Breakdown) -> String {
    let by = breakdown.verdicts.as_ref().map(|verdicts| format!(", by {verdicts}")).unwrap_or_default();
    plain(&format!("{}: what the responses of {} are{by}", breakdown.bench, breakdown.run))
}

/// The kinds of response that occur, in the order of [`Class::ALL`].
pub fn kinds(breakdown: &Breakdown) -> Vec<String> {
    let mut kinds: Vec<String> = breakdown.by_language.iter().flat_map(|(_, counts)| counts.keys().cloned()).collect();
    let place = |kind: &String| Class::ALL.iter().position(|class| class.title() == kind);
    kinds.sort_by(|a, b| place(a).is_none().cmp(&place(b).is_none()).then(place(a).cmp(&place(b))).then_with(|| a.cmp(b)));
    kinds.dedup();
    kinds
}

fn has_several_judges(table: &Table) -> bool {
    table.rows.iter().any(|row| row.verdicts != table.rows[0].verdicts)
}

/// Name and, where it tells rows apart, judge, on two lines.
fn row_name(row: &Row, with_judge: bool, baseline: Option<&str>) -> Vec<String> {
    let mut name = plain(&row.run);
    if name.chars().count() > NAME_CHARS {
        // The end of a path tells more than its beginning.
        let cut = name.chars().count() - NAME_CHARS + 1;
        name = std::iter::once('…').chain(name.chars().skip(cut)).collect();
    }
    let baseline = if baseline == Some(&row.run) { " (baseline)" } else { "" };
    let judge = with_judge.then(|| format!("  by {}", judge_of(row)));
    std::iter::once(name + baseline).chain(judge).collect()
}

/// The judge with its rubric: one may have judged by several.
pub fn judge_of(row: &Row) -> String {
    plain(&if row.rubric.is_empty() { row.judge.clone() } else { format!("{}, {}", row.judge, row.rubric) })
}

/// A value with its marks: better or worse than the baseline, and outside what the judge is made for.
pub fn marked(table: &Table, cell: &Cell) -> String {
    let verdict = cell.comparison.and_then(|comparison| comparison.verdict).map_or("", |verdict| verdict.mark());
    format!("{}{}{verdict}", number(table, cell.measured.value), if cell.covered { "" } else { "°" })
}

/// Two decimals, as papers print them.
pub fn number(table: &Table, value: f64) -> String {
    format!("{:.2}", table.metric.percent() * value)
}

fn short(table: &Table, value: f64) -> String {
    if table.metric.percent() == 100.0 { format!("{:.1}", 100.0 * value) } else { format!("{value:.2}") }
}

/// `sw` as papers head a column: `Sw`.
pub fn capital(lang: &str) -> String {
    let mut chars = lang.chars();
    plain(&chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect()))
}

/// On one line, with what a terminal would obey or a reader cannot see written out: names of models, judges and prompts come from files.
pub fn plain(text: &str) -> String {
    one_line(text, usize::MAX)
}
