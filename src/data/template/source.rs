//! Where a checkpoint keeps its chat template, and what of a source is refused before it is parsed.

use crate::data::tokenizer_config::TokenizerConfig;
use crate::files::read_json;
use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The largest templates in use have some 40 KB.
const MAX_BYTES: usize = 256 << 10;
/// Words and signs within one tag. The parser goes one call deeper for each of a chain, and folds constants in quadratic time.
const MAX_TAG_TOKENS: usize = 2_000;
/// Squares of those, summed over all tags: the parser's time. A long template of 1,000 tags has some 0.4 million.
const MAX_WORK: usize = 8_000_000;

/// The template of the checkpoint in `folder` and the file that has it: `chat_template.jinja`, `tokenizer_config.json`, a named
/// `default`, or the `chat_template.json` of older processors, which tokenizers of transformers do not read. The first of them wins.
pub(super) fn of_checkpoint(folder: &Path, config: &TokenizerConfig) -> Result<Option<(PathBuf, String)>> {
    let file = folder.join("chat_template.jinja");
    if file.exists() {
        return Ok(Some((file.clone(), read(&file)?)));
    }
    let file = folder.join("additional_chat_templates/default.jinja");
    if config.chat_template.is_none() && file.exists() {
        return Ok(Some((file.clone(), read(&file)?)));
    }
    let file = folder.join("chat_template.json");
    if config.chat_template.is_none() && file.exists() {
        let value = read_json(&file)?;
        let source = value.get("chat_template").and_then(|source| source.as_str());
        let source = source.with_context(|| format!("`{}` has no string `chat_template`", file.display()))?;
        return Ok(Some((file, source.to_owned())));
    }
    Ok(config.chat_template.clone().map(|source| (folder.join("tokenizer_config.json"), source)))
}

/// What an error adds where a checkpoint has named templates only.
pub(super) fn others(folder: &Path, config: &TokenizerConfig) -> String {
    let dir = folder.join("additional_chat_templates");
    let entries = std::fs::read_dir(&dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<String> = entries
        .filter(|path| path.extension().is_some_and(|extension| extension == "jinja"))
        .map(|path| format!("`{}`", path.display()))
        .chain(config.named_templates.keys().map(|name| format!("`{name}` in tokenizer_config.json")))
        .collect();
    files.sort();
    if files.is_empty() { String::new() } else { format!("; of its named templates none is called `default`: {}", files.join(", ")) }
}

pub(super) fn read(path: &Path) -> Result<String> {
    let context = || format!("cannot read the chat template `{}`", path.display());
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)).with_context(context)?;
    // Cut in the midst of a character, it is too long all the same.
    ensure!(bytes.len() <= MAX_BYTES, "the chat template `{}` {}", path.display(), too_long());
    String::from_utf8(bytes).with_context(context)
}

fn too_long() -> String {
    format!("is longer than {} KiB, which no model's is", MAX_BYTES >> 10)
}

/// Refuses what the parser should not see.
pub(super) fn check(source: &str) -> Result<()> {
    ensure!(source.len() <= MAX_BYTES, "it {}", too_long());
    let (mut rest, mut work) = (source, 0);
    while let Some(at) = rest.find('{') {
        rest = &rest[at + 1..];
        let Some(kind) = rest.chars().next() else { break };
        match kind {
            '#' => rest = rest.split_once("#}").map_or("", |(_, after)| after),
            '%' if raw_tag(&rest[1..], "raw").is_some() => {
                let after = raw_tag(&rest[1..], "raw").unwrap_or("");
                rest = after.match_indices("{%").find_map(|(at, _)| raw_tag(&after[at + 2..], "endraw")).unwrap_or("");
            }
            '{' | '%' => {
                let (after, n_tokens) = after_tag(&rest[1..])?;
                (rest, work) = (after, work + n_tokens * n_tokens);
                ensure!(work <= MAX_WORK, "its tags have far more words and signs than a model's have");
            }
            _ => {}
        }
    }
    Ok(())
}

/// What follows `{% name %}`, whose `{%` has been read.
fn raw_tag<'a>(tag: &'a str, name: &str) -> Option<&'a str> {
    let sign = ['-', '+'];
    let rest = tag.strip_prefix(sign).unwrap_or(tag).trim_ascii_start().strip_prefix(name)?.trim_ascii_start();
    rest.strip_prefix(sign).unwrap_or(rest).strip_prefix("%}")
}

/// What follows the tag that begins with `tag`, and its words and signs.
fn after_tag(tag: &str) -> Result<(&str, usize)> {
    let bytes = tag.as_bytes();
    let (mut at, mut n_tokens, mut in_word, mut depth) = (0, 0, false, 0usize);
    while at < bytes.len() {
        match bytes[at] {
            quote @ (b'"' | b'\'') => {
                at += 1;
                while at < bytes.len() && bytes[at] != quote {
                    at += 1 + usize::from(bytes[at] == b'\\');
                }
                (n_tokens, in_word) = (n_tokens + 1, false);
            }
            b'%' if bytes.get(at + 1) == Some(&b'}') => break,
            b'}' if depth == 0 && bytes.get(at + 1) == Some(&b'}') => break,
            byte if byte.is_ascii_whitespace() => in_word = false,
            byte if byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 128 => {
                n_tokens += usize::from(!in_word);
                in_word = true;
            }
            byte => {
                depth = match byte {
                    b'{' => depth + 1,
                    b'}' => depth.saturating_sub(1),
                    _ => depth,
                };
                (n_tokens, in_word) = (n_tokens + 1, false);
            }
        }
        if n_tokens > MAX_TAG_TOKENS {
            bail!("one of its tags has more than {MAX_TAG_TOKENS} words and signs, which no model's has");
        }
        at += 1;
    }
    Ok((tag.get(at.saturating_add(2)..).unwrap_or(""), n_tokens))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_comments_may_be_as_long_as_they_like_and_tags_may_not() {
        let words = "not ".repeat(MAX_TAG_TOKENS + 1);
        for fine in [words.clone(), format!("{{# {words} #}}"), format!("{{{{ '{words}' }}}}"), "{{ a }} b ".repeat(3_000), "{".repeat(90)]
        {
            check(&fine).unwrap();
        }
        for long in [format!("{{{{ {words}x }}}}"), format!("{{%if {words}x %}}"), format!("{{# a #}}{{{{- {}x }}}}", "-".repeat(9_000))] {
            assert!(check(&long).unwrap_err().to_string().contains("2000 words and signs"));
        }
        check(&format!("{{{{ {{'a': {{'b': 1}}}} }}}} {words}")).unwrap();
        check(&format!("{{% raw %}}{{{{ {words} }}}}{{%- endraw -%}} {{{{ a }}}}")).unwrap();
        let hidden = format!("{{% raw %}}{{#{{% endraw %}}{{{{ {}x }}}}", "-".repeat(9_000));
        assert!(check(&hidden).unwrap_err().to_string().contains("2000 words and signs"), "raw text hides no tag behind it");
        let many = format!("{{{{ {}x }}}}", "not ".repeat(1_900)).repeat(30);
        assert!(check(&many).unwrap_err().to_string().contains("far more words"));
        assert!(check(&"a".repeat(MAX_BYTES + 1)).unwrap_err().to_string().contains("256 KiB"));
    }
}
