//! Preference data without a parallel pair, in TRL's layouts: `prompt`, `chosen` and `rejected` in one row.
//!
//! ```text
//! {"prompt": "…", "chosen": "…", "rejected": "…"}                                                  texts
//! {"prompt": [{"role", "content"}…], "chosen": [{"role": "assistant", "content"}], "rejected": […]}  conversational
//! {"chosen": [{"role": "user", "content"}…, {"role": "assistant", "content"}], "rejected": […]}       the prompt is what both begin with
//! ```
//!
//! A text prompt is a single user turn: as everywhere in mpo, the model's chat template renders it. TRL hands texts to the model as they
//! are, so whoever wants to compare with it gives both the conversational layout. `id` and `lang` may be there, a `system` turn in front
//! and `history`, the turns before the prompt; [`super::columns`] says what becomes of other keys.

use super::pair::{Message, PreferencePair, PreferenceRow, Role};
use super::rows::Fields;
use super::transcript::marks_of;
use crate::text::comparable;
use anyhow::{Result, bail, ensure};
use serde_json::Value;

/// Whether a row's keys are this format's.
pub(super) fn recognises(row: &Fields) -> bool {
    row.has("chosen") || row.has("rejected")
}

pub(super) fn row(row: &Fields, index: usize) -> Result<PreferenceRow> {
    let (chosen, rejected) = (answer(row, "chosen")?, answer(row, "rejected")?);
    let parting = chosen.turns_before.iter().zip(&rejected.turns_before).take_while(|(a, b)| a == b).count();
    ensure!(
        chosen.turns_before == rejected.turns_before,
        "`chosen` and `rejected` must be one conversation up to their last turn, the response, but they part at turn {parting} \
         (`chosen[{parting}]` and `rejected[{parting}]`)"
    );
    let target = PreferencePair {
        lang: row.language("lang")?,
        prompt: prompt(row, chosen.turns_before, "chosen")?,
        chosen: Some(chosen.text),
        rejected: Some(rejected.text),
    };
    Ok(PreferenceRow { id: row.id(index)?, dominant: None, target })
}

/// A response, and the turns that its value holds before it.
pub(super) struct Answer {
    pub turns_before: Vec<Message>,
    pub text: String,
}

/// A response that is a text, or the last turn of a conversation.
pub(super) fn answer(row: &Fields, key: &str) -> Result<Answer> {
    if let Some(text) = row.get(key)?.as_str() {
        return Ok(Answer { turns_before: Vec::new(), text: text.to_owned() });
    }
    let mut turns = row.text_or_turns(key)?;
    match turns.pop() {
        Some(Message { role: Role::Assistant, content }) => Ok(Answer { turns_before: turns, text: content }),
        Some(turn) => bail!("key `{key}` must end with an assistant turn, the response, but it ends with a {} turn", turn.role.name()),
        None => bail!("key `{key}` has no turns: a response is an assistant turn"),
    }
}

/// The prompt of a row whose responses, such as that of `key`, hold `turns_before` them, with its system turn and its history.
pub(super) fn prompt(row: &Fields, turns_before: Vec<Message>, key: &str) -> Result<Vec<Message>> {
    row.with_system("system", row.with_history("history", own_prompt(row, turns_before, key)?)?)
}

/// Where the responses hold the whole conversation a text prompt beside them is only its first turn again, as TRL has it.
fn own_prompt(row: &Fields, turns_before: Vec<Message>, key: &str) -> Result<Vec<Message>> {
    let given = match row.has("prompt") {
        true => Some(row.get("prompt")?),
        false => None,
    };
    match given {
        None if turns_before.is_empty() && row.nearly("prompt").is_some() => row.get("prompt").map(|_| turns_before),
        None if turns_before.is_empty() && row.get(key)?.as_str().is_some_and(|text| marks_of(text).is_some()) => bail!(
            "key `prompt` is missing, and `{key}` is a whole dialogue: `data.transcript = true` splits those that are written as \
             `Human: … Assistant: …` into turns"
        ),
        None if turns_before.is_empty() => bail!(
            "key `prompt` is missing: without it `{key}` must be a conversation that begins with the prompt, a list of turns such as \
             [{{\"role\": \"user\", …}}, {{\"role\": \"assistant\", …}}]"
        ),
        None => Ok(turns_before),
        Some(Value::String(text)) if !turns_before.is_empty() => {
            let text = comparable(text);
            let is_in = turns_before.iter().any(|turn| comparable(&turn.content).contains(text.as_ref()));
            ensure!(is_in, "key `prompt` is none of the turns that `{key}` holds before the response: which of them is the prompt?");
            Ok(turns_before)
        }
        Some(_) => {
            let given = row.text_or_turns("prompt")?;
            Ok(if turns_before.starts_with(&given) { turns_before } else { [given, turns_before].concat() })
        }
    }
}
