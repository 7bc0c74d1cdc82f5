//! Memory on paper: what is on loan from the pool of `ops::buffer`, by what it is for, and the most that it came to.

use crate::ops::buffer::LEAST;

/// What memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Kept from a forward to its backward.
    Activation,
    /// Of the head.
    Logits,
    /// Everything that lives within one op, or from one op to the next.
    Scratch,
}

const N_KINDS: usize = 3;

/// Memory on loan, in values.
#[derive(Debug)]
#[must_use = "what is not given back stays on loan"]
pub struct Piece {
    length: usize,
    kind: Kind,
}

/// Values on loan at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lent([usize; N_KINDS]);

impl Lent {
    pub fn of(&self, kind: Kind) -> usize {
        self.0[kind as usize]
    }

    pub fn total(&self) -> usize {
        self.0.iter().sum()
    }
}

/// What is on loan, and the most that ever was.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ledger {
    now: Lent,
    peak: Lent,
}

impl Ledger {
    /// As `Scratch::new`. What is too small for the pool is too little to count.
    pub fn take(&mut self, kind: Kind, length: usize) -> Piece {
        let length = if length < LEAST { 0 } else { length };
        self.now.0[kind as usize] += length;
        if self.now.total() > self.peak.total() {
            self.peak = self.now;
        }
        Piece { length, kind }
    }

    /// As dropping it.
    pub fn give_back(&mut self, piece: Piece) {
        self.now.0[piece.kind as usize] -= piece.length;
    }

    /// Gives back several.
    pub fn give_back_all(&mut self, pieces: impl IntoIterator<Item = Piece>) {
        pieces.into_iter().for_each(|piece| self.give_back(piece));
    }

    /// What is on loan when the most is.
    pub fn peak(&self) -> Lent {
        self.peak
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_one_moment() {
        let mut ledger = Ledger::default();
        let (a, b) = (ledger.take(Kind::Activation, 3 * LEAST), ledger.take(Kind::Scratch, LEAST));
        ledger.give_back(b);
        let c = ledger.take(Kind::Logits, 2 * LEAST);
        let small = ledger.take(Kind::Scratch, 7);
        let peak = ledger.peak();
        assert_eq!([Kind::Activation, Kind::Logits, Kind::Scratch].map(|kind| peak.of(kind)), [3 * LEAST, 2 * LEAST, 0]);
        ledger.give_back_all([a, c, small]);
        assert_eq!((ledger.now.total(), ledger.peak()), (0, peak));
    }
}
