//! Tests of the products with a frozen weight, for every kind of number.

use super::matmul::Mat;
use super::packed::{self, Direction, FEW_ROWS, Line, PackedWeight, Packing, Weight, grown};
use super::skip::skip_without_instructions;
use super::{bf16 as bf16_kernel, frozen_f32};
use half::bf16;

/// A number of a weight, and what the tests know of its products.
trait Number: packed::Number {
    const NAN: Self;
    /// The directions in which few rows are summed in another order than many.
    const FEW_ROWS_DIFFER: &[Direction];
    /// The fewest rows whose bits don't depend on how many there are: the `gemm` crate, which gets
    /// fewer f32 rows, promises nothing.
    const FEWEST_ROWS: usize;

    fn available() -> bool;
    fn from_f32(x: f32) -> Self;
    fn to_f64(self) -> f64;
}

/// `Number` for a type whose products are in a module.
macro_rules! number {
    ($number:ty, $module:ident, $few_rows_differ:expr, $fewest_rows:expr, $from_f32:expr) => {
        impl Number for $number {
            const NAN: Self = <$number>::NAN;
            const FEW_ROWS_DIFFER: &[Direction] = &$few_rows_differ;
            const FEWEST_ROWS: usize = $fewest_rows;

            fn available() -> bool {
                $module::available()
            }

            fn from_f32(x: f32) -> Self {
                $from_f32(x)
            }

            fn to_f64(self) -> f64 {
                f64::from(self)
            }
        }
    };
}

number!(bf16, bf16_kernel, [Direction::ToOutputs], 1, bf16::from_f32);
number!(f32, frozen_f32, [], FEW_ROWS + 1, std::convert::identity);

/// Says so where the tests can't run: only on CPUs without the instructions.
fn skipped<N: Number>() -> bool {
    if !N::available() {
        skip_without_instructions(&format!("AVX-512 for {}", std::any::type_name::<N>()));
    }
    !N::available()
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
struct Case<N> {
    direction: Direction,
    rows: usize,
    columns: usize,
    depth: usize,
    gap: usize,
    lhs: Vec<f32>,
    weight: Vec<N>,
    before: Vec<f32>,
}

impl<N: Number> Case<N> {
    fn new(direction: Direction, [rows, columns, depth]: [usize; 3], gap: usize) -> Self {
        let lhs = strided(&numbers(rows * depth, 1), depth, gap, POISON);
        let mut weight = vec![N::NAN; 1 + columns * depth + 64];
        for (w, x) in weight[1..].iter_mut().zip(numbers(columns * depth, 2)) {
            *w = N::from_f32(x);
        }
        let before = strided(&numbers(rows * columns, 3), columns, gap, UNTOUCHED);
        Self { direction, rows, columns, depth, gap, lhs, weight, before }
    }

    fn weight(&self) -> Weight<'_, N> {
        let values = &self.weight[1..][..self.columns * self.depth];
        match self.direction {
            Direction::ToOutputs => Weight::new(values, self.columns, self.depth),
            Direction::ToInputs => Weight::new(values, self.depth, self.columns),
        }
    }

    /// The result of the first `rows` rows.
    fn run(&self, rows: usize, accumulate: bool, packing: &mut Packing) -> Vec<f32> {
        self.run_with(self.weight(), rows, accumulate, packing)
    }

    fn run_with(
        &self,
        weight: Weight<'_, N>,
        rows: usize,
        accumulate: bool,
        packing: &mut Packing,
    ) -> Vec<f32> {
        let mut dst = self.before.clone();
        let lhs = Mat::strided(&self.lhs, rows, self.depth, self.depth + self.gap);
        let stride = self.columns + self.gap;
        N::multiply(&mut dst, stride, lhs, weight, self.direction, accumulate, packing);
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
            let x = N::from_f32(self.lhs[i * (self.depth + self.gap) + l]);
            x.to_f64() * w.values[at].to_f64()
        };
        let terms = (0..self.depth).map(term).chain(accumulate.then_some(old));
        terms.fold((0.0, 0.0), |(sum, size), x| (sum + x, size + x.abs()))
    }

    /// Compares with the definition. A product of two bf16 numbers is exact in f32, one of two f32
    /// numbers isn't rounded before it is added, so each of
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

fn equal_the_definition_for_every_shape<N: Number>() {
    if skipped::<N>() {
        return;
    }
    let packing = &mut Packing::default();
    let small = [1, 2, 3, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 66, 97, 112, 113, 129];
    for direction in DIRECTIONS {
        for (i, &columns) in small.iter().enumerate() {
            for (j, &depth) in small.iter().enumerate() {
                let rows = 1 + (7 * i + 5 * j) % 13;
                let case = Case::<N>::new(direction, [rows, columns, depth], (i + j) % 4);
                case.check((i + j) % 3 == 0, packing);
            }
        }
        for rows in 1..=70 {
            for accumulate in [false, true] {
                Case::<N>::new(direction, [rows, 49, 35], rows % 3).check(accumulate, packing);
            }
        }
    }
}

fn equal_the_definition_for_shapes_of_models<N: Number>() {
    if skipped::<N>() {
        return;
    }
    let packing = &mut Packing::default();
    for direction in DIRECTIONS {
        Case::<N>::new(direction, [1100, 3, 600], 1).check(false, packing);
        for rows in [1, 4, 5, 19] {
            for (columns, depth) in
                [(172, 64), (688, 256), (256, 688), (3, 2047), (5, 2049), (50, 4100), (1, 6145)]
            {
                for accumulate in [false, true] {
                    Case::<N>::new(direction, [rows, columns, depth], 1).check(accumulate, packing);
                }
            }
        }
    }
}

fn empty_sizes<N: Number>() {
    if skipped::<N>() {
        return;
    }
    let packing = &mut Packing::default();
    for direction in DIRECTIONS {
        for rows in [0, 1, 9] {
            for columns in [0, 1, 50] {
                Case::<N>::new(direction, [rows, columns, 0], 2).check(false, packing);
                Case::<N>::new(direction, [rows, columns, 0], 2).check(true, packing);
                Case::<N>::new(direction, [rows, columns * usize::from(rows == 0), 3], 2)
                    .check(false, packing);
            }
        }
    }
}

fn bits_depend_on_neither_old_buffers_nor_other_rows<N: Number>() {
    if skipped::<N>() {
        return;
    }
    for direction in DIRECTIONS {
        for depth in [33, 259, 2100] {
            let case = Case::<N>::new(direction, [70, 101, depth], 1);
            let mut poisoned = Packing::default();
            grown(&mut poisoned.rows, 70 * 200).fill(Line([u32::MAX; 16]));
            grown(&mut poisoned.panel, 4 * 2048).fill(Line([u32::MAX; 16]));
            let whole = bits(&case.run(70, true, &mut Packing::default()));
            assert_eq!(whole, bits(&case.run(70, true, &mut poisoned)));
            for rows in N::FEWEST_ROWS..70 {
                if rows <= FEW_ROWS && N::FEW_ROWS_DIFFER.contains(&direction) {
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

fn weights_that_stay_packed_give_the_same_bits<N: Number>() {
    if skipped::<N>() {
        return;
    }
    for direction in DIRECTIONS {
        for [rows, columns, depth] in [[1, 20, 40], [70, 101, 33], [9, 64, 259], [12, 160, 4100]] {
            let case = Case::<N>::new(direction, [rows, columns, depth], 1);
            let (packed, packing) = (PackedWeight::default(), &mut Packing::default());
            let once = bits(&case.run(rows, true, packing));
            for _ in 0..2 {
                let kept = case.weight().kept(Some(&packed));
                assert_eq!(once, bits(&case.run_with(kept, rows, true, packing)), "{direction:?}");
            }
        }
    }
}

fn rows_beyond_a_whole_block_of_rows_are_like_any<N: Number>() {
    if skipped::<N>() {
        return;
    }
    for direction in DIRECTIONS {
        let case = Case::<N>::new(direction, [1030, 3, 600], 0);
        let (two, six) = (&mut Packing::default(), &mut Packing::default());
        let (two, six) = (case.run(1026, false, two), case.run(1030, false, six));
        assert_eq!(bits(&two)[..1026 * 3], bits(&six)[..1026 * 3], "{direction:?}");
    }
}

fn buffers_are_kept<N: Number>() {
    if skipped::<N>() {
        return;
    }
    let mut packing = Packing::default();
    let large = Case::<N>::new(Direction::ToOutputs, [20, 60, 300], 0);
    large.run(20, false, &mut packing);
    let buffers = (packing.rows.as_ptr(), packing.panel.as_ptr());
    Case::<N>::new(Direction::ToInputs, [7, 60, 200], 0).run(7, false, &mut packing);
    large.run(20, false, &mut packing);
    assert_eq!(buffers, (packing.rows.as_ptr(), packing.panel.as_ptr()));
}

/// The tests for one kind of number.
macro_rules! tests {
    ($name:ident, $number:ty) => {
        mod $name {
            #[test]
            fn equal_the_definition_for_every_shape() {
                super::equal_the_definition_for_every_shape::<$number>();
            }

            #[test]
            fn equal_the_definition_for_shapes_of_models() {
                super::equal_the_definition_for_shapes_of_models::<$number>();
            }

            #[test]
            fn empty_sizes() {
                super::empty_sizes::<$number>();
            }

            #[test]
            fn bits_depend_on_neither_old_buffers_nor_other_rows() {
                super::bits_depend_on_neither_old_buffers_nor_other_rows::<$number>();
            }

            #[test]
            fn weights_that_stay_packed_give_the_same_bits() {
                super::weights_that_stay_packed_give_the_same_bits::<$number>();
            }

            #[test]
            fn rows_beyond_a_whole_block_of_rows_are_like_any() {
                super::rows_beyond_a_whole_block_of_rows_are_like_any::<$number>();
            }

            #[test]
            fn buffers_are_kept() {
                super::buffers_are_kept::<$number>();
            }
        }
    };
}

tests!(of_bf16, half::bf16);
tests!(of_f32, f32);
