//! Checkpoints, adapters and run folders that other programs wrote, or that were damaged.

use crate::template::{byte_tokenizer, message};
use crate::train::Sandbox;
use mpo::adapter::peft;
use mpo::config::{ComputeDtype, DataConfig};
use mpo::data::encode::Encoder;
use mpo::data::pair::{Message, Role};
use mpo::data::template::Template;
use mpo::data::tokenizer_config::TokenizerConfig;
use mpo::eval::results::run::LoadedRun;
use mpo::model::decoder::{Decoder, Purpose};
use mpo::model::family::{describe, describe_folder};
use mpo::model::weights::{self, SavedDtype, TensorToSave};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

fn user(content: &str) -> Message {
    message(Role::User, content)
}

fn template(source: &str) -> anyhow::Result<Template> {
    Template::new("test", source, &TokenizerConfig::default())
}

fn rendered(source: &str, messages: &[Message]) -> Result<String, String> {
    let rendered = template(source).and_then(|template| template.render(messages, true));
    rendered.map_err(|error| format!("{error:#}"))
}

/// The error of a template that must not render, in one line.
#[track_caller]
fn refused(source: &str) -> String {
    let error = rendered(source, &[user("May I borrow an umbrella?")]).map(|text| text.len()).unwrap_err();
    assert!(error.len() < 1_000 && !error.contains('\n') && !error.contains('\u{1b}'), "{error}");
    error
}

#[test]
fn a_template_that_computes_without_end_is_an_error() {
    let tower = |n: usize| format!("{}x{}", "{% for i in range(90000) %}".repeat(n), "{% endfor %}".repeat(n));
    for source in [
        tower(2),
        tower(9),
        "{% macro m(n) %}{% for i in range(9) %}{{ m(n + 1) }}{% endfor %}{% endmacro %}{{ m(0) }}".into(),
        "{% for i in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}".into(),
    ] {
        let error = refused(&source);
        assert!(["steps", "recursion", "memory", "computing"].iter().any(|limit| error.contains(limit)), "{source}: {error}");
    }
    // Python has it, and it is asked for once only.
    assert!(refused("{% for i in range(10**9) %}{% endfor %}").contains("range"));
}

#[test]
fn a_template_that_grows_is_an_error_and_not_the_end_of_the_program() {
    let doubled = |what: &str| {
        format!(
            "{{% set ns = namespace(a='ab', l=[1]) %}}{{% for i in range(60) %}}{{% set {what} %}}{{% endfor %}}{{{{ ns.a }}}}{{{{ ns.l }}}}"
        )
    };
    for source in [
        doubled("ns.a = ns.a ~ ns.a"),
        doubled("ns.a = ns.a + ns.a"),
        doubled("ns.a = ns.a * 2"),
        doubled("ns.a = [ns.a, ns.a] | join('-')"),
        doubled("ns.a = ns.a.replace('a', ns.a)"),
        doubled("ns.a = ns.a | replace('a', ns.a)"),
        doubled("ns.a = '%s%s' | format(ns.a, ns.a)"),
        doubled("ns.a = (ns.a ~ ns.a) | upper"),
        doubled("ns.l = (ns.l + ns.l) | list"),
        doubled("ns.l = [ns.l, ns.l]"),
        "{{ 'x' | indent(99999999999) }}".into(),
        "{{ 'x' | indent(9223372036854775807) }}".into(),
        "{{ messages | tojson(indent=100000000) }}".into(),
        "{{ ('x,' * 100000).split(',') | join('y' * 100000) }}".into(),
        "{{ 'x' * 90000000 }}".into(),
        "{{ ('x' * 90000) .join(('y,' * 90000).split(',')) }}".into(),
        "{{ '%1000000000d' | format(1) }}".into(),
        "{{ 'x' | center(99999999999) }}".into(),
        "{{ range(99999) | list | batch(99999999999, 'x') | list }}".into(),
        "{{ ([1] * 90000000) | list | length }}".into(),
        "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}{{ ns.x | tojson }}{{ ns.x ~ 'a' }}{{ 1 // 0 }}".into(),
    ] {
        let error = refused(&source);
        assert!(error.starts_with("the chat template `test`"), "{source}: {error}");
    }
}

#[test]
fn a_source_of_endless_nesting_is_an_error_before_it_is_parsed() {
    for source in [
        format!("{{{{ {}x }}}}", "not ".repeat(100_000)),
        format!("{{{{ {}1 }}}}", "-".repeat(100_000)),
        format!("{{{{ 1{} }}}}", "**1".repeat(100_000)),
        format!("{{{{ x{} }}}}", " if x else x".repeat(20_000)),
        format!("{{{{ {}1{} }}}}", "(".repeat(900), ")".repeat(900)),
        format!("{{{{ {}1{} }}}}", "[".repeat(900), "]".repeat(900)),
        format!("{}{}", "{% if true %}".repeat(3_000), "{% endif %}".repeat(3_000)),
        "x".repeat(1 << 20),
    ] {
        let error = refused(&source);
        assert!(["words and signs", "recursion", "KiB"].iter().any(|limit| error.contains(limit)), "{}: {error}", &source[..20]);
    }
    // As wide as it likes to be, and an honest number of branches.
    let branches = format!("{{% if false %}}{}{{% endif %}}", "{% elif messages | length == 0 %}a".repeat(500));
    assert_eq!(rendered(&branches, &[user("x")]).unwrap(), "");
}

#[test]
fn what_a_template_says_in_an_error_cannot_move_the_cursor() {
    let error = refused("{{ raise_exception('\u{1b}[31mRED \u{202e}\n' ~ messages[0].content) }}");
    assert!(error.contains(r"\u{1b}[31mRED \u{202e}") && error.contains("umbrella"), "{error}");
}

/// The constructs of the longest templates in use: tools, a walk backwards, macros, one branch for each role.
const LONG: &str = "{%- macro describe(name, tools) -%}
{%- for tool in tools or [] %}{{ name }}: {{ tool | tojson(indent=4) }}{% endfor -%}
{%- endmacro -%}
{{- bos_token }}
{%- set ns = namespace(last=messages | length - 1, is_open=true, text='') %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.is_open and message.role == 'user' and not (message.content.startswith('<result>') and message.content.endswith('</result>')) %}
        {%- set ns.is_open = false %}{% set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') if '</think>' in message.content else message.content %}
        {{- '<|assistant|>\\n' + content | trim + '<|end|>\\n' }}
    {%- elif message.role == 'system' and loop.first %}{{ '<|system|>\\n' ~ message.content ~ describe('tool', tools) }}
    {%- else %}
        {{- '<|' ~ message['role'] ~ '|>\\n' ~ message['content'] | replace('\\r\\n', '\\n') ~ '<|end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}";

#[test]
fn long_conversations_and_long_templates_render() {
    let turn =
        |i: usize| message(if i.is_multiple_of(2) { Role::User } else { Role::Assistant }, &format!("<think>hm</think>Turn {i} of rain."));
    let many: Vec<Message> = (0..1_201).map(turn).collect();
    let text = rendered(LONG, &many).unwrap();
    assert!(text.contains("Turn 1200 of rain.") && text.ends_with("<|assistant|>\n"));
    let large = rendered(LONG, &[user(&"Bread and buses. ".repeat(1 << 16))]).unwrap();
    assert!(large.len() > 1 << 20);
    let unrolled = format!(
        "{{%- for message in messages %}}{}{{%- endfor %}}ok",
        "{%- if message.role == 'tool' %}{{ message.content }}{% endif %}\n".repeat(300)
    );
    assert!(rendered(&unrolled, &many[..300]).unwrap().ends_with("ok"));
}

/// A checkpoint that `change` edits: `write(name, value)` replaces a JSON file.
fn checkpoint(config: &Value, template: Option<&str>) -> tempfile::TempDir {
    byte_tokenizer(config, template)
}

#[test]
fn a_pad_token_that_only_the_configuration_has_is_not_needed() {
    for added in [json!({}), json!({"260": {"content": "[PAD]", "special": true}})] {
        let folder = checkpoint(
            &json!({"eos_token": "</s>", "pad_token": "[PAD]", "added_tokens_decoder": added}),
            Some("{{ messages[0].content }}"),
        );
        let encoder = Encoder::new(folder.path(), &DataConfig::default()).unwrap();
        assert_eq!(encoder.chat_tokens(&[user("[PAD]")]).unwrap().len(), 5, "text stays text");
        let error = encoder.pad_token().unwrap_err().to_string();
        assert!(error.contains("`[PAD]`"), "{error}");
    }
}

#[test]
fn tokens_that_only_the_configuration_has_stand_behind_the_tokenizer_s() {
    let added = json!({
        "261": {"content": "<|turn|>", "special": true}, "260": {"content": "<|begin|>", "special": true}, "257": {"content": "</s>", "special": true},
    });
    let tokens = json!({"bos_token": "<|begin|>", "eos_token": {"content": "<|turn|>", "lstrip": false}, "added_tokens_decoder": added, "unk_token": "<unk>"});
    let folder = checkpoint(&tokens, Some("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"));
    let encoder = Encoder::new(folder.path(), &DataConfig::default()).unwrap();
    assert_eq!(encoder.eos_token(), Some(261));
    let tokens = encoder.chat_tokens(&[user("a")]).unwrap();
    assert_eq!((tokens.len(), tokens[0], tokens[2]), (3, 260, 261));
    assert_eq!(encoder.tokenizer().token_to_id("<unk>"), Some(262));
    let wrong = checkpoint(&json!({"added_tokens_decoder": {"one": {"content": "x"}}}), Some("x"));
    assert!(format!("{:#}", TokenizerConfig::read(wrong.path()).unwrap_err()).contains("`one`, which is not a token's number"));
}

#[test]
fn chat_templates_are_read_from_every_place_that_has_them() {
    let said = |folder: &Path| -> Result<String, String> {
        let template = TokenizerConfig::read(folder).and_then(|config| Template::resolve("checkpoint", folder, &config));
        template.and_then(|template| template.render(&[user("x")], true)).map_err(|error| format!("{error:#}"))
    };
    let older = checkpoint(&json!({"chat_template": "config"}), None);
    fs::write(older.path().join("chat_template.json"), json!({"chat_template": "json"}).to_string()).unwrap();
    assert_eq!(said(older.path()).unwrap(), "config", "the other is a processor's");
    let processors = checkpoint(&json!({}), None);
    fs::copy(older.path().join("chat_template.json"), processors.path().join("chat_template.json")).unwrap();
    assert_eq!(said(processors.path()).unwrap(), "json");
    fs::write(older.path().join("chat_template.jinja"), "file").unwrap();
    assert_eq!(said(older.path()).unwrap(), "file");

    let named = checkpoint(&json!({"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}), None);
    assert_eq!(said(named.path()).unwrap(), "d");
    let none = checkpoint(&json!({"chat_template": [{"name": "rag", "template": "r"}]}), None);
    fs::create_dir(none.path().join("additional_chat_templates")).unwrap();
    fs::write(none.path().join("additional_chat_templates/tool_use.jinja"), "t").unwrap();
    let error = said(none.path()).unwrap_err();
    assert!(error.contains("`rag`") && error.contains("tool_use.jinja"), "{error}");
    fs::write(none.path().join("additional_chat_templates/default.jinja"), "a").unwrap();
    assert_eq!(said(none.path()).unwrap(), "a");
}

#[test]
fn null_in_a_configuration_is_what_transformers_makes_of_it() {
    let sizes = json!({"vocab_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4});
    for model_type in ["llama", "mistral", "qwen2", "qwen3"] {
        let mut config = sizes.clone();
        for (key, value) in [("model_type", json!(model_type)), ("num_key_value_heads", json!(null)), ("head_dim", json!(null))] {
            config[key] = value;
        }
        for key in [
            "rope_scaling",
            "rope_theta",
            "sliding_window",
            "layer_types",
            "pad_token_id",
            "tie_word_embeddings",
            "attention_bias",
            "rms_norm_eps",
        ] {
            config[key] = json!(null);
        }
        let description = describe(&config).unwrap_or_else(|error| panic!("{model_type}: {error:#}"));
        assert_eq!((description.n_kv_heads, description.head_dim), (4, 4), "{model_type}");
        config["rope_scaling"] = json!({"rope_type": null, "type": "linear", "factor": 2.0});
        let halved = describe(&config).unwrap();
        assert_eq!(halved.ropes[0].inverse_frequencies[0], 0.5 * description.ropes[0].inverse_frequencies[0]);
        config["rope_scaling"] = json!({"type": 1, "factor": 2.0});
        assert!(format!("{:#}", describe(&config).unwrap_err()).contains("rope type should be a string"));
    }
}

fn tiny_config() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64,
    })
}

#[test]
fn sizes_are_compared_with_the_weights_before_anything_is_as_large() {
    let folder = tempfile::tempdir().unwrap();
    crate::support::write_model(folder.path(), &tiny_config(), 1);
    for (key, value, said) in [
        ("hidden_size", json!(1_000_000_000), "`hidden_size` is 1000000000, but all weights together have"),
        ("vocab_size", json!(1_000_000_000_000u64), "`model.embed_tokens.weight` is [32, 8]"),
        ("num_hidden_layers", json!(1_000_000), "tensors, of 2 layers"),
        ("intermediate_size", json!(u64::MAX), "`intermediate_size` is 18446744073709551615"),
        ("head_dim", json!(4_000_000_000u64), "`head_dim`"),
        ("num_attention_heads", json!(1u64 << 62), "`num_attention_heads`"),
        ("num_key_value_heads", json!(1u64 << 40), "`num_key_value_heads`"),
        ("hidden_size", json!(-8), "should be a whole number, is -8"),
        ("hidden_size", json!(8.5), "should be a whole number, is 8.5"),
    ] {
        let mut config = tiny_config();
        config[key] = value;
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let error = format!("{:#}", describe_folder(folder.path()).unwrap_err());
        assert!(error.contains(said), "{key}: {error}");
    }
    // Without weights too.
    assert!(
        format!("{:#}", describe(&json!({"model_type": "llama", "num_hidden_layers": 1_000_000_000})).unwrap_err())
            .contains("no model has more than")
    );
}

#[test]
fn json_of_two_readings_is_an_error_that_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    for (text, said) in [
        (r#"{"model_type": "llama", "hidden_size": 8, "hidden_size": 16}"#.to_owned(), "`hidden_size` stands twice"),
        (format!("{{\"a\": {}1", "[".repeat(100_000)), "recursion limit"),
        (r#"{"model_type": "llama", "rms_norm_eps": 1e999}"#.to_owned(), "out of range"),
        ("\u{feff}{}".to_owned(), "byte order mark"),
    ] {
        fs::write(folder.path().join("config.json"), text).unwrap();
        let error = format!("{:#}", describe_folder(folder.path()).unwrap_err());
        assert!(error.contains(said) && error.contains("config.json"), "{error}");
    }
}

/// The model in `folder` with one weight that is no number.
fn spoil(folder: &Path, tensor: &str, value: f32) {
    let source = weights::Checkpoint::open(folder).unwrap();
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = source
        .names()
        .map(|name| {
            let shape = source.shape(name).unwrap().to_vec();
            let mut values = vec![0.0; shape.iter().product()];
            source.read_into(name, &mut values).unwrap();
            (name.to_owned(), shape, values)
        })
        .collect();
    drop(source);
    let spoilt = tensors.iter_mut().find(|(name, ..)| name == tensor).unwrap();
    spoilt.2[1] = value;
    fs::remove_file(folder.join("model.safetensors")).unwrap();
    let to_save: Vec<_> =
        tensors.iter().map(|(name, shape, values)| TensorToSave { name, shape, values, dtype: SavedDtype::F32 }).collect();
    weights::save(folder, &to_save, u64::MAX).unwrap();
}

#[test]
fn weights_that_are_no_numbers_are_an_error_wherever_nothing_else_would_say_so() {
    for value in [f32::NAN, f32::NEG_INFINITY] {
        let folder = tempfile::tempdir().unwrap();
        crate::support::write_model(folder.path(), &tiny_config(), 1);
        spoil(folder.path(), "model.layers.1.mlp.down_proj.weight", value);
        let error = format!("{:#}", Decoder::load(folder.path(), ComputeDtype::F32, Purpose::Inference).unwrap_err());
        assert!(error.contains("`model.layers.1.mlp.down_proj.weight`") && error.contains("1 of 128 values"), "{error}");
    }
    let work = Sandbox::new();
    let folder = crate::faults::model(&work, "spoilt");
    spoil(&folder, "model.layers.0.mlp.down_proj.weight", f32::NAN);
    let data = folder.join("train.jsonl").display().to_string();
    for arguments in [
        vec!["gaps", "--model", "./spoilt", "--data", &data],
        vec!["check", &data, "--model", "./spoilt", "--gaps"],
        vec!["generate", "--model", "./spoilt", "--prompt", "Rain?", "--max-new-tokens", "2"],
    ] {
        let output = work.mpo(&arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("1 of") && said.contains("NaN or infinite"), "{arguments:?}: {said}");
        assert!(!String::from_utf8_lossy(&output.stdout).contains("Nothing is wrong"));
    }
}

#[test]
fn an_adapter_s_settings_have_their_types_and_its_weights_their_targets() {
    let source = crate::golden::fixtures().join("peft/llama");
    let base = describe_folder(&crate::golden::fixtures().join("llama")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(source.join(file), folder.path().join(file)).unwrap();
    }
    let original: Value = serde_json::from_slice(&fs::read(source.join("adapter_config.json")).unwrap()).unwrap();
    let opened = |key: &str, value: Value| {
        let mut config = original.clone();
        config[key] = value;
        fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
        peft::open(folder.path(), &base).map(drop).map_err(|error| format!("{error:#}"))
    };
    opened("a_key_of_tomorrow", json!(1)).unwrap();
    for (key, value, said) in [
        ("use_rslora", json!("true"), "`use_rslora` is \"true\": it must be true or false"),
        ("r", json!("8"), "`r` is \"8\""),
        ("use_dora", json!(true), "`use_dora`"),
        ("target_modules", json!(["q_proj"]), "`target_modules`"),
        ("layers_to_transform", json!([99]), "the model's layers end at"),
    ] {
        let error = opened(key, value).unwrap_err();
        assert!(error.contains(said) && error.contains(&folder.path().display().to_string()), "{key}: {error}");
    }
}

#[test]
fn a_run_goes_on_without_its_log_and_says_what_is_gone() {
    let work = Sandbox::new();
    work.train("run", &["train.max_steps=4", "checkpoint.every_steps=2"]);
    let run = work.path("run");
    fs::remove_dir_all(run.join("checkpoint-000004")).unwrap();
    fs::remove_file(run.join("metrics.jsonl")).unwrap();
    let output = work.mpo(&["train", "--resume", "run"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("has lost the lines of 2 steps from 1 to 2"), "{said}");
    let lines = crate::train::metrics(&run);
    let steps: Vec<u64> = lines.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [1, 2, 3, 4]);
    assert!(lines[0]["lost"] == true && lines[0]["lr"].is_number() && lines[0].get("loss").is_none() && lines[2]["loss"].is_number());
    let summary: Value = serde_json::from_slice(&fs::read(run.join("summary.json")).unwrap()).unwrap();
    assert_eq!((&summary["lost_steps"], &summary["first_loss"]), (&json!(2), &json!(null)));
}

/// Edits `trainer/state.json` of a checkpoint, and its manifest so that the file is as it was written.
fn edit_state(checkpoint: &Path, edit: impl Fn(&mut Value)) {
    let path = checkpoint.join("trainer/state.json");
    let mut state: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut state);
    fs::write(&path, state.to_string()).unwrap();
    let contents = mpo::digest::contents_of(&path).unwrap();
    edit_manifest(checkpoint, |files| {
        let record = files.iter_mut().find(|file| file["path"] == "trainer/state.json").unwrap();
        (record["bytes"], record["sha256"]) = (json!(contents.bytes), json!(contents.sha256));
    });
}

fn edit_manifest(checkpoint: &Path, edit: impl Fn(&mut Vec<Value>)) {
    let path = checkpoint.join("trainer/manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(manifest["files"].as_array_mut().unwrap());
    fs::write(&path, manifest.to_string()).unwrap();
}

#[test]
fn a_checkpoint_is_whole_and_of_its_run_or_not_used() {
    let work = Sandbox::new();
    work.train("run", &["train.max_steps=3"]);
    let run = work.path("run");
    let checkpoint = run.join("checkpoint-000003");
    for older in ["checkpoint-000001", "checkpoint-000002"].map(|name| run.join(name)).iter().filter(|dir| dir.exists()) {
        fs::remove_dir_all(older).unwrap();
    }
    let kept = |name: &str| (checkpoint.join("trainer").join(name), fs::read(checkpoint.join("trainer").join(name)).unwrap());
    let whole = [kept("state.json"), kept("manifest.json")];
    let resumed = || {
        let output = work.mpo(&["train", "--resume", "run", "--set", "train.max_steps=4"]);
        assert!(!output.status.success());
        for (path, contents) in &whole {
            fs::write(path, contents).unwrap();
        }
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    for file in ["trainer/state.json", "trainer/moments/model.safetensors", "model.safetensors", "config.json"] {
        edit_manifest(&checkpoint, |files| files.retain(|record| record["path"] != file));
        let said = resumed();
        assert!(
            said.contains("does not name") && said.contains(file.rsplit_once("/model").map_or(file, |(folder, _)| folder)),
            "{file}: {said}"
        );
    }
    let edits: [(&str, Value, &str); 6] = [
        ("/step", json!(4), "its folder says another"),
        ("/n_updates", json!(99), "99 updates in 3 steps"),
        ("/n_skipped", json!(7), "7 skipped steps"),
        ("/loader/epoch", json!(7), "its data cursor is at epoch 7"),
        ("/loader/position", json!(1_000_000), "position 1000000"),
        ("/loader/seed", json!(99), "by seed 99"),
    ];
    for (pointer, value, said) in edits {
        edit_state(&checkpoint, |state| *state.pointer_mut(pointer).unwrap() = value.clone());
        let error = resumed();
        assert!(error.contains(said) && error.contains("state.json"), "{pointer}: {error}");
    }
}

#[test]
fn numbers_that_no_metric_has_are_refused_with_their_line() {
    let folder = tempfile::tempdir().unwrap();
    let bench = folder.path().join("toy");
    fs::create_dir(&bench).unwrap();
    fs::write(folder.path().join("run.json"), "{}").unwrap();
    let item = |id: &str| json!({"id": id, "lang": "sw", "kind": "harmful", "turns": ["?"], "doc": null}).to_string();
    fs::write(bench.join("items.jsonl"), [item("1"), item("2")].join("\n")).unwrap();
    let verdict =
        |id: &str, metrics: &str| format!(r#"{{"bench": "toy", "lang": "sw", "id": "{id}", "label": "safe", "metrics": {metrics}}}"#);
    let read = |second: &str| {
        fs::write(bench.join("verdicts-rule.jsonl"), [verdict("1", r#"{"asr": 1}"#), verdict("2", second)].join("\n") + "\n").unwrap();
        LoadedRun::read(folder.path()).map(drop).map_err(|error| format!("{error:#}"))
    };
    read(r#"{"asr": 0.0, "rating": 9.5, "reward_gap": -70}"#).unwrap();
    for (metrics, said) in [
        (r#"{"asr": 1.5}"#, "`asr` of prompt `2` is 1.5: a share lies between 0 and 1"),
        (r#"{"rating": 0}"#, "a rating lies between 1 and 10"),
        (r#"{"asr": null}"#, "expected f64"),
        (r#"{"asr": 0, "asr": 1}"#, "stands twice"),
        (r#"{"asr": 1e400}"#, "out of range"),
    ] {
        let error = read(metrics).unwrap_err();
        assert!(error.contains(said) && error.contains("verdicts-rule.jsonl` line 2"), "{metrics}: {error}");
    }
}
