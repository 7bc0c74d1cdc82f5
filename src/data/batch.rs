//! Packing: sequences stand one behind the other in one row of N tokens, without padding.
//!
//! A batch is a forest of segments. A segment's tokens see every token of its ancestors and, causally, its own; so a prompt that the
//! chosen and the rejected response share is computed once: two children of one parent. The released code's padding rows
//! (`mean_padded`) are a child that sees its ancestors but not itself.

use crate::config::Pooling;
use crate::data::encode::EncodedPreference;
use std::ops::Range;

/// A run of tokens in the packed row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Rows of the packed batch.
    pub rows: Range<usize>,
    /// Index of the segment that comes before this one in the sequence; always smaller than this segment's own index.
    pub parent: Option<usize>,
    /// Whether the tokens also see themselves and those before them in the segment. False for padding.
    pub sees_itself: bool,
}

/// N packed tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PackedBatch {
    /// Token ids, N of them.
    pub tokens: Vec<u32>,
    /// Position of each token in its own sequence, counted from 0.
    pub positions: Vec<u32>,
    /// In packing order; their `rows` tile `0..N`. A parent stands before its children; a tree's segments are contiguous.
    pub segments: Vec<Segment>,
}

/// Where one sequence (prompt, response, and padding if any) lies in a packed batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceSpan {
    pub prompt: Range<usize>,
    pub response: Range<usize>,
    /// Empty but for `mean_padded`.
    pub padding: Range<usize>,
}

impl SequenceSpan {
    /// Whether there is no such sequence, since the data has no such response: then all of its spans are empty.
    pub fn is_absent(&self) -> bool {
        self.response.is_empty()
    }

    /// The packed rows whose hidden states predict the response tokens, in order: the last prompt row, then all response rows but the last.
    pub fn predicting_rows(&self) -> impl Iterator<Item = usize> + '_ {
        self.prompt.clone().next_back().into_iter().chain(self.response.clone()).take(self.response.len())
    }

    /// The packed rows whose hidden states retention averages, in order. `n_end_tokens` of the response's last tokens end the turn.
    ///
    /// A response without content has its end-of-turn right behind the prompt, so its "last content" token is the prompt's last.
    pub fn pooled_rows(&self, pooling: Pooling, n_end_tokens: usize) -> Vec<usize> {
        let sequence = || self.prompt.clone().chain(self.response.clone());
        match pooling {
            Pooling::Last => sequence().next_back().into_iter().collect(),
            Pooling::LastContent => sequence().rev().nth(n_end_tokens.min(self.response.len())).into_iter().collect(),
            Pooling::LastPrompt => self.prompt.clone().next_back().into_iter().collect(),
            Pooling::Mean => sequence().collect(),
            Pooling::MeanPadded => sequence().chain(self.padding.clone()).collect(),
        }
    }
}

/// Whether the chosen and rejected response share one pass over their prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptSharing {
    Shared,
    Separate,
}

/// How a preference pair is laid out in a packed batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    pub sharing: PromptSharing,
    /// Fill both sequences up with this token, for `mean_padded`.
    pub pad_token: Option<u32>,
}

/// Where the two sequences of a preference pair lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairSpans {
    pub chosen: SequenceSpan,
    pub rejected: SequenceSpan,
}

impl PairSpans {
    /// Chosen, then rejected: the order of everything that is computed per sequence.
    pub fn both(&self) -> [&SequenceSpan; 2] {
        [&self.chosen, &self.rejected]
    }
}

/// Positions that both sequences of a pair are filled up to for `mean_padded`: the longest, rounded up to a multiple of 8 as the released
/// code's collator does.
pub fn padded_length(longest: usize) -> usize {
    longest.next_multiple_of(8)
}

impl PackedBatch {
    /// Number of packed tokens (N).
    pub fn n_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Appends a segment behind `parent` (a segment index) and returns its index.
    pub fn push_segment(&mut self, tokens: &[u32], parent: Option<usize>, sees_itself: bool) -> usize {
        let first_position = parent.map_or(0, |p| self.positions[self.segments[p].rows.end - 1] + 1);
        let start = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.positions.extend(first_position..first_position + tokens.len() as u32);
        self.segments.push(Segment { rows: start..self.tokens.len(), parent, sees_itself });
        self.segments.len() - 1
    }

    /// Appends one prompt and its responses; with `Shared` the prompt is one segment with a child per response. A response without tokens
    /// is [absent](SequenceSpan::is_absent): it takes no row, nor a prompt of its own.
    pub fn push_responses(&mut self, prompt: &[u32], responses: &[&[u32]], sharing: PromptSharing) -> Vec<SequenceSpan> {
        self.push_padded_responses(prompt, responses, sharing, None)
    }

    /// Appends both answers of a preference pair behind its prompt. With a `pad_token` both sequences are filled up to
    /// [`padded_length`] of the longer one.
    pub fn push_pair(&mut self, pair: &EncodedPreference, layout: &Layout) -> PairSpans {
        let responses = [&pair.chosen.tokens, &pair.rejected.tokens].map(Vec::as_slice);
        let padding = layout.pad_token.map(|token| (token, padded_length(pair.longest_sequence())));
        let mut spans = self.push_padded_responses(&pair.prompt, &responses, layout.sharing, padding);
        let rejected = spans.remove(1);
        PairSpans { chosen: spans.remove(0), rejected }
    }

    fn push_padded_responses(
        &mut self,
        prompt: &[u32],
        responses: &[&[u32]],
        sharing: PromptSharing,
        padding: Option<(u32, usize)>,
    ) -> Vec<SequenceSpan> {
        let mut shared = None;
        responses
            .iter()
            .map(|response| {
                if response.is_empty() {
                    let nowhere = self.tokens.len()..self.tokens.len();
                    return SequenceSpan { prompt: nowhere.clone(), response: nowhere.clone(), padding: nowhere };
                }
                let prompt_segment = match (sharing, shared) {
                    (PromptSharing::Shared, Some(segment)) => segment,
                    _ => *shared.insert(self.push_segment(prompt, None, true)),
                };
                let response_segment = self.push_segment(response, Some(prompt_segment), true);
                if let Some((token, length)) = padding {
                    let n_padding = length.saturating_sub(prompt.len() + response.len());
                    if n_padding > 0 {
                        self.push_segment(&vec![token; n_padding], Some(response_segment), false);
                    }
                }
                let response = self.segments[response_segment].rows.clone();
                let prompt = self.segments[prompt_segment].rows.clone();
                SequenceSpan { prompt, padding: response.end..self.tokens.len(), response }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::encode::Response;

    fn pair() -> EncodedPreference {
        let response = |tokens: &[u32]| Response { tokens: tokens.to_vec(), n_end_tokens: 1 };
        EncodedPreference { lang: "en".into(), prompt: vec![1, 2, 3], chosen: response(&[4, 5]), rejected: response(&[6, 7, 8, 9, 10, 11]) }
    }

    #[test]
    fn a_shared_prompt_stands_once() {
        let mut batch = PackedBatch::default();
        let spans = batch.push_pair(&pair(), &Layout { sharing: PromptSharing::Shared, pad_token: None });
        assert_eq!(batch.tokens, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        assert_eq!(batch.positions, [0, 1, 2, 3, 4, 3, 4, 5, 6, 7, 8]);
        assert_eq!(spans.chosen, SequenceSpan { prompt: 0..3, response: 3..5, padding: 5..5 });
        assert_eq!(spans.rejected, SequenceSpan { prompt: 0..3, response: 5..11, padding: 11..11 });
        assert_eq!(spans.rejected.predicting_rows().collect::<Vec<_>>(), [2, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn each_pooling_takes_its_rows() {
        // Another response stands between prompt and response.
        let span = SequenceSpan { prompt: 0..4, response: 10..13, padding: 20..22 };
        assert_eq!(span.pooled_rows(Pooling::Last, 1), [12]);
        assert_eq!(span.pooled_rows(Pooling::LastContent, 0), [12]);
        assert_eq!(span.pooled_rows(Pooling::LastContent, 2), [10]);
        assert_eq!(span.pooled_rows(Pooling::LastContent, 3), [3], "no content: the token before the end-of-turn is the prompt's last");
        assert_eq!(span.pooled_rows(Pooling::LastPrompt, 1), [3]);
        assert_eq!(span.pooled_rows(Pooling::Mean, 1), [0, 1, 2, 3, 10, 11, 12]);
        assert_eq!(span.pooled_rows(Pooling::MeanPadded, 1), [0, 1, 2, 3, 10, 11, 12, 20, 21]);
    }

    #[test]
    fn an_absent_response_takes_no_rows() {
        for sharing in [PromptSharing::Shared, PromptSharing::Separate] {
            for pad_token in [None, Some(0)] {
                let mut batch = PackedBatch::default();
                let only_rejected = EncodedPreference { chosen: Response::default(), ..pair() };
                let spans = batch.push_pair(&only_rejected, &Layout { sharing, pad_token });
                assert_eq!(batch.tokens[..9], [1, 2, 3, 6, 7, 8, 9, 10, 11]);
                assert_eq!(batch.n_tokens(), if pad_token.is_some() { 16 } else { 9 });
                assert!(spans.chosen.is_absent() && !spans.rejected.is_absent());
                assert_eq!(spans.chosen.predicting_rows().count(), 0);
                assert_eq!(spans.rejected.predicting_rows().collect::<Vec<_>>(), [2, 3, 4, 5, 6, 7]);
                for pooling in [Pooling::Last, Pooling::LastContent, Pooling::LastPrompt, Pooling::Mean, Pooling::MeanPadded] {
                    assert_eq!(spans.chosen.pooled_rows(pooling, 0), [0; 0]);
                }
            }
        }
    }

    #[test]
    fn separate_prompts_stand_twice() {
        let mut batch = PackedBatch::default();
        let spans = batch.push_pair(&pair(), &Layout { sharing: PromptSharing::Separate, pad_token: None });
        assert_eq!(batch.tokens, [1, 2, 3, 4, 5, 1, 2, 3, 6, 7, 8, 9, 10, 11]);
        assert_eq!(spans.rejected, SequenceSpan { prompt: 5..8, response: 8..14, padding: 14..14 });
    }

    #[test]
    fn padding_continues_behind_its_own_response() {
        let mut batch = PackedBatch::default();
        let spans = batch.push_pair(&pair(), &Layout { sharing: PromptSharing::Shared, pad_token: Some(0) });
        // The longer sequence has 9 tokens, so both are filled up to 16.
        assert_eq!(spans.chosen.padding.len(), 16 - 5);
        assert_eq!(spans.rejected.padding.len(), 16 - 9);
        for span in [&spans.chosen, &spans.rejected] {
            let segment = batch.segments.iter().find(|segment| segment.rows == span.padding).unwrap();
            assert!(!segment.sees_itself);
            assert_eq!(batch.segments[segment.parent.unwrap()].rows, span.response);
            assert_eq!(batch.positions[span.padding.end - 1], 15);
            assert!(batch.tokens[span.padding.clone()].iter().all(|&token| token == 0));
        }
        let tiled: Vec<usize> = batch.segments.iter().flat_map(|segment| segment.rows.clone()).collect();
        assert_eq!(tiled, (0..batch.n_tokens()).collect::<Vec<_>>());
    }
}
