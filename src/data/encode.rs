//! From text to tokens: the chat template renders, the tokenizer encodes, and overlong rows are cut by `truncate`'s rules.
//!
//! Prompt and response are tokenised apart and then joined, as at generation time, when the response does not exist yet. The response
//! is all that the template renders after the prompt's text (`end_of_response = "template"`), or its bare content and the
//! tokenizer's end-of-sequence token (`"eos_token"`, what the code released with the paper does).

use super::pair::{Message, ParallelPair, PreferencePair, Role};
use super::template::Template;
use super::tokenizer_config::TokenizerConfig;
use super::truncate::{Fit, fit};
use crate::config::{DataConfig, EndOfResponse, OnOverlong};
use anyhow::{Context, Result, anyhow, bail};
use rayon::prelude::*;
use std::fmt;
use std::path::Path;
use tokenizers::Tokenizer;

/// Response tokens: everything that is rendered after the prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub tokens: Vec<u32>,
    /// How many of the last tokens end the turn (template or `eos_token`) rather than belong to the answer.
    pub n_end_tokens: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedPreference {
    pub lang: String,
    pub prompt: Vec<u32>,
    pub chosen: Response,
    pub rejected: Response,
}

impl EncodedPreference {
    /// Tokens of both sequences with their prompt once, as they are packed.
    pub fn n_packed(&self) -> usize {
        self.prompt.len() + self.chosen.tokens.len() + self.rejected.tokens.len()
    }

    /// Tokens of the longer of its two sequences, prompt and response.
    pub fn longest_sequence(&self) -> usize {
        self.prompt.len() + self.chosen.tokens.len().max(self.rejected.tokens.len())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedPair {
    pub id: String,
    pub dominant: EncodedPreference,
    pub target: EncodedPreference,
}

/// A row after `max_tokens` was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encoded {
    Whole(EncodedPair),
    /// `n_lost` tokens of both sides' prompts and responses are gone.
    Cut {
        pair: EncodedPair,
        n_lost: usize,
    },
    /// Not to be trained on: its longest sequence has `n_tokens`.
    Overlong {
        id: String,
        n_tokens: usize,
    },
}

/// What encoding did to the rows, by row id in file order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EncodeReport {
    pub n_rows: usize,
    pub max_tokens: usize,
    /// Rows that lost tokens, and how many.
    pub cut: Vec<(String, usize)>,
    /// Rows left out, and the tokens of their longest sequence.
    pub dropped: Vec<(String, usize)>,
}

/// Tokenizer and chat template of one checkpoint with the data settings of a run.
pub struct Encoder {
    tokenizer: Tokenizer,
    template: Template,
    bos: Option<u32>,
    /// Whether `bos` is put in front of a prompt that does not begin with it.
    adds_bos: bool,
    eos: Option<u32>,
    pad: Option<u32>,
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
        let mut tokenizer =
            Tokenizer::from_file(&path).map_err(|error| anyhow!("cannot read the tokenizer `{}`: {error}", path.display()))?;
        // Some checkpoints were saved with the settings of their last use; nothing may be cut or padded behind our back.
        tokenizer.with_truncation(None).map_err(|error| anyhow!("{error}"))?.with_padding(None);
        let tokens = TokenizerConfig::read(folder)?;
        let id = |role: &str, token: &Option<String>| match token {
            None => Ok(None),
            Some(token) => match tokenizer.token_to_id(token) {
                Some(id) => Ok(Some(id)),
                None => bail!("`{role}` is `{token}`, which is not in the vocabulary of `{}`", path.display()),
            },
        };
        let (bos, eos, pad) = (id("bos_token", &tokens.bos)?, id("eos_token", &tokens.eos)?, id("pad_token", &tokens.pad)?);
        if config.end_of_response == EndOfResponse::EosToken && eos.is_none() {
            bail!("`data.end_of_response` is `eos_token`, but the tokenizer in `{}` has no `eos_token`", folder.display());
        }
        let by_itself = tokenizer.encode_fast("", true).map_err(|error| anyhow!("{error}"))?;
        let adds_bos = tokens.add_bos.unwrap_or(bos.is_some() && by_itself.get_ids().first().copied() == bos);
        Ok(Self {
            template: Template::resolve(&config.template, folder, &tokens)?,
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

    /// What `mean_padded` pads with: the tokenizer's pad token, its end-of-turn token where there is none.
    pub fn pad_token(&self) -> Result<u32> {
        self.pad.or(self.eos).context("the tokenizer has neither a `pad_token` nor an `eos_token` to pad with")
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

    fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, false).map_err(|error| anyhow!("the tokenizer failed: {error}"))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The whole row, uncut.
    pub fn tokenize(&self, pair: &ParallelPair) -> Result<EncodedPair> {
        let side = |name: &str, preference| self.tokenize_preference(preference).with_context(|| format!("row `{}`, {name} pair", pair.id));
        Ok(EncodedPair { id: pair.id.clone(), dominant: side("dominant", &pair.dominant)?, target: side("target", &pair.target)? })
    }

    /// Every row by itself, uncut, in order: what one row does to the template is no reason to lose the others. For `mpo check`.
    pub fn tokenize_each(&self, pairs: &[ParallelPair]) -> Vec<Result<EncodedPair>> {
        pairs.par_iter().map(|pair| self.tokenize(pair)).collect()
    }

    fn tokenize_preference(&self, preference: &PreferencePair) -> Result<EncodedPreference> {
        let prompt_text = self.template.render(&preference.prompt, true)?;
        let ending = match self.end_of_response {
            EndOfResponse::EosToken => None,
            EndOfResponse::Template => {
                let text = self.response_text(&preference.prompt, &prompt_text, PLACEHOLDER)?;
                let (_, ending) = text.rsplit_once(PLACEHOLDER).context("the chat template does not render the response")?;
                Some((ending.to_owned(), self.tokens(ending)?))
            }
        };
        let response = |content: &str| match &ending {
            None => self.response_with_eos(content),
            Some((text, tokens)) => self.response_by_template(&preference.prompt, &prompt_text, content, text, tokens),
        };
        Ok(EncodedPreference {
            lang: preference.lang.clone(),
            prompt: self.prompt_tokens(&prompt_text)?,
            chosen: response(&preference.chosen).context("chosen response")?,
            rejected: response(&preference.rejected).context("rejected response")?,
        })
    }

    fn response_with_eos(&self, content: &str) -> Result<Response> {
        let mut tokens = self.tokens(content)?;
        tokens.push(self.eos.context("the tokenizer has no `eos_token`")?);
        Ok(Response { tokens, n_end_tokens: 1 })
    }

    /// `ending` is what the template renders after a response, as text and as tokens.
    fn response_by_template(
        &self,
        prompt: &[Message],
        prompt_text: &str,
        content: &str,
        ending: &str,
        ending_tokens: &[u32],
    ) -> Result<Response> {
        let text = self.response_text(prompt, prompt_text, content)?;
        if !text.ends_with(ending) {
            bail!(
                "the chat template ends this response differently from others ({ending:?} was expected), so its end-of-turn tokens \
                 cannot be told from the answer: set `data.end_of_response = \"eos_token\"`"
            );
        }
        let tokens = self.tokens(&text)?;
        // A token that holds the end of the answer and the start of the ending counts as answer.
        if tokens.is_empty() {
            bail!("nothing is left of this response after the chat template and the tokenizer");
        }
        let n_end_tokens = tokens.iter().rev().zip(ending_tokens.iter().rev()).take_while(|(a, b)| a == b).count();
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
            let (n_tokens, n_end) = (response.tokens.len(), response.n_end_tokens);
            Ok::<_, anyhow::Error>(format!("{name} ({n_tokens} tokens, {n_end} of them end the turn)\n⟦{}⟧\n", text(&response.tokens)?))
        };
        let (chosen, rejected) = (response("chosen", &preference.chosen)?, response("rejected", &preference.rejected)?);
        Ok(format!("{} prompt ({} tokens)\n{prompt}\n{chosen}{rejected}", preference.lang, preference.prompt.len()))
    }

    /// The row within `max_tokens`.
    pub fn encode(&self, pair: &ParallelPair) -> Result<Encoded> {
        let mut pair = self.tokenize(pair)?;
        let mut n_lost = 0;
        for side in [&mut pair.dominant, &mut pair.target] {
            match fit(side, self.max_tokens, self.on_overlong) {
                Fit::Whole => {}
                Fit::Cut { n_lost: n } => n_lost += n,
                Fit::Overlong { n_tokens } => return Ok(Encoded::Overlong { id: pair.id, n_tokens }),
            }
        }
        Ok(if n_lost == 0 { Encoded::Whole(pair) } else { Encoded::Cut { pair, n_lost } })
    }

    /// All rows, in order, and what became of those that were too long. With `on_overlong = "error"` one of them is an error.
    pub fn encode_all(&self, pairs: &[ParallelPair]) -> Result<(Vec<EncodedPair>, EncodeReport)> {
        let encoded = pairs.par_iter().map(|pair| self.encode(pair)).collect::<Result<Vec<_>>>()?;
        let mut report = EncodeReport { n_rows: pairs.len(), max_tokens: self.max_tokens, ..EncodeReport::default() };
        let mut kept = Vec::with_capacity(pairs.len());
        for row in encoded {
            match row {
                Encoded::Whole(pair) => kept.push(pair),
                Encoded::Cut { pair, n_lost } => {
                    report.cut.push((pair.id.clone(), n_lost));
                    kept.push(pair);
                }
                Encoded::Overlong { id, n_tokens } => report.dropped.push((id, n_tokens)),
            }
        }
        if self.on_overlong == OnOverlong::Error && !report.dropped.is_empty() {
            bail!(
                "{} of {} rows are longer than `data.max_tokens` = {}: {}\nraise it, or let `data.on_overlong` be `truncate` or `drop`",
                report.dropped.len(),
                report.n_rows,
                self.max_tokens,
                list(&report.dropped, "tokens")
            );
        }
        if kept.is_empty() {
            bail!("no row fits into `data.max_tokens` = {}: {}", self.max_tokens, list(&report.dropped, "tokens"));
        }
        Ok((kept, report))
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

/// The first few rows with their numbers, then how many more there are.
fn list(rows: &[(String, usize)], unit: &str) -> String {
    const N_SHOWN: usize = 8;
    let mut text = rows.iter().take(N_SHOWN).map(|(id, n)| format!("`{id}` ({n} {unit})")).collect::<Vec<_>>().join(", ");
    if rows.len() > N_SHOWN {
        text += &format!(" and {} more", rows.len() - N_SHOWN);
    }
    text
}

impl fmt::Display for EncodeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.cut.is_empty() && self.dropped.is_empty() {
            return write!(f, "all {} rows fit into {} tokens", self.n_rows, self.max_tokens);
        }
        write!(f, "{} rows: {} cut to {} tokens", self.n_rows, self.cut.len(), self.max_tokens)?;
        if !self.cut.is_empty() {
            write!(f, " (row {})", list(&self.cut, "tokens lost"))?;
        }
        write!(f, ", {} dropped as too long", self.dropped.len())?;
        if !self.dropped.is_empty() {
            write!(f, " (row {})", list(&self.dropped, "tokens"))?;
        }
        Ok(())
    }
}
