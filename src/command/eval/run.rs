//! `mpo eval --bench`: from prompts to a table. Both phases, one benchmark after another.

use super::judge::{self, Chosen};
use super::tested::Tested;
use super::{facts, print, report, show_response};
use crate::cli::EvalArgs;
use crate::config::{self, Argument, RunConfig};
use crate::data::encode::Encoder;
use crate::eval::answering::{Answering, Outcome};
use crate::eval::asked::Asked;
use crate::eval::bench::{self, Benchmark, Jailbreak, Loaded, Scoring, reward_gap, subset};
use crate::eval::contamination;
use crate::eval::item::Item;
use crate::eval::judging::needs_judge;
use crate::eval::record::Response;
use crate::eval::results::facts::{ModelFacts, RunFacts};
use crate::eval::results::run::{CONTAMINATION, ITEMS, LoadedRun, RESPONSES};
use crate::eval::source::Source;
use crate::eval::{gap, lines};
use crate::files::write_atomically;
use crate::generate::{self, Generator};
use crate::progress::{Progress, say};
use crate::reference::weights_digest;
use crate::{device, hub, interrupt};
use anyhow::{Result, ensure};
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Pairs that are scored together between two looks at Ctrl-C.
const PAIRS_AT_ONCE: usize = 16;

/// A run: what was asked, and where it lies.
struct Run {
    folder: PathBuf,
    asked: Asked,
    facts: RunFacts,
    config: RunConfig,
}

/// Answers and judges what is missing, and reports.
pub fn run(args: &EvalArgs) -> Result<ExitCode> {
    let mut run = match &args.resume {
        Some(folder) => Run::resumed(folder)?,
        None => Run::new(args)?,
    };
    let started = Instant::now();
    let benches: Vec<&dyn Benchmark> = run.asked.benches.iter().map(|name| bench::find(name)).collect::<Result<_>>()?;
    let items = run.items(&benches)?;
    // What is wrong with the judge shows before an hour of answering.
    let mut judge = judge::Chosen::new(&args.judge, &run.facts)?;
    judge.check_languages(items.values().flatten())?;
    run.describe(&benches, &items, &judge);
    interrupt::listen()?;
    let pool = device::thread_pool(&run.config.hardware)?;
    let is_whole = pool.install(|| run.answer(&benches, &items, args))?;
    run.facts.seconds += started.elapsed().as_secs_f64();
    LoadedRun::write_facts(&run.folder, &run.facts)?;
    if !is_whole {
        say(&format!("stopped; what is finished is kept\nhint: go on with `mpo eval --resume {}`", run.folder.display()));
        return Ok(ExitCode::from(interrupt::EXIT_CODE));
    }
    let is_judged = pool.install(|| judge::judge_run(&run.folder, &mut judge, &args.judge, args.show_responses))?;
    if !is_judged {
        say(&format!("stopped; what is finished is kept\nhint: go on with `mpo eval --resume {}`", run.folder.display()));
        return Ok(ExitCode::from(interrupt::EXIT_CODE));
    }
    let written = report::write_results(&run.folder)?;
    print(&report::of_one_run(&run.folder)?)?;
    say(&format!("wrote `{}`", written.display()));
    if judge.is_heuristic_only(&benches) {
        say(&format!(
            "no judge was asked: the refusal rate above is a heuristic, and no attack success rate\n\
             hint: judge with `mpo eval judge {0} --judge openai:MODEL`, then `mpo eval report {0}`",
            run.folder.display()
        ));
    }
    Ok(ExitCode::SUCCESS)
}

impl Run {
    fn new(args: &EvalArgs) -> Result<Self> {
        ensure!(
            !args.bench.is_empty(),
            "which benchmark? `--bench multijail`, for example; `mpo eval --list` shows all, `--resume DIR` goes on with a run"
        );
        let tested = Tested::choose(args.model.as_deref(), args.adapter.as_deref())?;
        let asked = facts::asked(args, &tested)?;
        let folder = args.out.clone().unwrap_or_else(|| tested.default_out());
        let is_used = fs::read_dir(&folder).is_ok_and(|mut entries| entries.next().is_some());
        ensure!(
            !is_used,
            "`{0}` is not empty\nhint: `mpo eval --resume {0}` goes on with the run in it; `--out DIR` names another folder",
            folder.display()
        );
        let config = settings(&asked)?;
        let facts = facts::new_run(&asked, &tested, args.batch_size.get());
        Ok(Self { folder, asked, facts, config })
    }

    fn resumed(folder: &Path) -> Result<Self> {
        let facts = LoadedRun::read(folder)?.facts;
        ensure!(!facts.asked.benches.is_empty(), "`{}` does not say what was asked, so there is nothing to go on with", folder.display());
        let asked = facts.asked.clone();
        Ok(Self { folder: folder.to_owned(), config: settings(&asked)?, asked, facts })
    }

    /// The prompts of each benchmark: those of the run's folder where they are there, else read and written there.
    fn items(&mut self, benches: &[&dyn Benchmark]) -> Result<BTreeMap<String, Vec<Item>>> {
        let environment = hub::Environment::from_process()?;
        let jailbreak = self.asked.jailbreak.as_deref().map(Jailbreak::read).transpose()?;
        let mut items = BTreeMap::new();
        let mut new = Vec::new();
        for bench in benches {
            let name = bench.card().name;
            let path = self.folder.join(name).join(ITEMS);
            if path.exists() {
                items.insert(name.to_owned(), lines::read(&path)?.values);
                continue;
            }
            let source = Source { environment: &environment, data: self.asked.data.as_deref(), revision: None };
            let loaded = bench::load(*bench, &source, &self.asked.langs)?;
            loaded.notes.iter().for_each(|note| say(&format!("note: {note}")));
            let mut facts = facts::of_bench(*bench, &loaded, &self.asked);
            let Loaded { items: mut chosen, .. } = loaded;
            if let Some(limit) = self.asked.limit {
                chosen = subset(chosen, limit, self.asked.seed);
            }
            if let Some(jailbreak) = &jailbreak {
                let n = jailbreak.apply(&mut chosen);
                facts.generation.insert("jailbreak_sha256".into(), jailbreak.sha256.clone().into());
                say(&format!("{name}: the text of --jailbreak stands around {n} harmful prompts"));
            }
            self.facts.benches.insert(name.to_owned(), facts);
            new.push((path, name));
            items.insert(name.to_owned(), chosen);
        }
        // Nothing is written before every benchmark could be read. The facts come first: without them a folder is no run.
        LoadedRun::write_facts(&self.folder, &self.facts)?;
        for (path, name) in new {
            lines::write(&path, &items[name])?;
        }
        Ok(items)
    }

    fn describe(&self, benches: &[&dyn Benchmark], items: &BTreeMap<String, Vec<Item>>, judge: &Chosen) {
        let model = match &self.asked.adapter {
            Some(adapter) => format!("{} with the adapter {}", self.asked.model, adapter.display()),
            None => self.asked.model.clone(),
        };
        say(&format!("model    {model}"));
        for bench in benches {
            let card = bench.card();
            let items = &items[card.name];
            let mut langs: Vec<&str> = items.iter().map(|item| item.lang.as_str()).collect();
            langs.dedup();
            let decoding = match (card.max_new_tokens, self.asked.temperature) {
                (0, _) => String::new(),
                (own, temperature) => format!(
                    ", {}, at most {} tokens each",
                    temperature.map_or("greedy".to_owned(), |temperature| format!("temperature {temperature}")),
                    self.asked.max_new_tokens.unwrap_or(own)
                ),
            };
            say(&format!("bench    {}: {} prompts in {}{decoding}", card.name, items.len(), langs.join(" ")));
        }
        if benches.iter().any(|bench| needs_judge(*bench)) {
            say(&format!("judge    {}", judge.describe()));
        }
        say(&format!("output   {}", self.folder.display()));
    }

    /// Whether every response is there now.
    fn answer(&mut self, benches: &[&dyn Benchmark], items: &BTreeMap<String, Vec<Item>>, args: &EvalArgs) -> Result<bool> {
        let place = device::place(&self.config)?;
        let files = hub::resolve_model(&self.config.model.path, self.config.model.revision.as_deref())?;
        let model = generate::Loaded::load(&files, self.asked.adapter.as_deref(), place, &self.config.data)?;
        let now = ModelFacts {
            name: self.asked.model.clone(),
            revision: files.commit.clone(),
            sha256: Some(weights_digest(&model.model)?),
            adapter: self.asked.adapter.as_ref().map(|adapter| adapter.display().to_string()),
            dtype: self.config.model.dtype.name().to_owned(),
            device: "cpu".to_owned(),
            n_parameters: Some(model.model.parameters().iter().map(|parameter| parameter.value.elem_count() as u64).sum()),
        };
        let template = model.codec.encoder().chat_template();
        facts::ensure_same_model(&self.folder, &self.facts, &now, template)?;
        (self.facts.model, self.facts.chat_template) = (now, template.to_owned());
        self.look_for_contamination(items)?;
        LoadedRun::write_facts(&self.folder, &self.facts)?;

        let generator = Generator { batch_size: args.batch_size.get(), ..model.generator() };
        for bench in benches {
            let name = bench.card().name;
            let path = self.folder.join(name).join(RESPONSES);
            let items = &items[name];
            let outcome = match bench.card().scoring {
                Scoring::RewardGap => self.measure_gaps(name, items, &model, &path)?,
                Scoring::Rule | Scoring::Judge(_) => {
                    let (should_stop, on_response) = (&interrupt::requested, &show_response(args.show_responses));
                    Answering { bench: *bench, items, asked: &self.asked, generator, should_stop, on_response }.run(&path)?
                }
            };
            if outcome.n_missing > 0 {
                return Ok(false);
            }
            if outcome.n_before > 0 {
                say(&format!("{name}: {} responses were there, {} are new", outcome.n_before, outcome.n_new));
            }
        }
        Ok(true)
    }

    /// Prompts that the run behind the checkpoint was trained on.
    fn look_for_contamination(&mut self, items: &BTreeMap<String, Vec<Item>>) -> Result<()> {
        let path = self.folder.join(CONTAMINATION);
        let tested = Tested::choose(Some(&self.asked.model), self.asked.adapter.as_deref())?;
        let Some((training, prompts)) = (!path.exists()).then(|| tested.trained_on()).flatten() else { return Ok(()) };
        self.facts.training = Some(training);
        let found: BTreeMap<&String, _> = items.iter().map(|(bench, items)| (bench, contamination::find(items, &prompts))).collect();
        write_atomically(&path, serde_json::to_string_pretty(&found)?.as_bytes())
    }

    fn measure_gaps(&self, name: &str, items: &[Item], model: &generate::Loaded, path: &Path) -> Result<Outcome> {
        let before: Vec<Response> = if path.exists() { lines::read(path)?.values } else { Vec::new() };
        let done: HashSet<(&str, &str)> = before.iter().map(|response| (response.key.lang.as_str(), response.key.id.as_str())).collect();
        let left: Vec<&Item> = items.iter().filter(|item| !done.contains(&(item.lang.as_str(), item.id.as_str()))).collect();
        let mut outcome = Outcome { n_new: 0, n_before: items.len() - left.len(), n_missing: left.len() };
        let Some(data) = self.asked.data.as_deref().filter(|_| !left.is_empty()) else { return Ok(outcome) };
        let rows = reward_gap::pairs(data)?;
        let encoder: &Encoder = model.codec.encoder();
        let progress = Progress::new("measuring", left.len());
        let mut file = lines::Writer::open(path)?;
        for items in left.chunks(PAIRS_AT_ONCE) {
            if interrupt::requested() {
                break;
            }
            for response in gap::measure(&model.model, encoder, name, items, &rows)? {
                file.append(&response)?;
                outcome.n_new += 1;
                outcome.n_missing -= 1;
            }
            progress.advance(items.len());
        }
        file.sync()?;
        Ok(outcome)
    }
}

/// Template, compute type, threads: those of `--config` and `--set`, or the defaults.
fn settings(asked: &Asked) -> Result<RunConfig> {
    // No data set is read; the key is required of every configuration.
    let arguments = [("--model", "model.path", asked.model.as_str()), ("--bench", "data.path", "builtin:tiny")];
    let arguments = arguments.map(|(flag, key, value)| Argument { flag, key, value: Some(value) });
    config::load_for_scoring(asked.config.as_deref(), &arguments, &asked.set)
}
