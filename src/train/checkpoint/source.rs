//! What a folder of weights holds beside them, and how it is written: a Hugging Face model folder, or an adapter's in PEFT's format.

use crate::adapter::peft;
use crate::config::OutputDtype;
use crate::model::parameter::Parameter;
use crate::model::weights::{self, Saveable, SavedDtype};
use crate::ops;
use crate::train::folder::FolderWriter;
use anyhow::{Context, Result};
use candle_core::Tensor;
use std::collections::BTreeMap;
use std::fs;
use std::ops::Deref;
use std::path::Path;

/// Larger models are sharded, as `save_pretrained` does by default.
pub(super) const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// The files of a model folder, besides weights, that transformers or a later `mpo` reads.
const MODEL_FILES: [&str; 13] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
    "NOTICE",
];

/// What a saved model folder holds besides the weights; read once, so that the source may move or vanish during the run.
#[derive(Debug, Clone)]
pub struct SourceFiles {
    files: Vec<(&'static str, Vec<u8>)>,
    dtypes: BTreeMap<String, SavedDtype>,
    /// For parameters that the source does not hold.
    dtype: SavedDtype,
    weights: WeightsFile,
}

/// Where a folder's weights are, and under which names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WeightsFile {
    /// `model.safetensors`, or shards.
    Model,
    /// PEFT's.
    Adapter,
}

impl SourceFiles {
    /// Reads the model folder `source`; weights will be saved in its element types, or all in the one that `dtype` names.
    pub fn read(source: &Path, dtype: OutputDtype) -> Result<Self> {
        let mut files = read_files(source, |_| true)?;
        let one_dtype = match dtype {
            OutputDtype::F32 => Some(SavedDtype::F32),
            OutputDtype::Bf16 => Some(SavedDtype::Bf16),
            OutputDtype::Checkpoint => None,
        };
        if let Some(dtype) = one_dtype {
            for (_, contents) in files.iter_mut().filter(|(name, _)| *name == "config.json") {
                *contents = with_dtype(contents, dtype).with_context(|| format!("in `{}`", source.join("config.json").display()))?;
            }
            return Ok(Self { files, dtypes: BTreeMap::new(), dtype, weights: WeightsFile::Model });
        }
        let weights = weights::Checkpoint::open(source)?;
        let dtypes = weights.names().map(|name| Ok((name.to_owned(), weights.tensor_dtype(name)?))).collect::<Result<_>>()?;
        Ok(Self { files, dtypes, dtype: weights.dtype(), weights: WeightsFile::Model })
    }

    /// Of an adapter's folder: its own `files` and the tokenizer's of the `base`. Its weights are f32 unless `dtype` is bf16.
    pub fn of_adapter(base: &Path, files: Vec<(&'static str, Vec<u8>)>, dtype: OutputDtype) -> Result<Self> {
        let dtype = if dtype == OutputDtype::Bf16 { SavedDtype::Bf16 } else { SavedDtype::F32 };
        let of_model = |name: &str| name == "config.json" || name == "generation_config.json";
        let of_base = read_files(base, |name| !of_model(name))?;
        Ok(Self { files: [files, of_base].concat(), dtypes: BTreeMap::new(), dtype, weights: WeightsFile::Adapter })
    }

    pub(super) fn write(&self, folder: &mut FolderWriter, parameters: &[Parameter]) -> Result<()> {
        for (name, contents) in &self.files {
            folder.write(name, contents)?;
        }
        let dtype = |name: &str| self.dtypes.get(name).copied().unwrap_or(self.dtype);
        let prefix = if self.weights == WeightsFile::Adapter { peft::PREFIX } else { "" };
        let tensors: Vec<_> = parameters.iter().map(|p| (format!("{prefix}{}", p.name), &p.value, dtype(&p.name))).collect();
        write_tensors(folder, "", self.weights, &tensors)
    }
}

fn read_files(dir: &Path, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let there =
        MODEL_FILES.into_iter().filter(|name| is_wanted(name)).map(|name| (name, dir.join(name))).filter(|(_, path)| path.is_file());
    there.map(|(name, path)| Ok((name, fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?))).collect()
}

/// `config.json` with the element type that the weights now have, under the key it already uses.
pub(super) fn with_dtype(config: &[u8], dtype: SavedDtype) -> Result<Vec<u8>> {
    let mut config: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(config)?;
    // transformers 5 writes `dtype`, version 4 wrote `torch_dtype`; both versions read the latter.
    let key = if config.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    config.insert(key.into(), dtype.torch_name().into());
    Ok(format!("{:#}\n", serde_json::Value::Object(config)).into_bytes())
}

/// Writes tensors into the folder `sub` of `folder` (`""`: the folder itself).
pub(super) fn write_tensors(
    folder: &mut FolderWriter,
    sub: &str,
    file: WeightsFile,
    tensors: &[(String, &Tensor, SavedDtype)],
) -> Result<()> {
    let dir = folder.dir().join(sub);
    fs::create_dir_all(&dir).with_context(|| format!("cannot create the folder `{}`", dir.display()))?;
    let to_save: Vec<_> = tensors.iter().map(|(name, tensor, dtype)| Stored { name, tensor, dtype: *dtype }).collect();
    let files = match file {
        WeightsFile::Model => weights::save(&dir, &to_save, MAX_SHARD_BYTES)?,
        WeightsFile::Adapter => vec![weights::save_file(&dir, peft::WEIGHTS_FILE, &to_save)?],
    };
    for file in files {
        let path = if sub.is_empty() { file.name } else { format!("{sub}/{}", file.name) };
        folder.add(&path, file.contents);
    }
    Ok(())
}

/// A tensor wherever it is: it comes to the host, or is widened, when it is written.
struct Stored<'a> {
    name: &'a str,
    tensor: &'a Tensor,
    dtype: SavedDtype,
}

impl Saveable for Stored<'_> {
    fn name(&self) -> &str {
        self.name
    }

    fn shape(&self) -> &[usize] {
        self.tensor.dims()
    }

    fn dtype(&self) -> SavedDtype {
        self.dtype
    }

    fn values(&self) -> Result<impl Deref<Target = [f32]>> {
        ops::read(self.tensor)
    }
}
