//! Random tiny backbones, as the Hugging Face directories they are loaded from.

#![allow(dead_code, reason = "each test file uses the part it needs")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reclora_trainer::backbone::{self, Backbone, WeightType};
use reclora_trainer::error::Result;
use reclora_trainer::losses::{Loss, Readout};
use reclora_trainer::parameters::Losses;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

/// The file of all weights.
pub const WEIGHTS: &str = "model.safetensors";

/// Sizes of a backbone. The default has what real models have and toys often lack: grouped queries,
/// heads that are not `hidden / heads` wide, an MLP that fills no whole vector register.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub vocab: usize,
    pub tied: bool,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            hidden: 12,
            intermediate: 20,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 6,
            vocab: 11,
            tied: false,
        }
    }
}

/// A tensor as a file holds it.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

pub type Tensors = BTreeMap<String, Tensor>;

pub fn uniform(n: usize, bound: f32, random: &mut ChaCha8Rng) -> Vec<f32> {
    (0..n).map(|_| random.random_range(-bound..bound)).collect()
}

pub fn config(sizes: &Sizes) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "vocab_size": sizes.vocab,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100.0,
        "tie_word_embeddings": sizes.tied,
        "hidden_act": "silu",
    })
}

/// Weights large enough that every block changes the residual stream by about its own size.
pub fn tensors(sizes: &Sizes, seed: u64) -> Tensors {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let values = random_weight(&shape, &mut random);
        (format!("{name}.weight"), f32_tensor(&shape, &values))
    };
    shapes(sizes).into_iter().map(tensor).collect()
}

fn shapes(sizes: &Sizes) -> Vec<(String, Vec<usize>)> {
    let Sizes { hidden, intermediate, heads, kv_heads, head_dim, vocab, .. } = *sizes;
    let (q, kv) = (heads * head_dim, kv_heads * head_dim);
    let mut shapes = vec![
        ("model.embed_tokens".to_owned(), vec![vocab, hidden]),
        ("model.norm".to_owned(), vec![hidden]),
    ];
    for layer in 0..sizes.layers {
        let parts = [
            ("self_attn.q_proj", vec![q, hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, q]),
            ("mlp.gate_proj", vec![intermediate, hidden]),
            ("mlp.up_proj", vec![intermediate, hidden]),
            ("mlp.down_proj", vec![hidden, intermediate]),
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
        ];
        shapes.extend(parts.map(|(name, shape)| (format!("model.layers.{layer}.{name}"), shape)));
    }
    if !sizes.tied {
        shapes.push(("lm_head".to_owned(), vec![vocab, hidden]));
    }
    shapes
}

fn random_weight(shape: &[usize], random: &mut ChaCha8Rng) -> Vec<f32> {
    match *shape {
        [width] => uniform(width, 0.5, random).iter().map(|x| 1.0 + x).collect(),
        [outputs, inputs] => uniform(outputs * inputs, (3.0 / inputs as f32).sqrt(), random),
        _ => unreachable!("weights are vectors and matrices"),
    }
}

pub fn f32_tensor(shape: &[usize], values: &[f32]) -> Tensor {
    let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    Tensor { dtype: Dtype::F32, shape: shape.to_vec(), bytes }
}

pub fn save(path: &Path, tensors: &Tensors) {
    let views = tensors.iter().map(|(name, tensor)| {
        let view = TensorView::new(tensor.dtype, tensor.shape.clone(), &tensor.bytes).unwrap();
        (name.as_str(), view)
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Writes `config.json` and `model.safetensors`.
pub fn write(dir: &Path, sizes: &Sizes, seed: u64) {
    std::fs::write(dir.join("config.json"), config(sizes).to_string()).unwrap();
    save(&dir.join(WEIGHTS), &tensors(sizes, seed));
}

pub fn backbone(sizes: &Sizes, seed: u64) -> Backbone {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), sizes, seed);
    Backbone::load(dir.path()).unwrap()
}

/// What a backward pass said was final, and when.
#[derive(Default)]
pub struct Finishing(Vec<(usize, Vec<f32>)>);

impl Finishing {
    pub fn tell(&mut self, gradient: &[f32], from: usize) {
        self.0.push((from, gradient[from..].to_vec()));
    }

    /// Layer after layer, down to the first place; and nothing of it changed afterwards.
    pub fn check(&self, layers: usize, gradient: &[f32], what: &str) {
        let places: Vec<usize> = self.0.iter().map(|(from, _)| *from).collect();
        assert_eq!(places.len(), layers, "{what}");
        assert!(
            places.is_sorted_by(|a, b| a > b) && places.last() == Some(&0),
            "{what}: {places:?}"
        );
        for (from, values) in &self.0 {
            assert_eq!(gradient[*from..], values[..], "{what}: from {from}");
        }
    }
}

/// A loss of pairs of samples: the first one's yes is to lead by more than half of what the second one's does. Half,
/// so that what both margins have in common does not cancel.
pub struct Pairs;

impl Loss for Pairs {
    fn group_size(&self) -> usize {
        2
    }

    fn of(&self, group: &[Readout], _likes: &[bool]) -> Result<(Losses, Vec<Readout>)> {
        let margins: Vec<f64> = group.iter().map(|readout| readout.margin.unwrap()).collect();
        let [better, worse] = margins[..] else { panic!("a pair, not {}", group.len()) };
        let lead = 0.3 * (better - 0.5 * worse);
        let slope = 0.3 / (1.0 + lead.exp());
        let derivatives = group.iter().zip([-slope, 0.5 * slope]).map(|(readout, slope)| Readout {
            log_likelihoods: vec![0.0; readout.log_likelihoods.len()],
            margin: Some(slope),
        });
        let loss = (1.0 + (-lead).exp()).ln() as f32;
        Ok((Losses { training: loss, deciding: 0.0 }, derivatives.collect()))
    }
}

/// A directory that is whole until a test damages it.
pub struct Directory(pub TempDir);

impl Directory {
    pub fn whole() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &Sizes::default(), 1);
        Self(dir)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.file(name)).unwrap()
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.file(name), bytes).unwrap();
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.file(name)).unwrap();
    }

    pub fn change_config(&self, change: impl FnOnce(&mut Value)) {
        let mut config = config(&Sizes::default());
        change(&mut config);
        self.write("config.json", config.to_string());
    }

    pub fn change_tensors(&self, change: impl FnOnce(&mut Tensors)) {
        let mut tensors = tensors(&Sizes::default(), 1);
        change(&mut tensors);
        save(&self.file(WEIGHTS), &tensors);
    }

    /// The error begins with the file and has these parts: what is wrong, and what to do. The headers
    /// alone tell the same.
    pub fn refused(&self, file: &str, parts: &[&str]) {
        let loaded = Backbone::load(self.0.path()).map(|_| ());
        let checked = backbone::check(self.0.path(), WeightType::F32).map(|_| ());
        let file = format!("{}: ", self.file(file).display());
        for error in [loaded, checked].map(|outcome| outcome.unwrap_err().to_string()) {
            assert!(error.starts_with(&file), "not about {file}{error}");
            for part in parts {
                assert!(error.contains(part), "no {part:?} in: {error}");
            }
        }
    }
}
