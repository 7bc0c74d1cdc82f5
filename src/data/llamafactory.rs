//! The format of the data released with the paper, that of its LLaMA-Factory fork: ShareGPT-like turns, the dominant pair under
//! `source_…`, the target pair under `target_…`.
//!
//! `{"source_conversations": [{"from": "human", "value"}…], "source_chosen": {"from": "gpt", "value"}, "source_rejected", "target_…"}`.
//! The released rows name no language; where `lang` is present it is the target's. `system` is a system turn of both sides, `source_system`
//! and `target_system` one of their own; `source_history` and `target_history` are the turns before, pairs of a question and its answer.

use super::pair::{PreferencePair, PreferenceRow, Role};
use super::rows::{Fields, role};
use anyhow::{Context, Result, ensure};

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
    let response = |which: &str| {
        let key = format!("{side}_{which}");
        let response = row.object(&key)?;
        if response.has("from") {
            let speaker = role(response.text("from")?).with_context(|| format!("key `{key}.from`"))?;
            ensure!(speaker == Role::Assistant, "key `{key}.from` is `{}`: a response is the assistant's", speaker.name());
        }
        Ok::<_, anyhow::Error>(response.text("value")?.to_owned())
    };
    let turns = row.turns(&format!("{side}_conversations"), "from", "value")?;
    ensure!(
        !row.says("history"),
        "key `history` does not say of which side it is: call it `source_history` or `target_history`, the turns of that side before its prompt"
    );
    let own_system = format!("{side}_system");
    let system = if row.says(&own_system) { &own_system } else { "system" };
    let prompt = row.with_system(system, row.with_history(&format!("{side}_history"), turns)?)?;
    Ok(PreferencePair { lang, prompt, chosen: Some(response("chosen")?), rejected: Some(response("rejected")?) })
}
