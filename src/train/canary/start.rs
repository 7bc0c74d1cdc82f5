//! What all later measurements are compared with: the model of step 0 on the canaries, kept in `OUT/canary/start/` for a run that goes on.
//!
//! ```text
//! texts.jsonl         the tokens whose likelihood is measured: the given answers, and the initial model's own where none is given
//! top.safetensors     its next-token distributions there, coarsened (see `likelihood`)
//! measurement.json    its measurement
//! manifest.json       size and sha256 of the others
//! ```

use super::answers::Asked;
use super::likelihood::{Position, TextsSeen};
use super::measurement::Measurement;
use super::prompts::Prompts;
use crate::eval::lines;
use crate::files::read_json_as;
use crate::model::decoder::Decoder;
use crate::train::folder::{self, Manifest};
use anyhow::{Context, Result, bail, ensure};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

const TEXTS: &str = "texts.jsonl";
const TOP: &str = "top.safetensors";
const MEASUREMENT: &str = "measurement.json";
const MANIFEST: &str = "manifest.json";

/// Of step 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Start {
    /// By prompt, the tokens of the answer whose likelihood is measured.
    pub texts: Vec<Vec<u32>>,
    /// Of all texts' tokens in order.
    pub positions: Vec<Position>,
    pub measurement: Measurement,
}

/// A line of `texts.jsonl`.
#[derive(Serialize, Deserialize)]
struct Text {
    id: String,
    lang: String,
    tokens: Vec<u32>,
}

impl Start {
    /// From the initial model and its answers.
    pub fn of(model: &Decoder, prompts: &Prompts, asked: &Asked) -> Result<Self> {
        let text =
            |(prompt, answer): (&super::Prompt, &crate::generate::Completion)| prompt.answer.clone().unwrap_or(answer.tokens.clone());
        let texts: Vec<Vec<u32>> = prompts.all.iter().zip(&asked.answers).map(text).collect();
        let (seen, positions) = TextsSeen::at_the_start(model, prompts, &texts)?;
        ensure!(seen.is_finite(), "the model gives no numbers for the canaries: its weights may be damaged, or `model.dtype` too narrow");
        let measurement = Measurement::new(0, prompts, &seen, Some(asked));
        Ok(Self { texts, positions, measurement })
    }

    /// Writes the folder, whole or not at all.
    pub fn publish(&self, dir: &Path, prompts: &Prompts) -> Result<()> {
        folder::publish(dir, |folder| {
            let mut lines = Vec::new();
            for (prompt, tokens) in prompts.all.iter().zip(&self.texts) {
                serde_json::to_writer(&mut lines, &Text { id: prompt.id.clone(), lang: prompt.lang.clone(), tokens: tokens.clone() })?;
                lines.push(b'\n');
            }
            folder.write(TEXTS, &lines)?;
            folder.write(TOP, &serialize(&self.positions)?)?;
            folder.write(MEASUREMENT, &serde_json::to_vec_pretty(&self.measurement)?)?;
            folder.write_manifest(MANIFEST)
        })
    }

    /// Reads what [`Start::publish`] wrote.
    ///
    /// # Errors
    /// It is missing, damaged, or of other prompts.
    pub fn open(dir: &Path, prompts: &Prompts) -> Result<Self> {
        Manifest::verify(dir, &dir.join(MANIFEST), &[TEXTS, TOP, MEASUREMENT])?;
        let texts: Vec<Text> = lines::read(&dir.join(TEXTS))?.values;
        let is_same = texts.len() == prompts.all.len()
            && texts.iter().zip(&prompts.all).all(|(text, prompt)| (&text.id, &text.lang) == (&prompt.id, &prompt.lang));
        ensure!(is_same, "`{}` is of other prompts", dir.display());
        let texts: Vec<Vec<u32>> = texts.into_iter().map(|text| text.tokens).collect();
        let read = |name: &str| fs::read(dir.join(name)).with_context(|| format!("cannot read `{}`", dir.join(name).display()));
        let positions = parse(&read(TOP)?).with_context(|| format!("`{}`", dir.join(TOP).display()))?;
        ensure!(positions.len() == texts.iter().map(Vec::len).sum::<usize>(), "`{}` is of other texts", dir.join(TOP).display());
        let measurement = read_json_as(&dir.join(MEASUREMENT))?;
        Ok(Self { texts, positions, measurement })
    }
}

/// The tensors `tokens` and `log_probs` `[positions, top]`, `log_rest` `[positions]`.
fn serialize(positions: &[Position]) -> Result<Vec<u8>> {
    let n_top = positions.first().map_or(0, |position| position.tokens.len());
    let tokens: Vec<u8> = positions.iter().flat_map(|position| &position.tokens).flat_map(|token| token.to_le_bytes()).collect();
    let log_probs: Vec<u8> = positions.iter().flat_map(|position| &position.log_probs).flat_map(|value| value.to_le_bytes()).collect();
    let log_rest: Vec<u8> = positions.iter().flat_map(|position| position.log_rest.to_le_bytes()).collect();
    let shape = vec![positions.len(), n_top];
    let tensors = [
        ("tokens", TensorView::new(Dtype::U32, shape.clone(), &tokens)?),
        ("log_probs", TensorView::new(Dtype::F32, shape, &log_probs)?),
        ("log_rest", TensorView::new(Dtype::F32, vec![positions.len()], &log_rest)?),
    ];
    Ok(safetensors::serialize(tensors, None)?)
}

fn parse(bytes: &[u8]) -> Result<Vec<Position>> {
    let tensors = SafeTensors::deserialize(bytes)?;
    let [tokens, log_probs, log_rest] = ["tokens", "log_probs", "log_rest"].map(|name| tensors.tensor(name));
    let (tokens, log_probs, log_rest) = (tokens?, log_probs?, log_rest?);
    let &[n_positions, n_top] = tokens.shape() else { bail!("`tokens` is no matrix") };
    let is_whole = log_probs.shape() == tokens.shape() && log_rest.shape() == [n_positions] && n_top > 0;
    let are_types = (tokens.dtype(), log_probs.dtype(), log_rest.dtype()) == (Dtype::U32, Dtype::F32, Dtype::F32);
    ensure!(is_whole && are_types, "its tensors have other shapes or types");
    let floats = |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect::<Vec<f32>>();
    let tokens: Vec<u32> = tokens.data().as_chunks::<4>().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect();
    let (log_probs, log_rest) = (floats(log_probs.data()), floats(log_rest.data()));
    let rows = tokens.chunks(n_top).zip(log_probs.chunks(n_top)).zip(log_rest);
    Ok(rows.map(|((tokens, log_probs), log_rest)| Position { tokens: tokens.to_vec(), log_probs: log_probs.to_vec(), log_rest }).collect())
}

#[cfg(test)]
mod tests {
    use super::super::prompts::Prompt;
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn example() -> (Prompts, Start) {
        let prompt = |id: &str, lang: &str| Prompt {
            id: id.into(),
            lang: lang.into(),
            text: "q".into(),
            tokens: vec![1, 2],
            answer: None,
            pair: None,
            is_benign: true,
        };
        let prompts = Prompts {
            all: vec![prompt("a", "en"), prompt("a", "sw")],
            max_new_tokens: 4,
            dominant: BTreeSet::new(),
            notes: vec![],
            sha256: "ab".into(),
        };
        let position = |log_rest| Position { tokens: vec![7, 70_000], log_probs: vec![-0.1, -12.5], log_rest };
        let positions = vec![position(-3.0), position(f32::NEG_INFINITY), position(-0.0)];
        let measurement = Measurement { step: 0, languages: BTreeMap::new() };
        (prompts, Start { texts: vec![vec![3], vec![4, 5]], positions, measurement })
    }

    #[test]
    fn what_is_kept_comes_back_bit_for_bit() {
        let run = tempfile::tempdir().unwrap();
        let dir = run.path().join("start");
        let (prompts, start) = example();
        start.publish(&dir, &prompts).unwrap();
        assert_eq!(Start::open(&dir, &prompts).unwrap(), start);
        start.publish(&dir, &prompts).unwrap();
        assert_eq!(fs::read_dir(run.path()).unwrap().count(), 1, "it is replaced whole");
    }

    #[test]
    fn damage_and_other_prompts_are_seen() {
        let run = tempfile::tempdir().unwrap();
        let dir = run.path().join("start");
        let (prompts, start) = example();
        assert!(Start::open(&dir, &prompts).is_err(), "there is none");
        start.publish(&dir, &prompts).unwrap();
        let mut others = prompts.clone();
        others.all[1].lang = "bn".into();
        assert!(Start::open(&dir, &others).unwrap_err().to_string().contains("other prompts"));
        let mut bytes = fs::read(dir.join(TOP)).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(dir.join(TOP), bytes).unwrap();
        assert!(format!("{:#}", Start::open(&dir, &prompts).unwrap_err()).contains("damaged"));
    }
}
