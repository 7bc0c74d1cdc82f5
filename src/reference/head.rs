//! The reference's output head: the only frozen weights that a run keeps in memory, and only for `kl` retention.

use super::key::tensor_digest;
use crate::model::decoder::Decoder;
use crate::model::weights::{self, SavedDtype, TensorToSave};
use crate::ops::divergence::Frozen;
use crate::ops::{self, Place, log_prob::Head};
use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const WEIGHT: &str = "lm_head.weight";

/// Final-norm states to the reference's logits.
#[derive(Debug, Clone)]
pub struct FrozenHead {
    head: Head,
    /// `[V, D]`, a copy of its own: the policy's head moves.
    weight: Tensor,
}

/// What the run's manifest says of the head beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedHead {
    vocab_size: usize,
    soft_cap: Option<f64>,
    sha256: String,
}

impl FrozenHead {
    pub(super) fn of(model: &Decoder) -> Result<Self> {
        Ok(Self { head: model.head(), weight: model.head_weight().copy()? })
    }

    /// From the reference's final-norm states on, `[M, D]`.
    pub fn frozen<'a>(&'a self, states: &'a [f32]) -> Frozen<'a> {
        Frozen { head: self.head, weight: &self.weight, states }
    }

    fn vocab_size(&self) -> Result<usize> {
        Ok(self.weight.dim(0)?)
    }

    /// Writes the weight into a folder of its own in `run` and says what was written.
    pub(super) fn save(&self, run: &Path) -> Result<SavedHead> {
        let saved = SavedHead { vocab_size: self.vocab_size()?, soft_cap: self.head.soft_cap, sha256: tensor_digest(&self.weight)? };
        let temporary = run.join(format!(".head.{}.tmp", std::process::id()));
        let replace = || -> Result<()> {
            // A run that was killed here may have had this process's number: in a container it often is the same.
            remove_if_there(&temporary)?;
            fs::create_dir_all(&temporary)?;
            let (shape, values) = (self.weight.dims(), ops::read(&self.weight)?);
            weights::save(&temporary, &[TensorToSave { name: WEIGHT, shape, values: &values, dtype: SavedDtype::F32 }], u64::MAX)?;
            remove_if_there(&folder(run))?;
            Ok(fs::rename(&temporary, folder(run))?)
        };
        replace()
            .inspect_err(|_| drop(fs::remove_dir_all(&temporary)))
            .with_context(|| format!("cannot write the reference's head to `{}`", folder(run).display()))?;
        Ok(saved)
    }

    /// At the place of the model that was scored: elsewhere its logits would not be the same to the bit.
    pub(super) fn open(run: &Path, saved: &SavedHead, hidden_size: usize, place: &Place) -> Result<Self> {
        let checkpoint = weights::Checkpoint::open(&folder(run))?;
        let mut values = vec![0.0; saved.vocab_size * hidden_size];
        checkpoint.read_into(WEIGHT, &mut values)?;
        let weight = ops::tensor(values, &[saved.vocab_size, hidden_size])?;
        ensure!(tensor_digest(&weight)? == saved.sha256, "`{}` is damaged: it does not have its checksum", folder(run).display());
        let weight = weight.to_dtype(place.storage)?.to_device(&place.device)?;
        Ok(Self { head: Head { soft_cap: saved.soft_cap, compute: place.compute }, weight })
    }
}

fn folder(run: &Path) -> PathBuf {
    run.join("head")
}

fn remove_if_there(folder: &Path) -> std::io::Result<()> {
    fs::remove_dir_all(folder).or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
}
