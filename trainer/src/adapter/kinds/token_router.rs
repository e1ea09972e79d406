//! The gate that reads every token: α_t = softmax(W LayerNorm([x_t; c]) / T), x_t the input of the
//! adapted projection.
//!
//! The model keeps all experts, one below the other, and multiplies what they make of a token,
//! p_k = A_k x_t, by that token's weights: v_k = α_k p_k in the product form; in the factor form
//! v_k = α_k Σ_j α_j p_j, which is what the mixed A gives, spread over the experts' B.

use crate::adapter::routing::{LAYER_NORM_EPS, route, route_grad};
use crate::config::{AdapterConfig, MixForm};
use crate::kernels::pointwise::{axpy, dot};

/// The gate of one module for one sample, and its gradient.
#[derive(Clone, Debug, Default)]
pub(crate) struct TokenRouter {
    config: AdapterConfig,
    /// Representation `[|c|]`.
    c: Vec<f32>,
    /// LayerNorm's weight and bias, then the layer's, as in the flat vector.
    parameters: Vec<f32>,
    /// Gradient of `parameters`, set by [`Self::backward`].
    gradient: Vec<f32>,
}

/// What the forward computes of all tokens and the backward reads. No one reads it after that.
#[derive(Clone, Debug, Default)]
pub(crate) struct TokenBuffers {
    /// ([x; c] - mean) / std `[rows, d_in + |c|]`.
    x_hat: Vec<f32>,
    /// 1 / std `[rows]`.
    inv_std: Vec<f32>,
    /// Softmax output `[rows, N]`.
    probability: Vec<f32>,
    /// Mixture weights `[rows, N]`.
    alpha: Vec<f32>,
    /// Gradients of `alpha`, then of the logits `[rows, N]`.
    d_alpha: Vec<f32>,
    /// LayerNorm output of a row, and then its gradient `[d_in + |c|]`.
    normed: Vec<f32>,
    /// What the experts' B multiply `[rows, N * r]`.
    pub routed: Vec<f32>,
}

impl TokenRouter {
    /// Takes over a module's parameters and a sample's representation.
    pub fn set(&mut self, config: &AdapterConfig, parameters: &[f32], c: &[f32]) {
        self.config.clone_from(config);
        self.c.clear();
        self.c.extend_from_slice(c);
        self.parameters.clear();
        self.parameters.extend_from_slice(parameters);
        self.gradient.clear();
        self.gradient.resize(parameters.len(), 0.0);
    }

    /// Gradient of the parameters, as of the last [`Self::backward`].
    pub fn gradient(&self) -> &[f32] {
        &self.gradient
    }

    /// Mixture weights of the rows of `x` `[rows, d_in]`, and `routed`: what the experts' A made of
    /// these rows (`lora_x` `[rows, N * r]`), weighted.
    pub fn forward(&self, x: &[f32], d_in: usize, lora_x: &[f32], buffers: &mut TokenBuffers) {
        self.weigh(x, d_in, buffers);
        let TokenBuffers { alpha, routed, .. } = buffers;
        routed.clear();
        routed.extend_from_slice(lora_x);
        let (experts, rank) = (self.config.experts, self.config.rank);
        let rows = routed.chunks_exact_mut(experts * rank).zip(alpha.chunks_exact(experts));
        for (row, alpha) in rows {
            if self.config.form == MixForm::Factor {
                spread(&mixed(row, alpha, rank), row);
            }
            for (expert, alpha) in row.chunks_exact_mut(rank).zip(alpha) {
                expert.iter_mut().for_each(|value| *value *= alpha);
            }
        }
    }

    fn weigh(&self, x: &[f32], d_in: usize, buffers: &mut TokenBuffers) {
        let (width, experts) = (d_in + self.c.len(), self.config.experts);
        let (norm, fc) = self.parameters.split_at(2 * width);
        let (scale, shift) = norm.split_at(width);
        let (weight, bias) = fc.split_at(experts * width);
        let TokenBuffers { x_hat, inv_std, probability, alpha, normed, .. } = buffers;
        let rows = x.len() / d_in;
        x_hat.clear();
        inv_std.clear();
        probability.clear();
        alpha.clear();
        alpha.resize(rows * experts, 0.0);
        for (x, alpha) in x.chunks_exact(d_in).zip(alpha.chunks_exact_mut(experts)) {
            let start = x_hat.len();
            x_hat.extend_from_slice(x);
            x_hat.extend_from_slice(&self.c);
            let row = &mut x_hat[start..];
            let n = width as f32;
            let mean = row.iter().sum::<f32>() / n;
            let variance = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / n;
            let inv = 1.0 / (variance + LAYER_NORM_EPS).sqrt();
            row.iter_mut().for_each(|x| *x = (*x - mean) * inv);
            inv_std.push(inv);
            affine(row, scale, shift, normed);
            let start = probability.len();
            let logits = weight.chunks_exact(width).zip(bias);
            probability.extend(logits.map(|(weight, bias)| dot(weight, normed) + bias));
            route(&self.config, &mut probability[start..], alpha);
        }
    }

    /// Backward of [`Self::forward`], whose buffers these are. `d_lora` is the gradient of `routed`
    /// over `scale` and becomes that of `lora_x` over `scale`; the gradient that reaches the rows of
    /// `x` through the gate is added to `dx`.
    pub fn backward(
        &mut self,
        lora_x: &[f32],
        d_lora: &mut [f32],
        scale: f32,
        d_in: usize,
        dx: Option<&mut [f32]>,
        buffers: &mut TokenBuffers,
    ) {
        let (experts, rank) = (self.config.experts, self.config.rank);
        let stacked = experts * rank;
        let TokenBuffers { probability, alpha, d_alpha, .. } = buffers;
        d_alpha.clear();
        let rows = lora_x.chunks_exact(stacked).zip(d_lora.chunks_exact_mut(stacked));
        let weights = probability.chunks_exact(experts).zip(alpha.chunks_exact(experts));
        for ((lora_x, d_lora), (probability, alpha)) in rows.zip(weights) {
            let start = d_alpha.len();
            let blocks = |values: &[f32], other: &[f32]| -> Vec<f32> {
                let blocks = values.chunks_exact(rank).zip(other.chunks_exact(rank));
                blocks.map(|(value, other)| scale * dot(value, other)).collect()
            };
            if self.config.form == MixForm::Factor {
                let (mut z, mut d_z) = (vec![0.0; stacked], vec![0.0; stacked]);
                spread(&mixed(lora_x, alpha, rank), &mut z);
                spread(&mixed(d_lora, alpha, rank), &mut d_z);
                let through_b = blocks(d_lora, &z);
                let through_a = blocks(lora_x, &d_z);
                d_alpha.extend(through_b.iter().zip(&through_a).map(|(b, a)| a + b));
                d_lora.copy_from_slice(&d_z);
            } else {
                d_alpha.extend(blocks(d_lora, lora_x));
            }
            for (expert, alpha) in d_lora.chunks_exact_mut(rank).zip(alpha) {
                expert.iter_mut().for_each(|value| *value *= alpha);
            }
            route_grad(&self.config, probability, alpha, &mut d_alpha[start..]);
        }
        self.logits_grad(d_in, dx, buffers);
    }

    /// From the gradients of the logits to those of the parameters and of the rows.
    fn logits_grad(&mut self, d_in: usize, mut dx: Option<&mut [f32]>, buffers: &mut TokenBuffers) {
        let (width, experts) = (d_in + self.c.len(), self.config.experts);
        let (norm, fc) = self.parameters.split_at(2 * width);
        let (scale, shift) = norm.split_at(width);
        self.gradient.fill(0.0);
        let (d_norm, d_fc) = self.gradient.split_at_mut(2 * width);
        let (d_scale, d_shift) = d_norm.split_at_mut(width);
        let (d_weight, d_bias) = d_fc.split_at_mut(experts * width);
        let TokenBuffers { x_hat, inv_std, d_alpha, normed, .. } = buffers;
        let rows = x_hat.chunks_exact(width).zip(inv_std).zip(d_alpha.chunks_exact(experts));
        for (row, ((x_hat, inv_std), d_logits)) in rows.enumerate() {
            affine(x_hat, scale, shift, normed);
            for (k, d_logit) in d_logits.iter().enumerate() {
                d_bias[k] += d_logit;
                axpy(&mut d_weight[k * width..(k + 1) * width], *d_logit, normed);
            }
            normed.fill(0.0);
            for (d_logit, weight) in d_logits.iter().zip(fc.chunks_exact(width)) {
                axpy(normed, *d_logit, weight);
            }
            axpy(d_shift, 1.0, normed);
            for (((d, x), d_scale), scale) in
                normed.iter_mut().zip(x_hat).zip(d_scale.iter_mut()).zip(scale)
            {
                *d_scale += *d * x;
                *d *= 1.0 + scale;
            }
            let Some(dx) = &mut dx else { continue };
            let mean = normed.iter().sum::<f32>() / width as f32;
            let along = dot(normed, x_hat) / width as f32;
            let dx = dx[row * d_in..(row + 1) * d_in].iter_mut();
            for ((dx, d), x) in dx.zip(normed.iter()).zip(x_hat) {
                *dx += *inv_std * (d - mean - x * along);
            }
        }
    }
}

/// LayerNorm's output of a normalised row.
fn affine(x_hat: &[f32], scale: &[f32], shift: &[f32], out: &mut Vec<f32>) {
    out.clear();
    out.extend(x_hat.iter().zip(scale).zip(shift).map(|((x, w), b)| x * (1.0 + w) + b));
}

/// Σ α_k of the blocks of one row `[N * r]`.
fn mixed(row: &[f32], alpha: &[f32], rank: usize) -> Vec<f32> {
    let mut sum = vec![0.0; rank];
    for (block, alpha) in row.chunks_exact(rank).zip(alpha) {
        axpy(&mut sum, *alpha, block);
    }
    sum
}

/// Makes every block of a row this one.
fn spread(block: &[f32], row: &mut [f32]) {
    row.chunks_exact_mut(block.len()).for_each(|to| to.copy_from_slice(block));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Line by line in f64: softmax(W LayerNorm([x; c]) + b, over T) of every row, and what the
    /// experts' B are to multiply.
    #[test]
    fn weights_and_weighted_rows_are_the_formula() {
        let (d_in, experts, rank, width) = (3, 2, 2, 5);
        let wave = |n: usize, phase: f64| -> Vec<f32> {
            (0..n).map(|i| (i as f64 * 0.7 + phase).sin() as f32).collect()
        };
        let (x, c, lora_x) = (wave(2 * d_in, 0.1), wave(2, 2.0), wave(2 * experts * rank, 4.0));
        for form in [MixForm::Factor, MixForm::Product] {
            let config =
                AdapterConfig { experts, rank, form, temperature: 0.7, ..Default::default() };
            let parameters = wave(22, 1.0);
            let mut state = TokenRouter::default();
            state.set(&config, &parameters, &c);
            let mut buffers = TokenBuffers::default();
            state.forward(&x, d_in, &lora_x, &mut buffers);
            for row in 0..2 {
                let joined: Vec<f64> = x[row * d_in..(row + 1) * d_in]
                    .iter()
                    .chain(&c)
                    .map(|v| f64::from(*v))
                    .collect();
                let mean = joined.iter().sum::<f64>() / width as f64;
                let variance =
                    joined.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / width as f64;
                let p = |i: usize| f64::from(parameters[i]);
                let normed = |i: usize| {
                    (joined[i] - mean) / (variance + 1e-5).sqrt() * (1.0 + p(i)) + p(5 + i)
                };
                let exp: Vec<f64> = (0..experts)
                    .map(|k| (0..width).map(|i| p(10 + k * width + i) * normed(i)).sum::<f64>())
                    .enumerate()
                    .map(|(k, logit)| ((logit + p(20 + k)) / 0.7).exp())
                    .collect();
                let alpha = |k: usize| exp[k] / exp.iter().sum::<f64>();
                for k in 0..experts {
                    assert!((f64::from(buffers.alpha[row * experts + k]) - alpha(k)).abs() < 1e-6);
                    for r in 0..rank {
                        let at = |k: usize| f64::from(lora_x[(row * experts + k) * rank + r]);
                        let expected = match form {
                            MixForm::Product => alpha(k) * at(k),
                            MixForm::Factor => {
                                alpha(k) * (0..experts).map(|j| alpha(j) * at(j)).sum::<f64>()
                            }
                        };
                        let got = f64::from(buffers.routed[(row * experts + k) * rank + r]);
                        assert!((got - expected).abs() < 1e-6, "{form:?}: {got} {expected}");
                    }
                }
            }
        }
    }
}
