//! Rounding activations to bf16 and packing a bf16 weight for the register tiles.

use super::bf16::{Line, Weight};
use super::bf16_avx512::TILE_VECTORS;
use half::bf16;
use std::arch::x86_64::*;
use std::ops::Range;

/// A register of 16 pairs of bf16 numbers.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn pairs(bits: __m512i) -> __m512bh {
    // SAFETY: two names of the same 512 bits; every bit pattern is valid for both.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) }
}

/// The mask of the first `n` of 16 elements (all of them for more).
#[inline]
pub(super) fn first_of_16(n: usize) -> __mmask16 {
    if n >= 16 { !0 } else { (1 << n) - 1 }
}

/// The masks of `V` registers that hold these columns.
#[inline]
pub(super) fn column_masks<const V: usize>(columns: &Range<usize>) -> [__mmask16; V] {
    std::array::from_fn(|v| first_of_16(columns.len().saturating_sub(16 * v)))
}

/// Up to 32 bf16 numbers, zeros behind them.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn load_bf16(values: &[bf16]) -> __m512i {
    let mask = if values.len() >= 32 { !0 } else { (1u32 << values.len()) - 1 };
    // SAFETY: the mask covers at most the slice's elements; masked ones are not read.
    unsafe { _mm512_maskz_loadu_epi16(mask, values.as_ptr().cast()) }
}

/// Rounds a row to bf16, with zeros up to the end of its lines.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn round(row: &[f32], lines: &mut [Line]) {
    for (values, line) in row.chunks(32).zip(lines) {
        let (low, high) = values.split_at(values.len().min(16));
        // SAFETY: the masks cover the elements of `low` and `high`; a line is one register.
        unsafe {
            let low = _mm512_maskz_loadu_ps(first_of_16(low.len()), low.as_ptr());
            let high = _mm512_maskz_loadu_ps(first_of_16(high.len()), high.as_ptr());
            let rounded = _mm512_cvtne2ps_pbh(high, low);
            _mm512_store_si512(
                (&raw mut *line).cast(),
                std::mem::transmute::<__m512bh, __m512i>(rounded),
            );
        }
    }
}

/// Packs the outputs `columns` of the weight for a forward product: pairs of neighbouring inputs.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn pack_transposed(
    panel: &mut [Line],
    w: Weight<'_>,
    columns: &Range<usize>,
    block: &Range<usize>,
) {
    let vectors = columns.len().div_ceil(16);
    for (v, first) in columns.clone().step_by(16).enumerate() {
        let count = (columns.end - first).min(16);
        let chunks = panel.chunks_exact_mut(16 * vectors);
        for (start, lines) in block.clone().step_by(32).zip(chunks) {
            let length = (block.end - start).min(32);
            let mut rows = [_mm512_setzero_si512(); 16];
            for (i, row) in rows[..count].iter_mut().enumerate() {
                *row = load_bf16(&w.values[(first + i) * w.inputs + start..][..length]);
            }
            for (line, row) in lines.chunks_exact_mut(vectors).zip(transpose(rows)) {
                // SAFETY: a line is one register.
                unsafe { _mm512_store_si512((&raw mut line[v]).cast(), row) };
            }
        }
    }
}

/// The transpose of 16 registers of 16 pairs (or of 16 numbers of 32 bits).
#[target_feature(enable = "avx512f")]
pub(super) fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    // Within every quarter register: 4x4 blocks, rows 4g..4g+4 in `quads[4g..]`, where `quads[4g+c]`
    // holds columns c, 4+c, 8+c and 12+c.
    let mut quads = rows;
    for quad in quads.chunks_exact_mut(4) {
        let low01 = _mm512_unpacklo_epi32(quad[0], quad[1]);
        let high01 = _mm512_unpackhi_epi32(quad[0], quad[1]);
        let low23 = _mm512_unpacklo_epi32(quad[2], quad[3]);
        let high23 = _mm512_unpackhi_epi32(quad[2], quad[3]);
        quad[0] = _mm512_unpacklo_epi64(low01, low23);
        quad[1] = _mm512_unpackhi_epi64(low01, low23);
        quad[2] = _mm512_unpacklo_epi64(high01, high23);
        quad[3] = _mm512_unpackhi_epi64(high01, high23);
    }
    // Then the 4x4 matrix of quarter registers of every c.
    let mut columns = quads;
    for c in 0..4 {
        let low01 = _mm512_shuffle_i32x4::<0x44>(quads[c], quads[4 + c]);
        let high01 = _mm512_shuffle_i32x4::<0xEE>(quads[c], quads[4 + c]);
        let low23 = _mm512_shuffle_i32x4::<0x44>(quads[8 + c], quads[12 + c]);
        let high23 = _mm512_shuffle_i32x4::<0xEE>(quads[8 + c], quads[12 + c]);
        columns[c] = _mm512_shuffle_i32x4::<0x88>(low01, low23);
        columns[4 + c] = _mm512_shuffle_i32x4::<0xDD>(low01, low23);
        columns[8 + c] = _mm512_shuffle_i32x4::<0x88>(high01, high23);
        columns[12 + c] = _mm512_shuffle_i32x4::<0xDD>(high01, high23);
    }
    columns
}

/// Packs the inputs `columns` of the weight for a backward product: pairs of neighbouring outputs.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn pack_interleaved(
    panel: &mut [Line],
    w: Weight<'_>,
    columns: &Range<usize>,
    block: &Range<usize>,
) {
    let masks = column_masks::<TILE_VECTORS>(columns);
    let vectors = columns.len().div_ceil(16);
    for (row, lines) in block.clone().step_by(2).zip(panel.chunks_exact_mut(vectors)) {
        let (even, odd) = row_pair(w, columns, row, block.end);
        for (v, line) in lines.iter_mut().enumerate() {
            // SAFETY: a line is one register.
            unsafe {
                _mm512_store_si512((&raw mut *line).cast(), interleave(even, odd, v, masks[v]));
            }
        }
    }
}

/// The columns of a row of the weight and of the next one (empty at the end of the block).
#[inline]
pub(super) fn row_pair<'a>(
    w: Weight<'a>,
    columns: &Range<usize>,
    row: usize,
    end: usize,
) -> (&'a [bf16], &'a [bf16]) {
    let part = |row: usize| &w.values[row * w.inputs..][columns.clone()];
    (part(row), if row + 1 < end { part(row + 1) } else { &[] })
}

/// Pairs of the 16 numbers of two rows from element `16 * v` on; `odd` may be empty, for zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) fn interleave(even: &[bf16], odd: &[bf16], v: usize, mask: __mmask16) -> __m512i {
    let odd_mask = if odd.is_empty() { 0 } else { mask };
    // SAFETY: the mask covers the columns that the rows have from element `16 * v` on (none of an
    // empty row); masked ones are not read.
    unsafe {
        let even = _mm256_maskz_loadu_epi16(mask, even.as_ptr().wrapping_add(16 * v).cast());
        let odd = _mm256_maskz_loadu_epi16(odd_mask, odd.as_ptr().wrapping_add(16 * v).cast());
        _mm512_or_si512(
            _mm512_cvtepu16_epi32(even),
            _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(odd)),
        )
    }
}
