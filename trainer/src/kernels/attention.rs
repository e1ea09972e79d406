//! Causal attention, forward: a tile of queries of one head at a time, no T×T matrix.
//!
//! The scores of a tile against every key it sees are one matrix product, its output another; only the
//! softmax between them is a kernel of its own. Keys that no query of the tile sees are in no product.
//!
//! The products are of f32 numbers, or of numbers rounded to bf16; sums, softmax and what comes in and
//! goes out are f32.
//!
//! Queries come scaled by `log2(e) / sqrt(dim)`: scores are in base 2.

use std::ops::Range;

use super::Mat;
use super::buffer::{Buffer, fit};
#[cfg(target_arch = "x86_64")]
use super::factors::Bf16;
use super::factors::{F32, Factor, Factors, row_stride};
use super::pointwise::sum_lanes;
use super::simd::{LANES, exp2_nonpositive, kernel};

/// Queries per tile: enough rows to fill the matrix product's registers, few enough that little is
/// computed above the diagonal and that two tiles of scores stay in the second-level cache.
pub(super) const TILE: usize = 24;

/// Sizes of an attention call, and how it multiplies.
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
    /// How many latest keys a query sees, its own position included; all of them if `None`.
    pub window: Option<usize>,
    /// Whether factors are rounded to bf16, which needs a CPU that multiplies such
    /// ([`bf16::available`](super::bf16::available)).
    pub in_bf16: bool,
}

/// Reusable memory of the attention kernels.
#[derive(Debug, Default)]
pub struct AttentionBuffers {
    pub(super) keys_t: Buffer,
    pub(super) keys: Buffer,
    pub(super) values_t: Buffer,
    pub(super) values: Buffer,
    pub(super) queries: Buffer,
    pub(super) query_rows: Buffer,
    pub(super) d_out: Buffer,
    pub(super) d_out_rows: Buffer,
    pub(super) scores: Buffer,
    pub(super) d_scores: Buffer,
    /// Probabilities, or gradients of scores, as factors.
    pub(super) left: Buffer,
    /// Likewise, transposed.
    pub(super) left_transposed: Buffer,
    pub(super) spare: Buffer,
}

impl AttentionShape {
    /// The first query and the head of every tile that reads a key/value head.
    pub(super) fn tiles(&self, kv_head: usize) -> impl Iterator<Item = (usize, usize)> {
        let group = self.heads / self.kv_heads;
        let heads = kv_head * group..(kv_head + 1) * group;
        let first = (0..self.queries).step_by(TILE);
        first.flat_map(move |first| heads.clone().map(move |head| (first, head)))
    }

    /// Elements of one head of the keys.
    pub(super) fn kv_len(&self) -> usize {
        self.keys * self.padded
    }

    /// The first keys (or values) of a head, of which the first `width` numbers each.
    pub(super) fn seen<'a>(
        &self,
        x: &'a [f32],
        kv_head: usize,
        keys: usize,
        width: usize,
    ) -> Mat<'a> {
        Mat::strided(&x[kv_head * self.kv_len()..], keys, width, self.padded)
    }
}

/// What attention reads.
#[derive(Clone, Copy, Debug)]
pub struct AttentionInputs<'a> {
    /// Sizes.
    pub shape: AttentionShape,
    /// Scaled queries `[heads, queries, padded]`.
    pub q: &'a [f32],
    /// `[kv_heads, keys, padded]`.
    pub k: &'a [f32],
    /// `[kv_heads, keys, padded]`.
    pub v: &'a [f32],
    /// Of each query, ascending: query `i` sees keys up to `positions[i]` (the last `window` of them).
    pub positions: &'a [u32],
}

/// Causal attention. `out` `[queries, heads * dim]`; `log_sum` gets the base-2 log of each softmax's
/// denominator `[heads, queries]`.
pub fn attention(
    inputs: AttentionInputs<'_>,
    out: &mut [f32],
    log_sum: &mut [f32],
    buffers: &mut AttentionBuffers,
) {
    #[cfg(target_arch = "x86_64")]
    if inputs.shape.in_bf16 {
        return forward::<Bf16>(inputs, out, log_sum, buffers);
    }
    assert!(!inputs.shape.in_bf16, "attention in bf16 on a CPU without AVX-512 BF16");
    forward::<F32>(inputs, out, log_sum, buffers);
}

fn forward<P: Factors>(
    inputs: AttentionInputs<'_>,
    out: &mut [f32],
    log_sum: &mut [f32],
    buffers: &mut AttentionBuffers,
) {
    let AttentionInputs { shape, q, k, v, positions } = inputs;
    let AttentionShape { heads, padded, dim, queries, .. } = shape;
    let positions = &positions[..queries];
    let seen_keys = positions.last().map_or(0, |last| *last as usize + 1);
    let stride = row_stride(seen_keys);
    let AttentionBuffers { keys_t, values, queries: q_buffer, scores, left, spare, .. } = buffers;
    let scores = fit(scores, TILE * stride);
    for kv_head in 0..shape.kv_heads {
        let head_of = |x, width| shape.seen(x, kv_head, seen_keys, width);
        let keys_t = P::right_transposed(head_of(k, dim), keys_t, spare);
        let values = P::right(head_of(v, dim), values);
        for (first, head) in shape.tiles(kv_head) {
            let tile = Tile::new(positions, first, shape.window);
            let (rows, keys) = (tile.rows(), tile.keys());
            let q = Mat::strided(&q[(head * queries + first) * padded..], rows, dim, padded);
            let q = P::left(q, q_buffer);
            P::multiply(scores, stride, q, keys_t.columns_from(tile.first_key, keys), false);
            let log_sum = &mut log_sum[head * queries + first..][..rows];
            for (i, (scores, log)) in scores.chunks_exact_mut(stride).zip(log_sum).enumerate() {
                let seen = tile.seen(i);
                *log = softmax_base_2(&mut scores[seen.clone()]);
                tile.hide(seen, &mut scores[..keys]);
            }
            let p = P::left(Mat::strided(scores, rows, keys, stride), left);
            let out = &mut out[(first * heads + head) * dim..];
            P::multiply(out, heads * dim, p, values.rows_from(tile.first_key, keys), false);
        }
    }
}

/// Up to [`TILE`] consecutive queries, and the keys that any of them sees.
pub(super) struct Tile<'a> {
    /// Position of each query: the last key it sees.
    last_keys: &'a [u32],
    window: usize,
    /// The first key that any of the queries sees, or the one before: an even number, so that pairs of
    /// keys stay together.
    pub first_key: usize,
}

impl<'a> Tile<'a> {
    pub fn new(positions: &'a [u32], first: usize, window: Option<usize>) -> Self {
        let last_keys = &positions[first..positions.len().min(first + TILE)];
        let window = window.unwrap_or(usize::MAX);
        let first_key =
            last_keys.first().map_or(0, |last| (*last as usize + 1).saturating_sub(window)) & !1;
        Self { last_keys, window, first_key }
    }

    /// Queries.
    pub fn rows(&self) -> usize {
        self.last_keys.len()
    }

    /// Keys, from `first_key` on.
    pub fn keys(&self) -> usize {
        self.last_keys.last().map_or(0, |last| *last as usize + 1 - self.first_key)
    }

    /// The keys that a query sees, counted from `first_key`.
    pub fn seen(&self, row: usize) -> Range<usize> {
        let end = self.last_keys[row] as usize + 1;
        end.saturating_sub(self.window) - self.first_key..end - self.first_key
    }

    /// Zeroes what a query does not see.
    pub fn hide(&self, seen: Range<usize>, row: &mut [f32]) {
        row[..seen.start].fill(0.0);
        row[seen.end..].fill(0.0);
    }
}

kernel! {
    /// Turns base-2 scores into probabilities in place; returns the base-2 log of the denominator.
    pub fn softmax_base_2 = softmax_base_2_body(scores: &mut [f32]) -> f32
}

#[inline(always)]
fn softmax_base_2_body<const FMA: bool>(scores: &mut [f32]) -> f32 {
    let mut largest = [f32::NEG_INFINITY; LANES];
    let (blocks, rest) = scores.as_chunks::<LANES>();
    for block in blocks {
        for l in 0..LANES {
            largest[l] = if block[l] > largest[l] { block[l] } else { largest[l] };
        }
    }
    for (l, score) in rest.iter().enumerate() {
        largest[l] = if *score > largest[l] { *score } else { largest[l] };
    }
    let max = largest.iter().fold(f32::NEG_INFINITY, |max, x| if *x > max { *x } else { max });
    let mut sums = [0.0; LANES];
    let (blocks, rest) = scores.as_chunks_mut::<LANES>();
    for block in blocks {
        for l in 0..LANES {
            block[l] = exp2_nonpositive::<FMA>(block[l] - max);
            sums[l] += block[l];
        }
    }
    for (score, sum) in rest.iter_mut().zip(&mut sums) {
        *score = exp2_nonpositive::<FMA>(*score - max);
        *sum += *score;
    }
    let sum = sum_lanes(&sums);
    let inverse = 1.0 / sum;
    for score in scores {
        *score *= inverse;
    }
    max + sum.log2()
}
