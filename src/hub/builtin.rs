//! The demonstration model and data inside the binary, unpacked once into the cache so that the rest of the program sees ordinary files.

use crate::digest::hex;
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

type File = (&'static str, &'static [u8]);

macro_rules! files_in {
    ($folder:literal: $($name:literal),+ $(,)?) => {
        &[$(($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/", $folder, "/", $name)) as &[u8])),+]
    };
}

/// What `builtin:tiny` names: a trained toy model, parallel pairs to train and to evaluate it on, benign prompts, and questions with a good and a bad answer.
const TINY: &[File] = files_in!("data/tiny":
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "train.jsonl", "heldout.jsonl",
    "canary.jsonl", "questions.jsonl");

fn files(name: &str) -> Result<&'static [File]> {
    match name {
        "tiny" => Ok(TINY),
        other => bail!("there is no `builtin:{other}`; `builtin:tiny` is built in"),
    }
}

/// The folder in `cache` with the files of `builtin:name`.
///
/// Its name holds a hash of the content, so that another version of the program has another folder; it appears whole, by a rename, and files
/// that somebody changed since are put right.
pub(super) fn folder(cache: &Path, name: &str) -> Result<PathBuf> {
    let files = files(name)?;
    let root = cache.join("builtin");
    let folder = root.join(format!("{name}-{}", content_hash(files)));
    if is_intact(&folder, files) {
        return Ok(folder);
    }
    let unpack = || -> Result<()> {
        let temporary = root.join(format!("{name}.{}.incomplete", std::process::id()));
        fs::create_dir_all(&temporary)?;
        for (file, bytes) in files {
            let mut file = fs::File::create(temporary.join(file))?;
            file.write_all(bytes)?;
            file.sync_all()?;
        }
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        match fs::rename(&temporary, &folder) {
            // Another process was faster.
            Err(_) if is_intact(&folder, files) => Ok(fs::remove_dir_all(&temporary)?),
            result => Ok(result?),
        }
    };
    unpack().with_context(|| {
        format!("cannot unpack `builtin:{name}` into `{}`; set MPO_CACHE to a folder that can be written", folder.display())
    })?;
    Ok(folder)
}

fn content_hash(files: &[File]) -> String {
    let mut hash = Sha256::new();
    for (name, bytes) in files {
        hash.update(format!("{name} {}\n", bytes.len()));
        hash.update(bytes);
    }
    hex(&hash.finalize()[..8])
}

fn is_intact(folder: &Path, files: &[File]) -> bool {
    files.iter().all(|(name, bytes)| fs::read(folder.join(name)).is_ok_and(|content| content == *bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_unpacked_once_and_put_right_when_damaged() {
        let cache = tempfile::tempdir().unwrap();
        let first = folder(cache.path(), "tiny").unwrap();
        let config = first.join("config.json");
        let written = fs::metadata(&config).unwrap().modified().unwrap();
        assert_eq!(folder(cache.path(), "tiny").unwrap(), first);
        assert_eq!(fs::metadata(&config).unwrap().modified().unwrap(), written);
        fs::write(&config, "{").unwrap();
        fs::remove_file(first.join("train.jsonl")).unwrap();
        assert_eq!(folder(cache.path(), "tiny").unwrap(), first);
        assert!(is_intact(&first, TINY));
        // Nothing is left beside it.
        assert_eq!(fs::read_dir(cache.path().join("builtin")).unwrap().count(), 1);
    }

    #[test]
    fn an_unknown_name_says_what_there_is() {
        let error = folder(Path::new("/nowhere"), "huge").unwrap_err().to_string();
        assert!(error.contains("`builtin:huge`") && error.contains("`builtin:tiny`"), "{error}");
    }
}
