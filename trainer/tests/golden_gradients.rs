//! Both forms of the personalised LoRA against PyTorch autograd: loss, mixture weights, logits, and
//! the gradient of every trained tensor.

use crate::golden;
use std::path::Path;

use crate::golden::Golden;
use reclora_trainer::backbone::Backbone;
use reclora_trainer::config::{AdapterConfig, MixForm};
use reclora_trainer::engine::Workspace;
use safetensors::SafeTensors;

fn check(file: &str, form: MixForm, budget: usize) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let backbone = Backbone::load(&root.join("../configs/models/stories260k")).unwrap();
    let bytes = std::fs::read(golden::path(file)).unwrap();
    let golden = Golden(SafeTensors::deserialize(&bytes).unwrap());
    let config = AdapterConfig {
        experts: 4,
        rank: 8,
        lora_alpha: 16.0,
        temperature: 2.0,
        form,
        ..AdapterConfig::default()
    };
    let mut ws = Workspace::new();
    ws.set_activation_budget(budget);
    golden.check(&backbone, &config, &mut ws);
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
