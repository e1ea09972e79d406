//! The frozen LLM: a LLaMA decoder read from a Hugging Face directory or a GGUF file.
//!
//! Matrices stay as files hold them (`[outputs, inputs]`), mapped where possible, and nothing here has
//! a gradient.

mod config;
mod diagnose;
mod gguf;
mod load;
mod shape;
mod shards;
mod tensors;
mod weight;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub use config::{BackboneConfig, LayerShape, RopeScaling};
pub(crate) use diagnose::cause;
pub(crate) use gguf::{Gguf, is_gguf};
pub use shape::{Projection, WeightType};
pub(crate) use tensors::TensorFile;
pub(crate) use weight::{Numbers, Weight};

use crate::error::Result;

/// A frozen projection.
#[derive(Debug)]
pub(crate) struct FrozenLinear {
    pub weight: Weight,
    /// `[outputs]`, where the family has one.
    pub bias: Option<Vec<f32>>,
}

/// Weights of one decoder block.
#[derive(Debug)]
pub(crate) struct BlockWeights {
    /// RMSNorm before attention `[hidden]`.
    pub input_norm: Vec<f32>,
    /// RMSNorm before the MLP `[hidden]`.
    pub mlp_norm: Vec<f32>,
    /// RMSNorms of each query head and each key head `[head_dim]`, where the family has them.
    pub qk_norm: Option<[Vec<f32>; 2]>,
    /// In the order of [`Projection::ALL`].
    projections: [FrozenLinear; 7],
}

impl BlockWeights {
    /// One of the projections.
    pub fn projection(&self, projection: Projection) -> &FrozenLinear {
        &self.projections[projection as usize]
    }
}

/// A frozen LLaMA-family decoder. Shared by all threads.
#[derive(Debug)]
pub struct Backbone {
    pub(crate) config: BackboneConfig,
    pub(crate) path: PathBuf,
    /// How matrices are stored.
    pub(crate) weight_type: WeightType,
    /// `[vocab, hidden]`.
    pub(crate) embedding: Weight,
    pub(crate) blocks: Vec<BlockWeights>,
    /// Final RMSNorm `[hidden]`.
    pub(crate) norm: Vec<f32>,
    /// `[vocab, hidden]`; `None` when tied to the embedding.
    head: Option<Weight>,
    /// What the lowest block projects each token to, where it is kept.
    pub(crate) lowest: Option<OnceLock<LowestProjections>>,
    notes: Vec<String>,
}

/// A model that can be loaded, but for the values of its weights.
#[derive(Clone, Debug, PartialEq)]
pub struct BackboneSummary {
    /// Sizes and settings.
    pub config: BackboneConfig,
    /// What its user should know, each in a line.
    pub notes: Vec<String>,
}

/// Finds out whether a model can be loaded with matrices stored as `weights`, by its settings and the
/// headers of all its weight files. Whatever [`Backbone::load_as`] refuses is refused here, with the same
/// words, but for values that can't be stored. No weights are read: of a head beside a tied embedding only
/// the first MiB is compared with it, so that one which differs later is found when it is loaded.
///
/// # Errors
/// See [`Backbone::load_as`].
pub fn check(path: &Path, weights: WeightType) -> Result<BackboneSummary> {
    load::check(path, weights)
}

/// Frozen queries, keys and values of the lowest block, `[vocab, q + 2 kv]`. They are a function of the
/// token alone, so that a small vocabulary's are computed once instead of in every sequence.
#[derive(Debug)]
pub(crate) struct LowestProjections(pub Vec<f32>);

impl Backbone {
    /// Reads `config.json` and `model.safetensors` (or the shards of `model.safetensors.index.json`)
    /// of a Hugging Face directory, or a GGUF file; with weights in f32.
    ///
    /// # Errors
    /// See [`Self::load_as`].
    pub fn load(path: &Path) -> Result<Self> {
        Self::load_as(path, WeightType::F32)
    }

    /// Like [`Self::load`], with matrices stored as `weight_type`. Tensors of the file may be F32, F16
    /// or BF16, in GGUF also Q8_0, Q4_0 and Q4_1; a matrix that the file has in the wanted type is
    /// mapped, so that all processes of a machine share its memory.
    ///
    /// # Errors
    /// A file that is missing, truncated or malformed, an unsupported architecture or feature, a
    /// tensor that is missing or has another shape or type: each names the file and the tensor.
    pub fn load_as(path: &Path, weight_type: WeightType) -> Result<Self> {
        load::load(path, weight_type)
    }

    /// Sizes and settings of a model that is not loaded.
    ///
    /// # Errors
    /// A file that is missing or malformed, or an architecture or feature that is not supported.
    pub fn read_config(path: &Path) -> Result<BackboneConfig> {
        load::config(path)
    }

    /// Sizes and settings.
    pub fn config(&self) -> &BackboneConfig {
        &self.config
    }

    /// The directory or file it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What its user should know, each in a line: where the files contradict each other.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether products are made of factors rounded to bf16: with such weights, where the CPU has
    /// the instructions.
    pub(crate) fn multiplies_in_bf16(&self) -> bool {
        self.weight_type == WeightType::Bf16 && crate::kernels::bf16::available()
    }

    /// The output head, `[vocab, hidden]`.
    pub(crate) fn head(&self) -> &Weight {
        self.head.as_ref().unwrap_or(&self.embedding)
    }
}
