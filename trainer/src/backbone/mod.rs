//! The frozen LLM: a LLaMA decoder read from a Hugging Face directory or a GGUF file.
//!
//! Weights are kept as the forward pass wants them (input-major, projections that share an input side
//! by side) and nothing here has a gradient.

mod config;
mod gguf;
mod load;
mod tensors;

use std::path::{Path, PathBuf};

pub use config::BackboneConfig;
pub(crate) use gguf::{Gguf, is_gguf};
pub(crate) use tensors::TensorFile;

use crate::error::Result;

/// Weights of one decoder block. Matrices are input-major: `[inputs, outputs]`.
#[derive(Debug)]
pub(crate) struct BlockWeights {
    /// RMSNorm before attention `[hidden]`.
    pub input_norm: Vec<f32>,
    /// Query, key and value projections side by side `[hidden, q + 2 kv]`.
    pub qkv: Vec<f32>,
    /// Output projection of attention `[q, hidden]`.
    pub o: Vec<f32>,
    /// RMSNorm before the MLP `[hidden]`.
    pub mlp_norm: Vec<f32>,
    /// Gate and up projections side by side `[hidden, 2 * intermediate_padded]`.
    pub gate_up: Vec<f32>,
    /// Down projection `[intermediate_padded, hidden]`.
    pub down: Vec<f32>,
}

/// A frozen LLaMA decoder. Shared by all threads.
#[derive(Debug)]
pub struct Backbone {
    pub(crate) config: BackboneConfig,
    pub(crate) path: PathBuf,
    /// `[vocab, hidden]`.
    pub(crate) embedding: Vec<f32>,
    pub(crate) blocks: Vec<BlockWeights>,
    /// Final RMSNorm `[hidden]`.
    pub(crate) norm: Vec<f32>,
    /// `[vocab, hidden]`; `None` when tied to the embedding.
    pub(crate) head: Option<Vec<f32>>,
}

impl Backbone {
    /// Reads `config.json` and `model.safetensors` (or the shards of `model.safetensors.index.json`)
    /// of a Hugging Face directory, F32, F16 and BF16; or a GGUF file, whose tensors may also be
    /// Q8_0, Q4_0 and Q4_1. All become f32.
    ///
    /// # Errors
    /// A file that is missing, truncated or malformed, an unsupported architecture or feature, a
    /// tensor that is missing or has another shape or type: each names the file and the tensor.
    pub fn load(path: &Path) -> Result<Self> {
        load::load(path)
    }

    /// Sizes and settings.
    pub fn config(&self) -> &BackboneConfig {
        &self.config
    }

    /// The directory or file it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Rows of the output head, `[vocab, hidden]`.
    pub(crate) fn head(&self) -> &[f32] {
        self.head.as_deref().unwrap_or(&self.embedding)
    }
}
