//! Which keys a run of queries sees, in a packed batch that is a forest of segments.

use super::KEYS;
use crate::data::batch::Segment;
use std::ops::Range;

/// Consecutive queries of one segment, and the runs of rows that hold the keys they see.
pub(super) struct Block {
    pub rows: Range<usize>,
    /// Packed rows of the keys; together they lie at consecutive positions.
    pub keys: Vec<Range<usize>>,
    pub n_keys: usize,
    /// Position of the first key.
    pub first_key: usize,
    /// Index among the keys of the first query's own position (it need not exist: padding does not see itself).
    first_query: usize,
    sees_itself: bool,
    window: usize,
}

impl Block {
    /// Keys that query `i` of the block sees.
    pub fn visible(&self, i: usize) -> Range<usize> {
        let end = if self.sees_itself { self.first_query + i + 1 } else { self.n_keys };
        let start = (self.first_query + i + 1).saturating_sub(self.window).min(end);
        start..end
    }

    /// Runs of at most `KEYS` keys: packed rows, and the index among the keys of the first.
    pub fn tiles(&self) -> impl Iterator<Item = (Range<usize>, usize)> + '_ {
        let mut first = 0;
        let tiles = self.keys.iter().flat_map(|run| run.clone().step_by(KEYS).map(|start| start..(start + KEYS).min(run.end)));
        tiles.map(move |tile| {
            first += tile.len();
            (tile.clone(), first - tile.len())
        })
    }
}

/// Ancestors of a segment, the root first.
pub(super) fn ancestors(segments: &[Segment], index: usize) -> Vec<usize> {
    let mut chain: Vec<usize> = std::iter::successors(segments[index].parent, |&i| segments[i].parent).collect();
    chain.reverse();
    chain
}

/// Position of a segment's first token.
pub(super) fn first_position(segments: &[Segment], index: usize) -> usize {
    ancestors(segments, index).iter().map(|&i| segments[i].rows.len()).sum()
}

/// The blocks of a segment, of at most `block_rows` rows, in order.
pub(super) fn blocks(segments: &[Segment], index: usize, block_rows: usize, window: Option<usize>) -> Vec<Block> {
    let segment = &segments[index];
    let chain: Vec<Range<usize>> = ancestors(segments, index).iter().map(|&i| segments[i].rows.clone()).collect();
    let position: usize = chain.iter().map(ExactSizeIterator::len).sum();
    let window = window.unwrap_or(usize::MAX);
    segment
        .rows
        .clone()
        .step_by(block_rows)
        .map(|start| {
            let rows = start..(start + block_rows).min(segment.rows.end);
            let query_position = position + start - segment.rows.start;
            let mut keys = chain.clone();
            if segment.sees_itself {
                keys.push(segment.rows.start..rows.end);
            }
            let first_key = (query_position + 1).saturating_sub(window);
            drop_first(&mut keys, first_key);
            let n_keys = keys.iter().map(ExactSizeIterator::len).sum();
            Block { rows, keys, n_keys, first_key, first_query: query_position - first_key, sees_itself: segment.sees_itself, window }
        })
        .collect()
}

/// Takes the first `n` rows off a list of runs.
fn drop_first(runs: &mut Vec<Range<usize>>, mut n: usize) {
    runs.retain_mut(|run| {
        let taken = n.min(run.len());
        n -= taken;
        run.start += taken;
        run.start < run.end
    });
}
