//! Names, shapes and places of tensors in a flat vector, without their values.

use std::ops::Range;

use crate::error::{Result, TrainerError};

/// What a tensor's values are before training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Init {
    /// 0.
    Zero,
    /// Uniform in ±1/√n, n the last dimension: Kaiming's rule for the inputs of a linear layer.
    Uniform,
    /// Normal with the variance 2 / (height + width) of a matrix (Glorot and Bengio, 2010).
    XavierNormal,
}

/// Where one tensor lies in a flat parameter vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorLayout {
    /// Full name, e.g. `model.layers.0.self_attn.q_proj.lora_A`.
    pub name: String,
    /// Shape, row-major: `[out, in]` of a weight, `[out]` of a bias, `[rows, width]` of a table.
    pub shape: Vec<usize>,
    /// Range of the flat vector.
    pub range: Range<usize>,
    /// What its values are before training.
    pub init: Init,
}

/// Tensors that lie one after the other in a flat vector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParameterLayout {
    tensors: Vec<TensorLayout>,
    len: usize,
}

impl ParameterLayout {
    /// Puts a tensor behind the others, and returns its place.
    ///
    /// # Errors
    /// [`TrainerError::Input`] for a vector that no memory could hold.
    pub fn push(&mut self, name: String, shape: &[usize], init: Init) -> Result<Range<usize>> {
        let end = shape
            .iter()
            .try_fold(1usize, |n, d| n.checked_mul(*d))
            .and_then(|n| self.len.checked_add(n))
            .filter(|end| *end <= isize::MAX as usize / 4);
        let Some(end) = end else {
            return Err(TrainerError::Input(format!("{name} {shape:?} is too large")));
        };
        let range = self.len..end;
        self.len = end;
        self.tensors.push(TensorLayout { name, shape: shape.to_vec(), range: range.clone(), init });
        Ok(range)
    }

    /// All tensors, in the order of the vector.
    pub fn tensors(&self) -> &[TensorLayout] {
        &self.tensors
    }

    /// Length of the vector.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Name of the tensor that the vector has at `place`.
    pub fn name_at(&self, place: usize) -> Option<&str> {
        let tensor = self.tensors.iter().find(|tensor| tensor.range.contains(&place))?;
        Some(&tensor.name)
    }
}
