//! The decoder: packed tokens to final-norm hidden states, and back.
