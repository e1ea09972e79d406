//! From the logits of a gate to the weights of the experts, and back; dropout of a gate.

use crate::config::AdapterConfig;
use crate::parameters::splitmix;

/// Epsilon of a gate's LayerNorm.
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

/// Gate logits become probabilities, in place, and these mixture weights.
pub fn route(config: &AdapterConfig, logits: &mut [f32], alpha: &mut [f32]) {
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
pub fn route_grad(
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
}
