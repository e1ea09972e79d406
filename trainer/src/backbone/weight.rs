//! Frozen weights in memory: mapped where a file holds them as they are used, otherwise owned.

use std::sync::Arc;

use half::bf16;
use half::slice::HalfBitsSliceExt;
use reclora_storage::mmap::{Mapped, Pod};

use crate::config::WeightType;
use crate::kernels::{FrozenMat, FrozenValues};

/// A frozen matrix `[outputs, inputs]`, row-major.
#[derive(Debug)]
pub(crate) struct Weight {
    outputs: usize,
    inputs: usize,
    values: Values,
}

#[derive(Debug)]
enum Values {
    F32(Numbers<f32>),
    /// Bits of bf16.
    Bf16(Numbers<u16>),
}

/// Numbers of a file or of this process.
#[derive(Debug)]
enum Numbers<T> {
    Owned(Vec<T>),
    /// Checked when it was made: the view exists.
    Mapped {
        file: Arc<Mapped>,
        offset: usize,
        count: usize,
    },
}

impl<T: Pod> Numbers<T> {
    fn as_slice(&self) -> &[T] {
        match self {
            Self::Owned(values) => values,
            Self::Mapped { file, offset, count } => file.view(*offset, *count).unwrap_or_default(),
        }
    }

    /// Numbers at a byte offset of a file; `None` where they are not aligned.
    fn mapped(file: &Arc<Mapped>, offset: usize, count: usize) -> Option<Self> {
        file.view::<T>(offset, count)?;
        Some(Self::Mapped { file: Arc::clone(file), offset, count })
    }
}

impl Weight {
    /// A matrix of f32 values, stored as `weight_type` says. The caller knows their number is right.
    pub fn from_f32(
        outputs: usize,
        inputs: usize,
        values: Vec<f32>,
        weight_type: WeightType,
    ) -> Self {
        let values = match weight_type {
            WeightType::F32 => Values::F32(Numbers::Owned(values)),
            WeightType::Bf16 => {
                let bits = values.iter().map(|x| bf16::from_f32(*x).to_bits()).collect();
                Values::Bf16(Numbers::Owned(bits))
            }
        };
        Self { outputs, inputs, values }
    }

    /// A matrix used in place, of a file whose values at `offset` are of type `weight_type`; `None`
    /// where they are not aligned for it.
    pub fn mapped(
        file: &Arc<Mapped>,
        offset: usize,
        [outputs, inputs]: [usize; 2],
        weight_type: WeightType,
    ) -> Option<Self> {
        let count = outputs * inputs;
        let values = match weight_type {
            WeightType::F32 => Values::F32(Numbers::mapped(file, offset, count)?),
            WeightType::Bf16 => Values::Bf16(Numbers::mapped(file, offset, count)?),
        };
        Some(Self { outputs, inputs, values })
    }

    /// What the kernels multiply with.
    pub fn mat(&self) -> FrozenMat<'_> {
        let values = match &self.values {
            Values::F32(values) => FrozenValues::F32(values.as_slice()),
            Values::Bf16(bits) => FrozenValues::Bf16(bits.as_slice().reinterpret_cast()),
        };
        FrozenMat::new(values, self.outputs, self.inputs)
    }
}
