//! When a step's backward passes are made: each behind its forward, or all together once every forward is made.

use super::Gradients;
use crate::model::decoder::{Decoder, Forward, Returning};
use crate::ops::Buffer;
use anyhow::Result;
use std::cell::RefCell;
use std::ops::Range;
use tracing::info_span;

/// Backward passes that wait for each other. What their forwards kept stays in memory until then.
#[derive(Default)]
pub struct Waiting(RefCell<Vec<Returning>>);

impl Waiting {
    /// These gradients, later.
    pub fn of(&self, gradients: Gradients) -> Backward<'_> {
        Backward { gradients, waiting: Some(self) }
    }

    /// Makes all of them, in the order of their forwards within each block. `take` is told what is whole: see [`Decoder::backward_together`].
    pub fn make(self, policy: &Decoder, take: impl FnMut(Range<usize>) -> Result<()>) -> Result<()> {
        info_span!("backward").in_scope(|| policy.backward_together(self.0.into_inner(), take))
    }
}

/// Which gradients an evaluation makes, and when.
#[derive(Clone, Copy)]
pub struct Backward<'a> {
    pub(super) gradients: Gradients,
    waiting: Option<&'a Waiting>,
}

impl From<Gradients> for Backward<'_> {
    /// Each backward behind its forward.
    fn from(gradients: Gradients) -> Self {
        Self { gradients, waiting: None }
    }
}

impl Backward<'_> {
    /// The backward of one forward, now or later.
    pub(super) fn of(&self, policy: &Decoder, forward: Forward, d_hidden_ND: Buffer) -> Result<()> {
        let _span = info_span!("backward").entered();
        match self.waiting {
            None => policy.backward(forward, d_hidden_ND),
            Some(waiting) => {
                waiting.0.borrow_mut().push(policy.begin_backward(forward, d_hidden_ND)?);
                Ok(())
            }
        }
    }

    /// Forgets what waits and all gradients so far, for another try.
    pub(super) fn undo(&self, policy: &Decoder) -> Result<()> {
        if let Some(waiting) = self.waiting {
            waiting.0.borrow_mut().clear();
        }
        policy.zero_gradients()
    }
}
