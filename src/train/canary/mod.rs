//! Canaries: benign prompts that the policy answers now and then, because a loss on safety data does not show what else is lost.
//!
//! ```text
//! prompts      a file                  -> benign prompts as tokens, some with a good answer
//! answers      policy, prompts         -> greedy answers: refusals, other languages, loops, lengths
//! likelihood   policy, texts           -> nats a token of the given answers (of the initial model's own where none is given), and how far its
//!                                         distributions there are from the initial model's
//! start        OUT/canary/start/       what is compared with: texts, distributions and measurement of the model of step 0
//! pairs        answers, known answers  -> which of a prompt's two known answers they are like, where the file has both
//! measurement  all of it by language   -> a line of its own in `metrics.jsonl`, a table in the summary
//! judge        two measurements        -> failure signs
//! cost         prompts                 -> what `mpo plan` counts
//! ```
//!
//! It is done before the first step, every `canary.every_steps` steps and after the last one, with the weights that are there: nothing random is
//! drawn, no buffer of the training is touched, and no second model is in memory. The answers stand in `OUT/canary/step-000010.jsonl`.

mod answers;
mod broken;
mod cost;
mod judge;
mod likelihood;
mod measurement;
mod pairs;
mod prompts;
mod start;

pub use answers::{Asked, look_at};
pub use judge::{describe, judge};
pub use likelihood::{N_TOP, Position, TextsSeen};
pub use measurement::{AnswerTo, AnswersMeasure, Compared, KIND, LanguageMeasure, Measurement, line, pairs_of};
pub use pairs::{Example, Pair, PairsMeasure, in_words};
pub use prompts::{Prompt, Prompts};
pub use start::Start;

use super::folder;
use crate::eval::lines;
use crate::generate::Codec;
use crate::model::decoder::Decoder;
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

const NOT_BEGUN: &str = "the canaries were not asked before the first step";

/// The canaries of a run.
pub struct Canaries {
    prompts: Prompts,
    codec: Codec,
    /// `OUT/canary`.
    dir: PathBuf,
    /// Known from step 0 on.
    start: Option<Start>,
    last: Option<Measurement>,
}

/// What the canaries said.
#[derive(Debug, Clone, Copy)]
pub struct Answered<'a> {
    pub prompts: &'a Prompts,
    pub start: &'a Measurement,
    pub now: &'a Measurement,
}

impl Canaries {
    /// For a run in the folder `run` that has taken `n_steps` steps: what was measured from there on in a future that was given up is removed.
    pub fn new(prompts: Prompts, codec: Codec, run: &Path, n_steps: usize) -> Result<Self> {
        let dir = run.join("canary");
        if dir.is_dir() {
            folder::remove_leftovers(&dir)?;
            for entry in fs::read_dir(&dir).with_context(|| format!("cannot read the folder `{}`", dir.display()))? {
                let path = entry?.path();
                if step_of(&path).is_some_and(|step| step >= n_steps) {
                    fs::remove_file(&path).with_context(|| format!("cannot remove `{}`", path.display()))?;
                }
            }
        }
        Ok(Self { prompts, codec, dir, start: None, last: None })
    }

    /// What was measured with the weights of step 0, and last.
    pub fn measured(&self) -> Option<(&Measurement, &Measurement)> {
        Some((&self.start.as_ref()?.measurement, self.last.as_ref()?))
    }

    /// Questions with two known answers, and what was answered before and now; none where there are no such questions.
    ///
    /// # Errors
    /// The files of the answers cannot be read.
    pub fn examples(&self) -> Result<Vec<Example>> {
        let has_pairs = self.prompts.all.iter().any(|prompt| prompt.pair.is_some());
        let last = self.last.as_ref().filter(|last| has_pairs && last.languages.values().all(|measure| measure.answers.is_some()));
        last.map_or(Ok(Vec::new()), |last| pairs::examples(&self.answers_file(0), &self.answers_file(last.step)))
    }

    /// Takes up what an earlier start of the run kept of step 0.
    ///
    /// # Errors
    /// It is missing or damaged; [`Canaries::begin`] with the model of step 0 makes it again.
    pub fn reopen(&mut self) -> Result<()> {
        self.start = Some(Start::open(&self.start_dir(), &self.prompts)?);
        Ok(())
    }

    /// Asks the model of step 0 and keeps what all that follows is compared with; `false` where Ctrl-C came between.
    pub fn begin(&mut self, model: &Decoder) -> Result<bool> {
        let Some(asked) = Asked::of(model, &self.codec, &self.prompts)? else { return Ok(false) };
        let start = Start::of(model, &self.prompts, &asked)?;
        fs::create_dir_all(&self.dir).with_context(|| format!("cannot create the folder `{}`", self.dir.display()))?;
        start.publish(&self.start_dir(), &self.prompts)?;
        lines::write(&self.answers_file(0), &asked.records(&self.prompts))?;
        self.start = Some(start);
        Ok(true)
    }

    /// Measures the policy after `step` steps and writes its answers; `None` where Ctrl-C came between.
    pub fn ask(&mut self, policy: &Decoder, step: usize) -> Result<Option<Answered<'_>>> {
        let measurement = match step {
            0 if self.begin(policy)? => self.start.as_ref().map(|start| start.measurement.clone()),
            0 => None,
            _ => self.measure(policy, step)?,
        };
        let Some(measurement) = measurement else { return Ok(None) };
        let start = self.start.as_ref().context(NOT_BEGUN)?;
        Ok(Some(Answered { prompts: &self.prompts, start: &start.measurement, now: self.last.insert(measurement) }))
    }

    fn measure(&self, policy: &Decoder, step: usize) -> Result<Option<Measurement>> {
        let start = self.start.as_ref().context(NOT_BEGUN)?;
        let texts = TextsSeen::of(policy, &self.prompts, start)?;
        // A model that gives no numbers for a text gives no words either.
        if !texts.is_finite() {
            return Ok(Some(Measurement::new(step, &self.prompts, &texts, None)));
        }
        let Some(asked) = Asked::of(policy, &self.codec, &self.prompts)? else { return Ok(None) };
        lines::write(&self.answers_file(step), &asked.records(&self.prompts))?;
        Ok(Some(Measurement::new(step, &self.prompts, &texts, Some(&asked))))
    }

    fn start_dir(&self) -> PathBuf {
        self.dir.join("start")
    }

    fn answers_file(&self, step: usize) -> PathBuf {
        self.dir.join(format!("step-{step:06}.jsonl"))
    }
}

/// The step whose answers a file holds.
fn step_of(path: &Path) -> Option<usize> {
    path.file_name()?.to_str()?.strip_prefix("step-")?.strip_suffix(".jsonl")?.parse().ok()
}
