//! The AVX-512 BF16 side of `bf16`: blocks, panels and register tiles.
//!
//! A product runs panel by panel: up to 48 columns of the result, with the numbers of the weight
//! that make them packed as `vdpbf16ps` wants them: for every pair of the reduction, one register
//! per 16 columns. A tile of 8 rows and 3 registers of columns keeps its 24 sums in registers over
//! the whole (block of the) reduction; each step loads 3 registers of the panel and broadcasts 8
//! pairs of activations, 11 loads for 24 multiplications, which the load ports can keep up with.

use super::bf16::{Direction, FEW_ROWS, Line, Packing, Weight, grown};
use super::bf16_packing::{
    column_masks, interleave, load_bf16, pack_interleaved, pack_transposed, pairs, round, row_pair,
};
use super::matmul::Mat;
use std::arch::x86_64::*;
use std::ops::Range;

/// Rows of a register tile.
const TILE_ROWS: usize = 8;
/// Registers of columns of a panel.
pub(super) const TILE_VECTORS: usize = 3;
/// The longest reduction that is summed in registers: a panel of it takes 192 KiB, which leaves most
/// of a 1 MiB second-level cache to the activations. Longer ones are cut into equal blocks.
const DEPTH: usize = 2048;
/// Lines of rounded activations to multiply with the whole weight before the next rows: 512 KiB,
/// which stay in a second-level cache beside the panel.
const ROUNDED_LINES: usize = 8192;
/// But at least so many rows: packing a number of the weight costs as much as multiplying it with
/// about 4 rows.
const MIN_ROWS: usize = 512;

/// The blocks of a reduction of length `depth`: all of one length, a multiple of 32 (one line of
/// bf16), but for the last. At least one, so that an empty reduction gives zeros.
fn depth_blocks(depth: usize) -> impl Iterator<Item = Range<usize>> {
    let blocks = depth.div_ceil(DEPTH).max(1);
    let length = depth.div_ceil(blocks).next_multiple_of(32).max(32);
    (0..depth.max(1)).step_by(length).map(move |start| start..(start + length).min(depth))
}

/// The panels of `columns`: three registers wide, ending with two of two registers rather than one
/// of three and one of one.
fn panels(columns: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let mut start = columns.start;
    std::iter::from_fn(move || {
        let vectors = (columns.end - start).div_ceil(16);
        let width = if vectors == 4 { 2 } else { vectors.min(TILE_VECTORS) };
        let panel = start..(start + 16 * width).min(columns.end);
        start = panel.end;
        (!panel.is_empty()).then_some(panel)
    })
}

/// `dst = lhs w^T` or `dst = lhs w`, by `direction`; `+=` with `accumulate`.
///
/// # Safety
/// `dst` must hold `lhs`'s rows, `dst_stride` apart, of as many columns as the product has.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
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
    for block in depth_blocks(depth) {
        let lines = block.len().div_ceil(32);
        // An odd number of lines apart: rows a power of two apart would share few cache sets.
        let stride = lines | 1;
        let height = MIN_ROWS.max(ROUNDED_LINES / stride);
        for first in (0..lhs.rows()).step_by(height) {
            let rows = first..(first + height).min(lhs.rows());
            let rounded = grown(&mut packing.rows, rows.len() * stride);
            for (i, line) in rows.clone().zip(rounded.chunks_exact_mut(stride)) {
                round(&lhs.row(i)[block.clone()], &mut line[..lines]);
            }
            let product = Product {
                rows: rows.len(),
                rounded: &*rounded,
                stride,
                w,
                block: block.clone(),
                dst: dst[first * dst_stride..].as_mut_ptr(),
                dst_stride,
                add: accumulate || block.start > 0,
            };
            // SAFETY: the caller's promise; `rounded` has `stride` lines for every row.
            unsafe {
                match direction {
                    _ if lhs.rows() > FEW_ROWS => product.packed(direction, &mut packing.panel),
                    Direction::ToOutputs => product.few_to_outputs(),
                    Direction::ToInputs => product.few_to_inputs(),
                }
            }
        }
    }
}

/// A product of some rows over one block of the reduction.
struct Product<'a> {
    rows: usize,
    /// The left-hand side in bf16, zeros up to whole lines, rows `stride` lines apart.
    rounded: &'a [Line],
    stride: usize,
    w: Weight<'a>,
    block: Range<usize>,
    dst: *mut f32,
    dst_stride: usize,
    add: bool,
}

/// Calls `$tile` with the number of rows and of registers as constants, out of those listed.
macro_rules! sized {
    ($rows:expr, $vectors:expr, $this:ident.$tile:ident $args:tt, [$($r:literal)*], $v:tt) => {
        match $rows {
            $($r => sized!(@ $vectors, $this.$tile $args, $r, $v),)*
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
    (@ $vectors:expr, $this:ident.$tile:ident $args:tt, $r:literal, [$($v:literal)*]) => {
        match $vectors {
            $($v => $this.$tile::<$r, $v> $args,)*
            vectors => unreachable!("a tile of {vectors} registers"),
        }
    };
}
pub(super) use sized;

impl Product<'_> {
    /// Packs panel after panel of the weight and multiplies it with all rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn packed(&self, direction: Direction, buffer: &mut Vec<Line>) {
        for panel in panels(0..self.w.sizes(direction).0) {
            let vectors = panel.len().div_ceil(16);
            let packed = grown(buffer, self.block.len().next_multiple_of(32) / 2 * vectors);
            match direction {
                Direction::ToOutputs => pack_transposed(packed, self.w, &panel, &self.block),
                Direction::ToInputs => pack_interleaved(packed, self.w, &panel, &self.block),
            }
            for first in (0..self.rows).step_by(TILE_ROWS) {
                let rows = (self.rows - first).min(TILE_ROWS);
                // SAFETY: the rows and columns are within the product's; the panel has `vectors`
                // lines for every pair of the block.
                unsafe {
                    sized!(
                        rows, vectors, self.tile(first, &panel, packed),
                        [1 2 3 4 5 6 7 8], [1 2 3]
                    );
                }
            }
        }
    }

    /// `R` rows from `first` on, times a packed panel of `V` registers.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn tile<const R: usize, const V: usize>(
        &self,
        first: usize,
        columns: &Range<usize>,
        panel: &[Line],
    ) {
        let lhs = self.rounded[first * self.stride..].as_ptr().cast::<i32>();
        // The place of the result is on its way to the cache while the sums are made.
        for r in 0..R {
            for v in 0..V {
                let at = (first + r) * self.dst_stride + columns.start + 16 * v;
                prefetch(self.dst.wrapping_add(at));
            }
        }
        let mut sums = [[_mm512_setzero_ps(); V]; R];
        for pair in 0..self.block.len().div_ceil(2) {
            // SAFETY: the panel has `V` lines for this pair, each of the rows has it too.
            unsafe {
                let panel = panel.as_ptr().add(pair * V);
                let weights: [__m512bh; V] =
                    std::array::from_fn(|v| pairs(_mm512_load_si512(panel.add(v).cast())));
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = lhs.add(r * 16 * self.stride + pair).read();
                    let x = pairs(_mm512_set1_epi32(x));
                    for (sum, w) in sums.iter_mut().zip(weights) {
                        *sum = _mm512_dpbf16_ps(*sum, x, w);
                    }
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.store(first, columns, sums) };
    }

    /// At most `FEW_ROWS` rows times the weight, which is interleaved on the way: its rows are read
    /// once, 64 columns at a time. Sums in the order of `packed`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn few_to_inputs(&self) {
        for first in (0..self.w.inputs).step_by(64) {
            let columns = first..(first + 64).min(self.w.inputs);
            let vectors = columns.len().div_ceil(16);
            // SAFETY: the rows and columns are the product's.
            unsafe {
                sized!(self.rows, vectors, self.tile_in_place(&columns), [1 2 3 4], [1 2 3 4])
            };
        }
    }

    /// All `R` rows times `V` registers of columns of the weight as it lies.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn tile_in_place<const R: usize, const V: usize>(&self, columns: &Range<usize>) {
        let lhs = self.rounded.as_ptr().cast::<i32>();
        let mut sums = [[_mm512_setzero_ps(); V]; R];
        let masks = column_masks::<V>(columns);
        for (pair, row) in self.block.clone().step_by(2).enumerate() {
            let (even, odd) = row_pair(self.w, columns, row, self.block.end);
            for v in 0..V {
                let weights = pairs(interleave(even, odd, v, masks[v]));
                for (r, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: the rounded row has this pair.
                    let x = unsafe { lhs.add(r * 16 * self.stride + pair).read() };
                    sums[v] = _mm512_dpbf16_ps(sums[v], pairs(_mm512_set1_epi32(x)), weights);
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.store(0, columns, sums) };
    }

    /// Writes or adds the sums of a tile.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn store<const R: usize, const V: usize>(
        &self,
        first: usize,
        columns: &Range<usize>,
        sums: [[__m512; V]; R],
    ) {
        let masks = column_masks::<V>(columns);
        for (r, sums) in sums.into_iter().enumerate() {
            for (v, sum) in sums.into_iter().enumerate() {
                // SAFETY: by the caller's promise the unmasked columns are inside `dst`; masked
                // ones are not touched.
                unsafe {
                    let dst = self.dst.add((first + r) * self.dst_stride + columns.start + 16 * v);
                    let old = if self.add {
                        _mm512_maskz_loadu_ps(masks[v], dst)
                    } else {
                        _mm512_setzero_ps()
                    };
                    _mm512_mask_storeu_ps(dst, masks[v], _mm512_add_ps(old, sum));
                }
            }
        }
    }

    /// At most `FEW_ROWS` rows times the transposed weight: dot products with its rows, four at a
    /// time.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn few_to_outputs(&self) {
        let whole = self.w.outputs / 4 * 4;
        for output in (0..whole).step_by(4) {
            // SAFETY: the rows and these four outputs are the product's.
            unsafe { sized!(self.rows, 4, self.dots(output), [1 2 3 4], [4]) };
        }
        for output in whole..self.w.outputs {
            // SAFETY: as above, one output.
            unsafe { sized!(self.rows, 1, self.dots(output), [1 2 3 4], [1]) };
        }
    }

    /// The dot products of all `R` rows with `N` rows of the weight.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn dots<const R: usize, const N: usize>(&self, output: usize) {
        let mut sums = [[_mm512_setzero_ps(); N]; R];
        for (line, start) in self.block.clone().step_by(32).enumerate() {
            let length = (self.block.end - start).min(32);
            let weights: [__m512bh; N] = std::array::from_fn(|n| {
                pairs(load_bf16(&self.w.values[(output + n) * self.w.inputs + start..][..length]))
            });
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: every line is one register.
                let x = unsafe {
                    _mm512_load_si512((&raw const self.rounded[r * self.stride + line]).cast())
                };
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

/// Asks for the cache line at an address, to be written.
#[inline]
#[target_feature(enable = "avx512f")]
#[allow(unused_unsafe, reason = "needed by the oldest compiler supported, not by later ones")]
fn prefetch(at: *const f32) {
    // SAFETY: a hint, which reads nothing, valid for any address.
    unsafe { _mm_prefetch::<_MM_HINT_ET0>(at.cast()) };
}
