//! What can go wrong.

use color_eyre::Report;
use nix::sys::signal::Signal;

/// Result of everything in the binary.
pub type Result<T, E = Report> = std::result::Result<T, E>;

/// Errors that decide the exit code.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Command line or config.
    #[error("{0}")]
    Usage(String),
    /// A worker group failed; trying again may help.
    #[error("{0}")]
    Died(String),
    /// A worker group failed; the same would come again.
    #[error("{0}")]
    Hopeless(String),
    /// A node of the job is not there.
    #[error("{0}")]
    NodeMissing(String),
    /// A signal; all ranks have been ended.
    #[error("{0}")]
    Interrupted(Signal),
    /// A signal; all ranks have saved what they had and ended.
    #[error("{0}")]
    Paused(Signal),
    /// Node 0 has ended with an error and this exit code.
    #[error("node 0 has ended: {0}")]
    LeaderEnded(String, i32),
}
