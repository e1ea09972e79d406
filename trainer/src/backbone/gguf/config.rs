//! Metadata as the settings that `config.json` has for them.
//!
//! A key of the architecture that is not listed here may mean a model that computes something else:
//! it is refused by name rather than passed over.

use std::ops::RangeInclusive;

use serde_json::{Value, json};

use super::Gguf;
use crate::backbone::BackboneConfig;
use crate::error::Result;

/// The largest size that is believed: larger ones are mistakes or attacks.
const SIZES: RangeInclusive<u64> = 1..=1 << 24;

/// Keys of an architecture that are read here.
const READ: [&str; 20] = [
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "expert_count",
    "expert_used_count",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
];

/// What is computed differently by the architectures that are supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Architecture {
    Llama,
    Qwen2,
    Qwen3,
}

impl Gguf {
    /// The architecture: LLaMA is Mistral's too.
    pub(super) fn architecture(&self) -> Result<Architecture> {
        let key = "general.architecture";
        match self.need(key, self.text(key)?)? {
            "llama" => Ok(Architecture::Llama),
            "qwen2" => Ok(Architecture::Qwen2),
            "qwen3" => Ok(Architecture::Qwen3),
            other => self.fail_key(
                key,
                &format!("{other:?} not supported; supported: \"llama\", \"qwen2\", \"qwen3\""),
            ),
        }
    }

    /// Sizes and settings.
    pub fn config(&self) -> Result<BackboneConfig> {
        BackboneConfig::parse(&self.path, self.config_json()?.to_string().as_bytes())
    }

    fn config_json(&self) -> Result<Value> {
        let architecture = self.architecture()?;
        let keys = Keys { file: self, prefix: self.text("general.architecture")?.unwrap_or("") };
        keys.refuse_unsupported()?;
        let heads = keys.need_size("attention.head_count")?;
        let hidden = keys.need_size("embedding_length")?;
        let head_dim = keys.head_dim(hidden, heads)?;
        let theta = self.number(&keys.key("rope.freq_base"))?.unwrap_or(10_000.0);
        let eps = keys.key("attention.layer_norm_rms_epsilon");
        let window = keys.window(architecture)?;
        let (name, model_type) = match architecture {
            Architecture::Llama if window.is_some() => ("MistralForCausalLM", "mistral"),
            Architecture::Llama => ("LlamaForCausalLM", "llama"),
            Architecture::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
            Architecture::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
        };
        Ok(json!({
            "architectures": [name],
            "model_type": model_type,
            "hidden_size": hidden,
            "intermediate_size": keys.need_size("feed_forward_length")?,
            "num_hidden_layers": keys.need_size("block_count")?,
            "num_attention_heads": heads,
            "num_key_value_heads": keys.size("attention.head_count_kv")?.unwrap_or(heads),
            "head_dim": head_dim,
            "vocab_size": self.vocab_size()?,
            "max_position_embeddings": keys.need_size("context_length")?,
            "rms_norm_eps": self.need(&eps, self.number(&eps)?)?,
            "rope_theta": theta,
            "rope_scaling": keys.rope_scaling(head_dim, theta)?,
            "tie_word_embeddings": !self.has_tensor("lm_head.weight"),
            "attention_bias": architecture == Architecture::Llama && self.has_biases(),
            "hidden_act": "silu",
            "sliding_window": window,
            "bos_token_id": self.token_id("bos")?,
            "eos_token_id": self.token_id("eos")?,
        }))
    }

    /// Tokens in the vocabulary: rows of the embedding.
    fn vocab_size(&self) -> Result<usize> {
        let key = "tokenizer.ggml.tokens";
        let tokens = self.texts(key)?.map(|tokens| tokens.len());
        let rows = self.tensor("model.embed_tokens.weight")?.shape.first().copied();
        match self.need(key, tokens)? {
            count if Some(count) == rows => Ok(count),
            count => {
                let rows = rows.unwrap_or_default();
                let advice = "the file is not one whole model: copy or download it again";
                self.fail_key(
                    key,
                    &format!("has {count} tokens, token_embd.weight {rows} rows; {advice}"),
                )
            }
        }
    }
}

/// Keys of the file's architecture.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    pub file: &'a Gguf,
    prefix: &'a str,
}

impl Keys<'_> {
    /// A key with the architecture before it.
    pub fn key(self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    pub fn size(self, name: &str) -> Result<Option<u64>> {
        let key = self.key(name);
        match self.file.unsigned(&key)? {
            Some(n) if !SIZES.contains(&n) => {
                self.file.fail_key(&key, &format!("{n} is not in 1..={}", SIZES.end()))
            }
            size => Ok(size),
        }
    }

    fn need_size(self, name: &str) -> Result<u64> {
        self.file.need(&self.key(name), self.size(name)?)
    }

    fn refuse_unsupported(self) -> Result<()> {
        for key in self.file.header.metadata.keys() {
            let name = key.strip_prefix(self.prefix).and_then(|rest| rest.strip_prefix('.'));
            if name.is_some_and(|name| !READ.contains(&name)) {
                return self.file.fail_key(key, "not supported: it may change what is computed");
            }
        }
        for name in ["expert_count", "expert_used_count"] {
            let key = self.key(name);
            if let Some(n) = self.file.unsigned(&key)?.filter(|&n| n > 0) {
                let supported = "supported: 0, models without experts";
                return self.file.fail_key(&key, &format!("{n} not supported; {supported}"));
            }
        }
        self.file.refuse_unknown_tensors(self.need_size("block_count")?)
    }

    /// The window of all layers. Qwen has one in some layers or in none, and no key says in which: other
    /// readers take it for none, which is right only where the window holds every prompt.
    fn window(self, architecture: Architecture) -> Result<Option<u64>> {
        let name = "attention.sliding_window";
        let window = self.size(name)?;
        match window {
            Some(n) if architecture != Architecture::Llama => {
                let context = self.need_size("context_length")?;
                if n >= context {
                    return Ok(None);
                }
                let what = format!(
                    "{n} not supported: the format does not say which layers have the window; \
                     supported: none, or at least context_length = {context}; use the Hugging Face \
                     directory, whose config.json says it"
                );
                self.file.fail_key(&self.key(name), &what)
            }
            window => Ok(window),
        }
    }

    fn head_dim(self, hidden: u64, heads: u64) -> Result<u64> {
        let head_dim = match self.size("attention.key_length")? {
            Some(n) => n,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let key = self.key("attention.head_count");
                return self.file.fail_key(&key, &format!("{heads} does not divide {hidden}"));
            }
        };
        for name in ["attention.value_length", "rope.dimension_count"] {
            if let Some(n) = self.size(name)?.filter(|&n| n != head_dim) {
                let supported = format!("supported: the head's width, {head_dim}");
                return self
                    .file
                    .fail_key(&self.key(name), &format!("{n} not supported; {supported}"));
            }
        }
        Ok(head_dim)
    }
}
