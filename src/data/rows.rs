//! A row of JSON taken apart, with errors that name the whole path to the key at fault.

use super::columns::nearest_name;
use super::pair::{Message, PreferencePair, Role};
use super::pieces::BYTE_ORDER_MARK;
use anyhow::{Context, Result, anyhow, bail, ensure};
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
        self.object.get(key).ok_or_else(|| {
            let hint = self.nearly(key).map_or(String::new(), |other| format!("; there is `{other}`: did you mean `{}`?", self.path(key)));
            anyhow!("key `{}` is missing{hint}", self.path(key))
        })
    }

    /// The key that is there and was probably meant to be `key`, with its path.
    pub fn nearly(&self, key: &str) -> Option<String> {
        // What other data sets call a prompt.
        let is_alias = |other: &str| key == "prompt" && ["question", "instruction", "query"].contains(&other);
        let is_meant = |other: &&String| other.as_str() != key && (is_alias(other) || nearest_name(other, std::iter::once(key)).is_some());
        let other = self.object.keys().find(is_meant)?;
        Some(self.path(other))
    }

    /// All of it.
    pub fn values(&self) -> &'a Map<String, Value> {
        self.object
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

    /// Whether the key says anything: a list without elements, or a text without letters, does not.
    pub fn says(&self, key: &str) -> bool {
        self.object.get(key).is_some_and(|value| !is_blank(value))
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

    /// The turns of a prompt behind those of the key `history`, where the row has it.
    pub fn with_history(&self, key: &str, mut prompt: Vec<Message>) -> Result<Vec<Message>> {
        if self.says(key) {
            let earlier = self.history(key)?;
            let behind_system = |turns: &[Message]| turns.iter().take_while(|turn| turn.role == Role::System).count();
            let (at, of_earlier) = (behind_system(&prompt), behind_system(&earlier));
            // A history that the prompt already begins with, behind its system turn or with it, is there once.
            if !prompt.starts_with(&earlier) && !prompt[at..].starts_with(&earlier[of_earlier..]) {
                prompt.splice(at..at, earlier);
            }
        }
        Ok(prompt)
    }

    /// The turns of a prompt behind the system turn of the key `system`, where the row has it.
    ///
    /// # Errors
    /// The prompt begins with another one.
    pub fn with_system(&self, key: &str, mut prompt: Vec<Message>) -> Result<Vec<Message>> {
        if self.says(key) {
            let content = self.text(key)?.to_owned();
            match prompt.first() {
                Some(Message { role: Role::System, content: other }) => ensure!(
                    other.trim() == content.trim(),
                    "key `{}` is another system turn than that which the prompt begins with: keep one of them",
                    self.path(key)
                ),
                _ => prompt.insert(0, Message { role: Role::System, content }),
            }
        }
        Ok(prompt)
    }

    /// Earlier turns: `[["question", "answer"], …]`, or a list of turns.
    fn history(&self, key: &str) -> Result<Vec<Message>> {
        let path = self.path(key);
        let value = self.get(key)?;
        let rounds = value.as_array().with_context(|| {
            format!("key `{path}` must be a list of turns, or of pairs of a question and its answer, but is {}", kind(value))
        })?;
        if rounds.iter().all(Value::is_object) {
            return self.turns(key, "role", "content").or_else(|_| self.turns(key, "from", "value"));
        }
        let mut turns = Vec::with_capacity(2 * rounds.len());
        for (i, round) in rounds.iter().enumerate() {
            let texts: Option<Vec<&str>> = round.as_array().map(|texts| texts.iter().map_while(Value::as_str).collect());
            let Some([question, answer]) = texts.as_deref() else {
                bail!("key `{path}[{i}]` must be a question and its answer, two strings")
            };
            turns.push(Message { role: Role::User, content: (*question).to_owned() });
            turns.push(Message { role: Role::Assistant, content: (*answer).to_owned() });
        }
        Ok(turns)
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
            let call = UNSEEN_OF_TURN.into_iter().find(|key| turn.says(key));
            if let Some(call) = call {
                bail!("key `{}` is not read, and the turn depends on it: mpo trains on text alone", turn.path(call));
            }
            Ok(Message { role, content: turn.text(text_key)?.to_owned() })
        };
        turns.iter().enumerate().map(turn).collect()
    }
}

/// What a turn of other programs may have beside its text, and an answer may depend on or be weighed by.
const UNSEEN_OF_TURN: [&str; 14] = [
    "tool_calls",
    "function_call",
    "tool_call_id",
    "image",
    "images",
    "video",
    "videos",
    "audio",
    "audios",
    "documents",
    "reasoning_content",
    "reasoning",
    "thinking",
    "weight",
];

pub(super) fn role(name: &str) -> Result<Role> {
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
        Value::Object(object) if object.contains_key(NO_TEXT) => "bytes that are no UTF-8 text",
        Value::Object(_) => "an object",
    }
}

/// The key of what stands for bytes. No column has this name.
const NO_TEXT: &str = "\u{0}bytes";

/// Stands for bytes of a Parquet file that are no text: whoever reads them as one is told so.
pub(super) fn no_text(n_bytes: usize) -> Value {
    serde_json::json!({ NO_TEXT: n_bytes })
}

/// Whether a column says nothing in this row: tables have all columns in every row, and an empty list may be written as a text.
pub(super) fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => matches!(text.trim(), "" | "[]" | "{}" | "null" | "None"),
        Value::Array(values) => values.iter().all(is_blank),
        Value::Object(object) => object.values().all(is_blank),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// The response of a pair that holds no text, if any: nothing could be learned from it.
///
/// An empty prompt is left for `mpo check` to report: the released data has one (llama, row 505), and its recipe must run.
pub(super) fn empty_response(pair: &PreferencePair) -> Option<&'static str> {
    pair.responses().find(|(_, text)| text.trim().is_empty()).map(|(name, _)| name)
}

/// The prompt or the response of a pair that begins with a byte order mark, if any.
pub(super) fn marked_text(pair: &PreferencePair) -> Option<&'static str> {
    let is_marked = |text: &str| text.starts_with(BYTE_ORDER_MARK);
    let response = || {
        pair.responses()
            .find(|(_, text)| is_marked(text))
            .map(|(name, _)| if name == "chosen" { "chosen response" } else { "rejected response" })
    };
    pair.prompt.iter().any(|turn| is_marked(&turn.content)).then_some("prompt").or_else(response)
}
