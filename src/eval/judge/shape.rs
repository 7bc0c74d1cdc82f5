//! What the body of a reply with status 200 is: a chat completion in one of its shapes, or something else.
//!
//! ```text
//! {"choices": [{"message": {"content": "safe"}, "finish_reason": "stop"}]}
//!               content           a text, null, or parts, of which some are thoughts; `reasoning_content` is a thought
//!               choices, message  null or missing where a filter spoke
//! {"error": {…}}                  an error all the same
//! data: {"choices": [{"delta": {"content": "sa"}}]}        a stream, although none was asked for
//! ```

use super::gate::{Unparsed, Why};
use super::refusal::ApiError;
use crate::escape::one_line;
use serde_json::Value;

/// Characters of what a server says that are shown.
const SHOWN: usize = 200;

/// A model's message, before it is known whether it is whole.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Message {
    pub text: String,
    /// Something came that is a thought.
    has_thought: bool,
    /// What the model says in place of an answer.
    refusal: Option<String>,
    finish: Finish,
}

/// How a message ended.
#[derive(Debug, Clone, Default, PartialEq)]
enum Finish {
    /// The server does not say; then a text that came is taken to be whole.
    #[default]
    Unsaid,
    Said(String),
    /// A stream broke off.
    BrokeOff,
}

/// A body without a message.
#[derive(Debug, PartialEq)]
pub enum NoMessage {
    Error(Box<ApiError>),
    /// A completion that holds none, as filters leave it.
    Empty(String),
    /// No chat completion, and what it is.
    Other(String),
}

/// Reads a body.
///
/// # Errors
///
/// There is no message in it.
pub fn read(body: &str) -> Result<Message, NoMessage> {
    let body = body.trim_start_matches('\u{feff}').trim();
    if ["data:", "event:", ":"].iter().any(|begin| body.starts_with(begin)) {
        return streamed(body);
    }
    let value: Value = match serde_json::from_str(body) {
        Ok(value) => value,
        Err(error) => return Err(NoMessage::Other(no_json(body, &error))),
    };
    if let Some(error) = ApiError::inside(&value) {
        return Err(NoMessage::Error(Box::new(error)));
    }
    let Some(choices) = value.get("choices") else {
        // Filters of Gemini leave a reason in the choices' place.
        return Err(match blocked(&value) {
            Some(reason) => NoMessage::Empty(reason),
            None => NoMessage::Other("JSON without `choices`".to_owned()),
        });
    };
    let choice = match choices {
        Value::Array(choices) => choices.first().filter(|choice| !choice.is_null()),
        Value::Null => None,
        _ => return Err(NoMessage::Other("`choices` that are no list".to_owned())),
    };
    let Some(choice) = choice else {
        return Err(NoMessage::Empty(blocked(&value).unwrap_or_else(|| "the server answered without a choice, as filters do".to_owned())));
    };
    of_choice(choice)
}

fn of_choice(choice: &Value) -> Result<Message, NoMessage> {
    if let Some(error) = ApiError::inside(choice) {
        return Err(NoMessage::Error(Box::new(error)));
    }
    let mut message = Message { finish: finish(choice), ..Message::default() };
    // A completion of the older kind has its text in the choice itself.
    let said = ["message", "delta"].iter().find_map(|key| choice.get(*key)).unwrap_or(choice);
    if said.is_null() {
        return match message.ended() {
            Err(unparsed) => Err(NoMessage::Empty(unparsed.detail)),
            Ok(()) => Err(NoMessage::Empty("the server answered with an empty message, as filters do".to_owned())),
        };
    }
    let is_read = message.add(said);
    if is_read { Ok(message) } else { Err(NoMessage::Other("a message whose content is neither text nor parts".to_owned())) }
}

/// What a filter says of its reasons.
fn blocked(value: &Value) -> Option<String> {
    let reason = value.pointer("/promptFeedback/blockReason").or_else(|| value.pointer("/prompt_feedback/block_reason"))?;
    Some(format!("the server's filter stopped the question ({})", one_line(reason.as_str()?, SHOWN)))
}

fn finish(choice: &Value) -> Finish {
    match choice.get("finish_reason") {
        None | Some(Value::Null) => Finish::Unsaid,
        Some(Value::String(reason)) if reason.is_empty() => Finish::Unsaid,
        Some(Value::String(reason)) => Finish::Said(reason.clone()),
        Some(other) => Finish::Said(one_line(&other.to_string(), 40)),
    }
}

/// Puts a stream's pieces together.
fn streamed(body: &str) -> Result<Message, NoMessage> {
    let (mut whole, mut n_pieces, mut is_done) = (Message::default(), 0, false);
    for line in body.lines() {
        let Some(data) = line.trim().strip_prefix("data:").map(str::trim) else { continue };
        if data == "[DONE]" {
            is_done = true;
            break;
        }
        let piece: Value = match serde_json::from_str(data) {
            Ok(piece) => piece,
            Err(_) if data.is_empty() => continue,
            Err(_) => return Err(NoMessage::Other("a stream with a damaged piece".to_owned())),
        };
        if let Some(error) = ApiError::inside(&piece) {
            return Err(NoMessage::Error(Box::new(error)));
        }
        n_pieces += 1;
        let Some(choice) = piece.get("choices").and_then(|choices| choices.get(0)).filter(|choice| !choice.is_null()) else { continue };
        if let Some(error) = ApiError::inside(choice) {
            return Err(NoMessage::Error(Box::new(error)));
        }
        let said = ["delta", "message"].iter().find_map(|key| choice.get(*key)).unwrap_or(choice);
        if !whole.add(said) {
            return Err(NoMessage::Other("a stream whose content is neither text nor parts".to_owned()));
        }
        if let Finish::Said(reason) = finish(choice) {
            whole.finish = Finish::Said(reason);
        }
    }
    if n_pieces == 0 {
        return Err(NoMessage::Other("a stream of nothing".to_owned()));
    }
    if !is_done && whole.finish == Finish::Unsaid {
        whole.finish = Finish::BrokeOff;
    }
    Ok(whole)
}

/// What stands where JSON should.
fn no_json(body: &str, error: &serde_json::Error) -> String {
    let begin = body.get(..body.len().min(64)).unwrap_or(body).to_lowercase();
    if body.is_empty() {
        "an empty body".to_owned()
    } else if begin.starts_with("<!doctype") || begin.starts_with("<html") || begin.starts_with("<head") {
        "an HTML page".to_owned()
    } else if error.is_eof() {
        "JSON that breaks off".to_owned()
    } else {
        format!("something that is no JSON (`{}`)", one_line(body, 60))
    }
}

impl Message {
    /// Adds a message, or a piece of one; whether it could be read.
    fn add(&mut self, said: &Value) -> bool {
        let is_thought = |key: &&str| match said.get(*key) {
            Some(Value::String(text)) => !text.is_empty(),
            Some(Value::Array(parts)) => !parts.is_empty(),
            _ => false,
        };
        self.has_thought |= ["reasoning_content", "reasoning", "reasoning_details", "thinking"].iter().any(is_thought);
        if let Some(refusal) = said.get("refusal").and_then(Value::as_str).filter(|refusal| !refusal.trim().is_empty()) {
            self.refusal.get_or_insert_default().push_str(refusal);
        }
        match said.get("content").or_else(|| said.get("text")) {
            None | Some(Value::Null) => true,
            Some(Value::String(text)) => {
                self.text.push_str(text);
                true
            }
            Some(Value::Array(parts)) => parts.iter().all(|part| self.add_part(part)),
            Some(part @ Value::Object(_)) => self.add_part(part),
            Some(_) => false,
        }
    }

    fn add_part(&mut self, part: &Value) -> bool {
        let text = |key: &str| part.get(key).and_then(Value::as_str);
        match (part, text("type")) {
            (Value::Null, _) => {}
            (Value::String(text), _) => self.text.push_str(text),
            (_, Some("text" | "output_text") | None) => match text("text") {
                Some(text) => self.text.push_str(text),
                None => return false,
            },
            (_, Some("refusal")) => self.refusal.get_or_insert_default().push_str(text("refusal").unwrap_or_default()),
            // A thought, a tool's call, or what else there will be: nothing that was said.
            (_, Some(_)) => self.has_thought = true,
        }
        true
    }

    /// What was said, where the model came to its end and said something.
    ///
    /// # Errors
    ///
    /// Why there is nothing to read, with what was said all the same.
    pub fn into_text(self) -> Result<String, Unparsed> {
        if let Err(unparsed) = self.ended() {
            return Err(unparsed.saying(self.text));
        }
        if let Some(refusal) = self.refusal {
            return Err(Unparsed::new(Why::Refused, "the judge refuses to judge this").saying(refusal));
        }
        if self.text.trim().is_empty() {
            let what = if self.has_thought { "the judge thought, and said nothing" } else { "the judge said nothing" };
            return Err(Unparsed::new(Why::Empty, what));
        }
        Ok(self.text)
    }

    /// # Errors
    ///
    /// The message did not end as one does that is whole.
    fn ended(&self) -> Result<(), Unparsed> {
        let reason = match &self.finish {
            Finish::Unsaid => return Ok(()),
            Finish::BrokeOff => return Err(Unparsed::new(Why::CutOff, "the judge's stream broke off")),
            Finish::Said(reason) => reason,
        };
        let lower = reason.to_lowercase();
        let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
        match lower.as_str() {
            "stop" | "end_turn" | "eos" | "eos_token" | "stop_sequence" | "stop_token" | "complete" | "completed" | "end" | "done"
            | "finished" | "finish_reason_stop" => Ok(()),
            _ if has(&["length", "max_tokens", "max_output", "max_new", "context_window", "truncat"]) => {
                let what = format!("the judge used up its tokens before it came to its end (finish_reason `{}`)", one_line(reason, 40));
                Err(Unparsed::new(Why::CutOff, what))
            }
            _ if has(&[
                "filter",
                "safety",
                "prohibited",
                "recitation",
                "blocklist",
                "spii",
                "sensitive",
                "moderation",
                "refus",
                "block",
            ]) =>
            {
                Err(Unparsed::new(Why::Filtered, format!("a filter stopped the judge's reply (finish_reason `{}`)", one_line(reason, 40))))
            }
            _ => Err(Unparsed::new(Why::EndedOtherwise, format!("the judge's reply ended with finish_reason `{}`", one_line(reason, 40)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn choice(message: Value, finish: Value) -> String {
        json!({"choices": [{"index": 0, "message": message, "finish_reason": finish}]}).to_string()
    }

    fn text(body: &str) -> Result<String, Unparsed> {
        read(body).unwrap_or_else(|none| panic!("{none:?}: {body}")).into_text()
    }

    #[test]
    fn completions_of_many_servers_are_read() {
        for content in [
            json!("safe"),
            json!([{"type": "text", "text": "safe"}]),
            json!([{"type": "thinking", "thinking": [{"type": "text", "text": "unsafe?"}]}, {"type": "text", "text": "safe"}]),
            json!([{"type": "reasoning", "text": "unsafe"}, {"type": "output_text", "text": "sa"}, {"text": "fe"}]),
            json!(["sa", "fe"]),
            json!({"type": "text", "text": "safe"}),
        ] {
            for finish in
                [json!("stop"), json!("STOP"), json!("end_turn"), json!("eos_token"), json!("stop_sequence"), json!(""), Value::Null]
            {
                let body = choice(json!({"role": "assistant", "content": content, "reasoning_content": "hm"}), finish);
                assert_eq!(text(&body), Ok("safe".into()), "{body}");
            }
        }
        assert_eq!(text(&json!({"choices": [{"text": "safe"}]}).to_string()), Ok("safe".into()));
        assert_eq!(text(&format!("\u{feff} \n{}", choice(json!({"content": "safe", "refusal": null}), json!("stop")))), Ok("safe".into()));
    }

    #[test]
    fn a_reply_that_did_not_end_is_none_whatever_it_says() {
        for (finish, why) in [
            ("length", Why::CutOff),
            ("MAX_TOKENS", Why::CutOff),
            ("model_context_window_exceeded", Why::CutOff),
            ("content_filter", Why::Filtered),
            ("SAFETY", Why::Filtered),
            ("tool_calls", Why::EndedOtherwise),
            ("function_call", Why::EndedOtherwise),
            ("error", Why::EndedOtherwise),
            ("abort", Why::EndedOtherwise),
            ("who knows", Why::EndedOtherwise),
        ] {
            let unparsed = text(&choice(json!({"content": "safe"}), json!(finish))).unwrap_err();
            assert_eq!((unparsed.why, unparsed.said.as_deref()), (why, Some("safe")), "{finish}");
        }
        assert_eq!(text(&choice(json!({"content": "safe"}), json!({"type": "length"}))).unwrap_err().why, Why::CutOff);
    }

    #[test]
    fn nothing_said_is_nothing() {
        for (message, why) in [
            (json!({"content": ""}), Why::Empty),
            (json!({"content": null}), Why::Empty),
            (json!({}), Why::Empty),
            (json!({"content": []}), Why::Empty),
            (json!({"content": " ", "reasoning_content": "Verdict: safe"}), Why::Empty),
            (json!({"content": null, "reasoning": "Verdict: safe"}), Why::Empty),
            (json!({"content": [{"type": "thinking", "thinking": "safe"}]}), Why::Empty),
            (json!({"content": null, "refusal": "safe"}), Why::Refused),
            (json!({"content": "safe", "refusal": "No."}), Why::Refused),
            (json!({"content": [{"type": "refusal", "refusal": "No."}]}), Why::Refused),
        ] {
            assert_eq!(text(&choice(message.clone(), json!("stop"))).unwrap_err().why, why, "{message}");
        }
    }

    #[test]
    fn filters_leave_completions_without_a_message() {
        for body in [
            json!({"choices": []}),
            json!({"choices": null}),
            json!({"choices": [null]}),
            json!({"choices": [{"message": null, "finish_reason": "content_filter"}]}),
            json!({"choices": [{"message": null}]}),
            json!({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}),
        ] {
            assert!(matches!(read(&body.to_string()), Err(NoMessage::Empty(_))), "{body}");
        }
    }

    #[test]
    fn what_is_no_completion_is_named() {
        let deep = "[".repeat(100_000);
        for (body, what) in [
            ("<!DOCTYPE html><html>", "an HTML page"),
            ("<html><body>Bad gateway</body></html>", "an HTML page"),
            ("", "an empty body"),
            ("{\"choices\": [{\"message\": ", "breaks off"),
            ("{\"data\": []}", "without `choices`"),
            ("[]", "without `choices`"),
            ("\"safe\"", "without `choices`"),
            ("safe", "no JSON (`safe`)"),
            ("{\"choices\": \"safe\"}", "no list"),
            ("{\"choices\": [{\"message\": {\"content\": 7}}]}", "neither text nor parts"),
            ("data: {\"choices\": [", "damaged piece"),
            ("data: [DONE]", "of nothing"),
            (&deep, "no JSON"),
        ] {
            let Err(NoMessage::Other(found)) = read(body) else { panic!("{}", &body[..body.len().min(50)]) };
            assert!(found.contains(what), "{found}");
        }
        for body in [
            json!({"error": {"message": "busy"}}),
            json!({"error": "busy"}),
            json!({"choices": [{"error": {"code": 502}, "message": null}]}),
        ] {
            assert!(matches!(read(&body.to_string()), Err(NoMessage::Error(_))), "{body}");
        }
        assert!(text(&json!({"error": null, "choices": [{"message": {"content": "safe"}}]}).to_string()).is_ok());
    }

    #[test]
    fn a_stream_is_put_together() {
        let piece = |delta: Value, finish: Value| format!("data: {}\n\n", json!({"choices": [{"delta": delta, "finish_reason": finish}]}));
        let begin = piece(json!({"role": "assistant", "content": ""}), Value::Null) + &piece(json!({"content": "un"}), Value::Null);
        let end = piece(json!({"content": "safe", "reasoning_content": "x"}), Value::Null) + &piece(json!({}), json!("stop"));
        assert_eq!(text(&format!(": ping\n\n{begin}{end}data: [DONE]\n\n")), Ok("unsafe".into()));
        assert_eq!(text(&format!("event: message\n{begin}{end}")), Ok("unsafe".into()));
        let cut = begin.clone() + &piece(json!({}), json!("length"));
        assert_eq!(text(&cut).unwrap_err().why, Why::CutOff);
        let broken = format!("{begin}{}", piece(json!({"content": "safe"}), Value::Null));
        assert_eq!(text(&broken).unwrap_err().why, Why::CutOff, "who knows what would have come");
        assert!(matches!(read(&format!("{begin}data: {{\"error\": {{\"message\": \"busy\"}}}}\n")), Err(NoMessage::Error(_))));
    }
}
