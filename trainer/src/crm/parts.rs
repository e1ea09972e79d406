//! Several micro-batches in one pass, to the bit what each by itself and the sum of their gradients would be.
//!
//! A pass over a large network costs as much for its weights as for some hundred samples: matrices are packed for the
//! product, gradients written and added. So the rows of small micro-batches lie one after the other and are multiplied
//! together; only where gradients are summed are they told apart. There a few rows of a weight's gradient at a time
//! are computed for each micro-batch and added in the order of the tree (D-1), while they are in the cache.

use std::ops::Range;

use reclora_comm::tree::{split, sum_into};

use crate::kernels::matmul::{Mat, matmul};
use crate::kernels::pointwise::{add, axpy};

/// Rows of a weight whose gradient is summed at a time: with 1,000 columns 128 KiB, beside which scratch and
/// activations stay in a second-level cache.
const TILE: usize = 32;

/// The longest sum that `gemm` never cuts.
const LONG_SUM: usize = 512;

/// Rows, cut into those of micro-batches: part `i` is `bounds[i]..bounds[i + 1]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts<'a> {
    bounds: &'a [usize],
}

impl<'a> Parts<'a> {
    /// The parts between neighbouring `bounds`, ascending from 0.
    pub fn new(bounds: &'a [usize]) -> Self {
        Self { bounds }
    }

    /// Number of parts.
    pub fn count(self) -> usize {
        self.bounds.len() - 1
    }

    /// Rows of all parts.
    pub fn rows(self) -> usize {
        self.bounds[self.count()]
    }

    /// The rows of a part.
    pub fn range(self, part: usize) -> Range<usize> {
        self.bounds[part]..self.bounds[part + 1]
    }

    /// Whether `fits` says so of the number of rows of every part that has any.
    fn all(self, fits: impl Fn(usize) -> bool) -> bool {
        self.bounds.windows(2).all(|pair| pair[0] == pair[1] || fits(pair[1] - pair[0]))
    }

    /// `dst = lhs * rhs`, or `dst += lhs * rhs` with `accumulate`; rows of `lhs` are those of the parts, `dst` is dense.
    pub fn multiply(self, dst: &mut [f32], lhs: Mat<'_>, rhs: Mat<'_>, accumulate: bool) {
        let width = rhs.cols();
        if self.all(|rows| is_general(rows, width, lhs.cols())) {
            return matmul(dst, width, lhs, rhs, 1.0, accumulate);
        }
        for part in 0..self.count() {
            let rows = self.range(part);
            let dst = &mut dst[rows.start * width..rows.end * width];
            matmul(dst, width, lhs.rows_from(rows.start, rows.len()), rhs, 1.0, accumulate);
        }
    }

    /// Adds `dyᵀ x` of each part to `sum`, which is zero, in the order of the tree.
    pub fn add_products(self, sum: &mut [f32], dy: Mat<'_>, x: Mat<'_>) {
        let width = x.cols();
        let (mut scratch, count) = (Vec::new(), self.tiles(dy.cols(), width));
        // A tiled product of no more rows is one sum, which is added to what is there at once.
        let at_once = count > 1 && self.all(|rows| rows <= LONG_SUM);
        for tile in tiles(dy.cols(), count) {
            let sum = &mut sum[tile.start * width..tile.end * width];
            self.add(sum, &mut scratch, at_once, &mut |part, sum| {
                let (dy, x) = (self.of(dy, part), self.of(x, part));
                let dy = dy.columns(tile.start, tile.len());
                matmul(sum, width, dy.t(), x, 1.0, true);
            });
        }
    }

    /// Adds the rows of each part to `sum`, which is zero and of their width, in the order of the tree.
    pub fn add_rows(self, sum: &mut [f32], rows: &[f32]) {
        let width = sum.len();
        self.add(sum, &mut Vec::new(), false, &mut |part, sum| {
            let range = self.range(part);
            add_rows_to(sum, &rows[range.start * width..range.end * width]);
        });
    }

    /// Adds the rows of each part, each times its weight, to `sum`, which is zero and of their width, in the order of
    /// the tree.
    pub fn add_weighted_rows(self, sum: &mut [f32], rows: &[f32], weights: &[f32]) {
        let width = sum.len();
        self.add(sum, &mut Vec::new(), false, &mut |part, sum| {
            for row in self.range(part) {
                axpy(sum, weights[row], &rows[row * width..(row + 1) * width]);
            }
        });
    }

    /// The rows of a part.
    pub fn of(self, rows: Mat<'_>, part: usize) -> Mat<'_> {
        let range = self.range(part);
        rows.rows_from(range.start, range.len())
    }

    /// Tiles that a product `[outputs, width]` is summed in: one of one part, which needs no sum.
    pub fn tiles(self, outputs: usize, width: usize) -> usize {
        let cut = self.count() > 1 && self.all(|rows| is_general(TILE, width, rows));
        // None has a single row, which would be multiplied in another order.
        if cut { (outputs / TILE).max(1) } else { 1 }
    }

    /// Lets `add` add each part's share to `sum`, which is zero, in the order of the tree: the bits are those of
    /// shares computed by themselves and summed by [`reclora_comm::tree`]. `at_once` says that a share is added to a
    /// number as one number, so that it need not be computed by itself.
    pub fn add(
        self,
        sum: &mut [f32],
        scratch: &mut Vec<f32>,
        at_once: bool,
        add: &mut impl FnMut(usize, &mut [f32]),
    ) {
        let levels = self.count().next_power_of_two().trailing_zeros() as usize;
        scratch.resize(levels * sum.len(), 0.0);
        add_range(0..self.count(), sum, scratch, at_once, add);
    }
}

/// Adds rows of the sum's width to it.
pub(super) fn add_rows_to(sum: &mut [f32], rows: &[f32]) {
    rows.chunks_exact(sum.len()).for_each(|row| add(sum, row));
}

/// `outputs` rows, cut into `count` tiles.
pub(super) fn tiles(outputs: usize, count: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count).map(move |tile| tile * outputs / count..(tile + 1) * outputs / count)
}

fn add_range(
    parts: Range<usize>,
    sum: &mut [f32],
    scratch: &mut [f32],
    at_once: bool,
    add: &mut impl FnMut(usize, &mut [f32]),
) {
    let Some(middle) = split(&parts) else { return add(parts.start, sum) };
    add_range(parts.start..middle, sum, scratch, at_once, add);
    if at_once && middle + 1 == parts.end {
        return add(middle, sum);
    }
    let (right, scratch) = scratch.split_at_mut(sum.len());
    right.fill(0.0);
    add_range(middle..parts.end, right, scratch, at_once, add);
    sum_into(sum, right);
}

/// Whether an element of a product `[rows, depth] * [depth, columns]` has the same bits for any other number of rows
/// of which this is true. `gemm` sums in one order, but has others for a vector, for two terms and for very few
/// elements, and cuts a long sum of small matrices in other places.
fn is_general(rows: usize, columns: usize, depth: usize) -> bool {
    rows.min(columns) > 1
        && depth > 2
        && rows * columns > 16 * 16
        && (depth <= LONG_SUM || columns > 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use reclora_comm::tree;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        let number = |place: usize| {
            let hash = ((place + 1) * (2 * seed + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (hash >> 40) as f32 / 2f32.powi(23) - 1.0
        };
        (0..count).map(number).collect()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    /// Few rows, and some more than a long sum is cut at.
    fn rows() -> impl Strategy<Value = Vec<usize>> {
        let part = prop_oneof![4 => 0usize..40, 1 => 500usize..600];
        prop::collection::vec(part, 1..9)
    }

    /// Sizes on both sides of where a product is computed in another way.
    fn size() -> impl Strategy<Value = usize> {
        prop_oneof![3 => 1usize..20, 3 => 60usize..70, 1 => 510usize..530, 1 => 640usize..700]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 20 } else { 150 }))]

        /// D-1: a row's product has the same bits however many micro-batches are multiplied together.
        #[test]
        fn d1_products_are_those_of_each_part(
            rows in rows(), columns in size(), depth in size(), transposed in any::<bool>(),
        ) {
            let bounds: Vec<usize> =
                (0..=rows.len()).map(|part| rows[..part].iter().sum()).collect();
            let parts = Parts::new(&bounds);
            let (x, w) = (numbers(parts.rows() * depth, 1), numbers(depth * columns, 2));
            let x = Mat::new(&x, parts.rows(), depth);
            let w = if transposed {
                Mat::new(&w, columns, depth).t()
            } else {
                Mat::new(&w, depth, columns)
            };
            for accumulate in [false, true] {
                let mut together = numbers(parts.rows() * columns, 3);
                let mut alone = together.clone();
                parts.multiply(&mut together, x, w, accumulate);
                for part in 0..parts.count() {
                    let range = parts.range(part);
                    let dst = &mut alone[range.start * columns..range.end * columns];
                    matmul(dst, columns, parts.of(x, part), w, 1.0, accumulate);
                }
                prop_assert_eq!(bits(&together), bits(&alone));
            }
        }

        /// D-1: sums over micro-batches, a tile at a time, are the tree's.
        #[test]
        fn d1_sums_are_those_of_the_tree(rows in rows(), outputs in size(), width in size()) {
            let bounds: Vec<usize> =
                (0..=rows.len()).map(|part| rows[..part].iter().sum()).collect();
            let parts = Parts::new(&bounds);
            let (dy, x) = (numbers(parts.rows() * outputs, 4), numbers(parts.rows() * width, 5));
            let (dy, x) = (Mat::new(&dy, parts.rows(), outputs), Mat::new(&x, parts.rows(), width));
            let mut together = vec![0.0; outputs * width];
            parts.add_products(&mut together, dy, x);
            let alone = (0..parts.count()).map(|part| {
                let mut sum = vec![0.0; outputs * width];
                let (dy, x) = (parts.of(dy, part), parts.of(x, part));
                matmul(&mut sum, width, dy.t(), x, 1.0, true);
                sum
            });
            let alone = tree::sum(alone.collect()).unwrap();
            prop_assert_eq!(bits(&together), bits(&alone));
        }
    }
}
