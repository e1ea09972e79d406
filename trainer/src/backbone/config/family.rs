//! What differs between the families of decoders: the names they go by, the defaults of
//! transformers' config classes, biases, norms and windows.

use serde_json::Value;

use super::ADVICE;
use super::fields::Fields;
use crate::error::Result;

/// A family of decoders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

/// Window of Mistral and Qwen configs that name none.
const DEFAULT_WINDOW: usize = 4096;
/// First layer with a window in Qwen configs that name none.
const DEFAULT_WINDOW_LAYERS: usize = 28;

impl Family {
    const ALL: [Self; 4] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3];

    /// `architectures` and `model_type`.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Llama => ("LlamaForCausalLM", "llama"),
            Self::Mistral => ("MistralForCausalLM", "mistral"),
            Self::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
            Self::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
        }
    }

    pub fn read(fields: Fields<'_>) -> Result<Self> {
        let supported =
            format!("supported: {}", Self::ALL.map(|family| family.names().0).join(", "));
        let family = match fields.get("architectures") {
            Some(Value::Array(names)) => {
                Self::ALL.into_iter().find(|family| names.iter().any(|n| n == family.names().0))
            }
            Some(_) => None,
            None => {
                return fields.fail(format!("has no \"architectures\"; {supported}; {ADVICE}"));
            }
        };
        let Some(family) = family else {
            let other = &fields.map["architectures"];
            return fields.fail(format!("architectures {other} not supported; {supported}"));
        };
        let (architecture, model_type) = family.names();
        match fields.get("model_type") {
            Some(other) if other != model_type => fields.fail(format!(
                "model_type {other} not supported; supported: \"{model_type}\" with {architecture}"
            )),
            _ => Ok(family),
        }
    }

    fn is_qwen(self) -> bool {
        matches!(self, Self::Qwen2 | Self::Qwen3)
    }

    /// `head_dim` of a config that names none, where it is not `hidden_size / heads`.
    pub fn default_head_dim(self) -> Option<usize> {
        (self == Self::Qwen3).then_some(128)
    }

    /// `max_position_embeddings` of a config that names none.
    pub fn default_max_positions(self) -> usize {
        match self {
            Self::Llama => 2048,
            Self::Mistral => 131_072,
            Self::Qwen2 | Self::Qwen3 => 32_768,
        }
    }

    /// `num_key_value_heads`. Only for LLaMA an absent one means what null means: as many as queries.
    pub fn kv_heads(self, fields: Fields<'_>, num_heads: usize) -> Result<usize> {
        let name = "num_key_value_heads";
        let default = match self {
            _ if fields.has(name) => num_heads,
            Self::Llama => num_heads,
            Self::Mistral => 8,
            Self::Qwen2 | Self::Qwen3 => 32,
        };
        Ok(fields.size(name)?.unwrap_or(default))
    }

    /// Whether queries, keys and values have biases, and whether the output projection has one.
    pub fn biases(self, fields: Fields<'_>) -> Result<(bool, bool)> {
        let bias = fields.flag("attention_bias")?;
        match self {
            Self::Llama | Self::Qwen3 => Ok((bias, bias)),
            Self::Qwen2 => Ok((true, false)),
            Self::Mistral if bias => {
                fields.fail("attention_bias = true not supported; supported: false")
            }
            Self::Mistral => Ok((false, false)),
        }
    }

    /// Whether each head of queries and keys is normed.
    pub fn qk_norm(self) -> bool {
        self == Self::Qwen3
    }

    /// The window of each layer.
    pub fn sliding_windows(self, fields: Fields<'_>, layers: usize) -> Result<Vec<Option<usize>>> {
        let window = self.window(fields)?;
        let first = match fields.integer("max_window_layers", 0..=u64::from(u32::MAX))? {
            _ if !self.is_qwen() => 0,
            first => first.unwrap_or(DEFAULT_WINDOW_LAYERS),
        };
        let by_depth: Vec<_> = (0..layers).map(|i| window.filter(|_| i >= first)).collect();
        match fields.get("layer_types") {
            None => Ok(by_depth),
            Some(types) => self.windows_by_type(fields, types, window, &by_depth),
        }
    }

    /// The window of the layers that have one.
    fn window(self, fields: Fields<'_>) -> Result<Option<usize>> {
        let window = fields.size("sliding_window")?;
        if self == Self::Llama {
            return match window {
                None => Ok(None),
                Some(w) => {
                    fields.fail(format!("sliding_window {w} not supported; supported: none (null)"))
                }
            };
        }
        if self.is_qwen() && !fields.flag("use_sliding_window")? {
            return Ok(None);
        }
        Ok(if fields.has("sliding_window") { window } else { Some(DEFAULT_WINDOW) })
    }

    fn windows_by_type(
        self,
        fields: Fields<'_>,
        types: &Value,
        window: Option<usize>,
        by_depth: &[Option<usize>],
    ) -> Result<Vec<Option<usize>>> {
        let layers = by_depth.len();
        let Some(types) = types.as_array().filter(|types| types.len() == layers) else {
            let what = format!("layer_types is not a list of num_hidden_layers = {layers} types");
            return fields.fail(what);
        };
        let mut windows = Vec::with_capacity(layers);
        for (kind, by_depth) in types.iter().zip(by_depth) {
            let of_layer = match kind.as_str() {
                Some("full_attention") => None,
                Some("sliding_attention") if window.is_some() => window,
                Some("sliding_attention") => {
                    return fields.fail(
                        "layer_types has \"sliding_attention\" without a window; set \
                                        sliding_window (Qwen: and use_sliding_window)",
                    );
                }
                _ => {
                    return fields.fail(format!(
                        "layer_types {kind} not supported; supported: \"full_attention\", \
                         \"sliding_attention\""
                    ));
                }
            };
            // transformers passes over the layer types of LLaMA and Mistral configs.
            if !self.is_qwen() && of_layer != *by_depth {
                return fields.fail(format!(
                    "layer_types {kind} not supported; supported: the same window on all layers"
                ));
            }
            windows.push(of_layer);
        }
        Ok(windows)
    }
}
