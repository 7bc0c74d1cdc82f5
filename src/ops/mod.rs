//! Building blocks: one file per op, forward and backward together.
