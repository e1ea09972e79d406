//! Defaults of the families, and what is refused by name.

use serde_json::json;

use super::*;

pub(super) fn parse(config: &Value) -> Result<BackboneConfig> {
    BackboneConfig::parse(Path::new("config.json"), config.to_string().as_bytes())
}

/// The settings that every family has, on top of what the case sets.
fn with(family: &str, fields: &Value) -> Value {
    let (architecture, model_type) = match family {
        "llama" => ("LlamaForCausalLM", "llama"),
        "mistral" => ("MistralForCausalLM", "mistral"),
        "qwen2" => ("Qwen2ForCausalLM", "qwen2"),
        _ => ("Qwen3ForCausalLM", "qwen3"),
    };
    let mut config = json!({
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 32,
        "vocab_size": 37,
    });
    config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    config
}

fn refused(family: &str, fields: &Value, parts: &[&str]) {
    let error = parse(&with(family, fields)).unwrap_err().to_string();
    assert!(error.starts_with("config.json: "), "{error}");
    for part in parts {
        assert!(error.contains(part), "no {part:?} in: {error}");
    }
}

fn windows(family: &str, fields: &Value) -> Vec<Option<usize>> {
    let layers = parse(&with(family, fields)).unwrap().layers;
    layers.into_iter().map(|layer| layer.sliding_window).collect()
}

/// Of a config that names no more than the sizes: what transformers' config classes say.
#[test]
fn defaults_are_those_of_the_family() {
    let cases = [
        ("llama", (32, 2, 2048), (false, false, false), None),
        ("mistral", (8, 2, 131_072), (false, false, false), Some(4096)),
        ("qwen2", (32, 2, 32_768), (true, false, false), None),
        ("qwen3", (32, 128, 32_768), (false, false, true), None),
    ];
    for (family, sizes, flags, window) in cases {
        let config = parse(&with(family, &json!({}))).unwrap();
        let read = (config.layers[0].num_kv_heads, config.head_dim, config.max_position_embeddings);
        assert_eq!(read, sizes, "{family}");
        assert_eq!((config.qkv_bias, config.o_bias, config.qk_norm), flags, "{family}");
        assert_eq!(windows(family, &json!({})), vec![window; 4], "{family}");
        assert_eq!((config.rms_norm_eps, config.rope_theta), (1e-6, 10_000.0), "{family}");
        assert_eq!(config.rope_scaling, RopeScaling::None, "{family}");
        assert!(!config.tie_word_embeddings && config.eos_token_ids.is_empty(), "{family}");
        let null = with(family, &json!({ "num_key_value_heads": null }));
        assert_eq!(
            parse(&null).unwrap().layers[0].num_kv_heads,
            32,
            "{family}: null is as many as queries"
        );
    }
}

#[test]
fn biases_are_those_of_the_family() {
    for (family, biases) in [("llama", (true, true)), ("qwen3", (true, true))] {
        let config = parse(&with(family, &json!({ "attention_bias": true }))).unwrap();
        assert_eq!((config.qkv_bias, config.o_bias), biases, "{family}");
    }
    let config = parse(&with("qwen2", &json!({ "attention_bias": false }))).unwrap();
    assert_eq!((config.qkv_bias, config.o_bias), (true, false));
    refused("mistral", &json!({ "attention_bias": true }), &["attention_bias", "not supported"]);
    refused("llama", &json!({ "attention_bias": "no" }), &["attention_bias", "not a bool"]);
    for family in ["llama", "mistral", "qwen2", "qwen3"] {
        refused(family, &json!({ "mlp_bias": true }), &["mlp_bias = true not supported"]);
    }
}

#[test]
fn windows_are_those_of_the_family() {
    assert_eq!(windows("mistral", &json!({ "sliding_window": null })), [None; 4]);
    assert_eq!(windows("mistral", &json!({ "sliding_window": 8 })), [Some(8); 4]);
    for family in ["qwen2", "qwen3"] {
        let deep = json!({
            "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 3,
        });
        assert_eq!(windows(family, &deep), [None, None, None, Some(8)]);
        let all = json!({ "use_sliding_window": true, "max_window_layers": 0 });
        assert_eq!(windows(family, &all), [Some(4096); 4]);
        let no = json!({ "use_sliding_window": true, "sliding_window": 8 });
        assert_eq!(windows(family, &no), [None; 4], "from layer 28 on");
        let null = json!({
            "use_sliding_window": true, "sliding_window": null, "max_window_layers": 0,
        });
        assert_eq!(windows(family, &null), [None; 4]);
        let off = json!({ "sliding_window": 8, "max_window_layers": 0 });
        assert_eq!(windows(family, &off), [None; 4]);
        let types = json!({
            "use_sliding_window": true, "sliding_window": 8, "max_window_layers": 0,
            "layer_types":
                ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        });
        assert_eq!(windows(family, &types), [Some(8), None, Some(8), None]);
    }
}

#[test]
fn windows_that_can_not_be_are_refused_by_name() {
    let full = "full_attention";
    let sliding = "sliding_attention";
    refused("llama", &json!({ "sliding_window": 8 }), &["sliding_window 8 not supported"]);
    for family in ["mistral", "qwen2"] {
        refused(family, &json!({ "sliding_window": 0 }), &["sliding_window = 0 is not an integer"]);
        let chunked = json!({ "layer_types": [full, "chunked_attention", full, full] });
        refused(family, &chunked, &["layer_types"]);
    }
    refused("qwen2", &json!({ "layer_types": [full] }), &["layer_types", "num_hidden_layers = 4"]);
    refused("qwen2", &json!({ "layer_types": full }), &["layer_types", "num_hidden_layers = 4"]);
    let no_window = json!({ "sliding_window": 8, "layer_types": [full, full, sliding, full] });
    refused("qwen2", &no_window, &["layer_types", "use_sliding_window"]);
    refused("llama", &no_window, &["sliding_window 8 not supported"]);
    let mixed = json!({ "layer_types": [full, full, sliding, full] });
    refused("mistral", &mixed, &["layer_types", "the same window on all layers"]);
    let fields = json!({ "use_sliding_window": "yes" });
    refused("qwen3", &fields, &["use_sliding_window", "not a bool"]);
    let fields = json!({ "use_sliding_window": true, "max_window_layers": -1 });
    refused("qwen3", &fields, &["max_window_layers = -1 is not an integer in 0..="]);
}

/// Old and new spelling, and what is beside it.
#[test]
fn rope_settings_of_both_generations() {
    let read = |fields| {
        let config = parse(&with("llama", &fields)).unwrap();
        (config.rope_theta, config.rope_scaling)
    };
    let linear = RopeScaling::Linear { factor: 4.0 };
    let cases = [
        (json!({ "rope_theta": 5, "rope_scaling": null }), (5.0, RopeScaling::None)),
        (json!({ "rope_theta": 5, "rope_scaling": {} }), (5.0, RopeScaling::None)),
        (json!({ "rope_scaling": { "type": "linear", "factor": 4.0 } }), (10_000.0, linear)),
        (json!({ "rope_scaling": { "rope_type": "linear", "factor": 4 } }), (10_000.0, linear)),
        (
            json!({ "rope_parameters": { "rope_type": "default", "rope_theta": 7.0 } }),
            (7.0, RopeScaling::None),
        ),
        (
            json!({
                "rope_theta": 5,
                "rope_parameters": { "rope_type": "linear", "factor": 4.0, "rope_theta": 7.0 },
            }),
            (7.0, linear),
        ),
    ];
    for (fields, expected) in cases {
        assert_eq!(read(fields.clone()), expected, "{fields}");
    }
    let llama3 = json!({
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "rope_theta": 500_000.0,
    });
    let expected = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 2048,
    };
    for name in ["rope_scaling", "rope_parameters"] {
        assert_eq!(read(json!({ name: llama3 })), (500_000.0, expected), "{name}");
    }
}

#[test]
fn rope_settings_that_can_not_be_run_are_refused_by_name() {
    for kind in ["dynamic", "yarn", "longrope", "su", "mrope", "proportional"] {
        for name in ["type", "rope_type"] {
            let fields = json!({ "rope_scaling": { name: kind, "factor": 2.0 } });
            refused("qwen2", &fields, &["rope_scaling.rope_type", kind, "not supported"]);
        }
        let fields = json!({ "rope_parameters": { "rope_type": kind, "rope_theta": 1e6 } });
        refused("qwen3", &fields, &["rope_parameters.rope_type", kind, "not supported"]);
    }
    let cases = [
        (json!({ "partial_rotary_factor": 0.5 }), "partial_rotary_factor 0.5 not supported"),
        (json!({ "rope_scaling": "linear" }), "rope_scaling = \"linear\" is not an object"),
        (json!({ "rope_scaling": { "factor": 2.0 } }), "factor has no rope_scaling.rope_type"),
        (json!({ "rope_scaling": { "type": "linear" } }), "has no \"rope_scaling.factor\""),
        (json!({ "rope_scaling": { "type": "linear", "factor": 0 } }), "not a number >= 1"),
        (json!({ "rope_scaling": { "type": "linear", "factor": 1e300 } }), "not a number >= 1"),
        (json!({ "rope_scaling": { "type": "linear", "factor": [2] } }), "is not a number"),
        (json!({ "rope_parameters": { "rope_theta": 0 } }), "not a positive number"),
        (
            json!({ "rope_parameters": { "partial_rotary_factor": "0.5" } }),
            "rope_parameters.partial_rotary_factor \"0.5\" not supported",
        ),
        (
            json!({ "rope_parameters": { "full_attention": { "rope_type": "default" } } }),
            "rope_parameters.full_attention of its own not supported",
        ),
        (
            json!({ "rope_parameters": { "rope_theta": 1 }, "rope_scaling": { "type": "linear" } }),
            "has both rope_scaling and rope_parameters",
        ),
    ];
    for (fields, part) in cases {
        refused("llama", &fields, &[part]);
    }
    let llama3 = |field: &str, value: Value| {
        let mut rope = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        });
        rope[field] = value;
        json!({ "rope_scaling": rope })
    };
    refused("llama", &llama3("low_freq_factor", json!(4.0)), &["0 < low < high"]);
    refused("llama", &llama3("low_freq_factor", json!(0)), &["0 < low < high"]);
    refused("llama", &llama3("high_freq_factor", json!(null)), &["has no", "high_freq_factor"]);
    let field = "original_max_position_embeddings";
    refused("llama", &llama3(field, json!(0)), &[field, "is not an integer in 1..="]);
}
