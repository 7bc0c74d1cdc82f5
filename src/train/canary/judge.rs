//! What looks wrong about the canaries, compared with the model of step 0; thresholds are `signs.canary_…`.

use super::measurement::{AnswersMeasure, LanguageMeasure, Measurement};
use crate::config::SignsConfig;
use crate::train::signs::{Sign, SignKind};
use std::collections::BTreeSet;
use std::fmt::Write;

/// The signs of a measurement, language by language; `dominant` are the languages that are not to change.
pub fn judge(thresholds: &SignsConfig, start: &Measurement, now: &Measurement, dominant: &BTreeSet<String>) -> Vec<Sign> {
    let mut found = Vec::new();
    for (lang, after) in &now.languages {
        let Some(before) = start.languages.get(lang) else { continue };
        let mut note = |kind, value: f64, threshold: f64, message: String| {
            if value > threshold {
                found.push(Sign {
                    kind,
                    lang: Some(lang.clone()),
                    step: now.step,
                    value,
                    threshold,
                    message: format!("{lang}: {message}"),
                });
            }
        };
        if let (Some(first), Some(last)) = (&before.answers, &after.answers) {
            let n = after.n_prompts;
            for Counted { kind, count, what, meaning } in COUNTED {
                let (from, to) = (count(first), count(last));
                let grown = (to as f64 - from as f64) / n as f64;
                note(kind, grown, thresholds.canary_share, format!("{what} {from} to {to} of {n}: {meaning}"));
            }
        }
        let rose = after.nll - before.nll;
        let message = format!(
            "the negative log-likelihood of benign answers rose from {:.2} to {:.2} nats a token: training takes away what it should leave alone",
            before.nll, after.nll
        );
        note(SignKind::Forgetting, rose, thresholds.canary_nll_nats, message);
        if dominant.contains(lang) {
            let message = format!(
                "the distributions behind benign answers moved {:.2} nats a token (KL) from step 0, in the dominant language: raise \
                 `retention.weight` or lower `optimizer.lr`",
                after.kl
            );
            note(SignKind::DominantDrift, after.kl, thresholds.canary_kl_nats, message);
        }
    }
    found
}

/// Answers that are counted.
struct Counted {
    kind: SignKind,
    count: fn(&AnswersMeasure) -> usize,
    what: &'static str,
    meaning: &'static str,
}

const COUNTED: [Counted; 3] = [
    Counted { kind: SignKind::OverRefusal, count: |answers| answers.n_refusals, what: "benign refusals", meaning: "likely over-refusal" },
    Counted {
        kind: SignKind::OtherLanguage,
        count: |answers| answers.n_in_another_language,
        what: "benign answers in another language",
        meaning: "the model leaves the language of the prompt",
    },
    Counted {
        kind: SignKind::Degeneration,
        count: |answers| answers.n_repetitive_or_empty,
        what: "benign answers that are empty or loops",
        meaning: "the model degenerates",
    },
];

/// What a person should see of a measurement: a line for every language that has a sign, whether or not it was said before, or in which the model
/// gives no numbers; at step 0 for every one with answers that would be a sign later.
pub fn describe(thresholds: &SignsConfig, start: &Measurement, now: &Measurement, dominant: &BTreeSet<String>) -> Vec<String> {
    let signs = judge(thresholds, start, now, dominant);
    let is_bad_from_the_start = |measure: &LanguageMeasure| {
        let is_many = |answers: &AnswersMeasure| {
            COUNTED.iter().any(|counted| (counted.count)(answers) as f64 > thresholds.canary_share * measure.n_prompts as f64)
        };
        now.step == 0 && measure.answers.as_ref().is_some_and(is_many)
    };
    let is_notable = |lang: &String, measure: &LanguageMeasure| {
        !measure.nll.is_finite() || signs.iter().any(|sign| sign.lang.as_ref() == Some(lang)) || is_bad_from_the_start(measure)
    };
    let notable = now.languages.iter().filter(|(lang, measure)| is_notable(lang, measure));
    notable.map(|(lang, measure)| format!("canaries after step {}: {lang}: {}", now.step, in_words(measure))).collect()
}

fn in_words(measure: &LanguageMeasure) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = match &measure.answers {
        Some(answers) => write!(
            text,
            "of {} answers {} refuse, {} are in another language, {} empty or loops; {:.0} tokens on average; ",
            measure.n_prompts, answers.n_refusals, answers.n_in_another_language, answers.n_repetitive_or_empty, answers.length
        ),
        None => write!(text, "the model gives no numbers and was not asked; "),
    };
    let _ = write!(text, "{:.2} nats a token, KL {:.3}", measure.nll, measure.kl);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measurement(step: usize, n_refusals: usize, n_in_another_language: usize, nll: f64, kl: f64) -> Measurement {
        let answers =
            AnswersMeasure { n_refusals, n_unclear: 0, n_repetitive_or_empty: 1, n_in_language: 3, n_in_another_language, length: 20.0 };
        let bn = LanguageMeasure { n_prompts: 8, nll, kl, answers: Some(answers) };
        Measurement { step, languages: [("bn".to_owned(), bn)].into() }
    }

    fn messages(now: &Measurement, dominant: &[&str]) -> Vec<String> {
        let dominant = dominant.iter().map(|lang| (*lang).to_owned()).collect();
        judge(&SignsConfig::default(), &measurement(0, 0, 1, 1.0, 0.0), now, &dominant).into_iter().map(|sign| sign.message).collect()
    }

    #[test]
    fn refusals_that_grow_are_said_as_people_say_it() {
        assert_eq!(messages(&measurement(10, 5, 1, 1.0, 0.0), &[]), ["bn: benign refusals 0 to 5 of 8: likely over-refusal"]);
        assert!(messages(&measurement(10, 2, 1, 1.0, 0.0), &[]).is_empty(), "a quarter is the threshold");
        assert_eq!(
            messages(&measurement(10, 0, 4, 1.0, 0.0), &[]),
            ["bn: benign answers in another language 1 to 4 of 8: the model leaves the language of the prompt"]
        );
    }

    #[test]
    fn what_is_forgotten_and_what_drifts() {
        let forgotten = messages(&measurement(10, 0, 1, 1.4, 0.5), &["en"]);
        assert!(forgotten.len() == 1 && forgotten[0].contains("rose from 1.00 to 1.40 nats"), "{forgotten:?}");
        let drifted = messages(&measurement(10, 0, 1, 1.2, 0.5), &["bn"]);
        assert!(drifted.len() == 1 && drifted[0].contains("moved 0.50 nats a token (KL)"), "{drifted:?}");
        assert!(messages(&measurement(10, 0, 1, f64::NAN, f64::NAN), &["bn"]).is_empty(), "no number is no sign");
    }

    #[test]
    fn only_what_is_notable_is_a_line() {
        let thresholds = SignsConfig::default();
        let say = |start: &Measurement, now: &Measurement| describe(&thresholds, start, now, &BTreeSet::new());
        let start = measurement(0, 0, 0, 1.0, 0.0);
        assert!(say(&start, &start).is_empty() && say(&start, &measurement(5, 1, 0, 1.1, 0.2)).is_empty());
        assert_eq!(
            say(&start, &measurement(5, 5, 0, 1.1, 0.2)),
            [
                "canaries after step 5: bn: of 8 answers 5 refuse, 0 are in another language, 1 empty or loops; 20 tokens on average; 1.10 nats a \
              token, KL 0.200"
            ]
        );
        let bad = measurement(0, 6, 0, 1.0, 0.0);
        assert_eq!(say(&bad, &bad).len(), 1, "a model that refuses from the start");
        assert!(say(&bad, &measurement(5, 6, 0, 1.0, 0.0)).is_empty(), "is not said again and again");
        let mut broken = measurement(5, 0, 0, f64::NAN, f64::NAN);
        broken.languages.get_mut("bn").unwrap().answers = None;
        assert!(say(&start, &broken)[0].contains("gives no numbers"));
    }
}
