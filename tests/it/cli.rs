//! The program's real command line: what it prints where, and its exit status.

use std::process::{Command, Output};

fn mpo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mpo"));
    command.args(arguments);
    command
}

fn run(arguments: &[&str]) -> Output {
    mpo(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn help_says_in_its_first_lines_which_mpo_this_is() {
    for flag in ["--help", "-h"] {
        let output = run(&[flag]);
        assert_eq!(output.status.code(), Some(0));
        let first: Vec<String> = stdout(&output).lines().take(2).map(str::to_string).collect();
        assert!(first[0].starts_with("Multilingual reward gaP Optimization (MPO, arXiv 2505.16869)"), "{first:?}");
        assert_eq!(first[1], "Not *Mixed* Preference Optimization, which TRL and InternVL also call MPO.");
    }
}

#[test]
fn every_subcommand_has_help_with_examples_of_itself() {
    for command in ["train", "plan", "check", "gaps"] {
        let output = run(&[command, "--help"]);
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).contains(&format!("Examples:\n  mpo {command} ")), "{}", stdout(&output));
    }
}

#[test]
fn train_without_a_configuration_says_what_to_do_next() {
    let output = run(&["train"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stdout(&output), "");
    let said = stderr(&output);
    for expected in ["mpo train --config smoke.toml", "mpo recipes show", "--resume", "  official/qwen25.toml  "] {
        assert!(said.contains(expected), "`{expected}` is not in:\n{said}");
    }
    assert!(!said.contains("Usage:"), "{said}");
}

#[test]
fn wrong_usage_exits_with_2() {
    for arguments in [&["gaps", "--model", "m"][..], &["check", "x.jsonl"], &["train", "--confg", "x"], &["no-such-command"], &[]] {
        assert_eq!(run(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn recipes_lists_each_with_its_first_line_and_shows_one_byte_for_byte() {
    let list = stdout(&run(&["recipes"]));
    let smoke = list.lines().find(|line| line.trim_start().starts_with("smoke.toml")).unwrap();
    assert!(smoke.contains("  The mechanism in under a minute"), "{list}");
    for (name, file) in [("llama31.toml", "llama31"), ("official/gemma2", "official/gemma2")] {
        let output = run(&["recipes", "show", name]);
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(output.stdout, std::fs::read(format!("configs/{file}.toml")).unwrap());
    }
}

#[test]
fn an_unknown_recipe_is_a_configuration_error_that_names_the_known_ones() {
    let output = run(&["recipes", "show", "lama31"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stdout(&output), "");
    let said = stderr(&output);
    assert!(said.starts_with("error: lama31: no built-in recipe of that name; did you mean `llama31.toml`?"), "{said}");
    assert!(said.contains("`official/qwen25.toml`"), "{said}");
}

#[test]
fn a_closed_pipe_is_no_failure_and_no_panic() {
    for arguments in [&["recipes"][..], &["recipes", "show", "smoke"], &["--help"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = mpo(arguments).stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert_eq!(stderr(&output), "", "{arguments:?}");
    }
}

#[test]
fn output_to_no_terminal_has_no_colours() {
    for arguments in [&["--help"][..], &["train"], &["recipes", "show", "x"], &["gaps"]] {
        let output = mpo(arguments).env("NO_COLOR", "1").output().unwrap();
        assert!(!stdout(&output).contains('\x1b') && !stderr(&output).contains('\x1b'), "{arguments:?}");
    }
}
