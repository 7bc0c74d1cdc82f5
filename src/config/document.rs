//! From what was typed to assignments: `section.key`, a value, and the place where it stands. Nothing is judged here but syntax.

use super::keys;
use super::problems::{Place, Problem};
use crate::escape::one_line;
use serde::Deserialize;
use toml::Value;
use toml::de::{DeTable, DeValue, ValueDeserializer};

/// Of what was typed, in a message.
const TYPED_CHARS: usize = 100;
/// Digits of the largest whole number, 2^63 - 1.
const MOST_DIGITS: usize = 19;
const NO_NUMBER: &str = "the number has too many digits; whole numbers end at 9223372036854775807, and larger ones are written as 1e30";

/// One value that somebody set explicitly.
#[derive(Debug, Clone)]
pub(crate) struct Assignment {
    /// `section.key`, or one word where the file sets a value outside a section.
    pub key: String,
    pub value: Value,
    pub place: Place,
}

/// The assignments of a TOML text, in its order.
///
/// # Errors
/// Every syntax error, one a line of the text.
pub(crate) fn read_text(text: &str, origin: &str) -> Result<Vec<Assignment>, Vec<Problem>> {
    let line_ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at).collect();
    let place = |byte: usize| Place::Line { origin: origin.into(), line: line_ends.partition_point(|end| *end < byte) + 1 };
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        let problem = |error: &toml::de::Error| Problem {
            place: place(error.span().map_or(0, |span| span.start)),
            message: format!("not TOML: {}", explain_number(error.message())),
        };
        let mut problems: Vec<Problem> = errors.iter().map(problem).collect();
        problems.dedup_by(|later, earlier| later.place == earlier.place);
        return Err(problems);
    }
    let mut assignments = Vec::new();
    let mut problems = Vec::new();
    let mut note = |key: String, at: usize, value: toml::Spanned<DeValue<'_>>| match Value::deserialize(ValueDeserializer::from(value)) {
        Ok(value) => assignments.push(Assignment { key, value, place: place(at) }),
        Err(error) => problems.push(Problem { place: place(at), message: format!("`{key}`: {}", explain_number(error.message())) }),
    };
    for (section, value) in table.into_inner() {
        let at = section.span().start;
        let span = value.span();
        match value.into_inner() {
            DeValue::Table(keys) => {
                for (key, value) in keys {
                    note(format!("{}.{}", section.get_ref(), key.get_ref()), key.span().start, value);
                }
            }
            value => note(section.get_ref().to_string(), at, toml::Spanned::new(span, value)),
        }
    }
    if problems.is_empty() { Ok(assignments) } else { Err(problems) }
}

fn explain_number(message: &str) -> &str {
    if message.contains("overflow") { NO_NUMBER } else { message }
}

/// `--set section.key=value`: the value is TOML if the key takes it as such, otherwise the bare word is a string.
///
/// # Errors
/// What is missing, where the text has no `=`.
pub(crate) fn read_override(typed: &str, index: usize) -> Result<Assignment, Problem> {
    let place = Place::Argument { index, typed: format!("--set {}", one_line(typed, TYPED_CHARS)) };
    let Some((key, raw)) = typed.split_once('=') else {
        return Err(Problem { place, message: "expected `section.key=value`, for example `--set train.epochs=1`".into() });
    };
    let (key, raw) = (key.trim(), raw.trim());
    let is_long = |text: &str| text.len() > MOST_DIGITS && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
    if is_long(raw.trim_start_matches(['+', '-'])) && keys::mismatch(key, &Value::String(raw.into())).is_some() {
        return Err(Problem { place, message: format!("`{key}`: {NO_NUMBER}") });
    }
    let word = Value::String(raw.into());
    let typed_value = DeValue::parse(raw).ok().and_then(|value| Value::deserialize(ValueDeserializer::from(value)).ok());
    let value = match typed_value {
        // `--set model.revision=12` means the string: the key decides.
        Some(value) if keys::mismatch(key, &value).is_none() || keys::mismatch(key, &word).is_some() => value,
        _ => word,
    };
    Ok(Assignment { key: key.into(), value, place })
}
