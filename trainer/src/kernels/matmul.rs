//! Matrix products, on the `gemm` crate, one thread.

/// A read-only matrix in a slice: element (i, j) is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a> {
    pub(super) data: &'a [f32],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
}

impl<'a> Mat<'a> {
    /// A dense row-major matrix.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// A row-major matrix whose rows start `row_stride` elements apart.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        let mat = Self { data, rows, cols, row_stride, col_stride: 1 };
        assert!(mat.span() <= data.len(), "{rows}x{cols} (stride {row_stride}) in {}", data.len());
        mat
    }

    /// The transpose (no copy).
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// `count` columns from `first` on (no copy).
    pub fn columns(self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.cols, "columns {first}..{} of {}", first + count, self.cols);
        let data = if self.rows == 0 { self.data } else { &self.data[first * self.col_stride..] };
        Self { data, cols: count, ..self }
    }

    /// `count` rows from `first` on (no copy).
    pub fn rows_from(self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.rows, "rows {first}..{} of {}", first + count, self.rows);
        let data = if self.cols == 0 { self.data } else { &self.data[first * self.row_stride..] };
        Self { data, rows: count, ..self }
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Row `i` of a row-major matrix as a slice; panics on a transposed one.
    pub fn row(&self, i: usize) -> &'a [f32] {
        assert!(i < self.rows && self.is_row_major(), "row {i} of {self:?}");
        if self.cols == 0 { &[] } else { &self.data[i * self.row_stride..][..self.cols] }
    }

    /// Whether the elements of a row are neighbours.
    pub(super) fn is_row_major(&self) -> bool {
        self.col_stride == 1 || self.cols <= 1
    }

    /// The first element of a row-major matrix and how many its rows are apart; panics on a
    /// transposed one.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn row_major(&self) -> (*const f32, usize) {
        assert!(self.col_stride == 1 || self.cols <= 1, "not row-major: {self:?}");
        (self.data.as_ptr(), self.row_stride)
    }

    fn span(&self) -> usize {
        span(self.rows, self.cols, self.row_stride, self.col_stride)
    }
}

/// Elements from the first to the last one of a matrix.
pub(super) fn span(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + (cols - 1) * col_stride + 1 }
}

/// Panics where the operands of a product don't fit each other or the destination.
pub(super) fn check_sizes(dst: &[f32], dst_stride: usize, lhs: Mat<'_>, rhs: Mat<'_>) {
    assert_eq!(lhs.cols, rhs.rows, "inner dimensions");
    let (m, n) = (lhs.rows, rhs.cols);
    assert!(
        span(m, n, dst_stride, 1) <= dst.len(),
        "{m}x{n} (stride {dst_stride}) in {}",
        dst.len()
    );
    assert!(m <= 1 || n <= dst_stride, "rows of the destination overlap");
}

/// `dst = scale * lhs * rhs`, or `dst += scale * lhs * rhs` with `accumulate`.
///
/// `dst` is row-major with rows `dst_stride` elements apart, of `lhs`'s rows and `rhs`'s columns.
pub fn matmul(
    dst: &mut [f32],
    dst_stride: usize,
    lhs: Mat<'_>,
    rhs: Mat<'_>,
    scale: f32,
    accumulate: bool,
) {
    check_sizes(dst, dst_stride, lhs, rhs);
    let (m, n, k) = (lhs.rows, rhs.cols, lhs.cols);
    // SAFETY: every element the product reads or writes is inside its slice: `Mat` checks that its
    // last element is (transposing keeps the span), and `check_sizes` checks `dst`; `dst` is borrowed
    // mutably, so it overlaps neither input; f32 is one of the element types gemm supports.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            dst_stride as isize,
            accumulate,
            lhs.data.as_ptr(),
            lhs.col_stride as isize,
            lhs.row_stride as isize,
            rhs.data.as_ptr(),
            rhs.col_stride as isize,
            rhs.row_stride as isize,
            1.0f32,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
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

    #[test]
    fn equals_the_definition_for_every_layout() {
        for (m, n, k) in [(1, 1, 1), (3, 5, 7), (17, 33, 9), (40, 1, 20), (1, 40, 20)] {
            let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
            let at: Vec<f32> = (0..k * m).map(|i| a[(i % m) * k + i / m]).collect();
            let bt: Vec<f32> = (0..k * n).map(|i| b[(i % k) * n + i / k]).collect();
            for (lhs, rhs) in [
                (Mat::new(&a, m, k), Mat::new(&b, k, n)),
                (Mat::new(&at, k, m).t(), Mat::new(&bt, n, k).t()),
            ] {
                let mut dst = vec![1.0; m * (n + 3)];
                matmul(&mut dst, n + 3, lhs, rhs, 0.5, true);
                for i in 0..m {
                    for j in 0..n {
                        let exact: f32 = (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum();
                        let got = dst[i * (n + 3) + j];
                        assert!((got - 1.0 - 0.5 * exact).abs() < 1e-5, "{m} {n} {k}: {i} {j}");
                    }
                    assert_eq!(&dst[i * (n + 3) + n..(i + 1) * (n + 3)], &[1.0; 3]);
                }
            }
        }
    }
}
