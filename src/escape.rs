//! Model text for a terminal: whatever could move the cursor, change colours, hide or reorder what is read is written out.

use std::fmt::Write;

/// The text with every character replaced that is an instruction rather than something to read: control characters (so also every ANSI
/// sequence, which begins with one), marks that reorder text, separators that break lines, invisible tags. New lines and tabs stay.
///
/// Letters of all scripts stay, and so do the joiners (U+200C, U+200D) that Persian, Bengali and emoji are spelt with.
pub fn escape_for_terminal(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if is_instruction(c) {
            // Writing to a string cannot fail.
            let _ = write!(escaped, "\\u{{{:x}}}", c as u32);
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// The same on one line of at most `max_chars` characters, for error messages and tables.
pub fn one_line(text: &str, max_chars: usize) -> String {
    let joined = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let escaped = escape_for_terminal(&joined);
    match escaped.char_indices().nth(max_chars) {
        Some((end, _)) => format!("{}…", &escaped[..end]),
        None => escaped,
    }
}

/// A text for people, however long what it quotes is: a line beyond `MOST_LINE_CHARS` keeps its beginning and its end, and of all lines so many stay as
/// make up `MOST_CHARS`. What an error says of a value of a megabyte, or of a thousand rows, is still an error that can be read.
pub fn shortened(text: &str) -> String {
    const MOST_LINE_CHARS: usize = 2_000;
    const MOST_CHARS: usize = 16_000;
    let mut short = String::new();
    for (index, line) in text.lines().enumerate() {
        if short.len() > MOST_CHARS {
            let n_left = text.lines().count() - index;
            return short + &format!("\n… and {n_left} more lines");
        }
        if index > 0 {
            short.push('\n');
        }
        let n_chars = if line.len() > MOST_LINE_CHARS { line.chars().count() } else { 0 };
        if n_chars > MOST_LINE_CHARS {
            short.extend(line.chars().take(MOST_LINE_CHARS / 2));
            short += &format!(" … {} characters … ", n_chars - MOST_LINE_CHARS);
            short.extend(line.chars().skip(n_chars - MOST_LINE_CHARS / 2));
        } else {
            short += line;
        }
    }
    short
}

fn is_instruction(c: char) -> bool {
    match c {
        '\n' | '\t' => false,
        // Left-to-right and right-to-left marks, embeddings, overrides and isolates.
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => true,
        // Invisible: zero-width space, word joiner and invisible operators, deprecated controls, byte order mark, annotation marks.
        '\u{200b}' | '\u{2060}'..='\u{2064}' | '\u{206a}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' => true,
        // Line and paragraph separator, and the tags that spell invisible ASCII.
        '\u{2028}' | '\u{2029}' | '\u{e0000}'..='\u{e007f}' => true,
        _ => c.is_control(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_written_out() {
        assert_eq!(escape_for_terminal("\u{1b}[2J\u{1b}]0;title\u{7}red"), r"\u{1b}[2J\u{1b}]0;title\u{7}red");
        assert_eq!(escape_for_terminal("a\rb\u{8}c\u{9b}31m\u{7f}"), r"a\u{d}b\u{8}c\u{9b}31m\u{7f}");
        assert_eq!(escape_for_terminal("abc\u{202e}txt.exe\u{2066}"), r"abc\u{202e}txt.exe\u{2066}");
        assert_eq!(escape_for_terminal("a\u{200b}b\u{2028}c\u{e0041}"), r"a\u{200b}b\u{2028}c\u{e0041}");
    }

    #[test]
    fn nothing_that_acts_on_a_terminal_is_left() {
        let harmless = "Asante.\n\tধন্যবাদ 👩‍👩‍👧 مظلة";
        assert_eq!(escape_for_terminal(harmless), harmless);
        assert_eq!(escape_for_terminal("\x1b[2J\r\u{9b}31m\u{202e}\x07"), "\\u{1b}[2J\\u{d}\\u{9b}31m\\u{202e}\\u{7}");
    }

    #[test]
    fn what_people_write_stays() {
        for text in ["tab\tand\nline", "می‌خواهم", "ক্‍ষ", "👩‍💻", "日本語。", "naïve Ω ™ — “quoted”"]
        {
            assert_eq!(escape_for_terminal(text), text);
        }
    }

    #[test]
    fn one_line_is_short_and_whole() {
        assert_eq!(one_line("a\n\n b\tc", 80), "a b c");
        assert_eq!(one_line("日本語のテキスト", 3), "日本語…");
        assert_eq!(one_line("\u{1b}[0m", 80), r"\u{1b}[0m");
    }

    #[test]
    fn a_long_text_keeps_its_beginning_and_its_end() {
        assert_eq!(shortened("a\nb"), "a\nb");
        let line = format!("begin{}end", "傘".repeat(5000));
        let short = shortened(&line);
        assert!(short.starts_with("begin傘") && short.ends_with("傘end") && short.contains(" … 3008 characters … "), "{short}");
        let short = shortened(&"a problem in the configuration\n".repeat(3000));
        assert!(short.len() < 17_000 && short.ends_with("more lines"), "{short}");
    }
}
