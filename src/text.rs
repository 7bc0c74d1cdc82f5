//! Text that is compared: which texts are the same for a reader, whatever keyboard, file system or renderer they went through.
//!
//! Nothing else in this crate compares texts, looks for words in them, counts them or asks for their language without one of these functions
//! first, and no text is changed by them that is tokenised, generated from, shown or written.
//!
//! | function | is for | folds |
//! |---|---|---|
//! | [`comparable`] | identity: equal answers, repeated rows, exact matches, detection | see below; case, digits and punctuation stay |
//! | [`lines`] | the same where a line's end means something | as `comparable`, line by line |
//! | [`wording`] | phrases: what a text says | also case, [native digits](digits), and punctuation marks to their ASCII twins |
//! | [`letters`] | the same words in other clothes: contamination | also everything that is no letter, mark or digit |
//!
//! What is folded, because it is not seen, is typed in several ways for one sign, or is left out at will:
//!
//! - composition (NFC: `e` and an accent are `é`, jamo are a syllable), and sequences that NFC does not know as one: Thai and Lao SARA AM
//!   and doubled SARA E, Bengali khanda ta and Malayalam chillus by way of a joiner;
//! - what is invisible: zero-width spaces and joiners, soft hyphens, marks of direction, byte-order marks, variation selectors, control characters.
//!   Joiners too: Persian, Bengali and Sinhala spell with them, keyboards and renderers differ in them, and no two words differ in them alone
//!   often enough to matter;
//! - tatweel, Arabic vowel signs (harakat) and Hebrew points (niqqud), which writers add and leave out; hamza and madda stay, as letters do;
//! - white space of every kind, in runs, line ends included, is one space, and none at the ends;
//! - apostrophes, quotes, hyphens and dashes, the ellipsis, to ASCII;
//! - presentation forms: Arabic and Latin ligatures, fullwidth and halfwidth forms, mathematical letters (`𝐛𝐨𝐥𝐝`).
//!
//! What stays, because words differ in it: accents and tones (Vietnamese, Yoruba), Indic vowel signs, nukta and virama, Thai vowels and tone marks,
//! dakuten, and letters that are alike (`ي` and `ی`, `ه` and `ة`, `ı` and `i`).

pub mod digits;

use icu_normalizer::ComposingNormalizerBorrowed;
use icu_properties::props::{DefaultIgnorableCodePoint, GeneralCategory, GeneralCategoryGroup};
use icu_properties::{CodePointMapData, CodePointSetData};
use std::borrow::Cow;

const NFC: ComposingNormalizerBorrowed<'static> = ComposingNormalizerBorrowed::new_nfc();
const NFKC: ComposingNormalizerBorrowed<'static> = ComposingNormalizerBorrowed::new_nfkc();

/// The text in the one form that all its spellings have in common; see the [module](self). Its case, digits and punctuation are kept.
pub fn comparable(text: &str) -> Cow<'_, str> {
    if is_plain_ascii(text) {
        return Cow::Borrowed(text);
    }
    let composed = NFC.normalize(text);
    if stays(&composed) {
        return composed;
    }
    let mut folded = Folded::with_capacity(composed.len());
    joined(&composed).chars().for_each(|c| folded.push(c));
    let text = folded.text;
    // What was dropped may have stood between a letter and its accent.
    Cow::Owned(if NFC.is_normalized(&text) { text } else { NFC.normalize(&text).into_owned() })
}

/// The text's lines, each [`comparable`], without empty ones: for readers to whom a line's end means something.
pub fn lines(text: &str) -> String {
    text.lines().map(comparable).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("\n")
}

/// Whether two texts are the same for a reader.
pub fn same(one: &str, other: &str) -> bool {
    one == other || comparable(one) == comparable(other)
}

/// What a text says: [`comparable`], in lower case, digits and punctuation marks of all scripts as those of ASCII.
pub fn wording(text: &str) -> Cow<'_, str> {
    let text = comparable(text);
    if text.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase()) {
        return text;
    }
    let mut lower = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            // Keyboards without a visarga have a colon.
            ':' if characters.peek().is_some_and(|c| is_indic_letter(*c)) => match lower.chars().next_back() {
                Some('\u{980}'..='\u{9ff}') => lower.push('\u{983}'),
                Some('\u{900}'..='\u{97f}') => lower.push('\u{903}'),
                _ => lower.push(':'),
            },
            'ς' => lower.push('σ'),
            // Its lower case is an `i` with a second dot.
            'İ' => lower.push('i'),
            c => match digits::value(c) {
                Some(value) => lower.push(char::from(b'0' + value)),
                None => lower.extend(ascii_mark(c).to_lowercase()),
            },
        }
    }
    Cow::Owned(if NFC.is_normalized(&lower) { lower } else { NFC.normalize(&lower).into_owned() })
}

/// Devanagari or Bengali, punctuation and digits aside.
fn is_indic_letter(c: char) -> bool {
    matches!(c, '\u{900}'..='\u{9ff}') && c.is_alphabetic()
}

/// Letters with their marks, and digits, of the [`wording`], without what stands between them.
pub fn letters(text: &str) -> String {
    wording(text).chars().filter(|c| is_of_a_word(*c)).collect()
}

/// Whether a character is part of a word or number: a letter, one of its marks, a digit.
pub fn is_of_a_word(c: char) -> bool {
    c.is_alphanumeric() || (!c.is_ascii() && GeneralCategoryGroup::Mark.contains(CodePointMapData::<GeneralCategory>::new().get(c)))
}

/// Nothing to compose, nothing to fold.
fn is_plain_ascii(text: &str) -> bool {
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'`';
    text.bytes().all(is_plain) && !text.contains("  ") && !text.starts_with(' ') && !text.ends_with(' ')
}

/// Whether a composed text is its own comparable form.
fn stays(text: &str) -> bool {
    // A text's beginning is as good as a space: no other may follow.
    let mut before = ' ';
    for c in text.chars() {
        let is_kept = match c {
            ' ' => before != ' ',
            'เ' => before != 'เ',
            // Whether Thai and Lao vowels make one sign is decided where they are written.
            '\u{e4d}' | '\u{ecd}' => false,
            c if is_thai_tone(c) => before != '\u{e33}' && before != '\u{eb3}',
            c => matches!(fold(c), Fold::Keep),
        };
        if !is_kept {
            return false;
        }
        before = c;
    }
    before != ' ' || text.is_empty()
}

/// What becomes of one character.
enum Fold {
    Keep,
    Drop,
    Space,
    To(char),
    /// It is made of others, which are folded in turn.
    Made(Cow<'static, str>),
}

fn fold(c: char) -> Fold {
    match c {
        '`' => Fold::To('\''),
        '!'..='~' => Fold::Keep,
        '\u{2800}' => Fold::Space,
        c if c.is_whitespace() => Fold::Space,
        c if c.is_control() => Fold::Drop,
        '´' | 'ʹ' | 'ʻ' | 'ʼ' | 'ʽ' | 'ˈ' | '׳' | '‘' | '’' | '‚' | '‛' | '′' | '‵' | '‹' | '›' | 'ꞌ' => {
            Fold::To('\'')
        }
        '«' | '»' | '״' | '“' | '”' | '„' | '‟' | '″' | '‶' | '〝' | '〞' | '〟' => Fold::To('"'),
        '\u{2010}'..='\u{2015}' | '\u{2212}' | '\u{5be}' => Fold::To('-'),
        '…' => Fold::Made(Cow::Borrowed("...")),
        '‥' => Fold::Made(Cow::Borrowed("..")),
        'ŉ' => Fold::Made(Cow::Borrowed("'n")),
        '\u{640}' => Fold::Drop,
        c if is_vowel_point(c) || is_invisible(c) => Fold::Drop,
        c if is_presentation_form(c) => match NFKC.normalize(c.encode_utf8(&mut [0; 4])).into_owned() {
            same if same.chars().eq([c]) => Fold::Keep,
            made => Fold::Made(Cow::Owned(made)),
        },
        _ => Fold::Keep,
    }
}

/// Signs that readers of Arabic and Hebrew do without.
fn is_vowel_point(c: char) -> bool {
    matches!(c,
        '\u{610}'..='\u{61a}' | '\u{64b}'..='\u{652}' | '\u{656}'..='\u{65f}' | '\u{670}' | '\u{6d6}'..='\u{6dc}' | '\u{6df}'..='\u{6e4}'
        | '\u{6e7}' | '\u{6e8}' | '\u{6ea}'..='\u{6ed}' | '\u{898}'..='\u{89f}' | '\u{8ca}'..='\u{8e1}' | '\u{8e3}'..='\u{8ff}'
        | '\u{591}'..='\u{5bd}' | '\u{5bf}' | '\u{5c1}' | '\u{5c2}' | '\u{5c4}' | '\u{5c5}' | '\u{5c7}')
}

/// What no font draws: joiners, zero-width spaces, directions, byte-order marks, variation selectors, fillers, annotations.
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{fff9}'..='\u{fffb}') || (c > '\u{ac}' && CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c))
}

/// Blocks of characters that are others in another shape.
fn is_presentation_form(c: char) -> bool {
    matches!(u32::from(c),
        0x2f00..=0x2fdf // radicals for the characters that they are
        | 0xfb00..=0xfdff | 0xfe10..=0xfe1f | 0xfe30..=0xfefc | 0xff00..=0xffef
        | 0x1d400..=0x1d7ff | 0x1ee00..=0x1eeff)
}

/// Letters that were written with a joiner before they had a code of their own.
fn joined(text: &str) -> Cow<'_, str> {
    const LETTERS: [(&str, &str); 7] = [
        ("\u{9a4}\u{9cd}\u{200d}", "\u{9ce}"),
        ("\u{d23}\u{d4d}\u{200d}", "\u{d7a}"),
        ("\u{d28}\u{d4d}\u{200d}", "\u{d7b}"),
        ("\u{d30}\u{d4d}\u{200d}", "\u{d7c}"),
        ("\u{d32}\u{d4d}\u{200d}", "\u{d7d}"),
        ("\u{d33}\u{d4d}\u{200d}", "\u{d7e}"),
        ("\u{d15}\u{d4d}\u{200d}", "\u{d7f}"),
    ];
    if !text.contains("\u{9cd}\u{200d}") && !text.contains("\u{d4d}\u{200d}") {
        return Cow::Borrowed(text);
    }
    Cow::Owned(LETTERS.iter().fold(text.to_owned(), |text, (sequence, letter)| text.replace(sequence, letter)))
}

/// A text as it is folded.
struct Folded {
    text: String,
    /// Something follows a space that is not written yet.
    is_spaced: bool,
}

impl Folded {
    fn with_capacity(capacity: usize) -> Self {
        Self { text: String::with_capacity(capacity), is_spaced: false }
    }

    fn push(&mut self, c: char) {
        match fold(c) {
            Fold::Keep => self.write(c),
            Fold::To(other) => self.write(other),
            Fold::Made(others) => others.chars().for_each(|c| self.push(c)),
            Fold::Space => self.is_spaced = true,
            Fold::Drop => {}
        }
    }

    /// Writes a kept character; Thai and Lao vowel signs that make one are made one.
    fn write(&mut self, c: char) {
        if std::mem::take(&mut self.is_spaced) && !self.text.is_empty() {
            self.text.push(' ');
        }
        let mut before = self.text.chars().rev();
        let (last, last_but_one) = (before.next(), before.next());
        match (last_but_one, last, c) {
            (_, Some('เ'), 'เ') => self.replace_last(1, &['แ']),
            (_, Some('\u{e4d}'), 'า') => self.replace_last(1, &['\u{e33}']),
            (_, Some('\u{ecd}'), 'າ') => self.replace_last(1, &['\u{eb3}']),
            (Some('\u{e4d}'), Some(tone), 'า') if is_thai_tone(tone) => self.replace_last(2, &[tone, '\u{e33}']),
            (Some('\u{ecd}'), Some(tone), 'າ') if is_thai_tone(tone) => self.replace_last(2, &[tone, '\u{eb3}']),
            // The tone is typed before the vowel, and often after it.
            (_, Some(vowel @ ('\u{e33}' | '\u{eb3}')), tone) if is_thai_tone(tone) => self.replace_last(1, &[tone, vowel]),
            _ => self.text.push(c),
        }
    }

    fn replace_last(&mut self, n_chars: usize, others: &[char]) {
        for _ in 0..n_chars {
            self.text.pop();
        }
        self.text.extend(others);
    }
}

/// Thai and Lao.
fn is_thai_tone(c: char) -> bool {
    matches!(c, '\u{e48}'..='\u{e4b}' | '\u{ec8}'..='\u{ecb}')
}

/// The ASCII mark that does the same in a sentence.
fn ascii_mark(c: char) -> char {
    match c {
        '،' | '、' | '٬' => ',',
        '。' | '।' | '॥' | '۔' | '։' | '።' | '٫' => '.',
        '؟' | '⸮' => '?',
        '؛' => ';',
        '\u{a789}' => ':',
        '「' | '」' | '『' | '』' | '《' | '》' | '〈' | '〉' => '"',
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use icu_normalizer::DecomposingNormalizerBorrowed;

    fn nfd(text: &str) -> String {
        DecomposingNormalizerBorrowed::new_nfd().normalize(text).into_owned()
    }

    /// Everything that means something to one of the functions.
    const TRICKY: &str = "aA'`´’  \u{a0}\u{3000}\n\u{200b}\u{200c}\u{200d}\u{ad}\u{feff}\u{202e}é\u{301}\u{302}ệİıςΣß…‥“«—-ﬁﷺﻻﾊﾞがカ\u{3099}Ｆ，。\
        لَاأآإـ\u{654}\u{653}\u{670}یيهةשׁ\u{5b8}ক\u{9cd}ত\u{9bc}ো\u{9c7}\u{9be}য\u{9df}हूँ\u{902}เเแำ\u{e4d}า\u{e48}\u{e38}ກ\u{ecd}າ\u{ec8}\
        한\u{1112}\u{1161}\u{11ab}\u{3164}ﾡￂ１١۱১²½𝐚ŉꞌ\u{300}\u{323}\u{212a}\u{1fef}\u{37e}\u{fe0f}ന\u{d4d}\u{1b}";

    /// Texts of the tricky characters, in an order without a pattern.
    fn tricky_texts() -> impl Iterator<Item = String> {
        let characters: Vec<char> = TRICKY.chars().collect();
        let mut state = 7_u64;
        let mut next = move |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        (0..20_000).map(move |_| (0..next(9)).map(|_| characters[next(characters.len())]).collect())
    }

    #[test]
    fn folding_again_changes_nothing_and_composition_does_not_matter() {
        for text in tricky_texts() {
            let once = comparable(&text);
            assert_eq!(comparable(&once), once, "{text:?}");
            assert_eq!(comparable(&nfd(&text)), once, "{text:?}");
            assert!(NFC.is_normalized(&once) && !once.starts_with(' ') && !once.ends_with(' ') && !once.contains("  "), "{text:?}");
            let said = wording(&text);
            assert_eq!(wording(&said), said, "{text:?}");
            assert_eq!(wording(&once), said, "{text:?}");
            assert_eq!(comparable(&said), said, "{text:?}: what is said is comparable");
            assert_eq!(letters(&said), letters(&text), "{text:?}");
        }
    }

    #[test]
    fn spellings_of_one_text_are_one() {
        for (one, other) in [
            ("café", "cafe\u{301}"),
            ("việc này", "vie\u{323}\u{302}c na\u{300}y"),
            ("도움을", "\u{1103}\u{1169}\u{110b}\u{116e}\u{11b7}\u{110b}\u{1173}\u{11af}"),
            ("できません", "て\u{3099}きません"),
            ("ガラス", "ｶﾞﾗｽ"),
            ("can't", "can’t"),
            ("can't", "can´t"),
            ("can't", "can′t"),
            ("can't", "can＇t"),
            ("'n", "ŉ"),
            ("he said \"so\"", "he said “so”"),
            ("he said \"so\"", "he said «so»"),
            ("a - b", "a — b"),
            ("wait...", "wait…"),
            ("cannot", "can\u{200b}not"),
            ("cannot", "can\u{ad}not"),
            ("a b", "\u{feff} a\u{a0}\u{2009}\n\u{3000}b\t"),
            ("لا أستطيع", "لَا أَسْتَطِيعُ"),
            ("لا أستطيع", "لا أســتطيع"),
            ("لا أستطيع", "ﻻ أستطيع"),
            ("לא יכול", "לֹא יָכוֹל"),
            ("میشود", "می\u{200c}شود"),
            ("ไม่สามารถ", "ไม่\u{200b}สามารถ"),
            ("คำตอบ", "ค\u{e4d}\u{e32}ตอบ"),
            ("น้ำ", "น\u{e4d}\u{e49}\u{e32}"),
            ("น้ำ", "น\u{e49}\u{e4d}\u{e32}"),
            ("น้ำ", "น\u{e33}\u{e49}"),
            ("แปลก", "เเปลก"),
            ("উৎসব", "উত্\u{200d}সব"),
            ("അവ\u{d7b}", "അവന\u{d4d}\u{200d}"),
            ("fine office", "ﬁne oﬃce"),
            ("ABC123", "ＡＢＣ１２３"),
            ("bold", "𝐛𝐨𝐥𝐝"),
            ("☂", "☂\u{fe0f}"),
        ] {
            assert!(same(one, other), "{one:?} and {other:?}: {:?}, {:?}", comparable(one), comparable(other));
        }
    }

    #[test]
    fn words_that_differ_stay_apart() {
        for (one, other) in [
            ("ma", "má"),
            ("mà", "mả"),
            ("cơm", "com"),
            ("ọ", "o"),
            ("কি", "কা"),
            ("বড", "বড়"),
            ("कल", "क़ल"),
            ("दिन", "दीन"),
            ("ใกล้", "ใกล"),
            ("ไม่", "ไม้"),
            ("はは", "ぱぱ"),
            ("ハ", "バ"),
            ("ي", "ى"),
            ("ي", "ی"),
            ("ه", "ة"),
            ("أ", "ا"),
            ("Polish", "polish"),
            ("x²", "x2"),
            ("ı", "i"),
            ("شسي", "سسي"),
            ("1", "১"),
            (",", "。"),
        ] {
            assert!(!same(one, other), "{one:?} and {other:?}");
            let stay_apart_in_words = !matches!(one, "Polish" | "1");
            assert_eq!(wording(one) != wording(other), stay_apart_in_words, "{one:?} and {other:?}");
        }
    }

    #[test]
    fn wording_folds_case_digits_and_marks() {
        assert_eq!(wording("I’M Sorry，NO。"), "i'm sorry,no.");
        assert_eq!(wording("ΟΔΟΣ"), wording("οδος"));
        assert_eq!(wording("İstanbul"), "istanbul");
        assert_eq!(wording("عذرًا، ١٨؟"), "عذرا, 18?");
        assert_eq!(wording("ÄÖÜ ẞ"), "äöü ß");
        assert_eq!((wording("দু:খিত"), wording("উত্তর: ক")), ("দুঃখিত".into(), "উত্তর: ক".into()));
        assert_eq!(letters("  how do I bake “sourdough” — ২ loaves?"), "howdoibakesourdough2loaves");
        assert_eq!(letters("ใกล้ ไม่"), "ใกล้ไม่");
    }

    #[test]
    fn what_needs_nothing_is_not_copied() {
        for text in
            ["", "plain text, nothing else", "Tôi không thể giúp bạn.", "今天天气很好。", "আমি পারব না।", "ฉันไม่สามารถช่วยได้", "उत्तर: १८"]
        {
            assert!(matches!(comparable(text), Cow::Borrowed(_)), "{text}");
        }
        assert!(matches!(wording("plain text, nothing else"), Cow::Borrowed(_)));
    }
}
