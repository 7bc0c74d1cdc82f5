//! Runs side by side: the numbers of a report before they have a form.
//!
//! A table has one metric of one benchmark, a row for each checkpoint and judge. With a baseline each cell of a main metric is tested against the
//! baseline's on the same prompts, by the same judge, and the p-values of all those tests are one family (Holm): languages times
//! benchmarks times checkpoints.

use crate::eval::results::facts::TrainingFacts;
use crate::eval::results::harness::Judged;
use crate::eval::results::languages::{Over, averages};
use crate::eval::results::measure::{Average, Measured, Settings, average, measure};
use crate::eval::results::metric::{Better, Metric, Scale};
use crate::eval::results::scores::{Values, differences};
use crate::eval::stats::{ALPHA, holm::holm, mcnemar::mcnemar, sign_flip::sign_flip};
use serde::Serialize;
use std::collections::BTreeMap;

/// A run with the benchmarks that are reported of it.
#[derive(Debug)]
pub struct Source<'a> {
    /// Shared by runs of one checkpoint on other benchmarks.
    pub name: String,
    /// One for each benchmark and judge.
    pub judged: Vec<Judged<'a>>,
}

/// One metric of one benchmark.
#[derive(Debug, Clone, Serialize)]
pub struct Table {
    pub bench: String,
    pub key: String,
    pub metric: Metric,
    /// Whether the benchmark is about this metric; others stand beside.
    pub is_main: bool,
    pub languages: Vec<String>,
    /// Those that every row has, and every row's judge covers.
    pub averages: Vec<(Over, Vec<String>)>,
    pub rows: Vec<Row>,
}

/// A checkpoint as one judge sees it.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub run: String,
    /// As it is called, what it was asked, and the NAME of its `verdicts-NAME.jsonl`, which has the rubric in it.
    pub judge: String,
    pub rubric: String,
    pub verdicts: String,
    /// By language; a language without a value is absent.
    pub cells: BTreeMap<String, Cell>,
    /// In the order of the table's averages.
    pub averages: Vec<Option<Average>>,
    /// Whether a prompt had the value 1 in any language: the multilingual-adaptive attack.
    pub in_any_language: Option<Measured>,
    /// Without prompts that were trained on, where there are such.
    pub without_trained: BTreeMap<String, Measured>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Cell {
    #[serde(flatten)]
    pub measured: Measured,
    /// Whether the judge is made for the language.
    pub covered: bool,
    /// None for the baseline itself, and where there is nothing to compare with.
    pub comparison: Option<Comparison>,
}

/// Against the baseline.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Comparison {
    /// Prompts that both have.
    pub n: usize,
    /// Checkpoint minus baseline.
    pub difference: f64,
    /// McNemar's for yes and no, the sign-flip test's for scores.
    pub p: f64,
    pub p_holm: f64,
    /// `None` where Holm's p is not below 0.05.
    pub verdict: Option<Verdict>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Better,
    Worse,
}

impl Verdict {
    /// What stands behind the number.
    pub fn mark(self) -> &'static str {
        match self {
            Self::Better => "*",
            Self::Worse => "†",
        }
    }
}

/// All tables, those on harm before those on skills that should be kept, and the size of the family of tests.
pub fn tables(sources: &[Source], baseline: Option<&str>, training: Option<&TrainingFacts>, settings: &Settings) -> (Vec<Table>, usize) {
    let mut names: Vec<(&str, bool, String)> = Vec::new();
    for judged in sources.iter().flat_map(|source| &source.judged) {
        let main = judged.main_metrics();
        for key in judged.scores.metrics() {
            names.push((judged.name, !main.iter().any(|main| main == key), key.to_owned()));
        }
    }
    names.sort();
    names.dedup();
    // A metric may be main in one run and beside in another: it is main.
    names.dedup_by(|b, a| a.0 == b.0 && a.2 == b.2);
    let mut tables: Vec<Table> =
        names.iter().map(|(bench, is_beside, key)| table(sources, bench, key, !is_beside, training, settings)).collect();
    tables.sort_by_key(|table| table.metric.to_keep);
    let n_tests = match baseline {
        Some(baseline) => test_all(&mut tables, sources, baseline, settings),
        None => 0,
    };
    (tables, n_tests)
}

fn table(sources: &[Source], bench: &str, key: &str, is_main: bool, training: Option<&TrainingFacts>, settings: &Settings) -> Table {
    let with_metric = |judged: &&Judged| judged.name == bench && judged.scores.metrics().any(|metric| metric == key);
    let of_row: Vec<(&Source, &Judged)> =
        sources.iter().flat_map(|source| source.judged.iter().filter(with_metric).map(move |judged| (source, judged))).collect();
    let metric = of_row.first().map_or_else(|| Metric::known(key), |(_, judged)| judged.facts.metric(key));
    let mut languages: Vec<String> = Vec::new();
    for lang in of_row.iter().flat_map(|(_, judged)| &judged.scores.languages) {
        if !languages.contains(lang) {
            languages.push(lang.clone());
        }
    }
    let in_all: Vec<String> =
        languages.iter().filter(|lang| of_row.iter().all(|(_, judged)| judged.covered(key).contains(lang))).cloned().collect();
    let mut over = averages(&in_all, training);
    over.retain(|(_, languages)| languages.len() > 1);
    let rows = of_row.into_iter().map(|(source, judged)| row(source, judged, key, &metric, &languages, &over, settings)).collect();
    Table { bench: bench.to_owned(), key: key.to_owned(), metric, is_main, languages, averages: over, rows }
}

fn row(
    source: &Source,
    judged: &Judged,
    key: &str,
    metric: &Metric,
    languages: &[String],
    over: &[(Over, Vec<String>)],
    settings: &Settings,
) -> Row {
    let measured = |values: Option<&Values>| measure(values?, metric.scale, settings.resampling);
    let cell = |lang: &String| {
        let measured = measured(judged.scores.values(key, lang))?;
        Some((lang.clone(), Cell { measured, covered: judged.judge_facts.covers(lang), comparison: None }))
    };
    let covered = judged.covered(key);
    let is_attack = metric.better == Better::Lower && matches!(metric.scale, Scale::Share) && !metric.to_keep;
    let in_any = (is_attack && covered.len() > 1).then(|| judged.scores.in_any_language(key, &covered));
    let clean = |lang: &String| Some((lang.clone(), measured(judged.without_trained.as_ref()?.values(key, lang))?));
    Row {
        run: source.name.clone(),
        judge: judged.judge_facts.name.clone(),
        rubric: judged.judge_facts.rubric.clone(),
        verdicts: judged.judge.clone().unwrap_or_default(),
        cells: languages.iter().filter_map(cell).collect(),
        averages: over.iter().map(|(_, languages)| average(&judged.scores, key, languages, settings.resampling)).collect(),
        in_any_language: in_any.and_then(|values| measured(Some(&values))),
        without_trained: languages.iter().filter_map(clean).collect(),
    }
}

/// Tests every cell of the main metrics that have a better side; returns the number of tests.
fn test_all(tables: &mut [Table], sources: &[Source], baseline: &str, settings: &Settings) -> usize {
    let mut cells: Vec<(&mut Cell, Better)> = Vec::new();
    for table in tables.iter_mut().filter(|table| table.is_main && table.metric.better != Better::Neither) {
        let Table { bench, key, metric, rows, .. } = table;
        for row in rows.iter_mut().filter(|row| row.run != baseline) {
            let Some((judged, base)) = pair(sources, bench, row, baseline) else { continue };
            for (lang, cell) in &mut row.cells {
                cell.comparison = shared(judged, base, key, lang).map(|(own, base)| compare(&own, &base, settings));
                if cell.comparison.is_some() {
                    cells.push((cell, metric.better));
                }
            }
        }
    }
    let p: Vec<f64> = cells.iter().filter_map(|(cell, _)| Some(cell.comparison?.p)).collect();
    for ((cell, better), p_holm) in cells.iter_mut().zip(holm(&p)) {
        if let Some(comparison) = &mut cell.comparison {
            comparison.p_holm = p_holm;
            let is_better = (comparison.difference < 0.0) == (*better == Better::Lower);
            comparison.verdict = (p_holm < ALPHA).then_some(if is_better { Verdict::Better } else { Verdict::Worse });
        }
    }
    p.len()
}

/// A row's and the baseline's verdicts on a benchmark, where the same judge gave them by the same prompt.
pub fn pair<'s, 'a>(sources: &'s [Source<'a>], bench: &str, row: &Row, baseline: &str) -> Option<(&'s Judged<'a>, &'s Judged<'a>)> {
    let find = |name: &str| {
        let mut judged = sources.iter().filter(|source| source.name == name).flat_map(|source| &source.judged);
        judged.find(|judged| judged.name == bench && judged.judge.as_deref() == Some(&row.verdicts))
    };
    let (own, base) = (find(&row.run)?, find(baseline)?);
    let judge = |judged: &Judged| {
        let facts = judged.judge_facts.clone();
        (facts.name, facts.rubric, facts.prompt_sha256, facts.translated_by)
    };
    (judge(own) == judge(base)).then_some((own, base))
}

/// The values of prompts that both have and that are the same text in both; `None` without any.
pub fn shared(own: &Judged, base: &Judged, key: &str, lang: &str) -> Option<(Values, Values)> {
    let texts = |judged: &Judged| -> BTreeMap<String, Vec<String>> {
        let items = judged.bench.items.iter().filter(|item| item.lang == lang);
        items.map(|item| (item.id.clone(), item.turns.clone())).collect()
    };
    let (own_texts, base_texts) = (texts(own), texts(base));
    let is_same = |id: &String| own_texts.get(id) == base_texts.get(id);
    let (own, base) = (own.scores.values(key, lang)?, base.scores.values(key, lang)?);
    let keep = |values: &Values, other: &Values| -> Values {
        let kept = values.iter().filter(|(id, _)| other.contains_key(*id) && is_same(id));
        kept.map(|(id, samples)| (id.clone(), samples.clone())).collect()
    };
    let (own, base) = (keep(own, base), keep(base, own));
    (!own.is_empty()).then_some((own, base))
}

fn compare(own: &Values, base: &Values, settings: &Settings) -> Comparison {
    let differences: Vec<f64> = differences(own, base).into_values().collect();
    let n = differences.len();
    let is_yes_or_no = own.values().chain(base.values()).all(|samples| matches!(samples[..], [value] if value == 0.0 || value == 1.0));
    let p = if is_yes_or_no {
        let count = |sign: f64| differences.iter().filter(|difference| **difference == sign).count();
        mcnemar(count(1.0), count(-1.0))
    } else {
        sign_flip(&differences, settings.resampling)
    };
    Comparison { n, difference: differences.iter().sum::<f64>() / n as f64, p, p_holm: 1.0, verdict: None }
}
