//! The AVX-512 BF16 side of `bf16`: rounding, packing and the register tiles.
//!
//! A product runs panel by panel: up to 48 columns of the result, with the numbers of the weight
//! that make them packed as `vdpbf16ps` wants them: for every pair of the reduction, one register
//! per 16 columns. A tile of 8 rows and 3 registers of columns keeps its 24 sums in registers over
//! the whole (block of the) reduction; each step loads 3 registers of the panel and broadcasts 8
//! pairs of activations, 11 loads for 24 multiplications, which the load ports can keep up with.

use super::bf16::{Direction, FEW_ROWS, Line, Packing, Weight, grown};
use super::matmul::Mat;
use half::bf16;
use std::arch::x86_64::*;
use std::ops::Range;

/// Rows of a register tile.
const TILE_ROWS: usize = 8;
/// Registers of columns of a panel.
const TILE_VECTORS: usize = 3;
/// The longest reduction that is summed in registers: a panel of it takes 192 KiB, which leaves most
/// of a 1 MiB second-level cache to the activations. Longer ones are cut into equal blocks.
const DEPTH: usize = 2048;

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
        let rounded = grown(&mut packing.rows, lhs.rows() * stride);
        for (i, row) in rounded.chunks_exact_mut(stride).enumerate() {
            round(&lhs.row(i)[block.clone()], &mut row[..lines]);
        }
        let product = Product {
            rows: lhs.rows(),
            rounded: &*rounded,
            stride,
            w,
            block: block.clone(),
            dst: dst.as_mut_ptr(),
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

/// A product over one block of the reduction.
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

/// Calls `$tile` with the number of rows (up to 8 or 4) and of registers as constants.
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

/// A register of 16 pairs of bf16 numbers.
#[target_feature(enable = "avx512f")]
fn pairs(bits: __m512i) -> __m512bh {
    // SAFETY: two names of the same 512 bits; every bit pattern is valid for both.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) }
}

/// The mask of the first `n` of 16 elements (all of them for more).
fn first_of_16(n: usize) -> __mmask16 {
    if n >= 16 { !0 } else { (1 << n) - 1 }
}

/// The masks of `V` registers that hold these columns.
fn column_masks<const V: usize>(columns: &Range<usize>) -> [__mmask16; V] {
    std::array::from_fn(|v| first_of_16(columns.len().saturating_sub(16 * v)))
}

/// Up to 32 bf16 numbers, zeros behind them.
#[target_feature(enable = "avx512f,avx512bw")]
fn load_bf16(values: &[bf16]) -> __m512i {
    let mask = if values.len() >= 32 { !0 } else { (1u32 << values.len()) - 1 };
    // SAFETY: the mask covers at most the slice's elements; masked ones are not read.
    unsafe { _mm512_maskz_loadu_epi16(mask, values.as_ptr().cast()) }
}

/// Rounds a row to bf16, with zeros up to the end of its lines.
#[target_feature(enable = "avx512f,avx512bf16")]
fn round(row: &[f32], lines: &mut [Line]) {
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
fn pack_transposed(
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

/// The transpose of 16 registers of 16 pairs.
#[target_feature(enable = "avx512f")]
fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
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
fn pack_interleaved(
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
fn row_pair<'a>(
    w: Weight<'a>,
    columns: &Range<usize>,
    row: usize,
    end: usize,
) -> (&'a [bf16], &'a [bf16]) {
    let part = |row: usize| &w.values[row * w.inputs..][columns.clone()];
    (part(row), if row + 1 < end { part(row + 1) } else { &[] })
}

/// Pairs of the 16 numbers of two rows from element `16 * v` on; `odd` may be empty, for zeros.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn interleave(even: &[bf16], odd: &[bf16], v: usize, mask: __mmask16) -> __m512i {
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
