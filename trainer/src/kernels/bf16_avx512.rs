//! bf16 numbers in products with a frozen weight, with AVX-512 BF16: the tile of pairs, and products of few rows.

use super::lanes_avx512::{column_masks, pairs, round_32};
use super::matmul::Mat;
use super::packed::{Direction, FEW_ROWS, Line, Weight, grown};
use super::packed_avx512::{Element, Product, TILE_VECTORS, sized};
use half::bf16;
use std::arch::x86_64::*;
use std::ops::Range;

/// Lines of rounded activations to multiply with the whole weight before the next rows: 512 KiB,
/// which stay in a second-level cache beside the panel.
const ROUNDED_LINES: usize = 8192;
/// But at least so many rows: packing a number of the weight costs as much as multiplying it with
/// about 4 rows.
const MIN_ROWS: usize = 512;

/// Lines from one rounded row of this many numbers to the next. An odd number: rows a power of two apart would share few
/// cache sets.
fn stride(depth: usize) -> usize {
    depth.div_ceil(32) | 1
}

impl Element for bf16 {
    const PER_LANE: usize = 2;

    fn rows_at_once(depth: usize) -> usize {
        MIN_ROWS.max(ROUNDED_LINES / stride(depth))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn lanes(
        lhs: Mat<'_>,
        rows: Range<usize>,
        block: &Range<usize>,
        buffer: &mut Vec<Line>,
    ) -> (*const i32, usize) {
        let stride = stride(block.len());
        let rounded = grown(buffer, rows.len() * stride);
        for (i, lines) in rows.zip(rounded.chunks_exact_mut(stride)) {
            for (values, line) in lhs.row(i)[block.clone()].chunks(32).zip(lines) {
                // SAFETY: a line is one register.
                unsafe { _mm512_store_si512((&raw mut *line).cast(), round_32(values)) };
            }
        }
        (rounded.as_ptr().cast(), 16 * stride)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn multiply_in_place(product: &Product<'_, Self>, direction: Direction) -> bool {
        if product.all_rows > FEW_ROWS {
            return false;
        }
        // SAFETY: the caller's promise.
        unsafe {
            match direction {
                Direction::ToOutputs => product.few_to_outputs(),
                Direction::ToInputs => product.few_to_inputs(),
            }
        }
        true
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn load(values: &[Self]) -> __m512i {
        let mask = if values.len() >= 32 { !0 } else { (1u32 << values.len()) - 1 };
        // SAFETY: the mask covers at most the slice's elements; masked ones are not read.
        unsafe { _mm512_maskz_loadu_epi16(mask, values.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn pack_row(
        lines: &mut [Line],
        w: Weight<'_, Self>,
        columns: &Range<usize>,
        row: usize,
        end: usize,
    ) {
        let masks = column_masks::<TILE_VECTORS>(columns);
        let (even, odd) = row_pair(w, columns, row, end);
        for (v, line) in lines.iter_mut().enumerate() {
            // SAFETY: a line is one register.
            unsafe {
                _mm512_store_si512((&raw mut *line).cast(), interleave(even, odd, v, masks[v]));
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn tile<const R: usize, const V: usize>(
        product: &Product<'_, bf16>,
        first: usize,
        columns: &Range<usize>,
        panel: &[Line],
    ) {
        product.prefetch::<R, V>(first, columns);
        let lhs = product.lhs.wrapping_add(first * product.stride);
        let mut sums = [[_mm512_setzero_ps(); V]; R];
        for pair in 0..product.block.len().div_ceil(2) {
            // SAFETY: the panel has `V` lines for this pair, each of the rows has it too.
            unsafe {
                let panel = panel.as_ptr().add(pair * V);
                let weights: [__m512bh; V] =
                    std::array::from_fn(|v| pairs(_mm512_load_si512(panel.add(v).cast())));
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = lhs.add(r * product.stride + pair).read();
                    let x = pairs(_mm512_set1_epi32(x));
                    for (sum, w) in sums.iter_mut().zip(weights) {
                        *sum = _mm512_dpbf16_ps(*sum, x, w);
                    }
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe { product.store(first, columns, sums) };
    }
}

impl Product<'_, bf16> {
    /// At most `FEW_ROWS` rows times the weight, which is interleaved on the way: its rows are read
    /// once, 64 columns at a time. Sums in the order of `packed`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn few_to_inputs(&self) {
        for first in (0..self.w.inputs).step_by(64) {
            let columns = first..(first + 64).min(self.w.inputs);
            let vectors = columns.len().div_ceil(16);
            // SAFETY: the rows and columns are the product's.
            unsafe {
                sized!(self.rows, vectors, Self::tile_in_place(self, &columns), [1 2 3 4], [1 2 3 4])
            };
        }
    }

    /// All `R` rows times `V` registers of columns of the weight as it lies.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn tile_in_place<const R: usize, const V: usize>(&self, columns: &Range<usize>) {
        let mut sums = [[_mm512_setzero_ps(); V]; R];
        let masks = column_masks::<V>(columns);
        for (pair, row) in self.block.clone().step_by(2).enumerate() {
            let (even, odd) = row_pair(self.w, columns, row, self.block.end);
            for v in 0..V {
                let weights = pairs(interleave(even, odd, v, masks[v]));
                for (r, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: the rounded row has this pair.
                    let x = unsafe { self.lhs.add(r * self.stride + pair).read() };
                    sums[v] = _mm512_dpbf16_ps(sums[v], pairs(_mm512_set1_epi32(x)), weights);
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.store(0, columns, sums) };
    }

    /// At most `FEW_ROWS` rows times the transposed weight: dot products with its rows, four at a
    /// time.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn few_to_outputs(&self) {
        let whole = self.w.outputs / 4 * 4;
        for output in (0..whole).step_by(4) {
            // SAFETY: the rows and these four outputs are the product's.
            unsafe { sized!(self.rows, 4, Self::dots(self, output), [1 2 3 4], [4]) };
        }
        for output in whole..self.w.outputs {
            // SAFETY: as above, one output.
            unsafe { sized!(self.rows, 1, Self::dots(self, output), [1 2 3 4], [1]) };
        }
    }

    /// The dot products of all `R` rows with `N` rows of the weight.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn dots<const R: usize, const N: usize>(&self, output: usize) {
        let mut sums = [[_mm512_setzero_ps(); N]; R];
        for (line, start) in self.block.clone().step_by(32).enumerate() {
            let length = (self.block.end - start).min(32);
            let weights: [__m512bh; N] = std::array::from_fn(|n| {
                let values = &self.w.values[(output + n) * self.w.inputs + start..][..length];
                // SAFETY: the instructions are those of this function.
                pairs(unsafe { bf16::load(values) })
            });
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: every line is one register.
                let x =
                    unsafe { _mm512_load_si512(self.lhs.add(r * self.stride + 16 * line).cast()) };
                for (sum, w) in sums.iter_mut().zip(weights) {
                    *sum = _mm512_dpbf16_ps(*sum, pairs(x), w);
                }
            }
        }
        for (r, sums) in sums.into_iter().enumerate() {
            for (n, sum) in sums.into_iter().enumerate() {
                let sum = _mm512_reduce_add_ps(sum);
                // SAFETY: by the caller's promise `dst` has this row and column.
                unsafe {
                    let dst = self.dst.add(r * self.dst_stride + output + n);
                    *dst = if self.add { *dst + sum } else { sum };
                }
            }
        }
    }
}

/// The columns of a row of the weight and of the next one (empty at the end of the block).
#[inline]
pub(super) fn row_pair<'a>(
    w: Weight<'a, bf16>,
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
