//! The MPO loss over a batch of rows, written down once more as one differentiable expression:
//!
//! ```text
//! L = mean over rows of (beta RG(policy, target) - RG(reference, dominant))^2 + lambda * mean over dominant sequences of |h - h_ref|^2
//! ```

use super::decoder::SlowDecoder;
use candle_core::{DType, Device, Result, Tensor};
use mpo::config::{Pooling, Reduction, RetentionConfig};
use mpo::data::encode::{EncodedPreference, EncodedRow};

/// The two terms, unweighted, and the loss; scalars.
pub struct SlowLoss {
    pub objective: Tensor,
    pub retention: Tensor,
    pub loss: Tensor,
}

/// Gaps are length-normalised, and retention compares hidden states.
pub fn mpo_loss(
    policy: &SlowDecoder,
    reference: &SlowDecoder,
    rows: &[EncodedRow],
    beta: f64,
    retention: &RetentionConfig,
) -> Result<SlowLoss> {
    let n_rows = rows.len() as f64;
    let mut objective = Tensor::zeros((), DType::F64, &Device::Cpu)?;
    let mut distances = objective.clone();
    for row in rows {
        let dominant = row.dominant.as_ref().expect("MPO's rows have a dominant pair");
        let difference = ((reward_gap(policy, &row.target)? * beta)? - reward_gap(reference, dominant)?.detach())?;
        objective = (objective + difference.sqr()?)?;
        for response in [&dominant.chosen, &dominant.rejected] {
            let tokens = [&dominant.prompt[..], &response.tokens].concat();
            let pooled = |model: &SlowDecoder| pooled(&model.hidden(&tokens)?, retention.pooling);
            let squares = (pooled(policy)? - pooled(reference)?.detach())?.sqr()?;
            let distance = match retention.reduction {
                Reduction::Sum => squares.sum_all()?,
                Reduction::Mean => squares.mean_all()?,
            };
            distances = (distances + distance)?;
        }
    }
    let (objective, retention_term) = ((objective / n_rows)?, (distances / (2.0 * n_rows))?);
    let loss = (&objective + (&retention_term * retention.weight)?)?;
    Ok(SlowLoss { objective, retention: retention_term, loss })
}

fn reward_gap(model: &SlowDecoder, pair: &EncodedPreference) -> Result<Tensor> {
    let reward = |response: &[u32]| model.log_probs(&pair.prompt, response)?.mean_all();
    reward(&pair.chosen.tokens)? - reward(&pair.rejected.tokens)?
}

fn pooled(hidden_TD: &Tensor, pooling: Pooling) -> Result<Tensor> {
    match pooling {
        Pooling::Last => hidden_TD.get(hidden_TD.dim(0)? - 1),
        Pooling::Mean => hidden_TD.mean(0),
        other => candle_core::bail!("the slow loss does not pool as {other:?}"),
    }
}
