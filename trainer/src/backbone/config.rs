//! `config.json` of a Hugging Face directory: what is needed, and what is refused by name.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Result, TrainerError};

/// Sizes and settings of a LLaMA decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct BackboneConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Decoder blocks.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
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
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Token that begins a sequence, where the config names one.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a sequence.
    pub eos_token_ids: Vec<u32>,
}

/// What to do about a config that is not one.
const ADVICE: &str = "copy or download the backbone's config.json again";

/// Upper limit of every size in a config: larger ones are mistakes or attacks.
const MAX_SIZE: u64 = 1 << 24;

impl BackboneConfig {
    /// Outputs of the query projection.
    pub fn q_dim(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Outputs of the key projection, and of the value projection.
    pub fn kv_dim(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Head dimension as the attention kernels lay it out: a multiple of 8.
    pub(crate) fn padded_head_dim(&self) -> usize {
        self.head_dim.next_multiple_of(8)
    }

    /// MLP width as laid out in memory: whole vector registers, zero beyond `intermediate_size`.
    pub(crate) fn padded_intermediate(&self) -> usize {
        self.intermediate_size.next_multiple_of(16)
    }

    /// Outputs of the query, key and value projections together.
    pub(crate) fn qkv_dim(&self) -> usize {
        self.q_dim() + 2 * self.kv_dim()
    }

    /// Reads `config.json`; `path` is named in errors.
    pub(super) fn parse(path: &Path, text: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(text)
            .map_err(|e| TrainerError::file(path, format!("is not valid JSON: {e}; {ADVICE}")))?;
        let Value::Object(map) = value else {
            return Err(TrainerError::file(path, format!("is not a JSON object; {ADVICE}")));
        };
        let fields = Fields { path, map };
        fields.refuse_unsupported()?;
        let config = fields.read()?;
        config.check(path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<()> {
        let fail = |what: String| Err(TrainerError::file(path, what));
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            return fail(format!(
                "num_attention_heads = {} is not a multiple of num_key_value_heads = {}",
                self.num_heads, self.num_kv_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return fail(format!(
                "head_dim = {} is odd: rotary embedding needs pairs",
                self.head_dim
            ));
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return fail(format!("rope_theta = {} is not a positive number", self.rope_theta));
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            return fail(format!("rms_norm_eps = {} is not a number >= 0", self.rms_norm_eps));
        }
        Ok(())
    }
}

struct Fields<'a> {
    path: &'a Path,
    map: Map<String, Value>,
}

impl Fields<'_> {
    fn fail<T>(&self, what: impl Into<String>) -> Result<T> {
        Err(TrainerError::file(self.path, what))
    }

    /// A field that is present and not null.
    fn get(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }

    fn refuse_unsupported(&self) -> Result<()> {
        let supported = "supported: architectures [\"LlamaForCausalLM\"], model_type \"llama\"";
        match self.get("architectures") {
            Some(Value::Array(names)) if names.iter().any(|n| n == "LlamaForCausalLM") => {}
            Some(other) => {
                return self.fail(format!("architectures {other} not supported; {supported}"));
            }
            None => return self.fail(format!("has no \"architectures\"; {supported}; {ADVICE}")),
        }
        if let Some(other) = self.get("model_type").filter(|v| *v != "llama") {
            return self.fail(format!("model_type {other} not supported; {supported}"));
        }
        for name in ["hidden_act", "hidden_activation"] {
            if let Some(other) = self.get(name).filter(|v| *v != "silu" && *v != "swish") {
                return self.fail(format!("{name} {other} not supported; supported: \"silu\""));
            }
        }
        for name in ["attention_bias", "mlp_bias"] {
            match self.get(name) {
                None | Some(Value::Bool(false)) => {}
                Some(other) => {
                    return self.fail(format!("{name} = {other} not supported; supported: false"));
                }
            }
        }
        if let Some(other) = self.get("rope_scaling") {
            return self
                .fail(format!("rope_scaling {other} not supported; supported: none (null)"));
        }
        self.refuse_unsupported_rope()?;
        for name in ["quantization_config", "sliding_window"] {
            if let Some(other) = self.get(name) {
                return self.fail(format!("{name} {other} not supported; supported: none (null)"));
            }
        }
        match self.map.get("pretraining_tp").and_then(Value::as_u64) {
            None | Some(0 | 1) => Ok(()),
            Some(other) => self.fail(format!("pretraining_tp {other} not supported; supported: 1")),
        }
    }

    /// Newer configs have `rope_parameters: {rope_type, rope_theta}` instead of `rope_theta`.
    fn refuse_unsupported_rope(&self) -> Result<()> {
        let Some(rope) = self.get("rope_parameters") else { return Ok(()) };
        match rope.get("rope_type").or_else(|| rope.get("type")) {
            None => {}
            Some(kind) if kind == "default" => {}
            Some(kind) => {
                return self
                    .fail(format!("rope_type {kind} not supported; supported: \"default\""));
            }
        }
        match rope.get("partial_rotary_factor").and_then(Value::as_f64) {
            None => Ok(()),
            Some(1.0) => Ok(()),
            Some(x) => self.fail(format!("partial_rotary_factor {x} not supported; supported: 1")),
        }
    }

    fn size(&self, name: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_u64().filter(|n| (1..=MAX_SIZE).contains(n)) {
            Some(n) => Ok(Some(n as usize)),
            None => self.fail(format!("{name} = {value} is not an integer in 1..={MAX_SIZE}")),
        }
    }

    fn need_size(&self, name: &str) -> Result<usize> {
        match self.size(name)? {
            Some(n) => Ok(n),
            None => self.fail(format!("has no \"{name}\"; {ADVICE}")),
        }
    }

    fn number(&self, name: &str, default: f64) -> Result<f32> {
        let nested = self.get("rope_parameters").and_then(|rope| rope.get(name));
        match self.get(name).or(nested) {
            None => Ok(default as f32),
            Some(value) => match value.as_f64() {
                Some(x) => Ok(x as f32),
                None => self.fail(format!("{name} = {value} is not a number")),
            },
        }
    }

    /// A token id or a list of them.
    fn tokens(&self, name: &str) -> Result<Vec<u32>> {
        let values = match self.get(name) {
            None => return Ok(Vec::new()),
            Some(Value::Array(values)) => values.as_slice(),
            Some(value) => std::slice::from_ref(value),
        };
        let id = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok());
        match values.iter().map(id).collect() {
            Some(ids) => Ok(ids),
            None => self.fail(format!("{name} is not a token id or a list of token ids")),
        }
    }

    fn read(&self) -> Result<BackboneConfig> {
        let hidden_size = self.need_size("hidden_size")?;
        let num_heads = self.need_size("num_attention_heads")?;
        let head_dim = match self.size("head_dim")? {
            Some(n) => n,
            None if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
            None => {
                return self.fail(format!(
                    "hidden_size = {hidden_size} is not a multiple of num_attention_heads = {num_heads}"
                ));
            }
        };
        let tied = match self.get("tie_word_embeddings") {
            None => false,
            Some(Value::Bool(tied)) => *tied,
            Some(other) => {
                return self.fail(format!("tie_word_embeddings = {other} is not a bool"));
            }
        };
        Ok(BackboneConfig {
            hidden_size,
            intermediate_size: self.need_size("intermediate_size")?,
            num_layers: self.need_size("num_hidden_layers")?,
            num_heads,
            num_kv_heads: self.size("num_key_value_heads")?.unwrap_or(num_heads),
            head_dim,
            vocab_size: self.need_size("vocab_size")?,
            max_position_embeddings: self.size("max_position_embeddings")?.unwrap_or(2048),
            rms_norm_eps: self.number("rms_norm_eps", 1e-6)?,
            rope_theta: self.number("rope_theta", 10_000.0)?,
            tie_word_embeddings: tied,
            bos_token_id: self.tokens("bos_token_id")?.first().copied(),
            eos_token_ids: self.tokens("eos_token_id")?,
        })
    }
}
