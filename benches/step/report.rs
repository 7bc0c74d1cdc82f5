//! The table: what was measured, beside what it is compared with and what was aimed at.

use crate::job::median;
use serde::Serialize;

/// One comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    pub work: String,
    pub against: String,
    pub ours: Quantity,
    pub theirs: Quantity,
    pub ratio: f64,
    /// Smallest and largest ratio of a round.
    pub range: [f64; 2],
    /// Absent where the line is for orientation.
    pub mark: Option<Mark>,
    pub verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub enum Quantity {
    Seconds(f64),
    Bytes(f64),
    /// A pure number.
    Factor(f64),
}

/// What the ratio should be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mark {
    AtLeast { pass: f64, aim: f64 },
    AtMost { pass: f64, aim: f64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Aim,
    Pass,
    Missed,
    NoMark,
}

impl Mark {
    fn verdict(mark: Option<Self>, ratio: f64) -> Verdict {
        let (passes, aims) = match mark {
            None => return Verdict::NoMark,
            Some(Self::AtLeast { pass, aim }) => (ratio >= pass, ratio >= aim),
            Some(Self::AtMost { pass, aim }) => (ratio <= pass, ratio <= aim),
        };
        match (passes, aims) {
            (_, true) => Verdict::Aim,
            (true, false) => Verdict::Pass,
            (false, false) => Verdict::Missed,
        }
    }

    fn columns(&self) -> [String; 2] {
        let (sign, pass, aim) = match self {
            Self::AtLeast { pass, aim } => (">=", pass, aim),
            Self::AtMost { pass, aim } => ("<=", pass, aim),
        };
        [format!("{sign} {pass:.2}"), format!("{sign} {aim:.2}")]
    }
}

impl Line {
    /// Compares two lists with a value for each round. `ratio` says which way: of our value and theirs.
    pub fn new(
        (work, against): (&str, &str),
        quantity: fn(f64) -> Quantity,
        (ours, theirs): (Vec<f64>, Vec<f64>),
        ratio: fn(f64, f64) -> f64,
        mark: Option<Mark>,
    ) -> Self {
        let of_rounds = ours.iter().zip(&theirs).map(|(&ours, &theirs)| ratio(ours, theirs));
        let range = of_rounds.fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], r| [low.min(r), high.max(r)]);
        let (ours, theirs) = (median(&ours), median(&theirs));
        let ratio = ratio(ours, theirs);
        Self {
            work: work.into(),
            against: against.into(),
            ours: quantity(ours),
            theirs: quantity(theirs),
            ratio,
            range,
            mark,
            verdict: Mark::verdict(mark, ratio),
        }
    }
}

impl std::fmt::Display for Quantity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Seconds(s) if *s < 0.1 => write!(f, "{:.2} ms", 1e3 * s),
            Self::Seconds(s) if *s < 100.0 => write!(f, "{s:.3} s"),
            Self::Seconds(s) => write!(f, "{s:.0} s"),
            Self::Bytes(bytes) => write!(f, "{:.0} MiB", bytes / f64::from(1 << 20)),
            Self::Factor(factor) => write!(f, "{factor:.3}"),
        }
    }
}

/// Columns as wide as their widest cell.
pub fn table(lines: &[Line]) -> String {
    let header = ["work", "against", "ours", "theirs", "ratio", "range", "pass", "aim", "reached"].map(String::from);
    let rows: Vec<[String; 9]> = [header].into_iter().chain(lines.iter().map(cells)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..9).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn cells(line: &Line) -> [String; 9] {
    let [pass, aim] = line.mark.as_ref().map(Mark::columns).unwrap_or_default();
    let verdict = match line.verdict {
        Verdict::Aim => "aim",
        Verdict::Pass => "pass",
        Verdict::Missed => "no",
        Verdict::NoMark => "",
    };
    [
        line.work.clone(),
        line.against.clone(),
        line.ours.to_string(),
        line.theirs.to_string(),
        format!("{:.3}", line.ratio),
        format!("{:.2} to {:.2}", line.range[0], line.range[1]),
        pass,
        aim,
        verdict.into(),
    ]
}
