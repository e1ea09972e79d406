//! The adapter's own file, and its export for Hugging Face PEFT.

use crate::tiny;
use std::path::Path;

use crate::tiny::{Sizes, uniform};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use reclora_trainer::adapter::{Adapter, AdapterLayout, MixedModule};
use reclora_trainer::backbone::{Backbone, BackboneConfig, Projection};
use reclora_trainer::config::{AdapterConfig, Head, MixForm};
use reclora_trainer::error::{Remedy, TrainerError};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

const WIDTH: usize = 5;

fn settings(form: MixForm) -> AdapterConfig {
    AdapterConfig {
        experts: 3,
        rank: 2,
        lora_alpha: 5.0,
        temperature: 0.7,
        form,
        sqrt_alpha: true,
        gate_hidden: 4,
        ..AdapterConfig::default()
    }
}

fn backbone() -> Backbone {
    tiny::backbone(&Sizes::default(), 1)
}

/// Every kind of f32 that a round trip could change among its parameters.
fn adapter(backbone: &BackboneConfig, config: &AdapterConfig) -> Adapter {
    let layout = AdapterLayout::new(backbone, config, WIDTH).unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(2);
    let mut parameters = uniform(layout.num_parameters(), 0.3, &mut random);
    parameters[..4].copy_from_slice(&[-0.0, f32::MIN_POSITIVE / 8.0, f32::MAX, 1.0 + f32::EPSILON]);
    Adapter::from_parameters(layout, parameters).unwrap()
}

fn bits(adapter: &Adapter) -> Vec<u32> {
    adapter.parameters().iter().map(|value| value.to_bits()).collect()
}

/// A saved adapter, and what its file holds.
struct Saved {
    dir: TempDir,
    backbone: Backbone,
    adapter: Adapter,
    bytes: Vec<u8>,
}

impl Saved {
    fn new(form: MixForm) -> Self {
        let backbone = backbone();
        let adapter = adapter(backbone.config(), &settings(form));
        let dir = tempfile::tempdir().unwrap();
        adapter.save(&dir.path().join("adapter.safetensors")).unwrap();
        let bytes = std::fs::read(dir.path().join("adapter.safetensors")).unwrap();
        Self { dir, backbone, adapter, bytes }
    }

    /// What is read when the file holds these bytes; the error as text.
    fn load(&self, bytes: &[u8]) -> Result<Adapter, String> {
        let path = self.dir.path().join("damaged.safetensors");
        std::fs::write(&path, bytes).unwrap();
        let loaded = Adapter::load(&path, self.backbone.config());
        loaded.map_err(|error| explained(&path, &error))
    }

    /// Length of the part before the values.
    fn header(&self) -> usize {
        8 + u64::from_le_bytes(self.bytes[..8].try_into().unwrap()) as usize
    }
}

/// The message, which must begin with the file and say what to do.
fn explained(path: &Path, error: &TrainerError) -> String {
    let message = error.to_string();
    assert!(message.starts_with(&format!("{}: ", path.display())), "{message}");
    let rebuilt = matches!(error, TrainerError::Remake { remedy: Remedy::Rebuild("tune"), .. });
    assert!(rebuilt, "{message}");
    message
}

#[test]
fn an_adapter_is_read_bit_for_bit_and_always_written_as_the_same_bytes() {
    let backbone = backbone();
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    for form in [MixForm::Factor, MixForm::Product] {
        for (experts, top_k, head) in [(1, 0, Head::Lm), (3, 2, Head::Ctr1), (3, 0, Head::Ctr2)] {
            let config = AdapterConfig { experts, top_k, head, ..settings(form) };
            let adapter = adapter(backbone.config(), &config);
            adapter.save(&first).unwrap();
            let loaded = Adapter::load(&first, backbone.config()).unwrap();
            assert_eq!(bits(&loaded), bits(&adapter));
            assert_eq!(loaded.layout(), adapter.layout());
            loaded.save(&second).unwrap();
            assert!(std::fs::read(&first).unwrap() == std::fs::read(&second).unwrap());
        }
    }
}

/// What PEFT has no place for, as a file of its own.
#[test]
fn a_trained_head_is_a_file_beside_the_lora() {
    let (backbone, dir) = (backbone(), tempfile::tempdir().unwrap());
    let path = dir.path().join("head.safetensors");
    let new =
        |head| adapter(backbone.config(), &AdapterConfig { head, ..settings(MixForm::Factor) });
    assert!(!new(Head::Lm).save_head(&path).unwrap() && !path.exists());
    for (head, outputs) in [(Head::Ctr1, 1), (Head::Ctr2, 2)] {
        let adapter = new(head);
        assert!(adapter.save_head(&path).unwrap());
        let bytes = std::fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.len(), 2);
        let layout = adapter.layout().head().unwrap();
        let parts = [("head.weight", &layout.weight), ("head.bias", &layout.bias)];
        for ((name, range), shape) in parts.into_iter().zip([vec![outputs, 12], vec![outputs]]) {
            let tensor = file.tensor(name).unwrap();
            let expected = adapter.parameters()[range.clone()].iter();
            let expected: Vec<u8> = expected.flat_map(|value| value.to_le_bytes()).collect();
            assert_eq!((tensor.shape(), tensor.data()), (&shape[..], &expected[..]), "{name}");
        }
    }
}

#[test]
fn a_truncated_or_longer_file_is_refused_at_every_length() {
    let saved = Saved::new(MixForm::Factor);
    let lengths = (0..saved.header() + 64).chain((saved.header()..saved.bytes.len()).step_by(61));
    for length in lengths.chain([saved.bytes.len() - 1]) {
        assert!(saved.load(&saved.bytes[..length]).is_err(), "{length} bytes");
    }
    assert!(saved.load(&[&saved.bytes[..], &[0]].concat()).is_err(), "a byte too many");
    let nowhere = saved.dir.path().join("nowhere.safetensors");
    let error = Adapter::load(&nowhere, saved.backbone.config()).unwrap_err();
    explained(&nowhere, &error);
}

/// Settings are numbers too: a damaged temperature would be another adapter, quietly. Only blanks
/// between the header and the values may change, to other blanks.
#[test]
fn a_file_with_a_changed_byte_is_refused() {
    let saved = Saved::new(MixForm::Product);
    let values = (saved.header()..saved.bytes.len()).step_by(7);
    for at in (0..saved.header()).chain(values).chain([saved.bytes.len() - 1]) {
        for mask in [0x01, 0x02, 0x04, 0x10, 0x20, 0x80] {
            let mut bytes = saved.bytes.clone();
            bytes[at] ^= mask;
            if let Ok(loaded) = saved.load(&bytes) {
                let text = String::from_utf8_lossy(&bytes[at.saturating_sub(40)..at + 20]);
                assert_eq!(loaded.layout(), saved.adapter.layout(), "byte {at} ^ {mask}: {text}");
                assert_eq!(bits(&loaded), bits(&saved.adapter), "byte {at} ^ {mask}: {text}");
                assert!(saved.bytes[at].is_ascii_whitespace(), "byte {at} ^ {mask}: {text}");
            }
        }
    }
}

/// Each setting, changed to another that is valid by itself.
#[test]
fn a_header_with_other_settings_is_refused() {
    let saved = Saved::new(MixForm::Factor);
    let text = String::from_utf8_lossy(&saved.bytes).into_owned();
    let changes = [
        (r#"\"temperature\":0.7"#, r#"\"temperature\":0.8"#),
        (r#"\"lora_alpha\":5.0"#, r#"\"lora_alpha\":6.0"#),
        (r#"\"sqrt_alpha\":true,"#, r#"\"sqrt_alpha\":false"#),
        (r#"\"experts\":3"#, r#"\"experts\":0"#),
        (r#"\"experts\":3"#, r#"\"experts\":9"#),
        (r#"\"rank\":2"#, r#"\"rank\":4"#),
        (r#"\"gate_dropout\":0.1"#, r#"\"gate_dropout\":0.2"#),
    ];
    for (from, to) in changes {
        let at = text.find(from).unwrap_or_else(|| panic!("no {from} in {text}"));
        let mut bytes = saved.bytes.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        assert!(saved.load(&bytes).is_err(), "{to}");
    }
}

#[test]
fn an_adapter_of_another_backbone_is_refused() {
    let saved = Saved::new(MixForm::Factor);
    let path = saved.dir.path().join("adapter.safetensors");
    let sizes = Sizes::default();
    let others = [
        ("fewer blocks", Sizes { layers: 1, ..sizes }),
        ("more blocks", Sizes { layers: 3, ..sizes }),
        ("wider", Sizes { hidden: 24, ..sizes }),
        ("more key heads", Sizes { kv_heads: 4, ..sizes }),
        ("wider heads", Sizes { head_dim: 8, ..sizes }),
    ];
    for (what, other) in others {
        let other = tiny::backbone(&other, 1);
        let error = Adapter::load(&path, other.config()).expect_err(what);
        assert!(explained(&path, &error).contains("tensor model.layers."), "{error}");
    }
}

#[test]
fn a_safetensors_file_of_something_else_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    tiny::write(dir.path(), &Sizes::default(), 1);
    let path = dir.path().join("model.safetensors");
    let error = Adapter::load(&path, backbone().config()).unwrap_err();
    assert!(explained(&path, &error).contains("is not an adapter"), "{error}");
}

#[test]
fn a_file_that_can_not_be_written_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("no/such/directory/adapter.safetensors");
    let backbone = backbone();
    let adapter = adapter(backbone.config(), &settings(MixForm::Factor));
    let error = adapter.save(&path).unwrap_err().to_string();
    assert!(error.contains(&path.display().to_string()), "{error}");
}

/// An exported directory: its config, and the bytes of its tensors.
fn export(adapter: &Adapter, c: &[f32]) -> (Value, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    adapter.save_peft(c, "some/backbone", dir.path()).unwrap();
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    (
        serde_json::from_slice(&read("adapter_config.json")).unwrap(),
        read("adapter_model.safetensors"),
    )
}

fn values(file: &SafeTensors<'_>, name: &str, shape: [usize; 2]) -> Vec<f64> {
    let tensor = file.tensor(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!((tensor.dtype(), tensor.shape()), (safetensors::Dtype::F32, &shape[..]), "{name}");
    let values = tensor.data().as_chunks().0.iter();
    values.map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect()
}

/// `scale * B A` `[d_out, d_in]`.
fn update(scale: f64, a: &[f64], b: &[f64], d_in: usize) -> Vec<f64> {
    let rank = a.len() / d_in;
    let entry = |row: &[f64], i: usize| {
        scale * row.iter().enumerate().map(|(r, b)| b * a[r * d_in + i]).sum::<f64>()
    };
    b.chunks_exact(rank)
        .flat_map(|row| (0..d_in).map(|i| entry(row, i)).collect::<Vec<_>>())
        .collect()
}

/// The update that the method asks for, straight from the experts: `α_lora / r · B_p A_p`, or
/// `α_lora / r · Σ α_k B_k A_k`.
fn expected_update(adapter: &Adapter, index: usize, c: &[f32]) -> Vec<f64> {
    let (config, module) = (adapter.config(), &adapter.layout().modules()[index]);
    let scale = f64::from(config.lora_alpha) / config.rank as f64;
    let alpha: Vec<f64> = adapter.alpha(c).unwrap()[index].iter().map(|x| f64::from(*x)).collect();
    let wide = |range: &std::ops::Range<usize>| -> Vec<f64> {
        adapter.parameters()[range.clone()].iter().map(|x| f64::from(*x)).collect()
    };
    let (a, b) = (wide(&module.a), wide(&module.b));
    let experts = |all: &[f64]| {
        all.chunks_exact(all.len() / alpha.len()).map(<[f64]>::to_vec).collect::<Vec<_>>()
    };
    let (a, b) = (experts(&a), experts(&b));
    match config.form {
        MixForm::Factor => {
            let (a, b) = (weighted_sum(&alpha, &a), weighted_sum(&alpha, &b));
            update(scale, &a, &b, module.d_in)
        }
        MixForm::Product => {
            let products = a.iter().zip(&b).map(|(a, b)| update(scale, a, b, module.d_in));
            weighted_sum(&alpha, &products.collect::<Vec<_>>())
        }
    }
}

fn weighted_sum(weights: &[f64], terms: &[Vec<f64>]) -> Vec<f64> {
    let at = |i: usize| weights.iter().zip(terms).map(|(w, term)| w * term[i]).sum();
    (0..terms[0].len()).map(at).collect()
}

fn assert_close(got: &[f64], expected: &[f64], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
    let worst = got.iter().zip(expected).fold(0.0_f64, |max, (a, b)| max.max((a - b).abs()));
    assert!(largest > 0.0 && worst < 1e-6 * largest, "{what}: {worst} of {largest}");
}

fn as_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

/// An adapter whose parameters are all of one size.
fn ordinary(backbone: &Backbone, config: &AdapterConfig) -> Adapter {
    let mut adapter = adapter(backbone.config(), config);
    adapter.parameters_mut()[..4].copy_from_slice(&[0.1, -0.2, 0.3, -0.1]);
    adapter
}

/// PEFT computes `W0 + lora_alpha / r · B A` from what the directory says; nothing else is read.
#[test]
fn a_peft_directory_is_the_adapter_of_one_representation() {
    let backbone = backbone();
    let c = uniform(WIDTH, 1.0, &mut ChaCha8Rng::seed_from_u64(3));
    for form in [MixForm::Factor, MixForm::Product] {
        for experts in [1, 3] {
            let adapter = ordinary(&backbone, &AdapterConfig { experts, ..settings(form) });
            let (config, bytes) = export(&adapter, &c);
            let file = SafeTensors::deserialize(&bytes).unwrap();
            let mixed = adapter.mixed(&c).unwrap();
            assert_eq!(file.len(), 2 * mixed.len());
            let scale = config["lora_alpha"].as_f64().unwrap() / config["r"].as_f64().unwrap();
            for (index, module) in mixed.iter().enumerate() {
                let got = exported_update(&file, scale, module);
                let what = format!("{form:?}, {experts} experts, {}", module.name);
                assert_close(&got, &expected_update(&adapter, index, &c), &what);
                let (a, b) = (as_f64(&module.lora_a), as_f64(&module.lora_b));
                assert_close(&got, &update(f64::from(module.scale), &a, &b, module.d_in), &what);
            }
        }
    }
}

fn exported_update(file: &SafeTensors<'_>, scale: f64, module: &MixedModule) -> Vec<f64> {
    let name = |part: &str| format!("base_model.model.{}.{part}.weight", module.name);
    let a = values(file, &name("lora_A"), [module.rank, module.d_in]);
    let b = values(file, &name("lora_B"), [module.d_out, module.rank]);
    update(scale, &a, &b, module.d_in)
}

#[test]
fn the_peft_config_says_rank_scale_and_targets() {
    let backbone = backbone();
    let both = [Projection::VProj, Projection::QProj];
    let cases: [(MixForm, &[Projection], Value, Value, Value); 3] = [
        (MixForm::Factor, &both, json!(2), json!(5), json!(["q_proj", "v_proj"])),
        (MixForm::Product, &both, json!(6), json!(15), json!(["q_proj", "v_proj"])),
        (MixForm::Factor, &both[..1], json!(2), json!(5), json!(["v_proj"])),
    ];
    for (form, targets, r, lora_alpha, names) in cases {
        let config = AdapterConfig { targets: targets.to_vec(), ..settings(form) };
        let (config, bytes) = export(&ordinary(&backbone, &config), &[0.5; WIDTH]);
        assert_eq!(config["peft_type"], "LORA");
        assert_eq!(config["task_type"], "CAUSAL_LM");
        assert_eq!(config["base_model_name_or_path"], "some/backbone");
        assert_eq!((&config["r"], &config["lora_alpha"]), (&r, &lora_alpha), "{form:?}");
        assert_eq!(config["target_modules"], names);
        // What would change the scale, the tensors or what else is added.
        for (field, value) in
            [("use_rslora", json!(false)), ("use_dora", json!(false)), ("bias", json!("none"))]
        {
            assert_eq!(config[field], value, "{field}");
        }
        let file = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.len(), 2 * 2 * targets.len(), "A and B, two blocks");
    }
}

#[test]
fn a_representation_of_another_width_is_refused() {
    let backbone = backbone();
    let adapter = ordinary(&backbone, &settings(MixForm::Factor));
    let dir = tempfile::tempdir().unwrap();
    let error = adapter.save_peft(&[0.5; WIDTH + 1], "some/backbone", dir.path()).unwrap_err();
    assert!(error.to_string().contains("6 values"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was written");
}
