//! `reclora-storage`: data on disk.
//!
//! What a run reads and writes goes through this crate: readers of raw rating files ([`raw`]), the
//! data protocol that turns them into samples ([`protocol`]), what one wants to know of both beforehand
//! ([`inspect`]), columnar files read through a memory
//! map ([`shard`], [`dataset`]), stage directories with manifests ([`manifest`]), and the order and
//! prefetching of samples ([`permutation`], [`loader`]). What does not fit into memory is sorted in
//! temporary files ([`spill`]). [`synth`] makes ratings of any size.
//!
//! Two invariants are kept here and named by the tests that verify them:
//!
//! - **D-4** a history never holds the target or anything later;
//! - **S-1** no incomplete or corrupt file is ever used: it is refused with its path and what is
//!   wrong with it. Files become visible under their final names only when complete ([`atomic`]).
#![deny(missing_docs)]

#[cfg(target_endian = "big")]
compile_error!(
    "shards are little-endian and mapped as they are: big-endian machines are not supported"
);

pub mod atomic;
pub mod codec;
pub mod dataset;
pub mod error;
pub mod hash;
pub mod inspect;
pub mod loader;
pub mod manifest;
pub mod mmap;
pub mod permutation;
pub mod protocol;
pub mod raw;
pub mod shard;
pub mod spill;
pub mod synth;
pub mod verify;

pub use error::{Result, StorageError};
