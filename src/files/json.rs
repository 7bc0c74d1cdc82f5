//! JSON that others wrote: a key that stands twice, nesting without end and a number that is none are errors, and each names its file.

use anyhow::{Context, Result, ensure};
use serde::de::{DeserializeOwned, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Number, Value};
use std::fmt;
use std::path::Path;

/// Reads the file `path`.
///
/// # Errors
/// Names the file: it cannot be read, or is not JSON in which every key stands once.
pub fn read_json(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    parse_json(&bytes).with_context(|| format!("`{}` is not valid JSON", path.display()))
}

/// Reads the file `path` as a `T`.
///
/// # Errors
/// As [`read_json`], and where it is no `T`.
pub fn read_json_as<T: DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_value(read_json(path)?).with_context(|| format!("`{}` is damaged, or another program's", path.display()))
}

/// Parses JSON in which every key stands once.
pub fn parse_json(bytes: &[u8]) -> Result<Value> {
    ensure!(!bytes.starts_with("\u{feff}".as_bytes()), "it begins with a byte order mark, which JSON has not: save it as plain UTF-8");
    Ok(serde_json::from_slice::<Once>(bytes)?.0)
}

/// A value whose objects have every key once. JSON leaves open which of two counts, and its readers differ.
struct Once(Value);

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OnceVisitor).map(Once)
    }
}

struct OnceVisitor;

impl<'de> Visitor<'de> for OnceVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number is not finite"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Once(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((key, Once(value))) = entries.next_entry::<String, Once>()? {
            if map.contains_key(&key) {
                return Err(A::Error::custom(format!("the key `{key}` stands twice")));
            }
            map.insert(key, value);
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_serde_json() {
        let text = r#"{"z": [1, -2, 2.5, 1e300, true, null], "a": {"é": "\u00e9\n"}, "e": {}, "big": 18446744073709551615}"#;
        let value = parse_json(text.as_bytes()).unwrap();
        assert_eq!(value.to_string(), serde_json::from_str::<Value>(text).unwrap().to_string());
    }

    #[test]
    fn what_has_two_readings_is_an_error() {
        let error = |text: &str| format!("{:#}", parse_json(text.as_bytes()).unwrap_err());
        assert!(error(r#"{"a": {"b": 1, "b": 2}}"#).contains("`b` stands twice at line 1"), "{}", error(r#"{"a": {"b": 1, "b": 2}}"#));
        assert!(error("\u{feff}{}").contains("byte order mark"));
        assert!(error(&"[".repeat(1_000_000)).contains("recursion limit"));
        assert!(error("1e999").contains("out of range"));
        assert!(error(r#"{"a": NaN}"#).contains("line 1"));
    }
}
