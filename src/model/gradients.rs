//! The gradient buffers that a decoder owns: one for each fused tensor, or, where blocks are updated within the backward pass, one set for all blocks.

use super::layers::Purpose;
use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;

/// Buffers by the name of the tensor that they are for, or of what several tensors have in common.
#[derive(Debug)]
pub(super) struct Gradients {
    purpose: Purpose,
    by_name: BTreeMap<String, Tensor>,
}

impl Gradients {
    pub fn new(purpose: Purpose) -> Self {
        Self { purpose, by_name: BTreeMap::new() }
    }

    /// Zeros for the tensor `name` in f32; `None` where nothing is trained. Tensors that share a buffer have the same shape.
    pub fn make(&mut self, name: &str, shape: &[usize], device: &Device) -> Result<Option<Tensor>> {
        let name = match self.purpose {
            Purpose::Inference => return Ok(None),
            Purpose::Train => name,
            Purpose::TrainInBackward => shared_name(name),
        };
        if let Some(gradient) = self.by_name.get(name) {
            return Ok(Some(gradient.clone()));
        }
        let gradient = Tensor::zeros(shape, DType::F32, device)?;
        self.by_name.insert(name.to_owned(), gradient.clone());
        Ok(Some(gradient))
    }

    pub fn are_shared(&self) -> bool {
        self.purpose == Purpose::TrainInBackward
    }

    pub fn buffers(&self) -> impl Iterator<Item = &Tensor> {
        self.by_name.values()
    }
}

/// What tensors have in common whose gradients are never there together: their place in a block; embeddings and head, the last and the first of a backward.
pub(crate) fn shared_name(name: &str) -> &str {
    let in_block = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')).map(|(_layer, rest)| rest);
    match name {
        "lm_head.weight" => "model.embed_tokens.weight",
        _ => in_block.unwrap_or(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_share_and_so_do_head_and_embeddings() {
        assert_eq!(shared_name("model.layers.0.mlp.gate_proj.weight"), shared_name("model.layers.31.mlp.gate_proj.weight"));
        assert_eq!(shared_name("lm_head.weight"), shared_name("model.embed_tokens.weight"));
        assert_ne!(shared_name("model.norm.weight"), shared_name("model.layers.0.input_layernorm.weight"));
        let mut gradients = Gradients::new(Purpose::TrainInBackward);
        for layer in 0..3 {
            gradients.make(&format!("model.layers.{layer}.self_attn.q_proj.weight"), &[4, 4], &Device::Cpu).unwrap();
        }
        assert_eq!(gradients.buffers().count(), 1);
    }
}
