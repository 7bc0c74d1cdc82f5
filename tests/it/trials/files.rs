//! Checkpoints, adapters and run folders that other programs wrote, or that were damaged.
