//! Configuration from outside: every shipped recipe, overrides, and the message of every rule.

use mpo::config::recipes::RECIPES;
use mpo::config::*;

/// The shortest configuration without a problem.
const LEAST: &str = "model.path = \"org/model\"\ndata.path = \"org/rows\"\n[train]\nmax_steps = 10\n";

fn set(overrides: &[&str]) -> Vec<String> {
    overrides.iter().map(|typed| typed.to_string()).collect()
}

fn problems(text: &str, overrides: &[&str]) -> Vec<String> {
    match parse(text, "my.toml", &set(overrides)) {
        Ok(_) => Vec::new(),
        Err(error) => error.downcast_ref::<ConfigError>().expect("a ConfigError").problems().iter().map(|p| p.to_string()).collect(),
    }
}

fn least(overrides: &[&str]) -> RunConfig {
    parse(LEAST, "my.toml", &set(overrides)).unwrap()
}

#[test]
fn every_shipped_recipe_is_without_problems_and_runs_again_from_its_resolved_form() {
    for recipe in RECIPES {
        let config = load(recipe.name, &[]).unwrap_or_else(|error| panic!("{}: {error}", recipe.name));
        let again = parse(&config.to_toml().unwrap(), "config.toml", &[]).unwrap_or_else(|error| panic!("{}: {error}", recipe.name));
        assert_eq!(config, again, "{}", recipe.name);
        assert!(config.output.dir.is_absolute());
        assert!(!recipe.description().is_empty());
    }
}

#[test]
fn every_recipe_file_is_inside_the_binary_and_says_where_each_value_is_from() {
    let mut n_files = 0;
    for folder in ["configs", "configs/official", "configs/baselines"] {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                continue;
            }
            n_files += 1;
            let name = path.strip_prefix("configs").unwrap().to_str().unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(RECIPES.iter().any(|recipe| recipe.name == name && recipe.text == text), "{name}");
            for line in text.lines().filter(|line| line.contains(" = ")) {
                assert!(line.contains(" # "), "{name}: `{line}` has no source");
            }
        }
    }
    assert_eq!(n_files, RECIPES.len());
}

#[test]
fn the_smoke_recipe_leaves_the_method_to_the_defaults() {
    let text = RECIPES[0].text;
    assert_eq!(RECIPES[0].name, "smoke.toml");
    let table: toml::Table = toml::from_str(text).unwrap();
    assert_eq!(table["objective"].as_table().unwrap().keys().collect::<Vec<_>>(), ["kind"]);
    assert!(!table.contains_key("retention"));
    let config = load("smoke.toml", &[]).unwrap();
    assert_eq!((config.model.path.as_str(), config.data.path.as_str()), ("builtin:tiny", "builtin:tiny"));
    assert_eq!(config.eval.path.as_deref(), Some("builtin:tiny/heldout"));
    assert_eq!(config.retention.kind, RetentionKind::Hidden);
}

#[test]
fn the_official_recipes_have_the_released_values() {
    for (name, beta, lr, template) in [("llama31", 1.0, 6e-7, "llama3.1"), ("gemma2", 1.5, 4e-7, "gemma"), ("qwen25", 1.5, 6e-7, "qwen")] {
        let official = load(&format!("official/{name}"), &[]).unwrap();
        assert_eq!((official.objective.beta, official.optimizer.lr, official.data.template.as_str()), (beta, lr, template));
        assert_eq!((official.retention.pooling, official.retention.reduction), (Pooling::MeanPadded, Reduction::Mean));
        assert_eq!((official.data.on_overlong, official.data.max_tokens), (OnOverlong::Released, 1024));
        assert_eq!((official.schedule.kind, official.schedule.warmup_ratio), (ScheduleKind::Cosine, Some(0.1)));
        assert_eq!((official.train.epochs, official.train.batch_size, official.model.dtype), (Some(2.0), 1, ComputeDtype::Bf16));
        let paper = load(name, &[]).unwrap();
        assert_eq!((paper.retention.pooling, paper.retention.reduction), (Pooling::Last, Reduction::Mean));
        assert_eq!((paper.objective.beta, paper.optimizer.lr, &paper.data.sha256), (beta, lr, &official.data.sha256));
    }
}

#[test]
fn a_file_wins_over_the_recipe_of_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("llama31.toml");
    std::fs::write(&file, LEAST).unwrap();
    assert_eq!(load(file.to_str().unwrap(), &[]).unwrap().model.path, "org/model");
    assert_eq!(load("llama31.toml", &[]).unwrap().model.path, "meta-llama/Llama-3.1-8B-Instruct");
    let error = load("lama31.toml", &[]).unwrap_err().to_string();
    assert!(error.starts_with("lama31.toml: no such file, and no built-in recipe of that name; did you mean `llama31.toml`?"), "{error}");
    assert!(load("smok", &[]).unwrap_err().to_string().contains("did you mean `smoke.toml`?"));
}

#[test]
fn overrides_have_the_type_of_their_key() {
    let config = least(&[
        "optimizer.lr=1e-4",
        "optimizer.betas=[0.8, 0.95]",
        "train.shuffle=false",
        "hardware.device=cpu",
        "model.revision=12",
        "retention.kind=kl",
        "data.languages=[\"zh\", \"sw\"]",
        " train.seed = 7 ",
        "train.batch_size=4",
        "train.batch_size=8",
        "eval.path=a=b.jsonl",
    ]);
    assert_eq!((config.optimizer.lr, config.optimizer.betas), (1e-4, [0.8, 0.95]));
    assert_eq!((config.train.shuffle, config.train.seed, config.train.batch_size), (false, 7, 8));
    assert_eq!((config.hardware.device.as_str(), config.model.revision.as_deref()), ("cpu", Some("12")));
    assert_eq!(config.retention.kind, RetentionKind::Kl);
    assert_eq!(config.data.languages, Some(vec!["zh".into(), "sw".into()]));
    assert!(config.eval.path.unwrap().ends_with("/a=b.jsonl"));
}

#[test]
fn an_override_replaces_the_other_member_of_an_exclusive_pair() {
    let config = least(&["train.epochs=2"]);
    assert_eq!((config.train.epochs, config.train.max_steps), (Some(2.0), None));
    let text = format!("{LEAST}[schedule]\nwarmup_ratio = 0.1\n[eval]\nfraction = 0.2\n");
    let config = parse(&text, "my.toml", &set(&["schedule.warmup_steps=3", "eval.path=held.jsonl"])).unwrap();
    assert_eq!((config.schedule.warmup_ratio, config.schedule.warmup_steps), (None, Some(3)));
    assert!(config.eval.fraction.is_none() && config.eval.path.is_some());
    assert_eq!(least(&["train.epochs=2", "train.max_steps=5"]).train, TrainConfig { max_steps: Some(5), ..TrainConfig::default() });
}

#[test]
fn an_override_takes_along_what_the_file_said_about_the_old_value() {
    let config = load("llama31.toml", &set(&["data.path=my.jsonl"])).unwrap();
    assert_eq!((config.data.sha256, config.data.format), (None, DataFormat::Auto));
    let config = load("llama31.toml", &set(&["retention.kind=none", "schedule.kind=constant"])).unwrap();
    assert_eq!(config.retention, RetentionConfig { kind: RetentionKind::None, ..RetentionConfig::default() });
    // What the command line itself says is never dropped.
    let said = load("llama31.toml", &set(&["retention.kind=none", "retention.pooling=mean"])).unwrap_err().to_string();
    assert!(said.starts_with("--set retention.pooling=mean: `retention.pooling` has no effect: `retention.kind` is \"none\""), "{said}");
}

#[test]
fn each_loss_has_its_own_keys_and_defaults() {
    for kind in ObjectiveKind::ALL {
        let config = least(&[&format!("objective.kind={}", kind.name())]);
        assert_eq!(config.objective, ObjectiveConfig::of(kind));
        let text = config.to_toml().unwrap();
        assert_eq!(parse(&text, "config.toml", &[]).unwrap(), config, "{text}");
        assert_eq!(config.retention.kind == RetentionKind::Hidden, kind == ObjectiveKind::Mpo, "{text}");
    }
    let beta = |kind: &str| least(&[&format!("objective.kind={kind}")]).objective.beta;
    assert_eq!([beta("mpo"), beta("dpo"), beta("simpo"), beta("kto")], [1.0, 0.1, 2.0, 0.1]);
    let stored = least(&["objective.kind=sft"]).to_toml().unwrap();
    assert!(stored.contains("[objective]\nkind = \"sft\"\n\n"), "only what is read is stored: {stored}");
    assert_eq!(least(&["objective.kind=dpo", "retention.kind=hidden"]).retention.kind, RetentionKind::Hidden);
}

#[test]
fn another_loss_takes_none_of_the_first_ones_settings() {
    // The recipe's beta is MPO's, and so is its gap.
    let config = load("gemma2.toml", &set(&["objective.kind=dpo", "retention.kind=none"])).unwrap();
    assert_eq!(config.objective, ObjectiveConfig::of(ObjectiveKind::Dpo));
    let config = load("gemma2.toml", &set(&["objective.kind=mpo"])).unwrap();
    assert_eq!(config.objective.beta, 1.5, "the same loss is no other");
    let config = load("gemma2.toml", &set(&["objective.beta=0.3", "objective.kind=dpo"])).unwrap();
    assert_eq!(config.objective.beta, 0.3, "what the command line says is never dropped");
    let said = load("gemma2.toml", &set(&["objective.kind=dpo", "objective.gap=sum"])).unwrap_err().to_string();
    assert!(said.starts_with("--set objective.gap=sum: `objective.gap` has no effect: `objective.kind` is \"dpo\""), "{said}");
}

#[test]
fn the_baselines_are_the_losses_that_mpo_is_compared_with() {
    for kind in ObjectiveKind::ALL.into_iter().filter(|kind| *kind != ObjectiveKind::Mpo) {
        let config = load(&format!("baselines/{}", kind.name()), &[]).unwrap();
        assert_eq!((config.objective.kind, config.retention.kind), (kind, RetentionKind::None));
        let mpo = load("llama31", &[]).unwrap();
        assert_eq!((&config.data.path, &config.data.sha256, &config.model), (&mpo.data.path, &mpo.data.sha256, &mpo.model));
    }
}

#[test]
fn paths_become_absolute_and_names_stay_names() {
    let here = std::env::current_dir().unwrap();
    let config = least(&["model.path=models/a/b", "data.path=./rows.jsonl", "reference.path=org/name", "output.dir=out"]);
    assert_eq!(config.model.path, here.join("models/a/b").to_str().unwrap());
    assert_eq!(config.data.path, here.join("rows.jsonl").to_str().unwrap());
    assert_eq!(config.reference.path.as_deref(), Some("org/name"));
    assert_eq!(config.output.dir, here.join("out"));
    assert_eq!(config.data.template, "checkpoint");
    assert_eq!(least(&["data.template=Cargo.toml"]).data.template, here.join("Cargo.toml").to_str().unwrap());
    assert_eq!(least(&["data.path=https://a.b/c.json"]).data.path, "https://a.b/c.json");
}

#[test]
fn a_resolved_configuration_resolves_to_itself_under_every_variant() {
    let variants: [&[&str]; 5] = [
        &["retention.kind=none", "schedule.kind=constant", "train.seed=9"],
        &["retention.kind=kl", "retention.weight=0.5", "schedule.kind=linear", "schedule.min_lr_ratio=0.1", "schedule.warmup_steps=2"],
        &["retention.pooling=mean", "retention.reduction=sum", "model.revision=main", "data.split=test", "optimizer.eps=1e-12"],
        &["data.path=builtin:tiny", "reference.path=org/other", "reference.revision=v1", "eval.fraction=0.25", "eval.every_steps=2"],
        &["data.path=a.json", "data.languages=[\"sw\"]", "data.limit=4", "data.min_dominant_gap=-0.5", "hardware.threads=2"],
    ];
    for overrides in variants {
        let config = least(overrides);
        let text = config.to_toml().unwrap();
        assert_eq!(parse(&text, "config.toml", &[]).unwrap(), config, "{text}");
    }
    let text = least(&["retention.kind=none"]).to_toml().unwrap();
    assert!(text.contains("\n[optimizer]\nkind = \"adamw\"\nlr = 6e-7\nbetas = [0.9, 0.999]\neps = 1e-8\n"), "{text}");
    assert!(!text.contains("pooling") && !text.contains("[eval]") && !text.contains("[reference]"), "{text}");
}

#[test]
fn activation_checkpointing_is_a_word_or_a_number_of_blocks() {
    use ActivationCheckpointing::{Auto, Every, Off};
    let every = |n: usize| Every(n.try_into().unwrap());
    assert_eq!(least(&[]).train.activation_checkpointing, Auto);
    for (typed, meant, stored) in
        [("auto", Auto, "\"auto\""), ("off", Off, "\"off\""), ("on", every(1), "\"on\""), ("1", every(1), "\"on\""), ("4", every(4), "4")]
    {
        let config = least(&[&format!("train.activation_checkpointing={typed}")]);
        assert_eq!(config.train.activation_checkpointing, meant);
        let text = config.to_toml().unwrap();
        assert!(text.contains(&format!("\nactivation_checkpointing = {stored}\n")), "{text}");
        assert_eq!(parse(&text, "config.toml", &[]).unwrap(), config);
        check_resume(&least(&[]), &config).unwrap();
    }
}

#[test]
fn scoring_needs_no_length_of_training_and_no_file() {
    let arguments = [
        Argument { flag: "--model", key: "model.path", value: Some("builtin:tiny") },
        Argument { flag: "--data", key: "data.path", value: Some("1e5") },
        Argument { flag: "--reference", key: "reference.path", value: None },
    ];
    let config = load_for_scoring(None, &arguments, &set(&["data.max_tokens=99"])).unwrap();
    assert_eq!((config.model.path.as_str(), config.data.max_tokens), ("builtin:tiny", 99));
    assert!(config.data.path.ends_with("/1e5"));
    let config = load_for_scoring(Some("official/gemma2"), &arguments, &[]).unwrap();
    assert_eq!((config.data.template.as_str(), config.data.sha256), ("gemma", None));
    let said = load_for_scoring(None, &arguments[..1], &set(&["train.seed=x"])).unwrap_err().to_string();
    assert!(said.contains("`train.seed` is string \"x\"") && said.contains("command line: `data.path` is missing"), "{said}");
}

/// What is added to the shortest configuration, and the one problem that it makes.
#[test]
fn each_rule_says_what_is_wrong_and_what_would_be_right() {
    let rules: &[(&[&str], &str)] = &[
        (
            &["train.activation_checkpointing=some"],
            "`train.activation_checkpointing` is string \"some\"; expected \"auto\", \"on\", \"off\", or a number of blocks, 1 or more",
        ),
        (
            &["train.activation_checkpointing=0"],
            "`train.activation_checkpointing` is integer `0`; expected \"auto\", \"on\", \"off\", or a number of blocks, 1 or more",
        ),
        (
            &["train.activation_checkpointing=true"],
            "`train.activation_checkpointing` is boolean `true`; expected \"auto\", \"on\", \"off\", or a number of blocks, 1 or more",
        ),
        (&["optimizer.lr=-1"], "`optimizer.lr` is -1: it must be a finite number above 0"),
        (&["optimizer.lr=nan"], "`optimizer.lr` is NaN: it must be a finite number above 0"),
        (&["optimizer.betas=[0.9, 1.0]"], "`optimizer.betas` is [0.9, 1]: both must be at least 0 and below 1"),
        (&["optimizer.eps=0"], "`optimizer.eps` is 0: it must be a finite number above 0"),
        (&["optimizer.weight_decay=-0.1"], "`optimizer.weight_decay` is -0.1: it must be a finite number, 0 or more"),
        (&["optimizer.clip_norm=-1"], "`optimizer.clip_norm` is -1: it must be a finite number, 0 or more"),
        (
            &["optimizer.in_backward=true"],
            "`optimizer.in_backward` updates a block before the gradients below it exist, and `optimizer.clip_norm` = 1 needs the norm of all \
             of them first: set `optimizer.clip_norm` = 0, or leave `optimizer.in_backward` out",
        ),
        (
            &["optimizer.in_backward=true", "optimizer.clip_norm=0", "adapter.kind=lora"],
            "`optimizer.in_backward` saves the gradients of a whole model, and an adapter's are small: leave it out",
        ),
        (&["objective.beta=0"], "`objective.beta` is 0: it must be a finite number above 0"),
        (
            &["objective.kind=robust_dpo", "objective.label_smoothing=0.5"],
            "`objective.label_smoothing` is 0.5: the share of pairs with the wrong label must be at least 0 and below 0.5; from one half on, \
             the labels say nothing, or the opposite",
        ),
        (
            &["objective.kind=sft", "objective.beta=0.1"],
            "`objective.beta` has no effect: `objective.kind` is \"sft\"; remove it, or choose one that reads it: \"mpo\", \"dpo\", \"ipo\", \
             \"robust_dpo\", \"r_dpo\", \"cpo\", \"orpo\", \"simpo\", \"kto\"",
        ),
        (
            &["objective.label_smoothing=0.1"],
            "`objective.label_smoothing` has no effect: `objective.kind` is \"mpo\"; remove it, or choose one that reads it: \"dpo\", \
             \"robust_dpo\"",
        ),
        (
            &["objective.kind=kto", "objective.desirable_weight=0", "objective.undesirable_weight=0"],
            "`objective.desirable_weight` and `objective.undesirable_weight` are both 0: nothing would be learned",
        ),
        (
            &["objective.kind=simpo", "objective.gamma_beta_ratio=-1"],
            "`objective.gamma_beta_ratio` is -1: it must be a finite number, 0 or more",
        ),
        (
            &["objective.kind=dpo", "signs.overshoot_share=0.5"],
            "`signs.overshoot_share` has no effect: `objective.kind` is \"dpo\", which pulls no gap to the dominant language's; remove it",
        ),
        (&["retention.weight=-1"], "`retention.weight` is -1: it must be a finite number, 0 or more"),
        (&["train.epochs=0"], "`train.epochs` is 0: it must be a finite number above 0"),
        (&["train.max_steps=0"], "`train.max_steps` is 0: it must be at least 1"),
        (&["train.batch_size=0"], "`train.batch_size` is 0: it must be at least 1"),
        (&["train.micro_batch_size=0"], "`train.micro_batch_size` is 0: it must be at least 1"),
        (&["train.max_skipped_steps=0"], "`train.max_skipped_steps` is 0: it must be at least 1"),
        (&["train.micro_batch_size=2"], "`train.micro_batch_size` is 2: it must not be above `train.batch_size`, 1"),
        (
            &["train.batch_size=2", "retention.pooling=mean_padded", "train.micro_batch_size=2"],
            "`retention.pooling` \"mean_padded\" depends on what is padded together: it needs `train.micro_batch_size` = 1, not 2",
        ),
        (
            &["retention.pooling=mean_padded", "train.group_by_dominant=true"],
            "`retention.pooling` \"mean_padded\" depends on what is padded together: it needs `train.group_by_dominant` = false",
        ),
        (&["schedule.warmup_ratio=1.5"], "`schedule.warmup_ratio` is 1.5: it must be between 0 and 1"),
        (&["schedule.min_lr_ratio=-1"], "`schedule.min_lr_ratio` is -1: it must be between 0 and 1"),
        (
            &["schedule.warmup_steps=11"],
            "`schedule.warmup_steps` is 11: the run has 10 steps and would end before its learning rate is reached",
        ),
        (&["eval.fraction=1"], "`eval.fraction` is 1: it must be above 0 and below 1"),
        (&["eval.fraction=0.1", "eval.every_steps=0"], "`eval.every_steps` is 0: it must be at least 1"),
        (&["checkpoint.every_steps=0"], "`checkpoint.every_steps` is 0: it must be at least 1"),
        (&["checkpoint.keep=0"], "`checkpoint.keep` is 0: it must be at least 1"),
        (
            &["checkpoint.best=eval_loss"],
            "`checkpoint.best` chooses among what is measured on held-out rows during the run: set `eval.path` or `eval.fraction`, and `eval.every_steps`",
        ),
        (
            &["checkpoint.best=eval_loss", "eval.fraction=0.1"],
            "`checkpoint.best` chooses among what is measured on held-out rows during the run: set `eval.every_steps`",
        ),
        (
            &["checkpoint.best=eval_reward_gap_target/sw", "eval.fraction=0.1", "eval.every_steps=5"],
            "whether a lower or a higher `eval_reward_gap_target/sw` is better cannot be told from its name: set `checkpoint.best_is` to \"lower\" or \"higher\"",
        ),
        (
            &["checkpoint.best=loss", "eval.fraction=0.1", "eval.every_steps=5"],
            "`checkpoint.best` is \"loss\": it must be a number of the held-out rows, a key of `metrics.jsonl` such as \"eval_loss\"",
        ),
        (
            &["data.sides=dominant"],
            "`objective.kind` \"mpo\" compares each target pair with its dominant one: `data.sides` can only be \"target\"",
        ),
        (&["signs.overshoot_share=2"], "`signs.overshoot_share` is 2: it must be between 0 and 1"),
        (&["signs.gradient_ratio=0"], "`signs.gradient_ratio` is 0: it must be a finite number above 0"),
        (&["hardware.threads=0"], "`hardware.threads` is 0: it must be at least 1"),
        (
            &["hardware.device=cuda"],
            "`hardware.device` is \"cuda\": it must be \"auto\", \"cpu\", or \"cuda:N\" with the number of a GPU, such as \"cuda:0\"",
        ),
        (&["data.max_tokens=1"], "`data.max_tokens` is 1: it must be at least 2"),
        (&["data.limit=0"], "`data.limit` is 0: it must be at least 1"),
        (&["data.sha256=abc"], "`data.sha256` has 3 characters: it must be 64 hexadecimal digits, as `sha256sum FILE` prints them"),
        (
            &["data.languages=[]"],
            "`data.languages` is empty: leave it out for all target languages, or name some, such as [\"zh\", \"sw\"]",
        ),
        (&["data.languages=[\"Chinese\"]"], "`data.languages` is [\"Chinese\"]: codes are lower-case ISO 639-1, such as [\"zh\", \"sw\"]"),
        (&["data.min_dominant_gap=inf"], "`data.min_dominant_gap` must be a finite number, such as 0.0"),
        (
            &["data.template=lama3.1"],
            "`data.template` is \"lama3.1\": no such file; otherwise `checkpoint`, or one of `llama3.1`, `gemma`, `qwen`; did you mean `llama3.1`?",
        ),
        (&["output.dir=~/runs"], "`output.dir` is \"~/runs\": `~` means home to a shell only; write the whole path"),
        (&["eval.path="], "`eval.path` is empty: leave it out, or name something"),
        (
            &["retention.kind=none", "retention.weight=2"],
            "`retention.weight` has no effect: `retention.kind` is \"none\"; remove it, or choose \"hidden\" or \"kl\"",
        ),
        (
            &["retention.kind=kl", "retention.reduction=sum"],
            "`retention.reduction` has no effect: `retention.kind` is \"kl\"; remove it, or choose \"hidden\"",
        ),
        (
            &["schedule.kind=constant", "schedule.min_lr_ratio=0.1"],
            "`schedule.min_lr_ratio` has no effect: `schedule.kind` is \"constant\"; remove it, or choose \"linear\" or \"cosine\"",
        ),
        (&["eval.every_steps=5"], "`eval.every_steps` has no effect: no rows are held out; set `eval.path` or `eval.fraction`"),
        (&["canary.every_steps=5"], "`canary.every_steps` has no effect: there are no canaries; set `canary.path`"),
        (&["signs.canary_share=0.5"], "`signs.canary_share` has no effect: there are no canaries; set `canary.path`"),
        (&["canary.path=/c", "canary.every_steps=0"], "`canary.every_steps` is 0: it must be at least 1"),
        (&["canary.path=/c", "canary.max_new_tokens=0"], "`canary.max_new_tokens` is 0: it must be at least 1"),
        (&["canary.path=/c", "signs.canary_share=2"], "`signs.canary_share` is 2: it must be between 0 and 1"),
        (&["canary.path="], "`canary.path` is empty: leave it out, or name something"),
        (&["model.path=/m", "model.revision=main"], "`model.revision` has no effect: `model.path` is not a hub id of the form `org/name`"),
        (
            &["reference.revision=main"],
            "`reference.revision` has no effect: `reference.path` is not set; the reference is the model itself",
        ),
        (
            &["reference.path=/m", "reference.revision=main"],
            "`reference.revision` has no effect: `reference.path` is not a hub id of the form `org/name`",
        ),
        (&["data.path=/rows.json", "data.split=test"], "`data.split` has no effect: `data.path` is not a hub id of the form `org/name`"),
        (&["train"], "expected `section.key=value`, for example `--set train.epochs=1`"),
        (&["train=1"], "`train` is a section: set the keys in it, such as `train.epochs`"),
        (&["optimizer.lr=fast"], "`optimizer.lr` is string \"fast\"; expected a number"),
        (&["train.bach_size=2"], "unknown key `train.bach_size`; did you mean `train.batch_size`?"),
    ];
    for (overrides, expected) in rules {
        let found = problems(LEAST, overrides);
        assert_eq!(found.len(), 1, "{overrides:?}: {found:?}");
        let (place, message) = found[0].split_once(": ").unwrap();
        assert_eq!(message, *expected, "{overrides:?}");
        assert!(overrides.iter().any(|typed| place == format!("--set {typed}")), "{place}");
    }
}

#[test]
fn what_is_missing_is_named() {
    assert_eq!(
        problems("", &[]),
        [
            "my.toml: `data.path` is missing: a file, `org/name` on the hub, `https://…`, or `builtin:tiny`",
            "my.toml: `model.path` is missing: a folder, `org/name` on the hub, or `builtin:tiny`",
            "my.toml: neither `train.epochs` nor `train.max_steps` is set: say how long to train, for example `epochs = 2` under `[train]`",
        ]
    );
}

/// One mistake is one problem: a misspelt or mistyped key is not also missing, and a broken variant makes no key of it useless.
#[test]
fn every_problem_of_a_bad_file_is_listed_at_once_in_reading_order() {
    let text = r#"# A file with everything wrong.
[model]
pth = "org/model"
revision = 3

[data]
path = "/rows.jsonl"
sha256 = "beef"
split = "test"

[retention]
kind = "hiden"
pooling = "mean"

[train]
epochs = 2
max_steps = 10
batch_size = "8"
micro_batch_size = 4

[optimiser]
lr = 1e-4

[optimizer]
betas = [0.9]
eps = 0

[schedule]
kind = "constant"
min_lr_ratio = 0.1
"#;
    let error = parse(text, "bad.toml", &set(&["train.sed=1", "hardware.threads=0"])).unwrap_err().to_string();
    let expected = r#"13 problems in the configuration
  bad.toml:3: unknown key `model.pth`; did you mean `model.path`?
  bad.toml:4: `model.revision` is integer `3`; expected a string
  bad.toml:8: `data.sha256` has 4 characters: it must be 64 hexadecimal digits, as `sha256sum FILE` prints them
  bad.toml:9: `data.split` has no effect: `data.path` is not a hub id of the form `org/name`
  bad.toml:12: `retention.kind` is `hiden`; expected one of `hidden`, `kl`, `none`
  bad.toml:17: `train.epochs` and `train.max_steps` are both set: keep one of them
  bad.toml:18: `train.batch_size` is string "8"; expected a whole number, 0 or more
  bad.toml:22: unknown key `optimiser.lr`; did you mean `optimizer.lr`?
  bad.toml:25: `optimizer.betas` has 1 of its values; expected a list of two numbers such as [0.9, 0.999]
  bad.toml:26: `optimizer.eps` is 0: it must be a finite number above 0
  bad.toml:30: `schedule.min_lr_ratio` has no effect: `schedule.kind` is "constant"; remove it, or choose "linear" or "cosine"
  --set train.sed=1: unknown key `train.sed`; did you mean `train.seed`?
  --set hardware.threads=0: `hardware.threads` is 0: it must be at least 1"#;
    assert_eq!(error, expected);
}

#[test]
fn text_that_is_not_toml_is_refused_with_its_lines() {
    let found = problems("[model]\npath = org/model\n[train\nepochs = 2\n", &[]);
    assert!(found[0].starts_with("my.toml:2: not TOML: "), "{found:?}");
    assert!(found.iter().any(|problem| problem.starts_with("my.toml:3: not TOML: ")), "{found:?}");
    let found = problems("[train]\nepochs = 2\nepochs = 3\n", &[]);
    assert!(found.len() == 1 && found[0].starts_with("my.toml:3: not TOML: duplicate key"), "{found:?}");
}

#[test]
fn the_builtin_templates_need_no_file() {
    for template in ["checkpoint", "llama3.1", "gemma", "qwen"] {
        assert_eq!(least(&[&format!("data.template={template}")]).data.template, template);
    }
}
