//! What a decoder is made of: one description covers Llama, Qwen and Gemma; a family file fills it from `config.json`.

pub use crate::ops::activation::Activation;
pub use crate::ops::rms_norm::NormStyle;

/// Names, within `model.layers.N.`, of the norms around attention and MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockNorms {
    pub before_attention: &'static str,
    /// Gemma 2 and 3 also norm what attention and MLP add to the residual stream.
    pub after_attention: Option<&'static str>,
    pub before_mlp: &'static str,
    pub after_mlp: Option<&'static str>,
}

/// A rotary embedding (the half-split layout of transformers): one inverse frequency per pair of channels.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// head_dim / 2 values, computed in f32 as transformers does.
    pub inverse_frequencies: Vec<f32>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct LayerDescription {
    /// A query at position p sees keys at positions above p - window; all earlier ones when `None`.
    pub window: Option<usize>,
    /// Index into `DecoderDescription::ropes`.
    pub rope: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub struct DecoderDescription {
    /// `model_type` of `config.json`.
    pub model_type: String,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub head_dim: usize,
    pub max_positions: usize,
    pub activation: Activation,
    pub norm_style: NormStyle,
    pub norm_eps: f64,
    pub norms: BlockNorms,
    /// Query and key are normed per head before rope (`self_attn.q_norm`, `self_attn.k_norm`).
    pub query_key_norm: bool,
    pub query_key_value_bias: bool,
    pub output_bias: bool,
    pub mlp_bias: bool,
    /// Attention scores are `query_scale * q·k`.
    pub query_scale: f64,
    /// `cap * tanh(x / cap)` on attention scores and on logits.
    pub attention_soft_cap: Option<f64>,
    pub logit_soft_cap: Option<f64>,
    /// Embeddings are multiplied by this (Gemma: sqrt of the hidden size).
    pub embedding_scale: Option<f64>,
    pub tied_embeddings: bool,
    /// The token whose embedding gets no gradient from the input side, as `padding_idx` of PyTorch's `nn.Embedding`, to which transformers
    /// passes `pad_token_id`. Training equals PyTorch's only so where that token is read: as padding, or as SmolLM2's end of turn.
    pub padding_token: Option<u32>,
    pub ropes: Vec<Rope>,
    pub layers: Vec<LayerDescription>,
}
