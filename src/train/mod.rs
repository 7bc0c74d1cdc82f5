//! Training: the loop, what it is made of, and what it leaves behind.
//!
//! In reading order: `prepare` finds everything that can be wrong, `forecast` what the run will need, `start` makes a [`run::Run`], whose `train`
//! is the loop. `step` is one batch forward and backward (the objective and the engine behind it), `clip`, `optimizer` and `schedule` turn its
//! gradient into an update (`update`). `evaluate` and `measure` say where the policy stands, `canary` what it answers to harmless
//! questions, `signs` what looks wrong about it. `metrics` and `log` write
//! the lines, `checkpoint`, `folder` and `adapter` save, `best` says which checkpoint did best, `claim` holds the run's folder, `resume` goes on,
//! `summary` ends the run; `console` and `interrupt` face the person. `phases` says where the time goes, `profile` draws it.

pub mod adapter;
pub mod best;
pub mod canary;
pub mod checkpoint;
pub mod claim;
pub mod clip;
pub mod columns;
pub mod console;
pub mod evaluate;
pub mod folder;
pub mod forecast;
pub mod log;
pub mod measure;
pub mod metrics;
pub mod optimizer;
pub mod phases;
pub mod prepare;
pub mod profile;
pub mod resume;
pub mod run;
pub mod schedule;
pub mod signs;
pub mod start;
pub mod step;
pub mod summary;
pub mod update;
