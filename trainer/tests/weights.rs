//! Frozen weights in bf16 and Q8_0, and the memory of a pass.

use crate::tiny;
use std::path::Path;

use crate::gguf_file::{GgufFile, Q8_0};
use crate::tiny::{Sizes, Tensor, Tensors, uniform};
use half::bf16;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use reclora_trainer::adapter::{Adapter, AdapterLayout};
use reclora_trainer::backbone::{Backbone, Projection, WeightType};
use reclora_trainer::config::AdapterConfig;
use reclora_trainer::engine::{AdaptedModel, Prompt, Target, TrainingSample, Workspace};
use reclora_trainer::losses::TokenCrossEntropy;
use safetensors::Dtype;

const WIDTH: usize = 5;

/// Rows of whole blocks of Q8_0.
const SIZES: Sizes = Sizes {
    hidden: 64,
    intermediate: 96,
    layers: 2,
    heads: 4,
    kv_heads: 2,
    head_dim: 16,
    vocab: 33,
    tied: false,
};

fn load(sizes: &Sizes, tensors: &Tensors, weights: WeightType) -> Backbone {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), tiny::config(sizes).to_string()).unwrap();
    tiny::save(&dir.path().join(tiny::WEIGHTS), tensors);
    Backbone::load_as(dir.path(), weights).unwrap()
}

fn adapter(backbone: &Backbone) -> Adapter {
    let targets = Projection::ALL.to_vec();
    let config = AdapterConfig { experts: 3, rank: 2, targets, ..AdapterConfig::default() };
    let layout = AdapterLayout::new(backbone.config(), &config, WIDTH).unwrap();
    let parameters = uniform(layout.num_parameters(), 0.2, &mut ChaCha8Rng::seed_from_u64(3));
    Adapter::from_parameters(layout, parameters).unwrap()
}

/// Loss, logits and gradient of one sample.
fn results(backbone: &Backbone) -> (f32, Vec<f32>, Vec<f32>) {
    let adapter = adapter(backbone);
    let model = AdaptedModel::new(backbone, &adapter);
    let tokens: Vec<u32> = (0..20).map(|i| (i * 7 + 3) % SIZES.vocab as u32).collect();
    let representation = uniform(WIDTH, 1.0, &mut ChaCha8Rng::seed_from_u64(4));
    let prompt = Prompt { tokens: &tokens, representation: &representation };
    let mut gradient = vec![0.0; adapter.num_parameters()];
    let targets = [Target { position: 12, token: 5 }, Target { position: 19, token: 9 }];
    let ws = &mut Workspace::new();
    let sample = TrainingSample::new(prompt, &targets);
    let losses = model.train(ws, &[sample], &TokenCrossEntropy, 1.0, &mut gradient).unwrap();
    (losses.training, model.logits_at(ws, &prompt, 19, None).unwrap(), gradient)
}

/// Length of the difference, relative to the length of `b`.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    let length = |values: &mut dyn Iterator<Item = f32>| {
        values.map(|x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
    };
    length(&mut a.iter().zip(b).map(|(a, b)| a - b)) / length(&mut b.iter().copied())
}

/// The same tensors with every value of a matrix rounded to bf16: stored as f32, and as bf16.
fn rounded(tensors: &Tensors) -> (Tensors, Tensors) {
    let both = tensors.iter().map(|(name, tensor)| {
        if tensor.shape.len() == 1 {
            return (name, tensor.clone(), tensor.clone());
        }
        let values = tensor.bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
        let values: Vec<bf16> = values.map(bf16::from_f32).collect();
        let wide: Vec<f32> = values.iter().map(|x| x.to_f32()).collect();
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let narrow = Tensor { dtype: Dtype::BF16, shape: tensor.shape.clone(), bytes };
        (name, tiny::f32_tensor(&tensor.shape, &wide), narrow)
    });
    both.map(|(name, wide, narrow)| ((name.clone(), wide), (name.clone(), narrow))).unzip()
}

#[test]
fn bf16_is_the_model_of_its_rounded_weights() {
    let tensors = tiny::tensors(&SIZES, 1);
    let (wide, narrow) = rounded(&tensors);
    let expected = results(&load(&SIZES, &wide, WeightType::F32));
    let got = results(&load(&SIZES, &tensors, WeightType::Bf16));
    // What is multiplied with the weights may be rounded too: 2^-9 each, some of it averaging out.
    assert!((got.0 - expected.0).abs() < 0.02 * expected.0, "{} {}", got.0, expected.0);
    assert!(distance(&got.1, &expected.1) < 0.02, "{}", distance(&got.1, &expected.1));
    assert!(distance(&got.2, &expected.2) < 0.03, "{}", distance(&got.2, &expected.2));
    // Mapped or converted, the same.
    for mapped in [&narrow, &wide] {
        assert!(results(&load(&SIZES, mapped, WeightType::Bf16)) == got);
    }
    assert!(results(&load(&SIZES, &narrow, WeightType::F32)) == expected);
}

#[test]
fn q8_0_is_the_model_of_its_blocks_values() {
    let tensors = tiny::tensors(&SIZES, 1);
    let mut file = GgufFile::of(&SIZES, &tensors);
    for tensor in file.tensors.iter_mut().filter(|tensor| tensor.dims.len() == 2) {
        let values = tensor.bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b));
        let values: Vec<f32> = values.collect();
        let blocks = reclora_trainer::kernels::q8_0::quantize_row(&values).unwrap();
        (tensor.kind, tensor.bytes) = (Q8_0, blocks.as_flattened().to_vec());
    }
    let dir = tempfile::tempdir().unwrap();
    let path = file.write(dir.path());
    let from_file = |path: &Path, weights| results(&Backbone::load_as(path, weights).unwrap());
    let expected = from_file(&path, WeightType::F32);
    let got = from_file(&path, WeightType::Q8_0);
    assert!(distance(&got.1, &expected.1) < 1e-5, "{}", distance(&got.1, &expected.1));
    assert!(distance(&got.2, &expected.2) < 1e-4, "{}", distance(&got.2, &expected.2));
    // Converted from f32, the same blocks.
    assert!(results(&load(&SIZES, &tensors, WeightType::Q8_0)) == got);
    let exact = results(&load(&SIZES, &tensors, WeightType::F32));
    let wrong = distance(&got.1, &exact.1);
    assert!(wrong > 1e-4 && wrong < 0.05, "{wrong}");
}

#[test]
fn rows_that_are_no_whole_blocks_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    tiny::write(dir.path(), &Sizes::default(), 1);
    let error = Backbone::load_as(dir.path(), WeightType::Q8_0).unwrap_err().to_string();
    for part in ["model.safetensors: tensor model.embed_tokens.weight", "blocks of 32", "bf16"] {
        assert!(error.contains(part), "no {part:?} in: {error}");
    }
}

/// Activations kept for the backward of a model of this many layers.
fn kept(layers: usize, budget: usize) -> usize {
    let sizes = Sizes { layers, ..SIZES };
    let backbone = load(&sizes, &tiny::tensors(&sizes, 1), WeightType::F32);
    let adapter = adapter(&backbone);
    let model = AdaptedModel::new(&backbone, &adapter);
    let tokens = [1; 64];
    let prompt = Prompt { tokens: &tokens, representation: &[0.5; WIDTH] };
    let mut ws = Workspace::new();
    ws.set_activation_budget(budget);
    let target = [Target { position: 63, token: 1 }];
    let mut gradient = vec![0.0; adapter.num_parameters()];
    let sample = TrainingSample::new(prompt, &target);
    model.train(&mut ws, &[sample], &TokenCrossEntropy, 1.0, &mut gradient).unwrap();
    ws.activation_bytes()
}

/// With blocks recomputed, a further layer adds at most 5 % of a block's activations.
#[test]
fn memory_hardly_grows_with_depth_where_blocks_are_recomputed() {
    let (few, many) = (6, 24);
    let per_layer = |budget| (kept(many, budget) - kept(few, budget)) as f64 / (many - few) as f64;
    let (block, recomputed) = (per_layer(usize::MAX), per_layer(0));
    assert!(recomputed <= 0.05 * block, "{recomputed} of {block} bytes");
}
