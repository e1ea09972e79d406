//! The gate: a CRM representation to mixture weights, and back.
//!
//! LayerNorm → fc1 → ReLU → dropout → fc2 → / T (→ top k) → softmax (→ square root).

use super::layout::GateLayout;
use crate::config::AdapterConfig;
use crate::kernels::pointwise::{axpy, dot};
use crate::parameters::splitmix;

/// Epsilon of the gate's LayerNorm.
pub(crate) const LAYER_NORM_EPS: f32 = 1e-5;

/// Gate dropout of one sample while tuning. The mask is a pure function of (key, module, unit), so
/// it does not depend on which process or thread handles the sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability that a hidden unit is dropped, in 0..1. Kept units are scaled by 1 / (1 - p).
    pub probability: f32,
    /// Key of the sample (and epoch).
    pub key: u64,
}

impl Dropout {
    /// What a unit is multiplied by: 0 or 1 / (1 - p).
    pub(crate) fn factor(&self, module: usize, unit: usize) -> f32 {
        let place = splitmix(((module as u64) << 32) ^ unit as u64);
        let random = splitmix(self.key ^ place) >> 40;
        if (random as f32) < self.probability * (1 << 24) as f32 {
            0.0
        } else {
            1.0 / (1.0 - self.probability)
        }
    }
}

/// What a gate's forward computed and its backward reads.
#[derive(Clone, Debug, Default)]
pub(crate) struct GateState {
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
    /// Mixture weights `[N]`.
    pub alpha: Vec<f32>,
}

impl GateState {
    /// No gate: every expert has weight 1.
    pub fn set_ones(&mut self, experts: usize) {
        self.alpha.clear();
        self.alpha.resize(experts, 1.0);
    }

    /// Computes `alpha` for representation `c`. `parameters` is the adapter's flat vector.
    pub fn forward(
        &mut self,
        gate: &GateLayout,
        config: &AdapterConfig,
        parameters: &[f32],
        c: &[f32],
        dropout: Option<(Dropout, usize)>,
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
        self.alpha.clear();
        self.alpha.resize(self.probability.len(), 0.0);
        route(config, &mut self.probability, &mut self.alpha);
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
    pub fn backward(
        &self,
        gate: &GateLayout,
        config: &AdapterConfig,
        parameters: &[f32],
        d_alpha: &[f32],
        gradient: &mut [f32],
    ) {
        let mut d_logits = d_alpha.to_vec();
        route_grad(config, &self.probability, &self.alpha, &mut d_logits);
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

/// Gate logits become probabilities, in place, and these mixture weights.
pub(super) fn route(config: &AdapterConfig, logits: &mut [f32], alpha: &mut [f32]) {
    for logit in logits.iter_mut() {
        *logit /= config.temperature;
    }
    keep_top(logits, config.top_k);
    softmax(logits);
    for (alpha, p) in alpha.iter_mut().zip(logits) {
        *alpha = if config.sqrt_alpha { p.sqrt() } else { *p };
    }
}

/// Backward of [`route`]: gradients of the mixture weights become those of the logits.
pub(super) fn route_grad(
    config: &AdapterConfig,
    probability: &[f32],
    alpha: &[f32],
    gradient: &mut [f32],
) {
    // d p_k * p_k, in a form that is finite for p_k = 0 under the square root too.
    for ((d, p), a) in gradient.iter_mut().zip(probability).zip(alpha) {
        *d = if config.sqrt_alpha { 0.5 * a * *d } else { p * *d };
    }
    let total: f32 = gradient.iter().sum();
    for (d, p) in gradient.iter_mut().zip(probability) {
        *d = (*d - p * total) / config.temperature;
    }
}

/// Hard routing: all but the `top_k` largest logits become −∞, which the softmax makes weights of
/// exactly 0; of equal ones the first is kept. 0 keeps all.
fn keep_top(logits: &mut [f32], top_k: usize) {
    if top_k == 0 || top_k >= logits.len() {
        return;
    }
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // A stable sort: equal logits stay in the order of their experts. `+ 0.0` makes −0 the same as 0.
    order.sort_by(|i, j| (logits[*j] + 0.0).total_cmp(&(logits[*i] + 0.0)));
    for index in &order[top_k..] {
        logits[*index] = f32::NEG_INFINITY;
    }
}

fn softmax(values: &mut [f32]) {
    let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for v in values.iter_mut() {
        *v = (*v - max).exp();
    }
    let sum: f32 = values.iter().sum();
    for v in values {
        *v /= sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_is_a_function_of_key_module_and_unit() {
        let dropout = Dropout { probability: 0.3, key: 7 };
        let mask: Vec<f32> = (0..10_000).map(|unit| dropout.factor(3, unit)).collect();
        let dropped = mask.iter().filter(|m| **m == 0.0).count() as f32 / 10_000.0;
        assert!((dropped - 0.3).abs() < 0.02, "{dropped}");
        assert!(mask.iter().all(|m| *m == 0.0 || *m == 1.0 / 0.7));
        let again: Vec<f32> = (0..10_000).rev().map(|unit| dropout.factor(3, unit)).collect();
        assert!(mask.iter().eq(again.iter().rev()));
        let other_key = Dropout { key: 8, ..dropout };
        assert!((0..100).any(|u| dropout.factor(3, u) != other_key.factor(3, u)));
        assert!((0..100).any(|u| dropout.factor(3, u) != dropout.factor(4, u)));
        let none = Dropout { probability: 0.0, key: 7 };
        assert!((0..1000).all(|u| none.factor(0, u) == 1.0));
    }

    #[test]
    fn hard_routing_keeps_the_largest_logits_and_the_first_of_equal_ones() {
        let kept = |top_k| {
            let mut logits = [0.5, 2.0, -1.0, 2.0, 0.5, 0.5];
            keep_top(&mut logits, top_k);
            let indices = (0..6).filter(|i| logits[*i] > f32::NEG_INFINITY);
            indices.collect::<Vec<_>>()
        };
        assert_eq!(kept(1), [1]);
        assert_eq!(kept(2), [1, 3]);
        assert_eq!(kept(3), [0, 1, 3]);
        assert_eq!(kept(5), [0, 1, 3, 4, 5]);
        assert!([0, 6].iter().all(|all| kept(*all).len() == 6));
        // −0 and 0 are one value.
        let mut logits = [-0.0, 0.0];
        keep_top(&mut logits, 1);
        assert_eq!(logits, [0.0, f32::NEG_INFINITY]);
    }

    #[test]
    fn one_expert_has_weight_one() {
        let mut parameters: Vec<f32> = (0..100).map(|i| (i as f32 * 0.37).sin()).collect();
        let gate = GateLayout {
            norm_weight: 0..4,
            norm_bias: 4..8,
            fc1_weight: 8..20,
            fc1_bias: 20..23,
            fc2_weight: 23..26,
            fc2_bias: 26..27,
        };
        let mut state = GateState::default();
        let config = AdapterConfig { experts: 1, ..AdapterConfig::default() };
        state.forward(&gate, &config, &parameters, &[0.3, -2.0, 5.0, 1.0], None);
        assert_eq!(state.alpha, [1.0]);
        parameters[26] = 1e6;
        state.forward(&gate, &config, &parameters, &[0.0; 4], None);
        assert_eq!(state.alpha, [1.0]);
    }
}
