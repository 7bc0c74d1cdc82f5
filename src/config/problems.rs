//! What is wrong with a configuration, and where: every problem of a run is listed at once.

use std::fmt;

/// As many fit on a screen.
pub(crate) const MOST_SHOWN: usize = 40;

/// Where a value was set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// A line of the TOML text, counted from 1.
    Line { origin: String, line: usize },
    /// The command line: its index there, and what was typed, as in `--set train.epochs=2`.
    Argument { index: usize, typed: String },
    /// Nowhere: it should have been set.
    Nowhere { origin: String },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { origin, line } => write!(f, "{origin}:{line}"),
            Self::Argument { typed, .. } => write!(f, "{typed}"),
            Self::Nowhere { origin } => write!(f, "{origin}"),
        }
    }
}

/// One problem: where, what, and what would be right. Ordered as the user reads: the file from the top, the command line, what is missing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub(crate) place: Place,
    pub(crate) message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Every problem of a configuration. The command exits with status 2 on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<Problem>,
}

impl ConfigError {
    pub(crate) fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort();
        problems.dedup();
        Self { problems }
    }

    /// A problem that shows only when the data is known.
    pub(crate) fn with_data(message: String) -> Self {
        Self::with("data", message)
    }

    /// A problem that shows only when the model is known.
    pub(crate) fn with_model(message: String) -> Self {
        Self::with("model", message)
    }

    /// A problem that shows only when it is known what the loss reads.
    pub(crate) fn with_objective(message: String) -> Self {
        Self::with("objective", message)
    }

    fn with(what: &str, message: String) -> Self {
        Self::new(vec![Problem { place: Place::Nowhere { origin: format!("with this {what}") }, message }])
    }

    /// In reading order, at least one.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.problems.as_slice() {
            [problem] => write!(f, "{problem}"),
            problems => {
                write!(f, "{} problems in the configuration", problems.len())?;
                problems.iter().take(MOST_SHOWN).try_for_each(|problem| write!(f, "\n  {problem}"))?;
                let n_more = problems.len().saturating_sub(MOST_SHOWN);
                if n_more > 0 { write!(f, "\n  and {n_more} more") } else { Ok(()) }
            }
        }
    }
}

impl std::error::Error for ConfigError {}
