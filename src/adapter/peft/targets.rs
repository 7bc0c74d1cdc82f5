//! Which projections an adapter says that it has: `target_modules`, `layers_to_transform`, `exclude_modules`, as PEFT reads them.

use super::{Adapter, leaves, projections_of};
use crate::model::description::DecoderDescription;
use anyhow::{Result, bail, ensure};
use fancy_regex::Regex;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Compares the tensors' projections with those that the configuration names. PEFT makes modules for the latter and drops tensors that have none.
///
/// # Errors
/// Names the projections that only one of the two has.
pub(super) fn check(config: &Map<String, Value>, found: &BTreeSet<String>, description: &DecoderDescription) -> Result<()> {
    let Some(targets) = names(config, "target_modules") else { return Ok(()) };
    let excluded = names(config, "exclude_modules").unwrap_or(Names::List(Vec::new()));
    let layers = layers(config, description.layers.len())?;
    let is_target = |projection: &str| {
        targets.has(projection)
            && !excluded.has(projection)
            && layers.as_ref().is_none_or(|layers| layer_of(projection).is_some_and(|layer| layers.contains(&layer)))
    };
    let (only_found, only_named): (Vec<_>, Vec<_>) = {
        let named: BTreeSet<String> =
            projections_of(description).into_iter().map(|(name, _)| name).filter(|name| is_target(name)).collect();
        (found.difference(&named).cloned().collect(), named.difference(found).cloned().collect())
    };
    let listed = |names: &[String]| {
        let more = if names.len() > 4 { format!(" and {} more", names.len() - 4) } else { String::new() };
        format!("{}{more}", names.iter().take(4).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "))
    };
    if !only_found.is_empty() {
        bail!("its weights have {}, which `target_modules` and `layers_to_transform` do not name", listed(&only_found));
    }
    ensure!(only_named.is_empty(), "`target_modules` names {}, for which it has no weights", listed(&only_named));
    Ok(())
}

/// What `target_modules` or `exclude_modules` says.
enum Names {
    /// The last parts of modules' names, or whole ones.
    List(Vec<String>),
    /// A regular expression that a whole name matches.
    Pattern(Regex),
    All,
}

impl Names {
    fn has(&self, projection: &str) -> bool {
        let is_end =
            |name: &String| projection == name || projection.strip_suffix(name.as_str()).is_some_and(|before| before.ends_with('.'));
        match self {
            Self::List(names) => names.iter().any(is_end),
            // One that would take forever matches nothing, and then the tensors are named as superfluous.
            Self::Pattern(pattern) => pattern.is_match(projection).unwrap_or(false),
            Self::All => true,
        }
    }
}

/// `None` where the key is absent, or a pattern that only Python understands.
fn names(config: &Map<String, Value>, key: &str) -> Option<Names> {
    match config.get(key)? {
        Value::Array(list) => Some(Names::List(list.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect())),
        Value::String(all) if all == "all-linear" => Some(Names::All),
        // No pattern of use is longer.
        Value::String(pattern) if pattern.len() > 4096 => None,
        Value::String(pattern) => Regex::new(&format!(r"\A(?:{pattern})\z")).ok().map(Names::Pattern),
        _ => None,
    }
}

/// `layers_to_transform`; none where it is absent, or under a `layers_pattern` that is not the decoder's.
fn layers(config: &Map<String, Value>, n_layers: usize) -> Result<Option<BTreeSet<usize>>> {
    let layers: BTreeSet<usize> = match config.get("layers_to_transform") {
        Some(Value::Number(layer)) => layer.as_u64().into_iter().map(|layer| layer as usize).collect(),
        // PEFT reads an empty list as every layer.
        Some(Value::Array(list)) if !list.is_empty() => list.iter().filter_map(Value::as_u64).map(|layer| layer as usize).collect(),
        _ => return Ok(None),
    };
    if let Some(beyond) = layers.iter().find(|layer| **layer >= n_layers) {
        bail!("`layers_to_transform` has {beyond}, and the model's layers end at {}", n_layers - 1);
    }
    Ok(Some(layers))
}

fn layer_of(projection: &str) -> Option<usize> {
    projection.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

/// `target_modules` and `layers_to_transform`: names and layers where every layer has the same projections, else whole paths.
pub(super) fn of(adapter: &Adapter) -> (Vec<String>, Option<Vec<usize>>) {
    let mut by_layer: BTreeMap<usize, BTreeSet<&str>> = BTreeMap::new();
    for projection in &adapter.projections {
        let place = projection.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
        let Some((layer, name)) = place.and_then(|(layer, name)| Some((layer.parse().ok()?, name))) else { continue };
        by_layer.entry(layer).or_default().insert(name);
    }
    let mut sets = by_layer.values();
    let first = sets.next();
    if first.is_none_or(|first| sets.any(|set| set != first)) {
        return (adapter.projections.iter().cloned().collect(), None);
    }
    (leaves(adapter.projections.iter()), Some(by_layer.into_keys().collect()))
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{config, description};
    use super::*;
    use serde_json::json;

    #[test]
    fn targets_are_names_where_that_says_it_all() {
        let adapter = Adapter::new(&config(), 3, &description()).unwrap();
        assert_eq!(of(&adapter), (vec!["down_proj".into(), "q_proj".into()], Some(vec![1, 2])));
        let uneven = Adapter { projections: adapter.projections.iter().skip(1).cloned().collect(), ..adapter };
        assert_eq!(of(&uneven).0[0], "model.layers.1.self_attn.q_proj");
    }

    #[test]
    fn tensors_and_targets_must_be_the_same() {
        let found: BTreeSet<String> = ["1.mlp.down_proj", "1.self_attn.q_proj", "2.mlp.down_proj", "2.self_attn.q_proj"]
            .map(|name| format!("model.layers.{name}"))
            .into();
        let checked = |config: Value| check(config.as_object().unwrap(), &found, &description()).map_err(|error| error.to_string());
        checked(json!({"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1, 2]})).unwrap();
        checked(json!({"target_modules": ["self_attn.q_proj", "mlp.down_proj"], "exclude_modules": ["model.layers.0.mlp.down_proj", "layers.0.self_attn.q_proj"]})).unwrap();
        checked(json!({"target_modules": r".*\.[12]\.(self_attn\.q_proj|mlp\.down_proj)"})).unwrap();
        checked(json!({})).unwrap();
        assert!(checked(json!({"target_modules": r".*\.[12]\.self_attn\.q_proj"})).unwrap_err().contains("down_proj"));
        assert!(checked(json!({"target_modules": "all-linear"})).unwrap_err().contains("for which it has no weights"));
        let error = checked(json!({"target_modules": ["q_proj"], "layers_to_transform": [1, 2]})).unwrap_err();
        assert!(error.contains("weights have `model.layers.1.mlp.down_proj`, `model.layers.2.mlp.down_proj`, which"), "{error}");
        let error = checked(json!({"target_modules": ["q_proj", "down_proj"], "layers_to_transform": 1})).unwrap_err();
        assert!(error.contains("`model.layers.2.mlp.down_proj`"), "{error}");
        let error = checked(json!({"target_modules": ["q_proj", "down_proj"]})).unwrap_err();
        assert!(error.contains("names `model.layers.0.mlp.down_proj`, `model.layers.0.self_attn.q_proj`, for which"), "{error}");
        let error = checked(json!({"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1, 2, 9]})).unwrap_err();
        assert!(error.contains("has 9, and the model's layers end at 2"), "{error}");
    }
}
