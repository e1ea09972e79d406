//! The AVX-512 side of `frozen_f32`: the tile of f32 numbers.

use super::frozen_f32::Weight;
use super::matmul::Mat;
use super::packed::{Direction, Line, Packing};
use super::packed_avx512::{Element, Product, depth_blocks, prefetch_to_read};
use super::packing_avx512::first_of_16;
use std::arch::x86_64::*;
use std::ops::Range;

/// `dst = lhs w^T` or `dst = lhs w`, by `direction`; `+=` with `accumulate`.
///
/// All rows go through a panel before the next one: activations come from the third-level cache fast
/// enough, a panel that is packed again for other rows costs more.
///
/// # Safety
/// `dst` must hold `lhs`'s rows, `dst_stride` apart, of as many columns as the product has.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn multiply(
    dst: &mut [f32],
    dst_stride: usize,
    lhs: Mat<'_>,
    w: Weight<'_>,
    direction: Direction,
    accumulate: bool,
    packing: &mut Packing,
) {
    let (columns, depth) = w.sizes(direction);
    if lhs.rows() == 0 || columns == 0 {
        return;
    }
    let (first, stride) = lhs.row_major();
    for block in depth_blocks(depth) {
        let product = Product {
            rows: lhs.rows(),
            lhs: first.wrapping_add(block.start).cast(),
            stride,
            w,
            block: block.clone(),
            dst: dst.as_mut_ptr(),
            dst_stride,
            add: accumulate || block.start > 0,
        };
        // SAFETY: the caller's promise; `lhs` has the rows and columns that it says.
        unsafe { product.packed(direction, &mut packing.panel) };
    }
}

impl Element for f32 {
    const PER_LANE: usize = 1;

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(values: &[Self]) -> __m512i {
        // SAFETY: the mask covers at most the slice's elements; masked ones are not read.
        unsafe { _mm512_maskz_loadu_epi32(first_of_16(values.len()), values.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn pack_row(
        lines: &mut [Line],
        w: Weight<'_>,
        columns: &Range<usize>,
        row: usize,
        _end: usize,
    ) {
        let values = &w.values[row * w.inputs..][columns.clone()];
        for (values, line) in values.chunks(16).zip(lines) {
            // SAFETY: a line is one register.
            unsafe { _mm512_store_si512((&raw mut *line).cast(), Self::load(values)) };
        }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn tile<const R: usize, const V: usize>(
        product: &Product<'_, Self>,
        first: usize,
        columns: &Range<usize>,
        panel: &[Line],
    ) {
        product.prefetch::<R, V>(first, columns);
        let lhs = product.lhs.cast::<f32>().wrapping_add(first * product.stride);
        let mut sums = [[_mm512_setzero_ps(); V]; R];
        for line in (0..product.block.len()).step_by(16) {
            // The next tile's rows are on their way while this one's are multiplied.
            for r in R..2 * R {
                prefetch_to_read(lhs.wrapping_add(r * product.stride + line));
            }
            for l in line..(line + 16).min(product.block.len()) {
                // SAFETY: the panel has `V` lines for this number, each of the rows has it too.
                unsafe {
                    let panel = panel.as_ptr().add(l * V);
                    let weights: [__m512; V] =
                        std::array::from_fn(|v| _mm512_load_ps(panel.add(v).cast()));
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let x = _mm512_set1_ps(lhs.add(r * product.stride + l).read());
                        for (sum, w) in sums.iter_mut().zip(weights) {
                            *sum = _mm512_fmadd_ps(x, w, *sum);
                        }
                    }
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe { product.store(first, columns, sums) };
    }
}
