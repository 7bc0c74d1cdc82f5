//! Weights in and out: memory-mapped safetensors checked before use, and Hugging Face folders written shard by shard.
//!
//! Values are f32 in memory whatever the file holds: reading widens bf16 and f16 exactly, writing rounds to nearest even.

mod read;
mod write;

pub use read::{Checkpoint, INDEX_FILE, SINGLE_FILE, shard_files};
pub use write::{Saveable, SavedFile, TensorToSave, save, save_file};

use std::fmt;

/// The element types that a checkpoint may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SavedDtype {
    F32,
    Bf16,
    F16,
}

impl SavedDtype {
    pub const ALL: [SavedDtype; 3] = [SavedDtype::F32, SavedDtype::Bf16, SavedDtype::F16];

    /// Bytes of one element.
    pub fn n_bytes(self) -> usize {
        match self {
            SavedDtype::F32 => 4,
            SavedDtype::Bf16 | SavedDtype::F16 => 2,
        }
    }

    /// The name in `config.json` (`torch_dtype` in transformers 4, `dtype` in 5).
    pub fn torch_name(self) -> &'static str {
        match self {
            SavedDtype::F32 => "float32",
            SavedDtype::Bf16 => "bfloat16",
            SavedDtype::F16 => "float16",
        }
    }

    fn safetensors(self) -> safetensors::Dtype {
        match self {
            SavedDtype::F32 => safetensors::Dtype::F32,
            SavedDtype::Bf16 => safetensors::Dtype::BF16,
            SavedDtype::F16 => safetensors::Dtype::F16,
        }
    }

    fn from_safetensors(dtype: safetensors::Dtype) -> Option<Self> {
        Self::ALL.into_iter().find(|saved| saved.safetensors() == dtype)
    }
}

impl fmt::Display for SavedDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SavedDtype::F32 => "f32",
            SavedDtype::Bf16 => "bf16",
            SavedDtype::F16 => "f16",
        })
    }
}
