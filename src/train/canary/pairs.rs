//! Questions whose good and bad answer are both known: which of the two is what the policy says nearer to, before and after the run?
//!
//! The judge is [`Nearest`], exact and offline. A reward gap says what the policy would rather say of two answers that it is given; this says what it
//! does say. A language in which answers become like neither of the two breaks, whatever its gap does.

use super::answers::Look;
use super::measurement::{LanguageMeasure, Measurement};
use crate::escape::one_line;
use crate::eval::judge::nearest::Nearest;
use crate::eval::lines;
use crate::eval::stats::Interval;
use crate::eval::stats::wilson::wilson;
use crate::generate::thought;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::fmt::{self, Write};
use std::path::Path;

/// Characters of a text that an example shows.
const SHOWN: usize = 120;
/// Examples where answers changed from bad to good, each of another language; one more where they did not, if there is any.
const N_EXAMPLES: usize = 2;

/// A question's two known answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    pub chosen: String,
    pub rejected: String,
}

impl Pair {
    pub fn nearest(&self, answer: &str) -> Nearest {
        Nearest::of(thought::answer(answer), &self.chosen, &self.rejected)
    }
}

/// The questions of one language that have a [`Pair`], at least one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairsMeasure {
    pub n_questions: usize,
    pub n_rejected: usize,
    pub n_neither: usize,
    /// Of those that are neither: what is told of them without a judge.
    pub n_neither_in_another_language: usize,
    pub n_neither_refusals: usize,
    pub n_neither_repetitive_or_empty: usize,
}

impl PairsMeasure {
    /// `None` without any.
    pub fn of(judged: impl Iterator<Item = (Nearest, Look)>) -> Option<Self> {
        let mut measure = Self::default();
        for (nearest, look) in judged {
            let count = |holds: bool| usize::from(holds);
            measure.n_questions += 1;
            measure.n_rejected += count(nearest == Nearest::Rejected);
            if nearest == Nearest::Neither {
                measure.n_neither += 1;
                measure.n_neither_in_another_language += count(look.is_in_language == Some(false));
                measure.n_neither_refusals += count(look.is_refusal);
                measure.n_neither_repetitive_or_empty += count(look.is_repetitive_or_empty);
            }
        }
        (measure.n_questions > 0).then_some(measure)
    }

    /// `7 of 12 (32-81 %)`
    fn rejected(&self) -> String {
        let Interval { low, high } = wilson(self.n_rejected, self.n_questions);
        format!("{} of {} ({:.0}-{:.0} %)", self.n_rejected, self.n_questions, 100.0 * low, 100.0 * high)
    }

    /// What the answers are that are like neither: `, 3 in another language, 1 refusals`.
    pub fn neither_in_words(&self) -> String {
        let parts = [
            (self.n_neither_in_another_language, "in another language"),
            (self.n_neither_refusals, "refusing"),
            (self.n_neither_repetitive_or_empty, "empty or a loop"),
        ];
        let told: Vec<String> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        if told.is_empty() { String::new() } else { format!(" ({})", told.join(", ")) }
    }
}

/// The table of the questions before and after the run, a line for each language and one for those that were to change; nothing where there are none.
pub fn write_table(f: &mut fmt::Formatter<'_>, before: &Measurement, after: &Measurement) -> fmt::Result {
    let pairs = |measure: &LanguageMeasure| measure.pairs;
    let rows: Vec<(&String, PairsMeasure, PairsMeasure)> = after
        .languages
        .iter()
        .filter_map(|(lang, after)| Some((lang, before.languages.get(lang).and_then(pairs)?, pairs(after)?)))
        .collect();
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(f, "\n{:<14}{:>26}{:>26}{:>16}", "Questions", "like the rejected answer", "after (95 % interval)", "like neither")?;
    for (lang, before, after) in rows {
        let neither = format!("{} -> {}", before.n_neither, after.n_neither);
        writeln!(f, "  {:<12}{:>26}{:>26}{neither:>16}", format!("{lang} ({})", after.n_questions), before.rejected(), after.rejected())?;
    }
    Ok(())
}

/// One question with what was answered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Example {
    pub id: String,
    pub lang: String,
    pub prompt: String,
    pub before: String,
    pub after: String,
    pub was: Nearest,
    pub is: Nearest,
}

impl fmt::Display for Example {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lang, prompt, before, after, was, is, .. } = self;
        writeln!(f, "  {lang}  {}", one_line(prompt, SHOWN))?;
        for (when, text, nearest) in [("before", before, was), ("after", after, is)] {
            let like = match nearest {
                Nearest::Neither => "like neither answer",
                Nearest::Chosen => "like the chosen answer",
                Nearest::Rejected => "like the rejected answer",
            };
            writeln!(f, "    {when:<8}{}  [{like}]", one_line(text, SHOWN))?;
        }
        Ok(())
    }
}

/// As a person reads them.
pub fn in_words(examples: &[Example]) -> String {
    examples.iter().fold(String::new(), |mut text, example| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{example}");
        text
    })
}

/// What is read of a line of `OUT/canary/step-000010.jsonl`.
#[derive(Deserialize)]
struct Answered {
    id: String,
    lang: String,
    prompt: String,
    answer: String,
    nearest: Option<Nearest>,
}

/// Some questions of the files of two steps.
pub fn examples(before: &Path, after: &Path) -> Result<Vec<Example>> {
    let [before, after] = [before, after].map(|path| lines::read::<Answered>(path).map(|read| read.values));
    let both = before?.into_iter().zip(after?).filter(|(was, is)| (&was.id, &was.lang) == (&is.id, &is.lang));
    let all: Vec<Example> = both
        .filter_map(|(first, last)| {
            let (was, is) = (first.nearest?, last.nearest?);
            let Answered { id, lang, prompt, answer, .. } = first;
            Some(Example { id, lang, prompt, before: answer, after: last.answer, was, is })
        })
        .collect();
    Ok(choose(all))
}

fn choose(all: Vec<Example>) -> Vec<Example> {
    let is_better = |example: &Example| (example.was, example.is) == (Nearest::Rejected, Nearest::Chosen);
    let is_worse = |example: &Example| example.is != Nearest::Chosen && example.is != example.was;
    let mut chosen: Vec<Example> = Vec::new();
    for example in all.iter().filter(|example| is_better(example)) {
        if chosen.len() < N_EXAMPLES && chosen.iter().all(|known| known.lang != example.lang) {
            chosen.push(example.clone());
        }
    }
    chosen.extend(all.into_iter().find(is_worse));
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(lang: &str, was: Nearest, is: Nearest) -> Example {
        let text = "a\u{1b}[2Jb".to_owned();
        Example { id: "1".into(), lang: lang.into(), prompt: text.clone(), before: text.clone(), after: text, was, is }
    }

    #[test]
    fn what_did_not_go_well_is_shown_too() {
        use Nearest::{Chosen, Neither, Rejected};
        let all = [
            ("en", Chosen, Chosen),
            ("sw", Rejected, Chosen),
            ("sw", Rejected, Chosen),
            ("bn", Rejected, Neither),
            ("zh", Rejected, Chosen),
        ];
        let chosen = choose(all.map(|(lang, was, is)| example(lang, was, is)).to_vec());
        let shown: Vec<(&str, Nearest)> = chosen.iter().map(|example| (example.lang.as_str(), example.is)).collect();
        assert_eq!(shown, [("sw", Chosen), ("zh", Chosen), ("bn", Neither)]);
        let text = in_words(&chosen);
        assert!(!text.contains('\u{1b}') && text.contains("after   a\\u{1b}[2Jb  [like neither answer]"), "{text}");
        assert!(choose(vec![example("en", Chosen, Chosen)]).is_empty());
    }

    #[test]
    fn shares_stand_beside_what_they_are_of() {
        let measure = PairsMeasure { n_questions: 12, n_rejected: 1, ..PairsMeasure::default() };
        assert_eq!(measure.rejected(), "1 of 12 (1-35 %)");
    }
}
