//! Products of matrices that stay in the caches, without packing: those of attention.
//!
//! A general matrix product packs both its operands, which pays for itself only where they are
//! large. Here the right-hand side is read in place, 16 neighbouring columns at a time, and every
//! number of the left-hand side is broadcast, so that either may be a transpose or a part of a
//! larger matrix. CPUs without AVX-512 take the general product.
//!
//! The order of every sum is a function of the sizes alone, so equal calls give equal bits.

use super::{Mat, matmul};
#[cfg(target_arch = "x86_64")]
use super::{matmul::check_sizes, small_matmul_avx512, small_matmul_avx512::Lane};

/// `dst = lhs * rhs`, or `dst += lhs * rhs` with `accumulate`.
///
/// `dst` is row-major with rows `dst_stride` elements apart, of `lhs`'s rows and `rhs`'s columns;
/// `rhs` is row-major, `lhs` may be transposed.
pub fn small_matmul(
    dst: &mut [f32],
    dst_stride: usize,
    lhs: Mat<'_>,
    rhs: Mat<'_>,
    accumulate: bool,
) {
    assert!(rhs.is_row_major(), "the right-hand side is transposed: {rhs:?}");
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        check_sizes(dst, dst_stride, lhs, rhs);
        // SAFETY: this machine has AVX-512F; the operands' sizes are checked, and `Mat` checks that
        // its last element is inside its slice.
        unsafe {
            small_matmul_avx512::multiply(Lane::F32, dst, dst_stride, lhs, rhs, accumulate);
        }
        return;
    }
    matmul(dst, dst_stride, lhs, rhs, 1.0, accumulate);
}

/// Copies the transpose of a row-major matrix into `dst`, rows `dst_stride` elements apart.
pub fn transpose(dst: &mut [f32], dst_stride: usize, src: Mat<'_>) {
    assert!(src.rows() <= dst_stride, "rows of the destination overlap");
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: this machine has AVX-512F, the only requirement of the function.
        unsafe { small_matmul_avx512::transpose(dst, dst_stride, src) };
        return;
    }
    for row in 0..src.rows() {
        for (column, value) in src.row(row).iter().enumerate() {
            dst[column * dst_stride + row] = *value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        std::iter::repeat_with(next).take(n).collect()
    }

    /// Between rows of the result, where nothing may be written.
    const UNTOUCHED: f32 = 12_345.0;

    /// A matrix's numbers, `gap` times `filler` behind each row.
    fn strided(rows: usize, cols: usize, gap: usize, filler: f32, seed: u32) -> Vec<f32> {
        let mut values = numbers(rows * (cols + gap), seed);
        for row in values.chunks_mut((cols + gap).max(1)) {
            row[cols..].fill(filler);
        }
        values
    }

    type Function = fn(&mut [f32], usize, Mat<'_>, Mat<'_>, bool);

    /// The function under test (AVX-512 where this CPU has it), and what takes its place elsewhere.
    const FUNCTIONS: [Function; 2] = [small_matmul, |dst, dst_stride, lhs, rhs, accumulate| {
        matmul(dst, dst_stride, lhs, rhs, 1.0, accumulate);
    }];

    /// A product of random operands; nothing may be read between their rows.
    struct Case {
        sizes: [usize; 3],
        gap: usize,
        transposed: bool,
        lhs: Vec<f32>,
        rhs: Vec<f32>,
        before: Vec<f32>,
    }

    impl Case {
        fn new([rows, columns, depth]: [usize; 3], gap: usize, transposed: bool) -> Self {
            let (lhs_rows, lhs_cols) = if transposed { (depth, rows) } else { (rows, depth) };
            Self {
                sizes: [rows, columns, depth],
                gap,
                transposed,
                lhs: strided(lhs_rows, lhs_cols, gap, f32::NAN, 1),
                rhs: strided(depth, columns, gap, f32::NAN, 2),
                before: strided(rows, columns, gap, UNTOUCHED, 3),
            }
        }

        fn run(&self, function: Function, accumulate: bool) -> Vec<f32> {
            let ([rows, columns, depth], gap) = (self.sizes, self.gap);
            let lhs = if self.transposed {
                Mat::strided(&self.lhs, depth, rows, rows + gap).t()
            } else {
                Mat::strided(&self.lhs, rows, depth, depth + gap)
            };
            let rhs = Mat::strided(&self.rhs, depth, columns, columns + gap);
            let mut dst = self.before.clone();
            function(&mut dst, columns + gap, lhs, rhs, accumulate);
            dst
        }

        /// The exact sum of a result, and the sum of its terms' magnitudes.
        fn exact(&self, i: usize, j: usize, accumulate: bool) -> (f64, f64) {
            let ([rows, columns, depth], gap) = (self.sizes, self.gap);
            let old = f64::from(self.before[i * (columns + gap) + j]);
            let term = |l: usize| {
                let at = if self.transposed { l * (rows + gap) + i } else { i * (depth + gap) + l };
                f64::from(self.lhs[at]) * f64::from(self.rhs[l * (columns + gap) + j])
            };
            let terms = (0..depth).map(term).chain(accumulate.then_some(old));
            terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()))
        }

        /// Each of `depth` products and additions, and of a few more additions of partial sums, adds
        /// an error of at most half a unit in the last place of a sum that never exceeds the terms'
        /// magnitudes.
        fn check(&self, accumulate: bool) {
            let [_, columns, depth] = self.sizes;
            for (which, function) in FUNCTIONS.into_iter().enumerate() {
                let dst = self.run(function, accumulate);
                let what = (which, self.sizes, self.gap, self.transposed, accumulate);
                for (i, row) in dst.chunks((columns + self.gap).max(1)).enumerate() {
                    for (j, &got) in row[..columns].iter().enumerate() {
                        let (exact, size) = self.exact(i, j, accumulate);
                        let bound = (depth + 8) as f64 * f64::from(f32::EPSILON) * size;
                        let error = (f64::from(got) - exact).abs();
                        assert!(error <= bound, "{what:?} at {i}, {j}: {got} is not {exact}");
                    }
                    let gap = &row[columns..];
                    assert!(gap.iter().all(|&x| x == UNTOUCHED), "{what:?}: behind row {i}");
                }
            }
        }
    }

    #[test]
    fn equal_the_definition_for_every_shape() {
        let columns = [1, 2, 6, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 80, 96, 128, 131];
        let depths = [1, 2, 6, 8, 31, 63, 64, 65, 127, 128, 129, 200];
        for (i, columns) in columns.into_iter().enumerate() {
            for (j, depth) in depths.into_iter().enumerate() {
                let rows = 1 + (7 * i + 5 * j) % 27;
                let case = Case::new([rows, columns, depth], (i + j) % 4, j % 2 == 0);
                case.check((i + j) % 3 == 0);
            }
        }
        for rows in 1..=50 {
            for columns in [8, 24, 40, 64] {
                for (transposed, accumulate) in [(false, false), (true, true)] {
                    Case::new([rows, columns, 35], rows % 3, transposed).check(accumulate);
                }
            }
        }
    }

    #[test]
    fn empty_sizes() {
        for sizes in [[0, 3, 4], [3, 0, 4], [3, 4, 0], [0, 0, 0]] {
            for transposed in [false, true] {
                Case::new(sizes, 2, transposed).check(false);
                Case::new(sizes, 2, transposed).check(true);
            }
        }
    }

    #[test]
    fn bits_do_not_depend_on_where_the_operands_lie() {
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let case = Case::new([23, 75, 150], 0, false);
        let here = case.run(small_matmul, true);
        for shift in 1..20 {
            let moved = |values: &[f32]| [&vec![f32::NAN; shift], values].concat();
            let (lhs, rhs, mut dst) = (moved(&case.lhs), moved(&case.rhs), moved(&case.before));
            let (lhs, rhs) = (Mat::new(&lhs[shift..], 23, 150), Mat::new(&rhs[shift..], 150, 75));
            small_matmul(&mut dst[shift..], 75, lhs, rhs, true);
            assert_eq!(bits(&dst[shift..]), bits(&here), "moved by {shift}");
        }
    }

    #[test]
    #[should_panic(expected = "inner dimensions")]
    fn operands_that_do_not_fit_are_a_bug() {
        small_matmul(&mut [0.0; 4], 2, Mat::new(&[0.0; 6], 2, 3), Mat::new(&[0.0; 4], 2, 2), false);
    }

    #[test]
    #[should_panic(expected = "right-hand side is transposed")]
    fn a_transposed_right_hand_side_is_a_bug() {
        let (lhs, rhs) = ([0.0; 4], [0.0; 4]);
        small_matmul(&mut [0.0; 4], 2, Mat::new(&lhs, 2, 2), Mat::new(&rhs, 2, 2).t(), false);
    }

    #[test]
    fn transposes_every_shape() {
        for (rows, cols) in [(0, 3), (3, 0), (1, 1), (1, 20), (20, 1), (16, 16), (33, 17), (50, 64)]
        {
            for gap in [0, 3] {
                let src = strided(rows, cols, gap, f32::NAN, 1);
                let mut dst = vec![UNTOUCHED; cols * (rows + gap)];
                transpose(&mut dst, rows + gap, Mat::strided(&src, rows, cols, cols + gap));
                for (i, value) in dst.iter().enumerate() {
                    let (column, row) = (i / (rows + gap), i % (rows + gap));
                    let kept = row >= rows;
                    let expected = if kept { UNTOUCHED } else { src[row * (cols + gap) + column] };
                    assert_eq!(*value, expected, "{rows}x{cols}: {column}, {row}");
                }
            }
        }
    }
}
