//! What the crate does, seen from outside. One executable, since linking many takes longer than running them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic is the failure report of a test"
)]

mod atomic;
mod common;
mod damage;
mod dataset;
mod format;
mod formats;
mod manifest;
mod protocol;
mod raw;
mod rooms;
mod shard;
#[path = "../../tests/skip.rs"]
mod skip;
mod synth;
mod verify;
mod within_memory;
