//! `[adapter]`: low-rank adapters (LoRA, arXiv 2106.09685) in the place of full fine-tuning, and what its keys may say.

use serde::de::{Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeSet;
use std::fmt;

/// `[adapter]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdapterConfig {
    /// Whether low-rank terms are trained, or the model itself.
    pub kind: AdapterKind,
    /// A PEFT folder to start from: its rank, scale and projections are taken over.
    pub path: Option<String>,
    /// Rows of each A, columns of each B.
    pub rank: usize,
    /// The term counts `alpha / rank`; where it is not set, alpha is twice the rank.
    pub alpha: Option<f64>,
    /// The term counts `alpha / sqrt(rank)` instead (arXiv 2312.03732).
    pub rslora: bool,
    /// Share of each term's input that is dropped in training.
    pub dropout: f64,
    /// Which projections of a block: `"all-linear"` or a list.
    pub targets: Targets,
    /// Which blocks: `"all"`, or `"16-29"` counted from 0, both included.
    pub layers: LayerRange,
}

/// `adapter.kind`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterKind {
    /// Full fine-tuning.
    None,
    /// Low-rank terms beside frozen projections.
    Lora,
}

/// A projection of a block, by its name in the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetModule {
    QProj,
    KProj,
    VProj,
    OProj,
    GateProj,
    UpProj,
    DownProj,
}

impl TargetModule {
    pub const ALL: [Self; 7] = [Self::QProj, Self::KProj, Self::VProj, Self::OProj, Self::GateProj, Self::UpProj, Self::DownProj];

    /// `self_attn.q_proj`: its name within `model.layers.N.`
    pub fn path(self) -> &'static str {
        match self {
            Self::QProj => "self_attn.q_proj",
            Self::KProj => "self_attn.k_proj",
            Self::VProj => "self_attn.v_proj",
            Self::OProj => "self_attn.o_proj",
            Self::GateProj => "mlp.gate_proj",
            Self::UpProj => "mlp.up_proj",
            Self::DownProj => "mlp.down_proj",
        }
    }
}

/// `adapter.targets`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// Every projection of a block; not the head.
    AllLinear,
    Modules(BTreeSet<TargetModule>),
}

impl Targets {
    pub fn modules(&self) -> Vec<TargetModule> {
        match self {
            Self::AllLinear => TargetModule::ALL.to_vec(),
            Self::Modules(modules) => modules.iter().copied().collect(),
        }
    }
}

impl Serialize for Targets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::AllLinear => serializer.serialize_str("all-linear"),
            Self::Modules(modules) => modules.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Targets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordOrList;
        impl<'de> Visitor<'de> for WordOrList {
            type Value = Targets;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("\"all-linear\" or a list such as [\"q_proj\", \"v_proj\"]")
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<Self::Value, E> {
                if word == "all-linear" { Ok(Targets::AllLinear) } else { Err(E::invalid_value(Unexpected::Str(word), &self)) }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut modules = BTreeSet::new();
                while let Some(module) = list.next_element()? {
                    modules.insert(module);
                }
                Ok(Targets::Modules(modules))
            }
        }
        deserializer.deserialize_any(WordOrList)
    }
}

/// `adapter.layers`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerRange {
    All,
    /// From 0, both included.
    FromTo(usize, usize),
}

impl LayerRange {
    pub fn contains(self, layer: usize) -> bool {
        match self {
            Self::All => true,
            Self::FromTo(first, last) => (first..=last).contains(&layer),
        }
    }
}

impl Serialize for LayerRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => serializer.serialize_str("all"),
            Self::FromTo(first, last) => serializer.serialize_str(&format!("{first}-{last}")),
        }
    }
}

impl<'de> Deserialize<'de> for LayerRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let range = || {
            let (first, last) = text.split_once('-')?;
            let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (first <= last).then_some(Self::FromTo(first, last))
        };
        if text == "all" {
            return Ok(Self::All);
        }
        range()
            .ok_or_else(|| D::Error::invalid_value(Unexpected::Str(&text), &"\"all\", or the first and the last layer such as \"16-29\""))
    }
}

impl Default for AdapterConfig {
    fn default() -> Self {
        Self {
            kind: AdapterKind::None,
            path: None,
            rank: 16,
            alpha: None,
            rslora: false,
            dropout: 0.0,
            targets: Targets::AllLinear,
            layers: LayerRange::All,
        }
    }
}

impl AdapterConfig {
    pub fn is_lora(&self) -> bool {
        self.kind == AdapterKind::Lora
    }

    /// Fills in the default that depends on another key. An adapter that is started from has an alpha of its own.
    pub(crate) fn settle(&mut self) {
        if self.is_lora() && self.path.is_none() {
            self.alpha.get_or_insert(2.0 * self.rank as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<AdapterConfig, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn targets_and_layers_are_read_and_written_alike() {
        let text = "kind = \"lora\"\nrank = 16\nrslora = false\ndropout = 0.0\ntargets = [\"q_proj\", \"down_proj\"]\nlayers = \"1-3\"\n";
        let config = read(text).unwrap();
        assert_eq!(config.targets.modules(), [TargetModule::QProj, TargetModule::DownProj]);
        assert_eq!([0, 1, 3, 4].map(|layer| config.layers.contains(layer)), [false, true, true, false]);
        assert_eq!(toml::to_string(&config).unwrap(), text);
        let all = read("targets = \"all-linear\"\nlayers = \"all\"").unwrap();
        assert_eq!((all.targets.modules().len(), all.layers), (7, LayerRange::All));
    }

    #[test]
    fn what_is_not_a_projection_or_a_range_is_refused_with_what_would_be() {
        let error = |text: &str| read(text).unwrap_err().message().to_owned();
        let message = error("targets = [\"q_proj\", \"c_attn\"]");
        assert!(
            message.contains("c_attn") && TargetModule::ALL.iter().all(|module| message.contains(module.path().split_once('.').unwrap().1))
        );
        assert!(error("targets = \"attention\"").contains("all-linear"));
        for layers in ["3", "3-1", "a-b", "-3"] {
            assert!(error(&format!("layers = \"{layers}\"")).contains("16-29"), "{layers}");
        }
    }
}
