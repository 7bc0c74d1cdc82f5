//! The reference's part of a run: which pairs it scores, and where the scores come from.

use super::adapter;
use super::evaluate::distinct_dominant;
use crate::config::{RetentionKind, RunConfig};
use crate::data::encode::{EncodedPreference, EncodedRow};
use crate::device;
use crate::hub;
use crate::interrupt;
use crate::model::decoder::{Decoder, Purpose};
use crate::objective::Objective;
use crate::progress::say;
use crate::reference::{Columns, Folders, FrozenScores, Provenance, ScoringReport, shared_folder};
use crate::scoring::KeptStates;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use tracing::info_span;

/// What a run asks of its reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reads {
    /// Scores of the dominant pairs, with the states that retention compares.
    pub dominant: bool,
    /// Scores of the target pairs.
    pub target: bool,
    /// Scores of the mismatched pairs.
    pub mismatched: bool,
}

impl Reads {
    pub fn of(config: &RunConfig) -> Self {
        let passes = Objective::new(&config.objective).passes();
        let retains = config.retention.kind != RetentionKind::None;
        Self {
            dominant: passes.reference_dominant || retains || config.data.min_dominant_gap.is_some(),
            target: passes.reference_target,
            mismatched: passes.mismatched,
        }
    }

    pub fn nothing(self) -> bool {
        !(self.dominant || self.target || self.mismatched)
    }
}

/// The pairs of some rows that the reference scores, by column.
#[derive(Debug, Clone, Default)]
pub struct Wanted<'a> {
    /// Distinct.
    pub dominant: Vec<&'a EncodedPreference>,
    pub target: Vec<&'a EncodedPreference>,
}

impl<'a> Wanted<'a> {
    pub fn of(rows: &[&'a EncodedRow], reads: Reads) -> Self {
        let dominant = if reads.dominant { distinct_dominant(rows) } else { Vec::new() };
        let target = rows.iter().map(|row| &row.target).filter(|_| reads.target);
        let mismatched = rows.iter().filter_map(|row| row.mismatched.as_ref()).filter(|_| reads.mismatched);
        Self { dominant, target: target.chain(mismatched).collect() }
    }
}

/// Where the reference scores of a run come from.
pub struct Scorer<'a> {
    pub config: &'a RunConfig,
    /// The run's folder.
    pub dir: &'a Path,
    pub pad_token: u32,
}

impl Scorer<'_> {
    /// The scores that the run kept; where they are not all there, the frozen model is found again and scores what is missing.
    pub fn reopen(&self, wanted: &Wanted) -> Result<(Columns, ScoringReport)> {
        let RunConfig { model, reference, .. } = self.config;
        let place = device::place(self.config)?;
        let open = |folder: PathBuf, pairs: &[&EncodedPreference], states| match pairs {
            [] => Ok(None),
            pairs => FrozenScores::open(&folder, pairs, states, &place).map(Some),
        };
        let opened = open(self.folder(), &wanted.dominant, self.states())
            .and_then(|dominant| Ok(Columns { dominant, target: open(self.target_folder(), &wanted.target, KeptStates::Nothing)? }));
        match opened {
            Ok(columns) => Ok((columns, ScoringReport::default())),
            Err(error) => {
                say(&format!("scoring the reference again: {error:#}"));
                let (path, revision) = match &reference.path {
                    Some(path) => (path, &reference.revision),
                    None => (&model.path, &model.revision),
                };
                let folder = hub::resolve_model(path, revision.as_deref())?.dir;
                match &reference.path {
                    Some(_) => self.score_folder(&folder, wanted),
                    None => self.score(&adapter::load_at_the_start(self.config, &folder)?, wanted),
                }
            }
        }
    }

    /// Loads, scores and drops a model.
    pub fn score_folder(&self, folder: &Path, wanted: &Wanted) -> Result<(Columns, ScoringReport)> {
        let model = Decoder::load(folder, device::place(self.config)?, Purpose::Inference).context("loading the reference")?;
        self.score(&model, wanted)
    }

    /// Scores what is wanted with `model`; nothing where nothing is.
    pub fn score(&self, model: &Decoder, wanted: &Wanted) -> Result<(Columns, ScoringReport)> {
        let mut columns = Columns::default();
        let mut report = ScoringReport::default();
        if wanted.dominant.is_empty() && wanted.target.is_empty() {
            return Ok((columns, report));
        }
        let _span = info_span!("reference").entered();
        let provenance = Provenance::of(model, self.config.model.dtype, self.states(), self.pad_token)?;
        let mut score = |pairs: &[&EncodedPreference], provenance: Provenance, run: PathBuf| -> Result<Option<FrozenScores>> {
            if pairs.is_empty() || report.was_stopped {
                return Ok(None);
            }
            let folders = Folders { run: Some(run), shared: shared_folder() };
            let (scores, found) =
                FrozenScores::score_until(&interrupt::requested, model, pairs, provenance, folders).context("scoring the reference")?;
            found.say();
            report.was_stopped = found.was_stopped;
            Ok(Some(scores))
        };
        columns.dominant = score(&wanted.dominant, provenance.clone(), self.folder())?;
        columns.target = score(&wanted.target, provenance.of_scores(), self.target_folder())?;
        Ok((columns, report))
    }

    fn states(&self) -> KeptStates {
        KeptStates::of(&self.config.retention)
    }

    fn folder(&self) -> PathBuf {
        self.dir.join("reference")
    }

    fn target_folder(&self) -> PathBuf {
        self.folder().join("target")
    }
}
