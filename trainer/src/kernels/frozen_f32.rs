//! Products of f32 activations with a frozen f32 weight, `[outputs, inputs]` as it lies in its file.
//!
//! With AVX-512 and more than a few rows, the weight is packed panel by panel and multiplied
//! as in `bf16`; the activations are read where they are. The order of every such sum is a function
//! of the reduced length alone: equal calls give equal bits, and a row's result doesn't depend on
//! the other rows. Other CPUs, and few rows, where packing would cost more than the product, go to
//! the `gemm` crate.

use super::matmul::{Mat, matmul};
use super::packed::{Direction, FEW_ROWS, Number, Packing, Weight, check_sizes};

/// Whether this machine has the instructions of the packed product.
pub(super) fn available() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

impl Number for f32 {
    fn multiply(
        dst: &mut [f32],
        dst_stride: usize,
        lhs: Mat<'_>,
        w: Weight<'_, Self>,
        direction: Direction,
        accumulate: bool,
        packing: &mut Packing,
    ) {
        if lhs.rows() <= FEW_ROWS || !available() {
            let mat = Mat::new(w.values, w.outputs, w.inputs);
            let rhs = if direction == Direction::ToOutputs { mat.t() } else { mat };
            return matmul(dst, dst_stride, lhs, rhs, 1.0, accumulate);
        }
        check_sizes(dst, dst_stride, lhs, &w, direction);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `available` says that the machine has every instruction set that multiplies such
        // numbers; `dst` holds the product, as checked.
        unsafe {
            super::packed_avx512::multiply(dst, dst_stride, lhs, w, direction, accumulate, packing);
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = packing;
    }
}
