//! Choices of `[adapter]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the experts are mixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MixForm {
    /// A and B apart (the published code): A = Σ α_k A_k, B = Σ α_k B_k, y = W x + (lora_alpha / r) B A x.
    Factor,
    /// Their products (the paper's text): y = W x + (lora_alpha / r) Σ α_k B_k A_k x.
    Product,
}

/// What the mixture weights are a function of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GateInput {
    /// The CRM's representation: one mixture for a user and an item.
    #[default]
    Sample,
    /// A token's input of the adapted projection and the representation: one mixture per token, which PEFT can't
    /// hold.
    Token,
    /// The representation and each expert's weights, compared by a small network: one mixture per sample.
    Attention,
}

/// What predicts the answer from the last hidden state before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Head {
    /// The LLM's own, frozen: the answer's tokens are supervised, no and yes are compared.
    #[default]
    Lm,
    /// A trained linear layer with an output for no and one for yes, that starts from the LLM's rows of them, and
    /// cross-entropy over the two.
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
