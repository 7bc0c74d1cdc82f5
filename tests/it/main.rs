//! The one integration-test executable: a module per area.

mod cli;
mod config;
