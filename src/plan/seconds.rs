//! How long it takes: operations by the rates that were measured.

use super::rates::Rates;
use super::work::{Flops, Pass, elementwise_bytes};
use crate::model::description::DecoderDescription;
use serde::Serialize;
use std::ops::AddAssign;

/// Of one step, by what limits it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Seconds {
    /// Matrix products with the weights.
    pub products: f64,
    pub attention: f64,
    /// Everything between products.
    pub elementwise: f64,
    /// Clearing gradients, their norm, the update.
    pub optimizer: f64,
}

impl AddAssign for Seconds {
    fn add_assign(&mut self, other: Self) {
        self.products += other.products;
        self.attention += other.attention;
        self.elementwise += other.elementwise;
        self.optimizer += other.optimizer;
    }
}

impl Seconds {
    /// `flops` are those of `passes`, and of whatever is run again; `update_bytes` are what the update moves.
    pub fn of_step(passes: &[Pass], flops: &Flops, description: &DecoderDescription, update_bytes: f64, rates: &Rates) -> Self {
        // Counted in f32.
        let stored = rates.bytes_of_value as f64 / size_of::<f32>() as f64;
        let elementwise: f64 = passes.iter().map(|pass| stored * elementwise_bytes(pass, description)).sum();
        Self {
            products: flops.of_products() / rates.products,
            attention: flops.attention / rates.attention,
            elementwise: elementwise / rates.bytes,
            optimizer: update_bytes / rates.bytes,
        }
    }

    /// Without an update.
    pub fn of_passes(&self) -> f64 {
        self.products + self.attention + self.elementwise
    }

    pub fn scaled(&self, factor: f64) -> Self {
        Self {
            products: factor * self.products,
            attention: factor * self.attention,
            elementwise: factor * self.elementwise,
            optimizer: factor * self.optimizer,
        }
    }

    pub fn total(&self) -> f64 {
        self.of_passes() + self.optimizer
    }
}

#[cfg(test)]
mod tests {
    use super::super::StepMemory;
    use super::super::rates::Measured;
    use super::super::work::Gradient;
    use super::*;
    use crate::model::family::describe;
    use serde_json::json;

    #[test]
    fn each_part_is_its_work_by_its_rate() {
        let config = json!({
            "model_type": "llama", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": true,
        });
        let d = describe(&config).unwrap();
        let pass = Pass { n_tokens: 10, n_visible: 30, n_largest_tree: 10, n_scored: 2, n_compared: 0, gradient: Gradient::None };
        let rates = Rates { products: 1000.0, attention: 100.0, bytes: 10.0, bytes_of_value: 4, of: Measured::Threads(1) };
        let flops = Flops::of(&pass, &d, StepMemory::default());
        let seconds = Seconds::of_step(&[pass], &flops, &d, 360.0, &rates);
        assert_eq!(seconds.products, (2 * 10 * 576 + 2 * 8 * 32 * 2) as f64 / 1000.0);
        assert_eq!(seconds.attention, (4 * 4 * 2 * 30) as f64 / 100.0);
        assert_eq!(seconds.elementwise, (4 * (10 * (9 * 8 + 3 * 16 + 2 * 12) + 2 * 32 * 2)) as f64 / 10.0);
        assert_eq!(seconds.optimizer, 36.0);
        assert_eq!(seconds.total(), seconds.of_passes() + seconds.optimizer);
        let halves = Seconds::of_step(&[pass], &flops, &d, 360.0, &Rates { bytes_of_value: 2, ..rates });
        assert_eq!(halves, Seconds { elementwise: seconds.elementwise / 2.0, ..seconds });
    }
}
