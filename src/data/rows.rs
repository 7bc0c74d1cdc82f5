//! A row of JSON taken apart, with errors that name the whole path to the key at fault.

use super::pair::{Message, PreferencePair, Role};
use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

/// A JSON object and the key that led to it, so that errors name the whole path (`target.chosen`).
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    path: String,
}

impl<'a> Fields<'a> {
    pub fn of_row(value: &'a Value) -> Result<Self> {
        Self::new(value, String::new())
    }

    fn new(value: &'a Value, path: String) -> Result<Self> {
        match value {
            Value::Object(object) => Ok(Self { object, path }),
            other if path.is_empty() => bail!("a row must be an object, but this is {}", kind(other)),
            other => bail!("key `{path}` must be an object, but is {}", kind(other)),
        }
    }

    pub fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    pub fn get(&self, key: &str) -> Result<&'a Value> {
        self.object.get(key).with_context(|| format!("key `{}` is missing", self.path(key)))
    }

    pub fn object(&self, key: &str) -> Result<Fields<'a>> {
        Fields::new(self.get(key)?, self.path(key))
    }

    pub fn text(&self, key: &str) -> Result<&'a str> {
        let value = self.get(key)?;
        value.as_str().with_context(|| format!("key `{}` must be a string, but is {}", self.path(key), kind(value)))
    }

    /// Whether the key is there with a value; columns of a table are there in every row.
    pub fn has(&self, key: &str) -> bool {
        self.object.get(key).is_some_and(|value| !value.is_null())
    }

    /// Its keys, for the error of a row of no known format.
    pub fn keys(&self) -> Vec<String> {
        self.object.keys().map(|key| format!("`{key}`")).collect()
    }

    pub fn truth(&self, key: &str) -> Result<bool> {
        let value = self.get(key)?;
        value.as_bool().with_context(|| format!("key `{}` must be true or false, but is {}", self.path(key), kind(value)))
    }

    /// A language code in lower case (`zh-cn`), empty where the row gives none: it is detected later.
    pub fn language(&self, key: &str) -> Result<String> {
        match self.object.get(key) {
            None | Some(Value::Null) => Ok(String::new()),
            Some(_) => Ok(self.text(key)?.trim().to_ascii_lowercase()),
        }
    }

    /// The row's own `id`, a string or a whole number, else its index in the file.
    pub fn id(&self, index: usize) -> Result<String> {
        match self.object.get("id") {
            None | Some(Value::Null) => Ok(index.to_string()),
            Some(Value::String(id)) => Ok(id.clone()),
            Some(Value::Number(id)) if id.is_i64() || id.is_u64() => Ok(id.to_string()),
            Some(other) => bail!("key `id` must be a string or a whole number, but is {}", kind(other)),
        }
    }

    /// A text, which is a single user turn, or a list of turns with `role` and `content`.
    pub fn text_or_turns(&self, key: &str) -> Result<Vec<Message>> {
        match self.get(key)? {
            Value::String(text) => Ok(vec![Message { role: Role::User, content: text.clone() }]),
            Value::Array(_) => self.turns(key, "role", "content"),
            other => bail!("key `{}` must be a string or a list of turns, but is {}", self.path(key), kind(other)),
        }
    }

    /// A list of turns, each an object with the given keys for the speaker and the text.
    pub fn turns(&self, key: &str, role_key: &str, text_key: &str) -> Result<Vec<Message>> {
        let value = self.get(key)?;
        let path = self.path(key);
        let turns = value.as_array().with_context(|| format!("key `{path}` must be a list of turns, but is {}", kind(value)))?;
        let turn = |(i, turn)| {
            let turn = Fields::new(turn, format!("{path}[{i}]"))?;
            let role = role(turn.text(role_key)?).with_context(|| format!("key `{}`", turn.path(role_key)))?;
            Ok(Message { role, content: turn.text(text_key)?.to_owned() })
        };
        turns.iter().enumerate().map(turn).collect()
    }
}

fn role(name: &str) -> Result<Role> {
    match name {
        "system" => Ok(Role::System),
        "user" | "human" => Ok(Role::User),
        "assistant" | "gpt" => Ok(Role::Assistant),
        other => bail!("unknown speaker `{other}`: `system`, `user` (`human`) and `assistant` (`gpt`) are known"),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The response of a pair that holds no text, if any: nothing could be learned from it.
///
/// An empty prompt is left for `mpo check` to report: the released data has one (llama, row 505), and its recipe must run.
pub(super) fn empty_response(pair: &PreferencePair) -> Option<&'static str> {
    pair.responses().find(|(_, text)| text.trim().is_empty()).map(|(name, _)| name)
}
