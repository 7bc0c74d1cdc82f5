//! A repository on the Hugging Face hub, and its snapshot in the cache that transformers shares.
//!
//! hf-hub knows the cache's layout and the hub's addresses; what it leaves out is done here: one commit for all files of a snapshot, checksums
//! (the listing has them), work without network, and errors that say what to do. Weights are fetched last, so a snapshot that has all its weights
//! is complete, and is used without a request.

use super::environment::Environment;
use super::transfer::{Client, Failure, MOST_FILE_BYTES, MOST_SMALL_BYTES, Request};
use crate::escape::escape_for_terminal;
use crate::model::weights::{INDEX_FILE, SINGLE_FILE, shard_files};
use crate::secret::shown;
use anyhow::{Context, Result, anyhow, bail, ensure};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

pub(super) struct Repository<'a> {
    environment: &'a Environment,
    kind: RepoType,
    id: &'a str,
    revision: &'a str,
}

/// Files of one commit.
pub(super) struct Snapshot {
    pub dir: PathBuf,
    pub commit: String,
}

/// The hub's answer about a repository.
#[derive(Deserialize)]
struct Listing {
    /// The commit that the revision stands for.
    sha: String,
    siblings: Vec<Entry>,
}

impl Listing {
    /// # Errors
    /// No hub of git repositories lists this: hashes that are none, names that lead out of their folder or that a terminal would obey.
    fn check(&self) -> Result<()> {
        ensure!(is_hash(&self.sha), "it names a commit that is none, which has 40 hexadecimal digits: `{}`", self.sha);
        for Entry { path, blob_id, lfs, .. } in &self.siblings {
            ensure!(
                !leads_out(path),
                "it has a file whose name leads out of its folder or holds a control character: `{path}`; nothing was fetched"
            );
            if let Some(id) = blob_id.as_ref().filter(|id| !is_hash(id)) {
                bail!("it names the content of `{path}` by what is no git blob id, which has 40 hexadecimal digits: `{id}`");
            }
            if let Some(Lfs { sha256, .. }) = lfs.as_ref().filter(|lfs| !is_hex(&lfs.sha256, 64)) {
                bail!("it names the content of `{path}` by what is no sha256, which has 64 hexadecimal digits: `{sha256}`");
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "rfilename")]
    path: String,
    size: Option<u64>,
    /// The git object's id.
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    /// Of large files.
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
    size: u64,
}

impl<'a> Repository<'a> {
    pub fn model(environment: &'a Environment, id: &'a str, revision: Option<&'a str>) -> Result<Self> {
        Self::new(environment, RepoType::Model, id, revision)
    }

    pub fn dataset(environment: &'a Environment, id: &'a str, revision: Option<&'a str>) -> Result<Self> {
        Self::new(environment, RepoType::Dataset, id, revision)
    }

    fn new(environment: &'a Environment, kind: RepoType, id: &'a str, revision: Option<&'a str>) -> Result<Self> {
        let revision = revision.unwrap_or("main");
        // It becomes part of a path in the cache.
        let is_plain =
            revision.split('/').all(|part| !part.is_empty() && !part.starts_with('.')) && !revision.contains(['\\', '?', '#', '%']);
        ensure!(is_plain, "`{revision}` is not a revision; a branch, a tag or a commit is");
        Ok(Self { environment, kind, id, revision })
    }

    /// The model's configuration, tokenizer, templates and weights.
    pub fn model_snapshot(&self) -> Result<Snapshot> {
        if let Some(snapshot) = self.cached()
            && (has_model(&snapshot.dir) || self.environment.offline)
        {
            ensure!(
                has_weights(&snapshot.dir),
                "{}, and `{}` has not all of its weights: go online once to complete it",
                self.offline(),
                snapshot.dir.display()
            );
            return Ok(snapshot);
        }
        let listing = self.listing()?;
        let mut small: BTreeMap<&str, &Entry> = listing.siblings.iter().map(|entry| (entry.path.as_str(), entry)).collect();
        small.retain(|path, _| is_plain_file(path) && (path.ends_with(".json") || path.ends_with(".jinja")));
        ensure!(small.contains_key("config.json"), "`{}` has no config.json; is it a model that transformers can load?", self.id);
        for entry in small.into_values() {
            self.fetch(&listing.sha, entry)?;
        }
        for entry in self.weights(&listing)? {
            self.fetch(&listing.sha, entry)?;
        }
        self.finish(&listing.sha)
    }

    /// Files of a dataset, which `choose` picks from the paths of all files.
    pub fn files(&self, choose: &dyn Fn(&[&str]) -> Result<Vec<String>>) -> Result<Vec<PathBuf>> {
        let (snapshot, paths) = self.chosen(choose)?;
        Ok(paths.iter().map(|path| snapshot.dir.join(path)).collect())
    }

    /// As [`Self::files`]: the snapshot, and paths relative to it.
    pub fn chosen(&self, choose: &dyn Fn(&[&str]) -> Result<Vec<String>>) -> Result<(Snapshot, Vec<String>)> {
        if let Some(snapshot) = self.cached() {
            let present = files_below(&snapshot.dir);
            let present: Vec<&str> = present.iter().map(String::as_str).collect();
            match choose(&present) {
                Ok(paths) => return Ok((snapshot, paths)),
                Err(error) if self.environment.offline => return Err(error.context(self.offline())),
                Err(_) => {}
            }
        }
        let listing = self.listing()?;
        let paths: Vec<&str> = listing.siblings.iter().map(|entry| entry.path.as_str()).filter(|path| is_safe_path(path)).collect();
        let chosen = choose(&paths)?;
        for path in &chosen {
            let entry = listing.siblings.iter().find(|entry| entry.path == *path);
            self.fetch(&listing.sha, entry.with_context(|| format!("`{}` has no file `{path}`", self.id))?)?;
        }
        Ok((self.finish(&listing.sha)?, chosen))
    }

    /// The snapshot of this revision in the cache, complete or not.
    fn cached(&self) -> Option<Snapshot> {
        let repo = self.cache();
        // A commit is its own reference; for a branch or tag the cache notes which commit it was.
        let noted = fs::read_to_string(self.root().join("refs").join(self.revision)).ok();
        let commit = noted.map_or_else(|| self.revision.to_owned(), |commit| commit.trim().to_owned());
        let dir = repo.pointer_path(&commit);
        (is_hash(&commit) && dir.is_dir()).then_some(Snapshot { dir, commit })
    }

    fn listing(&self) -> Result<Listing> {
        if self.environment.offline {
            bail!("{}, and `{}` (revision `{}`) is not in the cache `{}`", self.offline(), self.id, self.revision, self.root().display());
        }
        let url = format!("{}/api/{}?blobs=true", self.environment.endpoint, self.repo().api_url());
        let listing: Listing =
            Client::new(self.environment).json(&url, self.environment.token.as_ref()).map_err(|failure| self.explain(failure))?;
        let whose = || format!("the listing of `{}` at {}", self.id, shown(&self.environment.endpoint));
        listing.check().with_context(whose)?;
        Ok(listing)
    }

    /// `model.safetensors`, or the shards that the index names (which has been fetched): other weights in the repository are left alone.
    fn weights<'l>(&self, listing: &'l Listing) -> Result<Vec<&'l Entry>> {
        let find = |path: &str| listing.siblings.iter().find(|entry| entry.path == path);
        if let Some(single) = find(SINGLE_FILE) {
            return Ok(vec![single]);
        }
        let index = self.cache().pointer_path(&listing.sha).join(INDEX_FILE);
        ensure!(
            index.is_file(),
            "`{}` has neither `{SINGLE_FILE}` nor `{INDEX_FILE}`; only safetensors are read, never pickles. Some repositories have them on \
             another revision (`refs/pr/1`)",
            self.id
        );
        shard_files(&index)?
            .iter()
            .map(|shard| {
                find(shard).with_context(|| format!("the index of `{}` names the shard `{shard}`, which the repository lacks", self.id))
            })
            .collect()
    }

    /// Brings one file into the snapshot of `commit`, unless it is there.
    fn fetch(&self, commit: &str, entry: &Entry) -> Result<()> {
        ensure!(is_safe_path(&entry.path), "`{}` has a file of a name that is not taken: `{}`", self.id, entry.path);
        let repo = self.cache();
        let pointer = repo.pointer_path(commit).join(&entry.path);
        if pointer.exists() {
            return Ok(());
        }
        let at_commit = Repo::with_revision(self.id.to_owned(), self.kind, commit.to_owned());
        let url = format!("{}/{}/resolve/{commit}/{}", self.environment.endpoint, at_commit.url(), entry.path);
        let label = format!("{}/{}", self.id, entry.path);
        let is_weights = entry.path.ends_with(".safetensors");
        let request = Request {
            url: &url,
            token: self.environment.token.as_ref(),
            label: &label,
            n_bytes: entry.lfs.as_ref().map(|lfs| lfs.size).or(entry.size),
            most: if matches!(self.kind, RepoType::Model) && !is_weights { MOST_SMALL_BYTES } else { MOST_FILE_BYTES },
            sha256: entry.lfs.as_ref().map(|lfs| lfs.sha256.as_str()),
            git_blob: entry.blob_id.as_deref().filter(|_| entry.lfs.is_none()),
        };
        // The cache names content by its hash, so that commits share unchanged files. A mirror may not tell hashes: the file then stands for itself.
        let content = entry.lfs.as_ref().map(|lfs| &lfs.sha256).or(entry.blob_id.as_ref());
        let destination = content.map_or_else(|| pointer.clone(), |hash| repo.blob_path(hash));
        if !destination.exists() {
            let fetched = Client::new(self.environment).download(&request, &destination);
            fetched.map_err(|failure| self.explain(failure).context(format!("cannot download `{}` of `{}`", entry.path, self.id)))?;
        }
        if destination != pointer {
            link(&destination, &pointer).with_context(|| format!("cannot link `{}` into the cache", pointer.display()))?;
        }
        Ok(())
    }

    /// Notes which commit the revision is, now that all of its files are there.
    fn finish(&self, commit: &str) -> Result<Snapshot> {
        let repo = self.cache();
        if commit != self.revision {
            repo.create_ref(commit).with_context(|| format!("cannot write to the cache `{}`", self.root().display()))?;
        }
        Ok(Snapshot { dir: repo.pointer_path(commit), commit: commit.to_owned() })
    }

    fn repo(&self) -> Repo {
        Repo::with_revision(self.id.to_owned(), self.kind, self.revision.to_owned())
    }

    fn cache(&self) -> CacheRepo {
        Cache::new(self.environment.hub_cache.clone()).repo(self.repo())
    }

    fn root(&self) -> PathBuf {
        self.environment.hub_cache.join(self.repo().folder_name())
    }

    fn offline(&self) -> &'static str {
        "HF_HUB_OFFLINE is set"
    }

    /// What a failed request means for someone who wants this repository.
    fn explain(&self, failure: Failure) -> anyhow::Error {
        let token = &self.environment.token;
        let endpoint = shown(&self.environment.endpoint);
        let (id, revision) = (self.id, self.revision);
        let page = format!("{endpoint}/{}", self.repo().url());
        let noun = if matches!(self.kind, RepoType::Dataset) { "data set" } else { "model" };
        let set_token = format!(
            "create a token with read access at {endpoint}/settings/tokens and set it in the variable HF_TOKEN (or log in with `hf auth login`)"
        );
        match failure {
            Failure::Refused { status: 401 | 403, code } if code == "GatedRepo" => match token {
                None => anyhow!("`{id}` is gated: accept its licence at {page}, {set_token}"),
                Some(_) => anyhow!(
                    "`{id}` is gated, and your token has no access to it: accept the licence at {page} with the account of the token; a \
                     fine-grained token must also allow reading gated repositories"
                ),
            },
            Failure::Refused { status: 404, code } if code == "RevisionNotFound" => {
                anyhow!("`{id}` has no revision `{revision}`; {page} lists its branches, tags and commits")
            }
            Failure::Refused { status: 404, code } if code == "EntryNotFound" => anyhow!("{page} lists the file but does not have it"),
            Failure::Refused { status: 401 | 404, .. } if token.is_none() => anyhow!(
                "there is no {noun} `{id}` on {endpoint} (and no folder of that name here), or it is private or gated: check the name; for a \
                 private or gated one accept its licence at {page}, {set_token}"
            ),
            Failure::Refused { status: 401, .. } => {
                anyhow!("{endpoint} refused the token, or there is no {noun} `{id}`: check the name, or {set_token}")
            }
            Failure::Refused { status: 403, .. } => anyhow!("your token does not give access to `{id}`: ask for it at {page}"),
            Failure::Refused { status: 404, .. } => anyhow!(
                "there is no {noun} `{id}` with revision `{revision}` on {endpoint} that your token can see, and no folder of that name here"
            ),
            Failure::Refused { status: 429, .. } => {
                anyhow!("{endpoint} has had too many requests from here; wait some minutes and try again")
            }
            Failure::Refused { status, .. } => anyhow!("{endpoint} answered with status {status}; try again later"),
            Failure::Unreachable(reason) => anyhow!(
                "cannot reach {endpoint} for the {noun} `{id}` ({reason}): is there a network?\n\
                 hint: a {noun} that lies in a local folder needs none: give its path instead; with HF_HUB_OFFLINE=1 only the cache is used"
            ),
            Failure::Broken(reason) => {
                anyhow!("{endpoint}: {reason}, after several attempts. Run the same command again; large files go on where they stopped")
            }
            Failure::Other(error) => error,
        }
    }
}

/// Whether a snapshot needs nothing more: weights are fetched last.
fn has_model(dir: &Path) -> bool {
    // Other programs may have left these out of the shared cache.
    ["config.json", "tokenizer.json", "tokenizer_config.json"].iter().all(|file| dir.join(file).is_file()) && has_weights(dir)
}

fn has_weights(dir: &Path) -> bool {
    let has_all = |shards: BTreeSet<String>| !shards.is_empty() && shards.iter().all(|shard| dir.join(shard).is_file());
    dir.join(SINGLE_FILE).is_file() || shard_files(&dir.join(INDEX_FILE)).is_ok_and(has_all)
}

/// A file at the top of a repository.
fn is_plain_file(path: &str) -> bool {
    is_safe_path(path) && !path.contains('/')
}

/// A relative path that stays below its folder, here and on every system that shares the cache; hidden files are nobody's.
fn is_safe_path(path: &str) -> bool {
    let is_plain = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(['.', ' ']) && !is_device(part);
    !leads_out(path) && !path.contains(['\\', ':', '?', '#', '%', '*', '"', '<', '>', '|']) && path.split('/').all(is_plain)
}

/// A path that no git repository can have.
fn leads_out(path: &str) -> bool {
    path.split('/').any(|part| matches!(part, "" | "." | "..")) || escape_for_terminal(path) != path || path.contains(['\n', '\t'])
}

/// What Windows takes for a device, whatever the extension.
fn is_device(part: &str) -> bool {
    let stem = part.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let numbered = |name: &str| stem.strip_prefix(name).is_some_and(|number| matches!(number.as_bytes(), [b'1'..=b'9']));
    matches!(stem.as_str(), "con" | "prn" | "aux" | "nul") || numbered("com") || numbered("lpt")
}

/// Hexadecimal, as commits and contents are named: nothing else becomes a path in the cache.
fn is_hash(text: &str) -> bool {
    is_hex(text, 40) || is_hex(text, 64)
}

fn is_hex(text: &str, n_digits: usize) -> bool {
    text.len() == n_digits && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Paths of all files below `dir`, relative to it, sorted.
fn files_below(dir: &Path) -> Vec<String> {
    let mut files = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(dir.join(&folder)).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            if entry.path().is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}

/// Makes `pointer` stand for `content`: a relative symbolic link, so that the cache can be moved, or a copy where there are none.
fn link(content: &Path, pointer: &Path) -> Result<()> {
    let folder = pointer.parent().context("a file has a folder")?;
    fs::create_dir_all(folder)?;
    #[cfg(unix)]
    {
        // snapshots/COMMIT/PATH and blobs/HASH lie in one folder.
        let repository = content.parent().and_then(Path::parent).context("a blob lies in a repository")?;
        let depth = folder.strip_prefix(repository)?.components().count();
        let target: PathBuf = std::iter::repeat_n("..", depth).collect::<PathBuf>().join(content.strip_prefix(repository)?);
        match std::os::unix::fs::symlink(target, pointer) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error.into()),
            _ => Ok(()),
        }
    }
    #[cfg(not(unix))]
    {
        fs::copy(content, pointer)?;
        Ok(())
    }
}
