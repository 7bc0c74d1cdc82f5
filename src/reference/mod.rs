//! Frozen-reference scores: a column of the data set, never a second model in the loop.
//!
//! Each distinct dominant pair is scored once, before training: the summed log-probabilities of both responses (RG_d) and the states that
//! retention compares with. A sequence's scores depend on its tokens and on the frozen weights alone, so each is kept on disk under a hash
//! of all that it depends on ([`Provenance`]): in a cache that runs share, and in the run's own folder, so that a resume needs nothing else.

mod columns;
mod entry;
mod head;
mod key;

pub use columns::Columns;
pub use head::FrozenHead;
pub use key::{Provenance, base_digest, weights_digest};

use crate::data::encode::EncodedPreference;
use crate::files::write_atomically;
use crate::hub::Environment;
use crate::model::decoder::Decoder;
use crate::objective::PairScores;
use crate::ops::Place;
use crate::progress::{Progress, say};
use crate::scoring::{self, KeptStates, ScoredPair, ScoredSequence};
use anyhow::{Context, Result, bail, ensure};
use head::SavedHead;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Tokens of one packed forward: enough to keep the matrix products busy, little enough to need no memory to speak of.
const TOKENS_PER_FORWARD: usize = 2048;

const MANIFEST: &str = "manifest.json";

/// Where entries are kept. Either may be absent.
#[derive(Debug, Clone, Default)]
pub struct Folders {
    /// The run's own copy, `OUT/reference`: it must be writable.
    pub run: Option<PathBuf>,
    /// Shared by all runs ([`shared_folder`]). A convenience: when it cannot be written the scores are used all the same.
    pub shared: Option<PathBuf>,
}

/// What scoring found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScoringReport {
    /// Distinct pairs.
    pub n_pairs: usize,
    /// Of these, how many had to be computed.
    pub n_scored: usize,
    /// Each damaged entry that was met and replaced, with what was wrong.
    pub damaged: Vec<String>,
    /// Why the shared cache could not be written, the first time that it failed.
    pub cache_error: Option<String>,
    /// Not all pairs were scored: [`FrozenScores::score_until`] was told to stop.
    pub was_stopped: bool,
}

impl ScoringReport {
    /// Tells the person of what went wrong and was put right.
    pub fn say(&self) {
        for damaged in &self.damaged {
            say(&format!("a damaged score was computed again: {damaged}"));
        }
        if let Some(error) = &self.cache_error {
            say(&format!("scores are not kept for other runs: {error}"));
        }
    }
}

/// Scores of a set of preference pairs under one frozen model.
#[derive(Debug, Clone)]
pub struct FrozenScores {
    manifest: Manifest,
    /// Present for [`KeptStates::Predicting`].
    head: Option<FrozenHead>,
    sequences: HashMap<String, ScoredSequence>,
    folders: Folders,
}

/// Stands beside the entries of a run, so that they can be found again without the frozen weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    provenance: Provenance,
    hidden_size: usize,
    head: Option<SavedHead>,
}

impl FrozenScores {
    /// Reads the scores of `pairs` from `folders`, computes the missing ones with `model`, whose `provenance` it is, and writes them as they come.
    pub fn score(model: &Decoder, pairs: &[&EncodedPreference], provenance: Provenance, folders: Folders) -> Result<(Self, ScoringReport)> {
        Self::score_until(&|| false, model, pairs, provenance, folders)
    }

    /// As [`Self::score`], but asks `stop` before each batch: what was scored until then is safe in `folders`, and found there next time.
    pub fn score_until(
        stop: &dyn Fn() -> bool,
        model: &Decoder,
        pairs: &[&EncodedPreference],
        provenance: Provenance,
        folders: Folders,
    ) -> Result<(Self, ScoringReport)> {
        let head = (provenance.states == KeptStates::Predicting).then(|| FrozenHead::of(model)).transpose()?;
        let manifest = Manifest { provenance, hidden_size: model.description().hidden_size, head: None };
        let mut scores = Self { manifest, head, sequences: HashMap::new(), folders };
        let mut report = ScoringReport::default();
        if let Some(run) = &scores.folders.run {
            scores.manifest.head = scores.head.as_ref().map(|head| head.save(run)).transpose()?;
            write_atomically(&run.join(MANIFEST), &serde_json::to_vec_pretty(&scores.manifest)?)?;
        }

        let mut missing = Vec::new();
        for (pair, keys) in scores.distinct(pairs)? {
            report.n_pairs += 1;
            let [chosen, rejected] = keys;
            let found = [scores.find(chosen, &mut report)?, scores.find(rejected, &mut report)?];
            if found != [true, true] {
                missing.push(pair);
            }
        }
        let progress = Progress::new("reference scores", missing.iter().map(|pair| pair.n_packed()).sum());
        for packed in split_by_tokens(&missing) {
            if stop() {
                report.was_stopped = true;
                break;
            }
            scores.compute(model, packed, &mut report)?;
            report.n_scored += packed.len();
            progress.advance(packed.iter().map(|pair| pair.n_packed()).sum());
        }
        Ok((scores, report))
    }

    /// Reads the scores of `pairs` that a run wrote to `run` (its `reference` folder), to go on at the `place` of its policy. Fails, naming the entry, when one is missing or damaged:
    /// then the frozen model is needed again.
    pub fn open(run: &Path, pairs: &[&EncodedPreference], states: KeptStates, place: &Place) -> Result<Self> {
        let path = run.join(MANIFEST);
        let text = fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let manifest: Manifest = serde_json::from_slice(&text).with_context(|| format!("`{}` is damaged", path.display()))?;
        let kept = manifest.provenance.states;
        ensure!(kept == states, "`{}` holds scores for another retention: {kept:?}, not {states:?}", run.display());
        let folders = Folders { run: Some(run.to_owned()), shared: None };
        let head = manifest.head.as_ref().map(|head| FrozenHead::open(run, head, manifest.hidden_size, place));
        let mut scores = Self { head: head.transpose()?, manifest, sequences: HashMap::new(), folders };
        for (_, keys) in scores.distinct(pairs)? {
            for key in keys {
                match entry::read(run, &key, scores.manifest.hidden_size)? {
                    Some(sequence) => scores.sequences.insert(key, sequence),
                    None => bail!("`{}` is missing", entry::path(run, &key).display()),
                };
            }
        }
        Ok(scores)
    }

    /// What the scores depend on.
    pub fn provenance(&self) -> &Provenance {
        &self.manifest.provenance
    }

    /// Values of one kept state.
    pub fn hidden_size(&self) -> usize {
        self.manifest.hidden_size
    }

    /// The scored sequences of `pair`: chosen, then rejected.
    pub fn pair(&self, pair: &EncodedPreference) -> Result<[&ScoredSequence; 2]> {
        let [chosen, rejected] = self.provenance().keys(pair)?;
        match (self.sequences.get(&chosen), self.sequences.get(&rejected)) {
            (Some(chosen), Some(rejected)) => Ok([chosen, rejected]),
            _ => bail!("a preference pair ({}, prompt of {} tokens) has no reference score", pair.lang, pair.prompt.len()),
        }
    }

    /// The frozen model's head, kept for [`KeptStates::Predicting`].
    pub fn head(&self) -> Result<&FrozenHead> {
        self.head.as_ref().context("the reference's head was not kept: it is for `kl` retention only")
    }

    /// Log-probabilities of both responses of `pair`.
    pub fn pair_scores(&self, pair: &EncodedPreference) -> Result<PairScores> {
        let [chosen, rejected] = self.pair(pair)?;
        Ok(PairScores { chosen: chosen.score, rejected: rejected.score })
    }

    /// Computes the scores of `pair` anew with the frozen `model` and replaces what was kept of them.
    pub fn rescore(&mut self, model: &Decoder, pair: &EncodedPreference) -> Result<()> {
        self.compute(model, &[pair], &mut ScoringReport::default())
    }

    /// The distinct ones of `pairs` with the keys of their sequences, in order of first appearance.
    fn distinct<'a>(&self, pairs: &[&'a EncodedPreference]) -> Result<Vec<(&'a EncodedPreference, [String; 2])>> {
        let mut seen = HashSet::new();
        let mut distinct = Vec::new();
        for &pair in pairs {
            let keys = self.provenance().keys(pair)?;
            if seen.insert(keys.clone()) {
                distinct.push((pair, keys));
            }
        }
        Ok(distinct)
    }

    /// Takes the entry from the run's folder or from the shared one; whether there was one. A damaged entry counts as none.
    fn find(&mut self, key: String, report: &mut ScoringReport) -> Result<bool> {
        if self.sequences.contains_key(&key) {
            return Ok(true);
        }
        for folder in [self.folders.run.clone(), self.folders.shared.clone()].into_iter().flatten() {
            match entry::read(&folder, &key, self.manifest.hidden_size) {
                Ok(Some(sequence)) => return self.keep(key, sequence, report).map(|()| true),
                Ok(None) => (),
                Err(error) => report.damaged.push(format!("{error:#}")),
            }
        }
        Ok(false)
    }

    fn compute(&mut self, model: &Decoder, pairs: &[&EncodedPreference], report: &mut ScoringReport) -> Result<()> {
        let Provenance { states, pad_token, .. } = *self.provenance();
        // Without a pad token there is no padding to fill with it.
        let scored = scoring::score(model, pairs, states, pad_token.unwrap_or_default())?;
        for (pair, ScoredPair { chosen, rejected }) in pairs.iter().zip(scored) {
            let [chosen_key, rejected_key] = self.provenance().keys(pair)?;
            self.keep(chosen_key, chosen, report)?;
            self.keep(rejected_key, rejected, report)?;
        }
        Ok(())
    }

    /// Keeps an entry in memory and in every folder that does not hold the very same one.
    fn keep(&mut self, key: String, sequence: ScoredSequence, report: &mut ScoringReport) -> Result<()> {
        let hidden_size = self.manifest.hidden_size;
        let stale = |folder: &Path| !matches!(entry::read(folder, &key, hidden_size), Ok(Some(kept)) if kept == sequence);
        if let Some(run) = self.folders.run.as_deref().filter(|folder| stale(folder)) {
            entry::write(run, &key, &sequence, hidden_size)?;
        }
        if let Some(shared) = self.folders.shared.as_deref().filter(|folder| stale(folder))
            && let Err(error) = entry::write(shared, &key, &sequence, hidden_size)
        {
            report.cache_error.get_or_insert_with(|| format!("{error:#}"));
        }
        self.sequences.insert(key, sequence);
        Ok(())
    }
}

/// The folder that runs share, `reference` in mpo's cache (`$MPO_CACHE`); `None` where there is no cache folder.
pub fn shared_folder() -> Option<PathBuf> {
    Some(Environment::from_process().ok()?.mpo_cache.join("reference"))
}

/// Cuts `pairs` into the runs that are scored together, of at most `TOKENS_PER_FORWARD` tokens; a longer pair stands alone.
pub fn split_by_tokens<'a, 'b>(pairs: &'b [&'a EncodedPreference]) -> Vec<&'b [&'a EncodedPreference]> {
    let mut runs = Vec::new();
    let (mut start, mut n_packed) = (0, 0);
    for (index, pair) in pairs.iter().enumerate() {
        n_packed += pair.n_packed();
        if n_packed > TOKENS_PER_FORWARD && index > start {
            runs.push(&pairs[start..index]);
            (start, n_packed) = (index, pair.n_packed());
        }
    }
    if start < pairs.len() {
        runs.push(&pairs[start..]);
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::encode::Response;

    fn pair(n_tokens: usize) -> EncodedPreference {
        let response = |n| Response { tokens: vec![1; n], n_end_tokens: 1 };
        EncodedPreference { lang: "en".into(), prompt: vec![0; n_tokens - 2], chosen: response(1), rejected: response(1) }
    }

    #[test]
    fn pairs_are_packed_up_to_the_budget_in_order() {
        let pairs = [1000, 1000, 48, 1, 5000, 3, 3].map(|n| pair(n.max(3)));
        let pairs: Vec<&EncodedPreference> = pairs.iter().collect();
        let sizes: Vec<Vec<usize>> =
            split_by_tokens(&pairs).iter().map(|packed| packed.iter().map(|pair| pair.n_packed()).collect()).collect();
        assert_eq!(sizes, [vec![1000, 1000, 48], vec![3], vec![5000], vec![3, 3]]);
    }
}
