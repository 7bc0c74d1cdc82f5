//! The run: its parts, and the loop around the step on one screen.

use super::best::{self, Contest};
use super::canary::{self, Canaries};
use super::checkpoint::{self, Snapshot, SourceFiles, TrainerState};
use super::claim::Claim;
use super::console::Console;
use super::evaluate::{PolicyIs, dominant_gaps, measure, term_norms};
use super::log::MetricsLog;
use super::measure::{Measured, Measurement};
use super::metrics::{StepLine, Use, add_languages, add_means, add_measurement, add_trends, add_use};
use super::optimizer::AdamW;
use super::phases::Phases;
use super::schedule::Schedule;
use super::signs::{Position, trends};
use super::step::{BatchOutcome, Gradients, StepSettings, passes};
use super::summary::Summary;
use super::update::update;
use crate::config::{RetentionKind, RunConfig};
use crate::data::encode::EncodedRow;
use crate::data::loader::Loader;
use crate::device::peak_rss_bytes;
use crate::interrupt::{self, Stopped};
use crate::model::decoder::Decoder;
use crate::ops::gpu;
use crate::plan::StepMemory;
use crate::plan::estimate::flops;
use crate::plan::low_rank::LowRankTerms;
use crate::plan::rates::Rates;
use crate::reference::Columns;
use anyhow::{Result, bail};
use serde_json::{Map, Value};
use std::path::PathBuf;
use std::time::Instant;
use tracing::info_span;

/// Steps on which the gradient norm of each term is measured, counted from the first that sees a policy which has moved.
pub(super) const N_TERM_NORMS: usize = 3;

/// Everything that a training run is made of.
pub struct Run {
    pub config: RunConfig,
    /// `config` as TOML, for the checkpoints.
    pub config_text: String,
    pub dir: PathBuf,
    pub n_steps: usize,
    pub train: Vec<EncodedRow>,
    pub held_out: Vec<EncodedRow>,
    /// The training rows that the run is measured on, as indices.
    pub probe: Vec<usize>,
    pub canaries: Option<Canaries>,
    pub reference: Columns,
    /// Whether the policy began as the reference.
    pub starts_as_reference: bool,
    pub policy: Decoder,
    pub settings: StepSettings,
    pub optimizer: AdamW,
    pub schedule: Schedule,
    pub loader: Loader,
    pub files: SourceFiles,
    pub log: MetricsLog,
    /// Counters, signs and first measurements; the cursors of loader and optimizer are filled in when it is saved.
    pub state: TrainerState,
    /// How the best checkpoint is told, where one is to be kept.
    pub contest: Option<Contest>,
    /// The checkpoint that holds the run just as it stands.
    pub saved: Option<PathBuf>,
    /// How many of the signs were said on this console.
    pub n_signs_said: usize,
    pub console: Console,
    pub machine: Machine,
    /// Keeps another process out of `dir`, and takes it away again where not even one step is taken.
    pub claim: Claim,
}

/// What a run computes with.
#[derive(Debug, Clone)]
pub struct Machine {
    /// What a forward keeps.
    pub memory: StepMemory,
    /// Of the adapter that is trained, if one is.
    pub low_rank: Option<LowRankTerms>,
    /// Measured before the start.
    pub rates: Rates,
    /// Where the time goes; only counts within [`Phases::observe`].
    pub phases: Phases,
}

/// How a run came to its end.
pub enum Ending {
    Finished(Box<Summary>),
    /// By Ctrl-C; the checkpoint to go on from.
    Interrupted(PathBuf),
}

impl Run {
    /// Trains from wherever the run stands to its end, or to Ctrl-C: no step is begun and no measurement ended after that.
    pub fn train(mut self) -> Result<Ending> {
        let _span = info_span!("run").entered();
        match self.run_to_its_end() {
            Err(error) if error.is::<Stopped>() => self.interrupted(),
            ending => ending,
        }
    }

    fn run_to_its_end(&mut self) -> Result<Ending> {
        while self.state.step < self.n_steps && !interrupt::requested() {
            // Where Ctrl-C came between, the run goes on with the same question.
            if !self.ask_canaries()? {
                break;
            }
            // A checkpoint is saved once it is known whether it is the best.
            let measured = self.measure_if_due()?;
            if self.is_checkpoint_due() {
                self.save()?;
            }
            let line = self.step(measured)?;
            self.log.append(&line)?;
            self.claim.keep();
            self.console.step(&line);
            self.announce_signs();
            self.stop_if_stuck()?;
        }
        self.claim.keep();
        if self.saved.is_none() {
            self.save()?;
        }
        if self.state.step < self.n_steps || !self.ask_canaries()? {
            return self.interrupted();
        }
        self.finish().map(|summary| Ending::Finished(Box::new(summary)))
    }

    /// With the checkpoint to go on from.
    fn interrupted(&mut self) -> Result<Ending> {
        self.console.finish();
        self.claim.keep();
        self.saved.clone().map_or_else(|| self.save(), Ok).map(Ending::Interrupted)
    }

    /// Asks the canaries where it is time for that; whether all have answered, which they have not where Ctrl-C came between.
    fn ask_canaries(&mut self) -> Result<bool> {
        let Some(canaries) = &mut self.canaries else { return Ok(true) };
        let step = self.state.step;
        let is_due = step == 0 || step == self.n_steps || self.config.canary.every_steps.is_some_and(|every| step.is_multiple_of(every));
        if !is_due {
            return Ok(true);
        }
        let _span = info_span!("canaries").entered();
        let started = Instant::now();
        let Some(asked) = self.console.aside(|| canaries.ask(&self.policy, step))? else { return Ok(false) };
        self.log.append(&canary::line(asked.now, started.elapsed().as_secs_f64()))?;
        let (thresholds, dominant) = (&self.config.signs, &asked.prompts.dominant);
        for line in canary::describe(thresholds, asked.start, asked.now, dominant) {
            self.console.say(&line);
        }
        canary::judge(thresholds, asked.start, asked.now, dominant).into_iter().for_each(|sign| self.state.signs.note(sign));
        self.announce_signs();
        Ok(true)
    }

    /// What is measured on other rows with the weights that the next step begins with, as keys of that step's line.
    fn measure_if_due(&mut self) -> Result<Map<String, Value>> {
        let step = self.state.step;
        let mut measured = Map::new();
        let is_held_out_due = step == 0 || self.config.eval.every_steps.is_some_and(|every| step.is_multiple_of(every));
        if is_held_out_due && !self.held_out.is_empty() {
            let held_out = if step == 0 { self.state.start.held_out.clone() } else { self.measure_held_out()? };
            for held_out in held_out.iter() {
                add_measurement(&mut measured, best::EVAL, held_out);
                self.judge_held_out(held_out);
            }
        }
        if step == 0 {
            add_measurement(&mut measured, "probe_", &self.state.start.train);
            if self.settings.objective.passes().reference_dominant {
                measured.insert("bad_supervision".into(), self.state.signs.bad_supervision.into());
            }
        } else if step == (self.config.signs.stagnation_after * self.n_steps as f64).ceil() as usize {
            let now = self.measure_probe()?;
            add_measurement(&mut measured, "probe_", &now);
            add_trends(&mut measured, &trends(&self.state.start.train, &now));
            self.judge_languages(&now);
        }
        Ok(measured)
    }

    /// One optimizer step over one batch. Loss or gradient that is not finite makes no update (see [`update`]), but loader and schedule advance.
    fn step(&mut self, mut more: Map<String, Value>) -> Result<StepLine> {
        let _span = info_span!("step", step = self.state.step + 1).entered();
        let lr = self.schedule.lr(self.state.step);
        let batch = info_span!("data").in_scope(|| self.loader.next_batch());
        let rows: Vec<&EncodedRow> = batch.into_iter().map(|row| &self.train[row]).collect();
        self.policy.begin_step(self.state.step as u64);
        if let Some(look) = self.look_at_terms() {
            let [objective, retention] = term_norms(&self.policy, &rows, &self.reference, &self.settings)?;
            more.extend([("grad_norm_objective".into(), objective.into()), ("grad_norm_retention".into(), retention.into())]);
            // Retention and its gradient begin at exactly 0: while the learning rate still rises, that it is quiet says nothing.
            if look == N_TERM_NORMS && (retention > objective || self.schedule.lr(self.state.step + 1) <= lr) {
                self.state.signs.judge_gradients(&self.config.signs, self.state.step + 1, objective, retention);
            }
        }

        // Looking and measuring are not the step.
        self.machine.phases.take();
        let started = Instant::now();
        // With dropout the policy's states are not the reference's, though its weights are.
        let still_reference = self.state.step == 0 && self.starts_as_reference && !self.policy.has_dropout();
        let is = if still_reference { PolicyIs::TheReference(&mut self.reference) } else { PolicyIs::Trained(&self.reference) };
        let (outcome, grad_norm) = update(&self.policy, &rows, is, &self.settings, &mut self.optimizer, lr)?;
        if outcome.loss.is_finite() && grad_norm.is_finite() {
            self.state.n_skipped_in_row = 0;
        } else {
            self.state.n_skipped_in_row += 1;
            self.state.n_skipped += 1;
            let bad = bad_rows(&rows, &outcome);
            let left = if self.policy.shares_gradients() { "where gradients are not finite" } else { "loss or gradient is not finite" };
            self.console.say(&format!("step {}: no update, {left}; rows {}", self.state.step + 1, bad.join(", ")));
            more.insert("skipped_rows".into(), bad.into());
        }
        let (seconds, phase_seconds) = (started.elapsed().as_secs_f64(), self.machine.phases.take());
        self.state.step += 1;
        self.saved = None;

        let measured = Measurement::of_batch(&rows, &outcome);
        add_means(&mut more, "", &measured.all);
        add_languages(&mut more, "", &measured);
        if self.settings.objective.passes().mismatched {
            more.insert("kl".into(), outcome.totals.mismatched_log_ratio.max(0.0).into());
        }
        let passes = passes(&rows, &self.settings, Gradients::Both, self.policy.description());
        let flops = flops(&passes, self.policy.description(), self.machine.low_rank.as_ref(), self.settings.memory).total();
        add_use(&mut more, &Use { flops, seconds, phase_seconds, peak: self.machine.rates.products });
        let Measurement { losses, all, .. } = measured;
        let position = self.position();
        self.state.signs.judge_step(position, losses.objective, self.config.retention.weight * losses.retention);
        Ok(StepLine {
            step: self.state.step,
            epoch: self.loader.epochs(),
            loss: losses.loss,
            objective: losses.objective,
            retention: losses.retention,
            grad_norm,
            lr,
            tokens: outcome.n_tokens,
            tokens_computed: outcome.n_tokens_computed,
            seconds,
            tokens_per_second: outcome.n_tokens as f64 / seconds,
            peak_rss_bytes: peak_rss_bytes(),
            peak_gpu_bytes: gpu::peak_bytes(self.policy.head_weight().device()),
            more,
            means: all,
        })
    }

    /// Which look at the terms' gradients, from 1, falls on the next step, if any. Before the policy has moved, by a step with a learning
    /// rate, retention has no gradient; it grows as the policy moves, so the last look is the one that is judged.
    fn look_at_terms(&self) -> Option<usize> {
        let n_still = (0..self.n_steps).take_while(|&step| self.schedule.lr(step) == 0.0).count() + 1;
        let look = self.state.step.checked_sub(n_still)? + 1;
        (look <= N_TERM_NORMS && self.config.retention.kind != RetentionKind::None).then_some(look)
    }

    fn stop_if_stuck(&self) -> Result<()> {
        let limit = self.config.train.max_skipped_steps.max(1);
        if self.state.n_skipped_in_row < limit {
            return Ok(());
        }
        bail!(
            "{} steps in a row had a loss or gradient that is not finite (`train.max_skipped_steps` = {limit}); \
             `skipped_rows` in `{}` names the rows\n\
             hint: the checkpoints in `{}` are from before; a lower `optimizer.lr` or a longer warm-up in a new run may help",
            self.state.n_skipped_in_row,
            self.log.path().display(),
            self.dir.display()
        )
    }

    /// While steps are being skipped nothing is saved: what is wrong with the weights must not push out the last good ones.
    fn is_checkpoint_due(&self) -> bool {
        let step = self.state.step;
        let is_best = self.state.best.as_ref().is_some_and(|best| best.step == step);
        let is_due = step > 0 && self.config.checkpoint.every_steps.is_some_and(|every| step.is_multiple_of(every));
        (is_best || is_due) && self.saved.is_none() && self.state.n_skipped_in_row == 0
    }

    /// Notes whether the weights are the best so far: then what was saved of them does not say so yet.
    fn judge_held_out(&mut self, held_out: &Measurement) {
        // While steps are being skipped nothing is saved, so nothing can be the best.
        let Some(contest) = self.contest.as_ref().filter(|_| self.state.n_skipped_in_row == 0) else { return };
        if contest.judge(&mut self.state.best, self.state.step, held_out) {
            self.saved = None;
        }
    }

    fn save(&mut self) -> Result<PathBuf> {
        let _span = info_span!("checkpoint").entered();
        self.state.loader = self.loader.state();
        self.state.n_updates = self.optimizer.n_updates;
        // A checkpoint must not outlive the lines of the steps that led to it.
        self.log.sync()?;
        let snapshot = Snapshot {
            state: &self.state,
            config: &self.config_text,
            files: &self.files,
            parameters: self.policy.trained_parameters(),
            optimizer: &self.optimizer,
        };
        let dir = checkpoint::save(&self.dir, &snapshot, self.config.checkpoint.keep)?;
        self.saved = Some(dir.clone());
        Ok(dir)
    }

    /// The last measurements, the model folder, the summary.
    fn finish(&mut self) -> Result<Summary> {
        self.console.finish();
        let held_out = self.measure_held_out()?;
        if let Some(held_out) = &held_out {
            self.judge_held_out(held_out);
            if self.saved.is_none() {
                self.save()?;
            }
        }
        let train = self.measure_probe()?;
        self.judge_languages(&train);
        self.announce_signs();
        let dominant = dominant_gaps(&self.policy, &self.probe_rows(), &self.settings, &interrupt::requested)?;
        let after = Measured { train, held_out, dominant };
        let model = checkpoint::save_final(&self.dir, &self.files, self.policy.trained_parameters())?;
        let best = self.publish_best()?;
        let summary = Summary::new(self, after, model, best)?;
        summary.write()?;
        Ok(summary)
    }

    /// Makes a model folder of the best checkpoint, where one is kept and there is one.
    fn publish_best(&self) -> Result<Option<PathBuf>> {
        let Some(best) = &self.state.best else { return Ok(None) };
        best::publish(&self.dir, &checkpoint::folder_of(&self.dir, best.step)).map(Some)
    }

    fn announce_signs(&mut self) {
        for sign in &self.state.signs.found[self.n_signs_said..] {
            self.console.say(&format!("sign: {}", sign.message));
        }
        self.n_signs_said = self.state.signs.found.len();
    }

    fn judge_languages(&mut self, now: &Measurement) {
        let position = self.position();
        self.state.signs.judge_languages(&self.config.signs, position, &self.state.start.train, now);
    }

    fn position(&self) -> Position {
        Position { step: self.state.step, n_steps: self.n_steps }
    }

    fn probe_rows(&self) -> Vec<&EncodedRow> {
        self.probe.iter().map(|&row| &self.train[row]).collect()
    }

    fn measure_probe(&self) -> Result<Measurement> {
        self.measure(&self.probe_rows())
    }

    /// `None` where no rows are held out.
    fn measure_held_out(&self) -> Result<Option<Measurement>> {
        let rows: Vec<&EncodedRow> = self.held_out.iter().collect();
        if rows.is_empty() { Ok(None) } else { self.measure(&rows).map(Some) }
    }

    fn measure(&self, rows: &[&EncodedRow]) -> Result<Measurement> {
        let _span = info_span!("measure").entered();
        let is = PolicyIs::Trained(&self.reference);
        self.console.aside(|| measure(&self.policy, rows, is, &self.settings, &interrupt::requested))
    }
}

/// Ids of the rows whose loss is not finite; where every row's is, only the batch as a whole can be blamed.
fn bad_rows<'a>(rows: &[&'a EncodedRow], outcome: &BatchOutcome) -> Vec<&'a str> {
    let ids = |is_bad: &dyn Fn(usize) -> bool| (0..rows.len()).filter(|&i| is_bad(i)).map(|i| rows[i].id.as_str()).collect::<Vec<_>>();
    let bad = ids(&|i| !outcome.rows[i].is_finite());
    if bad.is_empty() { ids(&|_| true) } else { bad }
}
