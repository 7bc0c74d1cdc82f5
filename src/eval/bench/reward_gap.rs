//! The reward gap itself, measured per language under a checkpoint and, with `--reference`, under another one: the paper's own proxy for safety,
//! which needs no judge.
//!
//! It reads preference data of any format that training reads. Its items name the target prompts, so that languages, subsets and contamination work
//! as for other benchmarks; measuring needs both answers, and reads them with [`pairs`]. Once a run has trained on the gap, the gap is a training
//! diagnostic and no evidence of safety: use pairs that were held out.

use super::card::{Card, Languages, Origin, Scoring, higher};
use super::{Benchmark, Loaded};
use crate::config::DataConfig;
use crate::data;
use crate::data::pair::{PreferenceRow, Role};
use crate::eval::item::{Item, Kind};
use crate::eval::source::Source;
use anyhow::{Result, ensure};
use serde_json::json;
use std::path::Path;

pub(super) struct RewardGap;

pub const NAME: &str = "reward-gap";

static CARD: Card = Card {
    name: NAME,
    aliases: &["rg"],
    about: "length-normalised reward gap of preference pairs; with --reference, another checkpoint's beside it",
    languages: Languages::OfData,
    rows: None,
    metrics: &[higher("reward_gap")],
    scoring: Scoring::RewardGap,
    origin: Origin::Local { from: "preference data as `mpo train` reads it; held-out pairs" },
    licence: "that of the data",
    max_new_tokens: 0,
};

impl Benchmark for RewardGap {
    fn card(&self) -> &'static Card {
        &CARD
    }

    fn read(&self, source: &Source<'_>, langs: &[String]) -> Result<Loaded> {
        let file = source.file(CARD.name, None, &[".jsonl", ".json", ".parquet"])?;
        let pairs = pairs(&file.path)?;
        let mut order: Vec<&str> = langs.iter().map(String::as_str).collect();
        if order.is_empty() {
            pairs.iter().for_each(|row| {
                if !order.contains(&row.target.lang.as_str()) {
                    order.push(&row.target.lang);
                }
            });
        }
        let of = |lang: &&str| pairs.iter().filter(|row| row.target.lang == **lang).map(item).collect::<Vec<_>>();
        Ok(Loaded { items: order.iter().flat_map(of).collect(), files: vec![file], notes: Vec::new() })
    }
}

/// The pairs of a file, in its order; an item's `id` is a row's `id`.
///
/// # Errors
/// As in training; and a row that has only one of its answers, whose gap is undefined.
pub fn pairs(file: &Path) -> Result<Vec<PreferenceRow>> {
    let rows = data::load(&[file.to_owned()], &DataConfig::default())?;
    for row in &rows {
        ensure!(
            row.target.chosen.is_some() && row.target.rejected.is_some(),
            "`{}`: row `{}` has one answer only; a reward gap is the difference of two",
            file.display(),
            row.id
        );
    }
    Ok(rows)
}

fn item(row: &PreferenceRow) -> Item {
    let said_by_user = |turns: &[data::pair::Message]| {
        turns.iter().filter(|turn| turn.role == Role::User).map(|turn| turn.content.clone()).collect::<Vec<_>>()
    };
    Item {
        id: row.id.clone(),
        lang: row.target.lang.clone(),
        kind: Kind::Harmful,
        turns: said_by_user(&row.target.prompt),
        english: row.dominant.as_ref().filter(|pair| pair.lang == "en").map(|pair| said_by_user(&pair.prompt)).unwrap_or_default(),
        target: row.target.chosen.clone(),
        choices: Vec::new(),
        tags: Vec::new(),
        temperature: None,
        doc: json!({ "chosen": row.target.chosen, "rejected": row.target.rejected }),
    }
}
