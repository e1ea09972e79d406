//! The words of an LLM: its projections, and how its matrices are kept.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A projection of a decoder block.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
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

/// How a frozen matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WeightType {
    /// 4 bytes per weight.
    F32,
    /// 2 bytes per weight; what is multiplied with it is rounded to bf16 where the CPU has
    /// instructions for that (about twice the speed), sums are f32.
    Bf16,
    /// 34 bytes per 32 weights (GGUF's Q8_0); computation is in f32. Widths must be multiples of 32.
    Q8_0,
}
