//! Products with a frozen weight: forward, and backward to the input. A gradient of the weight does
//! not exist here.
//!
//! Weights are `[outputs, inputs]`, as files hold them, so that a mapped file is used in place.

use half::bf16;

use super::packed::{Direction, Number, PackedWeight, Packing, Weight};
use super::pointwise::widen;
use super::q8_0::{BLOCK, BlockQ8_0, dequantize};
use super::{Mat, bf16::available, matmul};

/// Values that are widened to f32 at a time, where a product has no kernel of its own: a panel that
/// stays in the second-level cache.
const PANEL: usize = 1 << 17;

/// With fewer rows, packing an f32 weight for the backward costs more than it saves: the general
/// product reads it where it is.
const FEW_BACKWARD_ROWS: usize = 64;

/// A frozen weight `[outputs, inputs]`, row-major.
#[derive(Clone, Copy, Debug)]
pub struct FrozenMat<'a> {
    values: FrozenValues<'a>,
    outputs: usize,
    inputs: usize,
    packed: Option<&'a PackedWeight>,
}

/// How the values of a frozen weight are stored.
#[derive(Clone, Copy, Debug)]
pub enum FrozenValues<'a> {
    /// 4 bytes each.
    F32(&'a [f32]),
    /// 2 bytes each: the upper half of an f32.
    Bf16(&'a [bf16]),
    /// 34 bytes for 32: GGUF's Q8_0. Rows are whole blocks.
    Q8_0(&'a [BlockQ8_0]),
}

/// Reusable buffers of the products.
#[derive(Debug, Default)]
pub struct FrozenBuffers {
    /// Weights widened to f32.
    panel: Vec<f32>,
    /// For CPUs with AVX-512.
    packing: Packing,
}

impl<'a> FrozenMat<'a> {
    /// A weight of these sizes.
    pub fn new(values: FrozenValues<'a>, outputs: usize, inputs: usize) -> Self {
        let length = match values {
            FrozenValues::F32(values) => values.len(),
            FrozenValues::Bf16(values) => values.len(),
            FrozenValues::Q8_0(blocks) => {
                assert!(inputs.is_multiple_of(BLOCK), "rows of {inputs} in blocks of {BLOCK}");
                blocks.len() * BLOCK
            }
        };
        assert_eq!(length, outputs * inputs, "values of a weight of {outputs}x{inputs}");
        Self { values, outputs, inputs, packed: None }
    }

    /// The same weight, whose packed form is kept here, where its products pack it.
    pub fn kept(self, packed: Option<&'a PackedWeight>) -> Self {
        Self { packed, ..self }
    }

    /// Rows.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Columns.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Rows `first..first + out.len() / inputs` as f32.
    pub fn widen(&self, first: usize, out: &mut [f32]) {
        let range = first * self.inputs..first * self.inputs + out.len();
        match self.values {
            FrozenValues::F32(values) => out.copy_from_slice(&values[range]),
            FrozenValues::Bf16(values) => widen(&values[range], out),
            FrozenValues::Q8_0(blocks) => {
                dequantize(&blocks[range.start / BLOCK..range.end / BLOCK], out);
            }
        }
    }

    /// Calls `work(first, panel)` for all rows, some at a time, widened to f32.
    fn panels(&self, buffer: &mut Vec<f32>, mut work: impl FnMut(usize, Weight<'_, f32>)) {
        let step = (PANEL / self.inputs.max(1)).max(1);
        for first in (0..self.outputs).step_by(step) {
            let rows = step.min(self.outputs - first);
            buffer.resize(rows * self.inputs, 0.0);
            self.widen(first, buffer);
            work(first, Weight::new(buffer, rows, self.inputs));
        }
    }
}

/// Forward: `dst = x wᵀ`, or `dst += x wᵀ` with `accumulate`. `x` `[rows, inputs]`; `dst`
/// `[rows, outputs]` with rows `stride` elements apart.
pub fn project(
    dst: &mut [f32],
    stride: usize,
    x: Mat<'_>,
    w: FrozenMat<'_>,
    accumulate: bool,
    buffers: &mut FrozenBuffers,
) {
    multiply(dst, stride, x, w, Direction::ToOutputs, accumulate, buffers);
}

/// Backward to the input: `dx = dy w`, or `dx += dy w` with `accumulate`. `dy` `[rows, outputs]`;
/// `dx` `[rows, inputs]`, dense.
pub fn project_grad(
    dx: &mut [f32],
    dy: Mat<'_>,
    w: FrozenMat<'_>,
    accumulate: bool,
    buffers: &mut FrozenBuffers,
) {
    if let FrozenValues::F32(values) = w.values
        && dy.rows() < FEW_BACKWARD_ROWS
    {
        return matmul(dx, w.inputs, dy, Mat::new(values, w.outputs, w.inputs), 1.0, accumulate);
    }
    multiply(dx, w.inputs, dy, w, Direction::ToInputs, accumulate, buffers);
}

fn multiply(
    dst: &mut [f32],
    stride: usize,
    lhs: Mat<'_>,
    w: FrozenMat<'_>,
    direction: Direction,
    accumulate: bool,
    buffers: &mut FrozenBuffers,
) {
    let packing = &mut buffers.packing;
    match w.values {
        FrozenValues::F32(values) => {
            let w = Weight::new(values, w.outputs, w.inputs).kept(w.packed);
            f32::multiply(dst, stride, lhs, w, direction, accumulate, packing);
        }
        // The other factor is rounded to bf16 too.
        FrozenValues::Bf16(values) if available() => {
            let w = Weight::new(values, w.outputs, w.inputs).kept(w.packed);
            bf16::multiply(dst, stride, lhs, w, direction, accumulate, packing);
        }
        _ => w.panels(&mut buffers.panel, |first, panel| match direction {
            Direction::ToOutputs => {
                f32::multiply(
                    &mut dst[first..],
                    stride,
                    lhs,
                    panel,
                    direction,
                    accumulate,
                    packing,
                );
            }
            Direction::ToInputs => {
                let (lhs, add) = (lhs.columns(first, panel.outputs), accumulate || first > 0);
                f32::multiply(dst, stride, lhs, panel, direction, add, packing);
            }
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::super::q8_0::quantize_row;
    use super::*;

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        (0..n).map(|i| ((i as u32 * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    fn narrow(values: &[f32]) -> Vec<bf16> {
        values.iter().map(|x| bf16::from_f32(*x)).collect()
    }

    /// Sizes on both sides of a panel; every storage gives the product with its own values.
    #[test]
    fn both_products_equal_the_definition() {
        for (rows, outputs, inputs) in [(1, 1, 1), (3, 5, 7), (2, 700, 224), (5, 172, 64)] {
            let (x, w) = (numbers(rows * inputs, 1), numbers(outputs * inputs, 2));
            let dy = numbers(rows * outputs, 3);
            let narrowed = narrow(&w);
            let mut storages = vec![FrozenValues::F32(&w), FrozenValues::Bf16(&narrowed)];
            let blocks = quantize_row(&w).ok().filter(|_| inputs.is_multiple_of(BLOCK));
            storages.extend(blocks.as_deref().map(FrozenValues::Q8_0));
            for values in storages {
                let mat = FrozenMat::new(values, outputs, inputs);
                let mut widened = vec![0.0; outputs * inputs];
                mat.widen(0, &mut widened);
                let mut buffers = FrozenBuffers::default();
                let stride = outputs + 2;
                let mut y = vec![0.5; rows * stride];
                project(&mut y, stride, Mat::new(&x, rows, inputs), mat, true, &mut buffers);
                let mut dx = vec![0.5; rows * inputs];
                project_grad(&mut dx, Mat::new(&dy, rows, outputs), mat, true, &mut buffers);
                let product = |a: &dyn Fn(usize) -> f32, b: &dyn Fn(usize) -> f32, n: usize| {
                    (0..n).map(|i| f64::from(a(i)) * f64::from(b(i))).sum::<f64>() + 0.5
                };
                let close = |got: f32, exact: f64, terms: usize| {
                    let tolerance =
                        2e-7 * terms as f64 + tolerance_of_inputs(&values) * terms as f64;
                    assert!((f64::from(got) - exact).abs() <= tolerance, "{got} {exact}");
                };
                for row in 0..rows {
                    for output in 0..outputs {
                        let exact = product(
                            &|i| x[row * inputs + i],
                            &|i| widened[output * inputs + i],
                            inputs,
                        );
                        close(y[row * stride + output], exact, inputs);
                    }
                    assert_eq!(&y[row * stride + outputs..][..2], &[0.5; 2]);
                    for input in 0..inputs {
                        let exact = product(
                            &|i| dy[row * outputs + i],
                            &|i| widened[i * inputs + input],
                            outputs,
                        );
                        close(dx[row * inputs + input], exact, outputs);
                    }
                }
            }
        }
    }

    /// What rounding the other factor to bf16 may cost per term of size 1.
    fn tolerance_of_inputs(values: &FrozenValues<'_>) -> f64 {
        match values {
            FrozenValues::F32(_) | FrozenValues::Q8_0(_) => 0.0,
            FrozenValues::Bf16(_) => 1.0 / 512.0,
        }
    }
}
