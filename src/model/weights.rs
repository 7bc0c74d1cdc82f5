//! Weights in and out: memory-mapped safetensors, names and shapes checked; Hugging Face folders written.
