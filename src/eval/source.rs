//! Where a benchmark's files come from: what `--data` names, or the hub, and how one can tell later that they were these.
//!
//! From the hub a benchmark is taken once and stays what it was: the commit and the SHA-256 of every file are noted at the first download, later
//! runs ask for that commit and check the bytes. Published files whose bytes have been seen are recognised by their hash, wherever they lie.

use crate::digest::contents_of;
use crate::files::write_atomically;
use crate::hub::{Environment, resolve_dataset_files_in};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What a user said about where the files are.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    pub environment: &'a Environment,
    /// `--data`: a file, or a folder with the benchmark's files.
    pub data: Option<&'a Path>,
    /// Of the hub's data set: branch, tag or commit. Without it the commit of the first download.
    pub revision: Option<&'a str>,
}

/// A file that items were read from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// On this machine: no part of a result.
    #[serde(skip)]
    pub path: PathBuf,
    /// Relative to the data set, or to the folder that `--data` names.
    pub name: String,
    pub sha256: String,
    /// `org/name` and commit, where it is from the hub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repo: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Which published file has these bytes, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known: Option<String>,
}

/// The data set on the hub that is asked where `--data` is not given, and which of its files are meant, for people.
#[derive(Debug, Clone, Copy)]
pub struct HubFiles<'a> {
    pub repo: &'a str,
    pub files: &'a str,
}

impl Source<'_> {
    /// The files that `choose` picks from the paths of all, which are relative and sorted; `choose` fails where one is missing. A single file
    /// that `--data` names is taken as it is.
    ///
    /// # Errors
    /// Say what was looked for, where, and how to get it: the command that downloads, `--data`, the network.
    pub fn files(
        &self,
        bench: &str,
        hub: Option<HubFiles<'_>>,
        choose: &dyn Fn(&[&str]) -> Result<Vec<String>>,
    ) -> Result<Vec<SourceFile>> {
        match (self.data, hub) {
            (Some(data), _) => {
                if let Some(revision) = self.revision {
                    bail!("revision `{revision}` has no effect: the data is `{}`; remove it", data.display());
                }
                ensure!(data.exists(), "`{}` does not exist; `--data` names a file or a folder", data.display());
                if data.is_file() {
                    let name = data.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                    return Ok(vec![SourceFile::new(data.to_owned(), name)?]);
                }
                let paths = files_below(data);
                let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
                let chosen = choose(&paths).with_context(|| format!("in the folder `{}`", data.display()))?;
                chosen.into_iter().map(|name| SourceFile::new(data.join(&name), name)).collect()
            }
            (None, Some(hub)) => self.download(hub, choose).with_context(|| how_to_get(bench, hub)),
            (None, None) => bail!("`{bench}` cannot be downloaded: give its file or folder with `--data`"),
        }
    }

    /// The one file of a benchmark that has one: whose path ends with the first of these names, else with the second, and so on.
    pub fn file(&self, bench: &str, hub: Option<HubFiles<'_>>, names: &[&str]) -> Result<SourceFile> {
        let choose = |paths: &[&str]| {
            for name in names {
                let found: Vec<_> = paths.iter().filter(|path| path.ends_with(name)).collect();
                match found[..] {
                    [] => {}
                    [path] => return Ok(vec![(*path).to_owned()]),
                    _ => bail!("several files may be meant: {}; `--data FILE` names one", some_of(&found)),
                }
            }
            let among = if paths.is_empty() { ", nor any other".to_owned() } else { format!(" among {}", some_of(paths)) };
            bail!("there is no file of `{bench}` ({}){among}; `--data FILE` names it", names.join(", "))
        };
        self.files(bench, hub, &choose)?.pop().context("no file was chosen")
    }

    /// One file for each language, which `find` picks; what `--data` names as a single file serves a single language.
    pub fn file_for_each(
        &self,
        bench: &str,
        hub: Option<HubFiles<'_>>,
        langs: &[String],
        find: &dyn Fn(&[&str], &str) -> Option<String>,
    ) -> Result<Vec<(String, SourceFile)>> {
        if let (Some(data), false) = (self.data.filter(|data| data.is_file()), langs.len() == 1) {
            bail!(
                "`{}` is one file, and `{bench}` has one for each of {} languages: say which it is (`--langs {}`), or give the folder",
                data.display(),
                langs.len(),
                langs.first().map_or("en", String::as_str)
            );
        }
        let choose = |paths: &[&str]| {
            let found = |lang: &String| find(paths, lang).ok_or_else(|| lang.clone());
            let (chosen, missing): (Vec<_>, Vec<_>) = langs.iter().map(found).partition(Result::is_ok);
            let missing: Vec<_> = missing.into_iter().filter_map(Result::err).collect();
            ensure!(missing.is_empty(), "there is no file for {} among {}", missing.join(", "), some_of(paths));
            Ok(chosen.into_iter().filter_map(Result::ok).collect())
        };
        Ok(langs.iter().cloned().zip(self.files(bench, hub, &choose)?).collect())
    }

    fn download(&self, hub: HubFiles<'_>, choose: &dyn Fn(&[&str]) -> Result<Vec<String>>) -> Result<Vec<SourceFile>> {
        let path = self.environment.mpo_cache.join("bench").join(format!("{}.json", hub.repo.replace('/', "--")));
        let mut record = Record::read(&path)?;
        let revision = self.revision.or(record.commit.as_deref());
        let found = resolve_dataset_files_in(self.environment, hub.repo, revision, choose)?;
        let mut files = Vec::new();
        for (name, file) in found.files {
            let mut file = SourceFile::new(file, name)?;
            file.repo = Some(hub.repo.to_owned());
            file.commit = Some(found.commit.clone());
            files.push(file);
        }
        if record.note(&found.commit, &files).with_context(|| format!("the first download was noted in `{}`", path.display()))? {
            write_atomically(&path, &serde_json::to_vec_pretty(&record)?)?;
        }
        Ok(files)
    }
}

/// What a first download was, one file for each data set.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    /// Of the first download.
    commit: Option<String>,
    /// SHA-256 by file, by commit.
    files: BTreeMap<String, BTreeMap<String, String>>,
}

impl Record {
    fn read(path: &Path) -> Result<Self> {
        match fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read `{}`", path.display())),
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("`{}` is damaged; delete it, and the next run notes the files anew", path.display())),
        }
    }

    /// Adds what is new, and whether anything was; an error where a file is no longer what it was.
    fn note(&mut self, commit: &str, files: &[SourceFile]) -> Result<bool> {
        let mut is_new = self.commit.is_none();
        self.commit.get_or_insert_with(|| commit.to_owned());
        let noted = self.files.entry(commit.to_owned()).or_default();
        for file in files {
            match noted.get(&file.name) {
                None => {
                    noted.insert(file.name.clone(), file.sha256.clone());
                    is_new = true;
                }
                Some(sha256) => ensure!(
                    *sha256 == file.sha256,
                    "`{}` has sha256 {}, but {sha256} when it was first downloaded: somebody changed it. Delete `{}` to fetch it again",
                    file.name,
                    file.sha256,
                    fs::canonicalize(&file.path).unwrap_or_else(|_| file.path.clone()).display()
                ),
            }
        }
        Ok(is_new)
    }
}

impl SourceFile {
    fn new(path: PathBuf, name: String) -> Result<Self> {
        let sha256 = contents_of(&path)?.sha256;
        let known = KNOWN.iter().find(|(hash, _)| *hash == sha256).map(|(_, what)| (*what).to_owned());
        Ok(Self { path, name, sha256, repo: None, commit: None, known })
    }

    /// Another file, that lies beside `first` or below its folder.
    pub fn beside(first: &SourceFile, path: PathBuf) -> Result<Self> {
        let relative = first.path.parent().and_then(|folder| path.strip_prefix(folder).ok()).unwrap_or(&path);
        let folder = Path::new(&first.name).parent().unwrap_or(Path::new(""));
        let name = folder.join(relative).display().to_string();
        Self::new(path, name)
    }
}

fn how_to_get(bench: &str, hub: HubFiles<'_>) -> anyhow::Error {
    let HubFiles { repo, files } = hub;
    anyhow!(
        "cannot get the files of `{bench}`. Where there is a network: `hf download --repo-type dataset {repo} --include \"{files}\" --local-dir \
         {bench}` (or https://huggingface.co/datasets/{repo}); then `--data {bench}`"
    )
}

/// The first of some names, for an error.
fn some_of(paths: &[impl AsRef<str>]) -> String {
    const SHOWN: usize = 6;
    let names: Vec<_> = paths.iter().take(SHOWN).map(|path| format!("`{}`", path.as_ref())).collect();
    match paths.len() {
        0 => "no files".to_owned(),
        n if n > SHOWN => format!("{} and {} more", names.join(", "), n - SHOWN),
        _ => names.join(", "),
    }
}

/// Paths of the files in a folder and in its folders, four deep, relative and sorted. Hidden ones are not looked at, and a link to a folder is
/// not followed: there may be no end to it.
fn files_below(dir: &Path) -> Vec<String> {
    const DEEPEST: usize = 4;
    let mut files = Vec::new();
    let mut folders = vec![(String::new(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in fs::read_dir(dir.join(&folder)).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.starts_with('.') {
                continue;
            }
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && depth < DEEPEST => folders.push((path, depth + 1)),
                _ if entry.path().is_file() => files.push(path),
                _ => {}
            }
        }
    }
    files.sort();
    files
}

/// SHA-256 of published files whose bytes have been seen, and what they are. The hub's copies may differ (another order, other line ends): then
/// they are not recognised, which is no fault.
const KNOWN: [(&str, &str); 17] = [
    (
        "2798ed6fe470b80b1f486976e0fb3baa3ce008e62b6ca0abbf2e1ed5b1dfb355",
        "MultiJail.csv of github.com/DAMO-NLP-SG/multilingual-safety-for-LLMs",
    ),
    ("e1bd599f7006566e1adbb54bddb1e7493267a372f76bef6026f3669c00de94af", "csrt.csv of github.com/haneul-yoo/csrt"),
    (
        "11783fb294ed017473ee53c207d71f2161c7672c8d0b037501e78387f801cb5a",
        "xstest_prompts.csv of github.com/paul-rottger/exaggerated-safety",
    ),
    ("119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7", "question.jsonl of MT-Bench, github.com/lm-sys/FastChat"),
    (
        "f957a5bc977badb66885ec970e6cd08527845780313f0995764260e5777b9b3f",
        "reference_answer/gpt-4.jsonl of MT-Bench, github.com/lm-sys/FastChat",
    ),
    ("fd283293406d024f44c174b094ef48031d0687a4682fd3a56b29b138f80281b6", "judge_prompts.jsonl of MT-Bench, github.com/lm-sys/FastChat"),
    ("6b00bc7cc635547e866989284afa924d789b5affa2eb8de623c385dd943ad977", "mgsm_bn.tsv of github.com/google-research/url-nlp"),
    ("4dfea30fede44b813e2e496f5f0534049e83c7cc8aed6e00600b30ec62053626", "mgsm_de.tsv of github.com/google-research/url-nlp"),
    ("50021d0f28cc957edcb44e7806425b1c7fbd648ddcb9e0a8ec689d10e57d40fa", "mgsm_en.tsv of github.com/google-research/url-nlp"),
    ("5bd27ebdf00140cec845c5298dc17715f5cd57d8edda6df1976db40bf3f0750a", "mgsm_es.tsv of github.com/google-research/url-nlp"),
    ("36207c1c03fd7cd3ea491441eb755408199f94e4a647851df531bbaedc99d606", "mgsm_fr.tsv of github.com/google-research/url-nlp"),
    ("59a2b50debe77981fd784cb3b2bef1505e3abf2a37116dc9d7a366ab029b4637", "mgsm_ja.tsv of github.com/google-research/url-nlp"),
    ("6bd30fd2e80c5bac23f566fb4ae0e6a55a19578401fbf9a01fb21beb3645fef8", "mgsm_ru.tsv of github.com/google-research/url-nlp"),
    ("2bac828d77229e65d7c7197b1ad4a2cb5b1fe99b163f2cbdd66501de6a2115c4", "mgsm_sw.tsv of github.com/google-research/url-nlp"),
    ("dd6b1452c244bb2e4ba254c01ea84137f80c1cefc57d69c23b0ed88b9c0f36b7", "mgsm_te.tsv of github.com/google-research/url-nlp"),
    ("f3932dc5ad8e9d0ea82b017adc1e1461dd647af861e7166d6741986602a0cfd6", "mgsm_th.tsv of github.com/google-research/url-nlp"),
    ("b2fa63151022370a0de1f4211c8c284eae74b0f5a3b003b1d5982c0d4a73f661", "mgsm_zh.tsv of github.com/google-research/url-nlp"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(cache: &Path) -> Environment {
        let cache = cache.to_owned();
        Environment::from_variables(&|name| match name {
            "MPO_CACHE" | "HF_HOME" => Some(cache.clone().into()),
            "HF_HUB_OFFLINE" => Some("1".into()),
            _ => None,
        })
        .unwrap()
    }

    const HUB: HubFiles<'static> = HubFiles { repo: "org/bench", files: "*.csv" };

    #[test]
    fn a_folder_is_searched_and_a_file_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("sub/.hidden")).unwrap();
        for name in ["sub/a_sw.csv", "a_en.csv", "sub/.hidden/x.csv", ".y.csv"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        assert_eq!(files_below(dir.path()), ["a_en.csv", "sub/a_sw.csv"]);
        let environment = environment(dir.path());
        let source = |data: &'static str| (dir.path().join(data), &environment);
        let langs = ["sw".to_owned(), "en".to_owned()];
        let find =
            |paths: &[&str], lang: &str| paths.iter().find(|path| path.ends_with(&format!("_{lang}.csv"))).map(|path| (*path).to_owned());
        let (folder, environment) = source("");
        let source = Source { environment, data: Some(&folder), revision: None };
        let found = source.file_for_each("bench", None, &langs, &find).unwrap();
        assert_eq!((found[0].0.as_str(), found[0].1.name.as_str()), ("sw", "sub/a_sw.csv"));
        let langs = ["sw".to_owned(), "bn".to_owned(), "yo".to_owned()];
        let error = format!("{:#}", source.file_for_each("bench", None, &langs, &find).unwrap_err());
        assert!(error.contains("there is no file for bn, yo among `a_en.csv`, `sub/a_sw.csv`"), "{error}");
        let error = source.file("bench", None, &["b.csv", ".csv"]).unwrap_err();
        assert!(format!("{error:#}").contains("several files may be meant"), "{error:#}");

        let file = folder.join("a_en.csv");
        let source = Source { data: Some(&file), ..source };
        assert_eq!(source.file("bench", None, &[]).unwrap().name, "a_en.csv");
        let error = source.file_for_each("bench", None, &langs, &find).unwrap_err().to_string();
        assert!(error.contains("one for each of 3 languages: say which it is (`--langs sw`)"), "{error}");
        assert_eq!(source.file_for_each("bench", None, &langs[..1], &find).unwrap()[0].0, "sw");
        let source = Source { revision: Some("v1"), ..source };
        assert!(source.file("bench", None, &[".csv"]).unwrap_err().to_string().contains("revision `v1` has no effect"));
    }

    #[test]
    fn what_is_not_there_is_told_how_to_get() {
        let dir = tempfile::tempdir().unwrap();
        let environment = environment(dir.path());
        let source = Source { environment: &environment, data: None, revision: None };
        let error = format!("{:#}", source.file("bench", Some(HUB), &[".csv"]).unwrap_err());
        assert!(error.contains("hf download --repo-type dataset org/bench --include \"*.csv\" --local-dir bench"), "{error}");
        assert!(error.contains("`--data bench`") && error.contains("HF_HUB_OFFLINE is set"), "{error}");
        let error = source.file("bench", None, &[".csv"]).unwrap_err().to_string();
        assert_eq!(error, "`bench` cannot be downloaded: give its file or folder with `--data`");
        let source = Source { data: Some(Path::new("/nowhere")), ..source };
        assert!(source.file("bench", Some(HUB), &[".csv"]).unwrap_err().to_string().contains("`/nowhere` does not exist"));
    }

    #[test]
    fn a_file_that_changed_since_its_first_download_is_refused() {
        let file = |name: &str, sha256: &str| SourceFile {
            path: PathBuf::from(name),
            name: name.into(),
            sha256: sha256.into(),
            repo: None,
            commit: None,
            known: None,
        };
        let mut record = Record::default();
        assert!(record.note("c1", &[file("a", "1")]).unwrap());
        assert!(!record.note("c1", &[file("a", "1")]).unwrap());
        assert!(record.note("c1", &[file("a", "1"), file("b", "2")]).unwrap(), "another language of it");
        assert!(record.note("c2", &[file("a", "3")]).unwrap(), "another commit that was asked for");
        assert_eq!(record.commit.as_deref(), Some("c1"), "stays that of the first");
        let error = record.note("c1", &[file("a", "3")]).unwrap_err().to_string();
        assert!(error.contains("`a` has sha256 3, but 1 when it was first downloaded"), "{error}");
    }

    #[test]
    fn hashes_are_whole_and_distinct() {
        let hashes: std::collections::BTreeSet<_> = KNOWN.iter().map(|(hash, _)| hash).collect();
        assert!(hashes.len() == KNOWN.len() && hashes.iter().all(|hash| hash.len() == 64));
    }
}
