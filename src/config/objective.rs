//! `[objective]`: which loss, and the keys that this loss reads. Each loss's defaults and keys stand here once.

use super::{Gap, GapTarget, RetentionKind};
use serde::{Deserialize, Serialize};

/// `objective.kind`: the loss. Each has its file in `objective/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectiveKind {
    /// Multilingual reward gap optimisation, arXiv 2505.16869.
    Mpo,
    /// Supervised fine-tuning on the chosen answers.
    Sft,
    /// Direct preference optimisation, arXiv 2305.18290.
    Dpo,
    /// Identity preference optimisation, arXiv 2310.12036.
    Ipo,
    /// DPO for labels of which a known share is wrong, arXiv 2403.00409.
    RobustDpo,
    /// Length-regularised DPO, arXiv 2403.19159.
    RDpo,
    /// Contrastive preference optimisation, arXiv 2401.08417.
    Cpo,
    /// Odds ratio preference optimisation, arXiv 2403.07691.
    Orpo,
    /// Simple preference optimisation, arXiv 2405.14734.
    Simpo,
    /// Kahneman-Tversky optimisation, arXiv 2402.01306.
    Kto,
}

/// `[objective]`: `kind`, and what that kind reads; any other key of the section is a problem.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ObjectiveConfig {
    /// Which loss.
    pub kind: ObjectiveKind,
    /// `mpo`: factor on the policy's target gap: at the optimum that gap is the dominant one divided by beta. `orpo`: the weight of the odds
    /// ratio term (lambda). Elsewhere the scale of a reward; for `ipo` the paper's tau.
    pub beta: f64,
    /// `mpo`: how log-probabilities make a gap.
    pub gap: Gap,
    /// `mpo`: whose dominant gap is aimed at.
    pub gap_target: GapTarget,
    /// `dpo`, `robust_dpo`: the share of pairs whose labels are the wrong way round, below one half.
    pub label_smoothing: f64,
    /// `ipo`: log-ratios divided by the lengths of their answers, as TRL has them, or sums, as the paper prints them.
    pub length_normalized: bool,
    /// `r_dpo`: margin for each token that the chosen answer is longer, nats (the paper's alpha).
    pub length_weight: f64,
    /// `cpo`: weight of the chosen answers' negative log-likelihood (the paper's lambda, TRL's `cpo_alpha`).
    pub nll_weight: f64,
    /// `simpo`: the margin gamma as a multiple of beta, nats a token.
    pub gamma_beta_ratio: f64,
    /// `kto`: weight of the chosen answers' losses.
    pub desirable_weight: f64,
    /// `kto`: weight of the rejected answers' losses.
    pub undesirable_weight: f64,
}

impl Default for ObjectiveConfig {
    fn default() -> Self {
        Self::of(ObjectiveKind::Mpo)
    }
}

impl ObjectiveConfig {
    /// The defaults of `kind`. What it does not read has a value that nobody sees.
    pub fn of(kind: ObjectiveKind) -> Self {
        let common = Self {
            kind,
            beta: 0.1,
            gap: Gap::LengthNormalized,
            gap_target: GapTarget::Reference,
            label_smoothing: 0.0,
            length_normalized: true,
            length_weight: 0.01,
            nll_weight: 1.0,
            gamma_beta_ratio: 0.5,
            desirable_weight: 1.0,
            undesirable_weight: 1.0,
        };
        match kind {
            ObjectiveKind::Mpo => Self { beta: 1.0, ..common },
            ObjectiveKind::RobustDpo => Self { label_smoothing: 0.1, ..common },
            ObjectiveKind::Simpo => Self { beta: 2.0, ..common },
            ObjectiveKind::Sft
            | ObjectiveKind::Dpo
            | ObjectiveKind::Ipo
            | ObjectiveKind::RDpo
            | ObjectiveKind::Cpo
            | ObjectiveKind::Orpo
            | ObjectiveKind::Kto => common,
        }
    }
}

/// Every key that some kind reads.
pub(crate) const KEYS: [&str; 10] = [
    "objective.beta",
    "objective.gap",
    "objective.gap_target",
    "objective.label_smoothing",
    "objective.length_normalized",
    "objective.length_weight",
    "objective.nll_weight",
    "objective.gamma_beta_ratio",
    "objective.desirable_weight",
    "objective.undesirable_weight",
];

impl ObjectiveKind {
    /// In the order in which they are listed to people: the paper's, then what it is compared with.
    pub const ALL: [Self; 10] =
        [Self::Mpo, Self::Sft, Self::Dpo, Self::Ipo, Self::RobustDpo, Self::RDpo, Self::Cpo, Self::Orpo, Self::Simpo, Self::Kto];

    /// As `objective.kind` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mpo => "mpo",
            Self::Sft => "sft",
            Self::Dpo => "dpo",
            Self::Ipo => "ipo",
            Self::RobustDpo => "robust_dpo",
            Self::RDpo => "r_dpo",
            Self::Cpo => "cpo",
            Self::Orpo => "orpo",
            Self::Simpo => "simpo",
            Self::Kto => "kto",
        }
    }

    /// The keys of `[objective]` that this kind reads beside `kind`.
    pub(crate) fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Mpo => &["objective.beta", "objective.gap", "objective.gap_target"],
            Self::Sft => &[],
            Self::Dpo | Self::RobustDpo => &["objective.beta", "objective.label_smoothing"],
            Self::Ipo => &["objective.beta", "objective.length_normalized"],
            Self::RDpo => &["objective.beta", "objective.length_weight"],
            Self::Cpo => &["objective.beta", "objective.nll_weight"],
            Self::Orpo => &["objective.beta"],
            Self::Simpo => &["objective.beta", "objective.gamma_beta_ratio"],
            Self::Kto => &["objective.beta", "objective.desirable_weight", "objective.undesirable_weight"],
        }
    }

    /// The kinds that read `key`, by name.
    pub(crate) fn that_read(key: &str) -> Vec<&'static str> {
        Self::ALL.into_iter().filter(|kind| kind.keys().contains(&key)).map(Self::name).collect()
    }

    /// Whether the loss of a target pair depends on its dominant pair.
    pub fn compares_with_dominant(self) -> bool {
        self == Self::Mpo
    }

    /// The retention that runs beside this objective when `retention.kind` is not set: the paper's for `mpo`, none for any other.
    pub fn default_retention(self) -> RetentionKind {
        match self {
            Self::Mpo => RetentionKind::Hidden,
            _ => RetentionKind::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keys;

    #[test]
    fn every_key_is_a_field_and_is_read_by_some_kind() {
        let section = keys::SECTIONS.iter().find(|section| section.name == "objective").unwrap();
        let fields: Vec<String> = section.keys.iter().filter(|key| **key != "kind").map(|key| format!("objective.{key}")).collect();
        assert_eq!(fields, KEYS);
        for key in KEYS {
            assert!(!ObjectiveKind::that_read(key).is_empty(), "{key}");
        }
    }

    #[test]
    fn names_are_those_of_the_file() {
        for kind in ObjectiveKind::ALL {
            assert_eq!(toml::Value::try_from(kind).unwrap().as_str(), Some(kind.name()));
        }
    }
}
