//! Causal attention, backward: probabilities are recomputed tile by tile from the saved log-sums.

use super::Mat;
use super::attention::{AttentionBuffers, AttentionInputs, AttentionShape, TILE, Tile};
use super::buffer::fit;
#[cfg(target_arch = "x86_64")]
use super::factors::Bf16;
use super::factors::{F32, Factor, Factors, row_stride};
use super::pointwise::dot;
use super::simd::{exp2_nonpositive, kernel};

/// Where gradients go; what is not wanted is not computed.
#[derive(Debug)]
pub struct HeadGradients<'a> {
    /// `[heads, queries, padded]`, of the unscaled query-key product.
    pub q: Option<&'a mut [f32]>,
    /// `[kv_heads, keys, padded]`, with respect to the scaled query, so the caller multiplies it by
    /// ln 2.
    pub k: Option<&'a mut [f32]>,
    /// `[kv_heads, keys, padded]`.
    pub v: Option<&'a mut [f32]>,
}

/// Backward of [`attention`](super::attention::attention), whose outputs are `out` and `log_sum`; `d_out`
/// is the gradient of `out`. Overwrites the gradients that are wanted.
pub fn attention_grad(
    inputs: AttentionInputs<'_>,
    log_sum: &[f32],
    out: &[f32],
    d_out: &[f32],
    gradients: &mut HeadGradients<'_>,
    buffers: &mut AttentionBuffers,
) {
    #[cfg(target_arch = "x86_64")]
    if inputs.shape.in_bf16 {
        return backward::<Bf16>(inputs, log_sum, out, d_out, gradients, buffers);
    }
    assert!(!inputs.shape.in_bf16, "attention in bf16 on a CPU without AVX-512 BF16");
    backward::<F32>(inputs, log_sum, out, d_out, gradients, buffers);
}

fn backward<P: Factors>(
    inputs: AttentionInputs<'_>,
    log_sum: &[f32],
    out: &[f32],
    d_out: &[f32],
    gradients: &mut HeadGradients<'_>,
    buffers: &mut AttentionBuffers,
) {
    let AttentionInputs { shape, q, k, v, positions } = inputs;
    let AttentionShape { heads, padded, dim, queries, .. } = shape;
    let HeadGradients { q: dq, k: dk, v: dv } = gradients;
    for of_keys in [&mut *dk, &mut *dv].into_iter().flatten() {
        of_keys.fill(0.0);
    }
    let positions = &positions[..queries];
    let seen_keys = positions.last().map_or(0, |last| *last as usize + 1);
    let stride = row_stride(seen_keys);
    let b = buffers;
    let (p, ds) = (fit(&mut b.scores, TILE * stride), fit(&mut b.d_scores, TILE * stride));
    for kv_head in 0..shape.kv_heads {
        let kv = kv_head * shape.kv_len();
        let head_of = |x, width| shape.seen(x, kv_head, seen_keys, width);
        let keys_t = P::right_transposed(head_of(k, dim), &mut b.keys_t, &mut b.spare);
        let values_t = P::right_transposed(head_of(v, dim), &mut b.values_t, &mut b.spare);
        let key_rows = P::right(head_of(k, padded), &mut b.keys);
        for (first, head) in shape.tiles(kv_head) {
            let tile = Tile::new(positions, first, shape.window);
            let (first_key, rows, keys) = (tile.first_key, tile.rows(), tile.keys());
            let from = (head * queries + first) * padded;
            let q_tile = Mat::strided(&q[from..], rows, dim, padded);
            let at = (first * heads + head) * dim;
            let d_out_tile = Mat::strided(&d_out[at..], rows, dim, heads * dim);
            let q_left = P::left(q_tile, &mut b.queries);
            P::multiply(p, stride, q_left, keys_t.columns_from(first_key, keys), false);
            let d_out_left = P::left(d_out_tile, &mut b.d_out);
            P::multiply(ds, stride, d_out_left, values_t.columns_from(first_key, keys), false);
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
            if let Some(dq) = dq {
                let ds = P::left(ds, &mut b.left);
                let keys = key_rows.rows_from(first_key, keys);
                P::multiply(&mut dq[from..], padded, ds, keys, false);
            }
            if let Some(dk) = dk {
                let ds = P::left_transposed(ds, &mut b.left_transposed);
                let q = P::right(Mat::new(&q[from..], rows, padded), &mut b.query_rows);
                P::multiply(&mut dk[kv..], padded, ds, q, true);
            }
            if let Some(dv) = dv {
                let p = P::left_transposed(p, &mut b.left_transposed);
                let d_out = P::right(d_out_tile, &mut b.d_out_rows);
                P::multiply(&mut dv[kv..], padded, p, d_out, true);
            }
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
