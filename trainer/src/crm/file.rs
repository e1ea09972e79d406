//! The CRM's file.

use std::path::Path;

use serde::{Deserialize, Serialize, Serializer, ser::Error as _};

use super::{Crm, CrmShape};
use crate::backbone::Numbers;
use crate::config::{CrmConfig, Representation};
use crate::error::Result;
use crate::parameters::{NamedShape, ParameterFile, Parameters};

const FILE: ParameterFile = ParameterFile { key: "reclora-crm", what: "a CRM", stage: "pretrain" };

#[derive(Serialize, Deserialize)]
struct Settings {
    #[serde(serialize_with = "without_representation")]
    config: CrmConfig,
    shape: CrmShape,
}

/// What is handed to the gate is chosen when the CRM is used: it is no part of what was trained.
fn without_representation<S: Serializer>(
    config: &CrmConfig,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut value = serde_json::to_value(config).map_err(S::Error::custom)?;
    value.as_object_mut().and_then(|settings| settings.remove("representation"));
    value.serialize(serializer)
}

impl Crm {
    fn shapes(&self) -> Vec<NamedShape<'_>> {
        self.tensors().iter().map(|tensor| (tensor.name.as_str(), &tensor.shape[..])).collect()
    }

    /// Writes network and parameters as one safetensors file, atomically, the same bytes each time.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn save(&self, parameters: &[f32], path: &Path) -> Result<()> {
        let (table, dense) = parameters.split_at(self.table().len());
        self.save_rows(dense, path, |sink| sink(table))
    }

    /// Writes the same file without having the table: `rows` hands over all its values, in order and in pieces of any
    /// size, and is asked for them twice: for the hash in the header, and for the content.
    ///
    /// # Errors
    /// The file can't be written, or of `rows`.
    pub fn save_rows(
        &self,
        dense: &[f32],
        path: &Path,
        mut rows: impl FnMut(&mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()>,
    ) -> Result<()> {
        let table = self.table().len();
        let settings = Settings { config: self.config.clone(), shape: self.shape };
        FILE.save_pieces(path, settings, &self.shapes(), |index, sink| {
            let range = &self.tensors()[index].range;
            match range.start.checked_sub(table) {
                None => rows(sink),
                Some(start) => sink(&dense[start..range.end - table]),
            }
        })
    }
}

/// A CRM, and its parameters in a file: a large table costs no memory but that of the pages in use,
/// which all processes of a machine share.
#[derive(Debug)]
pub struct TrainedCrm {
    crm: Crm,
    table: Numbers<f32>,
    dense: Vec<f32>,
}

impl TrainedCrm {
    /// Opens a file of [`Crm::save`], to hand out `representation`, and checks it from the first byte to
    /// the last.
    ///
    /// # Errors
    /// A file that is missing, truncated, damaged or of another format.
    pub fn open(path: &Path, representation: Representation) -> Result<Self> {
        let layout = |settings: &Settings| {
            let config = CrmConfig { representation, ..settings.config.clone() };
            Crm::new(&config, settings.shape)
        };
        let (crm, tensors) = FILE.open(path, layout, Crm::shapes)?;
        let mut tensors = tensors.into_iter();
        let table = tensors.next().unwrap_or(Numbers::Owned(Vec::new()));
        let dense: Vec<Numbers<f32>> = tensors.collect();
        let dense: Vec<&[f32]> = dense.iter().map(Numbers::as_slice).collect();
        Ok(Self { crm, table, dense: dense.concat() })
    }

    /// The CRM without its parameters.
    pub fn crm(&self) -> &Crm {
        &self.crm
    }

    /// Its parameters.
    pub fn parameters(&self) -> Parameters<'_> {
        Parameters { table: self.table.as_slice(), rows: None, dense: &self.dense }
    }
}
