//! `config.json` of every family, in both styles of transformers, to the description that the engine runs.

use mpo::model::description::{Activation, DecoderDescription, NormStyle};
use mpo::model::family::{describe, expected_tensors};
use serde_json::{Value, json};

fn described(config: &Value) -> DecoderDescription {
    describe(config).unwrap_or_else(|error| panic!("{error:#}\n{config:#}"))
}

fn refusal(config: &Value) -> String {
    match describe(config) {
        Ok(description) => panic!("accepted as {description:?}"),
        Err(error) => format!("{error:#}"),
    }
}

/// A small config of `model_type` with `keys` on top.
fn config(model_type: &str, keys: Value) -> Value {
    let mut config = json!({
        "model_type": model_type, "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    });
    merge(&mut config, keys);
    config
}

fn merge(config: &mut Value, keys: Value) {
    for (key, value) in keys.as_object().unwrap() {
        config[key] = value.clone();
    }
}

fn windows(description: &DecoderDescription) -> Vec<Option<usize>> {
    description.layers.iter().map(|layer| layer.window).collect()
}

#[track_caller]
fn assert_close(actual: &[f32], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len());
    for (actual, expected) in actual.iter().zip(expected) {
        // One unit in the last place: PyTorch's vectorised power and the C library's differ by that now and then.
        assert!((f64::from(*actual) - expected).abs() <= expected.abs() * 1.2e-7, "{actual} is not {expected}");
    }
}

/// What transformers gives to `nn.Embedding` as `padding_idx`, Gemma's own default included.
#[test]
fn the_padding_token_is_that_of_transformers() {
    let padding = |model_type, keys| described(&config(model_type, keys)).padding_token;
    assert_eq!(padding("llama", json!({})), None);
    assert_eq!(padding("llama", json!({"pad_token_id": 2})), Some(2));
    assert_eq!(padding("llama", json!({"pad_token_id": -1})), Some(95));
    assert_eq!(padding("gemma2", json!({})), Some(0));
    assert_eq!(padding("gemma2", json!({"pad_token_id": null})), None);
    assert!(refusal(&config("qwen2", json!({"pad_token_id": "<pad>"}))).contains("`pad_token_id` should be a whole number"));
}

#[test]
fn llama_in_both_styles_is_one_description() {
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64});
    let version_4 = config("llama", json!({"head_dim": 16, "rope_theta": 10000.0, "rope_scaling": scaling, "torch_dtype": "bfloat16"}));
    let mut parameters = scaling.clone();
    parameters["rope_theta"] = json!(10000.0);
    let version_5 = config("llama", json!({"head_dim": 16, "rope_parameters": parameters, "dtype": "bfloat16"}));
    let description = described(&version_4);
    assert_eq!(description, described(&version_5));
    assert_eq!(description.norm_style, NormStyle::Plain);
    assert_eq!(description.activation, Activation::Silu);
    assert_eq!(description.query_scale, 0.25);
    assert!(!description.tied_embeddings && !description.query_key_value_bias && !description.mlp_bias);
    // transformers 5.23: LlamaRotaryEmbedding(LlamaConfig(hidden_size=64, num_attention_heads=4, rope_parameters=dict(rope_type="llama3",
    //   rope_theta=1e4, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64))).inv_freq.tolist()
    // Channels 0 stays, 1 and 2 are blended, the rest are divided by 8.
    let expected = [
        1.0,
        0.24438458681106567,
        0.013042256236076355,
        0.0039528473280370235,
        0.0012499999720603228,
        0.00039528473280370235,
        0.0001250000059371814,
        3.9528473280370235e-05,
    ];
    assert_close(&description.ropes[0].inverse_frequencies, &expected);
}

#[test]
fn llama_reads_linear_scaling_biases_and_ties() {
    // The oldest style: `type` instead of `rope_type`.
    let description = described(&config(
        "llama",
        json!({"rope_scaling": {"type": "linear", "factor": 4.0}, "attention_bias": true, "mlp_bias": true, "tie_word_embeddings": true}),
    ));
    assert_close(&description.ropes[0].inverse_frequencies, &[0.25, 0.02500000037252903, 0.0025, 0.00025]);
    assert!(description.query_key_value_bias && description.output_bias && description.mlp_bias && description.tied_embeddings);
    let names: Vec<String> = expected_tensors(&description).into_iter().map(|(name, _)| name).collect();
    for name in ["model.layers.3.self_attn.o_proj.bias", "model.layers.0.mlp.down_proj.bias", "model.norm.weight"] {
        assert!(names.iter().any(|other| other == name), "{name} is not in {names:?}");
    }
    assert!(!names.iter().any(|name| name == "lm_head.weight"));
}

#[test]
fn absent_keys_take_the_defaults_of_transformers() {
    let llama = described(&json!({"model_type": "llama"}));
    assert_eq!((llama.hidden_size, llama.n_heads, llama.n_kv_heads, llama.head_dim, llama.layers.len()), (4096, 32, 32, 128, 32));
    assert_eq!(llama.norm_eps, 1e-6);
    // A text_config taken out of a multimodal Gemma 3 says no more than this.
    let gemma = described(&json!({"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}));
    assert_eq!((gemma.vocab_size, gemma.n_heads, gemma.n_kv_heads, gemma.head_dim), (262_208, 8, 4, 256));
    assert_eq!((gemma.tied_embeddings, gemma.query_scale), (true, 1.0 / 16.0));
}

#[test]
fn mistral_has_one_window_or_none() {
    assert_eq!(windows(&described(&config("mistral", json!({"sliding_window": 7})))), [Some(7); 4]);
    assert_eq!(windows(&described(&config("mistral", json!({"sliding_window": null})))), [None; 4]);
    assert_eq!(windows(&described(&config("mistral", json!({})))), [Some(4096); 4]);
}

#[test]
fn gemma2_has_caps_scales_four_norms_and_alternating_windows() {
    let version_4 = config(
        "gemma2",
        json!({"head_dim": 16, "query_pre_attn_scalar": 64, "sliding_window": 32, "rope_theta": 10000.0,
        "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}),
    );
    let mut version_5 = config(
        "gemma2",
        json!({"head_dim": 16, "query_pre_attn_scalar": 64, "sliding_window": 32,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    );
    let types = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"];
    version_5["layer_types"] = json!(types);
    let description = described(&version_4);
    assert_eq!(description, described(&version_5));
    assert_eq!(windows(&description), [Some(32), None, Some(32), None]);
    assert_eq!((description.attention_soft_cap, description.logit_soft_cap), (Some(50.0), Some(30.0)));
    assert_eq!((description.query_scale, description.embedding_scale), (0.125, Some(32f64.sqrt())));
    assert_eq!((description.norm_style, description.activation), (NormStyle::OnePlus, Activation::GeluTanh));
    let norms =
        expected_tensors(&description).into_iter().filter(|(name, _)| name.starts_with("model.layers.0.") && name.contains("layernorm"));
    let norms: Vec<String> = norms.map(|(name, _)| name.replace("model.layers.0.", "")).collect();
    let in_forward_order =
        ["input", "post_attention", "pre_feedforward", "post_feedforward"].map(|name| format!("{name}_layernorm.weight"));
    assert_eq!(norms, in_forward_order);
    // null switches a cap off, which is not the same as leaving it out.
    assert_eq!(described(&config("gemma2", json!({"attn_logit_softcapping": null}))).attention_soft_cap, None);
}

#[test]
fn gemma3_has_a_rope_for_global_and_one_for_local_layers() {
    let version_4 = config(
        "gemma3_text",
        json!({"num_hidden_layers": 7, "head_dim": 8, "sliding_window": 16, "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window_pattern": 6}),
    );
    let mut layer_types = vec!["sliding_attention"; 7];
    layer_types[5] = "full_attention";
    let version_5 = config(
        "gemma3_text",
        json!({"num_hidden_layers": 7, "head_dim": 8, "sliding_window": 16, "layer_types": layer_types,
        "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}}),
    );
    let description = described(&version_4);
    assert_eq!(description, described(&version_5));
    assert_eq!(windows(&description), [Some(16), Some(16), Some(16), Some(16), Some(16), None, Some(16)]);
    let ropes = |layer: usize| &description.ropes[description.layers[layer].rope].inverse_frequencies;
    // transformers 5.23: Gemma3RotaryEmbedding(Gemma3TextConfig(head_dim=8, rope_scaling=dict(rope_type="linear", factor=8.0)))
    assert_close(ropes(5), &[0.125, 0.0039528473280370235, 0.0001250000059371814, 3.9528467823402025e-06]);
    assert_close(ropes(0), &[1.0, 0.10000000149011612, 0.009999999776482582, 0.0010000000474974513]);
    assert!(description.query_key_norm);
    assert_eq!((description.attention_soft_cap, description.logit_soft_cap), (None, None));
}

#[test]
fn qwen2_has_biases_on_query_key_and_value_and_honours_its_windows() {
    // Checkpoints name a `sliding_window` that is switched off.
    let plain = described(&config("qwen2", json!({"sliding_window": 131072, "max_window_layers": 2, "use_sliding_window": false})));
    assert_eq!(windows(&plain), [None; 4]);
    assert!(plain.query_key_value_bias && !plain.output_bias);
    let sliding = config("qwen2", json!({"sliding_window": 8, "max_window_layers": 2, "use_sliding_window": true}));
    assert_eq!(windows(&described(&sliding)), [None, None, Some(8), Some(8)]);
    let names: Vec<String> = expected_tensors(&plain).into_iter().map(|(name, _)| name).collect();
    assert!(names.contains(&"model.layers.0.self_attn.v_proj.bias".to_owned()));
    assert!(!names.contains(&"model.layers.0.self_attn.o_proj.bias".to_owned()));
}

#[test]
fn qwen3_norms_query_and_key_over_a_head_size_of_its_own() {
    let description = described(&config("qwen3", json!({"rope_theta": 1000000})));
    assert_eq!((description.head_dim, description.query_key_norm, description.query_key_value_bias), (128, true, false));
    let tensors = expected_tensors(&description);
    let shape = |name: &str| &tensors.iter().find(|(other, _)| other == name).unwrap().1;
    assert_eq!(shape("model.layers.0.self_attn.q_norm.weight"), &[128]);
    assert_eq!(shape("model.layers.0.self_attn.q_proj.weight"), &[512, 32]);
    assert_eq!(shape("model.layers.0.self_attn.k_proj.weight"), &[256, 32]);
    assert_eq!(shape("model.layers.0.self_attn.o_proj.weight"), &[32, 512]);
    assert_eq!(shape("lm_head.weight"), &[96, 32]);
}

#[test]
fn what_is_not_computed_exactly_is_refused_by_name() {
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768});
    for (config, words) in [
        (json!({"model_type": "phi3"}), "`phi3`, which is not supported; supported are llama, mistral, gemma2, gemma3_text, qwen2, qwen3"),
        (json!({"model_type": "gemma3"}), "only its text part, `gemma3_text`"),
        (json!({"architectures": ["LlamaForCausalLM"]}), "has no `model_type`"),
        (json!([1]), "not a JSON object"),
        (config("qwen2", json!({"rope_scaling": yarn})), "rope type `yarn`"),
        (config("llama", json!({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}})), "rope type `dynamic`"),
        (config("llama", json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}})), "needs `low_freq_factor`"),
        (config("llama", json!({"hidden_act": "relu2"})), "`hidden_act` is `relu2`"),
        (config("gemma2", json!({"hidden_activation": "quick_gelu"})), "`hidden_activation` is `quick_gelu`"),
        (config("llama", json!({"quantization_config": {"bits": 4}})), "`quantization_config` is set"),
        (config("qwen2", json!({"dual_chunk_attention_config": {}})), "`dual_chunk_attention_config`"),
        (config("qwen3", json!({"num_experts": 8})), "mixtures of experts"),
        (config("llama", json!({"partial_rotary_factor": 0.5})), "`partial_rotary_factor` is 0.5"),
        (config("llama", json!({"rope_interleaved": true})), "`rope_interleaved`"),
        (config("gemma3_text", json!({"use_bidirectional_attention": true})), "only causal attention"),
        (config("gemma3_text", json!({"attn_logit_softcapping": 50.0})), "`attn_logit_softcapping` is set"),
        (config("gemma3_text", json!({"rope_parameters": {"rope_type": "default"}})), "an object `full_attention`"),
        (config("gemma2", json!({"layer_types": ["full_attention"]})), "`layer_types` has 1 entries for 4 layers"),
        (config("gemma2", json!({"layer_types": ["chunked_attention", "a", "b", "c"]})), "chunked_attention"),
        (config("qwen2", json!({"layer_types": vec!["sliding_attention"; 4]})), "`use_sliding_window` is false"),
        (config("mistral", json!({"layer_types": vec!["full_attention"; 4]})), "Ministral"),
        (config("llama", json!({"num_key_value_heads": 3})), "`num_attention_heads` (4) is not a multiple of `num_key_value_heads` (3)"),
        (config("llama", json!({"hidden_size": 30})), "`hidden_size` (30) is not a multiple"),
        (config("llama", json!({"head_dim": 7})), "`head_dim` is 7"),
        (config("llama", json!({"vocab_size": "many"})), "`vocab_size` should be a whole number, is \"many\""),
        (config("llama", json!({"vocab_size": 0})), "`vocab_size` is 0"),
    ] {
        let message = refusal(&config);
        assert!(message.contains(words), "{message:?} does not say {words:?}");
    }
}
