//! `config.json` of a Hugging Face directory: what is needed, and what is refused by name.

mod family;
mod fields;
#[cfg(test)]
mod published;
mod rope;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde_json::Value;

use crate::backbone::Projection;
use crate::error::{Result, TrainerError};
pub use crate::kernels::heads::RopeScaling;
use family::Family;
use fields::Fields;

/// Sizes and settings of a decoder of the LLaMA kind: LLaMA, Mistral, Qwen2 or Qwen3.
#[derive(Clone, Debug, PartialEq)]
pub struct BackboneConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// The decoder blocks, the lowest first.
    pub layers: Vec<LayerShape>,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Epsilon of every RMSNorm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// What becomes of the rotary frequencies.
    pub rope_scaling: RopeScaling,
    /// Whether the query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether the output projection of attention has a bias.
    pub o_bias: bool,
    /// Whether each head of queries and keys has an RMSNorm before the rotary embedding.
    pub qk_norm: bool,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Token that begins a sequence, where the config names one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a sequence.
    pub eos_token_ids: Vec<u32>,
}

/// Sizes of one decoder block. In a published model all blocks have the same; a pruned one has others in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerShape {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// How many of the latest positions a query sees, its own included; `None`: all.
    pub sliding_window: Option<usize>,
}

/// What to do about a config that is not one.
const ADVICE: &str = "copy or download the backbone's config.json again";

/// Upper limit of the layers: a config alone must not make a reader allocate much.
const MAX_LAYERS: u64 = 1 << 12;

impl BackboneConfig {
    /// Number of decoder blocks.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// Outputs of a block's query projection.
    pub fn q_dim(&self, layer: usize) -> usize {
        self.layers[layer].num_heads * self.head_dim
    }

    /// Outputs of a block's key projection, and of its value projection.
    pub fn kv_dim(&self, layer: usize) -> usize {
        self.layers[layer].num_kv_heads * self.head_dim
    }

    /// Head dimension as the attention kernels lay it out: a multiple of 8.
    pub(crate) fn padded_head_dim(&self) -> usize {
        self.head_dim.next_multiple_of(8)
    }

    /// Outputs of a block's query, key and value projections together.
    pub(crate) fn qkv_dim(&self, layer: usize) -> usize {
        self.q_dim(layer) + 2 * self.kv_dim(layer)
    }

    /// Outputs and inputs of a projection of a block: the shape of its weight.
    pub fn projection(&self, layer: usize, projection: Projection) -> [usize; 2] {
        let (hidden, mlp) = (self.hidden_size, self.layers[layer].intermediate_size);
        match projection {
            Projection::QProj => [self.q_dim(layer), hidden],
            Projection::KProj | Projection::VProj => [self.kv_dim(layer), hidden],
            Projection::OProj => [hidden, self.q_dim(layer)],
            Projection::GateProj | Projection::UpProj => [mlp, hidden],
            Projection::DownProj => [hidden, mlp],
        }
    }

    /// Whether a projection has a bias.
    pub fn has_bias(&self, projection: Projection) -> bool {
        match projection {
            Projection::QProj | Projection::KProj | Projection::VProj => self.qkv_bias,
            Projection::OProj => self.o_bias,
            Projection::GateProj | Projection::UpProj | Projection::DownProj => false,
        }
    }

    /// Reads `config.json`; `path` is named in errors.
    pub(super) fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(text)
            .map_err(|e| TrainerError::file(path, format!("is not valid JSON: {e}; {ADVICE}")))?;
        let Value::Object(map) = value else {
            return Err(TrainerError::file(path, format!("is not a JSON object; {ADVICE}")));
        };
        let fields = Fields { path, prefix: "", map: &map };
        let family = Family::read(fields)?;
        refuse_unsupported(fields)?;
        let config = read(fields, family)?;
        config.check(path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<()> {
        let fail = |what: String| Err(TrainerError::file(path, what));
        for LayerShape { num_heads, num_kv_heads, .. } in &self.layers {
            if !num_heads.is_multiple_of(*num_kv_heads) {
                return fail(format!(
                    "num_attention_heads = {num_heads} is not a multiple of num_key_value_heads = {num_kv_heads}"
                ));
            }
        }
        if !self.head_dim.is_multiple_of(2) {
            return fail(format!(
                "head_dim = {} is odd: rotary embedding needs pairs",
                self.head_dim
            ));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            return fail(format!("rms_norm_eps = {} is not a number >= 0", self.rms_norm_eps));
        }
        Ok(())
    }
}

fn refuse_unsupported(fields: Fields<'_>) -> Result<()> {
    for name in ["hidden_act", "hidden_activation"] {
        if let Some(other) = fields.get(name).filter(|v| *v != "silu" && *v != "swish") {
            return fields.fail(format!("{name} {other} not supported; supported: \"silu\""));
        }
    }
    match fields.get("mlp_bias") {
        None | Some(Value::Bool(false)) => {}
        Some(other) => {
            return fields.fail(format!("mlp_bias = {other} not supported; supported: false"));
        }
    }
    if let Some(other) = fields.get("quantization_config") {
        let supported = "supported: none (null)";
        return fields.fail(format!("quantization_config {other} not supported; {supported}"));
    }
    match fields.get("pretraining_tp").and_then(Value::as_u64) {
        None | Some(0 | 1) => Ok(()),
        Some(other) => fields.fail(format!("pretraining_tp {other} not supported; supported: 1")),
    }
}

fn read(fields: Fields<'_>, family: Family) -> Result<BackboneConfig> {
    let hidden_size = fields.need_size("hidden_size")?;
    let num_heads = fields.need_size("num_attention_heads")?;
    let head_dim = match fields.size("head_dim")?.or(family.default_head_dim()) {
        Some(n) => n,
        None if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
        None => {
            return fields.fail(format!(
                "hidden_size = {hidden_size} is not a multiple of num_attention_heads = {num_heads}"
            ));
        }
    };
    let name = "num_hidden_layers";
    let num_layers = fields.need(name, fields.integer(name, 1..=MAX_LAYERS)?)?;
    let max_positions =
        fields.size("max_position_embeddings")?.unwrap_or(family.default_max_positions());
    let (rope_theta, rope_scaling) = rope::read(fields, max_positions)?;
    let (qkv_bias, o_bias) = family.biases(fields)?;
    let intermediate_size = fields.need_size("intermediate_size")?;
    let num_kv_heads = family.kv_heads(fields, num_heads)?;
    let windows = family.sliding_windows(fields, num_layers)?.into_iter();
    let layers = windows.map(|sliding_window| LayerShape {
        num_heads,
        num_kv_heads,
        intermediate_size,
        sliding_window,
    });
    Ok(BackboneConfig {
        hidden_size,
        layers: layers.collect(),
        head_dim,
        vocab_size: fields.need_size("vocab_size")?,
        max_position_embeddings: max_positions,
        rms_norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6),
        rope_theta,
        rope_scaling,
        qkv_bias,
        o_bias,
        qk_norm: family.qk_norm(),
        tie_word_embeddings: fields.flag("tie_word_embeddings")?,
        bos_token_id: fields.tokens("bos_token_id")?.first().copied(),
        eos_token_ids: fields.tokens("eos_token_id")?,
    })
}
