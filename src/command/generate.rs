//! `mpo generate`: one answer as it grows, or many as lines of JSON.

use super::print_data;
use super::speak::{cut_off, hardware, load, max_new_tokens, opening, request, stream};
use crate::cli::GenerateArgs;
use crate::data::pair::{Message, Role};
use crate::device;
use crate::generate::{Completion, Event, FinishReason, Generator, Prompt};
use crate::progress::{Progress, say};
use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;

/// A line of `--prompts`.
#[derive(Debug, Deserialize)]
struct PromptLine {
    #[serde(default)]
    id: Option<Value>,
    #[serde(default)]
    prompt: Option<Words>,
    #[serde(default)]
    messages: Option<Vec<Message>>,
    /// A system turn in front.
    #[serde(default)]
    system: Option<String>,
    /// What else the line has.
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// What the user says, or a whole conversation.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
enum Words {
    Text(String),
    Messages(Vec<Message>),
}

/// A prompt, and what its answer's line says of it.
#[derive(Debug)]
struct Asked {
    id: Option<Value>,
    words: Words,
}

/// A line of the output.
#[derive(Debug, Serialize)]
struct AnswerLine<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a Value>,
    prompt: &'a Words,
    text: &'a str,
    /// What follows the thought, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<&'a str>,
    finish_reason: FinishReason,
    n_tokens: usize,
    n_prompt_tokens: usize,
    log_prob: f64,
}

/// Answers `--prompt` or every line of `--prompts`.
pub fn run(args: &GenerateArgs) -> Result<ExitCode> {
    // What can be wrong with the files is found before gigabytes are read.
    let asked = args.prompts.as_deref().map(|path| read_prompts(path, args.raw)).transpose()?;
    let out = args.out.as_deref().map(|path| Ok::<_, anyhow::Error>((create(path)?, path))).transpose()?;
    device::thread_pool(&hardware(&args.speaker))?.install(|| {
        let loaded = load(&args.speaker)?;
        let mut generator = loaded.generator();
        match (&args.prompt, asked) {
            (Some(text), _) => answer_one(args, &generator, text)?,
            (None, Some(asked)) => {
                generator.batch_size = args.batch_size.map_or(generator.batch_size, Into::into);
                answer_many(args, &generator, &asked, out)?;
            }
            (None, None) => bail!("neither `--prompt` nor `--prompts` was given"),
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn answer_one(args: &GenerateArgs, generator: &Generator<'_>, text: &str) -> Result<()> {
    let prompt = prompt(args, &Words::Text(text.to_owned()));
    let completion = stream(generator, request(&args.speaker, prompt, max_new_tokens(&args.speaker, generator)))?;
    let n_positions = generator.model.description().max_positions;
    ensure!(
        completion.n_prompt_tokens < n_positions,
        "the prompt has {} tokens and fills the model's {n_positions} positions: there is no room for an answer\nhint: shorten it",
        completion.n_prompt_tokens
    );
    if let Some(cut_off) = cut_off(&completion) {
        say(&format!("{cut_off}\nhint: `--max-new-tokens` lets it go on, as far as the model has positions"));
    }
    Ok(())
}

fn answer_many(args: &GenerateArgs, generator: &Generator<'_>, asked: &[Asked], mut out: Option<(File, &Path)>) -> Result<()> {
    let progress = Progress::new("answering", asked.len());
    let max_new_tokens = max_new_tokens(&args.speaker, generator);
    let requests = asked.iter().map(|asked| request(&args.speaker, prompt(args, &asked.words), max_new_tokens));
    let mut n_unfinished = 0;
    // Answers end in any order; lines have that of the prompts, as soon as all before are there.
    let mut waiting: BTreeMap<usize, Completion> = BTreeMap::new();
    let (mut next, mut n_full) = (0, 0);
    let n_positions = generator.model.description().max_positions;
    generator.run(requests, |event| {
        let Event::Finished { index, completion } = event else { return Ok(ControlFlow::Continue(())) };
        progress.advance(1);
        n_full += usize::from(completion.n_prompt_tokens >= n_positions);
        waiting.insert(index, completion);
        while let Some(completion) = waiting.remove(&next) {
            n_unfinished += usize::from(completion.parts().is_unfinished);
            let line = line(next, &asked[next], &completion)?;
            match &mut out {
                Some((file, path)) => append(file, &line).with_context(|| cannot_write(path, next))?,
                None => print_data(&line)?,
            }
            next += 1;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    if n_full > 0 {
        say(&format!("warning: {n_full} prompts fill the model's {n_positions} positions: there was no room for an answer"));
    }
    if let Some((file, path)) = out {
        file.sync_all().with_context(|| cannot_write(path, next))?;
        say(&format!("wrote {next} answers to `{}`", path.display()));
    }
    if n_unfinished > 0 {
        say(&format!(
            "{n_unfinished} of {next} thoughts did not end within {max_new_tokens} tokens: there is no answer behind them\n\
             hint: raise `--max-new-tokens`, or do without with `--thinking off` where the chat template knows it"
        ));
    }
    Ok(())
}

fn prompt(args: &GenerateArgs, words: &Words) -> Prompt {
    match words {
        Words::Text(text) if args.raw => Prompt::Text(text.clone()),
        Words::Text(text) => {
            let mut messages = opening(&args.speaker);
            messages.push(Message { role: Role::User, content: text.clone() });
            Prompt::Chat(messages)
        }
        Words::Messages(messages) => Prompt::Chat([opening(&args.speaker), messages.clone()].concat()),
    }
}

fn line(index: usize, asked: &Asked, completion: &Completion) -> Result<String> {
    let parts = completion.parts();
    let line = AnswerLine {
        index,
        id: asked.id.as_ref(),
        prompt: &asked.words,
        text: &completion.text,
        answer: parts.thought.map(|_| parts.answer),
        finish_reason: completion.finish_reason,
        n_tokens: completion.tokens.len(),
        n_prompt_tokens: completion.n_prompt_tokens,
        log_prob: completion.log_prob(),
    };
    Ok(serde_json::to_string(&line)? + "\n")
}

/// # Errors
/// `file:line` of what is not a prompt.
fn read_prompts(path: &Path, raw: bool) -> Result<Vec<Asked>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read the prompts `{}`", path.display()))?;
    let lines = text.trim_start_matches('\u{feff}').lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
    let asked: Vec<Asked> =
        lines.map(|(line, number)| read_line(line, raw).with_context(|| format!("{}:{number}", path.display()))).collect::<Result<_>>()?;
    ensure!(!asked.is_empty(), "`{}` holds no prompts", path.display());
    Ok(asked)
}

fn read_line(line: &str, raw: bool) -> Result<Asked> {
    let expected =
        "a prompt is a line of JSON such as {\"prompt\": \"What is rain?\"} or {\"messages\": [{\"role\": \"user\", \"content\": \"…\"}]}";
    let PromptLine { id, prompt, messages, system, others } = serde_json::from_str(line).context(expected)?;
    // What the model would have to see, and cannot.
    if let Some(key) = ["tools", "functions", "images", "history", "context"].into_iter().find(|key| others.get(*key).is_some_and(says)) {
        bail!("`{key}` is not read, and the answer depends on it: write what it says into `messages`, or remove it");
    }
    let words = match (prompt, messages) {
        (Some(words), None) => words,
        (None, Some(messages)) => Words::Messages(messages),
        (Some(_), Some(_)) => bail!("`prompt` and `messages` are both there; {expected}"),
        (None, None) => bail!("neither `prompt` nor `messages` is there; {expected}"),
    };
    let words = match (words, system.filter(|system| !system.trim().is_empty())) {
        (words, None) => words,
        (_, Some(_)) if raw => bail!("`system` is laid out by the chat template; with `--raw` a prompt is a text"),
        (Words::Text(text), Some(system)) => Words::Messages(vec![turn(Role::System, system), turn(Role::User, text)]),
        (Words::Messages(mut messages), Some(system)) => {
            let has_own = messages.first().is_some_and(|first| first.role == Role::System && first.content != system);
            ensure!(!has_own, "`system` is another system turn than that which `messages` begins with: keep one of them");
            if messages.first().is_none_or(|first| first.role != Role::System) {
                messages.insert(0, turn(Role::System, system));
            }
            Words::Messages(messages)
        }
    };
    if let Words::Messages(messages) = &words {
        ensure!(!messages.is_empty(), "the conversation has no messages");
        ensure!(!raw, "a list of messages is laid out by the chat template; with `--raw` a prompt is a text");
    }
    Ok(Asked { id, words })
}

fn turn(role: Role, content: String) -> Message {
    Message { role, content }
}

fn says(value: &Value) -> bool {
    !matches!(value, Value::Null)
        && !value.as_str().is_some_and(|text| text.trim().is_empty())
        && !value.as_array().is_some_and(Vec::is_empty)
}

/// A line, or nothing of it: what a full disk took in of the line is cut off again.
fn append(file: &mut File, line: &str) -> io::Result<()> {
    let end = file.metadata()?.len();
    file.write_all(line.as_bytes()).inspect_err(|_| drop(file.set_len(end)))
}

fn cannot_write(path: &Path, n_lines: usize) -> String {
    format!("cannot write `{}`; the answers before, {n_lines} lines, are in it", path.display())
}

/// A new file: answers that took hours are not written over.
fn create(path: &Path) -> Result<File> {
    path.parent().map_or(Ok(()), std::fs::create_dir_all).with_context(|| format!("cannot make the folder of `{}`", path.display()))?;
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    file.with_context(|| format!("cannot create `{}`\nhint: `--out` must name a new file", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_text_or_a_conversation() {
        let text = read_line(r#"{"id": 7, "prompt": "rain?"}"#, true).unwrap();
        assert!(matches!((&text.id, &text.words), (Some(id), Words::Text(text)) if id == 7 && text == "rain?"));
        for line in [r#"{"messages": [{"role": "user", "content": "a"}]}"#, r#"{"prompt": [{"role": "user", "content": "a"}]}"#] {
            assert!(matches!(&read_line(line, false).unwrap().words, Words::Messages(messages) if messages[0].content == "a"));
            assert!(read_line(line, true).unwrap_err().to_string().contains("--raw"));
        }
    }

    #[test]
    fn a_system_key_is_a_turn_in_front() {
        let prompt = r#"{"system": "Be brief.", "prompt": "rain?"}"#;
        let messages =
            r#"{"system": "Be brief.", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "rain?"}]}"#;
        for line in [prompt, messages] {
            let asked = read_line(line, false).unwrap();
            let Words::Messages(messages) = asked.words else { panic!("{line}") };
            assert_eq!(messages, [turn(Role::System, "Be brief.".into()), turn(Role::User, "rain?".into())]);
            assert!(read_line(line, true).is_err());
        }
        assert!(read_line(&messages.replacen("Be brief.", "Be rude.", 1), false).unwrap_err().to_string().contains("another system turn"));
    }

    #[test]
    fn what_is_no_prompt_is_said_with_its_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, number, what) in [
            ("{\"prompt\": \"a\"}\n\n{\"prompt\": 3}\n", 3, "a prompt is a line of JSON"),
            ("rain?\n", 1, "a prompt is a line of JSON"),
            ("{\"id\": 1}\n", 1, "neither `prompt` nor `messages`"),
            ("{\"prompt\": \"a\", \"messages\": []}", 1, "both there"),
            ("{\"messages\": []}", 1, "no messages"),
            ("{\"prompt\": \"a\", \"tools\": [\"umbrella\"]}", 1, "`tools` is not read"),
        ] {
            std::fs::write(file.path(), text).unwrap();
            let error = format!("{:#}", read_prompts(file.path(), false).err().unwrap());
            assert!(error.contains(&format!(":{number}: ")) && error.contains(what), "{error}");
        }
        std::fs::write(file.path(), "\n").unwrap();
        assert!(read_prompts(file.path(), false).err().unwrap().to_string().contains("holds no prompts"));
    }
}
