//! GGUF files: a whole one is the same model as the Hugging Face directory it was made of, bit for
//! bit; what it lacks and what is not supported is refused by name. Damage: gguf_damage.rs.

use crate::gguf_file;
use crate::tiny;
use std::path::Path;

use crate::gguf_file::{
    BF16, F16, F32, GgufFile, Q4_0, Q4_1, Q8_0, Value, file_name, in_file_order, refused,
    refused_bytes,
};
use crate::tiny::{Sizes, Tensors};
use half::{bf16, f16};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reclora_trainer::backbone::Backbone;
use reclora_trainer::engine::{AdaptedModel, Prompt, Workspace};

const TOKENS: [u32; 5] = [1, 7, 3, 10, 2];

/// Rows of whole blocks.
const WIDE: Sizes = Sizes {
    hidden: 64,
    intermediate: 96,
    layers: 2,
    heads: 4,
    kv_heads: 2,
    head_dim: 16,
    vocab: 11,
    tied: false,
};

fn logits(path: &Path) -> Result<Vec<f32>, String> {
    let backbone = Backbone::load(path).map_err(|error| error.to_string())?;
    let prompt = Prompt { tokens: &TOKENS, representation: &[] };
    let model = AdaptedModel::bare(&backbone);
    let logits = model.logits_at(&mut Workspace::new(), &prompt, TOKENS.len() - 1, None);
    logits.map_err(|error| error.to_string())
}

fn logits_of_directory(sizes: &Sizes, tensors: &Tensors) -> Vec<f32> {
    logits_of_changed_directory(sizes, tensors, &|_| {})
}

fn logits_of_changed_directory(
    sizes: &Sizes,
    tensors: &Tensors,
    change: &dyn Fn(&mut serde_json::Value),
) -> Vec<f32> {
    let dir = tempfile::tempdir().unwrap();
    let mut config = tiny::config(sizes);
    change(&mut config);
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    tiny::save(&dir.path().join(tiny::WEIGHTS), tensors);
    logits(dir.path()).unwrap()
}

fn logits_of_file(file: &GgufFile) -> Result<Vec<f32>, String> {
    let dir = tempfile::tempdir().unwrap();
    logits(&file.write(dir.path()))
}

#[test]
fn a_file_is_the_directory_it_was_made_of_bit_for_bit() {
    let untied = Sizes::default();
    let tied = Sizes { tied: true, ..untied };
    let ungrouped = Sizes { kv_heads: 4, head_dim: 8, ..untied };
    for (seed, sizes) in [untied, tied, ungrouped, WIDE].into_iter().enumerate() {
        let tensors = tiny::tensors(&sizes, seed as u64);
        let expected = logits_of_directory(&sizes, &tensors);
        for version in [2, 3] {
            let mut file = GgufFile::of(&sizes, &tensors);
            file.version = version;
            assert!(logits_of_file(&file).unwrap() == expected, "version {version}: {sizes:?}");
        }
    }
}

#[test]
fn the_order_of_rows_matters() {
    let (sizes, tensors) = (Sizes::default(), tiny::tensors(&Sizes::default(), 1));
    for name in ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.k_proj.weight"]
    {
        let mut file = GgufFile::of(&sizes, &tensors);
        file.tensor(&file_name(name)).bytes = tensors[name].bytes.clone();
        assert!(logits_of_file(&file).unwrap() != logits_of_directory(&sizes, &tensors), "{name}");
    }
}

#[test]
fn defaults_of_absent_keys() {
    let sizes = Sizes { kv_heads: 4, head_dim: 3 * 2, hidden: 24, ..Sizes::default() };
    let tensors = tiny::tensors(&sizes, 5);
    let mut file = GgufFile::of(&sizes, &tensors);
    for key in ["key_length", "value_length", "head_count_kv"] {
        file.remove(&format!("llama.attention.{key}"));
    }
    file.remove("llama.rope.dimension_count");
    assert!(logits_of_file(&file).unwrap() == logits_of_directory(&sizes, &tensors));
    file.remove("llama.rope.freq_base");
    assert!(logits_of_file(&file).unwrap() != logits_of_directory(&sizes, &tensors));
}

#[test]
fn another_alignment() {
    for alignment in [8, 64, 4096] {
        let mut file = GgufFile::tiny();
        file.alignment = alignment;
        file.set("general.alignment", alignment);
        assert!(logits_of_file(&file) == logits_of_file(&GgufFile::tiny()), "{alignment}");
    }
}

/// Random values of a type: as the file has them, and what they are.
fn random_values(kind: u32, count: usize, random: &mut ChaCha8Rng) -> (Vec<u8>, Vec<f32>) {
    let (mut bytes, mut values) = (Vec::new(), Vec::new());
    if matches!(kind, F16 | BF16) {
        for _ in 0..count {
            let x = random.random_range(-0.3_f32..0.3);
            let (half, brain) = (f16::from_f32(x), bf16::from_f32(x));
            bytes.extend(if kind == F16 { half.to_le_bytes() } else { brain.to_le_bytes() });
            values.push(if kind == F16 { half.to_f32() } else { brain.to_f32() });
        }
        return (bytes, values);
    }
    for _ in 0..count / 32 {
        let scale = f16::from_f32(random.random_range(0.001..0.003));
        let offset = f16::from_f32(random.random_range(-0.3..0.1));
        let (scale, scale_bytes) = (scale.to_f32(), scale.to_le_bytes());
        bytes.extend(scale_bytes);
        if kind == Q8_0 {
            let quants: [i8; 32] = random.random();
            bytes.extend(quants.map(|q| q as u8));
            values.extend(quants.map(|q| f32::from(q) * scale));
            continue;
        }
        let quants: [u8; 32] = std::array::from_fn(|_| random.random_range(0..16));
        if kind == Q4_1 {
            bytes.extend(offset.to_le_bytes());
        }
        bytes.extend((0..16).map(|i| quants[i] | (quants[i + 16] << 4)));
        values.extend(quants.map(|q| match kind {
            Q4_0 => (f32::from(q) - 8.0) * scale,
            _ => f32::from(q) * scale + offset.to_f32(),
        }));
    }
    (bytes, values)
}

#[test]
fn other_types_are_their_values_in_f32() {
    let mut random = ChaCha8Rng::seed_from_u64(2);
    for kind in [F16, BF16, Q8_0, Q4_0, Q4_1] {
        let mut tensors = tiny::tensors(&WIDE, 3);
        let mut file = GgufFile::of(&WIDE, &tensors);
        for (name, tensor) in &mut tensors {
            let &[rows, inputs] = tensor.shape.as_slice() else { continue };
            let (bytes, values) = random_values(kind, rows * inputs, &mut random);
            *tensor = tiny::f32_tensor(&[rows, inputs], &values);
            let in_file = file.tensor(&file_name(name));
            in_file.kind = kind;
            in_file.bytes = in_file_order(name, &WIDE, &bytes, rows);
        }
        let found = logits_of_file(&file).unwrap();
        assert!(found == logits_of_directory(&WIDE, &tensors), "type {kind}");
    }
}

#[test]
fn a_path_that_is_no_file_and_a_file_that_is_no_gguf() {
    let dir = tempfile::tempdir().unwrap();
    let error = Backbone::load(&dir.path().join("none.gguf")).unwrap_err().to_string();
    assert!(error.contains("none.gguf: can't be read") && error.contains("backbone.path"));
    refused_bytes(&["does not begin with \"GGUF\""], b"");
    refused_bytes(&["does not begin with \"GGUF\""], b"{\"architectures\": []}");
}

#[test]
fn each_missing_tensor_and_key_is_named() {
    for tensor in GgufFile::tiny().tensors {
        if tensor.name == "output.weight" {
            continue; // Then the head is the embedding.
        }
        refused(&[&format!("tensor {}: is missing", tensor.name)], |file| {
            file.tensors.retain(|other| other.name != tensor.name);
        });
    }
    for key in [
        "general.architecture",
        "llama.block_count",
        "llama.context_length",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
        "tokenizer.ggml.tokens",
    ] {
        refused(&[&format!("key {key}: is missing")], |file| file.remove(key));
    }
}

#[test]
fn keys_of_another_type_or_size() {
    let sizes = ["block_count", "embedding_length", "attention.head_count", "context_length"];
    for name in sizes.map(|name| format!("llama.{name}")) {
        refused(&[&name, "is not an integer"], |file| file.set(&name, "2"));
        refused(&[&name, "is not an integer"], |file| file.set(&name, Value::I32(-2)));
        refused(&[&name, "differs by layer"], |file| file.set(&name, Value::I32s(vec![2, 2])));
        refused(&[&name, "is not in 1..="], |file| file.set(&name, 0));
        refused(&[&name, "is not in 1..="], |file| file.set(&name, Value::U32(u32::MAX)));
    }
    let eps = "llama.attention.layer_norm_rms_epsilon";
    refused(&[eps, "is not a finite number"], |file| file.set(eps, Value::F32(f32::NAN)));
    refused(&["tokenizer.ggml.tokens: has 10 tokens, token_embd.weight 11 rows"], |file| {
        file.set("tokenizer.ggml.tokens", Value::Texts(vec!["x".into(); 10]));
    });
    refused(&["tensor blk.0.ffn_up.weight: has shape [12, 20], expected [20, 12]"], |file| {
        file.tensor("blk.0.ffn_up.weight").dims.reverse();
    });
    refused(&["tensor blk.0.attn_q.weight: its 12 rows are no 4 heads of pairs"], |file| {
        file.tensor("blk.0.attn_q.weight").dims.reverse();
    });
    refused(&["tokenizer.ggml.eos_token_id: 11 is none of 11 tokens"], |file| {
        file.set("tokenizer.ggml.eos_token_id", 11);
    });
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    refused(&["general.architecture: \"gemma\" not supported", "\"qwen3\""], |file| {
        file.set("general.architecture", "gemma");
    });
    for (key, value) in [
        ("llama.expert_count", Value::U32(8)),
        ("llama.rope.dimension_count", Value::U32(4)),
        ("llama.attention.value_length", Value::U32(8)),
        ("llama.rope.scaling.type", "yarn".into()),
        ("llama.attention.clamp_kqv", Value::F32(8.0)),
        ("llama.logit_scale", Value::F32(2.0)),
    ] {
        refused(&[key, "not supported"], |file| file.set(key, value.clone()));
    }
    for name in ["blk.0.ffn_gate_inp.weight", "blk.2.attn_q.weight", "blk.0.attn_q_norm.weight"] {
        refused(&[&format!("tensor {name}: not supported")], |file| {
            let more = gguf_file::Tensor { name: name.into(), ..file.tensors[0].clone() };
            file.tensors.push(more);
        });
    }
}

/// Settings that change what is computed do so as they do in a directory's config.json.
#[test]
fn windows_and_scaling_are_those_of_a_directory() {
    let tensors = tiny::tensors(&WIDE, 1);
    let plain = logits_of_directory(&WIDE, &tensors);
    let same = |change: &dyn Fn(&mut GgufFile), config: &dyn Fn(&mut serde_json::Value)| {
        let mut file = GgufFile::of(&WIDE, &tensors);
        change(&mut file);
        let expected = logits_of_changed_directory(&WIDE, &tensors, config);
        assert!(logits_of_file(&file).unwrap() == expected && expected != plain);
    };
    same(&|file| file.set("llama.attention.sliding_window", 3), &|config| {
        config["architectures"] = serde_json::json!(["MistralForCausalLM"]);
        config["model_type"] = "mistral".into();
        config["sliding_window"] = 3.into();
    });
    same(
        &|file| {
            file.set("llama.rope.scaling.type", "linear");
            file.set("llama.rope.scaling.factor", Value::F32(2.0));
        },
        &|config| {
            config["rope_scaling"] = serde_json::json!({"rope_type": "linear", "factor": 2.0});
        },
    );
}

/// A Qwen file does not say which layers a window is of: only one that hides nothing is taken.
#[test]
fn a_window_of_some_unknown_layers_is_refused() {
    let sizes = Sizes::default();
    for architecture in ["qwen2", "qwen3"] {
        let window = |window: Option<usize>| {
            let mut file = GgufFile::tiny().into_qwen(architecture, &sizes);
            if let Some(window) = window {
                file.set(&format!("{architecture}.attention.sliding_window"), window);
            }
            logits_of_file(&file)
        };
        let without = window(None).unwrap();
        for hides_nothing in [64, 4096] {
            assert!(window(Some(hides_nothing)).unwrap() == without, "{architecture}");
        }
        let error = window(Some(63)).unwrap_err();
        let key = format!("key {architecture}.attention.sliding_window: 63 not supported");
        for part in [key.as_str(), "which layers", "context_length = 64", "config.json"] {
            assert!(error.contains(part), "{error}");
        }
    }
}

#[test]
fn quantisations_that_are_not_read_are_refused_by_name() {
    let tensors = tiny::tensors(&Sizes { hidden: 256, ..WIDE }, 1);
    for (kind, name, bytes) in [(12, "Q4_K", 144), (14, "Q6_K", 210), (6, "Q5_0", 22 * 8)] {
        let mut file = GgufFile::of(&Sizes { hidden: 256, ..WIDE }, &tensors);
        let tensor = file.tensor("blk.0.ffn_up.weight");
        (tensor.kind, tensor.bytes) = (kind, vec![0; 96 * bytes]);
        let error = logits_of_file(&file).unwrap_err();
        let parts = ["blk.0.ffn_up.weight: has type", name, "supported: F32", "best Q8_0"];
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}

/// LLaMA 3.1's divisors as its authors compute them: kept below a wavelength, divided above another.
fn llama31_divisors(pairs: usize, theta: f32, factor: f32) -> Vec<f32> {
    let divisor = |pair: usize| {
        let frequency = 1.0 / theta.powf(pair as f32 / pairs as f32);
        let wavelength = 2.0 * std::f32::consts::PI / frequency;
        if wavelength < 8192.0 / 4.0 {
            1.0
        } else if wavelength > 8192.0 {
            factor
        } else {
            let smooth = (8192.0 / wavelength - 1.0) / (4.0 - 1.0);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    (0..pairs).map(divisor).collect()
}

#[test]
fn divisors_of_llama_3_1_are_its_settings() {
    let tensors = tiny::tensors(&WIDE, 1);
    let found = |divisors: &[f32]| {
        let mut file = GgufFile::of(&WIDE, &tensors);
        file.set("llama.rope.freq_base", Value::F32(500_000.0));
        let bytes = divisors.iter().flat_map(|x| x.to_le_bytes()).collect();
        let name = "rope_freqs.weight".to_owned();
        let dims = vec![divisors.len() as u64];
        file.tensors.push(gguf_file::Tensor { name, dims, kind: F32, bytes, offset: None });
        logits_of_file(&file)
    };
    for factor in [8.0, 32.0] {
        let mut divisors = llama31_divisors(8, 500_000.0, factor);
        assert!(divisors.iter().any(|&x| x > 1.0 && x < factor), "{divisors:?}");
        let expected = logits_of_changed_directory(&WIDE, &tensors, &|config| {
            config["rope_theta"] = 500_000.0.into();
            config["rope_scaling"] = serde_json::json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            });
        });
        assert!(found(&divisors).unwrap() == expected);
        divisors[4] *= 1.01;
        let refused = |divisors| found(divisors).unwrap_err();
        assert!(refused(&divisors).contains("rope_freqs.weight: its divisors"));
        assert!(refused(&divisors[..7]).contains("rope_freqs.weight: is not one divisor"));
    }
}
