//! The files of a model's folder, and of an adapter's.

use super::{Reader, copy, file, of_file, texts};
use crate::fuzz::shape::Shape;
use crate::template::byte_tokenizer;
use mpo::adapter::peft;
use mpo::config::DataConfig;
use mpo::data::pair::{Message, Role};
use mpo::data::template::Template;
use mpo::data::tokenizer_config::TokenizerConfig;
use mpo::generate::{Codec, Prompt};
use mpo::model::family::{check_weights, describe_folder};
use mpo::model::weights::{self, Checkpoint, SavedDtype, TensorToSave};
use serde_json::{Value, json};
use std::path::Path;

const MODEL: &[&str] = &[
    "llama",
    "gemma2",
    "gemma3_text",
    "mistral",
    "qwen2",
    "qwen3",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rope_scaling",
    "rope_parameters",
    "rope_type",
    "factor",
    "llama3",
    "linear",
    "yarn",
    "sliding_window",
    "layer_types",
    "full_attention",
    "sliding_attention",
    "tie_word_embeddings",
    "rms_norm_eps",
    "attn_logit_softcapping",
    "quantization_config",
    "eos_token_id",
    "hidden_act",
];

const TOKENIZER: &[&str] = &[
    "bos_token",
    "eos_token",
    "pad_token",
    "unk_token",
    "chat_template",
    "content",
    "add_bos_token",
    "default",
    "<s>",
    "</s>",
    "<|end|>",
    "ByteLevel",
    "Split",
    "Regex",
    "(a+)+$",
    "(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}",
    "Unigram",
    "WordPiece",
    "BPE",
    "Metaspace",
    "Replace",
    "Prepend",
    "NFC",
    "Precompiled",
    "TemplateProcessing",
    "Sequence",
    "byte_fallback",
    "merges",
    "vocab",
    "dropout",
    "special",
    "normalized",
    "single_word",
];

const JINJA: &[&str] = &[
    "{{ ",
    " }}",
    "{% ",
    " %}",
    "{# ",
    " #}",
    "{%- if messages %}",
    "{% endif %}",
    "{% for m in messages %}",
    "{% endfor %}",
    "{% for i in range(100000000) %}",
    "{{ 'x' * 1000000000 }}",
    "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}",
    "{% set ns = namespace(x=1) %}",
    "{% include 'template' %}",
    "{% extends 'template' %}",
    "{% import 'template' as t %}",
    " | tojson(indent=99999999)",
    " | trim",
    " | length",
    " | replace('', 'xxxxxxxx')",
    " | join",
    " | list",
    " | sort",
    " | batch(0)",
    " | slice(0)",
    " | round(99)",
    " | format",
    " ** 999999999",
    " // 0",
    " % 0",
    " ~ ",
    "[::0]",
    "[-1]",
    "[99999999999:]",
    ".split('')",
    ".strip(messages)",
    ".format(messages)",
    ".count('')",
    "loop.index0",
    "loop.previtem",
    "loop.depth",
    "cycler()",
    "lipsum(100000)",
    "range(0, 10, 0)",
    "raise_exception('no')",
    "strftime_now('%Y%Q%-')",
    "bos_token",
    "add_generation_prompt",
    "{% generation %}",
    "{% endgeneration %}",
    "{% break %}",
    "{% call m() %}{% endcall %}",
    "{% raw %}",
    "{% endraw %}",
    "{% filter upper %}",
    "{% endfilter %}",
    "{% set x %}",
    "{% endset %}",
    "'",
    "\"",
    "\\x",
    "9223372036854775807",
    "-",
];

pub fn readers() -> Vec<Reader> {
    let mut all = of_tokenizer();
    all.push(Reader::new(
        "model-config",
        Shape::Json,
        || {
            ["llama", "gemma2", "gemma3_text", "mistral", "qwen2", "qwen3", "llama_linear"]
                .iter()
                .flat_map(|name| {
                    [file(&format!("tests/fixtures/{name}/config.json")), file(&format!("tests/fixtures/{name}/config.v4.json"))]
                })
                .collect()
        },
        MODEL,
        |folder| {
            save(&folder.join("weights"), 0);
            let weights = Checkpoint::open(&folder.join("weights")).unwrap();
            let folder = folder.to_owned();
            of_file(&folder.clone(), "config.json", move |_| {
                let description = describe_folder(&folder)?;
                let fits = check_weights(&description, &weights).err().map(|error| format!("{error:#}").len() < 20_000);
                anyhow::ensure!(fits != Some(false), "{:#}", check_weights(&description, &weights).unwrap_err());
                Ok(format!("{description:?}"))
            })
        },
    ));
    all.extend(of_weights());
    all
}

fn of_tokenizer() -> Vec<Reader> {
    vec![
        Reader::new(
            "tokenizer-config",
            Shape::Json,
            || {
                let older = json!({"bos_token": {"content": "<s>", "special": true}, "eos_token": "</s>", "chat_template": [{"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}"}]});
                vec![file("data/tiny/tokenizer_config.json"), older.to_string().into_bytes()]
            },
            TOKENIZER,
            |folder| {
                let folder = folder.to_owned();
                of_file(&folder.clone(), "tokenizer_config.json", move |_| {
                    let config = TokenizerConfig::read(&folder)?;
                    let rendered = Template::resolve("checkpoint", &folder, &config)?.render(&messages(), true)?;
                    Ok(format!("{config:?} {rendered}"))
                })
            },
        ),
        Reader::new("tokenizer", Shape::Json, tokenizers, TOKENIZER, |folder| {
            let made = byte_tokenizer(&tokenizer_config(), None);
            std::fs::copy(made.path().join("tokenizer_config.json"), folder.join("tokenizer_config.json")).unwrap();
            codec(folder, "tokenizer.json")
        }),
        Reader::new(
            "generation-config",
            Shape::Json,
            || vec![file("data/tiny/generation_config.json"), b"{\"eos_token_id\": [1, 2]}".to_vec()],
            MODEL,
            |folder| {
                copy_tokenizer(folder);
                codec(folder, "generation_config.json")
            },
        ),
        Reader::new("template", Shape::Bytes, templates, JINJA, |_| {
            let config = TokenizerConfig { bos: Some("<s>".into()), eos: Some("</s>".into()), ..TokenizerConfig::default() };
            Box::new(move |input| {
                let template = Template::new("the template", &String::from_utf8_lossy(input), &config)?;
                Ok(format!("{} {}", template.render(&messages(), true)?, template.render(&messages()[..1], false)?))
            })
        }),
    ]
}

fn of_weights() -> Vec<Reader> {
    vec![
        Reader::new(
            "weights",
            Shape::Safetensors,
            || vec![saved(0), saved(2)],
            &["F32", "BF16", "F16", "I64", "F8_E4M3", "dtype", "shape", "data_offsets", "__metadata__"],
            |folder| {
                let folder = folder.to_owned();
                Box::new(move |input| {
                    // Read from a mapping, so another file for each: to change a mapped one is the user's error.
                    let path = folder.join("model.safetensors");
                    let _ = std::fs::remove_file(&path);
                    std::fs::write(&path, input)?;
                    values(&Checkpoint::open(&folder)?)
                })
            },
        ),
        Reader::new(
            "weights-index",
            Shape::Json,
            || {
                vec![json!({"metadata": {"total_size": 48}, "weight_map": {"a0": "one.safetensors", "b0": "one.safetensors", "a1": "two.safetensors", "b1": "two.safetensors"}}).to_string().into_bytes()]
            },
            &[
                "weight_map",
                "metadata",
                "one.safetensors",
                "two.safetensors",
                "../one.safetensors",
                "/dev/zero",
                "a0",
                "model.safetensors.index.json",
                ".",
            ],
            |folder| {
                for (number, name) in ["one.safetensors", "two.safetensors"].into_iter().enumerate() {
                    std::fs::write(folder.join(name), saved(number)).unwrap();
                }
                let folder = folder.to_owned();
                of_file(&folder.clone(), weights::INDEX_FILE, move |_| values(&Checkpoint::open(&folder)?))
            },
        ),
        Reader::new(
            "adapter-config",
            Shape::Json,
            || ["llama", "gemma2", "qwen2"].map(|name| file(&format!("tests/fixtures/peft/{name}/adapter_config.json"))).to_vec(),
            &[
                "r",
                "lora_alpha",
                "use_rslora",
                "peft_type",
                "LORA",
                "target_modules",
                "all-linear",
                "base_model_name_or_path",
                "revision",
                "bias",
                "use_dora",
                "modules_to_save",
                "init_lora_weights",
            ],
            |folder| {
                copy(folder, "tests/fixtures/peft/llama", &["adapter_model.safetensors"]);
                adapter(folder, "adapter_config.json")
            },
        ),
        Reader::new(
            "adapter-weights",
            Shape::Safetensors,
            || vec![file("tests/fixtures/peft/llama/adapter_model.safetensors")],
            &["lora_A", "lora_B", "base_model.model.", "weight", "F32"],
            |folder| {
                copy(folder, "tests/fixtures/peft/llama", &["adapter_config.json"]);
                adapter(folder, "adapter_model.safetensors")
            },
        ),
    ]
}

fn adapter(folder: &Path, name: &'static str) -> super::Read {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/llama");
    let (folder, description) = (folder.to_owned(), describe_folder(&base).unwrap());
    Box::new(move |input| {
        let path = folder.join(name);
        let _ = std::fs::remove_file(&path);
        std::fs::write(&path, input)?;
        let adapter = peft::open(&folder, &description)?;
        let fits = adapter.check_base("org/name", None, || Ok("ab".into()));
        Ok(format!("{adapter:?} {:?}", fits.map_err(|error| error.to_string())))
    })
}

/// All values of a checkpoint.
fn values(checkpoint: &Checkpoint) -> anyhow::Result<String> {
    let mut text = String::new();
    for name in checkpoint.names() {
        let n_values = checkpoint.shape(name)?.iter().product::<usize>();
        let mut values = vec![0.0; n_values];
        checkpoint.read_into(name, &mut values)?;
        text += &format!("{name} {values:?} ");
    }
    Ok(format!("{text} {:?} {}", checkpoint.dtype(), checkpoint.n_parameters()))
}

fn save(folder: &Path, number: usize) {
    std::fs::create_dir_all(folder).unwrap();
    let (a, b) = (format!("a{number}"), format!("b{number}"));
    let tensors = [
        TensorToSave { name: &a, shape: &[2, 3], values: &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], dtype: SavedDtype::F32 },
        TensorToSave { name: &b, shape: &[4], values: &[0.5, -0.5, 0.25, 8.0], dtype: SavedDtype::Bf16 },
    ];
    weights::save(folder, &tensors, u64::MAX).unwrap();
}

fn saved(number: usize) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), number);
    std::fs::read(folder.path().join(weights::SINGLE_FILE)).unwrap()
}

fn messages() -> Vec<Message> {
    let message = |role, content: &str| Message { role, content: content.into() };
    vec![
        message(Role::User, "Where is the aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab umbrella?"),
        message(Role::Assistant, "Bei der Tür. 傘は玄関です。"),
        message(Role::User, "Thanks!"),
    ]
}

fn tokenizer_config() -> Value {
    json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"})
}

fn copy_tokenizer(folder: &Path) {
    let made = byte_tokenizer(&tokenizer_config(), None);
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(made.path().join(name), folder.join(name)).unwrap();
    }
}

/// What makes tokens of text and tells which of them end one.
fn codec(folder: &Path, name: &'static str) -> super::Read {
    std::fs::write(folder.join("config.json"), "{}").unwrap();
    let folder = folder.to_owned();
    of_file(&folder.clone(), name, move |_| {
        let codec = Codec::load(&folder, &DataConfig::default())?;
        let tokens = codec.tokens(&Prompt::Chat(messages()))?;
        let text = codec.tokenizer().decode(&tokens, false).unwrap_or_default();
        Ok(format!("{:?} {tokens:?} {text}", codec.stop_tokens()))
    })
}

/// Of one token a byte; of some words, with what other families put around them.
fn tokenizers() -> Vec<Vec<u8>> {
    let made = byte_tokenizer(&tokenizer_config(), None);
    let special = |id: u32, content: &str| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let words = |model: Value, normalizer: Value, pre_tokenizer: Value| {
        json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [special(0, "<s>"), special(1, "</s>"), special(2, "<|end|>")],
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": null, "model": model,
        })
        .to_string()
        .into_bytes()
    };
    let unigram = json!({"type": "Unigram", "unk_id": 0, "vocab": [["<s>", 0.0], ["</s>", 0.0], ["<|end|>", 0.0], ["▁", -2.0], ["a", -3.0], ["um", -4.5], ["brella", -5.0]], "byte_fallback": false});
    let bpe = json!({"type": "BPE", "dropout": null, "unk_token": "<s>", "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
                     "vocab": {"<s>": 0, "</s>": 1, "<|end|>": 2, "a": 3, "b": 4, "ab": 5, "u": 6}, "merges": [["a", "b"]]});
    let word_piece = json!({"type": "WordPiece", "unk_token": "<s>", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": {"<s>": 0, "</s>": 1, "<|end|>": 2, "the": 3, "##a": 4}});
    let split = json!({"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": "(?i:'s|'t)|\\p{N}{1,3}|\\s+(?!\\S)"}, "behavior": "Isolated", "invert": false}, {"type": "Digits", "individual_digits": true}]});
    let replaced = json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, {"type": "NFC"}]});
    vec![
        std::fs::read(made.path().join("tokenizer.json")).unwrap(),
        words(unigram, replaced, json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true})),
        words(bpe, Value::Null, split),
        words(
            word_piece,
            json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true}),
            json!({"type": "BertPreTokenizer"}),
        ),
    ]
}

fn templates() -> Vec<Vec<u8>> {
    texts(&[
        "{{ bos_token }}{% for message in messages %}{{ '<|start|>' + message['role'] + '\n\n' + message['content'] | trim + '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}",
        "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}{%- for message in loop_messages %}{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{%- endif %}{{ message.role ~ ': ' ~ message.content }}{%- if not loop.last %}{{ eos_token }}{%- endif %}{%- endfor %}",
        "{%- set ns = namespace(last=messages|length - 1, seen=false) %}{%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}{%- if not ns.seen and message.role == 'user' %}{%- set ns.seen = true %}{%- set ns.last = index %}{%- endif %}{%- endfor %}{%- for message in messages %}{%- set parts = message.content.split('</think>') %}<|im_start|>{{ message.role }}\n{{ parts[-1].lstrip('\n') }}<|im_end|>\n{%- endfor %}",
        "{% macro turn(role, text, end=true) %}[{{ role | upper }}] {{ text | replace('a', 'b') }}{% if end %}</s>{% endif %}{% endmacro %}{% for m in messages if m.content %}{{ turn(m.role, m.content, end=not loop.last) }}{% endfor %}{{ strftime_now('%d %b %Y') if false else '' }}{{ {'tools': tools, 'n': [1, 2.5, none]} | tojson }}",
    ])
}
