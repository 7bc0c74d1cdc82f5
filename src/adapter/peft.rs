//! Adapters in the format of Hugging Face PEFT: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Which projections are adapted is read off the tensors, and `target_modules` must agree (`keys`); what of the configuration would change a number and is
//! not supported is refused by name, and so is what has another type; what nobody here knows is named. Beside PEFT's files stands `mpo.json` with the digest of the base's weights, by which another base is told.

mod keys;
mod targets;

use super::{Adapter, Base, projections_of};
use crate::files::{read_json, read_json_as};
use crate::model::description::DecoderDescription;
use crate::model::low_rank::{names, projection_of};
use crate::model::parameter::Parameter;
use crate::model::weights::Checkpoint;
use crate::ops::update;
use crate::progress::say;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

pub const CONFIG_FILE: &str = "adapter_config.json";
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
/// What PEFT has no place for.
pub const BASE_FILE: &str = "mpo.json";
/// What PEFT puts before the names of the model's own parameters.
pub const PREFIX: &str = "base_model.model.";

/// No adapter has so high a rank.
const MAX_RANK: u64 = 1 << 21;

/// Settings that would change a number; each may only have the value given, or be absent.
const UNSUPPORTED: [&str; 18] = [
    "alpha_pattern",
    "alora_invocation_tokens",
    "arrow_config",
    "corda_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "lora_ga_config",
    "modules_to_save",
    "monteclora_config",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
];

/// Ways to initialise that also change the base's weights: an adapter saved as it is then belongs to weights that nobody has.
const CHANGES_THE_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// Reads what the adapter in `dir` is, and checks that it fits a base of this description. Its values are read by [`Adapter::load`].
///
/// # Errors
/// Not an adapter; a setting that is not supported; tensors of another model.
pub fn open(dir: &Path, description: &DecoderDescription) -> Result<Adapter> {
    let path = dir.join(CONFIG_FILE);
    ensure!(
        path.is_file(),
        "`{}` has no `{CONFIG_FILE}`: it is not the folder of an adapter\nhint: one on the hub has to be fetched first: `hf download ORG/NAME --local-dir DIR`",
        dir.display()
    );
    let config: Map<String, Value> = read_json_as(&path)?;
    let checked = keys::check(&config).and_then(|()| refuse_what_is_not_supported(&config));
    checked.with_context(|| format!("cannot use `{}`", path.display()))?;
    let unknown = keys::unknown(&config);
    if !unknown.is_empty() {
        let what = "which this version does not know: if it changes what the adapter computes, the numbers here are others than in PEFT";
        say(&format!("warning: `{}` has {}, {what}", path.display(), unknown.join(", ")));
    }
    let rank = config.get("r").and_then(Value::as_u64).filter(|rank| (1..=MAX_RANK).contains(rank));
    let rank = rank.with_context(|| format!("`{}` has no rank (`r`) of 1 or more, up to {MAX_RANK}", path.display()))? as usize;
    let alpha = config.get("lora_alpha").and_then(Value::as_f64).filter(|alpha| alpha.is_finite());
    let alpha = alpha.with_context(|| format!("`{}` has no `lora_alpha`", path.display()))?;
    let text = |key: &str| config.get(key).and_then(Value::as_str).map(str::to_owned);
    let projections = adapted_projections(dir, rank, description)?;
    targets::check(&config, &projections, description).with_context(|| format!("the adapter in `{}` contradicts itself", dir.display()))?;
    let base = text("base_model_name_or_path")
        .map(|name| -> Result<Base> { Ok(Base { name, revision: text("revision"), weights_sha256: weights_sha256(dir)? }) });
    Ok(Adapter {
        rank,
        alpha,
        rslora: config.get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
        dropout: 0.0,
        seed: 0,
        projections,
        base: base.transpose()?,
        folder: Some(dir.to_owned()),
    })
}

fn refuse_what_is_not_supported(config: &Map<String, Value>) -> Result<()> {
    let kind = config.get("peft_type").and_then(Value::as_str).unwrap_or("of no kind");
    ensure!(kind == "LORA", "the adapter is {kind}; only LORA is supported");
    let bias = config.get("bias").and_then(Value::as_str).unwrap_or("none");
    ensure!(bias == "none", "`bias` is \"{bias}\": adapters with biases are not supported");
    for key in UNSUPPORTED {
        let is_off = match config.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => true,
            Some(Value::Object(map)) => map.is_empty(),
            Some(Value::Array(list)) => list.is_empty(),
            Some(_) => false,
        };
        ensure!(is_off, "`{key}` is {}, which is not supported", config[key]);
    }
    let how = config.get("init_lora_weights").and_then(Value::as_str).unwrap_or_default();
    ensure!(
        !CHANGES_THE_BASE.iter().any(|name| how.starts_with(name)),
        "`init_lora_weights` is \"{how}\", which changes the base's weights too: save the adapter in PEFT with `path_initial_model_for_weight_conversion`"
    );
    Ok(())
}

/// The projections that the tensors in `dir` belong to.
fn adapted_projections(dir: &Path, rank: usize, description: &DecoderDescription) -> Result<BTreeSet<String>> {
    let tensors = open_weights(dir)?;
    let known: BTreeMap<String, [usize; 2]> = projections_of(description).into_iter().collect();
    let mut projections = BTreeSet::new();
    for name in tensors.names() {
        let projection = name.strip_prefix(PREFIX).and_then(projection_of);
        let Some(projection) = projection else {
            bail!("`{}` holds `{name}`, which is not the A or B of a projection", dir.join(WEIGHTS_FILE).display());
        };
        ensure!(
            known.contains_key(projection),
            "the adapter in `{}` is for another model: it adapts `{projection}`, and the base's projections are {} in each of {} layers",
            dir.display(),
            leaves(known.keys()).join(", "),
            description.layers.len()
        );
        projections.insert(projection.to_owned());
    }
    let expected = projections.iter().flat_map(|projection| {
        let ([n_out, n_in], [a, b]) = (known[projection], names(projection));
        [(a, vec![rank, n_in]), (b, vec![n_out, rank])]
    });
    let expected: Vec<_> = expected.map(|(name, shape)| (format!("{PREFIX}{name}"), shape)).collect();
    tensors.check(&expected, &|_| false).with_context(|| format!("the adapter in `{}` does not fit this base", dir.display()))?;
    Ok(projections)
}

fn open_weights(dir: &Path) -> Result<Checkpoint> {
    let has = |file: &str| dir.join(file).is_file();
    ensure!(
        has(WEIGHTS_FILE) || !has("adapter_model.bin"),
        "`{}` has its weights in a pickle; only `{WEIGHTS_FILE}` is read",
        dir.display()
    );
    Checkpoint::open_file(dir, WEIGHTS_FILE)
}

/// Reads the values of `parameters`, the low-rank terms of a decoder, from the adapter in `dir`.
pub fn read_values(dir: &Path, parameters: &[Parameter]) -> Result<()> {
    let tensors = open_weights(dir)?;
    parameters.iter().try_for_each(|p| update(&p.value, |values| tensors.read_finite(&format!("{PREFIX}{}", p.name), values))?)
}

fn weights_sha256(dir: &Path) -> Result<Option<String>> {
    let path = dir.join(BASE_FILE);
    if !path.is_file() {
        return Ok(None);
    }
    let value = read_json(&path)?;
    let digest = value["base_weights_sha256"].as_str();
    Ok(Some(digest.with_context(|| format!("`{}` has no `base_weights_sha256`", path.display()))?.to_owned()))
}

/// The files beside the weights, by name: what `PeftModel.from_pretrained` reads, and the base's digest.
pub fn files(adapter: &Adapter, base: &Base) -> Vec<(&'static str, Vec<u8>)> {
    let alpha = if adapter.alpha.fract() == 0.0 { json!(adapter.alpha as i64) } else { json!(adapter.alpha) };
    let (target_modules, layers_to_transform) = targets::of(adapter);
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "revision": base.revision,
        "inference_mode": true,
        "r": adapter.rank,
        "lora_alpha": alpha,
        "use_rslora": adapter.rslora,
        "lora_dropout": adapter.dropout,
        "bias": "none",
        "fan_in_fan_out": false,
        "init_lora_weights": true,
        "modules_to_save": null,
        "target_modules": target_modules,
        "layers_to_transform": layers_to_transform,
    });
    let text = |value: Value| format!("{value:#}\n").into_bytes();
    let mut files = vec![(CONFIG_FILE, text(config))];
    files.extend(base.weights_sha256.as_ref().map(|digest| (BASE_FILE, text(json!({ "base_weights_sha256": digest })))));
    files
}

/// The last parts of names, each once, sorted.
fn leaves<'a>(names: impl Iterator<Item = &'a String>) -> Vec<String> {
    let leaves: BTreeSet<&str> = names.map(|name| name.rsplit_once('.').map_or(name.as_str(), |(_, leaf)| leaf)).collect();
    leaves.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{config, description};
    use super::*;
    use crate::model::weights::{SavedDtype, TensorToSave, save_file};
    use std::fs;

    fn base() -> Base {
        Base { name: "org/a".into(), revision: None, weights_sha256: Some("ab".into()) }
    }

    /// A folder with the adapter and tensors of its shapes; `change` edits its configuration.
    fn write(dir: &Path, adapter: &Adapter, change: impl Fn(&mut Value)) {
        for (name, contents) in files(adapter, &base()) {
            let mut value: Value = serde_json::from_slice(&contents).unwrap();
            if name == CONFIG_FILE {
                change(&mut value);
            }
            fs::write(dir.join(name), value.to_string()).unwrap();
        }
        let shapes: BTreeMap<_, _> = projections_of(&description()).into_iter().collect();
        let tensors: Vec<(String, Vec<usize>, Vec<f32>)> = adapter
            .projections
            .iter()
            .flat_map(|projection| {
                let ([n_out, n_in], [a, b], r) = (shapes[projection], names(projection), adapter.rank);
                [(a, vec![r, n_in], vec![0.5; r * n_in]), (b, vec![n_out, r], vec![0.25; n_out * r])]
            })
            .map(|(name, shape, values)| (format!("{PREFIX}{name}"), shape, values))
            .collect();
        let tensors: Vec<_> =
            tensors.iter().map(|(name, shape, values)| TensorToSave { name, shape, values, dtype: SavedDtype::F32 }).collect();
        let _ = fs::remove_file(dir.join(WEIGHTS_FILE));
        save_file(dir, WEIGHTS_FILE, &tensors).unwrap();
    }

    fn error(dir: &Path) -> String {
        format!("{:#}", open(dir, &description()).unwrap_err())
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let new = Adapter::new(&config(), 3, &description()).unwrap();
        let uneven = Adapter { projections: new.projections.iter().skip(1).cloned().collect(), alpha: 2.5, rslora: true, ..new.clone() };
        for adapter in [new, uneven] {
            write(dir.path(), &adapter, |_| ());
            let expected = Adapter { base: Some(base()), folder: Some(dir.path().into()), seed: 0, ..adapter };
            assert_eq!(open(dir.path(), &description()).unwrap(), expected);
        }
    }

    #[test]
    fn what_would_be_computed_wrongly_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let adapter = Adapter::new(&config(), 3, &description()).unwrap();
        for (key, value, said) in [
            ("peft_type", json!("IA3"), "IA3"),
            ("bias", json!("all"), "`bias`"),
            ("use_dora", json!(true), "`use_dora`"),
            ("rank_pattern", json!({"q_proj": 8}), "`rank_pattern`"),
            ("modules_to_save", json!(["lm_head"]), "`modules_to_save`"),
            ("init_lora_weights", json!("pissa_niter_4"), "changes the base"),
            ("r", json!(0), "no rank"),
            ("r", json!(8), "does not fit this base"),
            ("lora_alpha", json!(null), "no `lora_alpha`"),
        ] {
            write(dir.path(), &adapter, |config| config[key] = value.clone());
            assert!(error(dir.path()).contains(said), "{key}: {}", error(dir.path()));
        }
    }

    #[test]
    fn an_adapter_for_another_model_names_the_projections_there_are() {
        let dir = tempfile::tempdir().unwrap();
        let adapter = Adapter::new(&config(), 3, &description()).unwrap();
        write(dir.path(), &adapter, |_| ());
        let mut smaller = description();
        smaller.layers.truncate(2);
        let message = format!("{:#}", open(dir.path(), &smaller).unwrap_err());
        assert!(message.contains("`model.layers.2.mlp.down_proj`") && message.contains("down_proj, gate_proj, k_proj"), "{message}");
        let mut wider = description();
        wider.hidden_size = 16;
        let message = format!("{:#}", open(dir.path(), &wider).unwrap_err());
        assert!(message.contains("does not fit this base") && message.contains("misshapen"), "{message}");

        fs::remove_file(dir.path().join(WEIGHTS_FILE)).unwrap();
        fs::write(dir.path().join("adapter_model.bin"), "").unwrap();
        assert!(error(dir.path()).contains("pickle"));
        fs::remove_file(dir.path().join(CONFIG_FILE)).unwrap();
        assert!(error(dir.path()).contains("not the folder of an adapter"));
    }
}
