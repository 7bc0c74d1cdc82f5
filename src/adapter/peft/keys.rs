//! The keys of `adapter_config.json`: their types, and those that PEFT has and that change nothing here.

use super::UNSUPPORTED;
use anyhow::{Result, bail};
use serde_json::{Map, Value};

/// What a value must be; null is none everywhere.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Flag,
    Number,
    Text,
    /// A name, or a list of names.
    Names,
    /// A number, or a list of numbers.
    Numbers,
    /// `init_lora_weights`: a flag or a name.
    FlagOrText,
    Any,
}

/// Keys that are read here, or that have no effect on a trained adapter: its first values, its dropout, how it was made, how PEFT holds it.
const KNOWN: [(&str, Kind); 31] = [
    ("auto_mapping", Kind::Any),
    ("base_model_name_or_path", Kind::Text),
    ("bias", Kind::Text),
    ("ensure_weight_tying", Kind::Flag),
    ("eva_config", Kind::Any),
    ("exclude_modules", Kind::Names),
    ("fan_in_fan_out", Kind::Flag),
    ("inference_mode", Kind::Flag),
    ("init_lora_weights", Kind::FlagOrText),
    ("layers_pattern", Kind::Names),
    ("layers_to_transform", Kind::Numbers),
    ("loftq_config", Kind::Any),
    ("lora_alpha", Kind::Number),
    ("lora_bias", Kind::Flag),
    ("lora_dropout", Kind::Number),
    ("megatron_config", Kind::Any),
    ("megatron_core", Kind::Any),
    ("peft_type", Kind::Text),
    ("peft_version", Kind::Text),
    ("qalora_group_size", Kind::Number),
    ("r", Kind::Number),
    ("revision", Kind::Text),
    ("runtime_config", Kind::Any),
    ("target_modules", Kind::Names),
    ("task_type", Kind::Text),
    ("use_bdlora", Kind::Any),
    ("use_dora", Kind::Flag),
    ("use_qalora", Kind::Flag),
    ("use_rslora", Kind::Flag),
    ("modules_to_save", Kind::Names),
    ("trainable_token_indices", Kind::Any),
];

/// # Errors
/// A value of another type, `"true"` for true: another program would take it for what it is not.
pub(super) fn check(config: &Map<String, Value>) -> Result<()> {
    for (key, kind) in KNOWN {
        let Some(value) = config.get(key).filter(|value| !value.is_null()) else { continue };
        let all = |is: fn(&Value) -> bool| value.as_array().is_some_and(|list| list.iter().all(is));
        let (is_right, right) = match kind {
            Kind::Flag => (value.is_boolean(), "true or false, without quotes"),
            Kind::Number => (value.is_number(), "a number, without quotes"),
            Kind::Text => (value.is_string(), "a string"),
            Kind::Names => (value.is_string() || all(Value::is_string), "a string or a list of strings"),
            Kind::Numbers => (value.is_u64() || all(Value::is_u64), "a whole number or a list of them"),
            Kind::FlagOrText => (value.is_boolean() || value.is_string(), "true, false or a name"),
            Kind::Any => (true, ""),
        };
        let is_mistaken_flag = key == "init_lora_weights" && matches!(value.as_str(), Some("true" | "false"));
        if !is_right || is_mistaken_flag {
            bail!("`{key}` is {value}: it must be {right}");
        }
    }
    Ok(())
}

/// Keys that neither this program nor the PEFT that it knows has, with a value that is not "off".
pub(super) fn unknown(config: &Map<String, Value>) -> Vec<String> {
    let is_known = |key: &str| KNOWN.iter().any(|(known, _)| *known == key) || UNSUPPORTED.contains(&key);
    let is_off = |value: &Value| matches!(value, Value::Null | Value::Bool(false)) || value.as_array().is_some_and(Vec::is_empty);
    config.iter().filter(|(key, value)| !is_known(key) && !is_off(value)).map(|(key, _)| format!("`{key}`")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn a_value_of_another_type_is_refused_by_name() {
        check(&map(
            json!({"use_rslora": true, "r": 8, "target_modules": ["q_proj"], "layers_to_transform": 3, "init_lora_weights": "gaussian"}),
        ))
        .unwrap();
        check(&map(json!({"use_rslora": null, "target_modules": "all-linear", "revision": null}))).unwrap();
        for (key, value) in [
            ("use_rslora", json!("true")),
            ("use_dora", json!(1)),
            ("r", json!("8")),
            ("lora_alpha", json!("16")),
            ("target_modules", json!([1])),
            ("layers_to_transform", json!(["1"])),
            ("init_lora_weights", json!("true")),
            ("bias", json!(false)),
        ] {
            let error = check(&map(json!({ key: value.clone() }))).unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}` is {value}")), "{error}");
        }
    }

    #[test]
    fn a_key_that_nobody_knows_is_named() {
        let config = map(json!({"r": 8, "use_dora": false, "gate_scale": 2.0, "use_gate": false, "extra": null, "gates": ["a"]}));
        assert_eq!(unknown(&config), ["`gate_scale`", "`gates`"]);
    }
}
