//! All integration tests in one executable: each would link the whole engine again.

mod family;
mod faults;
mod hub;
mod resume;
mod train;
mod weights;
