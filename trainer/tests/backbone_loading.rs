//! A backbone's directory: what is whole is read exactly; everything else is refused with the file, what
//! is wrong with it and what to do, and nothing panics.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod tiny;

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reclora_trainer::backbone::Backbone;
use reclora_trainer::model::{AdaptedModel, Prompt, Workspace};
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;
use tiny::{Sizes, Tensor, Tensors};

const TOKENS: [u32; 4] = [1, 7, 3, 10];
const DOWNLOAD: &str = "copy or download";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A directory that is whole until a test damages it.
struct Directory(TempDir);

impl Directory {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        tiny::write(dir.path(), &Sizes::default(), 1);
        Self(dir)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.file(name)).unwrap()
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.file(name), bytes).unwrap();
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.file(name)).unwrap();
    }

    fn change_config(&self, change: impl FnOnce(&mut Value)) {
        let mut config = tiny::config(&Sizes::default());
        change(&mut config);
        self.write("config.json", config.to_string());
    }

    fn change_tensors(&self, change: impl FnOnce(&mut Tensors)) {
        let mut tensors = tiny::tensors(&Sizes::default(), 1);
        change(&mut tensors);
        tiny::save(&self.file(SINGLE), &tensors);
    }

    /// The error begins with the file and has these parts: what is wrong, and what to do.
    fn refused(&self, file: &str, parts: &[&str]) {
        let error = Backbone::load(self.0.path()).unwrap_err().to_string();
        let file = format!("{}: ", self.file(file).display());
        assert!(error.starts_with(&file), "not about {file}{error}");
        for part in parts {
            assert!(error.contains(part), "no {part:?} in: {error}");
        }
    }

    fn logits(&self) -> Vec<f32> {
        logits(self.0.path()).unwrap()
    }
}

fn logits(dir: &Path) -> Result<Vec<f32>, String> {
    let backbone = Backbone::load(dir).map_err(|error| error.to_string())?;
    let prompt = Prompt { tokens: &TOKENS, representation: &[] };
    let model = AdaptedModel::bare(&backbone);
    let logits = model.logits_at(&mut Workspace::new(), &prompt, TOKENS.len() - 1, None);
    logits.map_err(|error| error.to_string())
}

#[test]
fn missing_files_are_named() {
    let dir = Directory::new();
    dir.remove(SINGLE);
    dir.refused(SINGLE, &[DOWNLOAD]);
    dir.remove("config.json");
    dir.refused("config.json", &["a backbone is a Hugging Face directory"]);
    let nowhere = dir.file("nowhere");
    let error = Backbone::load(&nowhere).unwrap_err().to_string();
    assert!(error.contains("nowhere/config.json"), "{error}");
}

#[test]
fn a_directory_in_place_of_a_file_is_refused() {
    for name in ["config.json", SINGLE] {
        let dir = Directory::new();
        dir.remove(name);
        std::fs::create_dir(dir.file(name)).unwrap();
        dir.refused(name, &[]);
    }
}

#[test]
fn each_missing_tensor_is_named() {
    for name in tiny::tensors(&Sizes::default(), 1).keys() {
        let dir = Directory::new();
        dir.change_tensors(|tensors| {
            tensors.remove(name);
        });
        dir.refused(SINGLE, &[&format!("tensor {name}: is missing"), DOWNLOAD]);
    }
}

#[test]
fn each_tensor_of_another_shape_is_named() {
    for name in tiny::tensors(&Sizes::default(), 1).keys() {
        let dir = Directory::new();
        let mut expected = String::new();
        dir.change_tensors(|tensors| {
            let tensor = tensors.get_mut(name).unwrap();
            expected = format!("expected {:?}", tensor.shape);
            // As many values: only the shape is wrong.
            tensor.shape.insert(0, 1);
        });
        dir.refused(SINGLE, &[&format!("tensor {name}: has shape [1, "), &expected, DOWNLOAD]);
    }
}

#[test]
fn each_tensor_of_an_unsupported_type_is_named() {
    for (name, tensor) in tiny::tensors(&Sizes::default(), 1) {
        for dtype in [Dtype::I32, Dtype::F64, Dtype::I8, Dtype::F8_E4M3] {
            let dir = Directory::new();
            let bytes = vec![1; tensor.shape.iter().product::<usize>() * dtype.bitsize() / 8];
            let changed = Tensor { dtype, shape: tensor.shape.clone(), bytes };
            dir.change_tensors(|tensors| {
                tensors.insert(name.clone(), changed);
            });
            let what = format!("tensor {name}: has type {dtype:?}; supported: F32, F16, BF16");
            dir.refused(SINGLE, &[&what]);
        }
    }
}

/// Half precision is what most models come in: every value is one of f32.
#[test]
fn half_precision_is_read_exactly() {
    type Round = fn(f32) -> (f32, [u8; 2]);
    let types: [(Dtype, Round); 2] = [
        (Dtype::F16, |x| (f16::from_f32(x).to_f32(), f16::from_f32(x).to_le_bytes())),
        (Dtype::BF16, |x| (bf16::from_f32(x).to_f32(), bf16::from_f32(x).to_le_bytes())),
    ];
    for (dtype, round) in types {
        let (narrow, wide) = (Directory::new(), Directory::new());
        let values = |tensor: &Tensor| -> Vec<(f32, [u8; 2])> {
            let values = tensor.bytes.as_chunks().0.iter();
            values.map(|bytes| round(f32::from_le_bytes(*bytes))).collect()
        };
        narrow.change_tensors(|tensors| {
            for tensor in tensors.values_mut() {
                tensor.bytes = values(tensor).iter().flat_map(|(_, bytes)| *bytes).collect();
                tensor.dtype = dtype;
            }
        });
        wide.change_tensors(|tensors| {
            for tensor in tensors.values_mut() {
                let values: Vec<f32> = values(tensor).iter().map(|(value, _)| *value).collect();
                *tensor = tiny::f32_tensor(&tensor.shape, &values);
            }
        });
        assert!(narrow.logits() == wide.logits(), "{dtype:?}");
    }
}

#[test]
fn weights_of_any_other_length_are_refused() {
    let dir = Directory::new();
    let bytes = dir.read(SINGLE);
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let lengths = (0..header + 8).chain((header..bytes.len()).step_by(501));
    for length in lengths.chain([bytes.len() - 1]) {
        dir.write(SINGLE, &bytes[..length]);
        dir.refused(SINGLE, &[DOWNLOAD]);
    }
    dir.write(SINGLE, [&bytes[..], &[0]].concat());
    dir.refused(SINGLE, &["truncated or damaged", DOWNLOAD]);
}

/// What a header may claim and a file must not get away with.
#[test]
fn hostile_safetensors_headers_are_refused() {
    let f32_at = |shape: Value, begin: u64, end: u64| {
        json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, end] }).to_string()
    };
    let huge = 1_u64 << 62;
    let headers = [
        String::new(),
        "{".to_owned(),
        "[]".to_owned(),
        "null".to_owned(),
        "[".repeat(50_000),
        format!(r#"{{"a":{}}}"#, f32_at(json!([huge, 4]), 0, 16)),
        format!(r#"{{"a":{}}}"#, f32_at(json!([4]), 16, 0)),
        format!(r#"{{"a":{}}}"#, f32_at(json!([huge]), 0, u64::MAX)),
        format!(r#"{{"a":{}}}"#, f32_at(json!([-1]), 0, 16)),
        format!(r#"{{"a":{0},"b":{0}}}"#, f32_at(json!([4]), 0, 16)),
        format!(r#"{{"a":{},"b":{}}}"#, f32_at(json!([4]), 0, 16), f32_at(json!([4]), 8, 24)),
        r#"{"a":{"dtype":"Q4","shape":[4],"data_offsets":[0,16]}}"#.to_owned(),
    ];
    let dir = Directory::new();
    for header in headers {
        let length = (header.len() as u64).to_le_bytes();
        dir.write(SINGLE, [&length[..], header.as_bytes(), &[0; 16]].concat());
        dir.refused(SINGLE, &[DOWNLOAD]);
    }
    for length in [u64::MAX, u64::MAX - 7, 1 << 62, 100_000_001] {
        dir.write(SINGLE, [&length.to_le_bytes()[..], b"{}"].concat());
        dir.refused(SINGLE, &["header", DOWNLOAD]);
    }
}

/// Weights have no hash: a changed byte of them is another model, but never a panic.
#[test]
fn changed_bytes_never_panic() {
    let dir = Directory::new();
    let bytes = dir.read(SINGLE);
    let mut random = ChaCha8Rng::seed_from_u64(3);
    for _ in 0..2000 {
        let mut damaged = bytes.clone();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..damaged.len());
            damaged[at] = random.random();
        }
        dir.write(SINGLE, damaged);
        if let Err(error) = logits(dir.0.path()) {
            let known = error.contains(SINGLE) || error.contains("not finite");
            assert!(known, "{error}");
        }
    }
}

#[test]
fn architectures_that_can_not_be_run_are_refused_by_name() {
    for name in ["MistralForCausalLM", "Qwen2ForCausalLM", "GPT2LMHeadModel"] {
        let dir = Directory::new();
        dir.change_config(|config| config["architectures"] = json!([name]));
        dir.refused("config.json", &[name, "supported", "LlamaForCausalLM"]);
    }
    let cases = [
        ("model_type", json!("mistral")),
        ("hidden_act", json!("gelu")),
        ("attention_bias", json!(true)),
        ("mlp_bias", json!(true)),
        ("rope_scaling", json!({ "type": "linear", "factor": 2.0 })),
        ("rope_parameters", json!({ "rope_type": "llama3", "rope_theta": 5e5 })),
        ("rope_parameters", json!({ "partial_rotary_factor": 0.5 })),
        ("quantization_config", json!({ "quant_method": "gptq" })),
        ("sliding_window", json!(4096)),
        ("pretraining_tp", json!(2)),
    ];
    for (field, value) in cases {
        let dir = Directory::new();
        dir.change_config(|config| config[field] = value);
        let name = if field == "rope_parameters" { "rot" } else { field };
        let name = if name == "rot" { "not supported" } else { name };
        dir.refused("config.json", &[name, "supported: "]);
    }
}

#[test]
fn sizes_that_can_not_be_are_refused_by_name() {
    let fields = [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
    ];
    for field in fields {
        for value in [json!(0), json!(-1), json!(1.5), json!("8"), json!(1_u64 << 40), json!([8])] {
            let dir = Directory::new();
            dir.change_config(|config| config[field] = value);
            dir.refused("config.json", &[field, "is not an integer in 1..="]);
        }
    }
    let cases = [
        ("num_key_value_heads", json!(3), "not a multiple of num_key_value_heads"),
        ("head_dim", json!(5), "rotary"),
        ("rope_theta", json!(0), "not a positive number"),
        ("rope_theta", json!("big"), "not a number"),
        ("rms_norm_eps", json!(-1), "not a number >= 0"),
        ("tie_word_embeddings", json!("yes"), "not a bool"),
        ("eos_token_id", json!([2, "end"]), "not a token id"),
    ];
    for (field, value, what) in cases {
        let dir = Directory::new();
        dir.change_config(|config| config[field] = value);
        dir.refused("config.json", &[field, what]);
    }
}
