//! `mpo gaps`: reward gaps per row and per language, without training.

use super::print;
use crate::adapter::load_model;
use crate::cli::GapsArgs;
use crate::config::{self, Argument, ObjectiveConfig, ObjectiveKind, RunConfig};
use crate::data::encode::{EncodeReport, Encoded, EncodedPreference, EncodedRow, Encoder};
use crate::files::write_atomically;
use crate::gaps::{self, RowGaps, Under};
use crate::hub::ModelFiles;
use crate::model::decoder::Purpose;
use crate::progress::say;
use crate::reference::{Folders, FrozenScores, Provenance, shared_folder};
use crate::scoring::KeptStates;
use crate::{data, device, hub};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Prints a table per model and writes `--out`.
pub fn run(args: &GapsArgs) -> Result<ExitCode> {
    let flags =
        [("--model", "model.path", &args.model), ("--reference", "reference.path", &args.reference), ("--data", "data.path", &args.data)];
    let arguments = flags.map(|(flag, key, value)| Argument { flag, key, value: value.as_deref() });
    let config = config::load_for_scoring(args.settings.config.as_deref(), &arguments, &args.settings.set)?;
    let adapter = args.adapter.as_deref().or(config.adapter.path.as_deref().map(Path::new));
    let rows = device::thread_pool(&config.hardware)?.install(|| measure(&config, adapter))?;

    if let Some(out) = &args.out {
        write_atomically(out, gaps::json_lines(&rows)?.as_bytes())?;
        say(&format!("wrote {} rows to `{}`", rows.len(), out.display()));
    }
    say(
        "Reward gaps without beta. To dominant: how far RG_t, the target pairs' gaps, are on average below RG_d, the reference's dominant gaps.",
    );
    print(&tables(&rows, &config))?;
    Ok(ExitCode::SUCCESS)
}

/// One table, or one for each model where the reference is another.
fn tables(rows: &[RowGaps], config: &RunConfig) -> String {
    // The last column is MPO's loss: of another one's beta it would mean nothing.
    let objective = match config.objective.kind {
        ObjectiveKind::Mpo => config.objective.clone(),
        _ => ObjectiveConfig::of(ObjectiveKind::Mpo),
    };
    let table = |under| gaps::table(&gaps::by_language(rows, under, objective.beta));
    if config.reference.path.is_none() {
        return table(Under::Policy);
    }
    format!("policy\n{}\nreference\n{}", table(Under::Policy), table(Under::Reference))
}

pub(super) fn measure(config: &RunConfig, adapter: Option<&Path>) -> Result<Vec<RowGaps>> {
    let model = hub::resolve_model(&config.model.path, config.model.revision.as_deref())?;
    let reference = match &config.reference.path {
        Some(path) => Some(hub::resolve_model(path, config.reference.revision.as_deref())?),
        None => None,
    };
    let rows = encode(&hub::resolve_data(&config.data)?, &model.dir, config)?;
    let policy = score(&model, adapter, &rows, config)?;
    let reference = reference.map(|reference| score(&reference, None, &rows, config)).transpose()?;
    gaps::measure(&rows, &policy, reference.as_ref().unwrap_or(&policy), config.objective.gap)
}

/// Every row of the file. One that is too long to train on is measured whole.
pub(super) fn encode(data: &[PathBuf], model: &Path, config: &RunConfig) -> Result<Vec<EncodedRow>> {
    let encoder = Encoder::new(model, &config.data)?;
    let pairs = data::load(data, &config.data)?;
    let mut report = EncodeReport { n_rows: pairs.len(), max_tokens: config.data.max_tokens, ..EncodeReport::default() };
    let mut uncut = Vec::new();
    let mut rows = Vec::with_capacity(pairs.len());
    for (pair, encoded) in pairs.iter().zip(encoder.encode_each(&pairs)) {
        rows.push(match encoded? {
            Encoded::Whole(row) => row,
            Encoded::Cut { row, n_lost } => {
                report.cut.push((row.id.clone(), n_lost));
                row
            }
            Encoded::Overlong { id, .. } => {
                uncut.push(id);
                encoder.tokenize(pair)?
            }
        });
    }
    if !report.cut.is_empty() {
        say(&report.to_string());
    }
    if !uncut.is_empty() {
        let (n, max_tokens) = (uncut.len(), config.data.max_tokens);
        say(&format!("{n} rows do not fit into {max_tokens} tokens and would not be trained on; measured whole: {}", uncut.join(", ")));
    }
    Ok(rows)
}

/// Both pairs of every row under a model.
fn score(model: &ModelFiles, adapter: Option<&Path>, rows: &[EncodedRow], config: &RunConfig) -> Result<FrozenScores> {
    let pairs: Vec<&EncodedPreference> = rows.iter().flat_map(EncodedRow::pairs).collect();
    score_pairs(model, adapter, &pairs, config)
}

/// Scores of `pairs` under a model, which is in memory only as long as this takes.
pub(super) fn score_pairs(
    files: &ModelFiles,
    adapter: Option<&Path>,
    pairs: &[&EncodedPreference],
    config: &RunConfig,
) -> Result<FrozenScores> {
    let model = load_model(files, adapter, device::place(config)?, Purpose::Inference)?;
    let provenance = Provenance::of(&model, config.model.dtype, KeptStates::Nothing, 0)?;
    let folders = Folders { run: None, shared: shared_folder() };
    let (scores, report) =
        FrozenScores::score(&model, pairs, provenance, folders).with_context(|| format!("under `{}`", files.dir.display()))?;
    report.say();
    Ok(scores)
}
