//! What trials with inputs from public reports broke, a file for each kind, and a test for each thing that must hold since.

mod command_line;
mod data;
mod files;
mod judging;
mod secrets;
mod text;
mod thoughts;
