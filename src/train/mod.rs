//! The loop, the step, the optimizer, the schedule, checkpoints and the log.

pub mod checkpoint;
pub mod clip;
pub mod folder;
pub mod kl;
pub mod log;
pub mod measure;
pub mod optimizer;
pub mod schedule;
pub mod signs;
pub mod step;
