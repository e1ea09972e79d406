//! The shipped backbone with adapters of random parameters, as the facts about the method need them.
// Each test file uses a part of this; a panic is the report of a failed test.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reclora_trainer::adapter::{Adapter, AdapterLayout};
use reclora_trainer::backbone::Backbone;
use reclora_trainer::config::{AdapterConfig, MixForm};
use reclora_trainer::engine::{AdaptedModel, Prompt, Workspace};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

pub const TOKENS: [u32; 7] = [1, 403, 407, 261, 378, 20, 9];
pub const WIDTH: usize = 12;
pub const FORMS: [MixForm; 2] = [MixForm::Factor, MixForm::Product];

pub fn model_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/models/stories260k")
}

pub fn stories() -> Backbone {
    Backbone::load(&model_dir()).unwrap()
}

pub fn uniform(n: usize, bound: f32, random: &mut ChaCha8Rng) -> Vec<f32> {
    (0..n).map(|_| random.random_range(-bound..bound)).collect()
}

pub fn settings(form: MixForm) -> AdapterConfig {
    AdapterConfig { experts: 4, rank: 3, form, temperature: 0.7, ..AdapterConfig::default() }
}

/// An adapter of random parameters, as after much training.
pub fn random_adapter(backbone: &Backbone, config: &AdapterConfig, seed: u64) -> Adapter {
    let layout = AdapterLayout::new(backbone.config(), config, WIDTH).unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let parameters = uniform(layout.num_parameters(), 0.3, &mut random);
    Adapter::from_parameters(layout, parameters).unwrap()
}

pub fn representation(seed: u64) -> Vec<f32> {
    uniform(WIDTH, 1.0, &mut ChaCha8Rng::seed_from_u64(seed))
}

pub fn logits(model: AdaptedModel<'_>, representation: &[f32]) -> Vec<f32> {
    let prompt = Prompt { tokens: &TOKENS, representation };
    model.logits_at(&mut Workspace::new(), &prompt, TOKENS.len() - 1, None).unwrap()
}

pub fn assert_close(got: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-12_f32, |max, x| max.max(x.abs()));
    let worst = got.iter().zip(expected).fold(0.0_f32, |max, (a, b)| max.max((a - b).abs()));
    assert!(worst <= tolerance * largest, "{what}: {worst} of {largest}");
}

/// The backbone with an adapter's mix for one representation added to its weight files.
pub fn merged(adapter: &Adapter, c: &[f32]) -> Backbone {
    let dir = tempfile::tempdir().unwrap();
    let config = model_dir().join("config.json");
    std::fs::copy(config, dir.path().join("config.json")).unwrap();
    let bytes = std::fs::read(model_dir().join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mixed = adapter.mixed(c).unwrap();
    let mut tensors = Vec::new();
    for (name, view) in file.tensors() {
        assert_eq!(view.dtype(), Dtype::F32);
        let mut values: Vec<f32> =
            view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        if let Some(module) = mixed.iter().find(|module| name == format!("{}.weight", module.name))
        {
            for (index, value) in values.iter_mut().enumerate() {
                let (row, column) = (index / module.d_in, index % module.d_in);
                let product: f64 = (0..module.rank)
                    .map(|r| {
                        f64::from(module.lora_b[row * module.rank + r])
                            * f64::from(module.lora_a[r * module.d_in + column])
                    })
                    .sum();
                *value = (f64::from(*value) + f64::from(module.scale) * product) as f32;
            }
        }
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        tensors.push((name, view.shape().to_vec(), bytes));
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    Backbone::load(dir.path()).unwrap()
}
