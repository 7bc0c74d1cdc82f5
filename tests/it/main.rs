//! All integration tests in one executable: each would link the whole engine again.

mod architecture;
mod bf16;
mod candle_transformers;
mod cli;
mod config;
mod data;
mod family;
mod faults;
mod gaps;
mod golden;
mod hub;
mod lora;
mod lora_runs;
mod many_rows;
mod objective;
mod peft;
mod plan;
mod properties;
mod reference;
mod resume;
mod slow;
mod support;
mod template;
mod train;
mod weights;
