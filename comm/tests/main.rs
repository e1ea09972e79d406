//! What the crate does, seen from outside. One executable, since linking many takes longer than running them.
#![allow(clippy::unwrap_used, reason = "a panic is the failure report of a test")]

mod collectives;
mod common;
mod control;
mod cost;
#[cfg(target_os = "linux")]
mod faults;
#[cfg(target_os = "linux")]
mod network;
mod rendezvous;
mod rooms;
#[path = "../../tests/skip.rs"]
mod skip;
