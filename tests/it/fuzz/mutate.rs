//! Inputs that are nearly right: bytes and texts that are cut, spliced, repeated, and filled with what readers stumble over.

use super::random::Random;

/// An input is kept below this, so that a slow one is slow for what it says and not for its size.
pub const MOST_BYTES: usize = 1 << 18;

/// Numbers at the edges of every type.
pub const NUMBERS: [&str; 24] = [
    "0",
    "-1",
    "1",
    "2",
    "127",
    "255",
    "256",
    "65535",
    "65536",
    "2147483647",
    "2147483648",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "-1e308",
    "1e-320",
    "0.1",
    "1e999",
    "NaN",
    "3000000000000",
];

/// Texts that move a cursor, reorder a line, belong to a letter or to nothing, look like markup, or are long.
pub const TEXTS: [&str; 28] = [
    "",
    " ",
    "\n",
    "\r\n",
    "\t",
    "\0",
    "\u{1b}[2J\u{1b}[31m",
    "\u{202e}",
    "\u{200b}",
    "\u{feff}",
    "e\u{301}",
    "\u{301}",
    "\u{1f469}\u{200d}\u{1f4bb}",
    "\u{fffd}",
    "مظلة",
    "ছাতা",
    "傘",
    "null",
    "true",
    "[]",
    "{}",
    "</s>",
    "<|im_end|>",
    "../../x",
    "/dev/null",
    "%s%n",
    "C:\\x",
    "builtin:tiny",
];

/// One to four changes to `input`. `tokens` are words of the reader's own language, `others` are inputs to splice with.
pub fn bytes(random: &mut Random, input: &mut Vec<u8>, tokens: &[&str], others: &[Vec<u8>]) {
    for _ in 0..=random.below(4) {
        once(random, input, tokens, others);
        input.truncate(MOST_BYTES);
    }
}

fn once(random: &mut Random, input: &mut Vec<u8>, tokens: &[&str], others: &[Vec<u8>]) {
    let n = input.len();
    match random.below(17) {
        0 if n > 0 => input[random.below(n)] ^= 1 << random.below(8),
        1 if n > 0 => input[random.below(n)] = random.next() as u8,
        2 => drop(input.drain(random.range(n))),
        3 => input.truncate(random.below(n + 1)),
        4 => drop(input.drain(..random.below(n.min(64) + 1))),
        5 => {
            let piece = input[random.range(n)].to_vec();
            insert(random, input, &piece);
        }
        6 => repeat(random, input),
        7 => {
            let other = random.pick(others).clone();
            let piece = other[random.range(other.len())].to_vec();
            insert(random, input, &piece);
        }
        8 => {
            // The head of one and the tail of another.
            let other = random.pick(others).clone();
            input.truncate(random.below(n + 1));
            input.extend_from_slice(&other[random.below(other.len() + 1)..]);
        }
        9 | 10 if !tokens.is_empty() => {
            let token = *random.pick(tokens);
            insert(random, input, token.as_bytes());
        }
        11 => {
            let text = *random.pick(&TEXTS);
            insert(random, input, text.as_bytes());
        }
        12 | 13 => number(random, input),
        14 => nest(random, input),
        15 if n >= 8 => {
            // A length or an offset of a binary format.
            let at = if random.one_in(2) { n - 8 - random.below((n - 8).min(64) + 1) } else { random.below(n - 7) };
            let value = *random.pick(&[0_u64, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 40, u64::MAX, i64::MAX as u64]);
            let width = *random.pick(&[1, 2, 4, 8]);
            input[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        }
        _ => lines(random, input),
    }
}

fn insert(random: &mut Random, input: &mut Vec<u8>, piece: &[u8]) {
    let at = random.below(input.len() + 1);
    input.splice(at..at, piece.iter().copied());
}

/// The same piece again and again.
fn repeat(random: &mut Random, input: &mut Vec<u8>) {
    let range = random.range(input.len());
    if !range.is_empty() {
        let most = if random.one_in(32) { 40_000 } else { 64 };
        let times = 1 + random.below(most.min(MOST_BYTES / range.len()).max(1));
        let piece = input[range.clone()].repeat(times);
        input.splice(range.end..range.end, piece);
    }
}

/// Another number in the place of one, or beside it.
fn number(random: &mut Random, input: &mut Vec<u8>) {
    let number = *random.pick(&NUMBERS);
    let digits: Vec<usize> = (0..input.len()).filter(|at| input[*at].is_ascii_digit()).collect();
    if digits.is_empty() {
        return insert(random, input, number.as_bytes());
    }
    let at = *random.pick(&digits);
    let start = (0..at).rev().take_while(|at| input[*at].is_ascii_digit()).last().unwrap_or(at);
    let end = (at..input.len()).find(|at| !input[*at].is_ascii_digit()).unwrap_or(input.len());
    input.splice(start..end, number.bytes());
}

/// Brackets within brackets, closed or not.
fn nest(random: &mut Random, input: &mut Vec<u8>) {
    let [open, close] =
        *random.pick(&[["[", "]"], ["{", "}"], ["(", ")"], ["{\"a\":", "}"], ["[[", "]]"], ["{% if 1 %}", "{% endif %}"], ["<a>", "</a>"]]);
    let depth = *random.pick(&[2, 20, 126, 129, 1000, 20_000]);
    let mut piece = open.repeat(depth);
    if random.one_in(2) {
        piece += &close.repeat(depth);
    }
    insert(random, input, piece.as_bytes());
}

/// What editors and other systems do to lines.
fn lines(random: &mut Random, input: &mut Vec<u8>) {
    let is_break = |byte: &u8| *byte == b'\n';
    match random.below(5) {
        0 => drop(input.splice(0..0, *b"\xef\xbb\xbf")),
        1 => *input = input.split(is_break).collect::<Vec<_>>().join(&b"\r\n"[..]),
        2 => {
            let mut lines: Vec<_> = input.split(is_break).collect();
            let (a, b) = (random.below(lines.len()), random.below(lines.len()));
            lines.swap(a, b);
            *input = lines.join(&b'\n');
        }
        3 => {
            let mut lines: Vec<_> = input.split(is_break).collect();
            let line = *random.pick(&lines);
            lines.insert(random.below(lines.len()), line);
            *input = lines.join(&b'\n');
        }
        _ => {
            let mut lines: Vec<_> = input.split(is_break).collect();
            lines.remove(random.below(lines.len()));
            *input = lines.join(&b'\n');
        }
    }
}

/// Another text in the place of `text`.
pub fn text(random: &mut Random, text: &str, tokens: &[&str]) -> String {
    match random.below(7) {
        0 => (*random.pick(&TEXTS)).to_owned(),
        1 | 2 if !tokens.is_empty() => (*random.pick(tokens)).to_owned(),
        3 => (*random.pick(&NUMBERS)).to_owned(),
        4 => {
            let piece = if text.is_empty() { "a" } else { text };
            let most = if random.one_in(16) { 30_000 } else { 40 };
            piece.repeat(1 + random.below(most.min(MOST_BYTES / piece.len()).max(1)))
        }
        5 => format!("{text}{}", random.pick(&TEXTS)),
        _ => {
            let mut changed = text.as_bytes().to_vec();
            once(random, &mut changed, tokens, &[text.as_bytes().to_vec()]);
            String::from_utf8_lossy(&changed).into_owned()
        }
    }
}
