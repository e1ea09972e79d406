//! One safetensors file: checked header, tensors read one at a time as f32, or used where they are.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use reclora_storage::mmap::{Access, Mapped, Pattern};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::weight::{Numbers, Weight};
use crate::backbone::WeightType;
use crate::error::{Result, TrainerError};
use crate::kernels::q8_0::QuantizeError;

/// Largest header read: that of the safetensors format itself.
const MAX_HEADER: u64 = 100_000_000;

/// Bytes of each of two tensors that are compared at a time.
const COMPARED: usize = 1 << 20;

/// An open safetensors file whose header has been checked against the file's length.
#[derive(Debug)]
pub(crate) struct TensorFile {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    data_start: u64,
    /// The whole file, once a tensor is used in place.
    map: Option<Arc<Mapped>>,
}

impl TensorFile {
    /// Opens a file and checks its header: offsets without gaps or overlaps, exactly as long as the file.
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |what: String| TrainerError::file(path, what);
        let read_error = |e: std::io::Error| fail(format!("can't be read: {e}"));
        let mut file = File::open(path).map_err(read_error)?;
        let length = file.metadata().map_err(read_error)?.len();
        let mut prefix = [0; 8];
        file.read_exact(&mut prefix)
            .map_err(|_| fail(format!("is not a safetensors file: only {length} bytes long")))?;
        let header_length = u64::from_le_bytes(prefix);
        let data_start = header_length.saturating_add(8);
        if header_length > MAX_HEADER || data_start > length {
            return Err(fail(format!(
                "bad safetensors header: it claims {header_length} bytes, the file has {length} \
                 (truncated, or not a safetensors file)"
            )));
        }
        let mut header = vec![0; header_length as usize];
        file.read_exact(&mut header).map_err(read_error)?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|e| fail(format!("bad safetensors header: {e}")))?;
        let expected = data_start.saturating_add(metadata.data_len() as u64);
        if expected != length {
            return Err(fail(format!(
                "is {length} bytes long, its header describes {expected}: truncated or damaged"
            )));
        }
        Ok(Self { path: path.to_path_buf(), file, metadata, data_start, map: None })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it has a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.metadata.info(name).is_some()
    }

    /// Names of all tensors, in file order.
    pub fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// A string of the header's free-form metadata.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.metadata().as_ref()?.get(key).map(String::as_str)
    }

    /// Reads a tensor of exactly this shape as f32.
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let info = self.info(name, shape)?;
        let (dtype, (start, end)) = (info.dtype, info.data_offsets);
        let mut bytes = vec![0; end - start];
        self.read_at(name, start, &mut bytes)?;
        Ok(match dtype {
            Dtype::F16 => pairs(&bytes).map(|b| f16::from_le_bytes(b).to_f32()).collect(),
            Dtype::BF16 => pairs(&bytes).map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
            _ => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        })
    }

    /// Whether a tensor of this shape has the type and the bytes of another, in this file or another, up to
    /// `limit` bytes.
    pub fn same(
        &self,
        (name, other, other_name): (&str, &Self, &str),
        shape: &[usize],
        limit: usize,
    ) -> Result<bool> {
        let (one, two) = (self.info(name, shape)?, other.info(other_name, shape)?);
        if one.dtype != two.dtype {
            return Ok(false);
        }
        let (start, end) = one.data_offsets;
        let length = (end - start).min(limit);
        let mut pieces = [vec![0; length.min(COMPARED)], vec![0; length.min(COMPARED)]];
        for at in (0..length).step_by(COMPARED) {
            let [left, right] =
                pieces.each_mut().map(|piece| &mut piece[..COMPARED.min(length - at)]);
            self.read_at(name, start + at, left)?;
            other.read_at(other_name, two.data_offsets.0 + at, right)?;
            if left != right {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Bytes of a tensor from an offset of the data on.
    fn read_at(&self, name: &str, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.file
            .read_exact_at(bytes, self.data_start + offset as u64)
            .map_err(|error| self.fail(name, format!("can't be read: {error}")))
    }

    /// Checks by the header that [`Self::weight`] will find what it needs.
    pub fn check_weight(
        &self,
        name: &str,
        shape: [usize; 2],
        weight_type: WeightType,
    ) -> Result<&TensorInfo> {
        let info = self.info(name, &shape)?;
        Weight::check_shape(shape, weight_type).map_err(|error| self.not_kept(name, error))?;
        Ok(info)
    }

    /// Checks by the header that [`Self::read`] will find what it needs.
    pub fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        self.info(name, shape).map(|_| ())
    }

    /// A matrix of exactly this shape, stored as `weight_type`: used where it is in the file if that
    /// has it so, otherwise read and converted.
    pub fn weight(
        &mut self,
        name: &str,
        shape: [usize; 2],
        weight_type: WeightType,
    ) -> Result<Weight> {
        let info = self.check_weight(name, shape, weight_type)?;
        let (dtype, start) = (info.dtype, info.data_offsets.0);
        let as_it_is = matches!(
            (dtype, weight_type),
            (Dtype::F32, WeightType::F32) | (Dtype::BF16, WeightType::Bf16)
        );
        if as_it_is {
            let offset = self.data_start as usize + start;
            // Every step reads every weight.
            let map = self.mapped(Pattern::WillNeed)?;
            if let Some(weight) = Weight::mapped(map, offset, shape, weight_type) {
                return Ok(weight);
            }
        }
        let values = self.read(name, &shape)?;
        Weight::from_f32(shape, values, weight_type).map_err(|error| self.not_kept(name, error))
    }

    /// A tensor of exactly this shape as f32: used where it is in the file if that has it so, otherwise
    /// read.
    pub fn in_place(&mut self, name: &str, shape: &[usize]) -> Result<Numbers<f32>> {
        let info = self.info(name, shape)?;
        let (dtype, start) = (info.dtype, info.data_offsets.0);
        if dtype == Dtype::F32 && cfg!(target_endian = "little") {
            let (offset, count) = (self.data_start as usize + start, shape.iter().product());
            if let Some(numbers) = Numbers::mapped(self.mapped(Pattern::Normal)?, offset, count) {
                return Ok(numbers);
            }
        }
        Ok(Numbers::Owned(self.read(name, shape)?))
    }

    /// The file, to be used as `pattern` says.
    fn mapped(&mut self, pattern: Pattern) -> Result<&Arc<Mapped>> {
        let map = match self.map.take() {
            Some(map) => map,
            None => {
                let map = Mapped::open(&self.path, Access::Automatic)?;
                map.advise(pattern);
                Arc::new(map)
            }
        };
        Ok(self.map.insert(map))
    }

    /// Where a tensor of exactly this shape is. The header was checked: the range is inside the file
    /// and as long as shape and type say.
    fn info(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo> {
        let info = self.metadata.info(name).ok_or_else(|| self.fail(name, "is missing".into()))?;
        if info.shape != shape {
            let what = format!("has shape {:?}, expected {shape:?}", info.shape);
            return Err(self.fail(name, what));
        }
        if !matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            let what = format!("has type {:?}; supported: F32, F16, BF16", info.dtype);
            return Err(self.fail(name, what));
        }
        Ok(info)
    }

    fn not_kept(&self, name: &str, error: QuantizeError) -> TrainerError {
        self.fail(name, format!("can't be kept as q8_0: {error}"))
    }

    fn fail(&self, name: &str, what: String) -> TrainerError {
        TrainerError::file(&self.path, format!("tensor {name}: {what}"))
    }
}

fn pairs(bytes: &[u8]) -> impl Iterator<Item = [u8; 2]> + '_ {
    bytes.as_chunks().0.iter().copied()
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    #[test]
    fn tensors_are_compared_to_the_end_or_to_the_limit() {
        const SHAPE: [usize; 2] = [600, 1000];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let one = vec![7; SHAPE[0] * SHAPE[1] * 4];
        let mut last = one.clone();
        *last.last_mut().unwrap() = 8;
        let views = [("one", &one), ("same", &one), ("last", &last)]
            .map(|(name, bytes)| (name, TensorView::new(Dtype::F32, SHAPE.into(), bytes).unwrap()));
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        let file = TensorFile::open(&path).unwrap();
        let same = |other, limit| file.same(("one", &file, other), &SHAPE, limit).unwrap();
        for limit in [0, 1, COMPARED, COMPARED + 1, one.len() - 1] {
            assert!(same("same", limit) && same("last", limit), "{limit}");
        }
        for limit in [one.len(), usize::MAX] {
            assert!(same("same", limit) && !same("last", limit), "{limit}");
        }
        assert!(file.same(("one", &file, "none"), &SHAPE, 1).is_err());
    }
}
