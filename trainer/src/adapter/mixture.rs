//! One sample's mixed adapter: computed once per sample and module, and its backward.

use super::AdapterView;
use super::kinds::{MixedState, Module, Sample};
use crate::error::Result;
use crate::parameters::GradientSink;
use crate::telemetry::measure;

/// The mixed adapters of one sample, in module order. Reused from sample to sample.
#[derive(Debug, Default)]
pub(crate) struct Mixture {
    pub modules: Vec<MixedState>,
}

impl Mixture {
    /// Mixes every module's experts for a sample.
    pub fn forward(&mut self, adapter: AdapterView<'_>, sample: Sample<'_>) -> Result<()> {
        let layout = adapter.layout();
        layout.check_representation(sample.representation)?;
        self.modules.resize_with(layout.modules().len(), MixedState::default);
        for (index, mixed) in self.modules.iter_mut().enumerate() {
            let kind = &layout.modules()[index].kind;
            mixed.router = mixed.router.take().filter(|_| kind.is_per_token());
            kind.kind().mix(module(adapter, index), sample, mixed);
        }
        self.tell_weights();
        Ok(())
    }

    /// Counts the experts' weights, summed over the modules.
    fn tell_weights(&self) {
        let mut sums: Vec<f32> = Vec::new();
        for alpha in self.modules.iter().map(|state| &state.alpha) {
            sums.resize(alpha.len(), 0.0);
            sums.iter_mut().zip(alpha).for_each(|(sum, weight)| *sum += weight);
        }
        if sums.len() > 1 {
            measure::gated(&sums);
        }
    }

    /// Adds the gradients of a block's trained parameters, from the `d_a` and `d_b` of its modules. The
    /// blocks above it are done.
    pub fn backward(
        &mut self,
        adapter: AdapterView<'_>,
        layer: usize,
        target: &mut GradientSink<'_>,
    ) {
        for (index, mixed) in self.modules.iter_mut().enumerate() {
            let of = &adapter.layout().modules()[index];
            if of.layer == layer {
                of.kind.kind().unmix(module(adapter, index), mixed, target.values);
            }
        }
        target.ready_from(adapter.layout().start_of_layer(layer));
    }
}

/// A module as its kind sees it. Where the LoRA is frozen, A and B are those of that.
fn module(adapter: AdapterView<'_>, index: usize) -> Module<'_> {
    let (layout, lora) = (adapter.layout(), adapter.frozen().unwrap_or(adapter));
    let (own, experts) = (&layout.modules()[index], &lora.layout().modules()[index]);
    Module {
        config: adapter.config(),
        parameters: adapter.parameters(),
        a: &lora.parameters()[experts.a.clone()],
        b: &lora.parameters()[experts.b.clone()],
        a_start: own.a.start,
        b_start: own.b.start,
        d_in: own.d_in,
        d_out: own.d_out,
        index,
        is_stacked: layout.is_stacked(),
    }
}
