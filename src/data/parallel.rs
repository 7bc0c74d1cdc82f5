//! Our own format, one object a line:
//! `{"id", "dominant": {"lang", "prompt": [{"role", "content"}…], "chosen", "rejected"}, "target": {…same…}}`.
//!
//! A string prompt is a single user turn. `id` and `lang` may be absent; other keys are allowed and not read.

use super::pair::{Message, ParallelPair, PreferencePair, Role};
use super::rows::Fields;
use anyhow::Result;

/// Whether a row's keys are this format's.
pub(super) fn recognises(row: &serde_json::Value) -> bool {
    row.get("dominant").is_some() || row.get("target").is_some()
}

pub(super) fn pair(row: &Fields, index: usize) -> Result<ParallelPair> {
    Ok(ParallelPair { id: row.id(index)?, dominant: side(&row.object("dominant")?)?, target: side(&row.object("target")?)? })
}

fn side(fields: &Fields) -> Result<PreferencePair> {
    let prompt = match fields.get("prompt")?.as_str() {
        Some(text) => vec![Message { role: Role::User, content: text.to_owned() }],
        None => fields.turns("prompt", "role", "content")?,
    };
    Ok(PreferencePair {
        lang: fields.language("lang")?,
        prompt,
        chosen: fields.text("chosen")?.to_owned(),
        rejected: fields.text("rejected")?.to_owned(),
    })
}
