//! Chat templates as real checkpoints write them, and the tokens that come of them.
//!
//! The templates here are short ones of our own that use the constructs of Llama 3, Gemma, Qwen 3, Mistral and SmolLM. Expected texts
//! were checked against Jinja2 3.1 with the environment of transformers (`trim_blocks`, `lstrip_blocks`, `loopcontrols`).

use mpo::config::{DataConfig, EndOfResponse, OnOverlong};
use mpo::data::encode::{Encoded, Encoder};
use mpo::data::pair::{Message, PreferencePair, PreferenceRow, Role};
use mpo::data::template::Template;
use mpo::data::tokenizer_config::TokenizerConfig;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

pub fn message(role: Role, content: &str) -> Message {
    Message { role, content: content.to_owned() }
}

const SPECIAL: [&str; 4] = ["<s>", "</s>", "<|end|>", "<pad>"];
const BOS: u32 = 256;
const EOS: u32 = 257;
const END: u32 = 258;
const PAD: u32 = 259;

/// A checkpoint folder with a tokenizer of one token a byte (ids 0 to 255 in the order of their GPT-2 letters) and four special tokens.
pub fn byte_tokenizer(config: &Value, template: Option<&str>) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer_json(None).to_string()).unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    if let Some(template) = template {
        std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    }
    folder
}

fn tokenizer_json(post_processor: Option<Value>) -> Value {
    let mut letters: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    letters.sort_unstable();
    let vocab: serde_json::Map<_, _> = letters.iter().enumerate().map(|(id, letter)| (letter.to_string(), json!(id))).collect();
    let added = SPECIAL.iter().enumerate().map(|(i, token)| {
        json!({"id": 256 + i, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
    });
    json!({
        "version": "1.0",
        // What a careless save leaves behind; an encoder must not obey it.
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 259, "pad_type_id": 0, "pad_token": "<pad>"},
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "post_processor": post_processor,
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
                  "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    })
}

/// What Llama's and Gemma's tokenizers do: `<s>` before every text.
fn adds_bos() -> Value {
    let bos = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    let (a, b) = (json!({"Sequence": {"id": "A", "type_id": 0}}), json!({"Sequence": {"id": "B", "type_id": 1}}));
    json!({"type": "TemplateProcessing", "single": [bos, a], "pair": [bos, a, b],
           "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}}})
}

fn tokens_config() -> TokenizerConfig {
    TokenizerConfig { bos: Some("<s>".into()), eos: Some("</s>".into()), ..TokenizerConfig::default() }
}

fn render(source: &str, messages: &[Message], add_generation_prompt: bool) -> String {
    Template::new("test", source, &tokens_config()).unwrap().render(messages, add_generation_prompt).unwrap()
}

fn user(content: &str) -> Message {
    message(Role::User, content)
}

fn assistant(content: &str) -> Message {
    message(Role::Assistant, content)
}

#[test]
fn block_lines_leave_no_trace() {
    let source = "{# head #}\n{% for m in messages %}\n    {% if m.role == 'user' %}\nU {{ m.content }}\n    {% else %}\nA {{ m.content }}\n    {% endif %}\n{% endfor %}\nend\n";
    assert_eq!(render(source, &[user("x"), assistant("y")], false), "U x\nA y\nend");
}

#[test]
fn llama_style_system_block_has_a_fixed_date() {
    let source = "{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now(\"%d %b %Y\") %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = \"\" %}
{%- endif %}
{{- \"Today: \" + date_string + \"\\n\" }}
{%- if tools is not none %}
    {{- raise_exception(\"no tools were given\") }}
{%- endif %}
{{- system_message + \"|\" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '[' + message['role'] + ']' + message['content'] | trim + '|' }}
    {%- endif %}
{%- endfor %}";
    let conversation = [message(Role::System, " Be brief. "), user(" Hello\n")];
    assert_eq!(render(source, &conversation, true), "<s>Today: 26 Jul 2024\nBe brief.|[user]Hello|");
    assert_eq!(
        render("{{ strftime_now('%-d %B %Y, %A, %F %H:%M %-H %%') }}", &[user("x")], true),
        "26 July 2024, Friday, 2024-07-26 00:00 0 %"
    );
}

#[test]
fn gemma_style_template_maps_roles_and_refuses_what_it_cannot_say() {
    let source = "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception(\"roles must alternate\") }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<' + role + '>\\n' + (message['content'] | trim if message['content'] is string else '') + '<end>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<model>\\n' }}{%- endif -%}";
    assert_eq!(
        render(source, &[user(" a "), assistant("b"), user("c")], true),
        "<s><user>\na<end>\n<model>\nb<end>\n<user>\nc<end>\n<model>\n"
    );
    let template = Template::new("gemma-like", source, &tokens_config()).unwrap();
    for (conversation, reason) in
        [(vec![message(Role::System, "s"), user("u")], "System role not supported"), (vec![user("a"), user("b")], "roles must alternate")]
    {
        let error = template.render(&conversation, true).unwrap_err().to_string();
        assert!(error.contains("gemma-like") && error.contains(reason), "{error}");
    }
}

#[test]
fn qwen3_style_template_walks_backwards_and_splits() {
    let source = "{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == \"user\" and message.content is string and not(message.content.startswith('<r>') and message.content.endswith('</r>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- set thought = '' %}
    {%- if message.thought is string %}
        {%- set thought = message.thought %}
    {%- elif '</think>' in content %}
        {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- message.role ~ ':' }}
    {%- if message.role == 'assistant' and loop.index0 > ns.last and (loop.last or thought) %}
        {{- '<think>' + thought.strip('\\n') + '</think>' }}
    {%- endif %}
    {{- content + ';' }}
    {%- if message.tool_calls %}{{- 'tools' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}{{- '<think></think>' }}{%- endif %}";
    let conversation = [user("a"), assistant("<think>\nhm\n</think>\n\nb"), user("<r>x</r>"), assistant("<think>\nah\n</think>\n\nc")];
    assert_eq!(render(source, &conversation, true), "user:a;assistant:<think>hm</think>b;user:<r>x</r>;assistant:<think>ah</think>c;");
    assert_eq!(render(source, &conversation[..3], true), "user:a;assistant:<think>hm</think>b;user:<r>x</r>;");
    assert_eq!(render(source, &[user("a"), assistant("b"), user("c")], true), "user:a;assistant:b;user:c;");
}

#[test]
fn filters_controls_and_generation_blocks() {
    let conversation = [message(Role::System, "s"), user("u1"), assistant("a1"), user("u2")];
    let source = "{%- set users = messages | selectattr('role', 'equalto', 'user') | list %}{{ users | length }} {{ users[-1].content }} {{ users[-1] == messages[-1] }}
{%- for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{% if loop.index == 4 %}{% break %}{% endif %} {{ m.content.upper() }}{% endfor %}
{%- macro shout(text) %}{{ text | upper }}!{% endmacro %} {{ shout('hey') }}
{%- for key, value in {'a': 1}.items() %} {{ key }}={{ value }}{% endfor %} {{ none }} {{ true }} {{ missing }}{{ missing | default('dflt') }} {{ messages[0].get('name', '?') }}";
    assert_eq!(render(source, &conversation, false), "2 u2 True U1 A1 HEY! a=1 None True dflt ?");
    let source = "A\n  {% generation %}\nB\n  {%- endgeneration +%}\nC{%- generation -%} D {%- endgeneration -%} E";
    assert_eq!(render(source, &conversation, false), "A\nB\nCDE");
}

#[test]
fn tojson_is_pythons() {
    let json = |expression: &str| render(&format!("{{{{ {expression} }}}}"), &[user("雨 \"<b>'&\n")], false);
    assert_eq!(json("messages[0] | tojson"), r#"{"role": "user", "content": "雨 \"<b>'&\n"}"#);
    assert_eq!(json("['雨', '🌧'] | tojson(ensure_ascii=true)"), r#"["\u96e8", "\ud83c\udf27"]"#);
    assert_eq!(json("[1, 2.5, true, none, {'a': []}] | tojson"), r#"[1, 2.5, true, null, {"a": []}]"#);
    assert_eq!(json("{'a': [1, {}], 'b': []} | tojson(indent=2)"), "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": []\n}");
    assert_eq!(json("{'a': [1, 2]} | tojson(separators=(',', ':'))"), r#"{"a":[1,2]}"#);
    let template = Template::new("t", "{{ 1 | tojson(sort_keys=true) }}", &tokens_config()).unwrap();
    assert!(template.render(&[user("x")], true).is_err());
}

#[test]
fn built_in_templates_are_those_of_the_released_code() {
    let folder = tempfile::tempdir().unwrap();
    let render = |name: &str, messages: &[Message], add_generation_prompt| {
        Template::resolve(name, folder.path(), &tokens_config()).unwrap().render(messages, add_generation_prompt).unwrap()
    };
    let two_turns = [user(" a "), assistant("b"), user("c")];
    let answered = [user(" a "), assistant(" b\n")];
    assert_eq!(
        render("llama3.1", &two_turns, true),
        "<s><|start_header_id|>user<|end_header_id|>\n\n a <|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nb<|eot_id|>\
         <|start_header_id|>user<|end_header_id|>\n\nc<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    );
    assert!(render("llama3.1", &answered, false).ends_with("assistant<|end_header_id|>\n\n b\n<|eot_id|>"));
    assert_eq!(
        render("gemma", &two_turns, true),
        "<s><start_of_turn>user\n a <end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n<start_of_turn>user\nc<end_of_turn>\n<start_of_turn>model\n"
    );
    assert_eq!(render("gemma", &answered, false), "<s><start_of_turn>user\n a <end_of_turn>\n<start_of_turn>model\n b\n</s>");
    let qwen = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n<|im_start|>user\n a <|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(render("qwen", &two_turns[..1], true), qwen);
    assert_eq!(render("qwen", &answered, false), format!("{qwen} b\n<|im_end|>"));
    assert_eq!(render("qwen", &two_turns, true), format!("{qwen}b<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"));
    assert!(
        render("qwen", &[message(Role::System, "S"), user("a")], true).starts_with("<|im_start|>system\nS<|im_end|>\n<|im_start|>user")
    );
}

#[test]
fn the_checkpoints_template_is_found_where_each_version_keeps_it() {
    let resolve = |choice: &str, config: Value, file: Option<&str>| {
        let folder = byte_tokenizer(&config, file);
        let config = TokenizerConfig::read(folder.path())?;
        Template::resolve(choice, folder.path(), &config)?.render(&[user("x")], true)
    };
    let token = json!({"__type": "AddedToken", "content": "<s>", "lstrip": false});
    assert_eq!(resolve("checkpoint", json!({"chat_template": "one {{ bos_token }}", "bos_token": token}), None).unwrap(), "one <s>");
    let named = json!({"chat_template": [{"name": "tool_use", "template": "two"}, {"name": "default", "template": "three"}]});
    assert_eq!(resolve("checkpoint", named.clone(), None).unwrap(), "three");
    assert_eq!(
        resolve("checkpoint", named, Some("four {{ bos_token }}.")).unwrap(),
        "four .",
        "the file wins, and an absent token is nothing"
    );

    let error = |choice: &str, config: Value| format!("{:#}", resolve(choice, config, None).unwrap_err());
    let message = error("checkpoint", json!({"bos_token": null}));
    assert!(message.contains("has no chat template") && message.contains("`llama3.1`, `gemma`, `qwen`"), "{message}");
    let message = error("lama3.1", json!({}));
    assert!(message.contains("`data.template` is `lama3.1`"), "{message}");
    let message = error("checkpoint", json!({"chat_template": [{"name": "rag", "template": "x"}]}));
    assert!(message.contains("none is called `default`"), "{message}");
    let message = error("checkpoint", json!({"chat_template": "{% for %}"}));
    assert!(message.contains("tokenizer_config.json` is not valid Jinja"), "{message}");

    let own = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(own.path(), "mine: {{ messages[0].content }}\n").unwrap();
    assert_eq!(resolve(own.path().to_str().unwrap(), json!({}), None).unwrap(), "mine: x");
}

#[test]
fn tokens_missing_from_the_config_come_from_the_special_tokens_map() {
    let folder = byte_tokenizer(&json!({"eos_token": "</s>", "bos_token": null}), None);
    std::fs::write(
        folder.path().join("special_tokens_map.json"),
        json!({"bos_token": {"content": "<s>"}, "eos_token": "<|end|>"}).to_string(),
    )
    .unwrap();
    let config = TokenizerConfig::read(folder.path()).unwrap();
    assert_eq!((config.bos.as_deref(), config.eos.as_deref(), config.pad), (Some("<s>"), Some("</s>"), None));
}

// From here on: tokens. `>` introduces the answer, `<|end|>` and a newline end it.

const TRIMMING: &str = "{{ bos_token }}{% for m in messages %}{{ '>' if m.role == 'assistant' else '<' }}{{ m.content | trim }}{{ '<|end|>\n' }}{% endfor %}{{ '>' if add_generation_prompt }}";

fn pair(chosen: &str, rejected: &str) -> PreferenceRow {
    let side = |lang: &str, chosen: &str| PreferencePair {
        lang: lang.into(),
        prompt: vec![user("Hi")],
        chosen: Some(chosen.into()),
        rejected: Some(rejected.into()),
    };
    PreferenceRow { id: "row 7".into(), dominant: Some(side("en", "Yes.")), target: side("sw", chosen) }
}

fn config() -> Value {
    json!({"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"})
}

/// Token ids of a text without special tokens.
fn bytes(encoder: &Encoder, text: &str) -> Vec<u32> {
    text.as_bytes().iter().map(|byte| encoder.tokenizer().encode_fast(char::from(*byte).to_string(), false).unwrap().get_ids()[0]).collect()
}

#[test]
fn the_response_is_all_that_follows_the_prompt() {
    let folder = byte_tokenizer(&config(), Some(TRIMMING));
    let encoder = Encoder::new(folder.path(), &DataConfig::default()).unwrap();
    let encoded = encoder.tokenize(&pair("  Ndiyo.\n", "La")).unwrap();
    let newline = bytes(&encoder, "\n");
    assert_eq!(encoded.id, "row 7");
    assert_eq!(encoded.target.prompt, [vec![BOS], bytes(&encoder, "<Hi"), vec![END], newline.clone(), bytes(&encoder, ">")].concat());
    assert_eq!(encoded.target.chosen.tokens, [bytes(&encoder, "Ndiyo."), vec![END], newline.clone()].concat(), "the template trims");
    assert_eq!(encoded.target.chosen.n_end_tokens, 2);
    // An answer that ends as the turn does keeps its own newline.
    assert_eq!(encoded.target.rejected.tokens, [bytes(&encoder, "La"), vec![END], newline].concat());
    assert_eq!(encoder.pad_token().unwrap(), PAD);
    assert_eq!(
        encoder.marked(&encoded.target).unwrap(),
        "sw prompt (7 tokens)\n<s><Hi<|end|>\n>\nchosen (8 tokens, 2 of them end the turn)\n⟦Ndiyo.<|end|>\n⟧\n\
         rejected (4 tokens, 2 of them end the turn)\n⟦La<|end|>\n⟧\n"
    );
}

#[test]
fn an_ending_without_special_tokens_is_told_from_the_answer() {
    let folder = byte_tokenizer(
        &config(),
        Some(
            "{% for m in messages %}{{ '\\n' + m.role + ': ' + m.content + '\\n' }}{% endfor %}{{ '\\nassistant: ' if add_generation_prompt }}",
        ),
    );
    let encoder = Encoder::new(folder.path(), &DataConfig::default()).unwrap();
    let encoded = encoder.tokenize(&pair("Ndiyo.\n\n", "La")).unwrap();
    assert_eq!((encoded.target.chosen.tokens.len(), encoded.target.chosen.n_end_tokens), (9, 1));
    assert_eq!((encoded.target.rejected.tokens.len(), encoded.target.rejected.n_end_tokens), (3, 1));
}

#[test]
fn text_that_the_template_puts_before_the_answer_belongs_to_the_response() {
    let source = "{% for m in messages %}{{ m.role[0] + ':' }}{% if m.role == 'assistant' %}{{ '<t></t>' }}{% endif %}{{ m.content + '<|end|>' }}{% endfor %}{{ 'a:' if add_generation_prompt }}";
    let folder = byte_tokenizer(&config(), Some(source));
    let encoder = Encoder::new(folder.path(), &DataConfig::default()).unwrap();
    let encoded = encoder.tokenize(&pair("Ndiyo.", "La")).unwrap();
    assert_eq!(encoded.target.chosen.tokens, [bytes(&encoder, "<t></t>Ndiyo."), vec![END]].concat());
    assert_eq!(encoded.target.chosen.n_end_tokens, 1);
}

#[test]
fn eos_mode_takes_the_bare_content() {
    let folder = byte_tokenizer(&config(), Some(TRIMMING));
    let data = DataConfig { end_of_response: EndOfResponse::EosToken, ..DataConfig::default() };
    let encoder = Encoder::new(folder.path(), &data).unwrap();
    let encoded = encoder.tokenize(&pair(" Ndiyo.\n", "La")).unwrap();
    assert_eq!(encoded.target.chosen.tokens, [bytes(&encoder, " Ndiyo.\n"), vec![EOS]].concat());
    assert_eq!(encoded.target.chosen.n_end_tokens, 1);

    let without_eos = byte_tokenizer(&json!({"bos_token": "<s>"}), Some(TRIMMING));
    let error = Encoder::new(without_eos.path(), &data).err().unwrap().to_string();
    assert!(error.contains("has no `eos_token`"), "{error}");
}

#[test]
fn there_is_exactly_one_bos() {
    let with_bos = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}";
    let without = "{% for m in messages %}{{ m.content }}{% endfor %}";
    for (template, post_processor, add_bos_token, n_bos) in [
        (with_bos, Some(adds_bos()), Value::Null, 1),
        (with_bos, None, Value::Null, 1),
        (without, Some(adds_bos()), Value::Null, 1),
        (without, None, Value::Null, 0),
        (without, None, json!(true), 1),
        (without, Some(adds_bos()), json!(false), 0),
    ] {
        let mut config = config();
        config["add_bos_token"] = add_bos_token;
        let folder = byte_tokenizer(&config, Some(template));
        std::fs::write(folder.path().join("tokenizer.json"), tokenizer_json(post_processor).to_string()).unwrap();
        let encoder = Encoder::new(folder.path(), &DataConfig::default()).unwrap();
        let encoded = encoder.tokenize(&pair("Ndiyo.", "La")).unwrap();
        assert_eq!(encoded.target.prompt, [vec![BOS; n_bos], bytes(&encoder, "Hi")].concat());
        assert_eq!(encoded.target.chosen.tokens, bytes(&encoder, "Ndiyo."));
    }
    let folder = byte_tokenizer(&config(), Some(&format!("{{{{ bos_token }}}}{with_bos}")));
    let error = format!("{:#}", Encoder::new(folder.path(), &DataConfig::default()).unwrap().tokenize(&pair("Ndiyo.", "La")).unwrap_err());
    assert!(error.contains("two beginning-of-sequence tokens"), "{error}");
}

#[test]
fn padding_falls_back_to_the_end_of_turn() {
    let folder = byte_tokenizer(&json!({"eos_token": "</s>"}), Some(TRIMMING));
    assert_eq!(Encoder::new(folder.path(), &DataConfig::default()).unwrap().pad_token().unwrap(), EOS);
    let folder = byte_tokenizer(&json!({}), Some(TRIMMING));
    assert!(Encoder::new(folder.path(), &DataConfig::default()).unwrap().pad_token().is_err());
    let folder = byte_tokenizer(&json!({"pad_token": "<absent>"}), Some(TRIMMING));
    let error = Encoder::new(folder.path(), &DataConfig::default()).unwrap().pad_token().unwrap_err().to_string();
    assert!(error.contains("`pad_token` is `<absent>`, which is not in the tokenizer's vocabulary"), "{error}");
}

#[test]
fn a_template_that_rewrites_the_prompt_is_refused() {
    let source = "{{ messages | length }} turns:{% for m in messages %} {{ m.content }}{% endfor %}";
    let folder = byte_tokenizer(&config(), Some(source));
    let encoder = Encoder::new(folder.path(), &DataConfig::default()).unwrap();
    let error = format!("{:#}", encoder.tokenize(&pair("Ndiyo.", "La")).unwrap_err());
    assert!(error.contains("row `row 7`, dominant pair"), "{error}");
    assert!(error.contains("prompt continues with \"1 turns: Hi\", prompt and response with \"2 turns: Hi"), "{error}");
}

#[test]
fn a_template_that_renders_nothing_is_refused() {
    for (source, reason) in [
        ("{{ messages[1].content if messages | length > 1 }}", "renders nothing for this prompt"),
        ("{{ messages[0].content }}", "does not render the response"),
    ] {
        let folder = byte_tokenizer(&config(), Some(source));
        let encoder = Encoder::new(folder.path(), &DataConfig::default()).unwrap();
        let error = format!("{:#}", encoder.tokenize(&pair("Ndiyo.", "La")).unwrap_err());
        assert!(error.contains("row `row 7`, dominant pair") && error.contains(reason), "{error}");
    }
}

#[test]
fn overlong_rows_are_cut_dropped_or_refused_and_always_named() {
    let folder = byte_tokenizer(&config(), Some(TRIMMING));
    let long = PreferenceRow { id: "long".into(), ..pair(&"n".repeat(30), "La") };
    let wide = {
        let mut wide = pair("Ndiyo.", "La");
        wide.id = "wide".into();
        wide.target.prompt = vec![user(&"h".repeat(40))];
        wide
    };
    let rows = [pair("Ndiyo.", "La"), long.clone(), wide];
    let encoder = |on_overlong| Encoder::new(folder.path(), &DataConfig { max_tokens: 20, on_overlong, ..DataConfig::default() }).unwrap();

    // Prompt: BOS `<Hi` END newline `>`, 7 tokens; 13 remain for the answer and its two end tokens.
    let truncate = encoder(OnOverlong::Truncate);
    let (kept, report) = truncate.encode_all(&rows).unwrap();
    assert_eq!(kept.iter().map(|pair| pair.id.as_str()).collect::<Vec<_>>(), ["row 7", "long"]);
    assert_eq!(kept[1].target.chosen.tokens, [bytes(&truncate, &"n".repeat(11)), vec![END], bytes(&truncate, "\n")].concat());
    assert_eq!(report.cut, [("long".to_owned(), 19)]);
    assert_eq!(report.dropped, [("wide".to_owned(), 45 + 8)]);
    assert_eq!(
        report.to_string(),
        "3 rows: 1 cut to 20 tokens (row `long` (19 tokens lost)), 1 dropped as too long (row `wide` (53 tokens))"
    );
    assert!(matches!(truncate.encode(&long).unwrap(), Encoded::Cut { n_lost: 19, .. }));

    let released = encoder(OnOverlong::Released);
    let (kept, _) = released.encode_all(&rows).unwrap();
    assert_eq!(kept.len(), 3);
    assert_eq!((kept[1].target.chosen.tokens.clone(), kept[1].target.chosen.n_end_tokens), (bytes(&released, &"n".repeat(13)), 0));

    let (kept, report) = encoder(OnOverlong::Drop).encode_all(&rows).unwrap();
    assert_eq!((kept.len(), report.dropped.len(), report.cut.len()), (1, 2, 0));

    let error = encoder(OnOverlong::Error).encode_all(&rows).unwrap_err().to_string();
    assert!(error.contains("2 of 3 rows are longer than `data.max_tokens` = 20: `long` (39 tokens), `wide` (53 tokens)"), "{error}");
    let error = encoder(OnOverlong::Drop).encode_all(&rows[1..]).unwrap_err().to_string();
    assert!(error.contains("no row fits into `data.max_tokens` = 20"), "{error}");
}

#[test]
fn rows_keep_their_order_over_threads() {
    let folder = byte_tokenizer(&config(), Some(TRIMMING));
    let encoder = Encoder::new(folder.path(), &DataConfig::default()).unwrap();
    let rows: Vec<_> = (0..200).map(|i| PreferenceRow { id: i.to_string(), ..pair(&format!("Ndiyo {i}."), "La") }).collect();
    let (kept, report) = encoder.encode_all(&rows).unwrap();
    assert!(kept.iter().enumerate().all(|(i, pair)| pair.id == i.to_string() && *pair == encoder.tokenize(&rows[i]).unwrap()));
    assert_eq!(report.to_string(), "all 200 rows fit into 1024 tokens");
}

#[test]
fn a_missing_tokenizer_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = Encoder::new(folder.path(), &DataConfig::default()).err().unwrap().to_string();
    assert!(error.contains("cannot read the tokenizer") && error.contains("tokenizer.json"), "{error}");
}
