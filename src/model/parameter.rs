//! A trainable tensor: its checkpoint name, its f32 value, and the gradient buffer that the engine owns.

use candle_core::Tensor;

/// Values and gradients may be bands of a larger fused tensor (query, key and value projections are one matrix); each is contiguous.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// The name in the checkpoint, `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// f32, contiguous; changed in place by the optimizer.
    pub value: Tensor,
    /// f32, the value's shape; `None` when frozen or when the model was loaded for inference. Parameters of several blocks may share one
    /// ([`Purpose::TrainInBackward`](super::decoder::Purpose)).
    pub gradient: Option<Tensor>,
}

impl Parameter {
    /// Weight decay acts on matrices only, as in transformers: norms and biases are not decayed.
    pub fn is_matrix(&self) -> bool {
        self.value.rank() >= 2
    }
}
