//! Scales of a frozen LoRA: what they are, what of them is trained, and what their file holds.

use crate::tiny;
use std::path::PathBuf;

use crate::tiny::{Sizes, uniform};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use reclora_trainer::adapter::{Adapter, AdapterLayout, ModuleKind};
use reclora_trainer::backbone::{Backbone, Projection};
use reclora_trainer::config::{AdapterConfig, GateInput, Head, MixForm};
use reclora_trainer::engine::{AdaptedModel, Prompt, Target, TrainingSample, Workspace};
use reclora_trainer::error::{Remedy, TrainerError};
use reclora_trainer::losses::TokenCrossEntropy;
use safetensors::SafeTensors;
use tempfile::TempDir;

const TOKENS: [u32; 6] = [1, 7, 3, 3, 10, 5];
const TARGETS: [Target; 2] = [Target { position: 4, token: 2 }, Target { position: 1, token: 9 }];

fn settings() -> AdapterConfig {
    AdapterConfig {
        experts: 1,
        rank: 3,
        lora_alpha: 5.0,
        targets: vec![Projection::VProj, Projection::DownProj, Projection::QProj],
        ..AdapterConfig::default()
    }
}

fn random_adapter(backbone: &Backbone, config: &AdapterConfig, seed: u64) -> Adapter {
    let layout = AdapterLayout::new(backbone.config(), config, 4).unwrap();
    let random = &mut ChaCha8Rng::seed_from_u64(seed);
    let parameters = uniform(layout.num_parameters(), 0.4, random);
    Adapter::from_parameters(layout, parameters).unwrap()
}

/// A trained plain LoRA, and the file it is in.
struct Trained {
    dir: TempDir,
    backbone: Backbone,
    lora: Adapter,
}

impl Trained {
    fn new() -> Self {
        Self::with(&settings())
    }

    fn with(config: &AdapterConfig) -> Self {
        let (dir, backbone) = (tempfile::tempdir().unwrap(), tiny::backbone(&Sizes::default(), 1));
        let lora = random_adapter(&backbone, config, 2);
        lora.save(&dir.path().join("lora")).unwrap();
        Self { dir, backbone, lora }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Settings of its scales.
    fn settings(&self) -> AdapterConfig {
        AdapterConfig { scale_of: self.file("lora"), ..settings() }
    }

    /// New scales, all 1.
    fn scales(&self) -> Adapter {
        Adapter::new(self.backbone.config(), &self.settings(), 4, 9).unwrap()
    }

    /// Scales as after much training.
    fn random_scales(&self) -> Adapter {
        let mut scales = self.scales();
        let random = &mut ChaCha8Rng::seed_from_u64(3);
        let parameters = uniform(scales.num_parameters(), 0.5, random);
        scales.parameters_mut().copy_from_slice(&parameters);
        scales
    }

    /// The plain LoRA of the formula: B is diag(1 + o) B diag(1 + s), entry by entry in f64.
    fn explicit(&self, scales: &Adapter) -> Adapter {
        let mut lora = self.lora.clone();
        let rank = lora.config().rank;
        let modules = lora.layout().modules().to_vec();
        for (module, scaled) in modules.iter().zip(scales.layout().modules()) {
            let ModuleKind::Scales(of) = scaled.kind.clone() else { panic!("no scales") };
            let factor = |index: usize| 1.0 + f64::from(scales.parameters()[index]);
            for (index, value) in lora.parameters_mut()[module.b.clone()].iter_mut().enumerate() {
                let (i, j) = (index / rank, index % rank);
                let factors = factor(of.output.start + i) * factor(of.rank.start + j);
                *value = (f64::from(*value) * factors) as f32;
            }
        }
        lora
    }

    fn logits(&self, adapter: &Adapter) -> Vec<f32> {
        let prompt = Prompt { tokens: &TOKENS, representation: &[] };
        let model = AdaptedModel::new(&self.backbone, adapter);
        model.logits_at(&mut Workspace::new(), &prompt, TOKENS.len() - 1, None).unwrap()
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn assert_close(got: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-12_f32, |max, x| max.max(x.abs()));
    let worst = got.iter().zip(expected).fold(0.0_f32, |max, (a, b)| max.max((a - b).abs()));
    assert!(worst <= tolerance * largest, "{what}: {worst} of {largest}");
}

#[test]
fn at_the_start_the_model_is_that_of_the_frozen_lora() {
    for form in [MixForm::Factor, MixForm::Product] {
        let trained = Trained::with(&AdapterConfig { form, ..settings() });
        let scales = trained.scales();
        assert!(scales.parameters().iter().all(|offset| *offset == 0.0));
        let got = trained.logits(&scales);
        assert_eq!(bits(&got), bits(&trained.logits(&trained.lora)), "{form:?}");
        let bare = AdaptedModel::bare(&trained.backbone);
        let prompt = Prompt { tokens: &TOKENS, representation: &[] };
        let bare = bare.logits_at(&mut Workspace::new(), &prompt, TOKENS.len() - 1, None).unwrap();
        assert!(got != bare, "the LoRA does something");
    }
}

#[test]
fn scales_are_diagonal_matrices_around_b() {
    let trained = Trained::new();
    let scales = trained.random_scales();
    let explicit = trained.explicit(&scales);
    let got = trained.logits(&scales);
    assert_close(&got, &trained.logits(&explicit), 1e-5, "logits");
    assert!(got != trained.logits(&trained.lora), "the scales do something");
    let mixed = scales.mixed(&[]).unwrap();
    for (mixed, expected) in mixed.iter().zip(explicit.mixed(&[]).unwrap()) {
        assert_eq!((&mixed.name, mixed.rank, mixed.scale), (&expected.name, 3, 5.0 / 3.0));
        assert_eq!(bits(&mixed.lora_a), bits(&expected.lora_a));
        assert_close(&mixed.lora_b, &expected.lora_b, 1e-6, &mixed.name);
    }
    // Neither kind of scale stands for the other.
    for tensor in ["rank_scale", "output_scale"] {
        let mut one = scales.clone();
        for tensor in scales.layout().tensors().iter().filter(|t| !t.name.ends_with(tensor)) {
            one.parameters_mut()[tensor.range.clone()].fill(0.0);
        }
        let expected = trained.logits(&trained.explicit(&one));
        assert_close(&trained.logits(&one), &expected, 1e-5, tensor);
        assert!(expected != got);
    }
}

/// r and d_out per projection, by name; of the LoRA itself nothing.
#[test]
fn only_the_scales_are_parameters() {
    let trained = Trained::new();
    let scales = trained.scales();
    let names: Vec<(&str, &[usize])> = scales.tensors().map(|(n, s, _)| (n, s)).take(4).collect();
    let expected: [(&str, &[usize]); 4] = [
        ("model.layers.0.self_attn.q_proj.rank_scale", &[3]),
        ("model.layers.0.self_attn.q_proj.output_scale", &[24]),
        ("model.layers.0.self_attn.v_proj.rank_scale", &[3]),
        ("model.layers.0.self_attn.v_proj.output_scale", &[12]),
    ];
    assert_eq!(names, expected);
    assert_eq!(scales.num_parameters(), 2 * (3 + 24 + 3 + 12 + 3 + 12));
    assert_eq!(scales.frozen().unwrap().num_parameters(), trained.lora.num_parameters());
    assert_eq!(scales.alpha(&[]).unwrap(), vec![vec![1.0]; 6]);
    let layout = scales.layout().clone();
    let count = layout.num_parameters();
    assert!(scales.with_parameters(vec![0.0; count]).unwrap() == scales);
    assert!(scales.with_parameters(vec![0.0; count + 1]).is_none());
    assert!(Adapter::from_parameters(layout, vec![0.0; count]).is_none(), "its LoRA is missing");
}

#[test]
fn a_step_lowers_the_loss_and_leaves_the_lora_as_it_is() {
    let trained = Trained::new();
    let mut scales = trained.scales();
    let prompt = Prompt { tokens: &TOKENS, representation: &[] };
    let step = |adapter: &Adapter| {
        let mut gradient = vec![0.0; adapter.num_parameters()];
        let model = AdaptedModel::new(&trained.backbone, adapter);
        let ws = &mut Workspace::new();
        let sample = TrainingSample::new(prompt, &TARGETS);
        let losses = model.train(ws, &[sample], &TokenCrossEntropy, 1.0, &mut gradient);
        (losses.unwrap().training, gradient)
    };
    let (before, gradient) = step(&scales);
    for (parameter, slope) in scales.parameters_mut().iter_mut().zip(&gradient) {
        *parameter -= 0.05 * slope;
    }
    let (after, _) = step(&scales);
    assert!(after < before - 1e-3, "{after} {before}");
    let tensors = scales.layout().tensors().iter();
    for tensor in tensors {
        let values = &scales.parameters()[tensor.range.clone()];
        assert!(values.iter().any(|value| *value != 0.0), "{} learns", tensor.name);
    }
    let lora = bits(trained.lora.parameters());
    assert_eq!(bits(scales.frozen().unwrap().parameters()), lora);
    scales.save(&trained.file("scales")).unwrap();
    let bytes = std::fs::read(trained.file("scales")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for (name, shape, values) in trained.lora.tensors() {
        let expected: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let tensor = file.tensor(name).unwrap();
        assert_eq!((tensor.shape(), tensor.data()), (shape, &expected[..]), "{name}");
    }
}

#[test]
fn an_exported_lora_has_the_scales_in_b() {
    let trained = Trained::new();
    let scales = trained.random_scales();
    let dir = trained.file("peft");
    scales.save_peft(&[], "some/backbone", &dir).unwrap();
    let config = std::fs::read(dir.join("adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    assert_eq!((&config["r"], &config["lora_alpha"]), (&3.into(), &5.into()));
    let bytes = std::fs::read(dir.join("adapter_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let explicit = trained.explicit(&scales).mixed(&[]).unwrap();
    assert_eq!(file.len(), 2 * explicit.len());
    for module in explicit {
        let parts = [("lora_A", &module.lora_a), ("lora_B", &module.lora_b)];
        for (part, expected) in parts {
            let name = format!("base_model.model.{}.{part}.weight", module.name);
            let bytes = file.tensor(&name).unwrap().data().as_chunks().0;
            let values: Vec<f32> = bytes.iter().map(|value| f32::from_le_bytes(*value)).collect();
            assert_close(&values, expected, 1e-6, &name);
        }
    }
}

/// A head of its own is trained beside the scales, and kept with them.
#[test]
fn scales_can_have_a_trained_head() {
    let trained = Trained::new();
    let deciding = [3, 8];
    let prompt = Prompt { tokens: &TOKENS, representation: &[] };
    let answers = |adapter: &Adapter| {
        let model = AdaptedModel::new(&trained.backbone, adapter);
        model.answer_logits(&mut Workspace::new(), &prompt, 4, deciding).unwrap()
    };
    let config = AdapterConfig { head: Head::Ctr2, ..trained.settings() };
    let mut scales = Adapter::new(trained.backbone.config(), &config, 4, 9).unwrap();
    scales.start_head(&trained.backbone, deciding).unwrap();
    assert_eq!(answers(&scales), answers(&trained.lora));
    scales.save(&trained.file("scales")).unwrap();
    let loaded = Adapter::load(&trained.file("scales"), trained.backbone.config()).unwrap();
    assert!(loaded == scales && loaded.layout().head().is_some());
}

/// The file has the LoRA too: that of the first run is not needed any more.
#[test]
fn a_file_of_scales_is_whole_by_itself() {
    let trained = Trained::new();
    let scales = trained.random_scales();
    scales.save(&trained.file("scales")).unwrap();
    std::fs::remove_file(trained.file("lora")).unwrap();
    let loaded = Adapter::load(&trained.file("scales"), trained.backbone.config()).unwrap();
    assert!(loaded == scales && loaded.layout().is_scaled());
    assert_eq!(bits(&trained.logits(&loaded)), bits(&trained.logits(&scales)));
    loaded.save(&trained.file("again")).unwrap();
    let [first, second] =
        ["scales", "again"].map(|name| std::fs::read(trained.file(name)).unwrap());
    assert!(first == second);
    assert!(!String::from_utf8_lossy(&first).contains(trained.dir.path().to_str().unwrap()));
}

#[test]
fn a_damaged_file_of_scales_is_refused() {
    let trained = Trained::new();
    let scales = trained.random_scales();
    scales.save(&trained.file("scales")).unwrap();
    let whole = std::fs::read(trained.file("scales")).unwrap();
    let path = trained.file("damaged");
    let load = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let loaded = Adapter::load(&path, trained.backbone.config());
        loaded.map_err(|error| {
            let rebuilt =
                matches!(&error, TrainerError::Remake { remedy: Remedy::Rebuild("tune"), .. });
            assert!(
                rebuilt && error.to_string().starts_with(&format!("{}: ", path.display())),
                "{error}"
            );
        })
    };
    assert!(load(&whole).is_ok());
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let lengths = (0..header).step_by(7).chain((header..whole.len()).step_by(61));
    for length in lengths.chain([whole.len() - 1]) {
        assert!(load(&whole[..length]).is_err(), "{length} bytes");
    }
    for at in (0..header).step_by(3).chain((header..whole.len()).step_by(31)) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        if let Ok(loaded) = load(&bytes) {
            assert!(loaded == scales && whole[at].is_ascii_whitespace(), "byte {at}");
        }
    }
    // Another word of the same length, valid by itself.
    let text = String::from_utf8_lossy(&whole[..header]).into_owned();
    for (from, to) in
        [(r#"\"scales\":true"#, r#"\"scales\":null"#), (r#"\"experts\":1"#, r#"\"experts\":2"#)]
    {
        let at = text.find(from).unwrap_or_else(|| panic!("no {from} in {text}"));
        let mut bytes = whole.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        assert!(load(&bytes).is_err(), "{to}");
    }
}

/// By the header alone, and again when the LoRA is read: setting, file, and both values.
#[test]
fn a_lora_of_other_settings_is_refused_by_name() {
    type Change = fn(&mut AdapterConfig);
    let cases: [(&str, Change, &str); 5] = [
        ("adapter.rank: is 4, but 3 in ", |c| c.rank = 4, "they must agree"),
        ("adapter.lora_alpha: is 5.5, but 5 in ", |c| c.lora_alpha = 5.5, "they must agree"),
        (
            "adapter.targets: is q_proj, k_proj, but q_proj, v_proj, down_proj in ",
            |c| c.targets = vec![Projection::KProj, Projection::QProj],
            "they must agree",
        ),
        ("adapter.experts: is 2", |c| c.experts = 2, "must be 1"),
        ("adapter.gate: must be the default", |c| c.gate = GateInput::Attention, "no gate"),
    ];
    let trained = Trained::new();
    Adapter::check_scale_of(&trained.settings()).unwrap();
    for (start, change, end) in cases {
        let mut config = trained.settings();
        change(&mut config);
        let new = Adapter::new(trained.backbone.config(), &config, 4, 1).unwrap_err().to_string();
        assert!(new.starts_with(&format!("config: {start}")) && new.contains(end), "{new}");
        let early = config.validate().and_then(|()| Adapter::check_scale_of(&config));
        assert_eq!(early.unwrap_err().to_string(), new);
        if end == "they must agree" {
            assert!(new.contains(&trained.file("lora").display().to_string()), "{new}");
        }
    }
}

#[test]
fn only_a_plain_lora_can_be_scaled() {
    let refused = |trained: &Trained, what: &str| {
        let config = trained.settings();
        let error = Adapter::new(trained.backbone.config(), &config, 4, 1).unwrap_err().to_string();
        let start = format!("config: adapter.scale_of: {} ", config.scale_of.display());
        assert!(error.starts_with(&start) && error.contains(what), "{error}");
        assert_eq!(Adapter::check_scale_of(&config).unwrap_err().to_string(), error);
    };
    refused(&Trained::with(&AdapterConfig { experts: 2, ..settings() }), "has 2 experts");
    refused(&Trained::with(&AdapterConfig { head: Head::Ctr1, ..settings() }), "a trained head");
    let trained = Trained::new();
    trained.scales().save(&trained.file("scales")).unwrap();
    std::fs::rename(trained.file("scales"), trained.file("lora")).unwrap();
    refused(&trained, "holds scales itself");
}

#[test]
fn a_lora_that_can_not_be_read_is_named() {
    let trained = Trained::new();
    let (path, config) = (trained.file("lora"), trained.settings());
    let new = |backbone: &Backbone| {
        let error = Adapter::new(backbone.config(), &config, 4, 1).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}: ", path.display())), "{error}");
        error
    };
    let other = tiny::backbone(&Sizes { hidden: 24, ..Sizes::default() }, 1);
    assert!(new(&other).contains("tensor model.layers."));
    let whole = std::fs::read(&path).unwrap();
    let mut damaged = whole.clone();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &damaged).unwrap();
    assert!(new(&trained.backbone).contains("is damaged"));
    std::fs::write(&path, &whole[..100]).unwrap();
    let early = Adapter::check_scale_of(&config).unwrap_err().to_string();
    assert_eq!(early, new(&trained.backbone));
    std::fs::remove_file(&path).unwrap();
    let early = Adapter::check_scale_of(&config).unwrap_err().to_string();
    assert_eq!(early, new(&trained.backbone));
}
