//! What a cached entry depends on: two runs that share a key would compute the same bits.

use crate::config::{ComputeDtype, Pooling};
use crate::data::batch::padded_length;
use crate::data::encode::{EncodedPreference, Response};
use crate::digest::hex;
use crate::model::decoder::Decoder;
use crate::model::low_rank;
use crate::model::parameter::Parameter;
use crate::ops;
use crate::scoring::KeptStates;
use anyhow::Result;
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Raised by whoever changes a bit of what a forward computes: older entries are then scored anew.
const ENGINE_VERSION: u32 = 1;

const MEAN_PADDED: KeptStates = KeptStates::Pooled(Pooling::MeanPadded);

/// Everything but the sequence itself that an entry depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provenance {
    /// sha256 of the frozen model's description and weights, in hexadecimal.
    pub weights: String,
    pub states: KeptStates,
    /// What `mean_padded` fills up with; absent for other states, which do not depend on it.
    pub pad_token: Option<u32>,
    pub dtype: ComputeDtype,
    /// `cpu`, `cuda` or `metal`.
    pub device: String,
    /// The widest vector instructions that the kernels may use.
    pub instruction_set: String,
    pub engine: u32,
}

impl Provenance {
    /// Hashes the weights of `model`: seconds for a large one.
    pub fn of(model: &Decoder, dtype: ComputeDtype, states: KeptStates, pad_token: u32) -> Result<Self> {
        Ok(Self {
            weights: weights_digest(model)?,
            states,
            pad_token: (states == MEAN_PADDED).then_some(pad_token),
            dtype,
            device: device_kind(model).into(),
            instruction_set: instruction_set(dtype).into(),
            engine: ENGINE_VERSION,
        })
    }

    /// Of entries by the same model that keep no states.
    pub fn of_scores(&self) -> Self {
        Self { states: KeptStates::Nothing, pad_token: None, ..self.clone() }
    }

    /// The key of `pair`'s two sequences: chosen, then rejected.
    pub fn keys(&self, pair: &EncodedPreference) -> Result<[String; 2]> {
        let n_longest = pair.longest_sequence();
        let padded_to = (self.states == MEAN_PADDED).then(|| padded_length(n_longest));
        let key = |response: &Response| -> Result<String> {
            let parts = SequenceKey {
                provenance: self,
                prompt: &pair.prompt,
                response: &response.tokens,
                n_end_tokens: response.n_end_tokens,
                padded_to,
            };
            Ok(hex(&Sha256::digest(serde_json::to_vec(&parts)?)))
        };
        Ok([key(&pair.chosen)?, key(&pair.rejected)?])
    }
}

/// Hashed as JSON: unambiguous, and the same on every machine.
#[derive(Serialize)]
struct SequenceKey<'a> {
    provenance: &'a Provenance,
    prompt: &'a [u32],
    response: &'a [u32],
    n_end_tokens: usize,
    padded_to: Option<usize>,
}

/// sha256 over what the model is and the f32 values of its parameters, in their order. Independent of how many files held them.
///
/// An adapter counts where it has an effect: a new one changes no bit, so that its runs share scores with those that train the whole model.
pub fn weights_digest(model: &Decoder) -> Result<String> {
    let base = base_digest(model)?;
    match model.adaptation() {
        Some(adaptation) if low_rank::has_effect(model.low_rank_parameters())? => {
            digest_of(&format!("{base} scale {:?}", adaptation.scale), model.low_rank_parameters())
        }
        _ => Ok(base),
    }
}

/// [`weights_digest`] of the model that an adapter is for; of a model without one, its own.
pub fn base_digest(model: &Decoder) -> Result<String> {
    digest_of(&format!("{:?}", model.description()), model.parameters())
}

fn digest_of(what: &str, parameters: &[Parameter]) -> Result<String> {
    let digests: Result<Vec<_>> =
        parameters.par_iter().map(|parameter| Ok((&parameter.name, parameter.value.dims(), tensor_digest(&parameter.value)?))).collect();
    let mut hasher = Sha256::new();
    hasher.update(what);
    for (name, shape, digest) in digests? {
        hasher.update(format!("{name} {shape:?} {digest}\n"));
    }
    Ok(hex(&hasher.finalize()))
}

/// sha256 of the digests of pieces, so that all cores take part even in one large matrix.
pub(super) fn tensor_digest(tensor: &Tensor) -> Result<String> {
    const PIECE: usize = 1 << 18;
    let values = ops::read(tensor)?;
    let digests: Vec<_> = values
        .par_chunks(PIECE)
        .map(|piece| Sha256::digest(piece.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>()))
        .collect();
    let mut hasher = Sha256::new();
    digests.iter().for_each(|digest| hasher.update(digest));
    Ok(hex(&hasher.finalize()))
}

fn device_kind(model: &Decoder) -> &'static str {
    match model.parameters().first().map(|parameter| parameter.value.device()) {
        None | Some(Device::Cpu) => "cpu",
        Some(Device::Cuda(_)) => "cuda",
        Some(Device::Metal(_)) => "metal",
    }
}

/// Kernels are chosen at run time by what the processor offers, and sums of eight and of sixteen lanes differ in their last bits.
fn instruction_set(dtype: ComputeDtype) -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if dtype == ComputeDtype::Bf16 && ops::has_bf16_instructions() {
            return "x86_64+avx512f+avx512bf16";
        }
        if std::is_x86_feature_detected!("avx512f") {
            return "x86_64+avx512f";
        }
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            return "x86_64+avx2+fma";
        }
    }
    std::env::consts::ARCH
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provenance(states: KeptStates) -> Provenance {
        Provenance {
            weights: "ab".repeat(32),
            states,
            pad_token: None,
            dtype: ComputeDtype::F32,
            device: "cpu".into(),
            instruction_set: "x86_64".into(),
            engine: ENGINE_VERSION,
        }
    }

    fn pair() -> EncodedPreference {
        let response = |tokens: &[u32]| Response { tokens: tokens.to_vec(), n_end_tokens: 1 };
        EncodedPreference { lang: "en".into(), prompt: vec![1, 2], chosen: response(&[3, 4]), rejected: response(&[5; 9]) }
    }

    #[test]
    fn every_part_of_the_provenance_changes_the_key() {
        let states = KeptStates::Pooled(Pooling::Last);
        let base = provenance(states);
        let others = [
            Provenance { weights: "cd".repeat(32), ..base.clone() },
            Provenance { states: KeptStates::Predicting, ..base.clone() },
            Provenance { states: KeptStates::Pooled(Pooling::Mean), ..base.clone() },
            Provenance { pad_token: Some(1), ..base.clone() },
            Provenance { dtype: ComputeDtype::Bf16, ..base.clone() },
            Provenance { device: "cuda".into(), ..base.clone() },
            Provenance { instruction_set: "x86_64+avx512f".into(), ..base.clone() },
            Provenance { engine: ENGINE_VERSION + 1, ..base.clone() },
        ];
        for other in others {
            assert_ne!(other.keys(&pair()).unwrap()[0], base.keys(&pair()).unwrap()[0], "{other:?}");
        }
        assert_eq!(base.clone().keys(&pair()).unwrap(), base.keys(&pair()).unwrap());
    }

    #[test]
    fn tokens_and_the_response_span_change_the_key_and_the_language_does_not() {
        let base = provenance(KeptStates::Pooled(Pooling::Last));
        let key = |change: fn(&mut EncodedPreference)| {
            let mut pair = pair();
            change(&mut pair);
            base.keys(&pair).unwrap()[0].clone()
        };
        let unchanged = key(|_| ());
        assert_ne!(unchanged, key(|pair| pair.chosen.tokens[0] = 9));
        assert_ne!(unchanged, key(|pair| pair.chosen.n_end_tokens = 0));
        // The same sequence of tokens, cut elsewhere.
        assert_ne!(
            unchanged,
            key(|pair| {
                pair.prompt.push(3);
                pair.chosen.tokens.remove(0);
            })
        );
        assert_eq!(unchanged, key(|pair| pair.lang = "zh".into()));
    }

    #[test]
    fn the_other_response_matters_only_where_it_decides_the_padding() {
        let longer = |states| {
            let mut pair = pair();
            let before = provenance(states).keys(&pair).unwrap()[0].clone();
            pair.rejected.tokens.extend([5; 40]);
            (before, provenance(states).keys(&pair).unwrap()[0].clone())
        };
        let (before, after) = longer(KeptStates::Pooled(Pooling::Mean));
        assert_eq!(before, after);
        let (before, after) = longer(KeptStates::Pooled(Pooling::MeanPadded));
        assert_ne!(before, after);
    }
}
