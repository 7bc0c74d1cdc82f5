//! Labelled data, in TRL's layout for KTO: one response a row, and whether it is wanted.
//!
//! `{"prompt": …, "completion": …, "label": true}`, where prompt and completion are texts or lists of turns as in [`super::preference`]. A wanted
//! response becomes a row with a chosen response only, any other one with a rejected response only. `id` and `lang` may be there.

use super::pair::{PreferencePair, PreferenceRow};
use super::preference::{Answer, answer, prompt};
use super::rows::Fields;
use anyhow::Result;

/// Whether a row's keys are this format's.
pub(super) fn recognises(row: &Fields) -> bool {
    row.has("completion") || row.has("label")
}

pub(super) fn row(row: &Fields, index: usize) -> Result<PreferenceRow> {
    let Answer { turns_before, text } = answer(row, "completion")?;
    let prompt = prompt(row, turns_before, "completion")?;
    let (chosen, rejected) = if row.truth("label")? { (Some(text), None) } else { (None, Some(text)) };
    let target = PreferencePair { lang: row.language("lang")?, prompt, chosen, rejected };
    Ok(PreferenceRow { id: row.id(index)?, dominant: None, target })
}
