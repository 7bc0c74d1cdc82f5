//! `mpo chat`: a conversation with a model, line by line.

use super::print;
use super::speak::{cut_off, hardware, load, max_new_tokens, opening, request, stream};
use crate::cli::ChatArgs;
use crate::data::pair::{Message, Role};
use crate::device;
use crate::generate::{Generator, Prompt};
use crate::progress::say;
use anyhow::{Context, Result};
use std::io::{BufRead, IsTerminal};
use std::process::ExitCode;

/// What a line is.
#[derive(Debug, PartialEq)]
enum Line<'l> {
    Quit,
    Reset,
    Undo,
    Empty,
    Unknown(&'l str),
    Message(&'l str),
}

impl<'l> Line<'l> {
    fn of(line: &'l str) -> Self {
        match line.trim() {
            "" => Line::Empty,
            "/quit" | "/exit" => Line::Quit,
            "/reset" => Line::Reset,
            "/undo" => Line::Undo,
            command if command.starts_with('/') && !command[1..].contains([' ', '/']) => Line::Unknown(command),
            message => Line::Message(message),
        }
    }
}

/// Answers the lines of stdin until it ends.
pub fn run(args: &ChatArgs) -> Result<ExitCode> {
    device::thread_pool(&hardware(&args.speaker))?.install(|| {
        let loaded = load(&args.speaker)?;
        converse(args, &loaded.generator(), &mut std::io::stdin().lock())?;
        Ok(ExitCode::SUCCESS)
    })
}

fn converse(args: &ChatArgs, generator: &Generator<'_>, input: &mut dyn BufRead) -> Result<()> {
    let is_terminal = std::io::stdin().is_terminal();
    let opening = opening(&args.speaker);
    let mut conversation = opening.clone();
    let max_new_tokens = max_new_tokens(&args.speaker, generator);
    if is_terminal {
        say(&format!("`{}` listens. /reset forgets, /undo takes the last turn back, Ctrl-D ends.", args.speaker.model));
    }
    let mut line = String::new();
    loop {
        if is_terminal {
            print("> ")?;
        }
        line.clear();
        if input.read_line(&mut line).context("cannot read stdin")? == 0 {
            return Ok(());
        }
        match Line::of(&line) {
            Line::Quit => return Ok(()),
            Line::Empty => {}
            Line::Reset => conversation.clone_from(&opening),
            // A question and its answer.
            Line::Undo => conversation.truncate(opening.len().max(conversation.len().saturating_sub(2))),
            Line::Unknown(command) => say(&format!("there is no `{command}`; there are /reset, /undo and /quit")),
            Line::Message(text) => {
                conversation.push(Message { role: Role::User, content: text.to_owned() });
                let request = request(&args.speaker, Prompt::Chat(conversation.clone()), max_new_tokens);
                let completion = stream(generator, request)?;
                if let Some(cut_off) = cut_off(&completion) {
                    say(&format!("({cut_off})"));
                }
                // What was thought is over; a model is not trained to read its earlier thoughts.
                conversation.push(Message { role: Role::Assistant, content: completion.parts().answer.to_owned() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_one_word_behind_a_slash() {
        assert_eq!(Line::of(" /reset\n"), Line::Reset);
        assert_eq!(Line::of("/rest\n"), Line::Unknown("/rest"));
        assert_eq!(Line::of("/usr/bin is a folder\n"), Line::Message("/usr/bin is a folder"));
        assert_eq!(Line::of("\n"), Line::Empty);
    }
}
