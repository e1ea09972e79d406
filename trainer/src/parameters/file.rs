//! Trained parameters and the settings they belong to, as one safetensors file.
//!
//! The header has one metadata entry (one: so that the file's bytes are a function of what is saved):
//! format, settings, and a hash of settings and parameters. So neither can be damaged unnoticed.

use std::fmt::Display;
use std::io;
use std::path::Path;

use reclora_storage::atomic::write_atomic;
use reclora_storage::hash::Hasher;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo, TensorView};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::backbone::{Numbers, TensorFile};
use crate::error::{Remedy, Result, TrainerError};

/// Version of the header: another one is refused.
const FORMAT: u32 = 3;

/// A kind of file.
pub(crate) struct ParameterFile {
    /// Key of the metadata entry.
    pub key: &'static str,
    /// What it holds, in words a user reads.
    pub what: &'static str,
    /// The stage that writes it.
    pub stage: &'static str,
}

/// Values that are turned into bytes at a time.
const BLOCK: usize = 1 << 16;

/// Name and shape.
pub(crate) type NamedShape<'a> = (&'a str, &'a [usize]);

/// Name, shape, values.
pub(crate) type NamedTensor<'a> = (&'a str, &'a [usize], &'a [f32]);

#[derive(Serialize, Deserialize)]
struct Header<S> {
    format: u32,
    settings: S,
    /// See [`ParameterHasher`].
    xxh3: String,
}

impl ParameterFile {
    /// Writes the file atomically. The same settings and tensors give the same bytes.
    pub fn save<'a>(
        &self,
        path: &Path,
        settings: impl Serialize,
        tensors: impl Iterator<Item = NamedTensor<'a>>,
    ) -> Result<()> {
        let tensors: Vec<NamedTensor<'_>> = tensors.collect();
        let shapes: Vec<_> = tensors.iter().map(|(name, shape, _)| (*name, *shape)).collect();
        self.save_pieces(path, settings, &shapes, |index, sink| sink(tensors[index].2))
    }

    /// The same for tensors that are not in memory. `pieces` hands over the values of one, by its place in
    /// `tensors`, in pieces of any size; it is asked for each of them twice.
    pub fn save_pieces(
        &self,
        path: &Path,
        settings: impl Serialize,
        tensors: &[NamedShape<'_>],
        mut pieces: impl FnMut(usize, &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()>,
    ) -> Result<()> {
        let fail =
            |error: &dyn Display| TrainerError::file(path, format!("can't be written: {error}"));
        let mut hasher = ParameterHasher::new(&settings).map_err(|error| fail(&error))?;
        for index in 0..tensors.len() {
            pieces(index, &mut |values| {
                hasher.update(values);
                Ok(())
            })?;
        }
        let header = Header { format: FORMAT, settings, xxh3: hasher.hex() };
        let header = serde_json::to_string(&header).map_err(|error| fail(&error))?;
        // As the format's own writer has them: by name.
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by_key(|index| tensors[*index].0);
        let shapes = order.iter().map(|index| tensors[*index]);
        let header = file_header(shapes, (self.key, header)).map_err(|error| fail(&error))?;
        let mut failure = None;
        let written = write_atomic(path, |file| {
            file.write_all(&header)?;
            for index in order {
                let mut write = |values: &[f32]| {
                    let bytes = values.chunks(BLOCK).try_for_each(|values| {
                        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                        file.write_all(&bytes)
                    });
                    bytes.map_err(|error| fail(&error))
                };
                pieces(index, &mut write).map_err(|error| {
                    failure = Some(error);
                    io::Error::other("a tensor can't be had")
                })?;
            }
            Ok(())
        });
        match failure {
            Some(error) => Err(error),
            None => Ok(written?),
        }
    }

    /// The settings of a file, of which no more than the header is read.
    pub fn settings<S: DeserializeOwned>(&self, path: &Path) -> Result<S> {
        let header = TensorFile::open(path).and_then(|file| self.header(path, &file));
        Ok(header.map_err(|error| self.advise(error))?.settings)
    }

    fn advise(&self, error: TrainerError) -> TrainerError {
        match error {
            TrainerError::File { path, what } => TrainerError::Remake {
                what: format!("{}: {what}", path.display()),
                remedy: Remedy::Rebuild(self.stage),
            },
            other => other,
        }
    }

    /// Reads a file of [`Self::save`]: what `layout` makes of its settings, and the tensors that
    /// `shapes` then names, one after the other.
    pub fn load<S: Serialize + DeserializeOwned, L>(
        &self,
        path: &Path,
        layout: impl FnOnce(&S) -> Result<L>,
        shapes: impl FnOnce(&L) -> Vec<NamedShape<'_>>,
    ) -> Result<(L, Vec<f32>)> {
        let (layout, tensors) = self.open(path, layout, shapes)?;
        let slices: Vec<&[f32]> = tensors.iter().map(Numbers::as_slice).collect();
        Ok((layout, slices.concat()))
    }

    /// The same, with the tensors where they are in the file.
    pub fn open<S: Serialize + DeserializeOwned, L>(
        &self,
        path: &Path,
        layout: impl FnOnce(&S) -> Result<L>,
        shapes: impl FnOnce(&L) -> Vec<NamedShape<'_>>,
    ) -> Result<(L, Vec<Numbers<f32>>)> {
        self.read(path, layout, shapes).map_err(|error| self.advise(error))
    }

    fn read<S: Serialize + DeserializeOwned, L>(
        &self,
        path: &Path,
        layout: impl FnOnce(&S) -> Result<L>,
        shapes: impl FnOnce(&L) -> Vec<NamedShape<'_>>,
    ) -> Result<(L, Vec<Numbers<f32>>)> {
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
        let tensors = shapes.iter().map(|(name, shape)| file.in_place(name, shape));
        let tensors = tensors.collect::<Result<Vec<_>>>()?;
        let mut hasher = ParameterHasher::new(&header.settings)
            .map_err(|error| fail(format!("its settings can't be hashed: {error}")))?;
        tensors.iter().for_each(|tensor| hasher.update(tensor.as_slice()));
        let hash = hasher.hex();
        if hash != header.xxh3 {
            return Err(fail(format!("is damaged: it hashes to {hash}, not {}", header.xxh3)));
        }
        Ok((layout, tensors))
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
struct ParameterHasher(Hasher);

impl ParameterHasher {
    fn new(settings: &impl Serialize) -> serde_json::Result<Self> {
        let mut hasher = Hasher::default();
        hasher.update(&serde_json::to_vec(settings)?);
        Ok(Self(hasher))
    }

    fn update(&mut self, values: &[f32]) {
        for values in values.chunks(BLOCK) {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            self.0.update(&bytes);
        }
    }

    fn hex(&self) -> String {
        self.0.hex()
    }
}

/// Length and header of a safetensors file of f32 tensors that lie in this order, with one metadata entry.
fn file_header<'a>(
    shapes: impl Iterator<Item = NamedShape<'a>>,
    (key, value): (&str, String),
) -> Result<Vec<u8>, String> {
    let mut end = 0;
    let tensors = shapes.map(|(name, shape)| {
        let start = end;
        end += shape.iter().product::<usize>() * size_of::<f32>();
        let info =
            TensorInfo { dtype: Dtype::F32, shape: shape.to_vec(), data_offsets: (start, end) };
        (name.to_owned(), info)
    });
    let metadata = Metadata::new(Some([(key.to_owned(), value)].into()), tensors.collect());
    let metadata = metadata.map_err(|error| error.to_string())?;
    let mut header = serde_json::to_vec(&metadata).map_err(|error| error.to_string())?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok([&(header.len() as u64).to_le_bytes()[..], &header].concat())
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
