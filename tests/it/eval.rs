//! `mpo eval` through the command line: both phases on the built-in model with harmless prompts, stopped and gone on with, judged by a server.

use super::judges::{Endpoint, Play, says};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Asks the built-in model the prompts of a [`Place`].
pub(crate) const ASK: [&str; 9] =
    ["eval", "--bench", "prompts", "--data", "prompts.jsonl", "--model", "builtin:tiny", "--max-new-tokens", "12"];

const LANGUAGES: [&str; 2] = ["en", "sw"];

/// A folder with prompts in it; what it is also the cache of.
pub(crate) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        let line = |id: usize, lang: &str, kind: &str| json!({"id": id.to_string(), "lang": lang, "kind": kind, "prompt": format!("{lang}: the bread of shelf {id}?")});
        let lines = LANGUAGES.iter().flat_map(|lang| (0..6).map(move |id| line(id, lang, if id < 4 { "harmful" } else { "benign" })));
        let text: String = lines.map(|line| format!("{line}\n")).collect();
        fs::write(place.path("prompts.jsonl"), text).unwrap();
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mpo"));
        command
            .current_dir(self.folder.path())
            .env("MPO_CACHE", self.path("cache"))
            .env_remove("OPENAI_API_KEY")
            .env("HF_HUB_OFFLINE", "1");
        command.args(arguments);
        command
    }

    pub fn mpo(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    #[track_caller]
    pub fn succeed(&self, arguments: &[&str]) -> (String, String) {
        let output = self.mpo(arguments);
        let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert!(output.status.success(), "{stderr}");
        (stdout, stderr)
    }

    #[track_caller]
    pub fn fail(&self, arguments: &[&str]) -> String {
        let output = self.mpo(arguments);
        // 2 where the command line alone is wrong.
        assert!(matches!(output.status.code(), Some(1 | 2)), "{}", String::from_utf8_lossy(&output.stdout));
        String::from_utf8(output.stderr).unwrap()
    }

    #[track_caller]
    pub fn eval(&self, out: &str, more: &[&str]) -> (String, String) {
        self.succeed(&[&ASK[..], &["--out", out], more].concat())
    }

    pub fn lines(&self, name: &str) -> Vec<Value> {
        read_lines(&self.path(name))
    }
}

pub(crate) fn read_lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub(crate) fn file_in(folder: &Path, begins: &str) -> PathBuf {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    names.into_iter().find(|path| path.file_name().unwrap().to_string_lossy().starts_with(begins)).unwrap()
}

#[test]
fn without_a_judge_responses_are_written_and_refusals_counted() {
    let place = Place::new();
    let (table, said) = place.eval("run", &[]);
    assert!(table.contains("refusals by keywords, heuristic") && !table.contains("attack success rate"), "{table}");
    assert!(said.contains("mpo eval judge run --judge openai:MODEL") && said.contains("no judge was asked"), "{said}");
    let responses = place.lines("run/prompts/responses.jsonl");
    assert_eq!(responses.len(), 12);
    for response in &responses {
        let text = response["answers"][0]["text"].as_str().unwrap();
        assert!(text.len() < 8 || !said.contains(text) && !table.contains(text), "nothing is shown unless asked");
        assert!(response["answers"][0]["n_tokens"].as_u64().unwrap() <= 12);
    }
    let results: Value = serde_json::from_slice(&fs::read(file_in(&place.path("run/builtin__tiny"), "results_")).unwrap()).unwrap();
    assert!(results["results"]["prompts_sw"]["refusal_rate,none"].is_number(), "{results:#}");
    let (_, said) = place.eval("shown", &["--show-responses"]);
    let longest = responses.iter().map(|response| response["answers"][0]["text"].as_str().unwrap()).max_by_key(|text| text.len()).unwrap();
    assert!(said.contains(longest.lines().next().unwrap()), "{said}");
}

/// However much was written when a run was killed, it ends with the same files, and what was finished stays as it was.
#[test]
fn a_run_that_was_killed_leaves_the_same_files() {
    let place = Place::new();
    place.eval("run", &["--batch-size", "3"]);
    let (responses, verdicts) = ("run/prompts/responses.jsonl", "run/prompts/verdicts-keyword.jsonl");
    let whole = [responses, verdicts].map(|name| fs::read_to_string(place.path(name)).unwrap());
    for n_bytes in [0, 1, whole[0].len() / 2, whole[0].len() - 1] {
        let end = (0..=n_bytes).rev().find(|&end| whole[0].is_char_boundary(end)).unwrap();
        fs::write(place.path(responses), &whole[0][..end]).unwrap();
        fs::remove_file(place.path(verdicts)).unwrap();
        place.succeed(&["eval", "--resume", "run"]);
        assert_eq!([responses, verdicts].map(|name| fs::read_to_string(place.path(name)).unwrap()), whole, "after {n_bytes} bytes");
    }
    // A response that is there is not asked for again, and neither is its verdict.
    let marked = whole[0].replacen("\"text\":\"", "\"text\":\"Marked. ", 1);
    let first: String = whole[1].lines().take(1).map(|line| format!("{line}\n")).collect();
    fs::write(
        place.path(responses),
        marked.lines().rev().take(11).chain(marked.lines().take(1)).map(|line| format!("{line}\n")).collect::<String>(),
    )
    .unwrap();
    fs::write(place.path(verdicts), &first).unwrap();
    let (_, said) = place.succeed(&["eval", "--resume", "run"]);
    assert!(!said.contains("are new") || said.contains("12 responses were there"), "{said}");
    assert!(fs::read_to_string(place.path(verdicts)).unwrap().starts_with(&first));
    assert!(fs::read_to_string(place.path(responses)).unwrap().contains("Marked. "));
}

#[test]
fn answers_do_not_depend_on_the_batch() {
    let place = Place::new();
    let sampled = ["--temperature", "1.5", "--samples", "2", "--seed", "3"];
    place.eval("one", &[&sampled[..], &["--batch-size", "1"]].concat());
    place.eval("many", &[&sampled[..], &["--batch-size", "7"]].concat());
    let [one, many] = ["one", "many"].map(|run| fs::read_to_string(place.path(run).join("prompts/responses.jsonl")).unwrap());
    assert_eq!(one, many);
    let texts: std::collections::BTreeSet<String> =
        place.lines("one/prompts/responses.jsonl").iter().map(|line| line["answers"][0]["text"].to_string()).collect();
    assert!(texts.len() > 12, "two samples of a prompt differ: {texts:?}");
}

#[test]
fn a_server_judges_each_response_once_and_its_words_are_kept() {
    let place = Place::new();
    place.eval("run", &["--langs", "sw"]);
    let server = Endpoint::new(|n, asked| match n {
        0 => Play::Answer(500, vec![], "{}".into()),
        _ if asked.user().contains("shelf 1") => says("no idea"),
        _ if asked.user().contains("shelf 2") => says("unsafe"),
        _ => says("safe"),
    });
    let judge = ["eval", "judge", "run", "--judge", "openai:judge-1", "--judge-url", &server.url];
    let (table, said) = place.succeed(&judge);
    assert!(table.contains("attack success rate"), "{table}");
    assert!(said.contains("could not be read"), "an unreadable verdict is said: {said}");
    let n_asked = server.n_asked();
    let name = file_in(&place.path("run/prompts"), "verdicts-openai");
    let verdicts = read_lines(&name);
    let labels: Vec<&str> = verdicts.iter().take(4).map(|verdict| verdict["label"].as_str().unwrap_or("-")).collect();
    assert_eq!(labels, ["safe", "-", "unsafe", "safe"]);
    assert_eq!(verdicts[1]["raw"], json!(["no idea"]));
    let before = fs::read(&name).unwrap();
    place.succeed(&judge);
    assert_eq!(server.n_asked(), n_asked, "verdicts are kept");
    let half = &before[..before.len() / 2];
    let n_unread = |bytes: &[u8]| String::from_utf8_lossy(bytes).matches("\"unparsed\":\"").count();
    let n_lost = n_unread(&before) - n_unread(&half[..half.iter().rposition(|&byte| byte == b'\n').unwrap()]);
    fs::write(&name, half).unwrap();
    place.succeed(&judge);
    assert_eq!(fs::read(&name).unwrap(), before);
    assert_eq!(server.n_asked(), n_asked + n_lost, "replies are kept, but for those that could not be read");
}

#[test]
fn reward_gaps_are_those_of_mpo_gaps() {
    let place = Place::new();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny/heldout.jsonl");
    let data = data.to_str().unwrap();
    place.succeed(&["eval", "--bench", "reward-gap", "--data", data, "--model", "builtin:tiny", "--out", "run"]);
    place.succeed(&["gaps", "--model", "builtin:tiny", "--data", data, "--out", "gaps.jsonl"]);
    let verdicts = place.lines("run/reward-gap/verdicts-rule.jsonl");
    let gaps = place.lines("gaps.jsonl");
    assert_eq!(verdicts.len(), gaps.len());
    for verdict in &verdicts {
        let row = gaps.iter().find(|row| row["id"] == verdict["id"]).unwrap();
        let gap = |value: &Value| value.as_f64().unwrap();
        assert!((gap(&verdict["metrics"]["reward_gap"]) - gap(&row["target"]["reward_gap"])).abs() < 1e-6, "{verdict} {row}");
    }
}

/// Gap, the reference's gap and their difference stand in the same lines, results, table and page; the pairs are the same, whenever the run was killed.
#[test]
fn a_reference_is_measured_beside_the_model() {
    let place = Place::new();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny/heldout.jsonl");
    let data = data.to_str().unwrap();
    train_a_little(&place, "tuned");
    let ask = ["eval", "--bench", "reward-gap", "--data", data, "--model", "tuned/final"];
    let (table, said) = place.succeed(&[&ask[..], &["--reference", "builtin:tiny"]].concat());
    assert!(said.contains("reference builtin:tiny"), "{said}");
    assert!(table.contains("reward gaps of tuned and of its reference, builtin:tiny") && table.contains("of the reference"), "{table}");
    place.succeed(&["gaps", "--model", "tuned/final", "--reference", "builtin:tiny", "--data", data, "--out", "gaps.jsonl"]);
    let run = "evals/tuned/reward-gap";
    let verdicts = place.lines(&format!("{run}/reward-gap/verdicts-rule.jsonl"));
    let gaps = place.lines("gaps.jsonl");
    let number = |value: &Value| value.as_f64().unwrap();
    for verdict in &verdicts {
        let row = gaps.iter().find(|row| row["id"] == verdict["id"] && row["target"]["lang"] == verdict["lang"]).unwrap();
        let [own, reference, difference] =
            ["reward_gap", "reference_gap", "gap_difference"].map(|metric| number(&verdict["metrics"][metric]));
        assert!((own - number(&row["target"]["reward_gap"])).abs() < 1e-6 && (own - reference - difference).abs() < 1e-12, "{verdict}");
    }
    place.succeed(&["eval", "--bench", "reward-gap", "--data", data, "--model", "builtin:tiny", "--out", "base"]);
    let alone = place.lines("base/reward-gap/verdicts-rule.jsonl");
    for (verdict, alone) in verdicts.iter().zip(&alone) {
        assert_eq!(verdict["metrics"]["reference_gap"], alone["metrics"]["reward_gap"], "{verdict}");
    }
    // The interval of the difference is over pairs.
    let folder = fs::read_dir(place.path(run))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.join("..").join("run.json").exists() && path.is_dir() && !path.ends_with("reward-gap"))
        .unwrap();
    let results: Value = serde_json::from_slice(&fs::read(file_in(&folder, "results_")).unwrap()).unwrap();
    let of_sw = |metric: &str| results["mpo"]["tasks"]["reward_gap_sw"]["metrics"][metric].clone();
    let in_sw: Vec<f64> =
        verdicts.iter().filter(|verdict| verdict["lang"] == "sw").map(|verdict| number(&verdict["metrics"]["gap_difference"])).collect();
    let mean = in_sw.iter().sum::<f64>() / in_sw.len() as f64;
    assert!((number(&of_sw("gap_difference")["value"]) - mean).abs() < 1e-12, "{results:#}");
    assert!(of_sw("gap_difference")["interval"]["low"].is_number() && of_sw("reference_gap")["value"].is_number());
    let (_, said) = place.succeed(&["eval", "report", run, "--html", "page.html"]);
    assert!(said.contains("page.html") && fs::read_to_string(place.path("page.html")).unwrap().contains("of its reference, builtin:tiny"));

    // Killed while the reference was measured.
    let file = place.path(run).join("reward-gap/reference.jsonl");
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    place.succeed(&["eval", "--resume", run]);
    assert_eq!(fs::read(&file).unwrap(), whole);
    assert_eq!(place.lines(&format!("{run}/reward-gap/verdicts-rule.jsonl")), verdicts);
    // Other weights under the reference's name are refused while something is missing.
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let facts = fs::read_to_string(place.path(run).join("run.json")).unwrap();
    let mut other: Value = serde_json::from_str(&facts).unwrap();
    other["reference"]["sha256"] = json!("0".repeat(64));
    fs::write(place.path(run).join("run.json"), other.to_string()).unwrap();
    assert!(place.fail(&["eval", "--resume", run]).contains("responses of another model"));
    let said = place.fail(&[&ASK[..], &["--reference", "builtin:tiny"]].concat());
    assert!(said.contains("--bench reward-gap"), "{said}");
}

/// A run of `mpo train` of two steps, so that weights are others than the built-in ones.
pub(crate) fn train_a_little(place: &Place, out: &str) {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/smoke.toml");
    let out = format!("output.dir={out}");
    place.succeed(&["train", "--config", config.to_str().unwrap(), "--set", "train.max_steps=2", "--set", &out]);
}

/// Without `--out` a second benchmark of the same checkpoint has a folder of its own, and a report puts both into one row.
#[test]
fn benchmarks_of_one_checkpoint_lie_beside_each_other() {
    let place = Place::new();
    let (_, said) = place.succeed(&ASK);
    assert!(said.contains("mpo eval judge evals/builtin-tiny/prompts --judge openai:MODEL"), "{said}");
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny/heldout.jsonl");
    place.succeed(&["eval", "--bench", "reward-gap", "--data", data.to_str().unwrap(), "--model", "builtin:tiny"]);
    let (table, _) = place.succeed(&["eval", "report", "evals/builtin-tiny/prompts", "evals/builtin-tiny/reward-gap"]);
    assert!(table.contains("refusals by keywords") && table.contains("reward gap") && !table.contains("builtin:tiny (2)"), "{table}");
    let said = place.fail(&ASK);
    assert!(said.contains("mpo eval --resume evals/builtin-tiny/prompts"), "{said}");
}

#[test]
fn a_run_remembers_its_judge() {
    let place = Place::new();
    let server = Endpoint::new(|_, _| says("safe"));
    let judge = ["--judge", "openai:judge-1", "--judge-url", &server.url];
    place.eval("run", &judge);
    let verdicts = file_in(&place.path("run/prompts"), "verdicts-openai");
    let whole = fs::read(&verdicts).unwrap();
    fs::remove_file(&verdicts).unwrap();
    place.succeed(&["eval", "--resume", "run"]);
    assert_eq!(fs::read(&verdicts).unwrap(), whole);
    place.succeed(&[&["eval", "--resume", "run"][..], &judge].concat());
    for (other, words) in [(&["--judge", "keyword"][..], "`--judge openai:judge-1`"), (&["--rubric", "strongreject"], "no --rubric")] {
        let said = place.fail(&[&["eval", "--resume", "run"][..], other].concat());
        assert!(said.contains(words) && said.contains("mpo eval judge run --judge"), "{said}");
    }
    // A run without a judge takes one later, and from then on keeps it.
    place.eval("later", &[]);
    place.succeed(&["eval", "--resume", "later", "--judge", "openai:judge-1", "--judge-url", &server.url]);
    fs::remove_file(file_in(&place.path("later/prompts"), "verdicts-openai")).unwrap();
    place.succeed(&["eval", "--resume", "later"]);
    assert_eq!(fs::read(file_in(&place.path("later/prompts"), "verdicts-openai")).unwrap(), whole);
    // What would have no effect is refused.
    let output = place.mpo(&["eval", "--resume", "run", "--temperature", "1"]);
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn knowledge_is_scored_by_rule() {
    let place = Place::new();
    fs::write(place.path("mgsm_sw.tsv"), "Mikate miwili na mitatu ni mingapi?\t5\nMkate mmoja?\t1\n").unwrap();
    place.succeed(&[
        "eval",
        "--bench",
        "mgsm",
        "--langs",
        "sw",
        "--data",
        "mgsm_sw.tsv",
        "--model",
        "builtin:tiny",
        "--max-new-tokens",
        "4",
        "--out",
        "mgsm",
    ]);
    assert_eq!(place.lines("mgsm/mgsm/verdicts-rule.jsonl").len(), 2);
    let row = |n: usize| format!("{n},What is bread?,food,stone,water,air,A,abstract_algebra\n");
    fs::write(place.path("mmlu_SW-KE.csv"), format!(",Question,A,B,C,D,Answer,Subject\n{}{}", row(0), row(1))).unwrap();
    place.succeed(&["eval", "--bench", "mmmlu", "--langs", "sw", "--data", "mmlu_SW-KE.csv", "--model", "builtin:tiny", "--out", "mmmlu"]);
    let responses = place.lines("mmmlu/mmmlu/responses.jsonl");
    assert!(responses.iter().all(|response| response["choice_log_probs"].as_array().unwrap().len() == 4));
    assert!(place.lines("mmmlu/mmmlu/verdicts-rule.jsonl").iter().all(|verdict| verdict["metrics"]["acc"].is_number()));
}

#[test]
fn two_runs_make_a_table_and_a_page() {
    let place = Place::new();
    place.eval("base", &["--judge", "keyword"]);
    place.eval("tuned", &["--judge", "keyword"]);
    let (table, _) = place.succeed(&["eval", "report", "base", "tuned", "--baseline", "base", "--html", "report.html"]);
    assert!(table.contains("builtin:tiny") && table.contains("builtin:tiny (2)"), "{table}");
    let page = fs::read_to_string(place.path("report.html")).unwrap();
    assert!(page.contains("<svg") && !page.contains("<script") && !page.contains("http://localhost"), "a page that needs nothing");
}

#[test]
fn bad_input_is_named_before_anything_is_loaded_or_written() {
    let place = Place::new();
    let own = ["eval", "--data", "prompts.jsonl", "--model", "builtin:tiny", "--out", "run"];
    let fail = |more: &[&str]| place.fail(&[&own[..], more].concat());
    for (more, expected) in [
        (&["--bench", "multijial"][..], "did you mean `multijail`"),
        (&["--bench", "multijail", "--langs", "ja"], "en zh it vi ar ko th bn sw jv"),
        (&["--bench", "prompts", "--langs", "ja"], "no prompts in `ja`; it has en sw"),
        (&["--bench", "prompts", "--judge", "openai:gpt-4o"], "OPENAI_API_KEY"),
        (&["--bench", "prompts", "--judge", "openai:builtin:tiny", "--judge-url", "http://127.0.0.1:9/v1"], "would judge itself"),
        (&["--bench", "prompts", "--judge", "guard:PolyGuard-Qwen-Smol"], "does not cover sw"),
        (&["--bench", "prompts", "--judge", "nobody"], "`nobody` is no judge"),
        (&["--bench", "prompts", "--reference", "builtin:tiny"], "--bench reward-gap"),
        (&["--bench", "prompts", "--samples", "3"], "--temperature"),
        (&[], "which benchmark?"),
    ] {
        let said = fail(more);
        assert!(said.contains(expected), "{more:?}: {said}");
        assert!(!place.path("run").exists(), "{more:?}");
    }
    let said = place.fail(&["eval", "--bench", "multijail", "--model", "builtin:tiny"]);
    assert!(said.contains("--data") && said.contains("DAMO-NLP-SG/MultiJail"), "{said}");
    let said = place.fail(&["eval", "--bench", "prompts", "--data", "prompts.jsonl"]);
    assert!(said.contains("no finished run"), "{said}");
    fs::write(place.path("bad.jsonl"), "{\"id\": \"1\", \"lang\": \"en\", \"prompt\": \"?\", \"kind\": \"evil\"}\n").unwrap();
    let said = place.fail(&["eval", "--bench", "prompts", "--data", "bad.jsonl", "--model", "builtin:tiny"]);
    assert!(said.contains("bad.jsonl") && said.contains("evil"), "{said}");
}

#[test]
fn a_folder_is_neither_overwritten_nor_filled_by_another_model() {
    let place = Place::new();
    place.eval("run", &[]);
    let said = place.fail(&["eval", "--bench", "prompts", "--data", "prompts.jsonl", "--model", "builtin:tiny", "--out", "run"]);
    assert!(said.contains("--resume run"), "{said}");
    let facts = fs::read_to_string(place.path("run/run.json")).unwrap();
    let mut other: Value = serde_json::from_str(&facts).unwrap();
    other["model"]["sha256"] = json!("0".repeat(64));
    fs::write(place.path("run/run.json"), other.to_string()).unwrap();
    let said = place.fail(&["eval", "--resume", "run"]);
    assert!(said.contains("responses of another model"), "{said}");
}

#[test]
fn the_list_names_every_benchmark() {
    let place = Place::new();
    let (list, _) = place.succeed(&["eval", "--list"]);
    let (json, _) = place.succeed(&["eval", "--list", "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 12);
    for bench in json.as_array().unwrap() {
        assert!(list.contains(bench["name"].as_str().unwrap()), "{bench}");
    }
}
