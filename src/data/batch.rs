//! Packing: sequences stand one behind the other in one row of N tokens, without padding.
//!
//! A batch is a forest of segments. A segment's tokens see every token of its ancestors and, causally, its own; so a prompt that the
//! chosen and the rejected response share is computed once: two children of one parent. The released code's padding rows
//! (`mean_padded`) are a child that sees its ancestors but not itself.

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
    /// The packed rows whose hidden states predict the response tokens, in order: the last prompt row, then all response rows but the last.
    pub fn predicting_rows(&self) -> impl Iterator<Item = usize> + '_ {
        std::iter::once(self.prompt.end - 1).chain(self.response.start..self.response.end - 1)
    }
}

/// Whether the chosen and rejected response share one pass over their prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptSharing {
    Shared,
    Separate,
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

    /// Appends one prompt and its responses; with `Shared` the prompt is one segment with a child per response.
    pub fn push_responses(&mut self, prompt: &[u32], responses: &[&[u32]], sharing: PromptSharing) -> Vec<SequenceSpan> {
        let mut shared = None;
        responses
            .iter()
            .map(|response| {
                let prompt_segment = match (sharing, shared) {
                    (PromptSharing::Shared, Some(segment)) => segment,
                    _ => *shared.insert(self.push_segment(prompt, None, true)),
                };
                let response_segment = self.push_segment(response, Some(prompt_segment), true);
                let response = self.segments[response_segment].rows.clone();
                SequenceSpan { prompt: self.segments[prompt_segment].rows.clone(), padding: response.end..response.end, response }
            })
            .collect()
    }
}
