//! A backbone's directory: what is whole is read exactly; everything else is refused with the file, what
//! is wrong with it and what to do, and nothing panics.

use crate::tiny;
use std::path::Path;

use crate::tiny::{Directory, Sizes, Tensor, Tensors, WEIGHTS};
use half::{bf16, f16};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reclora_trainer::backbone::{self, Backbone, WeightType};
use reclora_trainer::engine::{AdaptedModel, Prompt, Workspace};
use safetensors::Dtype;
use serde_json::{Value, json};

const TOKENS: [u32; 4] = [1, 7, 3, 10];
const DOWNLOAD: &str = "copy or download";
const INDEX: &str = "model.safetensors.index.json";

fn logits(dir: &Path) -> Result<Vec<f32>, String> {
    let backbone = Backbone::load(dir).map_err(|error| error.to_string())?;
    let prompt = Prompt { tokens: &TOKENS, representation: &[] };
    let model = AdaptedModel::bare(&backbone);
    let logits = model.logits_at(&mut Workspace::new(), &prompt, TOKENS.len() - 1, None);
    logits.map_err(|error| error.to_string())
}

#[test]
fn missing_files_are_named() {
    let dir = Directory::whole();
    dir.remove(WEIGHTS);
    dir.refused(WEIGHTS, &[DOWNLOAD]);
    dir.remove("config.json");
    dir.refused("config.json", &["a backbone is a Hugging Face directory"]);
    let nowhere = dir.file("nowhere");
    let error = Backbone::load(&nowhere).unwrap_err().to_string();
    assert!(
        error.contains("nowhere: there is no such") && error.contains("backbone.path"),
        "{error}"
    );
}

#[test]
fn a_directory_in_place_of_a_file_is_refused() {
    for name in ["config.json", WEIGHTS] {
        let dir = Directory::whole();
        dir.remove(name);
        std::fs::create_dir(dir.file(name)).unwrap();
        dir.refused(name, &[]);
    }
}

#[test]
fn each_missing_tensor_is_named() {
    for name in tiny::tensors(&Sizes::default(), 1).keys() {
        let dir = Directory::whole();
        dir.change_tensors(|tensors| {
            tensors.remove(name);
        });
        dir.refused(WEIGHTS, &[&format!("tensor {name}: is missing"), DOWNLOAD]);
    }
}

#[test]
fn each_tensor_of_another_shape_is_named() {
    for name in tiny::tensors(&Sizes::default(), 1).keys() {
        let dir = Directory::whole();
        let mut expected = String::new();
        dir.change_tensors(|tensors| {
            let tensor = tensors.get_mut(name).unwrap();
            expected = format!("expected {:?}", tensor.shape);
            // As many values: only the shape is wrong.
            tensor.shape.insert(0, 1);
        });
        dir.refused(WEIGHTS, &[&format!("tensor {name}: has shape [1, "), &expected, DOWNLOAD]);
    }
}

#[test]
fn each_tensor_of_an_unsupported_type_is_named() {
    for (name, tensor) in tiny::tensors(&Sizes::default(), 1) {
        for dtype in [Dtype::I32, Dtype::F64, Dtype::I8, Dtype::F8_E4M3] {
            let dir = Directory::whole();
            let bytes = vec![1; tensor.shape.iter().product::<usize>() * dtype.bitsize() / 8];
            let changed = Tensor { dtype, shape: tensor.shape.clone(), bytes };
            dir.change_tensors(|tensors| {
                tensors.insert(name.clone(), changed);
            });
            let what = format!("tensor {name}: has type {dtype:?}; supported: F32, F16, BF16");
            dir.refused(WEIGHTS, &[&what]);
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
        let (narrow, wide) = (Directory::whole(), Directory::whole());
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
        assert!(logits(narrow.0.path()).unwrap() == logits(wide.0.path()).unwrap(), "{dtype:?}");
    }
}

#[test]
fn weights_of_any_other_length_are_refused() {
    let dir = Directory::whole();
    let bytes = dir.read(WEIGHTS);
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let lengths = (0..header + 8).chain((header..bytes.len()).step_by(501));
    for length in lengths.chain([bytes.len() - 1]) {
        dir.write(WEIGHTS, &bytes[..length]);
        dir.refused(WEIGHTS, &[DOWNLOAD]);
    }
    dir.write(WEIGHTS, [&bytes[..], &[0]].concat());
    dir.refused(WEIGHTS, &["truncated or damaged", DOWNLOAD]);
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
    let dir = Directory::whole();
    for header in headers {
        let length = (header.len() as u64).to_le_bytes();
        dir.write(WEIGHTS, [&length[..], header.as_bytes(), &[0; 16]].concat());
        dir.refused(WEIGHTS, &[DOWNLOAD]);
    }
    for length in [u64::MAX, u64::MAX - 7, 1 << 62, 100_000_001] {
        dir.write(WEIGHTS, [&length.to_le_bytes()[..], b"{}"].concat());
        dir.refused(WEIGHTS, &["header", DOWNLOAD]);
    }
}

/// Weights have no hash: a changed byte of them is another model, but never a panic.
#[test]
fn changed_bytes_never_panic() {
    let dir = Directory::whole();
    let bytes = dir.read(WEIGHTS);
    let mut random = ChaCha8Rng::seed_from_u64(3);
    for _ in 0..2000 {
        let mut damaged = bytes.clone();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..damaged.len());
            damaged[at] = random.random();
        }
        dir.write(WEIGHTS, damaged);
        if let Err(error) = logits(dir.0.path()) {
            let known = error.contains(WEIGHTS) || error.contains("not finite");
            assert!(known, "{error}");
        }
    }
}

#[test]
fn architectures_that_can_not_be_run_are_refused_by_name() {
    for name in ["GemmaForCausalLM", "Qwen2MoeForCausalLM", "GPT2LMHeadModel"] {
        let dir = Directory::whole();
        dir.change_config(|config| config["architectures"] = json!([name]));
        dir.refused("config.json", &[name, "supported", "LlamaForCausalLM"]);
    }
    let unsupported = [
        ("model_type", json!({ "model_type": "mistral" })),
        ("hidden_act", json!({ "hidden_act": "gelu" })),
        ("mlp_bias", json!({ "mlp_bias": true })),
        ("dynamic", json!({ "rope_scaling": { "type": "dynamic", "factor": 2.0 } })),
        ("yarn", json!({ "rope_parameters": { "rope_type": "yarn" } })),
        ("partial_rotary", json!({ "rope_parameters": { "partial_rotary_factor": 0.5 } })),
        ("quantization_config", json!({ "quantization_config": { "quant_method": "gptq" } })),
        ("sliding_window", json!({ "sliding_window": 4096 })),
        ("pretraining_tp", json!({ "pretraining_tp": 2 })),
    ];
    for (name, fields) in unsupported {
        let dir = Directory::whole();
        dir.change_config(|config| {
            config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        });
        dir.refused("config.json", &[name, "not supported; supported: "]);
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
            let dir = Directory::whole();
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
        let dir = Directory::whole();
        dir.change_config(|config| config[field] = value);
        dir.refused("config.json", &[field, what]);
    }
}

#[test]
fn corrupt_configs_are_refused() {
    let dir = Directory::whole();
    let text = dir.read("config.json");
    for length in 0..text.len() {
        dir.write("config.json", &text[..length]);
        dir.refused("config.json", &["is not valid JSON", DOWNLOAD]);
    }
    for text in ["[]", "null", "3", "\"llama\""] {
        dir.write("config.json", text);
        dir.refused("config.json", &["is not a JSON object", DOWNLOAD]);
    }
    dir.write("config.json", "[".repeat(100_000));
    dir.refused("config.json", &[DOWNLOAD]);
    dir.write("config.json", [0xff, 0xfe, b'{']);
    dir.refused("config.json", &[DOWNLOAD]);
    for field in ["architectures", "hidden_size", "intermediate_size", "num_hidden_layers"] {
        dir.change_config(|config| {
            config.as_object_mut().unwrap().remove(field);
        });
        dir.refused("config.json", &[&format!("has no \"{field}\""), DOWNLOAD]);
    }
    dir.change_config(|config| config["num_hidden_layers"] = json!(1 << 12));
    dir.refused(WEIGHTS, &["tensor model.layers.2.", DOWNLOAD]);
}

/// Three shards with an index; the tensors of one block are in different shards.
fn sharded() -> (Directory, Value) {
    let dir = Directory::whole();
    let index = shard_tensors(&dir, tiny::tensors(&Sizes::default(), 1));
    (dir, index)
}

/// Replaces the weights of a directory by three shards.
fn shard_tensors(dir: &Directory, tensors: Tensors) -> Value {
    let mut shards = vec![Tensors::new(); 3];
    let mut map = serde_json::Map::new();
    for (index, (name, tensor)) in tensors.into_iter().enumerate() {
        map.insert(name.clone(), json!(shard(index % 3)));
        shards[index % 3].insert(name, tensor);
    }
    for (index, tensors) in shards.iter().enumerate() {
        tiny::save(&dir.file(&shard(index)), tensors);
    }
    let index = json!({ "metadata": { "total_size": 1 }, "weight_map": map });
    dir.write(INDEX, index.to_string());
    dir.remove(WEIGHTS);
    index
}

fn shard(index: usize) -> String {
    format!("model-{:05}-of-00003.safetensors", index + 1)
}

#[test]
fn shards_are_the_same_backbone_as_one_file() {
    assert!(logits(sharded().0.0.path()).unwrap() == logits(Directory::whole().0.path()).unwrap());
}

#[test]
fn missing_and_damaged_shards_are_named() {
    for index in 0..3 {
        let (dir, _) = sharded();
        let bytes = dir.read(&shard(index));
        dir.write(&shard(index), &bytes[..bytes.len() / 2]);
        dir.refused(&shard(index), &["truncated", DOWNLOAD]);
        dir.remove(&shard(index));
        dir.refused(&shard(index), &["is missing", INDEX, DOWNLOAD]);
    }
}

#[test]
fn an_index_that_is_wrong_about_a_tensor_is_refused() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let (dir, mut index) = sharded();
    let other = if index["weight_map"][name] == shard(0) { shard(1) } else { shard(0) };
    index["weight_map"][name] = json!(other);
    dir.write(INDEX, index.to_string());
    dir.refused(&other, &[&format!("tensor {name}: is missing"), DOWNLOAD]);
    index["weight_map"].as_object_mut().unwrap().remove(name);
    dir.write(INDEX, index.to_string());
    dir.refused(INDEX, &[&format!("tensor {name}: is missing from the weight map"), DOWNLOAD]);
}

#[test]
fn corrupt_indexes_are_refused() {
    let (dir, index) = sharded();
    let text = index.to_string();
    for length in (0..text.len()).step_by(13) {
        dir.write(INDEX, &text[..length]);
        dir.refused(INDEX, &["is not a weight index", DOWNLOAD]);
    }
    let deep = "[".repeat(100_000);
    for text in ["[]", "{}", r#"{"weight_map":[]}"#, r#"{"weight_map":{"a":1}}"#, &deep] {
        dir.write(INDEX, text);
        dir.refused(INDEX, &["is not a weight index", DOWNLOAD]);
    }
    dir.write(INDEX, r#"{"weight_map":{}}"#);
    dir.refused(INDEX, &["tensor model.embed_tokens.weight: is missing", DOWNLOAD]);
}

/// S-3: an index reaches no file outside the backbone's directory, not even one that is there.
#[test]
fn an_index_can_not_name_files_elsewhere() {
    let outside = Directory::whole();
    let absolute = outside.file(WEIGHTS).display().to_string();
    let sibling = outside.0.path().file_name().unwrap().to_string_lossy().into_owned();
    let up = format!("../{sibling}/{WEIGHTS}");
    let (dir, index) = sharded();
    std::fs::create_dir(dir.file("sub")).unwrap();
    let names = [&absolute, &up, "../x", "sub/../../x", "sub/x", "./x", "..", ".", "", "/"];
    for name in names {
        let mut index = index.clone();
        index["weight_map"]["model.norm.weight"] = json!(name);
        dir.write(INDEX, index.to_string());
        dir.refused(INDEX, &[&format!("{name:?}"), "not a plain file name", DOWNLOAD]);
    }
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// A directory of these tensors, in one file and in shards.
fn directories(tied: bool, tensors: &Tensors) -> [Directory; 2] {
    [false, true].map(|sharded| {
        let dir = Directory::whole();
        dir.change_config(|config| config["tie_word_embeddings"] = json!(tied));
        if sharded {
            shard_tensors(&dir, tensors.clone());
        } else {
            dir.change_tensors(|all| *all = tensors.clone());
        }
        dir
    })
}

/// The logits, and the notes of the headers and of the whole.
fn noted(dir: &Directory) -> (Vec<f32>, Vec<String>, bool) {
    let summary = backbone::check(dir.0.path(), WeightType::F32).unwrap();
    let backbone = Backbone::load(dir.0.path()).unwrap();
    assert_eq!(summary.notes, backbone.notes());
    assert_eq!(&summary.config, backbone.config());
    let tied = summary.config.tie_word_embeddings;
    (logits(dir.0.path()).unwrap(), summary.notes, tied)
}

/// A trained head beside `tie_word_embeddings = true`, as merging an adapter leaves it.
#[test]
fn a_head_that_differs_from_the_embedding_is_used_though_the_config_ties_them() {
    let both = tiny::tensors(&Sizes::default(), 1);
    let mut without = both.clone();
    without.remove(HEAD);
    // Another tensor; one whose last value differs; the embedding in another type.
    let (mut last, mut typed) = (both.clone(), both.clone());
    let embedding = both[EMBEDDING].clone();
    last.insert(HEAD.to_owned(), embedding.clone());
    *last.get_mut(HEAD).unwrap().bytes.last_mut().unwrap() ^= 0x80;
    let values = embedding.bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
    let bytes = values.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect();
    typed.insert(HEAD.to_owned(), Tensor { dtype: Dtype::BF16, shape: embedding.shape, bytes });
    let [tied, _] = directories(true, &without);
    let (tied, notes, is_tied) = noted(&tied);
    assert!(notes.is_empty() && is_tied);
    for tensors in [both, last, typed] {
        let [untied, _] = directories(false, &tensors);
        let (expected, notes, _) = noted(&untied);
        assert!(notes.is_empty() && expected != tied);
        for dir in directories(true, &tensors) {
            let (found, notes, is_tied) = noted(&dir);
            assert!(found == expected && !is_tied);
            let [note] = notes.as_slice() else { panic!("{notes:?}") };
            for part in [HEAD, EMBEDDING, "tie_word_embeddings = true", ".safetensors: tensor"] {
                assert!(note.contains(part), "no {part} in: {note}");
            }
        }
    }
}

#[test]
fn a_head_equal_to_the_bit_is_the_embedding() {
    let mut both = tiny::tensors(&Sizes::default(), 1);
    let mut without = both.clone();
    without.remove(HEAD);
    both.insert(HEAD.to_owned(), both[EMBEDDING].clone());
    let [tied, _] = directories(true, &without);
    for dir in directories(true, &both) {
        assert!(noted(&dir) == noted(&tied));
    }
}

/// Of a tensor with two names, writers keep either.
#[test]
fn either_name_of_a_tied_embedding_is_enough() {
    let mut tensors = tiny::tensors(&Sizes { tied: true, ..Sizes::default() }, 1);
    let [expected, _] = directories(true, &tensors);
    let embedding = tensors.remove(EMBEDDING).unwrap();
    for dir in directories(true, &tensors) {
        let missing = format!("tensor {EMBEDDING}: is missing");
        let file = if dir.file(WEIGHTS).exists() { WEIGHTS } else { INDEX };
        dir.refused(file, &[&missing, DOWNLOAD]);
    }
    tensors.insert(HEAD.to_owned(), embedding);
    for dir in directories(true, &tensors) {
        assert!(noted(&dir) == noted(&expected));
    }
    let [untied, _] = directories(false, &tensors);
    untied.refused(WEIGHTS, &[&format!("tensor {EMBEDDING}: is missing")]);
}

#[test]
fn a_head_that_can_not_be_one_is_refused_though_the_config_ties_it() {
    let mut tensors = tiny::tensors(&Sizes::default(), 1);
    tensors.get_mut(HEAD).unwrap().shape.reverse();
    let [dir, _] = directories(true, &tensors);
    dir.refused(WEIGHTS, &[&format!("tensor {HEAD}: has shape [12, 11], expected [11, 12]")]);
}

/// What no value can make right is known from the headers.
#[test]
fn widths_that_q8_0_does_not_have_are_refused_by_the_headers() {
    let dir = Directory::whole();
    let loaded = Backbone::load_as(dir.0.path(), WeightType::Q8_0).unwrap_err().to_string();
    let checked = backbone::check(dir.0.path(), WeightType::Q8_0).unwrap_err().to_string();
    assert_eq!(checked, loaded);
    assert!(loaded.contains(EMBEDDING) && loaded.contains("blocks of 32"), "{loaded}");
}

/// The headers' check looks at no more than the beginning of two tensors.
#[test]
fn a_head_that_differs_far_behind_is_found_by_loading() {
    let sizes = Sizes { vocab: 30_000, layers: 1, tied: true, ..Sizes::default() };
    let mut tensors = tiny::tensors(&sizes, 1);
    let mut head = tensors[EMBEDDING].clone();
    assert!(head.bytes.len() > 1 << 20);
    *head.bytes.last_mut().unwrap() ^= 0x80;
    tensors.insert(HEAD.to_owned(), head);
    let dir = Directory::whole();
    dir.write("config.json", tiny::config(&sizes).to_string());
    tiny::save(&dir.file(WEIGHTS), &tensors);
    let summary = backbone::check(dir.0.path(), WeightType::F32).unwrap();
    assert!(summary.notes.is_empty() && summary.config.tie_word_embeddings);
    let backbone = Backbone::load(dir.0.path()).unwrap();
    assert!(backbone.notes().len() == 1 && !backbone.config().tie_word_embeddings);
}
