//! Both forms of the personalised LoRA against PyTorch autograd: loss, mixture weights, logits, and
//! the gradient of every trained tensor.
//!
//! "Relative" is per tensor: max|a - b| / max|b|, b the reference.

#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

use std::path::Path;

use reclora_trainer::adapter::{Adapter, AdapterLayout};
use reclora_trainer::backbone::Backbone;
use reclora_trainer::config::{AdapterConfig, MixForm};
use reclora_trainer::model::{AdaptedModel, Prompt, Target, Workspace};
use safetensors::SafeTensors;

const TOLERANCE: f32 = 1e-4;
const YES: u32 = 5;
const NO: u32 = 9;

struct Golden<'a>(SafeTensors<'a>);

impl Golden<'_> {
    fn f32(&self, name: &str) -> Vec<f32> {
        let bytes = self.0.tensor(name).unwrap();
        bytes.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    fn i64(&self, name: &str) -> Vec<i64> {
        let bytes = self.0.tensor(name).unwrap();
        bytes.data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()
    }
}

fn assert_close(what: &str, got: &[f32], reference: &[f32]) {
    assert_eq!(got.len(), reference.len(), "{what}");
    let worst = got.iter().zip(reference).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let largest = reference.iter().map(|b| b.abs()).fold(1e-12, f32::max);
    assert!(worst / largest < TOLERANCE, "{what}: {worst} of {largest}: {}", worst / largest);
}

fn check(file: &str, form: MixForm, budget: usize) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let backbone = Backbone::load(&root.join("../configs/models/stories260k")).unwrap();
    let bytes = std::fs::read(root.join("tests/golden").join(file)).unwrap();
    let golden = Golden(SafeTensors::deserialize(&bytes).unwrap());
    let config = AdapterConfig {
        experts: 4,
        rank: 8,
        lora_alpha: 16.0,
        temperature: 2.0,
        form,
        ..AdapterConfig::default()
    };
    let layout = AdapterLayout::new(backbone.config(), &config, 24).unwrap();
    let mut parameters = Vec::new();
    for tensor in layout.tensors() {
        parameters.extend(golden.f32(&format!("param.{}", tensor.name)));
    }
    let adapter = Adapter::from_parameters(layout, parameters).unwrap();
    let model = AdaptedModel::new(&backbone, &adapter);
    let mut ws = Workspace::new();
    ws.set_activation_budget(budget);
    let (ids, lens) = (golden.i64("ids"), golden.i64("lens"));
    let (c, labels) = (golden.f32("c"), golden.i64("label"));
    let (logits, alpha) = (golden.f32("logits"), golden.f32("alpha"));
    let (mut gradient, mut loss) = (vec![0.0; adapter.num_parameters()], 0.0);
    let mut start = 0;
    for (i, length) in lens.iter().enumerate() {
        let tokens: Vec<u32> =
            ids[start..start + *length as usize].iter().map(|x| *x as u32).collect();
        start += tokens.len();
        let prompt = Prompt { tokens: &tokens, representation: &c[i * 24..(i + 1) * 24] };
        let position = tokens.len() - 1;
        let got = model.logits_at(&mut ws, &prompt, position, None).unwrap();
        assert_close("logits", &got, &logits[i * 512..(i + 1) * 512]);
        let answers = model.logits_at(&mut ws, &prompt, position, Some(&[YES, NO])).unwrap();
        assert_eq!(answers, [got[YES as usize], got[NO as usize]]);
        let got = adapter.alpha(prompt.representation).unwrap().concat();
        assert_close("alpha", &got, &alpha[i * 40..(i + 1) * 40]);
        let target = Target { position, token: if labels[i] == 1 { YES } else { NO } };
        loss += model
            .loss_and_gradient(&mut ws, &prompt, &[target], None, 1.0 / 3.0, &mut gradient)
            .unwrap()
            / 3.0;
    }
    assert_close("loss", &[loss], &golden.f32("loss"));
    for tensor in adapter.layout().tensors() {
        let reference = golden.f32(&format!("grad.{}", tensor.name));
        assert_close(&tensor.name, &gradient[tensor.range.clone()], &reference);
    }
}

#[test]
fn factor_form() {
    check("reclora-factor.safetensors", MixForm::Factor, usize::MAX);
}

#[test]
fn product_form() {
    check("reclora-product.safetensors", MixForm::Product, usize::MAX);
}

#[test]
fn recomputed_blocks() {
    check("reclora-factor.safetensors", MixForm::Factor, 0);
    check("reclora-product.safetensors", MixForm::Product, 0);
}
