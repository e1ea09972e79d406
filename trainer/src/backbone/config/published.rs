//! `config.json` of models as published.

use serde_json::json;

use super::tests::parse;
use super::{BackboneConfig, LayerShape, RopeScaling};

#[test]
fn llama_2_7b_as_published() {
    let config = parse(&json!({
        "_name_or_path": "meta-llama/Llama-2-7b-hf",
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 11008,
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": null,
        "tie_word_embeddings": false,
        "torch_dtype": "float16",
        "transformers_version": "4.31.0.dev0",
        "use_cache": true,
        "vocab_size": 32000
    }));
    let expected = BackboneConfig {
        hidden_size: 4096,
        layers: vec![
            LayerShape {
                num_heads: 32,
                num_kv_heads: 32,
                intermediate_size: 11008,
                sliding_window: None
            };
            32
        ],
        head_dim: 128,
        vocab_size: 32000,
        max_position_embeddings: 4096,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        qkv_bias: false,
        o_bias: false,
        qk_norm: false,
        tie_word_embeddings: false,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
    };
    assert_eq!(config.unwrap(), expected);
}

#[test]
fn llama_3_1_8b_instruct_as_published() {
    let config = parse(&json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "mlp_bias": false,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3"
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.42.3",
        "use_cache": true,
        "vocab_size": 128256
    }));
    let expected = BackboneConfig {
        hidden_size: 4096,
        layers: vec![
            LayerShape {
                num_heads: 32,
                num_kv_heads: 8,
                intermediate_size: 14336,
                sliding_window: None
            };
            32
        ],
        head_dim: 128,
        vocab_size: 128_256,
        max_position_embeddings: 131_072,
        rms_norm_eps: 1e-5,
        rope_theta: 500_000.0,
        rope_scaling: RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        },
        qkv_bias: false,
        o_bias: false,
        qk_norm: false,
        tie_word_embeddings: false,
        bos_token_id: Some(128_000),
        eos_token_ids: vec![128_001, 128_008, 128_009],
    };
    assert_eq!(config.unwrap(), expected);
}

#[test]
fn mistral_7b_v0_1_as_published() {
    let config = parse(&json!({
        "architectures": ["MistralForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.34.0.dev0",
        "use_cache": true,
        "vocab_size": 32000
    }));
    let expected = BackboneConfig {
        hidden_size: 4096,
        layers: vec![
            LayerShape {
                num_heads: 32,
                num_kv_heads: 8,
                intermediate_size: 14336,
                sliding_window: Some(4096)
            };
            32
        ],
        head_dim: 128,
        vocab_size: 32000,
        max_position_embeddings: 32768,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        qkv_bias: false,
        o_bias: false,
        qk_norm: false,
        tie_word_embeddings: false,
        bos_token_id: Some(1),
        eos_token_ids: vec![2],
    };
    assert_eq!(config.unwrap(), expected);
}

#[test]
fn qwen_2_5_0_5b_as_published() {
    let config = parse(&json!({
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "hidden_act": "silu",
        "hidden_size": 896,
        "initializer_range": 0.02,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "max_window_layers": 24,
        "model_type": "qwen2",
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": true,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1",
        "use_cache": true,
        "use_mrope": false,
        "use_sliding_window": false,
        "vocab_size": 151936
    }));
    let expected = BackboneConfig {
        hidden_size: 896,
        layers: vec![
            LayerShape {
                num_heads: 14,
                num_kv_heads: 2,
                intermediate_size: 4864,
                sliding_window: None
            };
            24
        ],
        head_dim: 64,
        vocab_size: 151_936,
        max_position_embeddings: 32768,
        rms_norm_eps: 1e-6,
        rope_theta: 1_000_000.0,
        rope_scaling: RopeScaling::None,
        qkv_bias: true,
        o_bias: false,
        qk_norm: false,
        tie_word_embeddings: true,
        bos_token_id: Some(151_643),
        eos_token_ids: vec![151_643],
    };
    assert_eq!(config.unwrap(), expected);
}

#[test]
fn qwen3_0_6b_as_published() {
    let config = parse(&json!({
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "max_position_embeddings": 40960,
        "max_window_layers": 28,
        "model_type": "qwen3",
        "num_attention_heads": 16,
        "num_hidden_layers": 28,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": null,
        "rope_theta": 1000000,
        "sliding_window": null,
        "tie_word_embeddings": true,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
        "use_cache": true,
        "use_sliding_window": false,
        "vocab_size": 151936
    }));
    let expected = BackboneConfig {
        hidden_size: 1024,
        layers: vec![
            LayerShape {
                num_heads: 16,
                num_kv_heads: 8,
                intermediate_size: 3072,
                sliding_window: None
            };
            28
        ],
        head_dim: 128,
        vocab_size: 151_936,
        max_position_embeddings: 40960,
        rms_norm_eps: 1e-6,
        rope_theta: 1_000_000.0,
        rope_scaling: RopeScaling::None,
        qkv_bias: false,
        o_bias: false,
        qk_norm: true,
        tie_word_embeddings: true,
        bos_token_id: Some(151_643),
        eos_token_ids: vec![151_645],
    };
    assert_eq!(config.unwrap(), expected);
}

#[test]
fn small_llamas_as_published() {
    let smollm2 = parse(&json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "hidden_act": "silu",
        "hidden_size": 576,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": 1536,
        "is_llama_config": true,
        "max_position_embeddings": 8192,
        "mlp_bias": false,
        "model_type": "llama",
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_interleaved": false,
        "rope_scaling": null,
        "rope_theta": 100000,
        "tie_word_embeddings": true,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1",
        "use_cache": true,
        "vocab_size": 49152
    }))
    .unwrap();
    assert_eq!(
        (smollm2.head_dim, smollm2.layers[0].num_kv_heads, smollm2.num_layers()),
        (64, 3, 30)
    );
    assert_eq!((smollm2.rope_theta, smollm2.rope_scaling), (100_000.0, RopeScaling::None));
    assert!(smollm2.tie_word_embeddings && smollm2.bos_token_id == Some(0));
    let tiny = parse(&json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": false,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 5632,
        "max_position_embeddings": 2048,
        "model_type": "llama",
        "num_attention_heads": 32,
        "num_hidden_layers": 22,
        "num_key_value_heads": 4,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": null,
        "rope_theta": 10000.0,
        "tie_word_embeddings": false,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.35.0",
        "use_cache": true,
        "vocab_size": 32000
    }))
    .unwrap();
    assert_eq!((tiny.head_dim, tiny.layers[0].num_kv_heads, tiny.num_layers()), (64, 4, 22));
    assert_eq!((tiny.rms_norm_eps, tiny.max_position_embeddings), (1e-5, 2048));
    assert!(!tiny.tie_word_embeddings && !tiny.qkv_bias && !tiny.o_bias && !tiny.qk_norm);
}
