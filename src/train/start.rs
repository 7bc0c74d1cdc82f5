//! From a prepared run to one that stands at its first step, or at the step of a checkpoint.

use super::adapter;
use super::best::Contest;
use super::canary::Canaries;
use super::checkpoint::{self, Found, TrainerState};
use super::claim::Claim;
use super::columns::{Reads, Scorer, Wanted};
use super::console::Console;
use super::evaluate::{PolicyIs, distinct_dominant, dominant_gaps, measure, probe_rows};
use super::log::MetricsLog;
use super::measure::Measured;
use super::optimizer::AdamW;
use super::prepare::Prepared;
use super::run::{Machine, Run};
use super::schedule::Schedule;
use super::signs::Signs;
use super::step::StepSettings;
use crate::config::RunConfig;
use crate::data::encode::EncodedRow;
use crate::data::loader::{Loader, LoaderState, dominant_numbers};
use crate::device;
use crate::files::write_atomically;
use crate::generate::Codec;
use crate::hub;
use crate::interrupt::{self, Stopped};
use crate::model::decoder::Purpose;
use crate::objective::Objective;
use crate::progress::say;
use crate::reference::Columns;
use anyhow::{Context, Result, ensure};
use serde_json::Map;
use tracing::info_span;

/// Makes everything that a run is made of, in the folder of `claim`, and measures where it begins. A new folder is gone again on an error.
///
/// `None` where Ctrl-C was pressed meanwhile: the run can go on from the scores that it has.
pub fn start(prepared: Prepared, found: Option<Found>, mut claim: Claim, machine: Machine) -> Result<Option<Run>> {
    let _span = info_span!("start").entered();
    let Prepared { config, model_dir, adapter, base, reference_dir, encoder, pad_token, train, held_out, canaries, data_sha256, .. } =
        prepared;
    if let Some(found) = &found {
        let same = found.state.data_sha256 == data_sha256;
        ensure!(
            same,
            "the rows are not those that `{}` was trained on: did `{}` change? A run of an older mpo whose texts spell special tokens read them as \
             tokens: `data.special_tokens = \"tokens\"` does so still",
            found.dir.display(),
            config.data.path
        );
        let same = found.state.canary_sha256.as_ref() == canaries.as_ref().map(|prompts| &prompts.sha256);
        let path = config.canary.path.as_deref().unwrap_or_default();
        ensure!(same, "the canaries are not those that `{}` was watched by: did `{path}` change?", found.dir.display());
    }
    let dir = config.output.dir.clone();
    let config_text = config.to_toml()?;
    write_atomically(&dir.join("config.toml"), config_text.as_bytes())?;
    let starts_as_reference = config.reference.path.is_none();

    let scorer = Scorer { config: &config, dir: &dir, pad_token };
    let reads = Reads::of(&config);
    let wanted = Wanted::of(&train.iter().chain(&held_out).collect::<Vec<_>>(), reads);
    let early = match (&found, &reference_dir) {
        (Some(_), _) => Some(scorer.reopen(&wanted)?),
        (None, Some(reference_dir)) => Some(scorer.score_folder(reference_dir, &wanted)?),
        (None, None) => None,
    };
    let purpose = if config.optimizer.in_backward { Purpose::TrainInBackward } else { Purpose::Train };
    let policy = adapter::load(&model_dir, adapter.as_ref(), device::place(&config)?, purpose)?;
    let files = adapter::source_files(&model_dir, adapter.as_ref().zip(Some(base)), &policy, config.output.dtype)?;
    let (mut reference, report) = match early {
        Some(reference) => reference,
        None => scorer.score(&policy, &wanted)?,
    };
    if report.was_stopped {
        claim.keep();
        return Ok(None);
    }

    let train = drop_unscored(train, &reference, reads)?;
    let held_out = drop_unscored(held_out, &reference, reads)?;
    // The supervision is judged as it came, before the rows that `data.min_dominant_gap` finds too bad are gone.
    let supervision = supervision(&train, &reference, &config)?;
    let train = drop_bad_supervision(train, &reference, &config)?;
    let mut loader = Loader::new(&dominant_numbers(&train), &config.train)?;
    let n_steps = loader.n_steps(&config.train)?;
    ensure!(n_steps > 0, "`train.epochs` and `train.max_steps` leave no step to take");
    let mut optimizer = AdamW::new(&config.optimizer, config.train.seed, policy.trained_parameters())?;
    let settings = StepSettings { memory: machine.memory, ..StepSettings::new(&config, pad_token) };
    let probe = probe_rows(&train);
    let canary_sha256 = canaries.as_ref().map(|prompts| prompts.sha256.clone());
    let n_taken = found.as_ref().map_or(0, |found| found.state.step);
    let canaries = canaries.map(|prompts| Canaries::new(prompts, Codec::new(&model_dir, encoder)?, &dir, n_taken)).transpose()?;
    let canaries = match canaries.map(|canaries| known_start(canaries, &config, n_taken)).transpose() {
        Err(error) if error.is::<Stopped>() => {
            claim.keep();
            return Ok(None);
        }
        known => known?,
    };
    let schedule = Schedule::new(&config.schedule, config.optimizer.lr, n_steps);
    let mut log = MetricsLog::open(&dir.join("metrics.jsonl"), n_taken)?;
    if let Some(found) = &found {
        // Every step takes one batch, so where the cursor stands follows from the steps.
        let path = found.dir.join("trainer/state.json");
        let mut replayed = loader.clone();
        let mut epochs = Vec::new();
        for _ in 0..n_taken.min(n_steps) {
            replayed.next_batch();
            epochs.push(replayed.epochs());
        }
        found.state.check_against(n_steps, &replayed.state()).with_context(|| format!("`{}` is not of this run", path.display()))?;
        let known =
            |step: usize| Map::from_iter([("epoch".to_owned(), epochs[step - 1].into()), ("lr".to_owned(), schedule.lr(step - 1).into())]);
        say_lost(&log.rebuild(n_taken, known)?, &log);
    }
    let state = match found {
        Some(found) => {
            checkpoint::restore(&found, policy.trained_parameters(), &mut optimizer)?;
            loader.restore(&found.state.loader)?;
            found.state
        }
        None => {
            let rows: Vec<&EncodedRow> = probe.iter().map(|&row| &train[row]).collect();
            let held_out: Vec<&EncodedRow> = held_out.iter().collect();
            let mut measure = |rows: &[&EncodedRow]| {
                let is = if starts_as_reference { PolicyIs::TheReference(&mut reference) } else { PolicyIs::Trained(&reference) };
                measure(&policy, rows, is, &settings, &interrupt::requested)
            };
            let mut measure_all = || -> Result<Measured> {
                let train = measure(&rows)?;
                let held_out = if held_out.is_empty() { None } else { Some(measure(&held_out)?) };
                Ok(Measured { train, held_out, dominant: dominant_gaps(&policy, &rows, &settings, &interrupt::requested)? })
            };
            let start = match measure_all() {
                Err(error) if error.is::<Stopped>() => {
                    claim.keep();
                    return Ok(None);
                }
                start => start?,
            };
            TrainerState { canary_sha256, ..first_state(start, loader.state(), data_sha256, &config, &supervision) }
        }
    };
    let saved = (state.step > 0).then(|| checkpoint::folder_of(&dir, state.step));
    Ok(Some(Run {
        contest: Contest::new(&config.checkpoint, state.start.held_out.as_ref())?,
        saved,
        schedule,
        files,
        log,
        console: Console::new(n_steps, state.step),
        n_signs_said: if state.step == 0 { 0 } else { state.signs.found.len() },
        config,
        config_text,
        dir,
        n_steps,
        train,
        held_out,
        probe,
        canaries,
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

/// Says which lines of the log were gone, and what of them is gone for good.
fn say_lost(steps: &[usize], log: &MetricsLog) {
    let (Some(first), Some(last)) = (steps.first(), steps.last()) else { return };
    let which = if first == last { format!("step {first}") } else { format!("{} steps from {first} to {last}", steps.len()) };
    say(&format!(
        "warning: `{}` has lost the lines of {which}; they were written again with epoch and learning rate, and their losses, gaps and times are gone, as are \
         lines of canaries among them. Weights, data and schedule are the checkpoint's and go on as they were",
        log.path().display()
    ));
}

/// The canaries of a run that goes on after some steps know those of step 0.
fn known_start(mut canaries: Canaries, config: &RunConfig, n_taken: usize) -> Result<Canaries> {
    if n_taken == 0 {
        return Ok(canaries);
    }
    if let Err(error) = canaries.reopen() {
        say(&format!("asking the canaries of step 0 again: {error:#}"));
        let folder = hub::resolve_model(&config.model.path, config.model.revision.as_deref())?.dir;
        let is_complete = canaries.begin(&adapter::load_at_the_start(config, &folder)?)?;
        if !is_complete {
            return Err(Stopped.into());
        }
    }
    Ok(canaries)
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
        canary_sha256: None,
        signs,
        start,
        best: None,
    }
}

/// The reference's gaps on the distinct dominant pairs of `rows`, where the loss learns from them.
fn supervision(rows: &[EncodedRow], reference: &Columns, config: &RunConfig) -> Result<Vec<f64>> {
    if !Objective::new(&config.objective).passes().reference_dominant {
        return Ok(Vec::new());
    }
    let (column, gap) = (reference.dominant()?, config.objective.gap);
    distinct_dominant(&rows.iter().collect::<Vec<_>>()).into_iter().map(|pair| Ok(column.pair_scores(pair)?.reward_gap(gap))).collect()
}

/// Leaves out rows with a pair that the reference has no finite score for, and names them: no batch with such a row has a loss.
fn drop_unscored(rows: Vec<EncodedRow>, reference: &Columns, reads: Reads) -> Result<Vec<EncodedRow>> {
    let n_rows = rows.len();
    let mut kept = Vec::with_capacity(n_rows);
    let mut dropped = Vec::new();
    for row in rows {
        let Wanted { dominant, target } = Wanted::of(&[&row], reads);
        let mut is_finite = true;
        for pair in dominant {
            is_finite &= reference.dominant()?.pair(pair)?.iter().all(|sequence| sequence.is_finite());
        }
        for pair in target {
            is_finite &= reference.target()?.pair(pair)?.iter().all(|sequence| sequence.is_finite());
        }
        if is_finite { kept.push(row) } else { dropped.push(row.id) }
    }
    if !dropped.is_empty() {
        let (n, ids) = (dropped.len(), dropped.join(", "));
        let what = format!("{n} of {n_rows} rows have a pair whose reference scores are not finite: {ids}");
        ensure!(!kept.is_empty(), "{what}\nhint: the reference's weights may be damaged, or `model.dtype` too narrow for them");
        say(&format!("warning: {what}; nothing can be learned from them, so they are left out"));
    }
    Ok(kept)
}

/// Applies `data.min_dominant_gap`, and says how many rows it took.
fn drop_bad_supervision(rows: Vec<EncodedRow>, reference: &Columns, config: &RunConfig) -> Result<Vec<EncodedRow>> {
    let Some(least) = config.data.min_dominant_gap else { return Ok(rows) };
    let n_rows = rows.len();
    let mut kept = Vec::with_capacity(n_rows);
    let mut dropped = Vec::new();
    for row in rows {
        let gap = reference.dominant()?.pair_scores(row.dominant_pair()?)?.reward_gap(config.objective.gap);
        if gap < least { dropped.push(row.id) } else { kept.push(row) }
    }
    ensure!(!kept.is_empty(), "`data.min_dominant_gap` = {least} drops all {n_rows} rows");
    if !dropped.is_empty() {
        say(&format!("`data.min_dominant_gap` = {least} drops {} of {n_rows} rows: {}", dropped.len(), dropped.join(", ")));
    }
    Ok(kept)
}
