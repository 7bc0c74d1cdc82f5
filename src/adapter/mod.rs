//! Low-rank adapters (LoRA, arXiv 2106.09685) from their configuration or a PEFT folder to a decoder that has them, and back.
//!
//! An [`Adapter`] says which projections of a base model have a low-rank term, how it counts, and where its first values come from: drawn from the
//! run's seed as PEFT draws them ([`init`]), or read from a folder in PEFT's format ([`peft`]). The engine knows only the terms ([`crate::model::low_rank`]);
//! [`merge`] adds them to the weights and is done with them.

pub mod init;
pub mod merge;
pub mod peft;

use crate::config::{AdapterConfig, ConfigError, LayerRange, is_hub_id};
use crate::hub::ModelFiles;
use crate::model::decoder::{Decoder, Purpose};
use crate::model::description::DecoderDescription;
use crate::model::family::{describe_folder, expected_tensors};
use crate::model::low_rank::Adaptation;
use crate::ops::Place;
use crate::reference::base_digest;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Low-rank terms for a base model.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    pub rank: usize,
    pub alpha: f64,
    /// The terms count `alpha / sqrt(rank)`, not `alpha / rank`.
    pub rslora: bool,
    /// In training only.
    pub dropout: f64,
    /// Of the first values and of the dropout masks.
    pub seed: u64,
    /// `model.layers.0.self_attn.q_proj`, …
    pub projections: BTreeSet<String>,
    /// What it was made for, as far as its folder says; nothing for a new one.
    pub base: Option<Base>,
    /// Holds its values; `None` for a new one.
    folder: Option<PathBuf>,
}

/// The model that an adapter belongs to.
#[derive(Debug, Clone, PartialEq)]
pub struct Base {
    /// `org/name`, `builtin:tiny`, or a folder.
    pub name: String,
    /// Its commit on the hub.
    pub revision: Option<String>,
    /// Of its weights as they are in memory ([`crate::model`] widened to f32); PEFT's own folders have none.
    pub weights_sha256: Option<String>,
}

impl Adapter {
    /// A new adapter as `[adapter]` describes it.
    ///
    /// # Errors
    /// Layers that the model does not have.
    pub fn new(config: &AdapterConfig, seed: u64, description: &DecoderDescription) -> Result<Self> {
        let n_layers = description.layers.len();
        if let LayerRange::FromTo(_, last) = config.layers
            && last >= n_layers
        {
            let message = format!("`adapter.layers` ends at {last}, and the model's layers at {}", n_layers - 1);
            return Err(ConfigError::with_model(message).into());
        }
        let modules = config.targets.modules();
        let layers = (0..n_layers).filter(|&layer| config.layers.contains(layer));
        let projections = layers.flat_map(|layer| modules.iter().map(move |module| format!("model.layers.{layer}.{}", module.path())));
        Ok(Self {
            rank: config.rank,
            alpha: config.alpha.context("`adapter.alpha` has no value")?,
            rslora: config.rslora,
            dropout: config.dropout,
            seed,
            projections: projections.collect(),
            base: None,
            folder: None,
        })
    }

    /// What a run begins with: a new adapter, or the one in `adapter.path`; in `checkpoint`, where the run goes on from there. `None` for full fine-tuning.
    pub fn of_run(config: &AdapterConfig, seed: u64, checkpoint: Option<&Path>, description: &DecoderDescription) -> Result<Option<Self>> {
        if !config.is_lora() {
            return Ok(None);
        }
        let folder = checkpoint.or(config.path.as_deref().map(Path::new));
        let adapter = match folder {
            Some(folder) => Self { dropout: config.dropout, seed, ..peft::open(folder, description)? },
            None => Self::new(config, seed, description)?,
        };
        Ok(Some(adapter))
    }

    /// What each term is multiplied by.
    pub fn scale(&self) -> f64 {
        self.alpha / if self.rslora { (self.rank as f64).sqrt() } else { self.rank as f64 }
    }

    /// Values in all A and B.
    pub fn n_parameters(&self, description: &DecoderDescription) -> usize {
        let of_projection = |(name, [n_out, n_in]): (String, [usize; 2])| if self.projections.contains(&name) { n_out + n_in } else { 0 };
        self.rank * projections_of(description).into_iter().map(of_projection).sum::<usize>()
    }

    pub fn adaptation(&self) -> Adaptation {
        let Self { rank, dropout, seed, .. } = *self;
        Adaptation { rank, scale: self.scale(), dropout, seed, projections: self.projections.clone() }
    }

    /// The base model in the folder `base` with this adapter beside it, at its first values.
    pub fn load(&self, base: &Path, place: impl Into<Place>, purpose: Purpose) -> Result<Decoder> {
        let model = Decoder::load_adapted(base, &self.adaptation(), place, purpose)?;
        match &self.folder {
            Some(folder) => peft::read_values(folder, model.low_rank_parameters())?,
            None => init::fill(model.low_rank_parameters(), self.seed)?,
        }
        Ok(model)
    }

    /// Refuses another base than the adapter was made for. Weights decide where the folder has their digest; else two different names on the hub,
    /// or two commits of one.
    ///
    /// `digest` is asked for only where it is needed: it takes seconds for a large model.
    pub fn check_base(&self, name: &str, revision: Option<&str>, digest: impl FnOnce() -> Result<String>) -> Result<()> {
        let Some(base) = &self.base else { return Ok(()) };
        let folder = self.folder.as_deref().unwrap_or(Path::new("")).display();
        if let Some(expected) = &base.weights_sha256 {
            ensure!(
                digest()? == *expected,
                "the adapter in `{folder}` was trained beside other weights than those of `{name}`: its base is `{}`{}",
                base.name,
                base.at_revision()
            );
            return Ok(());
        }
        let other_name = is_hub_id(&base.name) && is_hub_id(name) && base.name != name;
        let other_revision = base.name == name && matches!((&base.revision, revision), (Some(one), Some(other)) if one != other);
        ensure!(
            !other_name && !other_revision,
            "the adapter in `{folder}` was made for `{}`{}, not for `{name}`{}",
            base.name,
            base.at_revision(),
            revision.map_or(String::new(), |revision| format!(" at {revision}"))
        );
        Ok(())
    }
}

impl Base {
    fn at_revision(&self) -> String {
        self.revision.as_ref().map_or(String::new(), |revision| format!(" at {revision}"))
    }
}

/// The model in `files`, with the adapter in the folder `adapter` beside it, if there is one.
///
/// # Errors
/// The adapter was made for another base.
pub fn load_model(files: &ModelFiles, adapter: Option<&Path>, place: impl Into<Place>, purpose: Purpose) -> Result<Decoder> {
    let Some(folder) = adapter else { return Decoder::load(&files.dir, place, purpose) };
    let adapter = peft::open(folder, &describe_folder(&files.dir)?)?;
    let model = adapter.load(&files.dir, place, purpose)?;
    adapter.check_base(&files.id, files.commit.as_deref(), || base_digest(&model))?;
    Ok(model)
}

/// Every projection of a decoder's blocks with its shape `[out, in]`.
fn projections_of(description: &DecoderDescription) -> Vec<(String, [usize; 2])> {
    let of_blocks = |(name, shape): (String, Vec<usize>)| match (name.strip_suffix("_proj.weight"), &shape[..]) {
        (Some(name), &[n_out, n_in]) => Some((format!("{name}_proj"), [n_out, n_in])),
        _ => None,
    };
    expected_tensors(description).into_iter().filter_map(of_blocks).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AdapterKind, TargetModule, Targets};
    use crate::model::family::describe;
    use serde_json::json;

    pub(super) fn description() -> DecoderDescription {
        let config = json!({
            "model_type": "llama", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": true,
        });
        describe(&config).unwrap()
    }

    pub(super) fn config() -> AdapterConfig {
        let targets = Targets::Modules([TargetModule::QProj, TargetModule::DownProj].into());
        AdapterConfig {
            kind: AdapterKind::Lora,
            rank: 4,
            alpha: Some(8.0),
            targets,
            layers: LayerRange::FromTo(1, 2),
            ..Default::default()
        }
    }

    #[test]
    fn targets_and_layers_choose_projections() {
        let adapter = Adapter::new(&config(), 0, &description()).unwrap();
        let expected = ["1.mlp.down_proj", "1.self_attn.q_proj", "2.mlp.down_proj", "2.self_attn.q_proj"];
        assert!(adapter.projections.iter().eq(expected.map(|name| format!("model.layers.{name}")).iter()));
        assert_eq!(adapter.scale(), 2.0);
        assert_eq!(Adapter { rslora: true, ..adapter }.scale(), 4.0);
        assert!(Adapter::of_run(&AdapterConfig::default(), 0, None, &description()).unwrap().is_none());
        let all = AdapterConfig { targets: Targets::AllLinear, layers: LayerRange::All, ..config() };
        let known: BTreeSet<_> = projections_of(&description()).into_iter().map(|(name, _)| name).collect();
        assert_eq!(Adapter::new(&all, 0, &description()).unwrap().projections, known, "config and checkpoint agree on names");
    }

    #[test]
    fn layers_beyond_the_model_are_a_problem_of_the_configuration() {
        let beyond = AdapterConfig { layers: LayerRange::FromTo(1, 3), ..config() };
        let error = Adapter::new(&beyond, 0, &description()).unwrap_err();
        assert!(error.is::<ConfigError>() && error.to_string().contains("ends at 3, and the model's layers at 2"), "{error}");
    }

    #[test]
    fn another_base_is_refused_by_weights_or_by_name() {
        let new = Adapter::new(&config(), 0, &description()).unwrap();
        let of = |weights_sha256: Option<&str>| {
            let base = Base { name: "org/a".into(), revision: Some("1".into()), weights_sha256: weights_sha256.map(str::to_owned) };
            Adapter { base: Some(base), ..new.clone() }
        };
        let digest = || Ok("ab".to_owned());
        assert!(new.check_base("org/b", None, digest).is_ok());
        assert!(of(Some("ab")).check_base("/a/copy", None, digest).is_ok(), "the same weights under another name");
        let error = of(Some("cd")).check_base("org/a", Some("1"), digest).unwrap_err().to_string();
        assert!(error.contains("other weights than those of `org/a`"), "{error}");
        let never = || -> Result<String> { anyhow::bail!("no digest is needed") };
        assert!(of(None).check_base("org/a", Some("1"), never).is_ok());
        assert!(of(None).check_base("/a/copy", None, never).is_ok());
        let error = of(None).check_base("org/b", None, never).unwrap_err().to_string();
        assert!(error.contains("made for `org/a` at 1, not for `org/b`"), "{error}");
        assert!(of(None).check_base("org/a", Some("2"), never).unwrap_err().to_string().contains("`org/a` at 2"));
    }
}
