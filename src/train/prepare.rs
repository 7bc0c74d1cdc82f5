//! Everything that can be found wrong before anything large is loaded or anything is written.
//!
//! A [`Prepared`] run is one whose files exist, whose weights have the right names and shapes, and whose rows are encoded and fit the model.
//! What it will need is the next question ([`super::forecast`]). `--dry-run` stops after both.

use super::canary::Prompts;
use super::checkpoint::Found;
use super::columns::Reads;
use crate::adapter::{Adapter, Base};
use crate::config::{
    ActivationCheckpointing, ConfigError, DataConfig, DataFormat, EvalConfig, ObjectiveKind, OutputDtype, Pooling, RetentionConfig,
    RetentionKind, RunConfig,
};
use crate::data::check::one_sided;
use crate::data::encode::{EncodeReport, EncodedRow, Encoder};
use crate::data::loader::{Loader, dominant_numbers, hold_out};
use crate::data::mismatch;
use crate::device;
use crate::digest::hex;
use crate::hub::{self, ModelFiles};
use crate::model::description::DecoderDescription;
use crate::model::family;
use crate::model::weights::{self, SavedDtype};
use crate::objective::{Answers, Objective};
use crate::scoring::KeptStates;
use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// A run that may start.
pub struct Prepared {
    pub config: RunConfig,
    /// The folder that the policy (of an adapter's run: its base), its tokenizer and its template are read from.
    pub model_dir: PathBuf,
    /// What is trained in the place of the model.
    pub adapter: Option<Adapter>,
    /// The model, as an adapter names its base.
    pub base: Base,
    /// The folder of the reference, where it is not the model itself; a run that goes on has kept the scores and needs none.
    pub reference_dir: Option<PathBuf>,
    pub description: DecoderDescription,
    pub n_parameters: usize,
    pub encoder: Encoder,
    /// What `mean_padded` pads with.
    pub pad_token: u32,
    pub train: Vec<EncodedRow>,
    pub held_out: Vec<EncodedRow>,
    /// Benign prompts that the policy answers on the way.
    pub canaries: Option<Prompts>,
    /// What encoding did to the training rows (before any were held out), and to those of `eval.path`.
    pub encoding: EncodeReport,
    pub eval_encoding: Option<EncodeReport>,
    /// Of the tokens of all rows.
    pub data_sha256: String,
    /// Bytes that the checkpoints of the run take at most.
    pub disk: u64,
}

/// The rows of a run, encoded, and all that can be wrong with them: `mpo check` asks for them too.
pub struct RunRows {
    pub train: Vec<EncodedRow>,
    pub held_out: Vec<EncodedRow>,
    pub canaries: Option<Prompts>,
    pub encoding: EncodeReport,
    pub eval_encoding: Option<EncodeReport>,
}

impl RunRows {
    /// Reads and encodes what `config` names.
    ///
    /// # Errors
    /// The first thing for which training refuses the data.
    pub fn new(config: &RunConfig, encoder: &Encoder, description: &DecoderDescription) -> Result<Self> {
        check_eval(config)?;
        let (rows, encoding) = encoder.inspect_files(&hub::resolve_data(&config.data)?, &config.data, &config.objective)?;
        let (mut train, mut held_out, eval_encoding) = split(rows, config, encoder)?;
        check_pairs(train.iter().chain(&held_out), config)?;
        check_labels(&train, config)?;
        if Reads::of(config).mismatched {
            let max_tokens = config.data.max_tokens.min(description.max_positions);
            mismatch::assign(&mut train, &[], max_tokens)?;
            mismatch::assign(&mut held_out, &train, max_tokens)?;
        }
        check_tokens(train.iter().chain(&held_out), description)?;
        let canaries = Prompts::load(&config.canary, &config.data, encoder, description, &train)?;
        // Finds a group that no batch can hold; the loader of the run is made once it is known which rows stay.
        Loader::new(&dominant_numbers(&train), &config.train)?;
        Ok(Self { train, held_out, canaries, encoding, eval_encoding })
    }
}

/// As [`RunRows::new`], for data whose loss is not known: whether its rows can be encoded, and fit the model.
///
/// # Errors
/// The first thing for which training with any loss refuses the data.
pub fn check_rows(config: &RunConfig, encoder: &Encoder, description: &DecoderDescription) -> Result<()> {
    let (rows, _) = encoder.encode_files(&hub::resolve_data(&config.data)?, &config.data)?;
    check_tokens(rows.iter(), description)
}

impl Prepared {
    /// Prepares the run of `config`; one that goes on from a checkpoint needs nothing of the original model, unless that is an adapter's
    /// base.
    pub fn new(config: RunConfig, checkpoint: Option<&Found>) -> Result<Self> {
        device::select(&config.hardware)?;
        check_eval(&config)?;
        check_reference_is_read(&config)?;
        let model = match checkpoint {
            Some(found) if !config.adapter.is_lora() => {
                ModelFiles { dir: found.dir.clone(), id: config.model.path.clone(), revision: None, commit: None }
            }
            _ => hub::resolve_model(&config.model.path, config.model.revision.as_deref())?,
        };
        let ModelFiles { dir: model_dir, id: name, commit: revision, .. } = model;
        let base = Base { name, revision, weights_sha256: None };
        let (description, weights) = inspect_model(&model_dir)?;
        check_checkpointing(&config, &description)?;
        let n_parameters = n_parameters(&description);
        let adapter = Adapter::of_run(&config.adapter, config.train.seed, checkpoint.map(|found| &*found.dir), &description)?;
        let disk = match &adapter {
            Some(adapter) => checkpoint_bytes(&config, SavedDtype::F32, adapter.n_parameters(&description)),
            None => checkpoint_bytes(&config, weights.dtype(), n_parameters),
        };
        let reference_dir = match (&config.reference.path, checkpoint) {
            (Some(path), None) => Some(hub::resolve_model(path, config.reference.revision.as_deref())?.dir),
            (None, _) | (_, Some(_)) => None,
        };
        if let Some(dir) = &reference_dir {
            let (reference, _) = inspect_model(dir)?;
            check_reference(&description, &reference)?;
        }

        let encoder = Encoder::new(&model_dir, &config.data)?;
        let pad_token = pad_token(&encoder, &config.retention)?;
        let RunRows { train, held_out, canaries, encoding, eval_encoding } = RunRows::new(&config, &encoder, &description)?;

        Ok(Self {
            data_sha256: digest([&train, &held_out]),
            pad_token,
            config,
            model_dir,
            adapter,
            base,
            reference_dir,
            description,
            n_parameters,
            encoder,
            train,
            held_out,
            canaries,
            encoding,
            eval_encoding,
            disk,
        })
    }
}

/// Size of what is on disk when a new checkpoint was written and the oldest is not yet removed: of each, the model or adapter, master weights
/// and two moments.
fn checkpoint_bytes(config: &RunConfig, dtype: SavedDtype, n_parameters: usize) -> u64 {
    let saved = match config.output.dtype {
        OutputDtype::Checkpoint => dtype,
        OutputDtype::F32 => SavedDtype::F32,
        OutputDtype::Bf16 => SavedDtype::Bf16,
    };
    let bytes_per_parameter = saved.n_bytes() + 3 * SavedDtype::F32.n_bytes();
    let n_newest = if config.checkpoint.every_steps.is_some() { config.checkpoint.keep + 1 } else { 1 };
    let n_checkpoints = n_newest + usize::from(config.checkpoint.best.is_some());
    (n_checkpoints * bytes_per_parameter * n_parameters) as u64
}

/// Of the decoder: a file may repeat its embeddings as a head.
fn n_parameters(description: &DecoderDescription) -> usize {
    family::expected_tensors(description).iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
}

/// Reads `config.json` and the headers of the weights, and compares them.
fn inspect_model(dir: &Path) -> Result<(DecoderDescription, weights::Checkpoint)> {
    let description = family::describe_folder(dir)?;
    let weights = weights::Checkpoint::open(dir)?;
    family::check_weights(&description, &weights)?;
    Ok((description, weights))
}

/// The reference reads the policy's tokens, and its states are compared with the policy's.
fn check_reference(policy: &DecoderDescription, reference: &DecoderDescription) -> Result<()> {
    for (what, policy, reference) in
        [("vocab_size", policy.vocab_size, reference.vocab_size), ("hidden_size", policy.hidden_size, reference.hidden_size)]
    {
        ensure!(policy == reference, "the reference's `{what}` is {reference}, the model's is {policy}: they must be the same");
    }
    Ok(())
}

/// A data set on the hub is read by its split, and there is no key for the split of held-out rows: by `data.split` they would be training
/// rows.
fn check_eval(config: &RunConfig) -> Result<()> {
    if let Some(id) = config.eval.path.as_deref().filter(|path| hub::is_on_hub(path)) {
        bail!(
            "`eval.path` is `{id}`, a data set on the hub, which does not say which of its files to measure on: give the file's address, \
             `https://huggingface.co/datasets/{id}/resolve/main/FILE`, or a local file"
        );
    }
    Ok(())
}

/// Training rows and held-out rows, the latter from `eval.path` or a fraction of the former.
fn split(rows: Vec<EncodedRow>, config: &RunConfig, encoder: &Encoder) -> Result<(Vec<EncodedRow>, Vec<EncodedRow>, Option<EncodeReport>)> {
    match &config.eval {
        EvalConfig { path: Some(path), .. } => {
            let data = DataConfig {
                path: path.clone(),
                revision: None,
                sha256: None,
                format: DataFormat::Auto,
                limit: None,
                ..config.data.clone()
            };
            let load = || -> Result<_> { encoder.inspect_files(&hub::resolve_data(&data)?, &data, &config.objective) };
            let (held_out, report) = load().context("in the held-out rows of `eval.path`")?;
            Ok((rows, held_out, Some(report)))
        }
        EvalConfig { fraction: Some(fraction), .. } => {
            let split = hold_out(&dominant_numbers(&rows), *fraction, config.train.seed)?;
            let mut rows: Vec<_> = rows.into_iter().map(Some).collect();
            let mut pick = |indices: &[usize]| indices.iter().filter_map(|&index| rows[index].take()).collect();
            Ok((pick(&split.train), pick(&split.held_out), None))
        }
        EvalConfig { path: None, fraction: None, .. } => Ok((rows, Vec::new(), None)),
    }
}

fn check_checkpointing(config: &RunConfig, description: &DecoderDescription) -> Result<()> {
    let n_blocks = description.layers.len();
    match config.train.activation_checkpointing {
        ActivationCheckpointing::Every(n) if n.get() > n_blocks.max(1) => {
            let message = format!("`train.activation_checkpointing` is {n}, and the model has {n_blocks} blocks: it can be at most that");
            Err(ConfigError::with_model(message).into())
        }
        _ => Ok(()),
    }
}

/// Whether every row has what the run reads of it: the problem is the configuration's, for the data is as it is.
fn check_pairs<'a>(rows: impl Iterator<Item = &'a EncodedRow>, config: &RunConfig) -> Result<()> {
    let (kind, passes) = (config.objective.kind.name(), Objective::new(&config.objective).passes());
    for row in rows {
        let why_dominant = match () {
            () if row.dominant.is_some() => None,
            () if passes.policy_dominant || passes.reference_dominant => Some(format!("`objective.kind` \"{kind}\" compares with")),
            () if config.retention.kind != RetentionKind::None => Some("the retention term (`retention.kind`) compares with".into()),
            () if config.train.group_by_dominant => Some("`train.group_by_dominant` groups by".into()),
            () if config.data.min_dominant_gap.is_some() => Some("`data.min_dominant_gap` asks of".into()),
            () => None,
        };
        if let Some(why) = why_dominant {
            let message = format!(
                "row `{}` has no dominant pair, which {why}: that takes a file of the format `parallel` (`dominant` and `target` in each \
                 row) or `llamafactory`",
                row.id
            );
            return Err(ConfigError::with_data(message).into());
        }
        let missing = match passes.policy_target {
            Answers::Any => None,
            _ if row.target.chosen.is_absent() => Some("chosen"),
            Answers::Both if row.target.rejected.is_absent() => Some("rejected"),
            Answers::Both | Answers::Chosen => None,
        };
        if let Some(missing) = missing {
            let message = format!(
                "row `{}` has no {missing} response, which `objective.kind` \"{kind}\" needs: that takes a file with `chosen` and `rejected` \
                 in each row; one of `prompt`, `completion` and `label` is for `kto`",
                row.id
            );
            return Err(ConfigError::with_data(message).into());
        }
    }
    Ok(())
}

/// KTO estimates from wanted and unwanted answers together how far the policy has moved.
fn check_labels(rows: &[EncodedRow], config: &RunConfig) -> Result<()> {
    let n_chosen = rows.iter().filter(|row| !row.target.chosen.is_absent()).count();
    let n_rejected = rows.iter().filter(|row| !row.target.rejected.is_absent()).count();
    if config.objective.kind == ObjectiveKind::Kto && (n_chosen == 0 || n_rejected == 0) {
        return Err(ConfigError::with_data(one_sided(n_chosen, n_rejected)).into());
    }
    Ok(())
}

/// A reference that is named and not asked for anything is a mistake.
fn check_reference_is_read(config: &RunConfig) -> Result<()> {
    match &config.reference.path {
        Some(path) if Reads::of(config).nothing() => {
            let kind = config.objective.kind.name();
            let message = format!(
                "`reference.path` has no effect: neither `objective.kind` \"{kind}\" nor `retention.kind` \"none\" reads a reference; remove \
                 `{path}`, or choose a loss or a retention that reads one"
            );
            Err(ConfigError::with_objective(message).into())
        }
        _ => Ok(()),
    }
}

fn check_tokens<'a>(rows: impl Iterator<Item = &'a EncodedRow>, description: &DecoderDescription) -> Result<()> {
    let mut longer = Vec::new();
    for row in rows {
        for side in row.pairs() {
            let tokens = side.prompt.iter().chain(&side.chosen.tokens).chain(&side.rejected.tokens);
            if let Some(token) = tokens.copied().find(|&token| token as usize >= description.vocab_size) {
                bail!(
                    "row `{}` ({}) has the token {token}, but the model's vocabulary ends at {}: tokenizer and weights do not belong together",
                    row.id,
                    side.lang,
                    description.vocab_size
                );
            }
            let n_tokens = side.longest_sequence();
            if n_tokens > description.max_positions {
                longer.push((&row.id, &side.lang, n_tokens));
                break;
            }
        }
    }
    if let Some((id, lang, n_tokens)) = longer.first() {
        let others = if longer.len() > 1 { format!(" (and {} more rows are too long)", longer.len() - 1) } else { String::new() };
        bail!(
            "row `{id}` ({lang}) has {n_tokens} tokens, and the model has {} positions{others}: set `data.max_tokens` to at most that",
            description.max_positions
        );
    }
    Ok(())
}

/// What `mean_padded` pads with. Nothing else pads, so that other runs need no such token.
fn pad_token(encoder: &Encoder, retention: &RetentionConfig) -> Result<u32> {
    match KeptStates::of(retention) == KeptStates::Pooled(Pooling::MeanPadded) {
        true => encoder.pad_token().context("`retention.pooling` is `mean_padded`"),
        false => Ok(encoder.pad_token().unwrap_or_default()),
    }
}

/// Of everything in the rows that training depends on; every part behind its length, so that no two sets of rows read the same.
fn digest(sets: [&[EncodedRow]; 2]) -> String {
    let mut hash = Sha256::new();
    let count = |hash: &mut Sha256, n: usize| hash.update((n as u64).to_le_bytes());
    let text = |hash: &mut Sha256, text: &str| {
        count(hash, text.len());
        hash.update(text);
    };
    let mut bytes = Vec::new();
    let mut tokens = |hash: &mut Sha256, tokens: &[u32]| {
        count(hash, tokens.len());
        bytes.clear();
        tokens.iter().for_each(|token| bytes.extend_from_slice(&token.to_le_bytes()));
        hash.update(&bytes);
    };
    for rows in sets {
        count(&mut hash, rows.len());
        for row in rows {
            text(&mut hash, &row.id);
            // Told apart from a row with two pairs; the digest of parallel rows is that of older runs.
            if row.dominant.is_none() {
                count(&mut hash, usize::MAX);
            }
            for side in row.pairs() {
                text(&mut hash, &side.lang);
                tokens(&mut hash, &side.prompt);
                for response in [&side.chosen, &side.rejected] {
                    tokens(&mut hash, &response.tokens);
                    count(&mut hash, response.n_end_tokens);
                }
            }
        }
    }
    hex(&hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::encode::{EncodedPreference, Response};

    fn row(id: &str) -> EncodedRow {
        let response = |n: usize| Response { tokens: vec![65; n], n_end_tokens: 1 };
        let side = |lang: &str, n| EncodedPreference { lang: lang.into(), prompt: vec![65; 3], chosen: response(2), rejected: response(n) };
        EncodedRow { id: id.into(), dominant: Some(side("en", 6)), target: side("sw", 9), mismatched: None }
    }

    #[test]
    fn the_digest_tells_rows_apart() {
        let changed = |change: &dyn Fn(&mut EncodedRow)| {
            let mut row = row("a");
            change(&mut row);
            digest([&[row], &[]])
        };
        let same = changed(&|_| ());
        assert_eq!(same, digest([&[row("a")], &[]]));
        assert_ne!(same, changed(&|row| row.id.push('b')));
        assert_ne!(same, changed(&|row| row.target.lang = "bn".into()));
        assert_ne!(same, changed(&|row| row.dominant.as_mut().unwrap().chosen.n_end_tokens = 2));
        assert_ne!(same, changed(&|row| row.target.prompt[0] = 66));
        assert_ne!(same, changed(&|row| row.dominant = None));
        assert_ne!(same, digest([&[], &[row("a")]]), "held out, not trained on");
    }
}
