//! The known keys and their types, read off the structs themselves: serde hands a struct's field names to whoever deserialises it, so
//! that no key name stands in a second place.

use super::RunConfig;
use crate::escape::one_line;
use serde::de::value::{Error, MapDeserializer};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error as _, IntoDeserializer, MapAccess, Visitor};
use std::sync::LazyLock;

/// Longer words are no misspelt keys.
const LONGEST_WORD: usize = 100;
/// Of an unknown key, in a message.
const SHOWN_CHARS: usize = 100;

/// A TOML section and the keys that it may hold.
pub(crate) struct Section {
    pub name: &'static str,
    pub keys: &'static [&'static str],
}

/// All sections, in the order of [`RunConfig`].
pub(crate) static SECTIONS: LazyLock<Vec<Section>> = LazyLock::new(|| {
    let mut sections = Vec::new();
    let probed = RunConfig::deserialize(Probe(&mut sections));
    debug_assert!(probed.is_ok(), "a section is not a struct: {probed:?}");
    sections
});

/// Whether `section.key` exists.
pub(crate) fn is_known(key: &str) -> bool {
    let Some((section, leaf)) = key.split_once('.') else { return false };
    SECTIONS.iter().any(|known| known.name == section && known.keys.contains(&leaf))
}

/// What to say about a key that does not exist, and the key that was probably meant.
pub(crate) fn unknown(key: &str) -> (String, Option<String>) {
    if let Some(Section { name, keys: [first, ..] }) = SECTIONS.iter().find(|known| known.name == key) {
        return (format!("`{name}` is a section: set the keys in it, such as `{name}.{first}`"), None);
    }
    let (section, leaf) = key.split_once('.').unwrap_or(("", key));
    let known_section = SECTIONS.iter().find(|known| known.name == section);
    let in_section = known_section.and_then(|known| nearest(leaf, known.keys.iter().map(|key| key.to_string())));
    let same_name = || most_alike(key, all().filter(|known| known.ends_with(&format!(".{leaf}")))).map(|(_, known)| known);
    let meant = in_section.map(|leaf| format!("{section}.{leaf}")).or_else(same_name);
    // The section's name would make every key of it look alike.
    let meant = meant.or_else(|| if known_section.is_none() { nearest(key, all()) } else { None });
    let key = &one_line(key, SHOWN_CHARS);
    let message = match (&meant, known_section) {
        (Some(meant), _) => format!("unknown key `{key}`; did you mean `{meant}`?"),
        (None, Some(known)) => format!("unknown key `{key}`; `[{section}]` has {}", list(known.keys)),
        (None, None) => {
            format!("unknown key `{key}`; the sections are {}", list(&SECTIONS.iter().map(|known| known.name).collect::<Vec<_>>()))
        }
    };
    (message, meant)
}

/// The candidate most like `word`, if any is alike at all.
pub(crate) fn nearest(word: &str, candidates: impl IntoIterator<Item = String>) -> Option<String> {
    // `warmup` is half of `warmup_steps` and means it; what is less alike is another word.
    most_alike(word, candidates).filter(|(likeness, _)| *likeness > 0.45).map(|(_, candidate)| candidate)
}

fn most_alike(word: &str, candidates: impl IntoIterator<Item = String>) -> Option<(f64, String)> {
    // Nothing is like a word of that length, and comparing takes its square.
    if word.len() > LONGEST_WORD {
        return None;
    }
    let scored = candidates.into_iter().map(|candidate| (strsim::normalized_damerau_levenshtein(word, &candidate), candidate));
    scored.max_by(|a, b| a.0.total_cmp(&b.0))
}

/// Words in backticks, with commas.
pub(crate) fn list(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

/// Why `value` cannot be the value of the known `key`: what it is and what is expected.
pub(crate) fn mismatch(key: &str, value: &toml::Value) -> Option<String> {
    let (section, leaf) = key.split_once('.')?;
    let inner = toml::Table::from_iter([(leaf.to_string(), value.clone())]);
    let table = toml::Table::from_iter([(section.to_string(), toml::Value::Table(inner))]);
    let error = table.try_into::<RunConfig>().err()?;
    Some(explain(key, error.message()))
}

fn all() -> impl Iterator<Item = String> {
    SECTIONS.iter().flat_map(|section| section.keys.iter().map(move |key| format!("{}.{key}", section.name)))
}

/// serde's words for a mismatch, without the names of Rust types.
fn explain(key: &str, message: &str) -> String {
    let Some((found, expected)) = message.split_once(", expected ") else { return format!("`{key}`: {message}") };
    let expected = match expected {
        "f64" => "a number",
        "usize" | "u64" => "a whole number, 0 or more",
        "a boolean" => "`true` or `false`",
        "a sequence" => "a list such as [\"zh\", \"sw\"]",
        "an array of length 2" | "fewer elements in array" => "a list of two numbers such as [0.9, 0.999]",
        "path string" => "a string",
        other => other,
    };
    if let Some(length) = found.strip_prefix("invalid length ") {
        return format!("`{key}` has {length} of its values; expected {expected}");
    }
    let prefixes = ["invalid type: ", "invalid value: ", "unknown variant "];
    let found = prefixes.iter().find_map(|prefix| found.strip_prefix(prefix)).unwrap_or(found);
    format!("`{key}` is {found}; expected {expected}")
}

/// Deserialises the root struct: notes its fields and gives each an empty section.
struct Probe<'a>(&'a mut Vec<Section>);

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("the root is not a struct"))
    }

    fn deserialize_struct<V: Visitor<'de>>(self, _: &str, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(ProbeSections { names: fields.iter(), current: "", found: self.0 })
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct seq tuple
        tuple_struct map enum identifier ignored_any
    }
}

struct ProbeSections<'a> {
    names: std::slice::Iter<'static, &'static str>,
    current: &'static str,
    found: &'a mut Vec<Section>,
}

impl<'de> MapAccess<'de> for ProbeSections<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some(name) = self.names.next() else { return Ok(None) };
        self.current = name;
        seed.deserialize(self.current.into_deserializer()).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        seed.deserialize(ProbeSection { name: self.current, found: self.found })
    }
}

/// Deserialises one section: notes its fields and gives it none, so that all defaults apply.
struct ProbeSection<'a> {
    name: &'static str,
    found: &'a mut Vec<Section>,
}

impl<'de> Deserializer<'de> for ProbeSection<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom(format!("section {} is not a struct", self.name)))
    }

    fn deserialize_struct<V: Visitor<'de>>(self, _: &str, keys: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        self.found.push(Section { name: self.name, keys });
        visitor.visit_map(MapDeserializer::new(std::iter::empty::<(&str, &str)>()))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct seq tuple
        tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_fields_of_the_tree() {
        assert_eq!(SECTIONS.first().map(|section| section.name), Some("model"));
        assert_eq!(SECTIONS.last().map(|section| section.name), Some("output"));
        assert!(is_known("train.max_steps") && is_known("optimizer.betas") && is_known("signs.gradient_ratio"));
        assert!(!is_known("train.steps") && !is_known("train"));
    }

    #[test]
    fn the_nearest_key_is_in_the_same_section_or_has_the_same_name() {
        let meant = |key: &str| unknown(key).1;
        assert_eq!(meant("train.epoch").as_deref(), Some("train.epochs"));
        assert_eq!(meant("train.batchsize").as_deref(), Some("train.batch_size"));
        assert_eq!(meant("train.lr").as_deref(), Some("optimizer.lr"));
        assert_eq!(meant("lr").as_deref(), Some("optimizer.lr"));
        assert_eq!(meant("optimiser.kind").as_deref(), Some("optimizer.kind"));
        assert_eq!(meant("schedule.warmup").as_deref(), Some("schedule.warmup_steps"));
        assert_eq!(meant("optimiser.lr").as_deref(), Some("optimizer.lr"));
        assert_eq!(meant("train.qqqqqq"), None);
        assert_eq!(unknown("hardware.qqqqqq").0, "unknown key `hardware.qqqqqq`; `[hardware]` has `device`, `threads`");
    }

    #[test]
    fn a_mismatch_says_what_is_expected() {
        let said = |key: &str, value: &str| mismatch(key, &toml::from_str::<toml::Table>(&format!("v = {value}")).unwrap()["v"]);
        assert_eq!(said("optimizer.lr", "'high'").as_deref(), Some("`optimizer.lr` is string \"high\"; expected a number"));
        assert_eq!(
            said("train.batch_size", "-1").as_deref(),
            Some("`train.batch_size` is integer `-1`; expected a whole number, 0 or more")
        );
        assert_eq!(said("train.shuffle", "1").as_deref(), Some("`train.shuffle` is integer `1`; expected `true` or `false`"));
        assert_eq!(said("retention.kind", "'all'").as_deref(), Some("`retention.kind` is `all`; expected one of `hidden`, `kl`, `none`"));
        assert_eq!(said("optimizer.betas", "[0.9]").as_deref().map(|said| &said[..38]), Some("`optimizer.betas` has 1 of its values;"));
        assert!(said("optimizer.betas", "[0.9, 0.99, 0.999]").unwrap().contains("expected a list of two numbers"));
        assert_eq!(said("optimizer.lr", "1"), None);
    }
}
