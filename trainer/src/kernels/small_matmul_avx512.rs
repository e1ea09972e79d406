//! The AVX-512 side of `small_matmul`: register tiles of 6 rows and 4 registers of columns.
//!
//! A tile keeps its 24 sums in registers; each step of the reduction loads 4 registers of the
//! right-hand side and broadcasts 6 numbers of the left-hand side, 10 loads for 24 multiplications,
//! which the load ports can keep up with.

use super::Mat;
use super::lanes_avx512::{column_masks, first_of_16, pairs, transpose as transpose_registers};
use super::packed_avx512::sized;
use std::arch::x86_64::*;
use std::ops::Range;

/// Rows of a register tile.
const TILE_ROWS: usize = 6;
/// Columns of a register tile.
const TILE_COLUMNS: usize = 64;
/// The longest reduction that is summed in registers: as many rows of 64 columns of the right-hand
/// side take 16 KiB, half of a first-level cache, and are read once for every tile of rows.
const DEPTH: usize = 64;

/// What the 4 bytes of a lane are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// An f32.
    F32,
    /// Two neighbouring numbers of the reduction, in bf16. Needs AVX-512 BF16.
    Bf16Pair,
}

/// See `small_matmul`.
///
/// # Safety
/// `lhs` must have as many columns as `rhs` rows, `rhs` be row-major, and `dst` hold `lhs`'s rows,
/// `dst_stride` apart, of `rhs`'s columns. The CPU must multiply such lanes.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn multiply(
    lane: Lane,
    dst: &mut [f32],
    dst_stride: usize,
    lhs: Mat<'_>,
    rhs: Mat<'_>,
    accumulate: bool,
) {
    for first in (0..rhs.cols()).step_by(TILE_COLUMNS) {
        let columns = first..(first + TILE_COLUMNS).min(rhs.cols());
        let vectors = columns.len().div_ceil(16);
        // At least one block, so that an empty reduction gives zeros.
        for start in (0..lhs.cols().max(1)).step_by(DEPTH) {
            let product = Product {
                lhs,
                rhs,
                block: start..(start + DEPTH).min(lhs.cols()),
                dst: dst.as_mut_ptr(),
                dst_stride,
                add: accumulate || start > 0,
            };
            for first in (0..lhs.rows()).step_by(TILE_ROWS) {
                let rows = (lhs.rows() - first).min(TILE_ROWS);
                // SAFETY: the rows, the columns and the block are the operands'; the rest is the
                // caller's promise.
                unsafe {
                    match lane {
                        Lane::F32 => sized!(
                            rows, vectors, Product::tile_f32(&product, first, &columns),
                            [1 2 3 4 5 6], [1 2 3 4]
                        ),
                        Lane::Bf16Pair => sized!(
                            rows, vectors, Product::tile_bf16(&product, first, &columns),
                            [1 2 3 4 5 6], [1 2 3 4]
                        ),
                    }
                }
            }
        }
    }
}

/// A product over one block of the reduction.
struct Product<'a> {
    lhs: Mat<'a>,
    rhs: Mat<'a>,
    block: Range<usize>,
    dst: *mut f32,
    dst_stride: usize,
    add: bool,
}

/// Defines the tile of one kind of lanes: `$R` rows from `first` on, `V` registers of columns (the last
/// one perhaps in part).
///
/// # Safety
/// The operands must have these rows and columns, the destination place for them.
macro_rules! tile {
    ($name:ident, $features:literal, |$sum:ident, $x:ident, $value:ident| $add_product:expr) => {
        #[target_feature(enable = $features)]
        unsafe fn $name<const R: usize, const V: usize>(
            &self,
            first: usize,
            columns: &Range<usize>,
        ) {
            let masks = column_masks::<V>(columns);
            let Mat { row_stride: row_step, col_stride: step, .. } = self.lhs;
            let lhs = self.lhs.data.as_ptr().wrapping_add(first * row_step);
            let rhs = self.rhs.data.as_ptr().wrapping_add(columns.start);
            let mut sums = [[_mm512_setzero_ps(); V]; R];
            for l in self.block.clone() {
                // SAFETY: row `l` of `rhs` has the unmasked columns; `lhs` has `R` rows from `first`
                // on with a column `l`.
                unsafe {
                    let rhs = rhs.add(l * self.rhs.row_stride);
                    let values: [__m512; V] =
                        std::array::from_fn(|v| _mm512_maskz_loadu_ps(masks[v], rhs.add(16 * v)));
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let $x = _mm512_set1_ps(lhs.add(r * row_step + l * step).read());
                        for (sum, $value) in sums.iter_mut().zip(values) {
                            let $sum = *sum;
                            *sum = $add_product;
                        }
                    }
                }
            }
            // SAFETY: the caller's promise.
            unsafe { self.store(first, columns, sums) };
        }
    };
}

impl Product<'_> {
    tile!(tile_f32, "avx512f", |sum, x, value| _mm512_fmadd_ps(x, value, sum));
    tile!(tile_bf16, "avx512f,avx512bf16", |sum, x, value| {
        _mm512_dpbf16_ps(sum, pairs(_mm512_castps_si512(x)), pairs(_mm512_castps_si512(value)))
    });

    /// Writes or adds the sums of a tile.
    ///
    /// # Safety
    /// The destination must have these rows and columns.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn store<const R: usize, const V: usize>(
        &self,
        first: usize,
        columns: &Range<usize>,
        sums: [[__m512; V]; R],
    ) {
        let masks = column_masks::<V>(columns);
        for (r, sums) in sums.into_iter().enumerate() {
            for (v, sum) in sums.into_iter().enumerate() {
                // SAFETY: the destination has these rows and the unmasked columns.
                unsafe {
                    let at = (first + r) * self.dst_stride + columns.start + 16 * v;
                    let dst = self.dst.add(at);
                    let sum = if self.add {
                        _mm512_add_ps(_mm512_maskz_loadu_ps(masks[v], dst), sum)
                    } else {
                        sum
                    };
                    _mm512_mask_storeu_ps(dst, masks[v], sum);
                }
            }
        }
    }
}

/// See `small_matmul`.
#[target_feature(enable = "avx512f")]
pub(super) fn transpose(dst: &mut [f32], dst_stride: usize, src: Mat<'_>) {
    for first_row in (0..src.rows()).step_by(16) {
        let count = (src.rows() - first_row).min(16);
        for first in (0..src.cols()).step_by(16) {
            let columns = first..(first + 16).min(src.cols());
            let mask = first_of_16(columns.len());
            let mut rows = [_mm512_setzero_si512(); 16];
            for (i, row) in rows[..count].iter_mut().enumerate() {
                let values = &src.row(first_row + i)[columns.clone()];
                // SAFETY: the mask covers the slice's elements; masked ones are not read.
                *row = unsafe { _mm512_maskz_loadu_epi32(mask, values.as_ptr().cast()) };
            }
            for (column, values) in columns.zip(transpose_registers(rows)) {
                let dst = &mut dst[column * dst_stride + first_row..][..count];
                // SAFETY: the mask covers the slice's elements; masked ones are not written.
                unsafe {
                    _mm512_mask_storeu_epi32(dst.as_mut_ptr().cast(), first_of_16(count), values);
                }
            }
        }
    }
}
