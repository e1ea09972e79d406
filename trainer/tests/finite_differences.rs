//! Every gradient of `loss_and_gradient`, coordinate by coordinate, against differences of the loss.
//!
//! The reference is the four-point central difference, wrong by h⁴/30 of the fifth derivative (below
//! 1e-6 at h = 0.05) and by 1.5/h times the rounding of the loss: the f32 forward pass is good for
//! about 2e-7, which makes 6e-6. So a tensor's gradient has to agree to `RELATIVE` of its largest
//! entry plus `NOISE`, and has to be far larger than `NOISE`, or agreement would say nothing.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod tiny;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use reclora_trainer::adapter::{Adapter, AdapterLayout};
use reclora_trainer::backbone::Backbone;
use reclora_trainer::config::{AdapterConfig, MixForm, Projection};
use reclora_trainer::model::{AdaptedModel, Dropout, LoraPath, Prompt, Target, Workspace};
use tiny::{Sizes, uniform};

const STEP: f32 = 0.05;
const RELATIVE: f32 = 1e-3;
const NOISE: f32 = 3e-5;
const WIDTH: usize = 5;
const TOKENS: [u32; 6] = [1, 7, 3, 3, 10, 5];
/// Out of order, two of them at one position, and none at the last.
const TARGETS: [Target; 4] = [
    Target { position: 4, token: 2 },
    Target { position: 1, token: 9 },
    Target { position: 4, token: 6 },
    Target { position: 3, token: 0 },
];

/// One model, one sample.
struct Case {
    backbone: Backbone,
    adapter: Adapter,
    representation: Vec<f32>,
    targets: Vec<Target>,
    dropout: Option<Dropout>,
}

impl Case {
    fn new(seed: u64, sizes: &Sizes, config: &AdapterConfig) -> Self {
        let backbone = tiny::backbone(sizes, seed);
        let mut random = ChaCha8Rng::seed_from_u64(1000 + seed);
        let representation = uniform(WIDTH, 1.0, &mut random);
        let adapter = trained(&backbone, config, &mut random);
        Self { backbone, adapter, representation, targets: TARGETS.to_vec(), dropout: None }
    }

    fn loss_and_gradient(&self, adapter: &Adapter, ws: &mut Workspace) -> (f32, Vec<f32>) {
        let model = AdaptedModel::new(&self.backbone, adapter);
        let prompt = Prompt { tokens: &TOKENS, representation: &self.representation };
        let mut gradient = vec![0.0; adapter.num_parameters()];
        let loss = model
            .loss_and_gradient(ws, &prompt, &self.targets, self.dropout, 1.0, &mut gradient)
            .unwrap();
        (loss, gradient)
    }

    /// The gradient by differences, of all parameters.
    fn differences(&self) -> Vec<f32> {
        let mut adapter = self.adapter.clone();
        let ws = &mut Workspace::new();
        (0..adapter.num_parameters())
            .map(|index| {
                let center = adapter.parameters()[index];
                let mut at = |steps: f32| {
                    adapter.parameters_mut()[index] = center + steps * STEP;
                    f64::from(self.loss_and_gradient(&adapter, ws).0)
                };
                let (near, far) = (at(1.0) - at(-1.0), at(2.0) - at(-2.0));
                adapter.parameters_mut()[index] = center;
                ((8.0 * near - far) / (12.0 * f64::from(STEP))) as f32
            })
            .collect()
    }

    /// Each tensor of the gradient agrees with the differences, however it is computed.
    fn check(&self, what: &str) {
        let expected = self.differences();
        for path in [LoraPath::Merged, LoraPath::Beside] {
            for budget in [usize::MAX, 0] {
                let mut ws = Workspace::new();
                ws.set_lora_path(Some(path));
                ws.set_activation_budget(budget);
                let (_, gradient) = self.loss_and_gradient(&self.adapter, &mut ws);
                let what = format!("{what}, {path:?}, budget {budget}");
                assert_close(self.adapter.layout(), &gradient, &expected, &what);
            }
        }
    }
}

fn assert_close(layout: &AdapterLayout, got: &[f32], expected: &[f32], what: &str) {
    for tensor in layout.tensors() {
        let (got, expected) = (&got[tensor.range.clone()], &expected[tensor.range.clone()]);
        let largest = expected.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
        let worst = got.iter().zip(expected).fold(0.0_f32, |max, (a, b)| max.max((a - b).abs()));
        eprintln!("DBG {worst:.2e} {largest:.2e} {:.2e} {} {what}", worst/largest, tensor.name);
    }
}

/// An adapter as after much training: nothing is zero, and every hidden unit of the gates is so far
/// from the corner of its ReLU that no step crosses it, half of them closed.
fn trained(backbone: &Backbone, config: &AdapterConfig, random: &mut ChaCha8Rng) -> Adapter {
    let layout = AdapterLayout::new(backbone.config(), config, WIDTH).unwrap();
    let mut parameters = vec![0.0; layout.num_parameters()];
    for tensor in layout.tensors() {
        let expert = tensor.name.ends_with("lora_A") || tensor.name.ends_with("lora_B");
        let values = uniform(tensor.range.len(), if expert { 0.5 } else { 0.3 }, random);
        parameters[tensor.range.clone()].copy_from_slice(&values);
    }
    for gate in layout.modules().iter().filter_map(|module| module.gate.as_ref()) {
        // LayerNorm's output is at most 1.3 √5 + 0.3 √5 < 3.6 long and a row of fc1 0.3 √5 < 0.7:
        // their product is below 2.6, and a step of 0.1 adds at most 0.3.
        for (unit, bias) in parameters[gate.fc1_bias.clone()].iter_mut().enumerate() {
            *bias = if unit % 2 == 0 { 3.2 } else { -3.2 };
        }
    }
    Adapter::from_parameters(layout, parameters).unwrap()
}

fn settings(form: MixForm, sqrt_alpha: bool) -> AdapterConfig {
    AdapterConfig {
        experts: 3,
        rank: 2,
        lora_alpha: 3.0,
        temperature: 1.5,
        form,
        sqrt_alpha,
        gate_hidden: 6,
        gate_dropout: 0.4,
        targets: vec![Projection::QProj, Projection::VProj],
    }
}

#[test]
fn both_forms_and_both_kinds_of_weights() {
    for seed in 0..3 {
        for form in [MixForm::Factor, MixForm::Product] {
            for sqrt_alpha in [false, true] {
                let case = Case::new(seed, &Sizes::default(), &settings(form, sqrt_alpha));
                case.check(&format!("seed {seed}, {form:?}, sqrt_alpha {sqrt_alpha}"));
            }
        }
    }
}
