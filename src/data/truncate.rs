//! What happens to a preference pair whose sequences (prompt and one response) are longer than `max_tokens`.
//!
//! `truncate`: the prompt is never cut; a response is cut to the room that the prompt leaves, and its end-of-turn tokens are kept; without
//! room for at least one token of the answer the row is dropped. `released`: what the code released with the paper does, reproduced as
//! it is: the prompt may be cut, and the end of a cut response is lost. `drop` and `error` change nothing.

use super::encode::{EncodedPreference, Response};
use crate::config::OnOverlong;

/// What became of a preference pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    Whole,
    /// Tokens lost, prompt and both responses together.
    Cut {
        n_lost: usize,
    },
    /// It does not fit and may not be cut: tokens of its longest sequence.
    Overlong {
        n_tokens: usize,
    },
}

/// Cuts `preference` to sequences of at most `max_tokens`, by the rules of `policy`. An overlong one is left as it is.
pub fn fit(preference: &mut EncodedPreference, max_tokens: usize, policy: OnOverlong) -> Fit {
    let n_tokens = preference.longest_sequence();
    if n_tokens <= max_tokens {
        return Fit::Whole;
    }
    let before = preference.n_packed();
    let fits = match policy {
        OnOverlong::Truncate => cut_responses(preference, max_tokens),
        OnOverlong::Released => cut_as_released(preference, max_tokens),
        OnOverlong::Drop | OnOverlong::Error => false,
    };
    if fits { Fit::Cut { n_lost: before - preference.n_packed() } } else { Fit::Overlong { n_tokens } }
}

fn cut_responses(preference: &mut EncodedPreference, max_tokens: usize) -> bool {
    let room = max_tokens.saturating_sub(preference.prompt.len());
    let keeps_an_answer = |response: &Response| response.tokens.len() <= room || response.n_end_tokens < room;
    if !keeps_an_answer(&preference.chosen) || !keeps_an_answer(&preference.rejected) {
        return false;
    }
    for response in [&mut preference.chosen, &mut preference.rejected] {
        let n_tokens = response.tokens.len();
        if n_tokens > room {
            let end = n_tokens - response.n_end_tokens;
            response.tokens.drain(room - response.n_end_tokens..end);
        }
    }
    true
}

/// The released trainer shares `max_tokens` between the prompt and the longer response; both responses get the same limit.
fn cut_as_released(preference: &mut EncodedPreference, max_tokens: usize) -> bool {
    let n_prompt = preference.prompt.len();
    let n_response = preference.chosen.tokens.len().max(preference.rejected.tokens.len());
    let limit = if 2 * n_response < max_tokens {
        max_tokens
    } else if 2 * n_prompt < max_tokens {
        max_tokens - n_prompt
    } else {
        // Python's float division, truncated.
        (max_tokens as f64 * (n_response as f64 / (n_prompt + n_response) as f64)) as usize
    };
    let prompt_limit = max_tokens - limit.min(n_response);
    if limit == 0 || prompt_limit == 0 {
        return false;
    }
    preference.prompt.truncate(prompt_limit);
    for response in [&mut preference.chosen, &mut preference.rejected] {
        let n_content = response.tokens.len() - response.n_end_tokens;
        response.tokens.truncate(limit);
        response.n_end_tokens = response.tokens.len().saturating_sub(n_content);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prompt tokens count from 0, the chosen response's from 100, the rejected one's from 200; each response has two end tokens.
    fn preference(n_prompt: u32, n_chosen: u32, n_rejected: u32) -> EncodedPreference {
        let response = |from: u32, n: u32| Response { tokens: (from..from + n).collect(), n_end_tokens: 2 };
        EncodedPreference {
            lang: "en".into(),
            prompt: (0..n_prompt).collect(),
            chosen: response(100, n_chosen),
            rejected: response(200, n_rejected),
        }
    }

    #[test]
    fn what_fits_is_left_alone_under_every_policy() {
        for policy in [OnOverlong::Truncate, OnOverlong::Released, OnOverlong::Drop, OnOverlong::Error] {
            let mut p = preference(10, 6, 4);
            assert_eq!(fit(&mut p, 16, policy), Fit::Whole);
            assert_eq!(p, preference(10, 6, 4));
        }
    }

    #[test]
    fn truncate_cuts_the_longer_response_and_keeps_its_end() {
        let mut p = preference(10, 9, 4);
        assert_eq!(fit(&mut p, 15, OnOverlong::Truncate), Fit::Cut { n_lost: 4 });
        assert_eq!(p.prompt.len(), 10);
        assert_eq!(p.chosen.tokens, [100, 101, 102, 107, 108]);
        assert_eq!(p.rejected, preference(10, 9, 4).rejected);
    }

    #[test]
    fn truncate_cuts_both_responses_where_both_are_too_long() {
        let mut p = preference(10, 9, 7);
        assert_eq!(fit(&mut p, 13, OnOverlong::Truncate), Fit::Cut { n_lost: 10 });
        assert_eq!(p.chosen.tokens, [100, 107, 108]);
        assert_eq!(p.rejected.tokens, [200, 205, 206]);
    }

    #[test]
    fn a_prompt_that_leaves_no_room_for_an_answer_is_overlong() {
        for max_tokens in [5, 10, 12] {
            let mut p = preference(10, 9, 4);
            assert_eq!(fit(&mut p, max_tokens, OnOverlong::Truncate), Fit::Overlong { n_tokens: 19 });
            assert_eq!(p, preference(10, 9, 4));
        }
    }

    #[test]
    fn drop_and_error_never_cut() {
        for policy in [OnOverlong::Drop, OnOverlong::Error] {
            assert_eq!(fit(&mut preference(10, 6, 7), 16, policy), Fit::Overlong { n_tokens: 17 });
        }
    }

    /// Limits from the released `infer_seqlen` for (prompt, longer response, budget): one case for each of its branches.
    #[test]
    fn released_shares_the_budget_as_the_released_code_does() {
        for (n_prompt, n_chosen, budget, kept_prompt, kept_response) in
            [(90, 30, 100, 70, 30), (30, 90, 100, 30, 70), (80, 80, 100, 50, 50), (60, 70, 101, 47, 54), (51, 1000, 101, 5, 96)]
        {
            let mut p = preference(n_prompt, n_chosen, 20);
            assert!(matches!(fit(&mut p, budget, OnOverlong::Released), Fit::Cut { .. }));
            assert_eq!((p.prompt.len(), p.chosen.tokens.len()), (kept_prompt, kept_response), "{n_prompt} {n_chosen} {budget}");
            assert_eq!(p.chosen.tokens[0], 100);
            assert_eq!(p.chosen.n_end_tokens, if n_chosen as usize == kept_response { 2 } else { 0 });
            assert_eq!(p.rejected, preference(n_prompt, n_chosen, 20).rejected);
        }
    }

    #[test]
    fn released_may_cut_into_the_end_tokens() {
        let mut p = preference(30, 71, 20);
        fit(&mut p, 100, OnOverlong::Released);
        assert_eq!((p.chosen.tokens.len(), p.chosen.n_end_tokens), (70, 1));
    }
}
