//! A checkpoint folder as a table of memory-mapped tensors: one `model.safetensors`, or shards behind an index.
//!
//! Everything that can be wrong with the files is found when the folder is opened or checked, before a value is used.

use super::SavedDtype;
use crate::files::read_json;
use anyhow::{Context, Result, bail, ensure};
use half::slice::HalfFloatSliceExt;
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::SafeTensors;
use safetensors::tensor::{Metadata, SafeTensorError};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A model's weights in one file.
pub const SINGLE_FILE: &str = "model.safetensors";
/// The list of the shards that hold a model's weights.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// Elements that one task widens; small enough that the chunks of a projection keep every core busy.
const WIDEN_CHUNK: usize = 1 << 16;
/// Elements of which file and memory hold a copy at a time (64 MiB of f32): what was read is let go, or reading a checkpoint would take
/// the memory of its files besides that of its tensors.
const PIECE: usize = 1 << 24;

/// The weights in a model folder, mapped and not yet read.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, SavedTensor>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    map: Mmap,
}

#[derive(Debug)]
struct SavedTensor {
    shard: usize,
    dtype: SavedDtype,
    shape: Vec<usize>,
    /// Within the shard's file.
    bytes: Range<usize>,
}

impl Shard {
    /// Lets go of the pages that hold `range`; they can be read again.
    fn forget(&self, range: Range<usize>) {
        // SAFETY: the mapping is read-only, so that nothing is lost with a page: the next access reads the file again.
        // An error means that the pages stay, which does no harm.
        #[cfg(unix)]
        let _ = unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
    }
}

impl Checkpoint {
    /// Maps `model.safetensors`, or every shard that `model.safetensors.index.json` lists, and validates their headers.
    ///
    /// # Errors
    /// Names the file (and tensor) at fault: missing, cut short, a git-lfs pointer, bad header or offsets, an element type other than f32,
    /// bf16 and f16, a tensor that the index places in a shard that lacks it.
    pub fn open(dir: &Path) -> Result<Checkpoint> {
        let mut checkpoint = Checkpoint { dir: dir.to_path_buf(), shards: Vec::new(), tensors: BTreeMap::new() };
        if dir.join(SINGLE_FILE).is_file() {
            checkpoint.add_shard(SINGLE_FILE)?;
        } else if dir.join(INDEX_FILE).is_file() {
            checkpoint.add_indexed_shards()?;
        } else {
            bail!("{}", describe_missing_weights(dir));
        }
        ensure!(!checkpoint.tensors.is_empty(), "`{}` holds no tensors", dir.display());
        Ok(checkpoint)
    }

    /// Maps the one file `name`.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_file(dir: &Path, name: &str) -> Result<Checkpoint> {
        let mut checkpoint = Checkpoint { dir: dir.to_path_buf(), shards: Vec::new(), tensors: BTreeMap::new() };
        checkpoint.add_shard(name)?;
        ensure!(!checkpoint.tensors.is_empty(), "`{}` holds no tensors", dir.join(name).display());
        Ok(checkpoint)
    }

    fn add_indexed_shards(&mut self) -> Result<()> {
        let index_path = self.dir.join(INDEX_FILE);
        let placement = read_index(&index_path)?;
        let files: BTreeSet<&str> = placement.values().map(String::as_str).collect();
        let absent: Vec<&str> = files.iter().copied().filter(|file| !self.dir.join(file).is_file()).collect();
        ensure!(
            absent.is_empty(),
            "`{}` lists {} shard(s) that are not in the folder: {}; copy or download them again",
            index_path.display(),
            absent.len(),
            absent.join(", ")
        );
        for file in files {
            self.add_shard(file)?;
        }
        for (name, file) in &placement {
            let found = self.tensors.get(name).is_some_and(|tensor| self.shards[tensor.shard].path.ends_with(file));
            ensure!(found, "`{}` places the tensor `{name}` in `{file}`, which does not hold it", index_path.display());
        }
        Ok(())
    }

    fn add_shard(&mut self, file: &str) -> Result<()> {
        let path = self.dir.join(file);
        let map = map_file(&path)?;
        let (header_bytes, metadata) = read_header(&map).with_context(|| format!("cannot read `{}`", path.display()))?;
        let data_start = size_of::<u64>() + header_bytes;
        for (name, info) in metadata.tensors() {
            let dtype = SavedDtype::from_safetensors(info.dtype).with_context(|| {
                format!(
                    "tensor `{name}` in `{}` is {}; f32, bf16 and f16 are supported (a quantised checkpoint has to be dequantised first)",
                    path.display(),
                    info.dtype
                )
            })?;
            let bytes = data_start + info.data_offsets.0..data_start + info.data_offsets.1;
            let tensor = SavedTensor { shard: self.shards.len(), dtype, shape: info.shape.clone(), bytes };
            if let Some(other) = self.tensors.insert(name.clone(), tensor) {
                bail!("tensor `{name}` is both in `{}` and in `{}`", self.shards[other.shard].path.display(), path.display());
            }
        }
        self.shards.push(Shard { path, map });
        Ok(())
    }

    /// Compares names and shapes with what a model needs; names that `ignorable` accepts may be there without a use.
    ///
    /// # Errors
    /// One error with every missing, unexpected and misshapen tensor.
    pub fn check(&self, expected: &[(String, Vec<usize>)], ignorable: &dyn Fn(&str) -> bool) -> Result<()> {
        let known: BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        let mut missing = Vec::new();
        let mut misshapen = Vec::new();
        for (name, shape) in expected {
            match self.tensors.get(name) {
                None => missing.push(name.clone()),
                Some(tensor) if tensor.shape != *shape => {
                    let file = self.shards[tensor.shard].path.file_name().unwrap_or_default().display();
                    misshapen.push(format!("{name} (`{file}`): is {:?}, should be {shape:?}", tensor.shape));
                }
                Some(_) => {}
            }
        }
        let unexpected: Vec<String> = self.names().filter(|name| !known.contains(name) && !ignorable(name)).map(str::to_owned).collect();
        if missing.is_empty() && misshapen.is_empty() && unexpected.is_empty() {
            return Ok(());
        }
        let mut message = format!("the tensors in `{}` are not those that the model needs:", self.dir.display());
        for (what, list) in [("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen)] {
            append_list(&mut message, what, &list);
        }
        bail!(message)
    }

    /// Widens the tensor `name` to f32 into `out`, on all cores when it is large.
    pub fn read_into(&self, name: &str, out: &mut [f32]) -> Result<()> {
        let tensor = self.tensor(name)?;
        let n_bytes = tensor.dtype.n_bytes();
        ensure!(
            tensor.bytes.len() == out.len() * n_bytes,
            "`{}`: the tensor `{name}` has {} elements (shape {:?}), and {} are needed",
            self.shards[tensor.shard].path.display(),
            tensor.bytes.len() / n_bytes,
            tensor.shape,
            out.len()
        );
        for (piece, out) in out.chunks_mut(PIECE).enumerate() {
            let start = tensor.bytes.start + piece * PIECE * n_bytes;
            let range = start..start + out.len() * n_bytes;
            let shard = &self.shards[tensor.shard];
            let bytes = &shard.map[range.clone()];
            match out.len() <= WIDEN_CHUNK {
                true => widen(tensor.dtype, bytes, out),
                false => out
                    .par_chunks_mut(WIDEN_CHUNK)
                    .zip(bytes.par_chunks(WIDEN_CHUNK * n_bytes))
                    .for_each(|(out, bytes)| widen(tensor.dtype, bytes, out)),
            }
            shard.forget(range);
        }
        Ok(())
    }

    /// As [`Checkpoint::read_into`], for values that are computed with and not only looked at.
    ///
    /// # Errors
    /// Names the tensor and how many of its values are no numbers: one of them makes all that a model says none.
    pub fn read_finite(&self, name: &str, out: &mut [f32]) -> Result<()> {
        self.read_into(name, out)?;
        let n_bad: usize = out.par_chunks(WIDEN_CHUNK).map(|values| values.iter().filter(|value| !value.is_finite()).count()).sum();
        ensure!(
            n_bad == 0,
            "tensor `{name}` in `{}` has {n_bad} of {} values that are NaN or infinite: the weights are damaged; copy or download them again",
            self.dir.display(),
            out.len()
        );
        Ok(())
    }

    /// The element type that most parameters have; the wider one where two are equally common.
    pub fn dtype(&self) -> SavedDtype {
        let n_elements = |dtype| {
            self.tensors.values().filter(|tensor| tensor.dtype == dtype).map(|tensor| tensor.bytes.len() / dtype.n_bytes()).sum::<usize>()
        };
        SavedDtype::ALL.into_iter().rev().max_by_key(|&dtype| n_elements(dtype)).unwrap_or(SavedDtype::F32)
    }

    /// The element type of one tensor.
    pub fn tensor_dtype(&self, name: &str) -> Result<SavedDtype> {
        Ok(self.tensor(name)?.dtype)
    }

    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.tensor(name)?.shape)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Tensor names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether two tensors have the same type, shape and bytes.
    pub fn is_same(&self, left: &str, right: &str) -> Result<bool> {
        let (left, right) = (self.tensor(left)?, self.tensor(right)?);
        Ok(left.dtype == right.dtype && left.shape == right.shape && self.bytes(left) == self.bytes(right))
    }

    /// Number of values in all tensors.
    pub fn n_parameters(&self) -> usize {
        self.tensors.values().map(|tensor| tensor.bytes.len() / tensor.dtype.n_bytes()).sum()
    }

    fn tensor(&self, name: &str) -> Result<&SavedTensor> {
        self.tensors.get(name).with_context(|| format!("`{}` has no tensor `{name}`", self.dir.display()))
    }

    fn bytes(&self, tensor: &SavedTensor) -> &[u8] {
        &self.shards[tensor.shard].map[tensor.bytes.clone()]
    }
}

/// Widens little-endian elements; both slices hold the same number of them.
fn widen(dtype: SavedDtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        SavedDtype::F32 => {
            for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*bytes);
            }
        }
        SavedDtype::Bf16 => {
            for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
            }
        }
        SavedDtype::F16 => {
            // Through an aligned buffer: the conversion of whole slices uses the processor's own instruction.
            let mut aligned = [half::f16::ZERO; 1024];
            for (out, bytes) in out.chunks_mut(aligned.len()).zip(bytes.chunks(2 * 1024)) {
                let aligned = &mut aligned[..out.len()];
                for (value, bytes) in aligned.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = half::f16::from_le_bytes(*bytes);
                }
                aligned.convert_to_f32_slice(out);
            }
        }
    }
}

fn map_file(path: &Path) -> Result<Mmap> {
    let file = File::open(path).with_context(|| format!("cannot open `{}`", path.display()))?;
    // SAFETY: the mapping is read-only. Another process that changes or cuts the file while it is mapped could be observed; like every reader of
    // memory-mapped weights we require that nobody does, and our own writer never changes a file in place (it writes new ones and renames).
    unsafe { Mmap::map(&file) }.with_context(|| format!("cannot map `{}` into memory", path.display()))
}

/// Parses and validates the header; the length of its JSON and its table.
fn read_header(file: &[u8]) -> Result<(usize, Metadata)> {
    if file.starts_with(b"version https://git-lfs") {
        bail!("it is a git-lfs pointer, not the weights: run `git lfs pull` in the folder, or download the file itself");
    }
    SafeTensors::read_metadata(file).map_err(|error| match error {
        SafeTensorError::HeaderTooSmall => {
            anyhow::anyhow!("it has {} bytes, too few for a safetensors file; copy or download it again", file.len())
        }
        SafeTensorError::InvalidHeaderLength => anyhow::anyhow!(
            "its header should have {} bytes, but the whole file has {}: it is cut short or not a safetensors file",
            header_length(file),
            file.len()
        ),
        SafeTensorError::HeaderTooLarge => {
            anyhow::anyhow!("its header claims {} bytes: it is damaged or not a safetensors file", header_length(file))
        }
        SafeTensorError::MetadataIncompleteBuffer => describe_wrong_size(file),
        SafeTensorError::InvalidOffset(name) => {
            anyhow::anyhow!("the data of tensor `{name}` overlaps another's or leaves a gap; the header is damaged")
        }
        SafeTensorError::TensorInvalidInfo | SafeTensorError::ValidationOverflow => {
            anyhow::anyhow!("a tensor's shape and element type do not match the bytes it occupies; the header is damaged")
        }
        other => anyhow::anyhow!("bad safetensors header: {other}"),
    })
}

fn header_length(file: &[u8]) -> u64 {
    file.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// The header is sound, but the file's length is not what it says.
fn describe_wrong_size(file: &[u8]) -> anyhow::Error {
    let header_end = size_of::<u64>().saturating_add(header_length(file) as usize);
    let described = file.get(size_of::<u64>()..header_end).and_then(|json| serde_json::from_slice::<Metadata>(json).ok());
    match described.map(|metadata| header_end + metadata.data_len()) {
        Some(right) if right > file.len() => {
            anyhow::anyhow!("it is cut short: {} bytes, its header describes {right}; copy or download it again", file.len())
        }
        Some(right) => anyhow::anyhow!("it has {} bytes, its header describes only {right}; it is damaged", file.len()),
        None => anyhow::anyhow!("its length does not match its header; it is damaged"),
    }
}

/// The shard files that the index at `path` names.
///
/// # Errors
/// Anything but plain safetensors files beside the index.
pub fn shard_files(path: &Path) -> Result<BTreeSet<String>> {
    Ok(read_index(path)?.into_values().collect())
}

/// Tensor name to shard file name.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index =
        serde_json::from_value(read_json(path)?).with_context(|| format!("`{}` is not a safetensors index", path.display()))?;
    for (name, file) in &index.weight_map {
        // A shard is a plain safetensors file beside the index: nothing else is ever opened, here or elsewhere on the disk.
        let is_plain = file.ends_with(".safetensors") && !file.starts_with('.') && !file.contains(['/', '\\', ':']);
        ensure!(is_plain, "`{}` places `{name}` in `{file}`; only `*.safetensors` files in the same folder are read", path.display());
    }
    Ok(index.weight_map)
}

fn describe_missing_weights(dir: &Path) -> String {
    let has = |file: &str| dir.join(file).is_file();
    let hint = if !dir.is_dir() {
        "there is no such folder"
    } else if has("adapter_model.safetensors") || has("adapter_config.json") {
        "it holds a LoRA adapter: name its base model here and this folder as the adapter, or merge it (`mpo merge`)"
    } else if has("pytorch_model.bin") || has("pytorch_model.bin.index.json") {
        "only safetensors are read, never pickles: load the model in transformers and `save_pretrained` it"
    } else {
        "a model folder has config.json, the weights and tokenizer files"
    };
    format!("`{}` has neither `{SINGLE_FILE}` nor `{INDEX_FILE}`; {hint}", dir.display())
}

/// Names are listed up to here: a wrong model has hundreds.
const LISTED: usize = 12;

fn append_list(message: &mut String, what: &str, list: &[String]) {
    if list.is_empty() {
        return;
    }
    // Writing to a String cannot fail.
    let _ = write!(message, "\n  {} {what}:", list.len());
    for item in list.iter().take(LISTED) {
        let _ = write!(message, "\n    {item}");
    }
    if list.len() > LISTED {
        let _ = write!(message, "\n    and {} more", list.len() - LISTED);
    }
}
