//! Plain LoRA: one expert, the same for every sample.

use super::{Kind, MixedState, Module, Sample};

/// It has no parameters but A and B.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora;

impl Kind for Lora {
    fn mix(&self, module: Module<'_>, _sample: Sample<'_>, mixed: &mut MixedState) {
        mixed.set_ones(1);
        mixed.mix_experts(module);
    }

    fn unmix(&self, module: Module<'_>, mixed: &mut MixedState, gradient: &mut [f32]) {
        mixed.unmix_experts(module, gradient);
    }
}
