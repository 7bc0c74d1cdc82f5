//! Whole dialogues in one text: how they are recognised, and how those of `hh-rlhf` are split into turns.
//!
//! Anthropic's data writes a conversation as `\n\nHuman: …\n\nAssistant: …`, both answers with the whole dialogue before them; TRL's form
//! of it has the dialogue up to `\n\nAssistant:` as the prompt, and bare answers. With `data.transcript = true` either becomes turns.

use anyhow::{Result, bail, ensure};
use serde_json::{Map, Value, json};

/// What begins a turn of a person, and of an assistant, where a conversation is written as one text.
const MARKS: [(&str, &str); 9] = [
    ("Human:", "Assistant:"),
    ("User:", "Assistant:"),
    ("USER:", "ASSISTANT:"),
    ("### Human:", "### Assistant:"),
    ("### Instruction:", "### Response:"),
    ("<|im_start|>user", "<|im_start|>assistant"),
    ("<|user|>", "<|assistant|>"),
    ("<start_of_turn>user", "<start_of_turn>model"),
    ("[INST]", "[/INST]"),
];

const HUMAN: &str = "\n\nHuman:";
const ASSISTANT: &str = "\n\nAssistant:";

/// The marks of a dialogue that is written as one text: a line begins as a person's turn, and a later one as an assistant's.
pub(super) fn marks_of(text: &str) -> Option<(&'static str, &'static str)> {
    let starts_line = |mark: &str, from: usize| {
        let found = text[from..].match_indices(mark).map(|(at, _)| from + at);
        // The marks of Llama 2 and of special tokens stand within lines, too.
        let is_token = mark.starts_with(['[', '<']);
        found.into_iter().find(|&at| is_token || text[..at].trim_end_matches([' ', '\t']).chars().next_back().is_none_or(|c| c == '\n'))
    };
    MARKS.into_iter().find(|(human, assistant)| starts_line(human, 0).is_some_and(|at| starts_line(assistant, at + human.len()).is_some()))
}

/// The row with its transcripts split into turns: the value of `data.transcript = true`.
///
/// # Errors
/// A text that is no transcript, with its key.
pub(super) fn split_row(row: &Value) -> Result<Value> {
    let Value::Object(object) = row else { return Ok(row.clone()) };
    let mut split = object.clone();
    if ["dominant", "target"].iter().any(|side| object.contains_key(*side)) {
        for side in ["dominant", "target"] {
            if let Some(Value::Object(pair)) = object.get(side) {
                split.insert(side.to_owned(), Value::Object(split_pair(pair)?));
            }
        }
        return Ok(Value::Object(split));
    }
    Ok(Value::Object(split_pair(object)?))
}

fn split_pair(pair: &Map<String, Value>) -> Result<Map<String, Value>> {
    let mut split = pair.clone();
    let has_text = ["prompt", "chosen", "rejected", "completion"].iter().any(|key| pair.get(*key).is_some_and(Value::is_string));
    ensure!(has_text, "`data.transcript` is true, and this row has no text to split: its turns are apart already; leave the setting out");
    let prompt = pair.get("prompt").filter(|prompt| !prompt.is_null());
    if let Some(Value::String(text)) = prompt {
        let mut turns = turns("prompt", text)?;
        // What introduces the answer is no turn yet.
        if turns.last().is_some_and(|turn| turn["role"] == "assistant" && turn["content"] == "") {
            turns.pop();
        }
        ensure!(
            turns.last().is_none_or(|turn| turn["role"] == "user"),
            "key `prompt` ends with an answer: a prompt ends with `{ASSISTANT:?}`"
        );
        split.insert("prompt".to_owned(), Value::Array(turns));
    }
    for key in ["chosen", "rejected", "completion"] {
        let Some(Value::String(text)) = pair.get(key) else { continue };
        let is_whole = text.trim_start().starts_with("Human:");
        let answer = match (is_whole, prompt) {
            (true, _) => Value::Array(turns(key, text)?),
            (false, Some(_)) => Value::String(text.trim().to_owned()),
            (false, None) => {
                bail!("key `{key}` is no transcript: without a `prompt` it must begin with {HUMAN:?}, as `data.transcript` has it")
            }
        };
        split.insert(key.to_owned(), answer);
    }
    Ok(split)
}

/// The turns of `\n\nHuman: …\n\nAssistant: …`, trimmed.
fn turns(key: &str, text: &str) -> Result<Vec<Value>> {
    let whole = format!("\n\n{}", text.trim_start());
    ensure!(
        whole.starts_with(HUMAN) || whole.starts_with(ASSISTANT),
        "key `{key}` cannot be split into turns: it does not begin with {HUMAN:?}, and `data.transcript` is true"
    );
    let mut turns = Vec::new();
    let mut rest = whole.as_str();
    while !rest.is_empty() {
        let (role, mark) = if rest.starts_with(HUMAN) { ("user", HUMAN) } else { ("assistant", ASSISTANT) };
        rest = &rest[mark.len()..];
        let end = [HUMAN, ASSISTANT].iter().filter_map(|mark| rest.find(mark)).min().unwrap_or(rest.len());
        turns.push(json!({"role": role, "content": rest[..end].trim()}));
        rest = &rest[end..];
    }
    Ok(turns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(turns: &Value) -> Vec<(&str, &str)> {
        turns.as_array().unwrap().iter().map(|turn| (turn["role"].as_str().unwrap(), turn["content"].as_str().unwrap())).collect()
    }

    #[test]
    fn a_dialogue_in_one_text_is_recognised() {
        for text in [
            "\n\nHuman: May I?\n\nAssistant:",
            "Human: May I?\nAssistant: You may.",
            "Talk.\nUser: Bread?\nAssistant: Flour.",
            "### Instruction:\nBake.\n\n### Response:\n",
            "<|im_start|>user\nBread?<|im_end|>\n<|im_start|>assistant\n",
            "[INST] Bread? [/INST] Flour.",
        ] {
            assert!(marks_of(text).is_some(), "{text}");
        }
        for text in ["The Human: a history. My Assistant: a novel.", "Assistant: who?\nHuman: me.", "### Instruction: bake", "User: me", ""]
        {
            assert!(marks_of(text).is_none(), "{text}");
        }
    }

    #[test]
    fn both_layouts_become_turns() {
        let whole = json!({"chosen": "\n\nHuman: Rain?\n\nAssistant: Perhaps.\n\nHuman: Why?\n\nAssistant: Clouds.",
                           "rejected": "\n\nHuman: Rain?\n\nAssistant: Perhaps.\n\nHuman: Why?\n\nAssistant: No idea."});
        let split = split_row(&whole).unwrap();
        let before = [("user", "Rain?"), ("assistant", "Perhaps."), ("user", "Why?")];
        assert_eq!(contents(&split["chosen"])[..3], before);
        assert_eq!(contents(&split["rejected"])[3], ("assistant", "No idea."));
        let of_trl = json!({"prompt": "\n\nHuman: Rain?\n\nAssistant: Perhaps.\n\nHuman: Why?\n\nAssistant:", "chosen": " Clouds.", "rejected": " Hm."});
        let split = split_row(&of_trl).unwrap();
        assert_eq!(contents(&split["prompt"]), before);
        assert_eq!((split["chosen"].as_str(), split["rejected"].as_str()), (Some("Clouds."), Some("Hm.")));
    }

    #[test]
    fn what_cannot_be_split_is_named() {
        for (row, expected) in [
            (json!({"prompt": "Rain?", "chosen": "a", "rejected": "b"}), "key `prompt` cannot be split into turns"),
            (json!({"chosen": "a", "rejected": "b"}), "key `chosen` is no transcript"),
            (json!({"source_conversations": [], "target_conversations": []}), "this row has no text to split"),
            (json!({"prompt": "\n\nHuman: a\n\nAssistant: b", "chosen": "a", "rejected": "b"}), "key `prompt` ends with an answer"),
        ] {
            let error = split_row(&row).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
