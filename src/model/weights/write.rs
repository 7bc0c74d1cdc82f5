//! Writes a model folder's weights as transformers does: one `model.safetensors`, or numbered shards and an index.
//!
//! Values are converted through one bounded buffer, and asked for a tensor at a time, so that saving a model needs no second copy of it.

use super::SavedDtype;
use super::read::{INDEX_FILE, SINGLE_FILE};
use crate::digest::{Contents, HashingWriter};
use anyhow::{Context, Result, bail, ensure};
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;
use safetensors::tensor::{Metadata, TensorInfo};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::ops::Deref;
use std::path::Path;

/// Elements converted at a time (by all cores) before they are written.
const BUFFER_ELEMENTS: usize = 4 << 20;
/// Elements that one task converts.
const NARROW_CHUNK: usize = 1 << 16;

/// One tensor and the element type to store it in.
#[derive(Debug, Clone, Copy)]
pub struct TensorToSave<'a> {
    pub name: &'a str,
    pub shape: &'a [usize],
    /// Row-major, as many as `shape` says.
    pub values: &'a [f32],
    pub dtype: SavedDtype,
}

/// What can be saved. Values are asked for when they are written, one tensor at a time: those that are elsewhere, or stored in another type, have no
/// copy before and none afterwards.
pub trait Saveable {
    fn name(&self) -> &str;
    fn shape(&self) -> &[usize];
    fn dtype(&self) -> SavedDtype;
    /// Row-major, as many as the shape says.
    fn values(&self) -> Result<impl Deref<Target = [f32]>>;

    fn n_bytes(&self) -> usize {
        self.shape().iter().product::<usize>() * self.dtype().n_bytes()
    }
}

impl Saveable for TensorToSave<'_> {
    fn name(&self) -> &str {
        self.name
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn dtype(&self) -> SavedDtype {
        self.dtype
    }

    fn values(&self) -> Result<impl Deref<Target = [f32]>> {
        Ok(self.values)
    }
}

/// A file that was written: its name in the folder, and what went into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedFile {
    pub name: String,
    pub contents: Contents,
}

/// Writes `tensors` into `dir`, in files of at most `max_shard_bytes` of data (a larger tensor has a file of its own), each synced to disk.
///
/// The folder must hold no weights yet. NaN and infinity are written as they are.
///
/// # Errors
/// When a finite value is too large for f16, and whatever the disk says.
pub fn save(dir: &Path, tensors: &[impl Saveable], max_shard_bytes: u64) -> Result<Vec<SavedFile>> {
    let shards = split_into_shards(tensors, max_shard_bytes);
    let mut buffer = Vec::new();
    if shards.len() == 1 {
        return Ok(vec![save_file(dir, SINGLE_FILE, tensors)?]);
    }
    let mut files = Vec::new();
    let mut weight_map = BTreeMap::new();
    let n_shards = shards.len();
    for (i, shard) in shards.into_iter().enumerate() {
        let file = format!("model-{:05}-of-{n_shards:05}.safetensors", i + 1);
        weight_map.extend(shard.iter().map(|tensor| (tensor.name(), file.clone())));
        files.push(write_shard(dir, file, shard, &mut buffer)?);
    }
    let total_size: usize = tensors.iter().map(Saveable::n_bytes).sum();
    let index = serde_json::json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
    let path = dir.join(INDEX_FILE);
    let mut file = HashingWriter::new(create(&path)?);
    file.write_all(format!("{index:#}\n").as_bytes()).with_context(|| cannot_write(&path))?;
    files.push(finish(file, &path, INDEX_FILE.into())?);
    Ok(files)
}

/// Writes `tensors` into the one new file `name` in `dir`.
///
/// # Errors
/// As [`save`].
pub fn save_file(dir: &Path, name: &str, tensors: &[impl Saveable]) -> Result<SavedFile> {
    write_shard(dir, name.into(), tensors.iter().collect(), &mut Vec::new())
}

/// In the order given, a new shard whenever the next tensor would exceed the limit.
fn split_into_shards<T: Saveable>(tensors: &[T], max_shard_bytes: u64) -> Vec<Vec<&T>> {
    let mut shards = vec![Vec::new()];
    let mut bytes = 0;
    for tensor in tensors {
        let n_bytes = tensor.n_bytes() as u64;
        if bytes > 0 && bytes + n_bytes > max_shard_bytes {
            shards.push(Vec::new());
            bytes = 0;
        }
        bytes += n_bytes;
        // There is always a last shard: the list starts with one and only grows.
        if let Some(shard) = shards.last_mut() {
            shard.push(tensor);
        }
    }
    shards
}

fn write_shard(dir: &Path, name: String, mut tensors: Vec<&impl Saveable>, buffer: &mut Vec<u8>) -> Result<SavedFile> {
    let path = &dir.join(&name);
    // Wider elements first, then by name: the format's own order, which keeps every tensor aligned.
    tensors.sort_by(|a, b| (b.dtype().n_bytes(), a.name()).cmp(&(a.dtype().n_bytes(), b.name())));
    let mut file = HashingWriter::new(create(path)?);
    file.write_all(&header(&tensors)?).with_context(|| cannot_write(path))?;
    for tensor in tensors {
        let (tensor_name, shape) = (tensor.name(), tensor.shape());
        let values = tensor.values().with_context(|| format!("cannot save tensor `{tensor_name}`"))?;
        let n_values = values.len();
        ensure!(shape.iter().product::<usize>() == n_values, "tensor `{tensor_name}` of shape {shape:?} comes with {n_values} values");
        for values in values.chunks(BUFFER_ELEMENTS) {
            narrow(tensor.dtype(), values, buffer).with_context(|| format!("cannot save tensor `{tensor_name}`"))?;
            file.write_all(buffer).with_context(|| cannot_write(path))?;
        }
    }
    finish(file, path, name)
}

fn finish(file: HashingWriter<File>, path: &Path, name: String) -> Result<SavedFile> {
    let (file, contents) = file.finish();
    file.sync_all().with_context(|| cannot_write(path))?;
    Ok(SavedFile { name, contents })
}

/// The length of the JSON and the JSON, padded so that the data starts at a multiple of 8 bytes.
fn header(tensors: &[&impl Saveable]) -> Result<Vec<u8>> {
    let mut offset = 0;
    let infos = tensors.iter().map(|tensor| {
        let start = offset;
        offset += tensor.n_bytes();
        let info = TensorInfo { dtype: tensor.dtype().safetensors(), shape: tensor.shape().to_vec(), data_offsets: (start, offset) };
        (tensor.name().to_owned(), info)
    });
    // transformers refuses a file that does not say which framework's layout its tensors have.
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(format), infos.collect()).context("tensors do not form a safetensors file")?;
    let mut json = serde_json::to_vec(&metadata)?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    Ok(header)
}

/// Rounds to nearest even into `out`, replacing what it held.
fn narrow(dtype: SavedDtype, values: &[f32], out: &mut Vec<u8>) -> Result<()> {
    out.resize(values.len() * dtype.n_bytes(), 0);
    let chunks = values.par_chunks(NARROW_CHUNK).zip(out.par_chunks_mut(NARROW_CHUNK * dtype.n_bytes()));
    chunks.try_for_each(|(values, out)| match dtype {
        SavedDtype::F32 => {
            for (value, out) in values.iter().zip(out.as_chunks_mut().0) {
                *out = value.to_le_bytes();
            }
            Ok(())
        }
        SavedDtype::Bf16 => {
            for (value, out) in values.iter().zip(out.as_chunks_mut().0) {
                *out = half::bf16::from_f32(*value).to_le_bytes();
            }
            Ok(())
        }
        SavedDtype::F16 => narrow_to_f16(values, out),
    })
}

fn narrow_to_f16(values: &[f32], out: &mut [u8]) -> Result<()> {
    let mut rounded = vec![half::f16::ZERO; values.len()];
    rounded.convert_from_f32_slice(values);
    for ((value, rounded), out) in values.iter().zip(&rounded).zip(out.as_chunks_mut().0) {
        if rounded.is_infinite() && value.is_finite() {
            bail!("its value {value} is beyond f16's largest, 65504; save as bf16 or f32");
        }
        *out = rounded.to_le_bytes();
    }
    Ok(())
}

fn create(path: &Path) -> Result<File> {
    File::create_new(path).with_context(|| cannot_write(path))
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write `{}`", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn narrowed(dtype: SavedDtype, value: f32) -> u16 {
        let mut out = Vec::new();
        narrow(dtype, &[value], &mut out).unwrap();
        u16::from_le_bytes([out[0], out[1]])
    }

    #[test]
    fn halves_round_to_nearest_even() {
        // bf16 keeps 7 fraction bits: 1 + 2^-8 is halfway to the next value and goes to the even one below, 1 + 3 * 2^-8 to the even one above.
        assert_eq!(narrowed(SavedDtype::Bf16, 1.0 + 1.0 / 256.0), 0x3f80);
        assert_eq!(narrowed(SavedDtype::Bf16, 1.0 + 3.0 / 256.0), 0x3f82);
        assert_eq!(narrowed(SavedDtype::Bf16, 1.0 + 1.0 / 256.0 + f32::EPSILON), 0x3f81);
        // f16 keeps 10.
        assert_eq!(narrowed(SavedDtype::F16, 1.0 + 1.0 / 2048.0), 0x3c00);
        assert_eq!(narrowed(SavedDtype::F16, 1.0 + 3.0 / 2048.0), 0x3c02);
        assert_eq!(narrowed(SavedDtype::F16, 1.0 + 1.0 / 2048.0 + f32::EPSILON), 0x3c01);
        // The smallest subnormal, and the half of it that rounds to (even) zero.
        assert_eq!(narrowed(SavedDtype::F16, 2f32.powi(-24)), 1);
        assert_eq!(narrowed(SavedDtype::F16, 2f32.powi(-25)), 0);
    }

    #[test]
    fn the_header_is_aligned_and_says_pt() {
        let values = [0.0; 3];
        let tensor = TensorToSave { name: "x", shape: &[3], values: &values, dtype: SavedDtype::Bf16 };
        let header = header(&[&tensor]).unwrap();
        assert_eq!(header.len() % 8, 0);
        let json: serde_json::Value = serde_json::from_slice(&header[8..]).unwrap();
        assert_eq!(json["__metadata__"]["format"], "pt");
        assert_eq!(json["x"]["data_offsets"], serde_json::json!([0, 6]));
    }
}
