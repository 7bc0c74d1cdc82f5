//! Inverse frequencies of rotary embeddings: `theta^(-2i/d)`, and the scalings that stretch them over longer contexts.
//!
//! transformers 4 writes `rope_theta` and `rope_scaling`, transformers 5 one `rope_parameters`. The arithmetic is f32 in the order of
//! `modeling_rope_utils.py` (PyTorch evaluates `scalar / tensor` as reciprocal times scalar), so that positions turn as in training.

use super::config::{Config, as_number};
use crate::model::description::Rope;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};
use std::f64::consts::PI;

/// Where neither style names a base.
const DEFAULT_THETA: f64 = 10_000.0;

/// A rope as `config.json` states it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct RopeSettings {
    pub theta: f64,
    pub scaling: Scaling,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scaling {
    None,
    /// Every position divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: wavelengths much shorter than the original context stay, much longer ones are divided, those between are blended.
    Llama3 {
        factor: f64,
        low_frequency_factor: f64,
        high_frequency_factor: f64,
        original_max_positions: f64,
    },
}

/// The one rope of a model whose layers all share it.
pub(super) fn shared(config: &Config<'_>, head_dim: usize, max_positions: usize) -> Result<Vec<Rope>> {
    refuse_partial(config)?;
    let theta = config.number("rope_theta")?.unwrap_or(DEFAULT_THETA);
    // `rope_scaling` wins where both are present, as in transformers 5.
    let parameters = match scaling_object(config, "rope_scaling")? {
        Some(parameters) => Some(parameters),
        None => scaling_object(config, "rope_parameters")?,
    };
    let settings = match parameters {
        Some(parameters) => RopeSettings::read(config, parameters, theta, max_positions)?,
        None => RopeSettings { theta, scaling: Scaling::None },
    };
    Ok(vec![settings.rope(head_dim)?])
}

pub(super) fn refuse_partial(config: &Config<'_>) -> Result<()> {
    if let Some(share) = config.number("partial_rotary_factor")? {
        ensure!(share == 1.0, "`partial_rotary_factor` is {share}; only full rotary embeddings are supported");
    }
    ensure!(!config.flag("rope_interleaved", false)?, "`rope_interleaved` is true; only the half-split layout is supported");
    Ok(())
}

pub(super) fn scaling_object<'a>(config: &Config<'a>, key: &str) -> Result<Option<&'a Map<String, Value>>> {
    config.get(key).map(|value| value.as_object().with_context(|| format!("`{key}` should be an object, is {value}"))).transpose()
}

impl RopeSettings {
    /// Reads one flat object: `rope_type` (formerly `type`), `rope_theta` and what the type needs.
    pub fn read(config: &Config<'_>, parameters: &Map<String, Value>, default_theta: f64, max_positions: usize) -> Result<Self> {
        for layer_type in ["full_attention", "sliding_attention"] {
            ensure!(!parameters.contains_key(layer_type), "`rope_parameters` differ by layer type, which only gemma3_text has");
        }
        let number = |key: &str| parameters.get(key).filter(|value| !value.is_null()).map(|value| as_number(key, value)).transpose();
        let need = |key: &str, rope_type: &str| number(key)?.with_context(|| format!("rope type `{rope_type}` needs `{key}`"));
        if let Some(share) = number("partial_rotary_factor")? {
            ensure!(share == 1.0, "`partial_rotary_factor` is {share}; only full rotary embeddings are supported");
        }
        let named = ["rope_type", "type"].into_iter().find_map(|key| parameters.get(key).filter(|value| !value.is_null()));
        let rope_type = match named {
            None => "default",
            Some(value) => value.as_str().with_context(|| format!("the rope type should be a string, is {value}"))?,
        };
        let scaling = match rope_type {
            "default" => Scaling::None,
            "linear" => Scaling::Linear { factor: need("factor", rope_type)? },
            "llama3" => Scaling::Llama3 {
                factor: need("factor", rope_type)?,
                low_frequency_factor: need("low_freq_factor", rope_type)?,
                high_frequency_factor: need("high_freq_factor", rope_type)?,
                // transformers lets a key beside the object win over the one inside.
                original_max_positions: match config.number("original_max_position_embeddings")? {
                    Some(positions) => positions,
                    None => number("original_max_position_embeddings")?.unwrap_or(max_positions as f64),
                },
            },
            other => bail!(
                "rope type `{other}` is not supported; default, linear and llama3 are. If your texts are shorter than the model's original \
                 context, you can remove the scaling from config.json"
            ),
        };
        Ok(Self { theta: number("rope_theta")?.unwrap_or(default_theta), scaling })
    }

    /// One inverse frequency per pair of the head's channels.
    pub fn rope(&self, head_dim: usize) -> Result<Rope> {
        ensure!(self.theta > 0.0, "`rope_theta` is {}; it must be positive", self.theta);
        let theta = self.theta as f32;
        let plain = (0..head_dim).step_by(2).map(|channel| theta.powf(channel as f32 / head_dim as f32).recip());
        let inverse_frequencies = match self.scaling {
            Scaling::None => plain.collect(),
            Scaling::Linear { factor } => {
                ensure!(factor > 0.0, "the rope scaling `factor` is {factor}; it must be positive");
                plain.map(|frequency| frequency / factor as f32).collect()
            }
            Scaling::Llama3 { factor, low_frequency_factor, high_frequency_factor, original_max_positions } => {
                ensure!(factor > 0.0, "the rope scaling `factor` is {factor}; it must be positive");
                ensure!(
                    0.0 < low_frequency_factor && low_frequency_factor < high_frequency_factor,
                    "`low_freq_factor` ({low_frequency_factor}) must be positive and below `high_freq_factor` ({high_frequency_factor})"
                );
                let longest_kept = (original_max_positions / high_frequency_factor) as f32;
                let shortest_divided = (original_max_positions / low_frequency_factor) as f32;
                plain
                    .map(|frequency| {
                        let wavelength = frequency.recip() * (2.0 * PI) as f32;
                        if wavelength > shortest_divided {
                            frequency / factor as f32
                        } else if wavelength < longest_kept {
                            frequency
                        } else {
                            let cycles = wavelength.recip() * original_max_positions as f32;
                            let smooth = (cycles - low_frequency_factor as f32) / (high_frequency_factor - low_frequency_factor) as f32;
                            (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
                        }
                    })
                    .collect()
            }
        };
        Ok(Rope { inverse_frequencies })
    }
}
