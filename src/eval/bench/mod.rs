//! The benchmarks: one file each, and the table of them all.
//!
//! A benchmark turns the files of its authors into [`Item`]s, the same `id` in every language, and says in its [`Card`] what a user must know
//! before a run. Where the right answer is known it scores by rule; else the card names the rubric that a judge needs. It sees no model: how
//! items are answered is another module's business.
//!
//! Prompts are the file's text, byte for byte: nothing is trimmed and no line ending rewritten, so that a prompt can be found in its source. What
//! is around them (columns, quotes, byte order marks) is understood here, and every complaint names file and line.

mod advbench_x;
pub mod card;
mod csrt;
mod jailbreak;
pub mod languages;
mod list;
pub mod mgsm;
pub mod mmmlu;
mod mt_bench;
mod multijail;
pub mod prompts;
pub mod reward_gap;
mod subset;
mod table;
mod workbook;
mod xsafety;
mod xstest;

pub use card::{Card, Languages, Metric, Origin, Scoring};
pub use jailbreak::Jailbreak;
pub use list::{list_json, list_text};
pub use subset::subset;

use crate::eval::item::Item;
use crate::eval::record::{Response, Verdict};
use crate::eval::source::{Source, SourceFile};
use anyhow::{Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};

/// A benchmark.
pub trait Benchmark: Sync {
    fn card(&self) -> &'static Card;

    /// Items of the chosen languages, language by language, each in the order of its file. Use [`load`], which also checks what comes back.
    fn read(&self, source: &Source<'_>, langs: &[String]) -> Result<Loaded>;

    /// What a rule makes of an answer; an error where only a judge can tell.
    fn score(&self, item: &Item, _response: &Response) -> Result<Verdict> {
        match self.card().rubric(item.kind) {
            Some(rubric) => bail!("`{}` has no rule that scores an answer: a judge with the rubric `{rubric}` does", self.card().name),
            None => bail!("`{}` does not score answers of this kind", self.card().name),
        }
    }

    /// The ways in which an answer is read off a text, the main one first; `none` where the text itself is judged.
    fn filters(&self) -> &'static [&'static str] {
        &["none"]
    }

    /// What a filter reads off a response's answer, for the samples file; the answer itself where there is no filter.
    fn filtered(&self, _item: &Item, response: &Response, _filter: &str) -> String {
        response.last_said().to_owned()
    }

    /// Text that ends an answer, beside the model's own stop tokens.
    fn stops(&self, _lang: &str) -> Vec<String> {
        Vec::new()
    }

    /// Name of the task in result files. It is one of lm-evaluation-harness' only where prompt, shots and stops are equal.
    fn task(&self, lang: &str) -> String {
        format!("{}_{lang}", self.card().name).replace('-', "_")
    }
}

/// What was read, and from where.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    pub items: Vec<Item>,
    /// With their SHA-256, for the results.
    pub files: Vec<SourceFile>,
    /// What somebody who reads the results should know.
    pub notes: Vec<String>,
}

/// All benchmarks, in the order in which they are listed.
pub fn all() -> [&'static dyn Benchmark; 12] {
    [
        &multijail::MultiJail,
        &advbench_x::AdvBenchX,
        &csrt::Csrt,
        &xsafety::XSafety,
        &xstest::XsTest,
        &prompts::Prompts,
        &mgsm::MGSM,
        &mgsm::NATIVE_COT,
        &mmmlu::MMMLU,
        &mmmlu::GENERATIVE,
        &mt_bench::MtBench,
        &reward_gap::RewardGap,
    ]
}

/// The benchmark of this name or alias, whatever its case, with `-`, `_` and no separator alike.
///
/// # Errors
/// Names the nearest, and all.
pub fn find(name: &str) -> Result<&'static dyn Benchmark> {
    let plain = |name: &str| name.to_ascii_lowercase().replace(['-', '_', ' '], "");
    let wanted = plain(name);
    let names = |bench: &dyn Benchmark| std::iter::once(bench.card().name).chain(bench.card().aliases.iter().copied());
    if let Some(bench) = all().into_iter().find(|bench| names(*bench).any(|name| plain(name) == wanted)) {
        return Ok(bench);
    }
    let distance = |bench: &&dyn Benchmark| names(*bench).map(|name| strsim::osa_distance(&plain(name), &wanted)).min();
    let nearest = all().into_iter().min_by_key(distance).map_or("", |bench| bench.card().name);
    bail!("there is no benchmark `{name}`; did you mean `{nearest}`? There are {}", all_names())
}

/// Of all, with commas.
pub fn all_names() -> String {
    all().iter().map(|bench| bench.card().name).collect::<Vec<_>>().join(", ")
}

/// Loads the items of the languages that are asked for (all, where none is) and checks them.
///
/// # Errors
/// An unknown language, files that cannot be had or read (with what to do), no items, an id that a language has twice, an empty prompt.
pub fn load(bench: &dyn Benchmark, source: &Source<'_>, asked: &[String]) -> Result<Loaded> {
    let card = bench.card();
    let langs = card.choose_languages(asked)?;
    let mut loaded = bench.read(source, &langs)?;
    let mut seen = BTreeSet::new();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for item in &loaded.items {
        let Item { id, lang, .. } = item;
        ensure!(item.turns.iter().any(|turn| !turn.trim().is_empty()), "`{}`: the prompt of id `{id}` in `{lang}` is empty", card.name);
        ensure!(seen.insert((lang, id)), "`{}` has the id `{id}` twice in `{lang}`: ids pair a prompt with its translations", card.name);
        *counts.entry(lang).or_default() += 1;
    }
    let absent: Vec<_> = langs.iter().filter(|lang| !counts.contains_key(lang.as_str())).map(|lang| format!("`{lang}`")).collect();
    if !absent.is_empty() {
        // What was not asked for was left out: all of it says which languages there are.
        let mut present: Vec<String> = bench.read(source, &[]).unwrap_or_default().items.into_iter().map(|item| item.lang).collect();
        present.extend(counts.keys().map(|lang| (*lang).to_owned()));
        present.sort();
        present.dedup();
        let present = if present.is_empty() { "none at all".to_owned() } else { present.join(" ") };
        bail!("the data of `{}` has no prompts in {}; it has {present}", card.name, absent.join(", "));
    }
    ensure!(!loaded.items.is_empty(), "the data of `{}` has no prompts", card.name);
    let odd = |n: usize| card.rows.is_some_and(|rows| rows != n);
    let odd: Vec<_> = counts.iter().filter(|(_, n)| odd(**n)).map(|(lang, n)| format!("{n} in {lang}")).collect();
    if let (false, Some(rows)) = (odd.is_empty(), card.rows) {
        loaded.notes.push(format!("`{}` has {rows} prompts in each language as published, here {}", card.name, odd.join(", ")));
    }
    Ok(loaded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_benchmark_is_found_by_name_alias_and_spelling() {
        let name = |text: &str| find(text).unwrap().card().name;
        assert_eq!((name("multijail"), name("MT_Bench"), name("mtbench")), ("multijail", "mt-bench", "mt-bench"));
        assert_eq!((name("advbench_x"), name("rg"), name("mgsm-native-cot")), ("advbench-x", "reward-gap", "mgsm-native-cot"));
        let error = find("multijial").err().unwrap().to_string();
        assert!(
            error.starts_with("there is no benchmark `multijial`; did you mean `multijail`? There are multijail, advbench-x,"),
            "{error}"
        );
    }

    #[test]
    fn names_are_unique_and_every_card_is_whole() {
        let mut names = BTreeSet::new();
        for bench in all() {
            let card = bench.card();
            for name in std::iter::once(&card.name).chain(card.aliases) {
                assert!(names.insert(name.replace('-', "")), "`{name}` stands for two");
            }
            assert!(!card.about.is_empty() && !card.licence.is_empty() && !card.metrics.is_empty(), "{}", card.name);
            let generates = card.max_new_tokens > 0;
            let text_is_read = matches!(card.scoring, Scoring::Judge(_)) || bench.filters() != ["none"];
            assert_eq!(generates, text_is_read, "{}", card.name);
        }
        let task = |bench: &str, lang| find(bench).unwrap().task(lang);
        assert_eq!((task("multijail", "bn"), task("mt-bench", "en")), ("multijail_bn".into(), "mt_bench_en".into()));
        assert_eq!(task("mgsm-native-cot", "sw"), "mgsm_native_cot_sw");
    }
}
