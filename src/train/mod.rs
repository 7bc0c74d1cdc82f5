//! The loop, the step, the optimizer, the schedule, checkpoints and the log.

pub mod kl;
pub mod step;
