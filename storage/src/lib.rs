//! `reclora-storage`: data on disk.
#![deny(missing_docs)]
pub mod error;
pub mod protocol;
pub mod raw;
