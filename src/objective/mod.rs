//! Pure functions of per-sequence scores.
