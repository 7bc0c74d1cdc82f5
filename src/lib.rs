//! `mpo`: Multilingual reward gaP Optimization (arXiv 2505.16869) in one binary.

#![allow(non_snake_case)] // tensors carry their shape as a suffix: N packed tokens, D hidden size, V vocabulary

pub mod cli;
pub mod command;
pub mod config;
pub mod data;
pub mod device;
pub mod digest;
pub mod files;
pub mod gaps;
pub mod hub;
pub mod model;
pub mod objective;
pub mod ops;
pub mod progress;
pub mod reference;
pub mod scoring;
pub mod train;
