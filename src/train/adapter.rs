//! A run that trains an adapter: its policy, and what its checkpoints hold in the place of a model folder.
//!
//! A checkpoint has the adapter in PEFT's format, with the base's tokenizer and template beside it, and the optimizer's state. The base itself is where it
//! was: a run that goes on needs it again, and finds out by its digest whether it is the same.

use super::checkpoint::SourceFiles;
use crate::adapter::{Adapter, Base, peft};
use crate::config::{OutputDtype, RunConfig};
use crate::device;
use crate::model::decoder::{Decoder, Purpose};
use crate::model::family;
use crate::ops::Place;
use crate::reference::base_digest;
use anyhow::{Context, Result};
use std::path::Path;

/// The model in `folder`, with an adapter where there is one.
pub fn load(folder: &Path, adapter: Option<&Adapter>, place: impl Into<Place>, purpose: Purpose) -> Result<Decoder> {
    match adapter {
        Some(adapter) => adapter.load(folder, place, purpose),
        None => Decoder::load(folder, place, purpose),
    }
}

/// The model in `folder` as the policy of a run of `config` was before its first step, to be its reference.
pub fn load_at_the_start(config: &RunConfig, folder: &Path) -> Result<Decoder> {
    let adapter = Adapter::of_run(&config.adapter, config.train.seed, None, &family::describe_folder(folder)?)?;
    load(folder, adapter.as_ref(), device::place(config)?, Purpose::Inference).context("loading the reference")
}

/// What the folders of a run hold beside its weights: those of the model in `folder`, or of an adapter for it.
///
/// # Errors
/// The adapter was made for another base.
pub fn source_files(folder: &Path, adapter: Option<(&Adapter, Base)>, policy: &Decoder, dtype: OutputDtype) -> Result<SourceFiles> {
    let Some((adapter, base)) = adapter else { return SourceFiles::read(folder, dtype) };
    let digest = base_digest(policy)?;
    adapter.check_base(&base.name, base.revision.as_deref(), || Ok(digest.clone()))?;
    let base = Base { weights_sha256: Some(digest), ..base };
    SourceFiles::of_adapter(folder, peft::files(adapter, &base), dtype)
}
