//! How experts are weighted, by each kind of gate, as facts about whole models.

use crate::stories::{
    FORMS, WIDTH, assert_close, logits, merged, random_adapter, representation, settings, stories,
};
use reclora_trainer::adapter::{Adapter, AdapterLayout, ModuleKind, SampleGate};
use reclora_trainer::config::{AdapterConfig, GateInput, MixForm};
use reclora_trainer::engine::AdaptedModel;

/// α = softmax(W2 ReLU(W1 LayerNorm(c) + b1) + b2, over T), or its square root: in f64, line by line.
#[test]
fn mixture_weights_are_the_gates_formula() {
    let backbone = stories();
    for (seed, sqrt_alpha) in [(1, false), (2, true)] {
        let config = AdapterConfig { sqrt_alpha, ..settings(MixForm::Factor) };
        let adapter = random_adapter(&backbone, &config, seed);
        let (c, mut other) = (representation(seed), representation(seed + 10));
        let alphas = adapter.alpha(&c).unwrap();
        for (module, alpha) in adapter.layout().modules().iter().zip(&alphas) {
            let expected = gate_formula(&adapter, module.sample_gate().unwrap(), &c);
            assert_close(alpha, &expected, 1e-5, &module.name);
            let power = if sqrt_alpha { 2 } else { 1 };
            let sum: f32 = alpha.iter().map(|a| a.powi(power)).sum();
            assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        }
        assert!(alphas != adapter.alpha(&other).unwrap(), "personal");
        assert!(alphas[0] != alphas[1], "each module has its own gate");
        other.pop();
        assert!(adapter.alpha(&other).unwrap_err().to_string().contains("11 values"));
    }
}

fn gate_formula(adapter: &Adapter, gate: &SampleGate, c: &[f32]) -> Vec<f32> {
    let wide = |values: &[f32]| values.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
    let get = |range: &std::ops::Range<usize>| wide(&adapter.parameters()[range.clone()]);
    let linear = |weight: Vec<f64>, bias: Vec<f64>, x: &[f64]| -> Vec<f64> {
        let rows = weight.chunks_exact(x.len()).zip(bias);
        rows.map(|(row, b)| b + row.iter().zip(x).map(|(w, x)| w * x).sum::<f64>()).collect()
    };
    let (c, n) = (wide(c), c.len() as f64);
    let mean = c.iter().sum::<f64>() / n;
    let deviation = (c.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n + 1e-5).sqrt();
    let affine = get(&gate.norm_weight).into_iter().zip(get(&gate.norm_bias));
    let normed: Vec<f64> =
        c.iter().zip(affine).map(|(x, (w, b))| (x - mean) / deviation * (1.0 + w) + b).collect();
    let mut hidden = linear(get(&gate.fc1_weight), get(&gate.fc1_bias), &normed);
    hidden.iter_mut().for_each(|x| *x = x.max(0.0));
    let logits = linear(get(&gate.fc2_weight), get(&gate.fc2_bias), &hidden);
    let config = adapter.config();
    let exp: Vec<f64> = logits.iter().map(|g| (g / f64::from(config.temperature)).exp()).collect();
    let softmax = exp.iter().map(|x| x / exp.iter().sum::<f64>());
    softmax.map(|p| if config.sqrt_alpha { p.sqrt() } else { p } as f32).collect()
}

/// Hard routing: a softmax over the k largest logits alone, the other weights exactly 0; with k = N the
/// same bits as without.
#[test]
fn hard_routing_is_a_softmax_over_the_chosen_experts() {
    let backbone = stories();
    for (seed, sqrt_alpha) in [(1, false), (2, true)] {
        let soft = AdapterConfig { sqrt_alpha, ..settings(MixForm::Product) };
        let parameters = random_adapter(&backbone, &soft, seed).parameters().to_vec();
        let adapter = |top_k| {
            let config = AdapterConfig { top_k, ..soft.clone() };
            let layout = AdapterLayout::new(backbone.config(), &config, WIDTH).unwrap();
            Adapter::from_parameters(layout, parameters.clone()).unwrap()
        };
        let c = representation(seed);
        let soft = adapter(0).alpha(&c).unwrap();
        assert!(adapter(4).alpha(&c).unwrap() == soft);
        for top_k in 1..4 {
            for (hard, soft) in adapter(top_k).alpha(&c).unwrap().iter().zip(&soft) {
                let mut sorted = soft.clone();
                sorted.sort_by(|a, b| b.total_cmp(a));
                let power = if sqrt_alpha { 2 } else { 1 };
                let kept: f32 = sorted[..top_k].iter().map(|a| a.powi(power)).sum();
                let share = |a: f32| if sqrt_alpha { a / kept.sqrt() } else { a / kept };
                let expected =
                    soft.iter().map(|a| if *a < sorted[top_k - 1] { 0.0 } else { share(*a) });
                let expected: Vec<f32> = expected.collect();
                assert_close(hard, &expected, 1e-5, &format!("top {top_k}"));
                assert_eq!(hard.iter().filter(|a| **a == 0.0).count(), 4 - top_k);
            }
        }
    }
}

/// A gate of every token whose logits are its biases alone is a gate of the sample with those biases; one
/// that reads its token is not. Either leaves a new adapter's backbone as it is.
#[test]
fn a_gate_of_tokens_that_reads_none_is_a_gate_of_the_sample() {
    let (backbone, c) = (stories(), representation(4));
    for (seed, form) in (1..).zip(FORMS) {
        let config = AdapterConfig { gate: GateInput::Token, ..settings(form) };
        let mut token = random_adapter(&backbone, &config, seed);
        let mut sample = random_adapter(&backbone, &settings(form), seed + 10);
        let reading = logits(AdaptedModel::new(&backbone, &token), &c);
        let modules = sample.layout().modules().to_vec();
        for (of_sample, of_token) in modules.iter().zip(token.layout().modules().to_vec()) {
            let (to, from) = (sample.parameters_mut(), token.parameters_mut());
            let gate = of_sample.sample_gate().cloned().unwrap();
            let ModuleKind::TokenGate(per_token) = of_token.kind else { panic!("no such gate") };
            to[of_sample.a.clone()].copy_from_slice(&from[of_token.a.clone()]);
            to[of_sample.b.clone()].copy_from_slice(&from[of_token.b.clone()]);
            to[gate.fc2_weight].fill(0.0);
            to[gate.fc2_bias].copy_from_slice(&from[per_token.fc_bias]);
            from[per_token.fc_weight].fill(0.0);
        }
        let got = logits(AdaptedModel::new(&backbone, &token), &c);
        let expected = logits(AdaptedModel::new(&backbone, &sample), &c);
        assert_close(&got, &expected, 1e-5, &format!("{form:?}"));
        assert!(reading.iter().zip(&got).any(|(a, b)| (a - b).abs() > 1e-3), "tokens matter");
        for error in [token.alpha(&c).unwrap_err(), token.mixed(&c).unwrap_err()] {
            assert!(error.to_string().contains("adapter.gate"), "{error}");
        }
        let new = Adapter::new(backbone.config(), &config, WIDTH, 3).unwrap();
        let adapted = logits(AdaptedModel::new(&backbone, &new), &c);
        assert!(adapted == logits(AdaptedModel::bare(&backbone), &[]));
    }
}

/// α is the formula, line by line in f64; and with one mixture for a sample the model is the LoRA that is
/// mixed for it.
#[test]
fn a_gate_of_attention_compares_the_representation_with_the_experts() {
    let (backbone, c) = (stories(), representation(7));
    let config =
        AdapterConfig { gate: GateInput::Attention, gate_hidden: 6, ..settings(MixForm::Factor) };
    let adapter = random_adapter(&backbone, &config, 21);
    let alphas = adapter.alpha(&c).unwrap();
    for (module, alpha) in adapter.layout().modules().iter().zip(&alphas) {
        let ModuleKind::AttentionGate(gate) = &module.kind else { panic!("no such gate") };
        let get = |range: &std::ops::Range<usize>| &adapter.parameters()[range.clone()];
        let linear = |weight, bias, x: &[f64]| -> Vec<f64> {
            let rows = get(weight).chunks_exact(x.len()).zip(get(bias));
            let product =
                |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>();
            rows.map(|(row, b)| f64::from(*b) + product(row)).collect()
        };
        let wide = |values: &[f32]| values.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
        let query = linear(&gate.query_weight, &gate.query_bias, &wide(&c));
        let exp = (0..4).map(|k| {
            let [a, b] = [&module.a, &module.b]
                .map(|all| wide(get(all).chunks_exact(all.len() / 4).nth(k).unwrap()));
            let key = linear(&gate.key_weight, &gate.key_bias, &[a, b].concat());
            let pairs = || query.iter().zip(&key);
            let difference: Vec<f64> = pairs().map(|(q, k)| q - k).collect();
            let product: Vec<f64> = pairs().map(|(q, k)| q * k).collect();
            let features = [query.clone(), key.clone(), difference, product].concat();
            let hidden = linear(&gate.fc1_weight, &gate.fc1_bias, &features);
            let weights = get(&gate.fc2_weight).iter();
            let logit: f64 =
                hidden.iter().zip(weights).map(|(h, w)| h.max(0.0) * f64::from(*w)).sum();
            (logit / f64::from(config.temperature)).exp()
        });
        let exp: Vec<f64> = exp.collect();
        let sum: f64 = exp.iter().sum();
        let expected: Vec<f32> = exp.iter().map(|x| (x / sum) as f32).collect();
        assert_close(alpha, &expected, 1e-4, &module.name);
    }
    assert!(alphas != adapter.alpha(&representation(8)).unwrap(), "personal");
    let got = logits(AdaptedModel::new(&backbone, &adapter), &c);
    let expected = logits(AdaptedModel::bare(&merged(&adapter, &c)), &[]);
    assert_close(&got, &expected, 1e-5, "merged");
    let new = Adapter::new(backbone.config(), &config, WIDTH, 3).unwrap();
    let adapted = logits(AdaptedModel::new(&backbone, &new), &c);
    assert!(adapted == logits(AdaptedModel::bare(&backbone), &[]));
}
