//! Typed access to `config.json`, and what decoders of every family read from it.
//!
//! A key that is absent takes the family's default; `null` means "none" where none is a value, what follows from other keys where the configuration
//! classes of transformers work it out (`num_key_value_heads`, `head_dim`), and the default elsewhere.

use super::{TWO_NORMS, rope, uniform_layers};
use crate::model::description::{Activation, DecoderDescription, NormStyle};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

#[derive(Clone, Copy)]
pub(super) struct Config<'a> {
    keys: &'a Map<String, Value>,
}

/// What a family assumes where `config.json` is silent: the defaults of its configuration class in transformers.
pub(super) struct Defaults {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub n_layers: usize,
    pub n_heads: usize,
    /// As many as attention heads when `None`.
    pub n_kv_heads: Option<usize>,
    /// hidden_size / n_heads when `None`.
    pub head_dim: Option<usize>,
    pub max_positions: usize,
    pub tied_embeddings: bool,
    pub pad_token_id: Option<u32>,
    /// The name of the key, which differs between families, and its default.
    pub activation: (&'static str, &'static str),
}

impl<'a> Config<'a> {
    pub fn new(config: &'a Value) -> Result<Self> {
        let keys = config.as_object().context("config.json is not a JSON object")?;
        Ok(Self { keys })
    }

    /// The value of a key that is there and not null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    pub fn size(&self, key: &str) -> Result<Option<usize>> {
        self.get(key).map(|value| as_size(key, value)).transpose()
    }

    /// A size, or `default` where the key is absent. Where it is null there is none: it follows from others.
    fn derived_size(&self, key: &str, default: Option<usize>) -> Result<Option<usize>> {
        if self.keys.contains_key(key) { self.size(key) } else { Ok(default) }
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key).map(|value| as_number(key, value)).transpose()
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key).map(|value| value.as_str().with_context(|| format!("`{key}` should be a string, is {value}"))).transpose()
    }

    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        self.get(key).map_or(Ok(default), |value| value.as_bool().with_context(|| format!("`{key}` should be true or false, is {value}")))
    }

    /// A number that may be switched off: absent is the default, null is off.
    pub fn optional_number(&self, key: &str, default: Option<f64>) -> Result<Option<f64>> {
        if self.keys.contains_key(key) { self.number(key) } else { Ok(default) }
    }

    /// A size that may be switched off: absent is the default, null is off.
    pub fn optional_size(&self, key: &str, default: Option<usize>) -> Result<Option<usize>> {
        if self.keys.contains_key(key) { self.size(key) } else { Ok(default) }
    }

    /// An error when the key has a value.
    pub fn refuse(&self, key: &str, advice: &str) -> Result<()> {
        if self.get(key).is_some() {
            bail!("`{key}` is set: {advice}");
        }
        Ok(())
    }

    /// For each of `n_layers`, whether its window slides: from `layer_types`, or by the family's rule where the key is absent.
    pub fn sliding_layers(&self, n_layers: usize, rule: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
        let Some(types) = self.get("layer_types") else {
            return Ok((0..n_layers).map(rule).collect());
        };
        let types = types.as_array().context("`layer_types` should be a list")?;
        ensure!(types.len() == n_layers, "`layer_types` has {} entries for {n_layers} layers", types.len());
        types
            .iter()
            .map(|layer_type| match layer_type.as_str() {
                Some("sliding_attention") => Ok(true),
                Some("full_attention") => Ok(false),
                _ => bail!("`layer_types` has {layer_type}; sliding_attention and full_attention are supported"),
            })
            .collect()
    }

    /// A decoder as Llama has it: pre-norms, SiLU, no biases, one rope, every layer sees everything before it. Families change what differs.
    pub fn plain_decoder(&self, defaults: &Defaults) -> Result<DecoderDescription> {
        let decoder = self.decoder_without_rope(defaults)?;
        Ok(DecoderDescription { ropes: rope::shared(self, decoder.head_dim, decoder.max_positions)?, ..decoder })
    }

    /// The same with no rope yet, for families whose layers do not share one.
    pub fn decoder_without_rope(&self, defaults: &Defaults) -> Result<DecoderDescription> {
        let size = |key, default| Ok::<_, anyhow::Error>(self.size(key)?.unwrap_or(default));
        let hidden_size = size("hidden_size", defaults.hidden_size)?;
        let n_heads = size("num_attention_heads", defaults.n_heads)?;
        let head_dim = match self.derived_size("head_dim", defaults.head_dim)? {
            Some(head_dim) => head_dim,
            None => {
                ensure!(
                    n_heads > 0 && hidden_size.is_multiple_of(n_heads),
                    "`hidden_size` ({hidden_size}) is not a multiple of `num_attention_heads` ({n_heads}), and there is no `head_dim`"
                );
                hidden_size / n_heads
            }
        };
        Ok(DecoderDescription {
            model_type: self.text("model_type")?.unwrap_or_default().to_owned(),
            vocab_size: size("vocab_size", defaults.vocab_size)?,
            hidden_size,
            intermediate_size: size("intermediate_size", defaults.intermediate_size)?,
            n_heads,
            n_kv_heads: self.derived_size("num_key_value_heads", defaults.n_kv_heads)?.unwrap_or(n_heads),
            head_dim,
            max_positions: size("max_position_embeddings", defaults.max_positions)?,
            activation: self.activation(defaults.activation)?,
            norm_style: NormStyle::Plain,
            norm_eps: self.number("rms_norm_eps")?.unwrap_or(1e-6),
            norms: TWO_NORMS,
            query_key_norm: false,
            query_key_value_bias: false,
            output_bias: false,
            mlp_bias: false,
            query_scale: (head_dim as f64).powf(-0.5),
            attention_soft_cap: None,
            logit_soft_cap: None,
            embedding_scale: None,
            tied_embeddings: self.flag("tie_word_embeddings", defaults.tied_embeddings)?,
            padding_token: self.padding_token(size("vocab_size", defaults.vocab_size)?, defaults.pad_token_id)?,
            ropes: Vec::new(),
            layers: uniform_layers(size("num_hidden_layers", defaults.n_layers)?, None),
        })
    }

    /// `pad_token_id`; a negative one (some Llama 1 and 2 checkpoints have -1) counts from the end, as `nn.Embedding` takes it.
    fn padding_token(&self, vocab_size: usize, default: Option<u32>) -> Result<Option<u32>> {
        if !self.keys.contains_key("pad_token_id") {
            return Ok(default);
        }
        let Some(value) = self.get("pad_token_id") else { return Ok(None) };
        let id = value.as_i64().with_context(|| format!("`pad_token_id` should be a whole number, is {value}"))?;
        let from_start = if id < 0 { id + vocab_size as i64 } else { id };
        Ok(u32::try_from(from_start).ok())
    }

    fn activation(&self, (key, default): (&str, &str)) -> Result<Activation> {
        match self.text(key)?.unwrap_or(default) {
            "silu" | "swish" => Ok(Activation::Silu),
            // Three spellings of one formula; `gelu_new` writes the tanh approximation out.
            "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
            "gelu" | "gelu_python" => Ok(Activation::Gelu),
            other => bail!("`{key}` is `{other}`; silu, gelu_pytorch_tanh and gelu are supported"),
        }
    }
}

/// A size that may be computed with: products of three stay far from what a number can hold.
pub(super) fn as_size(key: &str, value: &Value) -> Result<usize> {
    let size = value.as_u64().with_context(|| format!("`{key}` should be a whole number, is {value}"))?;
    let most = match key {
        "num_hidden_layers" => 1 << 13,
        "vocab_size" => 1 << 26,
        "max_position_embeddings" | "sliding_window" | "max_window_layers" => 1 << 40,
        _ => 1 << 21,
    };
    ensure!(size <= most, "`{key}` is {size}, and no model has more than {most}");
    Ok(size as usize)
}

pub(super) fn as_number(key: &str, value: &Value) -> Result<f64> {
    value.as_f64().with_context(|| format!("`{key}` should be a number, is {value}"))
}
