//! One decoder block: attention and gated MLP, each around a residual connection.
//!
//! ```text
//! m = x + norm?(o_proj(attention(rope(qk_norm?(qkv_proj(norm(x)))))))
//! y = m + norm?(down_proj(act(gate) * up)),   gate|up = gate_up_proj(norm(m))
//! ```
//!
//! `norm?` and `qk_norm?` are there in the families that have them. The forward saves what a product or a non-linearity needs; what one
//! elementwise pass can make again (normed rows, the MLP's middle) is made again in the backward.

use super::description::{Activation, DecoderDescription};
use super::layers::{Builder, Linear, Norm};
use crate::data::batch::Segment;
use crate::ops::attention::cached::{self, KeyValues};
use crate::ops::attention::{self, Attention};
use crate::ops::dropout::RowKeys;
use crate::ops::linear::accumulate;
use crate::ops::rms_norm::Heads;
use crate::ops::rope::{RopeTable, Turn};
use crate::ops::{self, Buffer, activation};
use anyhow::Result;
use candle_core::Tensor;
use std::ops::Range;

/// What the ops need to know of a packed batch: where sequences lie, the angles of every token, and what is dropped of it.
pub(super) struct Layout<'a> {
    pub segments: &'a [Segment],
    /// One per rotary embedding of the description.
    pub ropes: &'a [RopeTable],
    /// Keys of the dropout masks, one a token; `None` where nothing is dropped.
    pub row_keys: Option<&'a RowKeys>,
}

#[derive(Debug)]
pub(super) struct Block {
    attention: Attention,
    rope: usize,
    activation: Activation,
    attention_norm: Norm,
    qkv: Linear,
    query_key_norms: Option<[Norm; 2]>,
    output: Linear,
    after_attention_norm: Option<Norm>,
    mlp_norm: Norm,
    gate_up: Linear,
    down: Linear,
    after_mlp_norm: Option<Norm>,
}

/// What one block's forward leaves for its backward.
pub(super) struct SavedBlock {
    /// `[N, D]`
    x: Buffer,
    x_r: Buffer,
    /// Projections before the query-key norm, and its r of queries and keys.
    unnormed: Option<(Buffer, [Buffer; 2])>,
    /// `[N, (H + 2K) hd]`, normed and turned.
    qkv: Buffer,
    attended: Buffer,
    log_sum_exp: Buffer,
    /// Input and r of the norm after attention.
    attention_out: Option<(Buffer, Buffer)>,
    /// `[N, D]`, the residual stream between attention and MLP.
    middle: Buffer,
    middle_r: Buffer,
    gate_up: Buffer,
    /// Input and r of the norm after the MLP.
    mlp_out: Option<(Buffer, Buffer)>,
}

impl SavedBlock {
    /// What the block was run on, `[N, D]`.
    pub fn into_input(self) -> Buffer {
        self.x
    }
}

impl Block {
    pub fn build(builder: &mut Builder, layer: usize) -> Result<Self> {
        let d = builder.description;
        let prefix = format!("model.layers.{layer}");
        let (attention, mlp) = (format!("{prefix}.self_attn"), format!("{prefix}.mlp"));
        let (query_size, kv_size) = (d.n_heads * d.head_dim, d.n_kv_heads * d.head_dim);
        let norm = |builder: &mut Builder, name: &str| builder.norm(&format!("{prefix}.{name}"), d.hidden_size);
        let head_norm = |builder: &mut Builder, name: &str| builder.norm(&format!("{attention}.{name}"), d.head_dim);
        Ok(Self {
            attention: attention_of(d, layer),
            rope: d.layers[layer].rope,
            activation: d.activation,
            attention_norm: norm(builder, d.norms.before_attention)?,
            qkv: builder.linear(
                &attention,
                &[("q_proj", query_size), ("k_proj", kv_size), ("v_proj", kv_size)],
                d.hidden_size,
                d.query_key_value_bias,
            )?,
            query_key_norms: match d.query_key_norm {
                true => Some([head_norm(builder, "q_norm")?, head_norm(builder, "k_norm")?]),
                false => None,
            },
            output: builder.linear(&attention, &[("o_proj", d.hidden_size)], query_size, d.output_bias)?,
            after_attention_norm: d.norms.after_attention.map(|name| norm(builder, name)).transpose()?,
            mlp_norm: norm(builder, d.norms.before_mlp)?,
            gate_up: builder.linear(
                &mlp,
                &[("gate_proj", d.intermediate_size), ("up_proj", d.intermediate_size)],
                d.hidden_size,
                d.mlp_bias,
            )?,
            down: builder.linear(&mlp, &[("down_proj", d.hidden_size)], d.intermediate_size, d.mlp_bias)?,
            after_mlp_norm: d.norms.after_mlp.map(|name| norm(builder, name)).transpose()?,
        })
    }

    /// `x [N, D]` to the next residual stream `[N, D]`.
    pub fn forward(&self, x: Buffer, layout: &Layout) -> Result<(Buffer, SavedBlock)> {
        let mut saved = self.forward_to_gate(x, layout)?;
        let activated = activation::forward(&saved.gate_up, self.activation)?;
        let (y, mlp_out) = after(&self.after_mlp_norm, self.down.forward(&activated, layout.row_keys)?)?;
        accumulate(&y, &saved.middle)?;
        saved.mlp_out = mlp_out;
        Ok((y, saved))
    }

    /// What [`Block::forward`] saved, again. The last product is left out where nothing of it was saved.
    pub fn saved_again(&self, x: Buffer, layout: &Layout) -> Result<SavedBlock> {
        match self.after_mlp_norm {
            Some(_) => Ok(self.forward(x, layout)?.1),
            None => self.forward_to_gate(x, layout),
        }
    }

    /// The forward as far as the MLP's gate.
    fn forward_to_gate(&self, x: Buffer, layout: &Layout) -> Result<SavedBlock> {
        let (normed, x_r) = self.attention_norm.forward(&x)?;
        let qkv = self.qkv.forward(&normed, layout.row_keys)?;
        drop(normed);
        let unnormed = self.norm_query_key(&qkv)?;
        self.turn(&qkv, layout.ropes, Turn::Forward)?;
        let (attended, log_sum_exp) = attention::forward(&qkv, layout.segments, &self.attention)?;
        let (middle, attention_out) = after(&self.after_attention_norm, self.output.forward(&attended, layout.row_keys)?)?;
        let (normed, middle_r) = self.mlp_norm.forward_sum(&middle, &x)?;
        let gate_up = self.gate_up.forward(&normed, layout.row_keys)?;
        Ok(SavedBlock { x, x_r, unnormed, qkv, attended, log_sum_exp, attention_out, middle, middle_r, gate_up, mlp_out: None })
    }

    /// Keys and values of some rows of a forward, the tokens of one sequence from its first on.
    pub fn keys_values(&self, saved: &SavedBlock, rows: Range<usize>) -> Result<KeyValues> {
        let mut kept = KeyValues::new(&self.attention);
        cached::keep(&saved.qkv, rows, &self.attention, &mut kept)?;
        Ok(kept)
    }

    /// The forward of one token of each of M sequences, `x [M, D]`. It sees what was `kept` of its sequence, which grows by it.
    pub fn forward_next(&self, x: Buffer, ropes: &[RopeTable], kept: Vec<&mut KeyValues>) -> Result<Buffer> {
        let (normed, _) = self.attention_norm.forward(&x)?;
        let qkv = self.qkv.forward_few(&normed)?;
        self.norm_query_key(&qkv)?;
        self.turn(&qkv, ropes, Turn::Forward)?;
        let attended = cached::forward_next(&qkv, kept, &self.attention)?;
        let (middle, _) = after(&self.after_attention_norm, self.output.forward_few(&attended)?)?;
        let (normed, _) = self.mlp_norm.forward_sum(&middle, &x)?;
        let gate_up = self.gate_up.forward_few(&normed)?;
        let activated = activation::forward(&gate_up, self.activation)?;
        let (y, _) = after(&self.after_mlp_norm, self.down.forward_few(&activated)?)?;
        accumulate(&y, &middle)?;
        Ok(y)
    }

    /// `dy [N, D]` to `dx [N, D]`; adds to the block's gradients.
    pub fn backward(&self, saved: SavedBlock, dy: Buffer, layout: &Layout) -> Result<Buffer> {
        let d_middle = self.mlp_backward(&saved, &dy, layout)?;
        drop(dy);
        self.attention_backward(&saved, &d_middle, layout)
    }

    /// As [`Block::backward`], where nothing below is trained: without `dx`, and no further than the lowest gradient of the block.
    pub fn backward_lowest(&self, saved: SavedBlock, dy: Buffer, layout: &Layout) -> Result<()> {
        let d_middle = self.mlp_backward(&saved, &dy, layout)?;
        drop(dy);
        if self.output.is_trained() || self.qkv.is_trained() {
            let d_qkv = self.backward_to_qkv(&saved, &d_middle, layout)?;
            let normed = self.attention_norm.recompute(&saved.x, &saved.x_r)?;
            self.qkv.backward_weight(&normed, &d_qkv, layout.row_keys)?;
        }
        Ok(())
    }

    /// Whether any of its projections has a gradient.
    pub fn is_trained(&self) -> bool {
        [&self.qkv, &self.output, &self.gate_up, &self.down].iter().any(|linear| linear.is_trained())
    }

    /// The gradient of the residual stream between attention and MLP, both ways out of it.
    fn mlp_backward(&self, saved: &SavedBlock, dy: &Tensor, layout: &Layout) -> Result<Buffer> {
        let d_down = after_backward(&self.after_mlp_norm, &saved.mlp_out, dy)?;
        let d_down = d_down.as_deref().unwrap_or(dy);
        let d_activated = self.down.backward_input(d_down, layout.row_keys)?;
        let (activated, d_gate_up) = activation::backward(&saved.gate_up, &d_activated, self.activation)?;
        drop(d_activated);
        self.down.backward_weight(&activated, d_down, layout.row_keys)?;
        drop(activated);
        let normed = self.mlp_norm.recompute(&saved.middle, &saved.middle_r)?;
        let d_normed = self.gate_up.backward(&normed, &d_gate_up, layout.row_keys)?;
        self.mlp_norm.backward_sum(&saved.middle, &saved.middle_r, &d_normed, dy)
    }

    /// The gradient of the block's input, both ways out of it.
    fn attention_backward(&self, saved: &SavedBlock, d_middle: &Tensor, layout: &Layout) -> Result<Buffer> {
        let d_qkv = self.backward_to_qkv(saved, d_middle, layout)?;
        let normed = self.attention_norm.recompute(&saved.x, &saved.x_r)?;
        let d_normed = self.qkv.backward(&normed, &d_qkv, layout.row_keys)?;
        self.attention_norm.backward_sum(&saved.x, &saved.x_r, &d_normed, d_middle)
    }

    /// The gradient of the three projections' output.
    fn backward_to_qkv(&self, saved: &SavedBlock, d_middle: &Tensor, layout: &Layout) -> Result<Buffer> {
        let d_output = after_backward(&self.after_attention_norm, &saved.attention_out, d_middle)?;
        let d_attended = self.output.backward(&saved.attended, d_output.as_deref().unwrap_or(d_middle), layout.row_keys)?;
        let d_qkv = attention::backward(&saved.qkv, &saved.attended, &saved.log_sum_exp, &d_attended, layout.segments, &self.attention)?;
        drop(d_attended);
        self.turn(&d_qkv, layout.ropes, Turn::Backward)?;
        if let (Some(norms), Some((unnormed, r))) = (&self.query_key_norms, &saved.unnormed) {
            for ((norm, r), heads) in norms.iter().zip(r).zip(self.query_key_heads()) {
                norm.backward_heads(unnormed, r, &d_qkv, heads)?;
            }
        }
        Ok(d_qkv)
    }

    /// Norms queries and keys in place, where the family does, and keeps what they were.
    fn norm_query_key(&self, qkv: &Tensor) -> Result<Option<(Buffer, [Buffer; 2])>> {
        let Some([query_norm, key_norm]) = &self.query_key_norms else { return Ok(None) };
        let unnormed = ops::copy(qkv)?;
        let [queries, keys] = self.query_key_heads();
        let r = [query_norm.forward_heads(qkv, queries)?, key_norm.forward_heads(qkv, keys)?];
        Ok(Some((unnormed, r)))
    }

    fn query_key_heads(&self) -> [Heads; 2] {
        let Attention { n_heads, n_kv_heads, head_dim, .. } = self.attention;
        let row_width = (n_heads + 2 * n_kv_heads) * head_dim;
        [Heads { row_width, first: 0, n_heads, head_dim }, Heads { row_width, first: n_heads * head_dim, n_heads: n_kv_heads, head_dim }]
    }

    /// Turns queries and keys in place.
    fn turn(&self, qkv: &Tensor, ropes: &[RopeTable], turn: Turn) -> Result<()> {
        let Attention { n_heads, n_kv_heads, .. } = self.attention;
        ropes[self.rope].turn_tensor(qkv, n_heads + n_kv_heads, turn)
    }
}

fn attention_of(d: &DecoderDescription, layer: usize) -> Attention {
    Attention {
        n_heads: d.n_heads,
        n_kv_heads: d.n_kv_heads,
        head_dim: d.head_dim,
        scale: d.query_scale,
        window: d.layers[layer].window,
        soft_cap: d.attention_soft_cap,
    }
}

/// The norm behind attention or MLP, where there is one; its input and r are kept.
fn after(norm: &Option<Norm>, x: Buffer) -> Result<(Buffer, Option<(Buffer, Buffer)>)> {
    let Some(norm) = norm else { return Ok((x, None)) };
    let (y, r) = norm.forward(&x)?;
    Ok((y, Some((x, r))))
}

/// `None` where there is no norm: the gradient is then the same on both sides.
fn after_backward(norm: &Option<Norm>, saved: &Option<(Buffer, Buffer)>, dy: &Tensor) -> Result<Option<Buffer>> {
    norm.as_ref().zip(saved.as_ref()).map(|(norm, (x, r))| norm.backward(x, r, dy)).transpose()
}
