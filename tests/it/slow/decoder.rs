//! The slow decoder: one sequence at a time, f64, every op one that candle differentiates.
//!
//! It shares the decoder description with the engine and nothing else: no packing, no fused projections, no saved activations, no chunks. A
//! layer's mask is an explicit `[T, T]` matrix, and the gradients are whatever candle's autograd makes of the lines below.
//!
//! Shapes: T tokens of a sequence, R response tokens, D hidden size, hd head size.

use candle_core::{D, DType, Device, Result, Tensor, Var};
use mpo::model::description::{Activation, DecoderDescription, NormStyle};
use std::collections::BTreeMap;
use std::f64::consts::{PI, SQRT_2};
use std::path::Path;

pub struct SlowDecoder {
    description: DecoderDescription,
    /// By checkpoint name.
    pub weights: BTreeMap<String, Var>,
}

impl SlowDecoder {
    pub fn load(description: &DecoderDescription, safetensors: &Path) -> Result<Self> {
        let tensors = candle_core::safetensors::load(safetensors, &Device::Cpu)?;
        let weights = tensors.into_iter().map(|(name, tensor)| Ok((name, Var::from_tensor(&tensor.to_dtype(DType::F64)?)?)));
        Ok(Self { description: description.clone(), weights: weights.collect::<Result<_>>()? })
    }

    /// Final-norm hidden states `[T, D]`.
    pub fn hidden(&self, tokens: &[u32]) -> Result<Tensor> {
        let d = &self.description;
        let mut x = self.weight("model.embed_tokens.weight").index_select(&Tensor::new(tokens, &Device::Cpu)?, 0)?;
        if let Some(scale) = d.embedding_scale {
            x = (x * scale)?;
        }
        for layer in 0..d.layers.len() {
            x = self.block(layer, &x)?;
        }
        self.norm("model.norm", &x)
    }

    /// Log-probabilities `[R]` of the response's tokens.
    pub fn log_probs(&self, prompt: &[u32], response: &[u32]) -> Result<Tensor> {
        let hidden = self.hidden(&[prompt, response].concat())?.narrow(0, prompt.len() - 1, response.len())?;
        let head = if self.description.tied_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" };
        let logits = capped(hidden.matmul(&self.weight(head).t()?)?, self.description.logit_soft_cap)?;
        let sum_exp = logits.exp()?.sum_keepdim(1)?; // the logits of a test stay far from f64's limits
        logits.broadcast_sub(&sum_exp.log()?)?.gather(&Tensor::new(response, &Device::Cpu)?.unsqueeze(1)?, 1)?.squeeze(1)
    }

    fn block(&self, layer: usize, x: &Tensor) -> Result<Tensor> {
        let norms = &self.description.norms;
        let norm = |name: &str, x: &Tensor| self.norm(&format!("model.layers.{layer}.{name}"), x);
        let norm_if = |name: Option<&str>, x: Tensor| name.map_or(Ok(x.clone()), |name| norm(name, &x));
        let attended = self.attention(layer, &norm(norms.before_attention, x)?)?;
        let x = (x + norm_if(norms.after_attention, attended)?)?;
        let middle = self.mlp(layer, &norm(norms.before_mlp, &x)?)?;
        x + norm_if(norms.after_mlp, middle)?
    }

    fn attention(&self, layer: usize, x: &Tensor) -> Result<Tensor> {
        let d = &self.description;
        let prefix = format!("model.layers.{layer}.self_attn");
        let n_tokens = x.dim(0)?;
        // `[T, heads * hd]` to `[heads, T, hd]`.
        let heads = |projection: &str, n_heads: usize, norm: Option<&str>| -> Result<Tensor> {
            let projected = self.linear(&format!("{prefix}.{projection}"), x, d.query_key_value_bias)?;
            let heads = projected.reshape((n_tokens, n_heads, d.head_dim))?;
            let heads =
                norm.filter(|_| d.query_key_norm).map_or(Ok(heads.clone()), |norm| self.norm(&format!("{prefix}.{norm}"), &heads))?;
            heads.transpose(0, 1)?.contiguous()
        };
        // Each key-value head stands once for every query head that reads it.
        let repeated = |kv: Tensor| {
            let shape = (d.n_kv_heads, d.n_heads / d.n_kv_heads, n_tokens, d.head_dim);
            kv.unsqueeze(1)?.broadcast_as(shape)?.reshape((d.n_heads, n_tokens, d.head_dim))
        };
        let q = self.turned(layer, &heads("q_proj", d.n_heads, Some("q_norm"))?)?;
        let k = repeated(self.turned(layer, &heads("k_proj", d.n_kv_heads, Some("k_norm"))?)?)?;
        let v = repeated(heads("v_proj", d.n_kv_heads, None)?)?;

        let scores = capped((q.matmul(&k.transpose(1, 2)?.contiguous()?)? * d.query_scale)?, d.attention_soft_cap)?;
        let weights = scores.broadcast_add(&mask(n_tokens, d.layers[layer].window)?)?.exp()?; // exp(-inf) is 0, and so is its gradient
        let attended = weights.broadcast_div(&weights.sum_keepdim(2)?)?.matmul(&v)?;
        let attended = attended.transpose(0, 1)?.contiguous()?.reshape((n_tokens, d.n_heads * d.head_dim))?;
        self.linear(&format!("{prefix}.o_proj"), &attended, d.output_bias)
    }

    fn mlp(&self, layer: usize, x: &Tensor) -> Result<Tensor> {
        let bias = self.description.mlp_bias;
        let linear = |name: &str, x: &Tensor| self.linear(&format!("model.layers.{layer}.mlp.{name}"), x, bias);
        let gate = linear("gate_proj", x)?;
        let activated = match self.description.activation {
            Activation::Silu => (&gate / (gate.neg()?.exp()? + 1.0)?)?,
            Activation::Gelu => ((&gate * 0.5)? * ((&gate / SQRT_2)?.erf()? + 1.0)?)?,
            Activation::GeluTanh => {
                let cubic = (gate.sqr()? * (&gate * 0.044715)?)?;
                let inner = ((&gate + cubic)? * (2.0 / PI).sqrt())?;
                ((&gate * 0.5)? * (inner.tanh()? + 1.0)?)?
            }
        };
        linear("down_proj", &(activated * linear("up_proj", x)?)?)
    }

    /// RMS norm over the last dimension.
    fn norm(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let weight = self.weight(&format!("{name}.weight"));
        let weight = match self.description.norm_style {
            NormStyle::Plain => weight.clone(),
            NormStyle::OnePlus => (weight + 1.0)?,
        };
        let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
        x.broadcast_div(&(mean_square + self.description.norm_eps)?.sqrt()?)?.broadcast_mul(&weight)
    }

    fn linear(&self, name: &str, x: &Tensor, has_bias: bool) -> Result<Tensor> {
        let y = x.matmul(&self.weight(&format!("{name}.weight")).t()?)?;
        if has_bias { y.broadcast_add(self.weight(&format!("{name}.bias"))) } else { Ok(y) }
    }

    /// Rotary embedding of `[heads, T, hd]`: channels i and i + hd/2 are the two coordinates that turn.
    fn turned(&self, layer: usize, x: &Tensor) -> Result<Tensor> {
        let rope = &self.description.ropes[self.description.layers[layer].rope];
        let (n_tokens, half) = (x.dim(1)?, rope.inverse_frequencies.len());
        let angle = |position: usize| rope.inverse_frequencies.iter().map(move |&frequency| position as f64 * f64::from(frequency));
        let angles = Tensor::from_iter((0..n_tokens).flat_map(angle), &Device::Cpu)?.reshape((n_tokens, half))?;
        let (cos, sin) = (angles.cos()?, angles.sin()?);
        let (a, b) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
        let turned_a = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let turned_b = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        Tensor::cat(&[turned_a, turned_b], 2)
    }

    fn weight(&self, name: &str) -> &Tensor {
        &self.weights[name]
    }
}

/// `[T, T]`: 0 where the query (row) sees the key (column), -inf elsewhere.
fn mask(n_tokens: usize, window: Option<usize>) -> Result<Tensor> {
    let sees = |query: usize, key: usize| key <= query && window.is_none_or(|window| query - key < window);
    let row = |query| (0..n_tokens).map(move |key| if sees(query, key) { 0.0 } else { f64::NEG_INFINITY });
    Tensor::from_iter((0..n_tokens).flat_map(row), &Device::Cpu)?.reshape((n_tokens, n_tokens))
}

fn capped(x: Tensor, cap: Option<f64>) -> Result<Tensor> {
    match cap {
        Some(cap) => (x / cap)?.tanh()? * cap,
        None => Ok(x),
    }
}
