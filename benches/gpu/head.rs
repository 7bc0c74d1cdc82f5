//! The head alone, forward and backward, against its own matrix products alone: logits, their gradient to hidden states and to the weight, in
//! the chunks that the head takes. Making logits again in the backward, where they are not kept, is not in the floor.

use crate::job::{Job, Measured, median};
use crate::measure::clock;
use crate::random::{random_tokens, random_values};
use anyhow::{Context, Result};
use candle_core::{DType, Tensor};
use mpo::model::decoder::TokenTarget;
use mpo::ops::log_prob::{GPU_LOGITS_PER_CHUNK, Head};
use mpo::ops::{self, Place, linear};

pub fn measure(job: &Job, place: &Place) -> Result<Measured> {
    let size = |key: &str| job.config[key].as_u64().map(|n| n as usize).with_context(|| format!("the shape has no `{key}`"));
    let (n_vocab, width) = (size("vocab_size")?, size("hidden_size")?);
    let n_targets: usize = job.rows.iter().map(|row| row.target.n_response_tokens()).sum();
    let random = |seed, rows: usize| ops::on_device(random_values(seed, rows * width), &[rows, width], place);
    let (hidden, weight) = (random(1, n_targets)?, random(2, n_vocab)?);
    let gradient = Tensor::zeros((n_vocab, width), DType::F32, &place.device)?;
    let tokens = random_tokens(3, n_targets, n_vocab);
    let targets: Vec<TokenTarget> = tokens.iter().zip(0..).map(|(&token, row)| TokenTarget { row, token }).collect();
    let head = Head { soft_cap: None, compute: place.compute };
    let mut measured = clock(job, place, || {
        let d_hidden = ops::zeros_like(&hidden)?;
        let scored = head.score(&hidden, &weight, &targets, usize::MAX)?;
        let d_log_probs = (&*scored.log_probs * 1e-3)?;
        head.backward(&hidden, &weight, (&targets, scored), &d_log_probs, &d_hidden, Some(&gradient))
    })?;
    // As the head cuts: no chunk above the budget, all of nearly the same size.
    let chunk = n_targets.div_ceil(n_targets.div_ceil(GPU_LOGITS_PER_CHUNK / n_vocab));
    let d_logits = ops::on_device(random_values(4, chunk * n_vocab), &[chunk, n_vocab], place)?;
    let floor = clock(job, place, || {
        for first in (0..n_targets).step_by(chunk) {
            let n_rows = chunk.min(n_targets - first);
            let (x, dy) = (hidden.narrow(0, first, n_rows)?, d_logits.narrow(0, 0, n_rows)?);
            linear::forward(&x, &weight, None, place.compute)?;
            linear::backward_input(&dy, &weight, place.compute)?;
            linear::backward_weight(&dy, &x, &gradient, place.compute)?;
        }
        Ok(())
    })?;
    measured.floor_seconds = Some(median(&floor.step_seconds));
    measured.flops = Some(3.0 * 2.0 * (n_vocab * width * n_targets) as f64);
    Ok(measured)
}
