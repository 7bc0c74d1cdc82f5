//! `tokenizer_config.json`: the special tokens by role, tokens that `tokenizer.json` does not have, and the chat template where it is kept there.

use crate::files::read_json;
use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use tokenizers::{AddedToken, Tokenizer};

/// What `mpo` needs of a checkpoint's tokenizer settings. A token that the checkpoint does not have is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenizerConfig {
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub pad: Option<String>,
    pub unk: Option<String>,
    /// `add_bos_token`: whether the tokenizer is meant to begin a text with `bos`. Where it is absent the post-processor decides.
    pub add_bos: Option<bool>,
    /// The one called `default`, where there are several.
    pub chat_template: Option<String>,
    /// The others, by name.
    pub named_templates: BTreeMap<String, String>,
    /// `added_tokens_decoder`, by the numbers that it gives.
    pub added: BTreeMap<u32, Added>,
}

/// A token as `added_tokens_decoder` describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    pub content: String,
    pub special: bool,
    /// Whether it takes the white space to its left and to its right.
    pub strips: [bool; 2],
    pub single_word: bool,
    pub normalized: bool,
}

impl TokenizerConfig {
    /// Reads `tokenizer_config.json` of a checkpoint folder; tokens it does not name are looked up in `special_tokens_map.json`, where
    /// older checkpoints keep them. Both files may be absent.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer_config.json");
        let read = |path: &Path| if path.exists() { read_json(path) } else { Ok(Value::Null) };
        let config = read(&path)?;
        let older = read(&folder.join("special_tokens_map.json"))?;
        let token = |key: &str| match token(&config, key)? {
            Some(token) => Ok::<_, anyhow::Error>(Some(token)),
            None => self::token(&older, key),
        };
        let parsed = || {
            let (chat_template, named_templates) = chat_templates(&config)?;
            Ok::<_, anyhow::Error>(Self {
                bos: token("bos_token")?,
                eos: token("eos_token")?,
                pad: token("pad_token")?,
                unk: token("unk_token")?,
                add_bos: config.get("add_bos_token").and_then(Value::as_bool),
                chat_template,
                named_templates,
                added: added_tokens(&config)?,
            })
        };
        parsed().with_context(|| format!("in `{}`", path.display()))
    }

    /// Adds the tokens that only this file has to the tokenizer, behind those that it has, as the loader of transformers does: first those of
    /// `added_tokens_decoder` in their order, then special tokens by role. A pad token that the tokenizer lacks is left out, because nothing here
    /// pads: a text that spells it stays text, and has no number that the model never learned.
    pub fn complete(&self, tokenizer: &mut Tokenizer) -> Result<()> {
        let declared = self.added.values().filter(|token| self.pad.as_ref() != Some(&token.content));
        let mut missing: Vec<AddedToken> = declared
            .map(|token| {
                AddedToken::from(token.content.clone(), token.special)
                    .lstrip(token.strips[0])
                    .rstrip(token.strips[1])
                    .single_word(token.single_word)
                    .normalized(token.normalized)
            })
            .collect();
        let roles = [&self.bos, &self.eos, &self.unk].into_iter().flatten();
        missing.extend(roles.map(|token| AddedToken::from(token.clone(), true)));
        for token in missing {
            if tokenizer.token_to_id(&token.content).is_some() {
                continue;
            }
            let tokens = [token];
            let added = if tokens[0].special { tokenizer.add_special_tokens(tokens) } else { tokenizer.add_tokens(tokens) };
            added.map_err(|error| anyhow!("cannot add a token of `tokenizer_config.json` to the tokenizer: {error}"))?;
        }
        Ok(())
    }
}

/// What `added_tokens_decoder` says.
fn added_tokens(config: &Value) -> Result<BTreeMap<u32, Added>> {
    let tokens = match config.get("added_tokens_decoder") {
        None | Some(Value::Null) => return Ok(BTreeMap::new()),
        Some(tokens) => tokens.as_object().context("`added_tokens_decoder` must be an object")?,
    };
    let token = |(id, token): (&String, &Value)| {
        let number: u32 = id.parse().with_context(|| format!("`added_tokens_decoder` has `{id}`, which is not a token's number"))?;
        let content = token.get("content").and_then(Value::as_str).filter(|content| !content.is_empty());
        let content = content.with_context(|| format!("token {id} of `added_tokens_decoder` has no `content`"))?.to_owned();
        let flag = |key: &str, default: bool| match token.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_bool().with_context(|| format!("`{key}` of token {id} should be true or false, is {value}")),
        };
        let special = flag("special", false)?;
        let strips = [flag("lstrip", false)?, flag("rstrip", false)?];
        let (single_word, normalized) = (flag("single_word", false)?, flag("normalized", !special)?);
        Ok((number, Added { content, special, strips, single_word, normalized }))
    };
    tokens.iter().map(token).collect()
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

/// The template is a string, or a list of named ones of which `default` is the chat template; and the others.
fn chat_templates(config: &Value) -> Result<(Option<String>, BTreeMap<String, String>)> {
    let entries: Vec<(String, &Value)> = match config.get("chat_template") {
        None | Some(Value::Null) => return Ok((None, BTreeMap::new())),
        Some(Value::String(source)) => return Ok((Some(source.clone()), BTreeMap::new())),
        Some(Value::Array(named)) => {
            let name = |entry: &Value| entry.get("name").and_then(Value::as_str).map(str::to_owned);
            let entry = |entry| {
                let name = name(entry).context("`chat_template` is a list of named templates, but one of them has no `name`")?;
                Ok((name, entry.get("template").unwrap_or(&Value::Null)))
            };
            named.iter().map(entry).collect::<Result<_>>()?
        }
        Some(Value::Object(named)) => named.iter().map(|(name, source)| (name.clone(), source)).collect(),
        Some(_) => bail!("`chat_template` must be a string or a list of named templates"),
    };
    let mut named = BTreeMap::new();
    for (name, source) in entries {
        let source = source.as_str().with_context(|| format!("`chat_template` has `{name}`, whose template is no string"))?;
        if named.insert(name.clone(), source.to_owned()).is_some() {
            bail!("`chat_template` has `{name}` twice");
        }
    }
    Ok((named.remove("default"), named))
}
