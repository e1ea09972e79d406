//! The CRM's file.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Din, DinShape};
use crate::config::CrmConfig;
use crate::error::Result;
use crate::parameter_file::ParameterFile;

const FILE: ParameterFile = ParameterFile { key: "reclora-crm", what: "a CRM", stage: "pretrain" };

#[derive(Serialize, Deserialize)]
struct Settings {
    config: CrmConfig,
    shape: DinShape,
}

impl Din {
    /// Writes network and parameters as one safetensors file, atomically, the same bytes each time.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn save(&self, parameters: &[f32], path: &Path) -> Result<()> {
        let tensors = self.tensors.iter().map(|tensor| {
            (tensor.name.as_str(), tensor.shape.as_slice(), &parameters[tensor.range.clone()])
        });
        FILE.save(path, Settings { config: self.config.clone(), shape: self.shape }, tensors)
    }

    /// Reads a file of [`Din::save`]: the network and its parameters.
    ///
    /// # Errors
    /// A file that is missing, truncated, damaged or of another format.
    pub fn load(path: &Path) -> Result<(Self, Vec<f32>)> {
        FILE.load(
            path,
            |settings: &Settings| Din::new(&settings.config, settings.shape),
            |din| din.tensors.iter().map(|t| (t.name.as_str(), &t.shape[..])).collect(),
        )
    }
}
