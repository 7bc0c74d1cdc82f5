//! Rows: nothing that a row says is dropped, or read as something else, without a word.
