//! Rows of f32 numbers as lanes of two bf16 numbers, on CPUs with AVX-512 BF16.

use super::packing_avx512::first_of_16;
use std::arch::x86_64::*;

/// Rounds a row: lane `i` of `dst` gets elements `2i` and `2i + 1`, zero behind the last one.
///
/// # Safety
/// The CPU must have AVX-512 F and BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn round(row: &[f32], dst: &mut [f32]) {
    assert_eq!(dst.len(), row.len().div_ceil(2), "lanes of a row of {}", row.len());
    for (values, lanes) in row.chunks(32).zip(dst.chunks_mut(16)) {
        let (low, high) = values.split_at(values.len().min(16));
        // SAFETY: the masks cover the elements of the slices; others are not touched.
        unsafe {
            let low = _mm512_maskz_loadu_ps(first_of_16(low.len()), low.as_ptr());
            let high = _mm512_maskz_loadu_ps(first_of_16(high.len()), high.as_ptr());
            store(lanes, rounded(high, low));
        }
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
