//! Choices of `[adapter]`.

use serde::{Deserialize, Serialize};

/// How the experts are mixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MixForm {
    /// A = Σ α_k A_k, B = Σ α_k B_k, y = W x + (lora_alpha / r) B A x.
    Factor,
    /// y = W x + (lora_alpha / r) Σ α_k B_k A_k x.
    Product,
}

/// A projection of a decoder block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    /// Query projection.
    QProj,
    /// Key projection.
    KProj,
    /// Value projection.
    VProj,
    /// Output projection of attention.
    OProj,
    /// Gate projection of the MLP.
    GateProj,
    /// Up projection of the MLP.
    UpProj,
    /// Down projection of the MLP.
    DownProj,
}

impl Projection {
    /// All projections of a decoder block, in the order in which they are applied.
    pub const ALL: [Self; 7] = [
        Self::QProj,
        Self::KProj,
        Self::VProj,
        Self::OProj,
        Self::GateProj,
        Self::UpProj,
        Self::DownProj,
    ];

    /// Name in configs and in PEFT's `target_modules`.
    pub fn name(self) -> &'static str {
        match self {
            Self::QProj => "q_proj",
            Self::KProj => "k_proj",
            Self::VProj => "v_proj",
            Self::OProj => "o_proj",
            Self::GateProj => "gate_proj",
            Self::UpProj => "up_proj",
            Self::DownProj => "down_proj",
        }
    }

    /// Name of the projection of a decoder block in a Hugging Face model.
    pub fn module(self, layer: usize) -> String {
        let part = match self {
            Self::QProj | Self::KProj | Self::VProj | Self::OProj => "self_attn",
            Self::GateProj | Self::UpProj | Self::DownProj => "mlp",
        };
        format!("model.layers.{layer}.{part}.{}", self.name())
    }
}

/// What the mixture weights are a function of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateInput {
    /// The CRM's representation: one mixture for all tokens of a sample.
    #[default]
    Sample,
    /// A token's input of the adapted projection and the representation: one mixture per token.
    Token,
    /// The representation and each expert's weights, compared by a small network: one mixture per sample.
    Attention,
}

/// What predicts the answer from the last hidden state before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Head {
    /// The LLM's own, frozen: the answer's tokens are supervised, no and yes are compared.
    #[default]
    Lm,
    /// A trained linear layer with an output for no and one for yes, and cross-entropy over the two.
    Ctr2,
    /// A trained linear layer with one output, the logit of yes, and binary cross-entropy.
    Ctr1,
}

impl Head {
    /// Outputs of a trained head; the LLM's own has none that are trained.
    pub fn outputs(self) -> Option<usize> {
        match self {
            Self::Lm => None,
            Self::Ctr2 => Some(2),
            Self::Ctr1 => Some(1),
        }
    }
}
