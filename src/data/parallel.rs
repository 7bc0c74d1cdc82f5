//! Our own format, one object a line:
//! `{"id", "dominant": {"lang", "prompt": [{"role", "content"}…], "chosen", "rejected"}, "target": {…same…}}`.
//!
//! A string prompt is a single user turn. `id` and `lang` may be absent; other keys are allowed and not read.

use super::pair::{PreferencePair, PreferenceRow};
use super::rows::Fields;
use anyhow::Result;

/// Whether a row's keys are this format's.
pub(super) fn recognises(row: &Fields) -> bool {
    row.has("dominant") || row.has("target")
}

pub(super) fn row(row: &Fields, index: usize) -> Result<PreferenceRow> {
    Ok(PreferenceRow { id: row.id(index)?, dominant: Some(side(&row.object("dominant")?)?), target: side(&row.object("target")?)? })
}

fn side(fields: &Fields) -> Result<PreferencePair> {
    Ok(PreferencePair {
        lang: fields.language("lang")?,
        prompt: fields.text_or_turns("prompt")?,
        chosen: Some(fields.text("chosen")?.to_owned()),
        rejected: Some(fields.text("rejected")?.to_owned()),
    })
}
