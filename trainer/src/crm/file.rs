//! The CRM's file: safetensors with settings and a hash in the header.

use std::path::Path;

use reclora_storage::atomic::write_bytes_atomic;
use reclora_storage::hash::xxh3_hex;
use serde::{Deserialize, Serialize};

use super::{Din, DinShape};
use crate::adapter::file::{serialize, to_bytes};
use crate::backbone::TensorFile;
use crate::config::CrmConfig;
use crate::error::{Result, TrainerError};

const KEY: &str = "reclora-crm";
const FORMAT: u32 = 1;
const ADVICE: &str =
    "copy it again, or rebuild it with `reclora-launch run CONFIG --from pretrain`";

#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    config: CrmConfig,
    shape: DinShape,
    parameters_xxh3: String,
}

impl Din {
    /// Writes network and parameters as one safetensors file, atomically, the same bytes each time.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn save(&self, parameters: &[f32], path: &Path) -> Result<()> {
        let header = Header {
            format: FORMAT,
            config: self.config.clone(),
            shape: self.shape,
            parameters_xxh3: xxh3_hex(&to_bytes(parameters)),
        };
        let header = serde_json::to_string(&header)
            .map_err(|error| TrainerError::file(path, error.to_string()))?;
        let tensors = self.tensors.iter().map(|tensor| {
            (tensor.name.as_str(), tensor.shape.as_slice(), &parameters[tensor.range.clone()])
        });
        Ok(write_bytes_atomic(path, &serialize(path, tensors, (KEY, header))?)?)
    }

    /// Reads a file of [`Din::save`]: the network and its parameters.
    ///
    /// # Errors
    /// A file that is missing, truncated, damaged or of another format.
    pub fn load(path: &Path) -> Result<(Self, Vec<f32>)> {
        Self::read(path).map_err(|error| error.advise(ADVICE))
    }

    fn read(path: &Path) -> Result<(Self, Vec<f32>)> {
        let fail = |what: String| TrainerError::file(path, what);
        let mut file = TensorFile::open(path)?;
        let text = file.metadata(KEY).ok_or_else(|| fail("is not a CRM of this program".into()))?;
        let header: Header = serde_json::from_str(text)
            .map_err(|error| fail(format!("its header can't be read: {error}")))?;
        if header.format != FORMAT {
            return Err(fail(format!("has format {}, this program reads {FORMAT}", header.format)));
        }
        // A header that claims a huge network must not be believed before the file shows it.
        if header.shape.item_field >= header.shape.fields
            || header.shape.user_field >= header.shape.fields
        {
            return Err(fail("its fields do not fit together".into()));
        }
        let din = Din::new(&header.config, header.shape)?;
        let mut parameters = Vec::new();
        for tensor in &din.tensors {
            parameters.extend(file.read(&tensor.name, &tensor.shape)?);
        }
        if xxh3_hex(&to_bytes(&parameters)) != header.parameters_xxh3 {
            return Err(fail("is damaged: its values do not have their hash".into()));
        }
        Ok((din, parameters))
    }
}
