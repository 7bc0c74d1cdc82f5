//! Chat templates: Jinja programs that lay a conversation out as the text a model was trained on.
//!
//! Rendered as transformers does it (block lines leave no trace, Python's string methods exist, `tools` and `documents` are none), so
//! that a checkpoint's own template gives the same text here. `builtin` has the templates of the released MPO code.

mod builtin;
mod globals;
mod thinking;

pub use thinking::Thinking;

use super::pair::Message;
use super::tokenizer_config::TokenizerConfig;
use crate::config::{BUILTIN_TEMPLATES, CHECKPOINT_TEMPLATE};
use anyhow::{Context, Result, anyhow, bail};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Value, context};
use std::path::Path;

/// A compiled chat template that knows the special tokens of one tokenizer.
#[derive(Debug)]
pub struct Template {
    environment: Environment<'static>,
    /// What errors call it: `the checkpoint's template`, a built-in name, or a path.
    name: String,
    source: String,
    /// What the variable that turns thinking on and off is set to, if it is.
    thinking: Option<(&'static str, Value)>,
}

impl Template {
    /// The template that `choice` (`data.template`) names: `checkpoint`, the name of a built-in one, or a file.
    ///
    /// `folder` is the checkpoint's. Its `chat_template.jinja` wins over the template in `tokenizer_config.json`, as in transformers.
    pub fn resolve(choice: &str, folder: &Path, config: &TokenizerConfig) -> Result<Self> {
        if choice == CHECKPOINT_TEMPLATE {
            let file = folder.join("chat_template.jinja");
            if file.exists() {
                return Self::from_file(&file, config);
            }
            let Some(source) = &config.chat_template else {
                bail!(
                    "the checkpoint in `{}` has no chat template: set `data.template` to {} or the path of a Jinja file",
                    folder.display(),
                    builtin_names()
                );
            };
            return Self::new(&folder.join("tokenizer_config.json").display().to_string(), source, config);
        }
        if let Some(source) = builtin::source(choice) {
            return Self::new(choice, source, config);
        }
        if Path::new(choice).is_file() {
            return Self::from_file(Path::new(choice), config);
        }
        bail!(
            "`data.template` is `{choice}`: it must be `{CHECKPOINT_TEMPLATE}`, {}, or the path of a Jinja file that exists",
            builtin_names()
        )
    }

    fn from_file(path: &Path, config: &TokenizerConfig) -> Result<Self> {
        let source = std::fs::read_to_string(path).with_context(|| format!("cannot read the chat template `{}`", path.display()))?;
        Self::new(&path.display().to_string(), &source, config)
    }

    /// Compiles `source`; `name` is what errors call it.
    pub fn new(name: &str, source: &str, config: &TokenizerConfig) -> Result<Self> {
        let mut environment = Environment::new();
        // Debug information would print the conversation into an error message.
        environment.set_debug(false);
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        globals::install(&mut environment);
        environment
            .add_template_owned("template", globals::replace_generation_tags(source))
            .map_err(|error| anyhow!("the chat template `{name}` is not valid Jinja: {error}"))?;
        let tokens = [("bos_token", &config.bos), ("eos_token", &config.eos), ("pad_token", &config.pad), ("unk_token", &config.unk)];
        // A token that the tokenizer lacks stays undefined, and renders as nothing.
        for (key, token) in tokens.into_iter().filter_map(|(key, token)| Some((key, token.as_deref()?))) {
            environment.add_global(key, token.to_owned());
        }
        Ok(Self { environment, name: name.to_owned(), source: source.to_owned(), thinking: None })
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
        let messages: Vec<Value> = messages.iter().map(|m| context! { role => m.role.name(), content => m.content.as_str() }).collect();
        let template = self.environment.get_template("template").with_context(|| format!("in the chat template `{}`", self.name))?;
        template
            .render(context! { messages, add_generation_prompt, tools => (), documents => (), ..thinking })
            .map_err(|error| anyhow!("the chat template `{}` failed on this conversation: {error}", self.name))
    }
}

fn builtin_names() -> String {
    BUILTIN_TEMPLATES.map(|name| format!("`{name}`")).join(", ")
}
