//! Low-rank terms (LoRA) in a decoder: which projections have one, and its two matrices beside the frozen weight.
//!
//! This is all that the engine knows of adapters. A linear map (`layers`) adds the term to its product; what follows from frozen weights (no weight
//! gradients, a backward that ends at the lowest term) follows from gradient buffers that are not there.

use super::gradients::Gradients;
use super::parameter::Parameter;
use crate::config::ComputeDtype;
use crate::ops::dropout::{Dropout, RowKeys, mix_text};
use crate::ops::low_rank::{Band, LowRank};
use crate::ops::{Place, read};
use anyhow::Result;
use candle_core::Tensor;
use std::collections::BTreeSet;

/// What the names of a projection's two matrices end in, as PEFT names them.
const A: &str = "lora_A.weight";
const B: &str = "lora_B.weight";

/// Which projections of a decoder have a low-rank term, and how it counts: `y += scale (d(x) Aᵀ) Bᵀ`.
#[derive(Debug, Clone, PartialEq)]
pub struct Adaptation {
    /// Rows of every A.
    pub rank: usize,
    pub scale: f64,
    /// Share of the term's input that a training forward drops.
    pub dropout: f64,
    /// Of the dropout masks.
    pub seed: u64,
    /// As the checkpoint names them without `.weight`: `model.layers.0.self_attn.q_proj`.
    pub projections: BTreeSet<String>,
}

/// The names of a projection's A and B.
pub fn names(projection: &str) -> [String; 2] {
    [A, B].map(|matrix| format!("{projection}.{matrix}"))
}

/// The projection that the parameter `name` is A or B of, if it is.
pub fn projection_of(name: &str) -> Option<&str> {
    [A, B].iter().find_map(|matrix| name.strip_suffix(matrix)?.strip_suffix('.'))
}

/// Whether the terms add anything: a new adapter's B are all zero.
pub fn has_effect(parameters: &[Parameter]) -> Result<bool> {
    for parameter in parameters.iter().filter(|parameter| parameter.name.ends_with(B)) {
        if read(&parameter.value)?.iter().any(|&value| value != 0.0) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The terms of projections with a common input, one fused A.
#[derive(Debug)]
pub(super) struct LowRankTerm {
    a: Tensor,
    a_gradient: Option<Tensor>,
    bands: Vec<Band>,
    scale: f32,
    dropout: f64,
    /// Sets its masks apart from those of other inputs.
    place: u64,
    compute: ComputeDtype,
}

impl LowRankTerm {
    /// All zeros, for those of `projections` (checkpoint name, rows) that `adaptation` names; `None` where it names none of them.
    pub fn build(
        adaptation: &Adaptation,
        projections: &[(String, usize)],
        n_in: usize,
        place: &Place,
        gradients: &mut Gradients,
    ) -> Result<Option<(Self, Vec<Parameter>)>> {
        let mut columns = Vec::new();
        let mut start = 0;
        for (name, rows) in projections {
            if adaptation.projections.contains(name) {
                columns.push((name, start..start + rows));
            }
            start += rows;
        }
        let Some((first, _)) = columns.first() else { return Ok(None) };
        let rank = adaptation.rank;
        let zeros = |rows: usize, width: usize| Tensor::zeros((rows, width), place.storage, &place.device);
        let mut gradient = |name: &str, rows: usize, width: usize| gradients.make(name, &[rows, width], &place.device);
        let fused_a = format!("{first}.{A}");
        let (a, a_gradient) = (zeros(columns.len() * rank, n_in)?, gradient(&fused_a, columns.len() * rank, n_in)?);
        let mask_place = mix_text(adaptation.seed, first);
        let (mut bands, mut parameters) = (Vec::new(), Vec::new());
        for (j, (name, columns)) in columns.into_iter().enumerate() {
            let [name_a, name_b] = names(name);
            let (b, b_gradient) = (zeros(columns.len(), rank)?, gradient(&name_b, columns.len(), rank)?);
            let own_rows = |t: &Tensor| t.narrow(0, j * rank, rank);
            parameters.push(Parameter { name: name_a, value: own_rows(&a)?, gradient: a_gradient.as_ref().map(own_rows).transpose()? });
            parameters.push(Parameter { name: name_b, value: b.clone(), gradient: b_gradient.clone() });
            bands.push(Band { columns, b, b_gradient });
        }
        let term = Self {
            a,
            a_gradient,
            bands,
            scale: adaptation.scale as f32,
            dropout: adaptation.dropout,
            place: mask_place,
            compute: place.compute,
        };
        Ok(Some((term, parameters)))
    }

    pub fn forward(&self, x: &Tensor, y: &Tensor, row_keys: Option<&RowKeys>) -> Result<()> {
        self.op().forward(x, y, self.mask(row_keys))
    }

    pub fn forward_few(&self, x: &Tensor, y: &Tensor) -> Result<()> {
        self.op().forward_few(x, y)
    }

    pub fn backward_input(&self, dy: &Tensor, dx: &Tensor, row_keys: Option<&RowKeys>) -> Result<()> {
        self.op().backward_input(dy, dx, self.mask(row_keys))
    }

    pub fn backward_weight(&self, x: &Tensor, dy: &Tensor, row_keys: Option<&RowKeys>) -> Result<()> {
        match &self.a_gradient {
            Some(gradient) => self.op().backward_weight(x, dy, gradient, self.mask(row_keys)),
            None => Ok(()),
        }
    }

    pub fn is_trained(&self) -> bool {
        self.a_gradient.is_some()
    }

    fn op(&self) -> LowRank<'_> {
        LowRank { a: &self.a, bands: &self.bands, scale: self.scale, compute: self.compute }
    }

    fn mask<'k>(&self, row_keys: Option<&'k RowKeys>) -> Option<Dropout<'k>> {
        row_keys.map(|row_keys| Dropout { probability: self.dropout, place: self.place, row_keys })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_names_its_projection() {
        let [a, b] = names("model.layers.0.mlp.up_proj");
        assert_eq!((projection_of(&a), projection_of(&b)), (Some("model.layers.0.mlp.up_proj"), Some("model.layers.0.mlp.up_proj")));
        assert_eq!(projection_of("model.layers.0.mlp.up_proj.weight"), None);
    }
}
