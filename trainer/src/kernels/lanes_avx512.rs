//! What the AVX-512 kernels do with the 16 lanes of a register: masks, transposes, and rounding to pairs of bf16
//! numbers (AVX-512 BF16).

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

/// A register of 16 pairs of bf16 numbers.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn pairs(bits: __m512i) -> __m512bh {
    // SAFETY: two names of the same 512 bits; every bit pattern is valid for both.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) }
}

/// Up to 32 numbers rounded to bf16, zeros behind them.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn round_32(values: &[f32]) -> __m512i {
    let (low, high) = values.split_at(values.len().min(16));
    // SAFETY: the masks cover the elements of `low` and `high`; others are not read.
    unsafe {
        let low = _mm512_maskz_loadu_ps(first_of_16(low.len()), low.as_ptr());
        let high = _mm512_maskz_loadu_ps(first_of_16(high.len()), high.as_ptr());
        rounded(high, low)
    }
}

/// Rounds a row: lane `i` of `dst` gets elements `2i` and `2i + 1`, zero behind the last one.
///
/// # Safety
/// The CPU must have AVX-512 F and BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn round(row: &[f32], dst: &mut [f32]) {
    assert_eq!(dst.len(), row.len().div_ceil(2), "lanes of a row of {}", row.len());
    for (values, lanes) in row.chunks(32).zip(dst.chunks_mut(16)) {
        // SAFETY: `dst` has a lane for every two elements.
        unsafe { store(lanes, round_32(values)) };
    }
}

/// Rounds two rows: lane `i` of `dst` gets element `i` of `even` and of `odd`, which may be empty, for
/// zeros.
///
/// # Safety
/// The CPU must have AVX-512 F, BW and BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn interleave(even: &[f32], odd: &[f32], dst: &mut [f32]) {
    assert!(even.len() == dst.len() && (odd.is_empty() || odd.len() == dst.len()), "lengths");
    // Of 32 numbers, the first half of the even row: alternately one of each half.
    let order = std::array::from_fn::<u16, 32, _>(|i| (i / 2 + 16 * (i % 2)) as u16);
    // SAFETY: as many bytes as the register has.
    let order = unsafe { _mm512_loadu_si512(order.as_ptr().cast()) };
    for (block, lanes) in dst.chunks_mut(16).enumerate() {
        let mask = first_of_16(lanes.len());
        let odd_mask = if odd.is_empty() { 0 } else { mask };
        // SAFETY: the masks cover the elements of the slices; others are not touched.
        unsafe {
            let at = 16 * block;
            let even = _mm512_maskz_loadu_ps(mask, even.as_ptr().wrapping_add(at));
            let odd = _mm512_maskz_loadu_ps(odd_mask, odd.as_ptr().wrapping_add(at));
            store(lanes, _mm512_permutexvar_epi16(order, rounded(odd, even)));
        }
    }
}

/// 32 numbers rounded to bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn rounded(high: __m512, low: __m512) -> __m512i {
    // SAFETY: two names of the same 512 bits; every bit pattern is valid for both.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
}

/// Writes the first of 16 lanes.
///
/// # Safety
/// `lanes` must be no more than 16.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store(lanes: &mut [f32], values: __m512i) {
    // SAFETY: the mask covers the lanes there are.
    unsafe {
        _mm512_mask_storeu_epi32(lanes.as_mut_ptr().cast(), first_of_16(lanes.len()), values);
    }
}
