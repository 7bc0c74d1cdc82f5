//! The report as one page. `page.html` is its layout; everything that comes from a file goes through the template's escaping.

use super::compare::{self, Row, Table};
use super::kept::{GapAgainstAttack, Kept};
use super::plots::{self, Line, Whiskers, Words};
use super::reference::{AgainstReference, Gaps, Mean};
use super::text::{
    DASH, DIFFERENCES, breakdown_title, capital, caption, correlation, judge_of, kinds, marked, number, plain, reference_title,
};
use super::{Breakdown, Curve, Report};
use crate::eval::breakdown::Class;
use crate::eval::results::measure::Measured;
use crate::eval::results::metric::Scale;
use crate::eval::stats::Interval;
use anyhow::{Context, Result};
use minijinja::value::Serde;
use minijinja::{Environment, Value, context};
use serde::Serialize;
use std::collections::BTreeMap;

/// A heading, a plot, and the same numbers as a table.
#[derive(Debug, Serialize)]
struct Section {
    title: String,
    /// SVG, drawn by us, its texts escaped.
    plots: Vec<Value>,
    tables: Vec<Rows>,
    /// A sentence below.
    text: String,
    /// Closed until it is asked for.
    folded: bool,
}

#[derive(Debug, Serialize)]
struct Rows {
    caption: String,
    head: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

/// A number and what stands under it.
#[derive(Debug, Default, Serialize)]
struct Cell {
    value: String,
    below: String,
}

pub fn html(report: &Report) -> Result<String> {
    let mut sections = Vec::new();
    for (index, table) in report.tables.iter().filter(|table| table.is_main).enumerate() {
        sections.push(main_section(table, report, &format!("bench{index}"))?);
    }
    sections.extend(report.kept.iter().map(kept_section));
    for (index, gaps) in report.references.iter().enumerate() {
        sections.push(reference_section(gaps, &format!("reference{index}"))?);
    }
    for (index, gaps) in report.gaps.iter().enumerate() {
        sections.push(gaps_section(gaps, &format!("gaps{index}"))?);
    }
    for (index, breakdown) in report.breakdowns.iter().enumerate() {
        sections.push(breakdown_section(breakdown, &format!("kinds{index}"))?);
    }
    for (index, curve) in report.curves.iter().enumerate() {
        sections.extend(curve_section(curve, &format!("curve{index}"))?);
    }
    let beside: Vec<Rows> = report.beside().map(|table| value_rows(table, report)).collect();
    if !beside.is_empty() {
        sections.push(Section { title: "Beside".to_owned(), plots: Vec::new(), tables: beside, text: String::new(), folded: true });
    }
    let mut environment = Environment::new();
    // The name's ending turns escaping on.
    environment.add_template("page.html", include_str!("page.html")).context("the page's template")?;
    let page = environment.get_template("page.html").context("the page's template")?;
    let runs: Vec<String> = report.runs.iter().map(|run| plain(run)).collect();
    let notes: Vec<String> = report.notes.iter().map(|note| plain(note)).collect();
    let baseline = report.baseline.as_deref().map(plain);
    let headline = headline(report);
    let sections = Value::from(Serde(&sections));
    page.render(context! { runs, baseline, headline, notes, sections }).context("cannot lay out the report's page")
}

/// What became of the first share that is compared with the baseline, over all languages, in a sentence.
fn headline(report: &Report) -> Option<String> {
    let baseline = report.baseline.as_ref()?;
    let table = report.tables.iter().find(|table| table.is_main && table.metric.scale == Scale::Share)?;
    let before = table.rows.iter().find(|row| row.run == *baseline)?;
    let after = table.rows.iter().find(|row| row.run != *baseline && row.verdicts == before.verdicts)?;
    let both = || table.languages.iter().filter_map(|lang| Some((before.cells.get(lang)?.measured, after.cells.get(lang)?.measured)));
    let sum = |of: &dyn Fn(&(Measured, Measured)) -> Measured| {
        let (yes, n) = both().fold((0.0, 0), |(yes, n), pair| (yes + of(&pair).value * of(&pair).n as f64, n + of(&pair).n));
        (n > 0).then(|| (100.0 * yes / n as f64, format!("{yes:.0} of {n}")))
    };
    let (first, first_count) = sum(&|pair| pair.0)?;
    let (last, last_count) = sum(&|pair| pair.1)?;
    let went = match () {
        () if last < first => "fell",
        () if last > first => "rose",
        () => "stayed",
    };
    let languages = if table.languages.len() == 1 { "one language".to_owned() } else { format!("{} languages", table.languages.len()) };
    Some(plain(&format!(
        "{}: {} {went} from {first:.0} % ({first_count}, {}) to {last:.0} % ({last_count}, {}), over {languages}.",
        table.bench, table.metric.title, before.run, after.run
    )))
}

fn main_section(table: &Table, report: &Report, id: &str) -> Result<Section> {
    let factor = table.metric.percent();
    let series: Vec<Whiskers> = table
        .rows
        .iter()
        .map(|row| {
            let point = |lang: &String| {
                let measured = row.cells.get(lang)?.measured;
                Some([measured.value, measured.interval.low, measured.interval.high].map(|value| factor * value))
            };
            Whiskers { name: row_name(table, row), points: table.languages.iter().map(point).collect() }
        })
        .collect();
    let title = caption(table);
    let description = format!(
        "One marker for each checkpoint and language, with its 95 % interval as a line. Checkpoints: {}. Languages: {}. The table below has the numbers.",
        series.iter().map(|series| series.name.as_str()).collect::<Vec<_>>().join("; "),
        table.languages.join(", ")
    );
    let words = Words { id: id.to_owned(), title: title.clone(), description };
    let unit = if factor == 100.0 { "%" } else { "" };
    let languages: Vec<String> = table.languages.iter().map(|lang| capital(lang)).collect();
    let from_zero = matches!(table.metric.scale, Scale::Share | Scale::Score);
    let plot = plots::whiskers(&words, unit, &languages, &series, from_zero)?;
    let mut tables = vec![value_rows(table, report)];
    tables.extend(test_rows(table, report));
    let any = table.rows.iter().any(|row| row.in_any_language.is_some());
    let text = if any { "ANY: in at least one of the languages, of the prompts judged in all of them." } else { "" };
    Ok(Section { title, plots: vec![Value::from_safe_string(plot)], tables, text: text.to_owned(), folded: false })
}

fn row_name(table: &Table, row: &Row) -> String {
    let several = table.rows.iter().any(|row| row.verdicts != table.rows[0].verdicts);
    let run = plain(&row.run);
    if several { format!("{run}, by {}", judge_of(row)) } else { run }
}

fn value_rows(table: &Table, report: &Report) -> Rows {
    let has_any = table.rows.iter().any(|row| row.in_any_language.is_some());
    let mut head = vec!["checkpoint".to_owned()];
    head.extend(table.languages.iter().map(|lang| capital(lang)));
    head.extend(table.averages.iter().map(|(over, _)| over.title().to_owned()));
    head.extend(has_any.then(|| "ANY".to_owned()));
    let factor = table.metric.percent();
    let between =
        |Interval { low, high }: Interval| if low == high { String::new() } else { format!("{:.1} to {:.1}", factor * low, factor * high) };
    let with = |value: String, interval: Interval| Cell { value, below: between(interval) };
    let of_language = |cell: &compare::Cell| {
        let Measured { value, n, interval, .. } = cell.measured;
        let count = format!("{:.0} of {n}; ", value * n as f64);
        let count = if table.metric.scale == Scale::Share { count } else { String::new() };
        Cell { value: marked(table, cell), below: count + &between(interval) }
    };
    let dash = || Cell { value: DASH.to_owned(), below: String::new() };
    let rows = table.rows.iter().map(|row| {
        let baseline = if report.baseline.as_ref() == Some(&row.run) { "baseline" } else { "" };
        let mut cells = vec![Cell { value: row_name(table, row), below: baseline.to_owned() }];
        let languages = table.languages.iter().map(|lang| row.cells.get(lang));
        cells.extend(languages.map(|cell| cell.map_or_else(dash, of_language)));
        let averages = row.averages.iter().map(|average| average.as_ref().map(|average| (average.value, average.interval)));
        let any = has_any.then(|| row.in_any_language.map(|any| (any.value, any.interval)));
        cells.extend(averages.chain(any).map(|pair| pair.map_or_else(dash, |(value, interval)| with(number(table, value), interval))));
        cells
    });
    Rows { caption: caption(table), head, rows: rows.collect() }
}

/// Every test against the baseline, with both p-values.
fn test_rows(table: &Table, report: &Report) -> Option<Rows> {
    let factor = table.metric.percent();
    let mut rows = Vec::new();
    for row in &table.rows {
        for lang in &table.languages {
            let Some(comparison) = row.cells.get(lang).and_then(|cell| cell.comparison) else { continue };
            let texts = [
                row_name(table, row),
                capital(lang),
                format!("{:+.2}", factor * comparison.difference),
                comparison.n.to_string(),
                format!("{:.2e}", comparison.p),
                format!("{:.2e}", comparison.p_holm),
                comparison.verdict.map_or("", |verdict| verdict.mark()).to_owned(),
            ];
            rows.push(texts.into_iter().map(|value| Cell { value, below: String::new() }).collect());
        }
    }
    let baseline = plain(report.baseline.as_deref()?);
    let head = ["checkpoint", "language", "change", "prompts", "p", "p after Holm", ""].map(Into::into).to_vec();
    (!rows.is_empty()).then(|| Rows { caption: format!("Tests against {baseline}"), head, rows })
}

fn kept_section(kept: &Kept) -> Section {
    let percent = kept.percent;
    let margin = kept.by_language.first().map_or(0.0, |(_, test)| percent * test.margin);
    let rows = kept.by_language.iter().map(|(lang, test)| {
        let texts = [
            capital(lang),
            format!("{:+.2}", percent * test.difference),
            format!("{:+.2} to {:+.2}", percent * test.interval.low, percent * test.interval.high),
            (if test.holds { "kept" } else { "not shown" }).to_owned(),
            format!("{:.2}", percent * test.detectable),
        ];
        texts.into_iter().map(|value| Cell { value, below: String::new() }).collect()
    });
    let title = plain(&format!("{}: was {} kept by {}?", kept.bench, kept.title, kept.run));
    let head = ["language", "change", "95 % interval", "kept?", "detectable"].map(Into::into).to_vec();
    let tables = vec![Rows { caption: title.clone(), head, rows: rows.collect() }];
    let text = format!(
        "Kept: the interval of the change for the worse stays within {margin:.2}. Detectable: the margin that these prompts would show 4 times of 5."
    );
    Section { title, plots: Vec::new(), tables, text, folded: false }
}

fn reference_section(gaps: &AgainstReference, id: &str) -> Result<Section> {
    let title = reference_title(gaps);
    let names: Vec<String> = gaps.by_language.iter().map(|(lang, _)| capital(lang)).collect();
    let points = |of: fn(&Gaps) -> Mean| {
        let point = |(_, gaps): &(String, Gaps)| {
            let Mean { value, interval } = of(gaps);
            Some([value, interval.low, interval.high])
        };
        gaps.by_language.iter().map(point).collect()
    };
    let series = [
        Whiskers { name: plain(&gaps.run), points: points(|gaps| gaps.own) },
        Whiskers { name: plain(&gaps.reference), points: points(|gaps| gaps.reference) },
    ];
    let description =
        "One marker for each checkpoint and language, with its 95 % interval as a line. The table below has the numbers.".to_owned();
    let words = Words { id: id.to_owned(), title: title.clone(), description };
    let plot = plots::whiskers(&words, "nats a token", &names, &series, false)?;
    let cell = |Mean { value, interval }: Mean, sign: &str| Cell {
        value: format!("{}{value:.4}", if value >= 0.0 { sign } else { "" }),
        below: format!("{:.3} to {:.3}", interval.low, interval.high),
    };
    let rows = names.iter().zip(&gaps.by_language).map(|(name, (_, gaps))| {
        let text = |value: String| Cell { value, below: String::new() };
        vec![text(name.clone()), cell(gaps.own, ""), cell(gaps.reference, ""), cell(gaps.difference, "+"), text(gaps.n.to_string())]
    });
    let head = ["language", "reward gap", "of the reference", "difference", "pairs"].map(Into::into).to_vec();
    let tables = vec![Rows { caption: title.clone(), head, rows: rows.collect() }];
    Ok(Section { title, plots: vec![Value::from_safe_string(plot)], tables, text: DIFFERENCES.to_owned(), folded: false })
}

fn gaps_section(gaps: &GapAgainstAttack, id: &str) -> Result<Section> {
    let title = plain(&format!("{}: reward gap against attack success, {}", gaps.bench, gaps.run));
    let points: Vec<(String, f64, f64)> = gaps.points.iter().map(|(lang, gap, attack)| (capital(lang), *gap, 100.0 * attack)).collect();
    let description = format!("One point for each language. {}. The table below has the numbers.", correlation(gaps));
    let words = Words { id: id.to_owned(), title: title.clone(), description };
    let plot = plots::scatter(&words, "reward gap, nats a token", "attack success, %", &points)?;
    let rows = points.iter().map(|(lang, gap, attack)| {
        let texts = [lang.clone(), format!("{gap:.4}"), format!("{attack:.2}")];
        texts.into_iter().map(|value| Cell { value, below: String::new() }).collect()
    });
    let head = ["language", "reward gap", "attack success, %"].map(Into::into).to_vec();
    let tables = vec![Rows { caption: title.clone(), head, rows: rows.collect() }];
    Ok(Section { title, plots: vec![Value::from_safe_string(plot)], tables, text: correlation(gaps), folded: false })
}

fn breakdown_section(breakdown: &Breakdown, id: &str) -> Result<Section> {
    let kinds = kinds(breakdown);
    let names: Vec<String> = kinds.iter().map(|kind| plain(kind)).collect();
    let count = |counts: &BTreeMap<String, usize>| kinds.iter().map(|kind| counts.get(kind).copied().unwrap_or(0)).collect();
    let counts: Vec<(String, Vec<usize>)> = breakdown.by_language.iter().map(|(lang, counts)| (capital(lang), count(counts))).collect();
    let title = breakdown_title(breakdown);
    let description = format!("One bar for each language, cut by the shares of: {}. The table below has the counts.", names.join(", "));
    let words = Words { id: id.to_owned(), title: title.clone(), description };
    // One class has one colour in every chart; what is no class of ours has the one after them.
    let fill = |kind: &String| Class::ALL.iter().position(|class| class.title() == kind).unwrap_or(Class::ALL.len());
    let coloured: Vec<(String, usize)> = names.iter().cloned().zip(kinds.iter().map(fill)).collect();
    let plot = plots::stacked(&words, &coloured, &counts)?;
    let rows = counts.iter().map(|(lang, counts)| {
        let texts = std::iter::once(lang.clone()).chain(counts.iter().map(ToString::to_string));
        texts.map(|value| Cell { value, below: String::new() }).collect()
    });
    let tables =
        vec![Rows { caption: title.clone(), rows: rows.collect(), head: std::iter::once("language".to_owned()).chain(names).collect() }];
    Ok(Section { title, plots: vec![Value::from_safe_string(plot)], tables, text: String::new(), folded: false })
}

/// Loss, and reward gaps by language, where the training's log has them.
fn curve_section(curve: &Curve, id: &str) -> Result<Option<Section>> {
    let is_loss = |key: &str| ["loss", "objective", "retention", "eval_loss"].contains(&key);
    let gap = |key: &str| key.strip_prefix("reward_gap_target/").map(ToOwned::to_owned);
    let reference = |key: &str| (key == "reward_gap_reference").then(|| "dominant, reference".to_owned());
    let losses = curve_lines(curve, |key| is_loss(key).then(|| key.replace('_', " ")));
    let gaps = curve_lines(curve, |key| gap(key).or_else(|| reference(key)));
    let mut plots = Vec::new();
    let mut rows = Vec::new();
    for (part, lines, y_title) in [("loss", &losses, "loss"), ("gaps", &gaps, "reward gap, nats a token")] {
        if lines.is_empty() {
            continue;
        }
        let title = plain(&format!("{}: {y_title} by step", curve.run));
        let names: Vec<&str> = lines.iter().map(|line| line.name.as_str()).collect();
        let description = format!("Lines over training steps: {}. The table below has their first and last values.", names.join(", "));
        let words = Words { id: format!("{id}-{part}"), title, description };
        plots.push(Value::from_safe_string(plots::lines(&words, "step", y_title, lines)?));
        rows.extend(lines.iter().map(|line| {
            let end = |point: Option<&(f64, f64)>| point.map_or_else(String::new, |(_, value)| format!("{value:.4}"));
            let texts = [line.name.clone(), end(line.points.first()), end(line.points.last()), line.points.len().to_string()];
            texts.into_iter().map(|value| Cell { value, below: String::new() }).collect()
        }));
    }
    let title = plain(&format!("Training of {}", curve.run));
    let head = ["", "first", "last", "steps"].map(Into::into).to_vec();
    let tables = vec![Rows { caption: title.clone(), head, rows }];
    Ok((!plots.is_empty()).then(|| Section { title, plots, tables, text: String::new(), folded: false }))
}

/// A line for each key that has a name.
fn curve_lines(curve: &Curve, name: impl Fn(&str) -> Option<String>) -> Vec<Line> {
    let mut lines: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for line in &curve.lines {
        let Some(step) = line.get("step") else { continue };
        for (key, value) in line {
            if let Some(name) = name(key) {
                lines.entry(plain(&name)).or_default().push((*step, *value));
            }
        }
    }
    lines.into_iter().map(|(name, points)| Line { name, points }).collect()
}
