//! Causal attention, backward: probabilities are recomputed tile by tile from the saved log-sums.

use super::Mat;
use super::attention::{AttentionShape, TILE, Tile, row_stride};
use super::buffer::{Buffer, fit};
use super::pointwise::dot;
use super::simd::{exp2_nonpositive, kernel};
use super::small_matmul::{small_matmul, transpose};

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
    scratch: &mut Buffer,
) {
    let AttentionShape { heads, padded, dim, queries, .. } = shape;
    dk.fill(0.0);
    dv.fill(0.0);
    let positions = &positions[..queries];
    let seen_keys = positions.last().map_or(0, |last| *last as usize + 1);
    let stride = row_stride(seen_keys);
    let scratch = fit(scratch, 2 * (dim + TILE) * stride);
    let (keys_t, scratch) = scratch.split_at_mut(dim * stride);
    let (values_t, scratch) = scratch.split_at_mut(dim * stride);
    let (p, ds) = scratch.split_at_mut(TILE * stride);
    for kv_head in 0..shape.kv_heads {
        let kv = kv_head * shape.kv_len();
        transpose(keys_t, stride, Mat::strided(&k[kv..], seen_keys, dim, padded));
        transpose(values_t, stride, Mat::strided(&v[kv..], seen_keys, dim, padded));
        let keys_t = Mat::strided(keys_t, dim, seen_keys, stride);
        let values_t = Mat::strided(values_t, dim, seen_keys, stride);
        for (first, head) in shape.tiles(kv_head) {
            let tile = Tile::new(positions, first, shape.window);
            let (first_key, rows, keys) = (tile.first_key, tile.rows(), tile.keys());
            let from = (head * queries + first) * padded;
            let q_tile = Mat::strided(&q[from..], rows, dim, padded);
            let at = (first * heads + head) * dim;
            let d_out_tile = Mat::strided(&d_out[at..], rows, dim, heads * dim);
            small_matmul(p, stride, q_tile, keys_t.columns(first_key, keys), false);
            small_matmul(ds, stride, d_out_tile, values_t.columns(first_key, keys), false);
            for i in 0..rows {
                let at = at + i * heads * dim;
                let delta = dot(&out[at..at + dim], &d_out[at..at + dim]);
                let log = log_sum[head * queries + first + i];
                let (seen, here) = (tile.seen(i), i * stride..i * stride + keys);
                let (p, ds) = (&mut p[here.clone()], &mut ds[here]);
                softmax_grad(&mut p[seen.clone()], &mut ds[seen.clone()], log, delta);
                tile.hide(seen.clone(), p);
                tile.hide(seen, ds);
            }
            let p = Mat::strided(p, rows, keys, stride);
            let ds = Mat::strided(ds, rows, keys, stride);
            let kv = kv + first_key * padded;
            let k = Mat::new(&k[kv..], keys, padded);
            small_matmul(&mut dq[from..], padded, ds, k, false);
            small_matmul(&mut dk[kv..], padded, ds.t(), Mat::new(&q[from..], rows, padded), true);
            small_matmul(&mut dv[kv..], padded, p.t(), d_out_tile, true);
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
