//! Causal attention, backward: probabilities are recomputed strip by strip from the saved log-sums.

use super::attention::{AttentionShape, BLOCK, Block, load_transposed, score_strip, weighted_sum};
use super::simd::{LANES, exp2_nonpositive, fma, kernel};

kernel! {
    /// Backward of [`attention`](super::attention::attention).
    ///
    /// `q`, `k`, `v`, `positions`, `log_sum` as in the forward; `out` is its output and `d_out` the
    /// gradient of it. Overwrites `dq` `[heads, queries, padded]` (of the unscaled query-key product)
    /// and `dk`, `dv` `[kv_heads, keys, padded]` (`dk` with respect to the scaled query, so the caller
    /// multiplies it by ln 2).
    pub fn attention_grad = attention_grad_body(
        shape: AttentionShape, q: &[f32], k: &[f32], v: &[f32], positions: &[u32], log_sum: &[f32],
        out: &[f32], d_out: &[f32], dq: &mut [f32], dk: &mut [f32], dv: &mut [f32],
        scratch: &mut Vec<[f32; LANES]>,
    )
}

#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "kernels take plain slices and sizes")]
fn attention_grad_body<const FMA: bool>(
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
    scratch: &mut Vec<[f32; LANES]>,
) {
    let AttentionShape { heads, padded, dim, queries, keys, .. } = shape;
    let strip = keys.next_multiple_of(BLOCK);
    scratch.resize(2 * strip + 3 * padded, [0.0; LANES]);
    let (p, rest) = scratch.split_at_mut(strip);
    let (ds, rest) = rest.split_at_mut(strip);
    let (q_t, rest) = rest.split_at_mut(padded);
    let (do_t, dq_t) = rest.split_at_mut(padded);
    let mut do_rows = vec![0.0; LANES * padded];
    dk.fill(0.0);
    dv.fill(0.0);
    for head in 0..heads {
        let kv = shape.kv_head(head) * shape.kv_len();
        let q = &q[head * queries * padded..][..queries * padded];
        let dq = &mut dq[head * queries * padded..][..queries * padded];
        let k = &k[kv..][..shape.kv_len()];
        let v = &v[kv..][..shape.kv_len()];
        let dk = &mut dk[kv..][..shape.kv_len()];
        let dv = &mut dv[kv..][..shape.kv_len()];
        for first in (0..queries).step_by(LANES) {
            let block = Block::new(positions, first);
            let n = block.keys;
            let q_rows = &q[first * padded..][..block.count * padded];
            load_transposed(q_rows, padded, block.count, q_t);
            let mut log = [0.0; LANES];
            let mut delta = [0.0; LANES];
            for lane in 0..block.count {
                let at = (first + lane) * heads * dim + head * dim;
                let (o, d) = (&out[at..at + dim], &d_out[at..at + dim]);
                do_rows[lane * padded..][..dim].copy_from_slice(d);
                delta[lane] = o.iter().zip(d).map(|(o, d)| o * d).sum();
                log[lane] = log_sum[head * queries + first + lane];
            }
            load_transposed(&do_rows, padded, block.count, do_t);
            score_strip::<FMA>(&k[..n * padded], q_t, p);
            score_strip::<FMA>(&v[..n * padded], do_t, ds);
            softmax_grad::<FMA>(&mut p[..n], &mut ds[..n], &block, &log, &delta);
            weighted_sum::<FMA>(&k[..n * padded], &ds[..n], dq_t);
            for lane in 0..block.count {
                let row = &mut dq[(first + lane) * padded..][..padded];
                for (o, column) in row.iter_mut().zip(dq_t.iter()) {
                    *o = column[lane];
                }
            }
            scatter::<FMA>(&p[..n], &do_rows[..block.count * padded], padded, dv);
            scatter::<FMA>(&ds[..n], q_rows, padded, dk);
        }
    }
}

/// In: scores and `d_out · v`. Out: probabilities and gradients of the scores.
#[inline(always)]
fn softmax_grad<const FMA: bool>(
    p: &mut [[f32; LANES]],
    ds: &mut [[f32; LANES]],
    block: &Block,
    log_sum: &[f32; LANES],
    delta: &[f32; LANES],
) {
    for (j, s) in p.iter_mut().enumerate().skip(block.unmasked) {
        #[expect(clippy::needless_range_loop, reason = "lanes of several arrays go together")]
        for l in 0..LANES {
            s[l] = if j as u32 <= block.last_key[l] { s[l] } else { f32::NEG_INFINITY };
        }
    }
    for (p, ds) in p.iter_mut().zip(ds) {
        for l in 0..LANES {
            p[l] = exp2_nonpositive::<FMA>(p[l] - log_sum[l]);
            ds[l] = p[l] * (ds[l] - delta[l]);
        }
    }
}

/// `dst[j] += sum over lanes of weights[j][lane] * rows[lane]`, for as many lanes as there are rows.
#[inline(always)]
fn scatter<const FMA: bool>(
    weights: &[[f32; LANES]],
    rows: &[f32],
    padded: usize,
    dst: &mut [f32],
) {
    for start in (0..padded).step_by(BLOCK) {
        // Rows of the block, one register each; lanes beyond the last query are zero.
        let mut block = [[0.0; BLOCK]; LANES];
        for (b, row) in block.iter_mut().zip(rows.chunks_exact(padded)) {
            b.copy_from_slice(&row[start..start + BLOCK]);
        }
        for (weight, dst) in weights.iter().zip(dst.chunks_exact_mut(padded)) {
            let dst = &mut dst[start..start + BLOCK];
            let mut acc = [[0.0; BLOCK]; 2];
            for lane in 0..LANES {
                let acc = &mut acc[lane % 2];
                for d in 0..BLOCK {
                    acc[d] = fma::<FMA>(weight[lane], block[lane][d], acc[d]);
                }
            }
            for d in 0..BLOCK {
                dst[d] += acc[0][d] + acc[1][d];
            }
        }
    }
}
