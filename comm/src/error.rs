//! What can go wrong between ranks. Every message names what was done and who was waited for.

use std::time::Duration;

use crate::record::ranks;

/// Result of everything in this crate.
pub type Result<T, E = CommError> = std::result::Result<T, E>;

/// Errors of communication.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommError {
    /// A rank that does not exist was named.
    #[error("{collective}: rank {rank} does not exist in a world of {world_size}")]
    NoSuchRank {
        /// Name of the collective.
        collective: String,
        /// The rank asked for.
        rank: usize,
        /// Number of ranks in the job.
        world_size: usize,
    },
    /// The connection to a rank ended while something was still needed from it.
    #[error(
        "{collective} #{sequence}: lost rank {rank} ({why}); it has probably ended, see its log"
    )]
    PeerLost {
        /// Name of the collective.
        collective: String,
        /// Number of the collective, counted from 0 by every rank.
        sequence: u64,
        /// The rank that is gone.
        rank: usize,
        /// What the connection said.
        why: String,
    },
    /// Some ranks did not enter a collective in time.
    #[error("{collective} #{sequence}: waited {timeout:?} for {}; it is stuck or far behind, see its log", ranks(.missing))]
    Timeout {
        /// Name of the collective.
        collective: String,
        /// Number of the collective.
        sequence: u64,
        /// The ranks whose part did not come.
        missing: Vec<usize>,
        /// How long it was waited.
        timeout: Duration,
    },
    /// Another rank has given up on a rank, and said so before it ended.
    #[error("{collective} #{sequence}: rank {by} has given up{}: {why}", on(.ranks))]
    GivenUp {
        /// Name of the collective that this rank was in.
        collective: String,
        /// Number of the collective.
        sequence: u64,
        /// Who said it.
        by: usize,
        /// The ranks that it lost or waited for in vain.
        ranks: Vec<usize>,
        /// Its own error.
        why: String,
    },
    /// A rank entered another collective than this one.
    #[error(
        "rank {rank} entered {theirs}, this rank {ours}: the ranks do not run the same program"
    )]
    Mismatch {
        /// The other rank.
        rank: usize,
        /// What this rank entered.
        ours: String,
        /// What the other rank entered.
        theirs: String,
    },
    /// A sum over ranks is not a number: somewhere a gradient is not.
    #[error("{collective} #{sequence}: the sum's value {index} is not a number")]
    NotANumber {
        /// Name of the collective.
        collective: String,
        /// Number of the collective.
        sequence: u64,
        /// Place of the first such value in the buffer, the same on every rank.
        index: usize,
    },
    /// A peer sent bytes that are not this protocol.
    #[error("{peer} sent a malformed message: {what}")]
    Malformed {
        /// Who sent it.
        peer: String,
        /// What is wrong with it.
        what: String,
    },
    /// The store refused this rank, or the first node's launcher this one's.
    #[error("the job at {endpoint} refused {who}: {reason}")]
    Refused {
        /// Address of the store, or of the first node's launcher.
        endpoint: String,
        /// This rank or node.
        who: String,
        /// Why.
        reason: String,
    },
    /// The other side does not know the secret of this job.
    #[error("{peer} does not know this job's secret: it belongs to another job")]
    WrongSecret {
        /// The other side.
        peer: String,
    },
    /// Not all ranks came.
    #[error("rendezvous: waited {timeout:?} for {}; see their logs", ranks(.missing))]
    Rendezvous {
        /// The ranks that did not come.
        missing: Vec<usize>,
        /// How long it was waited.
        timeout: Duration,
    },
    /// The store could not be reached.
    #[error("can't reach the job at {endpoint}: {why}")]
    Unreachable {
        /// Address of the store.
        endpoint: String,
        /// The last error.
        why: String,
    },
    /// An address can't be listened on.
    #[error("can't listen on {address}: {why}")]
    Bind {
        /// The address.
        address: String,
        /// What the system said.
        why: String,
    },
    /// NCCL or the GPU failed.
    #[error("NCCL: {what}")]
    Nccl {
        /// What it said, and in which sum.
        what: String,
    },
    /// A setting that can't work.
    #[error("{0}")]
    Config(String),
    /// The operating system refused something.
    #[error("{what}: {why}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        why: String,
    },
}

impl CommError {
    /// A [`CommError::System`].
    pub(crate) fn system(what: &str, why: impl std::fmt::Display) -> Self {
        Self::System { what: what.into(), why: why.to_string() }
    }

    /// A [`CommError::Unreachable`].
    pub(crate) fn unreachable(endpoint: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self::Unreachable { endpoint: endpoint.into(), why: why.to_string() }
    }

    /// A [`CommError::Bind`].
    pub(crate) fn bind(address: std::net::SocketAddr, why: impl std::fmt::Display) -> Self {
        Self::Bind { address: address.to_string(), why: why.to_string() }
    }

    /// A [`CommError::Malformed`].
    pub(crate) fn malformed(peer: impl Into<String>, what: impl std::fmt::Display) -> Self {
        Self::Malformed { peer: peer.into(), what: what.to_string() }
    }

    /// Whether this is only the echo of another rank's end, not a first cause.
    pub fn is_peer_lost(&self) -> bool {
        matches!(self, Self::Rendezvous { .. }) || !self.culprits().is_empty()
    }

    /// The ranks without which a collective could not go on.
    pub fn culprits(&self) -> &[usize] {
        match self {
            Self::PeerLost { rank, .. } => std::slice::from_ref(rank),
            Self::Timeout { missing, .. } => missing,
            Self::GivenUp { ranks, .. } => ranks,
            _ => &[],
        }
    }
}

fn on(ranks: &[usize]) -> String {
    if ranks.is_empty() { String::new() } else { format!(" on {}", crate::record::ranks(ranks)) }
}
