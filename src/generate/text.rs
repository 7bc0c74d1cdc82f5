//! Tokens to text, piece by piece, up to a stop string.
//!
//! A token may end within a character, and some tokenizers write a token differently at the beginning of a text. So a token's text is what the
//! text of the few tokens before it grows by, and is held back until it ends with a whole character.
//!
//! Special tokens have no text, but for the marks of thoughts. What ends an answer ends no thought: stop strings count behind it.

use super::thought;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use tokenizers::Tokenizer;

/// What a decoder writes for bytes that are no character, or not yet.
const NO_CHARACTER: char = '\u{fffd}';

/// A text under way.
pub(super) struct Text<'t> {
    tokenizer: &'t Tokenizer,
    /// Special tokens that have a text.
    marks: &'t BTreeMap<u32, String>,
    stop: Vec<String>,
    tokens: Vec<u32>,
    /// The text of tokens before this one does not change any more.
    window: usize,
    /// The first token whose text is not yet in `text`.
    unread: usize,
    text: String,
    /// Bytes of `text` that were handed out.
    n_taken: usize,
}

impl<'t> Text<'t> {
    /// `left_open` is the mark of a thought that the prompt opened: the text begins with it.
    pub fn new(tokenizer: &'t Tokenizer, marks: &'t BTreeMap<u32, String>, left_open: String, stop: Vec<String>) -> Self {
        Self { tokenizer, marks, stop, tokens: Vec::new(), window: 0, unread: 0, text: left_open, n_taken: 0 }
    }

    /// Adds a token; breaks where the text now holds a stop string, and cuts it off there.
    pub fn push(&mut self, token: u32) -> ControlFlow<()> {
        if let Some(mark) = self.marks.get(&token) {
            self.take_in_all();
            self.tokens.push(token);
            self.text.push_str(mark);
            (self.window, self.unread) = (self.tokens.len(), self.tokens.len());
            return self.stop_at_string();
        }
        self.tokens.push(token);
        let grown = self.decoded(self.tokens.len());
        if grown.ends_with(NO_CHARACTER) {
            return ControlFlow::Continue(());
        }
        self.append(&grown);
        (self.window, self.unread) = (self.unread, self.tokens.len());
        self.stop_at_string()
    }

    /// What can be shown of what was not yet: not the beginning of what may become a stop string, unless the text `is_over`.
    pub fn take_piece(&mut self, is_over: bool) -> &str {
        if is_over {
            self.flush();
        }
        let end = if is_over { self.text.len() } else { self.text.len() - self.n_held_back() };
        let start = self.n_taken;
        self.n_taken = end.max(start);
        &self.text[start..self.n_taken]
    }

    /// The whole text; none at all where no token came.
    pub fn finish(mut self) -> String {
        self.flush();
        if self.tokens.is_empty() { String::new() } else { self.text }
    }

    /// The text of the tokens from the window on.
    fn decoded(&self, end: usize) -> String {
        // Decoding fails for no sequence of known tokens; a token that the tokenizer does not know has no text.
        self.tokenizer.decode(&self.tokens[self.window..end], true).unwrap_or_default()
    }

    /// Appends what `grown`, the text from the window on, has beyond what is read of it.
    fn append(&mut self, grown: &str) {
        let known = self.decoded(self.unread);
        // A tokenizer that rewrites earlier text gets no second chance: what was shown was shown.
        self.text.push_str(grown.strip_prefix(&known).unwrap_or_default());
    }

    fn flush(&mut self) {
        if self.unread < self.tokens.len() {
            self.take_in_all();
            // The text is over either way.
            let _ = self.stop_at_string();
        }
    }

    /// Takes in what ends within a character.
    fn take_in_all(&mut self) {
        if self.unread < self.tokens.len() {
            let grown = self.decoded(self.tokens.len());
            self.append(&grown);
            self.unread = self.tokens.len();
        }
    }

    fn stop_at_string(&mut self) -> ControlFlow<()> {
        if self.stop.is_empty() {
            return ControlFlow::Continue(());
        }
        let answer_at = thought::split(&self.text).answer_at;
        let found = self.stop.iter().filter_map(|stop| self.text[answer_at..].find(stop.as_str())).min();
        match found {
            None => ControlFlow::Continue(()),
            Some(at) => {
                self.text.truncate(answer_at + at);
                ControlFlow::Break(())
            }
        }
    }

    /// Bytes at the end of the text with which a stop string begins.
    fn n_held_back(&self) -> usize {
        let begins = |stop: &str| (1..stop.len()).rev().find(|&n| stop.is_char_boundary(n) && self.text.ends_with(&stop[..n])).unwrap_or(0);
        self.stop.iter().map(|stop| begins(stop)).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn tokenizer() -> Tokenizer {
        Tokenizer::from_file(Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny/tokenizer.json")).unwrap()
    }

    fn tokens(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        tokenizer.encode_fast(text, false).unwrap().get_ids().to_vec()
    }

    /// All pieces, and the whole text.
    fn streamed(tokenizer: &Tokenizer, tokens: &[u32], stop: &[&str]) -> (Vec<String>, String) {
        let marks = BTreeMap::new();
        let mut text = Text::new(tokenizer, &marks, String::new(), stop.iter().map(|s| s.to_string()).collect());
        let mut pieces = Vec::new();
        for (i, &token) in tokens.iter().enumerate() {
            let is_over = text.push(token).is_break() || i + 1 == tokens.len();
            pieces.push(text.take_piece(is_over).to_owned());
            if is_over {
                break;
            }
        }
        (pieces, text.finish())
    }

    #[test]
    fn pieces_make_the_text_that_all_tokens_make() {
        let tokenizer = tokenizer();
        for sample in ["Ask your neighbour first.", "请先问一问邻居，🌧️☂ 👩‍👩‍👧 傘", "হ্যাঁ, ছাতা। Ndiyo, mwavuli wa jirani.", " two  spaces\n\n"]
        {
            let ids = tokens(&tokenizer, sample);
            let (pieces, text) = streamed(&tokenizer, &ids, &[]);
            assert_eq!(text, tokenizer.decode(&ids, true).unwrap());
            assert_eq!(pieces.concat(), text);
            assert!(pieces.iter().all(|piece| !piece.contains(NO_CHARACTER)), "{pieces:?}");
            assert_eq!(text, sample);
        }
        let umbrella = tokens(&tokenizer, "☂");
        assert!(umbrella.len() > 1, "a character of several tokens");
        let (pieces, text) = streamed(&tokenizer, &umbrella[..1], &[]);
        assert_eq!((pieces.concat(), text), (NO_CHARACTER.to_string(), NO_CHARACTER.to_string()), "a text may end within a character");
    }

    #[test]
    fn a_stop_string_ends_the_text_wherever_tokens_part() {
        let tokenizer = tokenizer();
        let ids = tokens(&tokenizer, "One umbrella. Two umbrellas. Three.");
        let (pieces, text) = streamed(&tokenizer, &ids, &["zzz", ". Tw", "Three"]);
        assert_eq!(text, "One umbrella");
        assert_eq!(pieces.concat(), text, "nothing of a stop string was shown before it was whole");
        let (pieces, text) = streamed(&tokenizer, &ids, &[". Four"]);
        assert_eq!(
            (pieces.concat().as_str(), text.as_str()),
            ("One umbrella. Two umbrellas. Three.", "One umbrella. Two umbrellas. Three.")
        );
    }

    #[test]
    fn a_thought_keeps_its_marks_and_no_stop_string_ends_it() {
        let tokenizer = tokenizer();
        // Two special tokens of this vocabulary stand for the marks of another one.
        let [open, close] = ["<|user|>", "<|end|>"].map(|token| tokens(&tokenizer, token)[0]);
        let marks: BTreeMap<u32, String> = [(open, "<|START_THINKING|>".into()), (close, "<|END_THINKING|>".into())].into();
        let ids =
            [vec![open], tokens(&tokenizer, "Rain. Question: ☂"), vec![close], tokens(&tokenizer, "An umbrella. Question: sun")].concat();
        let streamed = |left_open: &str, ids: &[u32]| {
            let mut text = Text::new(&tokenizer, &marks, left_open.into(), vec!["Question:".into()]);
            let mut pieces = String::new();
            for &id in ids {
                let is_over = text.push(id).is_break();
                pieces += text.take_piece(is_over);
                if is_over {
                    break;
                }
            }
            pieces += text.take_piece(true);
            assert_eq!(pieces, text.text);
            text.finish()
        };
        assert_eq!(streamed("", &ids), "<|START_THINKING|>Rain. Question: ☂<|END_THINKING|>An umbrella. ");
        assert_eq!(streamed("<|START_THINKING|>\n", &ids[1..]), "<|START_THINKING|>\nRain. Question: ☂<|END_THINKING|>An umbrella. ");
        assert_eq!(streamed("<think>", &[]), "<think>".repeat(0), "a prompt without room for an answer");
        assert_eq!(streamed("", &tokens(&tokenizer, "Rain. Question: ☂")), "Rain. ", "no thought, no room for it");
    }

    #[test]
    fn special_tokens_have_no_text() {
        let tokenizer = tokenizer();
        let ids: Vec<u32> = [tokens(&tokenizer, "<|user|>"), tokens(&tokenizer, "rain"), tokens(&tokenizer, "<|end|>")].concat();
        assert_eq!(streamed(&tokenizer, &ids, &[]).1, "rain");
    }
}
