//! What personalised LoRA is, as facts about whole models: each must hold for any experts and gates.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

use std::path::{Path, PathBuf};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reclora_trainer::adapter::{Adapter, AdapterLayout};
use reclora_trainer::backbone::{Backbone, BackboneConfig};
use reclora_trainer::config::{AdapterConfig, MixForm};
use reclora_trainer::model::{AdaptedModel, Dropout, LoraPath, Prompt, Target, Workspace};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

const TOKENS: [u32; 7] = [1, 403, 407, 261, 378, 20, 9];
const WIDTH: usize = 12;
const FORMS: [MixForm; 2] = [MixForm::Factor, MixForm::Product];

fn model_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/models/stories260k")
}

fn stories() -> Backbone {
    Backbone::load(&model_dir()).unwrap()
}

fn uniform(n: usize, bound: f32, random: &mut ChaCha8Rng) -> Vec<f32> {
    (0..n).map(|_| random.random_range(-bound..bound)).collect()
}

fn settings(form: MixForm) -> AdapterConfig {
    AdapterConfig { experts: 4, rank: 3, form, temperature: 0.7, ..AdapterConfig::default() }
}

/// An adapter of random parameters, as after much training.
fn random_adapter(backbone: &Backbone, config: &AdapterConfig, seed: u64) -> Adapter {
    let layout = AdapterLayout::new(backbone.config(), config, WIDTH).unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let parameters = uniform(layout.num_parameters(), 0.3, &mut random);
    Adapter::from_parameters(layout, parameters).unwrap()
}

fn representation(seed: u64) -> Vec<f32> {
    uniform(WIDTH, 1.0, &mut ChaCha8Rng::seed_from_u64(seed))
}

fn logits(model: AdaptedModel<'_>, representation: &[f32]) -> Vec<f32> {
    let prompt = Prompt { tokens: &TOKENS, representation };
    model.logits_at(&mut Workspace::new(), &prompt, TOKENS.len() - 1, None).unwrap()
}

fn assert_close(got: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-12_f32, |max, x| max.max(x.abs()));
    let worst = got.iter().zip(expected).fold(0.0_f32, |max, (a, b)| max.max((a - b).abs()));
    assert!(worst <= tolerance * largest, "{what}: {worst} of {largest}");
}

/// Plain LoRA with, per module, the A and B that `choose` makes of the experts' (each `[N, …]`).
fn plain(
    backbone: &Backbone,
    adapter: &Adapter,
    choose: impl Fn(usize, &[f32]) -> Vec<f32>,
) -> Adapter {
    let config = AdapterConfig { experts: 1, ..adapter.config().clone() };
    let layout = AdapterLayout::new(backbone.config(), &config, 0).unwrap();
    let mut parameters = Vec::new();
    for (index, module) in adapter.layout().modules().iter().enumerate() {
        parameters.extend(choose(index, &adapter.parameters()[module.a.clone()]));
        parameters.extend(choose(index, &adapter.parameters()[module.b.clone()]));
    }
    Adapter::from_parameters(layout, parameters).unwrap()
}

/// M-1: at the first step the adapted model is the backbone, to the last bit.
#[test]
fn m1_a_new_adapter_leaves_the_backbone_as_it_is() {
    let backbone = stories();
    let bare = logits(AdaptedModel::bare(&backbone), &[]);
    for form in FORMS {
        for experts in [1, 4, 16] {
            let config = AdapterConfig { experts, form, ..AdapterConfig::default() };
            let adapter = Adapter::new(backbone.config(), &config, WIDTH, 3).unwrap();
            let adapted = logits(AdaptedModel::new(&backbone, &adapter), &representation(1));
            assert!(adapted == bare, "{form:?}, {experts} experts");
        }
    }
}

#[test]
fn one_expert_is_plain_lora_and_reads_no_representation() {
    let backbone = stories();
    for form in FORMS {
        let config = AdapterConfig { experts: 1, ..settings(form) };
        let adapter = random_adapter(&backbone, &config, 1);
        assert_eq!(adapter.representation_dim(), 0);
        let model = AdaptedModel::new(&backbone, &adapter);
        let expected = logits(AdaptedModel::bare(&merged(&adapter, &[])), &[]);
        let got = logits(model, &[]);
        assert_close(&got, &expected, 1e-5, "plain LoRA");
        assert!(got == logits(model, &representation(2)));
    }
}

#[test]
fn with_all_weight_on_one_expert_the_others_do_not_matter() {
    let backbone = stories();
    for form in FORMS {
        for expert in 0..4 {
            let mut adapter = random_adapter(&backbone, &settings(form), 2);
            for module in adapter.layout().modules().to_vec() {
                adapter.parameters_mut()[module.gate.unwrap().fc2_bias.start + expert] = 1e6;
            }
            let alpha = adapter.alpha(&representation(3)).unwrap();
            assert!(
                alpha.iter().all(|alpha| alpha[expert] == 1.0 && alpha.iter().sum::<f32>() == 1.0)
            );
            let only = plain(&backbone, &adapter, |_, experts| {
                experts.chunks_exact(experts.len() / 4).nth(expert).unwrap().to_vec()
            });
            let got = logits(AdaptedModel::new(&backbone, &adapter), &representation(3));
            let expected = logits(AdaptedModel::new(&backbone, &only), &[]);
            assert_close(&got, &expected, 1e-5, &format!("{form:?}, expert {expert}"));
        }
    }
}

#[test]
fn at_infinite_temperature_it_is_the_mean_expert() {
    let backbone = stories();
    let config = AdapterConfig { temperature: 1e12, ..settings(MixForm::Factor) };
    let adapter = random_adapter(&backbone, &config, 4);
    let mean = plain(&backbone, &adapter, |_, experts| {
        let length = experts.len() / 4;
        (0..length).map(|i| (0..4).map(|k| experts[k * length + i]).sum::<f32>() / 4.0).collect()
    });
    let got = logits(AdaptedModel::new(&backbone, &adapter), &representation(5));
    let expected = logits(AdaptedModel::new(&backbone, &mean), &[]);
    assert_close(&got, &expected, 1e-5, "mean expert");
    assert!(got == logits(AdaptedModel::new(&backbone, &adapter), &representation(6)));
}

/// Σ α_k B_k A_k x, expert by expert, for several samples, against what `mixed` multiplies.
#[test]
fn the_product_form_is_a_loop_over_experts() {
    let backbone = stories();
    let adapter = random_adapter(&backbone, &settings(MixForm::Product), 5);
    let mut random = ChaCha8Rng::seed_from_u64(6);
    for sample in 0..5 {
        let c = representation(sample);
        let (alphas, mixed) = (adapter.alpha(&c).unwrap(), adapter.mixed(&c).unwrap());
        for (index, module) in adapter.layout().modules().iter().enumerate() {
            let x = uniform(module.d_in, 1.0, &mut random);
            let (a, b) = (module.a.clone(), module.b.clone());
            let experts_a = adapter.parameters()[a].chunks_exact(3 * module.d_in);
            let experts_b = adapter.parameters()[b].chunks_exact(module.d_out * 3);
            let mut expected = vec![0.0; module.d_out];
            for ((a, b), alpha) in experts_a.zip(experts_b).zip(&alphas[index]) {
                for (sum, y) in expected.iter_mut().zip(times(b, &times(a, &x))) {
                    *sum += alpha * y;
                }
            }
            let got = times(&mixed[index].lora_b, &times(&mixed[index].lora_a, &x));
            assert_close(&got, &expected, 1e-5, &module.name);
        }
    }
}

/// A row-major matrix times a vector.
fn times(matrix: &[f32], x: &[f32]) -> Vec<f32> {
    let rows = matrix.chunks_exact(x.len());
    rows.map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
}

/// The mixed adapter added to the frozen weights, in f64, gives the same model; so do both ways the
/// model has to apply it.
#[test]
fn merged_weights_equal_the_adapter_beside_them() {
    let backbone = stories();
    for form in FORMS {
        let adapter = random_adapter(&backbone, &settings(form), 7);
        let c = representation(8);
        let expected = logits(AdaptedModel::bare(&merged(&adapter, &c)), &[]);
        let model = AdaptedModel::new(&backbone, &adapter);
        for path in [LoraPath::Merged, LoraPath::Beside] {
            let mut workspace = Workspace::new();
            workspace.set_lora_path(Some(path));
            let prompt = Prompt { tokens: &TOKENS, representation: &c };
            let got = model.logits_at(&mut workspace, &prompt, TOKENS.len() - 1, None).unwrap();
            assert_close(&got, &expected, 2e-5, &format!("{form:?}, {path:?}"));
        }
        let bare = logits(AdaptedModel::bare(&backbone), &[]);
        assert!(bare != expected, "the adapter does something");
    }
}

/// The backbone with an adapter's mix for one representation added to its weight files.
fn merged(adapter: &Adapter, c: &[f32]) -> Backbone {
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

/// Gradients along random directions against central differences, for what the golden files of
/// PyTorch do not have: `sqrt_alpha`, and dropout in the gate.
#[test]
fn gradients_agree_with_differences_of_the_loss() {
    let backbone = stories();
    let targets = [Target { position: 4, token: 20 }, Target { position: 6, token: 7 }];
    for (seed, form) in FORMS.into_iter().cycle().take(6).enumerate() {
        let config = AdapterConfig { sqrt_alpha: seed % 3 != 0, ..settings(form) };
        let adapter = random_adapter(&backbone, &config, seed as u64);
        let dropout = (seed % 2 == 1).then_some(Dropout { probability: 0.3, key: 77 });
        let c = representation(seed as u64);
        let prompt = Prompt { tokens: &TOKENS, representation: &c };
        let mut gradient = vec![0.0; adapter.num_parameters()];
        let loss = |adapter: &Adapter, gradient: &mut [f32]| {
            let model = AdaptedModel::new(&backbone, adapter);
            let ws = &mut Workspace::new();
            model.loss_and_gradient(ws, &prompt, &targets, dropout, 1.0, gradient).unwrap()
        };
        loss(&adapter, &mut gradient);
        let mut random = ChaCha8Rng::seed_from_u64(100 + seed as u64);
        for _ in 0..3 {
            let direction = uniform(gradient.len(), 1.0, &mut random);
            let slope: f64 =
                gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
            // Small enough for the curvature, large enough for the loss's 1e-7 of rounding.
            let step = 2e-4;
            let at = |step: f32| {
                let mut moved = adapter.clone();
                for (parameter, d) in moved.parameters_mut().iter_mut().zip(&direction) {
                    *parameter += step * d;
                }
                f64::from(loss(&moved, &mut vec![0.0; gradient.len()]))
            };
            let difference = (at(step) - at(-step)) / f64::from(2.0 * step);
            let error = (difference - slope).abs();
            assert!(error < 0.005 * slope.abs() + 0.01, "{form:?} {seed}: {difference} {slope}");
        }
    }
}

/// Trained parameters on LLaMA-7B: plain LoRA, N = 8, N = 16.
#[test]
fn a_7b_backbone_has_the_published_number_of_parameters() {
    let llama = BackboneConfig {
        hidden_size: 4096,
        num_layers: 32,
        num_heads: 32,
        num_kv_heads: 32,
        head_dim: 128,
        ..stories().config().clone()
    };
    for (experts, parameters) in [(1, 4_194_304), (8, 34_605_312), (16, 68_190_976)] {
        let config = AdapterConfig { experts, ..AdapterConfig::default() };
        let layout = AdapterLayout::new(&llama, &config, 256).unwrap();
        assert_eq!(layout.num_parameters(), parameters, "{experts} experts");
    }
}
