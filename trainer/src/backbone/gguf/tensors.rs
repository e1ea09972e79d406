//! Tensors by their Hugging Face names, with their rows in Hugging Face's order.
//!
//! For the architecture `llama`, the converter of llama.cpp reorders the rows of the query and key
//! projections: a rotary pair is two neighbours there, one of each half of the head here. A row is
//! whole blocks in every type, so the order is undone without decoding.

use std::ops::Range;

use super::Gguf;
use super::config::Architecture;
use super::parse::TensorInfo;
use super::rope::FACTORS;
use super::types::Dtype;
use crate::backbone::{Weight, WeightType};
use crate::error::{Result, TrainerError};
use crate::kernels::q8_0::QuantizeError;

/// Hugging Face's names within a block, and the file's.
const BLOCK_NAMES: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// Hugging Face's names outside of the blocks, and the file's.
const OUTER_NAMES: [(&str, &str); 3] = [
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
];

/// In which order the file has the rows of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowOrder {
    /// As Hugging Face has them.
    Same,
    /// In heads of this many rows, the two rows of a rotary pair are neighbours.
    PairsTogether(usize),
}

impl RowOrder {
    /// The row in the file that is row `row` of the matrix.
    pub fn in_file(self, row: usize) -> usize {
        match self {
            Self::Same => row,
            Self::PairsTogether(head_dim) => {
                let (within, half) = (row % head_dim, head_dim / 2);
                row - within + 2 * (within % half) + within / half
            }
        }
    }
}

/// A tensor in the file.
#[derive(Debug)]
pub(crate) struct Tensor {
    pub dtype: Dtype,
    /// `[outputs, inputs]`, or `[width]`.
    pub shape: Vec<usize>,
    /// Its bytes in the file, row after row.
    pub range: Range<usize>,
    pub rows: RowOrder,
}

/// The file's name of a tensor; `None` for a name that is no decoder's.
fn file_name(name: &str) -> Option<String> {
    if let Some((_, outer)) = OUTER_NAMES.iter().find(|(known, _)| *known == name) {
        return Some((*outer).to_owned());
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (stem, suffix) = rest.rsplit_once('.')?;
    let (_, inner) = BLOCK_NAMES.iter().find(|(known, _)| *known == stem)?;
    Some(format!("blk.{layer}.{inner}.{suffix}"))
}

/// Whether a decoder of `layers` blocks has a tensor of this name in a file.
fn is_known(name: &str, architecture: Architecture, layers: u64) -> bool {
    if name == FACTORS || OUTER_NAMES.iter().any(|(_, known)| *known == name) {
        return true;
    }
    let parts = || {
        let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
        let (stem, suffix) = rest.split_once('.')?;
        let inside = layer.parse::<u64>().is_ok_and(|layer| layer < layers);
        Some((stem, suffix)).filter(|_| inside)
    };
    let Some((stem, suffix)) = parts() else { return false };
    match (stem, suffix) {
        ("attn_q_norm" | "attn_k_norm", "weight") => architecture == Architecture::Qwen3,
        (_, "weight") => BLOCK_NAMES.iter().any(|(_, known)| *known == stem),
        ("attn_q" | "attn_k" | "attn_v", "bias") => architecture != Architecture::Qwen3,
        ("attn_output", "bias") => architecture == Architecture::Llama,
        _ => false,
    }
}

impl Gguf {
    /// An error about a tensor, by its name in the file.
    pub(super) fn fail_tensor<T>(&self, name: &str, what: &str) -> Result<T> {
        Err(TrainerError::file(&self.path, format!("tensor {name}: {what}")))
    }

    /// A tensor that is passed over may change what the model computes.
    pub(super) fn refuse_unknown_tensors(&self, layers: u64) -> Result<()> {
        let architecture = self.architecture()?;
        let mut names = self.header.tensors.keys();
        match names.find(|name| !is_known(name, architecture, layers)) {
            None => Ok(()),
            Some(name) => {
                let what = format!(
                    "not supported: no part of a {architecture:?} decoder of {layers} \
                                    blocks"
                );
                self.fail_tensor(name, &what)
            }
        }
    }

    /// Whether any projection has a bias.
    pub(super) fn has_biases(&self) -> bool {
        self.header.tensors.keys().any(|name| name.ends_with(".bias"))
    }

    /// Whether the file has the tensor of this Hugging Face name.
    pub fn has_tensor(&self, name: &str) -> bool {
        file_name(name).is_some_and(|name| self.header.tensors.contains_key(&name))
    }

    /// The tensor of this Hugging Face name.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let inner = file_name(name).unwrap_or_else(|| name.to_owned());
        self.tensor_in_file(&inner)
    }

    fn tensor_in_file(&self, name: &str) -> Result<Tensor> {
        let Some(info) = self.header.tensors.get(name) else {
            let advice = "the file is not one whole model: copy or download it again";
            return self.fail_tensor(name, &format!("is missing; {advice}"));
        };
        let Some(dtype) = info.kind.dtype() else {
            return self.fail_tensor(
                name,
                &format!(
                    "has type {}; supported: F32, F16, BF16, Q8_0, Q4_0, Q4_1; take a file of such a \
                     type, best Q8_0 or BF16",
                    info.kind.name
                ),
            );
        };
        let rows = self.row_order(name, info)?;
        Ok(Tensor { dtype, shape: info.shape.clone(), range: info.range.clone(), rows })
    }

    fn row_order(&self, name: &str, info: &TensorInfo) -> Result<RowOrder> {
        let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
        let heads = if stem.ends_with(".attn_q") {
            "llama.attention.head_count"
        } else if stem.ends_with(".attn_k") {
            "llama.attention.head_count_kv"
        } else {
            return Ok(RowOrder::Same);
        };
        if self.architecture()? != Architecture::Llama {
            return Ok(RowOrder::Same);
        }
        let all = self.unsigned("llama.attention.head_count")?;
        let heads = self.need(heads, self.unsigned(heads)?.or(all))?;
        let rows = info.shape.first().copied().unwrap_or_default() as u64;
        match rows.checked_div(heads) {
            Some(width) if width * heads == rows && width.is_multiple_of(2) && width > 0 => {
                Ok(RowOrder::PairsTogether(width as usize))
            }
            _ => self.fail_tensor(name, &format!("its {rows} rows are no {heads} heads of pairs")),
        }
    }

    /// Reads a tensor of exactly this shape as f32.
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        Ok(self.decode(&self.tensor_of_shape(name, shape)?))
    }

    /// Checks by the header that [`Self::read`] will find what it needs.
    pub fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        self.tensor_of_shape(name, shape).map(|_| ())
    }

    /// Checks by the header that [`Self::weight`] will find what it needs.
    pub fn check_weight(
        &self,
        name: &str,
        shape: [usize; 2],
        weight_type: WeightType,
    ) -> Result<Tensor> {
        let tensor = self.tensor_of_shape(name, &shape)?;
        Weight::check_shape(shape, weight_type).or_else(|error| self.not_kept(name, error))?;
        Ok(tensor)
    }

    fn not_kept<T>(&self, name: &str, error: QuantizeError) -> Result<T> {
        let what = format!("can't be kept as q8_0: {error}");
        self.fail_tensor(&file_name(name).unwrap_or_default(), &what)
    }

    /// A matrix of exactly this shape, stored as `weight_type`: used where it is in the file if that
    /// has it so, otherwise decoded and converted.
    pub fn weight(&self, name: &str, shape: [usize; 2], weight_type: WeightType) -> Result<Weight> {
        let tensor = self.check_weight(name, shape, weight_type)?;
        if tensor.dtype.is(weight_type) && tensor.rows == RowOrder::Same {
            let weight = Weight::mapped(&self.map, tensor.range.start, shape, weight_type);
            if let Some(weight) = weight {
                return Ok(weight);
            }
        }
        if tensor.dtype == Dtype::Q8_0 && weight_type == WeightType::Q8_0 {
            return Ok(Weight::from_q8_0(shape, self.rows(&tensor).flatten().copied().collect()));
        }
        Weight::from_f32(shape, self.decode(&tensor), weight_type)
            .or_else(|error| self.not_kept(name, error))
    }

    fn tensor_of_shape(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.tensor(name)?;
        if tensor.shape != shape {
            let what = format!("has shape {:?}, expected {shape:?}", tensor.shape);
            return self.fail_tensor(&file_name(name).unwrap_or_default(), &what);
        }
        Ok(tensor)
    }

    fn decode(&self, tensor: &Tensor) -> Vec<f32> {
        let mut values = Vec::with_capacity(tensor.shape.iter().product());
        for row in self.rows(tensor) {
            tensor.dtype.decode(row, &mut values);
        }
        values
    }

    /// The bytes of each row, in Hugging Face's order.
    fn rows<'a>(&'a self, tensor: &'a Tensor) -> impl Iterator<Item = &'a [u8]> {
        // The header was checked: the range is inside the file.
        let bytes = self.bytes().get(tensor.range.clone()).unwrap_or_default();
        // A vector is one row, unless its values are reordered like a matrix's rows.
        let whole = tensor.shape.len() == 1 && tensor.rows == RowOrder::Same;
        let rows = if whole { 1 } else { tensor.shape.first().copied().unwrap_or(1).max(1) };
        let width = bytes.len() / rows;
        (0..rows).map(move |row| {
            let start = tensor.rows.in_file(row) * width;
            bytes.get(start..start + width).unwrap_or_default()
        })
    }

    /// Divisors of the rotary frequencies, one for each pair of a head, where the file has them.
    pub(super) fn rope_factors(&self, head_dim: u64) -> Result<Option<Vec<f32>>> {
        if !self.header.tensors.contains_key(FACTORS) {
            return Ok(None);
        }
        let tensor = self.tensor_in_file(FACTORS)?;
        if tensor.shape != [head_dim as usize / 2] {
            return self.fail_tensor(FACTORS, "is not one divisor for each pair of a head");
        }
        Ok(Some(self.decode(&tensor)))
    }
}
