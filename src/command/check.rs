//! `mpo check`: what is wrong with a data set, before a model is trained on it.

use crate::config::RunConfig;
use crate::data;
use crate::data::check::{CheckInput, check};
use crate::data::encode::{Encoded, EncodedPair, Encoder};
use anyhow::{Context, Result};
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

/// The reference's reward gaps on the dominant pairs of the given rows, in order.
pub type ScoreDominant<'a> = &'a dyn Fn(&[EncodedPair]) -> Result<Vec<f64>>;

/// Prints the report on the rows of the local file `data`; status 1 if anything is wrong.
///
/// `checkpoint` is the folder whose tokenizer and chat template count; `score` is the model's part of `--gaps`.
pub fn report(data: &Path, checkpoint: &Path, config: &RunConfig, score: Option<ScoreDominant>) -> Result<ExitCode> {
    let dataset = data::read(data, &config.data)?;
    let encoder = Encoder::new(checkpoint, &config.data)?;
    let encoded = encoder.tokenize_each(&dataset.pairs);
    let dominant_gaps = score.map(|score| dominant_gaps(&encoder, &dataset.pairs, score)).transpose()?;
    let report = check(&CheckInput {
        dataset: &dataset,
        encoded: Some(&encoded),
        max_tokens: config.data.max_tokens,
        on_overlong: config.data.on_overlong,
        dominant_gaps: dominant_gaps.as_deref(),
        bad_supervision_share: config.signs.bad_supervision_share,
    });
    match std::io::stdout().write_all(report.to_string().as_bytes()) {
        // `mpo check … | head` has read enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        written => written.context("cannot write the report")?,
    }
    Ok(ExitCode::from(u8::from(report.is_wrong())))
}

/// One gap a row; NaN for rows that cannot be encoded or do not fit.
fn dominant_gaps(encoder: &Encoder, pairs: &[data::pair::ParallelPair], score: ScoreDominant) -> Result<Vec<f64>> {
    let mut gaps = vec![f64::NAN; pairs.len()];
    let mut rows = Vec::new();
    let mut fitting = Vec::new();
    for (row, pair) in pairs.iter().enumerate() {
        if let Ok(Encoded::Whole(pair) | Encoded::Cut { pair, .. }) = encoder.encode(pair) {
            rows.push(row);
            fitting.push(pair);
        }
    }
    for (row, gap) in rows.into_iter().zip(score(&fitting)?) {
        gaps[row] = gap;
    }
    Ok(gaps)
}
