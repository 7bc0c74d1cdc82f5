//! Folders that exist whole or not at all, and the manifest by which a reader can tell that nothing in them has changed.
//!
//! A folder is written under a hidden temporary name beside its place, synced file by file, and renamed. Whatever kills the process in
//! between leaves a `.NAME.partial` folder, which the next start removes.

use crate::digest::{Contents, HashingWriter, contents_of};
use crate::files::read_json_as;
use anyhow::{Context, Result, anyhow, bail, ensure};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

const PARTIAL: &str = ".partial";
/// One file of a folder: its path inside it, with `/` between the parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    pub path: String,
    pub bytes: u64,
    pub sha256: String,
}

/// Every file of a folder but the manifest itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub files: Vec<FileRecord>,
}

/// What of a model's folder is loaded, beside its weights.
const LOADED: [&str; 5] = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "adapter_config.json"];

impl Manifest {
    /// Reads `path` and compares every file it names, in `dir`, with its size and sha256. It must name the `required` ones (a folder stands for any
    /// file in it), and every weights file and JSON file that is there: what nothing vouches for is no part of a whole folder.
    ///
    /// # Errors
    /// Names the first file that is missing, cut, changed or not named.
    pub fn verify(dir: &Path, path: &Path, required: &[&str]) -> Result<()> {
        let manifest: Manifest = read_json_as(path)?;
        for record in &manifest.files {
            let is_inside = Path::new(&record.path).components().all(|part| matches!(part, Component::Normal(_)));
            ensure!(is_inside && !record.path.is_empty(), "`{}` names `{}`, which is not in its folder", path.display(), record.path);
        }
        let names = |file: &str| {
            manifest.files.iter().any(|record| record.path.strip_prefix(file).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
        };
        for file in required {
            ensure!(names(file), "`{}` does not name `{file}`: the folder is not whole", path.display());
        }
        for file in files_in(dir)? {
            let name = file.strip_prefix(dir).unwrap_or(&file).to_string_lossy().replace('\\', "/");
            // Whoever adds notes or results to a model's folder changes nothing of what is loaded.
            let is_data = LOADED.contains(&name.as_str())
                || name.ends_with(".safetensors")
                || name.ends_with(".index.json")
                || name.starts_with("trainer/") && (name.ends_with(".json") || name.ends_with(".jsonl"));
            ensure!(
                !is_data || file == path || names(&name),
                "`{}` does not name `{name}`, which is there: the folder is not whole",
                path.display()
            );
        }
        // Sizes first: a cut file is found without reading gigabytes.
        for record in &manifest.files {
            let file = dir.join(&record.path);
            let bytes = fs::metadata(&file).with_context(|| format!("`{}` is missing", file.display()))?.len();
            ensure!(bytes == record.bytes, "`{}` has {bytes} bytes, {} were written", file.display(), record.bytes);
        }
        let check = |record: &FileRecord| {
            let file = dir.join(&record.path);
            let Contents { sha256, .. } = contents_of(&file)?;
            ensure!(sha256 == record.sha256, "`{}` is damaged: its sha256 is {sha256}, not {}", file.display(), record.sha256);
            Ok(())
        };
        // The first damaged file is named, whichever was found damaged first.
        let checks: Vec<Result<()>> = manifest.files.par_iter().map(check).collect();
        checks.into_iter().collect()
    }
}

/// A folder being written, with a record of every file.
pub struct FolderWriter {
    dir: PathBuf,
    files: Vec<FileRecord>,
}

impl FolderWriter {
    /// Where the folder stands while it is written.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Notes a file that something else wrote (and synced) into the folder.
    pub fn add(&mut self, path: &str, contents: Contents) {
        self.files.push(FileRecord { path: path.to_owned(), bytes: contents.bytes, sha256: contents.sha256 });
    }

    /// Writes `path` (relative, parents are made) from memory.
    pub fn write(&mut self, path: &str, contents: &[u8]) -> Result<()> {
        self.copy(path, contents)
    }

    /// Writes `path` (relative, parents are made) from a reader.
    pub fn copy(&mut self, path: &str, mut source: impl Read) -> Result<()> {
        let target = self.dir.join(path);
        let mut copy = || -> io::Result<Contents> {
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent)?;
            }
            let mut writer = HashingWriter::new(File::create_new(&target)?);
            io::copy(&mut source, &mut writer)?;
            let (file, contents) = writer.finish();
            file.sync_all()?;
            Ok(contents)
        };
        let contents = copy().with_context(|| format!("cannot write `{}`", target.display()))?;
        self.add(path, contents);
        Ok(())
    }

    /// Writes the manifest of everything written so far.
    pub fn write_manifest(&mut self, path: &str) -> Result<()> {
        let manifest = Manifest { files: std::mem::take(&mut self.files) };
        self.write(path, &serde_json::to_vec_pretty(&manifest)?)
    }
}

/// Makes the folder `dir` from what `fill` writes; an existing folder of that name is replaced. On an error nothing is left behind, and
/// an existing folder stays as it was.
pub fn publish(dir: &Path, fill: impl FnOnce(&mut FolderWriter) -> Result<()>) -> Result<()> {
    let partial = partial_name(dir, "")?;
    remove_if_there(&partial)?;
    fs::create_dir(&partial).with_context(|| format!("cannot create the folder `{}`", partial.display()))?;
    let mut writer = FolderWriter { dir: partial.clone(), files: Vec::new() };
    let result = fill(&mut writer).and_then(|()| sync_folders(&partial)).and_then(|()| put_in_place(&partial, dir));
    if result.is_err() {
        // The error that matters is the first one; what cannot be removed now is removed at the next start.
        let _ = fs::remove_dir_all(&partial);
    }
    result
}

/// Removes what an interrupted [`publish`] or atomic write left in `parent`.
pub fn remove_leftovers(parent: &Path) -> Result<()> {
    for entry in fs::read_dir(parent).with_context(|| format!("cannot read the folder `{}`", parent.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // `.tmp` is what `files::write_atomically` leaves.
        if name.starts_with('.') && (name.ends_with(PARTIAL) || name.ends_with(".tmp")) {
            remove_if_there(&path)?;
        }
    }
    Ok(())
}

/// Removes a folder so that no half of it is ever seen under its name.
pub fn remove(dir: &Path) -> Result<()> {
    let removed = partial_name(dir, ".removed")?;
    remove_if_there(&removed)?;
    fs::rename(dir, &removed).with_context(|| format!("cannot remove `{}`", dir.display()))?;
    remove_if_there(&removed)
}

fn put_in_place(partial: &Path, dir: &Path) -> Result<()> {
    let replaced = partial_name(dir, ".replaced")?;
    remove_if_there(&replaced)?;
    if dir.exists() {
        // A folder cannot be renamed over one that is not empty.
        fs::rename(dir, &replaced).with_context(|| format!("cannot replace `{}`", dir.display()))?;
    }
    fs::rename(partial, dir).with_context(|| format!("cannot rename `{}` to `{}`", partial.display(), dir.display()))?;
    dir.parent().map_or(Ok(()), sync_folder)?;
    remove_if_there(&replaced)
}

fn partial_name(path: &Path, infix: &str) -> Result<PathBuf> {
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| anyhow!("`{}` has no usable name", path.display()))?;
    Ok(path.with_file_name(format!(".{name}{infix}{PARTIAL}")))
}

fn remove_if_there(path: &Path) -> Result<()> {
    let result = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => bail!("cannot remove `{}`: {error}", path.display()),
        _ => Ok(()),
    }
}

/// Every file in `dir` and its folders, but hidden ones.
fn files_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let context = || format!("cannot read the folder `{}`", dir.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(context)? {
        let path = entry.with_context(context)?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        match (is_hidden, path.is_dir()) {
            (true, _) => {}
            (false, true) => files.extend(files_in(&path)?),
            (false, false) => files.push(path),
        }
    }
    files.sort();
    Ok(files)
}

/// Syncs `dir` and the folders in it: the names, that is; files are synced as they are written.
fn sync_folders(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read the folder `{}`", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            sync_folders(&path)?;
        }
    }
    sync_folder(dir)
}

fn sync_folder(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|folder| folder.sync_all()).with_context(|| format!("cannot sync the folder `{}`", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish_example(dir: &Path) -> Result<()> {
        publish(dir, |folder| {
            folder.write("a.txt", b"hello")?;
            folder.copy("sub/b.bin", &[7u8; 3_000_000][..])?;
            folder.write_manifest("sub/manifest.json")
        })
    }

    #[test]
    fn a_published_folder_verifies_and_leaves_nothing_behind() {
        let run = tempfile::tempdir().unwrap();
        let dir = run.path().join("checkpoint-000001");
        publish_example(&dir).unwrap();
        Manifest::verify(&dir, &dir.join("sub/manifest.json"), &[]).unwrap();
        publish_example(&dir).unwrap();
        let names: Vec<_> = fs::read_dir(run.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["checkpoint-000001"]);
        let manifest: Manifest = serde_json::from_slice(&fs::read(dir.join("sub/manifest.json")).unwrap()).unwrap();
        // printf hello | sha256sum
        let sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824".to_string();
        assert_eq!(manifest.files[0], FileRecord { path: "a.txt".into(), bytes: 5, sha256 });
    }

    #[test]
    fn every_kind_of_damage_is_named() {
        let run = tempfile::tempdir().unwrap();
        let dir = run.path().join("c");
        let damage = |change: &dyn Fn()| {
            publish_example(&dir).unwrap();
            change();
            format!("{:#}", Manifest::verify(&dir, &dir.join("sub/manifest.json"), &[]).unwrap_err())
        };
        let file = dir.join("sub/b.bin");
        let message = damage(&|| fs::remove_file(&file).unwrap());
        assert!(message.contains("b.bin` is missing"), "{message}");
        let message = damage(&|| fs::write(&file, b"cut").unwrap());
        assert!(message.contains("b.bin` has 3 bytes, 3000000 were written"), "{message}");
        let message = damage(&|| fs::write(&file, vec![8u8; 3_000_000]).unwrap());
        assert!(message.contains("b.bin` is damaged: its sha256"), "{message}");
        let message = damage(&|| fs::write(dir.join("sub/manifest.json"), b"{\"files\": [").unwrap());
        assert!(message.contains("manifest.json` is not valid JSON"), "{message}");
    }

    #[test]
    fn a_failed_publish_keeps_the_old_folder() {
        let run = tempfile::tempdir().unwrap();
        let dir = run.path().join("c");
        publish_example(&dir).unwrap();
        let error = publish(&dir, |folder| {
            folder.write("a.txt", b"new")?;
            bail!("disk full")
        });
        assert_eq!(error.unwrap_err().to_string(), "disk full");
        assert_eq!(fs::read(dir.join("a.txt")).unwrap(), b"hello");
        assert_eq!(fs::read_dir(run.path()).unwrap().count(), 1);
    }

    #[test]
    fn leftovers_go_and_all_else_stays() {
        let run = tempfile::tempdir().unwrap();
        fs::create_dir_all(run.path().join(".checkpoint-000002.partial/trainer")).unwrap();
        fs::write(run.path().join(".config.toml.17.tmp"), "x").unwrap();
        fs::write(run.path().join("notes.partial"), "mine").unwrap();
        remove_leftovers(run.path()).unwrap();
        let names: Vec<_> = fs::read_dir(run.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["notes.partial"]);
    }
}
