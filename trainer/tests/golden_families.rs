//! Each family of backbones, with personalised LoRA on all seven projections, against transformers and
//! PyTorch autograd: loss, mixture weights, logits, and the gradient of every trained tensor.

use crate::golden;
use crate::golden::Golden;
use crate::tiny;
use crate::tiny::{Tensor, Tensors, WEIGHTS};
use reclora_trainer::backbone::Backbone;
use reclora_trainer::config::AdapterConfig;
use reclora_trainer::engine::Workspace;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::Value;

/// The case's directory, read as users' backbones are.
fn load(golden: &Golden<'_>, config: &Value) -> Backbone {
    let tensor = |view: &TensorView<'_>| Tensor {
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        bytes: view.data().to_vec(),
    };
    let weights: Tensors = (golden.0.iter())
        .filter_map(|(name, view)| {
            Some((name.strip_prefix("backbone.")?.to_owned(), tensor(&view)))
        })
        .collect();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    tiny::save(&dir.path().join(WEIGHTS), &weights);
    Backbone::load(dir.path()).unwrap()
}

fn check(case: &str) {
    let bytes = std::fs::read(golden::path(&format!("family-{case}.safetensors"))).unwrap();
    let golden = Golden(SafeTensors::deserialize(&bytes).unwrap());
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let settings: Value =
        serde_json::from_str(&header.metadata().as_ref().unwrap()["case"]).unwrap();
    let config: AdapterConfig = serde_json::from_value(settings["adapter"].clone()).unwrap();
    let backbone = load(&golden, &settings["config"]);
    let mut ws = Workspace::new();
    // All activations kept, or recomputed.
    for budget in [usize::MAX, 0] {
        ws.set_activation_budget(budget);
        golden.check(&backbone, &config, &mut ws);
    }
}

#[test]
fn llama() {
    check("llama");
}

#[test]
fn llama_in_product_form() {
    check("llama-product");
}

#[test]
fn llama_3_with_its_scaling() {
    check("llama3");
}

#[test]
fn llama_with_linear_scaling_and_biases() {
    check("llama-linear");
}

#[test]
fn mistral_with_a_window() {
    check("mistral");
}

#[test]
fn qwen2() {
    check("qwen2");
}

#[test]
fn qwen2_with_a_window_from_a_layer_on() {
    check("qwen2-window");
}

#[test]
fn qwen3() {
    check("qwen3");
}

#[test]
fn qwen3_with_biases_and_a_window_by_layer_type() {
    check("qwen3-window");
}
