//! What the products with frozen weights share: the weight as it lies in its file, its buffers, and
//! the check of their sizes. `packed_avx512` multiplies.

use super::matmul::{Mat, span};

/// The most rows of activations that are multiplied without packing the weight.
pub const FEW_ROWS: usize = 4;

/// A frozen weight, `[outputs, inputs]` row-major, as in a safetensors file.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a, E> {
    pub(super) values: &'a [E],
    pub(super) outputs: usize,
    pub(super) inputs: usize,
}

impl<'a, E> Weight<'a, E> {
    /// The weight of a projection from `inputs` to `outputs` numbers.
    pub fn new(values: &'a [E], outputs: usize, inputs: usize) -> Self {
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

/// One cache line, one AVX-512 register: 16 lanes of an f32 or a pair of bf16 numbers.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u32; 16]);

/// Buffers for rounded activations and one packed panel of a weight. Grown as needed and then
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

/// Panics if a product has operands of the wrong sizes.
pub(super) fn check_sizes<E>(
    dst: &[f32],
    dst_stride: usize,
    lhs: Mat<'_>,
    w: &Weight<'_, E>,
    direction: Direction,
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
}
