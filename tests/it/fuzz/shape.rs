//! What an input is made of: a change to a tree of JSON is still JSON, one to the header of a weights file still has the right length in front, and one
//! to a sheet of a workbook still has its checksum. Half of all changes leave the shape; the others change bytes.

use super::mutate;
use super::random::Random;
use serde_json::{Map, Value, json};
use std::io::Write;

/// How a reader's inputs are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Bytes,
    Json,
    /// One JSON value a line.
    JsonLines,
    /// The same, packed.
    Gzip,
    Toml,
    /// Eight bytes of length, a header of JSON, bytes.
    Safetensors,
    /// A zip of small texts, as XLSX is one: stored here as JSON, file by file.
    Zip,
}

impl Shape {
    /// One of `seeds`, changed.
    pub fn input(self, random: &mut Random, seeds: &[Vec<u8>], tokens: &[&str]) -> Vec<u8> {
        let seed = random.pick(seeds).clone();
        let shaped = match random.below(16) {
            // As it is: that it is accepted shows that the others are nearly right.
            0 => Some(seed.clone()),
            1..8 => self.changed(random, &seed, tokens),
            _ => None,
        };
        let input = shaped.unwrap_or_else(|| {
            let mut input = seed;
            mutate::bytes(random, &mut input, tokens, seeds);
            input
        });
        match self {
            Self::Zip => zip(&input),
            Self::Gzip => {
                let mut packed = gzip(&input);
                if random.one_in(3) {
                    mutate::bytes(random, &mut packed, tokens, seeds);
                }
                packed
            }
            _ => input,
        }
    }

    /// The seed with one to three of its values changed, whole in itself; `None` where it has no shape.
    fn changed(self, random: &mut Random, seed: &[u8], tokens: &[&str]) -> Option<Vec<u8>> {
        match self {
            Self::Bytes => None,
            Self::Json | Self::Zip => Some(tree(random, serde_json::from_slice(seed).ok()?, tokens).to_string().into_bytes()),
            Self::JsonLines | Self::Gzip => {
                let mut lines: Vec<String> = String::from_utf8(seed.to_vec()).ok()?.lines().map(str::to_owned).collect();
                let at = random.below(lines.len());
                lines[at] = tree(random, serde_json::from_str(&lines[at]).ok()?, tokens).to_string();
                Some(lines.join("\n").into_bytes())
            }
            Self::Toml => {
                let value: toml::Value = toml::from_str(std::str::from_utf8(seed).ok()?).ok()?;
                let changed = tree(random, serde_json::to_value(value).ok()?, tokens);
                toml::to_string(&changed).ok().map(String::into_bytes)
            }
            Self::Safetensors => {
                let n = usize::try_from(u64::from_le_bytes(*seed.first_chunk()?)).ok()?;
                let header = tree(random, serde_json::from_slice(seed.get(8..8 + n)?).ok()?, tokens).to_string();
                Some([&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &seed[8 + n..]].concat())
            }
        }
    }
}

/// `value` with one to three changes somewhere in it.
fn tree(random: &mut Random, mut value: Value, tokens: &[&str]) -> Value {
    for _ in 0..=random.below(3) {
        let n = count(&value);
        let mut at = random.below(n);
        if let Some(node) = node(&mut value, &mut at) {
            change(random, node, tokens);
        }
    }
    value
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum::<usize>(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

/// The `at`-th node, depth first.
fn node<'v>(value: &'v mut Value, at: &mut usize) -> Option<&'v mut Value> {
    if *at == 0 {
        return Some(value);
    }
    *at -= 1;
    match value {
        Value::Array(list) => list.iter_mut().find_map(|value| node(value, at)),
        Value::Object(map) => map.values_mut().find_map(|value| node(value, at)),
        _ => None,
    }
}

fn change(random: &mut Random, node: &mut Value, tokens: &[&str]) {
    match node {
        Value::Object(map) if random.below(4) < 3 => object(random, map, tokens),
        Value::Array(list) if random.below(4) < 3 => match random.below(5) {
            0 => list.clear(),
            1 if !list.is_empty() => drop(list.remove(random.below(list.len()))),
            2 if !list.is_empty() => {
                let (one, times) = (random.pick(list).clone(), *random.pick(&[1, 3, 200]));
                list.extend(vec![one; times]);
            }
            3 => list.push(value(random, tokens)),
            _ => list.reverse(),
        },
        Value::String(text) if random.below(4) < 3 => *text = mutate::text(random, text, tokens),
        other if random.one_in(6) => {
            let mut deep = other.take();
            for _ in 0..*random.pick(&[1, 2, 20, 120, 140]) {
                deep = if random.one_in(2) { Value::Array(vec![deep]) } else { json!({ "a": deep }) };
            }
            *other = deep;
        }
        other => *other = value(random, tokens),
    }
}

fn object(random: &mut Random, map: &mut Map<String, Value>, tokens: &[&str]) {
    let keys: Vec<String> = map.keys().cloned().collect();
    let any = |random: &mut Random| if keys.is_empty() { String::new() } else { random.pick(&keys).clone() };
    let (one, other) = (any(random), any(random));
    match random.below(6) {
        0 => drop(map.remove(&one)),
        1 => drop(map.insert(mutate::text(random, &one, tokens), value(random, tokens))),
        2 => {
            let moved = map.remove(&one).unwrap_or_default();
            map.insert(mutate::text(random, &one, tokens), moved);
        }
        3 => {
            let copy = map.get(&one).cloned().unwrap_or_default();
            map.insert(other, copy);
        }
        4 if !tokens.is_empty() => drop(map.insert((*random.pick(tokens)).to_owned(), value(random, tokens))),
        _ => drop(map.insert(one, value(random, tokens))),
    }
}

/// Any value: most often a number at an edge, or a text that somebody stumbles over.
fn value(random: &mut Random, tokens: &[&str]) -> Value {
    match random.below(9) {
        0 => Value::Null,
        1 => json!(random.one_in(2)),
        2 => json!([]),
        3 => json!({}),
        4 | 5 => {
            let text = *random.pick(&mutate::NUMBERS);
            serde_json::from_str(text).unwrap_or_else(|_| json!(text))
        }
        6 => json!(mutate::text(random, "word", tokens)),
        7 => json!([1, "a", null, { "a": [] }]),
        _ => json!(random.next() as f64 / 7e3),
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A zip of stored files, made of a JSON object of their texts: what a damaged one makes is no zip, but bytes.
fn zip(files: &[u8]) -> Vec<u8> {
    let Ok(Value::Object(files)) = serde_json::from_slice::<Value>(files) else { return files.to_vec() };
    let (mut bytes, mut directory, n_files) = (Vec::new(), Vec::new(), files.len());
    for (name, content) in files {
        let content = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
        let (start, size) = (bytes.len() as u32, content.len() as u32);
        // Version, flags, method, time, date, checksum, sizes.
        let mut facts = vec![20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0];
        facts.extend_from_slice(&crc32(content.as_bytes()).to_le_bytes());
        facts.extend_from_slice(&size.to_le_bytes().repeat(2));
        facts.extend_from_slice(&(name.len() as u16).to_le_bytes());
        facts.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&[b"PK\x03\x04", &facts[..], name.as_bytes(), content.as_bytes()].concat());
        directory.extend_from_slice(&[b"PK\x01\x02\x14\x00", &facts[..], &[0; 10], &start.to_le_bytes()[..], name.as_bytes()].concat());
    }
    let place = [directory.len() as u32, bytes.len() as u32].map(u32::to_le_bytes).concat();
    let n_files = (n_files as u16).to_le_bytes().repeat(2);
    [&bytes[..], &directory[..], b"PK\x05\x06\0\0\0\0", &n_files[..], &place[..], &[0, 0]].concat()
}

fn crc32(bytes: &[u8]) -> u32 {
    let of_byte = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()));
    !bytes.iter().fold(u32::MAX, of_byte)
}
