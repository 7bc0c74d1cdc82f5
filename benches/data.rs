//! From a file of rows to tokens, against the tokenizer's own `encode_batch`; and from a checkpoint to a model, against reading its bytes once.
//!
//! ```text
//! cargo bench --bench data                                       # made-up rows, the tiny model's tokenizer, SmolLM2-135M's shape
//! cargo bench --bench data -- --model DIR --data FILE --rows N   # a checkpoint and rows of one's own
//! ```
//!
//! `encode_batch` gets exactly the texts that we tokenise, already rendered and in memory; our time has the templating in it. With
//! `--from-file` on our side also the reading and parsing of the file. Rows share their dominant pair 6 to 1 as in the released data, which
//! saves us work that `encode_batch` has to do, so both are also measured on rows that share nothing. Each measurement is the median of rounds
//! that alternate. A model is loaded in a process of its own each time, as memory that a process had before costs less;
//! where the system has little free memory, new memory is most of the time.

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use mpo::config::{ComputeDtype, DataConfig};
use mpo::data::encode::{EncodedPreference, Encoder, Rendered};
use mpo::data::pair::{Message, PreferencePair, PreferenceRow, Role};
use mpo::model::decoder::{Decoder, Purpose};
use mpo::model::family;
use mpo::model::weights::{Checkpoint, SavedDtype, TensorToSave, save};
use mpo::reference::weights_digest;
use rayon::prelude::*;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::File;
use std::hint::black_box;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

#[derive(Parser)]
struct Arguments {
    /// Checkpoint whose tokenizer, template and weights are used, in place of the tiny model's and of random weights
    #[arg(long)]
    model: Option<PathBuf>,
    /// Rows in any format that mpo reads, in place of made-up ones
    #[arg(long)]
    data: Option<PathBuf>,
    #[arg(long, default_value_t = 6000)]
    rows: usize,
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    threads: Vec<usize>,
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Measure one thing once, in this process, and print the seconds as JSON
    #[arg(long, hide = true)]
    measure: Option<Measure>,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Measure {
    /// Decoder::load, and the hash by which reference scores are kept.
    Load,
    /// What cannot be avoided: the weights' bytes are read, memory for their f32 values is new and written.
    Floor,
}

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/tiny");
/// Made-up rows are kept here, so that they are read as a user's are.
const ROWS_FILE: &str = "target/bench/rows.jsonl";
const RANDOM_MODEL: &str = "target/bench/smollm2-135m-bf16";
/// Rows that share a dominant pair, one for each target language.
const TARGETS: [&str; 6] = ["zh", "ja", "ko", "ar", "bn", "sw"];

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let weights = match &arguments.model {
        Some(model) => model.clone(),
        None => random_model()?,
    };
    for &n_threads in &arguments.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build()?;
        if let Some(measure) = arguments.measure {
            let seconds = pool.install(|| match measure {
                Measure::Load => load(&weights),
                Measure::Floor => floor(&weights),
            })?;
            println!("{}", json!(seconds));
            return Ok(());
        }
        println!("{n_threads} threads");
        pool.install(|| encode(&arguments))?;
        report_load(&weights, arguments.rounds, n_threads)?;
    }
    println!("peak memory {:.0} MiB", mpo::device::peak_rss_bytes() as f64 / f64::from(1 << 20));
    Ok(())
}

fn encode(arguments: &Arguments) -> Result<()> {
    let config = DataConfig { limit: Some(arguments.rows), ..DataConfig::default() };
    let encoder = Encoder::new(arguments.model.as_deref().unwrap_or(Path::new(TINY)), &config)?;
    let path = match &arguments.data {
        Some(path) => path.clone(),
        None => write_rows(arguments.rows)?,
    };
    let shared = mpo::data::load(std::slice::from_ref(&path), &config)?;
    let distinct: Vec<PreferenceRow> = shared.iter().enumerate().map(|(row, pair)| with_own_dominant(row, pair)).collect();
    for (what, pairs) in [("rows as they are", &shared), ("no dominant pair shared", &distinct)] {
        let texts = texts(&encoder, pairs)?;
        let n_bytes: usize = texts.iter().map(String::len).sum();
        let [ours, render, batch, fast] = medians(
            arguments.rounds,
            [
                &|| encoder.encode_all(pairs).map(drop),
                &|| self::texts(&encoder, pairs).map(drop),
                &|| {
                    encoder
                        .tokenizer()
                        .encode_batch(texts.iter().map(String::as_str).collect(), false)
                        .map(drop)
                        .map_err(anyhow::Error::from_boxed)
                },
                &|| {
                    encoder
                        .tokenizer()
                        .encode_batch_fast(texts.iter().map(String::as_str).collect(), false)
                        .map(drop)
                        .map_err(anyhow::Error::from_boxed)
                },
            ],
        )?;
        println!(
            "  {what}: {:.0} rows/s; {} rows, {:.1} MB of text: ours {ours:.3} s (templating alone {render:.3}), encode_batch {batch:.3} s, \
             encode_batch_fast {fast:.3} s; ours / encode_batch {:.2}, / fast {:.2}",
            pairs.len() as f64 / ours,
            pairs.len(),
            n_bytes as f64 / 1e6,
            ours / batch,
            ours / fast
        );
    }
    let [file] = medians(arguments.rounds, [&|| encoder.encode_files(std::slice::from_ref(&path), &config).map(drop)])?;
    let (rows, _) = encoder.encode_files(std::slice::from_ref(&path), &config)?;
    let n_tokens: usize = rows.iter().flat_map(|row| row.pairs().map(EncodedPreference::n_packed)).sum();
    println!("  file to tokens: {file:.3} s, {:.0} rows/s; {:.1} MB of tokens", rows.len() as f64 / file, 4e-6 * n_tokens as f64);
    Ok(())
}

/// Everything that is tokenised for `pairs`.
fn texts(encoder: &Encoder, pairs: &[PreferenceRow]) -> Result<Vec<String>> {
    let of = |preference: &PreferencePair| -> Result<Vec<String>> {
        let Rendered { prompt, chosen, rejected, ending } = encoder.render(preference)?;
        Ok([Some(prompt), chosen, rejected, ending].into_iter().flatten().collect())
    };
    let of_row = |row: &PreferenceRow| row.pairs().map(of).collect::<Result<Vec<_>>>().map(|texts| texts.concat());
    let of_rows = pairs.par_iter().map(of_row).collect::<Result<Vec<_>>>()?;
    Ok(of_rows.into_iter().flatten().collect())
}

/// The row with one more word in its dominant pair, and so shared with no other.
fn with_own_dominant(row: usize, pair: &PreferenceRow) -> PreferenceRow {
    let mut pair = pair.clone();
    if let Some(turn) = pair.dominant.as_mut().and_then(|dominant| dominant.prompt.last_mut()) {
        turn.content += &format!(" {row}");
    }
    pair
}

fn report_load(model: &Path, rounds: usize, n_threads: usize) -> Result<()> {
    let run = |measure: &str| -> Result<[f64; 2]> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--measure", measure, "--threads", &n_threads.to_string(), "--model"]).arg(model);
        let output = command.output()?;
        ensure!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let mut seconds = [const { Vec::new() }; 4];
    for _ in 0..rounds {
        let ([read, write], [load, digest]) = (run("floor")?, run("load")?);
        seconds.iter_mut().zip([read, write, load, digest]).for_each(|(all, one)| all.push(one));
    }
    let [read, write, load, digest] = seconds.map(median);
    println!(
        "  load for training: {load:.3} s; its bytes read once {read:.3} s, new memory for f32 values written once {write:.3} s: {:.2} times \
         both; sha256 of the values {digest:.3} s",
        load / (read + write)
    );
    Ok(())
}

fn load(model: &Path) -> Result<[f64; 2]> {
    let start = Instant::now();
    let decoder = Decoder::load(model, ComputeDtype::F32, Purpose::Train)?;
    let load = start.elapsed();
    weights_digest(&decoder)?;
    Ok([load, start.elapsed() - load].map(|time| time.as_secs_f64()))
}

fn floor(model: &Path) -> Result<[f64; 2]> {
    let n_values = Checkpoint::open(model)?.n_parameters();
    let file = File::open(model.join("model.safetensors"))?;
    let start = Instant::now();
    // SAFETY: nobody writes to the checkpoint while it is measured.
    black_box(sum(&unsafe { memmap2::Mmap::map(&file)? }));
    let read = start.elapsed();
    let mut values = vec![0f32; n_values];
    values.par_chunks_mut(1 << 16).for_each(|values| values.fill(1.0));
    black_box(values);
    Ok([read, start.elapsed() - read].map(|time| time.as_secs_f64()))
}

/// Touches every byte.
fn sum(bytes: &[u8]) -> u64 {
    let words = |piece: &[u8]| piece.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).fold(0, u64::wrapping_add);
    bytes.par_chunks(1 << 20).map(words).reduce(|| 0, u64::wrapping_add)
}

/// Median seconds of each task, in rounds over all of them, after one that is not counted.
fn medians<const N: usize>(rounds: usize, tasks: [&dyn Fn() -> Result<()>; N]) -> Result<[f64; N]> {
    let mut seconds = [const { Vec::new() }; N];
    for round in 0..=rounds {
        for (task, seconds) in tasks.iter().zip(&mut seconds) {
            let start = Instant::now();
            task()?;
            if round > 0 {
                seconds.push(start.elapsed().as_secs_f64());
            }
        }
    }
    Ok(seconds.map(median))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Rows in six languages, texts of 100 to 600 characters, made of the words of the tiny model's training data. Every fourth word is made of
/// the halves of two: a tokenizer remembers words that it has seen, and real text always has new ones.
fn write_rows(n_rows: usize) -> Result<PathBuf> {
    let tiny = Path::new(TINY).join("train.jsonl");
    let mut words: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pair in mpo::data::load(&[tiny], &DataConfig::default())? {
        for side in pair.pairs() {
            let of_language = words.entry(side.lang.clone()).or_default();
            for text in side.prompt.iter().map(|turn| turn.content.as_str()).chain(side.responses().map(|(_, text)| text)) {
                of_language.extend(text.split_inclusive([' ', '、', '，']).map(str::to_owned));
            }
        }
    }
    let path = PathBuf::from(ROWS_FILE);
    std::fs::create_dir_all(path.parent().context("a folder for the rows")?)?;
    let mut out = BufWriter::new(File::create(&path)?);
    let mut random = Random(0);
    let mut dominant = None;
    for row in 0..n_rows {
        if row % TARGETS.len() == 0 {
            dominant = Some(random.pair("en", &words["en"]));
        }
        let lang = TARGETS[row % TARGETS.len()];
        let json =
            |pair: &PreferencePair| json!({ "lang": pair.lang, "prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected });
        let target = random.pair(lang, &words[lang]);
        writeln!(out, "{}", json!({ "id": row, "dominant": dominant.as_ref().map(json), "target": json(&target) }))?;
    }
    out.flush()?;
    Ok(path)
}

/// SmolLM2-135M's shape in bf16, written once.
fn random_model() -> Result<PathBuf> {
    let dir = PathBuf::from(RANDOM_MODEL);
    if dir.join("model.safetensors").is_file() {
        return Ok(dir);
    }
    let config = json!({
        "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 8192,
        "tie_word_embeddings": true,
    });
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("config.json"), config.to_string())?;
    let mut random = Random(0);
    let shapes = family::expected_tensors(&family::describe(&config)?);
    let mut values = |shape: &[usize]| (0..shape.iter().product()).map(|_| random.below(1000) as f32 / 1e4 - 0.05).collect::<Vec<_>>();
    let tensors: Vec<_> = shapes.iter().map(|(name, shape)| (name, shape, values(shape))).collect();
    let to_save = tensors.iter().map(|(name, shape, values)| TensorToSave { name, shape, values, dtype: SavedDtype::Bf16 });
    save(&dir, &to_save.collect::<Vec<_>>(), u64::MAX)?;
    Ok(dir)
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    fn pair(&mut self, lang: &str, words: &[String]) -> PreferencePair {
        let prompt = vec![Message { role: Role::User, content: self.text(words, 200) }];
        PreferencePair { lang: lang.into(), prompt, chosen: Some(self.text(words, 600)), rejected: Some(self.text(words, 600)) }
    }

    /// 100 to `most` characters.
    fn text(&mut self, words: &[String], most: usize) -> String {
        let n_chars = 100 + self.below(most - 100);
        let mut text = String::new();
        while text.chars().count() < n_chars {
            let word = &words[self.below(words.len())];
            match self.below(4) {
                0 => {
                    let half = |word: &str| word.chars().count() / 2;
                    let other = &words[self.below(words.len())];
                    text.extend(word.chars().take(half(word)).chain(other.chars().skip(half(other))));
                }
                _ => text += word,
            }
        }
        text.chars().take(n_chars).collect()
    }
}
