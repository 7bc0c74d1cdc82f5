//! Which rows make up which optimizer step: a seeded order that can be resumed at any batch.
//!
//! The order of an epoch is a function of (seed, epoch) alone, so the cursor's whole state is two small numbers: no shuffled list and
//! no generator state need saving. The generator is SplitMix64 (Steele, Lea & Flood, 2014) in ten lines of our own: the shuffles of
//! `rand` may change between its releases, and a resumed run must not depend on the release it was started with.
//!
//! With `group_by_dominant` the unit of shuffling is the group of rows that share a dominant pair, else the single row. A unit is never split:
//! the step computes a batch's dominant pairs once each, and cuts into micro-batches only what no rows share.

use crate::config::{ConfigError, TrainConfig};
use crate::data::encode::EncodedRow;
use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// Where a loader stands: everything that `restore` needs, and what it was made for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoaderState {
    /// Epochs completed.
    pub epoch: u64,
    /// Units (rows or groups) of the current epoch already handed out.
    pub position: usize,
    pub seed: u64,
    pub n_rows: usize,
}

/// An endless sequence of batches with a cursor.
#[derive(Debug, Clone)]
pub struct Loader {
    units: Vec<Vec<usize>>,
    n_rows: usize,
    batch_size: usize,
    shuffle: bool,
    seed: u64,
    epoch: u64,
    position: usize,
    /// The current epoch's order of `units`.
    order: Vec<usize>,
}

impl Loader {
    /// `dominant_of[row]` numbers the distinct dominant pair of each row (see [`dominant_numbers`]); it is used with
    /// `group_by_dominant` only. Fails on an empty data set, and where a group is larger than a batch.
    pub fn new(dominant_of: &[usize], config: &TrainConfig) -> Result<Self> {
        ensure!(!dominant_of.is_empty(), "there are no rows to train on");
        ensure!(config.batch_size > 0, "`train.batch_size` must be at least 1");
        let units = if config.group_by_dominant { grouped(dominant_of) } else { (0..dominant_of.len()).map(|row| vec![row]).collect() };
        let largest = units.iter().map(Vec::len).max().unwrap_or(0);
        if largest > config.batch_size {
            let problem = ConfigError::with_data(format!(
                "`train.group_by_dominant` keeps rows that share a dominant pair in one batch, and {largest} rows share one, but a batch holds {}: \
                 set `train.batch_size` to at least {largest}",
                config.batch_size
            ));
            return Err(problem.into());
        }
        let mut loader = Self {
            units,
            n_rows: dominant_of.len(),
            batch_size: config.batch_size,
            shuffle: config.shuffle,
            seed: config.seed,
            epoch: 0,
            position: 0,
            order: Vec::new(),
        };
        loader.order = loader.order_of(0);
        Ok(loader)
    }

    /// Optimizer steps of a run: `max_steps`, or those of `epochs`, where the last epoch's share of steps is rounded up.
    pub fn n_steps(&self, config: &TrainConfig) -> Result<usize> {
        match (config.max_steps, config.epochs) {
            (Some(n_steps), _) => Ok(n_steps),
            (None, Some(epochs)) => {
                let whole: usize = (0..epochs as u64).map(|epoch| self.n_steps_of_epoch(epoch)).sum();
                let share = epochs.fract() * self.n_steps_of_epoch(epochs as u64) as f64;
                // 0.1 * 30 must not become four steps because of its rounding error.
                Ok(whole + (share - 1e-9).ceil().max(0.0) as usize)
            }
            (None, None) => bail!("one of `train.epochs` and `train.max_steps` must be set"),
        }
    }

    /// The next step's rows, as indices into the training rows. The last batch of an epoch holds what is left; no batch spans two epochs.
    pub fn next_batch(&mut self) -> Vec<usize> {
        let end = self.end_of_batch(&self.order, self.position);
        let batch = self.order[self.position..end].iter().flat_map(|&unit| &self.units[unit]).copied().collect();
        self.position = end;
        if end == self.order.len() {
            self.epoch += 1;
            self.position = 0;
            self.order = self.order_of(self.epoch);
        }
        batch
    }

    /// Epochs handed out so far, counted in rows: 1.5 after one and a half passes.
    pub fn epochs(&self) -> f64 {
        let n_rows: usize = self.order[..self.position].iter().map(|unit| self.units[*unit].len()).sum();
        self.epoch as f64 + n_rows as f64 / self.n_rows as f64
    }

    pub fn state(&self) -> LoaderState {
        LoaderState { epoch: self.epoch, position: self.position, seed: self.seed, n_rows: self.n_rows }
    }

    /// Continues where `state` was taken; fails if it was taken from other data or another seed.
    pub fn restore(&mut self, state: &LoaderState) -> Result<()> {
        ensure!(
            (state.seed, state.n_rows) == (self.seed, self.n_rows),
            "the checkpoint was trained on {} rows with seed {}, this run has {} rows and seed {}",
            state.n_rows,
            state.seed,
            self.n_rows,
            self.seed
        );
        ensure!(
            state.position < self.units.len(),
            "the checkpoint's data cursor {} lies beyond {} units",
            state.position,
            self.units.len()
        );
        self.epoch = state.epoch;
        self.position = state.position;
        self.order = self.order_of(state.epoch);
        Ok(())
    }

    fn order_of(&self, epoch: u64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.units.len()).collect();
        if self.shuffle {
            Generator::new(self.seed, Stream::Epoch(epoch)).shuffle(&mut order);
        }
        order
    }

    fn n_steps_of_epoch(&self, epoch: u64) -> usize {
        let order = self.order_of(epoch);
        let (mut position, mut n_steps) = (0, 0);
        while position < order.len() {
            position = self.end_of_batch(&order, position);
            n_steps += 1;
        }
        n_steps
    }

    /// The batch that starts at `position` of `order` ends before the unit that no longer fits.
    fn end_of_batch(&self, order: &[usize], position: usize) -> usize {
        let mut n_rows = 0;
        let fits = |unit: &&usize| {
            n_rows += self.units[**unit].len();
            n_rows <= self.batch_size
        };
        position + order[position..].iter().take_while(fits).count()
    }
}

/// Numbers the distinct dominant pairs in order of first appearance; rows with equal dominant tokens get equal numbers. Of rows without a
/// dominant pair those with the same prompt belong together: what was learned of a prompt's one answer tells of the other.
pub fn dominant_numbers<'a>(rows: impl IntoIterator<Item = &'a EncodedRow>) -> Vec<usize> {
    let mut numbers = HashMap::new();
    rows.into_iter()
        .map(|row| {
            let next = numbers.len();
            let key = match &row.dominant {
                Some(pair) => (&pair.prompt, Some((&pair.chosen.tokens, &pair.rejected.tokens))),
                None => (&row.target.prompt, None),
            };
            *numbers.entry(key).or_insert(next)
        })
        .collect()
}

/// Rows to train on and rows held out, each in file order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    pub train: Vec<usize>,
    pub held_out: Vec<usize>,
}

/// Holds out `fraction` of the dominant pairs (rounded, at least one) with all their rows, so that no dominant pair is on both sides.
pub fn hold_out(dominant_of: &[usize], fraction: f64, seed: u64) -> Result<Split> {
    let mut groups = grouped(dominant_of);
    ensure!(groups.len() >= 2, "`eval.fraction` needs at least two distinct dominant pairs to hold one out; the data has {}", groups.len());
    Generator::new(seed, Stream::HeldOut).shuffle(&mut groups);
    let n_held_out = ((fraction * groups.len() as f64).round() as usize).clamp(1, groups.len() - 1);
    let mut held_out = groups[..n_held_out].concat();
    let mut train = groups[n_held_out..].concat();
    held_out.sort_unstable();
    train.sort_unstable();
    Ok(Split { train, held_out })
}

/// Rows by group, groups in order of first appearance.
fn grouped(group_of: &[usize]) -> Vec<Vec<usize>> {
    let mut index_of = HashMap::new();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (row, group) in group_of.iter().enumerate() {
        let index = *index_of.entry(group).or_insert(groups.len());
        if index == groups.len() {
            groups.push(Vec::new());
        }
        groups[index].push(row);
    }
    groups
}

/// What a sequence of random numbers is for: streams of one seed are independent.
#[derive(Debug, Clone, Copy)]
enum Stream {
    HeldOut,
    Epoch(u64),
}

/// SplitMix64.
struct Generator {
    state: u64,
}

impl Generator {
    fn new(seed: u64, stream: Stream) -> Self {
        let number = match stream {
            Stream::HeldOut => 0,
            Stream::Epoch(epoch) => epoch + 1,
        };
        // Mixing the seed first keeps neighbouring seeds and streams from being shifted copies of each other.
        let mixed = Self { state: seed }.next();
        let state = Self { state: mixed ^ number }.next();
        Self { state }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`, by multiply-shift: its bias, bound / 2^64, is far below what any run could show.
    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// Fisher-Yates.
    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(batch_size: usize) -> TrainConfig {
        TrainConfig { epochs: Some(2.0), batch_size, seed: 7, ..Default::default() }
    }

    fn epoch(loader: &mut Loader) -> Vec<Vec<usize>> {
        let epoch = loader.state().epoch;
        std::iter::from_fn(|| (loader.state().epoch == epoch).then(|| loader.next_batch())).collect()
    }

    fn sorted(batches: &[Vec<usize>]) -> Vec<usize> {
        let mut rows = batches.concat();
        rows.sort_unstable();
        rows
    }

    /// Reference values of SplitMix64 for seed 1234567 (Rosetta Code, and Vigna's splitmix64.c).
    #[test]
    fn the_generator_is_splitmix64() {
        let mut generator = Generator { state: 1_234_567 };
        let numbers = [generator.next(), generator.next(), generator.next()];
        assert_eq!(numbers, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn every_epoch_holds_every_row_once_in_its_own_order() {
        let mut loader = Loader::new(&[0; 10], &config(4)).unwrap();
        let (first, second) = (epoch(&mut loader), epoch(&mut loader));
        assert_eq!(sorted(&first), (0..10).collect::<Vec<_>>());
        assert_eq!(sorted(&second), (0..10).collect::<Vec<_>>());
        assert_ne!(first, second);
        assert_eq!(first.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2], "the last partial batch is kept");
    }

    #[test]
    fn the_order_depends_on_the_seed_and_on_nothing_else() {
        let rows = |seed| {
            let mut loader = Loader::new(&[0; 50], &TrainConfig { seed, ..config(50) }).unwrap();
            loader.next_batch()
        };
        assert_eq!(rows(1), rows(1));
        assert_ne!(rows(1), rows(2));
        let mut in_order = Loader::new(&[0; 5], &TrainConfig { shuffle: false, ..config(5) }).unwrap();
        assert_eq!(in_order.next_batch(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn resumes_at_every_batch() {
        let mut loader = Loader::new(&[0; 11], &config(3)).unwrap();
        for _ in 0..12 {
            let mut resumed = Loader::new(&[0; 11], &config(3)).unwrap();
            resumed.restore(&loader.state()).unwrap();
            assert_eq!(resumed.epochs(), loader.epochs());
            assert_eq!(resumed.next_batch(), loader.next_batch());
            assert_eq!(resumed.next_batch(), loader.clone().next_batch());
        }
    }

    #[test]
    fn a_state_of_other_data_is_refused() {
        let state = Loader::new(&[0; 11], &config(3)).unwrap().state();
        let error = Loader::new(&[0; 10], &config(3)).unwrap().restore(&state).unwrap_err().to_string();
        assert!(error.contains("11 rows") && error.contains("10 rows"), "{error}");
    }

    #[test]
    fn groups_are_never_split() {
        let dominant_of = [0, 1, 2, 0, 1, 2, 0, 1, 3];
        let grouped = TrainConfig { group_by_dominant: true, ..config(5) };
        let mut loader = Loader::new(&dominant_of, &grouped).unwrap();
        for _ in 0..3 {
            let batches = epoch(&mut loader);
            assert_eq!(sorted(&batches), (0..9).collect::<Vec<_>>());
            for group in 0..4 {
                let holders = batches.iter().filter(|batch| batch.iter().any(|row| dominant_of[*row] == group));
                assert_eq!(holders.count(), 1, "group {group} in {batches:?}");
            }
            assert!(batches.iter().all(|batch| batch.len() <= 5));
        }
    }

    #[test]
    fn a_batch_smaller_than_a_group_is_refused_with_the_numbers() {
        let grouped = TrainConfig { group_by_dominant: true, ..config(2) };
        let error = Loader::new(&[0, 0, 0, 1], &grouped).unwrap_err();
        assert!(error.is::<ConfigError>(), "status 2, as for any other problem of the configuration");
        let error = error.to_string();
        assert!(error.contains("3 rows share one") && error.contains("holds 2"), "{error}");
    }

    #[test]
    fn steps_of_a_run_follow_transformers() {
        // transformers: ceil(num_train_epochs * ceil(n_rows / batch_size))
        for (n_rows, batch_size, epochs, expected) in
            [(600, 1, 2.0, 1200), (10, 4, 2.0, 6), (10, 4, 0.5, 2), (10, 4, 1.5, 5), (30, 1, 0.1, 3), (48, 6, 5.0, 40)]
        {
            let config = TrainConfig { epochs: Some(epochs), ..config(batch_size) };
            let loader = Loader::new(&vec![0; n_rows], &config).unwrap();
            assert_eq!(loader.n_steps(&config).unwrap(), expected, "{n_rows} rows, batch {batch_size}, {epochs} epochs");
        }
        let config = TrainConfig { epochs: None, max_steps: Some(17), ..config(4) };
        assert_eq!(Loader::new(&[0; 10], &config).unwrap().n_steps(&config).unwrap(), 17);
    }

    #[test]
    fn steps_of_grouped_epochs_are_those_that_come() {
        let dominant_of: Vec<usize> = (0..40).map(|row| row * row % 13).collect();
        let config = TrainConfig { group_by_dominant: true, epochs: Some(3.0), ..config(9) };
        let mut loader = Loader::new(&dominant_of, &config).unwrap();
        let n_steps = loader.n_steps(&config).unwrap();
        let n_batches: usize = (0..3).map(|_| epoch(&mut loader).len()).sum();
        assert_eq!(n_steps, n_batches);
    }

    #[test]
    fn held_out_dominant_pairs_are_whole() {
        let dominant_of: Vec<usize> = (0..60).map(|row| row / 6).collect();
        let split = hold_out(&dominant_of, 0.2, 3).unwrap();
        assert_eq!((split.train.len(), split.held_out.len()), (48, 12));
        assert!(split.held_out.iter().all(|row| split.train.iter().all(|other| dominant_of[*row] != dominant_of[*other])));
        assert_eq!(split, hold_out(&dominant_of, 0.2, 3).unwrap());
        assert_ne!(split, hold_out(&dominant_of, 0.2, 4).unwrap());
        assert_eq!(hold_out(&dominant_of, 0.001, 3).unwrap().held_out.len(), 6, "at least one pair");
        assert!(hold_out(&[0, 0, 0], 0.5, 3).is_err());
    }
}
