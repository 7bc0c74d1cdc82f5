//! From a prepared run to one that stands at its first step, or at the step of a checkpoint.

use super::adapter;
use super::checkpoint::{self, Found, TrainerState};
use super::claim::Claim;
use super::console::Console;
use super::evaluate::{PolicyIs, distinct_dominant, dominant_gaps, measure, probe_rows};
use super::interrupt;
use super::log::MetricsLog;
use super::measure::Measured;
use super::optimizer::AdamW;
use super::prepare::Prepared;
use super::run::{Machine, Run};
use super::schedule::Schedule;
use super::signs::Signs;
use super::step::StepSettings;
use crate::config::{Gap, RunConfig};
use crate::data::encode::{EncodedPair, EncodedPreference};
use crate::data::loader::{Loader, LoaderState, dominant_numbers};
use crate::files::write_atomically;
use crate::hub;
use crate::model::decoder::{Decoder, Purpose};
use crate::progress::say;
use crate::reference::{Folders, FrozenScores, Provenance, ScoringReport, shared_folder};
use crate::scoring::KeptStates;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use tracing::info_span;

/// Makes everything that a run is made of, in the folder of `claim`, and measures where it begins. A new folder is gone again on an error.
///
/// `None` where Ctrl-C was pressed while the reference was being scored: the run can go on from the scores that it has.
pub fn start(prepared: Prepared, found: Option<Found>, mut claim: Claim, machine: Machine) -> Result<Option<Run>> {
    let _span = info_span!("start").entered();
    let Prepared { config, model_dir, adapter, base, reference_dir, pad_token, train, held_out, data_sha256, .. } = prepared;
    if let Some(found) = &found {
        let same = found.state.data_sha256 == data_sha256;
        ensure!(same, "the rows are not those that `{}` was trained on: did `{}` change?", found.dir.display(), config.data.path);
    }
    let dir = config.output.dir.clone();
    let config_text = config.to_toml()?;
    write_atomically(&dir.join("config.toml"), config_text.as_bytes())?;
    let starts_as_reference = config.reference.path.is_none();

    let scorer = Scorer { config: &config, dir: &dir, pad_token };
    let dominant: Vec<&EncodedPreference> = distinct_dominant(&train.iter().chain(&held_out).collect::<Vec<_>>());
    let early = match (&found, &reference_dir) {
        (Some(_), _) => Some(scorer.reopen(&dominant)?),
        (None, Some(reference_dir)) => Some(scorer.score_folder(reference_dir, &dominant)?),
        (None, None) => None,
    };
    let policy = adapter::load(&model_dir, adapter.as_ref(), config.model.dtype, Purpose::Train)?;
    let files = adapter::source_files(&model_dir, adapter.as_ref().zip(Some(base)), &policy, config.output.dtype)?;
    let (mut reference, report) = match early {
        Some(reference) => reference,
        None => scorer.score(&policy, &dominant)?,
    };
    if report.was_stopped {
        claim.keep();
        return Ok(None);
    }

    let train = drop_unscored(train, &reference)?;
    let held_out = drop_unscored(held_out, &reference)?;
    // The supervision is judged as it came, before the rows that `data.min_dominant_gap` finds too bad are gone.
    let supervision = dominant_reference_gaps(&train, &reference, config.objective.gap)?;
    let train = drop_bad_supervision(train, &reference, &config)?;
    let mut loader = Loader::new(&dominant_numbers(&train), &config.train)?;
    let n_steps = loader.n_steps(&config.train)?;
    ensure!(n_steps > 0, "`train.epochs` and `train.max_steps` leave no step to take");
    let mut optimizer = AdamW::new(&config.optimizer, policy.trained_parameters())?;
    let settings = StepSettings { memory: machine.memory, ..StepSettings::new(&config, pad_token) };
    let probe = probe_rows(&train);
    let state = match found {
        Some(found) => {
            checkpoint::restore(&found, policy.trained_parameters(), &mut optimizer)?;
            loader.restore(&found.state.loader)?;
            found.state
        }
        None => {
            let rows: Vec<&EncodedPair> = probe.iter().map(|&row| &train[row]).collect();
            let held_out: Vec<&EncodedPair> = held_out.iter().collect();
            let beta = config.objective.beta;
            let mut measure = |rows: &[&EncodedPair]| {
                let is = if starts_as_reference { PolicyIs::TheReference(&mut reference) } else { PolicyIs::Trained(&reference) };
                measure(&policy, rows, is, &settings, beta)
            };
            let on_train = measure(&rows)?;
            let on_held_out = if held_out.is_empty() { None } else { Some(measure(&held_out)?) };
            let dominant = dominant_gaps(&policy, &rows, &settings)?;
            let start = Measured { train: on_train, held_out: on_held_out, dominant };
            first_state(start, loader.state(), data_sha256, &config, &supervision)
        }
    };
    Ok(Some(Run {
        schedule: Schedule::new(&config.schedule, config.optimizer.lr, n_steps),
        files,
        log: MetricsLog::open(&dir.join("metrics.jsonl"), state.step)?,
        console: Console::new(n_steps, state.step),
        n_signs_said: if state.step == 0 { 0 } else { state.signs.found.len() },
        config,
        config_text,
        dir,
        n_steps,
        train,
        held_out,
        probe,
        reference,
        starts_as_reference,
        policy,
        settings,
        optimizer,
        loader,
        state,
        machine,
        claim,
    }))
}

fn first_state(start: Measured, loader: LoaderState, data_sha256: String, config: &RunConfig, reference_gaps: &[f64]) -> TrainerState {
    let mut signs = Signs::default();
    signs.judge_supervision(&config.signs, reference_gaps, config.data.min_dominant_gap);
    signs.judge_start(&config.signs, &start.train);
    TrainerState {
        version: TrainerState::VERSION,
        step: 0,
        n_updates: 0,
        n_skipped_in_row: 0,
        n_skipped: 0,
        loader,
        data_sha256,
        signs,
        start,
    }
}

/// Where reference scores come from.
struct Scorer<'a> {
    config: &'a RunConfig,
    dir: &'a Path,
    pad_token: u32,
}

impl Scorer<'_> {
    fn folder(&self) -> PathBuf {
        self.dir.join("reference")
    }

    /// The scores that the run kept; where they are not all there, the frozen model is found again and scores what is missing.
    fn reopen(&self, pairs: &[&EncodedPreference]) -> Result<(FrozenScores, ScoringReport)> {
        let RunConfig { model, reference, retention, .. } = self.config;
        match FrozenScores::open(&self.folder(), pairs, KeptStates::of(retention)) {
            Ok(scores) => Ok((scores, ScoringReport::default())),
            Err(error) => {
                say(&format!("scoring the reference again: {error:#}"));
                let (path, revision) = match &reference.path {
                    Some(path) => (path, &reference.revision),
                    None => (&model.path, &model.revision),
                };
                let folder = hub::resolve_model(path, revision.as_deref())?.dir;
                match &reference.path {
                    Some(_) => self.score_folder(&folder, pairs),
                    None => self.score(&adapter::load_at_the_start(self.config, &folder)?, pairs),
                }
            }
        }
    }

    /// Loads, scores and drops a model.
    fn score_folder(&self, folder: &Path, pairs: &[&EncodedPreference]) -> Result<(FrozenScores, ScoringReport)> {
        let model = Decoder::load(folder, self.config.model.dtype, Purpose::Inference).context("loading the reference")?;
        self.score(&model, pairs)
    }

    fn score(&self, model: &Decoder, pairs: &[&EncodedPreference]) -> Result<(FrozenScores, ScoringReport)> {
        let states = KeptStates::of(&self.config.retention);
        let provenance = Provenance::of(model, self.config.model.dtype, states, self.pad_token)?;
        let folders = Folders { run: Some(self.folder()), shared: shared_folder() };
        let _span = info_span!("reference").entered();
        let (scores, report) =
            FrozenScores::score_until(&interrupt::requested, model, pairs, provenance, folders).context("scoring the reference")?;
        report.say();
        Ok((scores, report))
    }
}

/// The reference's gaps on the distinct dominant pairs of `rows`.
fn dominant_reference_gaps(rows: &[EncodedPair], reference: &FrozenScores, gap: Gap) -> Result<Vec<f64>> {
    distinct_dominant(&rows.iter().collect::<Vec<_>>()).into_iter().map(|pair| Ok(reference.pair_scores(pair)?.reward_gap(gap))).collect()
}

/// Leaves out rows whose dominant pair the reference has no finite score for, and names them: no batch with such a row has a loss.
fn drop_unscored(rows: Vec<EncodedPair>, reference: &FrozenScores) -> Result<Vec<EncodedPair>> {
    let n_rows = rows.len();
    let mut kept = Vec::with_capacity(n_rows);
    let mut dropped = Vec::new();
    for row in rows {
        let is_finite = reference.pair(&row.dominant)?.iter().all(|sequence| sequence.is_finite());
        if is_finite { kept.push(row) } else { dropped.push(row.id) }
    }
    if !dropped.is_empty() {
        let (n, ids) = (dropped.len(), dropped.join(", "));
        let what = format!("{n} of {n_rows} rows have a dominant pair whose reference scores are not finite: {ids}");
        ensure!(!kept.is_empty(), "{what}\nhint: the reference's weights may be damaged, or `model.dtype` too narrow for them");
        say(&format!("warning: {what}; nothing can be learned from them, so they are left out"));
    }
    Ok(kept)
}

/// Applies `data.min_dominant_gap`, and says how many rows it took.
fn drop_bad_supervision(rows: Vec<EncodedPair>, reference: &FrozenScores, config: &RunConfig) -> Result<Vec<EncodedPair>> {
    let Some(least) = config.data.min_dominant_gap else { return Ok(rows) };
    let n_rows = rows.len();
    let mut kept = Vec::with_capacity(n_rows);
    let mut dropped = Vec::new();
    for row in rows {
        let gap = reference.pair_scores(&row.dominant)?.reward_gap(config.objective.gap);
        if gap < least { dropped.push(row.id) } else { kept.push(row) }
    }
    ensure!(!kept.is_empty(), "`data.min_dominant_gap` = {least} drops all {n_rows} rows");
    if !dropped.is_empty() {
        say(&format!("`data.min_dominant_gap` = {least} drops {} of {n_rows} rows: {}", dropped.len(), dropped.join(", ")));
    }
    Ok(kept)
}
