//! GGUF files of the LLaMA family: the whole backbone in one file, as llama.cpp has it.
//!
//! Such a file was converted from a Hugging Face directory, and it is read back into the terms of
//! one: its metadata become what `config.json` and `tokenizer.json` said, its tensors go by their
//! Hugging Face names and have their rows in Hugging Face's order. So the rest of the project knows
//! one kind of backbone, and a setting that it refuses in a directory it refuses here.

mod config;
mod parse;
mod rope;
mod split;
mod tensors;
mod tokenizer;
mod types;
mod value;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use reclora_storage::mmap::{Access, Mapped, Pattern};

use super::diagnose;
use crate::error::{Result, TrainerError};

/// Whether a backbone's path means a GGUF file, not a Hugging Face directory.
pub(crate) fn is_gguf(path: &Path) -> bool {
    let named_so = path.extension().is_some_and(|extension| extension == "gguf");
    path.is_file() || named_so && !path.is_dir()
}

/// An open GGUF file whose header has been checked against the file's length.
#[derive(Debug)]
pub(crate) struct Gguf {
    path: PathBuf,
    map: Arc<Mapped>,
    header: parse::Header,
}

impl Gguf {
    /// Brings a file into memory and checks its header.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_as(path, Access::Automatic)
    }

    /// Like [`Self::open`], for the header alone: only its pages are read, wherever the file is.
    pub fn open_header(path: &Path) -> Result<Self> {
        Self::open_as(path, Access::Map)
    }

    fn open_as(path: &Path, access: Access) -> Result<Self> {
        if !path.is_file() {
            let what = "can't be read: there is no such file; is backbone.path right?";
            return Err(TrainerError::file(path, what));
        }
        let map = Arc::new(Mapped::open(path, access)?);
        let header = parse::parse(path, map.bytes())?;
        let file = Self { path: path.to_path_buf(), map, header };
        match file.unsigned("split.count")? {
            Some(count) if count > 1 => {
                let advice = diagnose::merge(path, count);
                file.fail_key(
                    "split.count",
                    &format!("it is one of {count} parts of a model: {advice}"),
                )
            }
            _ => Ok(file),
        }
    }

    /// Says that all weights are going to be read.
    pub fn will_need(&self) {
        self.map.advise(Pattern::WillNeed);
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        self.map.bytes()
    }
}
