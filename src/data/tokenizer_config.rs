//! `tokenizer_config.json`: the special tokens by role, and the chat template where it is kept there.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::Path;

/// What `mpo` needs of a checkpoint's tokenizer settings. A token that the checkpoint does not have is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenizerConfig {
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub pad: Option<String>,
    pub unk: Option<String>,
    /// `add_bos_token`: whether the tokenizer is meant to begin a text with `bos`. Where it is absent the post-processor decides.
    pub add_bos: Option<bool>,
    pub chat_template: Option<String>,
}

impl TokenizerConfig {
    /// Reads `tokenizer_config.json` of a checkpoint folder; tokens it does not name are looked up in `special_tokens_map.json`, where
    /// older checkpoints keep them. Both files may be absent.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer_config.json");
        let config = read_json(&path)?;
        let older = read_json(&folder.join("special_tokens_map.json"))?;
        let token = |key: &str| match token(&config, key)? {
            Some(token) => Ok::<_, anyhow::Error>(Some(token)),
            None => self::token(&older, key),
        };
        let parsed = || {
            Ok::<_, anyhow::Error>(Self {
                bos: token("bos_token")?,
                eos: token("eos_token")?,
                pad: token("pad_token")?,
                unk: token("unk_token")?,
                add_bos: config.get("add_bos_token").and_then(Value::as_bool),
                chat_template: chat_template(&config)?,
            })
        };
        parsed().with_context(|| format!("in `{}`", path.display()))
    }
}

fn read_json(path: &Path) -> Result<Value> {
    if !path.exists() {
        return Ok(Value::Null);
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("`{}` is not valid JSON", path.display()))
}

/// A token is a string, or an object with its `content`.
fn token(config: &Value, key: &str) -> Result<Option<String>> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(token)) => Ok(Some(token.clone())),
        Some(Value::Object(token)) => match token.get("content").and_then(Value::as_str) {
            Some(content) => Ok(Some(content.to_owned())),
            None => bail!("`{key}` has no `content`"),
        },
        Some(_) => bail!("`{key}` must be a string or an object with a `content`"),
    }
}

/// The template is a string, or a list of named ones of which `default` is the chat template.
fn chat_template(config: &Value) -> Result<Option<String>> {
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(source)) => Ok(Some(source.clone())),
        Some(Value::Array(named)) => {
            let is_default = |entry: &&Value| entry.get("name").and_then(Value::as_str) == Some("default");
            let source = named.iter().find(is_default).and_then(|entry| entry.get("template")).and_then(Value::as_str);
            let source = source.context("`chat_template` is a list of named templates, but none is called `default`")?;
            Ok(Some(source.to_owned()))
        }
        Some(_) => bail!("`chat_template` must be a string or a list of named templates"),
    }
}
