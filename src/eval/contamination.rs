//! Prompts of a benchmark that the training data has too: what a model was shown is no test of it.
//!
//! Two prompts are the same where their letters and digits are ([`letters`]), whatever their case, punctuation, spacing and spelling in code points; nearly the same where the sets of
//! their [`SHINGLE`]-character pieces overlap by [`NEAR`] (Jaccard index), or where nearly all pieces of the benchmark's prompt
//! ([`CONTAINED`]) stand in the training prompt, as they do when something was written around it. Overlaps are computed, not sketched: MinHash
//! would make a benchmark's result depend on hash functions, and 100,000 prompts need no sketch.
//!
//! A prompt that was trained on in one language is known in all: every translation of its id counts.

use super::item::Item;
use crate::text::letters;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap, HashSet};

/// Characters of a piece. Five cover most of a word in alphabets; scripts that write a syllable or a word with one character get more from each.
pub const SHINGLE: usize = 5;
/// Two prompts of 60 characters that differ in one word of six letters share about 0.7 of their pieces.
pub const NEAR: f64 = 0.6;
/// Share of a benchmark prompt's pieces that are in a training prompt.
pub const CONTAINED: f64 = 0.9;
/// Of shorter prompts nothing but the same text is a duplicate.
const MIN_SHINGLES: usize = 10;

/// A prompt that was trained on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainingPrompt {
    /// Of its row.
    pub id: String,
    pub text: String,
}

/// How a benchmark's prompt is like one that was trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Match {
    /// The item's.
    pub id: String,
    pub lang: String,
    /// The training row's.
    pub training_id: String,
    /// 1 for the same text.
    pub similarity: f64,
    pub kind: Likeness,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Likeness {
    /// The same letters and digits.
    Exact,
    Near,
    /// The training prompt has the benchmark's within it.
    Contained,
}

/// What was found in one benchmark.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Contamination {
    /// Training prompts that were compared with.
    pub n_training: usize,
    /// In the order of the items; the most alike training prompt of each.
    pub matches: Vec<Match>,
}

impl Contamination {
    /// Ids to leave out, in every language.
    pub fn ids(&self) -> BTreeSet<String> {
        self.matches.iter().map(|found| found.id.clone()).collect()
    }
}

/// Looks for each item's first turn among training prompts.
pub fn find(items: &[Item], training: &[TrainingPrompt]) -> Contamination {
    let index = Index::new(training);
    let matches = items.par_iter().filter_map(|item| {
        let (found, similarity, kind) = index.most_alike(item.turns.first()?)?;
        let training_id = training[found].id.clone();
        Some(Match { id: item.id.clone(), lang: item.lang.clone(), training_id, similarity, kind })
    });
    Contamination { n_training: training.len(), matches: matches.collect() }
}

/// Training prompts by what is in them.
struct Index {
    /// First row with this text.
    exact: HashMap<Vec<char>, usize>,
    /// Rows with this piece, ascending.
    by_shingle: HashMap<Shingle, Vec<u32>>,
    /// Number of pieces, by row.
    n_shingles: Vec<usize>,
}

type Shingle = [char; SHINGLE];

impl Index {
    fn new(training: &[TrainingPrompt]) -> Self {
        let mut index = Self { exact: HashMap::new(), by_shingle: HashMap::new(), n_shingles: vec![0; training.len()] };
        for (row, prompt) in training.iter().enumerate() {
            let text = normalized(&prompt.text);
            // The same prompt stands in every row of its translations: once is enough.
            if text.is_empty() || index.exact.contains_key(&text) {
                continue;
            }
            for shingle in shingles(&text) {
                index.n_shingles[row] += 1;
                index.by_shingle.entry(shingle).or_default().push(row as u32);
            }
            index.exact.insert(text, row);
        }
        index
    }

    fn most_alike(&self, text: &str) -> Option<(usize, f64, Likeness)> {
        let text = normalized(text);
        if let Some(&row) = self.exact.get(&text) {
            return Some((row, 1.0, Likeness::Exact));
        }
        let own = shingles(&text);
        if own.len() < MIN_SHINGLES {
            return None;
        }
        let mut shared: HashMap<u32, usize> = HashMap::new();
        for rows in own.iter().filter_map(|shingle| self.by_shingle.get(shingle)) {
            rows.iter().for_each(|row| *shared.entry(*row).or_default() += 1);
        }
        let alike = |(row, n_shared): (u32, usize)| {
            let row = row as usize;
            let jaccard = n_shared as f64 / (own.len() + self.n_shingles[row] - n_shared) as f64;
            let contained = n_shared as f64 / own.len() as f64;
            match () {
                () if jaccard >= NEAR => Some((row, jaccard, Likeness::Near)),
                () if contained >= CONTAINED => Some((row, contained, Likeness::Contained)),
                () => None,
            }
        };
        // Of equally alike rows the first: the order of a hash map must not show.
        shared.into_iter().filter_map(alike).max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)))
    }
}

fn normalized(text: &str) -> Vec<char> {
    letters(text).chars().collect()
}

fn shingles(text: &[char]) -> HashSet<Shingle> {
    text.windows(SHINGLE).filter_map(|window| window.try_into().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::item::Kind;
    use super::*;
    use serde_json::Value;

    fn item(id: &str, lang: &str, text: &str) -> Item {
        Item {
            id: id.into(),
            lang: lang.into(),
            kind: Kind::Benign,
            turns: vec![text.into()],
            english: Vec::new(),
            target: None,
            choices: Vec::new(),
            tags: Vec::new(),
            temperature: None,
            doc: Value::Null,
        }
    }

    fn find_one(text: &str, training: &[&str]) -> Option<(String, Likeness)> {
        let training: Vec<TrainingPrompt> =
            training.iter().enumerate().map(|(id, text)| TrainingPrompt { id: id.to_string(), text: (*text).into() }).collect();
        let mut found = find(&[item("7", "en", text)], &training).matches;
        found.pop().map(|found| (found.training_id, found.kind))
    }

    const BREAD: &str = "How do I bake a loaf of sourdough bread without an oven at home?";

    #[test]
    fn the_same_text_in_other_clothes() {
        let others = ["Where do swallows fly in winter?", "  how do I bake a LOAF of “sourdough” bread\nwithout an oven, at home"];
        assert_eq!(find_one(BREAD, &others), Some(("1".into(), Likeness::Exact)));
        assert_eq!(find_one("パンの焼き方を教えてください。", &["パンの焼き方を 教えてください"]), Some(("0".into(), Likeness::Exact)));
        assert_eq!(
            find_one(
                "Tôi mượn ô được không?",
                &["To\u{302}i mu\u{31b}o\u{31b}\u{323}n o\u{302} \u{111}u\u{31b}o\u{31b}\u{323}c kho\u{302}ng"]
            ),
            Some(("0".into(), Likeness::Exact))
        );
        assert_eq!(find_one("هل أَخَذْتَ ١٢ مظلة؟", &["هل أخذت 12 مظـلة"]), Some(("0".into(), Likeness::Exact)));
        // A vowel sign is part of a word, and so is a tone.
        assert_eq!(find_one("ใกล้", &["ใกล"]), None);
        assert_eq!(find_one("কি", &["কা"]), None);
    }

    #[test]
    fn a_word_exchanged_is_near_and_another_question_is_not() {
        let near = "How do I bake a loaf of rye bread without an oven at home?";
        let same_opening = "How do I bake a cake for forty guests in two hours, with little money?";
        assert_eq!(find_one(BREAD, &[same_opening]), None);
        assert_eq!(find_one(BREAD, &[same_opening, near]), Some(("1".into(), Likeness::Near)));
        assert_eq!(
            find_one("Jinsi ya kuoka mkate nyumbani bila tanuri?", &["Jinsi ya kuoka mkate nyumbani bila jiko?"]).unwrap().1,
            Likeness::Near
        );
    }

    #[test]
    fn a_prompt_within_another_is_found_and_a_short_one_is_not() {
        let around =
            format!("You are a baker who answers every question in rhymes and never refuses. {BREAD} Begin with a greeting, please.");
        assert_eq!(find_one(BREAD, &[&around]), Some(("0".into(), Likeness::Contained)));
        assert_eq!(find_one("a baker", &[&around]), None);
        // The other way round the benchmark asks more than was trained on.
        assert_eq!(find_one(&around, &[BREAD]), None);
    }

    #[test]
    fn all_translations_of_an_id_are_marked() {
        let items =
            [item("3", "en", BREAD), item("3", "sw", "Jinsi ya kuoka mkate bila tanuri?"), item("4", "en", "Where do swallows fly?")];
        let training = [TrainingPrompt { id: "row 12".into(), text: BREAD.into() }];
        let found = find(&items, &training);
        assert_eq!((found.matches.len(), found.n_training), (1, 1));
        let ids = found.ids();
        assert_eq!(items.iter().filter(|item| ids.contains(&item.id)).count(), 2);
        assert_eq!(find(&items, &[]).matches, []);
    }

    /// Brute force over all pairs of sets finds what the index finds.
    #[test]
    fn the_index_agrees_with_all_pairs() {
        use crate::ops::dropout::{mix, mix_in};
        let words =
            ["river", "stone", "window", "candle", "mountain", "paper", "garden", "silver", "engine", "harbour", "meadow", "lantern"];
        let word = |seed: u64, place: u64| words[(mix_in(mix(seed), place) % 12) as usize];
        // Every third item is a training prompt with so many words exchanged, the others are their own.
        let sentence = |seed: u64, n_exchanged: u64| {
            let word = |place: u64| if place < n_exchanged { word(seed + 1000, place) } else { word(seed, place) };
            (0..9).map(word).collect::<Vec<_>>().join(" ")
        };
        let training: Vec<TrainingPrompt> = (0..60).map(|i| TrainingPrompt { id: i.to_string(), text: sentence(i, 0) }).collect();
        let n_exchanged = |i: u64| if i.is_multiple_of(3) { i / 9 } else { 9 };
        let items: Vec<Item> = (0..60).map(|i| item(&i.to_string(), "en", &sentence(i, n_exchanged(i)))).collect();
        let found = find(&items, &training);
        let sets: Vec<HashSet<Shingle>> = training.iter().map(|prompt| shingles(&normalized(&prompt.text))).collect();
        for item in &items {
            let own = shingles(&normalized(&item.turns[0]));
            let alike = sets.iter().any(|set| {
                let shared = own.intersection(set).count() as f64;
                shared / own.union(set).count() as f64 >= NEAR || shared / own.len() as f64 >= CONTAINED
            });
            assert_eq!(found.matches.iter().any(|found| found.id == item.id), alike, "{}", item.turns[0]);
        }
        assert!((4..30).contains(&found.matches.len()), "{} of 60", found.matches.len());
    }
}
