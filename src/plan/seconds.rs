//! How long it takes: operations by the rates that were measured.

use super::rates::Rates;
use super::work::{Flops, optimizer_bytes};
use serde::Serialize;

/// Of one step, by what limits it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Seconds {
    /// Matrix products with the weights.
    pub products: f64,
    pub attention: f64,
    /// Clearing gradients, their norm, the update.
    pub optimizer: f64,
}

impl Seconds {
    pub fn of_step(flops: &Flops, n_parameters: usize, rates: &Rates) -> Self {
        Self {
            products: flops.of_products() / rates.products,
            attention: flops.attention / rates.attention,
            optimizer: optimizer_bytes(n_parameters) / rates.bytes,
        }
    }

    /// Without an update.
    pub fn of_passes(&self) -> f64 {
        self.products + self.attention
    }

    pub fn total(&self) -> f64 {
        self.of_passes() + self.optimizer
    }
}
