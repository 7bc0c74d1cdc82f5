//! The pool of `ops::buffer` on paper: which memory a sequence of requests takes, without taking it.
//!
//! It follows the pool's own rules (the smallest free piece that fits and is at most so many times too large; an outgrown piece makes room),
//! so that memory which waits in the pool for a pass of another length is counted as the process has it.

use crate::ops::buffer::{LEAST, SLACK};

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

/// Memory on loan: values, not bytes.
#[derive(Debug)]
#[must_use = "what is not given back stays in use"]
pub struct Piece {
    capacity: usize,
    kind: Kind,
}

/// Values held at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    in_use: [usize; N_KINDS],
    /// In the pool, waiting for a request.
    pub idle: usize,
}

impl Held {
    pub fn of(&self, kind: Kind) -> usize {
        self.in_use[kind as usize]
    }

    pub fn total(&self) -> usize {
        self.in_use.iter().sum::<usize>() + self.idle
    }
}

/// What is on loan and what waits, and the most that it came to.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// Capacities of the free pieces, ascending.
    free: Vec<usize>,
    now: Held,
    peak: Held,
}

impl Ledger {
    /// As `Scratch::new`.
    pub fn take(&mut self, kind: Kind, length: usize) -> Piece {
        let capacity = self.take_free(length).unwrap_or(length);
        self.now.in_use[kind as usize] += capacity;
        self.note();
        Piece { capacity, kind }
    }

    /// As dropping it.
    pub fn give_back(&mut self, piece: Piece) {
        self.now.in_use[piece.kind as usize] -= piece.capacity;
        if piece.capacity >= LEAST {
            self.now.idle += piece.capacity;
            self.free.insert(self.free.partition_point(|&free| free < piece.capacity), piece.capacity);
        }
    }

    /// Gives back several, in their order.
    pub fn give_back_all(&mut self, pieces: impl IntoIterator<Item = Piece>) {
        pieces.into_iter().for_each(|piece| self.give_back(piece));
    }

    /// What is taken and given back within one op, from the system's allocator.
    pub fn pass_through(&mut self, length: usize) {
        self.now.in_use[Kind::Scratch as usize] += length;
        self.note();
        self.now.in_use[Kind::Scratch as usize] -= length;
    }

    /// Values held now, waiting ones included.
    pub fn n_held(&self) -> usize {
        self.now.total()
    }

    /// The most that was held at once.
    pub fn peak(&self) -> Held {
        self.peak
    }

    fn note(&mut self) {
        if self.now.total() > self.peak.total() {
            self.peak = self.now;
        }
    }

    fn take_free(&mut self, length: usize) -> Option<usize> {
        if length < LEAST {
            return None;
        }
        let fitting = self.free.partition_point(|&capacity| capacity < length);
        match self.free.get(fitting) {
            Some(&capacity) if capacity <= SLACK * length => {
                self.free.remove(fitting);
                self.now.idle -= capacity;
                Some(capacity)
            }
            _ => {
                if fitting > 0 && self.free[fitting - 1] * SLACK >= length {
                    self.now.idle -= self.free.remove(fitting - 1);
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_counted_while_it_waits_and_no_longer_when_it_is_outgrown() {
        let mut ledger = Ledger::default();
        let (a, b) = (ledger.take(Kind::Activation, 3 * LEAST), ledger.take(Kind::Scratch, LEAST));
        ledger.give_back_all([a, b]);
        assert_eq!((ledger.now.total(), ledger.now.idle), (4 * LEAST, 4 * LEAST));
        let again = ledger.take(Kind::Logits, 2 * LEAST);
        assert_eq!((again.capacity, ledger.now.of(Kind::Logits), ledger.now.idle), (3 * LEAST, 3 * LEAST, LEAST));
        let larger = ledger.take(Kind::Scratch, 2 * LEAST);
        assert_eq!(ledger.now.total(), 5 * LEAST, "the piece of {LEAST} was outgrown by one of twice its size");
        ledger.give_back_all([again, larger]);
        ledger.pass_through(LEAST);
        assert_eq!((ledger.now.total(), ledger.peak().total()), (5 * LEAST, 6 * LEAST));
        assert_eq!(ledger.peak().of(Kind::Scratch), LEAST);
    }

    #[test]
    fn small_requests_leave_nothing_behind() {
        let mut ledger = Ledger::default();
        let small = ledger.take(Kind::Scratch, 7);
        ledger.give_back(small);
        assert_eq!((ledger.now.total(), ledger.peak().total()), (0, 7));
    }
}
