//! The reference's scores of a data set, as far as a run reads them: a column for each of the two uses.
//!
//! Dominant pairs keep the states that retention compares, target pairs (and mismatched ones) only their log-probabilities. A column that
//! nothing reads is not computed and not there.

use super::FrozenScores;
use anyhow::{Context, Result};

/// Either may be absent: then nothing reads it.
#[derive(Debug, Clone, Default)]
pub struct Columns {
    /// Of the distinct dominant pairs.
    pub dominant: Option<FrozenScores>,
    /// Of the target pairs, and of the mismatched ones.
    pub target: Option<FrozenScores>,
}

impl Columns {
    /// Of a run that reads the dominant pairs only, as MPO does.
    pub fn of_dominant(scores: FrozenScores) -> Self {
        Self { dominant: Some(scores), target: None }
    }

    /// # Errors
    /// The column is absent.
    pub fn dominant(&self) -> Result<&FrozenScores> {
        self.dominant.as_ref().context("the reference's scores of the dominant pairs are needed, and there are none")
    }

    /// # Errors
    /// The column is absent.
    pub fn target(&self) -> Result<&FrozenScores> {
        self.target.as_ref().context("the reference's scores of the target pairs are needed, and there are none")
    }
}
