//! The adapter's own file.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Adapter, AdapterLayout};
use crate::backbone::BackboneConfig;
use crate::config::StoredAdapter;
use crate::error::Result;
use crate::parameter_file::ParameterFile;

const FILE: ParameterFile = ParameterFile { key: "reclora", what: "an adapter", stage: "tune" };

#[derive(Serialize, Deserialize)]
struct Settings {
    config: StoredAdapter,
    representation_dim: usize,
}

impl Adapter {
    /// Writes all parameters and settings as one safetensors file, atomically. The same adapter gives
    /// the same bytes.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let config = StoredAdapter(self.config().clone());
        let representation_dim = self.representation_dim();
        FILE.save(path, Settings { config, representation_dim }, self.tensors())
    }

    /// Reads a file of [`Adapter::save`], and checks that it is whole and fits the backbone.
    ///
    /// # Errors
    /// A file that is missing, truncated, damaged, of another format, or made for another backbone.
    pub fn load(path: &Path, backbone: &BackboneConfig) -> Result<Self> {
        let (layout, parameters) = FILE.load(
            path,
            |settings: &Settings| {
                AdapterLayout::new(backbone, &settings.config.0, settings.representation_dim)
            },
            |layout| layout.tensors().iter().map(|t| (t.name.as_str(), &t.shape[..])).collect(),
        )?;
        Ok(Self { layout, parameters })
    }
}
