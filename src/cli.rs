//! What the command line takes: clap types only, no behaviour. `--help` is the user's reference, so every convenience is written down here.

mod eval;
mod generate;

pub use eval::{EvalAction, EvalArgs, JudgeArgs};
pub use generate::{ChatArgs, GenerateArgs, SpeakerArgs};

use clap::{Args, Parser, Subcommand};
use std::num::NonZeroUsize;
use std::path::PathBuf;

const ABOUT: &str = "\
Multilingual reward gaP Optimization (MPO, arXiv 2505.16869).
Not *Mixed* Preference Optimization, which TRL and InternVL also call MPO.

Trains a chat model so that its preference for safe answers in one language holds in the others, or with one of the losses that the
method is compared with: SFT, DPO, IPO, robust DPO, R-DPO, CPO, ORPO, SimPO, KTO.";

const AFTER: &str = "\
First steps:
  mpo train --config smoke.toml             what MPO does, offline, in under a minute
  mpo recipes                               the configurations inside this binary
  mpo recipes show llama31.toml > my.toml   one of them, to edit
  mpo plan  --config my.toml                memory, operations and time that it will take
  mpo train --config my.toml --dry-run      check everything, train nothing
  mpo train --config my.toml
  mpo ablate --config my.toml               the same model under every loss, in one table
  mpo eval --bench multijail                what it did: the newest run, on a benchmark (`mpo eval --list`)
  mpo chat --model runs/first/final         try the trained model by hand

Exit status:
  0  done
  1  failed; from `mpo check`, also: something is wrong with the data
  2  wrong usage or configuration

Environment:
  NO_COLOR         no colours
  MPO_CACHE        where reference scores and downloaded data are kept
  HF_TOKEN, HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, HF_HUB_DISABLE_IMPLICIT_TOKEN   as the Hugging Face hub's own tools take them
  HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY     for everybody but this machine itself
  OPENAI_API_KEY   of a judge; sent encrypted, or within this machine";

/// `mpo`
#[derive(Debug, Parser)]
#[command(name = "mpo", version, about = ABOUT, after_help = AFTER, max_term_width = 120)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a model, or go on with a stopped run
    Train(TrainArgs),
    /// What a run will need: memory, operations, time, and what each switch would change
    Plan(PlanArgs),
    /// Look a data set over before training on it
    Check(CheckArgs),
    /// Measure reward gaps per row and per language, without training
    Gaps(GapsArgs),
    /// Train with one loss after another, with and without retention, and compare them in one table
    Ablate(AblateArgs),
    /// Add an adapter to its base model's weights, for programs that do not read adapters
    Merge(MergeArgs),
    /// What a model answers to one prompt, or to many
    Generate(GenerateArgs),
    /// Measure attack success, over-refusal and utility on benchmarks
    Eval(Box<EvalArgs>),
    /// Talk with a model
    Chat(ChatArgs),
    /// List the configurations inside this binary, or print one
    Recipes(RecipesArgs),
}

/// Where settings come from, shared by the commands that take a configuration.
#[derive(Debug, Clone, Default, Args)]
pub struct ConfigArgs {
    /// A TOML file, or the name of a built-in recipe if there is no such file (`llama31.toml`, `official/llama31`)
    ///
    /// The file wins where both exist. Relative paths in it start from the current folder. `mpo recipes` lists the built-in ones.
    #[arg(long, value_name = "FILE")]
    pub config: Option<String>,

    /// Override one key, as in `--set train.epochs=1`; may be repeated, the last one wins
    ///
    /// The value is TOML (`0.5`, `true`, `'["zh", "sw"]'`); a bare word is a string (`--set hardware.device=cpu`). It replaces the file's,
    /// together with what only made sense beside the old value: the other of `train.epochs` and `train.max_steps`, of
    /// `schedule.warmup_ratio` and `schedule.warmup_steps`, of `eval.path` and `eval.fraction`; the `sha256`, `revision`, `format` and
    /// `split` of a replaced path; the other keys of `[objective]` where another `objective.kind` is chosen; and keys of the file that nothing
    /// reads under a newly chosen `kind`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// `mpo train`
#[derive(Debug, Clone, Default, Args)]
#[command(after_help = "\
Examples:
  mpo train --config smoke.toml
  mpo train --config llama31.toml --set output.dir=runs/first --set train.max_steps=100
  mpo train --resume runs/first
  mpo train --resume runs/first --set train.max_steps=200

Written to `output.dir`, which must be new or empty without --resume:
  config.toml     every value in effect; runs again
  metrics.jsonl   one line a step, and one for each time that canaries are asked
  summary.json    what the end of the run says
  checkpoint-*/   a model folder (or adapter) each, and what --resume needs
  final/          the trained model, or the adapter where `adapter.kind` is lora
  best/           the same of the best checkpoint, with `checkpoint.best`
  canary/         what the benign prompts of `canary.path` were answered

Ctrl-C finishes the step and saves a checkpoint; a second one stops at once.")]
pub struct TrainArgs {
    /// The configuration.
    #[command(flatten)]
    pub settings: ConfigArgs,

    /// Go on with the run in this folder, from its newest intact checkpoint
    ///
    /// Its config.toml is used; with --config or --set, a change is refused with the difference unless it leaves finished steps as they
    /// were: where files lie, how often to save, evaluate and report, how many threads, activation checkpointing, and a longer run.
    #[arg(long, value_name = "OUT")]
    pub resume: Option<PathBuf>,

    /// Check everything, show the first encoded row with its response tokens marked, and stop; nothing is written
    #[arg(long)]
    pub dry_run: bool,

    /// Write a trace of where the time goes, to open at ui.perfetto.dev; `OUT/trace.json` when FILE is left out
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = DEFAULT_TRACE, conflicts_with = "dry_run")]
    pub profile: Option<PathBuf>,
}

/// Stands for `trace.json` in the run's folder: no file can have this name.
pub const DEFAULT_TRACE: &str = "/";

/// `mpo plan`
#[derive(Debug, Clone, Default, Args)]
#[command(after_help = "\
Examples:
  mpo plan --config smoke.toml
  mpo plan --config my.toml --set train.batch_size=6 --set train.group_by_dominant=true
  mpo plan --config my.toml --json > plan.json

The data is read and encoded as for training, the model's files are looked at and not loaded, and this machine is measured for about two
seconds. The table goes to stdout. Memory is the peak of the resident set, as `/usr/bin/time -v` reports it.")]
pub struct PlanArgs {
    /// A TOML file, or the name of a built-in recipe if there is no such file
    #[arg(long, value_name = "FILE")]
    pub config: String,

    /// Override one key, as in `--set train.epochs=1`; may be repeated, the last one wins
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// JSON in place of the table: bytes, operations and seconds
    #[arg(long)]
    pub json: bool,
}

/// `mpo check`
#[derive(Debug, Clone, Default, Args)]
#[command(after_help = "\
Examples:
  mpo check my.jsonl --model Qwen/Qwen2.5-7B-Instruct
  mpo check builtin:tiny --model builtin:tiny --gaps
  mpo check --config my.toml

With --config the report says whatever `mpo train` would refuse the data for; without it the loss is open, and only what every loss needs
is asked for. Columns that are not read are named. Files: JSON lines or a JSON array, gzip'ed or not, and Parquet.

Exit status: 0 nothing wrong, 1 something is wrong with the data or the check failed, 2 wrong usage or configuration.")]
pub struct CheckArgs {
    /// A file, `org/name` on the hub, `https://…` or `builtin:tiny`; `data.path` of --config when left out
    #[arg(required_unless_present = "config")]
    pub data: Option<String>,

    /// The model whose tokenizer and template count: a folder, `org/name` or `builtin:tiny`; `model.path` of --config when left out
    #[arg(long, value_name = "MODEL", required_unless_present = "config")]
    pub model: Option<String>,

    /// Template, truncation and end-of-response settings.
    #[command(flatten)]
    pub settings: ConfigArgs,

    /// Also score the dominant pairs and report those on which the model prefers the rejected answer
    #[arg(long)]
    pub gaps: bool,

    /// Only the first N rows
    #[arg(long, value_name = "N")]
    pub limit: Option<NonZeroUsize>,
}

/// `mpo gaps`
#[derive(Debug, Clone, Default, Args)]
#[command(after_help = "\
Examples:
  mpo gaps --model builtin:tiny --data builtin:tiny
  mpo gaps --config runs/first/config.toml --model runs/first/final
  mpo gaps --model runs/first/final --reference org/name --data my.jsonl --out gaps.jsonl
  mpo gaps --model org/name --adapter runs/lora/final --data my.jsonl

The table goes to stdout. Rows keep the file's order and none is dropped.")]
pub struct GapsArgs {
    /// Template, truncation and end-of-response settings.
    #[command(flatten)]
    pub settings: ConfigArgs,

    /// The policy: a folder, `org/name` or `builtin:tiny`; `model.path` of --config when left out
    #[arg(long, value_name = "MODEL", required_unless_present = "config")]
    pub model: Option<String>,

    /// A LoRA adapter for the policy, a folder in PEFT's format; `adapter.path` of --config when left out
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,

    /// The reference; the policy itself when left out here and in --config
    #[arg(long, value_name = "MODEL")]
    pub reference: Option<String>,

    /// A file, `org/name` on the hub, `https://…` or `builtin:tiny`; `data.path` of --config when left out
    #[arg(long, value_name = "DATA", required_unless_present = "config")]
    pub data: Option<String>,

    /// Also write one JSON line a row to this file
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

/// `mpo ablate`
#[derive(Debug, Clone, Default, Args)]
#[command(after_help = "\
Examples:
  mpo ablate --config smoke.toml
  mpo ablate --config my.toml --objectives mpo,dpo,sft --retention hidden --out runs/three
  mpo ablate --config smoke.toml --objectives dpo --set objective.beta=0.3 --out runs/beta

Every run has the configuration's model, data, length and learning rate; a loss's own keys have their defaults unless --set says otherwise. The
table goes to stdout: each run's own loss on training rows, then what can be compared, measured on the rows of `eval.path` (on `data.path`
without it): the mean reward gap of the target pairs, the share of positive ones, and the chosen answers' log-probability a token; the same
of the dominant pairs, for what the training took from the dominant language.

Written to --out: a run folder each, `OBJECTIVE-RETENTION`, and ablation.json. A command that was stopped goes on when it is given again.")]
pub struct AblateArgs {
    /// A TOML file, or the name of a built-in recipe if there is no such file
    #[arg(long, value_name = "FILE")]
    pub config: String,

    /// The losses to compare, as `objective.kind` names them; all when left out
    #[arg(long, value_name = "KIND,…", value_delimiter = ',')]
    pub objectives: Vec<String>,

    /// The retentions to run each loss with, as `retention.kind` names them; `none,hidden` when left out
    #[arg(long, value_name = "KIND,…", value_delimiter = ',')]
    pub retention: Vec<String>,

    /// Override one key in every run, as in `--set train.max_steps=20`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// The folder of all runs
    #[arg(long, value_name = "OUT", default_value = "runs/ablation")]
    pub out: PathBuf,
}

/// `mpo merge`
#[derive(Debug, Clone, Default, Args)]
#[command(after_help = "\
Examples:
  mpo merge --model org/name --adapter runs/lora/final --out merged
  mpo merge --model org/name --adapter runs/lora/final --out merged --verify my.jsonl

Sums are f32 and rounded once. --verify scores every answer of DATA with the adapter and with the written model, in f32, and prints the largest
difference: with --dtype f32 rounding alone, about 1e-4 nats; in bf16 the rounding of the weights, which can be larger than what was trained.")]
pub struct MergeArgs {
    /// The base: a folder, `org/name` or `builtin:tiny`
    #[arg(long, value_name = "MODEL")]
    pub model: String,

    /// Branch, tag or commit of the base on the hub
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,

    /// The adapter: a folder in PEFT's format, such as the `final` of a run
    #[arg(long, value_name = "DIR")]
    pub adapter: PathBuf,

    /// The new model folder
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// The type of the weights that are written; `checkpoint` is that of the base
    #[arg(long, value_name = "DTYPE", default_value = "checkpoint", value_parser = ["checkpoint", "f32", "bf16"])]
    pub dtype: String,

    /// Compare adapter and merged model on these rows: a file, `org/name` on the hub, `https://…` or `builtin:tiny`
    #[arg(long, value_name = "DATA")]
    pub verify: Option<String>,

    /// Template and truncation of the rows of --verify.
    #[command(flatten)]
    pub settings: ConfigArgs,
}

/// `mpo recipes`
#[derive(Debug, Clone, Default, Args)]
pub struct RecipesArgs {
    /// Print one instead of the list.
    #[command(subcommand)]
    pub action: Option<RecipesAction>,
}

/// What to do with a recipe.
#[derive(Debug, Clone, Subcommand)]
pub enum RecipesAction {
    /// Print one to stdout, to edit: `mpo recipes show llama31.toml > my.toml`
    Show {
        /// Its name, with or without `.toml`
        name: String,
    },
}
