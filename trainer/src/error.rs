//! What can go wrong in a stage. Every message says what, where, and what to do.

use std::path::{Path, PathBuf};

/// Result of everything in this crate.
pub type Result<T, E = TrainerError> = std::result::Result<T, E>;

/// Errors of the trainer.
#[derive(Debug, thiserror::Error)]
pub enum TrainerError {
    /// Data on disk: missing, corrupt, not writable.
    #[error(transparent)]
    Storage(#[from] reclora_storage::error::StorageError),
    /// Another rank did not do its part.
    #[error(transparent)]
    Comm(#[from] reclora_comm::CommError),
    /// A file of the backbone, tokenizer, template, adapter or checkpoint can't be used.
    #[error("{path}: {what}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what to do.
        what: String,
    },
    /// What a stage made can't be used as it is.
    #[error("{what}")]
    Remake {
        /// What is wrong, and where.
        what: String,
        /// What helps.
        remedy: Remedy,
    },
    /// A setting that can't work.
    #[error("config: {field}: {what}")]
    Config {
        /// `section.key`.
        field: String,
        /// What is wrong and what would be right.
        what: String,
    },
    /// A number that should be finite is not.
    #[error("{what} is not finite (NaN or infinity); {hint}")]
    NotFinite {
        /// Which tensor or quantity.
        what: String,
        /// What to try.
        hint: String,
    },
    /// The ranks' copies of what is trained are no longer the same.
    #[error("after step {step} rank {} {} another {tensor} than the others: its memory or its GPU is faulty, or it runs other code; the same command continues from the last checkpoint", odd.iter().map(usize::to_string).collect::<Vec<_>>().join(", "), if odd.len() == 1 { "has" } else { "have" })]
    Replica {
        /// The step after which they were compared, from 1.
        step: u64,
        /// The first tensor that differs.
        tensor: String,
        /// The ranks that do not have what most have.
        odd: Vec<usize>,
    },
    /// Not a failure: the work was interrupted as asked, and what is done is saved.
    #[error("paused: what is done is saved, and the same command continues")]
    Paused,
    /// Something asked for by the user does not exist (a user, an item).
    #[error("{0}")]
    NotFound(String),
    /// An input the model can't take: a token outside the vocabulary, a representation of another width.
    #[error("{0}")]
    Input(String),
    /// A GPU, or a tensor operation on it, failed: no such device, no memory left.
    #[cfg(feature = "cuda")]
    #[error(
        "device: {0}; if its memory ran out, use a larger [tune] micro_batches or a shorter prompt"
    )]
    Device(#[from] candle_core::Error),
}

/// What helps where something that a stage made can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// A file is damaged or foreign: it is copied again, or made again by this stage.
    Rebuild(&'static str),
    /// This stage is done again, and those after it.
    Again(&'static str),
    /// What was made with other settings than this config has now is made again with it, or used with its own.
    Settings(PathBuf),
    /// This stage, or the one at work, is done again from nothing.
    Afresh(Option<&'static str>),
}

impl TrainerError {
    /// A [`TrainerError::Remake`] of something that a stage has to do again from nothing.
    pub(crate) fn afresh(what: impl Into<String>, stage: &'static str) -> Self {
        Self::Remake { what: what.into(), remedy: Remedy::Afresh(Some(stage)) }
    }

    /// A checkpoint that does not fit what is trained.
    pub(crate) fn other_checkpoint(dir: &Path) -> Self {
        let what = format!("{}: a checkpoint of another model", dir.display());
        Self::Remake { what, remedy: Remedy::Afresh(None) }
    }

    /// A [`TrainerError::File`].
    pub fn file(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::File { path: path.into(), what: what.into() }
    }

    /// Adds to an error of a file what to do about it: known to who asked for the file, not to its
    /// reader.
    pub(crate) fn advise(self, advice: &str) -> Self {
        match self {
            Self::File { path, what } => Self::File { path, what: format!("{what}; {advice}") },
            other => other,
        }
    }

    /// A [`TrainerError::Config`].
    pub fn config(field: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Config { field: field.into(), what: what.into() }
    }
}
