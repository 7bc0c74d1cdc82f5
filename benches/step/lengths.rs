//! Token lengths of the released preference data: what an epoch is measured on. Numbers only; the data's text is not in this repository.
//!
//! ```text
//! cargo bench --bench step -- lengths llama_mpo_data.json --tokenizer DIR --template llama3.1 > benches/lengths/llama.json
//! ```

use crate::job::{Lengths, Row};
use anyhow::{Context, Result, ensure};
use mpo::config::{DataConfig, OnOverlong};
use mpo::data;
use mpo::data::encode::{EncodedPreference, EncodedRow, Encoder};
use mpo::data::loader::dominant_numbers;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Dominant pairs taken, evenly spread over the file.
const N_PAIRS: usize = 10;

/// How a table is made.
#[derive(clap::Args)]
pub struct Recipe {
    /// The released file
    data: PathBuf,
    /// Folder with the tokenizer of the model that the file is for
    #[arg(long)]
    tokenizer: PathBuf,
    /// Built-in chat template
    #[arg(long)]
    template: String,
    /// What the table says of itself
    #[arg(long)]
    about: String,
}

#[derive(Serialize, Deserialize)]
struct Table {
    about: String,
    rows: Vec<Row>,
}

/// The rows of `benches/lengths/NAME.json`.
pub fn read(name: &str) -> Result<Vec<Row>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("benches/lengths/{name}.json"));
    let text = std::fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let table: Table = serde_json::from_slice(&text).with_context(|| format!("`{}` is damaged", path.display()))?;
    Ok(table.rows)
}

/// The table of a data file, one row a line: every row of every n-th dominant pair, cut to 1,024 tokens as a run would.
pub fn table(recipe: &Recipe) -> Result<String> {
    let config = DataConfig { template: recipe.template.clone(), on_overlong: OnOverlong::Truncate, ..DataConfig::default() };
    let pairs = data::load(std::slice::from_ref(&recipe.data), &config)?;
    let (rows, _) = Encoder::new(&recipe.tokenizer, &config)?.encode_all(&pairs)?;
    let numbers = dominant_numbers(&rows);
    let n_pairs = numbers.iter().max().map_or(0, |last| last + 1);
    ensure!(n_pairs >= N_PAIRS, "the file has {n_pairs} dominant pairs, {N_PAIRS} are taken");
    let taken = rows.iter().zip(&numbers).filter(|(_, number)| *number % (n_pairs / N_PAIRS) == 0);
    let lines = taken.map(|(row, number)| Ok(serde_json::to_string(&lengths(number / (n_pairs / N_PAIRS), row)?)?));
    let lines = lines.collect::<Result<Vec<_>>>()?;
    Ok(format!("{{\"about\": {}, \"rows\": [\n{}\n]}}\n", serde_json::to_string(&recipe.about)?, lines.join(",\n")))
}

fn lengths(pair: usize, row: &EncodedRow) -> Result<Row> {
    let of = |pair: &EncodedPreference| Lengths {
        prompt: pair.prompt.len(),
        chosen: pair.chosen.tokens.len(),
        rejected: pair.rejected.tokens.len(),
    };
    Ok(Row { pair, language: row.target.lang.clone(), dominant: of(row.dominant_pair()?), target: of(&row.target) })
}
