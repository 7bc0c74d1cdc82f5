//! The parts of the comparison: which jobs each runs in alternation, and which lines of the table it fills.

use crate::floor::{self, ProductList};
use crate::job::{Engine, Job, Lengths, Measured, Row};
use crate::processes::{Results, Series};
use crate::report::Mark::{AtLeast, AtMost};
use crate::report::{Line, Mark, Quantity};
use crate::{Options, lengths, shapes};
use anyhow::Result;
use clap::ValueEnum;
use mpo::config::ComputeDtype::{self, Bf16, F32};
use mpo::model::family;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// One row of four sequences of 256 tokens on SmolLM2-135M's shape, against every peer and the floor
    F32,
    /// The same in bf16
    Bf16,
    /// Peak memory of that step, with and without checkpointing
    Memory,
    /// The same step with an adapter of rank 16 in the place of all weights: time and peak memory
    Lora,
    /// One thread against more
    Threads,
    /// Sequences of 128 to 2,048 tokens
    Lengths,
    /// Qwen2.5-0.5B's shape, against its floor
    #[value(name = "0.5b")]
    HalfBillion,
    /// The head alone at a vocabulary of 262,144
    Head,
    /// One epoch over 60 rows with the released files' token lengths
    Epoch,
}

/// What a part measures.
pub struct Comparison {
    pub rounds: usize,
    /// In the order of a round, under the labels that the table looks up.
    pub jobs: Vec<(String, Job)>,
}

const MPO: &str = "mpo";
const CHECKPOINTING: &str = "mpo, checkpointing";
const LORA: &str = "mpo, LoRA rank 16";
const RELEASED: &str = "PyTorch SDPA, released way";
const EAGER: &str = "PyTorch eager, released way";
const LEAN: &str = "PyTorch lean";
const TRL: &str = "TRL DPO";
const FULL_LOGITS: &str = "PyTorch full logits";
/// The floor is the fastest of these.
const LISTS: [(&str, Engine); 3] =
    [("products, gemm crate", Engine::GemmList), ("products, mpo::ops", Engine::OpList), ("products, PyTorch", Engine::TorchList)];

/// Tokens of a sequence of the row that most of the table is about.
const SEQUENCE: usize = 256;
const SEQUENCES: [usize; 5] = [128, 256, 512, 1024, 2048];
const EPOCHS: [&str; 2] = ["llama", "gemma"];

impl Part {
    pub const ALL: [Self; 9] =
        [Self::F32, Self::Bf16, Self::Memory, Self::Lora, Self::Threads, Self::Lengths, Self::HalfBillion, Self::Head, Self::Epoch];
    pub const QUICK: [Self; 4] = [Self::F32, Self::Bf16, Self::Threads, Self::Lengths];

    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    pub fn comparison(self, options: &Options) -> Result<Comparison> {
        let base = |engine, dtype| job(options, engine, shapes::SMOLLM2, dtype, SEQUENCE);
        let labelled = |(label, engine): (&str, Engine), dtype| Ok((label.to_owned(), base(engine, dtype)?));
        let peers = [(RELEASED, Engine::ReleasedSdpa), (EAGER, Engine::ReleasedEager), (LEAN, Engine::Lean), (TRL, Engine::TrlDpo)];
        let (rounds, jobs): (usize, Result<Vec<(String, Job)>>) = match self {
            Self::F32 | Self::Bf16 => {
                let dtype = if self == Self::F32 { F32 } else { Bf16 };
                let (lists, peers) = if options.quick { (&lists(dtype)[..1], &peers[..1]) } else { (lists(dtype), &peers[..]) };
                let engines = [(MPO, Engine::Mpo)].iter().chain(lists).chain(peers);
                (usize::MAX, engines.map(|&engine| labelled(engine, dtype)).collect())
            }
            Self::Memory => {
                let engines = [(MPO, Engine::Mpo), (CHECKPOINTING, Engine::MpoCheckpointing), peers[0]];
                (2, engines.into_iter().map(|engine| labelled(engine, F32)).collect())
            }
            Self::Lora => {
                let engines = [(MPO, Engine::Mpo), (LORA, Engine::MpoLora)];
                (usize::MAX, engines.into_iter().map(|engine| labelled(engine, F32)).collect())
            }
            Self::Threads => (usize::MAX, threads(options)),
            Self::Lengths => (2, sequences(options)),
            Self::HalfBillion => (2, half_billion(options)),
            Self::Head => (usize::MAX, head(options)),
            Self::Epoch => (1, epochs(options)),
        };
        Ok(Comparison { rounds: options.rounds(rounds), jobs: jobs? })
    }

    /// The lines that can be filled from what was measured so far.
    pub fn lines(self, results: &Results) -> Vec<Line> {
        let get = |label: &str| results.series(self, label);
        let lines = match self {
            Self::F32 => vec![
                faster("step, f32", get(MPO), (RELEASED, get(RELEASED)), Some(AtLeast { pass: 1.6, aim: 1.75 })),
                faster("step, f32", get(MPO), (EAGER, get(EAGER)), None),
                faster("step, f32", get(MPO), (LEAN, get(LEAN)), None),
                faster("step, f32", get(MPO), (TRL, get(TRL)), None),
                floor_line("step, f32", get(MPO), &LISTS.map(|(label, _)| get(label)), Some(AtLeast { pass: 0.85, aim: 0.90 })),
            ],
            Self::Bf16 => vec![
                faster("step, bf16", get(MPO), (RELEASED, get(RELEASED)), Some(AtLeast { pass: 1.5, aim: 1.8 })),
                faster("step, bf16", get(MPO), (LEAN, get(LEAN)), Some(AtLeast { pass: 1.3, aim: 1.6 })),
                faster("step, bf16", get(MPO), (EAGER, get(EAGER)), None),
                faster("step, bf16", get(MPO), (TRL, get(TRL)), None),
                floor_line("step, bf16", get(MPO), &LISTS.map(|(label, _)| get(label)), None),
            ],
            Self::Memory => {
                let mark = Some(AtMost { pass: 0.50, aim: 0.45 });
                vec![
                    smaller("peak memory, f32", get(MPO), (RELEASED, get(RELEASED)), mark),
                    smaller("peak memory, f32, checkpointing", get(CHECKPOINTING), (RELEASED, get(RELEASED)), mark),
                ]
            }
            Self::Lora => vec![
                smaller("peak memory, LoRA rank 16, f32", get(LORA), (MPO, get(MPO)), Some(AtMost { pass: 0.40, aim: 0.40 })),
                faster("step, LoRA rank 16, f32", get(LORA), (MPO, get(MPO)), Some(AtLeast { pass: 1.0, aim: 1.0 })),
            ],
            Self::Threads => thread_lines(get),
            Self::Lengths => sequence_lines(get),
            Self::HalfBillion => [F32, Bf16]
                .map(|dtype| {
                    let lists = LISTS.map(|(label, _)| get(&format!("{label}, {}", name(dtype))));
                    floor_line(&format!("step, 0.5b, {}", name(dtype)), get(&format!("{MPO}, {}", name(dtype))), &lists, None)
                })
                .into(),
            Self::Head => {
                let memory = Some(AtMost { pass: 0.15, aim: 0.15 });
                vec![
                    head_memory(get(MPO), get(FULL_LOGITS), memory),
                    faster(
                        "head, 262,144 x 640, 1,024 tokens",
                        get(MPO),
                        (FULL_LOGITS, get(FULL_LOGITS)),
                        Some(AtLeast { pass: 1.0, aim: 1.05 }),
                    ),
                ]
            }
            Self::Epoch => EPOCHS
                .iter()
                .zip([AtLeast { pass: 1.7, aim: 2.0 }, AtLeast { pass: 2.4, aim: 3.0 }])
                .map(|(table, mark)| epoch_line(table, get(&format!("{MPO}, {table}")), get(&format!("{RELEASED}, {table}")), mark))
                .collect(),
        };
        lines.into_iter().flatten().collect()
    }
}

/// The `gemm` crate has no bf16.
fn lists(dtype: ComputeDtype) -> &'static [(&'static str, Engine)] {
    match dtype {
        F32 => &LISTS,
        Bf16 => &LISTS[1..],
    }
}

fn name(dtype: ComputeDtype) -> &'static str {
    match dtype {
        F32 => "f32",
        Bf16 => "bf16",
    }
}

/// A row of four sequences, an optimizer step for each pass.
fn job(options: &Options, engine: Engine, shape: &str, dtype: ComputeDtype, n_tokens: usize) -> Result<Job> {
    let config = shapes::config(shape);
    let mut job = Job {
        engine,
        shape: shape.into(),
        dtype,
        threads: options.threads,
        rows: vec![Row::of_length(n_tokens)],
        batch_size: 1,
        warm_up: 1,
        passes: options.steps(),
        counts_reference: false,
        list: None,
        config,
    };
    if LISTS.iter().any(|(_, list)| *list == engine) {
        job.list = Some(ProductList::of_step(&job, &family::describe(&job.config)?)?);
    }
    Ok(job)
}

fn threads(options: &Options) -> Result<Vec<(String, Job)>> {
    let dtypes = if options.quick { &[F32][..] } else { &[F32, Bf16] };
    let mut jobs = Vec::new();
    for &dtype in dtypes {
        for threads in [1, options.threads] {
            let job = job(options, Engine::Mpo, shapes::SMOLLM2, dtype, SEQUENCE)?;
            jobs.push((threaded(name(dtype), threads == 1), Job { threads, ..job }));
        }
    }
    for threads in if options.quick { vec![] } else { vec![1, options.threads] } {
        let job = job(options, Engine::GemmList, shapes::SMOLLM2, F32, SEQUENCE)?;
        jobs.push((threaded("products", threads == 1), Job { threads, ..job }));
    }
    Ok(jobs)
}

fn threaded(what: &str, is_one: bool) -> String {
    format!("{what}, {}", if is_one { "one thread" } else { "all threads" })
}

fn sequences(options: &Options) -> Result<Vec<(String, Job)>> {
    let lengths = if options.quick { &SEQUENCES[1..3] } else { &SEQUENCES[..] };
    let mut jobs = Vec::new();
    for &n in lengths {
        let passes = options.steps().min(2);
        jobs.push((format!("{MPO}, {n}"), Job { passes, ..job(options, Engine::Mpo, shapes::SMOLLM2, F32, n)? }));
        if options.quick {
            continue;
        }
        let (label, engine) = LISTS[0];
        jobs.push((format!("{label}, {n}"), Job { passes: 1, ..job(options, engine, shapes::SMOLLM2, F32, n)? }));
    }
    Ok(jobs)
}

fn half_billion(options: &Options) -> Result<Vec<(String, Job)>> {
    let mut jobs = Vec::new();
    for dtype in [F32, Bf16] {
        for (label, engine) in [(MPO, Engine::Mpo)].iter().chain(lists(dtype)) {
            let job = job(options, *engine, shapes::QWEN, dtype, SEQUENCE)?;
            jobs.push((format!("{label}, {}", name(dtype)), Job { passes: options.steps().min(2), ..job }));
        }
    }
    Ok(jobs)
}

fn head(options: &Options) -> Result<Vec<(String, Job)>> {
    let lengths = Lengths { prompt: 1, chosen: 512, rejected: 512 };
    let row = Row { dominant: lengths, target: lengths, ..Row::of_length(0) };
    let job = |(label, engine): (&str, Engine)| {
        let job = job(options, engine, shapes::HEAD, F32, 0)?;
        Ok((label.to_owned(), Job { rows: vec![row.clone()], ..job }))
    };
    [(MPO, Engine::Mpo), (FULL_LOGITS, Engine::FullLogits)].into_iter().map(job).collect()
}

fn epochs(options: &Options) -> Result<Vec<(String, Job)>> {
    let mut jobs = Vec::new();
    for table in EPOCHS {
        let rows: Vec<Row> = lengths::read(table)?.into_iter().take(options.epoch_rows).collect();
        for (label, engine, batch_size) in [(MPO, Engine::Mpo, 6), (RELEASED, Engine::ReleasedSdpa, 1)] {
            let job = job(options, engine, shapes::SMOLLM2, F32, SEQUENCE)?;
            let job = Job { rows: rows.clone(), batch_size, passes: 1, counts_reference: true, ..job };
            jobs.push((format!("{label}, {table}"), job));
        }
    }
    Ok(jobs)
}

/// Times of an engine, one value a round.
fn seconds(series: &Series) -> Vec<f64> {
    series.rounds.iter().map(Measured::median_seconds).collect()
}

fn faster(work: &str, ours: Option<&Series>, (name, theirs): (&str, Option<&Series>), mark: Option<Mark>) -> Option<Line> {
    let times = (seconds(ours?), seconds(theirs?));
    Some(Line::new((work, name), Quantity::Seconds, times, |ours, theirs| theirs / ours, mark))
}

fn smaller(work: &str, ours: Option<&Series>, (name, theirs): (&str, Option<&Series>), mark: Option<Mark>) -> Option<Line> {
    let bytes = |series: &Series| series.rounds.iter().map(|round| round.peak_rss_bytes as f64).collect();
    Some(Line::new((work, name), Quantity::Bytes, (bytes(ours?), bytes(theirs?)), |ours, theirs| ours / theirs, mark))
}

/// Seconds of the floor, one value a round: the fastest list, and attention's FLOPs at its rate.
fn floor_seconds(ours: &Series, lists: &[Option<&Series>]) -> Option<Vec<f64>> {
    let model = family::describe(&ours.job.config).ok()?;
    let share = 1.0 + floor::attention_flops(&ours.job, &model) / ProductList::of_step(&ours.job, &model).ok()?.flops();
    let lists: Vec<Vec<f64>> = lists.iter().flatten().map(|list| seconds(list)).collect();
    let n_rounds = lists.iter().map(Vec::len).min()?;
    Some((0..n_rounds).map(|round| share * lists.iter().map(|list| list[round]).fold(f64::INFINITY, f64::min)).collect())
}

fn floor_line(work: &str, ours: Option<&Series>, lists: &[Option<&Series>], mark: Option<Mark>) -> Option<Line> {
    let floor = floor_seconds(ours?, lists)?;
    let times = (seconds(ours?), floor);
    Some(Line::new((work, "its floor (share reached)"), Quantity::Seconds, times, |ours, floor| floor / ours, mark))
}

fn thread_lines<'a>(get: impl Fn(&str) -> Option<&'a Series>) -> Vec<Option<Line>> {
    let pair = |what: &str| Some((get(&threaded(what, true))?, get(&threaded(what, false))?));
    let speedup = |what: &str, mark: Option<Mark>| {
        let (one, all) = pair(what)?;
        let work = format!("all threads, {what}");
        faster(&work, Some(all), ("one thread", Some(one)), mark)
    };
    let cpu = |what: &str| {
        let (one, all) = pair(what)?;
        let cpu_seconds = |series: &Series| series.rounds.iter().map(Measured::median_cpu_seconds).collect();
        let times = (cpu_seconds(all), cpu_seconds(one));
        let mark = Some(AtMost { pass: 1.1, aim: 1.0 });
        Some(Line::new((&format!("CPU time, all threads, {what}"), "one thread"), Quantity::Seconds, times, |all, one| all / one, mark))
    };
    let mark = Some(AtLeast { pass: 1.8, aim: 1.9 });
    vec![speedup("f32", mark), speedup("bf16", mark), speedup("products", None), cpu("f32"), cpu("bf16")]
}

/// Shares of the floor, then the growth of time per token against that of FLOPs per token.
fn sequence_lines<'a>(get: impl Fn(&str) -> Option<&'a Series>) -> Vec<Option<Line>> {
    let ours = |n: usize| get(&format!("{MPO}, {n}"));
    let mut lines: Vec<Option<Line>> = SEQUENCES
        .iter()
        .map(|&n| floor_line(&format!("step, f32, sequences of {n}"), ours(n), &[get(&format!("{}, {n}", LISTS[0].0))], None))
        .collect();
    lines.extend(SEQUENCES.iter().filter(|&&n| n > SEQUENCE).map(|&n| growth_line(n, ours(SEQUENCE)?, ours(n)?)));
    lines
}

fn growth_line(n: usize, short: &Series, long: &Series) -> Option<Line> {
    let flops = |series: &Series| {
        let model = family::describe(&series.job.config).ok()?;
        let list = ProductList::of_step(&series.job, &model).ok()?;
        Some((list.flops() + floor::attention_flops(&series.job, &model)) / series.job.rows[0].n_tokens() as f64)
    };
    let per_token = |series: &Series| seconds(series).into_iter().map(|s| s / series.job.rows[0].n_tokens() as f64).collect::<Vec<_>>();
    let grown: Vec<f64> = per_token(long).iter().zip(per_token(short)).map(|(long, short)| long / short).collect();
    let expected = vec![flops(long)? / flops(short)?; grown.len()];
    let work = format!("time per token, {SEQUENCE} to {n}");
    let mark = Some(AtMost { pass: 1.05, aim: 1.0 });
    Some(Line::new((&work, "FLOPs per token, attention included"), Quantity::Factor, (grown, expected), |ours, flops| ours / flops, mark))
}

fn head_memory(ours: Option<&Series>, theirs: Option<&Series>, mark: Option<Mark>) -> Option<Line> {
    let bytes = |series: &Series| series.rounds.iter().map(|round| round.extra_bytes.map(|bytes| bytes as f64)).collect::<Option<Vec<_>>>();
    let work = ("head's memory beyond weights and gradient", FULL_LOGITS);
    Some(Line::new(work, Quantity::Bytes, (bytes(ours?)?, bytes(theirs?)?), |ours, theirs| ours / theirs, mark))
}

fn epoch_line(table: &str, ours: Option<&Series>, theirs: Option<&Series>, mark: Mark) -> Option<Line> {
    let total = |series: &Series| series.rounds.iter().map(Measured::total_seconds).collect();
    let work = format!("epoch of {} rows, {table} lengths, reference included", ours?.job.rows.len());
    Some(Line::new((&work, RELEASED), Quantity::Seconds, (total(ours?), total(theirs?)), |ours, theirs| theirs / ours, Some(mark)))
}
