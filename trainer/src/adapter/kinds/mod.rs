//! The kinds of adapters. A kind says what tensors an adapted projection has beside its experts, what A and B they make
//! for a sample, and the backward of that.
//!
//! A kind is one file here that implements `Kind`, a variant of [`ModuleKind`] with its lines in `push` and `kind`, and
//! what chooses it in the config (for a gate a variant of [`GateInput`]). What an engine can't do with a kind is refused
//! in the engine's `supports`; the device's refuses every gate but that of a sample.

mod attention_gate;
mod lora;
mod mixed;
mod sample_gate;
pub(super) mod scales;
mod token_gate;
mod token_router;

pub use attention_gate::AttentionGate;
pub use lora::Lora;
pub(crate) use mixed::MixedState;
pub use sample_gate::SampleGate;
pub use scales::Scales;
pub use token_gate::TokenGate;
pub(crate) use token_router::TokenBuffers;

use std::ops::Range;

use super::routing::Dropout;
use crate::config::{AdapterConfig, GateInput};
use crate::error::{Result, TrainerError};
use crate::parameters::{Init, ParameterLayout};

/// What an adapted projection does with its parameters.
pub(crate) trait Kind {
    /// Sets the weights of the experts (`alpha`) and the sample's A and B. A gate makes weights of its logits with
    /// `routing::route`, which applies `temperature`, `top_k` and `sqrt_alpha`; `mix_experts` then mixes.
    fn mix(&self, module: Module<'_>, sample: Sample<'_>, mixed: &mut MixedState);

    /// Backward of [`Self::mix`]: adds the gradients of the projection's parameters to those of all (`gradient`),
    /// from those that reached A and B (`d_a`, `d_b`). It begins with `unmix_experts`, which leaves the gradient of the
    /// weights in `d_alpha`.
    fn unmix(&self, module: Module<'_>, mixed: &mut MixedState, gradient: &mut [f32]);
}

/// The kind of an adapted projection, with the places of its parameters.
#[derive(Clone, Debug, PartialEq)]
pub enum ModuleKind {
    /// One expert without a gate.
    Lora(Lora),
    /// Experts that a gate mixes for a sample.
    SampleGate(SampleGate),
    /// Experts that a gate mixes for every token.
    TokenGate(TokenGate),
    /// Experts that a gate mixes for a sample, reading their weights.
    AttentionGate(AttentionGate),
    /// Scales of a frozen LoRA.
    Scales(Scales),
}

impl ModuleKind {
    /// Adds a projection's tensors: A and B of its experts, whose places it returns (empty where the LoRA is
    /// frozen), and what its kind has beside them.
    pub(super) fn push(
        tensors: &mut ModuleTensors<'_>,
        scaled: bool,
    ) -> Result<(Range<usize>, Range<usize>, Self)> {
        if scaled {
            return Ok((0..0, 0..0, Self::Scales(Scales::push(tensors)?)));
        }
        let AdapterConfig { experts, rank, gate, .. } = *tensors.config;
        let a = tensors.weight("lora_A", &[experts, rank, tensors.d_in])?;
        let b = tensors.zeros("lora_B", &[experts, tensors.d_out, rank])?;
        let kind = match gate {
            _ if experts == 1 => Self::Lora(Lora),
            GateInput::Sample => Self::SampleGate(SampleGate::push(tensors)?),
            GateInput::Token => Self::TokenGate(TokenGate::push(tensors)?),
            GateInput::Attention => Self::AttentionGate(AttentionGate::push(tensors)?),
        };
        Ok((a, b, kind))
    }

    pub(super) fn kind(&self) -> &dyn Kind {
        match self {
            Self::Lora(kind) => kind,
            Self::SampleGate(kind) => kind,
            Self::TokenGate(kind) => kind,
            Self::AttentionGate(kind) => kind,
            Self::Scales(kind) => kind,
        }
    }

    /// Whether every token has its own mixture, so that no ordinary LoRA equals the adapter of a sample.
    pub fn is_per_token(&self) -> bool {
        matches!(self, Self::TokenGate(_))
    }
}

/// An adapted projection, as its kind sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Module<'a> {
    pub config: &'a AdapterConfig,
    /// All trained parameters of the adapter.
    pub parameters: &'a [f32],
    /// A of its experts `[N, r, d_in]`, those of a frozen LoRA where there is one.
    pub a: &'a [f32],
    /// B of its experts `[N, d_out, r]`.
    pub b: &'a [f32],
    /// Where A begins among the trained parameters, if it is trained.
    pub a_start: usize,
    /// Where B begins.
    pub b_start: usize,
    pub d_in: usize,
    pub d_out: usize,
    /// Its number in the layout.
    pub index: usize,
    /// Whether a sample's A and B are those of all experts, one below the other.
    pub is_stacked: bool,
}

/// What a mixture is made for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample<'a> {
    /// c, `[|c|]`.
    pub representation: &'a [f32],
    /// While tuning.
    pub dropout: Option<Dropout>,
}

/// The tensors of one adapted projection (or of the head), as they are added to a layout.
pub(super) struct ModuleTensors<'a> {
    pub parameters: &'a mut ParameterLayout,
    pub config: &'a AdapterConfig,
    /// What their names begin with.
    pub name: &'a str,
    pub d_in: usize,
    pub d_out: usize,
    /// |c|; 0 without a gate.
    pub representation_dim: usize,
}

impl ModuleTensors<'_> {
    /// A tensor whose values begin uniform in ±1/√inputs.
    pub fn weight(&mut self, tensor: &str, shape: &[usize]) -> Result<Range<usize>> {
        self.push(tensor, shape, Init::Uniform)
    }

    /// A tensor whose values begin as 0, some of them as offsets from 1.
    pub fn zeros(&mut self, tensor: &str, shape: &[usize]) -> Result<Range<usize>> {
        self.push(tensor, shape, Init::Zero)
    }

    fn push(&mut self, tensor: &str, shape: &[usize], init: Init) -> Result<Range<usize>> {
        let name = format!("{}.{tensor}", self.name);
        self.parameters.push(name, shape, init).map_err(|error| {
            TrainerError::config("adapter", format!("{error}; lower experts or rank"))
        })
    }
}
