//! Frozen weights in memory: mapped where a file holds them as they are used, otherwise owned.

use std::sync::Arc;

use bytemuck::Pod;
use half::bf16;
use half::slice::HalfBitsSliceExt;
use reclora_storage::mmap::Mapped;

use crate::backbone::WeightType;
use crate::kernels::q8_0::{BLOCK, BLOCK_BYTES, QuantizeError, quantize_row};
use crate::kernels::{FrozenMat, FrozenValues, PackedWeight};

/// A frozen matrix `[outputs, inputs]`, row-major.
#[derive(Debug)]
pub(crate) struct Weight {
    outputs: usize,
    inputs: usize,
    values: Values,
    /// Where it is to stay packed.
    packed: Option<PackedWeight>,
}

#[derive(Debug)]
enum Values {
    F32(Numbers<f32>),
    /// Bits of bf16.
    Bf16(Numbers<u16>),
    /// Blocks, byte by byte.
    Q8_0(Numbers<u8>),
}

/// Numbers of a file or of this process.
#[derive(Debug)]
pub(crate) enum Numbers<T> {
    /// In the memory of this process.
    Owned(Vec<T>),
    /// Checked when it was made: the view exists.
    Mapped { file: Arc<Mapped>, offset: usize, count: usize },
}

impl<T: Pod> Numbers<T> {
    /// The numbers, wherever they are.
    pub fn as_slice(&self) -> &[T] {
        match self {
            Self::Owned(values) => values,
            Self::Mapped { file, offset, count } => file.view(*offset, *count).unwrap_or_default(),
        }
    }

    /// Numbers at a byte offset of a file; `None` where they are not aligned.
    pub fn mapped(file: &Arc<Mapped>, offset: usize, count: usize) -> Option<Self> {
        file.view::<T>(offset, count)?;
        Some(Self::Mapped { file: Arc::clone(file), offset, count })
    }
}

impl Weight {
    /// Whether a matrix of this shape can be stored as `weight_type`, whatever its values.
    pub fn check_shape(
        [_, inputs]: [usize; 2],
        weight_type: WeightType,
    ) -> Result<(), QuantizeError> {
        match weight_type {
            WeightType::Q8_0 if !inputs.is_multiple_of(BLOCK) => Err(QuantizeError::Length(inputs)),
            _ => Ok(()),
        }
    }

    /// A matrix without values, where only its being there matters.
    pub fn empty() -> Self {
        let values = Values::F32(Numbers::Owned(Vec::new()));
        Self { outputs: 0, inputs: 0, values, packed: None }
    }

    /// A matrix of f32 values, stored as `weight_type` says. The caller knows their number is right.
    pub fn from_f32(
        [outputs, inputs]: [usize; 2],
        values: Vec<f32>,
        weight_type: WeightType,
    ) -> Result<Self, QuantizeError> {
        let values = match weight_type {
            WeightType::F32 => Values::F32(Numbers::Owned(values)),
            WeightType::Bf16 => {
                let bits = values.iter().map(|x| bf16::from_f32(*x).to_bits()).collect();
                Values::Bf16(Numbers::Owned(bits))
            }
            WeightType::Q8_0 => {
                let mut bytes = Vec::with_capacity(values.len() / BLOCK * BLOCK_BYTES);
                for row in values.chunks_exact(inputs) {
                    bytes.extend_from_slice(quantize_row(row)?.as_flattened());
                }
                Values::Q8_0(Numbers::Owned(bytes))
            }
        };
        Ok(Self { outputs, inputs, values, packed: None })
    }

    /// A matrix of Q8_0 blocks, row after row. The caller knows their number is right.
    pub fn from_q8_0([outputs, inputs]: [usize; 2], blocks: Vec<u8>) -> Self {
        Self { outputs, inputs, values: Values::Q8_0(Numbers::Owned(blocks)), packed: None }
    }

    /// A matrix used in place, of a file whose values at `offset` are of type `weight_type`; `None`
    /// where they can't be: files are little-endian, and may not be aligned.
    pub fn mapped(
        file: &Arc<Mapped>,
        offset: usize,
        [outputs, inputs]: [usize; 2],
        weight_type: WeightType,
    ) -> Option<Self> {
        let count = outputs * inputs;
        let values = match weight_type {
            WeightType::Q8_0 => {
                let bytes = count / BLOCK * BLOCK_BYTES;
                Values::Q8_0(Numbers::mapped(file, offset, bytes)?)
            }
            _ if cfg!(target_endian = "big") => return None,
            WeightType::F32 => Values::F32(Numbers::mapped(file, offset, count)?),
            WeightType::Bf16 => Values::Bf16(Numbers::mapped(file, offset, count)?),
        };
        Some(Self { outputs, inputs, values, packed: None })
    }

    /// What the kernels multiply with.
    pub fn mat(&self) -> FrozenMat<'_> {
        let values = match &self.values {
            Values::F32(values) => FrozenValues::F32(values.as_slice()),
            Values::Bf16(bits) => FrozenValues::Bf16(bits.as_slice().reinterpret_cast()),
            Values::Q8_0(bytes) => FrozenValues::Q8_0(bytes.as_slice().as_chunks().0),
        };
        FrozenMat::new(values, self.outputs, self.inputs).kept(self.packed.as_ref())
    }

    /// Bytes that the packed forms of both directions take; `None` where the weight is not packed.
    pub fn packed_bytes(&self) -> Option<usize> {
        let size = match &self.values {
            Values::F32(_) => size_of::<f32>(),
            Values::Bf16(_) => size_of::<bf16>(),
            Values::Q8_0(_) => return None,
        };
        Some(2 * size * self.outputs * self.inputs)
    }

    /// Lets the products keep what they pack.
    pub fn keep_packed(&mut self) {
        self.packed = Some(PackedWeight::default());
    }
}
