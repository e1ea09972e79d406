//! What personalised LoRA is, as facts about whole models: each must hold for any experts and gates. The
//! gates' own: routing_facts.rs.

use crate::stories::{
    FORMS, TOKENS, WIDTH, assert_close, logits, merged, random_adapter, representation, settings,
    stories, uniform,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use reclora_trainer::adapter::{Adapter, AdapterLayout};
use reclora_trainer::backbone::{Backbone, BackboneConfig, LayerShape};
use reclora_trainer::config::{AdapterConfig, Head, MixForm};
use reclora_trainer::engine::{AdaptedModel, Prompt, Target, TrainingSample, Workspace};
use reclora_trainer::losses::{self, AnswerCrossEntropy, TokenCrossEntropy};

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
    let bits = |logits: Vec<f32>| logits.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let bare = bits(logits(AdaptedModel::bare(&backbone), &[]));
    for form in FORMS {
        for (experts, sqrt_alpha) in [(1, false), (4, true), (16, false)] {
            let config = AdapterConfig { experts, form, sqrt_alpha, ..AdapterConfig::default() };
            let adapter = Adapter::new(backbone.config(), &config, WIDTH, 3).unwrap();
            let model = AdaptedModel::new(&backbone, &adapter);
            let adapted = bits(logits(model, &representation(1)));
            assert!(adapted == bare, "{form:?}, {experts} experts");
        }
    }
}

/// Each expert's A by itself uniform in ±1/√d_in, its B zero; the gate's weights uniform, biases zero.
#[test]
fn a_new_adapter_is_a_function_of_the_seed_with_kaiming_uniform_experts() {
    let backbone = stories();
    let new = |seed| Adapter::new(backbone.config(), &settings(FORMS[0]), WIDTH, seed).unwrap();
    let adapter = new(9);
    assert!(adapter == new(9) && adapter.parameters() != new(10).parameters());
    for (name, shape, values) in adapter.tensors() {
        let largest = values.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
        if name.ends_with("lora_A")
            || name.ends_with(".fc1.weight")
            || name.ends_with(".fc2.weight")
        {
            let bound = 1.0 / (*shape.last().unwrap() as f32).sqrt();
            assert!(largest <= bound && largest > 0.9 * bound, "{name}: {largest} of {bound}");
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            // Four standard deviations of the mean of a uniform variable.
            let spread = bound / (3.0 * values.len() as f32).sqrt();
            assert!(mean.abs() < 4.0 * spread, "{name}: mean {mean}");
        } else {
            assert_eq!(largest, 0.0, "{name}");
        }
    }
    for module in adapter.layout().modules() {
        let a = &adapter.parameters()[module.a.clone()];
        let (first, others) = a.split_at(a.len() / 4);
        assert!(others.chunks_exact(first.len()).all(|expert| expert != first), "{}", module.name);
    }
}

/// A trained head says at the first step what the LLM's own does of no and yes; and, far from that, its
/// loss is the cross-entropy of P(yes) = sigmoid(yes − no).
#[test]
fn trained_heads_start_as_the_backbones_answers() {
    let (backbone, deciding, c) = (stories(), [403, 261], representation(1));
    let new = |head| {
        let config = AdapterConfig { head, ..settings(MixForm::Factor) };
        let mut adapter = Adapter::new(backbone.config(), &config, WIDTH, 3).unwrap();
        adapter.start_head(&backbone, deciding).unwrap();
        adapter
    };
    let (ws, position) = (&mut Workspace::new(), TOKENS.len() - 2);
    let prompt = Prompt { tokens: &TOKENS, representation: &c };
    let mut answers = |adapter: &Adapter| {
        let model = AdaptedModel::new(&backbone, adapter);
        let [no, yes] = model.answer_logits(ws, &prompt, position, deciding).unwrap();
        yes - no
    };
    let lm = new(Head::Lm);
    let expected = answers(&lm);
    let model = AdaptedModel::new(&backbone, &lm);
    let logits = model.logits_at(&mut Workspace::new(), &prompt, position, None).unwrap();
    assert_eq!(expected, logits[261] - logits[403]);
    assert!(expected.abs() > 0.01, "{expected}: the two are told apart");
    assert_eq!(answers(&new(Head::Ctr2)), expected);
    let got = answers(&new(Head::Ctr1));
    assert!((got - expected).abs() < 1e-4 * expected.abs().max(1.0), "{got} {expected}");
    for head in [Head::Ctr2, Head::Ctr1] {
        let mut adapter = new(head);
        let lm = lm.parameters();
        assert!(&adapter.parameters()[..lm.len()] == lm, "the modules are where they were");
        let bias = adapter.layout().head().unwrap().bias.clone();
        adapter.parameters_mut()[bias.end - 1] += 1.5;
        let margin = f64::from(answers(&adapter));
        assert!((margin - f64::from(expected) - 1.5).abs() < 1e-4);
        for like in [false, true] {
            let model = AdaptedModel::new(&backbone, &adapter);
            let gradient = &mut vec![0.0; adapter.num_parameters()];
            let ws = &mut Workspace::new();
            let target = [Target { position, token: 0 }];
            let sample = TrainingSample { label: like, ..TrainingSample::new(prompt, &target) };
            let losses = model.train(ws, &[sample], &AnswerCrossEntropy, 1.0, gradient).unwrap();
            let loss = losses.training;
            let p = 1.0 / (1.0 + (-margin).exp());
            let cross_entropy = -(if like { p } else { 1.0 - p }).ln();
            assert!((f64::from(loss) - cross_entropy).abs() < 1e-5, "{loss} {cross_entropy}");
        }
    }
}

/// The loss of yes and no comes out of the same pass, whose training loss and gradient stay to the bit: it is
/// the cross-entropy of the answer among the two, as the log loss of what `answer_logits` gives.
#[test]
fn the_deciding_loss_is_the_log_loss_of_the_answer() {
    let (backbone, deciding, c) = (stories(), [403, 261], representation(1));
    let position = TOKENS.len() - 3;
    let prompt = Prompt { tokens: &TOKENS, representation: &c };
    let mut ws = Workspace::new();
    for head in [Head::Lm, Head::Ctr2, Head::Ctr1] {
        let config = AdapterConfig { head, ..settings(MixForm::Factor) };
        let mut adapter = random_adapter(&backbone, &config, 5);
        adapter.start_head(&backbone, deciding).unwrap();
        let model = AdaptedModel::new(&backbone, &adapter);
        let [no, yes] = model.answer_logits(&mut ws, &prompt, position, deciding).unwrap();
        let p = 1.0 / (1.0 + f64::from(no - yes).exp());
        for label in [false, true] {
            let token = deciding[usize::from(label)];
            let targets = [Target { position, token }, Target { position: position + 1, token: 7 }];
            let deciding = Some(deciding);
            let sample =
                TrainingSample { label, deciding, ..TrainingSample::new(prompt, &targets) };
            let zero = || vec![0.0; adapter.num_parameters()];
            let (mut gradient, mut alone) = (zero(), zero());
            let loss = losses::for_head(head != Head::Lm);
            let losses = model.train(&mut ws, &[sample], loss, 0.5, &mut gradient).unwrap();
            let expected = -(if label { p } else { 1.0 - p }).ln();
            let got = f64::from(losses.deciding);
            assert!((got - expected).abs() < 1e-5 * expected.max(1.0), "{got} {expected}");
            if head == Head::Lm {
                let only = TrainingSample::new(prompt, &targets);
                let without = model.train(&mut ws, &[only], loss, 0.5, &mut alone).unwrap();
                assert!(losses.training == without.training && gradient == alone);
                assert!(losses.training != losses.deciding);
                let odd = TrainingSample { deciding: Some([3, 1 << 20]), ..sample };
                let error = model.train(&mut ws, &[odd], loss, 1.0, &mut alone).unwrap_err();
                assert!(error.to_string().contains("vocabulary"), "{error}");
            } else {
                assert!(losses.training == losses.deciding);
                // A score that starts from an offset is judged, and corrected, by the two together.
                let (offset, mut shifted) = (1.5, zero());
                let from = TrainingSample { offset, ..sample };
                let losses = model.train(&mut ws, &[from], loss, 0.5, &mut shifted).unwrap();
                let odds = f64::from(yes - no) + f64::from(offset);
                let p = 1.0 / (1.0 + (-odds).exp());
                let expected = -(if label { p } else { 1.0 - p }).ln();
                assert!((f64::from(losses.training) - expected).abs() < 1e-5, "{losses:?}");
                assert_ne!(shifted, gradient);
            }
        }
    }
}

/// Each head learns from its own kind of supervision, and an answer token must exist.
#[test]
fn a_head_is_not_trained_on_what_it_does_not_predict() {
    let backbone = stories();
    let prompt = Prompt { tokens: &TOKENS, representation: &representation(1) };
    let ws = &mut Workspace::new();
    let new = |head| {
        let config = AdapterConfig { head, ..settings(MixForm::Factor) };
        Adapter::new(backbone.config(), &config, WIDTH, 3).unwrap()
    };
    let (lm, mut ctr) = (new(Head::Lm), new(Head::Ctr2));
    let gradient = &mut vec![0.0; ctr.num_parameters()];
    let target = [Target { position: 2, token: 5 }];
    let model = AdaptedModel::new(&backbone, &ctr);
    let sample = TrainingSample::new(prompt, &target);
    let error = model.train(ws, &[sample], &TokenCrossEntropy, 1.0, &mut *gradient).unwrap_err();
    assert!(error.to_string().contains("trained head"), "{error}");
    let gradient = &mut gradient[..lm.num_parameters()];
    let model = AdaptedModel::new(&backbone, &lm);
    let error = model.train(ws, &[sample], &AnswerCrossEntropy, 1.0, &mut *gradient).unwrap_err();
    assert!(error.to_string().contains("no and yes are named"), "{error}");
    assert!(gradient.iter().all(|g| *g == 0.0));
    let error = ctr.start_head(&backbone, [3, 1 << 20]).unwrap_err();
    assert!(error.to_string().contains("vocabulary"), "{error}");
}

#[test]
fn one_expert_is_plain_lora_and_reads_no_representation() {
    let backbone = stories();
    for form in FORMS {
        let config = AdapterConfig { experts: 1, ..settings(form) };
        let adapter = random_adapter(&backbone, &config, 1);
        assert_eq!(adapter.representation_dim(), 0);
        assert!(adapter.layout().modules().iter().all(|module| module.sample_gate().is_none()));
        for (module, mixed) in adapter.layout().modules().iter().zip(adapter.mixed(&[]).unwrap()) {
            assert!(mixed.lora_a == adapter.parameters()[module.a.clone()]);
            assert!(mixed.lora_b == adapter.parameters()[module.b.clone()]);
            assert_eq!((mixed.rank, mixed.scale), (3, 16.0 / 3.0));
        }
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
                adapter.parameters_mut()
                    [module.sample_gate().cloned().unwrap().fc2_bias.start + expert] = 1e6;
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

/// In the product form it is the mean of the experts' updates: all of them, as one adapter of rank
/// N r, a quarter each.
#[test]
fn at_infinite_temperature_the_product_form_is_the_mean_update() {
    let backbone = stories();
    let config = AdapterConfig { temperature: 1e12, ..settings(MixForm::Product) };
    let adapter = random_adapter(&backbone, &config, 11);
    let mixed = adapter.mixed(&representation(5)).unwrap();
    for (module, mixed) in adapter.layout().modules().iter().zip(&mixed) {
        let (a, b) = (module.a.clone(), module.b.clone());
        assert!(mixed.lora_a == adapter.parameters()[a], "the experts' A, one below the other");
        let experts: Vec<&[f32]> = adapter.parameters()[b].chunks_exact(module.d_out * 3).collect();
        for (row, values) in mixed.lora_b.chunks_exact(12).enumerate() {
            let side_by_side = experts.iter().flat_map(|expert| &expert[row * 3..(row + 1) * 3]);
            let quarters: Vec<f32> = side_by_side.map(|value| 0.25 * value).collect();
            assert_close(values, &quarters, 1e-6, &module.name);
        }
    }
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

/// The mixed adapter added to the frozen weights, in f64, gives the same model.
#[test]
fn merged_weights_equal_the_adapter_beside_them() {
    let backbone = stories();
    for form in FORMS {
        let adapter = random_adapter(&backbone, &settings(form), 7);
        let c = representation(8);
        let expected = logits(AdaptedModel::bare(&merged(&adapter, &c)), &[]);
        let model = AdaptedModel::new(&backbone, &adapter);
        assert_close(&logits(model, &c), &expected, 1e-5, &format!("{form:?}"));
        let bare = logits(AdaptedModel::bare(&backbone), &[]);
        assert!(bare != expected, "the adapter does something");
    }
}

/// Plain LoRA's r (d_in + d_out); per expert as much, and per gate the LayerNorm's 2 |c|, 60 (|c| + 1)
/// and N 61.
#[test]
fn each_module_has_its_experts_and_its_own_gate() {
    let (r, d_in, d_out, width): (_, usize, _, _) = (8, 64, [64, 32], 256);
    for experts in [2, 4, 8, 16] {
        let config = AdapterConfig { experts, ..AdapterConfig::default() };
        let layout = AdapterLayout::new(stories().config(), &config, width).unwrap();
        let gate = 2 * width + 60 * (width + 1) + experts * 61;
        let module = |d_out: usize| experts * r * (d_in + d_out) + gate;
        assert_eq!(layout.num_parameters(), 5 * d_out.map(module).iter().sum::<usize>());
        let gates = layout.modules().iter().map(|module| module.sample_gate().cloned().unwrap());
        let mut starts: Vec<usize> = gates.map(|gate| gate.fc1_weight.start).collect();
        starts.dedup();
        assert_eq!(starts.len(), 10, "q and v of five blocks");
    }
}

/// Trained parameters on LLaMA-7B: plain LoRA, N = 8, N = 16.
#[test]
fn a_7b_backbone_has_the_published_number_of_parameters() {
    let layer = LayerShape { num_heads: 32, num_kv_heads: 32, ..stories().config().layers[0] };
    let llama = BackboneConfig {
        hidden_size: 4096,
        layers: vec![layer; 32],
        head_dim: 128,
        ..stories().config().clone()
    };
    for (experts, parameters) in [(1, 4_194_304), (8, 34_605_312), (16, 68_190_976)] {
        let config = AdapterConfig { experts, ..AdapterConfig::default() };
        let layout = AdapterLayout::new(&llama, &config, 256).unwrap();
        assert_eq!(layout.num_parameters(), parameters, "{experts} experts");
    }
}
