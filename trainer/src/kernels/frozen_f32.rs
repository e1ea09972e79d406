//! Products of f32 activations with a frozen f32 weight, `[outputs, inputs]` as it lies in its file.
//!
//! With AVX-512 and more than a few rows, the weight is packed panel by panel and multiplied
//! as in `bf16`; the activations are read where they are. The order of every such sum is a function
//! of the reduced length alone: equal calls give equal bits, and a row's result doesn't depend on
//! the other rows. Other CPUs, and few rows, where packing would cost more than the product, go to
//! the `gemm` crate.

use super::matmul::{Mat, matmul};
use super::packed::{self, Direction, FEW_ROWS, Packing, check_sizes};

/// A frozen weight in f32.
pub type Weight<'a> = packed::Weight<'a, f32>;

/// Whether this machine has the instructions of the packed product.
pub fn available() -> bool {
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
    if lhs.rows() <= FEW_ROWS || !available() {
        let mat = Mat::new(w.values, w.outputs, w.inputs);
        let rhs = if direction == Direction::ToOutputs { mat.t() } else { mat };
        return matmul(dst, dst_stride, lhs, rhs, 1.0, accumulate);
    }
    check_sizes(dst, dst_stride, lhs, &w, direction);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `available` says that the machine has every instruction set the function is compiled
    // for; `dst` holds the product, as checked.
    unsafe {
        super::f32_avx512::multiply(dst, dst_stride, lhs, w, direction, accumulate, packing);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = packing;
}
