//! One file per subcommand: glue, and the only place that prints. Data goes to stdout, talk to stderr.
//!
//! Exit status: 0 done; 1 failed, or `check` found something wrong; 2 wrong usage or configuration.

mod ablate;
mod chat;
mod check;
mod eval;
mod gaps;
mod generate;
mod merge;
mod plan;
mod recipes;
mod speak;
mod train;

use crate::allocator;
use crate::cli::{Cli, Command};
use crate::config::ConfigError;
use crate::escape::{escape_for_terminal, shortened};
use crate::secret::shown;
use anyhow::{Context, Result};
use clap::Parser;
use std::borrow::Cow;
use std::io::{ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

/// Wrong usage or configuration.
const USAGE: u8 = 2;

/// Parses the command line, runs it, and turns an error chain into an exit code.
pub fn main() -> ExitCode {
    allocator::settle();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version also arrive here, with status 0. Nobody is left to tell where printing fails.
            // What was typed is repeated, and a script may have typed what a terminal would obey.
            let typed: String = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
            let _ = match escape_for_terminal(&typed) == typed {
                true => error.print(),
                false => std::io::stderr().write_all(escape_for_terminal(&error.render().to_string()).as_bytes()),
            };
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(USAGE));
        }
    };
    match dispatch(&cli.command) {
        Ok(code) => code,
        Err(error) if error.is::<StdoutClosed>() => ExitCode::SUCCESS,
        Err(error) => {
            let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            let _ = write!(std::io::stderr(), "{}", render(&error, colours));
            let is_usage = error.chain().any(|cause| cause.is::<ConfigError>() || cause.is::<Usage>());
            if is_usage { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
        }
    }
}

fn dispatch(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Train(args) if args.settings.config.is_none() && args.resume.is_none() => Ok(recipes::say_how_to_start()),
        Command::Train(args) => train::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Check(args) => check::run(args),
        Command::Gaps(args) => gaps::run(args),
        Command::Ablate(args) => ablate::run(args),
        Command::Merge(args) => merge::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Recipes(args) => recipes::run(args),
    }
}

/// Whoever read stdout has enough, as `head` does: no failure, and no reason to say anything.
#[derive(Debug)]
struct StdoutClosed;

impl std::fmt::Display for StdoutClosed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stdout is closed")
    }
}

impl std::error::Error for StdoutClosed {}

/// Wrong usage that the parser of the command line cannot see; status 2.
#[derive(Debug)]
struct Usage(String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// # Errors
/// With the text, where it does not hold.
fn ensure_usage(holds: bool, text: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(Usage(text()).into()) }
}

/// Writes a text for people to stdout: nothing of it is obeyed by a terminal, whatever it was made of.
///
/// # Errors
/// As of [`print_data`].
pub(crate) fn print(text: &str) -> Result<()> {
    print_data(&escape_for_terminal(&shown(text)))
}

/// Writes data to stdout as it is, but escaped where that is a terminal; `println!` would panic where the reader has gone.
///
/// # Errors
/// The reader has gone, which ends the command quietly with status 0 if passed on; or the write failed, as on a full disk.
pub(crate) fn print_data(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    let text = if stdout.is_terminal() { Cow::Owned(escape_for_terminal(text)) } else { Cow::Borrowed(text) };
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
        other => other.context("cannot write to stdout"),
    }
}

/// An error chain for people: the error, its causes, then the hints that any of them carries on `hint:` lines of its own.
pub fn render(error: &anyhow::Error, colours: bool) -> String {
    let paint = |code: &str, word: &str| if colours { format!("\x1b[1;{code}m{word}\x1b[0m") } else { word.to_string() };
    let mut text = String::new();
    let mut hints = String::new();
    let mut said: Vec<String> = Vec::new();
    for (depth, cause) in error.chain().enumerate() {
        let message = escape_for_terminal(&shown(&cause.to_string()));
        // Some libraries repeat their source's message in their own.
        if said.last().is_some_and(|above| above.contains(&message)) {
            continue;
        }
        let message = shortened(&message);
        let (hint, body): (Vec<&str>, Vec<&str>) = message.lines().partition(|line| line.starts_with("hint:"));
        let label = if depth == 0 { paint("31", "error:") } else { "  caused by:".to_string() };
        let indent = if depth == 0 { "\n" } else { "\n    " };
        text += &format!("{label} {}\n", body.join(indent));
        for line in hint {
            hints += &format!("{} {}\n", paint("36", "hint:"), line.trim_start_matches("hint:").trim());
        }
        said.push(message);
    }
    text + &hints
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn an_error_is_shown_with_its_causes_and_its_hints_last() {
        let error = Err::<(), _>(anyhow!("no such file\nhint: name another")).context("`x.jsonl` cannot be read").unwrap_err();
        assert_eq!(render(&error, false), "error: `x.jsonl` cannot be read\n  caused by: no such file\nhint: name another\n");
    }

    #[test]
    fn colours_only_paint_the_labels() {
        let error = anyhow!("wrong\nhint: right");
        assert_eq!(render(&error, true).replace("\x1b[1;31m", "").replace("\x1b[1;36m", "").replace("\x1b[0m", ""), render(&error, false));
    }

    #[test]
    fn an_error_holds_nothing_that_a_terminal_obeys_and_no_password() {
        let error = anyhow!("`\u{1b}[31mred\u{202e}`\nhint: \u{7}bell").context("`https://u:secret@host/x?sig=secret` is\r none");
        let text = render(&error, false);
        assert_eq!(
            text,
            "error: `https://hidden@host/x?sig=hidden` is\\u{d} none\n  caused by: `\\u{1b}[31mred\\u{202e}`\nhint: \\u{7}bell\n"
        );
    }

    #[test]
    fn a_cause_that_repeats_is_said_once() {
        let error = anyhow!("end of file").context("line 3: end of file");
        assert_eq!(render(&error, false), "error: line 3: end of file\n");
    }
}
