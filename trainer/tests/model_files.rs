//! Files of backbone and adapter: what is whole is read exactly, what is not is refused by name.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use reclora_trainer::adapter::Adapter;
use reclora_trainer::backbone::Backbone;
use reclora_trainer::config::{AdapterConfig, MixForm};
use reclora_trainer::model::{AdaptedModel, Prompt, Workspace};
use safetensors::SafeTensors;
use serde_json::{Value, json};

const WIDTH: usize = 12;

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/models/stories260k")
}

/// A copy of the shipped backbone that may be damaged.
fn copy() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(shipped().join(name), dir.path().join(name)).unwrap();
    }
    dir
}

fn refused(dir: &Path, parts: &[&str]) {
    let error = Backbone::load(dir).unwrap_err().to_string();
    for part in parts {
        assert!(error.contains(part), "no {part:?} in: {error}");
    }
}

fn change_config(dir: &Path, change: impl FnOnce(&mut Value)) {
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
}

/// Writes the tensors as two shards and an index, and removes the single file.
fn shard(dir: &Path) {
    let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut map = BTreeMap::new();
    for part in 0..2 {
        let name = format!("model-{}-of-00002.safetensors", part + 1);
        let mut tensors = file.tensors();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        let mine: Vec<_> = tensors.into_iter().skip(part).step_by(2).collect();
        map.extend(mine.iter().map(|(tensor, _)| (tensor.clone(), name.clone())));
        let bytes = safetensors::serialize(mine, None).unwrap();
        std::fs::write(dir.join(&name), bytes).unwrap();
    }
    let index = json!({ "metadata": {}, "weight_map": map });
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    std::fs::remove_file(dir.join("model.safetensors")).unwrap();
}

#[test]
fn shards_with_an_index_are_the_same_backbone() {
    let dir = copy();
    shard(dir.path());
    let logits = |dir: &Path| {
        let backbone = Backbone::load(dir).unwrap();
        let prompt = Prompt { tokens: &[1, 403, 407], representation: &[] };
        AdaptedModel::bare(&backbone).logits_at(&mut Workspace::new(), &prompt, 2, None).unwrap()
    };
    assert!(logits(dir.path()) == logits(&shipped()));
    std::fs::remove_file(dir.path().join("model-2-of-00002.safetensors")).unwrap();
    refused(dir.path(), &["model-2-of-00002.safetensors"]);
    let index = dir.path().join("model.safetensors.index.json");
    let text = std::fs::read_to_string(&index).unwrap();
    std::fs::write(&index, text.replace("model-2-of", "../model-2-of")).unwrap();
    refused(dir.path(), &["model.safetensors.index.json"]);
    std::fs::write(&index, "{").unwrap();
    refused(dir.path(), &["model.safetensors.index.json"]);
}

#[test]
fn a_truncated_backbone_is_refused_at_every_length() {
    let dir = copy();
    let path = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for length in [0, 1, 7, 8, 9, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        refused(dir.path(), &["model.safetensors"]);
    }
    std::fs::remove_file(&path).unwrap();
    refused(dir.path(), &["model.safetensors"]);
}

#[test]
fn configs_that_can_not_be_run_are_refused_by_name() {
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 5] = [
        ("MistralForCausalLM", |c| c["architectures"] = json!(["MistralForCausalLM"])),
        ("hidden_size", |c| c["hidden_size"] = json!("wide")),
        ("num_hidden_layers", |c| {
            c.as_object_mut().unwrap().remove("num_hidden_layers");
        }),
        ("num_key_value_heads", |c| c["num_key_value_heads"] = json!(3)),
        ("model.layers.5", |c| c["num_hidden_layers"] = json!(6)),
    ];
    for (name, change) in cases {
        let dir = copy();
        change_config(dir.path(), change);
        refused(dir.path(), &[name]);
    }
    let dir = copy();
    change_config(dir.path(), |c| c["intermediate_size"] = json!(100));
    refused(dir.path(), &["model.safetensors", "mlp", "shape"]);
    std::fs::write(dir.path().join("config.json"), "{\"hidden_size\"").unwrap();
    refused(dir.path(), &["config.json"]);
}

fn adapter(backbone: &Backbone, form: MixForm) -> Adapter {
    let config = AdapterConfig { experts: 3, rank: 2, form, ..AdapterConfig::default() };
    Adapter::new(backbone.config(), &config, WIDTH, 9).unwrap()
}

#[test]
fn an_adapter_is_read_as_it_was_written_and_one_changed_byte_is_refused() {
    let backbone = Backbone::load(&shipped()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (path, again) = (dir.path().join("a.safetensors"), dir.path().join("b.safetensors"));
    let adapter = adapter(&backbone, MixForm::Product);
    adapter.save(&path).unwrap();
    let loaded = Adapter::load(&path, backbone.config()).unwrap();
    assert_eq!(loaded, adapter);
    loaded.save(&again).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes == std::fs::read(&again).unwrap());
    for at in (0..bytes.len()).step_by(97).chain([bytes.len() - 1]) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        std::fs::write(&path, &damaged).unwrap();
        // A changed byte of the settings may name other settings, which other code then checks;
        // it must not give this adapter with other numbers.
        if let Ok(read) = Adapter::load(&path, backbone.config()) {
            assert_eq!(read.parameters(), adapter.parameters(), "byte {at}");
        }
        std::fs::write(&path, &bytes[..at]).unwrap();
        let error = Adapter::load(&path, backbone.config()).unwrap_err().to_string();
        assert!(error.contains("a.safetensors"), "{error}");
    }
}

/// PEFT scales by its own `lora_alpha / r`: that must be the adapter's scale in both forms.
#[test]
fn a_peft_directory_holds_the_mixed_adapter() {
    let backbone = Backbone::load(&shipped()).unwrap();
    for form in [MixForm::Factor, MixForm::Product] {
        let adapter = adapter(&backbone, form);
        let dir = tempfile::tempdir().unwrap();
        let c = [0.5; WIDTH];
        adapter.save_peft(&c, "some/backbone", dir.path()).unwrap();
        let config = std::fs::read(dir.path().join("adapter_config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        let bytes = std::fs::read(dir.path().join("adapter_model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let mixed = adapter.mixed(&c).unwrap();
        assert_eq!(file.len(), 2 * mixed.len());
        for module in mixed {
            let scale = config["lora_alpha"].as_f64().unwrap() / config["r"].as_f64().unwrap();
            assert_eq!(scale as f32, module.scale);
            let name = format!("base_model.model.{}.lora_A.weight", module.name);
            let a = file.tensor(&name).unwrap();
            assert_eq!(a.shape(), [module.rank, module.d_in]);
            let values = module.lora_a.iter().flat_map(|value| value.to_le_bytes());
            assert!(values.eq(a.data().iter().copied()), "{name}");
        }
        assert_eq!(config["target_modules"], json!(["q_proj", "v_proj"]));
        assert_eq!(config["base_model_name_or_path"], "some/backbone");
    }
}
