//! How likely the canaries' answers are under a model, and how far its next-token distributions there are from those of step 0.
//!
//! ```text
//! NLL = - mean over answer tokens of log π(y_i | x, y_<i)
//! KL  =   mean over the same positions of KL(π_0 || π), both distributions over N_TOP + 1 outcomes:
//!         each of the N_TOP tokens that are most likely under π_0, and all other tokens together
//! ```
//!
//! The distributions of step 0 are kept in this form, half a KiB a position, where whole ones would take megabytes or a second model in memory.
//! Putting outcomes together never increases a divergence (data-processing inequality), so the number is at most the one over the whole
//! vocabulary, and equal to it where the vocabulary has no more than `N_TOP` tokens. It is exactly 0 at step 0.

use super::prompts::Prompts;
use super::start::Start;
use crate::data::batch::{PackedBatch, PromptSharing};
use crate::interrupt::{self, Stopped};
use crate::model::decoder::{Decoder, Keep};
use crate::ops::divergence::LOGITS_PER_CHUNK;
use crate::ops::{self, logits::log_sum_exp};
use anyhow::Result;
use rayon::prelude::*;
use std::cmp::Reverse;
use std::ops::Range;

/// Tokens whose probabilities are kept of each position.
pub const N_TOP: usize = 64;

/// Tokens of one packed forward.
const TOKENS_PER_FORWARD: usize = 2048;

/// The next-token distribution of one position, coarsened.
#[derive(Debug, Clone, PartialEq)]
pub struct Position {
    /// Some tokens, the most likely first.
    pub tokens: Vec<u32>,
    /// Of each, nats.
    pub log_probs: Vec<f32>,
    /// Of all others together; minus infinity where there are none.
    pub log_rest: f32,
}

impl Position {
    /// The most likely tokens of one row of logits, which is spoilt.
    pub fn of(logits_V: &mut [f32]) -> Self {
        let n = N_TOP.min(logits_V.len());
        let mut tokens: Vec<u32> = (0..logits_V.len() as u32).collect();
        // The order is total, so that it is the same in every run: what is no number comes last, the earlier of equals first.
        let key = |token: &u32| (Reverse(ordered(logits_V[*token as usize])), *token);
        if n < tokens.len() {
            tokens.select_nth_unstable_by_key(n, key);
            // What is kept of a position must not be as large as the vocabulary.
            tokens = tokens[..n].to_vec();
        }
        tokens.sort_unstable_by_key(key);
        let (log_probs, log_rest) = masses(logits_V, &tokens);
        Self { tokens, log_probs, log_rest }
    }

    /// `KL(self || softmax(logits))` over the outcomes of `self`, nats. Spoils the row of logits.
    pub fn divergence(&self, logits_V: &mut [f32]) -> f64 {
        let (log_probs, log_rest) = masses(logits_V, &self.tokens);
        let pairs = self.log_probs.iter().copied().zip(log_probs).chain([(self.log_rest, log_rest)]);
        // What the initial model gives no mass at all adds nothing.
        let terms = pairs.filter(|(ours, _)| *ours > f32::NEG_INFINITY).map(|(ours, theirs)| {
            let (ours, theirs) = (f64::from(ours), f64::from(theirs));
            ours.exp() * (ours - theirs)
        });
        terms.sum()
    }
}

/// Ascending as the numbers are; NaN below all.
fn ordered(value: f32) -> i64 {
    if value.is_nan() {
        return i64::MIN;
    }
    // The bits of positive floats ascend with their values, those of negative ones descend.
    let bits = i64::from(value.to_bits() as i32);
    if bits < 0 { i64::from(i32::MIN) - bits } else { bits }
}

/// Log-probabilities of `tokens`, and of all others together. Their logits are gone afterwards, so that no difference of large numbers is taken.
fn masses(logits_V: &mut [f32], tokens: &[u32]) -> (Vec<f32>, f32) {
    let norm = log_sum_exp(logits_V);
    let log_probs = tokens.iter().map(|&token| std::mem::replace(&mut logits_V[token as usize], f32::NEG_INFINITY) - norm).collect();
    let rest = if tokens.len() == logits_V.len() { f32::NEG_INFINITY } else { log_sum_exp(logits_V) - norm };
    // The sum over nothing but infinities is no number.
    let is_number = norm.is_finite() && rest.is_nan();
    (log_probs, if is_number { f32::NEG_INFINITY } else { rest })
}

/// The texts under a model.
pub struct TextsSeen {
    /// By prompt, the positions of its answer.
    spans: Vec<Range<usize>>,
    /// Of each position, nats.
    nll: Vec<f64>,
    kl: Vec<f64>,
}

impl TextsSeen {
    /// Under the policy, compared with what is known of step 0.
    pub fn of(policy: &Decoder, prompts: &Prompts, start: &Start) -> Result<Self> {
        let seen = read(policy, prompts, &start.texts, |at, token, logits_V| {
            let nll = nll(logits_V, token);
            (nll, start.positions[at].divergence(logits_V))
        })?;
        let (nll, kl) = seen.into_iter().unzip();
        Ok(Self { spans: spans(&start.texts), nll, kl })
    }

    /// Under the model of step 0 itself, with the distributions that are kept of it.
    pub fn at_the_start(model: &Decoder, prompts: &Prompts, texts: &[Vec<u32>]) -> Result<(Self, Vec<Position>)> {
        let seen = read(model, prompts, texts, |_, token, logits_V| (nll(logits_V, token), Position::of(logits_V)))?;
        let (nll, positions): (Vec<f64>, Vec<Position>) = seen.into_iter().unzip();
        let kl = vec![0.0; nll.len()];
        Ok((Self { spans: spans(texts), nll, kl }, positions))
    }

    /// Whether the model gives numbers for every text.
    pub fn is_finite(&self) -> bool {
        self.nll.iter().all(|nll| nll.is_finite())
    }

    /// Mean NLL and KL a token over the answers to the prompts of these numbers, nats.
    pub fn means(&self, prompts: impl Iterator<Item = usize>) -> (f64, f64) {
        let (mut n, mut nll, mut kl) = (0, 0.0, 0.0);
        for span in prompts.map(|prompt| self.spans[prompt].clone()) {
            n += span.len();
            nll += self.nll[span.clone()].iter().sum::<f64>();
            kl += self.kl[span].iter().sum::<f64>();
        }
        (nll / n as f64, kl / n as f64)
    }
}

fn nll(logits_V: &[f32], token: u32) -> f64 {
    f64::from(log_sum_exp(logits_V) - logits_V[token as usize])
}

/// Where the positions of each text stand among those of all.
fn spans(texts: &[Vec<u32>]) -> Vec<Range<usize>> {
    let mut end = 0;
    let span = |text: &Vec<u32>| {
        let start = end;
        end += text.len();
        start..end
    };
    texts.iter().map(span).collect()
}

/// Numbers of prompts that are read in one forward.
pub(super) fn groups(prompts: &Prompts, n_answer_tokens: impl Fn(usize) -> usize) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let mut n_tokens = 0;
    for (number, prompt) in prompts.all.iter().enumerate() {
        let n = prompt.tokens.len() + n_answer_tokens(number);
        n_tokens += n;
        match groups.last_mut() {
            Some(group) if n_tokens <= TOKENS_PER_FORWARD => group.end = number + 1,
            _ => {
                n_tokens = n;
                groups.push(number..number + 1);
            }
        }
    }
    groups
}

/// What `look` makes of the logits of every answer token: its number among all, the token, and the row that predicts it.
fn read<R: Send>(
    model: &Decoder,
    prompts: &Prompts,
    texts: &[Vec<u32>],
    look: impl Fn(usize, u32, &mut [f32]) -> R + Sync,
) -> Result<Vec<R>> {
    let (vocab_size, hidden_size) = (model.description().vocab_size, model.description().hidden_size);
    let rows_per_chunk = (LOGITS_PER_CHUNK / vocab_size).max(1);
    let mut seen = Vec::new();
    for group in groups(prompts, |number| texts[number].len()) {
        if interrupt::requested() {
            return Err(Stopped.into());
        }
        let mut batch = PackedBatch::default();
        let mut states = Vec::new();
        let mut tokens = Vec::new();
        let mut rows = Vec::new();
        for number in group {
            let spans = batch.push_responses(&prompts.all[number].tokens, &[&texts[number]], PromptSharing::Shared);
            rows.extend(spans.iter().flat_map(|span| span.predicting_rows()));
            tokens.extend_from_slice(&texts[number]);
        }
        let hidden_ND = model.forward(&batch, Keep::Nothing)?.hidden_ND;
        let hidden_ND = ops::read(&hidden_ND)?;
        for row in rows {
            states.extend_from_slice(&hidden_ND[row * hidden_size..][..hidden_size]);
        }
        for (states_MD, tokens_M) in states.chunks(rows_per_chunk * hidden_size).zip(tokens.chunks(rows_per_chunk)) {
            let mut logits_MV = model.logits(states_MD)?;
            let first = seen.len();
            let rows = logits_MV.par_chunks_mut(vocab_size).zip(tokens_M).enumerate();
            seen.par_extend(rows.map(|(row, (logits_V, &token))| look(first + row, token, logits_V)));
        }
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::divergence::kl_divergence;

    #[test]
    fn what_is_kept_of_a_position_is_not_as_large_as_the_vocabulary() {
        assert!(Position::of(&mut values(3, 50_000)).tokens.capacity() <= 2 * N_TOP);
    }

    /// Values that look random.
    fn values(seed: u32, n: usize) -> Vec<f32> {
        (0..n as u32).map(|i| ((i + seed).wrapping_mul(2_654_435_761) >> 16) as f32 / 9000.0).collect()
    }

    #[test]
    fn the_most_likely_tokens_are_kept_with_all_others_together() {
        let logits = values(1, 300);
        let position = Position::of(&mut logits.clone());
        assert_eq!(position.tokens.len(), N_TOP);
        let mut sorted = logits.clone();
        sorted.sort_by(|a, b| b.total_cmp(a));
        assert!(position.tokens.iter().zip(&sorted).all(|(&token, &logit)| logits[token as usize] == logit));
        let mass: f64 = position.log_probs.iter().chain([&position.log_rest]).map(|&log| f64::from(log).exp()).sum();
        assert!((mass - 1.0).abs() < 1e-6, "{mass}");
        let few = Position::of(&mut values(2, 5));
        assert_eq!((few.tokens.len(), few.log_rest), (5, f32::NEG_INFINITY), "there are no others");
    }

    #[test]
    fn the_divergence_is_at_most_the_whole_one() {
        for seed in 0..20 {
            let (initial, policy) = (values(seed, 300), values(seed + 1000, 300));
            let coarse = Position::of(&mut initial.clone()).divergence(&mut policy.clone());
            let whole = kl_divergence(&initial, &policy);
            assert!(coarse > 0.0 && coarse <= whole + 1e-5, "{coarse} of {whole}");
            assert_eq!(Position::of(&mut initial.clone()).divergence(&mut initial.clone()), 0.0, "nothing has moved");
            let (initial, policy) = (&initial[..N_TOP], &policy[..N_TOP]);
            let exact = Position::of(&mut initial.to_vec()).divergence(&mut policy.to_vec());
            assert!((exact - kl_divergence(initial, policy)).abs() < 1e-5, "no more tokens than are kept");
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        let position = Position::of(&mut values(1, 300));
        let mut broken = values(1, 300);
        broken[7] = f32::NAN;
        assert!(position.divergence(&mut broken).is_nan());
        assert!(ordered(f32::NAN) < ordered(f32::NEG_INFINITY) && ordered(-1.0) < ordered(-0.5) && ordered(-0.0) < ordered(1e-9));
    }
}
