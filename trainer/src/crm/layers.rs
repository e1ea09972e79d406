//! Linear layers and stacks of Linear → ReLU → Dropout, forward and backward over rows.

use std::ops::Range;

use crate::kernels::matmul::{Mat, matmul};

/// y = x Wᵀ + b, its parameters at these places of the flat vector.
#[derive(Clone, Debug)]
pub(super) struct Linear {
    pub weight: Range<usize>,
    pub bias: Range<usize>,
    pub inputs: usize,
    pub outputs: usize,
}

impl Linear {
    /// `[rows, inputs]` to `[rows, outputs]`.
    pub fn forward(&self, parameters: &[f32], x: &[f32], rows: usize, y: &mut Vec<f32>) {
        y.clear();
        for _ in 0..rows {
            y.extend_from_slice(&parameters[self.bias.clone()]);
        }
        let weight = Mat::new(&parameters[self.weight.clone()], self.outputs, self.inputs);
        matmul(y, self.outputs, Mat::new(x, rows, self.inputs), weight.t(), 1.0, true);
    }

    /// Adds the gradient of weight and bias; leaves that of x in `dx`.
    pub fn backward(
        &self,
        parameters: &[f32],
        x: &[f32],
        dy: &[f32],
        gradient: &mut [f32],
        dx: &mut Vec<f32>,
    ) {
        let rows = dy.len() / self.outputs;
        for row in dy.chunks_exact(self.outputs) {
            for (sum, value) in gradient[self.bias.clone()].iter_mut().zip(row) {
                *sum += value;
            }
        }
        let dy = Mat::new(dy, rows, self.outputs);
        let x = Mat::new(x, rows, self.inputs);
        matmul(&mut gradient[self.weight.clone()], self.inputs, dy.t(), x, 1.0, true);
        dx.clear();
        dx.resize(rows * self.inputs, 0.0);
        let weight = Mat::new(&parameters[self.weight.clone()], self.outputs, self.inputs);
        matmul(dx, self.inputs, dy, weight, 1.0, false);
    }
}

/// Dropout of one stack: a unit's mask is a pure function of (row's key, layer, unit).
#[derive(Clone, Copy, Debug)]
pub(super) struct Dropout<'a> {
    pub probability: f32,
    pub row_keys: &'a [u64],
}

/// Scatters the bits of `key` (splitmix64, Steele et al. 2014).
pub(super) fn mix(key: u64) -> u64 {
    let mut z = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Dropout<'_> {
    fn apply(self, layer: usize, width: usize, values: &mut [f32]) {
        let scale = 1.0 / (1.0 - self.probability);
        // Dropped where a 32-bit number is below this.
        let limit = (f64::from(self.probability) * 2f64.powi(32)) as u64;
        for (row, key) in values.chunks_exact_mut(width).zip(self.row_keys) {
            let key = mix(key ^ (layer as u64) << 56);
            for (unit, value) in row.iter_mut().enumerate() {
                let dropped = mix(key.wrapping_add(unit as u64)) >> 32 < limit;
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
    /// Input, then the output of each hidden layer.
    pub layers: Vec<Vec<f32>>,
    /// `[rows]`.
    pub output: Vec<f32>,
    gradients: [Vec<f32>; 2],
}

impl MlpState {
    /// The stack's input, to be filled before the forward.
    pub fn input(&mut self) -> &mut Vec<f32> {
        if self.layers.is_empty() {
            self.layers.push(Vec::new());
        }
        &mut self.layers[0]
    }

    /// Output of the last hidden layer, `[rows, width]`.
    pub fn last_hidden(&self) -> &[f32] {
        self.layers.last().map_or(&[], Vec::as_slice)
    }
}

impl Mlp {
    /// From `state.input()` to `state.output`.
    pub fn forward(
        &self,
        parameters: &[f32],
        rows: usize,
        dropout: Option<Dropout<'_>>,
        state: &mut MlpState,
    ) {
        state.layers.resize_with(self.hidden.len() + 1, Vec::new);
        for (index, layer) in self.hidden.iter().enumerate() {
            let (before, after) = state.layers.split_at_mut(index + 1);
            let y = &mut after[0];
            layer.forward(parameters, &before[index], rows, y);
            y.iter_mut().for_each(|value| *value = value.max(0.0));
            if let Some(dropout) = dropout {
                dropout.apply(index, layer.outputs, y);
            }
        }
        let mut output = std::mem::take(&mut state.output);
        self.output.forward(parameters, state.last_hidden(), rows, &mut output);
        state.output = output;
    }

    /// Adds the gradient of the stack's parameters; returns that of its input. `keep` is
    /// 1 − the dropout of the forward.
    pub fn backward<'s>(
        &self,
        parameters: &[f32],
        doutput: &[f32],
        keep: f32,
        gradient: &mut [f32],
        state: &'s mut MlpState,
    ) -> &'s [f32] {
        let MlpState { layers, gradients: [dy, dx], .. } = state;
        self.output.backward(parameters, &layers[self.hidden.len()], doutput, gradient, dy);
        for (index, layer) in self.hidden.iter().enumerate().rev() {
            // A unit passes its gradient where it was neither cut by ReLU nor dropped: where it is > 0.
            for (d, y) in dy.iter_mut().zip(&layers[index + 1]) {
                *d = if *y > 0.0 { *d / keep } else { 0.0 };
            }
            layer.backward(parameters, &layers[index], dy, gradient, dx);
            std::mem::swap(dy, dx);
        }
        dy
    }
}
