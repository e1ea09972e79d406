//! Products of f32 activations with a frozen bf16 weight, on CPUs with AVX-512 BF16.
//!
//! The weight is used as it lies in its file: `[outputs, inputs]`, two bytes a number, at any even
//! address (a mapped file). The activations are rounded to bf16 (to nearest, ties to even), products
//! are accumulated in f32: `vdpbf16ps` adds two products to every one of 16 sums, twice the work of
//! an f32 fused multiply-add, and the weight takes half the memory traffic. That instruction, like
//! the rounding, takes subnormal numbers as zero and flushes subnormal results to zero, whatever the
//! thread's floating-point mode.
//!
//! The order of every sum is a function of the reduced length alone, with one exception: `project`
//! sums in another order for at most [`FEW_ROWS`] rows, where packing the weight would cost more
//! than the product. So equal calls give equal bits, and a row's result doesn't depend on the other
//! rows.

use super::matmul::{Mat, span};
use half::bf16;

/// The most rows of activations that are multiplied without packing the weight.
pub const FEW_ROWS: usize = 4;

/// A frozen weight, `[outputs, inputs]` row-major, as in a safetensors file.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a> {
    pub(super) values: &'a [bf16],
    pub(super) outputs: usize,
    pub(super) inputs: usize,
}

impl<'a> Weight<'a> {
    /// The weight of a projection from `inputs` to `outputs` numbers.
    pub fn new(values: &'a [bf16], outputs: usize, inputs: usize) -> Self {
        assert_eq!(outputs.checked_mul(inputs), Some(values.len()), "{outputs}x{inputs} numbers");
        Self { values, outputs, inputs }
    }

    /// The columns and the reduced length of a product in this direction.
    pub(super) fn sizes(&self, direction: Direction) -> (usize, usize) {
        match direction {
            Direction::ToOutputs => (self.outputs, self.inputs),
            Direction::ToInputs => (self.inputs, self.outputs),
        }
    }
}

/// One cache line, one AVX-512 register: 16 pairs of bf16 numbers.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u32; 16]);

/// Buffers for the rounded activations and one packed panel of the weight. Grown as needed and then
/// kept, so that in a steady state nothing is allocated; their content never matters.
#[derive(Debug, Default)]
pub struct Packing {
    pub(super) rows: Vec<Line>,
    pub(super) panel: Vec<Line>,
}

/// The `lines` first lines of a buffer, which grows if it is too small.
pub(super) fn grown(buffer: &mut Vec<Line>, lines: usize) -> &mut [Line] {
    if buffer.len() < lines {
        buffer.resize(lines, Line([0; 16]));
    }
    &mut buffer[..lines]
}

/// Which way a weight is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Forward: reduces over the inputs.
    ToOutputs,
    /// Backward: reduces over the outputs.
    ToInputs,
}

/// Whether this machine has the instructions; without them the products here panic.
pub fn available() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Forward of a frozen projection: `y = x w^T`, or `y += x w^T` with `accumulate`.
///
/// `y` is row-major with rows `y_stride` elements apart; `x` is row-major, of `w`'s inputs.
pub fn project(
    y: &mut [f32],
    y_stride: usize,
    x: Mat<'_>,
    w: Weight<'_>,
    accumulate: bool,
    packing: &mut Packing,
) {
    product(y, y_stride, x, w, Direction::ToOutputs, accumulate, packing);
}

/// Backward of [`project`] to its input: `dx = dy w`, or `dx += dy w` with `accumulate`.
///
/// `dx` is row-major with rows `dx_stride` elements apart; `dy` is row-major, of `w`'s outputs.
pub fn project_grad(
    dx: &mut [f32],
    dx_stride: usize,
    dy: Mat<'_>,
    w: Weight<'_>,
    accumulate: bool,
    packing: &mut Packing,
) {
    product(dx, dx_stride, dy, w, Direction::ToInputs, accumulate, packing);
}

fn product(
    dst: &mut [f32],
    dst_stride: usize,
    lhs: Mat<'_>,
    w: Weight<'_>,
    direction: Direction,
    accumulate: bool,
    packing: &mut Packing,
) {
    let (columns, depth) = w.sizes(direction);
    let rows = lhs.rows();
    assert_eq!(lhs.cols(), depth, "inner dimensions");
    assert!(
        span(rows, columns, dst_stride, 1) <= dst.len(),
        "{rows}x{columns} (stride {dst_stride}) in {}",
        dst.len()
    );
    assert!(rows <= 1 || columns <= dst_stride, "rows of the destination overlap");
    assert!(available(), "bf16 products on a CPU without AVX-512 BF16");
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `available` says that the machine has every instruction set the function is compiled
    // for; `dst` holds `rows` rows of `columns`, as asserted.
    unsafe {
        super::bf16_avx512::multiply(dst, dst_stride, lhs, w, direction, accumulate, packing);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (accumulate, packing);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says so where the tests can't run: only on CPUs without the instructions.
    fn skipped() -> bool {
        if !available() {
            eprintln!("skipped: this CPU has no AVX-512 BF16");
        }
        !available()
    }

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        std::iter::repeat_with(next).take(n).collect()
    }

    /// Between rows of the inputs, where nothing may be read.
    const POISON: f32 = f32::NAN;
    /// Between rows of the result, where nothing may be written.
    const UNTOUCHED: f32 = 12_345.0;

    /// A product of random operands. The weight starts one number into its buffer, off every
    /// alignment, and has poison around it.
    struct Case {
        direction: Direction,
        rows: usize,
        columns: usize,
        depth: usize,
        gap: usize,
        lhs: Vec<f32>,
        weight: Vec<bf16>,
        before: Vec<f32>,
    }

    impl Case {
        fn new(direction: Direction, [rows, columns, depth]: [usize; 3], gap: usize) -> Self {
            let lhs = strided(&numbers(rows * depth, 1), depth, gap, POISON);
            let mut weight = vec![bf16::NAN; 1 + columns * depth + 64];
            for (w, x) in weight[1..].iter_mut().zip(numbers(columns * depth, 2)) {
                *w = bf16::from_f32(x);
            }
            let before = strided(&numbers(rows * columns, 3), columns, gap, UNTOUCHED);
            Self { direction, rows, columns, depth, gap, lhs, weight, before }
        }

        fn weight(&self) -> Weight<'_> {
            let values = &self.weight[1..][..self.columns * self.depth];
            match self.direction {
                Direction::ToOutputs => Weight::new(values, self.columns, self.depth),
                Direction::ToInputs => Weight::new(values, self.depth, self.columns),
            }
        }

        /// The result of the first `rows` rows.
        fn run(&self, rows: usize, accumulate: bool, packing: &mut Packing) -> Vec<f32> {
            let mut dst = self.before.clone();
            let lhs = Mat::strided(&self.lhs, rows, self.depth, self.depth + self.gap);
            let function = match self.direction {
                Direction::ToOutputs => project,
                Direction::ToInputs => project_grad,
            };
            function(&mut dst, self.columns + self.gap, lhs, self.weight(), accumulate, packing);
            dst
        }

        /// The exact sum of a result, and the sum of its terms' magnitudes.
        fn exact(&self, i: usize, j: usize, accumulate: bool) -> (f64, f64) {
            let w = self.weight();
            let old = f64::from(self.before[i * (self.columns + self.gap) + j]);
            let term = |l: usize| {
                let at = match self.direction {
                    Direction::ToOutputs => j * self.depth + l,
                    Direction::ToInputs => l * self.columns + j,
                };
                let x = bf16::from_f32(self.lhs[i * (self.depth + self.gap) + l]);
                x.to_f64() * w.values[at].to_f64()
            };
            let terms = (0..self.depth).map(term).chain(accumulate.then_some(old));
            terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()))
        }

        /// Compares with the definition. A product of two bf16 numbers is exact in f32, so each of
        /// at most `depth` additions, 4 of a register's lanes and 3 of blocks adds an error of at
        /// most half a unit in the last place of a sum that never exceeds the terms' magnitudes.
        fn check(&self, accumulate: bool, packing: &mut Packing) {
            let dst = self.run(self.rows, accumulate, packing);
            let what = (self.direction, self.rows, self.columns, self.depth, accumulate);
            for (i, row) in dst.chunks(self.columns + self.gap).enumerate() {
                for (j, &got) in row[..self.columns].iter().enumerate() {
                    let (exact, size) = self.exact(i, j, accumulate);
                    let bound = (self.depth + 7) as f64 * 0.5 * f64::from(f32::EPSILON) * size;
                    let error = (f64::from(got) - exact).abs();
                    assert!(error <= bound, "{what:?} at {i}, {j}: {got} is not {exact}");
                }
                assert!(row[self.columns..].iter().all(|&x| x == UNTOUCHED), "{what:?}: row {i}");
            }
        }
    }

    const DIRECTIONS: [Direction; 2] = [Direction::ToOutputs, Direction::ToInputs];

    /// Rows with `gap` times `filler` behind each.
    fn strided(values: &[f32], cols: usize, gap: usize, filler: f32) -> Vec<f32> {
        let filler = vec![filler; gap];
        values.chunks(cols.max(1)).flat_map(|row| [row, &filler].concat()).collect()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn equal_the_definition_for_every_shape() {
        if skipped() {
            return;
        }
        let packing = &mut Packing::default();
        let small =
            [1, 2, 3, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 66, 97, 112, 113, 129];
        for direction in DIRECTIONS {
            for (i, &columns) in small.iter().enumerate() {
                for (j, &depth) in small.iter().enumerate() {
                    let rows = 1 + (7 * i + 5 * j) % 13;
                    let case = Case::new(direction, [rows, columns, depth], (i + j) % 4);
                    case.check((i + j) % 3 == 0, packing);
                }
            }
            for rows in 1..=70 {
                for accumulate in [false, true] {
                    Case::new(direction, [rows, 49, 35], rows % 3).check(accumulate, packing);
                }
            }
        }
    }

    #[test]
    fn equal_the_definition_for_shapes_of_models() {
        if skipped() {
            return;
        }
        let packing = &mut Packing::default();
        for direction in DIRECTIONS {
            Case::new(direction, [1100, 3, 600], 1).check(false, packing);
            for rows in [1, 4, 5, 19] {
                for (columns, depth) in
                    [(172, 64), (688, 256), (256, 688), (3, 2047), (5, 2049), (50, 4100), (1, 6145)]
                {
                    for accumulate in [false, true] {
                        Case::new(direction, [rows, columns, depth], 1).check(accumulate, packing);
                    }
                }
            }
        }
    }

    #[test]
    fn empty_sizes() {
        if skipped() {
            return;
        }
        let packing = &mut Packing::default();
        for direction in DIRECTIONS {
            for rows in [0, 1, 9] {
                for columns in [0, 1, 50] {
                    Case::new(direction, [rows, columns, 0], 2).check(false, packing);
                    Case::new(direction, [rows, columns, 0], 2).check(true, packing);
                    Case::new(direction, [rows, columns * usize::from(rows == 0), 3], 2)
                        .check(false, packing);
                }
            }
        }
    }

    #[test]
    fn bits_depend_on_neither_old_buffers_nor_other_rows() {
        if skipped() {
            return;
        }
        for direction in DIRECTIONS {
            for depth in [33, 259, 2100] {
                let case = Case::new(direction, [70, 101, depth], 1);
                let mut poisoned = Packing::default();
                grown(&mut poisoned.rows, 70 * 200).fill(Line([u32::MAX; 16]));
                grown(&mut poisoned.panel, 4 * 2048).fill(Line([u32::MAX; 16]));
                let whole = bits(&case.run(70, true, &mut Packing::default()));
                assert_eq!(whole, bits(&case.run(70, true, &mut poisoned)));
                for rows in 1..70 {
                    if rows <= FEW_ROWS && direction == Direction::ToOutputs {
                        // Another order of sums: equal among themselves.
                        let few = bits(&case.run(FEW_ROWS, true, &mut poisoned));
                        let part = bits(&case.run(rows, true, &mut poisoned));
                        assert_eq!(part[..rows * 102], few[..rows * 102], "{rows} rows");
                        continue;
                    }
                    let part = bits(&case.run(rows, true, &mut poisoned));
                    assert_eq!(part[..rows * 102], whole[..rows * 102], "{rows} rows");
                }
            }
        }
    }

    #[test]
    fn rows_beyond_a_whole_block_of_rows_are_like_any() {
        if skipped() {
            return;
        }
        for direction in DIRECTIONS {
            let case = Case::new(direction, [1030, 3, 600], 0);
            let (two, six) = (&mut Packing::default(), &mut Packing::default());
            let (two, six) = (case.run(1026, false, two), case.run(1030, false, six));
            assert_eq!(bits(&two)[..1026 * 3], bits(&six)[..1026 * 3], "{direction:?}");
        }
    }

    #[test]
    fn buffers_are_kept() {
        if skipped() {
            return;
        }
        let mut packing = Packing::default();
        let large = Case::new(Direction::ToOutputs, [20, 60, 300], 0);
        large.run(20, false, &mut packing);
        let buffers = (packing.rows.as_ptr(), packing.panel.as_ptr());
        Case::new(Direction::ToInputs, [7, 60, 200], 0).run(7, false, &mut packing);
        large.run(20, false, &mut packing);
        assert_eq!(buffers, (packing.rows.as_ptr(), packing.panel.as_ptr()));
    }

    /// The product of one number with one weight.
    fn times(x: f32, w: f32) -> [f32; 2] {
        let (mut y, mut dx) = ([0.0], [0.0]);
        let (w, packing) = ([bf16::from_f32(w)], &mut Packing::default());
        let w = Weight::new(&w, 1, 1);
        project(&mut y, 1, Mat::new(&[x], 1, 1), w, false, packing);
        project_grad(&mut dx, 1, Mat::new(&[x], 1, 1), w, false, packing);
        [y[0], dx[0]]
    }

    #[test]
    fn rounds_to_the_nearest_even_and_flushes_subnormals() {
        if skipped() {
            return;
        }
        let halfway = 1.0 + 2f32.powi(-8);
        assert_eq!(times(halfway, 3.0), [3.0; 2], "halfway to an odd one: down");
        assert_eq!(times(halfway + 2f32.powi(-7), 1.0), [1.0 + 2f32.powi(-6); 2]);
        assert_eq!(times(halfway.next_up(), 1.0), [1.0 + 2f32.powi(-7); 2]);
        assert_eq!(times(f32::MAX, 1.0), [f32::INFINITY; 2], "rounds up to infinity");
        assert!(times(f32::NAN, 1.0).iter().all(|x| x.is_nan()));
        assert!(times(f32::INFINITY, 0.0).iter().all(|x| x.is_nan()));
        let tiny = f32::MIN_POSITIVE;
        assert_eq!(times(tiny, 1.0), [tiny; 2], "the smallest normal number is kept");
        assert_eq!(times(tiny / 2.0, 1.0), [0.0; 2], "a subnormal activation");
        assert_eq!(times(1.0, tiny / 2.0), [0.0; 2], "a subnormal weight");
        assert_eq!(times(tiny, 0.5), [0.0; 2], "a subnormal product");
    }

    #[test]
    #[should_panic(expected = "2x3 numbers")]
    fn a_weight_of_another_size_is_a_bug() {
        Weight::new(&[bf16::ONE; 5], 2, 3);
    }
}
