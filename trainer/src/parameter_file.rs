//! Trained parameters and the settings they belong to, as one safetensors file.
//!
//! The header has one metadata entry (one: so that the file's bytes are a function of what is saved):
//! format, settings, and a hash of settings and parameters. So neither can be damaged unnoticed.

use std::path::Path;

use reclora_storage::atomic::write_bytes_atomic;
use reclora_storage::hash::xxh3_hex;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::backbone::TensorFile;
use crate::error::{Result, TrainerError};

/// Format 1 had a hash of the parameters only: damaged settings were another model.
const FORMAT: u32 = 2;

/// A kind of file.
pub(crate) struct ParameterFile {
    /// Key of the metadata entry.
    pub key: &'static str,
    /// What it holds, in words a user reads.
    pub what: &'static str,
    /// The stage that writes it.
    pub stage: &'static str,
}

/// Name, shape, values.
pub(crate) type NamedTensor<'a> = (&'a str, &'a [usize], &'a [f32]);

#[derive(Serialize, Deserialize)]
struct Header<S> {
    format: u32,
    settings: S,
    /// See [`hash`].
    xxh3: String,
}

impl ParameterFile {
    /// Writes the file atomically. The same settings and tensors give the same bytes.
    pub fn save<'a>(
        &self,
        path: &Path,
        settings: impl Serialize,
        tensors: impl Iterator<Item = NamedTensor<'a>> + Clone,
    ) -> Result<()> {
        let parameters = tensors.clone().flat_map(|(_, _, values)| values.iter().copied());
        let header = hash(&settings, parameters)
            .and_then(|xxh3| serde_json::to_string(&Header { format: FORMAT, settings, xxh3 }))
            .map_err(|error| TrainerError::file(path, format!("can't be written: {error}")))?;
        let bytes = serialize(path, tensors, (self.key, header))?;
        Ok(write_bytes_atomic(path, &bytes)?)
    }

    /// The settings of a file, of which no more than the header is read.
    pub fn settings<S: DeserializeOwned>(&self, path: &Path) -> Result<S> {
        let header = TensorFile::open(path).and_then(|file| self.header(path, &file));
        Ok(header.map_err(|error| self.advise(error))?.settings)
    }

    fn advise(&self, error: TrainerError) -> TrainerError {
        error.advise(&format!(
            "copy it again, or rebuild it with `reclora-launch run CONFIG --from {}`",
            self.stage
        ))
    }

    /// Reads a file of [`Self::save`]: what `layout` makes of its settings, and the tensors that
    /// `shapes` then names, one after the other.
    pub fn load<S: Serialize + DeserializeOwned, L>(
        &self,
        path: &Path,
        layout: impl FnOnce(&S) -> Result<L>,
        shapes: impl FnOnce(&L) -> Vec<(&str, &[usize])>,
    ) -> Result<(L, Vec<f32>)> {
        self.read(path, layout, shapes).map_err(|error| self.advise(error))
    }

    fn read<S: Serialize + DeserializeOwned, L>(
        &self,
        path: &Path,
        layout: impl FnOnce(&S) -> Result<L>,
        shapes: impl FnOnce(&L) -> Vec<(&str, &[usize])>,
    ) -> Result<(L, Vec<f32>)> {
        let fail = |what: String| TrainerError::file(path, what);
        let mut file = TensorFile::open(path)?;
        let header: Header<S> = self.header(path, &file)?;
        let layout = layout(&header.settings)
            .map_err(|error| fail(format!("its settings can't work: {error}")))?;
        let shapes = shapes(&layout);
        let mut names = file.names();
        names.retain(|name| !shapes.iter().any(|(known, _)| known == name));
        if let Some(name) = names.first() {
            return Err(fail(format!(
                "tensor {name}: not part of {} with its settings",
                self.what
            )));
        }
        let mut parameters = Vec::new();
        for (name, shape) in shapes {
            parameters.extend(file.read(name, shape)?);
        }
        let hash = hash(&header.settings, parameters.iter().copied())
            .map_err(|error| fail(format!("its settings can't be hashed: {error}")))?;
        if hash != header.xxh3 {
            return Err(fail(format!("is damaged: it hashes to {hash}, not {}", header.xxh3)));
        }
        Ok((layout, parameters))
    }

    fn header<S: DeserializeOwned>(&self, path: &Path, file: &TensorFile) -> Result<Header<S>> {
        let fail = |what: String| TrainerError::file(path, what);
        let (what, key) = (self.what, self.key);
        let text = file.metadata(key).ok_or_else(|| {
            fail(format!("is not {what} of this program: no {key:?} in its header"))
        })?;
        parse(text).map_err(fail)
    }
}

/// xxh3 of the settings as JSON, and of all parameters, little-endian, in order.
fn hash(
    settings: &impl Serialize,
    parameters: impl Iterator<Item = f32>,
) -> serde_json::Result<String> {
    let mut bytes = serde_json::to_vec(settings)?;
    bytes.extend(parameters.flat_map(f32::to_le_bytes));
    Ok(xxh3_hex(&bytes))
}

/// The header, or what is wrong with it. The format comes first: other formats have other headers.
fn parse<S: DeserializeOwned>(text: &str) -> Result<Header<S>, String> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let unreadable = |error| format!("its header can't be read: {error}");
    let Version { format } = serde_json::from_str(text).map_err(unreadable)?;
    if format != FORMAT {
        return Err(format!("has format {format}, this program reads {FORMAT}"));
    }
    serde_json::from_str(text).map_err(unreadable)
}

/// A safetensors file of f32 tensors with one metadata entry, as bytes.
pub(crate) fn serialize<'a>(
    path: &Path,
    tensors: impl Iterator<Item = NamedTensor<'a>>,
    metadata: (&str, String),
) -> Result<Vec<u8>> {
    let fail = |error| TrainerError::file(path, format!("can't be written: {error}"));
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let data: Vec<(&str, Vec<usize>, Vec<u8>)> =
        tensors.map(|(name, shape, values)| (name, shape.to_vec(), bytes(values))).collect();
    let views = data
        .iter()
        .map(|(name, shape, bytes)| Ok((*name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(fail)?;
    let metadata = [(metadata.0.to_string(), metadata.1)].into();
    safetensors::serialize(views, Some(metadata)).map_err(fail)
}
