//! The gate that attends to the experts: each expert's logit is what a small network makes of the
//! representation's query and the key of the expert's own weights, as DIN scores a history item.
//!
//! q = W_q c + b_q; k_j = W_k [A_j; B_j] + b_k; logit_j = w · ReLU(W [q, k_j, q − k_j, q ⊙ k_j] + b);
//! α = softmax(logits / T). Gradients reach the experts' weights through their keys too.

use std::ops::Range;

use super::{Kind, MixedState, Module, ModuleTensors, Sample};
use crate::adapter::routing::{route, route_grad};
use crate::error::Result;
use crate::kernels::pointwise::{axpy, dot};

/// The gate of one adapted projection: where its parameters are.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionGate {
    /// Representation to query `[hidden, |c|]`.
    pub query_weight: Range<usize>,
    /// Its bias `[hidden]`.
    pub query_bias: Range<usize>,
    /// An expert's A, then its B, to its key `[hidden, r (d_in + d_out)]`.
    pub key_weight: Range<usize>,
    /// Its bias `[hidden]`.
    pub key_bias: Range<usize>,
    /// `[q, k, q - k, q * k]` to the hidden layer `[hidden, 4 hidden]`.
    pub fc1_weight: Range<usize>,
    /// Its bias `[hidden]`.
    pub fc1_bias: Range<usize>,
    /// Hidden layer to the expert's logit `[1, hidden]`; a bias would be the same for all experts.
    pub fc2_weight: Range<usize>,
}

impl AttentionGate {
    pub(super) fn push(tensors: &mut ModuleTensors<'_>) -> Result<Self> {
        let (hidden, width) = (tensors.config.gate_hidden, tensors.representation_dim);
        let expert = tensors.config.rank * (tensors.d_in + tensors.d_out);
        Ok(Self {
            query_weight: tensors.weight("gate.query.weight", &[hidden, width])?,
            query_bias: tensors.zeros("gate.query.bias", &[hidden])?,
            key_weight: tensors.weight("gate.key.weight", &[hidden, expert])?,
            key_bias: tensors.zeros("gate.key.bias", &[hidden])?,
            fc1_weight: tensors.weight("gate.mlp.fc1.weight", &[hidden, 4 * hidden])?,
            fc1_bias: tensors.zeros("gate.mlp.fc1.bias", &[hidden])?,
            fc2_weight: tensors.weight("gate.mlp.fc2.weight", &[1, hidden])?,
        })
    }
}

impl Kind for AttentionGate {
    fn mix(&self, module: Module<'_>, sample: Sample<'_>, mixed: &mut MixedState) {
        let state: &mut AttentionState = mixed.buffers.of();
        state.forward(self, module, sample.representation, &mut mixed.alpha);
        mixed.mix_experts(module);
    }

    fn unmix(&self, module: Module<'_>, mixed: &mut MixedState, gradient: &mut [f32]) {
        mixed.unmix_experts(module, gradient);
        let MixedState { buffers, alpha, d_alpha, .. } = mixed;
        let state: &mut AttentionState = buffers.of();
        state.backward(self, module, alpha, d_alpha, gradient);
    }
}

/// What the forward computed and the backward reads.
#[derive(Debug, Default)]
struct AttentionState {
    c: Vec<f32>,
    /// `[hidden]`.
    query: Vec<f32>,
    /// `[N, hidden]`.
    keys: Vec<f32>,
    /// Hidden layer after ReLU `[N, hidden]`.
    hidden: Vec<f32>,
    /// Softmax output `[N]`.
    probability: Vec<f32>,
}

/// The places of one expert's A and B in the flat vector.
fn expert(module: Module<'_>, k: usize) -> [Range<usize>; 2] {
    [(module.a_start, module.a), (module.b_start, module.b)].map(|(start, all)| {
        let length = all.len() / module.config.experts;
        start + k * length..start + (k + 1) * length
    })
}

/// `[q, k, q − k, q ⊙ k]`.
fn compare(query: &[f32], key: &[f32]) -> Vec<f32> {
    let pairs = || query.iter().zip(key);
    let mut features = [query, key].concat();
    features.extend(pairs().map(|(q, k)| q - k));
    features.extend(pairs().map(|(q, k)| q * k));
    features
}

impl AttentionState {
    /// Mixture weights of a module's experts for representation `c`.
    fn forward(
        &mut self,
        gate: &AttentionGate,
        module: Module<'_>,
        c: &[f32],
        alpha: &mut Vec<f32>,
    ) {
        let (parameters, experts) = (module.parameters, module.config.experts);
        let get = |range: &Range<usize>| &parameters[range.clone()];
        self.c.clear();
        self.c.extend_from_slice(c);
        self.query.clear();
        let rows = get(&gate.query_weight).chunks_exact(c.len()).zip(get(&gate.query_bias));
        self.query.extend(rows.map(|(row, bias)| dot(row, c) + bias));
        self.keys.clear();
        self.hidden.clear();
        self.probability.clear();
        let width = self.query.len();
        for k in 0..experts {
            let [a, b] = expert(module, k).map(|range| get(&range));
            let rows = get(&gate.key_weight).chunks_exact(a.len() + b.len());
            let key = rows.zip(get(&gate.key_bias)).map(|(row, bias)| {
                let (of_a, of_b) = row.split_at(a.len());
                dot(of_a, a) + dot(of_b, b) + bias
            });
            self.keys.extend(key);
            let features = compare(&self.query, &self.keys[k * width..]);
            let rows = get(&gate.fc1_weight).chunks_exact(features.len()).zip(get(&gate.fc1_bias));
            self.hidden.extend(rows.map(|(row, bias)| (dot(row, &features) + bias).max(0.0)));
            self.probability.push(dot(get(&gate.fc2_weight), &self.hidden[k * width..]));
        }
        alpha.clear();
        alpha.resize(experts, 0.0);
        route(module.config, &mut self.probability, alpha);
    }

    /// Adds the gradients of gate and experts for d loss / d alpha.
    fn backward(
        &self,
        gate: &AttentionGate,
        module: Module<'_>,
        alpha: &[f32],
        d_alpha: &[f32],
        gradient: &mut [f32],
    ) {
        let parameters = module.parameters;
        let width = self.query.len();
        let mut d_logits = d_alpha.to_vec();
        route_grad(module.config, &self.probability, alpha, &mut d_logits);
        let mut d_query = vec![0.0; width];
        for (k, d_logit) in d_logits.into_iter().enumerate() {
            let d_key = self.score_grad(gate, parameters, k, d_logit, &mut d_query, gradient);
            axpy(&mut gradient[gate.key_bias.clone()], 1.0, &d_key);
            let [a, b] = expert(module, k);
            for (unit, d) in d_key.iter().enumerate() {
                let of_a = gate.key_weight.start + unit * (a.len() + b.len());
                let of_b = of_a + a.len();
                for (place, weights) in [(of_a, &a), (of_b, &b)] {
                    let row = place..place + weights.len();
                    axpy(&mut gradient[row.clone()], *d, &parameters[weights.clone()]);
                    axpy(&mut gradient[weights.clone()], *d, &parameters[row]);
                }
            }
        }
        axpy(&mut gradient[gate.query_bias.clone()], 1.0, &d_query);
        let rows = gradient[gate.query_weight.clone()].chunks_exact_mut(self.c.len());
        for (row, d) in rows.zip(&d_query) {
            axpy(row, *d, &self.c);
        }
    }

    /// From the gradient of one expert's logit to that of its key, which is returned, and of the query.
    fn score_grad(
        &self,
        gate: &AttentionGate,
        parameters: &[f32],
        k: usize,
        d_logit: f32,
        d_query: &mut [f32],
        gradient: &mut [f32],
    ) -> Vec<f32> {
        let width = self.query.len();
        let here = k * width..(k + 1) * width;
        let (key, hidden) = (&self.keys[here.clone()], &self.hidden[here]);
        axpy(&mut gradient[gate.fc2_weight.clone()], d_logit, hidden);
        let features = compare(&self.query, key);
        let mut d_features = vec![0.0; features.len()];
        let outputs = hidden.iter().zip(&parameters[gate.fc2_weight.clone()]);
        for (unit, (_, weight)) in outputs.enumerate().filter(|(_, (hidden, _))| **hidden > 0.0) {
            let d = d_logit * weight;
            gradient[gate.fc1_bias.start + unit] += d;
            let row = gate.fc1_weight.start + unit * features.len();
            let row = row..row + features.len();
            axpy(&mut gradient[row.clone()], d, &features);
            axpy(&mut d_features, d, &parameters[row]);
        }
        let mut d_key = Vec::with_capacity(width);
        for (unit, d_query) in d_query.iter_mut().enumerate() {
            let [of_q, of_k, of_difference, of_product] =
                [0, 1, 2, 3].map(|part| d_features[part * width + unit]);
            *d_query += of_q + of_difference + of_product * key[unit];
            d_key.push(of_k - of_difference + of_product * self.query[unit]);
        }
        d_key
    }
}
