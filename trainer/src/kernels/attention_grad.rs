//! Causal attention, backward: probabilities are recomputed tile by tile from the saved log-sums.

use super::attention::{AttentionShape, TILE, Tile};
use super::pointwise::dot;
use super::simd::{exp2_nonpositive, kernel};
use super::{Mat, matmul};

/// Backward of [`attention`](super::attention::attention).
///
/// `q`, `k`, `v`, `positions`, `log_sum` as in the forward; `out` is its output and `d_out` the
/// gradient of it. Overwrites `dq` `[heads, queries, padded]` (of the unscaled query-key product)
/// and `dk`, `dv` `[kv_heads, keys, padded]` (`dk` with respect to the scaled query, so the caller
/// multiplies it by ln 2).
#[expect(clippy::too_many_arguments, reason = "kernels take plain slices and sizes")]
pub fn attention_grad(
    shape: AttentionShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    positions: &[u32],
    log_sum: &[f32],
    out: &[f32],
    d_out: &[f32],
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
    scratch: &mut Vec<f32>,
) {
    let AttentionShape { heads, padded, dim, queries, .. } = shape;
    dk.fill(0.0);
    dv.fill(0.0);
    for head in 0..heads {
        let kv = shape.kv_head(head) * shape.kv_len();
        for first in (0..queries).step_by(TILE) {
            let tile = Tile::new(&positions[..queries], first, shape.window);
            let (rows, keys) = (tile.rows(), tile.keys());
            let kv = kv + tile.first_key * padded;
            scratch.resize(2 * rows * keys, 0.0);
            let (p, ds) = scratch.split_at_mut(rows * keys);
            let from = (head * queries + first) * padded;
            let q = Mat::new(&q[from..], rows, padded);
            let k = Mat::new(&k[kv..], keys, padded);
            let v = Mat::strided(&v[kv..], keys, dim, padded);
            let at = (first * heads + head) * dim;
            let d_out_tile = Mat::strided(&d_out[at..], rows, dim, heads * dim);
            matmul(p, keys, q, k.t(), 1.0, false);
            matmul(ds, keys, d_out_tile, v.t(), 1.0, false);
            for row in 0..rows {
                let at = at + row * heads * dim;
                let delta = dot(&out[at..at + dim], &d_out[at..at + dim]);
                let log = log_sum[head * queries + first + row];
                let (seen, here) = (tile.seen(row), row * keys..(row + 1) * keys);
                let (p, ds) = (&mut p[here.clone()], &mut ds[here]);
                softmax_grad(&mut p[seen.clone()], &mut ds[seen.clone()], log, delta);
                tile.hide(seen.clone(), p);
                tile.hide(seen, ds);
            }
            let (p, ds) = (Mat::new(p, rows, keys), Mat::new(ds, rows, keys));
            matmul(&mut dq[from..], padded, ds, k, 1.0, false);
            matmul(&mut dk[kv..], padded, ds.t(), q, 1.0, true);
            matmul(&mut dv[kv..], padded, p.t(), d_out_tile, 1.0, true);
        }
    }
}

kernel! {
    /// One query. In: scores and `d_out · v`. Out: probabilities and gradients of the scores.
    pub fn softmax_grad = softmax_grad_body(p: &mut [f32], ds: &mut [f32], log_sum: f32, delta: f32)
}

#[inline(always)]
fn softmax_grad_body<const FMA: bool>(p: &mut [f32], ds: &mut [f32], log_sum: f32, delta: f32) {
    for (p, ds) in p.iter_mut().zip(ds) {
        *p = exp2_nonpositive::<FMA>(*p - log_sum);
        *ds = *p * (*ds - delta);
    }
}
