//! All integration tests in one executable: each would link the whole engine again.

mod family;
mod golden;
mod weights;
