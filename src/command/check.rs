//! `mpo check`: what is wrong with a data set, before a model is trained on it.

use super::gaps::score_pairs;
use crate::cli::CheckArgs;
use crate::config::{self, Argument, RunConfig};
use crate::data::check::{CheckInput, CheckReport, check};
use crate::data::encode::{Encoded, EncodedPreference, EncodedRow, Encoder};
use crate::data::pair::PreferenceRow;
use crate::hub::ModelFiles;
use crate::model::family;
use crate::progress::say;
use crate::train::prepare::{RunRows, check_rows};
use crate::{data, device, hub};
use anyhow::{Result, ensure};
use std::path::Path;
use std::process::ExitCode;

/// Prints the report; status 1 if anything is wrong.
pub fn run(args: &CheckArgs) -> Result<ExitCode> {
    let flags = [("DATA", "data.path", &args.data), ("--model", "model.path", &args.model)];
    let arguments = flags.map(|(flag, key, value)| Argument { flag, key, value: value.as_deref() });
    let mut config = config::load_for_scoring(args.settings.config.as_deref(), &arguments, &args.settings.set)?;
    if let Some(limit) = args.limit {
        config.data.limit = Some(limit.get());
    }
    // Without a configuration the loss is still open, and with it what the rows must have.
    let is_of_run = args.settings.config.is_some() || args.settings.set.iter().any(|set| set.trim_start().starts_with("objective."));
    let report = device::thread_pool(&config.hardware)?.install(|| report(&config, is_of_run, args.gaps))?;
    super::print(&report.to_string())?;
    Ok(ExitCode::from(u8::from(report.is_wrong())))
}

fn report(config: &RunConfig, is_of_run: bool, with_gaps: bool) -> Result<CheckReport> {
    let model = hub::resolve_model(&config.model.path, config.model.revision.as_deref())?;
    let dataset = data::read(&hub::resolve_data(&config.data)?, &config.data)?;
    let encoder = Encoder::new(&model.dir, &config.data)?;
    let encoded = encoder.tokenize_each(&dataset.pairs);
    let has_dominant = dataset.pairs.iter().any(|row| row.dominant.is_some());
    if with_gaps && !has_dominant {
        say("`--gaps` looks at dominant pairs, and this data has none; `mpo gaps` measures the pairs that it has");
    }
    let dominant_gaps = match with_gaps && has_dominant {
        true => Some(dominant_gaps(&encoder, &dataset.pairs, &model, config)?),
        false => None,
    };
    let mut report = check(&CheckInput {
        dataset: &dataset,
        encoder: Some(&encoder),
        objective: is_of_run.then_some(&config.objective),
        encoded: Some(&encoded),
        max_tokens: config.data.max_tokens,
        on_overlong: config.data.on_overlong,
        dominant_gaps: dominant_gaps.as_deref(),
        bad_supervision_share: config.signs.bad_supervision_share,
    });
    // A folder of a tokenizer alone says nothing of positions.
    if model.dir.join("config.json").is_file() {
        let refusal = family::describe_folder(&model.dir).and_then(|description| match is_of_run {
            true => RunRows::new(config, &encoder, &description).map(drop),
            false => check_rows(config, &encoder, &description),
        });
        if let Err(error) = refusal {
            report.refused(format!("{error:#}"));
        }
    }
    Ok(report)
}

/// The reference's reward gap on each row's dominant pair; NaN for rows that have none, cannot be encoded or do not fit.
fn dominant_gaps(encoder: &Encoder, pairs: &[PreferenceRow], model: &ModelFiles, config: &RunConfig) -> Result<Vec<f64>> {
    let reference = match &config.reference.path {
        Some(path) => hub::resolve_model(path, config.reference.revision.as_deref())?,
        None => model.clone(),
    };
    // A run that starts from an adapter has it in its reference.
    let adapter = config.adapter.path.as_deref().filter(|_| config.reference.path.is_none()).map(Path::new);
    let encoded: Vec<Option<EncodedRow>> = encoder
        .encode_each(pairs)
        .into_iter()
        .map(|row| match row {
            Ok(Encoded::Whole(row) | Encoded::Cut { row, .. }) => Some(row),
            _ => None,
        })
        .collect();
    let dominant: Vec<Option<&EncodedPreference>> = encoded.iter().map(|row| row.as_ref()?.dominant.as_ref()).collect();
    let scores = score_pairs(&reference, adapter, &dominant.iter().copied().flatten().collect::<Vec<_>>(), config)?;
    let gap = |pair: &EncodedPreference| {
        let gap = scores.pair_scores(pair)?.reward_gap(config.objective.gap);
        ensure!(
            gap.is_finite(),
            "the reference's reward gap on a dominant pair is not a number: its weights may be damaged, or `model.dtype` too narrow for them"
        );
        Ok(gap)
    };
    dominant.into_iter().map(|pair| pair.map_or(Ok(f64::NAN), gap)).collect()
}
