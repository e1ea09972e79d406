//! `reclora-comm`: ranks talking.
//!
//! A [`Communicator`] moves bytes and sums between the ranks of one job. It knows nothing of models,
//! files or launching. Sums are added in one fixed order ([`tree`]), so that the same job gives the
//! same bits for every power-of-two number of ranks.
//!
//! Ranks meet at a [`rendezvous::Store`], where each proves that it knows the job's [`Secret`] and
//! shows its [`Identity`]; then every pair of ranks has one connection ([`TcpCommunicator`]). No wait
//! is unbounded, and every time-out names who was waited for.
#![deny(missing_docs)]

mod codec;
mod communicator;
mod config;
pub mod control;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod handshake;
mod interface;
mod mesh;
#[cfg(feature = "nccl")]
mod nccl;
mod record;
pub mod rendezvous;
mod secret;
mod service;
mod tcp;
pub mod tree;

pub use communicator::{Communicator, Reduction, Solo, Wire};
pub use error::{CommError, Result};
pub use handshake::{Identity, PROTOCOL_VERSION};
pub use interface::address_of;
#[cfg(feature = "nccl")]
pub use nccl::{NcclCommunicator, nccl_version};
pub use record::{Record, compare};
pub use secret::Secret;
pub use tcp::TcpCommunicator;
