//! Products of f32 activations with a frozen bf16 weight, on CPUs with AVX-512 BF16.
//!
//! The weight is used as it lies in its file: `[outputs, inputs]`, two bytes a number, at any even
//! address (a mapped file). The activations are rounded to bf16 (to nearest, ties to even), products
//! are accumulated in f32: `vdpbf16ps` adds two products to every one of 16 sums, twice the work of
//! an f32 fused multiply-add, and the weight takes half the memory traffic. That instruction, like
//! the rounding, takes subnormal numbers as zero and flushes subnormal results to zero, whatever the
//! thread's floating-point mode.
//!
//! The order of every sum is a function of the reduced length alone, with one exception: the
//! forward sums in another order for at most four rows, where packing the weight would cost more
//! than the product. So equal calls give equal bits, and a row's result doesn't depend on the other
//! rows.

use super::matmul::Mat;
use super::packed::{Direction, Number, Packing, Weight, check_sizes};
use half::bf16;

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

impl Number for bf16 {
    fn multiply(
        dst: &mut [f32],
        dst_stride: usize,
        lhs: Mat<'_>,
        w: Weight<'_, Self>,
        direction: Direction,
        accumulate: bool,
        packing: &mut Packing,
    ) {
        check_sizes(dst, dst_stride, lhs, &w, direction);
        assert!(available(), "bf16 products on a CPU without AVX-512 BF16");
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `available` says that the machine has every instruction set that multiplies such
        // numbers; `dst` holds the product, as checked.
        unsafe {
            super::packed_avx512::multiply(dst, dst_stride, lhs, w, direction, accumulate, packing);
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (accumulate, packing);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::skip::skip_without_instructions;

    /// Says so where the tests can't run: only on CPUs without the instructions.
    fn skipped() -> bool {
        if !available() {
            skip_without_instructions("AVX-512 BF16");
        }
        !available()
    }

    /// The product of one number with one weight.
    fn times(x: f32, w: f32) -> [f32; 2] {
        let (mut y, mut dx) = ([0.0], [0.0]);
        let (w, packing) = ([bf16::from_f32(w)], &mut Packing::default());
        let w = Weight::new(&w, 1, 1);
        let x = [x];
        let x = Mat::new(&x, 1, 1);
        bf16::multiply(&mut y, 1, x, w, Direction::ToOutputs, false, packing);
        bf16::multiply(&mut dx, 1, x, w, Direction::ToInputs, false, packing);
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
