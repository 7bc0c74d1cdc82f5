//! From a run's passes to what it needs: operations, bytes, seconds.

use super::StepMemory;
use super::held::Held;
use super::low_rank::LowRankTerms;
use super::memory::Setup;
use super::rates::Rates;
use super::seconds::Seconds;
use super::work::{Flops, Pass};
use crate::model::description::DecoderDescription;
use serde::Serialize;

/// The passes of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Workload {
    /// Of the reference, once, unless its scores are already known.
    pub scoring: Vec<Pass>,
    /// Of one measurement each, with how often it is made.
    pub measuring: Vec<(usize, Vec<Pass>)>,
    /// Of the run's steps in their order; of a very long run, the first ones.
    pub batches: Vec<Vec<Pass>>,
    /// Steps that are left to take.
    pub n_steps: usize,
    /// Steps whose passes are made a second time, for the gradient norm of each term.
    pub n_repeated: usize,
    /// Texts that the policy gives, with how often it is asked for them.
    pub generating: (usize, Generation),
}

/// Texts that are generated together, at their longest.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Generation {
    /// Each gives the sequences under way one token.
    pub n_forwards: usize,
    pub n_sequences: usize,
}

impl Generation {
    /// A forward reads each weight once, and multiplies it for every sequence.
    fn seconds(&self, setup: &Setup, rates: &Rates) -> f64 {
        let n_weights = setup.n_parameters as f64;
        let read = n_weights * rates.bytes_of_value as f64 / rates.bytes;
        let multiplied = 2.0 * n_weights * self.n_sequences as f64 / rates.products;
        self.n_forwards as f64 * (read + multiplied)
    }
}

impl Workload {
    /// All passes, in the order of the run.
    pub fn passes(&self) -> Vec<&[Pass]> {
        let measuring = self.measuring.iter().map(|(_, passes)| passes);
        std::iter::once(&self.scoring).chain(measuring).chain(&self.batches).map(Vec::as_slice).collect()
    }

    /// Mean packed tokens of a step's pass, and mean scored tokens.
    pub fn mean_pass(&self) -> (usize, usize) {
        let passes = || self.batches.iter().flatten();
        let mean = |of: fn(&Pass) -> usize| passes().map(of).sum::<usize>() / passes().count().max(1);
        (mean(|pass| pass.n_tokens), mean(|pass| pass.n_scored))
    }
}

/// What a step needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct StepNeeds {
    /// Tokens that its passes compute.
    pub tokens: f64,
    pub flops: Flops,
    /// Bytes that its update moves.
    pub update_bytes: f64,
    pub seconds: Seconds,
}

/// What a run needs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    #[serde(flatten)]
    pub held: Held,
    pub mean_step: StepNeeds,
    pub largest_step: StepNeeds,
    pub n_steps: usize,
    /// Scoring the reference, where no run before has done it.
    pub scoring_seconds: f64,
    /// Measurements before, within and after the run.
    pub measuring_seconds: f64,
    /// Answers to canaries, at most.
    pub generating_seconds: f64,
    /// All steps.
    pub steps_seconds: f64,
}

impl Estimate {
    pub fn new(workload: &Workload, setup: &Setup, held: Held, rates: &Rates) -> Self {
        let of = |passes: &[Pass]| step_needs(passes, setup, rates);
        let mut sum = StepNeeds::default();
        let mut largest = StepNeeds::default();
        for passes in &workload.batches {
            let needs = of(passes);
            sum.tokens += needs.tokens;
            sum.flops += needs.flops;
            sum.seconds += needs.seconds;
            if needs.flops.total() > largest.flops.total() {
                largest = needs;
            }
        }
        let share = 1.0 / workload.batches.len().max(1) as f64;
        let mean_step = StepNeeds {
            tokens: share * sum.tokens,
            flops: sum.flops.scaled(share),
            update_bytes: setup.update_bytes(),
            seconds: sum.seconds.scaled(share),
        };
        let measuring = workload.measuring.iter().map(|(times, passes)| *times as f64 * of(passes).seconds.of_passes());
        Self {
            held,
            mean_step,
            largest_step: largest,
            n_steps: workload.n_steps,
            scoring_seconds: of(&workload.scoring).seconds.of_passes(),
            measuring_seconds: measuring.sum::<f64>() + workload.n_repeated as f64 * mean_step.seconds.of_passes(),
            generating_seconds: workload.generating.0 as f64 * workload.generating.1.seconds(setup, rates),
            steps_seconds: workload.n_steps as f64 * mean_step.seconds.total(),
        }
    }

    /// From the start to the last checkpoint but for reading and writing files.
    pub fn run_seconds(&self) -> f64 {
        self.scoring_seconds + self.measuring_seconds + self.generating_seconds + self.steps_seconds
    }
}

fn step_needs(passes: &[Pass], setup: &Setup, rates: &Rates) -> StepNeeds {
    let flops = flops(passes, setup.description, setup.low_rank, setup.step);
    let tokens = passes.iter().map(|pass| pass.n_tokens as f64).sum();
    let update_bytes = setup.update_bytes();
    StepNeeds { tokens, flops, update_bytes, seconds: Seconds::of_step(passes, &flops, setup.description, update_bytes, rates) }
}

/// Operations of some passes, with low-rank terms beside frozen weights where there are any.
pub fn flops(passes: &[Pass], description: &DecoderDescription, low_rank: Option<&LowRankTerms>, memory: StepMemory) -> Flops {
    let mut sum = Flops::default();
    for pass in passes {
        let full = Flops::of(pass, description, memory);
        sum += low_rank.map_or(full, |terms| terms.flops(full, pass, description, memory));
    }
    sum
}
