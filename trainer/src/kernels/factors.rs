//! What the products of attention multiply: f32, or numbers rounded to bf16.
//!
//! In bf16 a factor is made of pairs of numbers that are neighbours in the reduction, each pair in the
//! 4 bytes of a lane, which `vdpbf16ps` multiplies and adds at once: half the multiplications. Sums are
//! in f32 in any case.

use super::Mat;
use super::buffer::{Buffer, fit};
use super::small_matmul::{small_matmul, transpose};
#[cfg(target_arch = "x86_64")]
use super::{
    bf16::available,
    lanes_avx512::{interleave, round},
    matmul::check_sizes,
    small_matmul_avx512::{self, Lane},
};

/// The distance of two rows of `width` numbers: whole cache lines, an odd number of them, since rows
/// a power of two apart would share few cache sets.
pub(super) fn row_stride(width: usize) -> usize {
    (width.div_ceil(16) | 1) * 16
}

/// A kind of factors: how they are made of f32 matrices (in place where nothing is to be changed,
/// otherwise in a buffer) and multiplied.
pub(super) trait Factors {
    /// A factor of a product.
    type Factor<'a>: Factor;

    /// The left-hand side `src`, row-major.
    fn left<'a>(src: Mat<'a>, buffer: &'a mut Buffer) -> Self::Factor<'a>;

    /// The left-hand side `srcᵀ` of a row-major matrix.
    fn left_transposed<'a>(src: Mat<'a>, buffer: &'a mut Buffer) -> Self::Factor<'a>;

    /// The right-hand side `src`, row-major.
    fn right<'a>(src: Mat<'a>, buffer: &'a mut Buffer) -> Self::Factor<'a>;

    /// The right-hand side `srcᵀ` of a row-major matrix.
    fn right_transposed<'a>(
        src: Mat<'a>,
        buffer: &'a mut Buffer,
        spare: &mut Buffer,
    ) -> Self::Factor<'a>;

    /// `dst = lhs * rhs`, or `dst += lhs * rhs` with `accumulate`; as
    /// [`small_matmul`].
    fn multiply(
        dst: &mut [f32],
        dst_stride: usize,
        lhs: Self::Factor<'_>,
        rhs: Self::Factor<'_>,
        accumulate: bool,
    );
}

/// Part of a right-hand side.
pub(super) trait Factor: Copy {
    /// `count` columns from `first` on.
    fn columns_from(self, first: usize, count: usize) -> Self;

    /// `count` rows from `first`, an even number, on.
    fn rows_from(self, first: usize, count: usize) -> Self;
}

/// Factors as they are.
pub(super) struct F32;

impl Factors for F32 {
    type Factor<'a> = Mat<'a>;

    fn left<'a>(src: Mat<'a>, _: &'a mut Buffer) -> Mat<'a> {
        src
    }

    fn left_transposed<'a>(src: Mat<'a>, _: &'a mut Buffer) -> Mat<'a> {
        src.t()
    }

    fn right<'a>(src: Mat<'a>, _: &'a mut Buffer) -> Mat<'a> {
        src
    }

    fn right_transposed<'a>(src: Mat<'a>, buffer: &'a mut Buffer, _: &mut Buffer) -> Mat<'a> {
        transposed(src, buffer)
    }

    fn multiply(dst: &mut [f32], dst_stride: usize, lhs: Mat, rhs: Mat, accumulate: bool) {
        small_matmul(dst, dst_stride, lhs, rhs, accumulate);
    }
}

impl Factor for Mat<'_> {
    fn columns_from(self, first: usize, count: usize) -> Self {
        Mat::columns(self, first, count)
    }

    fn rows_from(self, first: usize, count: usize) -> Self {
        Mat::rows_from(self, first, count)
    }
}

fn transposed<'a>(src: Mat<'_>, buffer: &'a mut Buffer) -> Mat<'a> {
    let stride = row_stride(src.rows());
    let dst = fit(buffer, src.cols() * stride);
    transpose(dst, stride, src);
    Mat::strided(dst, src.cols(), src.rows(), stride)
}

/// Factors rounded to bf16 (to nearest, ties to even; subnormal numbers are zero).
#[cfg(target_arch = "x86_64")]
pub(super) struct Bf16;

/// A matrix of lanes of two bf16 numbers each. Never read as f32.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Pairs<'a>(Mat<'a>);

#[cfg(target_arch = "x86_64")]
impl Factor for Pairs<'_> {
    fn columns_from(self, first: usize, count: usize) -> Self {
        Self(self.0.columns(first, count))
    }

    fn rows_from(self, first: usize, count: usize) -> Self {
        assert!(first.is_multiple_of(2), "row {first} is the second one of a pair");
        Self(self.0.rows_from(first / 2, count.div_ceil(2)))
    }
}

#[cfg(target_arch = "x86_64")]
impl Bf16 {
    /// Pairs of neighbours in a row.
    fn rounded<'a>(src: Mat<'_>, buffer: &'a mut Buffer) -> Mat<'a> {
        assert!(available(), "bf16 products on a CPU without AVX-512 BF16");
        let width = src.cols().div_ceil(2);
        let dst = fit(buffer, src.rows() * width);
        for (row, dst) in dst.chunks_exact_mut(width.max(1)).enumerate() {
            // SAFETY: this machine has the instructions.
            unsafe { round(src.row(row), dst) };
        }
        Mat::new(dst, src.rows(), width)
    }

    /// Pairs of neighbours in a column.
    fn interleaved<'a>(src: Mat<'_>, buffer: &'a mut Buffer) -> Mat<'a> {
        assert!(available(), "bf16 products on a CPU without AVX-512 BF16");
        let (rows, width) = (src.rows().div_ceil(2), src.cols());
        let stride = row_stride(width);
        let dst = fit(buffer, rows * stride);
        for (pair, dst) in dst.chunks_exact_mut(stride).enumerate() {
            let odd = if 2 * pair + 1 < src.rows() { src.row(2 * pair + 1) } else { &[] };
            // SAFETY: this machine has the instructions.
            unsafe { interleave(src.row(2 * pair), odd, &mut dst[..width]) };
        }
        Mat::strided(dst, rows, width, stride)
    }
}

#[cfg(target_arch = "x86_64")]
impl Factors for Bf16 {
    type Factor<'a> = Pairs<'a>;

    fn left<'a>(src: Mat<'a>, buffer: &'a mut Buffer) -> Pairs<'a> {
        Pairs(Self::rounded(src, buffer))
    }

    fn left_transposed<'a>(src: Mat<'a>, buffer: &'a mut Buffer) -> Pairs<'a> {
        Pairs(Self::interleaved(src, buffer).t())
    }

    fn right<'a>(src: Mat<'a>, buffer: &'a mut Buffer) -> Pairs<'a> {
        Pairs(Self::interleaved(src, buffer))
    }

    fn right_transposed<'a>(src: Mat<'a>, buffer: &'a mut Buffer, spare: &mut Buffer) -> Pairs<'a> {
        Pairs(transposed(Self::rounded(src, spare), buffer))
    }

    fn multiply(dst: &mut [f32], dst_stride: usize, lhs: Pairs, rhs: Pairs, accumulate: bool) {
        check_sizes(dst, dst_stride, lhs.0, rhs.0);
        // SAFETY: whoever made a factor found that this machine has the instructions; the operands'
        // sizes are checked, and a right-hand side is row-major by its making.
        unsafe {
            let lane = Lane::Bf16Pair;
            small_matmul_avx512::multiply(lane, dst, dst_stride, lhs.0, rhs.0, accumulate);
        }
    }
}
