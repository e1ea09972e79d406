//! The adapter's own file: safetensors with its settings and a hash in the header.

use std::path::Path;

use reclora_storage::atomic::write_bytes_atomic;
use reclora_storage::hash::xxh3_hex;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};

use super::{Adapter, AdapterLayout};
use crate::backbone::{BackboneConfig, TensorFile};
use crate::config::AdapterConfig;
use crate::error::{Result, TrainerError};

/// The header's one metadata entry (one: so that the file's bytes are a function of the adapter).
const KEY: &str = "reclora";
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    config: AdapterConfig,
    representation_dim: usize,
    /// xxh3 of all parameters, little-endian, in layout order.
    parameters_xxh3: String,
}

impl Adapter {
    /// Writes all parameters and settings as one safetensors file, atomically. The same adapter gives
    /// the same bytes.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let header = Header {
            format: FORMAT,
            config: self.config().clone(),
            representation_dim: self.representation_dim(),
            parameters_xxh3: xxh3_hex(&to_bytes(self.parameters())),
        };
        let header = serde_json::to_string(&header)
            .map_err(|e| TrainerError::file(path, format!("can't be written: {e}")))?;
        let bytes = serialize(path, self.tensors(), (KEY, header))?;
        Ok(write_bytes_atomic(path, &bytes)?)
    }

    /// Reads a file of [`Adapter::save`], and checks that it is whole and fits the backbone.
    ///
    /// # Errors
    /// A file that is missing, truncated, damaged, of another format, or made for another backbone.
    pub fn load(path: &Path, backbone: &BackboneConfig) -> Result<Self> {
        let fail = |what: String| TrainerError::file(path, what);
        let mut file = TensorFile::open(path)?;
        let text = file.metadata(KEY).ok_or_else(|| {
            fail(format!("is not an adapter of this program: no {KEY:?} in its header"))
        })?;
        let header: Header = serde_json::from_str(text)
            .map_err(|e| fail(format!("adapter header can't be read: {e}")))?;
        if header.format != FORMAT {
            return Err(fail(format!("has format {}, this program reads {FORMAT}", header.format)));
        }
        let layout = AdapterLayout::new(backbone, &header.config, header.representation_dim)?;
        let mut names = file.names();
        names.retain(|name| !layout.tensors().iter().any(|t| t.name == *name));
        if let Some(name) = names.first() {
            return Err(fail(format!("tensor {name}: not part of an adapter for this backbone")));
        }
        let mut parameters = Vec::new();
        for tensor in layout.tensors() {
            parameters.extend(file.read(&tensor.name, &tensor.shape)?);
        }
        let hash = xxh3_hex(&to_bytes(&parameters));
        if hash != header.parameters_xxh3 {
            let what =
                format!("is damaged: its values hash to {hash}, not {}", header.parameters_xxh3);
            return Err(fail(what));
        }
        Ok(Self { layout, parameters })
    }
}

pub(crate) fn to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A safetensors file of f32 tensors with one metadata entry, as bytes.
pub(crate) fn serialize<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (&'a str, &'a [usize], &'a [f32])>,
    metadata: (&str, String),
) -> Result<Vec<u8>> {
    let fail = |e| TrainerError::file(path, format!("can't be written: {e}"));
    let data: Vec<_> =
        tensors.map(|(name, shape, values)| (name, shape.to_vec(), to_bytes(values))).collect();
    let views = data
        .iter()
        .map(|(name, shape, bytes)| Ok((*name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(fail)?;
    let metadata = [(metadata.0.to_string(), metadata.1)].into();
    safetensors::serialize(views, Some(metadata)).map_err(fail)
}
