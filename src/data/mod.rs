//! Parallel preference pairs: reading, checking, rendering, encoding, packing and loading them in a seeded, resumable order.

pub mod batch;
pub mod encode;
pub mod loader;
pub mod pair;
