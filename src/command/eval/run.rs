//! `mpo eval --bench`: from prompts to a table. Both phases, one benchmark after another.

use super::judge::{self, Chosen, Manner};
use super::tested::Tested;
use super::{facts, report, show_response};
use crate::cli::{EvalArgs, JudgeArgs};
use crate::config::{self, Argument, RunConfig};
use crate::eval::answering::{Answering, Outcome};
use crate::eval::asked::Asked;
use crate::eval::bench::{self, Benchmark, Jailbreak, Loaded, Scoring, reward_gap, subset};
use crate::eval::claim::Claim;
use crate::eval::contamination;
use crate::eval::item::{Item, Kind};
use crate::eval::judging::needs_judge;
use crate::eval::results::facts::{ModelFacts, RunFacts};
use crate::eval::results::run::{CONTAMINATION, ITEMS, LoadedRun, REFERENCE, RESPONSES};
use crate::eval::source::Source;
use crate::eval::{gap, lines};
use crate::files::{is_temporary, write_atomically};
use crate::generate::{self, Generator};
use crate::progress::say;
use crate::reference::weights_digest;
use crate::{device, hub, interrupt};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// A run: what was asked, and where it lies.
struct Run {
    folder: PathBuf,
    asked: Asked,
    facts: RunFacts,
    config: RunConfig,
}

/// Answers and judges what is missing, and reports.
pub fn run(args: &EvalArgs) -> Result<ExitCode> {
    let (mut run, claim) = match &args.resume {
        Some(folder) => Run::resumed(folder, &args.judge)?,
        None => (Run::new(args)?, None),
    };
    let benches: Vec<&dyn Benchmark> = run.asked.benches.iter().map(|name| bench::find(name)).collect::<Result<_>>()?;
    let items = run.items(&benches)?;
    // What is wrong with the judge shows before anything is written, and before an hour of answering.
    let judge = judge::Chosen::new(&run.asked.judge, Manner::of(&args.judge), &run.facts)?;
    for bench in &benches {
        judge.check(*bench, &items[bench.card().name])?;
    }
    run.check_thinking()?;
    let claim = claim.map_or_else(|| Claim::new(&run.folder), Ok)?;
    run.describe(&benches, &items, &judge);
    interrupt::listen()?;
    let is_whole = run.finish(&benches, &items, judge, args).with_context(|| {
        format!(
            "the run in `{0}` is not finished\nhint: what is finished is kept; `mpo eval --resume {0}` does the rest",
            run.folder.display()
        )
    })?;
    drop(claim);
    if !is_whole {
        say(&format!("stopped; what is finished is kept\nhint: go on with `mpo eval --resume {}`", run.folder.display()));
        return Ok(ExitCode::from(interrupt::EXIT_CODE));
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
        let folder = args.out.clone().unwrap_or_else(|| tested.default_out(&asked.benches));
        // A process that was killed in its first write has left nothing to go on with.
        let is_used = fs::read_dir(&folder).is_ok_and(|entries| entries.flatten().any(|entry| !is_temporary(&entry.file_name())));
        ensure!(
            !is_used,
            "`{0}` is not empty\nhint: `mpo eval --resume {0}` goes on with the run in it; `--out DIR` names another folder",
            folder.display()
        );
        let config = settings(&asked)?;
        let facts = facts::new_run(&asked, &tested, args.batch_size.get());
        Ok(Self { folder, asked, facts, config })
    }

    fn resumed(folder: &Path, judge: &JudgeArgs) -> Result<(Self, Option<Claim>)> {
        let mut facts = LoadedRun::read(folder)?.facts;
        ensure!(!facts.asked.benches.is_empty(), "`{}` does not say what was asked, so there is nothing to go on with", folder.display());
        facts.asked.judge = facts.asked.judge.resumed(&facts::asked_judge(judge), folder)?;
        let asked = facts.asked.clone();
        let claim = Claim::new(folder)?;
        Ok((Self { folder: folder.to_owned(), config: settings(&asked)?, asked, facts }, Some(claim)))
    }

    /// The prompts of each benchmark: those of the run's folder where they are there, else read anew.
    fn items(&mut self, benches: &[&dyn Benchmark]) -> Result<BTreeMap<String, Vec<Item>>> {
        let environment = hub::Environment::from_process()?;
        let jailbreak = self.asked.jailbreak.as_deref().map(Jailbreak::read).transpose()?;
        let mut items: BTreeMap<String, Vec<Item>> = BTreeMap::new();
        for bench in benches {
            let name = bench.card().name;
            let path = self.items_file(name);
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
            items.insert(name.to_owned(), chosen);
        }
        let is_harmful = items.values().flatten().any(|item| item.kind == Kind::Harmful);
        ensure!(jailbreak.is_none() || is_harmful, "--jailbreak has no effect: none of the prompts is harmful");
        Ok(items)
    }

    /// Nothing is written before every benchmark could be read. The facts come first: without them a folder is no run.
    fn write(&self, items: &BTreeMap<String, Vec<Item>>) -> Result<()> {
        LoadedRun::write_facts(&self.folder, &self.facts)?;
        for (name, items) in items {
            let path = self.items_file(name);
            if !path.exists() {
                lines::write(&path, items)?;
            }
        }
        Ok(())
    }

    fn items_file(&self, bench: &str) -> PathBuf {
        self.folder.join(bench).join(ITEMS)
    }

    /// Whether the user let it come to its end.
    fn finish(
        &mut self,
        benches: &[&dyn Benchmark],
        items: &BTreeMap<String, Vec<Item>>,
        mut judge: Chosen,
        args: &EvalArgs,
    ) -> Result<bool> {
        let started = Instant::now();
        self.write(items)?;
        let pool = device::thread_pool(&self.config.hardware)?;
        let is_answered = pool.install(|| Ok::<_, anyhow::Error>(self.answer(benches, items, args)? && self.measure_reference(items)?))?;
        self.facts.seconds += started.elapsed().as_secs_f64();
        LoadedRun::write_facts(&self.folder, &self.facts)?;
        if !is_answered || !pool.install(|| judge::judge_run(&self.folder, &mut judge, args.show_responses))? {
            return Ok(false);
        }
        report::conclude(&self.folder)?;
        if judge.is_heuristic_only(benches) {
            say(&format!(
                "no judge was asked: the refusal rate above is a heuristic, and no attack success rate\n\
                 hint: judge with `mpo eval judge {0} --judge openai:MODEL`, then `mpo eval report {0}`",
                self.folder.display()
            ));
        }
        Ok(true)
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
        if let Some(reference) = &self.asked.reference {
            say(&format!("reference {reference}"));
        }
        say(&format!("output   {}", self.folder.display()));
    }

    /// Whether every response is there now.
    fn answer(&mut self, benches: &[&dyn Benchmark], items: &BTreeMap<String, Vec<Item>>, args: &EvalArgs) -> Result<bool> {
        let (model, now) = self.load(&self.asked.model, self.config.model.revision.as_deref(), self.asked.adapter.as_deref())?;
        let template = model.codec.encoder().chat_template();
        facts::ensure_same_model(&self.folder, &self.facts, &now, template)?;
        // A run that goes on keeps the limit that it began with.
        if self.facts.model.sha256.is_none()
            && let Some(note) = facts::settle_thinking(&mut self.facts, model.codec.thinks())
        {
            say(&note);
        }
        let chooses = |name: &&String| items[*name].iter().any(|item| !item.choices.is_empty());
        if let (Some(true), Some(name)) = (model.codec.thinks(), items.keys().find(chooses)) {
            say(&format!(
                "note: the choices of {name} are scored where the model would begin to think\nhint: `--thinking off`, or a benchmark whose answers are \
                 written (`mmmlu-generative`)"
            ));
        }
        (self.facts.model, self.facts.chat_template) = (now, template.to_owned());
        self.look_for_contamination(items)?;

        let generator = Generator { batch_size: args.batch_size.get(), ..model.generator() };
        for bench in benches {
            let name = bench.card().name;
            let items = &items[name];
            let path = self.folder.join(name).join(RESPONSES);
            let outcome = match bench.card().scoring {
                Scoring::RewardGap => self.measure_gaps(name, items, &model, &path)?,
                Scoring::Rule | Scoring::Judge(_) => {
                    let (should_stop, on_response) = (&interrupt::requested, &show_response(args.show_responses));
                    let max_new_tokens = facts::max_new_tokens(&self.facts, *bench);
                    Answering { bench: *bench, items, asked: &self.asked, max_new_tokens, generator, should_stop, on_response }
                        .run(&path)?
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

    /// The gaps under `--reference`, once the model has left the memory; whether they are all there now.
    fn measure_reference(&mut self, items: &BTreeMap<String, Vec<Item>>) -> Result<bool> {
        let (Some(reference), Some((name, items))) = (self.asked.reference.clone(), items.get_key_value(reward_gap::NAME)) else {
            return Ok(true);
        };
        let path = self.folder.join(name).join(REFERENCE);
        if self.facts.reference.is_some() && gap::missing(items, &path)?.is_empty() {
            return Ok(true);
        }
        let reference = Tested::choose(Some(&reference), None)?;
        let (model, now) = self.load(&reference.model, None, reference.adapter.as_deref())?;
        if let Some(before) = &self.facts.reference {
            facts::ensure_same_weights(&self.folder, before, &now)?;
        }
        if now.sha256 == self.facts.model.sha256 {
            say("note: the reference has the weights of the model: every difference will be 0");
        }
        self.facts.reference = Some(now);
        LoadedRun::write_facts(&self.folder, &self.facts)?;
        Ok(self.measure_gaps(name, items, &model, &path)?.n_missing == 0)
    }

    /// Before anything is written: whether the model's chat template can turn thinking on and off, where that is asked for.
    fn check_thinking(&self) -> Result<()> {
        let Some(thinking) = self.asked.thinking else { return Ok(()) };
        let files = hub::resolve_model(&self.asked.model, self.config.model.revision.as_deref())?;
        generate::Codec::load(&files.dir, &self.config.data)?.with_thinking(Some(thinking)).map(drop)
    }

    /// A checkpoint, and what is known of it.
    fn load(&self, model: &str, revision: Option<&str>, adapter: Option<&Path>) -> Result<(generate::Loaded, ModelFacts)> {
        let place = device::place(&self.config)?;
        let files = hub::resolve_model(model, revision)?;
        let loaded = generate::Loaded::load_thinking(&files, adapter, place.clone(), &self.config.data, self.asked.thinking)?;
        let facts = ModelFacts {
            name: model.to_owned(),
            revision: files.commit.clone(),
            sha256: Some(weights_digest(&loaded.model)?),
            adapter: adapter.map(|adapter| adapter.display().to_string()),
            dtype: self.config.model.dtype.name().to_owned(),
            device: device::name(&place.device)?,
            n_parameters: Some(loaded.model.parameters().iter().map(|parameter| parameter.value.elem_count() as u64).sum()),
        };
        Ok((loaded, facts))
    }

    /// Prompts that the run behind the checkpoint was trained on. `run.json` knows of the training before there is a file that says it was looked for.
    fn look_for_contamination(&mut self, items: &BTreeMap<String, Vec<Item>>) -> Result<()> {
        let path = self.folder.join(CONTAMINATION);
        let tested = Tested::choose(Some(&self.asked.model), self.asked.adapter.as_deref())?;
        let trained = (!path.exists()).then(|| tested.trained_on()).flatten();
        if let Some((training, _)) = &trained {
            self.facts.training = Some(training.clone());
        }
        LoadedRun::write_facts(&self.folder, &self.facts)?;
        let Some((_, prompts)) = trained else { return Ok(()) };
        let found: BTreeMap<&String, _> = items.iter().map(|(bench, items)| (bench, contamination::find(items, &prompts))).collect();
        write_atomically(&path, serde_json::to_string_pretty(&found)?.as_bytes())
    }

    fn measure_gaps(&self, name: &str, items: &[Item], model: &generate::Loaded, path: &Path) -> Result<Outcome> {
        let data = self.asked.data.as_deref().context("reward gaps are measured of the pairs in `--data`")?;
        let rows = reward_gap::pairs(data)?;
        gap::measure_missing(&model.model, model.codec.encoder(), name, items, &rows, path, &interrupt::requested)
    }
}

/// Template, compute type, threads: those of `--config` and `--set`, or the defaults.
fn settings(asked: &Asked) -> Result<RunConfig> {
    // No data set is read; the key is required of every configuration.
    let arguments = [("--model", "model.path", asked.model.as_str()), ("--bench", "data.path", "builtin:tiny")];
    let arguments = arguments.map(|(flag, key, value)| Argument { flag, key, value: Some(value) });
    config::load_for_scoring(asked.config.as_deref(), &arguments, &asked.set)
}
