//! What a row says beyond the keys of its format: columns that other programs read, names that are nearly right, and the rest.
//!
//! A `system` column is a turn in front of the prompt, and `history` the turns before it: `rows` reads both. What would change the answer
//! and cannot be given to the model (tools, images) spoils its row. What may be part of the prompt (`context`, `messages`) is reported
//! where its text is not in the row anyway, and so are weights of rows. All other columns are named once, by `mpo check`.

use super::pair::PreferenceRow;
use super::rows::{Fields, is_blank};
use crate::config::DataFormat;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The keys of a side of `parallel`.
const READ_OF_SIDE: [&str; 6] = ["lang", "prompt", "chosen", "rejected", "system", "history"];

/// The keys of a row, by `data.format`.
const READ: [(DataFormat, &[&str]); 4] = [
    (DataFormat::Parallel, &["id", "lang", "dominant", "target", "system"]),
    (
        DataFormat::Llamafactory,
        &[
            "id",
            "lang",
            "system",
            "source_conversations",
            "source_chosen",
            "source_rejected",
            "source_system",
            "source_history",
            "target_conversations",
            "target_chosen",
            "target_rejected",
            "target_system",
            "target_history",
        ],
    ),
    (DataFormat::Preference, &["id", "lang", "prompt", "chosen", "rejected", "system", "history"]),
    (DataFormat::Label, &["id", "lang", "prompt", "completion", "label", "system", "history"]),
];

/// What the model would have to see, and cannot.
const UNSEEN: [&str; 11] =
    ["tools", "functions", "function_call", "tool_calls", "image", "images", "video", "videos", "audio", "audios", "documents"];

/// What other programs put into the prompt.
const IN_PROMPT: [&str; 12] = [
    "messages",
    "conversation",
    "conversations",
    "instruction",
    "input",
    "context",
    "question",
    "query",
    "system_prompt",
    "system_message",
    "persona",
    "passage",
];

/// What other programs weigh a row by.
const WEIGHTS: [&str; 5] = ["weight", "weights", "sample_weight", "margin", "loss_mask"];

/// What is known of a column that is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unread {
    /// Part of the prompt to other programs, and its text is not in the row.
    InPrompt,
    /// How much the row counts, to other programs.
    Weight,
    /// Nearly the name of an optional key.
    NearlyNamed(&'static str),
    /// Anything else.
    Other,
}

/// A column that is not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadColumn {
    /// `target.context`.
    pub name: String,
    pub what: Unread,
    /// Rows that have it with a value, and the first of them.
    pub n_rows: usize,
    pub first_row: String,
}

/// The columns of some rows that are not read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Columns(BTreeMap<(Unread, String), (usize, String)>);

impl Columns {
    pub(super) fn add(&mut self, found: Vec<(Unread, String)>, row: &str) {
        for column in found {
            self.0.entry(column).or_insert_with(|| (0, row.to_owned())).0 += 1;
        }
    }

    /// Those that matter first, by name.
    pub fn unread(&self) -> Vec<UnreadColumn> {
        let column = |((what, name), (n_rows, first_row)): (&(Unread, String), &(usize, String))| UnreadColumn {
            name: name.clone(),
            what: *what,
            n_rows: *n_rows,
            first_row: first_row.clone(),
        };
        self.0.iter().map(column).collect()
    }
}

/// What of a row is not read, its sides included. An error message where that spoils the row.
pub(super) fn unread(format: DataFormat, fields: &Fields, row: &PreferenceRow) -> Result<Vec<(Unread, String)>, String> {
    let mut found = Vec::new();
    let read = READ.iter().find(|(of, _)| *of == format).map_or(&[][..], |(_, read)| *read);
    of_object(read, fields.values(), "", row, &mut found)?;
    if format == DataFormat::Parallel {
        for side in ["dominant", "target"] {
            if let Some(object) = fields.values().get(side).and_then(Value::as_object) {
                of_object(&READ_OF_SIDE, object, &format!("{side}."), row, &mut found)?;
            }
        }
    }
    Ok(found)
}

fn of_object(
    read: &[&'static str],
    object: &Map<String, Value>,
    path: &str,
    row: &PreferenceRow,
    found: &mut Vec<(Unread, String)>,
) -> Result<(), String> {
    for (key, value) in object.iter().filter(|(key, _)| !read.contains(&key.as_str())) {
        if is_blank(value) {
            continue;
        }
        let plain = key.to_lowercase();
        if UNSEEN.contains(&plain.as_str()) {
            return Err(format!(
                "key `{path}{key}` is not read, and the answers depend on it: mpo trains on text alone. Leave these rows out, or write what it says \
                 into the prompt and remove the key"
            ));
        }
        let what = if IN_PROMPT.contains(&plain.as_str()) && !is_in(value, row) {
            Unread::InPrompt
        } else if WEIGHTS.contains(&plain.as_str()) {
            Unread::Weight
        } else {
            let absent = read.iter().copied().filter(|known| !object.contains_key(*known));
            nearest_name(key, absent).map_or(Unread::Other, Unread::NearlyNamed)
        };
        found.push((what, format!("{path}{key}")));
    }
    Ok(())
}

/// Whether all that a value says stands in the row's own texts: a column that repeats them.
fn is_in(value: &Value, row: &PreferenceRow) -> bool {
    match value {
        Value::String(text) => {
            let text = text.trim();
            row.pairs().any(|pair| {
                let prompt = pair.prompt.iter().map(|turn| turn.content.as_str());
                prompt.chain(pair.responses().map(|(_, text)| text)).any(|own| own.contains(text))
            })
        }
        Value::Array(values) => values.iter().all(|value| is_in(value, row)),
        // The speaker of a turn is no text.
        Value::Object(object) => {
            object.iter().filter(|(key, _)| !["role", "from"].contains(&key.as_str())).all(|(_, value)| is_in(value, row))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => true,
    }
}

/// The known name that `name` was probably meant to be: the same but for its case, a mark in front or blanks; or one letter away, two in a
/// long one.
pub(super) fn nearest_name<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |name: &str| name.trim_matches(|c: char| c == '\u{feff}' || c.is_whitespace()).to_lowercase();
    let name = plain(name);
    // Most columns are far from any name, and a distance takes time.
    let may_be = |known: &&str| name.chars().count().abs_diff(known.len()) <= 2 || *known == "lang" && name == "language";
    let alike = |known: &&str| match strsim::damerau_levenshtein(&name, known) {
        0 => true,
        1 => known.len() >= 4,
        2 => known.len() >= 8,
        _ => *known == "lang" && name == "language",
    };
    known.filter(may_be).filter(alike).min_by_key(|known| strsim::damerau_levenshtein(&name, known))
}

/// For the error of a row of no known format: which of its keys is nearly one.
pub(super) fn nearest_keys(object: &Map<String, Value>) -> String {
    let known =
        ["dominant", "target", "source_conversations", "target_conversations", "prompt", "chosen", "rejected", "completion", "label"];
    let meant = |key: &String| {
        let known = known.into_iter().filter(|known| !object.contains_key(*known));
        nearest_name(key, known).map(|meant| format!("`{meant}` by `{key}`"))
    };
    let meant: Vec<String> = object.keys().filter_map(meant).collect();
    if meant.is_empty() { String::new() } else { format!("; did you mean {}?", meant.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_nearly_right_is_known() {
        let known = ["prompt", "chosen", "rejected", "lang", "id", "history"];
        let nearest = |name: &str| nearest_name(name, known.into_iter());
        for (name, meant) in [
            ("promt", Some("prompt")),
            ("Prompt", Some("prompt")),
            ("\u{feff}prompt", Some("prompt")),
            ("choosen", Some("chosen")),
            ("reject", Some("rejected")),
            ("language", Some("lang")),
            ("ID", Some("id")),
            ("ids", None),
            ("story", None),
            ("prompt_id", None),
            ("score", None),
        ] {
            assert_eq!(nearest(name), meant, "{name}");
        }
    }
}
