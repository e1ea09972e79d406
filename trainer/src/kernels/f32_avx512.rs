//! f32 numbers in products with a frozen weight, with AVX-512: the tile.

use super::lanes_avx512::first_of_16;
use super::matmul::Mat;
use super::packed::{Line, Weight};
use super::packed_avx512::{Element, Product, prefetch_to_read};
use std::arch::x86_64::*;
use std::ops::Range;

impl Element for f32 {
    const PER_LANE: usize = 1;

    /// All rows go through a panel before the next one: activations come from the third-level cache fast enough, a
    /// panel that is packed again for other rows costs more.
    fn rows_at_once(_depth: usize) -> usize {
        usize::MAX
    }

    #[inline]
    unsafe fn lanes(
        lhs: Mat<'_>,
        rows: Range<usize>,
        block: &Range<usize>,
        _buffer: &mut Vec<Line>,
    ) -> (*const i32, usize) {
        let (first, stride) = lhs.row_major();
        (first.wrapping_add(rows.start * stride + block.start).cast(), stride)
    }

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
        w: Weight<'_, Self>,
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
