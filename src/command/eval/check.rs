//! `mpo eval judge-check`: how often a judge agrees with people, by language.

use super::facts::asked_judge;
use super::judge::{Chosen, Manner};
use super::print;
use crate::cli::JudgeArgs;
use crate::eval::bench;
use crate::eval::item::{Item, Kind};
use crate::eval::judge::check::{Agreement, Labels, compare, corrected_rate, read_gold};
use crate::eval::judge::gate::count_reasons;
use crate::eval::judge::run::judge_all;
use crate::eval::record::{Response, Verdict};
use crate::eval::results::facts::{JudgeFacts, RunFacts};
use crate::eval::results::run::LoadedRun;
use crate::eval::stats::bootstrap::Resampling;
use crate::eval::stats::kappa::{Pair, agreement};
use crate::eval::stats::wilson::wilson;
use crate::progress::{Progress, say};
use crate::{device, interrupt};
use anyhow::{Result, ensure};
use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

/// The benchmark whose question labelled responses are judged by, unless `--rubric` names another.
const ASKED_AS: &str = "multijail";

/// Judges labelled responses and prints a row for each language.
pub fn run(gold: &Path, args: &JudgeArgs, correct: Option<&Path>) -> Result<ExitCode> {
    ensure!(args.judge.as_deref().is_some_and(|judge| judge != "keyword"), "which judge? `--judge openai:MODEL` or `--judge guard:DIR`");
    let gold = read_gold(gold)?;
    let mut judge = Chosen::new(&asked_judge(args), Manner::of(args), &RunFacts::default())?;
    judge.check(bench::find(ASKED_AS)?, gold.iter().map(|gold| &gold.item))?;
    interrupt::listen()?;
    let questions: Vec<(&Item, &Response)> = gold.iter().map(|gold| (&gold.item, &gold.response)).collect();
    let mut verdicts: Vec<Verdict> = Vec::with_capacity(gold.len());
    let progress = Progress::new("judging", gold.len());
    let pool = device::thread_pool(&crate::config::HardwareConfig::default())?;
    let mut facts = JudgeFacts::default();
    let outcome = pool.install(|| {
        judge.load_guard(None)?;
        judge.with_judges(bench::find(ASKED_AS)?, &[Kind::Harmful], |judges| {
            facts = judges.facts(None).1;
            judge_all(&questions, judges, &HashSet::new(), judge.at_once(), &interrupt::requested, &mut |verdict| {
                verdicts.push(verdict);
                progress.advance(1);
                Ok(())
            })
        })
    })?;
    drop(progress);
    let unread: Vec<&str> = verdicts.iter().filter_map(|verdict| verdict.unparsed.as_deref()).collect();
    if !unread.is_empty() {
        say(&format!("{} of {} verdicts could not be read: {}", unread.len(), verdicts.len(), count_reasons(unread.iter().copied())));
    }
    let agreement = compare(&gold, &verdicts);
    print(&table(&agreement))?;
    if let Some(folder) = correct {
        print(&corrected(&LoadedRun::read(folder)?, &facts, &agreement)?)?;
    }
    if outcome.stopped {
        say("stopped: the table is of what was judged until then");
        return Ok(ExitCode::from(interrupt::EXIT_CODE));
    }
    Ok(ExitCode::SUCCESS)
}

fn table<'a>(languages: &'a BTreeMap<String, Agreement>) -> String {
    let mut text = format!(
        "{:<8} {:>5} {:>8}  {:<21}  {:<21}  {:>9}  {:<21}\n",
        "lang", "n", "unparsed", "sensitivity", "specificity", "agreement", "kappa"
    );
    for (lang, found) in languages {
        let confusion = &found.confusion;
        let n_unsafe = confusion.true_positive + confusion.false_negative;
        let n_safe = confusion.true_negative + confusion.false_positive;
        let pair = |labels: &'a Labels| Pair { id: &labels.id, first: label(labels.is_unsafe), second: label(labels.judged_unsafe) };
        let pairs: Vec<Pair> = found.labels.iter().map(pair).collect();
        let agreed = agreement(&pairs, Resampling::default());
        let _ = writeln!(
            text,
            "{lang:<8} {:>5} {:>8}  {:<21}  {:<21}  {:>9}  {:<21}",
            confusion.n_judged(),
            confusion.n_unparsed(),
            share(confusion.true_positive, n_unsafe),
            share(confusion.true_negative, n_safe),
            confusion.agreement().map_or("-".to_owned(), |share| format!("{:.2}", 100.0 * share)),
            agreed
                .and_then(|agreed| Some((agreed.kappa?, agreed.interval?)))
                .map_or("-".to_owned(), |(kappa, interval)| { format!("{kappa:.2} [{:.2}, {:.2}]", interval.low, interval.high) }),
        );
    }
    text + "Intervals: Wilson 95 % of shares, bootstrap 95 % of kappa. Unparsed verdicts are in no rate.\n"
}

/// What the run's attack success would be with a judge that makes no errors, if it errs there as it does on the labelled responses.
///
/// # Errors
/// The judge, asked as it was here, gave no verdicts on the run.
fn corrected(run: &LoadedRun, judge: &JudgeFacts, agreement: &BTreeMap<String, Agreement>) -> Result<String> {
    let mut text = format!(
        "\n{:<16} {:<8} {:>8} {:>10}   attack success rate, %, corrected as Rogan and Gladen (1978) do\n",
        "bench", "lang", "judged", "corrected"
    );
    let mut n_rows = 0;
    for (name, bench) in &run.benches {
        let judges = run.facts.benches.get(name).into_iter().flat_map(|facts| &facts.judges);
        for (verdicts, _) in
            judges.filter(|(_, facts)| is_asked_alike(facts, judge)).filter_map(|(file, facts)| Some((bench.verdicts.get(file)?, facts)))
        {
            let mut rates: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
            for (key, asr) in verdicts.iter().filter_map(|(key, verdict)| Some((key, *verdict.metrics.get("asr")?))) {
                rates.entry(&key.lang).or_default().push(asr);
            }
            for (lang, values) in rates {
                let rate = values.iter().sum::<f64>() / values.len() as f64;
                let known = agreement.get(lang).map(|found| &found.confusion);
                let corrected = known.and_then(|known| corrected_rate(rate, known.sensitivity()?, known.specificity()?));
                let corrected = corrected.map_or("-".to_owned(), |rate| format!("{:.2}", 100.0 * rate));
                let _ = writeln!(text, "{name:<16} {lang:<8} {:>8.2} {corrected:>10}", 100.0 * rate);
                n_rows += 1;
            }
        }
    }
    ensure!(
        n_rows > 0,
        "`{}` has no attack success by `{}` with the rubric `{}`{}: its errors there would be others\n\
         hint: `mpo eval judge` with the same judge, rubric and translator comes first",
        run.folder.display(),
        judge.name,
        judge.rubric,
        judge.translated_by.as_ref().map(|translator| format!(", on translations by `{translator}`")).unwrap_or_default()
    );
    Ok(text + "A dash: no labelled responses in that language, or a judge that hardly tells safe from unsafe.\n")
}

/// Whether a run's judge is the one that was checked, by the same prompt. A run may have been judged by further prompts, for other kinds of item.
fn is_asked_alike(of_run: &JudgeFacts, checked: &JudgeFacts) -> bool {
    let prompts = |facts: &JudgeFacts| facts.prompt_sha256.as_deref().unwrap_or_default().split('+').map(str::to_owned).collect::<Vec<_>>();
    let checked_prompts = prompts(checked);
    (&of_run.name, &of_run.translated_by) == (&checked.name, &checked.translated_by)
        && prompts(of_run).iter().any(|prompt| checked_prompts.contains(prompt))
}

fn label(is_unsafe: bool) -> &'static str {
    if is_unsafe { "unsafe" } else { "safe" }
}

/// In percent, with its interval.
fn share(part: usize, whole: usize) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    let interval = wilson(part, whole);
    format!("{:.2} [{:.2}, {:.2}]", 100.0 * part as f64 / whole as f64, 100.0 * interval.low, 100.0 * interval.high)
}
