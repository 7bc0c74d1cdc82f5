//! The command line, as a new user types it.

use clap::{CommandFactory, Parser};
use mpo::cli::Cli;
use mpo::config::{self, RunConfig};
use mpo::interrupt::Stopped;
use mpo::train::evaluate::{PolicyIs, dominant_gaps, measure};
use mpo::train::step::StepSettings;
use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::support;

fn mpo(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mpo")).args(arguments).current_dir(folder).env("MPO_CACHE", folder.join("cache")).output().unwrap()
}

fn all_text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Nothing that a terminal would obey.
fn assert_harmless(text: &str) {
    let is_harmful = |c: char| {
        (c.is_control() && !matches!(c, '\n' | '\t')) || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200b}')
    };
    assert!(!text.chars().any(is_harmful), "{text:?}");
}

/// The words of a line as a shell reads it, without a comment, and where its output goes.
fn words(line: &str) -> (Vec<String>, Option<String>) {
    let line = line.split(" #").next().unwrap();
    let (line, to) = line.split_once(" > ").map_or((line, None), |(line, to)| (line, Some(to.trim().to_owned())));
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for c in line.chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.extend((!word.is_empty()).then(|| std::mem::take(&mut word))),
            c => word.push(c),
        }
    }
    words.extend((!word.is_empty()).then_some(word));
    (words, to)
}

fn readme_commands() -> Vec<String> {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    readme.lines().filter_map(|line| line.strip_prefix("    ")).filter(|line| line.starts_with("mpo ")).map(str::to_owned).collect()
}

#[test]
fn every_command_of_the_readme_and_of_the_help_is_one() {
    let mut lines = readme_commands();
    assert!(lines.len() > 20, "{lines:?}");
    let command = Cli::command();
    for command in command.get_subcommands().chain([&command]) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        // What stands behind two spaces is what it does.
        let examples = help.lines().filter_map(|line| line.strip_prefix("  ")).filter(|line| line.starts_with("mpo "));
        lines.extend(examples.map(|line| match line.rsplit_once("   ") {
            Some((example, _)) => example.trim().to_owned(),
            None => line.to_owned(),
        }));
    }
    for line in lines {
        let (words, _) = words(&line);
        if let Err(error) = Cli::try_parse_from(&words) {
            panic!("`{line}`: {error}");
        }
    }
}

/// As they are written but for the number of steps, in one folder: what one command leaves must not be in the next one's way.
#[test]
fn the_readme_s_offline_commands_run_in_their_order() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("data/tiny")).unwrap();
    for name in ["prompts.jsonl", "questions.jsonl"] {
        let path = Path::new("data/tiny").join(name);
        fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join(&path), folder.path().join(&path)).unwrap();
    }
    let mut n_run = 0;
    let first = "mpo train --config smoke.toml".to_owned();
    for line in std::iter::once(first).chain(readme_commands()) {
        // What needs a network, files of one's own, or minutes.
        let elsewhere = ["my.toml ", "my.toml", "runs/llama31", "OUT/", "…", "org/name", "openai:", "multijail", "runs/my/", "ablate"];
        let is_elsewhere = elsewhere.iter().any(|word| line.split(" > ").next().unwrap().split(" #").next().unwrap().contains(word));
        if is_elsewhere {
            continue;
        }
        let (words, to) = words(&line);
        let mut arguments: Vec<&str> = words[1..].iter().map(String::as_str).collect();
        // What is trained does not matter here, and how long it takes does.
        if words[1] == "train" {
            arguments.extend(["--set", "train.max_steps=2"]);
        }
        let output = mpo(folder.path(), &arguments);
        assert!(output.status.success(), "`{line}`: {}", all_text(&output));
        if let Some(to) = to {
            fs::write(folder.path().join(to), &output.stdout).unwrap();
        }
        n_run += 1;
    }
    assert!(n_run >= 10, "{n_run}");
}

#[test]
fn wrong_usage_is_status_2_and_says_what_there_is() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, said) in [
        (&["eval"][..], &["which benchmark?", "multijail", "xstest", "mpo eval --list"][..]),
        (&["eval", "--bench", "multijial"], &["did you mean `multijail`?"]),
        (&["eval", "--bench", "multijail", "--samples", "3"], &["--temperature"]),
        (&["eval", "judge-check", "--gold", "g.jsonl", "--judge", "keyword"], &["`keyword` tells refusals", "--judge openai:MODEL"]),
        (&["eval", "judge-check", "--gold", "g.jsonl"], &["which judge?"]),
        (&["trian", "--config", "x"], &["train"]),
    ] {
        let output = mpo(folder.path(), arguments);
        let text = all_text(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        for said in said {
            assert!(text.contains(said), "{arguments:?} does not say `{said}`: {text}");
        }
    }
    let help = all_text(&mpo(folder.path(), &["eval", "judge-check", "--help"]));
    assert!(help.contains("guard:DIR") && !help.contains("keyword"), "{help}");
}

#[test]
fn many_unknown_keys_are_said_in_a_page_and_in_no_time() {
    let text: String = (0..20_000).map(|n| format!("some_key_of_another_program_{n} = {n}\n")).collect();
    let started = std::time::Instant::now();
    let said = config::parse(&format!("[train]\n{text}"), "t.toml", &[]).unwrap_err().to_string();
    assert!(said.contains("and 199") && said.lines().count() < 60, "{said}");
    assert!(said.contains("t.toml:2: unknown key `train.some_key_of_another_program_0`"), "{said}");
    // Comparing each with every key took minutes.
    assert!(started.elapsed().as_secs() < 60);
    let long = format!("{} = 1\n", "k".repeat(1 << 20));
    let said = config::parse(&long, "t.toml", &[]).unwrap_err().to_string();
    assert!(said.len() < 2000, "{} bytes", said.len());
}

#[test]
fn a_number_of_hundreds_of_digits_is_refused_as_one() {
    let digits = "9".repeat(302);
    for key in ["optimizer.lr", "train.batch_size"] {
        let (section, leaf) = key.split_once('.').unwrap();
        let in_file = config::parse(&format!("[{section}]\n{leaf} = {digits}\n"), "t.toml", &[]).unwrap_err().to_string();
        let on_line = config::parse("", "t.toml", &[format!("{key}={digits}")]).unwrap_err().to_string();
        for said in [in_file, on_line] {
            assert!(said.contains(&format!("`{key}`: the number has too many digits")), "{said}");
            assert!(!said.contains(&digits), "{said}");
        }
    }
}

#[test]
fn data_cannot_write_on_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let evil = "\u{1b}[31mred\u{1b}]0;title\u{7}\u{202e}\u{200b}\r";
    let row = |id: &str, lang: &str, answer: &str, key: &str| {
        let pair = |lang: &str| serde_json::json!({"lang": lang, "prompt": "May I take the umbrella?", "chosen": answer, "rejected": "No bread today."});
        let mut row = serde_json::json!({"id": id, "dominant": pair("en"), "target": pair(lang)});
        row[key] = 1.into();
        row.to_string()
    };
    for (name, line) in [
        ("id", row(evil, "sw", "Yes, it is by the door.", "note")),
        ("lang", row("1", evil, "Yes, it is by the door.", "note")),
        ("answer", row("1", "sw", evil, "note")),
        ("key", row("1", "sw", "Yes, it is by the door.", evil)),
        ("broken", format!("{{\"id\": \"{evil}\"")),
        ("other", format!("{{\"{}\": 1}}", evil.escape_default())),
    ] {
        let file = format!("{name}\u{1b}[31m.jsonl");
        fs::write(folder.path().join(&file), format!("{line}\n")).unwrap();
        for arguments in [
            &["check", &file, "--model", "builtin:tiny"][..],
            &["gaps", "--data", &file, "--model", "builtin:tiny"],
            &["train", "--config", "smoke.toml", "--set", &format!("data.path={file}"), "--dry-run"],
            &["eval", "--bench", "prompts", "--data", &file, "--model", "builtin:tiny", "--max-new-tokens", "1"],
            &["plan", "--config", &file],
            &["train", "--config", "smoke.toml", "--set", &format!("{evil}=1")],
            &["generate", "--model", &file, "--prompt", "x"],
            &[evil],
        ] {
            assert_harmless(&all_text(&mpo(folder.path(), arguments)));
        }
    }
}

#[test]
fn a_stop_ends_a_measurement_between_two_of_its_parts() {
    let mut config = RunConfig::default();
    config.train.micro_batch_size = 1;
    let policy = support::model(&support::llama(16, 64), 1);
    let rows = support::rows(6, 6, 64, 2);
    let reference = support::scores(&policy, &rows, &config);
    let (rows, settings) = (support::borrowed(&rows), StepSettings::new(&config, support::PAD));
    let n_asked = Cell::new(0);
    let after = |n: usize| {
        n_asked.set(0);
        move |asked: &Cell<usize>| {
            asked.set(asked.get() + 1);
            asked.get() > n
        }
    };
    let stop = after(2);
    let stopped = measure(&policy, &rows, PolicyIs::Trained(&reference), &settings, &|| stop(&n_asked));
    assert!(stopped.unwrap_err().is::<Stopped>() && n_asked.get() == 3);
    let stop = after(1);
    assert!(dominant_gaps(&policy, &rows, &settings, &|| stop(&n_asked)).unwrap_err().is::<Stopped>());
    assert!(measure(&policy, &rows, PolicyIs::Trained(&reference), &settings, &|| false).is_ok());
}
