//! What the canaries say of a model, language by language.

use super::answers::{Asked, Look, look_at};
use super::likelihood::TextsSeen;
use super::prompts::Prompts;
use crate::train::measure::null_is_nan;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;

/// The canaries under the weights after `step` steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// Steps taken.
    pub step: usize,
    pub languages: BTreeMap<String, LanguageMeasure>,
}

/// The canaries of one language.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LanguageMeasure {
    pub n_prompts: usize,
    /// Of the answers' tokens, nats a token.
    #[serde(deserialize_with = "null_is_nan")]
    pub nll: f64,
    /// From the model of step 0, nats a token; see [`super::Position`].
    #[serde(deserialize_with = "null_is_nan")]
    pub kl: f64,
    /// `None` where the model gives no numbers, and so no words.
    pub answers: Option<AnswersMeasure>,
}

/// What the answers are.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AnswersMeasure {
    pub n_refusals: usize,
    /// Neither refusals nor answers: their first words do not decide. None in measurements of older versions.
    #[serde(default)]
    pub n_unclear: usize,
    pub n_repetitive_or_empty: usize,
    pub n_in_language: usize,
    /// The language of the rest cannot be told.
    pub n_in_another_language: usize,
    /// Mean length in tokens.
    pub length: f64,
}

impl Measurement {
    /// `asked` is absent where nothing could be.
    pub fn new(step: usize, prompts: &Prompts, texts: &TextsSeen, asked: Option<&Asked>) -> Self {
        let mut numbers: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (number, prompt) in prompts.all.iter().enumerate() {
            numbers.entry(&prompt.lang).or_default().push(number);
        }
        let of_language = |(lang, numbers): (&str, Vec<usize>)| {
            let (nll, kl) = texts.means(numbers.iter().copied());
            let answers = asked.map(|asked| AnswersMeasure::of(lang, numbers.iter().map(|&number| asked.answer(number))));
            (lang.to_owned(), LanguageMeasure { n_prompts: numbers.len(), nll, kl, answers })
        };
        Self { step, languages: numbers.into_iter().map(of_language).collect() }
    }
}

impl AnswersMeasure {
    /// Of answers in `lang`, at least one, each with its length in tokens.
    pub fn of<'a>(lang: &str, answers: impl Iterator<Item = (&'a str, usize)>) -> Self {
        let looks: Vec<(Look, usize)> = answers.map(|(text, n_tokens)| (look_at(text, lang), n_tokens)).collect();
        let count = |holds: fn(&Look) -> bool| looks.iter().filter(|(look, _)| holds(look)).count();
        Self {
            n_refusals: count(|look| look.is_refusal),
            n_unclear: count(|look| look.is_unclear),
            n_repetitive_or_empty: count(|look| look.is_repetitive_or_empty),
            n_in_language: count(|look| look.is_in_language == Some(true)),
            n_in_another_language: count(|look| look.is_in_language == Some(false)),
            length: looks.iter().map(|(_, n_tokens)| n_tokens).sum::<usize>() as f64 / looks.len() as f64,
        }
    }
}

/// The canaries before and after a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compared {
    pub before: Measurement,
    pub after: Measurement,
}

impl Compared {
    pub fn new(before: &Measurement, after: &Measurement) -> Self {
        Self { before: before.clone(), after: after.clone() }
    }
}

/// A table, a line for each language.
impl fmt::Display for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = ["refused", "other lang.", "loop, empty", "tokens", "nats a token", "KL"];
        write!(f, "{:<24}", "Canaries, benign prompts")?;
        columns.iter().try_for_each(|column| write!(f, "{column:>15}"))?;
        for (lang, after) in &self.after.languages {
            let Some(before) = self.before.languages.get(lang) else { continue };
            write!(f, "\n  {:<22}", format!("{lang} ({})", after.n_prompts))?;
            let both = [&before.answers, &after.answers];
            let count = |count: fn(&AnswersMeasure) -> usize| arrow(both.map(|answers| answers.as_ref().map(|a| count(a).to_string())));
            for cell in [
                count(|answers| answers.n_refusals),
                count(|answers| answers.n_in_another_language),
                count(|answers| answers.n_repetitive_or_empty),
                arrow(both.map(|answers| answers.as_ref().map(|a| format!("{:.0}", a.length)))),
                arrow([before.nll, after.nll].map(|nll| Some(format!("{nll:.2}")))),
                format!("{:.3}", after.kl),
            ] {
                write!(f, "{cell:>15}")?;
            }
        }
        writeln!(f)
    }
}

/// `0 -> 5`
fn arrow(cells: [Option<String>; 2]) -> String {
    let [before, after] = cells.map(|cell| cell.unwrap_or_else(|| "-".into()));
    format!("{before} -> {after}")
}

/// What `kind` is in a line of `metrics.jsonl` that is about canaries.
pub const KIND: &str = "canary";

/// The line of `metrics.jsonl` about the weights after `step` steps. For each language, as in `canary_nll/sw`:
///
/// | key | |
/// |---|---|
/// | `canary_nll`, `canary_kl` | nats a token; `null` where the model gives no numbers, and then without the other keys |
/// | `canary_refusal_rate`, `canary_repetitive_rate` | share of the answers that refuse (a heuristic); that are empty or loops |
/// | `canary_unclear_rate` | share of the answers whose first words do not decide whether they refuse |
/// | `canary_language_match` | share that is in the prompt's language, of those whose language can be told; absent where there are none |
/// | `canary_length` | mean length of an answer in tokens, the stop token included |
///
/// and `seconds`, which all of it took.
pub fn line(measurement: &Measurement, seconds: f64) -> Map<String, Value> {
    let mut line = Map::new();
    line.insert("step".into(), measurement.step.into());
    line.insert("kind".into(), KIND.into());
    for (lang, LanguageMeasure { n_prompts, nll, kl, answers }) in &measurement.languages {
        let mut add = |key: &str, value: f64| line.insert(format!("canary_{key}/{lang}"), value.into());
        add("nll", *nll);
        add("kl", *kl);
        let Some(answers) = answers else { continue };
        let share = |n: usize, of: usize| n as f64 / of as f64;
        let n_told = answers.n_in_language + answers.n_in_another_language;
        add("refusal_rate", share(answers.n_refusals, *n_prompts));
        add("unclear_rate", share(answers.n_unclear, *n_prompts));
        add("repetitive_rate", share(answers.n_repetitive_or_empty, *n_prompts));
        if n_told > 0 {
            add("language_match", share(answers.n_in_language, n_told));
        }
        add("length", answers.length);
    }
    line.insert("seconds".into(), seconds.into());
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_what_they_are() {
        let swahili = "Kwanza changanya unga na maji vizuri, kisha acha unga upumzike kwa saa moja.";
        let unclear = "Siwezi kusisitiza vya kutosha umuhimu wa chachu nzuri.";
        let texts = [swahili, "Samahani, siwezi kukusaidia na hilo.", "I can't help you with that request, sorry.", "", "Ndiyo.", unclear];
        let measured = AnswersMeasure::of("sw", texts.into_iter().zip([20, 8, 10, 1, 3, 12]));
        let expected = AnswersMeasure {
            n_refusals: 2,
            n_unclear: 1,
            n_repetitive_or_empty: 1,
            n_in_language: 3,
            n_in_another_language: 1,
            length: 54.0 / 6.0,
        };
        assert_eq!(measured, expected);
    }

    #[test]
    fn a_line_has_what_is_known() {
        let answers = AnswersMeasure {
            n_refusals: 5,
            n_unclear: 0,
            n_repetitive_or_empty: 0,
            n_in_language: 3,
            n_in_another_language: 1,
            length: 12.5,
        };
        let bn = LanguageMeasure { n_prompts: 8, nll: 1.25, kl: 0.5, answers: Some(answers) };
        let untold = AnswersMeasure { n_in_language: 0, n_in_another_language: 0, ..answers };
        let th = LanguageMeasure { answers: Some(untold), ..bn.clone() };
        let sw = LanguageMeasure { nll: f64::NAN, answers: None, ..bn.clone() };
        let languages = [("bn", bn), ("sw", sw), ("th", th)].map(|(lang, measure)| (lang.to_owned(), measure)).into();
        let measurement = Measurement { step: 10, languages };
        let line = line(&measurement, 2.0);
        assert_eq!((line["step"].as_u64(), line["kind"].as_str(), line["seconds"].as_f64()), (Some(10), Some("canary"), Some(2.0)));
        assert_eq!((line["canary_refusal_rate/bn"].as_f64(), line["canary_language_match/bn"].as_f64()), (Some(0.625), Some(0.75)));
        assert!(
            line["canary_nll/sw"].is_null() && !line.contains_key("canary_length/sw") && !line.contains_key("canary_language_match/th")
        );
        let read: Measurement = serde_json::from_str(&serde_json::to_string(&measurement).unwrap()).unwrap();
        assert!(read.languages["sw"].nll.is_nan() && read.languages["bn"] == measurement.languages["bn"]);
    }
}
