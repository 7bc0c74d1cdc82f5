//! The templates of the code released with the paper, by the names it gives them.
//!
//! They differ from the checkpoints' own: `llama3.1` has no system block with a date, `gemma` ends a response with `<eos>` and no
//! `<end_of_turn>`, `qwen` ends it with `<|im_end|>` and no newline; none of them trims the text. Source: `src/llamafactory/data/template.py`
//! of `circle-hit/MPO`.

/// Name and Jinja source.
pub const BUILTIN: [(&str, &str); 3] =
    [("llama3.1", include_str!("llama3.1.jinja")), ("gemma", include_str!("gemma.jinja")), ("qwen", include_str!("qwen.jinja"))];

/// The source of a built-in template.
pub fn source(name: &str) -> Option<&'static str> {
    BUILTIN.iter().find(|(known, _)| *known == name).map(|(_, source)| *source)
}
