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
    /// Maps a file and checks its header.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.is_file() {
            let what = "can't be read: there is no such file; is backbone.path right?";
            return Err(TrainerError::file(path, what));
        }
        let map = Arc::new(Mapped::open(path, Access::Automatic)?);
        let header = parse::parse(path, map.bytes())?;
        map.advise(Pattern::WillNeed);
        Ok(Self { path: path.to_path_buf(), map, header })
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        self.map.bytes()
    }
}
