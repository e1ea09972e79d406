//! The gate of a sample: a CRM representation to mixture weights, and back.
//!
//! LayerNorm → fc1 → ReLU → dropout → fc2 → / T (→ top k) → softmax (→ square root).

use std::ops::Range;

use super::{Kind, MixedState, Module, ModuleTensors, Sample};
use crate::adapter::routing::{Dropout, LAYER_NORM_EPS, route, route_grad};
use crate::config::AdapterConfig;
use crate::error::Result;
use crate::kernels::pointwise::{axpy, dot};

/// The gate of one adapted projection: where its parameters are.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleGate {
    /// LayerNorm weight `[|c|]`; the scale is 1 + weight.
    pub norm_weight: Range<usize>,
    /// LayerNorm bias `[|c|]`.
    pub norm_bias: Range<usize>,
    /// First layer `[hidden, |c|]`.
    pub fc1_weight: Range<usize>,
    /// First bias `[hidden]`.
    pub fc1_bias: Range<usize>,
    /// Second layer `[N, hidden]`.
    pub fc2_weight: Range<usize>,
    /// Second bias `[N]`.
    pub fc2_bias: Range<usize>,
}

impl SampleGate {
    pub(super) fn push(tensors: &mut ModuleTensors<'_>) -> Result<Self> {
        let (hidden, width) = (tensors.config.gate_hidden, tensors.representation_dim);
        let experts = tensors.config.experts;
        Ok(Self {
            norm_weight: tensors.zeros("gate.norm.weight", &[width])?,
            norm_bias: tensors.zeros("gate.norm.bias", &[width])?,
            fc1_weight: tensors.weight("gate.fc1.weight", &[hidden, width])?,
            fc1_bias: tensors.zeros("gate.fc1.bias", &[hidden])?,
            fc2_weight: tensors.weight("gate.fc2.weight", &[experts, hidden])?,
            fc2_bias: tensors.zeros("gate.fc2.bias", &[experts])?,
        })
    }
}

impl Kind for SampleGate {
    fn mix(&self, module: Module<'_>, sample: Sample<'_>, mixed: &mut MixedState) {
        let Module { config, parameters, index, .. } = module;
        let dropout = sample.dropout.map(|dropout| (dropout, index));
        let gate: &mut GateState = mixed.buffers.of();
        let (c, alpha) = (sample.representation, &mut mixed.alpha);
        gate.forward(self, config, parameters, c, dropout, alpha);
        mixed.mix_experts(module);
    }

    fn unmix(&self, module: Module<'_>, mixed: &mut MixedState, gradient: &mut [f32]) {
        mixed.unmix_experts(module, gradient);
        let MixedState { buffers, alpha, d_alpha, .. } = mixed;
        let gate: &mut GateState = buffers.of();
        gate.backward(self, module.config, module.parameters, alpha, d_alpha, gradient);
    }
}

/// What the forward computed and the backward reads.
#[derive(Debug, Default)]
struct GateState {
    /// (c - mean) / std `[|c|]`.
    x_hat: Vec<f32>,
    /// LayerNorm output `[|c|]`.
    normed: Vec<f32>,
    /// Hidden units after ReLU and dropout `[hidden]`.
    hidden: Vec<f32>,
    /// d hidden / d pre-activation: 0 where ReLU or dropout closed it `[hidden]`.
    slope: Vec<f32>,
    /// Softmax output `[N]`.
    probability: Vec<f32>,
}

impl GateState {
    /// Computes the experts' weights for representation `c`. `parameters` is the adapter's flat vector.
    fn forward(
        &mut self,
        gate: &SampleGate,
        config: &AdapterConfig,
        parameters: &[f32],
        c: &[f32],
        dropout: Option<(Dropout, usize)>,
        alpha: &mut Vec<f32>,
    ) {
        self.layer_norm(
            &parameters[gate.norm_weight.clone()],
            &parameters[gate.norm_bias.clone()],
            c,
        );
        self.hidden.clear();
        self.slope.clear();
        let rows = parameters[gate.fc1_weight.clone()].chunks_exact(c.len());
        for (unit, (row, bias)) in rows.zip(&parameters[gate.fc1_bias.clone()]).enumerate() {
            let pre = dot(row, &self.normed) + bias;
            let keep = dropout.map_or(1.0, |(dropout, module)| dropout.factor(module, unit));
            self.slope.push(if pre > 0.0 { keep } else { 0.0 });
            self.hidden.push(pre.max(0.0) * keep);
        }
        self.probability.clear();
        let rows = parameters[gate.fc2_weight.clone()].chunks_exact(self.hidden.len());
        for (row, bias) in rows.zip(&parameters[gate.fc2_bias.clone()]) {
            self.probability.push(dot(row, &self.hidden) + bias);
        }
        alpha.clear();
        alpha.resize(self.probability.len(), 0.0);
        route(config, &mut self.probability, alpha);
    }

    fn layer_norm(&mut self, weight: &[f32], bias: &[f32], c: &[f32]) {
        let n = c.len() as f32;
        let mean = c.iter().sum::<f32>() / n;
        let variance = c.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / n;
        let inv_std = 1.0 / (variance + LAYER_NORM_EPS).sqrt();
        self.x_hat.clear();
        self.x_hat.extend(c.iter().map(|x| (x - mean) * inv_std));
        self.normed.clear();
        let scaled = self.x_hat.iter().zip(weight).zip(bias);
        self.normed.extend(scaled.map(|((x, w), b)| x * (1.0 + w) + b));
    }

    /// Adds the gate's gradients for d loss / d alpha. The representation itself gets none: the CRM
    /// is frozen.
    fn backward(
        &self,
        gate: &SampleGate,
        config: &AdapterConfig,
        parameters: &[f32],
        alpha: &[f32],
        d_alpha: &[f32],
        gradient: &mut [f32],
    ) {
        let mut d_logits = d_alpha.to_vec();
        route_grad(config, &self.probability, alpha, &mut d_logits);
        let mut d_hidden = vec![0.0; self.hidden.len()];
        let width = self.hidden.len();
        for (k, d_logit) in d_logits.into_iter().enumerate() {
            gradient[gate.fc2_bias.start + k] += d_logit;
            let row = gate.fc2_weight.start + k * width;
            axpy(&mut gradient[row..row + width], d_logit, &self.hidden);
            axpy(&mut d_hidden, d_logit, &parameters[row..row + width]);
        }
        let width = self.normed.len();
        let mut d_normed = vec![0.0; width];
        for (unit, (d, slope)) in d_hidden.iter().zip(&self.slope).enumerate() {
            let d = d * slope;
            gradient[gate.fc1_bias.start + unit] += d;
            let row = gate.fc1_weight.start + unit * width;
            axpy(&mut gradient[row..row + width], d, &self.normed);
            axpy(&mut d_normed, d, &parameters[row..row + width]);
        }
        for ((g, d), x) in
            gradient[gate.norm_weight.clone()].iter_mut().zip(&d_normed).zip(&self.x_hat)
        {
            *g += d * x;
        }
        for (g, d) in gradient[gate.norm_bias.clone()].iter_mut().zip(&d_normed) {
            *g += d;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_expert_has_weight_one() {
        let mut parameters: Vec<f32> = (0..100).map(|i| (i as f32 * 0.37).sin()).collect();
        let gate = SampleGate {
            norm_weight: 0..4,
            norm_bias: 4..8,
            fc1_weight: 8..20,
            fc1_bias: 20..23,
            fc2_weight: 23..26,
            fc2_bias: 26..27,
        };
        let (mut state, mut alpha) = (GateState::default(), Vec::new());
        let config = AdapterConfig { experts: 1, ..AdapterConfig::default() };
        state.forward(&gate, &config, &parameters, &[0.3, -2.0, 5.0, 1.0], None, &mut alpha);
        assert_eq!(alpha, [1.0]);
        parameters[26] = 1e6;
        state.forward(&gate, &config, &parameters, &[0.0; 4], None, &mut alpha);
        assert_eq!(alpha, [1.0]);
    }
}
