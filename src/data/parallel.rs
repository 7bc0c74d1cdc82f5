//! Our own format, one object a line:
//! `{"id", "dominant": {"lang", "prompt": [{"role", "content"}…], "chosen", "rejected"}, "target": {…same…}}`.
//!
//! A string prompt is a single user turn. `id` and `lang` may be absent. A side may have a `system` turn and a `history` of its own; a
//! `system` of the row is that of the sides without one. [`super::columns`] says what becomes of other keys.

use super::pair::{PreferencePair, PreferenceRow, Role};
use super::rows::Fields;
use anyhow::{Result, ensure};

/// Whether a row's keys are this format's.
pub(super) fn recognises(row: &Fields) -> bool {
    row.has("dominant") || row.has("target")
}

pub(super) fn row(row: &Fields, index: usize) -> Result<PreferenceRow> {
    ensure!(!row.says("history"), "key `history` does not say of which side it is: put it into `dominant` and `target`");
    let (dominant, mut target) = (side(row, &row.object("dominant")?)?, side(row, &row.object("target")?)?);
    if target.lang.is_empty() {
        target.lang = row.language("lang")?;
    }
    Ok(PreferenceRow { id: row.id(index)?, dominant: Some(dominant), target })
}

fn side(row: &Fields, fields: &Fields) -> Result<PreferencePair> {
    let prompt = fields.with_system("system", fields.with_history("history", fields.text_or_turns("prompt")?)?)?;
    let has_own = prompt.first().is_some_and(|turn| turn.role == Role::System);
    Ok(PreferencePair {
        lang: fields.language("lang")?,
        prompt: if has_own { prompt } else { row.with_system("system", prompt)? },
        chosen: Some(fields.text("chosen")?.to_owned()),
        rejected: Some(fields.text("rejected")?.to_owned()),
    })
}
