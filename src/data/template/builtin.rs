//! The templates of the code released with the paper, by the names it gives them.
//!
//! They differ from the checkpoints' own: `llama3.1` has no system block with a date, `gemma` ends a response with `<eos>` and no
//! `<end_of_turn>`, `qwen` ends it with `<|im_end|>` and no newline; none of them trims the text. Source: `src/llamafactory/data/template.py`
//! of `circle-hit/MPO`.

/// The source of a built-in template: one for each of [`BUILTIN_TEMPLATES`](crate::config::BUILTIN_TEMPLATES).
pub(super) fn source(name: &str) -> Option<&'static str> {
    match name {
        "llama3.1" => Some(include_str!("llama3.1.jinja")),
        "gemma" => Some(include_str!("gemma.jinja")),
        "qwen" => Some(include_str!("qwen.jinja")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_name_that_a_configuration_may_have_has_a_source() {
        assert!(crate::config::BUILTIN_TEMPLATES.iter().all(|name| super::source(name).is_some()));
        assert_eq!(super::source("llama2"), None);
    }
}
