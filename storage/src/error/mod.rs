//! Errors of the storage crate: what went wrong, in which file (and line), and what to do.

mod raw;

use std::io;
use std::path::{Path, PathBuf};

pub use raw::RawProblem;

/// Result of everything in this crate.
pub type Result<T, E = StorageError> = std::result::Result<T, E>;

/// What went wrong with data on disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// The operating system refused an operation.
    #[error("cannot {action} {path}: {source}{}", hint(.source))]
    Io {
        /// What was being done: "read", "create", ...
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// A raw file is not there, neither plain nor compressed.
    #[error(
        "{dir} has neither {name} nor {name}.gz; data.path must be the directory of the unpacked raw files"
    )]
    MissingRawFile {
        /// The directory that was searched.
        dir: PathBuf,
        /// Name of the file that was looked for.
        name: String,
    },
    /// Two raw files could be meant.
    #[error(
        "{dir} has {first} and {second}, and only one of them can be read; move the other away"
    )]
    AmbiguousRawFile {
        /// The directory that was searched.
        dir: PathBuf,
        /// Name of one file.
        first: String,
        /// Name of another.
        second: String,
    },
    /// A raw file, or a directory of them, can't be read.
    #[error("{path}: {problem}")]
    Table {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// A value of a mapped column can't be used.
    #[error("{path}:{line}: column {column:?}: {problem}")]
    Cell {
        /// The file.
        path: PathBuf,
        /// Number of the line, or of the row in Parquet, from 1.
        line: u64,
        /// Name of the column.
        column: Box<str>,
        /// What is wrong with it.
        problem: RawProblem,
    },
    /// The mapping's settings make no sense.
    #[error("data.columns.{setting}: {problem}")]
    Mapping {
        /// The setting in the `[data.columns]` section.
        setting: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A raw file holds no row.
    #[error("{path}: the file has no rows; download or unpack it again")]
    EmptyRawFile {
        /// The file.
        path: PathBuf,
    },
    /// A raw file ends or decodes wrongly (a truncated download, a damaged gzip stream).
    #[error(
        "{path}: after line {line}: {source}; the file is truncated or damaged: download it again"
    )]
    DamagedRawFile {
        /// The file.
        path: PathBuf,
        /// The last line that was read in full.
        line: u64,
        /// What the decoder said.
        source: io::Error,
    },
    /// A value of a raw file is not what the layout says.
    #[error("{path}:{line}: {field}: {problem}")]
    Raw {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: u64,
        /// Name of the column.
        field: &'static str,
        /// What is wrong with it.
        problem: RawProblem,
    },
    /// The protocol's settings make no sense.
    #[error("data.{setting}: {problem}")]
    Protocol {
        /// The setting in the `[data]` section.
        setting: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// No sample is left after filtering.
    #[error(
        "no samples left: {ratings} ratings of {users} users on {items} items were read; \
         data.k_core = {k_core} left {core_ratings} ratings of {core_users} users on {core_items} items; \
         data.min_history = {min_history} then dropped all of them (the longest history has {longest_history} \
         earlier ratings). Lower data.{culprit}"
    )]
    NoSamples {
        /// Ratings read.
        ratings: u64,
        /// Users with a rating.
        users: u64,
        /// Items with a rating.
        items: u64,
        /// The setting.
        k_core: u32,
        /// Ratings the k-core left.
        core_ratings: u64,
        /// Users the k-core left.
        core_users: u64,
        /// Items the k-core left.
        core_items: u64,
        /// The setting.
        min_history: u32,
        /// Earlier ratings of the sample that has most of them.
        longest_history: u64,
        /// The setting that dropped the last sample.
        culprit: &'static str,
    },
    /// A file written by this crate is incomplete, damaged, foreign or of another version.
    #[error("{path}: {problem}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A column was asked for that a shard does not have.
    #[error(
        "{path}: no column `{column}` of type {dtype}: the file was written by another version, or for another purpose"
    )]
    NoColumn {
        /// The shard.
        path: PathBuf,
        /// The column's name.
        column: String,
        /// The element type asked for.
        dtype: &'static str,
    },
    /// A file that is not to be replaced.
    #[error("cannot write {path}: it exists")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The caller handed over data that cannot be written.
    #[error("cannot write {path}: {problem}")]
    BadInput {
        /// The file that was to be written.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A stage's directory has no manifest: it never finished.
    #[error("{path}: stage `{stage}` has no manifest.json, so it did not finish")]
    Incomplete {
        /// The stage's directory.
        path: PathBuf,
        /// The stage.
        stage: String,
    },
    /// A file of a stage is not the file its manifest lists.
    #[error("{path}: {problem}")]
    StageFile {
        /// The file.
        path: PathBuf,
        /// The stage that wrote it.
        stage: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A directory that a stage is to write holds files that no stage wrote.
    #[error(
        "{path} holds files that no run wrote ({example}, ...) and is not emptied; move them away or choose another run directory"
    )]
    ForeignDirectory {
        /// The directory.
        path: PathBuf,
        /// One of the files.
        example: String,
    },
    /// Another process holds the run's lock.
    #[error(
        "{path} is locked by another process{holder} and was not released within {waited:.1} s; wait for that run or stop it"
    )]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// " (pid N)", or nothing when unknown.
        holder: String,
        /// Seconds waited.
        waited: f64,
    },
    /// Bytes could not be encoded or decoded.
    #[error("{direction}: {problem}")]
    Codec {
        /// "encode" or "decode".
        direction: &'static str,
        /// What the codec said.
        problem: String,
    },
    /// A sample was asked for that the dataset does not have.
    #[error("{path}: sample {index} does not exist: the dataset has {len}")]
    OutOfRange {
        /// The dataset's file.
        path: PathBuf,
        /// The index asked for.
        index: u64,
        /// Number of samples.
        len: u64,
    },
}

impl StorageError {
    /// An operating system error on `path`.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_path_buf(), source }
    }

    /// A raw file, or a directory of them, that can't be read.
    pub(crate) fn table(path: &Path, problem: impl Into<String>) -> Self {
        Self::Table { path: path.to_path_buf(), problem: problem.into() }
    }

    /// Something that can't be written to `path`.
    pub(crate) fn bad_input(path: &Path, problem: impl std::fmt::Display) -> Self {
        Self::BadInput { path: path.to_path_buf(), problem: problem.to_string() }
    }

    /// A damaged file of this crate.
    pub(crate) fn corrupt(path: &Path, problem: impl Into<String>) -> Self {
        Self::Corrupt { path: path.to_path_buf(), problem: problem.into() }
    }
}

/// For writers that may fail in both ways: the kind stays that of the operating system.
impl From<StorageError> for io::Error {
    fn from(error: StorageError) -> Self {
        let kind = match &error {
            StorageError::Io { source, .. } => source.kind(),
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error.to_string())
    }
}

/// What a person can do about an operating system error, where that is known.
fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space or choose another run directory, then run again"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; check the owner and permissions of the directory"
        }
        _ => "",
    }
}
