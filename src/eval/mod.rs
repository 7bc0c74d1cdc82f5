//! `mpo eval`: what training did, measured on benchmarks of attack success, over-refusal and utility.
//!
//! # Two phases with files between
//!
//! ```text
//! benchmark's files      bench    -> Items: a prompt in one language, the same id in every language
//! Items, a checkpoint    answering -> responses.jsonl, a line as soon as a response exists
//! Items, Responses       judging  -> verdicts-JUDGE.jsonl, a line as soon as a verdict exists
//! Verdicts               stats    -> rates with intervals, comparisons
//!                        results  -> the files that lm-evaluation-harness' viewers read
//!                        report   -> the paper's table, an HTML page
//! ```
//!
//! A run's folder holds the responses of one checkpoint; each phase goes on where it stopped, and judging can be repeated with another judge.
//!
//! A benchmark ([`bench`](mod@bench)) and a rubric ([`judge::rubric`]) are one file each. A language is a value in the data, never a code path.

pub mod answering;
pub mod asked;
pub mod bench;
pub mod breakdown;
pub mod claim;
pub mod contamination;
pub mod gap;
pub mod item;
pub mod judge;
pub mod judging;
pub mod lines;
pub mod record;
pub mod report;
pub mod results;
pub mod source;
pub mod stats;
