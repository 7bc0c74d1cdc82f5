//! Which language a pair is in, for rows that do not say: by script first, then, among Latin-script languages, by a statistical detector.
//!
//! Most languages of safety data have a script of their own (Bengali, Thai, Hangul), and a count of letters is then exact and explainable.
//! Of the Latin-script ones `lingua` separates those it was built with (its models lie in the binary): de en es fr id it pt sw vi yo. Any other, a
//! language of another script in Latin letters, and a text of a few words are `und` (see `latin`): rows in them must carry their `lang`.

mod latin;

use super::pair::{PreferencePair, PreferenceRow};
use crate::text::comparable;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use unicode_script::{Script, UnicodeScript};

/// ISO 639-2 for "undetermined": no letters, or no language that the detector knows.
pub const UNDETERMINED: &str = "und";

/// Names the languages of the rows of one data set. What it finds out about a dominant pair it remembers for the other rows that share it: the
/// statistical detector takes longer for a pair than the tokenizer.
#[derive(Default)]
pub(super) struct Languages {
    /// Those that the caller expects, English among them; none where it expects nothing.
    in_play: Vec<String>,
    dominant: Mutex<HashMap<[u8; 32], Dominant>>,
}

#[derive(Clone)]
struct Dominant {
    lang: String,
    script: Option<Script>,
}

impl Languages {
    /// For rows of which those in `targets` are wanted.
    pub fn expecting(targets: Option<&[String]>) -> Self {
        let in_play = targets.map_or_else(Vec::new, |targets| targets.iter().cloned().chain(["en".to_owned()]).collect());
        Self { in_play, ..Self::default() }
    }

    fn detect(&self, texts: &[&str]) -> String {
        let in_play: Vec<&str> = self.in_play.iter().map(String::as_str).collect();
        if in_play.is_empty() { detect(texts) } else { detect_among(texts, &in_play) }
    }

    /// Fills in the languages that the row did not give.
    ///
    /// Answers of weak models drift into the dominant language, and some prompts were never translated. So the target's language is read
    /// from its texts that are not in the dominant script, the prompt first; where there are none (English and Swahili share a script), from
    /// all.
    pub fn fill(&self, row: &mut PreferenceRow) {
        if row.pairs().all(|pair| !pair.lang.is_empty()) {
            return;
        }
        let dominant = row.dominant.as_ref().map(|pair| self.dominant(pair));
        if row.target.lang.is_empty() {
            row.target.lang = self.detect_target(&row.target, dominant.as_ref());
        }
        if let (Some(pair), Some(dominant)) = (&mut row.dominant, dominant) {
            pair.lang = dominant.lang;
        }
    }

    fn dominant(&self, pair: &PreferencePair) -> Dominant {
        // Nothing panics while it holds the lock, and what the map holds is always whole.
        let known = || self.dominant.lock().unwrap_or_else(PoisonError::into_inner);
        let key = pair.key();
        if let Some(dominant) = known().get(&key) {
            return dominant.clone();
        }
        // Two threads may find out the same at once: it is the same.
        let texts = texts(pair);
        let lang = if pair.lang.is_empty() { self.detect(&texts.each_ref().map(String::as_str)) } else { pair.lang.clone() };
        let dominant = Dominant { lang, script: main_script(&texts.concat()) };
        known().insert(key, dominant.clone());
        dominant
    }

    fn detect_target(&self, pair: &PreferencePair, dominant: Option<&Dominant>) -> String {
        let target = texts(pair);
        let dominant_script = dominant.and_then(|dominant| dominant.script);
        let scripts = target.each_ref().map(|text| main_script(text).filter(|script| Some(*script) != dominant_script));
        let own = match scripts {
            [Some(prompt), _, _] => Some(prompt),
            [None, chosen, rejected] if chosen == rejected || target[0].trim().is_empty() => chosen.or(rejected),
            _ => None,
        };
        let counts: Vec<_> =
            target.iter().zip(scripts).filter(|(_, script)| own.is_none() || *script == own).map(|(text, _)| text.as_str()).collect();
        let found = self.detect(&counts);
        if found != UNDETERMINED {
            return found;
        }
        // Half of it may be in the dominant language: what a part says of itself.
        let is_own = |lang: &String| lang != UNDETERMINED && dominant.is_none_or(|dominant| dominant.lang != *lang);
        counts.iter().map(|text| self.detect(&[text])).find(is_own).unwrap_or(found)
    }
}

/// Prompt, chosen and rejected response; no text for one that is not there.
fn texts(pair: &PreferencePair) -> [String; 3] {
    let prompt: Vec<_> = pair.prompt.iter().map(|turn| turn.content.as_str()).collect();
    let response = |text: &Option<String>| text.clone().unwrap_or_default();
    [prompt.join("\n"), response(&pair.chosen), response(&pair.rejected)]
}

/// Loads what the detector reads when it is first asked, some 40 MB, so that a forecast of memory sees it.
pub fn load_models() {
    for text in ["The weather is lovely today.", &"The weather is lovely today, and we shall take a walk. ".repeat(4)] {
        detect(&[text]);
    }
}

/// The ISO 639-1 code of the language of texts that belong together, `und` where it cannot be told.
pub fn detect(texts: &[&str]) -> String {
    detect_by(texts, latin::language)
}

/// As [`detect`], where the caller knows which languages are in play (those of a benchmark, or of a data set's tags): between them fewer words decide.
/// What is clearly in another language is still named, and what is in none is `und`.
pub fn detect_among(texts: &[&str], candidates: &[&str]) -> String {
    detect_by(texts, |sample| latin::language_among(sample, candidates))
}

/// Whether a text of some length is certainly not in `lang`, a Latin-script language that the detector knows, whatever other of that script it is in.
pub fn is_foreign_to(text: &str, lang: &str) -> bool {
    main_script(text) == Some(Script::Latin) && latin::is_foreign_to(&comparable(text), lang)
}

fn detect_by(texts: &[&str], detect_latin: impl Fn(&str) -> Option<String>) -> String {
    let texts: Vec<_> = texts.iter().map(|text| comparable(text)).collect();
    let whole = texts.join("\n");
    // Languages that share a script differ in letters that one of them cannot do without; a loan word has a few of them too.
    let is_marked_by = |letters: &str| {
        let n_letters = whole.chars().filter(|c| c.is_alphabetic()).count();
        30 * whole.chars().filter(|c| letters.contains(*c)).count() >= n_letters
    };
    let code = match main_script(&whole) {
        None => UNDETERMINED,
        Some(Script::Latin) => {
            /// More of a text changes nothing but the time it takes.
            const ENOUGH_CHARS: usize = 300;
            let sample: Vec<String> = texts.iter().map(|text| text.chars().take(ENOUGH_CHARS).collect()).collect();
            return detect_latin(&sample.join("\n")).unwrap_or_else(|| UNDETERMINED.to_owned());
        }
        Some(Script::Hiragana) => "ja",
        Some(Script::Han) => "zh",
        Some(Script::Hangul) => "ko",
        Some(Script::Arabic) if is_marked_by("ٹڈڑںےھہ") => "ur",
        Some(Script::Arabic) if is_marked_by("پچژگیک") => "fa",
        Some(Script::Arabic) => "ar",
        Some(Script::Cyrillic) if is_marked_by("їєґі") => "uk",
        Some(Script::Cyrillic) => "ru",
        Some(Script::Bengali) if is_marked_by("ৰৱ") => "as",
        Some(Script::Bengali) => "bn",
        Some(Script::Devanagari) => "hi",
        Some(Script::Telugu) => "te",
        Some(Script::Tamil) => "ta",
        Some(Script::Kannada) => "kn",
        Some(Script::Malayalam) => "ml",
        Some(Script::Gujarati) => "gu",
        Some(Script::Gurmukhi) => "pa",
        Some(Script::Sinhala) => "si",
        Some(Script::Thai) => "th",
        Some(Script::Lao) => "lo",
        Some(Script::Khmer) => "km",
        Some(Script::Myanmar) => "my",
        Some(Script::Ethiopic) => "am",
        Some(Script::Georgian) => "ka",
        Some(Script::Armenian) => "hy",
        Some(Script::Greek) => "el",
        Some(Script::Hebrew) => "he",
        Some(_) => UNDETERMINED,
    };
    code.to_owned()
}

/// The script that carries most of the text; `Hiragana` stands for Japanese writing, kana and Han together. `None` without letters.
///
/// A Han, kana or Hangul character is worth three letters, since that is about what it stands for: a Chinese sentence with
/// two English names in it stays Chinese.
pub fn main_script(text: &str) -> Option<Script> {
    let mut weights: Vec<(Script, usize)> = Vec::new();
    let (mut n_kana, mut n_han) = (0, 0);
    for script in comparable(text).chars().map(|c| c.script()) {
        let (script, weight) = match script {
            Script::Common | Script::Inherited | Script::Unknown => continue,
            Script::Hiragana | Script::Katakana => {
                n_kana += 1;
                (Script::Han, 3)
            }
            Script::Han => {
                n_han += 1;
                (Script::Han, 3)
            }
            Script::Hangul => (Script::Hangul, 3),
            other => (other, 1),
        };
        match weights.iter_mut().find(|(known, _)| *known == script) {
            Some((_, total)) => *total += weight,
            None => weights.push((script, weight)),
        }
    }
    // On a tie the script that comes first in the text wins: `max_by_key` takes the last, hence the reversal.
    let (script, _) = weights.into_iter().rev().max_by_key(|(_, weight)| *weight)?;
    // Japanese prose is half kana; a Chinese text may quote a word of it.
    let japanese = script == Script::Han && 10 * n_kana >= n_kana + n_han;
    Some(if japanese { Script::Hiragana } else { script })
}

#[cfg(test)]
mod tests {
    use super::super::pair::{Message, Role};
    use super::*;

    #[test]
    fn scripts_decide_before_statistics() {
        for (text, code) in [
            ("今日は天気がいいので散歩に行きます。", "ja"),
            ("今天天气很好，我们去公园散步。", "zh"),
            ("오늘은 날씨가 좋아서 산책을 갑니다.", "ko"),
            ("আজ আবহাওয়া ভালো, চলুন হাঁটতে যাই।", "bn"),
            ("الطقس جميل اليوم، فلنذهب في نزهة.", "ar"),
            ("امروز هوا خوب است، بیایید به پارک برویم.", "fa"),
            ("آج موسم اچھا ہے، آئیے سیر کو چلیں۔", "ur"),
            ("วันนี้อากาศดี ไปเดินเล่นกันเถอะ", "th"),
            ("आज मौसम अच्छा है, चलो टहलने चलते हैं।", "hi"),
            ("ఈ రోజు వాతావరణం బాగుంది.", "te"),
            ("Сегодня хорошая погода, пойдём гулять.", "ru"),
            ("Сьогодні гарна погода, їдьмо в парк.", "uk"),
            ("1234 … !?", "und"),
        ] {
            assert_eq!(detect(&[text]), code, "{text}");
        }
    }

    #[test]
    fn latin_languages_are_told_apart() {
        for (text, code) in [
            ("The weather is lovely today, so let us take a walk in the park.", "en"),
            ("Hali ya hewa ni nzuri leo, twende tukatembee kwenye bustani.", "sw"),
            ("Hôm nay thời tiết đẹp, chúng ta hãy đi dạo trong công viên.", "vi"),
            ("Oggi il tempo è bello, andiamo a fare una passeggiata nel parco.", "it"),
            ("Das Wetter ist heute schön, lass uns im Park spazieren gehen.", "de"),
            ("Hoy hace buen tiempo, vamos a dar un paseo por el parque.", "es"),
            ("Il fait beau aujourd'hui, allons nous promener dans le parc.", "fr"),
            ("O tempo está bom hoje, vamos dar um passeio no parque.", "pt"),
            ("Cuaca hari ini bagus, mari kita berjalan-jalan di taman.", "id"),
        ] {
            assert_eq!(detect(&[text]), code, "{text}");
        }
    }

    #[test]
    fn foreign_names_do_not_change_the_script() {
        assert_eq!(main_script("请问怎样在 Windows 上安装 Python 呢？谢谢大家"), Some(Script::Han));
        assert_eq!(main_script("Mount Fuji (富士山) is the highest mountain of Japan."), Some(Script::Latin));
        assert_eq!(main_script("この本は Rust について書かれています。"), Some(Script::Hiragana));
        // A Chinese sentence that quotes one kana word.
        assert_eq!(main_script("我在京都的小商店里买了一些非常好吃的点心，店主教我说日语里的谢谢是あり这样开头的词"), Some(Script::Han));
    }

    fn pair(dominant: [&str; 3], target: [&str; 3]) -> PreferenceRow {
        let side = |[prompt, chosen, rejected]: [&str; 3]| PreferencePair {
            lang: String::new(),
            prompt: vec![Message { role: Role::User, content: prompt.into() }],
            chosen: Some(chosen.into()),
            rejected: Some(rejected.into()),
        };
        PreferenceRow { id: "0".into(), dominant: Some(side(dominant)), target: side(target) }
    }

    fn languages(row: &PreferenceRow) -> (&str, &str) {
        (&row.dominant.as_ref().unwrap().lang, &row.target.lang)
    }

    #[test]
    fn texts_in_the_dominant_language_do_not_name_the_target() {
        let english = ["How do I bake bread?", "Start with good flour and patience.", "Just buy a loaf, it is much easier than that."];
        for (target, code) in [
            // Both answers drifted into English.
            (["パンはどうやって焼きますか？", english[1], english[2]], "ja"),
            // One of them did, at length.
            (
                [
                    "Ninawezaje kuoka mkate mzuri nyumbani bila tanuri?",
                    "Anza na unga na maji, kisha acha unga upumzike kwa saa moja.",
                    "You can just buy one, because it is easier and they have all of them at the market and the baker there is good at it.",
                ],
                "sw",
            ),
            // The prompt was never translated.
            ([english[0], "先准备好面粉和耐心。", "直接买一个就好了。"], "zh"),
            (["Ninawezaje kuoka mkate?", "Anza na unga mzuri na subira.", "Nunua tu mkate, ni rahisi zaidi."], "sw"),
        ] {
            let mut pair = pair(english, target);
            Languages::default().fill(&mut pair);
            assert_eq!(languages(&pair), ("en", code));
        }
        let mut chinese_first = pair(["怎么烤面包？", "先准备好面粉。", "直接买一个。"], english);
        Languages::default().fill(&mut chinese_first);
        assert_eq!(languages(&chinese_first), ("zh", "en"));
    }

    #[test]
    fn a_loan_word_does_not_change_the_language() {
        assert_eq!(detect(&["وضع أحمد سيارته في كراج كبير قرب البيت ثم ذهب إلى السوق مع أصدقائه واشترى گيتارا جديدا"]), "ar");
    }
}
