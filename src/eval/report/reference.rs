//! Reward gaps of a checkpoint beside those of its reference, pair by pair.

use super::compare::{Row, Table};
use crate::eval::gap::{DIFFERENCE_METRIC, METRIC, REFERENCE_METRIC};
use crate::eval::results::languages::Over;
use crate::eval::stats::Interval;
use serde::Serialize;
use std::collections::BTreeMap;

/// A mean over pairs, nats a token.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Mean {
    pub value: f64,
    pub interval: Interval,
}

/// One language, or an average over some.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Gaps {
    /// Pairs that both were measured on.
    pub n: usize,
    pub own: Mean,
    pub reference: Mean,
    /// The first less the second. Each pair is its own control, so the interval is narrower than those of the two suggest.
    pub difference: Mean,
}

/// One checkpoint against its reference.
#[derive(Debug, Clone, Serialize)]
pub struct AgainstReference {
    pub run: String,
    pub bench: String,
    /// What the reference is called.
    pub reference: String,
    /// By language, then the averages.
    pub by_language: Vec<(String, Gaps)>,
}

/// Every run that was measured under a reference too. `references` has the reference's name by the run's.
pub fn against_references(tables: &[Table], references: &BTreeMap<String, String>) -> Vec<AgainstReference> {
    let mut all = Vec::new();
    for table in tables.iter().filter(|table| table.key == DIFFERENCE_METRIC) {
        let row = |key: &str, run: &str| {
            let table = tables.iter().find(|other| other.bench == table.bench && other.key == key)?;
            Some((table, table.rows.iter().find(|row| row.run == run)?))
        };
        for difference in &table.rows {
            let (Some(own), Some(reference)) = (row(METRIC, &difference.run), row(REFERENCE_METRIC, &difference.run)) else { continue };
            let difference = (table, difference);
            let of_language = |lang: &String| {
                let mean = |(_, row): (&Table, &Row)| row.cells.get(lang).map(|cell| of(cell.measured.value, cell.measured.interval));
                let n = difference.1.cells.get(lang)?.measured.n;
                Some((lang.clone(), Gaps { n, own: mean(own)?, reference: mean(reference)?, difference: mean(difference)? }))
            };
            let over = |(over, languages): &(Over, Vec<String>)| {
                let average = |(table, row): (&Table, &Row)| {
                    let at = table.averages.iter().position(|(_, others)| others == languages)?;
                    row.averages.get(at)?.as_ref().map(|average| (average.n, of(average.value, average.interval)))
                };
                let (n, difference) = average(difference)?;
                let gaps = Gaps { n, own: average(own)?.1, reference: average(reference)?.1, difference };
                Some((over.title().to_owned(), gaps))
            };
            let by_language: Vec<_> =
                table.languages.iter().filter_map(of_language).chain(table.averages.iter().filter_map(over)).collect();
            if !by_language.is_empty() {
                let run = difference.1.run.clone();
                let reference = references.get(&run).cloned().unwrap_or_else(|| "its reference".to_owned());
                all.push(AgainstReference { run, bench: table.bench.clone(), reference, by_language });
            }
        }
    }
    all
}

/// Whether a table's numbers stand beside each other in [`AgainstReference`].
pub fn is_shown(table: &Table) -> bool {
    [REFERENCE_METRIC, DIFFERENCE_METRIC].contains(&table.key.as_str())
}

fn of(value: f64, interval: Interval) -> Mean {
    Mean { value, interval }
}
