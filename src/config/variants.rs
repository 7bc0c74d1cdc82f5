//! The choices of the configuration: each enum is one key's list of allowed words, spelled in the TOML as in `snake_case`.

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::num::NonZeroUsize;

/// `model.dtype`: the type of matrix inputs. Accumulation and master weights are f32 either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComputeDtype {
    /// 32-bit floats.
    F32,
    /// bfloat16: half the memory, 8 bits of precision.
    Bf16,
}

impl ComputeDtype {
    /// As in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            ComputeDtype::F32 => "f32",
            ComputeDtype::Bf16 => "bf16",
        }
    }
}

/// `data.format`: how a row is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataFormat {
    /// Told from the first row.
    Auto,
    /// One JSON object a line with `dominant` and `target`.
    Parallel,
    /// The released MPO data: ShareGPT-like, `source_*` and `target_*`.
    Llamafactory,
    /// `prompt`, `chosen` and `rejected`, texts or conversations, as TRL has them.
    Preference,
    /// `prompt`, `completion` and `label`, as TRL has them for KTO.
    Label,
}

/// `data.sides`: which pairs of parallel data the objective scores. Retention holds on to the dominant pair in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sides {
    /// Every target pair; in plain preference data, every pair.
    Target,
    /// Every distinct dominant pair, once.
    Dominant,
    /// Every target pair, and every distinct dominant pair once.
    Both,
}

/// `checkpoint.best_is`: what makes a held-out number better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BestIs {
    /// Losses, and what drifts.
    Lower,
    /// Accuracies and margins.
    Higher,
}

impl BestIs {
    /// For a number whose name leaves no doubt. A reward gap does: the loss of MPO asks for a certain gap, not for the largest.
    pub fn of_metric(metric: &str) -> Option<Self> {
        match metric.strip_prefix("eval_")? {
            "loss" | "objective" | "retention" | "overshoot" => Some(Self::Lower),
            "rewards/accuracies" | "rewards/margins" => Some(Self::Higher),
            _ => None,
        }
    }
}

/// `data.end_of_response`: what is appended to a response and counted with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndOfResponse {
    /// Everything that the chat template renders after the content.
    Template,
    /// The tokenizer's end-of-sequence token alone.
    EosToken,
}

/// `data.on_overlong`: what becomes of a row longer than `data.max_tokens`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnOverlong {
    /// The longer response is cut and keeps its end of turn; the prompt is never cut.
    Truncate,
    /// The released code's budget, which may cut the prompt and loses the end of the turn.
    Released,
    /// The row is left out and reported.
    Drop,
    /// The run does not start.
    Error,
}

/// `data.special_tokens`: what a special token that is spelled within a row's text is read as. Those of the chat template are tokens either
/// way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpecialTokens {
    /// As the characters that it is written with: no text can end a turn or open another.
    Text,
    /// As the token, which is what transformers does.
    Tokens,
}

/// `objective.gap`: how two log-probabilities make a reward gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gap {
    /// Each log-probability divided by its own number of response tokens (the paper).
    LengthNormalized,
    /// Plain sums, as in DPO; gradients are about the squared length larger.
    Sum,
}

/// `objective.gap_target`: whose dominant gap the target gap is pulled to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GapTarget {
    /// The frozen reference's (the paper).
    Reference,
    /// The policy's own, without gradient (the paper's App. H.3: unstable, worse).
    Policy,
}

/// `retention.kind`: what keeps the dominant language where it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetentionKind {
    /// Squared distance of hidden states after the final norm (the paper).
    Hidden,
    /// KL(reference || policy) on the dominant responses' tokens (ablation).
    Kl,
    /// No such term.
    None,
}

impl RetentionKind {
    /// As `retention.kind` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hidden => "hidden",
            Self::Kl => "kl",
            Self::None => "none",
        }
    }
}

/// `retention.pooling`: which hidden state stands for a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The response's last token (our reading of the paper's "last token").
    Last,
    /// The token before the end of the turn.
    LastContent,
    /// The prompt's last token.
    LastPrompt,
    /// The mean over the sequence's own positions.
    Mean,
    /// The mean over the padded row, as the released code computes it.
    MeanPadded,
}

/// `retention.reduction`: from a difference of hidden states to a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// The squared norm, as the formula is printed.
    Sum,
    /// The squared norm divided by the hidden size, as the authors computed it.
    Mean,
}

/// `train.activation_checkpointing`: what a forward keeps for its backward. The same numbers bit for bit; less memory for more time.
///
/// In the TOML `"auto"`, `"on"`, `"off"`, or a whole number N; `"on"` is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActivationCheckpointing {
    /// `Off` where the run then fits comfortably in the memory that is free, else `Every(1)`.
    Auto,
    /// Everything that the backward reads.
    Off,
    /// The input of every Nth block; the backward runs the N blocks behind it forward again.
    Every(NonZeroUsize),
}

impl ActivationCheckpointing {
    /// Every block by itself: the least memory next to the least that must be kept.
    pub const ON: Self = Self::Every(NonZeroUsize::MIN);
}

impl Serialize for ActivationCheckpointing {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Off => serializer.serialize_str("off"),
            Self::ON => serializer.serialize_str("on"),
            Self::Every(n) => serializer.serialize_u64(n.get() as u64),
        }
    }
}

impl<'de> Deserialize<'de> for ActivationCheckpointing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WordOrNumber;
        impl Visitor<'_> for WordOrNumber {
            type Value = ActivationCheckpointing;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"auto\", \"on\", \"off\", or a number of blocks, 1 or more")
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<Self::Value, E> {
                match word {
                    "auto" => Ok(ActivationCheckpointing::Auto),
                    "on" => Ok(ActivationCheckpointing::ON),
                    "off" => Ok(ActivationCheckpointing::Off),
                    _ => Err(E::invalid_value(Unexpected::Str(word), &self)),
                }
            }

            // TOML has signed numbers only.
            fn visit_i64<E: Error>(self, n: i64) -> Result<Self::Value, E> {
                let n_blocks = usize::try_from(n).ok().and_then(NonZeroUsize::new);
                n_blocks.map(ActivationCheckpointing::Every).ok_or_else(|| E::invalid_value(Unexpected::Signed(n), &self))
            }
        }
        deserializer.deserialize_any(WordOrNumber)
    }
}

/// `optimizer.kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay, as in PyTorch.
    Adamw,
}

/// `optimizer.master`: where an update keeps what a bf16 weight cannot hold. Only with `model.dtype` = `"bf16"` do the latter two make
/// sense: weights are then stored in bf16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MasterWeights {
    /// In f32 weights: 4 bytes a parameter, on a GPU beside the 2 of its bf16 copy.
    F32,
    /// Nowhere: an update is rounded up or down at random, so that it is right on average. No bytes.
    Stochastic,
    /// In bf16 beside the weight (Kahan summation): 2 bytes a parameter.
    Kahan,
}

/// `optimizer.moments`: the type of AdamW's two moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MomentType {
    /// 4 bytes each.
    #[serde(rename = "f32")]
    F32,
    /// 1 byte each, with a scale for every 256 values (arXiv 2110.02861).
    #[serde(rename = "8bit")]
    EightBit,
}

/// `schedule.kind`: the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Stays at `optimizer.lr`.
    Constant,
    /// Falls on a line to `min_lr_ratio` times `optimizer.lr` at the last step.
    Linear,
    /// Falls on half a cosine to `min_lr_ratio` times `optimizer.lr` at the last step.
    Cosine,
}

/// `output.dtype`: the type of the weights that are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputDtype {
    /// Each tensor's type in the checkpoint that training started from.
    Checkpoint,
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
}
