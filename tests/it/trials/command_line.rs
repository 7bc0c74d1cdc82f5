//! The command line, as a new user types it.
