//! Packing a frozen weight for the register tiles.

use super::packed::{Line, Weight};
use super::packed_avx512::Element;
use std::arch::x86_64::*;
use std::ops::Range;

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

/// Packs the outputs `columns` of the weight for a forward product: every lane holds
/// neighbouring inputs.
///
/// # Safety
/// The CPU must have what `E`'s methods need.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn pack_transposed<E: Element>(
    panel: &mut [Line],
    w: Weight<'_, E>,
    columns: &Range<usize>,
    block: &Range<usize>,
) {
    let vectors = columns.len().div_ceil(16);
    for (v, first) in columns.clone().step_by(16).enumerate() {
        let count = (columns.end - first).min(16);
        let chunks = panel.chunks_exact_mut(16 * vectors);
        for (start, lines) in block.clone().step_by(16 * E::PER_LANE).zip(chunks) {
            let length = (block.end - start).min(16 * E::PER_LANE);
            let mut rows = [_mm512_setzero_si512(); 16];
            for (i, row) in rows[..count].iter_mut().enumerate() {
                let values = &w.values[(first + i) * w.inputs + start..][..length];
                // SAFETY: the caller's promise.
                *row = unsafe { E::load(values) };
            }
            for (line, row) in lines.chunks_exact_mut(vectors).zip(transpose(rows)) {
                // SAFETY: a line is one register.
                unsafe { _mm512_store_si512((&raw mut line[v]).cast(), row) };
            }
        }
    }
}

/// The transpose of 16 registers of 16 lanes.
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

/// Packs the inputs `columns` of the weight for a backward product: every lane holds neighbouring
/// outputs.
///
/// # Safety
/// The CPU must have what `E`'s methods need.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn pack_rows<E: Element>(
    panel: &mut [Line],
    w: Weight<'_, E>,
    columns: &Range<usize>,
    block: &Range<usize>,
) {
    let vectors = columns.len().div_ceil(16);
    for (row, lines) in block.clone().step_by(E::PER_LANE).zip(panel.chunks_exact_mut(vectors)) {
        // SAFETY: the caller's promise.
        unsafe { E::pack_row(lines, w, columns, row, block.end) };
    }
}
