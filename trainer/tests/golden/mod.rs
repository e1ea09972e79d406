//! A golden file (what it holds: make_golden.py) against what this project computes.
//!
//! "Relative" is per tensor: max|a - b| / max|b|, b the reference.

use std::path::{Path, PathBuf};

use reclora_trainer::adapter::{Adapter, AdapterLayout};
use reclora_trainer::backbone::Backbone;
use reclora_trainer::config::AdapterConfig;
use reclora_trainer::engine::{AdaptedModel, Prompt, Target, TrainingSample, Workspace};
use reclora_trainer::losses::TokenCrossEntropy;
use safetensors::SafeTensors;

const TOLERANCE: f32 = 1e-4;
const YES: u32 = 5;
const NO: u32 = 9;

pub fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file)
}

pub struct Golden<'a>(pub SafeTensors<'a>);

impl Golden<'_> {
    fn f32(&self, name: &str) -> Vec<f32> {
        let bytes = self.0.tensor(name).unwrap();
        bytes.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    fn i64(&self, name: &str) -> Vec<i64> {
        let bytes = self.0.tensor(name).unwrap();
        bytes.data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect()
    }

    /// The prompts: tokens and representation of each.
    fn prompts(&self) -> Vec<(Vec<u32>, Vec<f32>)> {
        let (ids, lens, c) = (self.i64("ids"), self.i64("lens"), self.f32("c"));
        let mut ids = ids.iter().map(|id| *id as u32);
        let tokens = lens.iter().map(|n| ids.by_ref().take(*n as usize).collect());
        tokens.zip(c.chunks_exact(c.len() / lens.len()).map(<[f32]>::to_vec)).collect()
    }

    fn adapter(&self, backbone: &Backbone, config: &AdapterConfig) -> Adapter {
        let width = self.prompts()[0].1.len();
        let layout = AdapterLayout::new(backbone.config(), config, width).unwrap();
        let mut parameters = Vec::new();
        for tensor in layout.tensors() {
            parameters.extend(self.f32(&format!("param.{}", tensor.name)));
        }
        let trained = self.0.names().iter().filter(|name| name.starts_with("param.")).count();
        assert_eq!(layout.tensors().len(), trained, "trained tensors");
        Adapter::from_parameters(layout, parameters).unwrap()
    }

    /// Logits, mixture weights, loss and the gradient of every trained tensor.
    pub fn check(&self, backbone: &Backbone, config: &AdapterConfig, ws: &mut Workspace) {
        let adapter = self.adapter(backbone, config);
        let model = AdaptedModel::new(backbone, &adapter);
        let (labels, prompts) = (self.i64("label"), self.prompts());
        let (logits, alpha) = (self.f32("logits"), self.f32("alpha"));
        let weight = 1.0 / prompts.len() as f32;
        let (mut gradient, mut loss) = (vec![0.0; adapter.num_parameters()], 0.0);
        let of_prompts = logits
            .chunks_exact(logits.len() / prompts.len())
            .zip(alpha.chunks_exact(alpha.len() / prompts.len()));
        for (((tokens, c), label), (logits, alpha)) in prompts.iter().zip(labels).zip(of_prompts) {
            let prompt = Prompt { tokens, representation: c };
            let position = tokens.len() - 1;
            let got = model.logits_at(ws, &prompt, position, None).unwrap();
            assert_close("logits", &got, logits);
            let answers = model.logits_at(ws, &prompt, position, Some(&[YES, NO])).unwrap();
            assert_eq!(answers, [got[YES as usize], got[NO as usize]]);
            assert_close("alpha", &adapter.alpha(c).unwrap().concat(), alpha);
            let targets = [Target { position, token: if label == 1 { YES } else { NO } }];
            let sample = TrainingSample::new(prompt, &targets);
            let losses =
                model.train(ws, &[sample], &TokenCrossEntropy, weight, &mut gradient).unwrap();
            loss += weight * losses.training;
        }
        assert_close("loss", &[loss], &self.f32("loss"));
        for tensor in adapter.layout().tensors() {
            let reference = self.f32(&format!("grad.{}", tensor.name));
            assert_close(&tensor.name, &gradient[tensor.range.clone()], &reference);
        }
    }
}

fn assert_close(what: &str, got: &[f32], reference: &[f32]) {
    assert_eq!(got.len(), reference.len(), "{what}");
    let worst = got.iter().zip(reference).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let largest = reference.iter().map(|b| b.abs()).fold(1e-12, f32::max);
    assert!(worst / largest < TOLERANCE, "{what}: {worst} of {largest}: {}", worst / largest);
}
