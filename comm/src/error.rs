//! What can go wrong between ranks. Every message names the collective and who was waited for.

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
}
