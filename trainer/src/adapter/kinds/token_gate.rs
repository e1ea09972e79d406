//! The gate that reads every token: where its parameters are, and how they reach its router.

use std::ops::Range;

use super::mixed::MixedState;
use super::{Kind, Module, ModuleTensors, Sample};
use crate::error::Result;
use crate::kernels::pointwise::axpy;

/// The gate of one adapted projection: where its parameters are, one after the other.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenGate {
    /// LayerNorm weight `[d_in + |c|]`; the scale is 1 + weight.
    pub norm_weight: Range<usize>,
    /// LayerNorm bias `[d_in + |c|]`.
    pub norm_bias: Range<usize>,
    /// The layer `[N, d_in + |c|]`.
    pub fc_weight: Range<usize>,
    /// Its bias `[N]`.
    pub fc_bias: Range<usize>,
}

impl TokenGate {
    pub(super) fn push(tensors: &mut ModuleTensors<'_>) -> Result<Self> {
        let experts = tensors.config.experts;
        let width = tensors.d_in + tensors.representation_dim;
        Ok(Self {
            norm_weight: tensors.zeros("gate.norm.weight", &[width])?,
            norm_bias: tensors.zeros("gate.norm.bias", &[width])?,
            fc_weight: tensors.weight("gate.fc.weight", &[experts, width])?,
            fc_bias: tensors.zeros("gate.fc.bias", &[experts])?,
        })
    }

    fn parameters(&self) -> Range<usize> {
        self.norm_weight.start..self.fc_bias.end
    }
}

/// All experts are kept, each with weight 1; a token's weights are applied between A and B.
impl Kind for TokenGate {
    fn mix(&self, module: Module<'_>, sample: Sample<'_>, mixed: &mut MixedState) {
        let parameters = &module.parameters[self.parameters()];
        let router = mixed.router.get_or_insert_default();
        router.set(module.config, parameters, sample.representation);
        mixed.set_ones(module.config.experts);
        mixed.mix_experts(module);
    }

    fn unmix(&self, module: Module<'_>, mixed: &mut MixedState, gradient: &mut [f32]) {
        mixed.unmix_experts(module, gradient);
        if let Some(router) = &mixed.router {
            axpy(&mut gradient[self.parameters()], 1.0, router.gradient());
        }
    }
}
