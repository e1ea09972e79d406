//! The types of tensors: all that a file may name, and the values of those that are read.

use half::{bf16, f16};

use crate::backbone::WeightType;
use crate::kernels::q8_0;

/// A type of tensor: blocks of values, one after another along a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorType {
    id: u32,
    /// As llama.cpp spells it.
    pub name: &'static str,
    /// Values in a block.
    pub block: u64,
    /// Bytes of a block.
    pub block_bytes: u64,
}

/// Types by their number in a file. Those that are not read are here to be refused by name, after
/// their place in the file has been checked like any other's.
const TYPES: [(u32, &str, u64, u64); 34] = [
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 40),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
];

/// A type that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dtype {
    F32,
    F16,
    Bf16,
    /// Blocks of 32: a scale in f16, then 32 i8.
    Q8_0,
    /// Blocks of 32: a scale in f16, then 4 bits each, counted from -8.
    Q4_0,
    /// Blocks of 32: a scale and an offset in f16, then 4 bits each, counted from 0.
    Q4_1,
}

impl TensorType {
    /// By the number the file has for it.
    pub fn of(id: u32) -> Option<Self> {
        let known = TYPES.iter().find(|known| known.0 == id);
        known.map(|&(id, name, block, block_bytes)| Self { id, name, block, block_bytes })
    }

    /// The type as one that is read.
    pub fn dtype(self) -> Option<Dtype> {
        match self.id {
            0 => Some(Dtype::F32),
            1 => Some(Dtype::F16),
            2 => Some(Dtype::Q4_0),
            3 => Some(Dtype::Q4_1),
            8 => Some(Dtype::Q8_0),
            30 => Some(Dtype::Bf16),
            _ => None,
        }
    }
}

impl Dtype {
    /// Whether the values are as a weight of this type keeps them in memory.
    pub fn is(self, weight_type: WeightType) -> bool {
        matches!(
            (self, weight_type),
            (Self::F32, WeightType::F32)
                | (Self::Bf16, WeightType::Bf16)
                | (Self::Q8_0, WeightType::Q8_0)
        )
    }

    /// Appends the values of whole blocks.
    pub fn decode(self, bytes: &[u8], values: &mut Vec<f32>) {
        match self {
            Self::F32 => values.extend(words(bytes).map(f32::from_le_bytes)),
            Self::F16 => values.extend(words(bytes).map(|b| f16::from_le_bytes(b).to_f32())),
            Self::Bf16 => values.extend(words(bytes).map(|b| bf16::from_le_bytes(b).to_f32())),
            Self::Q8_0 => {
                let blocks = bytes.as_chunks().0;
                let start = values.len();
                values.resize(start + blocks.len() * q8_0::BLOCK, 0.0);
                q8_0::dequantize(blocks, &mut values[start..]);
            }
            Self::Q4_0 => {
                for [d0, d1, quants @ ..] in words::<18>(bytes) {
                    let scale = f16::from_le_bytes([d0, d1]).to_f32();
                    values.extend(nibbles(&quants).map(|q| scale * (f32::from(q) - 8.0)));
                }
            }
            Self::Q4_1 => {
                for [d0, d1, m0, m1, quants @ ..] in words::<20>(bytes) {
                    let scale = f16::from_le_bytes([d0, d1]).to_f32();
                    let offset = f16::from_le_bytes([m0, m1]).to_f32();
                    values.extend(nibbles(&quants).map(|q| scale * f32::from(q) + offset));
                }
            }
        }
    }
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks().0.iter().copied()
}

/// The low halves of all bytes, then the high halves.
fn nibbles(bytes: &[u8; 16]) -> impl Iterator<Item = u8> + '_ {
    bytes.iter().map(|byte| byte & 15).chain(bytes.iter().map(|byte| byte >> 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random blocks of each type and what the Python package gguf makes of them: written by
    /// `check_gguf.py blocks`.
    #[test]
    fn blocks_have_the_values_of_the_reference() {
        let text = include_str!("../../../tests/golden/gguf_blocks.json");
        let golden: serde_json::Value = serde_json::from_str(text).unwrap();
        let types = golden.as_object().unwrap();
        assert_eq!(types.len(), 6);
        for (name, blocks) in types {
            let id = TYPES.iter().find(|known| known.1 == name).unwrap().0;
            let dtype = TensorType::of(id).and_then(TensorType::dtype).unwrap();
            let bytes: Vec<u8> = serde_json::from_value(blocks["bytes"].clone()).unwrap();
            let bits: Vec<u32> = serde_json::from_value(blocks["bits"].clone()).unwrap();
            let mut values = Vec::new();
            dtype.decode(&bytes, &mut values);
            let found: Vec<u32> = values.iter().map(|value| value.to_bits()).collect();
            assert_eq!(found, bits, "{name}");
        }
    }
}
