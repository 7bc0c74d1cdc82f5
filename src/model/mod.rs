//! The decoder, its blocks and its weights; one small file per family.

pub mod decoder;
pub mod description;
pub mod family;
pub mod parameter;
pub mod weights;
