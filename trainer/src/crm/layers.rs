//! Linear layers and stacks of Linear → ReLU → Dropout, forward and backward over rows.

use std::ops::Range;

use super::parts::Parts;
use crate::kernels::matmul::Mat;
use crate::parameters::{Gradient, splitmix};

/// y = x Wᵀ + b, its parameters at these places behind the table.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    pub weight: Range<usize>,
    pub bias: Range<usize>,
    pub inputs: usize,
    pub outputs: usize,
}

/// `y = x Wᵀ + b` for every row of `x`.
pub(super) fn linear(
    parts: Parts<'_>,
    x: Mat<'_>,
    weight: Mat<'_>,
    bias: &[f32],
    y: &mut Vec<f32>,
) {
    y.clear();
    (0..x.rows()).for_each(|_| y.extend_from_slice(bias));
    parts.multiply(y, x, weight.t(), true);
}

impl Linear {
    fn weight<'p>(&self, parameters: &'p [f32]) -> Mat<'p> {
        Mat::new(&parameters[self.weight.clone()], self.outputs, self.inputs)
    }

    /// `[rows, inputs]` to `[rows, outputs]`.
    pub fn forward(&self, parameters: &[f32], x: &[f32], parts: Parts<'_>, y: &mut Vec<f32>) {
        let bias = &parameters[self.bias.clone()];
        linear(parts, Mat::new(x, parts.rows(), self.inputs), self.weight(parameters), bias, y);
    }

    /// Adds the gradient of weight and bias; leaves that of x in `dx`.
    pub fn backward(
        &self,
        parameters: &[f32],
        x: &[f32],
        dy: &[f32],
        parts: Parts<'_>,
        gradient: &mut Gradient,
        dx: &mut Vec<f32>,
    ) {
        parts.add_rows(gradient.dense(self.bias.clone()), dy);
        let dy = Mat::new(dy, parts.rows(), self.outputs);
        let x = Mat::new(x, parts.rows(), self.inputs);
        parts.add_products(gradient.dense(self.weight.clone()), dy, x);
        dx.resize(parts.rows() * self.inputs, 0.0);
        parts.multiply(dx, dy, self.weight(parameters), false);
    }
}

/// Dropout of one stack: a unit's mask is a pure function of (row's key, layer, unit).
#[derive(Clone, Copy, Debug)]
pub(super) struct Dropout<'a> {
    pub probability: f32,
    pub row_keys: &'a [u64],
}

impl Dropout<'_> {
    fn apply(self, layer: usize, width: usize, values: &mut [f32]) {
        let scale = 1.0 / (1.0 - self.probability);
        // Dropped where a 32-bit number is below this.
        let limit = (f64::from(self.probability) * 2f64.powi(32)) as u64;
        for (row, key) in values.chunks_exact_mut(width).zip(self.row_keys) {
            let key = splitmix(key ^ (layer as u64) << 56);
            for (unit, value) in row.iter_mut().enumerate() {
                let dropped = splitmix(key.wrapping_add(unit as u64)) >> 32 < limit;
                *value = if dropped { 0.0 } else { *value * scale };
            }
        }
    }
}

/// Hidden layers (Linear → ReLU → Dropout) and a linear output of width 1.
#[derive(Clone, Debug)]
pub(super) struct Mlp {
    pub hidden: Vec<Linear>,
    pub output: Linear,
}

/// What a stack's backward needs of its forward.
#[derive(Debug, Default)]
pub(super) struct MlpState {
    /// Input (unused where another layer reads the stack's input), then the output of each hidden layer.
    pub layers: Vec<Vec<f32>>,
    /// `[rows]`.
    pub output: Vec<f32>,
    /// 1 − the dropout of the forward.
    keep: f32,
    gradients: [Vec<f32>; 2],
}

impl MlpState {
    /// Layer `index`'s output; layer 0's is the stack's input, to be filled before the forward.
    pub fn layer(&mut self, index: usize) -> &mut Vec<f32> {
        if self.layers.len() <= index {
            self.layers.resize_with(index + 1, Vec::new);
        }
        &mut self.layers[index]
    }

    /// Output of the last hidden layer, `[rows, width]`.
    pub fn last_hidden(&self) -> &[f32] {
        self.layers.last().map_or(&[], Vec::as_slice)
    }
}

impl Mlp {
    /// From `state.layer(0)` to `state.output`.
    pub fn forward(
        &self,
        parameters: &[f32],
        parts: Parts<'_>,
        dropout: Option<Dropout<'_>>,
        state: &mut MlpState,
    ) {
        self.forward_from(0, parameters, parts, dropout, state);
    }

    /// The same, where the products of the first `done` (0 or 1) layers are in `state.layer(done)`.
    pub fn forward_from(
        &self,
        done: usize,
        parameters: &[f32],
        parts: Parts<'_>,
        dropout: Option<Dropout<'_>>,
        state: &mut MlpState,
    ) {
        state.layers.resize_with(self.hidden.len() + 1, Vec::new);
        state.keep = 1.0 - dropout.map_or(0.0, |dropout| dropout.probability);
        for (index, layer) in self.hidden.iter().enumerate() {
            let (before, after) = state.layers.split_at_mut(index + 1);
            let y = &mut after[0];
            if index >= done {
                layer.forward(parameters, &before[index], parts, y);
            }
            y.iter_mut().for_each(|value| *value = value.max(0.0));
            if let Some(dropout) = dropout {
                dropout.apply(index, layer.outputs, y);
            }
        }
        let mut output = std::mem::take(&mut state.output);
        self.output.forward(parameters, state.last_hidden(), parts, &mut output);
        state.output = output;
    }

    /// Adds the gradient of the stack's parameters; returns that of its input. The forward must have been the last
    /// one.
    pub fn backward<'s>(
        &self,
        parameters: &[f32],
        doutput: &[f32],
        parts: Parts<'_>,
        gradient: &mut Gradient,
        state: &'s mut MlpState,
    ) -> &'s [f32] {
        self.backward_to(0, parameters, doutput, parts, gradient, state)
    }

    /// The same down to the products of layer `done`, whose gradient it returns where that is 1.
    pub fn backward_to<'s>(
        &self,
        done: usize,
        parameters: &[f32],
        doutput: &[f32],
        parts: Parts<'_>,
        gradient: &mut Gradient,
        state: &'s mut MlpState,
    ) -> &'s [f32] {
        let MlpState { layers, keep, gradients: [dy, dx], .. } = state;
        self.output.backward(parameters, &layers[self.hidden.len()], doutput, parts, gradient, dy);
        for (index, layer) in self.hidden.iter().enumerate().rev() {
            // A unit passes its gradient where it was neither cut by ReLU nor dropped: where it is > 0.
            for (d, y) in dy.iter_mut().zip(&layers[index + 1]) {
                *d = if *y > 0.0 { *d / *keep } else { 0.0 };
            }
            if index >= done {
                layer.backward(parameters, &layers[index], dy, parts, gradient, dx);
                std::mem::swap(dy, dx);
            }
        }
        dy
    }
}
