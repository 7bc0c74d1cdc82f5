//! The format of the data released with the paper, that of its LLaMA-Factory fork: ShareGPT-like turns, the dominant pair under
//! `source_…`, the target pair under `target_…`.
//!
//! `{"source_conversations": [{"from": "human", "value"}…], "source_chosen": {"from": "gpt", "value"}, "source_rejected", "target_…"}`.
//! The released rows name no language; where `lang` is present it is the target's.

use super::pair::{ParallelPair, PreferencePair};
use super::rows::Fields;
use anyhow::Result;

/// Whether a row's keys are this format's.
pub(super) fn recognises(row: &serde_json::Value) -> bool {
    row.get("source_conversations").is_some() || row.get("target_conversations").is_some()
}

pub(super) fn pair(row: &Fields, index: usize) -> Result<ParallelPair> {
    let dominant = side(row, "source", String::new())?;
    let target = side(row, "target", row.language("lang")?)?;
    Ok(ParallelPair { id: row.id(index)?, dominant, target })
}

fn side(row: &Fields, side: &str, lang: String) -> Result<PreferencePair> {
    let response = |which: &str| Ok::<_, anyhow::Error>(row.object(&format!("{side}_{which}"))?.text("value")?.to_owned());
    let prompt = row.turns(&format!("{side}_conversations"), "from", "value")?;
    Ok(PreferencePair { lang, prompt, chosen: response("chosen")?, rejected: response("rejected")? })
}
