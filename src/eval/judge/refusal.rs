//! What a server's error means for one question, and for all.
//!
//! Servers word it as they like: the error may be an object, a text, a list, or a page; it may come with status 200. What it means is read off its
//! codes first, then off words.

use serde_json::Value;

/// What a server says of what went wrong.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ApiError {
    pub status: u16,
    /// `code` and `type`, in lower case.
    pub code: String,
    /// The part of the request that it is about, without what that is part of.
    pub parameter: Option<String>,
    pub message: String,
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// It may pass.
    Busy,
    /// Nothing further will be answered.
    NoQuota,
    NoKey,
    NoModel,
    NotThere,
    Elsewhere,
    /// About this question, for certain.
    Filtered,
    TooLong,
    /// About this question or about all: others will tell.
    Unclear,
}

impl ApiError {
    /// Of a reply with another status than success.
    pub fn of_body(status: u16, body: &str) -> Self {
        let value: Value = serde_json::from_str(body).unwrap_or_else(|_| {
            // A page says nothing that helps.
            let is_page = body.trim_start().starts_with('<');
            Value::String(if is_page { String::new() } else { body.trim().to_owned() })
        });
        Self { status, ..Self::of(value.get(0).unwrap_or(&value)) }
    }

    /// The one that a value holds beside, or in place of, what was asked for; its status is its own code, where that is one, else 400.
    pub fn inside(value: &Value) -> Option<Self> {
        let value = if value.is_array() { value.get(0)? } else { value };
        let error = value.get("error")?;
        let is_none = match error {
            Value::Null | Value::Bool(false) => true,
            Value::String(text) => text.is_empty(),
            Value::Object(object) => object.is_empty(),
            _ => false,
        };
        if is_none {
            return None;
        }
        let mut error = Self::of(value);
        error.status = error.code.split(' ').find_map(|code| code.parse().ok()).filter(|code| (400..600).contains(code)).unwrap_or(400);
        Some(error)
    }

    /// `{"error": {"code", "type", "param", "message"}}` of OpenAI, `{"error": "…"}` of others, `{"message", "code"}` of vLLM's older versions,
    /// `{"detail": [{"loc", "msg", "type"}]}` of what checks requests by itself.
    fn of(value: &Value) -> Self {
        let error = ["error", "detail", "errors"].iter().find_map(|key| value.get(*key)).filter(|error| !error.is_null()).unwrap_or(value);
        let error = error.get(0).unwrap_or(error);
        let text = |of: &Value, keys: &[&str]| {
            let of = |key: &&str| match of.get(*key)? {
                Value::String(text) => Some(text.clone()),
                Value::Number(number) => Some(number.to_string()),
                _ => None,
            };
            keys.iter().find_map(of).unwrap_or_default()
        };
        let parameter = text(error, &["param", "parameter", "field"]);
        let place = error.get("loc").and_then(Value::as_array).and_then(|loc| loc.last()).and_then(Value::as_str);
        let parameter = Some(parameter).filter(|parameter| !parameter.is_empty()).or_else(|| place.map(str::to_owned));
        let mut message = error.as_str().map_or_else(|| text(error, &["message", "msg", "detail", "error"]), str::to_owned);
        // A proxy keeps what stood behind it in `metadata`.
        if let Some(raw) = error.pointer("/metadata/raw").and_then(Value::as_str) {
            message = format!("{message}: {raw}");
        }
        if message.is_empty() {
            message = text(value, &["message"]);
        }
        let codes = [text(error, &["code"]), text(error, &["type", "error_type", "status"]), text(value, &["code", "error_type"])];
        let code = codes.into_iter().filter(|code| !code.is_empty()).collect::<Vec<_>>().join(" ").to_lowercase();
        let parameter = parameter.map(|parameter| parameter.rsplit(['.', '/']).next().unwrap_or_default().to_lowercase());
        Self { status: 400, code, parameter, message }
    }

    pub fn meaning(&self) -> Meaning {
        let lower = self.message.to_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| lower.contains(word));
        let code = |words: &[&str]| words.iter().any(|word| self.code.contains(word));
        let is_filter = code(&[
            "content_filter",
            "content_policy",
            "contentpolicy",
            "responsibleai",
            "moderation",
            "data_inspection",
            "datainspection",
        ]) || says(&[
            "content filter",
            "content_filter",
            "content management policy",
            "content policy",
            "moderation",
            "was flagged",
            "flagged as",
            "inappropriate content",
            "content exists risk",
            "prohibited content",
            "prohibited_content",
            "unsafe content",
            "sensitive content",
            "violates our usage",
            "violate our usage",
            "usage policies",
            "safety system",
            "safety settings",
        ]);
        match self.status {
            300..=399 => Meaning::Elsewhere,
            _ if code(&["insufficient_quota"]) => Meaning::NoQuota,
            402 => Meaning::NoQuota,
            401 => Meaning::NoKey,
            403 if !is_filter => Meaning::NoKey,
            429 | 500..=599
                if says(&["temporarily", "overloaded", "unavailable", "try again", "timed out"])
                    && !code(&["content_filter", "content_policy"]) =>
            {
                Meaning::Busy
            }
            400..=599 if is_filter => Meaning::Filtered,
            413 => Meaning::TooLong,
            400..=599 if self.is_too_long(&lower) => Meaning::TooLong,
            408 | 409 | 425 | 429 | 500..=599 => Meaning::Busy,
            _ if code(&["model_not_found", "model_not_exist"]) || is_no_model(&lower) => Meaning::NoModel,
            404 | 405 => Meaning::NotThere,
            _ if code(&["overloaded", "rate_limit", "server_error", "unavailable", "timeout", "internal_error", "internal_server"]) => {
                Meaning::Busy
            }
            _ if says(&["overloaded", "try again", "rate limit", "temporarily", "timed out", "internal server error", "bad gateway"]) => {
                Meaning::Busy
            }
            _ => Meaning::Unclear,
        }
    }

    /// Whether the question is more than the judge can read, in whatever words.
    fn is_too_long(&self, lower: &str) -> bool {
        const TELLING: [&str; 16] = [
            "context length",
            "context size",
            "context window",
            "context limit",
            "context_length",
            "maximum context",
            "max_model_len",
            "model length",
            "prompt is too long",
            "input is too long",
            "prompt too long",
            "input too long",
            "too many tokens",
            "reduce the length",
            "token limit",
            "tokens limit",
        ];
        const SIZES: [&str; 8] =
            ["too long", "too large", "longer than", "exceed", "must be <=", "less than or equal", "maximum", "at most"];
        const WHATS: [&str; 8] = ["token", "prompt", "input", "context", "sequence", "message", "request entity", "payload"];
        let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
        // A limit of tokens a minute says nothing of this question.
        const OF_TIME: [&str; 6] = ["per minute", "per day", "per second", "try again", "trying again", "rate limit"];
        if self.status == 429 && !self.code.contains("context_length") && has(&OF_TIME) {
            return false;
        }
        self.code.contains("context_length")
            || self.code.contains("max_length")
            || has(&TELLING)
            // A server that fails says a lot.
            || self.status < 500 && self.status != 429 && has(&SIZES) && has(&WHATS)
    }
}

fn is_no_model(lower: &str) -> bool {
    const MISSING: [&str; 8] = [
        "does not exist",
        "not exist",
        "not found",
        "not a valid model",
        "no such model",
        "unknown model",
        "invalid model",
        "is not available",
    ];
    lower.contains("model") && MISSING.iter().any(|words| lower.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn errors_of_many_servers_mean_what_they_mean() {
        use Meaning::{Busy, Elsewhere, Filtered, NoKey, NoModel, NoQuota, NotThere, TooLong, Unclear};
        let message = |text: &str| json!({"error": {"message": text}});
        for (status, body, meaning) in [
            (400, json!({"error": {"code": "context_length_exceeded", "message": "no"}}), TooLong),
            (400, message("The decoder prompt (length 9000) is longer than the maximum model length of 8192."), TooLong),
            (400, message("This model's maximum context length is 4096 tokens. However, you requested 5000 tokens"), TooLong),
            (
                422,
                json!({"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096", "error_type": "validation"}),
                TooLong,
            ),
            (400, message("prompt is too long: 210000 tokens > 200000 maximum"), TooLong),
            (400, message("the request exceeds the available context size, try increasing it"), TooLong),
            (500, json!({"error": "input length exceeds the context length"}), TooLong),
            (
                400,
                json!([{"error": {"code": 400, "message": "The input token count (9000) exceeds the maximum number of tokens allowed (8192)."}}]),
                TooLong,
            ),
            (400, json!({"message": "Input is too long for requested model."}), TooLong),
            (400, json!({"detail": "Prompt length 9000 exceeds limit of 4096 tokens"}), TooLong),
            (413, Value::Null, TooLong),
            (400, json!({"error": {"code": "content_filter", "message": "The response was filtered"}}), Filtered),
            (400, message("Content Exists Risk"), Filtered),
            (400, json!({"code": "DataInspectionFailed", "message": "Input data may contain inappropriate content."}), Filtered),
            (403, json!({"error": {"code": 403, "message": "Your chosen model requires moderation and your input was flagged"}}), Filtered),
            (401, message("no"), NoKey),
            (403, message("no"), NoKey),
            (402, message("Insufficient credits"), NoQuota),
            (429, json!({"error": {"code": "insufficient_quota"}}), NoQuota),
            (429, json!({"error": {"message": "Limit of tokens a minute exceeded"}}), Busy),
            (503, Value::Null, Busy),
            (404, json!({"error": {"code": "model_not_found"}}), NoModel),
            (400, json!({"error": {"message": "x/y is not a valid model ID"}}), NoModel),
            (404, Value::Null, NotThere),
            (405, json!({"detail": "Method Not Allowed"}), NotThere),
            (307, Value::Null, Elsewhere),
            (400, message("no"), Unclear),
            (422, json!({"detail": [{"loc": ["body", "messages"], "msg": "no", "type": "x"}]}), Unclear),
            (400, json!("a word"), Unclear),
        ] {
            assert_eq!(ApiError::of_body(status, &body.to_string()).meaning(), meaning, "{status} {body}");
        }
        assert_eq!(ApiError::of_body(502, "<html>").meaning(), Busy);
        assert_eq!(ApiError::of_body(400, "a text").message, "a text");
    }

    #[test]
    fn an_error_inside_a_200_has_its_own_status() {
        let inside = |error: Value| ApiError::inside(&json!({"error": error, "choices": []})).map(|error| (error.status, error.meaning()));
        assert_eq!(inside(json!({"code": 502, "message": "Provider returned error"})), Some((502, Meaning::Busy)));
        assert_eq!(inside(json!({"code": "429", "message": "slow down"})), Some((429, Meaning::Busy)));
        assert_eq!(inside(json!({"type": "overloaded_error", "message": "Overloaded"})), Some((400, Meaning::Busy)));
        assert_eq!(inside(json!("no")), Some((400, Meaning::Unclear)));
        for none in [Value::Null, json!(""), json!({}), json!(false)] {
            assert_eq!(inside(none), None);
        }
    }

    #[test]
    fn the_parameter_is_named() {
        for body in [
            json!({"error": {"param": "temperature", "message": "no"}}),
            json!({"detail": [{"type": "extra_forbidden", "loc": ["body", "temperature"], "msg": "Extra inputs are not permitted", "input": 0}]}),
            json!({"error": {"param": "body.temperature"}}),
        ] {
            assert_eq!(ApiError::of_body(400, &body.to_string()).parameter.as_deref(), Some("temperature"), "{body}");
        }
    }
}
