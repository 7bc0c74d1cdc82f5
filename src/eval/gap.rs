//! Reward gaps of preference pairs: the one benchmark that nobody answers and nobody judges.
//!
//! A response holds the mean log-probability of a token of either answer, chosen first, as training and `mpo gaps` have it; their difference is the gap.
//! Under a reference the same is measured again, by another checkpoint, into a file of its own.

use super::answering::Outcome;
use super::item::Item;
use super::lines;
use super::record::{Key, Response, Verdict};
use super::results::run::{LoadedBench, RULE, verdicts_file};
use crate::data::encode::{EncodedPreference, Encoder};
use crate::data::pair::PreferenceRow;
use crate::digest::hex;
use crate::model::decoder::Decoder;
use crate::progress::Progress;
use crate::scoring::{self, KeptStates};
use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

/// In results: under the checkpoint, under its reference, and the first less the second.
pub const METRIC: &str = "reward_gap";
pub const REFERENCE_METRIC: &str = "reference_gap";
pub const DIFFERENCE_METRIC: &str = "gap_difference";

/// Pairs that are scored together between two looks at Ctrl-C.
const PAIRS_AT_ONCE: usize = 16;

/// The items among `all` that have no line in the file `path` yet.
pub fn missing<'a>(all: &'a [Item], path: &Path) -> Result<Vec<&'a Item>> {
    let before: Vec<Response> = if path.exists() { lines::read(path)?.values } else { Vec::new() };
    let done: HashSet<(&str, &str)> = before.iter().map(|response| (response.key.lang.as_str(), response.key.id.as_str())).collect();
    Ok(all.iter().filter(|item| !done.contains(&(item.lang.as_str(), item.id.as_str()))).collect())
}

/// Measures the pairs of `rows` that the file `path` lacks, a line each, until the user stops it; how many are missing then.
///
/// # Errors
/// As [`measure`]; a line that cannot be written. What was written stands.
pub fn measure_missing(
    model: &Decoder,
    encoder: &Encoder,
    bench: &str,
    items: &[Item],
    rows: &[PreferenceRow],
    path: &Path,
    should_stop: &dyn Fn() -> bool,
) -> Result<Outcome> {
    let left = missing(items, path)?;
    let mut outcome = Outcome { n_new: 0, n_before: items.len() - left.len(), n_missing: left.len() };
    let progress = Progress::new("measuring", left.len());
    let mut file = lines::Writer::open(path)?;
    for items in left.chunks(PAIRS_AT_ONCE) {
        if should_stop() {
            break;
        }
        for response in measure(model, encoder, bench, items, rows)? {
            file.append(&response)?;
            outcome.n_new += 1;
            outcome.n_missing -= 1;
        }
        progress.advance(items.len());
    }
    file.sync()?;
    Ok(outcome)
}

/// The response to each of `items`, whose pairs are among `rows`.
///
/// # Errors
/// An item without its pair; a pair that cannot be encoded.
pub fn measure(model: &Decoder, encoder: &Encoder, bench: &str, items: &[&Item], rows: &[PreferenceRow]) -> Result<Vec<Response>> {
    let by_id: HashMap<(&str, &str), &PreferenceRow> = rows.iter().map(|row| ((row.target.lang.as_str(), row.id.as_str()), row)).collect();
    let find = |item: &Item| by_id.get(&(item.lang.as_str(), item.id.as_str())).map(|row| (*row).clone());
    let rows: Vec<PreferenceRow> = items
        .iter()
        .map(|item| find(item).with_context(|| format!("row `{}` in `{}` is not in the data any more", item.id, item.lang)))
        .collect::<Result<_>>()?;
    let encoded = encoder.tokenize_each(&rows).into_iter().collect::<Result<Vec<_>>>()?;
    let pairs: Vec<&EncodedPreference> = encoded.iter().map(|row| &row.target).collect();
    let scores = scoring::score(model, &pairs, KeptStates::Nothing, 0)?;
    let response = |((item, pair), score): ((&&Item, &&EncodedPreference), scoring::ScoredPair)| {
        let log_probs = [score.chosen.score.per_token(), score.rejected.score.per_token()];
        ensure!(log_probs.iter().all(|value| value.is_finite()), "the gap of row `{}` in `{}` is not a number", item.id, item.lang);
        let key = Key { bench: bench.into(), lang: item.lang.clone(), id: item.id.clone(), sample: 0 };
        let prompt = pair.prompt.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<u8>>();
        Ok(Response { key, prompt_sha256: hex(&Sha256::digest(prompt)), answers: Vec::new(), choice_log_probs: log_probs.into() })
    };
    items.iter().zip(&pairs).zip(scores).map(response).collect()
}

/// What a response and, where there is one, the reference's to the same pair say: gap, the reference's gap, and how much larger the first is. The
/// difference is taken pair by pair, so that its interval is of paired values.
pub fn verdict(response: &Response, reference: Option<&Response>) -> Verdict {
    let gap = |response: &Response| match response.choice_log_probs[..] {
        [chosen, rejected] => Some(chosen - rejected),
        _ => None,
    };
    let own = gap(response);
    let reference = reference.and_then(gap);
    let difference = own.zip(reference).map(|(own, reference)| own - reference);
    let named = [(METRIC, own), (REFERENCE_METRIC, reference), (DIFFERENCE_METRIC, difference)];
    let metrics: BTreeMap<String, f64> = named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    Verdict { key: response.key.clone(), label: None, metrics, unparsed: None, raw: Vec::new() }
}

/// A verdict on every response, in the order of the items.
///
/// # Errors
/// The file cannot be written.
pub fn score_bench(folder: &Path, bench: &LoadedBench) -> Result<()> {
    let all = bench.items.iter().flat_map(|item| bench.responses_to(item));
    let verdicts: Vec<Verdict> = all.map(|response| verdict(response, bench.reference.get(&response.key))).collect();
    lines::write(&folder.join(verdicts_file(RULE)), &verdicts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_is_that_of_one_pair() {
        let response = |log_probs: &[f64]| Response {
            key: Key { bench: "reward-gap".into(), lang: "sw".into(), id: "1".into(), sample: 0 },
            prompt_sha256: String::new(),
            answers: vec![],
            choice_log_probs: log_probs.to_vec(),
        };
        let (own, reference) = (response(&[-1.0, -3.5]), response(&[-2.0, -2.5]));
        assert_eq!(verdict(&own, None).metrics, BTreeMap::from([(METRIC.to_owned(), 2.5)]));
        let both = verdict(&own, Some(&reference)).metrics;
        assert_eq!((both[METRIC], both[REFERENCE_METRIC], both[DIFFERENCE_METRIC]), (2.5, 0.5, 2.0));
        assert!(verdict(&response(&[]), Some(&reference)).metrics.contains_key(REFERENCE_METRIC));
    }
}
