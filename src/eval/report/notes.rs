//! What a reader must know to believe a number: by whom it was judged, over what it is, what is missing.

use super::Options;
use super::compare::{Source, Table};
use super::kept::GapAgainstAttack;
use crate::eval::item::Kind;
use crate::eval::judge::gate::count_reasons;
use crate::eval::judge::parameters::LEFT_OUT;
use crate::eval::results::facts::TrainingFacts;
use crate::eval::results::harness::{Judged, sha256};
use crate::eval::results::languages::Over;
use crate::eval::results::metric::{Scale, split_key};
use crate::eval::results::run::{LoadedBench, LoadedRun, RULE};
use crate::eval::stats::bootstrap::Resampling;
use std::collections::{BTreeMap, BTreeSet};

/// Characters of a sha256 that are printed.
const SHA_CHARS: usize = 12;

/// What a report was made under.
#[derive(Debug, Clone, Copy)]
pub struct Conditions<'a> {
    pub options: &'a Options,
    pub training: Option<&'a TrainingFacts>,
    /// The family that Holm's correction is over.
    pub n_tests: usize,
}

/// All notes, those on the whole report last.
pub fn notes(runs: &[LoadedRun], sources: &[Source], tables: &[Table], gaps: &[GapAgainstAttack], conditions: &Conditions) -> Vec<String> {
    let mut notes = judges(sources);
    notes.extend(sources.iter().flat_map(|source| source.judged.iter().flat_map(|judged| missing(&source.name, judged))));
    notes.extend(averages(tables, conditions.training));
    notes.extend(tests(conditions));
    for (run, source) in runs.iter().zip(sources) {
        notes.extend(run.benches.iter().filter_map(|(bench, loaded)| thoughts(&source.name, bench, loaded)));
        notes.extend(of_run(run, &source.name));
        notes.extend(other_tokens(run, &source.name));
        notes.extend(over_refusal(run, &source.name, sources, conditions.training));
        notes.extend(contamination(run, source));
    }
    // Runs that share a name may have the same to say.
    let mut seen = BTreeSet::new();
    notes.retain(|note| seen.insert(note.clone()));
    notes.extend(settings(runs, sources));
    if !gaps.is_empty() {
        notes.push(
            "Reward gap against attack success: p is exact, over all orders of the languages. Measure the gap on pairs that were not trained on; \
             once it has been optimised it is a diagnostic of training, not evidence of safety."
                .to_owned(),
        );
    }
    let Resampling { resamples, seed } = conditions.options.settings.resampling;
    notes.push(format!(
        "95 % intervals: Wilson's for shares, else the bootstrap over prompts, all translations of a prompt together ({resamples} resamples, seed \
         {seed}). They cover the sampling of prompts, not errors of the judge, and not the seed of training: each checkpoint is one training run."
    ));
    notes
}

/// One note for each benchmark and judge; what depends on the run stands in [`missing`].
fn judges(sources: &[Source]) -> Vec<String> {
    let mut seen: BTreeMap<String, ()> = BTreeMap::new();
    for judged in sources.iter().flat_map(|source| &source.judged) {
        let facts = &judged.judge_facts;
        let mut note = match judged.judge.as_deref() {
            Some(RULE) => format!("{}: scored by its own rule", judged.name),
            _ => format!("{}: judged by {}", judged.name, facts.name),
        };
        if !facts.rubric.is_empty() {
            note += &format!(", rubric {}", facts.rubric);
        }
        if let Some(sha) = &facts.prompt_sha256 {
            note += &format!(", prompt sha256 {}", short(sha));
        }
        if let Some(translator) = &facts.translated_by {
            note += &format!(", answers translated to English by {translator}");
        }
        note += &format!("; {}", prompts(judged));
        if facts.heuristic {
            note += "; a heuristic, which does not tell harm from harmlessness: no attack success";
        }
        let has = |name: &str| judged.scores.metrics().any(|key| split_key(key).0 == name);
        if has("asr") && !has("invalid_rate") {
            note += "; invalid n/a: this judge has no such verdict";
        }
        let uncovered: Vec<&str> = judged.scores.languages.iter().map(String::as_str).filter(|lang| !facts.covers(lang)).collect();
        if !uncovered.is_empty() {
            note += &format!("; the judge is not made for {} (°), which is in no average", uncovered.join(" "));
        }
        let left_out: Vec<String> =
            facts.parameters.iter().filter(|(_, value)| *value == LEFT_OUT).map(|(name, _)| format!("`{name}`")).collect();
        if !left_out.is_empty() {
            note += &format!("; asked without {}, which its endpoint refuses", left_out.join(" and "));
        }
        for caveat in &facts.caveats {
            note += &format!("; {caveat}");
        }
        seen.entry(note + ".").or_default();
    }
    seen.into_keys().collect()
}

/// `n = 315 a language`, or each language's.
fn prompts(judged: &Judged) -> String {
    let counts = &judged.scores.counts;
    let first = counts.values().next().map_or(0, |counts| counts.prompts);
    if counts.values().all(|counts| counts.prompts == first) {
        return format!("n = {first} prompts{}", if counts.len() > 1 { " a language" } else { "" });
    }
    let each: Vec<String> = counts.iter().map(|(lang, counts)| format!("{lang} {}", counts.prompts)).collect();
    format!("n = {}", each.join(", "))
}

/// What has no verdict, or one that could not be read.
fn missing(run: &str, judged: &Judged) -> Vec<String> {
    let mut notes = Vec::new();
    let counts = || judged.scores.counts.iter();
    let list = |of: &dyn Fn(&str) -> Option<String>| counts().filter_map(|(lang, _)| of(lang)).collect::<Vec<_>>().join(", ");
    let unparsed = list(&|lang| {
        let counts = judged.scores.counts.get(lang)?;
        let rate = judged.scores.values("asr", lang).filter(|values| values.len() == counts.judged - counts.unparsed).map(|values| {
            let n_unsafe: f64 = values.values().flatten().sum();
            let percent = |n: f64| 100.0 * n / counts.judged as f64;
            format!(" (attack success between {:.2} and {:.2} %)", percent(n_unsafe), percent(n_unsafe + counts.unparsed as f64))
        });
        (counts.unparsed > 0).then(|| format!("{lang} {} of {}{}", counts.unparsed, counts.judged, rate.unwrap_or_default()))
    });
    if !unparsed.is_empty() {
        let verdicts = judged.judge.as_ref().and_then(|judge| judged.bench.verdicts.get(judge));
        let reasons = count_reasons(verdicts.into_iter().flat_map(BTreeMap::values).filter_map(|verdict| verdict.unparsed.as_deref()));
        notes.push(format!(
            "{run}, {}: verdicts of {} that could not be read, in no rate: {unparsed}; by reason: {reasons}.",
            judged.name, judged.judge_facts.name
        ));
    }
    let unanswered = list(&|lang| {
        let counts = judged.scores.counts.get(lang)?;
        (counts.responses < counts.prompts).then(|| format!("{lang} {} of {}", counts.prompts - counts.responses, counts.prompts))
    });
    if !unanswered.is_empty() {
        notes.push(format!("{run}, {}: unfinished, prompts without a response: {unanswered}.", judged.name));
    }
    let unjudged = list(&|lang| {
        let counts = judged.scores.counts.get(lang)?;
        (counts.judged < counts.responses).then(|| format!("{lang} {} of {}", counts.responses - counts.judged, counts.responses))
    });
    if !unjudged.is_empty() {
        notes.push(format!("{run}, {}: unfinished, responses without a verdict of {}: {unjudged}.", judged.name, judged.judge_facts.name));
    }
    notes
}

/// How many answers stand behind a thought, and how many thoughts left none.
fn thoughts(run: &str, bench: &str, loaded: &LoadedBench) -> Option<String> {
    let n = loaded.responses.len();
    let n_thoughts = loaded.responses.values().filter(|response| response.has_thought() || response.is_unfinished_thought()).count();
    let mut unfinished: BTreeMap<&str, usize> = BTreeMap::new();
    for (key, _) in loaded.responses.iter().filter(|(_, response)| response.is_unfinished_thought()) {
        *unfinished.entry(&key.lang).or_default() += 1;
    }
    let mut note = format!("{run}, {bench}: {n_thoughts} of {n} responses begin with a thought, which is judged by nobody");
    if !unfinished.is_empty() {
        let each: Vec<String> = unfinished.iter().map(|(lang, n)| format!("{lang} {n}")).collect();
        note += &format!(
            "; {} of the thoughts did not end within --max-new-tokens, and their answers are empty: {} (a larger --max-new-tokens lets them end, \
             `--thinking off` does without where the chat template knows it)",
            unfinished.values().sum::<usize>(),
            each.join(", ")
        );
    }
    (n_thoughts > 0).then(|| note + ".")
}

fn averages(tables: &[Table], training: Option<&TrainingFacts>) -> Vec<String> {
    let mut notes: Vec<String> = Vec::new();
    for table in tables.iter().filter(|table| table.is_main && !table.averages.is_empty()) {
        let parts: Vec<String> =
            table.averages.iter().map(|(over, languages)| format!("{} over {}", over.title(), languages.join(" "))).collect();
        let averaged = |lang: &&String| table.averages.iter().any(|(_, languages)| languages.contains(lang));
        let dominant = training.and_then(|training| training.dominant.as_ref());
        let left_out: Vec<&str> =
            table.languages.iter().filter(|lang| !averaged(lang) && Some(*lang) != dominant).map(String::as_str).collect();
        let note = match left_out.as_slice() {
            [] => format!("{}: {}.", table.bench, parts.join("; ")),
            left_out => format!("{}: {}; {} not in every row.", table.bench, parts.join("; "), left_out.join(" ")),
        };
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
    if !notes.is_empty() {
        notes.push(match training.and_then(|training| training.dominant.as_ref()) {
            Some(dominant) => format!("Averages weigh languages alike and leave out the dominant one, {dominant}."),
            None => {
                "Averages weigh languages alike. Which one supervised is not known of these runs, or not the same in all: none is left out."
                    .to_owned()
            }
        });
    }
    if tables.iter().any(|table| table.averages.iter().any(|(over, _)| *over == Over::Untrained)) {
        notes.push("Untrained languages were in no training pair: what happens there is transfer.".to_owned());
    }
    notes
}

fn tests(conditions: &Conditions) -> Option<String> {
    let baseline = conditions.options.baseline.as_ref()?;
    let n_tests = conditions.n_tests;
    Some(format!(
        "* better, † worse than {baseline}: p < 0.05 on the same prompts, by McNemar's exact test (scores: the sign-flip test), after Holm's correction \
         over {n_tests} test{} (languages x benchmarks x checkpoints). No mark does not mean no difference.",
        if n_tests == 1 { "" } else { "s" }
    ))
}

fn of_run(run: &LoadedRun, name: &str) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(limit) = run.facts.limit {
        notes.push(format!("{name}: a subset, at most {limit} prompts a language: not comparable with numbers on whole benchmarks."));
    }
    notes.extend(run.notes.iter().map(|note| format!("{name}: {note}.")));
    notes
}

/// Gaps of two checkpoints are of the same sequences only where both read a prompt as the same tokens.
fn other_tokens(run: &LoadedRun, name: &str) -> Option<String> {
    let pairs = || {
        run.benches.values().flat_map(|bench| bench.reference.iter().filter_map(|(key, other)| Some((bench.responses.get(key)?, other))))
    };
    let n_other = pairs().filter(|(own, other)| own.prompt_sha256 != other.prompt_sha256).count();
    (n_other > 0).then(|| {
        format!(
            "{name}: the reference reads {n_other} of {} prompts as other tokens (another tokenizer or chat template): its gaps are of other sequences.",
            pairs().count()
        )
    })
}

/// A model that refuses everything is safe, and useless: where it was trained to refuse it must be asked what is harmless.
fn over_refusal(run: &LoadedRun, name: &str, sources: &[Source], training: Option<&TrainingFacts>) -> Option<String> {
    let training = run.facts.training.as_ref().or(training)?;
    let attacks = |judged: &&Judged| judged.scores.metrics().any(|key| split_key(key).0 == "asr");
    let judged = || sources.iter().filter(|source| source.name == name).flat_map(|source| &source.judged);
    judged().find(attacks)?;
    let is_measured = |lang: &str| {
        judged().any(|judged| {
            let benign = judged.bench.items.iter().filter(|item| item.kind == Kind::Benign && item.lang == lang);
            let values = judged.scores.values("over_refusal", lang);
            values.is_some_and(|values| benign.into_iter().any(|item| values.contains_key(&item.id)))
        })
    };
    let trained = training.dominant.iter().chain(&training.targets).map(String::as_str);
    let unmeasured: Vec<&str> = trained.filter(|lang| !is_measured(lang)).collect();
    (!unmeasured.is_empty()).then(|| format!("{name}: over-refusal not measured in {}.", unmeasured.join(" ")))
}

fn contamination(run: &LoadedRun, source: &Source) -> Vec<String> {
    let mut notes = Vec::new();
    for (bench, found) in run.contamination.iter().filter(|(_, found)| !found.matches.is_empty()) {
        let ids: Vec<String> = found.ids().into_iter().collect();
        let shown = ids.iter().take(20).cloned().collect::<Vec<_>>().join(", ");
        let more = if ids.len() > 20 { ", …" } else { "" };
        let mut note = format!(
            "{}: {} of the prompts of {bench} {} in its training data, exactly or nearly, in some language: id {shown}{more}",
            source.name,
            ids.len(),
            if ids.len() == 1 { "is" } else { "are" },
        );
        for judged in source.judged.iter().filter(|judged| judged.name == bench) {
            let Some(clean) = &judged.without_trained else { continue };
            for key in judged.main_metrics().iter().filter(|key| !matches!(judged.facts.metric(key).scale, Scale::Number)) {
                let metric = judged.facts.metric(key);
                let of = |scores: &crate::eval::results::scores::Scores, lang: &str| {
                    let values: Vec<f64> = scores.values(key, lang)?.values().flatten().copied().collect();
                    Some(metric.percent() * values.iter().sum::<f64>() / values.len() as f64)
                };
                let each = judged
                    .scores
                    .languages
                    .iter()
                    .filter_map(|lang| Some(format!("{lang} {:.2} to {:.2}", of(&judged.scores, lang)?, of(clean, lang)?)));
                note += &format!("; without them {} changes from {}", metric.title, each.collect::<Vec<_>>().join(", "));
            }
        }
        notes.push(note + ".");
    }
    notes
}

/// Template and generation, once where all runs agree.
fn settings(runs: &[LoadedRun], sources: &[Source]) -> Vec<String> {
    let mut notes = Vec::new();
    let templates: Vec<String> = runs.iter().map(|run| sha256(run.facts.chat_template.as_bytes())).collect();
    match templates.split_first() {
        Some((first, rest)) if rest.iter().all(|sha| sha == first) => notes.push(format!("Chat template sha256 {}.", short(first))),
        _ => {
            let each: Vec<String> = sources.iter().zip(&templates).map(|(source, sha)| format!("{} {}", source.name, short(sha))).collect();
            notes.push(format!("Chat template sha256: {}.", each.join(", ")));
        }
    }
    let mut generation: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (run, source) in runs.iter().zip(sources) {
        for (bench, facts) in run.facts.benches.iter().filter(|(_, facts)| !facts.generation.is_empty()) {
            let settings: Vec<String> = facts.generation.iter().map(|(key, value)| format!("{key} {value}")).collect();
            generation.entry(format!("{bench}: {}", settings.join(", "))).or_default().push(&source.name);
        }
    }
    if !generation.is_empty() {
        let each = generation
            .into_iter()
            .map(|(settings, names)| if names.len() == runs.len() { settings } else { format!("{settings} ({})", names.join(", ")) });
        let each: Vec<String> = each.collect();
        notes.push(format!("Generation: {}. The settings of the MPO paper are not published.", each.join("; ")));
    }
    notes
}

fn short(sha: &str) -> &str {
    sha.get(..SHA_CHARS).unwrap_or(sha)
}
