//! What a request asks for beside the question, and what an endpoint will not have of it.
//!
//! A judge should answer greedily and say all that it has to say: `temperature` 0 and a number of tokens that leaves room for thoughts. Some models take
//! no temperature, some call the number of tokens `max_completion_tokens`, some allow fewer. What is refused is left out or named otherwise, for all
//! further questions once one was answered so; results say what was left out. What a reply is kept under in a cache is what was wished for.

use super::refusal::{ApiError, Meaning};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// Enough for a judge that thinks before it speaks; a verdict with its reasons takes some hundred.
pub const MAX_TOKENS: usize = 4096;
/// Where a context leaves less room than was asked for, a verdict may still fit.
const FEWEST_TOKENS: usize = 128;

const TEMPERATURE: &str = "temperature";
const MAX: &str = "max_tokens";
const MAX_COMPLETION: &str = "max_completion_tokens";

/// How the number of tokens is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    Tokens,
    CompletionTokens,
    /// The endpoint knows neither name.
    LeftOut,
}

/// Those of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters {
    is_greedy: bool,
    limit: Limit,
    max_tokens: usize,
}

/// Another try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// All questions are to be asked so, if it works.
    All(Parameters),
    /// This question leaves less room.
    One(Parameters),
}

impl Parameters {
    pub fn wished(max_tokens: usize) -> Self {
        Self { is_greedy: true, limit: Limit::Tokens, max_tokens }
    }

    /// Writes them into the body of a request.
    pub fn write(&self, body: &mut Map<String, Value>) {
        body.extend(self.set());
    }

    fn set(&self) -> BTreeMap<String, Value> {
        let limit = match self.limit {
            Limit::Tokens => Some((MAX.to_owned(), json!(self.max_tokens))),
            Limit::CompletionTokens => Some((MAX_COMPLETION.to_owned(), json!(self.max_tokens))),
            Limit::LeftOut => None,
        };
        self.is_greedy.then(|| (TEMPERATURE.to_owned(), json!(0))).into_iter().chain(limit).collect()
    }

    /// Names of what is wished for and left out.
    pub fn left_out(&self) -> Vec<String> {
        let limit = (self.limit == Limit::LeftOut).then_some(MAX);
        (!self.is_greedy).then_some(TEMPERATURE).into_iter().chain(limit).map(str::to_owned).collect()
    }

    /// As results have them: with [`LEFT_OUT`] in the place of a value that an endpoint refuses.
    pub fn card(&self) -> BTreeMap<String, Value> {
        self.left_out().into_iter().map(|name| (name, json!(LEFT_OUT))).chain(self.set()).collect()
    }

    /// What a cache's key has of them.
    pub fn key(&self) -> String {
        let set: Vec<String> = self.set().iter().map(|(name, value)| format!("{name}={value}")).collect();
        set.join(" ")
    }

    /// How to ask again after this error; `None` where it is about something else. Each change leaves less to change.
    pub fn without_refused(&self, error: &ApiError) -> Option<Change> {
        if matches!(error.status, 401 | 403 | 404 | 408 | 409 | 425 | 429) {
            return None;
        }
        let said = error.message.to_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| said.contains(word));
        let is_refusal = says(&[
            "unsupported",
            "not support",
            "n't support",
            "not permitted",
            "not allowed",
            "extra ",
            "unknown",
            "unrecognized",
            "unrecognised",
            "unexpected",
            "invalid",
            "deprecated",
            "must be",
            "should be",
            "positive",
            "only ",
            "cannot",
            "can't",
            "incompatible",
            "forbidden",
            "not accept",
            "instead",
            "between",
            "remove",
        ]);
        let is_about = |name: &str| error.parameter.as_deref() == Some(name) || is_refusal && has_word(&said, name);
        let is_about_limit = is_about(MAX_COMPLETION) || is_about(MAX);
        if self.is_greedy && is_about(TEMPERATURE) && !is_about_limit {
            return Some(Change::All(Self { is_greedy: false, ..*self }));
        }
        let is_too_much =
            says(&["too large", "at most", "less than", "<=", "maximum", "exceed", "greater than", "no more than", "too high", " > "]);
        let is_too_long = error.meaning() == Meaning::TooLong;
        let names_limit = is_about_limit || has_word(&said, MAX) || has_word(&said, MAX_COMPLETION);
        if self.limit != Limit::LeftOut && is_too_much && (names_limit || is_too_long) {
            let is_context = is_too_long && (!names_limit || says(&["context", "prompt", "input", "messages", "total"]));
            return self.with_fewer_tokens(&said, is_context);
        }
        if self.limit != Limit::LeftOut && is_about_limit {
            let limit = if self.limit == Limit::Tokens { Limit::CompletionTokens } else { Limit::LeftOut };
            return Some(Change::All(Self { limit, ..*self }));
        }
        None
    }

    /// Where a server counts the tokens that were asked for: as many as it allows, or a quarter where a question leaves that room to be found out.
    fn with_fewer_tokens(&self, said: &str, is_context: bool) -> Option<Change> {
        let numbers: Vec<usize> = said.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect();
        if is_context {
            let counts = numbers.len() > 1 && numbers.contains(&self.max_tokens);
            let max_tokens = self.max_tokens / 4;
            return (counts && max_tokens >= FEWEST_TOKENS).then_some(Change::One(Self { max_tokens, ..*self }));
        }
        let allowed = numbers.into_iter().filter(|number| (FEWEST_TOKENS..self.max_tokens).contains(number)).max();
        let max_tokens = allowed.unwrap_or(self.max_tokens / 4);
        (max_tokens >= FEWEST_TOKENS).then_some(Change::All(Self { max_tokens, ..*self }))
    }

    /// These, with what another request found out besides.
    pub fn with(&self, other: &Self) -> Self {
        let rank = |limit: Limit| match limit {
            Limit::Tokens => 0,
            Limit::CompletionTokens => 1,
            Limit::LeftOut => 2,
        };
        Self {
            is_greedy: self.is_greedy && other.is_greedy,
            limit: if rank(other.limit) > rank(self.limit) { other.limit } else { self.limit },
            max_tokens: self.max_tokens.min(other.max_tokens),
        }
    }

    /// What is said when others are found to be asked for than before.
    pub fn changes_since(&self, before: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        if before.is_greedy && !self.is_greedy {
            changes.push(format!("refuses `{TEMPERATURE}` 0: it is left out, so verdicts may vary from one asking to the next"));
        }
        if before.limit != self.limit {
            changes.push(match self.limit {
                Limit::LeftOut => format!("refuses `{MAX}`: it is left out"),
                _ => format!("calls `{MAX}` `{MAX_COMPLETION}`"),
            });
        }
        if before.max_tokens != self.max_tokens {
            changes.push(format!("allows {} tokens for a reply, not {}", self.max_tokens, before.max_tokens));
        }
        changes
    }
}

/// In the place of a value that was left out.
pub const LEFT_OUT: &str = "left out: the endpoint refuses it";

/// Puts `newer` in the place of what results have of a judge's parameters; what was left out once stays so, since some verdicts were given without it.
pub fn merge(known: &mut BTreeMap<String, Value>, newer: BTreeMap<String, Value>) {
    known.retain(|_, value| value == LEFT_OUT);
    for (name, value) in newer {
        known.entry(name).or_insert(value);
    }
}

/// Whether a name stands in the text as a whole word.
fn has_word(text: &str, name: &str) -> bool {
    text.match_indices(name).any(|(at, _)| {
        let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        !is_part(text[..at].chars().last()) && !is_part(text[at + name.len()..].chars().next())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, body: Value) -> Option<Change> {
        Parameters::wished(MAX_TOKENS).without_refused(&ApiError::of_body(status, &body.to_string()))
    }

    #[test]
    fn a_refused_temperature_is_left_out_in_whatever_words() {
        let without = Change::All(Parameters { is_greedy: false, ..Parameters::wished(MAX_TOKENS) });
        let message = |text: &str| json!({"error": {"message": text}});
        for body in [
            json!({"error": {"message": "Unsupported value: 'temperature' does not support 0 with this model.", "param": "temperature"}}),
            json!({"error": {"code": "unsupported_parameter", "param": "temperature", "message": ""}}),
            message("Unsupported parameter: 'temperature' is not supported with this model."),
            message("litellm.UnsupportedParamsError: gpt-5 models don't support temperature=0. Only temperature=1 is supported."),
            message("temperature: Input should be greater than 0 and less than or equal to 2"),
            message("`temperature` is deprecated for this model."),
            message("temperature does not support 0.0 with this model"),
            json!({"error": "Input validation error: `temperature` must be strictly positive", "error_type": "validation"}),
            json!({"detail": [{"type": "extra_forbidden", "loc": ["body", "temperature"], "msg": "Extra inputs are not permitted", "input": 0}]}),
            json!({"message": "unrecognized request argument supplied: temperature"}),
        ] {
            assert_eq!(refused(400, body.clone()), Some(without), "{body}");
        }
        for body in [message("invalid role"), message("the weather's temperature"), message("invalid temperatures"), Value::Null] {
            assert_eq!(refused(400, body.clone()), None, "{body}");
        }
        assert_eq!(refused(429, message("temperature: only 1 is allowed")), None);
        let Some(Change::All(parameters)) = refused(400, message("temperature: only 1 is allowed")) else { panic!() };
        assert_eq!(parameters.card(), BTreeMap::from([("temperature".into(), json!(LEFT_OUT)), ("max_tokens".into(), json!(MAX_TOKENS))]));
        assert_eq!((parameters.left_out(), parameters.key().as_str()), (vec!["temperature".to_owned()], "max_tokens=4096"));
        assert_eq!(parameters.without_refused(&ApiError::of_body(400, "{\"error\": \"temperature: only 1\"}")), None, "once");
    }

    #[test]
    fn tokens_are_asked_for_by_the_name_that_is_known() {
        let body = json!({"error": {"message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
                                    "param": "max_tokens", "code": "unsupported_parameter"}});
        let Some(Change::All(swapped)) = refused(400, body) else { panic!() };
        assert_eq!(swapped.card()["max_completion_tokens"], json!(MAX_TOKENS));
        let error = json!({"detail": [{"type": "extra_forbidden", "loc": ["body", "max_completion_tokens"], "msg": "Extra inputs are not permitted"}]});
        let Some(Change::All(none)) = swapped.without_refused(&ApiError::of_body(422, &error.to_string())) else { panic!() };
        assert_eq!((none.left_out(), none.set().len()), (vec!["max_tokens".to_owned()], 1));
        assert_eq!(none.without_refused(&ApiError::of_body(422, &error.to_string())), None);
        let wished = Parameters::wished(9);
        assert_eq!(wished.with(&none), none.with(&wished));
        assert_eq!(none.changes_since(&swapped).len(), 1);
        assert!(wished.changes_since(&wished).is_empty());
    }

    #[test]
    fn a_model_that_says_less_is_asked_for_less() {
        let message = |text: &str| json!({"error": {"message": text}});
        let fewer = |max_tokens| Parameters { max_tokens, ..Parameters::wished(1) };
        for (text, change) in [
            (
                "max_tokens is too large: 4096. This model supports at most 2048 completion tokens, whereas you provided 4096.",
                Change::All(fewer(2048)),
            ),
            ("max_tokens: 4096 > 2000, which is the maximum allowed number of output tokens", Change::All(fewer(2000))),
            ("Invalid max_tokens value, the valid range of max_tokens is at most [1, 2048]", Change::All(fewer(2048))),
            (
                "This model's maximum context length is 4096 tokens. However, you requested 4500 tokens (404 in the messages, 4096 in the completion).",
                Change::One(fewer(1024)),
            ),
            (
                "'max_tokens' or 'max_completion_tokens' is too large: 4096. This model's maximum context length is 4096 tokens and your request has 37 \
                 input tokens (4096 > 4096 - 37).",
                Change::One(fewer(1024)),
            ),
            (
                "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 300 `inputs` tokens and 4096 `max_new_tokens`",
                Change::One(fewer(1024)),
            ),
        ] {
            assert_eq!(refused(400, message(text)), Some(change), "{text}");
        }
        for text in [
            "The decoder prompt (length 9000) is longer than the maximum model length of 8192.",
            "`inputs` tokens + `max_new_tokens` must be <= 4096",
            "prompt is too long: 210000 tokens > 200000 maximum",
        ] {
            assert_eq!(refused(400, message(text)), None, "{text}");
        }
        let few = Parameters::wished(200);
        let error = ApiError::of_body(400, "{\"error\": \"maximum context length is 200 tokens, you asked for 200 tokens\"}");
        assert_eq!(few.without_refused(&error), None, "no verdict fits");
    }

    #[test]
    fn what_was_left_out_once_is_not_forgotten() {
        let mut known = BTreeMap::from([("temperature".to_owned(), json!(LEFT_OUT))]);
        merge(&mut known, Parameters { limit: Limit::CompletionTokens, ..Parameters::wished(7) }.card());
        assert!(known.contains_key("max_completion_tokens"));
        merge(&mut known, Parameters::wished(7).card());
        assert_eq!(known, BTreeMap::from([("temperature".to_owned(), json!(LEFT_OUT)), ("max_tokens".to_owned(), json!(7))]));
    }
}
