//! All integration tests in one executable: each would link the whole engine again.

#[global_allocator]
static ALLOCATOR: mpo::allocator::LargePages = mpo::allocator::LargePages;

mod architecture;
mod bench;
mod bf16;
mod canary;
mod candle_transformers;
mod cli;
mod config;
mod data;
mod demonstration;
mod eval;
mod eval_faults;
mod eval_judges;
mod eval_runs;
mod family;
mod faults;
#[cfg(unix)]
mod fuzz;
mod gaps;
mod generate;
mod generate_cli;
mod golden;
mod gpu;
mod hub;
mod in_backward;
mod judges;
mod lora;
mod lora_runs;
mod many_rows;
mod objective;
mod objectives;
mod peft;
mod plan;
mod preference;
mod properties;
mod reference;
mod report;
mod results;
mod resume;
mod saved;
mod slow;
mod statistics;
mod support;
mod template;
mod train;
mod trials;
mod weights;
