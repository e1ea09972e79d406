//! Runs over several nodes: the launcher of node 0 leads, those of the others are its agents.
//!
//! Every node runs the same command with another `--node-rank`. The leader takes the stages one by one; for
//! each it tells the agents which ranks to start, and watches those as it watches its own
//! ([`crate::gang`]): events, ends and last words come over one connection per agent, which both ends also
//! listen to for signs of life. An agent that loses its leader ends its ranks and itself; ranks never
//! outlive their agent ([`crate::rank`]). So nothing outlives the job (S-4), whatever is killed or cut off.
//!
//! The run directory is on a file system that all nodes share.

mod agent;
mod job;
mod leader;

pub use agent::run as run_agent;
pub use job::Job;
pub use leader::Leader;

use std::net::SocketAddr;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use reclora_trainer::telemetry::progress::Event;
use serde::{Deserialize, Serialize};

use crate::gang::Shown;
use crate::gang::binding::Binding;
use crate::gang::cause::Outcome;

/// From the leader to an agent.
#[derive(Debug, Serialize, Deserialize)]
enum ToAgent {
    /// Start your ranks of a gang.
    Start(StartGang),
    /// Send this signal to a rank's process group.
    Signal { gang: u64, rank: usize, signal: i32 },
    /// There is nothing more to do: the leader's error and exit code, or none.
    Finish { error: Option<(String, i32)> },
}

/// A gang, as one agent sees it.
#[derive(Debug, Serialize, Deserialize)]
struct StartGang {
    /// Number of the gang, of this leader.
    gang: u64,
    stage: String,
    run_dir: PathBuf,
    /// Directory of this attempt's logs.
    logs: PathBuf,
    tee: Shown,
    binding: Binding,
    world_size: usize,
    first_rank: usize,
    ranks: usize,
    /// Where all ranks meet; the secret is the job's, with the number of the gang.
    meeting: SocketAddr,
}

/// From an agent to the leader.
#[derive(Debug, Serialize, Deserialize)]
enum ToLeader {
    /// A rank said something.
    Event { gang: u64, rank: usize, event: Event },
    /// A rank ended.
    Ended { gang: u64, rank: usize, end: End, tail: Vec<String> },
    /// The ranks could not be started.
    Failed { gang: u64, error: String },
    /// A signal asks this node to end soon.
    Asked { signal: i32 },
}

/// How a process ended, for the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum End {
    Code(i32),
    Signal(i32),
    OutOfMemory,
}

impl End {
    fn of(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Finished => Self::Code(0),
            Outcome::PeerLost => Self::Code(crate::error::EXIT_PEER_LOST),
            Outcome::Paused => Self::Code(crate::error::EXIT_REQUEUE),
            Outcome::Exit(code) => Self::Code(code),
            Outcome::Killed(signal) => Self::Signal(signal as i32),
            Outcome::OutOfMemory => Self::OutOfMemory,
            // What the leader says of ranks; an agent only sees how they ended.
            Outcome::Ended | Outcome::NodeLost | Outcome::Unresponsive | Outcome::Stalled => {
                Self::Signal(Signal::SIGKILL as i32)
            }
        }
    }

    fn outcome(self) -> Outcome {
        match self {
            Self::Code(code) => Outcome::from_code(code),
            Self::OutOfMemory => Outcome::OutOfMemory,
            Self::Signal(number) => {
                Outcome::Killed(Signal::try_from(number).unwrap_or(Signal::SIGKILL))
            }
        }
    }
}

fn encode(message: &impl Serialize) -> Vec<u8> {
    // Plain data with string keys: nothing in it can't be written as JSON.
    serde_json::to_vec(message).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_come_back() {
        for outcome in [
            Outcome::Finished,
            Outcome::PeerLost,
            Outcome::Paused,
            Outcome::Exit(1),
            Outcome::Exit(101),
            Outcome::Killed(Signal::SIGKILL),
            Outcome::Killed(Signal::SIGBUS),
            Outcome::OutOfMemory,
        ] {
            assert_eq!(End::of(outcome).outcome(), outcome);
        }
        assert_eq!(End::Signal(9999).outcome(), Outcome::Killed(Signal::SIGKILL));
    }
}
