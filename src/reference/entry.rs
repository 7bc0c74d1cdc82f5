//! One cached sequence on disk: a small safetensors file, written atomically and verified by its own digest when read.

use crate::digest::hex;
use crate::files::write_atomically;
use crate::objective::ResponseScore;
use crate::scoring::ScoredSequence;
use anyhow::{Context, Result, bail, ensure};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

const LOG_PROB: &str = "log_prob";
const STATES: &str = "states";
const HEADER: &str = "entry";

/// One string in the file's metadata, because safetensors writes a map of several in no fixed order.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Header {
    key: String,
    n_tokens: usize,
    /// sha256 of the token count, the log-probability and the states.
    sha256: String,
}

pub(super) fn path(folder: &Path, key: &str) -> PathBuf {
    folder.join(format!("{key}.safetensors"))
}

/// `None` when there is no such entry; an error when there is one that is damaged or belongs to another key.
pub(super) fn read(folder: &Path, key: &str, hidden_size: usize) -> Result<Option<ScoredSequence>> {
    let path = path(folder, key);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read `{}`", path.display())),
    };
    parse(&bytes, key, hidden_size).map(Some).with_context(|| format!("`{}` is damaged", path.display()))
}

/// Writes the entry under a temporary name, syncs and renames it: a reader sees all of it or nothing.
pub(super) fn write(folder: &Path, key: &str, sequence: &ScoredSequence, hidden_size: usize) -> Result<()> {
    write_atomically(&path(folder, key), &serialize(key, sequence, hidden_size)?)
}

fn serialize(key: &str, sequence: &ScoredSequence, hidden_size: usize) -> Result<Vec<u8>> {
    let log_prob = sequence.score.log_prob.to_le_bytes();
    let states: Vec<u8> = sequence.states.iter().flat_map(|value| value.to_le_bytes()).collect();
    let header = Header { key: key.into(), n_tokens: sequence.score.n_tokens, sha256: digest(sequence.score.n_tokens, &log_prob, &states) };
    let n_states = sequence.states.len() / hidden_size;
    let tensors = [
        (LOG_PROB, TensorView::new(Dtype::F64, vec![1], &log_prob)?),
        (STATES, TensorView::new(Dtype::F32, vec![n_states, hidden_size], &states)?),
    ];
    let metadata = HashMap::from([(HEADER.to_string(), serde_json::to_string(&header)?)]);
    Ok(safetensors::serialize(tensors, Some(metadata))?)
}

fn parse(bytes: &[u8], key: &str, hidden_size: usize) -> Result<ScoredSequence> {
    let (_, metadata) = SafeTensors::read_metadata(bytes)?;
    let header = metadata.metadata().as_ref().and_then(|map| map.get(HEADER)).context("it has no header of ours")?;
    let header: Header = serde_json::from_str(header)?;
    let tensors = SafeTensors::deserialize(bytes)?;
    let (log_prob, states) = (tensors.tensor(LOG_PROB)?, tensors.tensor(STATES)?);
    ensure!(header.key == key, "it was written for another sequence");
    ensure!(header.sha256 == digest(header.n_tokens, log_prob.data(), states.data()), "its content does not have its checksum");
    ensure!(states.dtype() == Dtype::F32 && states.shape().last() == Some(&hidden_size), "its states have another shape");
    let &[a, b, c, d, e, f, g, h] = log_prob.data() else { bail!("its log-probability is not one f64") };
    Ok(ScoredSequence {
        score: ResponseScore { log_prob: f64::from_le_bytes([a, b, c, d, e, f, g, h]), n_tokens: header.n_tokens },
        states: states.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
    })
}

fn digest(n_tokens: usize, log_prob: &[u8], states: &[u8]) -> String {
    hex(&Sha256::new().chain_update(n_tokens.to_string()).chain_update(log_prob).chain_update(states).finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sequence() -> ScoredSequence {
        ScoredSequence { score: ResponseScore { log_prob: -12.062_5, n_tokens: 7 }, states: vec![0.1, -0.0, f32::MIN_POSITIVE, 3e38] }
    }

    #[test]
    fn what_is_written_is_read_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path(), "k", 4).unwrap(), None);
        write(folder.path(), "k", &sequence(), 4).unwrap();
        let back = read(folder.path(), "k", 4).unwrap().unwrap();
        assert_eq!(back, sequence());
        assert_eq!(back.states[1].to_bits(), (-0.0f32).to_bits());
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["k.safetensors"], "no temporary file stays");
        assert_eq!(serialize("k", &sequence(), 4).unwrap(), serialize("k", &sequence(), 4).unwrap());
    }

    #[test]
    fn a_sequence_without_states_has_an_entry_too() {
        let folder = tempfile::tempdir().unwrap();
        let bare = ScoredSequence { states: Vec::new(), ..sequence() };
        write(folder.path(), "k", &bare, 4).unwrap();
        assert_eq!(read(folder.path(), "k", 4).unwrap(), Some(bare));
    }

    #[test]
    fn every_kind_of_damage_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "k", &sequence(), 4).unwrap();
        let file = path(folder.path(), "k");
        let whole = fs::read(&file).unwrap();
        let last = whole.len() - 1;
        for at in [0, 9, last] {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            fs::write(&file, flipped).unwrap();
            assert!(read(folder.path(), "k", 4).is_err(), "byte {at}");
        }
        for length in [0, 7, last] {
            fs::write(&file, &whole[..length]).unwrap();
            assert!(read(folder.path(), "k", 4).is_err(), "length {length}");
        }
        fs::write(&file, &whole).unwrap();
        assert!(read(folder.path(), "k", 2).is_err(), "another hidden size");
        fs::rename(&file, path(folder.path(), "other")).unwrap();
        assert!(read(folder.path(), "other", 4).is_err(), "another key");
    }

    #[test]
    fn the_checksum_covers_states_and_score() {
        let mut bytes = serialize("k", &sequence(), 4).unwrap();
        assert!(parse(&bytes, "k", 4).is_ok());
        let (header_length, _) = SafeTensors::read_metadata(&bytes).unwrap();
        for offset in 0..8 + 16 {
            bytes[8 + header_length + offset] ^= 0x40;
            let error = parse(&bytes, "k", 4).unwrap_err();
            assert!(error.to_string().contains("checksum"), "{error}");
            bytes[8 + header_length + offset] ^= 0x40;
        }
    }
}
