//! Losses as pure functions of per-sequence scores: numbers in, numbers out.
//!
//! A loss is asked for one row at a time and told the totals of the optimizer batch, so the rows' shares add up to the batch's loss however
//! the batch is cut into micro-batches. It answers with the row's share and its derivative with respect to the summed log-probability of
//! each target answer; the engine does the rest. Retention, a regulariser beside any loss, has its own file.
//!
//! In formulas `w` is the chosen answer, `l` the rejected one, `avg` a log-probability divided by its number of tokens, `l(z)` is
//! `-log sigmoid(z)`, and `D` the log-ratio of the answers against the reference,
//!
//! ```text
//! D = [log pi(y_w|x) - log pi_ref(y_w|x)] - [log pi(y_l|x) - log pi_ref(y_l|x)]
//! ```
//!
//! A new loss is a file here, with the trait [`Loss`], and an arm of [`Objective::new`]; its name and keys are an arm of
//! [`ObjectiveConfig::of`]. Arithmetic is f64 throughout.

pub mod cpo;
pub mod dpo;
pub mod ipo;
pub mod kto;
pub mod mpo;
pub mod orpo;
pub mod r_dpo;
pub mod retention;
pub mod robust_dpo;
mod scores;
pub mod sft;
pub mod simpo;
#[cfg(test)]
mod testing;

use crate::config::{Gap, ObjectiveConfig, ObjectiveKind};
use anyhow::Result;
pub use scores::{BatchTotals, LogRatios, PairScores, ResponseScore, RowScores};
use std::fmt::Debug;
use std::ops::Deref;
use std::sync::Arc;

/// A loss with its settings.
pub trait Loss: Debug + Send + Sync {
    /// What [`Loss::row`] reads: no other pass is run.
    fn passes(&self) -> Passes;

    /// One row's part in the loss of its batch.
    ///
    /// # Errors
    /// A score that [`Loss::passes`] asks for is missing.
    fn row(&self, scores: &RowScores, totals: &BatchTotals) -> Result<RowLoss>;

    /// How the log reports the answers of a row.
    fn reported(&self) -> Reported;

    /// The reward gap of the policy's target pair at which the row's loss is least, without beta; `None` for a loss that aims at none.
    fn goal(&self, _scores: &RowScores) -> Option<f64> {
        None
    }
}

/// Which scores a loss reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passes {
    /// The policy on the target pair, with gradients.
    pub policy_target: Answers,
    /// The policy on the dominant pair, without gradients.
    pub policy_dominant: bool,
    pub reference_dominant: bool,
    /// Of the same answers as `policy_target`.
    pub reference_target: bool,
    /// Policy and reference on each prompt with the answers of another, without gradients, before the rest of the batch.
    pub mismatched: bool,
}

/// Which answers of a target pair a loss scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// Both, and a row must have both.
    Both,
    /// The chosen one, which a row must have; the rejected one is not run.
    Chosen,
    /// Those that there are: one is enough.
    Any,
}

impl Passes {
    /// Of a loss that compares both answers under the policy alone.
    pub const POLICY_PAIR: Self = Self {
        policy_target: Answers::Both,
        policy_dominant: false,
        reference_dominant: false,
        reference_target: false,
        mismatched: false,
    };

    /// Of a loss that compares both answers under the policy with both under the reference.
    pub const LOG_RATIOS: Self = Self { reference_target: true, ..Self::POLICY_PAIR };

    /// Whether the loss needs a reference at all.
    pub fn reference(&self) -> bool {
        self.reference_dominant || self.reference_target || self.mismatched
    }
}

/// One row's part in the loss of its batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowLoss {
    /// The row's share: the shares of a batch's rows sum to its loss.
    pub share: f64,
    /// d loss / d `log_prob` of the policy's chosen target answer.
    pub d_chosen: f64,
    /// d loss / d `log_prob` of the policy's rejected target answer; 0 where it is not scored.
    pub d_rejected: f64,
}

/// How the log reports the answers of a row: in the units that the loss compares them in, as TRL does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reported {
    /// Whether log-probabilities are sums or means over tokens.
    pub log_prob: Gap,
    /// A reward is beta times that log-probability, less the reference's where the loss reads it; `None` where no answers are compared.
    pub beta: Option<f64>,
}

/// A number of each answer of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PerAnswer {
    /// `None` where the row has no such answer, or the loss does not read it.
    pub chosen: Option<f64>,
    pub rejected: Option<f64>,
}

impl PerAnswer {
    /// `None` where an answer is absent.
    pub fn margin(&self) -> Option<f64> {
        Some(self.chosen? - self.rejected?)
    }
}

/// The loss of a run.
#[derive(Debug, Clone)]
pub struct Objective(Arc<dyn Loss>);

impl Objective {
    /// The loss that the configuration names.
    pub fn new(config: &ObjectiveConfig) -> Self {
        let &ObjectiveConfig { beta, label_smoothing, .. } = config;
        match config.kind {
            ObjectiveKind::Mpo => Self::from(mpo::Mpo { beta, gap: config.gap, gap_target: config.gap_target }),
            ObjectiveKind::Sft => Self::from(sft::Sft),
            ObjectiveKind::Dpo => Self::from(dpo::Dpo { beta, label_smoothing }),
            ObjectiveKind::Ipo => Self::from(ipo::Ipo { beta, length_normalized: config.length_normalized }),
            ObjectiveKind::RobustDpo => Self::from(robust_dpo::RobustDpo { beta, label_smoothing }),
            ObjectiveKind::RDpo => Self::from(r_dpo::RDpo { beta, length_weight: config.length_weight }),
            ObjectiveKind::Cpo => Self::from(cpo::Cpo { beta, nll_weight: config.nll_weight }),
            ObjectiveKind::Orpo => Self::from(orpo::Orpo { beta }),
            ObjectiveKind::Simpo => Self::from(simpo::Simpo { beta, gamma_beta_ratio: config.gamma_beta_ratio }),
            ObjectiveKind::Kto => {
                Self::from(kto::Kto { beta, desirable_weight: config.desirable_weight, undesirable_weight: config.undesirable_weight })
            }
        }
    }

    /// The policy's log-probabilities of a row's answers, as the log reports them.
    pub fn log_probs(&self, scores: &RowScores) -> PerAnswer {
        let unit = self.reported().log_prob;
        let value = |score: ResponseScore| (!score.is_absent()).then(|| score.value(unit));
        PerAnswer { chosen: value(scores.policy_target.chosen), rejected: value(scores.policy_target.rejected) }
    }

    /// The rewards of a row's answers, as the log reports them; `None` for a loss that compares no answers.
    pub fn rewards(&self, scores: &RowScores) -> Option<PerAnswer> {
        let Reported { log_prob: unit, beta } = self.reported();
        let beta = beta?;
        let policy = self.log_probs(scores);
        let reference = scores.reference_target.filter(|_| self.passes().reference_target);
        let reward = |policy: Option<f64>, reference: Option<ResponseScore>| {
            policy.map(|policy| beta * (policy - reference.map_or(0.0, |reference| reference.value(unit))))
        };
        Some(PerAnswer {
            chosen: reward(policy.chosen, reference.map(|pair| pair.chosen)),
            rejected: reward(policy.rejected, reference.map(|pair| pair.rejected)),
        })
    }
}

impl<L: Loss + 'static> From<L> for Objective {
    fn from(loss: L) -> Self {
        Self(Arc::new(loss))
    }
}

impl Deref for Objective {
    type Target = dyn Loss;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

/// `l(z) = -log sigmoid(z)`, without overflow.
pub fn logistic_loss(z: f64) -> f64 {
    (-z).max(0.0) + (-z.abs()).exp().ln_1p()
}

/// `1 / (1 + e^-z)`; also `-dl/dz` at `-z`.
pub fn sigmoid(z: f64) -> f64 {
    if z >= 0.0 { 1.0 / (1.0 + (-z).exp()) } else { z.exp() / (1.0 + z.exp()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logistic_loss_and_sigmoid_by_hand() {
        assert_eq!((logistic_loss(0.0), sigmoid(0.0)), (2f64.ln(), 0.5));
        assert!((logistic_loss(3f64.ln()) - (4.0f64 / 3.0).ln()).abs() < 1e-15 && (sigmoid(3f64.ln()) - 0.75).abs() < 1e-15);
        assert_eq!((logistic_loss(-1000.0), logistic_loss(1000.0)), (1000.0, 0.0));
        assert_eq!((sigmoid(-1000.0), sigmoid(1000.0)), (0.0, 1.0));
    }

    #[test]
    fn rewards_follow_the_units_of_the_loss() {
        let rewards = |kind| Objective::new(&ObjectiveConfig { beta: 0.5, ..ObjectiveConfig::of(kind) }).rewards(&testing::row());
        // The row's sums are -4 (2 tokens) and -8 (4 tokens), the reference's -5 and -6.
        let of = |chosen, rejected| Some(PerAnswer { chosen: Some(chosen), rejected: Some(rejected) });
        assert_eq!(rewards(ObjectiveKind::Dpo), of(0.5, -1.0));
        assert_eq!(rewards(ObjectiveKind::Ipo), of(0.5, -1.0), "TRL reports sums also where the loss takes means");
        assert_eq!(rewards(ObjectiveKind::Kto), of(0.5, -1.0));
        assert_eq!(rewards(ObjectiveKind::Cpo), of(-2.0, -4.0));
        assert_eq!(rewards(ObjectiveKind::Simpo), of(-1.0, -1.0));
        assert_eq!(rewards(ObjectiveKind::Orpo), of(-1.0, -1.0));
        assert_eq!(rewards(ObjectiveKind::Mpo), of(-1.0, -1.0));
        assert_eq!(rewards(ObjectiveKind::Sft), None);
    }
}
