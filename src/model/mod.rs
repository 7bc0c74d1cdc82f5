//! The decoder, its blocks and its weights; one small file per family. Knows nothing of training.

mod block;
pub mod cache;
pub mod decoder;
pub mod description;
pub mod family;
pub(crate) mod gradients;
mod layers;
pub mod low_rank;
pub mod parameter;
pub mod weights;
