//! The loop, the step, the optimizer, the schedule, checkpoints and the log.

pub mod clip;
pub mod optimizer;
pub mod schedule;
