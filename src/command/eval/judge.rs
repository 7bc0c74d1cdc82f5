//! `mpo eval judge`, and the judging that `mpo eval --bench` ends with: the judge that the options name, and its verdicts on a run.

use super::facts::asked_judge;
use super::{report, show_verdict};
use crate::cli::JudgeArgs;
use crate::config::{ComputeDtype, DataConfig};
use crate::eval::asked::AskedJudge;
use crate::eval::bench::{self, Benchmark, Scoring};
use crate::eval::claim::Claim;
use crate::eval::gap;
use crate::eval::item::{Item, Kind};
use crate::eval::judge::cache::{Cache, Cached};
use crate::eval::judge::gate::count_reasons;
use crate::eval::judge::guard::Guard;
use crate::eval::judge::keyword::Keyword;
use crate::eval::judge::local::Local;
use crate::eval::judge::openai::{ApiKey, OpenAi, Settings};
use crate::eval::judge::own::{Identity, refuse_own_judge};
use crate::eval::judge::parameters::merge;
use crate::eval::judge::prompt::Prompt;
use crate::eval::judge::translate::Translator;
use crate::eval::judge::{Judge, ModelJudge, Rubric, Transport, rubric};
use crate::eval::judging::{Ask, Asking, ByKind, Outcome, judge_bench, needs_judge, rule, score_bench};
use crate::eval::results::facts::{JudgeFacts, RunFacts};
use crate::eval::results::harness::sha256;
use crate::eval::results::metric::Metric;
use crate::eval::results::run::{LoadedBench, LoadedRun, RULE};
use crate::generate;
use crate::progress::say;
use crate::reference::weights_digest;
use crate::{device, hub, interrupt};
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Characters of a guard's sha256 that stand behind its name.
const GUARD_SHA_CHARS: usize = 12;

/// Judges the responses of a run, and reports.
pub fn run(folder: &Path, args: &JudgeArgs, retry_unparsed: bool, show_responses: bool) -> Result<ExitCode> {
    let run = LoadedRun::read(folder)?;
    let has_responses = run.benches.values().any(|bench| !bench.responses.is_empty());
    ensure!(has_responses, "`{0}` has no responses yet: `mpo eval --resume {0}` gets them", folder.display());
    ensure!(args.judge.is_some(), "which judge? `--judge openai:MODEL`, `--judge guard:DIR` or `--judge keyword`");
    let mut judge = Chosen::new(&asked_judge(args), Manner::of(args).retrying(retry_unparsed), &run.facts)?;
    for (name, loaded) in &run.benches {
        judge.check(bench::find(name)?, &loaded.items)?;
    }
    let _claim = Claim::new(folder)?;
    interrupt::listen()?;
    let pool = device::thread_pool(&crate::config::HardwareConfig::default())?;
    let judge_and_report = || -> Result<bool> {
        let is_judged = judge_run(folder, &mut judge, show_responses)?;
        if is_judged {
            report::conclude(folder)?;
        }
        Ok(is_judged)
    };
    let is_judged = pool.install(judge_and_report).with_context(|| {
        format!("`{}` is not judged to its end\nhint: verdicts that were given are kept, and the same command goes on", folder.display())
    })?;
    if !is_judged {
        say("stopped; verdicts that were given are kept, and the same command goes on");
        return Ok(ExitCode::from(interrupt::EXIT_CODE));
    }
    Ok(ExitCode::SUCCESS)
}

/// The judge that the options name.
pub struct Chosen {
    who: Who,
    translator: Option<Endpoint>,
    /// In the place of each benchmark's own.
    rubric: Option<String>,
    allow_uncovered: bool,
    manner: Manner,
    allow_own: bool,
}

/// How judges are asked; verdicts do not follow from it.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    /// Questions to an endpoint at the same time.
    n_at_once: NonZeroUsize,
    /// What earlier runs were told is passed by.
    is_fresh: bool,
    ask: Ask,
}

impl Manner {
    pub fn of(args: &JudgeArgs) -> Self {
        Self { n_at_once: args.judge_concurrency, is_fresh: args.fresh, ask: if args.fresh { Ask::All } else { Ask::Missing } }
    }

    /// With the verdicts that could not be read asked for again.
    fn retrying(self, is_retry: bool) -> Self {
        if is_retry && self.ask == Ask::Missing { Self { ask: Ask::Unparsed, ..self } } else { self }
    }
}

/// Who judges.
enum Who {
    /// The heuristic, because nobody else was named.
    Nobody,
    Keyword,
    Endpoint(Box<Endpoint>),
    Guard(Box<LocalGuard>),
}

/// A guard model in this process; loaded when it is first asked.
struct LocalGuard {
    guard: Guard,
    name: String,
    loaded: Option<LoadedGuard>,
    cache: Cache,
}

struct LoadedGuard {
    model: generate::Loaded,
    /// Of weights and template: a folder's name says nothing about what lies in it today.
    sha256: String,
}

/// A model at an address, with what it said before.
struct Endpoint {
    transport: OpenAi,
    cache: Cache,
}

impl Endpoint {
    fn new(model: &str, asked: &AskedJudge, manner: Manner) -> Result<Self> {
        let settings = Settings::new(asked.url.as_deref(), ApiKey::from_environment()?);
        let settings = Settings { max_tokens: asked.max_tokens.unwrap_or(settings.max_tokens), ..settings };
        Ok(Self { transport: OpenAi::new(model, &settings)?, cache: cache(manner)? })
    }

    fn cached(&self) -> Cached<'_> {
        Cached { inner: &self.transport, cache: &self.cache }
    }
}

/// Replies of judges and translators, of all runs.
fn cache(manner: Manner) -> Result<Cache> {
    Ok(Cache::open(&cache_file()?)?.fresh(manner.is_fresh))
}

fn cache_file() -> Result<PathBuf> {
    Ok(hub::Environment::from_process()?.mpo_cache.join("judge").join("replies.jsonl"))
}

impl Chosen {
    /// # Errors
    /// An option that cannot be right, a key that is missing, a guard that nothing is known about, a model that would judge itself.
    pub fn new(args: &AskedJudge, manner: Manner, run: &RunFacts) -> Result<Self> {
        let names = |judge: &str| Identity { names: vec![judge.to_owned()], weights_sha256: None };
        let adapter = run.asked.adapter.as_ref().map(|path| path.display().to_string());
        let tested = Identity {
            names: [Some(run.asked.model.clone()), adapter, Some(run.name.clone())].into_iter().flatten().collect(),
            weights_sha256: None,
        };
        let who = match args.judge.as_deref().map(|judge| judge.split_once(':').unwrap_or((judge, ""))) {
            None => Who::Nobody,
            Some(("keyword", "")) => Who::Keyword,
            Some(("openai", model)) => {
                refuse_own_judge(&tested, &names(model), args.allow_own)?;
                Who::Endpoint(Box::new(Endpoint::new(model, args, manner)?))
            }
            Some(("guard", name)) if !name.is_empty() => {
                refuse_own_judge(&tested, &names(name), args.allow_own)?;
                let guard = Guard::new(&[name], args.guard_format.as_deref())?;
                Who::Guard(Box::new(LocalGuard { guard, name: name.to_owned(), loaded: None, cache: cache(manner)? }))
            }
            Some(_) => bail!(
                "`{}` is no judge: there are `openai:MODEL` (any OpenAI-compatible endpoint, with --judge-url), `guard:DIR` (a local guard \
                 model) and `keyword` (a refusal heuristic)",
                args.judge.as_deref().unwrap_or_default()
            ),
        };
        let translator = args.translator.as_deref().map(|translator| match translator.split_once(':') {
            Some(("openai", model)) => Endpoint::new(model, args, manner),
            _ => bail!("`--judge-translate {translator}` is no translator: it is `openai:MODEL`, at the address of --judge-url"),
        });
        let needs_model = args.rubric.is_some() || translator.is_some() || args.max_tokens.is_some();
        ensure!(
            !needs_model || matches!(who, Who::Endpoint(_)),
            "--rubric, --judge-translate and --judge-max-tokens are for questions to a model: use them with `--judge openai:MODEL`"
        );
        if let Some(name) = &args.rubric {
            rubric::by_name(name)?;
        }
        let (rubric, allow_uncovered) = (args.rubric.clone(), args.allow_uncovered);
        Ok(Self { who, translator: translator.transpose()?, rubric, allow_uncovered, manner, allow_own: args.allow_own })
    }

    /// # Errors
    /// A guard was not made for a language of the items, or is asked for a rating.
    pub fn check<'a>(&self, bench: &dyn Benchmark, items: impl IntoIterator<Item = &'a Item>) -> Result<()> {
        let Who::Guard(local) = &self.who else { return Ok(()) };
        if !needs_judge(bench) {
            return Ok(());
        }
        let mut langs = BTreeSet::new();
        for item in items {
            let name = bench.card().name;
            ensure!(
                item.kind != Kind::Utility,
                "a guard says safe or unsafe and rates nothing: judge `{name}` with `--judge openai:MODEL`"
            );
            langs.insert(item.lang.as_str());
        }
        local.guard.ensure_covers(&langs.into_iter().collect::<Vec<_>>(), self.allow_uncovered)
    }

    /// In a line.
    pub fn describe(&self) -> String {
        let who = match &self.who {
            Who::Nobody => return "none (`--judge`): refusals are counted by keywords".to_owned(),
            Who::Keyword => return "keyword: a refusal heuristic, no verdict on harm".to_owned(),
            Who::Endpoint(endpoint) => endpoint.transport.identity(),
            Who::Guard(local) => format!("guard:{}", local.name),
        };
        match &self.translator {
            Some(translator) => format!("{who}, on translations by {}", translator.transport.identity()),
            None => who,
        }
    }

    /// Whether some verdicts are those of the heuristic because nobody else was named.
    pub fn is_heuristic_only(&self, benches: &[&dyn Benchmark]) -> bool {
        matches!(self.who, Who::Nobody) && benches.iter().any(|bench| needs_judge(*bench))
    }

    /// `tested_sha256`: of the tested model's weights, where they are known.
    ///
    /// # Errors
    /// A guard that cannot be had or loaded, or that has the weights of the tested model.
    pub fn load_guard(&mut self, tested_sha256: Option<&str>) -> Result<()> {
        if let Who::Guard(local) = &mut self.who
            && local.loaded.is_none()
        {
            let files = hub::resolve_model(&local.name, None)?;
            let model = generate::Loaded::load(&files, None, ComputeDtype::F32, &DataConfig::default())?;
            let weights = weights_digest(&model.model)?;
            let identity = |sha256: Option<&str>| Identity { names: Vec::new(), weights_sha256: sha256.map(str::to_owned) };
            refuse_own_judge(&identity(tested_sha256), &identity(Some(&weights)), self.allow_own)?;
            let sha256 = sha256(format!("{weights}\n{}", model.codec.encoder().chat_template()).as_bytes());
            local.loaded = Some(LoadedGuard { model, sha256 });
        }
        Ok(())
    }

    /// Judges with the rubrics that the items of `bench` ask for, and hands them to `work` with the NAME of their file.
    pub fn with_judges<T>(&self, bench: &dyn Benchmark, kinds: &[Kind], work: impl FnOnce(&ByKind) -> Result<T>) -> Result<T> {
        let cached_translator = self.translator.as_ref().map(Endpoint::cached);
        let translator = cached_translator.as_ref().map(|transport| Translator { transport });
        let rubrics = kinds
            .iter()
            .filter_map(|&kind| self.rubric.as_deref().or(bench.card().rubric(kind)).map(|name| Ok((kind, rubric::by_name(name)?))))
            .collect::<Result<Vec<(Kind, Box<dyn Rubric>)>>>()?;
        let rubrics = Rubrics { rubrics, translator };
        match &self.who {
            Who::Nobody | Who::Keyword => {
                let judges = kinds.iter().map(|&kind| (kind, Box::new(Keyword) as Box<dyn Judge>)).collect();
                work(&ByKind { judges })
            }
            Who::Endpoint(endpoint) => rubrics.ask(&endpoint.cached(), None, work),
            Who::Guard(local) => {
                let LocalGuard { guard, name, loaded, cache } = &**local;
                let LoadedGuard { model, sha256 } = loaded.as_ref().context("the guard is not loaded")?;
                let max_new_tokens = guard.max_new_tokens();
                let generate = |prompt: &Prompt| model.generator().answer(&prompt.messages, max_new_tokens);
                let local = Local { identity: format!("guard:{name}@{}", &sha256[..GUARD_SHA_CHARS]), generate };
                rubrics.ask(&Cached { inner: &local, cache }, Some(guard), work)
            }
        }
    }

    /// The languages that the judge is made for, where it names them.
    fn languages(&self) -> Option<Vec<String>> {
        let Who::Guard(local) = &self.who else { return None };
        local.guard.card.map(|card| card.languages.iter().map(|lang| (*lang).to_owned()).collect())
    }

    /// Questions at the same time: a model in this process answers one after the other.
    pub fn at_once(&self) -> usize {
        if matches!(self.who, Who::Endpoint(_)) { self.manner.n_at_once.get() } else { 1 }
    }
}

/// What a model is asked, for each kind of item.
struct Rubrics<'a> {
    rubrics: Vec<(Kind, Box<dyn Rubric>)>,
    translator: Option<Translator<'a>>,
}

impl Rubrics<'_> {
    /// A guard has a question of its own.
    fn ask<T>(&self, transport: &dyn Transport, guard: Option<&Guard>, work: impl FnOnce(&ByKind) -> Result<T>) -> Result<T> {
        let mut judges: Vec<(Kind, Box<dyn Judge + '_>)> = Vec::new();
        for (kind, rubric) in &self.rubrics {
            let rubric: &dyn Rubric = match guard {
                Some(guard) => guard,
                None => &**rubric,
            };
            judges.push((*kind, Box::new(ModelJudge::new(rubric, transport, self.translator.as_ref()))));
        }
        work(&ByKind { judges })
    }
}

/// Gives every response of the run a verdict; `false` where the user stopped it.
pub fn judge_run(folder: &Path, judge: &mut Chosen, show_responses: bool) -> Result<bool> {
    let LoadedRun { mut facts, benches, .. } = LoadedRun::read(folder)?;
    let weights = facts.model.sha256.clone();
    for (name, loaded) in &benches {
        let bench = bench::find(name)?;
        let path = folder.join(name);
        // Whose verdicts they are is known before the first of them is there.
        let mut know = |judge: String, about: JudgeFacts, metrics: BTreeMap<String, Metric>| {
            let known = facts.benches.entry(name.clone()).or_default();
            let before = known.judges.remove(&judge).unwrap_or_default();
            let mut parameters = before.parameters;
            merge(&mut parameters, about.parameters);
            known.judges.insert(judge, JudgeFacts { parameters, ..about });
            known.metrics.extend(metrics);
            LoadedRun::write_facts(folder, &facts)
        };
        match bench.card().scoring {
            Scoring::Rule => {
                know(RULE.to_owned(), rule(), BTreeMap::new())?;
                score_bench(&path, loaded, bench)?;
            }
            Scoring::RewardGap => {
                know(RULE.to_owned(), rule(), BTreeMap::new())?;
                gap::score_bench(&path, loaded)?;
            }
            Scoring::Judge(_) => {
                judge.load_guard(weights.as_deref())?;
                let (languages, at_once) = (judge.languages(), judge.at_once());
                let asking = Asking { ask: judge.manner.ask, n_at_once: at_once, should_stop: &interrupt::requested };
                let outcome = judge.with_judges(bench, &kinds(loaded), |judges| {
                    let (name, about) = judges.facts(languages.clone());
                    know(name.clone(), about, judges.metrics())?;
                    let outcome = judge_bench(&path, loaded, &name, judges, &asking, &show_verdict(show_responses));
                    // What the endpoint refuses is known now, also where it stopped answering.
                    know(name, judges.facts(languages).1, judges.metrics())?;
                    outcome
                })?;
                summarise(folder, name, &outcome)?;
                if outcome.stopped {
                    return Ok(false);
                }
            }
        }
    }
    Ok(true)
}

/// What a reader of the table should know of the new verdicts.
fn summarise(folder: &Path, bench: &str, outcome: &Outcome) -> Result<()> {
    let Outcome { n_new, unparsed, n_earlier, .. } = outcome;
    if !unparsed.is_empty() {
        say(&format!(
            "{bench}: {} of {n_new} new verdicts could not be read: {}\nhint: `mpo eval judge {} --judge … --retry-unparsed` asks again about those",
            unparsed.len(),
            count_reasons(unparsed.iter().map(String::as_str)),
            folder.display()
        ));
    }
    if *n_earlier > 0 {
        say(&format!(
            "{bench}: {n_earlier} of {n_new} new verdicts are on replies of earlier runs, out of `{}`; `--fresh` asks anew",
            cache_file()?.display()
        ));
    }
    Ok(())
}

/// The kinds of a benchmark's items, in an order that does not depend on the items'.
fn kinds(bench: &LoadedBench) -> Vec<Kind> {
    [Kind::Harmful, Kind::Benign, Kind::Utility].into_iter().filter(|kind| bench.items.iter().any(|item| item.kind == *kind)).collect()
}
