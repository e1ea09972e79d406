//! What the store and the ranks of a job are told.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::communicator::Wire;
use crate::handshake::Identity;
use crate::secret::Secret;

/// What a [`Store`](crate::rendezvous::Store) needs.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Where to listen; port 0 takes any free one.
    pub bind: SocketAddr,
    /// Ranks in the job.
    pub world_size: usize,
    /// The job's secret.
    pub secret: Secret,
    /// What the ranks must be.
    pub identity: Identity,
    /// How long all ranks have to come.
    pub deadline: Duration,
}

/// What a rank needs to [`join`](crate::rendezvous::join).
#[derive(Clone, Debug)]
pub struct JoinConfig {
    /// `host:port` of the store.
    pub endpoint: String,
    /// This rank, from 0.
    pub rank: usize,
    /// Ranks in the job.
    pub world_size: usize,
    /// The job's secret.
    pub secret: Secret,
    /// What this rank is.
    pub identity: Identity,
    /// How long all ranks have to come.
    pub deadline: Duration,
    /// How long this rank waits for another in one collective.
    pub timeout: Duration,
    /// In what values of sums cross the wire.
    pub wire: Wire,
    /// Address of this machine on which other ranks reach this one.
    pub listen_host: IpAddr,
}
