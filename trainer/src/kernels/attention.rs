//! Causal attention, forward: 16 queries of one head at a time, no T×T matrix.
//!
//! The 16 queries of a block lie in the lanes of a vector register; keys and values are broadcast.
//! So a softmax needs no sum across lanes, and short heads (8, 16) are as fast as long ones. A block
//! keeps one `[keys, 16]` strip of scores.
//!
//! Queries come scaled by `log2(e) / sqrt(dim)`: scores are in base 2.

use super::simd::{LANES, exp2_nonpositive, fma, kernel};

/// Keys (or dimensions) handled per pass over a strip: accumulators that fit the registers.
pub(super) const BLOCK: usize = 8;

/// Sizes of an attention call.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Head dimension of the head-major inputs, a multiple of 8.
    pub padded: usize,
    /// True head dimension.
    pub dim: usize,
    /// Number of queries.
    pub queries: usize,
    /// Number of keys.
    pub keys: usize,
}

impl AttentionShape {
    /// The key/value head of a query head.
    pub(super) fn kv_head(&self, head: usize) -> usize {
        head / (self.heads / self.kv_heads)
    }

    /// Elements of one head of the keys.
    pub(super) fn kv_len(&self) -> usize {
        self.keys * self.padded
    }
}

kernel! {
    /// Causal attention.
    ///
    /// `q` `[heads, queries, padded]`, `k` and `v` `[kv_heads, keys, padded]`; query `i` sees keys
    /// `0..=positions[i]`, positions ascending. `out` `[queries, heads * dim]`; `log_sum` gets the
    /// base-2 log of each softmax's denominator `[heads, queries]`. `scratch` is reused between calls.
    pub fn attention = attention_body(
        shape: AttentionShape, q: &[f32], k: &[f32], v: &[f32], positions: &[u32],
        out: &mut [f32], log_sum: &mut [f32], scratch: &mut Vec<[f32; LANES]>,
    )
}

#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "the kernel reads and writes this many buffers")]
fn attention_body<const FMA: bool>(
    shape: AttentionShape,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    positions: &[u32],
    out: &mut [f32],
    log_sum: &mut [f32],
    scratch: &mut Vec<[f32; LANES]>,
) {
    let AttentionShape { heads, padded, dim, queries, keys, .. } = shape;
    let strip = keys.next_multiple_of(BLOCK);
    scratch.resize(strip + 2 * padded, [0.0; LANES]);
    let (scores, rest) = scratch.split_at_mut(strip);
    let (q_t, o_t) = rest.split_at_mut(padded);
    for head in 0..heads {
        let q = &q[head * queries * padded..][..queries * padded];
        let k = &k[shape.kv_head(head) * shape.kv_len()..][..shape.kv_len()];
        let v = &v[shape.kv_head(head) * shape.kv_len()..][..shape.kv_len()];
        for first in (0..queries).step_by(LANES) {
            let block = Block::new(positions, first);
            load_transposed(&q[first * padded..], padded, block.count, q_t);
            score_strip::<FMA>(&k[..block.keys * padded], q_t, scores);
            let log = softmax_strip::<FMA>(&mut scores[..block.keys], &block);
            weighted_sum::<FMA>(&v[..block.keys * padded], &scores[..block.keys], o_t);
            for (lane, log) in log.iter().enumerate().take(block.count) {
                let row = &mut out[(first + lane) * heads * dim + head * dim..][..dim];
                for (o, column) in row.iter_mut().zip(o_t.iter()) {
                    *o = column[lane];
                }
                log_sum[head * queries + first + lane] = *log;
            }
        }
    }
}

/// Up to 16 consecutive queries.
pub(super) struct Block {
    /// Queries in the block; further lanes repeat the last query and are dropped.
    pub count: usize,
    /// Position of each lane.
    pub last_key: [u32; LANES],
    /// Keys all lanes see: no mask is needed below.
    pub unmasked: usize,
    /// Keys any lane sees.
    pub keys: usize,
}

impl Block {
    #[inline(always)]
    pub fn new(positions: &[u32], first: usize) -> Self {
        let count = LANES.min(positions.len() - first);
        let last_key = std::array::from_fn(|lane| positions[first + lane.min(count - 1)]);
        Self {
            count,
            last_key,
            unmasked: last_key[0] as usize + 1,
            keys: last_key[LANES - 1] as usize + 1,
        }
    }
}

/// `dst[d][lane] = src[lane][d]` for up to 16 rows of `padded` elements; other lanes are 0.
#[inline(always)]
pub(super) fn load_transposed(src: &[f32], padded: usize, count: usize, dst: &mut [[f32; LANES]]) {
    for (d, column) in dst.iter_mut().enumerate().take(padded) {
        for (lane, c) in column.iter_mut().enumerate() {
            *c = if lane < count { src[lane * padded + d] } else { 0.0 };
        }
    }
}

/// `out[j][lane] = dot(rows[j], columns[..][lane])` for every row of `rows`.
#[inline(always)]
pub(super) fn score_strip<const FMA: bool>(
    rows: &[f32],
    columns: &[[f32; LANES]],
    out: &mut [[f32; LANES]],
) {
    let padded = columns.len();
    let mut chunks = rows.chunks_exact(BLOCK * padded);
    let mut out = out.chunks_exact_mut(BLOCK);
    for (rows, out) in (&mut chunks).zip(&mut out) {
        let mut acc = [[0.0; LANES]; BLOCK];
        for (d, column) in columns.iter().enumerate() {
            for (j, acc) in acc.iter_mut().enumerate() {
                let x = rows[j * padded + d];
                for l in 0..LANES {
                    acc[l] = fma::<FMA>(x, column[l], acc[l]);
                }
            }
        }
        out.copy_from_slice(&acc);
    }
    let rest = chunks.remainder();
    if let Some(out) = out.next() {
        for (row, out) in rest.chunks_exact(padded).zip(out) {
            let mut acc = [0.0; LANES];
            for (x, column) in row.iter().zip(columns) {
                for l in 0..LANES {
                    acc[l] = fma::<FMA>(*x, column[l], acc[l]);
                }
            }
            *out = acc;
        }
    }
}

/// Turns scores into probabilities in place; returns each lane's base-2 log of the denominator.
#[inline(always)]
fn softmax_strip<const FMA: bool>(scores: &mut [[f32; LANES]], block: &Block) -> [f32; LANES] {
    for (j, s) in scores.iter_mut().enumerate().skip(block.unmasked) {
        #[expect(clippy::needless_range_loop, reason = "lanes of several arrays go together")]
        for l in 0..LANES {
            s[l] = if j as u32 <= block.last_key[l] { s[l] } else { f32::NEG_INFINITY };
        }
    }
    let mut max = [f32::NEG_INFINITY; LANES];
    for s in scores.iter() {
        for l in 0..LANES {
            max[l] = if s[l] > max[l] { s[l] } else { max[l] };
        }
    }
    let mut sum = [0.0; LANES];
    for s in scores.iter_mut() {
        for l in 0..LANES {
            s[l] = exp2_nonpositive::<FMA>(s[l] - max[l]);
            sum[l] += s[l];
        }
    }
    for s in scores.iter_mut() {
        for l in 0..LANES {
            s[l] /= sum[l];
        }
    }
    std::array::from_fn(|l| max[l] + sum[l].log2())
}

/// `out[d][lane] = sum over j of weights[j][lane] * rows[j][d]`.
#[inline(always)]
pub(super) fn weighted_sum<const FMA: bool>(
    rows: &[f32],
    weights: &[[f32; LANES]],
    out: &mut [[f32; LANES]],
) {
    let padded = out.len();
    for (block, out) in out.chunks_exact_mut(BLOCK).enumerate() {
        let mut acc = [[0.0; LANES]; BLOCK];
        for (row, weight) in rows.chunks_exact(padded).zip(weights) {
            let row: &[f32] = &row[block * BLOCK..][..BLOCK];
            for (x, acc) in row.iter().zip(&mut acc) {
                for l in 0..LANES {
                    acc[l] = fma::<FMA>(*x, weight[l], acc[l]);
                }
            }
        }
        out.copy_from_slice(&acc);
    }
}
