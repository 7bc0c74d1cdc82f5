//! All integration tests in one executable: each would otherwise link candle again.

mod data;
mod template;
