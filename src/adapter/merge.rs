//! An adapter into its base's weights: `W + s B A` in f32. Whoever saves them rounds once.

use crate::model::decoder::Decoder;
use crate::model::low_rank::{names, projection_of};
use crate::model::parameter::Parameter;
use crate::ops::low_rank::merge;
use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use std::collections::HashMap;

/// Adds the low-rank terms of `model` to its weights. It takes the model, which would count them twice from now on, and gives its weights, under
/// their names in the checkpoint.
pub fn merged(model: Decoder) -> Result<Vec<Parameter>> {
    let adaptation = model.adaptation().context("there is no adapter to merge")?;
    let terms: HashMap<&str, &Tensor> = model.low_rank_parameters().iter().map(|p| (p.name.as_str(), &p.value)).collect();
    let mut n_merged = 0;
    for parameter in model.parameters() {
        let Some(projection) = parameter.name.strip_suffix(".weight") else { continue };
        let [a, b] = names(projection);
        if let (Some(a), Some(b)) = (terms.get(a.as_str()), terms.get(b.as_str())) {
            merge(&parameter.value, a, b, adaptation.scale as f32).with_context(|| format!("merging `{projection}`"))?;
            n_merged += 1;
        }
    }
    let n_terms = terms.keys().filter(|name| projection_of(name).is_some()).count() / 2;
    ensure!(n_merged == n_terms, "{n_terms} projections have a term, and {n_merged} of them a weight");
    Ok(model.parameters().to_vec())
}
