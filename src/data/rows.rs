//! The rows of a JSON file, whichever way they are laid out: one array, or one object a line (JSONL).
//!
//! Each row keeps the line it starts on, so that every later complaint can say `file:line`. A line of JSONL that is not JSON spoils only
//! itself; in an array nothing after the fault can be trusted, so reading stops there.

use super::pair::{Message, PreferencePair, Role};
use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, Value};
use std::path::Path;

/// One row as it stands in the file.
pub(super) struct RawRow {
    /// Line of the file on which the row starts, from 1.
    pub line: usize,
    /// What is wrong with its JSON, and where in the file, if it could not be parsed.
    pub value: Result<Value, String>,
}

/// Reads all rows of `path`. An unreadable file or one without rows is an error; a spoilt row is not.
pub(super) fn read(path: &Path) -> Result<Vec<RawRow>> {
    let name = path.display();
    let bytes = std::fs::read(path).with_context(|| format!("cannot read the data file `{name}`"))?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        anyhow!("{name}:{}: the file is not UTF-8 text", 1 + count_lines(before))
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let rows = if text.trim_start().starts_with('[') { read_array(text) } else { read_lines(text) };
    if rows.is_empty() {
        bail!("`{name}` holds no rows: expected a JSON array of rows, or one JSON object a line");
    }
    Ok(rows)
}

fn read_lines(text: &str) -> Vec<RawRow> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(i, line)| RawRow { line: i + 1, value: serde_json::from_str(line).map_err(|error| fault(&error, i + 1, 0)) }).collect()
}

/// Walks over the array's elements one by one: `serde_json` would otherwise lose where each of them starts.
fn read_array(text: &str) -> Vec<RawRow> {
    let mut rows = Vec::new();
    let mut position = text.find('[').map_or(0, |i| i + 1);
    let mut line = 1 + count_lines(&text.as_bytes()[..position]);
    loop {
        let skipped = text[position..].find(|c: char| !c.is_whitespace() && c != ',').unwrap_or(text.len() - position);
        line += count_lines(&text.as_bytes()[position..position + skipped]);
        position += skipped;
        if text[position..].starts_with(']') {
            let behind = text[position + 1..].trim_start();
            if !behind.is_empty() {
                let line = 1 + count_lines(&text.as_bytes()[..text.len() - behind.len()]);
                rows.push(RawRow { line, value: Err("the array of rows ends before this line, but the file goes on".into()) });
            }
            return rows;
        }
        let mut values = serde_json::Deserializer::from_str(&text[position..]).into_iter::<Value>();
        // The end of the text before `]` is not the end of the array, but a file that was cut short.
        let value = values.next().unwrap_or_else(|| serde_json::from_str(""));
        let length = values.byte_offset();
        let spoilt = value.is_err();
        let column = position - text[..position].rfind('\n').map_or(0, |newline| newline + 1);
        rows.push(RawRow { line, value: value.map_err(|error| fault(&error, line, column)) });
        if spoilt {
            return rows;
        }
        line += count_lines(&text.as_bytes()[position..position + length]);
        position += length;
    }
}

/// `serde_json` counts from where the row starts: `line`, after `column` bytes.
fn fault(error: &serde_json::Error, line: usize, column: usize) -> String {
    let text = error.to_string();
    let message = text.split_once(" at line ").map_or(text.as_str(), |(message, _)| message);
    let column = if error.line() <= 1 { column } else { 0 } + error.column();
    format!("{message} (line {}, column {column})", line + error.line().saturating_sub(1))
}

fn count_lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte == b'\n').count()
}

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
    match () {
        () if pair.chosen.trim().is_empty() => Some("chosen"),
        () if pair.rejected.trim().is_empty() => Some("rejected"),
        () => None,
    }
}
