//! What `mpo generate` and `mpo chat` take.

use clap::Args;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// A model that is to speak, shared by the commands that generate.
#[derive(Debug, Clone, Args)]
pub struct SpeakerArgs {
    /// A folder, `org/name` or `builtin:tiny`
    #[arg(long, value_name = "MODEL")]
    pub model: String,

    /// Branch, tag or commit of the model on the hub
    #[arg(long, value_name = "REVISION")]
    pub revision: Option<String>,

    /// A LoRA adapter beside the model, a folder in PEFT's format
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,

    /// The chat template: `checkpoint`, the name of a built-in one (`llama3.1`, `gemma`, `qwen`), or a Jinja file
    #[arg(long, value_name = "TEMPLATE", default_value = "checkpoint")]
    pub template: String,

    /// What products are computed in; sums are f32 either way
    #[arg(long, value_name = "DTYPE", default_value = "f32", value_parser = ["f32", "bf16"])]
    pub dtype: String,

    /// Threads; all cores when left out. Texts do not depend on it
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,

    /// A system message before the conversation
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,

    /// Whether the model thinks before it answers, for chat templates that can turn it on and off; as the template has it when left out
    #[arg(long, value_name = "on|off", value_parser = ["on", "off"])]
    pub thinking: Option<String>,

    /// The most tokens of an answer; 512 when left out, and 4096 more for a model that thinks before it answers
    #[arg(long, value_name = "N")]
    pub max_new_tokens: Option<usize>,

    /// 0 takes the most likely token each time; 1 draws by the model's own probabilities
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temperature: f64,

    /// Draw among this many of the most likely tokens
    #[arg(long, value_name = "K")]
    pub top_k: Option<NonZeroUsize>,

    /// Draw among the fewest tokens that have this probability together
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub top_p: f64,

    /// Above 1 discourages tokens that were there before
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    pub repetition_penalty: f64,

    /// What random draws follow from
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    pub seed: u64,

    /// End the answer before this text; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
}

/// `mpo generate`
#[derive(Debug, Clone, Args)]
#[command(
    group = clap::ArgGroup::new("what").required(true).args(["prompt", "prompts"]),
    after_help = "\
Examples:
  mpo generate --model builtin:tiny --prompt 'May I take the umbrella?'
  mpo generate --model org/name --adapter runs/lora/final --prompts questions.jsonl --out answers.jsonl
  mpo generate --model org/name --prompt 'Once upon a time' --raw --temperature 0.8 --top-p 0.95 --seed 1

A single prompt's answer goes to stdout as it grows; on a terminal its control characters are escaped. With --prompts each answer is a line of
JSON, in the order of the file: `index`, `id` where the file has it, `prompt`, `text`, `answer` where `text` begins with a thought, `finish_reason` (`stop` or `length`), `n_tokens`, `n_prompt_tokens`, and
`log_prob`, the answer's log-probability in nats. An answer ends with a token that generation_config.json, the tokenizer or the chat template ends
texts with. It depends on the prompt and the options alone, not on the other prompts or on --batch-size.")]
pub struct GenerateArgs {
    /// The model and how it draws.
    #[command(flatten)]
    pub speaker: SpeakerArgs,

    /// One prompt: what the user says
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,

    /// Many prompts: JSON lines with `prompt` (a text, or a list of messages) or `messages`, and `id` if they have one
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,

    /// Go on with the prompt as it stands, without the chat template
    #[arg(long, conflicts_with = "system")]
    pub raw: bool,

    /// Prompts that are answered at once: more are faster together and take more memory
    #[arg(long, value_name = "N", requires = "prompts")]
    pub batch_size: Option<NonZeroUsize>,

    /// Write the lines to this file, which must be new, and not to stdout
    #[arg(long, value_name = "FILE", requires = "prompts")]
    pub out: Option<PathBuf>,
}

/// `mpo chat`
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  mpo chat --model runs/first/final
  mpo chat --model org/name --adapter runs/lora/final --temperature 0.7 --system 'Answer in Swahili.'

A line is a message; its answer ends with the model's end of turn. `/reset` forgets the conversation, `/undo` its last turn; Ctrl-D or `/quit` ends.
Every answer reads the whole conversation again. The same questions with the same options have the same answers.")]
pub struct ChatArgs {
    /// The model and how it draws.
    #[command(flatten)]
    pub speaker: SpeakerArgs,
}
