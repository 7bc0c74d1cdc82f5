//! Preference data: a local file, an address, a split of a data set on the hub, or what is built in.

use super::environment::Environment;
use super::repository::Repository;
use super::transfer::{Client, Failure, MOST_FILE_BYTES, Request};
use super::{Source, builtin, refuse_revision};
use crate::config::DataConfig;
use crate::digest::{contents_of, hex};
use crate::progress::say;
use crate::secret::{is_hidden, shown};
use anyhow::{Context, Result, anyhow, bail, ensure};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// SHA-256 of the data released with the MPO paper, whose content derives from PKU-SafeRLHF.
const RELEASED: [&str; 3] = [
    "90abf3adc0219e3e94eb4ef87f308028cb7764cd5bc27ab8fb065680ecc94e12",
    "72cdd6ad7b278b6310d2ff7de080c0f9a7f7bf084c9dbf7ea63e3909f94351bc",
    "5db0aa2f3d058029a8b12ce9e7c1369ed9e7fbbe24a1df54470e99eebbe736be",
];

const RELEASED_LICENCE: &str = "note: this is the MPO paper's data (github.com/circle-hit/MPO); its content derives from PKU-SafeRLHF and is \
    licensed CC-BY-NC-4.0: no commercial use. It contains unsafe text.";

pub(super) fn resolve(environment: &Environment, data: &DataConfig) -> Result<Vec<PathBuf>> {
    let path = data.path.as_str();
    if let Some(sha256) = &data.sha256 {
        let is_sha256 = sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
        ensure!(is_sha256, "`{sha256}` is not a sha256: it has 64 hexadecimal digits");
    }
    let revision = data.revision.as_deref();
    let files = match Source::of("data set", path)? {
        Source::Builtin(name) => {
            refuse_revision(path, revision)?;
            vec![builtin_file(environment, name, &data.split)?]
        }
        Source::Local(file) => {
            refuse_revision(path, revision)?;
            ensure!(file.is_file(), "`{path}` is a folder; the data is one JSON, JSONL (gzip'ed or not) or Parquet file");
            vec![std::path::absolute(file).with_context(|| format!("cannot make `{path}` absolute"))?]
        }
        Source::Hub(id) => Repository::dataset(environment, id, revision)?.files(&|paths| choose_split(id, paths, &data.split))?,
        Source::Address(url) => {
            refuse_revision(path, revision)?;
            vec![download(environment, url, data.sha256.as_deref())?]
        }
    };
    verify(&files, data.sha256.as_deref())?;
    Ok(files)
}

/// Every run hashes what it reads where a hash is given, and names the licence where the data is known.
fn verify(files: &[PathBuf], expected: Option<&str>) -> Result<()> {
    let Some(expected) = expected else { return Ok(()) };
    let [file] = files else {
        bail!("`data.sha256` is that of one file, and the split has {} files: remove it, or pin `data.revision`", files.len())
    };
    let actual = contents_of(file)?.sha256;
    ensure!(
        actual.eq_ignore_ascii_case(expected),
        "`{}` has sha256 {actual}, the configuration expects {expected}: it is another file",
        file.display()
    );
    if RELEASED.contains(&actual.as_str()) {
        say(RELEASED_LICENCE);
    }
    Ok(())
}

/// `builtin:tiny` follows `split`; `builtin:tiny/heldout` names it.
fn builtin_file(environment: &Environment, name: &str, split: &str) -> Result<PathBuf> {
    let (name, split) = name.split_once('/').unwrap_or((name, split));
    let file = builtin::folder(&environment.mpo_cache, name)?.join(format!("{split}.jsonl"));
    ensure!(file.is_file(), "`builtin:{name}` has no split `{split}`; it has train, heldout, canary and questions");
    Ok(file)
}

/// Downloads once; afterwards the cache answers.
fn download(environment: &Environment, url: &str, sha256: Option<&str>) -> Result<PathBuf> {
    let (shown, name) = shown_url(url);
    ensure!(
        url.starts_with("https://") || sha256.is_some(),
        "`{shown}` is not encrypted: use https://, or give `sha256` so that the file can be verified"
    );
    // With a hash the content is what is cached, whatever its address; without one the address is.
    let key = sha256.map_or_else(|| hex(&Sha256::digest(url)[..16]), str::to_ascii_lowercase);
    let file = environment.mpo_cache.join("data").join(key).join(name);
    if file.is_file() && sha256.is_none_or(|sha256| contents_of(&file).is_ok_and(|actual| actual.sha256.eq_ignore_ascii_case(sha256))) {
        return Ok(file);
    }
    ensure!(
        !is_hidden(url),
        "`{url}` is an address without its secret part, which is stored nowhere\n\
         hint: give the whole address anew, as in `--set data.path='https://…'`, or download the file and give its path"
    );
    ensure!(!environment.offline, "HF_HUB_OFFLINE is set, and `{shown}` is not in the cache `{}`", environment.mpo_cache.display());
    if file.exists() {
        std::fs::remove_file(&file).with_context(|| format!("`{}` is damaged and cannot be removed", file.display()))?;
    }
    let request = Request { url, token: None, label: &shown, n_bytes: None, most: MOST_FILE_BYTES, sha256, git_blob: None };
    let digest = Client::new(environment).download(&request, &file).map_err(|failure| match failure {
        Failure::Refused { status: 404, .. } => anyhow!("there is nothing at `{shown}` (status 404); check the address"),
        Failure::Refused { status: 401 | 403, .. } => anyhow!("`{shown}` is not public; download it by hand and give the file's path"),
        Failure::Refused { status, .. } => anyhow!("`{shown}` answered with status {status}; try again later"),
        Failure::Unreachable(reason) => anyhow!("cannot reach `{shown}` ({reason}): is there a network? A local file needs none"),
        Failure::Broken(reason) => anyhow!("`{shown}`: {reason}, after several attempts; run the same command again"),
        Failure::Other(error) => error,
    })?;
    if sha256.is_none() {
        say(&format!("hint: `sha256 = \"{digest}\"` under [data] makes sure that every run gets this file"));
    }
    Ok(file)
}

/// The address as it may be shown, and the last part of its path, a file name.
fn shown_url(url: &str) -> (String, &str) {
    let bare = url.split(['?', '#']).next().unwrap_or(url);
    let path = bare.split_once("://").and_then(|(_, rest)| rest.split_once('/')).map_or("", |(_, path)| path);
    let is_plain =
        |name: &&str| !name.is_empty() && !name.starts_with('.') && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    (shown(url), path.rsplit('/').next().filter(is_plain).unwrap_or("data"))
}

/// The files that `split` names: a whole path; or `train.jsonl`, `data/train.parquet` …, or all parts of a split in parts
/// (`data/train-00000-of-00002.parquet`), at the top, in `data/` or in `default/`. Never another one, however few there are.
fn choose_split(id: &str, paths: &[&str], split: &str) -> Result<Vec<String>> {
    // Only what can be read is considered; a repository's description of itself is no data.
    let data: Vec<&str> = paths.iter().copied().filter(|path| file_stem(path).is_some() && !path.ends_with("dataset_infos.json")).collect();
    if data.contains(&split) {
        return Ok(vec![split.to_owned()]);
    }
    for folder in ["", "data/", "default/"] {
        let name = format!("{folder}{split}");
        let mut whole = EXTENSIONS.iter().map(|extension| format!("{name}.{extension}"));
        if let Some(path) = whole.find(|path| data.contains(&path.as_str())) {
            return Ok(vec![path]);
        }
        let mut parts: Vec<(Part, &str)> = data.iter().filter_map(|path| Some((Part::of(path)?, *path))).collect();
        parts.retain(|(part, _)| part.split == name);
        parts.sort();
        if let Some(n_parts) = parts.first().map(|(part, _)| part.n_parts) {
            let is_complete = parts.len() == n_parts && parts.iter().enumerate().all(|(index, (part, _))| part.index == index);
            ensure!(is_complete, "the split `{name}` of the data set `{id}` has {n_parts} parts, and {} of them are there", parts.len());
            return Ok(parts.into_iter().map(|(_, path)| path.to_owned()).collect());
        }
    }
    ensure!(!data.is_empty(), "the data set `{id}` has no JSON, JSONL or Parquet file");
    bail!(
        "the data set `{id}` has no split `{split}`; `split` can be one of: {}",
        split_names(&data).into_iter().collect::<Vec<_>>().join(", ")
    )
}

/// In the order of preference, where a split is there in several.
const EXTENSIONS: [&str; 5] = ["jsonl", "json", "parquet", "jsonl.gz", "json.gz"];

/// The path without the extension of a data file.
fn file_stem(path: &str) -> Option<&str> {
    EXTENSIONS.iter().find_map(|extension| path.strip_suffix(extension)?.strip_suffix('.'))
}

/// One file of a split in several: `data/train-00000-of-00002.parquet`.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Part<'a> {
    split: &'a str,
    n_parts: usize,
    index: usize,
}

impl<'a> Part<'a> {
    fn of(path: &'a str) -> Option<Self> {
        let (rest, n_parts) = file_stem(path)?.rsplit_once("-of-")?;
        let (split, index) = rest.rsplit_once('-')?;
        Some(Self { split, n_parts: n_parts.parse().ok()?, index: index.parse().ok()? })
    }
}

/// What `split` may be, without the folders that go without saying.
fn split_names(data: &[&str]) -> BTreeSet<String> {
    let name = |path: &&str| {
        let stem = Part::of(path).map_or(file_stem(path), |part| Some(part.split))?;
        let stem = stem.strip_prefix("data/").or(stem.strip_prefix("default/")).unwrap_or(stem);
        Some(stem.to_owned())
    };
    data.iter().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_is_a_name_or_a_path() {
        let choose = |paths: &[&str], split| choose_split("org/name", paths, split).map_err(|error| error.to_string());
        assert_eq!(choose(&["README.md", "data/test.json", "train.jsonl"], "train").unwrap(), ["train.jsonl"]);
        assert_eq!(choose(&["data/test.json", "train.jsonl"], "test").unwrap(), ["data/test.json"]);
        assert_eq!(choose(&["deep/pairs.json"], "deep/pairs.json").unwrap(), ["deep/pairs.json"]);
        assert_eq!(choose(&["deep/pairs.parquet"], "deep/pairs").unwrap(), ["deep/pairs.parquet"]);
        assert!(choose(&["a.json", "dataset_infos.json", "data/b.jsonl"], "train").unwrap_err().ends_with("one of: a, b"));
        assert_eq!(choose(&["helpful/train.jsonl.gz", "helpful/test.jsonl.gz"], "helpful/train").unwrap(), ["helpful/train.jsonl.gz"]);
        assert_eq!(choose(&["train.jsonl.gz", "train.parquet"], "train").unwrap(), ["train.parquet"]);
        assert!(choose(&["README.md"], "train").unwrap_err().ends_with("no JSON, JSONL or Parquet file"));
    }

    #[test]
    fn the_parts_of_a_split_are_all_taken_in_order() {
        let choose = |paths: &[&str], split| choose_split("org/name", paths, split).map_err(|error| error.to_string());
        let paths = [
            "data/train_prefs-00001-of-00002.parquet",
            "data/train_prefs-00000-of-00002.parquet",
            "data/train-00000-of-00003.parquet",
            "helpful/test-00000-of-00001.parquet",
        ];
        assert_eq!(choose(&paths, "train_prefs").unwrap(), [paths[1], paths[0]]);
        assert_eq!(choose(&paths, "helpful/test").unwrap(), [paths[3]]);
        assert!(choose(&paths, "train").unwrap_err().contains("has 3 parts, and 1 of them are there"));
        assert!(choose(&paths, "test").unwrap_err().ends_with("one of: helpful/test, train, train_prefs"));
    }

    #[test]
    fn an_address_is_shown_without_its_secrets() {
        let (shown, name) = shown_url("https://user:secret@host/a/b.json?token=secret");
        assert_eq!((shown.as_str(), name), ("https://hidden@host/a/b.json?token=hidden", "b.json"));
        assert_eq!(shown_url("https://host").1, "data");
        assert_eq!(shown_url("https://host/..").1, "data");
    }
}
