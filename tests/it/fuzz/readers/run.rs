//! What a training run leaves behind and goes on from.

use super::{Reader, file, of_file};
use crate::fuzz::shape::Shape;
use crate::support;
use mpo::config::{self, ComputeDtype, RunConfig};
use mpo::data::loader::LoaderState;
use mpo::objective::PerAnswer;
use mpo::reference::{Folders, FrozenScores};
use mpo::scoring::KeptStates;
use mpo::train::best::Best;
use mpo::train::checkpoint::{self, TrainerState};
use mpo::train::measure::{Losses, Measured, Measurement, RowMeasure};
use mpo::train::resume;
use mpo::train::signs::Signs;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const STATE: &[&str] = &[
    "version",
    "step",
    "n_updates",
    "loader",
    "epoch",
    "position",
    "n_rows",
    "seed",
    "data_sha256",
    "signs",
    "quarters",
    "found",
    "start",
    "train",
    "languages",
    "best",
    "metric",
    "files",
    "path",
    "bytes",
    "sha256",
    "trainer/state.json",
    "trainer/config.toml",
    "..",
    "/etc/passwd",
];

pub fn readers() -> Vec<Reader> {
    vec![
        Reader::new(
            "trainer-state",
            Shape::Json,
            || vec![state()],
            STATE,
            |folder| {
                let folder = folder.to_owned();
                Box::new(move |input| {
                    // Whoever wrote it wrote its checksum too.
                    write_checkpoint(&folder, input, resolved(&folder).as_bytes(), None);
                    opened(&folder)
                })
            },
        ),
        Reader::new(
            "trainer-config",
            Shape::Toml,
            || vec![resolved(Path::new("run")).into_bytes()],
            STATE,
            |folder| {
                let folder = folder.to_owned();
                Box::new(move |input| {
                    write_checkpoint(&folder, &state(), input, None);
                    opened(&folder)
                })
            },
        ),
        Reader::new(
            "trainer-manifest",
            Shape::Json,
            || vec![manifest(&state(), resolved(Path::new("run")).as_bytes())],
            STATE,
            |folder| {
                let folder = folder.to_owned();
                Box::new(move |input| {
                    write_checkpoint(&folder, &state(), resolved(Path::new("run")).as_bytes(), Some(input));
                    opened(&folder)
                })
            },
        ),
        Reader::new(
            "run-config",
            Shape::Toml,
            || vec![resolved(Path::new("run")).into_bytes()],
            STATE,
            |folder| {
                let folder = folder.to_owned();
                of_file(&folder.clone(), "config.toml", move |_| opened(&folder))
            },
        ),
        Reader::new(
            "run-summary",
            Shape::Json,
            || vec![b"{\"steps\": 3, \"seconds\": 1.5}".to_vec()],
            STATE,
            |folder| {
                write_checkpoint(folder, &state(), resolved(folder).as_bytes(), None);
                let folder = folder.to_owned();
                // A summary that cannot be read is none: the run goes on.
                of_file(&folder.clone(), "summary.json", move |path| {
                    let text = fs::read(path)?;
                    let whole: Result<Value, _> = serde_json::from_slice(&text);
                    whole?;
                    opened(&folder)
                })
            },
        ),
        Reader::new(
            "reference-manifest",
            Shape::Json,
            || reference_files(|name| name == "manifest.json"),
            &["provenance", "states", "hidden_size", "head", "predicting", "mean"],
            |folder| reference(folder, "manifest.json".into()),
        ),
        Reader::new(
            "reference-entry",
            Shape::Safetensors,
            || reference_files(|name| name != "manifest.json"),
            &["log_prob", "states", "F64", "F32", "__metadata__"],
            |folder| {
                let name = names(&scored(folder)).into_iter().find(|name| name != "manifest.json").unwrap();
                reference(folder, name)
            },
        ),
    ]
}

fn opened(folder: &Path) -> anyhow::Result<String> {
    let opened = resume::open(folder, None, &[])?;
    let found = opened.found.as_ref().map(|found| &found.state);
    Ok(format!("{:?} {found:?} {} {}", opened.config, opened.is_finished, opened.damaged.len()))
}

fn resolved(folder: &Path) -> String {
    let smoke = String::from_utf8(file("configs/smoke.toml")).unwrap();
    let mut config: RunConfig = config::parse(&smoke, "smoke.toml", &[]).unwrap();
    config.output.dir = std::path::absolute(folder).unwrap();
    config.to_toml().unwrap()
}

fn state() -> Vec<u8> {
    let answers = PerAnswer { chosen: Some(-1.0), rejected: None };
    let row = RowMeasure {
        lang: "sw".into(),
        reward_gap_target: Some(0.5),
        reward_gap_reference: None,
        goal: Some(1.0),
        log_probs: answers,
        rewards: Some(answers),
        chosen_per_token: Some(-1.0),
        rejected_per_token: None,
    };
    let train = Measurement::new(Losses { loss: 0.81, objective: 0.81, retention: f64::NAN }, &[row]);
    let state = TrainerState {
        version: TrainerState::VERSION,
        step: 3,
        n_updates: 3,
        n_skipped_in_row: 0,
        n_skipped: 0,
        loader: LoaderState { epoch: 1, position: 2, seed: 3, n_rows: 48 },
        data_sha256: "ab".repeat(32),
        canary_sha256: None,
        signs: Signs::default(),
        start: Measured { train, held_out: None, dominant: BTreeMap::new() },
        best: Some(Best { metric: "eval_loss".into(), step: 2, value: 0.7 }),
    };
    serde_json::to_vec(&state).unwrap()
}

/// What nobody reads here.
const VALUES: [&str; 2] = ["trainer/master/model.safetensors", "trainer/moments/model.safetensors"];

fn manifest(state: &[u8], config: &[u8]) -> Vec<u8> {
    let sha256 = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let record = |path: &str, bytes: &[u8]| json!({"path": path, "bytes": bytes.len(), "sha256": sha256(bytes)});
    let others = VALUES.map(|name| record(name, b"values"));
    let files = [record("trainer/config.toml", config), record("trainer/state.json", state)];
    let all = [&others[..], &files[..]].concat();
    json!({ "files": all }).to_string().into_bytes()
}

fn write_checkpoint(run: &Path, state: &[u8], config: &[u8], manifested: Option<&[u8]>) {
    fs::write(run.join("config.toml"), resolved(run)).unwrap();
    let trainer = checkpoint::folder_of(run, 3).join("trainer");
    fs::create_dir_all(&trainer).unwrap();
    for name in VALUES {
        let path = checkpoint::folder_of(run, 3).join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"values").unwrap();
    }
    fs::write(trainer.join("state.json"), state).unwrap();
    fs::write(trainer.join("config.toml"), config).unwrap();
    let made = manifest(state, config);
    fs::write(trainer.join("manifest.json"), manifested.unwrap_or(&made)).unwrap();
}

/// The scores of one pair under a random model, in `folder`.
fn scored(folder: &Path) -> PathBuf {
    let run = folder.join("reference");
    fs::create_dir_all(&run).unwrap();
    let config = RunConfig::default();
    let model = support::model(&support::llama(16, 32), 7);
    support::scores_in(Folders { run: Some(run.clone()), shared: None }, &model, &support::rows(1, 6, 32, 5), &config);
    run
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| folder.join(name).is_file())
        .collect();
    names.sort();
    names
}

fn reference_files(is_meant: fn(&str) -> bool) -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let run = scored(folder.path());
    names(&run).iter().filter(|name| is_meant(name)).map(|name| fs::read(run.join(name)).unwrap()).collect()
}

fn reference(folder: &Path, name: String) -> super::Read {
    let run = scored(folder);
    Box::new(move |input| {
        fs::write(run.join(&name), input)?;
        let rows = support::rows(1, 6, 32, 5);
        let pairs: Vec<_> = rows.iter().filter_map(|row| row.dominant.as_ref()).collect();
        let states = KeptStates::of(&RunConfig::default().retention);
        let scores = FrozenScores::open(&run, &pairs, states, &ComputeDtype::F32.into())?;
        Ok(format!("{:?} {:?} {}", scores.pair(pairs[0])?, scores.provenance(), scores.hidden_size()))
    })
}
