//! The format of the data released with the paper, that of its LLaMA-Factory fork: ShareGPT-like turns, the dominant pair under
//! `source_…`, the target pair under `target_…`.
//!
//! `{"source_conversations": [{"from": "human", "value"}…], "source_chosen": {"from": "gpt", "value"}, "source_rejected", "target_…"}`.
//! The released rows name no language; where `lang` is present it is the target's.

use super::pair::{PreferencePair, PreferenceRow};
use super::rows::Fields;
use anyhow::Result;

/// Whether a row's keys are this format's.
pub(super) fn recognises(row: &Fields) -> bool {
    row.has("source_conversations") || row.has("target_conversations")
}

pub(super) fn row(row: &Fields, index: usize) -> Result<PreferenceRow> {
    let dominant = side(row, "source", String::new())?;
    let target = side(row, "target", row.language("lang")?)?;
    Ok(PreferenceRow { id: row.id(index)?, dominant: Some(dominant), target })
}

fn side(row: &Fields, side: &str, lang: String) -> Result<PreferencePair> {
    let response = |which: &str| Ok::<_, anyhow::Error>(row.object(&format!("{side}_{which}"))?.text("value")?.to_owned());
    let prompt = row.turns(&format!("{side}_conversations"), "from", "value")?;
    Ok(PreferencePair { lang, prompt, chosen: Some(response("chosen")?), rejected: Some(response("rejected")?) })
}
