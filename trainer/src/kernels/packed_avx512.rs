//! The AVX-512 side of products with a frozen weight: blocks, panels and register tiles.
//!
//! A product runs panel by panel: up to 48 columns of the result, with the numbers of the weight
//! that make them packed as the multiplication wants them: for every number of the reduction (pair
//! of numbers in bf16), one register per 16 columns. A tile of 8 rows and 3 registers of columns
//! keeps its 24 sums in registers over the whole (block of the) reduction; each step loads 3
//! registers of the panel and broadcasts 8 lanes of activations, 11 loads for 24 multiplications,
//! which the load ports can keep up with.

use super::lanes_avx512::{column_masks, transpose};
use super::matmul::Mat;
use super::packed::{Direction, Line, Packing, Weight, grown};
use std::arch::x86_64::*;
use std::ops::Range;

/// Rows of a register tile.
const TILE_ROWS: usize = 8;
/// Registers of columns of a panel.
pub(super) const TILE_VECTORS: usize = 3;
/// The longest reduction that is summed in registers: a panel of it takes 192 KiB in bf16 and
/// 384 KiB in f32, which leaves most of a 1 MiB second-level cache to the activations. Longer ones
/// are cut into equal blocks.
const DEPTH: usize = 2048;

/// A number of a weight: how it is packed and multiplied.
///
/// Calling them is safe on CPUs with AVX-512 F, BW and VL, and `tile` on those with whatever else
/// multiplies such numbers, for rows and columns that the product, its `dst` and the panel have.
pub(super) trait Element: Copy {
    /// Numbers of the reduction that a lane of 4 bytes holds.
    const PER_LANE: usize;

    /// Rows to multiply with the whole weight before the next ones, for a block of the reduction of this length.
    fn rows_at_once(depth: usize) -> usize;

    /// A block of some rows of the left-hand side in lanes of the element, in place or in the buffer: the first lane,
    /// and how many lanes rows are apart.
    unsafe fn lanes(
        lhs: Mat<'_>,
        rows: Range<usize>,
        block: &Range<usize>,
        buffer: &mut Vec<Line>,
    ) -> (*const i32, usize);

    /// Makes a product with the weight as it lies, if that pays for so few rows; otherwise false.
    unsafe fn multiply_in_place(_product: &Product<'_, Self>, _direction: Direction) -> bool {
        false
    }

    /// Up to `16 * PER_LANE` numbers, zeros behind them.
    unsafe fn load(values: &[Self]) -> __m512i;

    /// Packs `PER_LANE` rows of the weight from `row` on (those before `end`; zeros for others).
    unsafe fn pack_row(
        line: &mut [Line],
        w: Weight<'_, Self>,
        columns: &Range<usize>,
        row: usize,
        end: usize,
    );

    /// `R` rows from `first` on, times a packed panel of `V` registers.
    unsafe fn tile<const R: usize, const V: usize>(
        product: &Product<'_, Self>,
        first: usize,
        columns: &Range<usize>,
        panel: &[Line],
    );
}

/// `dst = lhs wᵀ` or `dst = lhs w`, by `direction`; `+=` with `accumulate`.
///
/// # Safety
/// `dst` must hold `lhs`'s rows, `dst_stride` apart, of as many columns as the product has; the CPU must have what `E`'s
/// methods need.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn multiply<E: Element>(
    dst: &mut [f32],
    dst_stride: usize,
    lhs: Mat<'_>,
    w: Weight<'_, E>,
    direction: Direction,
    accumulate: bool,
    packing: &mut Packing,
) {
    let (columns, depth) = w.sizes(direction);
    let all_rows = lhs.rows();
    if all_rows == 0 || columns == 0 {
        return;
    }
    for block in depth_blocks(depth) {
        let height = E::rows_at_once(block.len()).min(all_rows);
        for first in (0..all_rows).step_by(height) {
            let rows = first..(first + height).min(all_rows);
            // SAFETY: the caller's promise; the lanes are those of these rows.
            unsafe {
                let (lhs, stride) = E::lanes(lhs, rows.clone(), &block, &mut packing.rows);
                let product = Product {
                    rows: rows.len(),
                    all_rows,
                    lhs,
                    stride,
                    w,
                    block: block.clone(),
                    dst: dst[first * dst_stride..].as_mut_ptr(),
                    dst_stride,
                    add: accumulate || block.start > 0,
                };
                if !E::multiply_in_place(&product, direction) {
                    product.packed(direction, &mut packing.panel);
                }
            }
        }
    }
}

/// The blocks of a reduction of length `depth`: all of one length, a multiple of 32 (whole
/// lines), but for the last. At least one, so that an empty reduction gives zeros.
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

/// Lines of a packed panel.
fn panel_lines<E: Element>(panel: &Range<usize>, block: &Range<usize>) -> usize {
    let lanes = block.len().next_multiple_of(16 * E::PER_LANE) / E::PER_LANE;
    lanes * panel.len().div_ceil(16)
}

/// Packs the panel of these columns.
///
/// # Safety
/// The CPU must have what `E`'s methods need.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn pack_panel<E: Element>(
    lines: &mut [Line],
    w: Weight<'_, E>,
    direction: Direction,
    panel: &Range<usize>,
    block: &Range<usize>,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match direction {
            Direction::ToOutputs => pack_transposed(lines, w, panel, block),
            Direction::ToInputs => pack_rows(lines, w, panel, block),
        }
    }
}

/// Packs the outputs `columns` of the weight for a forward product: every lane holds
/// neighbouring inputs.
///
/// # Safety
/// The CPU must have what `E`'s methods need.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn pack_transposed<E: Element>(
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

/// Packs the inputs `columns` of the weight for a backward product: every lane holds neighbouring
/// outputs.
///
/// # Safety
/// The CPU must have what `E`'s methods need.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn pack_rows<E: Element>(
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

/// All panels of all blocks, in the order in which a product needs them.
///
/// # Safety
/// The CPU must have what `E`'s methods need.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn pack_whole<E: Element>(w: Weight<'_, E>, direction: Direction) -> Vec<Line> {
    let (columns, depth) = w.sizes(direction);
    let mut lines = Vec::new();
    for block in depth_blocks(depth) {
        for panel in panels(0..columns) {
            let start = lines.len();
            lines.resize(start + panel_lines::<E>(&panel, &block), Line([0; 16]));
            // SAFETY: the caller's promise.
            unsafe { pack_panel(&mut lines[start..], w, direction, &panel, &block) };
        }
    }
    lines.shrink_to_fit();
    lines
}

/// A product of some rows over one block of the reduction.
pub(super) struct Product<'a, E> {
    pub(super) rows: usize,
    /// Rows of the whole product, on which the order of its sums may depend.
    pub(super) all_rows: usize,
    /// The block of the left-hand side, in lanes of the element; rows `stride` lanes apart.
    pub(super) lhs: *const i32,
    pub(super) stride: usize,
    pub(super) w: Weight<'a, E>,
    pub(super) block: Range<usize>,
    pub(super) dst: *mut f32,
    pub(super) dst_stride: usize,
    pub(super) add: bool,
}

/// Calls `$tile` with the number of rows and of registers as constants, out of those listed.
macro_rules! sized {
    ($rows:expr, $vectors:expr, $type:ident::$tile:ident $args:tt, [$($r:literal)*], $v:tt) => {
        match $rows {
            $($r => sized!(@ $vectors, $type::$tile $args, $r, $v),)*
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
    (@ $vectors:expr, $type:ident::$tile:ident $args:tt, $r:literal, [$($v:literal)*]) => {
        match $vectors {
            $($v => $type::$tile::<$r, $v> $args,)*
            vectors => unreachable!("a tile of {vectors} registers"),
        }
    };
}
pub(super) use sized;

impl<E: Element> Product<'_, E> {
    /// Packs panel after panel of the weight and multiplies it with all rows.
    ///
    /// # Safety
    /// The pointers must be to `rows` rows; the CPU must have what `E`'s methods need.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn packed(&self, direction: Direction, buffer: &mut Vec<Line>) {
        let columns = self.w.sizes(direction).0;
        let kept = self.w.packed.map(|packed| {
            // SAFETY: the caller's promise.
            packed.panels(direction, || unsafe { pack_whole(self.w, direction) })
        });
        // Blocks before this one are whole lines.
        let mut at = self.block.start / E::PER_LANE * columns.div_ceil(16);
        for panel in panels(0..columns) {
            let vectors = panel.len().div_ceil(16);
            let length = panel_lines::<E>(&panel, &self.block);
            let packed = if let Some(kept) = kept {
                &kept[at..at + length]
            } else {
                let packed = grown(buffer, length);
                // SAFETY: the caller's promise.
                unsafe { pack_panel(packed, self.w, direction, &panel, &self.block) };
                packed
            };
            at += length;
            for first in (0..self.rows).step_by(TILE_ROWS) {
                let rows = (self.rows - first).min(TILE_ROWS);
                // SAFETY: the rows and columns are within the product's; the panel has `vectors`
                // lines for every lane of the block.
                unsafe {
                    sized!(
                        rows, vectors, E::tile(self, first, &panel, packed),
                        [1 2 3 4 5 6 7 8], [1 2 3]
                    );
                }
            }
        }
    }

    /// Asks for the places of a tile's results, to be on their way while the sums are made.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn prefetch<const R: usize, const V: usize>(
        &self,
        first: usize,
        columns: &Range<usize>,
    ) {
        for r in 0..R {
            for v in 0..V {
                let at = (first + r) * self.dst_stride + columns.start + 16 * v;
                prefetch_to_write(self.dst.wrapping_add(at));
            }
        }
    }

    /// Writes or adds the sums of a tile.
    ///
    /// # Safety
    /// The rows and columns must be within the product's, whose `dst` holds them.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn store<const R: usize, const V: usize>(
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
}

/// Asks for the cache line at an address, to be written.
#[inline]
#[target_feature(enable = "avx512f")]
#[allow(unused_unsafe, reason = "needed by the oldest compiler supported, not by later ones")]
fn prefetch_to_write(at: *const f32) {
    // SAFETY: a hint, which reads nothing, valid for any address.
    unsafe { _mm_prefetch::<_MM_HINT_ET0>(at.cast()) };
}

/// Asks for the cache line at an address, to be read.
#[inline]
#[target_feature(enable = "avx512f")]
#[allow(unused_unsafe, reason = "needed by the oldest compiler supported, not by later ones")]
pub(super) fn prefetch_to_read(at: *const f32) {
    // SAFETY: a hint, which reads nothing, valid for any address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
}
