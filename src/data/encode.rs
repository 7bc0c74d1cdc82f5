//! From text to tokens: the chat template renders, the tokenizer encodes, and overlong rows are cut by `truncate`'s rules.
//!
//! Prompt and response are tokenised apart and then joined, as at generation time, when the response does not exist yet. The response
//! is all that the template renders after the prompt's text (`end_of_response = "template"`), or its bare content and the
//! tokenizer's end-of-sequence token (`"eos_token"`, what the code released with the paper does). This file encodes a row, `rows` many,
//! `prompt` what has no answer yet, and `special` keeps texts from spelling special tokens.

mod prompt;
mod rows;
mod special;
mod tokenizer;

use super::pair::{Message, PreferencePair, PreferenceRow, Role};
use super::template::Template;
use super::tokenizer_config::TokenizerConfig;
use super::truncate::{Fit, fit};
use crate::config::{DataConfig, EndOfResponse, OnOverlong, SpecialTokens};
use anyhow::{Context, Result, anyhow, bail, ensure};
pub use rows::EncodeReport;
use special::Special;
use std::path::Path;
use tokenizers::Tokenizer;

/// Response tokens: everything that is rendered after the prompt. None at all for a response that labelled data does not have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Response {
    pub tokens: Vec<u32>,
    /// How many of the last tokens end the turn (template or `eos_token`) rather than belong to the answer.
    pub n_end_tokens: usize,
}

impl Response {
    /// Whether the data has no such response: it is neither computed nor scored.
    pub fn is_absent(&self) -> bool {
        self.tokens.is_empty()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedPreference {
    pub lang: String,
    pub prompt: Vec<u32>,
    pub chosen: Response,
    pub rejected: Response,
}

impl EncodedPreference {
    /// Whether there are two responses to compare.
    pub fn has_both(&self) -> bool {
        !self.chosen.is_absent() && !self.rejected.is_absent()
    }

    /// Tokens of both sequences with their prompt once, as they are packed.
    pub fn n_packed(&self) -> usize {
        self.prompt.len() + self.chosen.tokens.len() + self.rejected.tokens.len()
    }

    /// Tokens of the longer of its two sequences, prompt and response.
    pub fn longest_sequence(&self) -> usize {
        self.prompt.len() + self.chosen.tokens.len().max(self.rejected.tokens.len())
    }
}

/// A [`PreferenceRow`] as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedRow {
    pub id: String,
    /// `None` in plain preference data.
    pub dominant: Option<EncodedPreference>,
    pub target: EncodedPreference,
    /// The target prompt with answers to another, for a loss that asks for it ([`super::mismatch`]).
    pub mismatched: Option<EncodedPreference>,
}

impl EncodedRow {
    /// The pairs that are there: dominant, target, mismatched.
    pub fn pairs(&self) -> impl Iterator<Item = &EncodedPreference> {
        self.dominant.iter().chain([&self.target]).chain(&self.mismatched)
    }

    /// The dominant pair, for who cannot do without.
    ///
    /// # Errors
    /// The row has none.
    pub fn dominant_pair(&self) -> Result<&EncodedPreference> {
        self.dominant.as_ref().with_context(|| {
            format!(
                "row `{}` has no dominant pair: only files of the formats `parallel` (with `dominant` and `target`) and `llamafactory` have them",
                self.id
            )
        })
    }
}

/// A row after `max_tokens` was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encoded {
    Whole(EncodedRow),
    /// `n_lost` tokens of both sides' prompts and responses are gone.
    Cut {
        row: EncodedRow,
        n_lost: usize,
    },
    /// Not to be trained on: its longest sequence has `n_tokens`.
    Overlong {
        id: String,
        n_tokens: usize,
    },
}

/// A preference pair as the text that is tokenised. Special tokens that its texts spell are written as noncharacters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    pub prompt: String,
    /// Everything that is rendered after the prompt; the bare answer with `end_of_response = "eos_token"`.
    pub chosen: Option<String>,
    pub rejected: Option<String>,
    /// What the template renders after any answer; `None` with `end_of_response = "eos_token"`.
    pub ending: Option<String>,
}

/// Tokenizer and chat template of one checkpoint with the data settings of a run.
pub struct Encoder {
    tokenizer: Tokenizer,
    special: Special,
    /// Whether special tokens that a text spells are read as tokens.
    reads_special_tokens: bool,
    template: Template,
    bos: Option<u32>,
    /// Whether `bos` is put in front of a prompt that does not begin with it.
    adds_bos: bool,
    eos: Option<u32>,
    /// Its spelling where the tokenizer lacks it.
    pad: Option<Result<u32, String>>,
    end_of_response: EndOfResponse,
    max_tokens: usize,
    on_overlong: OnOverlong,
}

/// Stands for a response where only what surrounds it matters. A private-use character: no template changes or trims it.
const PLACEHOLDER: &str = "\u{e000}";

impl Encoder {
    /// Reads `tokenizer.json`, `tokenizer_config.json` and the chat template of the checkpoint in `folder`.
    pub fn new(folder: &Path, config: &DataConfig) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let mut tokenizer = tokenizer::read(&path)?;
        // Some checkpoints were saved with the settings of their last use; nothing may be cut or padded behind our back.
        tokenizer.with_truncation(None).map_err(|error| anyhow!("{error}"))?.with_padding(None);
        let tokens = TokenizerConfig::read(folder)?;
        tokens.complete(&mut tokenizer)?;
        let id = |role: &str, token: &Option<String>| match token {
            None => Ok(None),
            Some(token) => match tokenizer.token_to_id(token) {
                Some(id) => Ok(Some(id)),
                None => bail!("`{role}` is `{token}`, which is not in the vocabulary of `{}`", path.display()),
            },
        };
        let (bos, eos) = (id("bos_token", &tokens.bos)?, id("eos_token", &tokens.eos)?);
        // Wanted only where something pads.
        let pad = tokens.pad.clone().map(|pad| tokenizer.token_to_id(&pad).ok_or(pad));
        if config.end_of_response == EndOfResponse::EosToken && eos.is_none() {
            bail!("`data.end_of_response` is `eos_token`, but the tokenizer in `{}` has no `eos_token`", folder.display());
        }
        let by_itself = tokenizer.encode_fast("", true).map_err(|error| anyhow!("{error}"))?;
        let adds_bos = tokens.add_bos.unwrap_or(bos.is_some() && by_itself.get_ids().first().copied() == bos);
        Ok(Self {
            template: Template::resolve(&config.template, folder, &tokens)?,
            special: Special::of(&tokenizer),
            reads_special_tokens: config.special_tokens == SpecialTokens::Tokens,
            tokenizer,
            bos,
            adds_bos,
            eos,
            pad,
            end_of_response: config.end_of_response,
            max_tokens: config.max_tokens,
            on_overlong: config.on_overlong,
        })
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template, as Jinja.
    pub fn chat_template(&self) -> &str {
        self.template.source()
    }

    /// What `mean_padded` pads with: the tokenizer's pad token, its end-of-turn token where there is none.
    pub fn pad_token(&self) -> Result<u32> {
        match &self.pad {
            Some(Err(pad)) => bail!(
                "`pad_token` is `{pad}`, which is not in the tokenizer's vocabulary: the model has never seen it, and `pooling` by `mean_padded` needs one \
                 that it has"
            ),
            Some(Ok(pad)) => Ok(*pad),
            None => self.eos.context("the tokenizer has neither a `pad_token` nor an `eos_token` to pad with"),
        }
    }

    /// The tokens of a rendered prompt, with exactly one BOS where the tokenizer has one.
    fn prompt_tokens(&self, text: &str) -> Result<Vec<u32>> {
        let mut tokens = self.tokens(text)?;
        // A template that renders BOS itself needs no other; one that does not relies on the tokenizer to add it.
        if let Some(bos) = self.bos.filter(|bos| self.adds_bos && tokens.first() != Some(bos)) {
            tokens.insert(0, bos);
        }
        if let (Some(bos), [first, second, ..]) = (self.bos, tokens.as_slice())
            && [*first, *second] == [bos, bos]
        {
            bail!("the chat template begins a prompt with two beginning-of-sequence tokens; the model was trained with one");
        }
        // The first response token is predicted from the last prompt token, so there must be one.
        if tokens.is_empty() {
            bail!("the chat template renders nothing for this prompt");
        }
        Ok(tokens)
    }

    /// Of a text as the template rendered it, or of a row's own text with its special tokens hidden.
    fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        if Special::hides(text) {
            return self.special.tokens(&self.tokenizer, text);
        }
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|error| anyhow!("the tokenizer failed: {error}"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The whole row, uncut.
    pub fn tokenize(&self, row: &PreferenceRow) -> Result<EncodedRow> {
        let side = |(side, preference)| self.tokenize_side(&row.id, side, preference);
        let dominant = row.dominant.as_ref().map(|dominant| side((Side::Dominant, dominant))).transpose()?;
        Ok(EncodedRow { id: row.id.clone(), dominant, target: side((Side::Target, &row.target))?, mismatched: None })
    }

    fn tokenize_side(&self, id: &str, side: Side, preference: &PreferencePair) -> Result<EncodedPreference> {
        let name = match side {
            Side::Dominant => "dominant",
            Side::Target => "target",
        };
        self.tokenize_preference(preference).with_context(|| format!("row `{id}`, {name} pair"))
    }

    fn tokenize_preference(&self, preference: &PreferencePair) -> Result<EncodedPreference> {
        let Rendered { prompt, chosen, rejected, ending } = self.render(preference)?;
        let ending = ending.map(|text| self.tokens(&text)).transpose()?;
        let response = |text: Option<String>| match (text, &ending) {
            (None, _) => Ok(Response::default()),
            (Some(text), None) => self.response_with_eos(&text),
            (Some(text), Some(ending)) => self.response_by_template(&text, ending),
        };
        Ok(EncodedPreference {
            lang: preference.lang.clone(),
            prompt: self.prompt_tokens(&prompt)?,
            chosen: response(chosen).context("chosen response")?,
            rejected: response(rejected).context("rejected response")?,
        })
    }

    /// The texts that are tokenised, each by itself.
    pub fn render(&self, preference: &PreferencePair) -> Result<Rendered> {
        let PreferencePair { prompt, chosen, rejected, .. } = preference;
        let prompt = &*self.hidden_turns(prompt)?;
        let prompt_text = self.template.render(prompt, true)?;
        let ending = match self.end_of_response {
            EndOfResponse::EosToken => None,
            EndOfResponse::Template => {
                let text = self.response_text(prompt, &prompt_text, PLACEHOLDER)?;
                let (_, ending) = text.rsplit_once(PLACEHOLDER).context("the chat template does not render the response")?;
                Some(ending.to_owned())
            }
        };
        let response = |content: &Option<String>| match (content, &ending) {
            (None, _) => Ok(None),
            (Some(content), None) => Ok(Some(self.hidden(content)?.into_owned())),
            (Some(content), Some(ending)) => {
                let text = self.response_text(prompt, &prompt_text, &self.hidden(content)?)?;
                ensure!(
                    text.ends_with(ending),
                    "the chat template ends this response differently from others ({ending:?} was expected), so its end-of-turn tokens \
                     cannot be told from the answer: set `data.end_of_response = \"eos_token\"`"
                );
                Ok(Some(text))
            }
        };
        let (chosen, rejected) = (response(chosen).context("chosen response")?, response(rejected).context("rejected response")?);
        Ok(Rendered { prompt: prompt_text, chosen, rejected, ending })
    }

    fn response_with_eos(&self, text: &str) -> Result<Response> {
        let mut tokens = self.tokens(text)?;
        tokens.push(self.eos.context("the tokenizer has no `eos_token`")?);
        Ok(Response { tokens, n_end_tokens: 1 })
    }

    /// `ending` is what the template renders after a response.
    fn response_by_template(&self, text: &str, ending: &[u32]) -> Result<Response> {
        let tokens = self.tokens(text)?;
        // A token that holds the end of the answer and the start of the ending counts as answer.
        if tokens.is_empty() {
            bail!("nothing is left of this response after the chat template and the tokenizer");
        }
        let n_end_tokens = tokens.iter().rev().zip(ending.iter().rev()).take_while(|(a, b)| a == b).count();
        Ok(Response { tokens, n_end_tokens })
    }

    /// What the template renders after the prompt's text once the response is there.
    fn response_text(&self, prompt: &[Message], prompt_text: &str, content: &str) -> Result<String> {
        let mut messages = prompt.to_vec();
        messages.push(Message { role: Role::Assistant, content: content.to_owned() });
        let full_text = self.template.render(&messages, false)?;
        match full_text.strip_prefix(prompt_text) {
            Some(response) => Ok(response.to_owned()),
            None => bail!("{}", parting(prompt_text, &full_text)),
        }
    }

    /// A preference pair as the model will see it, for a person to read: the texts of its tokens, special ones included, with `⟦` and `⟧`
    /// around the response tokens that are scored.
    pub fn marked(&self, preference: &EncodedPreference) -> Result<String> {
        let text = |tokens: &[u32]| self.tokenizer.decode(tokens, false).map_err(|error| anyhow!("the tokenizer failed: {error}"));
        let prompt = text(&preference.prompt)?;
        let response = |name: &str, response: &Response| {
            if response.is_absent() {
                return Ok(String::new());
            }
            let (n_tokens, n_end) = (response.tokens.len(), response.n_end_tokens);
            Ok::<_, anyhow::Error>(format!("{name} ({n_tokens} tokens, {n_end} of them end the turn)\n⟦{}⟧\n", text(&response.tokens)?))
        };
        let (chosen, rejected) = (response("chosen", &preference.chosen)?, response("rejected", &preference.rejected)?);
        Ok(format!("{} prompt ({} tokens)\n{prompt}\n{chosen}{rejected}", preference.lang, preference.prompt.len()))
    }

    /// The row within `max_tokens`.
    pub fn encode(&self, row: &PreferenceRow) -> Result<Encoded> {
        let dominant = row.dominant.as_ref().map(|dominant| self.fitted(&row.id, Side::Dominant, dominant)).transpose()?;
        Ok(Encoded::of(&row.id, dominant, self.fitted(&row.id, Side::Target, &row.target)?))
    }

    fn fitted(&self, id: &str, side: Side, preference: &PreferencePair) -> Result<Fitted> {
        let mut preference = self.tokenize_side(id, side, preference)?;
        Ok(match fit(&mut preference, self.max_tokens, self.on_overlong) {
            Fit::Whole => Fitted::Within { preference, n_lost: 0 },
            Fit::Cut { n_lost } => Fitted::Within { preference, n_lost },
            Fit::Overlong { n_tokens } => Fitted::Overlong { n_tokens },
        })
    }
}

/// The two pairs of a row.
#[derive(Debug, Clone, Copy)]
enum Side {
    Dominant,
    Target,
}

/// A preference pair after `max_tokens` was applied.
#[derive(Debug, Clone)]
enum Fitted {
    Within { preference: EncodedPreference, n_lost: usize },
    Overlong { n_tokens: usize },
}

impl Fitted {
    fn n_lost(&self) -> usize {
        match self {
            Fitted::Within { n_lost, .. } => *n_lost,
            Fitted::Overlong { .. } => 0,
        }
    }
}

impl Encoded {
    fn of(id: &str, dominant: Option<Fitted>, target: Fitted) -> Self {
        let id = id.to_owned();
        let (dominant, n_dominant) = match dominant {
            None => (None, 0),
            Some(Fitted::Within { preference, n_lost }) => (Some(preference), n_lost),
            Some(Fitted::Overlong { n_tokens }) => return Encoded::Overlong { id, n_tokens },
        };
        match target {
            Fitted::Overlong { n_tokens } => Encoded::Overlong { id, n_tokens },
            Fitted::Within { preference: target, n_lost: n_target } => {
                let row = EncodedRow { id, dominant, target, mismatched: None };
                if n_dominant + n_target == 0 { Encoded::Whole(row) } else { Encoded::Cut { row, n_lost: n_dominant + n_target } }
            }
        }
    }
}

/// Where two texts part that should begin alike, with a little of both around that place.
fn parting(prompt_text: &str, full_text: &str) -> String {
    let same = prompt_text.char_indices().zip(full_text.chars()).take_while(|((_, a), b)| a == b);
    let at = same.last().map_or(0, |((i, c), _)| i + c.len_utf8());
    let before: String = prompt_text[..at].chars().rev().take(24).collect::<Vec<_>>().into_iter().rev().collect();
    let after = |text: &str| text[at..].chars().take(24).collect::<String>();
    format!(
        "the chat template renders the prompt differently once the response is there, so the two cannot be told apart: after {before:?} \
         (byte {at}) the prompt continues with {:?}, prompt and response with {:?}",
        after(prompt_text),
        after(full_text)
    )
}
