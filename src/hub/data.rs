//! Preference data: a local file, an address, a data set on the hub, or what is built in.

use super::environment::Environment;
use super::repository::Repository;
use super::transfer::{Client, Failure, Request};
use super::{Source, builtin, refuse_revision};
use crate::config::DataConfig;
use crate::digest::{contents_of, hex};
use crate::progress::say;
use anyhow::{Context, Result, anyhow, bail, ensure};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// SHA-256 of the data released with the MPO paper, whose content derives from PKU-SafeRLHF.
const RELEASED: [&str; 3] = [
    "90abf3adc0219e3e94eb4ef87f308028cb7764cd5bc27ab8fb065680ecc94e12",
    "72cdd6ad7b278b6310d2ff7de080c0f9a7f7bf084c9dbf7ea63e3909f94351bc",
    "5db0aa2f3d058029a8b12ce9e7c1369ed9e7fbbe24a1df54470e99eebbe736be",
];

const RELEASED_LICENCE: &str = "note: this is the MPO paper's data (github.com/circle-hit/MPO); its content derives from PKU-SafeRLHF and is \
    licensed CC-BY-NC-4.0: no commercial use. It contains unsafe text.";

pub(super) fn resolve(environment: &Environment, data: &DataConfig) -> Result<PathBuf> {
    let path = data.path.as_str();
    if let Some(sha256) = &data.sha256 {
        let is_sha256 = sha256.len() == 64 && sha256.bytes().all(|byte| byte.is_ascii_hexdigit());
        ensure!(is_sha256, "`{sha256}` is not a sha256: it has 64 hexadecimal digits");
    }
    let revision = data.revision.as_deref();
    let file = match Source::of("data set", path)? {
        Source::Builtin(name) => {
            refuse_revision(path, revision)?;
            builtin_file(environment, name, &data.split)?
        }
        Source::Local(file) => {
            refuse_revision(path, revision)?;
            ensure!(file.is_file(), "`{path}` is a folder; the data is one JSON or JSONL file");
            std::path::absolute(file).with_context(|| format!("cannot make `{path}` absolute"))?
        }
        Source::Hub(id) => Repository::dataset(environment, id, revision)?.file(&|paths| choose_split(id, paths, &data.split))?,
        Source::Address(url) => {
            refuse_revision(path, revision)?;
            download(environment, url, data.sha256.as_deref())?
        }
    };
    verify(&file, data.sha256.as_deref())?;
    Ok(file)
}

/// Every run hashes what it reads where a hash is given, and names the licence where the data is known.
fn verify(file: &Path, expected: Option<&str>) -> Result<()> {
    let Some(expected) = expected else { return Ok(()) };
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
    ensure!(file.is_file(), "`builtin:{name}` has no split `{split}`; it has train and heldout");
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
    ensure!(!environment.offline, "HF_HUB_OFFLINE is set, and `{shown}` is not in the cache `{}`", environment.mpo_cache.display());
    if file.exists() {
        std::fs::remove_file(&file).with_context(|| format!("`{}` is damaged and cannot be removed", file.display()))?;
    }
    let request = Request { url, token: None, label: &shown, n_bytes: None, sha256 };
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

/// The address without credentials or query, to show, and its last part, a file name.
fn shown_url(url: &str) -> (String, &str) {
    let bare = url.split(['?', '#']).next().unwrap_or(url);
    let (scheme, rest) = bare.split_once("://").unwrap_or(("https", bare));
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let name = path.rsplit('/').next().filter(|name| !name.is_empty() && !name.starts_with('.')).unwrap_or("data");
    (format!("{scheme}://{host}/{path}"), name)
}

/// The JSON or JSONL file that `split` names: `train.jsonl`, `data/train.json`, or a whole path. Never another one, however few there are.
fn choose_split(id: &str, paths: &[&str], split: &str) -> Result<String> {
    // Only what can be read is considered; a repository's description of itself is no data.
    let is_data = |path: &str| (path.ends_with(".json") || path.ends_with(".jsonl")) && !path.ends_with("dataset_infos.json");
    let data: Vec<&str> = paths.iter().copied().filter(|path| is_data(path)).collect();
    let candidates =
        [split.to_owned(), format!("{split}.jsonl"), format!("{split}.json"), format!("data/{split}.jsonl"), format!("data/{split}.json")];
    if let Some(found) = candidates.into_iter().find(|candidate| data.contains(&candidate.as_str())) {
        return Ok(found);
    }
    if !data.is_empty() {
        bail!(
            "the data set `{id}` has no `{split}.jsonl` or `{split}.json`, at the top or in `data/`; `split` can be one of: {}",
            data.join(", ")
        );
    }
    let hint = if paths.iter().any(|path| path.ends_with(".parquet")) {
        "; it has Parquet: convert it once, `datasets.load_dataset(…).to_json(\"train.jsonl\")`, and give that file's path"
    } else {
        ""
    };
    bail!("the data set `{id}` has no JSON or JSONL file{hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_is_a_name_or_a_path() {
        let choose = |paths: &[&str], split| choose_split("org/name", paths, split).map_err(|error| error.to_string());
        assert_eq!(choose(&["README.md", "data/test.json", "train.jsonl"], "train").unwrap(), "train.jsonl");
        assert_eq!(choose(&["data/test.json", "train.jsonl"], "test").unwrap(), "data/test.json");
        assert_eq!(choose(&["deep/pairs.json"], "deep/pairs.json").unwrap(), "deep/pairs.json");
        assert!(choose(&["a.json", "dataset_infos.json", "b.jsonl"], "train").unwrap_err().contains("one of: a.json, b.jsonl"));
        assert!(choose(&["data/train-00000.parquet"], "train").unwrap_err().contains("it has Parquet"));
        assert!(choose(&["README.md"], "train").unwrap_err().ends_with("no JSON or JSONL file"));
    }

    #[test]
    fn an_address_is_shown_without_its_secrets() {
        let (shown, name) = shown_url("https://user:secret@host/a/b.json?token=secret");
        assert_eq!((shown.as_str(), name), ("https://host/a/b.json", "b.json"));
        assert_eq!(shown_url("https://host").1, "data");
        assert_eq!(shown_url("https://host/..").1, "data");
    }
}
