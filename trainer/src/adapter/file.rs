//! The adapter's own file: safetensors with its settings and a hash of everything in the header.

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
/// Format 1 had a hash of the parameters only: damaged settings were another adapter.
const FORMAT: u32 = 2;
const ADVICE: &str = "copy it again, or rebuild it with `reclora-launch run CONFIG --from tune`";

#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    settings: Settings,
    /// See [`Settings::hash`].
    xxh3: String,
}

#[derive(Serialize, Deserialize)]
struct Settings {
    config: AdapterConfig,
    representation_dim: usize,
}

impl Settings {
    /// xxh3 of the settings as JSON, and of all parameters, little-endian, in layout order.
    fn hash(&self, parameters: &[f32]) -> serde_json::Result<String> {
        let mut bytes = serde_json::to_vec(self)?;
        bytes.extend(to_bytes(parameters));
        Ok(xxh3_hex(&bytes))
    }
}

impl Adapter {
    /// Writes all parameters and settings as one safetensors file, atomically. The same adapter gives
    /// the same bytes.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let header = self
            .header()
            .map_err(|e| TrainerError::file(path, format!("can't be written: {e}")))?;
        let bytes = serialize(path, self.tensors(), (KEY, header))?;
        Ok(write_bytes_atomic(path, &bytes)?)
    }

    fn header(&self) -> serde_json::Result<String> {
        let (config, representation_dim) = (self.config().clone(), self.representation_dim());
        let settings = Settings { config, representation_dim };
        let xxh3 = settings.hash(self.parameters())?;
        serde_json::to_string(&Header { format: FORMAT, settings, xxh3 })
    }

    /// Reads a file of [`Adapter::save`], and checks that it is whole and fits the backbone.
    ///
    /// # Errors
    /// A file that is missing, truncated, damaged, of another format, or made for another backbone.
    pub fn load(path: &Path, backbone: &BackboneConfig) -> Result<Self> {
        Self::read(path, backbone).map_err(|error| error.advise(ADVICE))
    }

    fn read(path: &Path, backbone: &BackboneConfig) -> Result<Self> {
        let fail = |what: String| TrainerError::file(path, what);
        let mut file = TensorFile::open(path)?;
        let text = file.metadata(KEY).ok_or_else(|| {
            fail(format!("is not an adapter of this program: no {KEY:?} in its header"))
        })?;
        let header = parse(text).map_err(fail)?;
        let Settings { config, representation_dim } = &header.settings;
        let layout = AdapterLayout::new(backbone, config, *representation_dim)
            .map_err(|e| fail(format!("its settings can't work: {e}")))?;
        let mut names = file.names();
        names.retain(|name| !layout.tensors().iter().any(|t| t.name == *name));
        if let Some(name) = names.first() {
            return Err(fail(format!("tensor {name}: not part of an adapter for this backbone")));
        }
        let mut parameters = Vec::new();
        for tensor in layout.tensors() {
            parameters.extend(file.read(&tensor.name, &tensor.shape)?);
        }
        let hash = header.settings.hash(&parameters);
        let hash = hash.map_err(|e| fail(format!("its settings can't be hashed: {e}")))?;
        if hash != header.xxh3 {
            return Err(fail(format!("is damaged: it hashes to {hash}, not {}", header.xxh3)));
        }
        Ok(Self { layout, parameters })
    }
}

/// The header, or what is wrong with it. The format comes first: other formats have other headers.
fn parse(text: &str) -> Result<Header, String> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let unreadable = |e| format!("adapter header can't be read: {e}");
    let Version { format } = serde_json::from_str(text).map_err(unreadable)?;
    if format != FORMAT {
        return Err(format!("has format {format}, this program reads {FORMAT}"));
    }
    serde_json::from_str(text).map_err(unreadable)
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
