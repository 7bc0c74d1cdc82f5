//! The rules that types cannot say: ranges, required keys, keys that exclude each other, keys of a variant that was not chosen.
//!
//! A rule names the keys it is about, the first being where the problem is shown. A rule about a key that is already in doubt (misspelt or
//! of a wrong type) is left out by the caller, so that one mistake is one problem.

use super::keys::{list, nearest};
use super::objective;
use super::paths::{BUILTIN_TEMPLATES, CHECKPOINT_TEMPLATE, is_builtin, is_hub_id, is_template_file};
use super::{ComputeDtype, MasterWeights, ObjectiveKind, Pooling, RetentionKind, RunConfig, ScheduleKind, Sides};
use std::path::Path;

/// Pairs of which at most one key may be set.
pub(crate) const EXCLUSIVE: [[&str; 2]; 3] =
    [["train.epochs", "train.max_steps"], ["schedule.warmup_ratio", "schedule.warmup_steps"], ["eval.path", "eval.fraction"]];

/// Keys that describe the value of another one: where `--set` replaces that value, what the file said about the old one goes with it.
/// The same value again replaces nothing.
pub(crate) const DESCRIBED_BY: [(&str, &[&str]); 4] = [
    ("objective.kind", &objective::KEYS),
    ("model.path", &["model.revision"]),
    ("reference.path", &["reference.revision"]),
    ("data.path", &["data.revision", "data.sha256", "data.format", "data.split"]),
];

/// What the configuration is for; scoring needs no length of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Train,
    Score,
}

/// A broken rule.
#[derive(Debug, PartialEq)]
pub(crate) struct Finding {
    pub keys: Vec<&'static str>,
    pub message: String,
}

/// A key that nothing reads under this configuration.
pub(crate) struct WithoutEffect {
    pub key: &'static str,
    /// The key whose value makes it so.
    pub chooser: &'static str,
    pub why: String,
}

/// Every key that nothing reads, set or not. A stored configuration leaves them out.
pub(crate) fn without_effect(config: &RunConfig) -> Vec<WithoutEffect> {
    let mut found = Vec::new();
    let mut note = |unread: bool, keys: &[&'static str], chooser: &'static str, why: &str| {
        if unread {
            found.extend(keys.iter().map(|key| WithoutEffect { key, chooser, why: why.into() }));
        }
    };
    let kind = config.objective.kind;
    for key in objective::KEYS {
        let others = ObjectiveKind::that_read(key).iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
        let why = format!("`objective.kind` is \"{}\"; remove it, or choose one that reads it: {others}", kind.name());
        note(!kind.keys().contains(&key), &[key], "objective.kind", &why);
    }
    let of_mpo = ["signs.overshoot_share", "signs.stagnation_closed", "signs.bad_supervision_share"];
    let why = format!("`objective.kind` is \"{}\", which pulls no gap to the dominant language's; remove it", kind.name());
    note(kind != ObjectiveKind::Mpo, &of_mpo, "objective.kind", &why);
    let retention = config.retention.kind;
    let (states, weight) = (["retention.pooling", "retention.reduction"], ["retention.weight"]);
    note(
        retention == RetentionKind::None,
        &weight,
        "retention.kind",
        "`retention.kind` is \"none\"; remove it, or choose \"hidden\" or \"kl\"",
    );
    note(retention == RetentionKind::None, &states, "retention.kind", "`retention.kind` is \"none\"; remove it, or choose \"hidden\"");
    note(retention == RetentionKind::Kl, &states, "retention.kind", "`retention.kind` is \"kl\"; remove it, or choose \"hidden\"");
    let shape = ["adapter.rank", "adapter.alpha", "adapter.rslora", "adapter.targets", "adapter.layers"];
    let trained = ["adapter.path", "adapter.dropout"];
    note(!config.adapter.is_lora(), &shape, "adapter.kind", "`adapter.kind` is \"none\"; remove it, or choose \"lora\"");
    note(!config.adapter.is_lora(), &trained, "adapter.kind", "`adapter.kind` is \"none\"; remove it, or choose \"lora\"");
    let goes_on = config.adapter.is_lora() && config.adapter.path.is_some();
    note(
        goes_on,
        &shape,
        "adapter.path",
        "the adapter in `adapter.path` has its own; remove it, or start a new adapter without `adapter.path`",
    );
    let constant = config.schedule.kind == ScheduleKind::Constant;
    note(
        constant,
        &["schedule.min_lr_ratio"],
        "schedule.kind",
        "`schedule.kind` is \"constant\"; remove it, or choose \"linear\" or \"cosine\"",
    );
    let nothing_held_out = config.eval.path.is_none() && config.eval.fraction.is_none();
    note(nothing_held_out, &["eval.every_steps"], "eval.path", "no rows are held out; set `eval.path` or `eval.fraction`");
    let of_canaries = [
        "canary.every_steps",
        "canary.limit",
        "canary.max_new_tokens",
        "signs.canary_share",
        "signs.canary_nll_nats",
        "signs.canary_kl_nats",
    ];
    note(config.canary.path.is_none(), &of_canaries, "canary.path", "there are no canaries; set `canary.path`");
    let off_hub = |path: &str| !is_hub_id(path);
    note(config.checkpoint.best.is_none(), &["checkpoint.best_is"], "checkpoint.best", "`checkpoint.best` is not set");
    note(off_hub(&config.model.path), &["model.revision"], "model.path", "`model.path` is not a hub id of the form `org/name`");
    let reference = config.reference.path.as_deref();
    note(reference.is_none(), &["reference.revision"], "reference.path", "`reference.path` is not set; the reference is the model itself");
    note(
        reference.is_some_and(off_hub),
        &["reference.revision"],
        "reference.path",
        "`reference.path` is not a hub id of the form `org/name`",
    );
    let on_hub = ["data.revision", "data.split"];
    note(off_hub(&config.data.path), &on_hub, "data.path", "`data.path` is not a hub id of the form `org/name`");
    note(is_builtin(&config.data.path), &["data.sha256"], "data.path", "`data.path` is built in");
    found
}

/// Every broken rule about values and their combinations.
pub(crate) fn check(config: &RunConfig, purpose: Purpose) -> Vec<Finding> {
    let mut findings = Findings(Vec::new());
    sources(config, &mut findings);
    data(config, &mut findings);
    objective(config, &mut findings);
    adapter(config, &mut findings);
    if purpose == Purpose::Train {
        length(config, &mut findings);
    }
    train(config, &mut findings);
    optimizer(config, &mut findings);
    schedule(config, &mut findings);
    eval(config, &mut findings);
    canary(config, &mut findings);
    signs(config, &mut findings);
    outside(config, &mut findings);
    findings.0
}

fn sources(config: &RunConfig, findings: &mut Findings) {
    findings.require(!config.model.path.is_empty(), &["model.path"], || {
        "`model.path` is missing: a folder, `org/name` on the hub, or `builtin:tiny`".into()
    });
    findings.require(!config.data.path.is_empty(), &["data.path"], || {
        "`data.path` is missing: a file, `org/name` on the hub, `https://…`, or `builtin:tiny`".into()
    });
    let paths = [
        ("model.path", Some(config.model.path.as_str())),
        ("adapter.path", config.adapter.path.as_deref()),
        ("reference.path", config.reference.path.as_deref()),
        ("data.path", Some(config.data.path.as_str())),
        ("data.template", Some(config.data.template.as_str())),
        ("eval.path", config.eval.path.as_deref()),
        ("canary.path", config.canary.path.as_deref()),
        ("output.dir", config.output.dir.to_str()),
    ];
    for (key, path) in paths.into_iter().filter_map(|(key, path)| Some((key, path?))) {
        findings.require(!path.starts_with("~/"), &[key], || {
            format!("`{key}` is \"{path}\": `~` means home to a shell only; write the whole path")
        });
        let required = ["model.path", "data.path"].contains(&key);
        findings.require(required || !path.is_empty(), &[key], || format!("`{key}` is empty: leave it out, or name something"));
    }
}

fn data(config: &RunConfig, findings: &mut Findings) {
    let data = &config.data;
    if let Some(sha256) = &data.sha256 {
        let is_digest = sha256.len() == 64 && sha256.chars().all(|c| c.is_ascii_hexdigit());
        findings.require(is_digest, &["data.sha256"], || {
            format!(
                "`data.sha256` has {} characters: it must be 64 hexadecimal digits, as `sha256sum FILE` prints them",
                sha256.chars().count()
            )
        });
    }
    let template = &data.template;
    let is_there = !is_template_file(template) || Path::new(template).is_file();
    findings.require(is_there || template.is_empty() || template.starts_with("~/"), &["data.template"], || {
        let meant =
            nearest(template, BUILTIN_TEMPLATES.map(str::to_string)).map_or(String::new(), |meant| format!("; did you mean `{meant}`?"));
        format!(
            "`data.template` is \"{template}\": no such file; otherwise `{CHECKPOINT_TEMPLATE}`, or one of {}{meant}",
            list(&BUILTIN_TEMPLATES)
        )
    });
    findings.at_least("data.max_tokens", Some(data.max_tokens), 2);
    findings.at_least("data.limit", data.limit, 1);
    if let Some(languages) = &data.languages {
        findings.require(!languages.is_empty(), &["data.languages"], || {
            "`data.languages` is empty: leave it out for all target languages, or name some, such as [\"zh\", \"sw\"]".into()
        });
        let is_code = |code: &String| !code.is_empty() && code.chars().all(|c| c.is_ascii_lowercase() || c == '-');
        findings.require(languages.iter().all(is_code), &["data.languages"], || {
            format!("`data.languages` is {languages:?}: codes are lower-case ISO 639-1, such as [\"zh\", \"sw\"]")
        });
    }
    findings.require(data.min_dominant_gap.is_none_or(f64::is_finite), &["data.min_dominant_gap"], || {
        "`data.min_dominant_gap` must be a finite number, such as 0.0".into()
    });
}

fn objective(config: &RunConfig, findings: &mut Findings) {
    let kind = config.objective.kind;
    findings.require(config.data.sides == Sides::Target || !kind.compares_with_dominant(), &["data.sides", "objective.kind"], || {
        format!("`objective.kind` \"{}\" compares each target pair with its dominant one: `data.sides` can only be \"target\"", kind.name())
    });
    let objective = &config.objective;
    findings.positive("objective.beta", objective.beta);
    let e = objective.label_smoothing;
    findings.require((0.0..0.5).contains(&e), &["objective.label_smoothing"], || {
        format!(
            "`objective.label_smoothing` is {e}: the share of pairs with the wrong label must be at least 0 and below 0.5; from one half on, \
             the labels say nothing, or the opposite"
        )
    });
    for (key, value) in [
        ("objective.length_weight", objective.length_weight),
        ("objective.nll_weight", objective.nll_weight),
        ("objective.gamma_beta_ratio", objective.gamma_beta_ratio),
        ("objective.desirable_weight", objective.desirable_weight),
        ("objective.undesirable_weight", objective.undesirable_weight),
    ] {
        findings.non_negative(key, value);
    }
    let weights = ["objective.desirable_weight", "objective.undesirable_weight"];
    findings.require(objective.desirable_weight > 0.0 || objective.undesirable_weight > 0.0, &weights, || {
        "`objective.desirable_weight` and `objective.undesirable_weight` are both 0: nothing would be learned".into()
    });
    findings.non_negative("retention.weight", config.retention.weight);
    let padded = config.retention.kind == RetentionKind::Hidden && config.retention.pooling == Pooling::MeanPadded;
    let why = "`retention.pooling` \"mean_padded\" depends on what is padded together: it needs";
    findings.require(!padded || config.train.micro_batch_size == 1, &["train.micro_batch_size", "retention.pooling"], || {
        format!("{why} `train.micro_batch_size` = 1, not {}", config.train.micro_batch_size)
    });
    findings.require(!padded || !config.train.group_by_dominant, &["train.group_by_dominant", "retention.pooling"], || {
        format!("{why} `train.group_by_dominant` = false")
    });
}

fn adapter(config: &RunConfig, findings: &mut Findings) {
    let adapter = &config.adapter;
    findings.at_least("adapter.rank", Some(adapter.rank), 1);
    if let Some(alpha) = adapter.alpha.filter(|_| adapter.rank > 0) {
        findings.positive("adapter.alpha", alpha);
    }
    findings.require((0.0..1.0).contains(&adapter.dropout), &["adapter.dropout"], || {
        format!("`adapter.dropout` is {}: it must be at least 0 and below 1", adapter.dropout)
    });
    findings.require(!adapter.targets.modules().is_empty(), &["adapter.targets"], || {
        "`adapter.targets` is empty: leave it out for all projections, or name some, such as [\"q_proj\", \"v_proj\"]".into()
    });
}

fn length(config: &RunConfig, findings: &mut Findings) {
    let is_set = config.train.epochs.is_some() || config.train.max_steps.is_some();
    findings.require(is_set, &["train.epochs", "train.max_steps"], || {
        "neither `train.epochs` nor `train.max_steps` is set: say how long to train, for example `epochs = 2` under `[train]`".into()
    });
}

fn train(config: &RunConfig, findings: &mut Findings) {
    let train = &config.train;
    if let Some(epochs) = train.epochs {
        findings.positive("train.epochs", epochs);
    }
    findings.at_least("train.max_steps", train.max_steps, 1);
    findings.at_least("train.batch_size", Some(train.batch_size), 1);
    findings.at_least("train.micro_batch_size", Some(train.micro_batch_size), 1);
    findings.at_least("train.max_skipped_steps", Some(train.max_skipped_steps), 1);
    // An uneven last micro-batch is exact (the loss is divided by the batch's rows); a larger one would never be filled.
    let fits = train.micro_batch_size <= train.batch_size.max(1);
    findings.require(fits, &["train.micro_batch_size", "train.batch_size"], || {
        format!("`train.micro_batch_size` is {}: it must not be above `train.batch_size`, {}", train.micro_batch_size, train.batch_size)
    });
}

fn optimizer(config: &RunConfig, findings: &mut Findings) {
    let optimizer = &config.optimizer;
    findings.positive("optimizer.lr", optimizer.lr);
    let [first, second] = optimizer.betas;
    let are_decays = [first, second].iter().all(|beta| (0.0..1.0).contains(beta));
    findings.require(are_decays, &["optimizer.betas"], || {
        format!("`optimizer.betas` is [{first}, {second}]: both must be at least 0 and below 1")
    });
    findings.positive("optimizer.eps", optimizer.eps);
    findings.non_negative("optimizer.weight_decay", optimizer.weight_decay);
    findings.non_negative("optimizer.clip_norm", optimizer.clip_norm);
    findings.require(!optimizer.in_backward || optimizer.clip_norm == 0.0, &["optimizer.in_backward", "optimizer.clip_norm"], || {
        format!(
            "`optimizer.in_backward` updates a block before the gradients below it exist, and `optimizer.clip_norm` = {} needs the norm of all of \
             them first: set `optimizer.clip_norm` = 0, or leave `optimizer.in_backward` out",
            optimizer.clip_norm
        )
    });
    findings.require(!optimizer.in_backward || !config.adapter.is_lora(), &["optimizer.in_backward", "adapter.kind"], || {
        "`optimizer.in_backward` saves the gradients of a whole model, and an adapter's are small: leave it out".into()
    });
    let keeps_f32 = optimizer.master == MasterWeights::F32 || config.model.dtype == ComputeDtype::Bf16;
    findings.require(keeps_f32, &["optimizer.master", "model.dtype"], || {
        "`optimizer.master` is about weights in bf16, and `model.dtype` is \"f32\": set `model.dtype` = \"bf16\", or leave `optimizer.master` at \"f32\"".into()
    });
}

fn schedule(config: &RunConfig, findings: &mut Findings) {
    let schedule = &config.schedule;
    if let Some(ratio) = schedule.warmup_ratio {
        findings.share("schedule.warmup_ratio", ratio);
    }
    findings.share("schedule.min_lr_ratio", schedule.min_lr_ratio);
    if let (Some(warmup), Some(steps)) = (schedule.warmup_steps, config.train.max_steps) {
        findings.require(warmup <= steps, &["schedule.warmup_steps", "train.max_steps"], || {
            format!("`schedule.warmup_steps` is {warmup}: the run has {steps} steps and would end before its learning rate is reached")
        });
    }
}

fn eval(config: &RunConfig, findings: &mut Findings) {
    findings.at_least("eval.every_steps", config.eval.every_steps, 1);
    if let Some(fraction) = config.eval.fraction {
        let is_split = fraction > 0.0 && fraction < 1.0;
        findings.require(is_split, &["eval.fraction"], || format!("`eval.fraction` is {fraction}: it must be above 0 and below 1"));
    }
}

fn canary(config: &RunConfig, findings: &mut Findings) {
    findings.at_least("canary.every_steps", config.canary.every_steps, 1);
    findings.at_least("canary.limit", Some(config.canary.limit), 1);
    findings.at_least("canary.max_new_tokens", Some(config.canary.max_new_tokens), 1);
}

fn signs(config: &RunConfig, findings: &mut Findings) {
    let signs = &config.signs;
    findings.share("signs.overshoot_share", signs.overshoot_share);
    findings.non_negative("signs.displacement_nats", signs.displacement_nats);
    findings.share("signs.stagnation_closed", signs.stagnation_closed);
    findings.share("signs.stagnation_after", signs.stagnation_after);
    findings.share("signs.bad_supervision_share", signs.bad_supervision_share);
    findings.positive("signs.gradient_ratio", signs.gradient_ratio);
    findings.share("signs.canary_share", signs.canary_share);
    findings.non_negative("signs.canary_nll_nats", signs.canary_nll_nats);
    findings.non_negative("signs.canary_kl_nats", signs.canary_kl_nats);
}

/// Checkpoints, hardware and output.
fn outside(config: &RunConfig, findings: &mut Findings) {
    findings.at_least("checkpoint.every_steps", config.checkpoint.every_steps, 1);
    findings.at_least("checkpoint.keep", Some(config.checkpoint.keep), 1);
    best(config, findings);
    findings.at_least("hardware.threads", config.hardware.threads, 1);
    let device = config.hardware.device.as_str();
    let is_number = |ordinal: &str| !ordinal.is_empty() && ordinal.chars().all(|c| c.is_ascii_digit());
    let is_device = matches!(device, "auto" | "cpu") || device.strip_prefix("cuda:").is_some_and(is_number);
    findings.require(is_device, &["hardware.device"], || {
        format!(
            "`hardware.device` is \"{device}\": it must be \"auto\", \"cpu\", or \"cuda:N\" with the number of a GPU, such as \"cuda:0\""
        )
    });
}

/// `checkpoint.best`; whether there is such a number is known once it was measured.
fn best(config: &RunConfig, findings: &mut Findings) {
    let Some(best) = &config.checkpoint.best else { return };
    findings.require(best.starts_with("eval_"), &["checkpoint.best"], || {
        format!("`checkpoint.best` is \"{best}\": it must be a number of the held-out rows, a key of `metrics.jsonl` such as \"eval_loss\"")
    });
    let is_known = config.checkpoint.best_is().is_some() || !best.starts_with("eval_");
    findings.require(is_known, &["checkpoint.best", "checkpoint.best_is"], || {
        format!("whether a lower or a higher `{best}` is better cannot be told from its name: set `checkpoint.best_is` to \"lower\" or \"higher\"")
    });
    let is_held_out = config.eval.path.is_some() || config.eval.fraction.is_some();
    let is_measured = is_held_out && config.eval.every_steps.is_some();
    findings.require(is_measured, &["checkpoint.best", "eval.path", "eval.fraction", "eval.every_steps"], || {
        let missing = if is_held_out { "`eval.every_steps`" } else { "`eval.path` or `eval.fraction`, and `eval.every_steps`" };
        format!("`checkpoint.best` chooses among what is measured on held-out rows during the run: set {missing}")
    });
}

/// The broken rules so far, and the rules that recur.
struct Findings(Vec<Finding>);

impl Findings {
    fn require(&mut self, holds: bool, keys: &[&'static str], message: impl FnOnce() -> String) {
        if !holds {
            self.0.push(Finding { keys: keys.to_vec(), message: message() });
        }
    }

    fn at_least(&mut self, key: &'static str, value: Option<usize>, least: usize) {
        if let Some(value) = value {
            self.require(value >= least, &[key], || format!("`{key}` is {value}: it must be at least {least}"));
        }
    }

    fn positive(&mut self, key: &'static str, value: f64) {
        self.require(value.is_finite() && value > 0.0, &[key], || format!("`{key}` is {value}: it must be a finite number above 0"));
    }

    fn non_negative(&mut self, key: &'static str, value: f64) {
        self.require(value.is_finite() && value >= 0.0, &[key], || format!("`{key}` is {value}: it must be a finite number, 0 or more"));
    }

    fn share(&mut self, key: &'static str, value: f64) {
        self.require((0.0..=1.0).contains(&value), &[key], || format!("`{key}` is {value}: it must be between 0 and 1"));
    }
}
