//! Whole models on a device against the model on the CPU: logits, losses and all gradients.

#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod devices;
mod tiny;

use devices::{assert_near, devices};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reclora_trainer::adapter::{Adapter, AdapterLayout, Dropout};
use reclora_trainer::backbone::{Backbone, Projection};
use reclora_trainer::config::{AdapterConfig, MixForm};
use reclora_trainer::engine::device::{DeviceBackbone, DeviceModel, DeviceOptions, Precision};
use reclora_trainer::engine::{AdaptedModel, Prompt, Target, TrainingSample, Workspace};
use reclora_trainer::error::TrainerError;
use reclora_trainer::losses::TokenCrossEntropy;
use reclora_trainer::parameters::{GradientSink, Losses};
use serde_json::json;
use tiny::{Finishing, Pairs, Sizes, uniform};

const RELATIVE: f32 = 1e-4;
const WIDTH: usize = 5;
const F32: DeviceOptions = DeviceOptions { precision: Precision::F32, recompute: false };

/// A backbone, an adapter as after much training, and prompts of different lengths.
struct Case {
    backbone: Backbone,
    adapter: Adapter,
    prompts: Vec<(Vec<u32>, Vec<f32>)>,
    targets: Vec<Vec<Target>>,
    dropout: bool,
}

impl Case {
    fn new(seed: u64, sizes: &Sizes, config: &AdapterConfig) -> Self {
        Self::of(tiny::backbone(sizes, seed), seed, sizes, config)
    }

    fn of(backbone: Backbone, seed: u64, sizes: &Sizes, config: &AdapterConfig) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(100 + seed);
        let layout = AdapterLayout::new(backbone.config(), config, WIDTH).unwrap();
        let parameters = uniform(layout.num_parameters(), 0.5, &mut random);
        let adapter = Adapter::from_parameters(layout, parameters).unwrap();
        let (mut prompts, mut targets) = (Vec::new(), Vec::new());
        for length in [9, 1, 14, 6_usize] {
            let mut token = || random.random_range(0..sizes.vocab as u32);
            let tokens: Vec<u32> = (0..length).map(|_| token()).collect();
            // Out of order, two at one position, and in the longer prompts none at the last.
            let last = length.saturating_sub(2);
            let positions = [last, last / 2, last];
            targets.push(positions.map(|position| Target { position, token: token() }).to_vec());
            prompts.push((tokens, uniform(WIDTH, 1.0, &mut random)));
        }
        Self { backbone, adapter, prompts, targets, dropout: false }
    }

    fn samples(&self) -> Vec<TrainingSample<'_>> {
        let samples = self.prompts().into_iter().zip(&self.targets).zip(0..);
        samples
            .map(|((prompt, targets), key)| {
                let dropout = Dropout { probability: 0.4, key };
                let dropout = (self.dropout && key != 1).then_some(dropout);
                let (label, deciding) = (key % 2 == 0, (key != 3).then_some([2, 7]));
                TrainingSample { label, deciding, dropout, ..TrainingSample::new(prompt, targets) }
            })
            .collect()
    }

    fn prompts(&self) -> Vec<Prompt<'_>> {
        let prompts = self.prompts.iter();
        prompts.map(|(tokens, representation)| Prompt { tokens, representation }).collect()
    }

    /// Losses and the sum of the gradients, one sample at a time on the CPU.
    fn expected(&self, weight: f32) -> (Vec<Losses>, Vec<f32>) {
        let model = AdaptedModel::new(&self.backbone, &self.adapter);
        let mut gradient = vec![0.0; self.adapter.num_parameters()];
        let ws = &mut Workspace::new();
        let losses = self.samples().into_iter().map(|sample| {
            model.train(ws, &[sample], &TokenCrossEntropy, weight, &mut gradient).unwrap()
        });
        (losses.collect(), gradient)
    }

    /// Losses and every tensor of the gradient, on every device, with and without recomputing.
    fn check_training(&self, what: &str) {
        let weight = 0.37;
        let (losses, expected) = self.expected(weight);
        for (name, device) in devices() {
            for recompute in [false, true] {
                let what = format!("{what}, {name}, recompute {recompute}");
                let options = DeviceOptions { recompute, ..F32 };
                let backbone = DeviceBackbone::new(&self.backbone, &device, options).unwrap();
                let model = DeviceModel::new(&backbone, &self.adapter).unwrap();
                let mut gradient = vec![0.0; expected.len()];
                let mut finishing = Finishing::default();
                let mut tell = |gradient: &[f32], from: usize| finishing.tell(gradient, from);
                let target = GradientSink::observed(&mut gradient, &mut tell);
                let got = model.train(&self.samples(), &TokenCrossEntropy, weight, target).unwrap();
                finishing.check(self.backbone.config().num_layers(), &gradient, &what);
                assert_near(&flat(&got), &flat(&losses), RELATIVE, &what);
                for tensor in self.adapter.layout().tensors() {
                    let here = tensor.range.clone();
                    let what = format!("{what}: {}", tensor.name);
                    assert_near(&gradient[here.clone()], &expected[here], RELATIVE, &what);
                }
            }
        }
    }
}

/// What families have beyond LLaMA: biases, head norms, windows in the upper blocks, scaled rotations.
fn qwen3(sizes: &Sizes, seed: u64) -> Backbone {
    let mut config = tiny::config(sizes);
    let differences = json!({
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": true,
        "use_sliding_window": true,
        "sliding_window": 3,
        "max_window_layers": 1,
        "rope_scaling": { "rope_type": "linear", "factor": 2.0 },
    });
    config.as_object_mut().unwrap().extend(differences.as_object().unwrap().clone());
    let mut tensors = tiny::tensors(sizes, seed);
    let (q, kv) = (sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim);
    let mut random = ChaCha8Rng::seed_from_u64(seed + 1);
    for layer in 0..sizes.layers {
        let vectors = [
            ("q_proj.bias", q, 0.0),
            ("k_proj.bias", kv, 0.0),
            ("v_proj.bias", kv, 0.0),
            ("o_proj.bias", sizes.hidden, 0.0),
            ("q_norm.weight", sizes.head_dim, 1.0),
            ("k_norm.weight", sizes.head_dim, 1.0),
        ];
        for (name, width, centre) in vectors {
            let values = uniform(width, 0.5, &mut random).into_iter().map(|x| x + centre);
            let tensor = tiny::f32_tensor(&[width], &values.collect::<Vec<_>>());
            tensors.insert(format!("model.layers.{layer}.self_attn.{name}"), tensor);
        }
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    tiny::save(&dir.path().join(tiny::WEIGHTS), &tensors);
    Backbone::load(dir.path()).unwrap()
}

fn config(form: MixForm) -> AdapterConfig {
    let gate = AdapterConfig { gate_hidden: 12, temperature: 0.7, ..AdapterConfig::default() };
    AdapterConfig { experts: 3, rank: 2, lora_alpha: 3.0, form, ..gate }
}

const FORMS: [MixForm; 2] = [MixForm::Factor, MixForm::Product];

fn flat(losses: &[Losses]) -> Vec<f32> {
    losses.iter().flat_map(|losses| [losses.training, losses.deciding]).collect()
}

#[test]
fn losses_and_gradients_are_those_of_the_cpu_in_both_forms() {
    for (seed, form) in FORMS.into_iter().enumerate() {
        let case = Case::new(seed as u64, &Sizes::default(), &config(form));
        case.check_training(&format!("{form:?}"));
    }
}

#[test]
fn losses_and_gradients_of_plain_lora_of_one_block_and_of_a_tied_head() {
    for form in FORMS {
        let plain = AdapterConfig { experts: 1, ..config(form) };
        let sizes = Sizes { layers: 1, tied: true, ..Sizes::default() };
        Case::new(5, &sizes, &plain).check_training(&format!("plain {form:?}"));
    }
}

#[test]
fn losses_and_gradients_of_all_projections_with_biases_head_norms_and_windows() {
    for form in FORMS {
        let config = AdapterConfig { targets: Projection::ALL.to_vec(), ..config(form) };
        let sizes = Sizes { layers: 3, ..Sizes::default() };
        let case = Case::of(qwen3(&sizes, 20), 20, &sizes, &config);
        let layers = case.backbone.config().layers.iter();
        assert!(layers.map(|layer| layer.sliding_window).eq([None, Some(3), Some(3)]));
        case.check_training(&format!("all {form:?}"));
    }
}

#[test]
fn losses_and_gradients_with_dropout_and_square_roots() {
    for form in FORMS {
        let config = AdapterConfig { sqrt_alpha: true, ..config(form) };
        let sizes = Sizes { layers: 3, kv_heads: 4, ..Sizes::default() };
        let case = Case { dropout: true, ..Case::new(6, &sizes, &config) };
        case.check_training(&format!("dropout {form:?}"));
    }
}

/// A loss of groups of two: the read-outs and their derivatives go the same ways.
#[test]
fn a_loss_of_pairs_is_that_of_the_cpu() {
    for form in FORMS {
        let case = Case { dropout: true, ..Case::new(12, &Sizes::default(), &config(form)) };
        let samples = case.samples().into_iter();
        let samples: Vec<_> =
            samples.map(|s| TrainingSample { deciding: Some([2, 7]), ..s }).take(4).collect();
        let model = AdaptedModel::new(&case.backbone, &case.adapter);
        let mut expected = vec![0.0; case.adapter.num_parameters()];
        let ws = &mut Workspace::new();
        let losses = model.train(ws, &samples, &Pairs, 0.5, &mut expected).unwrap();
        for (name, device) in devices() {
            let backbone = DeviceBackbone::new(&case.backbone, &device, F32).unwrap();
            let model = DeviceModel::new(&backbone, &case.adapter).unwrap();
            let mut gradient = vec![0.0; expected.len()];
            let got = model.train(&samples, &Pairs, 0.5, &mut gradient).unwrap();
            let sum: f32 = got.iter().map(|losses| losses.training).sum();
            assert_near(&[sum], &[losses.training], RELATIVE, name);
            for tensor in case.adapter.layout().tensors() {
                let here = tensor.range.clone();
                let what = format!("{name}: {}", tensor.name);
                assert_near(&gradient[here.clone()], &expected[here], RELATIVE, &what);
            }
        }
    }
}

#[test]
fn a_gradient_is_added_to_what_is_there() {
    let case = Case::new(7, &Sizes::default(), &config(MixForm::Factor));
    for (name, device) in devices() {
        let backbone = DeviceBackbone::new(&case.backbone, &device, F32).unwrap();
        let model = DeviceModel::new(&backbone, &case.adapter).unwrap();
        let [mut once, mut twice] = [(); 2].map(|()| vec![0.0; case.adapter.num_parameters()]);
        model.train(&case.samples(), &TokenCrossEntropy, 0.5, &mut once).unwrap();
        for _ in 0..2 {
            model.train(&case.samples(), &TokenCrossEntropy, 0.5, &mut twice).unwrap();
        }
        let doubled: Vec<f32> = once.iter().map(|x| x + x).collect();
        assert_eq!(twice, doubled, "{name}");
    }
}

#[test]
fn logits_and_mean_states_are_those_of_the_cpu() {
    let case = Case::new(8, &Sizes::default(), &config(MixForm::Product));
    let ws = &mut Workspace::new();
    let asked: Vec<(Prompt<'_>, usize)> =
        case.prompts().into_iter().map(|prompt| (prompt, prompt.tokens.len() / 2)).collect();
    for (name, device) in devices() {
        let backbone = DeviceBackbone::new(&case.backbone, &device, F32).unwrap();
        let models = [
            (
                AdaptedModel::new(&case.backbone, &case.adapter),
                DeviceModel::new(&backbone, &case.adapter).unwrap(),
            ),
            (AdaptedModel::bare(&case.backbone), DeviceModel::bare(&backbone)),
        ];
        for (cpu, model) in models {
            for ids in [None, Some([7, 2].as_slice())] {
                let logits = model.logits_at(&asked, ids).unwrap();
                assert_eq!(logits.len(), asked.len());
                for ((prompt, position), got) in asked.iter().zip(logits) {
                    let expected = cpu.logits_at(ws, prompt, *position, ids).unwrap();
                    assert_near(&got, &expected, RELATIVE, name);
                }
            }
            let means = model.hidden_mean(&case.prompts()).unwrap();
            assert_eq!(means.len(), case.prompts.len());
            for (prompt, got) in case.prompts().iter().zip(means) {
                let expected =
                    cpu.hidden_means(std::slice::from_ref(prompt), &|_| ()).unwrap().concat();
                assert_near(&got, &expected, RELATIVE, name);
            }
        }
    }
}

#[test]
fn bf16_is_near_f32() {
    let case = Case::new(9, &Sizes::default(), &config(MixForm::Factor));
    let (losses, expected) = case.expected(1.0);
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    for (name, device) in devices() {
        let options = DeviceOptions { precision: Precision::Bf16, ..F32 };
        let backbone = DeviceBackbone::new(&case.backbone, &device, options).unwrap();
        let model = DeviceModel::new(&backbone, &case.adapter).unwrap();
        let mut gradient = vec![0.0; expected.len()];
        let got = model.train(&case.samples(), &TokenCrossEntropy, 1.0, &mut gradient).unwrap();
        assert_near(&flat(&got), &flat(&losses), 0.05, name);
        let cosine = dot(&gradient, &expected)
            / (dot(&gradient, &gradient) * dot(&expected, &expected)).sqrt();
        assert!(cosine > 0.99, "{name}: {cosine}");
    }
}

#[test]
fn bad_inputs_are_refused_and_leave_the_gradient() {
    let case = Case::new(10, &Sizes::default(), &config(MixForm::Factor));
    for (name, device) in devices() {
        let backbone = DeviceBackbone::new(&case.backbone, &device, F32).unwrap();
        let model = DeviceModel::new(&backbone, &case.adapter).unwrap();
        let refused = |prompt: Prompt<'_>, targets: &[Target], part: &str| {
            let mut gradient = vec![0.0; case.adapter.num_parameters()];
            let mut samples = case.samples();
            samples.push(TrainingSample { label: true, ..TrainingSample::new(prompt, targets) });
            let error = model.train(&samples, &TokenCrossEntropy, 1.0, &mut gradient).unwrap_err();
            assert!(matches!(error, TrainerError::Input(_)), "{name}: {error}");
            assert!(error.to_string().contains(part), "{name}: {error}");
            assert!(gradient.iter().all(|x| *x == 0.0), "{name}");
        };
        let good = Target { position: 1, token: 0 };
        let c = [0.0; WIDTH];
        let prompt = |tokens, representation| Prompt { tokens, representation };
        refused(prompt(&[1, 2], &c), &[], "no position");
        refused(prompt(&[1, 2], &c), &[Target { position: 2, ..good }], "position 2");
        refused(prompt(&[1, 2], &c), &[Target { token: 11, ..good }], "token 11");
        refused(prompt(&[1, 99], &c), &[good], "token 99");
        refused(prompt(&[1; 65], &c), &[good], "65 tokens");
        refused(prompt(&[1, 2], &c[1..]), &[good], "representation");
        let error = DeviceModel::bare(&backbone)
            .train(&[], &TokenCrossEntropy, 1.0, &mut Vec::new())
            .unwrap_err();
        assert!(error.to_string().contains("no gradient"), "{name}: {error}");
    }
}

#[test]
fn what_is_not_finite_is_an_error() {
    let mut case = Case::new(11, &Sizes::default(), &config(MixForm::Factor));
    case.adapter.parameters_mut().fill(f32::MAX);
    for (name, device) in devices() {
        let backbone = DeviceBackbone::new(&case.backbone, &device, F32).unwrap();
        let model = DeviceModel::new(&backbone, &case.adapter).unwrap();
        let mut gradient = vec![0.0; case.adapter.num_parameters()];
        let error =
            model.train(&case.samples(), &TokenCrossEntropy, 1.0, &mut gradient).unwrap_err();
        assert!(matches!(error, TrainerError::NotFinite { .. }), "{name}: {error}");
        assert!(gradient.iter().all(|x| *x == 0.0), "{name}");
        let error = model.logits_at(&[(case.prompts()[0], 0)], None).unwrap_err();
        assert!(matches!(error, TrainerError::NotFinite { .. }), "{name}: {error}");
    }
}
