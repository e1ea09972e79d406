//! What the products with frozen weights share: the weight as it lies in its file, its buffers, and
//! the check of their sizes. `bf16` and `frozen_f32` say what multiplies which numbers, `packed_avx512` does.

use std::sync::OnceLock;

use super::matmul::{Mat, span};

/// The most rows of activations that are multiplied without packing the weight.
pub const FEW_ROWS: usize = 4;

/// A frozen weight, `[outputs, inputs]` row-major, as in a safetensors file.
#[derive(Clone, Copy, Debug)]
pub struct Weight<'a, E> {
    pub(super) values: &'a [E],
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) packed: Option<&'a PackedWeight>,
}

impl<'a, E> Weight<'a, E> {
    /// The weight of a projection from `inputs` to `outputs` numbers.
    pub fn new(values: &'a [E], outputs: usize, inputs: usize) -> Self {
        assert_eq!(outputs.checked_mul(inputs), Some(values.len()), "{outputs}x{inputs} numbers");
        Self { values, outputs, inputs, packed: None }
    }

    /// The same weight, whose packed form is kept here.
    pub fn kept(self, packed: Option<&'a PackedWeight>) -> Self {
        Self { packed, ..self }
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

/// A whole weight in packed form, for as long as the weight lives: packed by the first product in each
/// direction. It takes as much memory again as the weight, twice if both directions are used, and
/// saves packing it for every sequence. The same numbers are multiplied in the same order.
#[derive(Debug, Default)]
pub struct PackedWeight {
    to_outputs: OnceLock<Vec<Line>>,
    to_inputs: OnceLock<Vec<Line>>,
}

impl PackedWeight {
    /// The panels of a direction, one after the other.
    pub(super) fn panels(&self, direction: Direction, pack: impl FnOnce() -> Vec<Line>) -> &[Line] {
        match direction {
            Direction::ToOutputs => self.to_outputs.get_or_init(pack),
            Direction::ToInputs => self.to_inputs.get_or_init(pack),
        }
    }
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

/// A number of a frozen weight, and how it is multiplied.
pub(super) trait Number: Copy {
    /// `dst = lhs wᵀ` or `dst = lhs w`, by `direction`; `+=` with `accumulate`. `dst` and `lhs` are row-major, rows of
    /// `dst` `dst_stride` elements apart.
    fn multiply(
        dst: &mut [f32],
        dst_stride: usize,
        lhs: Mat<'_>,
        w: Weight<'_, Self>,
        direction: Direction,
        accumulate: bool,
        packing: &mut Packing,
    );
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
