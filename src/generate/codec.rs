//! What lies between a checkpoint's tokens and text: tokenizer, chat template, and the tokens that end a text.

use super::request::Prompt;
use super::thought;
use crate::config::DataConfig;
use crate::data::encode::Encoder;
use crate::data::pair::{Message, Role};
use crate::data::template::Thinking;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tokenizers::Tokenizer;

/// Tokenizer, template and stop tokens of one checkpoint.
pub struct Codec {
    encoder: Encoder,
    stop_tokens: BTreeSet<u32>,
    /// Special tokens that begin and end thoughts.
    marks: BTreeMap<u32, String>,
}

/// Tokens at the end of a prompt within which it may leave a thought open.
const MARK_TOKENS: usize = 16;

impl Codec {
    /// Those of the model folder `folder`; of `data` the template counts.
    ///
    /// # Errors
    /// Files that are missing or spoilt, a template that is not there.
    pub fn load(folder: &Path, data: &DataConfig) -> Result<Self> {
        Self::new(folder, Encoder::new(folder, data)?)
    }

    /// The same with an encoder that is there already.
    pub fn new(folder: &Path, encoder: Encoder) -> Result<Self> {
        // Either file may lack it: `generation_config.json` decides in transformers, where it exists.
        let mut stop_tokens = match eos_tokens(&folder.join("generation_config.json"))? {
            tokens if tokens.is_empty() => eos_tokens(&folder.join("config.json"))?,
            tokens => tokens,
        };
        stop_tokens.extend(encoder.eos_token());
        let marks = marks(encoder.tokenizer());
        // Where a turn has several messages, the mark behind a thought ends no turn, even if it is the one behind an answer.
        stop_tokens.extend(encoder.end_of_turn().filter(|token| !marks.contains_key(token)));
        Ok(Self { encoder, stop_tokens, marks })
    }

    /// With thinking turned on or off, whatever the template's own default.
    ///
    /// # Errors
    /// The template has no such switch.
    pub fn with_thinking(mut self, thinking: Option<Thinking>) -> Result<Self> {
        if let Some(thinking) = thinking {
            self.encoder.set_thinking(thinking)?;
        }
        Ok(self)
    }

    /// Whether the model is asked to think before it answers; `None` where the template does not say.
    pub fn thinks(&self) -> Option<bool> {
        let question = [Message { role: Role::User, content: "?".into() }];
        let prompt = self.encoder.chat_text(&question).ok()?;
        let opens = thought::left_open(&prompt).is_some();
        if opens { Some(true) } else { self.encoder.thinking() }
    }

    /// The mark of a thought with which a prompt ends; the text that goes on from there begins with it.
    pub(super) fn left_open(&self, prompt: &[u32]) -> String {
        let end = &prompt[prompt.len().saturating_sub(MARK_TOKENS)..];
        // Known tokens can be decoded.
        let end = self.tokenizer().decode(end, false).unwrap_or_default();
        thought::left_open(&end).unwrap_or_default().to_owned()
    }

    pub(super) fn marks(&self) -> &BTreeMap<u32, String> {
        &self.marks
    }

    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        self.encoder.tokenizer()
    }

    /// What ends a text: `eos_token_id` of the generation settings, the tokenizer's end of sequence, the template's end of turn.
    pub fn stop_tokens(&self) -> &BTreeSet<u32> {
        &self.stop_tokens
    }

    pub(super) fn is_stop(&self, token: u32) -> bool {
        self.stop_tokens.contains(&token)
    }

    /// The tokens of a prompt; at least one.
    pub fn tokens(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        match prompt {
            Prompt::Chat(messages) => self.encoder.chat_tokens(messages),
            Prompt::Text(text) => self.encoder.text_tokens(text),
            Prompt::Tokens(tokens) if tokens.is_empty() => bail!("the prompt has no tokens"),
            Prompt::Tokens(tokens) => Ok(tokens.clone()),
        }
    }
}

/// Of the special tokens those that mark thoughts. Tokens that are not special have a text anyway.
fn marks(tokenizer: &Tokenizer) -> BTreeMap<u32, String> {
    let added = tokenizer.get_added_tokens_decoder();
    let special = || added.iter().filter(|(_, token)| token.special);
    let has_channels = special().any(|(_, token)| thought::is_channel(&token.content));
    special().filter(|(_, token)| thought::is_mark(&token.content, has_channels)).map(|(id, token)| (*id, token.content.clone())).collect()
}

/// `eos_token_id`, a token or a list of them; none where there is no such file or key.
fn eos_tokens(path: &Path) -> Result<BTreeSet<u32>> {
    if !path.is_file() {
        return Ok(BTreeSet::new());
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let config: Value = serde_json::from_str(&text).with_context(|| format!("`{}` is not valid JSON", path.display()))?;
    let id = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.with_context(|| format!("`eos_token_id` in `{}` should be a token's number or a list of them, is {value}", path.display()))
    };
    match config.get("eos_token_id") {
        None | Some(Value::Null) => Ok(BTreeSet::new()),
        Some(Value::Array(ids)) => ids.iter().map(id).collect(),
        Some(value) => Ok([id(value)?].into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    fn tiny() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
            fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny").join(name), folder.path().join(name)).unwrap();
        }
        folder
    }

    fn stop_tokens(folder: &Path) -> Vec<u32> {
        Codec::load(folder, &DataConfig::default()).unwrap().stop_tokens().iter().copied().collect()
    }

    #[test]
    fn stop_tokens_come_from_every_file_that_has_them() {
        let folder = tiny();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(stop_tokens(folder.path()), [2]);
        write("generation_config.json", &json!({ "eos_token_id": [7, 9] }).to_string());
        assert_eq!(stop_tokens(folder.path()), [2, 7, 9]);
        write("generation_config.json", "{}");
        write("config.json", &json!({ "eos_token_id": 11 }).to_string());
        assert_eq!(stop_tokens(folder.path()), [2, 11], "config.json where the generation settings are silent");
        // A template that ends turns with another special token than the tokenizer ends texts with.
        let template = "{% for m in messages %}{{ '<|user|>' if m.role == 'user' else '' }}{{ m.content }}{{ '<|system|>\n' }}{% endfor %}\
                        {% if add_generation_prompt %}{{ '' }}{% endif %}";
        write("chat_template.jinja", template);
        assert_eq!(stop_tokens(folder.path()), [2, 3, 11]);
        // A template that ends turns with ordinary text ends none of ours.
        write("chat_template.jinja", &template.replace("<|system|>", "over"));
        assert_eq!(stop_tokens(folder.path()), [2, 11]);
    }

    #[test]
    fn a_spoilt_id_is_named_with_its_file() {
        let folder = tiny();
        fs::write(folder.path().join("generation_config.json"), json!({ "eos_token_id": "</s>" }).to_string()).unwrap();
        let error = format!("{:#}", Codec::load(folder.path(), &DataConfig::default()).err().unwrap());
        assert!(error.contains("generation_config.json") && error.contains("</s>"), "{error}");
    }
}
