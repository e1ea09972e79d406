//! One sample's mixed adapter: computed once per sample and module, and its backward.

use super::{AdapterView, Dropout, ModuleLayout, scale};
use crate::adapter::attention_gate::AttentionGate;
use crate::adapter::gate::GateState;
use crate::adapter::token_gate::TokenGate;
use crate::error::Result;
use crate::kernels::buffer::Buffer;
use crate::kernels::pointwise::{axpy, dot};
use crate::parameters::GradientSink;
use crate::telemetry::measure;

/// The mixed adapters of one sample, in module order. Reused from sample to sample.
#[derive(Debug, Default)]
pub(crate) struct Mixture {
    pub modules: Vec<MixedState>,
    d_alpha: Vec<f32>,
}

/// One module's mixed adapter and the gradients that reached it.
#[derive(Debug, Default)]
pub(crate) struct MixedState {
    pub gate: GateState,
    /// The gate of every token, where the adapter has this kind: the model applies it, and `a` and `b`
    /// are all experts with weight 1.
    pub token_gate: Option<TokenGate>,
    /// The gate that attends to the experts' weights, where the adapter has this kind.
    attention_gate: AttentionGate,
    /// `[rank', d_in]`, rank' = r (factor) or N * r (product).
    pub a: Vec<f32>,
    /// `[d_out, rank']`.
    pub b: Vec<f32>,
    /// Gradients of `a` and `b`, set by the block's backward.
    pub d_a: Buffer,
    /// See `d_a`.
    pub d_b: Buffer,
}

impl Mixture {
    /// Mixes every module's experts for representation `c`.
    pub fn forward(
        &mut self,
        adapter: AdapterView<'_>,
        c: &[f32],
        dropout: Option<Dropout>,
    ) -> Result<()> {
        let layout = adapter.layout();
        layout.check_representation(c)?;
        let lora = adapter.frozen().unwrap_or(adapter);
        self.modules.resize_with(layout.modules().len(), MixedState::default);
        for (index, (module, state)) in layout.modules().iter().zip(&mut self.modules).enumerate() {
            match &module.gate {
                None => state.gate.set_ones(match &module.token_gate {
                    Some(_) => layout.config().experts,
                    None => 1,
                }),
                Some(gate) => {
                    let dropout = dropout.map(|d| (d, index));
                    state.gate.forward(gate, layout.config(), adapter.parameters(), c, dropout);
                }
            }
            match &module.token_gate {
                Some(gate) => {
                    let state = state.token_gate.get_or_insert_default();
                    state.set(gate, layout.config(), adapter.parameters(), c);
                }
                None => state.token_gate = None,
            }
            if module.attention_gate.is_some() {
                state.attention_gate.forward(adapter, module, c, &mut state.gate.alpha);
            }
            state.mix(lora, &lora.layout().modules()[index]);
            if let Some(scales) = &module.scales {
                scale::apply(scales, adapter.parameters(), &mut state.b);
            }
        }
        self.tell_weights();
        Ok(())
    }

    /// Counts the experts' weights, summed over the modules.
    fn tell_weights(&self) {
        let mut sums: Vec<f32> = Vec::new();
        for alpha in self.modules.iter().map(|state| &state.gate.alpha) {
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
        let layout = adapter.layout();
        let gradient = &mut *target.values;
        let modules = layout.modules().iter().zip(&self.modules).enumerate();
        for (index, (module, state)) in modules.filter(|(_, (module, _))| module.layer == layer) {
            match (&module.scales, adapter.frozen()) {
                (Some(scales), Some(lora)) => {
                    let b = &lora.parameters()[lora.layout().modules()[index].b.clone()];
                    scale::backward(scales, adapter.parameters(), b, &state.d_b, gradient);
                }
                _ => state.unmix(adapter, module, &mut self.d_alpha, gradient),
            }
            if let Some(gate) = &module.gate {
                let parameters = adapter.parameters();
                state.gate.backward(gate, layout.config(), parameters, &self.d_alpha, gradient);
            }
            if let (Some(gate), Some(state)) = (&module.token_gate, &state.token_gate) {
                state.add_gradient(gate, gradient);
            }
            if module.attention_gate.is_some() {
                let alpha = &state.gate.alpha;
                state.attention_gate.backward(adapter, module, alpha, &self.d_alpha, gradient);
            }
        }
        target.ready_from(layout.start_of_layer(layer));
    }
}

impl MixedState {
    fn mix(&mut self, adapter: AdapterView<'_>, module: &ModuleLayout) {
        let rank = adapter.config().rank;
        let a = &adapter.parameters()[module.a.clone()];
        let b = &adapter.parameters()[module.b.clone()];
        let a_experts = a.chunks_exact(rank * module.d_in);
        let b_experts = b.chunks_exact(module.d_out * rank);
        self.a.clear();
        self.b.clear();
        if adapter.layout().is_stacked() {
            // The experts' A stacked; their B side by side, each scaled by its weight.
            self.a.extend_from_slice(a);
            let stacked = self.gate.alpha.len() * rank;
            self.b.resize(module.d_out * stacked, 0.0);
            for (k, (b, alpha)) in b_experts.zip(&self.gate.alpha).enumerate() {
                let rows = self.b.chunks_exact_mut(stacked).zip(b.chunks_exact(rank));
                for (dst, src) in rows {
                    for (d, s) in dst[k * rank..(k + 1) * rank].iter_mut().zip(src) {
                        *d = alpha * s;
                    }
                }
            }
        } else {
            self.a.resize(rank * module.d_in, 0.0);
            self.b.resize(module.d_out * rank, 0.0);
            for ((a, b), alpha) in a_experts.zip(b_experts).zip(&self.gate.alpha) {
                axpy(&mut self.a, *alpha, a);
                axpy(&mut self.b, *alpha, b);
            }
        }
    }

    /// Backward of [`Self::mix`]: gradients of the experts, and of the mixture weights.
    fn unmix(
        &self,
        adapter: AdapterView<'_>,
        module: &ModuleLayout,
        d_alpha: &mut Vec<f32>,
        gradient: &mut [f32],
    ) {
        let rank = adapter.config().rank;
        let (a_len, b_len) = (rank * module.d_in, module.d_out * rank);
        let stacked = self.gate.alpha.len() * rank;
        d_alpha.clear();
        for (k, alpha) in self.gate.alpha.iter().enumerate() {
            let a = module.a.start + k * a_len..module.a.start + (k + 1) * a_len;
            let b = module.b.start + k * b_len..module.b.start + (k + 1) * b_len;
            if adapter.layout().is_stacked() {
                axpy(&mut gradient[a], 1.0, &self.d_a[k * a_len..(k + 1) * a_len]);
                let mut sum = 0.0;
                let expert = adapter.parameters()[b.clone()].chunks_exact(rank);
                let rows = gradient[b].chunks_exact_mut(rank).zip(expert);
                for ((g, b), d) in rows.zip(self.d_b.chunks_exact(stacked)) {
                    let d = &d[k * rank..(k + 1) * rank];
                    for ((g, b), d) in g.iter_mut().zip(b).zip(d) {
                        *g += alpha * d;
                        sum += b * d;
                    }
                }
                d_alpha.push(sum);
            } else {
                axpy(&mut gradient[a.clone()], *alpha, &self.d_a);
                axpy(&mut gradient[b.clone()], *alpha, &self.d_b);
                let parameters = adapter.parameters();
                d_alpha.push(dot(&self.d_a, &parameters[a]) + dot(&self.d_b, &parameters[b]));
            }
        }
    }
}
