//! Errors of the storage crate.
/// What went wrong with data on disk.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {}
/// Result of everything in this crate.
pub type Result<T, E = StorageError> = std::result::Result<T, E>;
