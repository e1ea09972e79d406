//! Every gradient of the adapted model, coordinate by coordinate, against differences of the loss.
//!
//! The reference, the four-point central difference with step h, is wrong by h⁴/30 of the fifth derivative, here at
//! most `RELATIVE` of a tensor's largest entry, and by 1.5/h times the rounding of the loss, about 6e-7 of up to 5:
//! `NOISE` / h. A tensor whose gradient is not well above that fails: agreement would say nothing.

use crate::tiny;
use std::path::PathBuf;

use crate::tiny::{Finishing, Pairs, Sizes, uniform};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use reclora_trainer::adapter::{Adapter, AdapterLayout, Dropout, ModuleKind, ModuleLayout};
use reclora_trainer::backbone::{Backbone, Projection};
use reclora_trainer::config::{AdapterConfig, GateInput, Head, MixForm};
use reclora_trainer::engine::{AdaptedModel, Prompt, Target, TrainingSample, Workspace};
use reclora_trainer::losses::{self, TokenCrossEntropy};
use reclora_trainer::parameters::GradientSink;

const RELATIVE: f32 = 2e-3;
const NOISE: f32 = 1e-6;
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
    /// What a trained head learns instead of the targets: position, and whether it is a like.
    answer: (usize, bool),
    dropout: Option<Dropout>,
    /// Whether the loss is one of pairs: of this sample and another.
    pairs: bool,
}

impl Case {
    fn new(seed: u64, sizes: &Sizes, config: &AdapterConfig) -> Self {
        let backbone = tiny::backbone(sizes, seed);
        let mut random = ChaCha8Rng::seed_from_u64(1000 + seed);
        let representation = uniform(WIDTH, 1.0, &mut random);
        let adapter = trained(&backbone, config, &mut random);
        let (targets, answer) = (TARGETS.to_vec(), (4, seed.is_multiple_of(2)));
        Self { backbone, adapter, representation, targets, answer, dropout: None, pairs: false }
    }

    fn loss_and_gradient(&self, adapter: &Adapter, ws: &mut Workspace) -> (f32, Vec<f32>) {
        let model = AdaptedModel::new(&self.backbone, adapter);
        let prompt = Prompt { tokens: &TOKENS, representation: &self.representation };
        let mut gradient = vec![0.0; adapter.num_parameters()];
        let mut finishing = Finishing::default();
        let mut tell = |gradient: &[f32], from: usize| finishing.tell(gradient, from);
        let got = GradientSink::observed(&mut gradient, &mut tell);
        let ((position, label), dropout) = (self.answer, self.dropout);
        let answer = [Target { position, token: 0 }];
        let is_trained = adapter.config().head != Head::Lm;
        let targets = if is_trained { &answer[..] } else { &self.targets };
        let sample = TrainingSample { label, dropout, ..TrainingSample::new(prompt, targets) };
        let losses = if self.pairs {
            let deciding = Some([2, 7]);
            let c: Vec<f32> = self.representation.iter().rev().map(|x| -x).collect();
            let rival = Prompt { tokens: &[5, 10, 3, 3, 7, 1], representation: &c };
            let rival = TrainingSample { dropout, deciding, ..TrainingSample::new(rival, &answer) };
            model.train(ws, &[TrainingSample { deciding, ..sample }, rival], &Pairs, 1.0, got)
        } else {
            model.train(ws, &[sample], losses::for_head(is_trained), 1.0, got)
        };
        finishing.check(self.backbone.config().num_layers(), &gradient, "what is told to be final");
        (losses.unwrap().training, gradient)
    }

    /// The gradient by differences, of all parameters.
    fn differences(&self) -> Vec<f32> {
        let mut adapter = self.adapter.clone();
        let ws = &mut Workspace::new();
        let mut difference = |index: usize, step: f32| {
            let center = adapter.parameters()[index];
            let mut at = |steps: f32| {
                adapter.parameters_mut()[index] = center + steps * step;
                f64::from(self.loss_and_gradient(&adapter, ws).0)
            };
            let (near, far) = (at(1.0) - at(-1.0), at(2.0) - at(-2.0));
            adapter.parameters_mut()[index] = center;
            ((8.0 * near - far) / (12.0 * f64::from(step))) as f32
        };
        let mut gradient = Vec::new();
        for tensor in self.adapter.layout().tensors() {
            gradient
                .extend(tensor.range.clone().map(|index| difference(index, step(&tensor.name))));
        }
        gradient
    }

    /// Each tensor of the gradient agrees with the differences, however it is computed.
    fn check(&self, what: &str) {
        let expected = self.differences();
        for budget in [usize::MAX, 0] {
            let mut ws = Workspace::new();
            ws.set_activation_budget(budget);
            let (_, gradient) = self.loss_and_gradient(&self.adapter, &mut ws);
            let what = format!("{what}, budget {budget}");
            assert_close(self.adapter.layout(), &gradient, &expected, &what);
        }
    }
}

/// The loss bends more quickly along the experts and what the gates' hidden units are multiplied by.
fn step(tensor: &str) -> f32 {
    let quick = ["lora_A", "lora_B", "fc2.weight", "fc.weight", "mlp.fc1.weight"];
    if quick.iter().any(|name| tensor.ends_with(name)) { 0.015 } else { 0.05 }
}

fn assert_close(layout: &AdapterLayout, got: &[f32], expected: &[f32], what: &str) {
    for tensor in layout.tensors() {
        let name = &tensor.name;
        let (got, expected) = (&got[tensor.range.clone()], &expected[tensor.range.clone()]);
        let largest = expected.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
        let worst = got.iter().zip(expected).fold(0.0_f32, |max, (a, b)| max.max((a - b).abs()));
        let noise = NOISE / step(name);
        assert!(largest > 3.0 * noise, "{what}: {name}: too small to check: {largest}");
        let tolerance = RELATIVE * largest + noise;
        assert!(worst <= tolerance, "{what}: {name}: wrong by {worst} of {largest}");
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
    for gate in layout.modules().iter().filter_map(|module| module.sample_gate()) {
        // LayerNorm's output is at most 1.3 √5 + 0.3 √5 < 3.6 long and a row of fc1 0.3 √5 < 0.7:
        // their product is below 2.6, and a step of 0.1 adds at most 0.3.
        for (unit, bias) in parameters[gate.fc1_bias.clone()].iter_mut().enumerate() {
            *bias = if unit % 2 == 0 { 3.2 } else { -3.2 };
        }
    }
    for module in layout.modules() {
        tell_experts_apart(module, config.experts, &mut parameters);
    }
    Adapter::from_parameters(layout, parameters).unwrap()
}

/// Makes the hidden units of a gate of attention open for some experts and closed for others, far from
/// the corners: were all the same, the gate would be linear, and parts of its gradient zero.
///
/// Unit u of a key is 2.4, −2.4 and 0 for experts u, u + 1 and the third (plus a bias of at most 0.3); a
/// hidden unit is that of the key plus 1.2 and a little of everything else.
fn tell_experts_apart(module: &ModuleLayout, experts: usize, parameters: &mut [f32]) {
    let ModuleKind::AttentionGate(gate) = &module.kind else { return };
    let hidden = gate.fc1_bias.len();
    let weights = |k: usize, parameters: &[f32]| -> Vec<f32> {
        let part = |all: &std::ops::Range<usize>| {
            let length = all.len() / experts;
            parameters[all.start + k * length..all.start + (k + 1) * length].to_vec()
        };
        [part(&module.a), part(&module.b)].concat()
    };
    for unit in 0..hidden {
        let mut row = vec![0.0; gate.key_weight.len() / hidden];
        // Kaczmarz's projections onto "the key of expert k is this" settle where all hold.
        for step in 0..100 * experts {
            let k = step % experts;
            let wanted = [2.4, -2.4, 0.0][(k + experts - unit % experts) % experts];
            let expert = weights(k, parameters);
            let got: f32 = row.iter().zip(&expert).map(|(a, b)| a * b).sum();
            let change = (wanted - got) / expert.iter().map(|x| x * x).sum::<f32>();
            row.iter_mut().zip(&expert).for_each(|(weight, x)| *weight += change * x);
        }
        let start = gate.key_weight.start + unit * row.len();
        parameters[start..start + row.len()].copy_from_slice(&row);
        let row = gate.fc1_weight.start + unit * 4 * hidden;
        parameters[row..row + 4 * hidden].iter_mut().for_each(|weight| *weight *= 0.1);
        parameters[row + hidden + unit] += 1.0;
    }
    parameters[gate.fc1_bias.clone()].fill(1.2);
}

fn settings(form: MixForm, sqrt_alpha: bool) -> AdapterConfig {
    AdapterConfig {
        experts: 3,
        rank: 2,
        lora_alpha: 3.0,
        temperature: 0.6,
        form,
        sqrt_alpha,
        top_k: 0,
        gate: GateInput::Sample,
        gate_hidden: 10,
        gate_dropout: 0.4,
        targets: vec![Projection::QProj, Projection::VProj],
        head: Head::Lm,
        scale_of: PathBuf::new(),
    }
}

/// Both forms, with the weights and with their square roots.
fn variants() -> impl Iterator<Item = AdapterConfig> {
    let forms = [MixForm::Factor, MixForm::Product].into_iter();
    forms.flat_map(|form| [false, true].map(|sqrt_alpha| settings(form, sqrt_alpha)))
}

fn describe(config: &AdapterConfig) -> String {
    format!("{:?}, sqrt_alpha {}", config.form, config.sqrt_alpha)
}

#[test]
fn grouped_queries_in_both_forms_with_and_without_the_root() {
    for seed in 0..4 {
        for config in variants() {
            let case = Case::new(seed, &Sizes::default(), &config);
            case.check(&format!("seed {seed}, {}", describe(&config)));
        }
    }
}

/// Away from ties the loss is smooth; experts that are not chosen get no gradient at all.
#[test]
fn hard_routing_away_from_ties() {
    for (seed, config) in (20..).zip(variants()) {
        let config = AdapterConfig { experts: 4, top_k: 2, ..config };
        let mut case = Case::new(seed, &Sizes::default(), &config);
        let modules = case.adapter.layout().modules().to_vec();
        let alphas = case.adapter.alpha(&case.representation).unwrap();
        for (module, alpha) in modules.iter().zip(&alphas) {
            let bias = module.sample_gate().unwrap().fc2_bias.clone();
            let biases = &mut case.adapter.parameters_mut()[bias];
            for (bias, _) in biases.iter_mut().zip(alpha).filter(|(_, alpha)| **alpha > 0.0) {
                // More than any step can make up for: it moves a logit by 0.2 at most.
                *bias += 1.0;
            }
        }
        assert!(alphas.iter().all(|alpha| alpha.iter().filter(|a| **a > 0.0).count() == 2));
        case.check(&describe(&config));
        let (_, gradient) = case.loss_and_gradient(&case.adapter, &mut Workspace::new());
        for (module, alpha) in modules.iter().zip(&alphas) {
            for experts in [&module.a, &module.b] {
                let experts = gradient[experts.clone()].chunks_exact(experts.len() / 4);
                for (expert, alpha) in experts.zip(alpha) {
                    assert_eq!(expert.iter().all(|g| *g == 0.0), *alpha == 0.0);
                }
            }
        }
    }
}

/// The gates' gradients also reach what is below through their tokens.
#[test]
fn gates_of_every_token() {
    for (seed, config) in (40..).zip(variants()) {
        let config = AdapterConfig { gate: GateInput::Token, ..config };
        Case::new(seed, &Sizes::default(), &config).check(&describe(&config));
    }
}

#[test]
fn gates_of_every_token_on_other_projections() {
    for projection in [Projection::KProj, Projection::OProj, Projection::DownProj] {
        for form in [MixForm::Factor, MixForm::Product] {
            let targets = vec![Projection::UpProj, projection];
            let (experts, gate) = (2, GateInput::Token);
            let config = AdapterConfig { experts, gate, targets, ..settings(form, false) };
            let what = format!("{projection:?}, {}", describe(&config));
            Case::new(50, &Sizes::default(), &config).check(&what);
        }
    }
}

#[test]
fn gates_that_attend_to_the_experts() {
    for (seed, config) in (60..).zip(variants()) {
        let config = AdapterConfig { gate: GateInput::Attention, gate_hidden: 3, ..config };
        Case::new(seed, &Sizes::default(), &config).check(&describe(&config));
    }
}

#[test]
fn trained_heads() {
    for head in [Head::Ctr2, Head::Ctr1] {
        for (seed, config) in (30..).zip(variants()) {
            let config = AdapterConfig { head, ..config };
            let mut case = Case::new(seed, &Sizes::default(), &config);
            let mut loss = |like| {
                case.answer = (4, like);
                case.loss_and_gradient(&case.adapter, &mut Workspace::new()).0
            };
            // The answer that is less expected: the gradient of the other can be too small to check.
            case.answer = (4, loss(true) > loss(false));
            case.check(&format!("{head:?}, {}", describe(&config)));
        }
    }
}

#[test]
fn multi_head_attention_with_a_tied_head() {
    let sizes = Sizes { kv_heads: 4, head_dim: 4, hidden: 16, tied: true, ..Sizes::default() };
    for config in variants() {
        Case::new(10, &sizes, &config).check(&describe(&config));
    }
}

#[test]
fn one_key_head_for_all_queries_and_three_blocks() {
    let sizes = Sizes { kv_heads: 1, layers: 3, ..Sizes::default() };
    for config in variants() {
        Case::new(18, &sizes, &config).check(&describe(&config));
    }
}

/// The mask is a function of the key, so the loss is one function of the parameters.
#[test]
fn gate_dropout_at_a_fixed_key() {
    for (key, config) in (5..).zip(variants()) {
        let mut case = Case::new(12, &Sizes::default(), &config);
        let ws = &mut Workspace::new();
        let (without, _) = case.loss_and_gradient(&case.adapter, ws);
        case.dropout = Some(Dropout { probability: config.gate_dropout, key });
        let (with, _) = case.loss_and_gradient(&case.adapter, ws);
        assert!(with != without, "dropout does something");
        case.check(&format!("key {key}, {}", describe(&config)));
    }
}

#[test]
fn a_single_adapted_projection() {
    for projection in Projection::ALL {
        for config in variants() {
            let config = AdapterConfig { targets: vec![projection], ..config };
            let case = Case::new(13, &Sizes::default(), &config);
            case.check(&format!("{projection:?}, {}", describe(&config)));
        }
    }
}

#[test]
fn plain_lora() {
    for config in variants() {
        let config = AdapterConfig { experts: 1, ..config };
        Case::new(14, &Sizes::default(), &config).check(&describe(&config));
    }
}

/// The last block handles all positions, some, or one in different ways.
#[test]
fn targets_at_one_position_and_at_every_position() {
    let last = vec![Target { position: TOKENS.len() - 1, token: 4 }];
    let every: Vec<Target> =
        (0..TOKENS.len()).map(|position| Target { position, token: TOKENS[position] }).collect();
    for (what, targets) in [("last", last), ("every", every)] {
        for config in variants() {
            let mut case = Case::new(15, &Sizes::default(), &config);
            case.targets.clone_from(&targets);
            case.check(&format!("{what} position, {}", describe(&config)));
        }
    }
}

/// A group of two samples is read first and then computed again, of each head and with the gates' dropout.
#[test]
fn a_loss_of_pairs() {
    for (config, head) in variants().zip([Head::Lm, Head::Ctr1, Head::Ctr2, Head::Lm]) {
        let config = AdapterConfig { head, ..config };
        let mut case = Case::new(17, &Sizes::default(), &config);
        case.pairs = true;
        case.dropout = Some(Dropout { probability: config.gate_dropout, key: 5 });
        case.check(&format!("pairs, {head:?}, {}", describe(&config)));
        let model = AdaptedModel::new(&case.backbone, &case.adapter);
        let prompt = Prompt { tokens: &TOKENS, representation: &case.representation };
        let alone = [TrainingSample::new(prompt, &TARGETS)];
        let gradient = &mut vec![0.0; case.adapter.num_parameters()];
        let error = model.train(&mut Workspace::new(), &alone, &Pairs, 1.0, gradient).unwrap_err();
        assert!(error.to_string().contains("1 samples are no whole groups of 2"), "{error}");
    }
}

#[test]
fn the_gradient_is_added_times_the_weight() {
    for config in variants() {
        let case = Case::new(16, &Sizes::default(), &config);
        let (loss, once) = case.loss_and_gradient(&case.adapter, &mut Workspace::new());
        let model = AdaptedModel::new(&case.backbone, &case.adapter);
        let prompt = Prompt { tokens: &TOKENS, representation: &case.representation };
        let mut sum = vec![1.0; once.len()];
        let ws = &mut Workspace::new();
        let sample = TrainingSample::new(prompt, &TARGETS);
        let weighted = model.train(ws, &[sample], &TokenCrossEntropy, -0.25, &mut sum).unwrap();
        assert_eq!(weighted.training, loss, "the weight is the gradient's alone");
        for (sum, once) in sum.iter().zip(&once) {
            // Only the additions round: the weight is a power of two.
            assert!((sum - (1.0 - 0.25 * once)).abs() < 1e-6, "{sum} {once}");
        }
    }
}

/// What is trained are scales of a LoRA that stays as it is.
#[test]
fn scales_of_a_frozen_lora() {
    let dir = tempfile::tempdir().unwrap();
    let attention = vec![Projection::QProj, Projection::VProj];
    let cases = [(attention, Head::Lm), (Projection::ALL.to_vec(), Head::Ctr2)];
    for (seed, (targets, head)) in (70..).zip(cases) {
        let plain = AdapterConfig { experts: 1, targets, ..settings(MixForm::Factor, false) };
        let mut case = Case::new(seed, &Sizes::default(), &plain);
        let scale_of = dir.path().join("lora");
        case.adapter.save(&scale_of).unwrap();
        let config = AdapterConfig { scale_of, head, ..plain };
        case.adapter = Adapter::new(case.backbone.config(), &config, WIDTH, seed).unwrap();
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let parameters = uniform(case.adapter.num_parameters(), 0.4, &mut random);
        case.adapter.parameters_mut().copy_from_slice(&parameters);
        case.check(&format!("{head:?}, {} targets", config.targets.len()));
    }
}
