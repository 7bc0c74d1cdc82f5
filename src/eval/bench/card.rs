//! What is known of a benchmark before it is loaded: the facts that `mpo eval --list` shows and that the rest of the program asks for.

use super::languages;
use crate::eval::item::Kind;
use crate::eval::results::metric::Better;
use anyhow::{Result, bail};

/// A benchmark's facts. All of it is data: a language, a metric or a source is a value here, never a branch elsewhere.
#[derive(Debug)]
pub struct Card {
    /// As in `--bench`.
    pub name: &'static str,
    /// Other spellings that people type.
    pub aliases: &'static [&'static str],
    /// What it asks, in a line.
    pub about: &'static str,
    pub languages: Languages,
    /// Prompts in each language, as published; none where the user's file decides.
    pub rows: Option<usize>,
    pub metrics: &'static [Metric],
    pub scoring: Scoring,
    pub origin: Origin,
    pub licence: &'static str,
    /// New tokens for an answer unless the user says otherwise. 0 where nothing is generated.
    pub max_new_tokens: usize,
}

/// The languages that can be asked for.
#[derive(Debug)]
pub enum Languages {
    /// Those that the published files have.
    Listed {
        codes: &'static [&'static str],
        /// A name that the files use, and the code that it stands for.
        aliases: &'static [(&'static str, &'static str)],
        /// Where other languages may be found, for the error; empty where there is nothing to say.
        others: &'static str,
    },
    /// Whatever the user's file holds.
    OfData,
}

/// A number that results report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// As in `Verdict::metrics`, where a filter stands behind a comma (`exact_match,simple-evals`).
    pub name: &'static str,
    pub better: Better,
}

/// The metric that should be low.
pub(super) const fn lower(name: &'static str) -> Metric {
    Metric { name, better: Better::Lower }
}

/// The metric that should be high.
pub(super) const fn higher(name: &'static str) -> Metric {
    Metric { name, better: Better::Higher }
}

/// The metric that has no better side.
pub(super) const fn neither(name: &'static str) -> Metric {
    Metric { name, better: Better::Neither }
}

/// Who says how good an answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    /// The benchmark itself, by comparison with the right answer.
    Rule,
    /// A judge, by the rubric named for the item's kind.
    Judge(&'static [(Kind, &'static str)]),
    /// Nobody reads an answer: log-probabilities of given answers are measured.
    RewardGap,
}

/// Where the files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A data set on the Hugging Face hub; `files` says which of its files are fetched.
    Hub { repo: &'static str, files: &'static str },
    /// With `--data` only; `from` says what such a file is and where people get it.
    Local { from: &'static str },
}

impl Card {
    /// The rubric that an item of this kind is judged by; none where no judge is asked.
    pub fn rubric(&self, kind: Kind) -> Option<&'static str> {
        let Scoring::Judge(rubrics) = self.scoring else { return None };
        rubrics.iter().find(|(of, _)| *of == kind).map(|(_, rubric)| *rubric)
    }

    /// Turns what a user asked for into codes, in that order and each once; all of the benchmark's where nothing was asked for. Where the file
    /// decides which languages there are, what was asked for is returned as it is.
    ///
    /// # Errors
    /// Names every language that the benchmark lacks, and those that it has.
    pub fn choose_languages(&self, asked: &[String]) -> Result<Vec<String>> {
        let (codes, aliases, others) = match self.languages {
            Languages::Listed { codes, aliases, others } => (codes, aliases, others),
            Languages::OfData => (&[][..], &[][..], ""),
        };
        if asked.is_empty() {
            return Ok(codes.iter().map(|code| (*code).to_owned()).collect());
        }
        let is_open = matches!(self.languages, Languages::OfData);
        let (mut chosen, mut absent) = (Vec::new(), Vec::new());
        for lang in asked {
            let lang = lang.trim().to_ascii_lowercase();
            let code = aliases.iter().find(|(alias, _)| *alias == lang).map_or(lang.as_str(), |(_, code)| code);
            if !is_open && !codes.contains(&code) {
                absent.push(format!("`{lang}`{}", languages::name(&lang).map(|name| format!(" ({name})")).unwrap_or_default()));
            } else if !chosen.iter().any(|chosen| chosen == code) {
                chosen.push(code.to_owned());
            }
        }
        if !absent.is_empty() {
            let others = if others.is_empty() { String::new() } else { format!("; {others}") };
            bail!("`{}` has no {}; its languages are {}{others}", self.name, absent.join(", "), codes.join(" "));
        }
        Ok(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::super::find;
    use super::*;

    fn chosen(bench: &str, asked: &[&str]) -> Result<Vec<String>, String> {
        let asked: Vec<_> = asked.iter().map(|lang| (*lang).to_owned()).collect();
        find(bench).unwrap().card().choose_languages(&asked).map_err(|error| error.to_string())
    }

    #[test]
    fn languages_are_chosen_in_the_order_asked_for_and_once() {
        assert_eq!(chosen("multijail", &["sw", " EN", "sw"]).unwrap(), ["sw", "en"]);
        assert_eq!(chosen("multijail", &[]).unwrap().len(), 10);
        assert_eq!(chosen("advbench-x", &["jp", "ja"]).unwrap(), ["ja"]);
        assert_eq!(chosen("prompts", &["tlh"]).unwrap(), ["tlh"], "the file decides");
    }

    #[test]
    fn a_language_that_is_not_there_names_those_that_are() {
        let error = chosen("multijail", &["en", "ja", "xx"]).unwrap_err();
        assert_eq!(error, "`multijail` has no `ja` (Japanese), `xx`; its languages are en zh it vi ar ko th bn sw jv");
        let error = chosen("mgsm", &["ko"]).unwrap_err();
        assert!(error.contains("Qwen/P-MMEval") && error.contains("`ko` (Korean)"), "{error}");
        assert!(chosen("multijail", &["jp"]).is_err(), "`jp` is how AdvBench-X writes it, nobody else");
    }

    #[test]
    fn a_rubric_is_that_of_the_items_kind() {
        let rubric = |bench: &str, kind| find(bench).unwrap().card().rubric(kind);
        assert_eq!(rubric("multijail", Kind::Harmful), Some("multijail"));
        assert_eq!(rubric("prompts", Kind::Harmful), Some("multijail"));
        assert_eq!(rubric("prompts", Kind::Benign), Some("xstest"));
        assert_eq!(rubric("mgsm", Kind::Utility), None);
    }
}
