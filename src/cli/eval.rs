//! `mpo eval` and its subcommands.

use super::ConfigArgs;
use clap::{Args, Subcommand};
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// `mpo eval`
#[derive(Debug, Clone, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  mpo eval --list
  mpo eval --bench multijail                                the newest run in this folder, responses only
  mpo eval --bench multijail --model org/name --langs en,sw --judge openai:gpt-4o-mini
  mpo eval --bench prompts --data my.jsonl --model runs/first/final --judge keyword
  mpo eval --bench reward-gap --data heldout.jsonl --model runs/first/final --reference org/name
  mpo eval --resume evals/name/multijail
  mpo eval judge evals/name/multijail --judge guard:org/guard
  mpo eval report evals/base/xstest evals/tuned/xstest --baseline evals/base/xstest --html report.html

Written to --out (evals/MODEL/BENCH when left out), which must be new or empty without --resume:
  run.json                      what was asked of which model, and how
  BENCH/items.jsonl             the prompts
  BENCH/responses.jsonl         the answers, a line as soon as there is one
  BENCH/reference.jsonl         with --reference: its log-probabilities of the same pairs
  BENCH/verdicts-JUDGE.jsonl    the verdicts, a line as soon as there is one
  MODEL/results_*.json, MODEL/samples_*.jsonl    what lm-evaluation-harness' viewers read

Ctrl-C stops; everything finished is kept, and --resume does the rest. No response is printed unless --show-responses
asks for it. OPENAI_API_KEY is the key of an `openai:` judge, and is written nowhere."
)]
pub struct EvalArgs {
    /// Judge what was answered, report, or test a judge.
    #[command(subcommand)]
    pub action: Option<EvalAction>,

    /// Which benchmarks; `--list` names them
    #[arg(long, value_name = "BENCH,…", value_delimiter = ',')]
    pub bench: Vec<String>,

    /// Every benchmark: languages, source, licence, size, what it needs
    #[arg(long, conflicts_with_all = ["bench", "resume"])]
    pub list: bool,

    /// With --list: JSON in place of the table
    #[arg(long, requires = "list")]
    pub json: bool,

    /// The model: a folder, `org/name` or `builtin:tiny`; the newest run under this folder when left out
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,

    /// A LoRA adapter for it, a folder in PEFT's format
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,

    /// With reward-gap: the checkpoint that training started from, or any other, whose gaps stand beside
    ///
    /// Measured after the model on the same pairs, one of them in memory at a time; the report has gap, reference's gap and their difference.
    #[arg(long, value_name = "MODEL")]
    pub reference: Option<String>,

    /// Which languages; all that the benchmark has when left out
    #[arg(long, value_name = "LANG,…", value_delimiter = ',')]
    pub langs: Vec<String>,

    /// Only so many prompts, the same ones in every language; results are not comparable with those of the whole benchmark
    #[arg(long, value_name = "N")]
    pub limit: Option<NonZeroUsize>,

    /// Of the choice of --limit, of sampling, and of resampling
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,

    /// The benchmark's file or folder, for those that cannot be fetched, and instead of fetching
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,

    /// The folder to write; `evals/MODEL/BENCH` when left out
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,

    /// Go on with the run in this folder: nothing that is finished is done again
    ///
    /// What was asked of which model, and who judges, stands in its run.json. A run without a judge takes the one that is named now.
    #[arg(long, value_name = "DIR", conflicts_with_all = [
        "out", "bench", "model", "adapter", "reference", "langs", "limit", "data", "seed", "jailbreak", "max_new_tokens", "temperature", "top_p", "samples",
        "thinking", "config", "set",
    ])]
    pub resume: Option<PathBuf>,

    /// A text that is put around every harmful prompt (`{prompt}` marks the place), as MultiJail's intentional scenario does
    #[arg(long, value_name = "FILE")]
    pub jailbreak: Option<PathBuf>,

    /// Longest response, in tokens; the benchmark's own when left out (512, for MT-Bench 1024), and 4096 more for a model that thinks before it answers
    #[arg(long, value_name = "N")]
    pub max_new_tokens: Option<NonZeroUsize>,

    /// Whether the model thinks before it answers, for chat templates that can turn it on and off; as the template has it when left out
    ///
    /// What was thought is kept in responses.jsonl, and judged by nobody.
    #[arg(long, value_name = "on|off", value_parser = ["on", "off"])]
    pub thinking: Option<String>,

    /// Sample at this temperature in place of greedy decoding
    #[arg(long, value_name = "T")]
    pub temperature: Option<f64>,

    /// Sample only among the fewest tokens that together have this probability
    #[arg(long, value_name = "P", requires = "temperature")]
    pub top_p: Option<f64>,

    /// Answers for each prompt, for attack success at k; above 1 with --temperature
    #[arg(long, value_name = "K", default_value = "1")]
    pub samples: NonZeroUsize,

    /// Sequences that are decoded together; speed and memory, not results, depend on it
    #[arg(long, value_name = "N", default_value = "16")]
    pub batch_size: NonZeroUsize,

    /// Print prompts and responses as they come; they may be harmful
    #[arg(long)]
    pub show_responses: bool,

    /// Who judges; without one, responses are written and the refusal heuristic is shown.
    #[command(flatten)]
    pub judge: JudgeArgs,

    /// Template, threads and device.
    #[command(flatten)]
    pub settings: ConfigArgs,
}

/// Who judges.
#[derive(Debug, Clone, Args)]
pub struct JudgeArgs {
    /// `openai:MODEL`, `guard:DIR` (a local guard model) or `keyword` (a refusal heuristic)
    #[arg(long, value_name = "JUDGE")]
    pub judge: Option<String>,

    /// The OpenAI-compatible endpoint, up to `/v1`; OpenAI's own when left out
    #[arg(long, value_name = "URL")]
    pub judge_url: Option<String>,

    /// Translate responses to English before they are judged: `openai:MODEL` at the same endpoint
    ///
    /// A reply that is no translation (it refuses, answers, is not English, leaves out most or adds to it) makes an item unparsed, and is counted.
    #[arg(long, value_name = "JUDGE")]
    pub judge_translate: Option<String>,

    /// Longest reply of an `openai:` judge, in tokens, its thoughts included; 4096 when left out
    ///
    /// A reply that was cut off is no verdict. Where the judge's context leaves less room, less is asked for.
    #[arg(long, value_name = "N")]
    pub judge_max_tokens: Option<NonZeroUsize>,

    /// Ask the judge anew: pass by, and replace, what the cache has, and the verdicts that the run has of this judge
    ///
    /// Replies that could be read are kept in $MPO_CACHE/judge/replies.jsonl for all runs ($MPO_CACHE is ~/.cache/mpo when unset). A reply is known by all
    /// that was asked: the endpoint's address, the model's name, every message, temperature and number of tokens. Another model behind the same name is
    /// not seen.
    #[arg(long)]
    pub fresh: bool,

    /// Requests to the judge at the same time
    #[arg(long, value_name = "N", default_value = "8")]
    pub judge_concurrency: NonZeroUsize,

    /// How a guard is asked that has no card here: `polyguard` or `llama-guard-3`
    #[arg(long, value_name = "FORMAT")]
    pub guard_format: Option<String>,

    /// Ask this in place of the benchmark's own question: `multijail`, `xstest`, `csrt`, `mt-bench` or `strongreject`
    #[arg(long, value_name = "RUBRIC")]
    pub rubric: Option<String>,

    /// Judge languages too that the guard model's card does not name
    #[arg(long)]
    pub allow_uncovered: bool,

    /// Let the tested model judge itself
    #[arg(long)]
    pub allow_own_judge: bool,
}

/// What `mpo eval` does with runs that exist.
#[derive(Debug, Clone, Subcommand)]
pub enum EvalAction {
    /// Judge the responses of a run, with another judge too
    #[command(after_help = "\
A reply that is not clearly one verdict (cut off, filtered, refused, hedged) is unparsed: in no rate, counted by reason, and never kept in the cache.
Replies that could be read are kept in $MPO_CACHE/judge/replies.jsonl, known by the endpoint's address, the model's name, every message, temperature and
number of tokens; `--fresh` asks anew. What an endpoint refuses of temperature and number of tokens is left out, and the results say so.")]
    Judge {
        /// The folder of the run
        #[arg(value_name = "RUN")]
        run: PathBuf,

        /// Who judges.
        #[command(flatten)]
        judge: JudgeArgs,

        /// Ask again about the responses whose verdict could not be read; the new verdicts replace those
        #[arg(long)]
        retry_unparsed: bool,

        /// Print responses and verdicts as they come; they may be harmful
        #[arg(long)]
        show_responses: bool,
    },
    /// Compare runs: the paper's table, and a page with plots
    Report {
        /// The folders of the runs, a row each
        #[arg(value_name = "RUN", required = true)]
        runs: Vec<PathBuf>,

        /// The run that the others are compared with; no stars without it
        #[arg(long, value_name = "RUN")]
        baseline: Option<PathBuf>,

        /// Also write one self-contained page with plots
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,

        /// Which judge's verdicts, where a run has several
        #[arg(long, value_name = "JUDGE")]
        judge: Option<String>,
    },
    /// How well a judge agrees with people: sensitivity, specificity and kappa by language
    JudgeCheck {
        /// JSONL with `lang`, `query`, `response` and the right `label` (`safe`, `unsafe`, `invalid`)
        #[arg(long, value_name = "FILE")]
        gold: PathBuf,

        /// Also correct the attack success of this run for the judge's errors
        #[arg(long, value_name = "RUN")]
        correct: Option<PathBuf>,

        /// Who judges.
        #[command(flatten)]
        judge: JudgeArgs,
    },
}
