//! The first layer of the attention network, without its repetitions.
//!
//! It reads [q, h, q − h, q ⊙ h] of every history row, where q, the target item, is the same for all rows
//! of a sample. With its weight cut as W = [W₁ W₂ W₃ W₄] that is
//!
//!   W x + b = (W₂ − W₃) h + W₄ (q ⊙ h) + ((W₁ + W₃) q + b),
//!
//! half the products per row, and one more per sample. The parameters, and what is computed, are those of
//! the whole layer; only the order of its sums is another.

use std::ops::Range;

use super::layers::{Linear, linear};
use super::parts::{Parts, add_rows_to, tiles};
use crate::kernels::matmul::{Mat, matmul};
use crate::parameters::Gradient;

/// Which history rows are whose.
#[derive(Clone, Copy, Debug)]
pub(super) struct SampleRows<'a> {
    /// Those of sample `i` are `offsets[i]..offsets[i + 1]`.
    pub offsets: &'a [usize],
    /// The samples of each micro-batch.
    pub of_samples: Parts<'a>,
    /// Its rows.
    pub of_rows: Parts<'a>,
}

/// Buffers of the layer, reused.
#[derive(Debug, Default)]
pub(super) struct AttentionInput {
    /// `[outputs, 2e]`: W₂ − W₃, then W₄.
    row_weight: Vec<f32>,
    /// `[outputs, e]`: W₁ + W₃.
    sample_weight: Vec<f32>,
    /// `[samples, e]`: q.
    queries: Vec<f32>,
    /// `[rows, 2e]`: h and q ⊙ h.
    rows: Vec<f32>,
    /// `[samples, outputs]`: what q adds to each row of the sample; and its gradient.
    of_samples: Vec<f32>,
    /// `[samples, e]`: gradient of q.
    pub dqueries: Vec<f32>,
    drows: Vec<f32>,
    dweight: Vec<f32>,
}

impl AttentionInput {
    /// `y` `[rows, outputs]` of queries and history rows.
    pub fn forward<'a>(
        &mut self,
        layer: &Linear,
        parameters: &[f32],
        queries: impl Iterator<Item = &'a [f32]>,
        history: &[f32],
        SampleRows { offsets, of_samples, of_rows }: SampleRows<'_>,
        y: &mut Vec<f32>,
    ) {
        let e = layer.inputs / 4;
        self.fold(layer, parameters);
        self.queries.clear();
        self.queries.extend(queries.flatten());
        self.rows.clear();
        for (q, range) in self.queries.chunks_exact(e).zip(ranges(offsets)) {
            for h in history[range.start * e..range.end * e].chunks_exact(e) {
                self.rows.extend_from_slice(h);
                self.rows.extend(q.iter().zip(h).map(|(q, h)| q * h));
            }
        }
        let bias = &parameters[layer.bias.clone()];
        let samples = self.queries.len() / e;
        let weight = Mat::new(&self.sample_weight, layer.outputs, e);
        let queries = Mat::new(&self.queries, samples, e);
        linear(of_samples, queries, weight, bias, &mut self.of_samples);
        y.clear();
        for (bias, range) in self.of_samples.chunks_exact(layer.outputs).zip(ranges(offsets)) {
            range.for_each(|_| y.extend_from_slice(bias));
        }
        let rows = Mat::new(&self.rows, y.len() / layer.outputs, 2 * e);
        let weight = Mat::new(&self.row_weight, layer.outputs, 2 * e);
        of_rows.multiply(y, rows, weight.t(), true);
    }

    /// The two smaller weights.
    fn fold(&mut self, layer: &Linear, parameters: &[f32]) {
        let e = layer.inputs / 4;
        self.row_weight.clear();
        self.sample_weight.clear();
        for w in parameters[layer.weight.clone()].chunks_exact(layer.inputs) {
            let (first, third) = (&w[..e], &w[2 * e..3 * e]);
            self.row_weight.extend(w[e..2 * e].iter().zip(third).map(|(w, w3)| w - w3));
            self.row_weight.extend_from_slice(&w[3 * e..]);
            self.sample_weight.extend(first.iter().zip(third).map(|(w, w3)| w + w3));
        }
    }

    /// From the gradient of `y`: adds those of weight and bias, and that of h to `dhistory`; leaves that
    /// of q in `dqueries`. The forward must have been the last one.
    pub fn backward(
        &mut self,
        layer: &Linear,
        dy: &[f32],
        SampleRows { offsets, of_samples, of_rows }: SampleRows<'_>,
        gradient: &mut Gradient,
        dhistory: &mut [f32],
    ) {
        let (e, outputs) = (layer.inputs / 4, layer.outputs);
        let (rows, samples) = (dy.len() / outputs, offsets.len() - 1);
        self.of_samples.fill(0.0);
        for (sum, range) in self.of_samples.chunks_exact_mut(outputs).zip(ranges(offsets)) {
            add_rows_to(sum, &dy[range.start * outputs..range.end * outputs]);
        }
        of_samples.add_rows(gradient.dense(layer.bias.clone()), &self.of_samples);
        let dy = Mat::new(dy, rows, outputs);
        let d_samples = Mat::new(&self.of_samples, samples, outputs);
        // Of the smaller weights, and from them of the whole one.
        let x = Mat::new(&self.rows, rows, 2 * e);
        let q = Mat::new(&self.queries, samples, e);
        let whole = gradient.dense(layer.weight.clone());
        let mut scratch = Vec::new();
        // Both products are cut in the same places, or neither is.
        let count = of_samples.tiles(outputs, e).min(of_rows.tiles(outputs, 2 * e));
        for tile in tiles(outputs, count) {
            let sum = &mut whole[tile.start * 4 * e..tile.end * 4 * e];
            of_rows.add(sum, &mut scratch, true, &mut |part, sum| {
                let dweight = &mut self.dweight;
                dweight.resize(tile.len() * 3 * e, 0.0);
                let dy = of_rows.of(dy, part).columns(tile.start, tile.len());
                matmul(dweight, 3 * e, dy.t(), of_rows.of(x, part), 1.0, false);
                let dy = of_samples.of(d_samples, part).columns(tile.start, tile.len());
                matmul(&mut dweight[2 * e..], 3 * e, dy.t(), of_samples.of(q, part), 1.0, false);
                for (dw, d) in sum.chunks_exact_mut(4 * e).zip(dweight.chunks_exact(3 * e)) {
                    for i in 0..e {
                        let (of_h, of_product, of_q) = (d[i], d[e + i], d[2 * e + i]);
                        dw[i] += of_q;
                        dw[e + i] += of_h;
                        dw[2 * e + i] += of_q - of_h;
                        dw[3 * e + i] += of_product;
                    }
                }
            });
        }
        // Of the inputs.
        self.drows.resize(rows * 2 * e, 0.0);
        let weight = Mat::new(&self.row_weight, outputs, 2 * e);
        of_rows.multiply(&mut self.drows, dy, weight, false);
        self.dqueries.resize(samples * e, 0.0);
        let weight = Mat::new(&self.sample_weight, outputs, e);
        of_samples.multiply(&mut self.dqueries, d_samples, weight, false);
        let samples = self.queries.chunks_exact(e).zip(self.dqueries.chunks_exact_mut(e));
        for ((q, dq), range) in samples.zip(ranges(offsets)) {
            for row in range {
                let (d, h) = (&self.drows[row * 2 * e..], &self.rows[row * 2 * e..]);
                let dh = &mut dhistory[row * e..(row + 1) * e];
                for i in 0..e {
                    dh[i] += d[i] + d[e + i] * q[i];
                    dq[i] += d[e + i] * h[i];
                }
            }
        }
    }
}

/// The rows of each sample.
fn ranges(offsets: &[usize]) -> impl Iterator<Item = Range<usize>> {
    offsets.windows(2).map(|pair| pair[0]..pair[1])
}
