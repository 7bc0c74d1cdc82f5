//! What trials with inputs from public reports broke: a file for each kind, and tests for what must hold of the whole kind since.
//!
//! | kind | file | what must hold |
//! |---|---|---|
//! | a judge's reply | `judging` | one gate decides what is a verdict; all else is unparsed with its reason, costs one item and is never cached |
//! | a model's own thoughts, a translator's refusal | `thoughts` | thoughts are kept and judged by nobody; a refusal is no translation |
//! | text that is compared | `text` | it is made comparable first; what the first words do not decide is unclear; an unknown language is unknown |
//! | columns and marks that change the meaning | `data` | nothing that a row says is dropped, or read as something else, without a word |
//! | files of others | `files` | what transformers loads, loads; what is damaged or hostile ends in one sentence |
//! | secrets and the network | `secrets` | keys and prompts reach the host that they are meant for; answers are bounded while they come |
//! | the command line | `command_line` | the examples of README and help run as they stand |
//!
//! `tests/it/fuzz` tries readers with inputs that are nearly right, and `tests/it/demonstration.rs` what the smoke run is to show.

mod command_line;
mod data;
mod files;
mod judging;
mod secrets;
mod text;
mod thoughts;
