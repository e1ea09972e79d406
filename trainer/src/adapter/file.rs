//! The adapter's own file.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Adapter, AdapterLayout};
use crate::backbone::BackboneConfig;
use crate::config::AdapterConfig;
use crate::error::Result;
use crate::parameters::ParameterFile;

const FILE: ParameterFile = ParameterFile { key: "reclora", what: "an adapter", stage: "tune" };

#[derive(Serialize, Deserialize)]
pub(super) struct Settings {
    pub config: AdapterConfig,
    representation_dim: usize,
    /// Whether it is of scales: then the frozen LoRA comes before them.
    pub scales: bool,
}

/// The settings of a file, its parameters left unread.
pub(super) fn settings(path: &Path) -> Result<Settings> {
    FILE.settings(path)
}

impl Adapter {
    /// Writes all parameters (a frozen LoRA's too) and settings as one safetensors file, atomically. The
    /// same adapter gives the same bytes.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let settings = Settings {
            config: self.config().without_path(),
            representation_dim: self.representation_dim(),
            scales: self.layout.is_scaled(),
        };
        let frozen = self.frozen().into_iter().flat_map(Self::tensors);
        FILE.save(path, settings, frozen.chain(self.tensors()))
    }

    /// Reads a file of [`Adapter::save`], and checks that it is whole and fits the backbone.
    ///
    /// # Errors
    /// A file that is missing, truncated, damaged, of another format, or made for another backbone.
    pub fn load(path: &Path, backbone: &BackboneConfig) -> Result<Self> {
        let ((frozen, layout), mut parameters) = FILE.load(
            path,
            |Settings { config, representation_dim, scales }: &Settings| {
                let layout = AdapterLayout::build(backbone, config, *representation_dim, *scales)?;
                Ok((layout.frozen(backbone)?, layout))
            },
            |(frozen, layout)| {
                let tensors = frozen.iter().chain([layout]).flat_map(AdapterLayout::tensors);
                tensors.map(|t| (t.name.as_str(), &t.shape[..])).collect()
            },
        )?;
        let frozen = frozen.map(|layout| {
            let trained = parameters.split_off(layout.num_parameters());
            let parameters = std::mem::replace(&mut parameters, trained);
            Arc::new(Self { layout, parameters, frozen: None })
        });
        Ok(Self { layout, parameters, frozen })
    }
}
