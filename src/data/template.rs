//! Chat templates: Jinja programs that lay a conversation out as the text a model was trained on.
//!
//! Rendered as transformers does it (block lines leave no trace, Python's string methods exist, `tools` and `documents` are none), so
//! that a checkpoint's own template gives the same text here. `builtin` has the templates of the released MPO code. A template is a stranger's
//! program: its source is bounded (`source`), and so are its steps, its output, its memory and its time (`confined`).

mod builtin;
mod confined;
mod globals;
mod source;
mod thinking;

pub use thinking::Thinking;

use super::pair::Message;
use super::tokenizer_config::TokenizerConfig;
use crate::config::{BUILTIN_TEMPLATES, CHECKPOINT_TEMPLATE};
use crate::escape::one_line;
use anyhow::{Context, Result, anyhow, bail};
use confined::{Limits, Stopped};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Characters of an error from within a template that are shown.
const SHOWN: usize = 400;

/// A compiled chat template that knows the special tokens of one tokenizer.
pub struct Template {
    /// What errors call it: `the checkpoint's template`, a built-in name, or a path.
    name: String,
    source: Arc<str>,
    /// Special tokens by their names in templates.
    tokens: Vec<(&'static str, String)>,
    /// By the steps that they allow, made as conversations ask for them.
    environments: Mutex<BTreeMap<u64, Arc<Environment<'static>>>>,
    /// Why it is not rendered again: each time would give up another thread.
    given_up: OnceLock<Stopped>,
    /// What the variable that turns thinking on and off is set to, if it is.
    thinking: Option<(&'static str, Value)>,
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template").field("name", &self.name).field("source", &self.source).finish_non_exhaustive()
    }
}

/// What one conversation's rendering may take, in proportion to it.
#[derive(Debug, Clone, Copy)]
struct Share {
    /// Of the template engine. Templates of several hundred lines take some 200 a message.
    steps: u64,
    output_bytes: usize,
    limits: Limits,
}

impl Share {
    fn of(n_messages: usize, n_bytes: usize) -> Self {
        // A power of two, so that few environments are made. The bound keeps the deepest value that so many steps can build within the stack.
        let steps = (100_000 + 2_000 * n_messages as u64 + n_bytes as u64 / 4).next_power_of_two().min(1 << 21);
        let limits = Limits {
            bytes: (32 << 20) + 16 * n_bytes,
            time: Duration::from_millis(500) + Duration::from_micros(n_bytes as u64 + 500 * n_messages as u64),
        };
        Self { steps, output_bytes: (1 << 20) + 8 * n_bytes, limits }
    }
}

impl Template {
    /// The template that `choice` (`data.template`) names: `checkpoint`, the name of a built-in one, or a file.
    ///
    /// `folder` is the checkpoint's. Its `chat_template.jinja` wins over the template in `tokenizer_config.json`, as in transformers, and that over the
    /// `chat_template.json` of older processors.
    pub fn resolve(choice: &str, folder: &Path, config: &TokenizerConfig) -> Result<Self> {
        if choice == CHECKPOINT_TEMPLATE {
            let Some((path, source)) = source::of_checkpoint(folder, config)? else {
                bail!(
                    "the checkpoint in `{}` has no chat template: set `data.template` to {} or the path of a Jinja file{}",
                    folder.display(),
                    builtin_names(),
                    source::others(folder, config)
                );
            };
            return Self::new(&path.display().to_string(), &source, config);
        }
        if let Some(source) = builtin::source(choice) {
            return Self::new(choice, source, config);
        }
        if Path::new(choice).is_file() {
            return Self::new(choice, &source::read(Path::new(choice))?, config);
        }
        bail!(
            "`data.template` is `{choice}`: it must be `{CHECKPOINT_TEMPLATE}`, {}, or the path of a Jinja file that exists",
            builtin_names()
        )
    }

    /// Compiles `source`; `name` is what errors call it.
    pub fn new(name: &str, source: &str, config: &TokenizerConfig) -> Result<Self> {
        source::check(source).with_context(|| format!("the chat template `{name}` cannot be used"))?;
        let tokens = [("bos_token", &config.bos), ("eos_token", &config.eos), ("pad_token", &config.pad), ("unk_token", &config.unk)];
        let template = Self {
            name: name.to_owned(),
            source: source.into(),
            // A token that the tokenizer lacks stays undefined, and renders as nothing.
            tokens: tokens.into_iter().filter_map(|(key, token)| Some((key, token.clone()?))).collect(),
            environments: Mutex::default(),
            given_up: OnceLock::new(),
            thinking: None,
        };
        template.environment(Share::of(1, source.len())).map_err(|failure| match failure {
            Failure::Jinja(error) => anyhow!("the chat template `{name}` is not valid Jinja: {error}"),
            Failure::Stopped(stopped) => anyhow!("the chat template `{name}` cannot be compiled: {stopped}"),
        })?;
        Ok(template)
    }

    /// The Jinja program.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The conversation as text; `add_generation_prompt` appends what introduces the assistant's next turn.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_with(self.thinking.as_ref(), messages, add_generation_prompt)
    }

    fn render_with(&self, thinking: Option<&(&'static str, Value)>, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let thinking = Value::from_pairs(thinking.cloned());
        let share = Share::of(messages.len(), messages.iter().map(|m| m.content.len()).sum());
        let messages: Vec<Value> = messages.iter().map(|m| context! { role => m.role.name(), content => m.content.as_str() }).collect();
        let values = context! { messages, add_generation_prompt, tools => (), documents => (), ..thinking };
        self.render_values(values, share)
            .map_err(|failure| anyhow!("the chat template `{}` failed on this conversation: {}", self.name, failure.words()))
    }

    /// Whether the program reads `variable` from outside.
    fn reads(&self, variable: &'static str) -> Result<bool> {
        let share = Share::of(1, self.source.len());
        let environment = self.environment(share);
        let read = environment.and_then(|environment| {
            let look =
                move || environment.get_template(ENTRY).is_ok_and(|template| template.undeclared_variables(false).contains(variable));
            confined::run(share.limits, look).map_err(Failure::Stopped)
        });
        read.map_err(|failure| anyhow!("the chat template `{}` cannot be looked through: {}", self.name, failure.words()))
    }

    fn render_values(&self, values: Value, share: Share) -> Result<String, Failure> {
        if let Some(stopped) = self.given_up.get() {
            return Err(Failure::Stopped(stopped.clone()));
        }
        let environment = self.environment(share)?;
        let render = move || {
            let mut output = Bounded { text: Vec::new(), limit: share.output_bytes, is_full: false };
            let rendered = environment.get_template(ENTRY).and_then(|template| template.render_captured_to(values, &mut output).map(drop));
            match rendered {
                Ok(()) => String::from_utf8(output.text).map_err(|error| error.to_string()),
                Err(_) if output.is_full => Err(format!("it renders more than {} MiB of text", share.output_bytes >> 20)),
                Err(error) => Err(shown(&error, share)),
            }
        };
        let done =
            confined::run(share.limits, render).map_err(|stopped| Failure::Stopped(self.given_up.get_or_init(|| stopped).clone()))?;
        done.map_err(Failure::Jinja)
    }

    /// An environment with this template that stops after a share's steps.
    fn environment(&self, share: Share) -> Result<Arc<Environment<'static>>, Failure> {
        let mut environments = self.environments.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(environment) = environments.get(&share.steps) {
            return Ok(environment.clone());
        }
        let (source, tokens) = (self.source.clone(), self.tokens.clone());
        let compile = move || environment(&source, tokens, share.steps).map_err(|error| shown(&error, share));
        let compiled = confined::run(share.limits, compile).map_err(Failure::Stopped)?;
        let environment = Arc::new(compiled.map_err(Failure::Jinja)?);
        environments.insert(share.steps, environment.clone());
        Ok(environment)
    }
}

/// The name under which an environment holds the template.
const ENTRY: &str = "template";

/// Why there is no text.
enum Failure {
    /// The template's own error, fit to be shown.
    Jinja(String),
    Stopped(Stopped),
}

impl Failure {
    fn words(&self) -> String {
        match self {
            Self::Jinja(why) => why.clone(),
            Self::Stopped(stopped) => stopped.to_string(),
        }
    }
}

fn environment(source: &str, tokens: Vec<(&'static str, String)>, steps: u64) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    // Debug information would print the conversation into an error message.
    environment.set_debug(false);
    environment.set_fuel(Some(steps));
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    globals::install(&mut environment);
    environment.add_template_owned(ENTRY, globals::replace_generation_tags(source))?;
    tokens.into_iter().for_each(|(key, token)| environment.add_global(key, token));
    Ok(environment)
}

/// An error's words, which may be the template's own, or texts of the conversation: on one line, harmless to a terminal.
fn shown(error: &Error, share: Share) -> String {
    match error.kind() {
        ErrorKind::OutOfFuel => format!("it takes more than {} steps, far more than a conversation of this length needs", share.steps),
        _ => one_line(&error.to_string(), SHOWN),
    }
}

/// Takes so many bytes and no more.
struct Bounded {
    text: Vec<u8>,
    limit: usize,
    is_full: bool,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.text.len() + bytes.len() > self.limit {
            self.is_full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn builtin_names() -> String {
    BUILTIN_TEMPLATES.map(|name| format!("`{name}`")).join(", ")
}
